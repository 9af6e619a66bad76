//! The work of one worker, without its thread: match, put together, prove, write, copy from seeds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use goldwire_stdx::{AlignedBuffer, Stop};
use goldwire_store::{BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, FANOUT, TreeFile};

use super::bitmap::Bitmap;
use super::chunks::{BlockSource, ChunkPlan, prove};
use super::destination::Destination;
use super::seeds::{BlockIndex, Seed, owners};
use super::shift::{BlockHashes, find_shifted};
use super::workers::{Job, Report};
use crate::failure::Result;
use crate::wire::unpack_answer;

/// Copies are put together into writes of this many chunks.
const COPY_RUN: usize = 16;

/// What all workers of one transfer share.
pub(crate) struct Shared {
    /// The version's tree.
    pub(crate) tree: TreeFile,
    /// Where the chunks go.
    pub(crate) destination: Arc<dyn Destination>,
    /// Where chunks can be had without the wire.
    pub(crate) seeds: Vec<Seed>,
    /// The blocks of the first seed.
    pub(crate) index: Option<BlockIndex>,
    /// Chunks in place: zero chunks are not in it.
    pub(crate) done: Bitmap,
    /// Counts for people.
    pub(crate) tally: Tally,
    /// Ends the transfer.
    pub(crate) stop: Stop,
}

/// Counts that workers add to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Chunks in place.
    pub(crate) done: AtomicU64,
    /// Chunks copied from seeds.
    pub(crate) seeded: AtomicU64,
    /// Chunks of which at least a part was received.
    pub(crate) received: AtomicU64,
    /// Blocks of those that were found here.
    pub(crate) blocks_found: AtomicU64,
    /// Blocks of those that were received.
    pub(crate) blocks_received: AtomicU64,
}

/// One worker's hands. Runs of chunks (first, count) that are written and proven, but not yet durable, go to `written`.
pub(crate) struct Hand<W> {
    shared: Arc<Shared>,
    written: W,
    buffer: AlignedBuffer,
}

impl<W: FnMut(u64, u64)> Hand<W> {
    pub(crate) fn new(shared: Arc<Shared>, written: W) -> Self {
        Self { shared, written, buffer: AlignedBuffer::zeroed(COPY_RUN * CHUNK_SIZE) }
    }

    /// Does one job.
    pub(crate) fn work(&mut self, job: Job) -> Result<Report> {
        match job {
            Job::Match { order, chunks, payload } => {
                let hashes = unpack_answer(&payload, chunks.len() * BLOCKS_PER_CHUNK * BlockHashes::LENGTH)?;
                let hashes = BlockHashes::read_all(&hashes);
                let shared = &self.shared;
                let mut plans: Vec<ChunkPlan> = chunks
                    .iter()
                    .zip(hashes.chunks_exact(BLOCKS_PER_CHUNK))
                    .map(|(chunk, hashes)| {
                        ChunkPlan::matched(*chunk, hashes, &shared.seeds, shared.index.as_ref())
                    })
                    .collect();
                if let Some(seed) = shared.seeds.first() {
                    find_shifted(&mut plans, &hashes, seed);
                }
                Ok(Report::Matched { order, plans })
            }
            Job::Assemble { plans, payload, cost } => {
                let wanted: usize = plans.iter().map(ChunkPlan::wanted_count).sum();
                let wire = match payload {
                    Some(payload) => unpack_answer(&payload, wanted * BLOCK_SIZE)?,
                    None => Vec::new(),
                };
                Ok(Report::Assembled { failed: self.assemble(&plans, &wire)?, cost })
            }
        }
    }

