//! The driver of a reception: owns the threads, the connection and the clock, does the machine's tasks, and waits in one
//! place for whatever happens next.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use goldwire_stdx::{AlignedBuffer, Stop, spawn_scoped, watched};
use goldwire_store::{
    BuildOptions, CHUNK_SIZE, ChunkId, FANOUT, Progress, TreeFile, Version, for_each_difference,
};

use super::Input;
use super::bitmap::Bitmap;
use super::destination::Destination;
use super::hand::{Shared, Tally};
use super::machine::{Finished, Known, Machine, Output, Task};
use super::plan::is_same_node;
use super::seeds::{self, BlockIndex, Seed};
use super::workers::{Report, Workers};
use crate::connection::{Connection, lost};
use crate::failure::Result;
use crate::wire::{Counters, Event, Failure, FailureKind, Outcome, Plan};

/// How often progress is reported.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// What the rest of the process has to say and hear while a reception runs.
pub(crate) struct Watch<'a> {
    /// What the connection's reader and the threads that feed `reports` have to say.
    pub(crate) inputs: &'a Receiver<Input>,
    /// The other end of `inputs`.
    pub(crate) reports: &'a Sender<Input>,
    /// Passes events to the control side.
    pub(crate) emit: &'a (dyn Fn(Event) + Sync),
    /// Ends the reception.
    pub(crate) stop: &'a Stop,
    /// What threads of `watching` have to say, which have no other way.
    pub(crate) told: Told,
}

/// What is told from where nothing can be emitted.
pub(crate) type Told = Arc<Mutex<Vec<String>>>;

impl Watch<'_> {
    /// Runs something that hashes while telling how far it is.
    pub(crate) fn hashing<T: Send>(
        &self,
        work: impl FnOnce(&Stop, &Progress) -> Result<T> + Send,
    ) -> Result<T> {
        let progress = Progress::default();
        self.watching(
            || work(self.stop, &progress),
            || {
                let done = progress.bytes_done.load(Ordering::Relaxed);
                (self.emit)(Event::Hashing { done, total: progress.bytes_total.load(Ordering::Relaxed) });
            },
        )
    }

    /// Runs `work` on a thread, calling `look` now and then, and noticing when it should stop.
    pub(crate) fn watching<T: Send>(
        &self,
        work: impl FnOnce() -> Result<T> + Send,
        look: impl Fn(),
    ) -> Result<T> {
        let look = || {
            look();
            let told = std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner));
            told.into_iter().for_each(|text| (self.emit)(Event::Notice(text)));
            self.note_stop_requests();
        };
        watched(PROGRESS_EVERY, work, look).map_err(|error| Failure::io("start a thread", &error))?
    }

    /// Tries `claim` again and again while somebody else holds the target, for `most` at most.
    pub(crate) fn when_free<T>(&self, most: Duration, claim: impl Fn() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let mut is_told = false;
        loop {
            match claim() {
                Err(failure) if failure.kind == FailureKind::Busy && began.elapsed() < most => {
                    (self.emit)(Event::Waiting);
                    if !std::mem::replace(&mut is_told, true) {
                        (self.emit)(Event::Notice(format!("waiting: {}", failure.chain.join(": "))));
                    }
                }
                other => return other,
            }
            self.stop.wait(PROGRESS_EVERY);
            self.note_stop_requests();
            self.check_stopped()?;
        }
    }

    /// Looks at what has come in while nothing was being waited for: only a stop can matter then.
    fn note_stop_requests(&self) {
        while let Ok(input) = self.inputs.try_recv() {
            if matches!(input, Input::Stop | Input::Ended(_)) {
                self.stop.request();
            }
        }
    }

    pub(crate) fn check_stopped(&self) -> Result<()> {
        if self.stop.is_requested() { Err(Failure::stopped()) } else { Ok(()) }
    }

    /// The next input; `None` when it is time to report progress.
    fn wait(&self) -> Result<Option<Input>> {
        match self.inputs.recv_timeout(PROGRESS_EVERY) {
            Ok(Input::Stop) => Err(Failure::stopped()),
            Ok(Input::Ended(error)) => Err(lost("the source", error.as_ref())),
            Ok(input) => Ok(Some(input)),
            Err(RecvTimeoutError::Disconnected) => Err(lost("the source", None)),
            Err(RecvTimeoutError::Timeout) => {
                self.check_stopped()?;
                Ok(None)
            }
        }
    }
}

