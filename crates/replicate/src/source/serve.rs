//! Answers from an image on this machine: one worker per core reads, hashes and compresses.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, Sender, unbounded};
use goldwire_disk::Image;
use goldwire_stdx::{AlignedBuffer, spawn};
use goldwire_store::{BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, FANOUT, Rolling, TreeFile, block_hash};
use zstd::bulk::Compressor;

use super::device::DeviceWatch;
use super::pace::{Content, LevelChoice};
use super::{Callback, Pace, Server};
use crate::failure::Result;
use crate::wire::{ANSWER_RAW_MAX, Failure, FailureKind, REQUEST_ITEMS_MAX, Request, pack_answer};

/// Serves from an image on this machine, with one worker per core.
pub(crate) struct LocalServer {
    jobs: Sender<(Arc<AlignedBuffer>, Callback)>,
}

/// What the workers share.
struct Served {
    image: Image,
    tree: TreeFile,
    level: LevelChoice,
    /// Over those of the image's files that are devices.
    watches: Vec<DeviceWatch>,
}

impl LocalServer {
    /// A server for `image` with its `tree`, and the `watches` over its devices since before the tree was
    /// made. `level` is the zstd level; none adapts to what `pace` says.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(
        image: Image,
        tree: TreeFile,
        level: Option<i32>,
        pace: Arc<Pace>,
        watches: Vec<DeviceWatch>,
    ) -> Result<Self> {
        let (jobs, queue): (_, Receiver<(Arc<AlignedBuffer>, Callback)>) = unbounded();
        let level = level.map_or(LevelChoice::Adaptive(pace), LevelChoice::Fixed);
        let served = Arc::new(Served { image, tree, level, watches });
        for _ in 0..thread::available_parallelism().map_or(2, |count| count.get().min(8)) {
            let served = Arc::clone(&served);
            let queue = queue.clone();
            spawn("source", move || {
                let mut answerer = Answerer { served, compressor: None, raw: Raw::new() };
                for (request, callback) in queue {
                    // A request that makes us panic costs its asker an answer, and nobody else a worker.
                    let answer = catch_unwind(AssertUnwindSafe(|| answerer.answer(&request)));
                    callback(match answer {
                        Ok(answer) => answer.map(|payload| Arc::new(payload.into())),
                        Err(_) => Err(Failure::new(FailureKind::Other, "the source failed at a request")),
                    });
                }
            })
            .map_err(|error| Failure::io("start a thread", &error))?;
        }
        Ok(Self { jobs })
    }
}

impl Server for LocalServer {
    fn submit(&self, request: Arc<AlignedBuffer>, callback: Callback) {
        if let Err(rejected) = self.jobs.send((request, callback)) {
            rejected.0.1(Err(Failure::stopped()));
        }
    }
}

/// Answers one request at a time.
pub(crate) struct Answerer {
    served: Arc<Served>,
    compressor: Option<(i32, Compressor<'static>)>,
    raw: Raw,
}

impl Answerer {
    /// An answerer for `image` with its `tree` that compresses at this zstd level.
    #[cfg(test)]
    pub(crate) fn new(image: Image, tree: TreeFile, level: i32) -> Self {
        let served = Arc::new(Served { image, tree, level: LevelChoice::Fixed(level), watches: Vec::new() });
        Self { served, compressor: None, raw: Raw::new() }
    }

    /// The packed answer to a request in postcard.
    pub(crate) fn answer(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        let request: Request =
            postcard::from_bytes(request).map_err(|_| invalid("a request does not decode"))?;
        self.raw.clear();
        let mut content = Content::Little;
        match request {
            Request::Nodes { level, indices } => self.nodes(usize::from(level), &indices)?,
            Request::BlockHashes { chunks } => self.block_hashes(&chunks)?,
            Request::Blocks { wants, is_delta } => {
                content = if is_delta { Content::Little } else { Content::Bulk };
                self.blocks(&wants)?;
            }
            Request::Unchanged => self.unchanged()?,
            Request::Probe { bytes } => {
                noise(bytes as usize, &mut self.raw)?;
                return Ok(pack_answer(self.raw.bytes(), None));
            }
        }
        let level = self.served.level.for_answer(content);
        if level == 0 || !worth_compressing(self.raw.bytes()) {
            return Ok(pack_answer(self.raw.bytes(), None));
        }
        if self.compressor.as_ref().is_none_or(|(made_for, _)| *made_for != level) {
            self.compressor = Compressor::new(level).ok().map(|compressor| (level, compressor));
        }
        Ok(pack_answer(self.raw.bytes(), self.compressor.as_mut().map(|(_, compressor)| compressor)))
    }

    fn nodes(&mut self, level: usize, indices: &[u64]) -> Result<()> {
        let tree = &self.served.tree;
        // The level above the top is a node of one child: how a target that knows only the root asks for the top.
        if level == 0 || level > tree.shape().levels() || indices.len() > REQUEST_ITEMS_MAX {
            return Err(invalid(format!("nodes of level {level}")));
        }
        for &index in indices {
            // The node above the top is one, like the top itself.
            let nodes = if level == tree.shape().levels() { 1 } else { tree.shape().count(level) };
            if index >= nodes || self.raw.len() + 32 * FANOUT as usize > ANSWER_RAW_MAX {
                return Err(invalid(format!("node {index} of level {level}")));
            }
            let children = tree.shape().children(level, index);
            tree.ids(level - 1, children)?.iter().for_each(|id| self.raw.extend_from_slice(&id.0));
        }
        Ok(())
    }

