//! The threads that match, put together, prove and write chunks, copy from seeds in between, and journal.
//!
//! What came over the wire goes first, because it holds the window; copying fills the rest of the cores' time.
//! Copying looks at one level-1 node (256 chunks) at a time, taken from a counter.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};
use goldwire_disk::BlockDevice;
use goldwire_stdx::{AlignedBuffer, Stop, spawn};
use goldwire_store::{BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, FANOUT, TreeFile};

use super::Input;
use super::bitmap::Bitmap;
use super::chunks::{BlockSource, ChunkPlan, prove, write_sparse};
use super::journal::Journal;
use super::seeds::{BlockIndex, Seed, owners};
use super::shift::{BlockHashes, find_shifted};
use crate::failure::Result;
use crate::wire::{Failure, unpack_answer};

/// The journal is brought up to date after this many bytes, or after [`JOURNAL_EVERY`].
const JOURNAL_BYTES: u64 = 64 << 20;
const JOURNAL_EVERY: Duration = Duration::from_secs(1);

/// Copies are put together into writes of this many chunks.
const COPY_RUN: usize = 16;

/// What all threads of one transfer share.
pub(crate) struct Shared {
    pub(crate) tree: TreeFile,
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) seeds: Vec<Seed>,
    pub(crate) index: Option<BlockIndex>,
    /// Chunks in place: zero chunks are not in it.
    pub(crate) done: Bitmap,
    pub(crate) tally: Tally,
    pub(crate) stop: Stop,
}

/// Counts that threads add to.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) done: AtomicU64,
    pub(crate) seeded: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) blocks_found: AtomicU64,
    pub(crate) blocks_received: AtomicU64,
}

/// Work for a thread.
pub(crate) enum Job {
    /// Find the blocks of these chunks in the seeds.
    Match {
        /// Endpoint in the order of matches.
        order: u64,
        chunks: Vec<u64>,
        payload: Arc<AlignedBuffer>,
    },
    /// Put these chunks together. No payload when all is at hand.
    Assemble {
        plans: Vec<ChunkPlan>,
        payload: Option<Arc<AlignedBuffer>>,
        /// What the window gets back when this is done.
        cost: u64,
    },
}

/// What a thread tells the driver.
pub(crate) enum Report {
    /// The plans of match number `order`.
    Matched { order: u64, plans: Vec<ChunkPlan> },
    /// Chunks were put together; those in `failed` do not have their ids.
    Assembled { failed: Vec<ChunkPlan>, cost: u64 },
    /// Chunks that a seed should have had but has not.
    Missing(Vec<u64>),
    /// Copying has come to its end.
    CopyDone,
    /// Something that ends the transfer.
    Fatal(Failure),
}

/// The running threads.
pub(crate) struct Workers {
    jobs: Option<Sender<Job>>,
    journal: Option<Sender<(u64, u64)>>,
    threads: Vec<JoinHandle<()>>,
    journal_writer: Option<JoinHandle<()>>,
}

