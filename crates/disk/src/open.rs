//! The doors: open an image by its content, create a new one.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use crate::chain::Chain;
use crate::detect::{Detected, NamedBy, detect_file};
use crate::gate::{Gate, SameFolder};
use crate::host::open_named_file;
use crate::image::{Access, CreateOptions, Format, Image};
use crate::{BlockDevice, Error, ErrorKind, Result, qcow2, raw, vhd};

/// How to open an image.
#[derive(Clone)]
pub struct OpenOptions {
    /// What for; formats that we only read answer `Unsupported` to `Write`.
    pub access: Access,
    /// Take the file for this format instead of detecting it.
    pub format: Option<Format>,
    /// Which parents may be opened.
    pub gate: Arc<dyn Gate>,
}

/// Opens the image at `path` with its parents.
///
/// # Errors
/// Whatever is wrong with one of the files, `Denied` by the gate, `Unsupported`.
pub fn open(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Image> {
    let path = path.as_ref();
    open_file(open_named_file(path, options.access)?, path, options)
}

/// [`open`] for a file that the caller has opened, with write access if `options.access` asks for it; `path` is its name in
/// messages and what parents are relative to.
///
/// # Errors
/// As [`open`].
pub fn open_file(file: File, path: &Path, options: &OpenOptions) -> Result<Image> {
    let Detected { format, notice } = match options.format {
        Some(format) => Detected { format, notice: None },
        None => detect_file(&file, path, NamedBy::User)?,
    };
    let mut chain = Chain::new(Arc::clone(&options.gate));
    let (device, info) = chain.open_file(file, path, format, options.access)?;
    let (chain, notices) = chain.into_parts();
    Ok(Image { device, chain, info, notices: notice.into_iter().chain(notices).collect() })
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

impl Default for OpenOptions {
    /// For reading, any format, parents in the same folder.
    fn default() -> Self {
        Self { access: Access::Read, format: None, gate: Arc::new(SameFolder) }
    }
}
