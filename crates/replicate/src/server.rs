//! Answering targets: from an opened image ([`LocalServer`]), through a connection to whoever has it
//! ([`RemoteServer`]), and once for many who ask the same ([`SharedServer`]).

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use goldwire_disk::Image;
use goldwire_stdx::AlignedBuffer;
use goldwire_store::{BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, Rolling, TreeFile, block_hash};
use zstd::bulk::Compressor;

use crate::failure::Result;
use crate::link::{Link, LinkStats};
use crate::wire::{
    ANSWER_RAW_MAX, Failure, FailureKind, Frame, Kind, REQUEST_ITEMS_MAX, Request, pack_answer,
};

/// An answer's payload, or why there is none.
pub(crate) type Reply = Result<Arc<AlignedBuffer>>;

/// Takes the reply when it is there, on a thread of the server.
pub(crate) type Callback = Box<dyn FnOnce(Reply) + Send>;

/// Somebody who answers the requests of targets. The payload is a [`Request`] in postcard, passed on as it is.
pub(crate) trait Server: Send + Sync {
    /// Answers in its own time through `callback`, which is always called.
    fn submit(&self, request: Arc<AlignedBuffer>, callback: Callback);
}

/// Serves from an image on this machine, with one worker per core.
pub(crate) struct LocalServer {
    jobs: Sender<(Arc<AlignedBuffer>, Callback)>,
}

/// What the workers share.
struct Served {
    image: Image,
    tree: TreeFile,
    level: LevelChoice,
}

impl LocalServer {
    /// A server for `image` with its `tree`. `level` is the zstd level; none adapts to what `pace` says.
    pub(crate) fn start(image: Image, tree: TreeFile, level: Option<i32>, pace: Arc<Pace>) -> Self {
        let (jobs, queue): (_, Receiver<(Arc<AlignedBuffer>, Callback)>) = unbounded();
        let level = level.map_or(LevelChoice::Adaptive(pace), LevelChoice::Fixed);
        let served = Arc::new(Served { image, tree, level });
        for _ in 0..thread::available_parallelism().map_or(2, |count| count.get().min(8)) {
            let served = Arc::clone(&served);
            let queue = queue.clone();
            thread::spawn(move || {
                let mut worker = Worker { served, compressor: None, raw: Raw::new() };
                for (request, callback) in queue {
                    callback(worker.answer(&request).map(|payload| Arc::new(payload.into())));
                }
            });
        }
        Self { jobs }
    }
}

impl Server for LocalServer {
    fn submit(&self, request: Arc<AlignedBuffer>, callback: Callback) {
        if let Err(rejected) = self.jobs.send((request, callback)) {
            rejected.0.1(Err(Failure::stopped()));
        }
    }
}

struct Worker {
    served: Arc<Served>,
    compressor: Option<(i32, Compressor<'static>)>,
    raw: Raw,
}

impl Worker {
    fn answer(&mut self, request: &[u8]) -> Result<Vec<u8>> {
        let request: Request =
            postcard::from_bytes(request).map_err(|_| invalid("a request does not decode"))?;
        self.raw.clear();
        let mut is_delta = true;
        match request {
            Request::Nodes { level, indices } => self.nodes(usize::from(level), &indices)?,
            Request::BlockHashes { chunks } => self.block_hashes(&chunks)?,
            Request::Blocks { wants, is_delta: delta } => {
                is_delta = delta;
                self.blocks(&wants)?;
            }
            Request::Unchanged => self.unchanged()?,
            Request::Probe { bytes } => {
                noise(bytes as usize, &mut self.raw)?;
                return Ok(pack_answer(self.raw.bytes(), None));
            }
        }
        let level = self.served.level.for_answer(is_delta);
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
            let children = tree.shape().children(level, index);
            if children.is_empty() || self.raw.len() + 32 * 256 > ANSWER_RAW_MAX {
                return Err(invalid(format!("node {index} of level {level}")));
            }
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
        match self.served.image.changed()? {
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

enum LevelChoice {
    Fixed(i32),
    Adaptive(Arc<Pace>),
}

impl LevelChoice {
    fn for_answer(&self, is_delta: bool) -> i32 {
        match self {
            Self::Fixed(level) => *level,
            // A delta is small against the local work around it, so that a few milliseconds more are no matter.
            Self::Adaptive(pace) => pace.level().max(if is_delta { DELTA_LEVEL_MIN } else { i32::MIN }),
        }
    }
}

/// The least level for what a seed left over.
const DELTA_LEVEL_MIN: i32 = 5;

/// The speed of the links that answers leave by, as a compression level: the slower the fastest of them, the
/// more it pays to compress. A link's speed is what it carried divided by the time that writes to it took, so an
/// idle link looks fast, which is right: then it is not what we wait for.
#[derive(Debug)]
pub(crate) struct Pace {
    links: Mutex<Vec<Watched>>,
    level: AtomicI32,
    looked_ms: AtomicU64,
    epoch: Instant,
}

#[derive(Debug)]
struct Watched {
    stats: Arc<LinkStats>,
    bytes_out: u64,
    writing_ns: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            links: Mutex::default(),
            level: AtomicI32::new(1),
            looked_ms: AtomicU64::new(0),
            epoch: Instant::now(),
        }
    }
}

impl Pace {
    const LOOK_EVERY: Duration = Duration::from_millis(250);
    /// From this many bytes per second on, this level: measured so that one core compresses typical disk
    /// content about as fast as the link takes the result.
    const STEPS: [(u64, i32); 6] =
        [(300_000_000, -3), (120_000_000, 1), (40_000_000, 3), (15_000_000, 6), (4_000_000, 9), (0, 12)];

