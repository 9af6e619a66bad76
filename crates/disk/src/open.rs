//! The doors: open an image by its content, create a new one.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::chain::{ChainContext, open_named_file};
use crate::detect::detect_file;
use crate::gate::{Gate, SameFolder};
use crate::{BlockDevice, Error, ErrorKind, Result, qcow2, raw, vhd};

/// The container formats that goldwire reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// A plain image or a block device.
    Raw,
    /// VHD with all blocks in place and a footer.
    VhdFixed,
    /// VHD with a block allocation table.
    VhdDynamic,
    /// VHD over a parent.
    VhdDifferencing,
    /// QCOW2 version 2 or 3.
    Qcow2,
}

impl Format {
    /// What people and scripts call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::VhdFixed => "vhd-fixed",
            Self::VhdDynamic => "vhd-dynamic",
            Self::VhdDifferencing => "vhd-differencing",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// What an image names as its parent, in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentReference {
    /// Paths from the image, best first, as written there (relative ones are relative to the child's folder).
    pub paths: Vec<PathBuf>,
    /// The parent's uuid, where the format records one (VHD).
    pub uuid: Option<[u8; 16]>,
    /// The format that the child claims for its parent, where it says so (QCOW2).
    pub format: Option<String>,
}

/// How to open an image.
#[derive(Clone)]
pub struct OpenOptions {
    /// Open for writing; formats that we only read answer `Unsupported`.
    pub writable: bool,
    /// Take the file for this format instead of detecting it.
    pub format: Option<Format>,
    /// Which parents may be opened.
    pub gate: Arc<dyn Gate>,
}

/// One file of an opened chain.
#[derive(Clone, Debug)]
pub struct Link {
    /// Where it was found.
    pub path: PathBuf,
    /// What it is.
    pub format: Format,
    /// The identity of the file when it was opened.
    pub identity: FileIdentity,
}

/// Enough of `stat` to notice that a file was changed or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// Device number of the file system.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Length in bytes.
    pub length: u64,
    /// Modification time, nanoseconds since 1970.
    pub modified_ns: i128,
    /// Status change time, nanoseconds since 1970; programs cannot set it.
    pub changed_ns: i128,
}

/// An opened disk: the device and what is known about its container.
pub struct Image {
    /// The guest's view.
    pub device: Arc<dyn BlockDevice>,
    /// The files, the named one first, then its parents towards the base.
    pub chain: Vec<Link>,
    /// What the head of the chain says about itself.
    pub info: ImageInfo,
}

/// What a container records beside data.
#[derive(Clone, Debug)]
pub struct ImageInfo {
    /// The head's format.
    pub format: Format,
    /// Guest size in bytes.
    pub size: u64,
    /// The container's own uuid (VHD).
    pub uuid: Option<[u8; 16]>,
    /// Creation time in seconds since 1970 (VHD footer), never taken for truth.
    pub created: Option<i64>,
    /// XenServer's `hidden` byte (VHD).
    pub hidden: Option<bool>,
    /// Name and value of whatever else `disk info` prints, in print order.
    pub details: Vec<(&'static str, String)>,
}

/// What to create.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// `Raw`, `VhdFixed`, `VhdDynamic` or `Qcow2`.
    pub format: Format,
    /// Guest size in bytes.
    pub size: u64,
    /// The uuid to record (VHD); must not be nil.
    pub uuid: [u8; 16],
    /// The creation time to record, seconds since 1970 (VHD); a later time than now is written as now.
    pub created: i64,
}

/// Opens the image at `path` with its parents.
///
/// # Errors
/// Whatever is wrong with one of the files, `Denied` by the gate, `Unsupported`.
pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Image> {
    let path = path.as_ref();
    open_file(open_named_file(path, options.writable)?, path, options)
}

/// [`open`] for a file that the caller has opened, with write access if `options.writable`; `path` is its name in
/// messages and what parents are relative to.
///
/// # Errors
/// As [`open`].
pub fn open_file(file: File, path: &Path, options: &OpenOptions) -> Result<Image> {
    let format = match options.format {
        Some(format) => format,
        None => detect_file(&file, path)?,
    };
    let mut chain = ChainContext::new(Arc::clone(&options.gate));
    let (device, info) = chain.open_file(file, path, format, options.writable)?;
    Ok(Image { device, chain: chain.into_links(), info })
}

/// Makes a new disk at `path`, which must not exist yet, for its owner only. When that fails, no file stays
/// behind.
///
/// # Errors
/// `Io` when the file exists or cannot be made, `Invalid` for a size or uuid that the format cannot hold,
/// `Unsupported` for a format that is only read.
pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<Arc<dyn BlockDevice>> {
    let path = path.as_ref();
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| Error::io(path, "create the image", e))?;
    create_in(file, path, options).inspect_err(|_| {
        // The first error is the one to report; the file is ours, since it did not exist.
        let _ = std::fs::remove_file(path);
    })
}

/// Makes a new disk in `file`, which is empty and open for reading and writing; `path` is its name in messages.
///
/// # Errors
/// As [`create`].
pub fn create_in(file: File, path: &Path, options: &CreateOptions) -> Result<Arc<dyn BlockDevice>> {
    match options.format {
        Format::Raw => raw::create(file, path, options.size),
        Format::VhdFixed | Format::VhdDynamic => vhd::create(file, path, options),
        Format::Qcow2 => qcow2::create(file, path, options.size),
        Format::VhdDifferencing => {
            Err(Error::new(ErrorKind::Unsupported, path, "differencing disks are read but not created"))
        }
    }
}

/// The format of the file at `path`, by its content and never by its name. Whatever nobody claims is raw.
///
/// # Errors
/// `NotFound`, `Denied`, `Io`; `Invalid` for what is neither a file nor a block device.
pub fn detect(path: impl AsRef<Path>) -> Result<Format> {
    let path = path.as_ref();
    detect_file(&open_named_file(path, false)?, path)
}

impl Default for OpenOptions {
    /// For reading, any format, parents in the same folder.
    fn default() -> Self {
        Self { writable: false, format: None, gate: Arc::new(SameFolder) }
    }
}

impl Image {
    /// The first file of the chain that is no longer what was opened: changed, replaced or gone. An image that
    /// we write to changes too.
    ///
    /// # Errors
    /// `Io` or `Denied` when a file cannot be looked at.
    pub fn changed(&self) -> Result<Option<PathBuf>> {
        for link in &self.chain {
            match FileIdentity::of_path(&link.path) {
                Ok(identity) if identity == link.identity => {}
                Ok(_) => return Ok(Some(link.path.clone())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(link.path.clone())),
                Err(error) => return Err(Error::io(&link.path, "stat the image", error)),
            }
        }
        Ok(None)
    }
}

impl FileIdentity {
    /// The identity of an open file.
    ///
    /// # Errors
    /// When `fstat` fails.
    pub fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self::from_metadata(&metadata))
    }

    /// The identity of what `path` leads to now.
    ///
    /// # Errors
    /// When `stat` fails.
    pub fn of_path(path: impl AsRef<Path>) -> io::Result<Self> {
        path.as_ref().metadata().map(|metadata| Self::from_metadata(&metadata))
    }

    fn from_metadata(metadata: &Metadata) -> Self {
        let nanoseconds = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}
