//! The threads of a transfer: they do jobs, copy from seeds in between, and journal.
//!
//! What came over the wire goes first, because it holds the window; copying fills the rest of the cores' time.
//! Copying looks at one level-1 node (256 chunks) at a time, taken from a counter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded, unbounded};
use goldwire_stdx::{AlignedBuffer, spawn};
use goldwire_store::{CHUNK_SIZE, FANOUT};

use super::Input;
use super::chunks::ChunkPlan;
use super::hand::{Hand, Shared};
use crate::failure::Result;
use crate::wire::{Failure, FailureKind};

/// The journal is brought up to date after this many bytes, or when the first of them has waited for
/// [`JOURNAL_EVERY`].
const JOURNAL_BYTES: u64 = 64 << 20;
const JOURNAL_EVERY: Duration = Duration::from_secs(1);

/// Work for a worker.
pub(crate) enum Job {
    /// Find the blocks of these chunks in the seeds.
    Match {
        /// Place in the order of matches.
        order: u64,
        /// Ascending.
        chunks: Vec<u64>,
        /// Their hashes, packed.
        payload: Arc<AlignedBuffer>,
    },
    /// Put these chunks together.
    Assemble {
        /// How.
        plans: Vec<ChunkPlan>,
        /// What comes from the wire, packed; `None` when all is at hand.
        payload: Option<Arc<AlignedBuffer>>,
        /// What the window gets back when this is done.
        cost: u64,
    },
}

/// What a worker says.
#[derive(Debug)]
pub(crate) enum Report {
    /// The plans of match number `order`.
    Matched {
        /// As in the job.
        order: u64,
        /// One per chunk.
        plans: Vec<ChunkPlan>,
    },
    /// Chunks were put together.
    Assembled {
        /// Those that do not have their ids.
        failed: Vec<ChunkPlan>,
        /// As in the job.
        cost: u64,
    },
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
    pub(crate) fn start(shared: &Arc<Shared>, threads: usize, reports: &Sender<Input>) -> Result<Self> {
        let no_thread = |error| Failure::io("start a thread", &error);
        let (jobs, queue) = unbounded();
        // Bounded, so that a slow disk slows the writers instead of filling memory.
        let (journal_entry, runs) = bounded(4096);
        let nodes = if shared.seeds.is_empty() { 0 } else { shared.tree.shape().chunks().div_ceil(FANOUT) };
        let copying = Arc::new(Copying { next: AtomicU64::new(0), left: AtomicU64::new(nodes), nodes });
        if nodes == 0 {
            let _ = reports.send(Input::Worker(Report::CopyDone));
        }
        let mut workers = Self {
            jobs: Some(jobs),
            journal: Some(journal_entry.clone()),
            threads: Vec::new(),
            journal_writer: None,
        };
        let teller = Teller { shared: Arc::clone(shared), reports: reports.clone() };
        let writer = JournalWriter { teller: teller.clone(), batch: Batch::default() };
        workers.journal_writer = Some(spawn("journal", move || writer.run(&runs)).map_err(no_thread)?);
        for _ in 0..threads {
            let entry = journal_entry.clone();
            let written = move |first, count| {
                let _ = entry.send((first, count));
            };
            let worker = Worker {
                teller: teller.clone(),
                copying: Arc::clone(&copying),
                hand: Hand::new(Arc::clone(shared), written),
            };
            let queue = queue.clone();
            workers.threads.push(spawn("worker", move || worker.run(&queue)).map_err(no_thread)?);
        }
        Ok(workers)
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

/// A thread's way to the driver. One that panics says so: the driver must not wait for it.
#[derive(Clone)]
struct Teller {
    shared: Arc<Shared>,
    reports: Sender<Input>,
}

impl Teller {
    fn report(&self, report: Report) {
        let _ = self.reports.send(Input::Worker(report));
    }

    fn fatal(&self, failure: Failure) {
        self.shared.stop.request();
        self.report(Report::Fatal(failure));
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.fatal(Failure::new(FailureKind::Other, "a thread of the transfer failed"));
        }
    }
}

struct Worker<W> {
    teller: Teller,
    copying: Arc<Copying>,
    hand: Hand<W>,
}

impl<W: FnMut(u64, u64)> Worker<W> {
    fn run(mut self, queue: &Receiver<Job>) {
        loop {
            let outcome = match queue.try_recv() {
                Ok(job) => self.work(job),
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    let node = self.copying.next.fetch_add(1, Ordering::Relaxed);
                    if node < self.copying.nodes && !self.teller.shared.stop.is_requested() {
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
                self.teller.fatal(failure);
            }
        }
    }

    fn work(&mut self, job: Job) -> Result<()> {
        if !self.teller.shared.stop.is_requested() {
            let report = self.hand.work(job)?;
            self.teller.report(report);
        }
        Ok(())
    }

    fn copy_node(&mut self, node: u64) -> Result<()> {
        let missing = self.hand.copy_node(node)?;
        if !missing.is_empty() {
            self.teller.report(Report::Missing(missing));
        }
        if self.copying.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.teller.report(Report::CopyDone);
        }
        Ok(())
    }
}

/// Runs that are written and not yet in the journal. The time limit counts from the first of them: a slow line must not
/// put it off again with each.
#[derive(Default)]
struct Batch {
    runs: Vec<(u64, u64)>,
    bytes: u64,
    due: Option<Instant>,
}

impl Batch {
    fn push(&mut self, (first, count): (u64, u64), now: Instant) {
        self.runs.push((first, count));
        self.bytes += count * CHUNK_SIZE as u64;
        self.due.get_or_insert(now + JOURNAL_EVERY);
    }