    /// Takes a link into account from now on.
    pub(crate) fn watch(&self, stats: Arc<LinkStats>) {
        let (bytes_out, writing_ns) = Self::read(&stats);
        self.lock().push(Watched { stats, bytes_out, writing_ns });
    }

    fn level(&self) -> i32 {
        let now = self.epoch.elapsed().as_millis() as u64;
        let looked = self.looked_ms.load(Ordering::Relaxed);
        let due = now.saturating_sub(looked) >= Self::LOOK_EVERY.as_millis() as u64;
        if due && self.looked_ms.compare_exchange(looked, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let fastest = self.lock().iter_mut().filter_map(Watched::rate).max();
            if let Some(rate) = fastest {
                let step = Self::STEPS.iter().find(|(least, _)| rate >= *least);
                self.level.store(step.map_or(1, |(_, level)| *level), Ordering::Relaxed);
            }
        }
        self.level.load(Ordering::Relaxed)
    }

    fn read(stats: &LinkStats) -> (u64, u64) {
        (stats.bytes_out.load(Ordering::Relaxed), stats.writing_ns.load(Ordering::Relaxed))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Watched>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// Bytes per second of writing time since the last look; none while too little was written to tell.
    fn rate(&mut self) -> Option<u64> {
        let (bytes_out, writing_ns) = Pace::read(&self.stats);
        let bytes = bytes_out - self.bytes_out;
        if bytes < 256 * 1024 {
            return None;
        }
        let ns = (writing_ns - self.writing_ns).max(1);
        (self.bytes_out, self.writing_ns) = (bytes_out, writing_ns);
        Some((u128::from(bytes) * 1_000_000_000 / u128::from(ns)) as u64)
    }
}

/// Passes requests on over a link and matches the answers.
pub(crate) struct RemoteServer {
    link: Link,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next_id: u64,
    callbacks: HashMap<u64, Callback>,
    /// Why nothing more can come.
    ended: Option<Failure>,
}

impl RemoteServer {
    /// A server at the other end of `link`.
    pub(crate) fn new(link: Link) -> Self {
        Self { link, waiting: Mutex::default() }
    }

    /// Hands over an answer or refusal frame that came over the link.
    pub(crate) fn deliver(&self, frame: &Frame) {
        let callback = self.lock().callbacks.remove(&frame.id);
        if let Some(callback) = callback {
            callback(match frame.kind {
                Kind::Answer => Ok(Arc::clone(&frame.payload)),
                _ => Err(frame.message("refusal").unwrap_or_else(Failure::from)),
            });
        }
    }