    fn block_hashes(&mut self, chunks: &[u64]) -> Result<()> {
        if chunks.len() > ANSWER_RAW_MAX / (BLOCKS_PER_CHUNK * 12) {
            return Err(invalid("too many chunks in a request"));
        }
        let mut chunk = AlignedBuffer::zeroed(CHUNK_SIZE);
        for &index in chunks {
            self.read_chunk(index, &mut chunk)?;
            for block in chunk.chunks_exact(BLOCK_SIZE) {
                self.raw.extend_from_slice(&block_hash(block).to_le_bytes());
                self.raw.extend_from_slice(&Rolling::of(block).value().to_le_bytes());
            }
        }
        Ok(())
    }

    fn blocks(&mut self, wants: &[(u64, u16)]) -> Result<()> {
        let blocks: usize = wants.iter().map(|(_, mask)| mask.count_ones() as usize).sum();
        let has_empty = wants.iter().any(|(_, mask)| *mask == 0);
        if blocks * BLOCK_SIZE > ANSWER_RAW_MAX || wants.len() > REQUEST_ITEMS_MAX || has_empty {
            return Err(invalid("too many blocks in a request"));
        }
        for (index, _) in wants {
            self.guest_range(*index, 1)?;
        }
        let mut rest = wants;
        while let Some(&(first, mask)) = rest.first() {
            // Whole neighbours are read in one go, the usual case of a full copy.
            let whole = rest
                .iter()
                .zip(first..)
                .take_while(|((index, mask), expected)| index == expected && *mask == u16::MAX)
                .count();
            if whole > 0 {
                let range = self.guest_range(first, whole as u64)?;
                let length = (range.end - range.start) as usize;
                let (place, padding) = self.raw.grow(whole * CHUNK_SIZE).split_at_mut(length);
                self.served.image.device.read_at(place, range.start)?;
                padding.fill(0);
                rest = &rest[whole..];
            } else {
                let mut chunk = AlignedBuffer::zeroed(CHUNK_SIZE);
                self.read_chunk(first, &mut chunk)?;
                for (position, block) in chunk.chunks_exact(BLOCK_SIZE).enumerate() {
                    if mask & (1 << position) != 0 {
                        self.raw.extend_from_slice(block);
                    }
                }
                rest = &rest[1..];
            }
        }
        Ok(())
    }

    /// Reads chunk `index`, padded with zeros at the end of the disk, into `chunk`.
    fn read_chunk(&self, index: u64, chunk: &mut [u8]) -> Result<()> {
        let range = self.guest_range(index, 1)?;
        let length = (range.end - range.start) as usize;
        chunk[length..].fill(0);
        Ok(self.served.image.device.read_at(&mut chunk[..length], range.start)?)
    }

    fn guest_range(&self, first: u64, count: u64) -> Result<std::ops::Range<u64>> {
        let shape = self.served.tree.shape();
        if first.checked_add(count).is_none_or(|end| end > shape.chunks()) {
            return Err(invalid(format!("chunk {first} is past the end of the disk")));
        }
        Ok(shape.chunk_range(first).start..shape.chunk_range(first + count - 1).end)
    }

    fn unchanged(&self) -> Result<()> {
        let mut changed = self.served.image.changed()?;
        for watch in &self.served.watches {
            if watch.has_changed()? {
                changed = Some(watch.path().to_owned());
            }
        }
        match changed {
            None => Ok(()),
            Some(path) => Err(Failure::new(
                FailureKind::SourceChanged,
                format!("{} changed while it was being sent", path.display()),
            )
            .hint("sync from a snapshot or export that nobody writes to, then run the same command again")),
        }
    }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Invalid, message)
}

/// The content of an answer in the making, in one buffer that every answer of a worker uses.
struct Raw {
    buffer: AlignedBuffer,
    length: usize,
}

impl Raw {
    fn new() -> Self {
        Self { buffer: AlignedBuffer::zeroed(ANSWER_RAW_MAX), length: 0 }
    }

    fn clear(&mut self) {
        self.length = 0;
    }

    fn len(&self) -> usize {
        self.length
    }

    /// The next `length` bytes, to be filled; callers have checked that they are within the limit.
    fn grow(&mut self, length: usize) -> &mut [u8] {
        let start = self.length;
        self.length += length;
        &mut self.buffer[start..start + length]
    }

    fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.grow(bytes.len()).copy_from_slice(bytes);
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

/// Bytes that no codec shrinks, from a small generator (SplitMix64).
fn noise(bytes: usize, raw: &mut Raw) -> Result<()> {
    if bytes > ANSWER_RAW_MAX {
        return Err(invalid("a probe of more than 2 MiB"));
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in raw.grow(bytes).chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..word.len()]);
    }
    Ok(())
}

/// Whether a sample of the bytes looks compressible: encrypted or packed data has all byte values about equally
/// often, and compressing it costs a core for nothing.
fn worth_compressing(raw: &[u8]) -> bool {
    const SAMPLE: usize = 4096;
    if raw.len() < 64 * 1024 {
        return true;
    }
    let mut counts = [0_u32; 256];
    let stride = raw.len() / 16;
    for start in (0..16).map(|n| n * stride) {
        raw[start..][..SAMPLE / 16].iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    }
    // The expected sum of squares of a uniform sample is n + n²/256; text and code are several times that.
    let squares: u64 = counts.iter().map(|count| u64::from(*count).pow(2)).sum();
    let uniform = (SAMPLE + SAMPLE * SAMPLE / 256) as u64;
    squares * 20 > uniform * 21
}
