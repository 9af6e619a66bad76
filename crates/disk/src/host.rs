//! The file or block device that holds an image: positioned reads and writes whose errors name the file and what
//! was being done.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate};
use rustix::io::Errno;

use crate::image::Access;
use crate::{Error, ErrorKind, Result};

/// What file systems give back in: their blocks, or a multiple of them.
const PAGE: u64 = 4096;

/// What is written at once where zeros have to be written.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Opens what the user named: a regular file or a block device. `O_NONBLOCK` keeps a FIFO from holding us.
pub(crate) fn open_named_file(path: &Path, access: Access) -> Result<File> {
    let flags = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::RDWR,
    };
    let fd = rustix::fs::open(path, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io(path, "open the image", e.into()))?;
    let file = File::from(fd);
    let kind = file.metadata().map_err(|e| Error::io(path, "stat the image", e))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(file);
    }
    Err(Error::new(ErrorKind::Invalid, path, "is neither a regular file nor a block device"))
}

/// An opened file with its name.
pub(crate) struct HostFile {
    file: File,
    path: PathBuf,
    /// The run of data that was found last. Finding the end of a run can cost a walk over the whole run (tmpfs
    /// looks at every page), so it is not looked for again at every step through it. Only data is remembered: what
    /// is no longer data still reads rightly as data, whereas a hole may be written to.
    data: Mutex<Range<u64>>,
    #[cfg(test)]
    journal: Option<crate::journal::Journal>,
    #[cfg(test)]
    has_no_holes: bool,
}

impl HostFile {
    pub(crate) fn new(file: File, path: &Path) -> Self {
        Self {
            file,
            path: path.to_owned(),
            data: Mutex::new(0..0),
            #[cfg(test)]
            journal: None,
            #[cfg(test)]
            has_no_holes: crate::journal::has_no_holes(),
        }
    }

    /// Records every change, for tests that replay a part of them.
    #[cfg(test)]
    pub(crate) fn journaled(file: File, path: &Path, journal: crate::journal::Journal) -> Self {
        Self { journal: Some(journal), ..Self::new(file, path) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes, also of a block device (whose `stat` says zero).
    pub(crate) fn length(&self) -> Result<u64> {
        #[cfg(test)]
        crate::journal::wait();
        (&self.file).seek(SeekFrom::End(0)).map_err(|e| Error::io(&self.path, "find the end of the file", e))
    }

    pub(crate) fn is_block_device(&self) -> Result<bool> {
        let metadata = self.file.metadata().map_err(|e| Error::io(&self.path, "stat the image", e))?;
        Ok(metadata.file_type().is_block_device())
    }

    /// Fills `buf` from `offset`; `what` is being read.
    pub(crate) fn read(&self, buf: &mut [u8], offset: u64, what: &str) -> Result<()> {
        #[cfg(test)]
        crate::journal::wait();
        self.file
            .read_exact_at(buf, offset)
            .map_err(|e| Error::io(&self.path, format!("read {what} at byte {offset}"), e))
    }

    /// Fills `buf` from `offset` if nothing has to be waited for; false leaves it as nobody knows.
    pub(crate) fn read_at_once(&self, buf: &mut [u8], offset: u64) -> bool {
        goldwire_stdx::read_at_once(&self.file, buf, offset)
    }

    /// Writes all of `buf` at `offset`; `what` is being written.
    pub(crate) fn write(&self, buf: &[u8], offset: u64, what: &str) -> Result<()> {
        #[cfg(test)]
        self.record(|| crate::journal::Change::Write { offset, bytes: buf.to_vec() });
        self.file
            .write_all_at(buf, offset)
            .map_err(|e| Error::io(&self.path, format!("write {what} at byte {offset}"), e))
    }

    /// Gives the whole pages of a range back where the file system can: then they read as zero, else as before.
    pub(crate) fn discard(&self, offset: u64, length: u64) -> Result<()> {
        let pages = whole_pages(offset, length);
        self.fallocate(FallocateFlags::PUNCH_HOLE, pages.start, pages.end - pages.start).map(drop)
    }

    /// Makes a range read as zero without writing to it. False if the file system cannot; then the range is as it was.
    pub(crate) fn punch(&self, offset: u64, length: u64) -> Result<bool> {
        Ok(self.fallocate(FallocateFlags::PUNCH_HOLE, offset, length)?
            || self.fallocate(FallocateFlags::ZERO_RANGE, offset, length)?)
    }

    /// Makes a range read as zero; what the file has of it, for it does not become longer by that.
    pub(crate) fn zero(&self, offset: u64, length: u64) -> Result<()> {
        if self.punch(offset, length)? {
            return Ok(());
        }
        // A block device takes whole blocks only.
        let (end, pages) = (offset + length, whole_pages(offset, length));
        if pages.end - pages.start < length && self.punch(pages.start, pages.end - pages.start)? {
            self.write_zeros(offset, pages.start.min(end))?;
            return self.write_zeros(pages.end.max(offset), end);
        }
        self.write_zeros(offset, end)
    }

    /// Writes zeros over what the file has of a range.
    fn write_zeros(&self, mut offset: u64, end: u64) -> Result<()> {
        let end = end.min(self.length()?);
        while offset < end {
            let (has_data, run) = self.data_run(offset, end - offset)?;
            let mut rest = if has_data { run } else { 0 };
            offset += run - rest;
            while rest > 0 {
                let piece = rest.min(ZEROS.len() as u64);
                self.write(&ZEROS[..piece as usize], offset, "zeros")?;
                offset += piece;
                rest -= piece;
            }
        }
        Ok(())
    }

    /// Whether the file system did it.
    fn fallocate(&self, how: FallocateFlags, offset: u64, length: u64) -> Result<bool> {
        if length == 0 {
            return Ok(true);
        }
        #[cfg(test)]
        if self.has_no_holes {
            return Ok(false);
        }
        loop {
            match fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset, length) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => return Ok(false),
                Err(error) => {
                    let doing = format!("zero {length} bytes at byte {offset}");
                    return Err(Error::io(&self.path, doing, error.into()));
                }
            }
        }
        *self.data.lock().unwrap_or_else(PoisonError::into_inner) = 0..0;
        #[cfg(test)]
        self.record(|| crate::journal::Change::Zero { offset, length });
        Ok(true)
    }

