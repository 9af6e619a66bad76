//! The words that every format and every door uses: what an image is, what its files are, what is known about them.
//! This module knows no format and opens nothing.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldwire_stdx::Uuid;

use crate::{BlockDevice, Error, Result};

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
    pub uuid: Option<Uuid>,
    /// The format that the child claims for its parent, where it says so (QCOW2).
    pub format: Option<String>,
}

/// What a gate lets an image open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// A file by its canonical path: the last component is opened without following links.
    File(PathBuf),
    /// A block device by a name that only root can lead elsewhere.
    Device(PathBuf),
}

impl Allowed {
    /// The path.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::Device(path) => path,
        }
    }
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Reading only.
    #[default]
    Read,
    /// Reading and writing.
    Write,
}

/// One file of an opened chain.
#[derive(Clone, Debug)]
pub struct ChainFile {
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
    pub chain: Vec<ChainFile>,
    /// What the head of the chain says about itself.
    pub info: ImageInfo,
    /// What the user should hear before the disk is used: sentences.
    pub notices: Vec<String>,
}

/// What a container records beside data.
#[derive(Clone, Debug)]
pub struct ImageInfo {
    /// The head's format.
    pub format: Format,
    /// Guest size in bytes.
    pub size: u64,
    /// The container's own uuid (VHD).
    pub uuid: Option<Uuid>,
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
    pub uuid: Uuid,
    /// The creation time to record, seconds since 1970 (VHD); a later time than now is written as now.
    pub created: i64,
}

impl Image {
    /// The first file of the chain that is no longer what was opened: changed, replaced or gone. An image that
    /// we write to changes too.
    ///
    /// # Errors
    /// `Io` or `Denied` when a file cannot be looked at.
    pub fn changed(&self) -> Result<Option<PathBuf>> {
        for file in &self.chain {
            match FileIdentity::of_path(&file.path) {
                Ok(identity) if identity == file.identity => {}
                Ok(_) => return Ok(Some(file.path.clone())),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(file.path.clone())),
                Err(error) => return Err(Error::io(&file.path, "stat the image", error)),
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
