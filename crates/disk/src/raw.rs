//! Plain images and block devices: guest byte `n` is file byte `n`. A fixed VHD is the same with a footer behind.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::device::check_range;
use crate::finding::Finding;
use crate::host::HostFile;
use crate::image::{Access, Format, ImageInfo};
use crate::{BlockDevice, Error, ErrorKind, Extent, ExtentKind, FilePlace, Result};

/// Opens the whole file or device as a disk. Any length is a disk, also none.
pub(crate) fn open(file: File, path: &Path, access: Access) -> Result<(Arc<dyn BlockDevice>, ImageInfo)> {
    let host = HostFile::new(file, path);
    let size = host.length()?;
    let info =
        ImageInfo { format: Format::Raw, size, uuid: None, created: None, hidden: None, details: Vec::new() };
    Ok((Arc::new(Flat::new(host, size, access)), info))
}

/// Makes the new, empty `file` a disk of `size` bytes without storing any.
pub(crate) fn create(file: File, path: &Path, size: u64) -> Result<Arc<dyn BlockDevice>> {
    let host = HostFile::new(file, path);
    host.set_length(size)?;
    Ok(Arc::new(Flat::new(host, size, Access::Write)))
}

/// There is nothing to contradict in a raw image.
pub(crate) fn check(_file: &File, _path: &Path) -> Result<Vec<Finding>> {
    Ok(Vec::new())
}

/// A disk that lies in one piece at the start of a file.
pub(crate) struct Flat {
    host: HostFile,
    size: u64,
    access: Access,
}

impl Flat {
    pub(crate) fn new(host: HostFile, size: u64, access: Access) -> Self {
        Self { host, size, access }
    }

    fn check_writable(&self) -> Result<()> {
        if self.access == Access::Write {
            return Ok(());
        }
        Err(Error::new(ErrorKind::ReadOnly, self.host.path(), "was opened for reading only"))
    }
}

impl BlockDevice for Flat {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(self.host.path(), self.size, offset, buf.len() as u64)?;
        self.host.read(buf, offset, "data")
    }

    fn read_at_once(&self, buf: &mut [u8], offset: u64) -> Result<bool> {
        check_range(self.host.path(), self.size, offset, buf.len() as u64)?;
        Ok(self.host.read_at_once(buf, offset))
    }

    /// None: an image file is anybody's who may write to it.
    fn place_of(&self, offset: u64) -> Result<Option<FilePlace>> {
        check_range(self.host.path(), self.size, offset, 1)?;
        Ok(None)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.check_writable()?;
        check_range(self.host.path(), self.size, offset, buf.len() as u64)?;
        self.host.write(buf, offset, "data")
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(self.host.path(), self.size, offset, 1)?;
        let (has_data, length) = self.host.data_run(offset, self.size - offset)?;
        let kind = if has_data { ExtentKind::Data } else { ExtentKind::Hole };
        Ok(Extent { length, kind })
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.check_writable()?;
        check_range(self.host.path(), self.size, offset, length)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.check_writable()?;
        check_range(self.host.path(), self.size, offset, length)?;
        self.host.discard(offset, length)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.check_writable()?;
        check_range(self.host.path(), self.size, offset, length)?;
        self.host.zero(offset, length)
    }

    fn flush(&self) -> Result<()> {
        if self.access == Access::Write { self.host.sync() } else { Ok(()) }
    }
}
