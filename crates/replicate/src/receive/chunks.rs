//! Working out where a changed chunk's blocks are, putting chunks together, proving them, and writing them.

use goldwire_disk::BlockDevice;
use goldwire_stdx::AlignedBuffer;
use goldwire_store::{BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, ChunkId, TreeFile, block_hash, is_zero};

use super::seeds::{BlockIndex, Seed, has_block};
use super::shift::BlockHashes;
use crate::failure::Result;

/// Where one 4 KiB block of a chunk comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlockSource {
    /// The wire.
    Wire,
    /// It is zero.
    Zero,
    /// Guest byte `1` of seed `0`.
    Seed(u8, u64),
}

/// How to put one chunk together.
#[derive(Clone, Debug)]
pub(crate) struct ChunkPlan {
    pub(crate) index: u64,
    pub(crate) blocks: [BlockSource; BLOCKS_PER_CHUNK],
}

/// Which way neighbours of found blocks are tried.
#[derive(Clone, Copy)]
enum Direction {
    Forward,
    Backward,
}

impl ChunkPlan {
    /// Everything from the wire.
    pub(crate) fn whole(index: u64) -> Self {
        Self { index, blocks: [BlockSource::Wire; BLOCKS_PER_CHUNK] }
    }

    /// The blocks to ask for, bit 0 the first.
    pub(crate) fn wanted(&self) -> u16 {
        self.blocks.iter().rev().fold(0, |mask, block| mask << 1 | u16::from(*block == BlockSource::Wire))
    }

    /// How many blocks that is.
    pub(crate) fn wanted_count(&self) -> usize {
        self.wanted().count_ones() as usize
    }

    /// Matches the 16 hashes of the wanted chunk against the seeds: zero blocks, blocks at the same place, blocks
    /// anywhere by `index` (of the first seed), and neighbours of found ones.
    pub(crate) fn matched(
        index: u64,
        hashes: &[BlockHashes],
        seeds: &[Seed],
        blocks: Option<&BlockIndex>,
    ) -> Self {
        let mut plan = Self::whole(index);
        let zero = zero_block_hash();
        let hashes: Vec<u64> = hashes.iter().map(|hashes| hashes.strong).collect();
        let place = index * CHUNK_SIZE as u64;
        let mut chunk = AlignedBuffer::zeroed(CHUNK_SIZE);
        for (number, seed) in seeds.iter().enumerate() {
            if seed.chunk_id(index).is_none() || !seed.read(&mut chunk, place) {
                continue;
            }
            for (position, block) in chunk.chunks_exact(BLOCK_SIZE).enumerate() {
                if plan.blocks[position] == BlockSource::Wire && block_hash(block) == hashes[position] {
                    let offset = place + (position * BLOCK_SIZE) as u64;
                    plan.blocks[position] = BlockSource::Seed(number as u8, offset);
                }
            }
        }
        for (block, hash) in plan.blocks.iter_mut().zip(&hashes) {
            if *hash == zero {
                *block = BlockSource::Zero;
            } else if *block == BlockSource::Wire
                && let (Some(blocks), Some(seed)) = (blocks, seeds.first())
                && let Some(offset) = blocks.find(seed, *hash)
            {
                *block = BlockSource::Seed(0, offset);
            }
        }
        if blocks.is_some_and(|blocks| blocks.is_sampled) {
            plan.extend_hits(&hashes, seeds, Direction::Forward);
            plan.extend_hits(&hashes, seeds, Direction::Backward);
        }
        plan
    }

    /// Files keep their order when they move: tries the seed's next (or previous) block beside each found one.
    fn extend_hits(&mut self, hashes: &[u64], seeds: &[Seed], direction: Direction) {
        let mut found: Option<u64> = None;
        let range = 0..BLOCKS_PER_CHUNK;
        let positions: Vec<usize> = match direction {
            Direction::Forward => range.collect(),
            Direction::Backward => range.rev().collect(),
        };
        for position in positions {
            let step = BLOCK_SIZE as u64;
            let beside = found.and_then(|offset: u64| match direction {
                Direction::Forward => offset.checked_add(step),
                Direction::Backward => offset.checked_sub(step),
            });
            match self.blocks[position] {
                BlockSource::Seed(0, offset) => found = Some(offset),
                BlockSource::Wire => {
                    found = beside.filter(|offset| {
                        seeds.first().is_some_and(|seed| has_block(seed, *offset, hashes[position]))
                    });
                    if let Some(offset) = found {
                        self.blocks[position] = BlockSource::Seed(0, offset);
                    }
                }
                _ => found = None,
            }
        }
    }