/// A reception under way.
pub(crate) struct Driver<'a> {
    pub(crate) watch: Watch<'a>,
    pub(crate) connection: Connection,
    pub(crate) version: &'a Version,
    /// `None` when only a plan is asked for.
    pub(crate) destination: Option<Arc<dyn Destination>>,
    /// The destination as people call it, and the bytes that it has free.
    pub(crate) place: (String, u64),
    /// How many of the seeds the user named: they come first.
    pub(crate) named: usize,
    /// What an unfinished attempt at another version left.
    pub(crate) previous: Option<Seed>,
    /// What a plan counts as kept by an unfinished attempt at this version, and how many chunks that are.
    pub(crate) kept: Option<(Bitmap, u64)>,
    /// Threads to use, if the user says.
    pub(crate) threads: Option<u16>,
}

/// What comes into being while the machine runs.
#[derive(Default)]
struct Running {
    shared: Option<Arc<Shared>>,
    workers: Option<Workers>,
    plan: Option<Plan>,
    /// Chunks that an earlier attempt left.
    resumed: u64,
    nodes_received: u64,
    bytes_laid_out: u64,
    /// Of the finished disk.
    bytes_verified: u64,
}

impl Driver<'_> {
    /// Runs the machine to its end.
    pub(crate) fn run(mut self, mut machine: Machine) -> Result<Outcome> {
        let mut running = Running::default();
        let mut reported = Instant::now();
        loop {
            while let Some(output) = machine.poll_output(Instant::now())? {
                match output {
                    Output::Request(frame, answer_max) => self.connection.ask(frame, answer_max),
                    Output::Job(job) => {
                        if let Some(workers) = &running.workers {
                            workers.submit(job);
                        }
                    }
                    Output::Event(event) => (self.watch.emit)(event),
                    Output::Task(task) => {
                        let finished = self.perform(task, &mut running)?;
                        machine.handle_finished(finished, Instant::now())?;
                    }
                }
            }
            if let Some(root) = machine.ended() {
                if let Some(mut plan) = running.plan.take() {
                    plan.link_rate = machine.link_rate();
                    (self.watch.emit)(Event::Planned(plan));
                }
                let counters = self.counters(&running);
                return Ok(Outcome { path: self.place.0, root: root.0, counters, already_there: false });
            }
            match self.watch.wait()? {
                Some(Input::Frame(frame)) => machine.handle_frame(&frame, Instant::now())?,
                Some(Input::Worker(report)) => machine.handle_report(report, Instant::now())?,
                Some(Input::Stop | Input::Ended(_)) | None => {}
            }
            machine.handle_timeout(Instant::now())?;
            running.nodes_received = machine.nodes_received();
            if reported.elapsed() >= PROGRESS_EVERY {
                reported = Instant::now();
                (self.watch.emit)(Event::Progress(self.counters(&running)));
            }
        }
    }

    fn perform(&mut self, task: Task, running: &mut Running) -> Result<Finished> {
        match (task, self.destination.clone(), &running.shared) {
            (Task::LayOut(known), Some(destination), _) => {
                let shared = self.lay_out(known, destination, running)?;
                running.workers = Some(Workers::start(&shared, self.threads(), self.watch.reports)?);
                running.shared = Some(Arc::clone(&shared));
                Ok(Finished::LaidOut(shared))
            }
            (Task::Settle, ..) => {
                running.workers = None;
                (self.watch.emit)(Event::Progress(self.counters(running)));
                // The journal may have failed on its last entry.
                while let Ok(input) = self.watch.inputs.try_recv() {
                    match input {
                        Input::Worker(Report::Fatal(failure)) => return Err(failure),
                        Input::Stop => return Err(Failure::stopped()),
                        Input::Ended(error) => return Err(lost("the source", error.as_ref())),
                        _ => {}
                    }
                }
                Ok(Finished::Settled)
            }
            (Task::ReadBack, Some(destination), Some(shared)) => {
                let shared = Arc::clone(shared);
                self.read_back(destination.as_ref(), &shared, running)
            }
            (Task::Overwrite(chunks), Some(destination), _) => {
                chunks.iter().try_for_each(|(first, bytes)| destination.overwrite(*first, bytes))?;
                Ok(Finished::Overwritten)
            }
            (Task::Publish, Some(destination), _) => {
                self.watch.check_stopped()?;
                // Other writers may be waited for.
                if let Some(notice) = self.watch.watching(|| destination.publish(), || ())? {
                    (self.watch.emit)(Event::Notice(notice));
                }
                Ok(Finished::Published)
            }
            (Task::Plan(Known { tree, mut seeds }), ..) => {
                seeds::keep_best(&mut seeds, &tree, self.named);
                seeds.extend(self.previous.take());
                let nothing = || (Bitmap::new(tree.shape().chunks()), 0);
                let (done, kept) = self.kept.take().unwrap_or_else(nothing);
                running.plan = Some(self.plan(&tree, &seeds, &done, kept)?);
                Ok(Finished::Planned)
            }
            (Task::LayOut(_) | Task::ReadBack | Task::Overwrite(_) | Task::Publish, ..) => {
                Err(Failure::new(FailureKind::Other, "a plan has no destination"))
            }
        }
    }

    /// Lays the destination out, finds what is there already and says what will be done.
    fn lay_out(
        &mut self,
        known: Known,
        destination: Arc<dyn Destination>,
        running: &mut Running,
    ) -> Result<Arc<Shared>> {
        let Known { tree, mut seeds } = known;
        tree.sync()?;
        seeds::keep_best(&mut seeds, &tree, self.named);
        // Behind whole disks, which have an index of their blocks; but kept: it is the only copy of what it holds.
        seeds.extend(self.previous.take());
        let done = Bitmap::new(tree.shape().chunks());
        let progress = Progress::default();
        let options = BuildOptions { threads: None, stop: self.watch.stop.flag(), progress: &progress };
        let bytes_laid_out = || progress.bytes_done.load(Ordering::Relaxed);
        let laid_out = self.watch.watching(
            || destination.lay_out(&tree, &done, &options),
            || {
                let counters = Counters { bytes_laid_out: bytes_laid_out(), ..self.counters(running) };
                (self.watch.emit)(Event::Progress(counters));
            },
        )?;
        self.watch.check_stopped()?;
        running.bytes_laid_out = bytes_laid_out();
        if let Some(notice) = laid_out.notice {
            (self.watch.emit)(Event::Notice(notice));
        }
        let mut shared = Shared {
            index: BlockIndex::for_first(&seeds)?,
            tree,
            destination,
            seeds,
            done,
            tally: Tally::default(),
            stop: self.watch.stop.clone(),
        };
        running.resumed = laid_out.resumed;
        if laid_out.is_continued {
            running.resumed += self.probe_unjournaled(&shared)?;
        }
        shared.tally.done = AtomicU64::new(running.resumed);
        let plan = self.plan(&shared.tree, &shared.seeds, &shared.done, running.resumed)?;
        (self.watch.emit)(Event::Planned(plan));
        Ok(Arc::new(shared))
    }

    /// Finds chunks that a killed run wrote after its last journal entry: whatever is there and has its digest
    /// need not be sent again.
    fn probe_unjournaled(&self, shared: &Shared) -> Result<u64> {
        let shape = shared.tree.shape();
        let nodes = shape.chunks().div_ceil(FANOUT);
        let next = AtomicU64::new(0);
        let found = AtomicU64::new(0);
        let worker = || -> Result<()> {
            let mut chunk = AlignedBuffer::zeroed(CHUNK_SIZE);
            loop {
                let node = next.fetch_add(1, Ordering::Relaxed);
                if node >= nodes || self.watch.stop.is_requested() {
                    return Ok(());
                }
                if shape.levels() > 1 && shared.tree.id(1, node)?.is_zero() {
                    continue;
                }
                let range = (node * FANOUT)..((node + 1) * FANOUT).min(shape.chunks());
                for (index, id) in range.clone().zip(shared.tree.ids(0, range)?) {
                    if id.is_zero() || shared.done.get(index) {
                        continue;
                    }
                    shared.destination.read(index, &mut chunk)?;
                    if ChunkId::of(&chunk) == id && shared.done.set(index) {
                        found.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        };
        self.watch.watching(
            || {
                std::thread::scope(|scope| {
                    let threads: Vec<_> =
                        (0..self.threads()).map(|_| spawn_scoped(scope, "probe", worker)).collect();
                    threads.into_iter().try_for_each(|thread| match thread {
                        Ok(thread) => thread.join().unwrap_or_else(|_| Err(Failure::stopped())),
                        Err(error) => Err(Failure::io("start a thread", &error)),
                    })
                })
            },
            || {
                let bytes = |nodes: u64| nodes * FANOUT * CHUNK_SIZE as u64;
                let done = bytes(next.load(Ordering::Relaxed).min(nodes));
                (self.watch.emit)(Event::Hashing { done, total: bytes(nodes) });
            },
        )?;
        self.watch.check_stopped()?;
        Ok(found.load(Ordering::Relaxed))
    }

    fn read_back(
        &self,
        destination: &dyn Destination,
        shared: &Shared,
        running: &mut Running,
    ) -> Result<Finished> {
        let progress = Progress::default();
        let threads = std::num::NonZeroUsize::new(self.threads());
        let read = self.watch.watching(
            || {
                let options = BuildOptions { threads, stop: self.watch.stop.flag(), progress: &progress };
                destination.read_back(&options)
            },
            || {
                let bytes_verified = progress.bytes_done.load(Ordering::Relaxed);
                (self.watch.emit)(Event::Progress(Counters { bytes_verified, ..self.counters(running) }));
            },
        )?;
        running.bytes_verified = progress.bytes_done.load(Ordering::Relaxed);
        let mut wrong = Vec::new();
        if read.root != self.version.root {
            for_each_difference(&shared.tree, &read.tree, |chunk| wrong.push(chunk))?;
        }
        Ok(Finished::ReadBack { root: read.root, wrong })
    }

    fn threads(&self) -> usize {
        let machine = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        self.threads.map_or(machine.min(8), |threads| usize::from(threads).clamp(1, 64))
    }

    fn plan(&self, tree: &TreeFile, seeds: &[Seed], done: &Bitmap, resumed: u64) -> Result<Plan> {
        let shape = tree.shape();
        let (mut seeded, mut missing) = (0, 0);
        for node in 0..shape.chunks().div_ceil(FANOUT) {
            if shape.levels() > 1 && tree.id(1, node)?.is_zero() {
                continue;
            }
            let range = (node * FANOUT)..((node + 1) * FANOUT).min(shape.chunks());
            let is_same = is_same_node(tree, seeds, node)?;
            let ids = tree.ids(0, range.clone())?;
            let owners = seeds::owners(seeds, range.clone(), &ids);
            for (index, (id, owner)) in range.zip(ids.iter().zip(owners)) {
                if id.is_zero() || done.get(index) {
                    continue;
                }
                if is_same || owner.is_some() {
                    seeded += 1;
                } else {
                    missing += 1;
                }
            }
        }
        Ok(Plan {
            path: self.place.0.clone(),
            chunks_used: self.version.chunks_used,
            chunks_resumed: resumed,
            chunks_seeded: seeded,
            chunks_missing: missing,
            bytes_free: self.place.1,
            bytes_needed: (seeded + missing) * CHUNK_SIZE as u64,
            seeds: seeds.iter().map(|seed| seed.name.clone()).collect(),
            link_rate: None,
        })
    }

    fn counters(&self, running: &Running) -> Counters {
        let wire = wire_counters(&self.connection);
        let base = Counters {
            chunks_total: self.version.chunks_used,
            nodes_received: running.nodes_received,
            bytes_laid_out: running.bytes_laid_out,
            bytes_verified: running.bytes_verified,
            ..wire
        };
        let Some(shared) = &running.shared else { return base };
        let tally = &shared.tally;
        Counters {
            chunks_done: tally.done.load(Ordering::Relaxed),
            chunks_resumed: running.resumed,
            chunks_seeded: tally.seeded.load(Ordering::Relaxed),
            chunks_received: tally.received.load(Ordering::Relaxed),
            blocks_found: tally.blocks_found.load(Ordering::Relaxed),
            blocks_received: tally.blocks_received.load(Ordering::Relaxed),
            ..base
        }
    }
}

/// What a connection has carried.
pub(crate) fn wire_counters(connection: &Connection) -> Counters {
    Counters {
        wire_in: connection.stats.bytes_in.load(Ordering::Relaxed),
        wire_out: connection.stats.bytes_out.load(Ordering::Relaxed),
        ..Counters::default()
    }
}
