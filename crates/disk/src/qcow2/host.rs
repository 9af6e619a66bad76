//! What a QCOW2 file needs of [`HostFile`] beyond reading: a file may end inside its last cluster, and an end in a
//! wrong place is the image's fault.

use std::fmt;

use crate::host::HostFile;
use crate::{Error, Result};

/// Reads around the end of the file. Offsets are bytes of the file.
pub(super) trait HostFileExt {
    /// Fills as much of `buf` as the file holds from `offset` on, and says how much that was.
    fn read_available(&self, buf: &mut [u8], offset: u64, what: &str) -> Result<usize>;

    /// Fills `buf`; what lies past the end of the file reads as zero, as QEMU reads it.
    fn read_padded(&self, buf: &mut [u8], offset: u64, what: &str) -> Result<()>;

    /// Fills `buf`; a file that ends before is `Corrupt` at `field`.
    fn read_whole(&self, buf: &mut [u8], offset: u64, field: &str) -> Result<()>;

    /// The bytes at `offset`, in `field`, are wrong.
    fn corrupt(&self, field: &str, offset: u64, why: impl fmt::Display) -> Error;
}

impl HostFileExt for HostFile {
    fn read_available(&self, buf: &mut [u8], offset: u64, what: &str) -> Result<usize> {
        let available = self.length()?.saturating_sub(offset).min(buf.len() as u64) as usize;
        if available > 0 {
            self.read(&mut buf[..available], offset, what)?;
        }
        Ok(available)
    }

    fn read_padded(&self, buf: &mut [u8], offset: u64, what: &str) -> Result<()> {
        let available = self.read_available(buf, offset, what)?;
        buf[available..].fill(0);
        Ok(())
    }

    fn read_whole(&self, buf: &mut [u8], offset: u64, field: &str) -> Result<()> {
        if self.read_available(buf, offset, field)? < buf.len() {
            return Err(self.corrupt(field, offset, "the file ends inside it"));
        }
        Ok(())
    }

    fn corrupt(&self, field: &str, offset: u64, why: impl fmt::Display) -> Error {
        Error::corrupt(self.path(), field, offset, why)
    }
}
