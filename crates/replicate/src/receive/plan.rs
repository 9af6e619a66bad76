//! Deciding what to ask for next: a scan over the tree finds missing chunks; with seeds their block hashes are
//! asked first; what is still wanted is packed into requests.
//!
//! The order of everything is fixed by the tree and the seeds alone, not by the timing of threads: two targets
//! with the same seed ask for exactly the same packs, so that the source makes each of them once.

use std::collections::{BTreeMap, VecDeque};

use goldwire_store::{BLOCK_SIZE, BLOCKS_PER_CHUNK, FANOUT, TreeFile};

use super::bitmap::Bitmap;
use super::chunks::ChunkPlan;
use super::seeds::{Seed, owners};
use crate::failure::Result;

/// Blocks in a pack: 1 MiB, enough for the compressor to find what repeats.
const PACK_BLOCKS: usize = 256;

/// Chunks whose hashes are asked for in one request (16 KiB of hashes).
const HASH_BATCH: usize = 128;

/// Plans that may wait for their pack to fill. Bounds memory, not speed.
const READY_MAX: usize = 4096;

/// What is asked of a chunk first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum First {
    /// The hashes of its blocks: a seed may have some of them.
    Hashes,
    /// Its blocks.
    #[default]
    Blocks,
}

/// The state of planning.
#[derive(Default)]
pub(crate) struct Planner {
    /// The next level-1 node to scan.
    node: u64,
    first: First,
    /// Chunks found missing and not yet asked about.
    missing: VecDeque<u64>,
    /// The number of the next batch of hashes to ask, and of the next to be taken in order.
    next_order: u64,
    due_order: u64,
    /// Batches that came out of order.
    early: BTreeMap<u64, Vec<ChunkPlan>>,
    ready: VecDeque<ChunkPlan>,
    ready_blocks: usize,
    /// To be fetched whole, after something went wrong with them.
    again: VecDeque<ChunkPlan>,
    is_scanned: bool,
}

impl Planner {
    pub(crate) fn new(first: First) -> Self {
        Self { first, ..Self::default() }
    }

    /// Scans until at least a batch is missing, or the tree has been seen.
    pub(crate) fn scan(&mut self, tree: &TreeFile, seeds: &[Seed], done: &Bitmap) -> Result<()> {
        let chunks = tree.shape().chunks();
        while self.missing.len() < HASH_BATCH && !self.is_scanned {
            let range = (self.node * FANOUT)..((self.node + 1) * FANOUT).min(chunks);
            self.is_scanned = range.end >= chunks;
            if !is_same_node(tree, seeds, self.node)? {
                let ids = tree.ids(0, range.clone())?;
                let owners = owners(seeds, range.clone(), &ids);
                for (index, (id, owner)) in range.zip(ids.iter().zip(owners)) {
                    if !id.is_zero() && !done.get(index) && owner.is_none() {
                        self.missing.push_back(index);
                    }
                }
            }
            self.node += 1;
        }
        Ok(())
    }

    /// The next batch of chunks whose hashes to ask for, with its number.
    pub(crate) fn next_hashes(&mut self) -> Option<(Vec<u64>, u64)> {
        if self.first == First::Blocks || self.missing.is_empty() || self.ready.len() > READY_MAX {
            return None;
        }
        let batch: Vec<u64> = self.missing.drain(..self.missing.len().min(HASH_BATCH)).collect();
        self.next_order += 1;
        Some((batch, self.next_order - 1))
    }

    /// Takes the plans of batch `order`; returns those, in order, that need nothing from the wire.
    pub(crate) fn matched(&mut self, order: u64, plans: Vec<ChunkPlan>) -> Vec<ChunkPlan> {
        self.early.insert(order, plans);
        let mut local = Vec::new();
        while let Some(plans) = self.early.remove(&self.due_order) {
            self.due_order += 1;
            for plan in plans {
                if plan.wanted() == 0 {
                    local.push(plan);
                } else {
                    self.push_ready(plan);
                }
            }
        }
        local
    }

    /// Fetches these chunks whole, whatever was planned for them.
    pub(crate) fn again(&mut self, chunks: impl IntoIterator<Item = u64>) {
        self.again.extend(chunks.into_iter().map(ChunkPlan::whole));
    }

    /// The next pack of plans to ask the blocks of: full, unless nothing more can come to fill it.
    pub(crate) fn next_pack(&mut self) -> Option<Vec<ChunkPlan>> {
        if self.first == First::Blocks {
            while self.ready_blocks < PACK_BLOCKS
                && let Some(index) = self.missing.pop_front()
            {
                self.push_ready(ChunkPlan::whole(index));
            }
        }
        if self.ready_blocks < PACK_BLOCKS && !self.is_drained() {
            return None;
        }
        if self.ready.is_empty() {
            let count = self.again.len().min(PACK_BLOCKS / BLOCKS_PER_CHUNK);
            return (count > 0).then(|| self.again.drain(..count).collect());
        }
        let mut pack = Vec::new();
        let mut blocks = 0;
        while let Some(plan) = self.ready.front() {
            let count = plan.wanted_count();
            if blocks > 0 && blocks + count > PACK_BLOCKS {
                break;
            }
            blocks += count;
            pack.extend(self.ready.pop_front());
        }
        self.ready_blocks -= blocks;
        Some(pack)
    }

    /// Whether no further plan will become ready from what is known.
    fn is_drained(&self) -> bool {
        self.is_scanned && self.missing.is_empty() && self.next_order == self.due_order
    }

    /// Whether everything that was found missing has been packed.
    pub(crate) fn is_finished(&self) -> bool {
        self.is_drained() && self.ready.is_empty() && self.again.is_empty()
    }

    fn push_ready(&mut self, plan: ChunkPlan) {
        self.ready_blocks += plan.wanted_count();
        self.ready.push_back(plan);
    }
}

/// Bytes that a pack brings.
pub(crate) fn pack_bytes(pack: &[ChunkPlan]) -> u64 {
    (pack.iter().map(ChunkPlan::wanted_count).sum::<usize>() * BLOCK_SIZE) as u64
}

/// Whether a seed that is wholly there has all of level-1 node `node`, or the node is zero.
pub(crate) fn is_same_node(tree: &TreeFile, seeds: &[Seed], node: u64) -> Result<bool> {
    if tree.shape().levels() == 1 {
        return Ok(false);
    }
    let id = tree.id(1, node)?;
    let has = |seed: &Seed| {
        seed.present.is_none()
            && node < seed.tree.shape().count(1)
            && seed.tree.shape().children(1, node) == tree.shape().children(1, node)
            && seed.tree.id(1, node).is_ok_and(|seed_id| seed_id == id)
    };
    Ok(id.is_zero() || seeds.iter().any(has))
}
