//! Hashing a disk into a tree: allocated extents only, on several cores, in bounded memory.
//!
//! The unit of work is a level-1 node: 256 chunks, 16 MiB of guest disk. Workers take the next node from a
//! counter, so that neighbours are read together, and write ids, fingerprints and the node's id where they
//! belong; nothing is kept in memory but one read buffer each.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use goldwire_disk::BlockDevice;
use goldwire_stdx::{AlignedBuffer, spawn_scoped};

use super::file::TreeFile;
use super::geometry::{FANOUT, Root, node_id};
use crate::chunk::{BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, ChunkId, block_hash, is_zero};
use crate::error::{Error, Result};

/// Bytes that a worker reads at a time.
const READ_SIZE: usize = 1 << 20;
const CHUNKS_PER_READ: u64 = (READ_SIZE / CHUNK_SIZE) as u64;

/// How far a long run has come; shared with whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Guest bytes looked at, holes included.
    pub bytes_done: AtomicU64,
    /// Guest bytes in all.
    pub bytes_total: AtomicU64,
}

/// How to build.
#[derive(Clone, Copy, Debug)]
pub struct BuildOptions<'a> {
    /// Worker threads; none asks the machine.
    pub threads: Option<NonZeroUsize>,
    /// Set by anybody to stop the run with [`Error::Stopped`].
    pub stop: &'a AtomicBool,
    /// Where the run says how far it is.
    pub progress: &'a Progress,
}

/// Sees the bytes that are hashed: chunks that lie end to end, from the index of the first on. What passes the end of the
/// disk is zero. Several threads call it.
pub(crate) type Look<'a> = dyn Fn(u64, &[u8]) + Sync + 'a;

/// Fills the empty `tree` from `device` and returns the root with the number of chunks that are not zero.
///
/// # Errors
/// The first failure of any worker; `Stopped`.
pub fn build_tree(
    device: &dyn BlockDevice,
    tree: &TreeFile,
    options: &BuildOptions<'_>,
) -> Result<(Root, u64)> {
    build_tree_looking(device, tree, options, &|_, _| ())
}

/// As [`build_tree`]; `look` sees all that is hashed.
pub(crate) fn build_tree_looking(
    device: &dyn BlockDevice,
    tree: &TreeFile,
    options: &BuildOptions<'_>,
    look: &Look<'_>,
) -> Result<(Root, u64)> {
    let nodes = tree.shape().chunks().div_ceil(FANOUT);
    options.progress.bytes_total.store(device.size(), Ordering::Relaxed);
    let next = AtomicU64::new(0);
    let used = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    let threads =
        options.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(2, NonZeroUsize::get);
    let worker = || -> Result<()> {
        let mut buffer = AlignedBuffer::zeroed(READ_SIZE);
        while !failed.load(Ordering::Relaxed) {
            let node = next.fetch_add(1, Ordering::Relaxed);
            if node >= nodes {
                break;
            }
            if options.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped);
            }
            let outcome = hash_node(device, tree, node, &mut buffer, look);
            failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
            used.fetch_add(outcome?, Ordering::Relaxed);
            let covered = tree.shape().chunk_range(node * FANOUT).start
                ..tree.shape().chunk_range((node + 1) * FANOUT).start;
            options.progress.bytes_done.fetch_add(covered.end - covered.start, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let wanted = 0..threads.min(nodes as usize).max(1);
        let workers: Vec<_> = wanted.map_while(|_| spawn_scoped(scope, "hash", worker).ok()).collect();
        // A system that is short of threads still hashes: on fewer, or on this one.
        let here = if workers.is_empty() { worker() } else { Ok(()) };
        workers.into_iter().map(|worker| worker.join().unwrap_or(Err(Error::Stopped))).fold(here, Result::and)
    })?;
    Ok((tree.close_upper_levels()?, used.load(Ordering::Relaxed)))
}

/// Hashes the chunks below level-1 node `node`; returns how many are not zero.
fn hash_node(
    device: &dyn BlockDevice,
    tree: &TreeFile,
    node: u64,
    buffer: &mut [u8],
    look: &Look<'_>,
) -> Result<u64> {
    let shape = tree.shape();
    let chunks = shape.children(1, node);
    let chunks = if shape.levels() == 1 { 0..1 } else { chunks };
    let mut ids = vec![ChunkId::ZERO; (chunks.end - chunks.start) as usize];
    let mut fingerprints = vec![0; ids.len() * BLOCKS_PER_CHUNK];
    let mut used = 0;
    let mut index = chunks.start;
    while index < chunks.end {
        let Some(first) =
            next_data(device, shape.chunk_range(index).start, shape.chunk_range(chunks.end - 1).end)?
        else {
            break;
        };
        index = first / CHUNK_SIZE as u64;
        let last = (index + CHUNKS_PER_READ).min(chunks.end);
        let start = shape.chunk_range(index).start;
        let length = (shape.chunk_range(last - 1).end - start) as usize;
        // Only the disk's last chunk can be short; its padding is zeros.
        buffer[length..length.next_multiple_of(CHUNK_SIZE)].fill(0);
        device.read_at(&mut buffer[..length], start).map_err(|source| Error::read_disk(start, source))?;
        look(index, &buffer[..length.next_multiple_of(CHUNK_SIZE)]);
        for (chunk, bytes) in (index..last).zip(buffer.chunks_exact(CHUNK_SIZE)) {
            let slot = (chunk - chunks.start) as usize;
            ids[slot] = ChunkId::of(bytes);
            if !ids[slot].is_zero() {
                used += 1;
                fingerprint(bytes, &mut fingerprints[slot * BLOCKS_PER_CHUNK..][..BLOCKS_PER_CHUNK]);
            }
        }
        index = last;
    }
    if used > 0 {
        tree.set_ids(0, chunks.start, &ids)?;
        tree.set_fingerprints(chunks.start, &fingerprints)?;
        if shape.levels() > 1 {
            tree.set_ids(1, node, &[node_id(1, &ids)])?;
        }
    }
    Ok(used)
}

/// Writes the low halves of the block hashes of one chunk; zero blocks stay 0.
pub(crate) fn fingerprint(chunk: &[u8], words: &mut [u32]) {
    for (word, block) in words.iter_mut().zip(chunk.chunks_exact(BLOCK_SIZE)) {
        *word = if is_zero(block) { 0 } else { block_hash(block) as u32 };
    }
}

/// The first byte at or after `offset` and before `end` that a device says may hold data.
fn next_data(device: &dyn BlockDevice, mut offset: u64, end: u64) -> Result<Option<u64>> {
    while offset < end {
        let extent = device.extent_at(offset).map_err(|source| Error::read_disk(offset, source))?;
        if !extent.kind.is_zero() {
            return Ok(Some(offset));
        }
        offset = offset.saturating_add(extent.length.max(1));
    }
    Ok(None)
}
