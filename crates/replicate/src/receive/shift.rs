//! Finding blocks that moved by a number of bytes: something was inserted into a file, and everything behind it
//! lies a little further on than in the seed.
//!
//! Blocks are found at their place or by the index only when they begin on a block boundary of the seed. What
//! stays wanted in a row is looked for here, with a rolling checksum, in the part of the seed where it must be if
//! it is there: behind the block that was found before it. A row between two found blocks that lie exactly as far
//! apart in the seed was edited in place; there is nothing to look for.

use goldwire_store::{BLOCK_SIZE, BLOCKS_PER_CHUNK, Rolling, block_hash};

use super::chunks::{BlockSource, ChunkPlan};
use super::seeds::Seed;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// How far content may have moved to be found, in bytes.
const SLACK: u64 = 64 * 1024;

/// Longest row that is looked for in one go, in blocks; bounds the window that is read.
const ROW_MAX: usize = 256;

/// What the source says about one block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockHashes {
    /// [`block_hash`].
    pub(crate) strong: u64,
    /// [`Rolling::value`].
    pub(crate) weak: u32,
}

impl BlockHashes {
    /// Bytes of one block's hashes on the wire.
    pub(crate) const LENGTH: usize = 12;

    /// Reads the hashes of a whole answer.
    pub(crate) fn read_all(bytes: &[u8]) -> Vec<Self> {
        let (records, _) = bytes.as_chunks::<{ Self::LENGTH }>();
        records
            .iter()
            .map(|[s0, s1, s2, s3, s4, s5, s6, s7, weak @ ..]| Self {
                strong: u64::from_le_bytes([*s0, *s1, *s2, *s3, *s4, *s5, *s6, *s7]),
                weak: u32::from_le_bytes(*weak),
            })
            .collect()
    }
}

/// Looks for what is still wanted of these plans, in ascending order, in the first seed.
pub(crate) fn find_shifted(plans: &mut [ChunkPlan], hashes: &[BlockHashes], seed: &Seed) {
    let blocks = plans.len() * BLOCKS_PER_CHUNK;
    let source = |plans: &[ChunkPlan], at: usize| plans[at / BLOCKS_PER_CHUNK].blocks[at % BLOCKS_PER_CHUNK];
    let guest = |plans: &[ChunkPlan], at: usize| {
        (plans[at / BLOCKS_PER_CHUNK].index * BLOCKS_PER_CHUNK as u64 + (at % BLOCKS_PER_CHUNK) as u64)
            * BLOCK
    };
    let mut window = Vec::new();
    let mut at = 0;
    while at < blocks {
        if source(plans, at) != BlockSource::Wire {
            at += 1;
            continue;
        }
        let start = at;
        while at < blocks
            && at - start < ROW_MAX
            && source(plans, at) == BlockSource::Wire
            && guest(plans, at) == guest(plans, start) + (at - start) as u64 * BLOCK
        {
            at += 1;
        }
        let length = (at - start) as u64 * BLOCK;
        let here = guest(plans, start);
        // The block before: found in this seed, or in a chunk that did not change and so was not asked about.
        let is_next_to = |other: usize, distance: u64| guest(plans, other).abs_diff(here) == distance;
        let before = match start.checked_sub(1).filter(|before| is_next_to(*before, BLOCK)) {
            Some(before) => match source(plans, before) {
                BlockSource::Seed(0, offset) => Some(offset),
                _ => None,
            },
            None => here.checked_sub(BLOCK),
        };
        let after = match Some(at).filter(|after| *after < blocks && is_next_to(*after, length)) {
            Some(after) => match source(plans, after) {
                BlockSource::Seed(0, offset) => Some(offset),
                _ => None,
            },
            None => Some(here + length),
        };
        let is_edited_in_place =
            before.zip(after).is_some_and(|(before, after)| after == before + length + BLOCK);
        // Content that an insertion pushed on begins at most one block before where it would begin without.
        let from = before.unwrap_or_else(|| here.saturating_sub(SLACK));
        if is_edited_in_place || from >= seed.image.device.size() {
            continue;
        }
        window.clear();
        window.resize((length + SLACK + 2 * BLOCK) as usize, 0);
        if seed.read(&mut window, from) {
            for (found, offset) in search(&window, &hashes[start..at]) {
                let at = start + found;
                plans[at / BLOCKS_PER_CHUNK].blocks[at % BLOCKS_PER_CHUNK] =
                    BlockSource::Seed(0, from + offset as u64);
            }
        }
    }
}