    /// Refuses everything that waits or comes later.
    pub(crate) fn end(&self, failure: &Failure) {
        let callbacks = {
            let mut waiting = self.lock();
            waiting.ended = Some(failure.clone());
            std::mem::take(&mut waiting.callbacks)
        };
        callbacks.into_values().for_each(|callback| callback(Err(failure.clone())));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server for RemoteServer {
    fn submit(&self, request: Arc<AlignedBuffer>, callback: Callback) {
        let mut waiting = self.lock();
        if let Some(failure) = waiting.ended.clone() {
            drop(waiting);
            return callback(Err(failure));
        }
        let id = waiting.next_id;
        waiting.next_id += 1;
        waiting.callbacks.insert(id, callback);
        drop(waiting);
        self.link.send(Frame { kind: Kind::Request, stream: 0, id, payload: request });
    }
}

/// Asks the server below once for what several targets ask, and keeps answers for a while for those who come
/// later. Targets that share a seed ask for the same bytes in the same groups; one that is so far behind that
/// its answers are gone costs another read and compression, and holds nobody back.
pub(crate) struct SharedServer {
    below: Arc<dyn Server>,
    known: Arc<Mutex<Known>>,
}

#[derive(Default)]
struct Known {
    keep_bytes: u64,
    kept_bytes: u64,
    entries: HashMap<Arc<AlignedBuffer>, Entry>,
    /// Answered requests, oldest first.
    order: VecDeque<Arc<AlignedBuffer>>,
}

enum Entry {
    Asked(Vec<Callback>),
    Answered(Arc<AlignedBuffer>),
}

impl SharedServer {
    /// Shares `below`, keeping up to `keep_bytes` of answers.
    pub(crate) fn new(below: Arc<dyn Server>, keep_bytes: u64) -> Self {
        Self { below, known: Arc::new(Mutex::new(Known { keep_bytes, ..Known::default() })) }
    }
}

impl Server for SharedServer {
    fn submit(&self, request: Arc<AlignedBuffer>, callback: Callback) {
        // Whether the source changed must be asked anew each time.
        let is_lasting = matches!(
            postcard::from_bytes(&request),
            Ok(Request::Nodes { .. } | Request::BlockHashes { .. } | Request::Blocks { .. })
        );
        if !is_lasting {
            return self.below.submit(request, callback);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.entries.get_mut(&request) {
            Some(Entry::Answered(answer)) => {
                let answer = Arc::clone(answer);
                drop(known);
                return callback(Ok(answer));
            }
            Some(Entry::Asked(callbacks)) => return callbacks.push(callback),
            None => known.entries.insert(Arc::clone(&request), Entry::Asked(vec![callback])),
        };
        drop(known);
        let known = Arc::clone(&self.known);
        let key = Arc::clone(&request);
        self.below.submit(request, Box::new(move |reply| Known::finish(&known, &key, &reply)));
    }
}

impl Known {
    fn finish(known: &Mutex<Self>, key: &Arc<AlignedBuffer>, reply: &Reply) {
        let callbacks = {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            let asked = known.entries.remove(key);
            if let Ok(answer) = reply
                && known.keep_bytes > 0
            {
                known.kept_bytes += (answer.len() + key.len()) as u64;
                known.entries.insert(Arc::clone(key), Entry::Answered(Arc::clone(answer)));
                known.order.push_back(Arc::clone(key));
                while known.kept_bytes > known.keep_bytes {
                    let Some(oldest) = known.order.pop_front() else { break };
                    if let Some(Entry::Answered(answer)) = known.entries.remove(&oldest) {
                        known.kept_bytes -= (answer.len() + oldest.len()) as u64;
                    }
                }
            }
            match asked {
                Some(Entry::Asked(callbacks)) => callbacks,
                _ => Vec::new(),
            }
        };
        callbacks.into_iter().for_each(|callback| callback(reply.clone()));
    }
}

/// Serves one target's requests over its link.
pub(crate) fn serve_request(server: &dyn Server, link: &Link, frame: &Frame) {
    let link = link.clone();
    let id = frame.id;
    server.submit(
        Arc::clone(&frame.payload),
        Box::new(move |reply| {
            link.send(match reply {
                Ok(payload) => Frame { kind: Kind::Answer, stream: 0, id, payload },
                Err(failure) => Frame::of(Kind::Refusal, 0, id, &failure),
            });
        }),
    );
}