impl Workers {
    /// Starts `threads` workers and the writer of the journal. With seeds, copying starts at once.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        journal: Journal,
        threads: usize,
        reports: &Sender<Input>,
    ) -> Result<Self> {
        let no_thread = |error| Failure::io("start a thread", &error);
        let (jobs, queue) = unbounded();
        // Bounded, so that a slow disk slows the writers instead of filling memory.
        let (journal_entry, runs) = bounded(4096);
        let nodes = if shared.seeds.is_empty() { 0 } else { shared.tree.shape().chunks().div_ceil(FANOUT) };
        let copying = Arc::new(Copying { next: AtomicU64::new(0), left: AtomicU64::new(nodes), nodes });
        if nodes == 0 {
            let _ = reports.send(Input::Worker(Report::CopyDone));
        }
        let threads = (0..threads)
            .map(|_| {
                let worker = Worker {
                    shared: Arc::clone(shared),
                    copying: Arc::clone(&copying),
                    journal: journal_entry.clone(),
                    reports: reports.clone(),
                    buffer: AlignedBuffer::zeroed(COPY_RUN * CHUNK_SIZE),
                };
                let queue = queue.clone();
                spawn("worker", move || worker.run(&queue)).map_err(no_thread)
            })
            .collect::<Result<_>>()?;
        let journal_writer = JournalWriter {
            shared: Arc::clone(shared),
            journal: Mutex::new(journal),
            reports: reports.clone(),
        };
        let journal_writer = spawn("journal", move || journal_writer.run(&runs)).map_err(no_thread)?;
        Ok(Self {
            jobs: Some(jobs),
            journal: Some(journal_entry),
            threads,
            journal_writer: Some(journal_writer),
        })
    }

    /// Queues work.
    pub(crate) fn submit(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Workers {
    /// Lets the threads finish what is queued, then journals the rest: also after a failure, so that whatever was
    /// written and proven need not be sent again.
    fn drop(&mut self) {
        self.jobs = None;
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
        self.journal = None;
        if let Some(journal_writer) = self.journal_writer.take() {
            let _ = journal_writer.join();
        }
    }
}

struct Copying {
    next: AtomicU64,
    left: AtomicU64,
    nodes: u64,
}

struct Worker {
    shared: Arc<Shared>,
    copying: Arc<Copying>,
    journal: Sender<(u64, u64)>,
    reports: Sender<Input>,
    buffer: AlignedBuffer,
}

impl Worker {
    fn run(mut self, queue: &Receiver<Job>) {
        loop {
            let outcome = match queue.try_recv() {
                Ok(job) => self.work(job),
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    let node = self.copying.next.fetch_add(1, Ordering::Relaxed);
                    if node < self.copying.nodes && !self.shared.stop.is_requested() {
                        self.copy_node(node)
                    } else {
                        match queue.recv() {
                            Ok(job) => self.work(job),
                            Err(_) => return,
                        }
                    }
                }
            };
            if let Err(failure) = outcome {
                self.shared.stop.request();
                self.report(Report::Fatal(failure));
            }
        }
    }

    fn report(&self, report: Report) {
        let _ = self.reports.send(Input::Worker(report));
    }

    fn work(&mut self, job: Job) -> Result<()> {
        if self.shared.stop.is_requested() {
            return Ok(());
        }
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
                self.report(Report::Matched { order, plans });
            }
            Job::Assemble { plans, payload, cost } => {
                let wanted: usize = plans.iter().map(ChunkPlan::wanted_count).sum();
                let wire = match payload {
                    Some(payload) => unpack_answer(&payload, wanted * BLOCK_SIZE)?,
                    None => Vec::new(),
                };
                let failed = self.assemble(plans, &wire)?;
                self.report(Report::Assembled { failed, cost });
            }
        }
        Ok(())
    }

    fn assemble(&mut self, plans: Vec<ChunkPlan>, mut wire: &[u8]) -> Result<Vec<ChunkPlan>> {
        let mut failed = Vec::new();
        let mut rest = plans.as_slice();
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
                let is_whole = first.assemble(mine, &self.shared.seeds, &mut self.buffer[..CHUNK_SIZE]);
                if !is_whole {
                    self.buffer[..CHUNK_SIZE].fill(0);
                }
                (&self.buffer[..CHUNK_SIZE], 1)
            };
            let proven = prove(&self.shared.tree, first.index, bytes)?;
            self.write_proven(first.index, bytes, &proven, &self.shared.tally.received)?;
            for (plan, is_proven) in rest[..taken].iter().zip(proven) {
                if is_proven {
                    let found =
                        plan.blocks.iter().filter(|block| matches!(block, BlockSource::Seed(..))).count();
                    self.shared.tally.blocks_found.fetch_add(found as u64, Ordering::Relaxed);
                    self.shared
                        .tally
                        .blocks_received
                        .fetch_add(plan.wanted_count() as u64, Ordering::Relaxed);
                } else {
                    failed.push(plan.clone());
                }
            }
            rest = &rest[taken..];
        }
        Ok(failed)
    }

    /// Copies what seeds have of one node. The bytes are not hashed here but when the finished disk is read back,
    /// as everything is: a seed that was not what its tree said is found then and fetched.
    fn copy_node(&mut self, node: u64) -> Result<()> {
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
        if !missing.is_empty() {
            self.report(Report::Missing(missing));
        }
        if self.copying.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.report(Report::CopyDone);
        }
        Ok(())
    }

    /// Writes those of the chunks from `first` on that may be written, and tells the journal_writer.
    fn write_proven(&self, first: u64, bytes: &[u8], proven: &[bool], counter: &AtomicU64) -> Result<()> {
        let mut start = 0;
        for group in proven.chunk_by(|a, b| a == b) {
            let end = start + group.len();
            if group[0] {
                let begin = first + start as u64;
                write_sparse(
                    self.shared.device.as_ref(),
                    begin,
                    &bytes[start * CHUNK_SIZE..end * CHUNK_SIZE],
                )?;
                let fresh =
                    (begin..begin + group.len() as u64).filter(|index| self.shared.done.set(*index)).count();
                self.shared.tally.done.fetch_add(fresh as u64, Ordering::Relaxed);
                counter.fetch_add(fresh as u64, Ordering::Relaxed);
                let _ = self.journal.send((begin, group.len() as u64));
            }
            start = end;
        }
        Ok(())
    }
}

struct JournalWriter {
    shared: Arc<Shared>,
    journal: Mutex<Journal>,
    reports: Sender<Input>,
}

impl JournalWriter {
    fn run(self, runs: &Receiver<(u64, u64)>) {
        let mut waiting = Vec::new();
        let mut bytes = 0;
        loop {
            let next = runs.recv_timeout(JOURNAL_EVERY);
            if let Ok((first, count)) = next {
                waiting.push((first, count));
                bytes += count * CHUNK_SIZE as u64;
            }
            let is_over = matches!(next, Err(RecvTimeoutError::Disconnected));
            let is_due = bytes >= JOURNAL_BYTES || next.is_err();
            if is_due
                && !waiting.is_empty()
                && let Err(failure) = self.write(&mut waiting)
            {
                self.shared.stop.request();
                let _ = self.reports.send(Input::Worker(Report::Fatal(failure)));
                // Keep receiving, so that no writer blocks on a full queue for ever.
                runs.iter().for_each(drop);
                return;
            }
            if is_due {
                bytes = 0;
            }
            if is_over {
                return;
            }
        }
    }

    fn write(&self, runs: &mut Vec<(u64, u64)>) -> Result<()> {
        self.shared.device.flush()?;
        runs.sort_unstable();
        let merged = runs.drain(..).fold(Vec::<(u64, u64)>::new(), |mut merged, (first, count)| {
            match merged.last_mut() {
                Some(last) if last.0 + last.1 == first => last.1 += count,
                _ => merged.push((first, count)),
            }
            merged
        });
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.append(&merged).map_err(|error| Failure::io("write the journal", &error))
    }
}