    fn assemble(&mut self, plans: &[ChunkPlan], mut wire: &[u8]) -> Result<Vec<ChunkPlan>> {
        let shared = Arc::clone(&self.shared);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut failed = Vec::new();
        let mut rest = plans;
        while let Some(first) = rest.first() {
            // Neighbours that come whole from the wire are proven and written where they lie.
            let whole = rest
                .iter()
                .zip(first.index..)
                .take_while(|(plan, index)| plan.index == *index && plan.wanted() == u16::MAX)
                .count();
            let (bytes, taken) = if whole > 0 {
                let (bytes, after) = wire.split_at(whole * CHUNK_SIZE);
                wire = after;
                (bytes, whole)
            } else {
                let (mine, after) = wire.split_at(first.wanted_count() * BLOCK_SIZE);
                wire = after;
                let is_whole = first.assemble(mine, &shared.seeds, &mut buffer[..CHUNK_SIZE]);
                if !is_whole {
                    buffer[..CHUNK_SIZE].fill(0);
                }
                (&buffer[..CHUNK_SIZE], 1)
            };
            let proven = prove(&shared.tree, first.index, bytes)?;
            self.write_proven(first.index, bytes, &proven, &shared.tally.received)?;
            for (plan, is_proven) in rest[..taken].iter().zip(proven) {
                if is_proven {
                    let found =
                        plan.blocks.iter().filter(|block| matches!(block, BlockSource::Seed(..))).count();
                    shared.tally.blocks_found.fetch_add(found as u64, Ordering::Relaxed);
                    shared.tally.blocks_received.fetch_add(plan.wanted_count() as u64, Ordering::Relaxed);
                } else {
                    failed.push(plan.clone());
                }
            }
            rest = &rest[taken..];
        }
        self.buffer = buffer;
        Ok(failed)
    }

    /// Copies what seeds have of one node; the chunks that a seed should have had and has not. The bytes are not hashed
    /// here but when the finished disk is read back, as everything is: a seed that was not what its tree said is found
    /// then and fetched.
    pub(crate) fn copy_node(&mut self, node: u64) -> Result<Vec<u64>> {
        let shared = Arc::clone(&self.shared);
        let chunks = (node * FANOUT)..((node + 1) * FANOUT).min(shared.tree.shape().chunks());
        let wanted = shared.tree.ids(0, chunks.clone())?;
        let mut owners = owners(&shared.seeds, chunks.clone(), &wanted);
        for (index, owner) in chunks.clone().zip(&mut owners) {
            *owner = owner.filter(|_| !shared.done.get(index));
        }
        let mut missing = Vec::new();
        let mut first = chunks.start;
        for group in owners.chunk_by(|a, b| a == b) {
            let end = first + group.len() as u64;
            if let Some(seed) = group[0].and_then(|number| shared.seeds.get(number)) {
                for start in (first..end).step_by(COPY_RUN) {
                    let run = (end - start).min(COPY_RUN as u64) as usize;
                    let mut buffer = std::mem::take(&mut self.buffer);
                    let bytes = &mut buffer[..run * CHUNK_SIZE];
                    if seed.read(bytes, start * CHUNK_SIZE as u64) {
                        self.write_proven(start, bytes, &vec![true; run], &shared.tally.seeded)?;
                    } else {
                        missing.extend(start..start + run as u64);
                    }
                    self.buffer = buffer;
                }
            }
            first = end;
        }
        Ok(missing)
    }

    /// Writes those of the chunks from `first` on that may be written, and says which.
    fn write_proven(&mut self, first: u64, bytes: &[u8], proven: &[bool], counter: &AtomicU64) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut start = 0;
        for group in proven.chunk_by(|a, b| a == b) {
            let end = start + group.len();
            if group[0] {
                let begin = first + start as u64;
                shared.destination.write(begin, &bytes[start * CHUNK_SIZE..end * CHUNK_SIZE])?;
                let fresh =
                    (begin..begin + group.len() as u64).filter(|index| shared.done.set(*index)).count();
                shared.tally.done.fetch_add(fresh as u64, Ordering::Relaxed);
                counter.fetch_add(fresh as u64, Ordering::Relaxed);
                (self.written)(begin, group.len() as u64);
            }
            start = end;
        }
        Ok(())
    }
}
