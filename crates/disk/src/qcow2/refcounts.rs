//! Reading refcounts of any width, for the check.

use std::sync::Arc;

use super::cache::Cache;
use super::header::{Header, be32, be64};
use super::host::HostFileExt as _;
use crate::Result;
use crate::host::HostFile;
use crate::units::FileOffset;

/// Refcount blocks in memory.
const BLOCK_BYTES_MAX: usize = 16 << 20;

/// The refcounts that a file records.
pub(super) struct Refcounts<'a> {
    host: &'a HostFile,
    cluster_bits: u32,
    order: u32,
    /// Offsets of the refcount blocks; 0 for none. Each was found to lie inside the file.
    blocks: Vec<u64>,
    cache: Cache,
}

impl<'a> Refcounts<'a> {
    /// The refcounts in the `blocks` of the image in `host`.
    pub(super) fn new(host: &'a HostFile, header: &Header, blocks: Vec<u64>) -> Self {
        Self {
            host,
            cluster_bits: header.geometry.cluster_bits(),
            order: header.refcount_order,
            blocks,
            cache: Cache::new(BLOCK_BYTES_MAX),
        }
    }

    /// Clusters that one block counts.
    pub(super) fn block_span(&self) -> u64 {
        (8 << self.cluster_bits) >> self.order
    }

    /// Indices of the blocks that exist.
    pub(super) fn present(&self) -> impl Iterator<Item = u64> {
        let present = self.blocks.iter().enumerate().filter(|(_, offset)| **offset != 0);
        present.map(|(index, _)| index as u64)
    }

    /// Whether the refcount of `cluster` has a block.
    pub(super) fn has_block(&self, cluster: u64) -> bool {
        self.blocks.get((cluster / self.block_span()) as usize).is_some_and(|offset| *offset != 0)
    }

    /// How often `cluster`, counted from the beginning of the file, is said to be used.
    pub(super) fn get(&self, cluster: u64) -> Result<u64> {
        if !self.has_block(cluster) {
            return Ok(0);
        }
        let offset = self.blocks[(cluster / self.block_span()) as usize];
        let block = self.cache.get(FileOffset(offset), || {
            let mut bytes = vec![0; 1 << self.cluster_bits];
            self.host.read_padded(&mut bytes, offset, "refcount block")?;
            Ok::<_, crate::Error>(Arc::from(bytes))
        })?;
        Ok(refcount(&block, (cluster % self.block_span()) as usize, self.order))
    }
}

/// Entry `index` of a refcount block whose entries have `1 << order` bits.
fn refcount(block: &[u8], index: usize, order: u32) -> u64 {
    let byte = |at: usize| block.get(at).copied().unwrap_or(0);
    match order {
        0..=2 => {
            let bit = index << order;
            u64::from(byte(bit / 8) >> (bit % 8)) & ((1 << (1 << order)) - 1)
        }
        3 => u64::from(byte(index)),
        4 => u64::from(u16::from_be_bytes([byte(index * 2), byte(index * 2 + 1)])),
        5 => be32(block, index * 4).map_or(0, u64::from),
        _ => be64(block, index * 8).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::refcount;

    #[test]
    fn refcounts_have_any_width() {
        let block = [0b1101_0010, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde];
        let widths: Vec<u64> = (0..=6).map(|order| refcount(&block, 0, order)).collect();
        assert_eq!(widths, [0, 2, 2, 0xd2, 0xd212, 0xd212_3456, 0xd212_3456_789a_bcde]);
        assert_eq!([1, 2, 3].map(|index| refcount(&block, index, 1)), [0, 1, 3]);
        assert_eq!(refcount(&block, 1, 2), 13);
    }
}