    /// Cuts the file or extends it with a hole.
    pub(crate) fn set_length(&self, length: u64) -> Result<()> {
        #[cfg(test)]
        self.record(|| crate::journal::Change::SetLength(length));
        self.file
            .set_len(length)
            .map_err(|e| Error::io(&self.path, format!("set the file's length to {length} bytes"), e))
    }

    /// Makes everything written so far durable.
    pub(crate) fn sync(&self) -> Result<()> {
        #[cfg(test)]
        self.record(|| crate::journal::Change::Sync);
        self.file.sync_data().map_err(|e| Error::io(&self.path, "make the file durable", e))
    }

    /// Whether the file has data at `offset` (or a hole), and for how many of the next `length` bytes. File
    /// systems that cannot tell have data everywhere.
    pub(crate) fn data_run(&self, offset: u64, length: u64) -> Result<(bool, u64)> {
        #[cfg(test)]
        crate::journal::wait();
        let known = self.data.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.contains(&offset) {
            return Ok((true, (known.end - offset).min(length)));
        }
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) if data > offset => return Ok((false, (data - offset).min(length))),
            Ok(_) => {}
            // No data up to the end of the file.
            Err(Errno::NXIO) => return Ok((false, length)),
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok((true, length)),
            Err(error) => return Err(Error::io(&self.path, "look for a hole", error.into())),
        }
        match rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Hole(offset)) {
            Ok(hole) if hole > offset => {
                *self.data.lock().unwrap_or_else(PoisonError::into_inner) = offset..hole;
                Ok((true, (hole - offset).min(length)))
            }
            _ => Ok((true, length)),
        }
    }

    #[cfg(test)]
    fn record(&self, change: impl FnOnce() -> crate::journal::Change) {
        if let Some(journal) = &self.journal {
            journal.push(change());
        }
    }
}

/// The pages that lie in a range as a whole; an empty range at its end if none does.
fn whole_pages(offset: u64, length: u64) -> Range<u64> {
    let end = offset.saturating_add(length);
    let start = offset.checked_next_multiple_of(PAGE).unwrap_or(end).min(end);
    start..(end / PAGE * PAGE).max(start)
}
