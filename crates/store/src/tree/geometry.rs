//! The tree's geometry and how ids are derived.
//!
//! ```text
//! level 0   chunk ids           c0 c1 … c255 | c256 …            one per 64 KiB
//! level 1   node ids            n(1, c0…c255)  n(1, c256…)       one per 16 MiB
//! level 2   node ids            n(2, …)                          one per 4 GiB
//! …         until one id is left: the top. root = r(size, top)
//! ```
//!
//! Domains: a chunk is hashed by plain BLAKE3; nodes, roots and descriptors by BLAKE3's key derivation mode, each
//! with its own context string, so that no input of one kind can stand for another. A node covers its level, so
//! that a tree cannot be read at the wrong height.

use std::fmt;

use goldwire_stdx::to_hex;

use crate::chunk::{CHUNK_SIZE, ChunkId};

/// Ids in a full node.
pub const FANOUT: u64 = 256;

/// The largest disk that we take: 64 TiB, far above the 2040 GiB of VHD. It bounds what a hostile size makes us
/// allocate.
pub(crate) const DISK_SIZE_MAX: u64 = 64 << 40;

const NODE_CONTEXT: &str = "goldwire 2026-11 tree node";
const ROOT_CONTEXT: &str = "goldwire 2026-11 tree root";

/// How many ids each level has, for a disk of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeGeometry {
    size: u64,
    counts: Vec<u64>,
}

impl TreeGeometry {
    /// The shape for a disk of `size` bytes, or nothing above 64 TiB.
    pub fn new(size: u64) -> Option<Self> {
        if size > DISK_SIZE_MAX {
            return None;
        }
        let mut count = size.div_ceil(CHUNK_SIZE as u64).max(1);
        let mut counts = vec![count];
        while count > 1 {
            count = count.div_ceil(FANOUT);
            counts.push(count);
        }
        Some(Self { size, counts })
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The number of chunks; 1 for an empty disk, whose only chunk is zero.
    pub fn chunks(&self) -> u64 {
        self.counts[0]
    }

    /// Levels including the chunk level and the level of the single top id.
    pub fn levels(&self) -> usize {
        self.counts.len()
    }

    /// Ids at `level`; 0 where there is no such level.
    pub fn count(&self, level: usize) -> u64 {
        self.counts.get(level).copied().unwrap_or(0)
    }

    /// The index range, at `level - 1`, of the children of node `index` at `level`.
    pub fn children(&self, level: usize, index: u64) -> std::ops::Range<u64> {
        let below = level.checked_sub(1).map_or(0, |below| self.count(below));
        let start = index.saturating_mul(FANOUT).min(below);
        start..start.saturating_add(FANOUT).min(below)
    }

    /// The guest bytes that chunk `index` covers; shorter than a chunk only at the end of the disk.
    pub fn chunk_range(&self, index: u64) -> std::ops::Range<u64> {
        let start = (index * CHUNK_SIZE as u64).min(self.size);
        start..(start + CHUNK_SIZE as u64).min(self.size)
    }

    /// The root for a tree of this shape with this top id.
    pub fn root(&self, top: &ChunkId) -> Root {
        let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
        hasher.update(&self.size.to_le_bytes());
        hasher.update(&top.0);
        Root(*hasher.finalize().as_bytes())
    }
}

/// The id of a node at `level` (1 or more) over its children's ids; zero when all of them are.
pub fn node_id(level: usize, children: &[ChunkId]) -> ChunkId {
    if children.iter().all(ChunkId::is_zero) {
        return ChunkId::ZERO;
    }
    let mut hasher = blake3::Hasher::new_derive_key(NODE_CONTEXT);
    hasher.update(&[level as u8]);
    for child in children {
        hasher.update(&child.0);
    }
    ChunkId(*hasher.finalize().as_bytes())
}

/// The digest that names a version's content: size and every byte. Two disks are identical when their roots are.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Root(pub [u8; 32]);

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({}…)", to_hex(&self.0[..6]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_shrink_to_one() {
        let shape = TreeGeometry::new(2 << 40).unwrap();
        assert_eq!(shape.counts, [33_554_432, 131_072, 512, 2, 1]);
        assert_eq!(shape.children(1, 131_071), 33_554_176..33_554_432);
        assert_eq!(TreeGeometry::new(0).unwrap().counts, [1]);
        assert_eq!(TreeGeometry::new(65_537).unwrap().counts, [2, 1]);
        assert_eq!(TreeGeometry::new(u64::MAX), None);
    }

    #[test]
    fn size_and_level_separate() {
        let id = ChunkId([7; 32]);
        assert_ne!(TreeGeometry::new(10).unwrap().root(&id), TreeGeometry::new(11).unwrap().root(&id));
        assert_ne!(node_id(1, &[id]), node_id(2, &[id]));
        assert_ne!(node_id(1, &[id]), node_id(1, &[id, ChunkId::ZERO]));
        assert_eq!(node_id(3, &[ChunkId::ZERO; 5]), ChunkId::ZERO);
    }
}