/// Which of `wanted` are in `window`, and where: pairs of index and byte.
fn search(window: &[u8], wanted: &[BlockHashes]) -> Vec<(usize, usize)> {
    let mut by_weak: Vec<(u32, usize)> =
        wanted.iter().enumerate().map(|(at, hashes)| (hashes.weak, at)).collect();
    by_weak.sort_unstable();
    // Most places are ruled out by one look at a bit.
    let slot = |weak: u32| ((weak ^ weak >> 16) & 4095) as usize;
    let mut maybe = [0_u64; 64];
    by_weak.iter().for_each(|(weak, _)| maybe[slot(*weak) / 64] |= 1 << (slot(*weak) % 64));
    let is_block = |offset: usize, hashes: &BlockHashes| {
        window.get(offset..offset + BLOCK_SIZE).is_some_and(|block| block_hash(block) == hashes.strong)
    };
    let mut found = Vec::new();
    let Some(last) = window.len().checked_sub(BLOCK_SIZE) else { return found };
    let mut offset = 0;
    let mut rolling = Rolling::of(&window[..BLOCK_SIZE]);
    loop {
        let weak = rolling.value();
        let mut hit = None;
        if maybe[slot(weak) / 64] & 1 << (slot(weak) % 64) != 0 {
            let first = by_weak.partition_point(|(other, _)| *other < weak);
            // A few tries: a source that gives all blocks one weak sum gains nothing.
            let same = by_weak[first..].iter().take(4).take_while(|(other, _)| *other == weak);
            hit = same.map(|(_, at)| *at).find(|at| is_block(offset, &wanted[*at]));
        }
        if let Some(mut at) = hit {
            // What follows it most likely follows here too.
            while at < wanted.len() && is_block(offset, &wanted[at]) {
                found.push((at, offset));
                at += 1;
                offset += BLOCK_SIZE;
            }
            if offset > last || at == wanted.len() {
                return found;
            }
            rolling = Rolling::of(&window[offset..offset + BLOCK_SIZE]);
            continue;
        }
        if offset >= last {
            return found;
        }
        rolling.roll(window[offset], window[offset + BLOCK_SIZE]);
        offset += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes_of(bytes: &[u8]) -> Vec<BlockHashes> {
        bytes
            .chunks_exact(BLOCK_SIZE)
            .map(|block| BlockHashes { strong: block_hash(block), weak: Rolling::of(block).value() })
            .collect()
    }

    #[test]
    fn what_an_insertion_moved_is_found() {
        let old: Vec<u8> =
            (0..20 * BLOCK_SIZE as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        let mut new = old[..BLOCK_SIZE].to_vec();
        new.extend_from_slice(b"inserted here");
        new.extend_from_slice(&old[BLOCK_SIZE..9 * BLOCK_SIZE]);
        new.extend_from_slice(&[7; 333]);
        new.extend_from_slice(&old[9 * BLOCK_SIZE..15 * BLOCK_SIZE]);
        let found = search(&old, &hashes_of(&new));
        let blocks: Vec<usize> = found.iter().map(|(at, _)| *at).collect();
        assert_eq!(blocks, [0, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14]);
        for (at, offset) in found {
            assert_eq!(old[offset..offset + BLOCK_SIZE], new[at * BLOCK_SIZE..(at + 1) * BLOCK_SIZE]);
        }
    }

    #[test]
    fn windows_and_rows_of_any_length_are_searched_without_a_stumble() {
        for length in [0, 1, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE] {
            let window = vec![5; length];
            let expected = usize::from(length >= BLOCK_SIZE);
            assert!(search(&window, &hashes_of(&[5; BLOCK_SIZE])).len() >= expected);
            assert!(search(&window, &[]).is_empty());
        }
    }
}
