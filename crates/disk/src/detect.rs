//! Which format a file has, by its content and never by its name.

use std::fs::File;
use std::path::Path;

use crate::host::{HostFile, open_named_file};
use crate::image::{Access, Format};
use crate::vhd::DiskKind;
use crate::{Error, Result, vhd};

/// The format of the file at `path`, by its content and never by its name. Whatever nobody claims is raw.
///
/// # Errors
/// `NotFound`, `Denied`, `Io`; `Invalid` for what is neither a file nor a block device.
pub fn detect(path: impl AsRef<Path>) -> Result<Format> {
    let path = path.as_ref();
    detect_file(&open_named_file(path, Access::Read)?, path)
}

/// The format of an opened file. Whatever nobody claims is raw, and so is every block device: a guest that owns a
/// device could otherwise write a header into it and choose how we read it.
///
/// A VHD is claimed by its cookie even when its checksum is wrong, so that opening says what is broken instead of
/// taking the container's bytes for a disk.
pub(crate) fn detect_file(file: &File, path: &Path) -> Result<Format> {
    let file = file.try_clone().map_err(|e| Error::io(path, "duplicate the file handle", e))?;
    let host = HostFile::new(file, path);
    if host.is_block_device()? {
        return Ok(Format::Raw);
    }
    let mut magic = [0; 4];
    if host.length()? >= 4 {
        host.read(&mut magic, 0, "the first bytes")?;
    }
    if &magic == b"QFI\xfb" {
        return Ok(Format::Qcow2);
    }
    Ok(match vhd::detect(&host)? {
        None => Format::Raw,
        Some(DiskKind::Fixed) => Format::VhdFixed,
        Some(DiskKind::Dynamic) => Format::VhdDynamic,
        Some(DiskKind::Differencing) => Format::VhdDifferencing,
    })
}
