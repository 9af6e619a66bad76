//! QCOW2 versions 2 and 3, after QEMU's `docs/interop/qcow2.txt`.
//!
//! The crate `imago` reads and writes QCOW2 too, and we do not build on it. Its native interface is asynchronous
//! over storage traits of its own, and it needs tokio (its synchronous wrappers run a tokio runtime), while our
//! devices are synchronous so that a read of a resident page is one `pread` and the agent stays small. And it
//! allocates as writes arrive, or a whole new range when an image is created or grown; resumable replication needs
//! chosen ranges to get their place in ascending order, before any data, in an order of writes that survives being
//! killed. What it taught us: a driver says where a range lies, shared code reads it, and whatever an image names
//! goes through a gate.
//!
//! - [`header`]: bytes to a header within its limits. [`tables`]: L1 and L2 entries to mappings. Both are pure.
//! - [`read`]: every image, with compressed clusters ([`compressed`]) and backing files.
//! - [`write`]: images of one simple shape, crash-safe; [`space`] hands out clusters, [`adopt`] opens an image
//!   that exists.
//! - [`claims`]: that tables do not claim more data than the file holds.
//! - [`check`]: whether the image is consistent.
//!
//! An image is taken for hostile: no offset, count or length is used before it is within its limit, and every
//! cache is bounded.

mod adopt;
mod cache;
mod check;
mod claims;
mod compressed;
mod header;
mod host;
mod read;
mod refcounts;
mod space;
mod tables;
#[cfg(test)]
mod tests;
mod view;
mod write;

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use self::header::{CORRUPT, Compression, DIRTY, Header};
use crate::host::HostFile;
use crate::image::{Access, Format, ImageInfo, ParentReference};
use crate::parents::Parents;
use crate::{BlockDevice, Error, ErrorKind, Result};

pub(crate) use self::check::check;

/// Opens the QCOW2 image `file`, named `path`, with the backing files that `parents` allow.
///
/// # Errors
/// `Corrupt` with the field and its offset; `Unsupported` for features that we do not read, or do not write for
/// `Write`; whatever `parents` answer about a backing file.
pub(crate) fn open(
    file: File,
    path: &Path,
    access: Access,
    parents: &mut dyn Parents,
) -> Result<(Arc<dyn BlockDevice>, ImageInfo)> {
    let host = HostFile::new(file, path);
    let header = Header::read(&host)?;
    let info = image_info(&header);
    if access == Access::Write {
        return Ok((Arc::new(adopt::adopt(host, &header)?), info));
    }
    let backing = match &header.backing_name {
        Some(name) => parents.open_parent(path, &backing_reference(path, name, &header)?)?,
        None => None,
    };
    Ok((Arc::new(read::Reader::open(host, &header, backing)?), info))
}

/// Makes the empty `file` a QCOW2 image of `size` guest bytes that reads as zero.
///
/// # Errors
/// `Invalid` for a size that is no multiple of 512 or more than 16 TiB, and for a file that is not empty; `Io`.
pub(crate) fn create(file: File, path: &Path, size: u64) -> Result<Arc<dyn BlockDevice>> {
    Ok(Arc::new(write::Writer::create(HostFile::new(file, path), size)?))
}

/// What the image in `host` names as its backing file.
pub(crate) fn parent_reference(host: &HostFile) -> Result<Option<ParentReference>> {
    let header = Header::read(host)?;
    header.backing_name.as_deref().map(|name| backing_reference(host.path(), name, &header)).transpose()
}

/// The backing file as a parent.
///
/// An image that records no backing format has it detected, as QEMU does. That lets the guest of a raw backing
/// file forge an image by writing a QCOW2 header to its first sector; QEMU therefore records the format today, and
/// a recorded `raw` is never detected. The gate bounds what a forged one could name.
fn backing_reference(path: &Path, name: &[u8], header: &Header) -> Result<ParentReference> {
    let name = match name.strip_prefix(b"file:") {
        Some(name) => name,
        None if has_protocol(name) => {
            let name = String::from_utf8_lossy(name);
            let message = format!("its backing file is {name:?}, which is no path");
            return Err(Error::new(ErrorKind::Unsupported, path, message)
                .with_hint("point the image at a file with `qemu-img rebase -u`"));
        }
        None => name,
    };
    Ok(ParentReference {
        paths: vec![PathBuf::from(OsString::from_vec(name.to_vec()))],
        uuid: None,
        format: header.backing_format.clone(),
    })
}

/// Whether QEMU would take `name` for `protocol:address` (`nbd:`, `json:`): it has a colon before any slash.
fn has_protocol(name: &[u8]) -> bool {
    name.iter().find(|byte| matches!(byte, b':' | b'/')) == Some(&b':')
}

fn image_info(header: &Header) -> ImageInfo {
    let mut details = vec![
        ("qcow2 version", header.version.to_string()),
        ("cluster size", header.geometry.cluster_size().to_string()),
        ("refcount bits", (1u32 << header.refcount_order).to_string()),
    ];
    if header.compression == Compression::Zstd {
        details.push(("compression", "zstd".to_owned()));
    }
    if header.geometry.is_extended() {
        details.push(("extended L2 entries", "yes".to_owned()));
    }
    if let Some(name) = &header.backing_name {
        let format = header.backing_format.as_deref().unwrap_or("not recorded, detected from its content");
        details.push(("backing file", String::from_utf8_lossy(name).into_owned()));
        details.push(("backing format", format.to_owned()));
    }
    if header.snapshot_count != 0 {
        details.push(("internal snapshots", format!("{}, ignored", header.snapshot_count)));
    }
    if header.incompatible & DIRTY != 0 {
        details.push(("dirty", "yes: its refcounts may be wrong, its data is readable".to_owned()));
    }
    if header.incompatible & CORRUPT != 0 {
        details
            .push(("corrupt", "yes: QEMU found its tables damaged; what it reads may be wrong".to_owned()));
    }
    ImageInfo { format: Format::Qcow2, size: header.size, uuid: None, created: None, hidden: None, details }
}