    fn is_due(&self, now: Instant) -> bool {
        self.bytes >= JOURNAL_BYTES || self.due.is_some_and(|due| now >= due)
    }

    /// What is in it, sorted, neighbours joined.
    fn take(&mut self) -> Vec<(u64, u64)> {
        let Self { mut runs, .. } = std::mem::take(self);
        runs.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (first, count) in runs {
            match merged.last_mut() {
                Some(last) if last.0 + last.1 == first => last.1 += count,
                _ => merged.push((first, count)),
            }
        }
        merged
    }
}

struct JournalWriter {
    teller: Teller,
    batch: Batch,
}

impl JournalWriter {
    fn run(mut self, runs: &Receiver<(u64, u64)>) {
        loop {
            let next = match self.batch.due {
                Some(due) => runs.recv_deadline(due),
                None => runs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let is_over = matches!(next, Err(RecvTimeoutError::Disconnected));
            if let Ok(run) = next {
                self.batch.push(run, Instant::now());
            }
            if (is_over || self.batch.is_due(Instant::now())) && !self.batch.runs.is_empty() {
                let written = self.teller.shared.destination.journal(&self.batch.take());
                if let Err(failure) = written {
                    self.teller.fatal(failure);
                    // Keep receiving, so that no worker blocks on a full queue for ever.
                    runs.iter().for_each(drop);
                    return;
                }
            }
            if is_over {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At 6 MB/s something arrives every few milliseconds: the limit once began anew with each of them, and nothing was
    /// durable before 64 MiB had come.
    #[test]
    fn what_was_written_is_journaled_within_a_second_however_often_more_comes() {
        let began = Instant::now();
        let mut batch = Batch::default();
        for step in 0..100 {
            let now = began + Duration::from_millis(step * 10);
            assert!(!batch.is_due(now), "{step}");
            batch.push((step, 1), now);
        }
        assert!(batch.is_due(began + JOURNAL_EVERY));
        assert_eq!(batch.take(), [(0, 100)]);
        assert!(!batch.is_due(began + 10 * JOURNAL_EVERY), "nothing waits");
        batch.push((0, JOURNAL_BYTES / CHUNK_SIZE as u64 - 1), began);
        assert!(!batch.is_due(began));
        batch.push((5000, 1), began);
        assert!(batch.is_due(began), "much waits");
    }

    #[test]
    fn runs_are_sorted_and_joined() {
        let mut batch = Batch::default();
        for run in [(9, 1), (0, 2), (4, 4), (2, 2), (20, 1)] {
            batch.push(run, Instant::now());
        }
        assert_eq!(batch.take(), [(0, 8), (9, 1), (20, 1)]);
    }
}
