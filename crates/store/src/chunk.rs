//! Chunks and their ids.

use std::fmt;

use goldwire_stdx::{from_hex, to_hex};

/// Bytes of guest disk in a chunk. The last chunk of a disk is padded with zeros for hashing.
pub const CHUNK_SIZE: usize = 64 * 1024;

/// Bytes in a block, the unit in which a changed chunk travels. 4 KiB is the page and cluster size of the file
/// systems inside, so that a smaller unit would find little more.
pub const BLOCK_SIZE: usize = 4096;

/// Blocks in a chunk; a set of them is a `u16` mask, bit 0 the first block.
pub const BLOCKS_PER_CHUNK: usize = CHUNK_SIZE / BLOCK_SIZE;

/// The BLAKE3 digest of a chunk's 64 KiB, except for the chunk of zeros, whose id is [`ChunkId::ZERO`]. The same
/// type names a node of the tree ([`crate::node_id`]), where `ZERO` says that everything below is zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// Implied content: the chunk (or whole subtree) of zeros. It is never stored or sent.
    pub const ZERO: Self = Self([0; 32]);

    /// The id of `bytes`: a whole chunk.
    pub fn of(bytes: &[u8]) -> Self {
        debug_assert_eq!(bytes.len(), CHUNK_SIZE);
        if is_zero(bytes) { Self::ZERO } else { Self(*blake3::hash(bytes).as_bytes()) }
    }

    /// Whether this is the implied zero content.
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({}…)", to_hex(&self.0[..6]))
    }
}

impl std::str::FromStr for ChunkId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        from_hex(text).map(Self).ok_or("a digest is 64 hexadecimal digits")
    }
}

/// Whether all bytes are zero. Reads eight bytes at a time, which the compiler turns into vector code, and stops
/// at the first 4 KiB that is not.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(BLOCK_SIZE).all(|block| {
        let (words, rest) = block.as_chunks::<8>();
        words.iter().fold(0, |all, word| all | u64::from_le_bytes(*word)) == 0
            && rest.iter().all(|byte| *byte == 0)
    })
}

/// The 64-bit fingerprint by which a block is looked for among blocks at hand (XXH3, seed 0). It is only a
/// guess: the chunk that is put together from found blocks must still have its [`ChunkId`].
pub fn block_hash(block: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_chunk_is_implied_and_others_are_plain_blake3() {
        let mut chunk = vec![0; CHUNK_SIZE];
        assert_eq!(ChunkId::of(&chunk), ChunkId::ZERO);
        for position in [0, 7, 4095, 4096, CHUNK_SIZE - 1] {
            chunk[position] = 1;
            assert_eq!(ChunkId::of(&chunk).0, *blake3::hash(&chunk).as_bytes(), "{position}");
            chunk[position] = 0;
        }
    }

    #[test]
    fn is_zero_sees_every_byte_of_odd_lengths() {
        for length in [0, 1, 7, 8, 9, 4097, 5000] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for position in 0..length {
                bytes[position] = 0x80;
                assert!(!is_zero(&bytes), "{position} of {length}");
                bytes[position] = 0;
            }
        }
    }
}