    /// Puts the chunk together from the seeds and `wire`, which holds the wanted blocks in order. False when a
    /// seed cannot be read; whether the result is right is for the caller's digest to say.
    pub(crate) fn assemble(&self, wire: &[u8], seeds: &[Seed], chunk: &mut [u8]) -> bool {
        let mut wire = wire.chunks_exact(BLOCK_SIZE);
        let mut rest = chunk;
        let mut blocks = self.blocks.as_slice();
        while let Some(first) = blocks.first() {
            // Neighbours that are neighbours in the seed too are read together.
            let count = match *first {
                BlockSource::Seed(seed, offset) => blocks
                    .iter()
                    .zip((offset..).step_by(BLOCK_SIZE))
                    .take_while(|(block, offset)| **block == BlockSource::Seed(seed, *offset))
                    .count(),
                _ => 1,
            };
            let (place, after) = rest.split_at_mut(count * BLOCK_SIZE);
            let is_filled = match *first {
                BlockSource::Zero => {
                    place.fill(0);
                    true
                }
                BlockSource::Wire => wire.next().map(|bytes| place.copy_from_slice(bytes)).is_some(),
                BlockSource::Seed(seed, offset) => {
                    seeds.get(usize::from(seed)).is_some_and(|seed| seed.read(place, offset))
                }
            };
            if !is_filled {
                return false;
            }
            rest = after;
            blocks = &blocks[count..];
        }
        true
    }
}

fn zero_block_hash() -> u64 {
    static HASH: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *HASH.get_or_init(|| block_hash(&[0; BLOCK_SIZE]))
}

/// Which of the chunks from `first` on, laid end to end in `bytes`, have the ids that `tree` wants.
pub(crate) fn prove(tree: &TreeFile, first: u64, bytes: &[u8]) -> Result<Vec<bool>> {
    let count = (bytes.len() / CHUNK_SIZE) as u64;
    let ids = tree.ids(0, first..first + count)?;
    Ok(bytes.chunks_exact(CHUNK_SIZE).zip(ids).map(|(chunk, id)| ChunkId::of(chunk) == id).collect())
}

/// Writes chunks that lie end to end from chunk `first` on, leaving runs of zero blocks as holes, and cutting at
/// the end of the disk. The place must never have held other content.
pub(crate) fn write_sparse(device: &dyn BlockDevice, first: u64, bytes: &[u8]) -> Result<()> {
    let start = first * CHUNK_SIZE as u64;
    let inside = device.size().saturating_sub(start).min(bytes.len() as u64) as usize;
    let bytes = &bytes[..inside];
    let mut at = 0;
    while at < bytes.len() {
        let block_end = |at: usize| (at + BLOCK_SIZE).min(bytes.len());
        if is_zero(&bytes[at..block_end(at)]) {
            at = block_end(at);
            continue;
        }
        let begin = at;
        while at < bytes.len() && !is_zero(&bytes[at..block_end(at)]) {
            at = block_end(at);
        }
        device.write_at(&bytes[begin..at], start + begin as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mask_has_the_first_block_in_bit_0() {
        let mut plan = ChunkPlan::whole(9);
        assert_eq!(plan.wanted(), u16::MAX);
        plan.blocks = [BlockSource::Zero; BLOCKS_PER_CHUNK];
        plan.blocks[0] = BlockSource::Wire;
        plan.blocks[15] = BlockSource::Wire;
        assert_eq!((plan.wanted(), plan.wanted_count()), (0x8001, 2));
        let wire: Vec<u8> = [[1; BLOCK_SIZE], [2; BLOCK_SIZE]].concat();
        let mut chunk = vec![9; CHUNK_SIZE];
        assert!(plan.assemble(&wire, &[], &mut chunk));
        assert_eq!((chunk[0], chunk[BLOCK_SIZE], chunk[CHUNK_SIZE - 1]), (1, 0, 2));
        assert!(!plan.assemble(&wire[..BLOCK_SIZE], &[], &mut chunk), "too little from the wire");
    }
}
