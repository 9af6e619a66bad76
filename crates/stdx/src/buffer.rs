//! Byte buffers that begin on a cache line.
//!
//! A large `Vec<u8>` begins 16 bytes into a page, behind the allocator's own words. Kernels copy to user memory
//! with `rep movsb`, which on common processors runs at a fifth to an eighth of its speed when the destination is
//! not aligned to a cache line (measured: 1.3 to 1.7 GiB/s at 16 bytes off, 5 to 12 GiB/s at 0 or 64).

use std::hash::{Hash, Hasher};
use std::ops::{Deref, DerefMut};

const CACHE_LINE: usize = 64;

/// Bytes of a fixed length, aligned when they were made by [`AlignedBuffer::zeroed`].
#[derive(Debug, Default)]
pub struct AlignedBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl AlignedBuffer {
    /// `length` zero bytes that begin on a cache line.
    pub fn zeroed(length: usize) -> Self {
        let mut bytes = vec![0; length + CACHE_LINE];
        // An offset that cannot be computed (it always can, outside of constant evaluation) costs only speed.
        let start = bytes.as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE);
        bytes.truncate(start + length);
        Self { bytes, start }
    }
}

impl From<Vec<u8>> for AlignedBuffer {
    /// Takes the bytes where they are, for those that are only read.
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, start: 0 }
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }
}

impl PartialEq for AlignedBuffer {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for AlignedBuffer {}

impl Hash for AlignedBuffer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_exact_and_starts_aligned() {
        for length in [0, 1, 63, 64, 65, 1 << 20] {
            let buffer = AlignedBuffer::zeroed(length);
            assert_eq!(buffer.len(), length);
            assert_eq!(buffer.as_ptr().addr() % CACHE_LINE, 0);
        }
        let from: AlignedBuffer = vec![1, 2].into();
        assert_eq!(&*from, [1, 2]);
    }
}
