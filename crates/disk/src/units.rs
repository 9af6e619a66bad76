//! Units for code in which several kinds of offset meet: a byte of the guest's disk is never a byte of the file by
//! mistake. Where only one kind is in sight, and in the calls that read and write, a plain `u64` does.

use std::ops::{Add, AddAssign};

/// A byte of the guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct GuestOffset(pub(crate) u64);

/// A byte of the file that holds an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileOffset(pub(crate) u64);

/// A block of a VHD's guest disk, counted from 0: an index into the block allocation table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BlockIndex(pub(crate) u32);

/// A sector of 512 bytes of the file, as the block allocation table counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FileSector(pub(crate) u32);

impl FileSector {
    /// Its first byte.
    pub(crate) fn offset(self) -> FileOffset {
        FileOffset(u64::from(self.0) * 512)
    }
}

impl Add<u64> for GuestOffset {
    type Output = Self;

    fn add(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

impl AddAssign<u64> for GuestOffset {
    fn add_assign(&mut self, bytes: u64) {
        self.0 += bytes;
    }
}

impl Add<u64> for FileOffset {
    type Output = Self;

    fn add(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}
