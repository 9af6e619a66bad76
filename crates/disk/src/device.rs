//! The one trait through which all of goldwire sees a disk: the guest's view, addressed by byte.
//!
//! A device answers *what* a range holds ([`BlockDevice::extent_at`]) apart from *reading* it, so that callers
//! skip what is unallocated without touching it. The trait is object-safe and synchronous: a read of a resident
//! page is one `pread`, and the callers (hashing, replication) own their threads.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::{Error, ErrorKind, Result};

/// What a range of the guest's disk holds, as far as the format knows without reading data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Stored bytes; they may happen to be zero.
    Data,
    /// Reads as zero because the format says so (zero flag, zero-filled hole inside an allocated block).
    Zero,
    /// Never allocated anywhere in the chain; reads as zero.
    Hole,
}

impl ExtentKind {
    /// Whether the range certainly reads as zero.
    pub fn is_zero(self) -> bool {
        self != Self::Data
    }
}

/// A run of guest bytes of one kind, starting at the offset that was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the offset asked about; at least 1 and never past the end of the disk.
    pub length: u64,
    /// What the run holds.
    pub kind: ExtentKind,
}

/// Where bytes of a disk lie as they are, for `sendfile`.
#[derive(Clone, Debug)]
pub struct FilePlace {
    /// The file, open for reading.
    pub file: Arc<File>,
    /// The byte of the file that is the byte of the disk that was asked about.
    pub offset: u64,
    /// Bytes from there on that lie one after another; at least 1 and never past the end of the disk.
    pub length: u64,
}

/// A virtual disk as its guest sees it. Offsets and lengths are guest bytes.
///
/// Every method takes `&self` and may be called from several threads at once. Each may fail with `Unavailable` beside the
/// errors that it names: what holds the bytes does not answer now, and may later.
///
/// No method has a default: a device that wraps another one would answer for itself where the inner one knows better.
pub trait BlockDevice: Send + Sync {
    /// The guest-visible size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from `offset`.
    ///
    /// # Errors
    /// `OutOfRange` when the range passes the end of the disk (nothing is read), `Io`, `Corrupt`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;

    /// Fills `buf` from `offset` and says true if that waits for no medium, no network and no lock that somebody holds who
    /// waits for them. False means that nothing is known about `buf`: ask [`read_at`](Self::read_at), which also tells
    /// whatever else is wrong. A server of many clients answers from here on the thread that heard the question, and hands
    /// only the rest to somebody who may wait.
    ///
    /// What the format's tables call zero or a hole answers as soon as they are in memory. What only the file system knows
    /// to be a hole is asked for as data is: to look for holes can itself wait for the medium.
    ///
    /// # Errors
    /// `OutOfRange` when the range passes the end of the disk (nothing is read), `Corrupt`.
    fn read_at_once(&self, buf: &mut [u8], offset: u64) -> Result<bool>;

    /// Where the bytes from `offset` on lie as they are in a file, and stay for as long as the device is open; nothing where
    /// they do not, or where nobody can promise it. It may wait for the medium.
    ///
    /// Who may promise that is who alone decides what is written there:
    ///
    /// - A version of a store does. Its chunks are never written again, but by the same bytes where a medium lost them, and
    ///   none is given up while the version is open. The bytes were hashed before their place is told, so that they are the
    ///   version's, and what is told ends with the chunk that was proven. What the medium makes of them afterwards is not
    ///   seen by whoever sends them: ask anew for each send, and let the receiver prove what it must not get wrong.
    /// - An image file never does, also not one that was opened for reading. That binds us and nobody else: whoever may
    ///   write to the file changes it, a mark that forbids it can be taken away, and a writer who opened it before the mark
    ///   goes on.
    /// - Zeros and holes have no place, though a file may hold some.
    ///
    /// # Errors
    /// `OutOfRange` when `offset` is not inside the disk, `Io`, `Corrupt`.
    fn place_of(&self, offset: u64) -> Result<Option<FilePlace>>;

    /// Writes all of `buf` at `offset`; durable only after [`flush`](Self::flush).
    ///
    /// # Errors
    /// `ReadOnly`, `OutOfRange` (nothing is written), `NoSpace`, `Io`.
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()>;

    /// The run of one kind that starts at `offset`. Runs may be reported in pieces: two neighbours may have the
    /// same kind. Costs no data reads and bounded metadata reads.
    ///
    /// A walk from end to end is told no more data than the files of the chain have bytes, but for what compression
    /// makes of them: a small file never stands for a large amount of work. An image that claims more is `Corrupt`.
    ///
    /// # Errors
    /// `OutOfRange` when `offset` is not inside the disk, `Io`, `Corrupt`.
    fn extent_at(&self, offset: u64) -> Result<Extent>;

    /// Gives every format block that touches the range a place in the file, without writing data: the range
    /// still reads as before. Called with ascending ranges on a new image it fixes the file's layout, whatever
    /// order the writes arrive in. Formats that need no allocation do nothing.
    ///
    /// # Errors
    /// `ReadOnly`, `OutOfRange`, `NoSpace`, `Io`.
    fn allocate(&self, offset: u64, length: u64) -> Result<()>;

    /// Says that the guest does not need the bytes of the range any more. Each of them reads afterwards as before or as
    /// zero, and never as anything else: not as what was there earlier, and not as what a parent holds. What was zero by
    /// the next successful [`flush`](Self::flush) stays zero.
    ///
    /// Formats give back what they can. Blocks that the range covers in part may stay, as everything does where the file
    /// system cannot take space back, and that is no error.
    ///
    /// # Errors
    /// `ReadOnly`, `OutOfRange` (nothing is discarded), `Io`.
    fn discard(&self, offset: u64, length: u64) -> Result<()>;

    /// Makes the range read as zero, as cheaply as the format can; durable only after [`flush`](Self::flush). What has no
    /// place in the file needs none for that.
    ///
    /// # Errors
    /// `ReadOnly`, `OutOfRange` (nothing is written), `NoSpace`, `Io`.
    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()>;

    /// Makes all earlier writes and the format's own tables durable (`fdatasync` or stronger).
    ///
    /// # Errors
    /// `NoSpace`, `Io`. After an error nothing may be assumed about unflushed writes.
    fn flush(&self) -> Result<()>;
}

/// Refuses a range that passes the end of a disk of `size` bytes.
pub(crate) fn check_range(path: &Path, size: u64, offset: u64, length: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::new(
            ErrorKind::OutOfRange,
            path,
            format!("{length} bytes at byte {offset} pass the end of the disk at {size}"),
        )),
    }
}
