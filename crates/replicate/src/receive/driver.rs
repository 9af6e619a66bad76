//! The driver of a transfer: waits in one place for whatever happens next, and decides.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use goldwire_disk::{Access, BlockDevice, CreateOptions, ErrorKind, Format, OpenOptions};
use goldwire_stdx::{AlignedBuffer, Stop, Uuid, spawn_scoped, watched};
use goldwire_store::{
    BLOCKS_PER_CHUNK, BuildOptions, CHUNK_SIZE, FANOUT, Progress, Root, TreeFile, TreeGeometry, Version,
    build_tree, for_each_difference, keep_beside,
};

use super::Input;
use super::bitmap::Bitmap;
use super::chunks::ChunkPlan;
use super::client::{Client, Purpose};
use super::journal::Journal;
use super::plan::{Planner, is_same_node, pack_bytes};
use super::publish::{exists, publish};
use super::resolve::{Destination, resolve};
use super::seeds::{self, BlockIndex, Seed};
use super::shift::BlockHashes;
use super::walk::Walk;
use super::work::{State, WorkPlace};
use super::workers::{Job, Report, Shared, Tally, Workers};
use crate::connection::{Connection, SILENCE_MAX, lost};
use crate::failure::Result;
use crate::wire::{
    ANSWER_RAW_MAX, Counters, Event, Failure, FailureKind, Outcome, Phase, Plan, Request, TargetJob,
    WireFormat, unpack_answer,
};

/// How often progress is reported.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Rounds of reading back and fetching again what the medium did not keep.
const REPAIR_ROUNDS: usize = 2;

/// Receives the version of `job` over `connection`. `inputs` carries what the connection's reader and the threads that
/// `reports` feeds have to say; `emit` passes events to the control side.
///
/// # Errors
/// Whatever kept the version from being published. The work folder then holds what the next run continues from.
pub(crate) fn receive(
    job: &TargetJob,
    connection: Connection,
    inputs: &Receiver<Input>,
    reports: &Sender<Input>,
    emit: &(dyn Fn(Event) + Sync),
    stop: &Stop,
) -> Result<Outcome> {
    let version = Version::decode(&job.version).map_err(|error| Failure::of(FailureKind::Invalid, &error))?;
    let client = Client::new(connection, job.window_bytes.clamp(ANSWER_RAW_MAX as u64, 1 << 30));
    let driver = Driver { job, version, client, inputs, reports, emit, stop };
    driver.run()
}

struct Driver<'a> {
    job: &'a TargetJob,
    version: Version,
    client: Client,
    inputs: &'a Receiver<Input>,
    reports: &'a Sender<Input>,
    emit: &'a (dyn Fn(Event) + Sync),
    stop: &'a Stop,
}

impl Driver<'_> {
    fn run(self) -> Result<Outcome> {
        let destination = resolve(self.job)?;
        let shape = TreeGeometry::new(self.version.size)
            .ok_or_else(|| Failure::new(FailureKind::Invalid, "the disk is larger than 64 TiB"))?;
        // A plan changes nothing, so it claims nothing either.
        let place = if self.job.dry_run { None } else { Some(WorkPlace::claim(&destination.path)?) };
        let mut seeds = Vec::new();
        if destination.path.exists() {
            let existing = self.hashing(|stop, progress| Seed::open(&destination.path, stop, progress));
            match existing {
                Ok(existing) if self.is_same(&existing) => {
                    if let Some(place) = place {
                        // A signature or a note may be new even if the content is not.
                        if self.version.signer.is_some() {
                            let _ = keep_beside(&destination.path, &self.job.version);
                        }
                        place.clear();
                    }
                    return Ok(self.already_there(&destination));
                }
                _ if !self.job.replace => {
                    if let Some(place) = place {
                        place.release();
                    }
                    return Err(exists(&destination.path));
                }
                // What is replaced is the best seed as a rule, but has to show it like any other.
                Ok(existing) if self.job.find_seeds || !self.job.seeds.is_empty() => seeds.push(existing),
                Ok(_) => {}
                Err(failure) if failure.kind == FailureKind::Stopped => return Err(failure),
                // What is there is no disk, or a broken one; replacing it was asked for.
                Err(_) => {}
            }
        }
        for (place, seed) in self.job.seeds.iter().enumerate() {
            seeds.insert(place, self.hashing(|stop, progress| seeds::open_named(seed, stop, progress))?);
        }
        let named = self.job.seeds.len();
        if self.job.find_seeds {
            let (size, may_hash) = (self.version.size, seeds.is_empty());
            let path = &destination.path;
            seeds.extend(
                self.hashing(|stop, progress| Ok(seeds::find(path, size, may_hash, stop, progress)))?,
            );
        }
        self.check_stopped()?;
        match place {
            Some(place) => self.transfer(place, &destination, &shape, seeds, named),
            None => self.plan_only(&destination, &shape, seeds, named),
        }
    }

    fn is_same(&self, existing: &Seed) -> bool {
        existing.tree.top().is_ok_and(|top| existing.tree.shape().root(&top) == self.version.root)
    }

    fn already_there(&self, destination: &Destination) -> Outcome {
        let used = self.version.chunks_used;
        let counters = Counters { chunks_total: used, chunks_done: used, ..self.wire_counters() };
        let path = destination.path.display().to_string();
        Outcome { path, root: self.version.root.0, counters, already_there: true }
    }

    /// Runs something that hashes while telling how far it is.
    fn hashing<T: Send>(&self, work: impl FnOnce(&AtomicBool, &Progress) -> Result<T> + Send) -> Result<T> {
        let progress = Progress::default();
        self.watching(
            || work(self.stop.flag(), &progress),
            || {
                let done = progress.bytes_done.load(Ordering::Relaxed);
                (self.emit)(Event::Hashing { done, total: progress.bytes_total.load(Ordering::Relaxed) });
            },
        )
    }

    /// Runs `work` on a thread, calling `look` now and then, and noticing when it should stop.
    fn watching<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send, look: impl Fn()) -> Result<T> {
        let look = || {
            look();
            self.note_stop_requests();
        };
        watched(PROGRESS_EVERY, work, look).map_err(|error| Failure::io("start a thread", &error))?
    }

    /// Looks at what has come in while nothing was being waited for: only a stop can matter then.
    fn note_stop_requests(&self) {
        while let Ok(input) = self.inputs.try_recv() {
            if matches!(input, Input::Stop | Input::Ended(_)) {
                self.stop.request();
            }
        }
    }

    fn check_stopped(&self) -> Result<()> {
        if self.stop.is_requested() { Err(Failure::stopped()) } else { Ok(()) }
    }

    fn transfer(
        mut self,
        place: WorkPlace,
        destination: &Destination,
        shape: &TreeGeometry,
        mut seeds: Vec<Seed>,
        named: usize,
    ) -> Result<Outcome> {
        let state = State {
            layout: 1,
            root: self.version.root.0,
            size: self.version.size,
            created: self.version.created,
            format: destination.format,
        };
        let is_continued = place.prepare(&state)?;
        let previous = previous_attempt(&place);
        self.check_space(&place, destination, is_continued)?;
        place.record(&state)?;
        let tree = self.known_tree(&place, shape, &seeds)?;
        seeds::keep_best(&mut seeds, &tree, named);
        // Behind whole disks, which have an index of their blocks; but kept: it is the only copy of what it holds.
        seeds.extend(previous);
        let done = Bitmap::new(shape.chunks());
        let device = self.lay_out(&place, destination, &tree)?;
        let (journal, mut resumed) = place
            .folder()
            .open_or_create("journal", 0o600)
            .and_then(|file| Journal::open(file, self.version.root, &done))
            .map_err(|error| {
                Failure::io(format!("open the journal {}", place.shown("journal").display()), &error)
            })?;
        let mut shared = Shared {
            index: BlockIndex::for_first(&seeds)?,
            tree,
            device,
            seeds,
            done,
            tally: Tally::default(),
            stop: self.stop.clone(),
        };
        if is_continued {
            resumed += self.probe_unjournaled(&shared)?;
        }
        shared.tally.done = AtomicU64::new(resumed);
        let plan = self.plan(destination, &shared.tree, &shared.seeds, &shared.done, resumed)?;
        (self.emit)(Event::Planned(plan));
        let mut shared = Arc::new(shared);
        self.fetch(&shared, journal, resumed)?;
        self.confirm_source()?;
        let root = self.read_back(&place, destination, &mut shared, resumed)?;
        (self.emit)(Event::Phase(Phase::Publishing));
        let counters = self.counters(&shared, resumed);
        drop(shared);
        publish(place, &destination.path, disk_format(destination.format), &self.version, self.job)?;
        let path = destination.path.display().to_string();
        Ok(Outcome { path, root: root.0, counters, already_there: false })
    }

    fn plan_only(
        mut self,
        destination: &Destination,
        shape: &TreeGeometry,
        mut seeds: Vec<Seed>,
        named: usize,
    ) -> Result<Outcome> {
        let tree = TreeFile::unnamed(shape.clone())?;
        self.walk(&tree, &seeds)?;
        seeds::keep_best(&mut seeds, &tree, named);
        let done = Bitmap::new(shape.chunks());
        let mut plan = self.plan(destination, &tree, &seeds, &done, 0)?;
        plan.link_rate = self.measure_link()?;
        (self.emit)(Event::Planned(plan));
        let path = destination.path.display().to_string();
        let counters = Counters { chunks_total: self.version.chunks_used, ..self.wire_counters() };
        Ok(Outcome { path, root: self.version.root.0, counters, already_there: false })
    }

    /// Refuses before the first byte when the version cannot fit.
    fn check_space(&self, place: &WorkPlace, destination: &Destination, is_continued: bool) -> Result<()> {
        let free = free_bytes(&destination.path)?;
        let needed = self.bytes_needed(destination.format);
        // What an unfinished attempt occupies already does not count again.
        let have = if is_continued { allocated_bytes(place) } else { 0 };
        if needed.saturating_sub(have) <= free {
            return Ok(());
        }
        let text = format!(
            "{} needs {} more, but only {} are free there",
            destination.path.display(),
            goldwire_stdx::ByteSize(needed.saturating_sub(have)),
            goldwire_stdx::ByteSize(free),
        );
        Err(Failure::new(FailureKind::Space, text)
            .hint("free some space, or choose another target; nothing was sent"))
    }

    /// Upper bound of what the new file and its tree occupy.
    fn bytes_needed(&self, format: WireFormat) -> u64 {
        let chunks = self.version.chunks_used;
        let data = chunks.saturating_mul(CHUNK_SIZE as u64);
        let tables = match format {
            WireFormat::Raw => 0,
            // Sector bitmaps, block tables, their alignment.
            _ => chunks.saturating_mul(4096).min(self.version.size / 64) + (1 << 20),
        };
        // The tree beside it: ids and fingerprints, 160 bytes a chunk, by whole pages.
        data.saturating_add(tables).saturating_add(chunks.saturating_mul(200)).saturating_add(1 << 16)
    }

    /// The version's tree: from an earlier attempt, or walked.
    fn known_tree(&mut self, place: &WorkPlace, shape: &TreeGeometry, seeds: &[Seed]) -> Result<TreeFile> {
        if let Ok(tree) = TreeFile::open(place.folder(), "tree", shape.size())
            && tree.verify(&self.version.root).is_ok()
        {
            return Ok(tree);
        }
        let tree = TreeFile::create(place.folder(), "tree", shape.clone())?;
        self.walk(&tree, seeds)?;
        tree.sync()?;
        Ok(tree)
    }

    fn walk(&mut self, tree: &TreeFile, seeds: &[Seed]) -> Result<()> {
        (self.emit)(Event::Phase(Phase::Comparing));
        let mut walk = Walk::new(tree, self.version.root, seeds.iter().map(|seed| &seed.tree).collect());
        while !walk.is_done() {
            while self.client.has_room() {
                let Some((request, length)) = walk.next_request() else { break };
                let Request::Nodes { indices, .. } = &request else { break };
                let purpose = Purpose::Nodes(indices.clone(), length);
                self.client.ask(&request, purpose, length as u64);
            }
            if walk.is_done() {
                break;
            }
            if let Some(Input::Frame(frame)) = self.wait()? {
                let (purpose, cost) = self.client.take(&frame)?;
                self.client.refund(cost);
                if let Purpose::Nodes(indices, length) = purpose {
                    walk.take(&indices, &unpack_answer(&frame.payload, length)?)?;
                }
            }
        }
        Ok(())
    }

    /// The next input; `None` when it is time to report progress.
    fn wait(&self) -> Result<Option<Input>> {
        match self.inputs.recv_timeout(PROGRESS_EVERY) {
            Ok(Input::Stop) => Err(Failure::stopped()),
            Ok(Input::Ended(error)) => Err(lost("source", error.as_ref())),
            Ok(Input::Worker(Report::Fatal(failure))) => Err(failure),
            Ok(input) => Ok(Some(input)),
            Err(RecvTimeoutError::Disconnected) => Err(lost("source", None)),
            Err(RecvTimeoutError::Timeout) => {
                self.check_stopped()?;
                Ok(None)
            }
        }
    }

    /// Opens the work file of an earlier attempt, or makes a new one with every block in its place: the layout
    /// follows from the tree alone, so it is the same at every target and after every interruption.
    fn lay_out(
        &self,
        place: &WorkPlace,
        destination: &Destination,
        tree: &TreeFile,
    ) -> Result<Arc<dyn BlockDevice>> {
        let folder = place.folder();
        let path = place.shown("disk");
        let format = disk_format(destination.format);
        if place.has("laid-out") {
            let options =
                OpenOptions { access: Access::Write, format: Some(format), ..OpenOptions::default() };
            let opened = folder
                .write_file("disk")
                .map_err(|error| Failure::io(format!("open {}", path.display()), &error));
            match opened.and_then(|file| Ok(goldwire_disk::open_file(file, &path, &options)?)) {
                Ok(image) => return Ok(image.device),
                Err(failure) => {
                    let text = format!(
                        "the unfinished work cannot be continued and begins anew: {}",
                        failure.report().line()
                    );
                    (self.emit)(Event::Notice(text));
                }
            }
        }
        let make = || -> io::Result<File> {
            for name in ["laid-out", "disk", "journal"] {
                folder.remove_file(name)?;
            }
            folder.create_new("disk", 0o600)
        };
        let file = make().map_err(|error| Failure::io(format!("make {}", path.display()), &error))?;
        let options = CreateOptions {
            format,
            size: self.version.size,
            uuid: uuid_of(&self.version.root),
            created: self.version.created,
        };
        let device = goldwire_disk::create_in(file, &path, &options).map_err(|error| match error.kind() {
            ErrorKind::Invalid => Failure::of(FailureKind::Invalid, &error)
                .hint("choose another container with --format, for example --format raw"),
            _ => error.into(),
        })?;
        let shape = tree.shape();
        let nodes = if shape.levels() == 1 { 1 } else { shape.count(1) };
        for node in 0..nodes {
            if shape.levels() > 1 && tree.id(1, node)?.is_zero() {
                continue;
            }
            let range = (node * FANOUT)..((node + 1) * FANOUT).min(shape.chunks());
            let mut first = range.start;
            for group in tree.ids(0, range)?.chunk_by(|a, b| a.is_zero() == b.is_zero()) {
                let last = first + group.len() as u64;
                if !group[0].is_zero() {
                    let guest = shape.chunk_range(first).start..shape.chunk_range(last - 1).end;
                    device.allocate(guest.start, guest.end - guest.start)?;
                }
                first = last;
            }
        }
        device.flush()?;
        folder
            .create_new("laid-out", 0o600)
            .and_then(|file| file.sync_all())
            .map_err(|error| Failure::io("mark the layout", &error))?;
        Ok(device)
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
                if node >= nodes || self.stop.is_requested() {
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
                    let guest = shape.chunk_range(index);
                    let length = (guest.end - guest.start) as usize;
                    chunk[length..].fill(0);
                    shared.device.read_at(&mut chunk[..length], guest.start)?;
                    if goldwire_store::ChunkId::of(&chunk) == id && shared.done.set(index) {
                        found.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        };
        self.watching(
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
            || (),
        )?;
        self.check_stopped()?;
        Ok(found.load(Ordering::Relaxed))
    }

    fn threads(&self) -> usize {
        let machine = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        self.job.threads.map_or(machine.min(8), |threads| usize::from(threads).clamp(1, 64))
    }

    fn plan(
        &self,
        destination: &Destination,
        tree: &TreeFile,
        seeds: &[Seed],
        done: &Bitmap,
        resumed: u64,
    ) -> Result<Plan> {
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
            path: destination.path.display().to_string(),
            chunks_used: self.version.chunks_used,
            chunks_resumed: resumed,
            chunks_seeded: seeded,
            chunks_missing: missing,
            bytes_free: free_bytes(&destination.path)?,
            bytes_needed: (seeded + missing) * CHUNK_SIZE as u64,
            seeds: seeds.iter().map(|seed| seed.name.clone()).collect(),
            link_rate: None,
        })
    }

    /// Moves everything into the work file.
    fn fetch(&mut self, shared: &Arc<Shared>, journal: Journal, resumed: u64) -> Result<()> {
        (self.emit)(Event::Phase(Phase::Transferring));
        let workers = Workers::start(shared, journal, self.threads(), self.reports)?;
        let mut planner = Planner::new(!shared.seeds.is_empty());
        let mut is_copied = false;
        let mut reported = Instant::now();
        loop {
            self.ask_more(&mut planner, shared)?;
            if is_copied && planner.is_finished() && self.client.is_idle() {
                break;
            }
            match self.wait()? {
                Some(Input::Frame(frame)) => self.dispatch(&frame, &workers)?,
                Some(Input::Worker(report)) => match report {
                    Report::Matched { order, plans } => {
                        let local = planner.matched(order, plans);
                        for plans in local.chunks(64) {
                            self.client.charge(1);
                            workers.submit(Job::Assemble { plans: plans.to_vec(), payload: None, cost: 1 });
                        }
                    }
                    Report::Assembled { failed, cost } => {
                        self.client.refund(cost);
                        self.retry(&mut planner, failed)?;
                    }
                    Report::Missing(chunks) => planner.again(chunks),
                    Report::CopyDone => is_copied = true,
                    Report::Fatal(failure) => return Err(failure),
                },
                _ => {}
            }
            if reported.elapsed() >= PROGRESS_EVERY {
                reported = Instant::now();
                (self.emit)(Event::Progress(self.counters(shared, resumed)));
            }
        }
        drop(workers);
        (self.emit)(Event::Progress(self.counters(shared, resumed)));
        // The journal_writer may have failed on its last entry.
        while let Ok(input) = self.inputs.try_recv() {
            match input {
                Input::Worker(Report::Fatal(failure)) => return Err(failure),
                Input::Stop => return Err(Failure::stopped()),
                Input::Ended(error) => return Err(lost("source", error.as_ref())),
                _ => {}
            }
        }
        Ok(())
    }

    fn ask_more(&mut self, planner: &mut Planner, shared: &Shared) -> Result<()> {
        let is_delta = !shared.seeds.is_empty();
        while self.client.has_room() {
            planner.scan(&shared.tree, &shared.seeds, &shared.done)?;
            if let Some(pack) = planner.next_pack() {
                let wants = pack.iter().map(|plan| (plan.index, plan.wanted())).collect();
                let cost = pack_bytes(&pack);
                self.client.ask(&Request::Blocks { wants, is_delta }, Purpose::Blocks(pack), cost);
            } else if let Some((chunks, order)) = planner.next_hashes() {
                let cost = (chunks.len() * BLOCKS_PER_CHUNK * BlockHashes::LENGTH) as u64;
                self.client.ask(
                    &Request::BlockHashes { chunks: chunks.clone() },
                    Purpose::Hashes(chunks, order),
                    cost,
                );
            } else {
                break;
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, frame: &crate::wire::Frame, workers: &Workers) -> Result<()> {
        let (purpose, cost) = self.client.take(frame)?;
        let payload = Arc::clone(&frame.payload);
        match purpose {
            Purpose::Hashes(chunks, order) => {
                self.client.refund(cost);
                workers.submit(Job::Match { order, chunks, payload });
            }
            Purpose::Blocks(plans) => workers.submit(Job::Assemble { plans, payload: Some(payload), cost }),
            Purpose::Nodes(..) | Purpose::Unchanged | Purpose::Probe => self.client.refund(cost),
        }
        Ok(())
    }

    /// A chunk that was put together wrongly is fetched whole; one that came whole and is still wrong means that
    /// the source does not hold what its tree says.
    fn retry(&mut self, planner: &mut Planner, failed: Vec<ChunkPlan>) -> Result<()> {
        if let Some(plan) = failed.iter().find(|plan| plan.wanted() == u16::MAX) {
            let index = plan.index;
            self.confirm_source()?;
            return Err(Failure::new(
                FailureKind::SourceChanged,
                format!("the source's bytes at {} do not have the digest that its tree gives", index * CHUNK_SIZE as u64),
            )
            .hint("delete the .goldwire folder beside the source image and try again; if it repeats, check that machine's memory and disk"));
        }
        planner.again(failed.into_iter().map(|plan| plan.index));
        Ok(())
    }

    /// Asks the source whether it is still what it was.
    fn confirm_source(&mut self) -> Result<()> {
        self.client.ask(&Request::Unchanged, Purpose::Unchanged, 0);
        let asked = Instant::now();
        loop {
            if let Some(Input::Frame(frame)) = self.wait()? {
                let (purpose, cost) = self.client.take(&frame)?;
                self.client.refund(cost);
                if matches!(purpose, Purpose::Unchanged) {
                    return Ok(());
                }
            }
            if asked.elapsed() > SILENCE_MAX {
                return Err(lost("source", None));
            }
        }
    }

    /// Reads the whole work file back, from the medium where the page cache can be dropped, and compares roots.
    /// What the medium did not keep is fetched again.
    fn read_back(
        &mut self,
        place: &WorkPlace,
        destination: &Destination,
        shared: &mut Arc<Shared>,
        resumed: u64,
    ) -> Result<Root> {
        for round in 0..=REPAIR_ROUNDS {
            (self.emit)(Event::Phase(Phase::Verifying));
            shared.device.flush()?;
            let path = place.shown("disk");
            let file = place
                .folder()
                .read_file("disk")
                .map_err(|error| Failure::io(format!("open {}", path.display()), &error))?;
            drop_page_cache(&file);
            // A fresh open: what is verified is what a reader of the finished file will see, tables included.
            // By its known format: a raw disk may begin like anything.
            let format = Some(disk_format(destination.format));
            let image =
                goldwire_disk::open_file(file, &path, &OpenOptions { format, ..OpenOptions::default() })?;
            let tree = TreeFile::create(place.folder(), "readback", shared.tree.shape().clone())?;
            let progress = Progress::default();
            let threads = std::num::NonZeroUsize::new(self.threads());
            let (root, _) = self.watching(
                || {
                    let options = BuildOptions { threads, stop: self.stop.flag(), progress: &progress };
                    Ok(build_tree(image.device.as_ref(), &tree, &options)?)
                },
                || {
                    let bytes_verified = progress.bytes_done.load(Ordering::Relaxed);
                    (self.emit)(Event::Progress(Counters {
                        bytes_verified,
                        ..self.counters(shared, resumed)
                    }));
                },
            )?;
            if root == self.version.root && image.device.size() == self.version.size {
                return Ok(root);
            }
            if round == REPAIR_ROUNDS {
                break;
            }
            let mut bad = Vec::new();
            for_each_difference(&shared.tree, &tree, |chunk| bad.push(chunk))?;
            (self.emit)(Event::Notice(format!("{} chunks read back wrong; fetching them again", bad.len())));
            self.repair(shared, bad)?;
        }
        Err(Failure::new(
            FailureKind::Other,
            format!("{} reads back other bytes than were written", place.shown("disk").display()),
        )
        .hint("the target's medium or memory is failing; nothing was published"))
    }

    /// Fetches chunks whole, one pack at a time, and writes them over whatever is there.
    fn repair(&mut self, shared: &Shared, chunks: Vec<u64>) -> Result<()> {
        for pack in chunks.chunks(16) {
            let wants: Vec<(u64, u16)> = pack.iter().map(|index| (*index, u16::MAX)).collect();
            let plans = pack.iter().map(|index| ChunkPlan::whole(*index)).collect();
            self.client.ask(&Request::Blocks { wants, is_delta: true }, Purpose::Blocks(plans), 0);
            loop {
                let Some(Input::Frame(frame)) = self.wait()? else { continue };
                let (Purpose::Blocks(_), _) = self.client.take(&frame)? else { continue };
                let bytes = unpack_answer(&frame.payload, pack.len() * CHUNK_SIZE)?;
                for (index, chunk) in pack.iter().zip(bytes.chunks_exact(CHUNK_SIZE)) {
                    let guest = shared.tree.shape().chunk_range(*index);
                    shared.device.write_at(&chunk[..(guest.end - guest.start) as usize], guest.start)?;
                }
                break;
            }
        }
        Ok(())
    }

    /// Times an incompressible answer. None when it was too quick to tell.
    fn measure_link(&mut self) -> Result<Option<u64>> {
        const BYTES: u32 = 1 << 20;
        // The first round warms the connection up; the second is timed.
        let mut rate = None;
        for bytes in [4096, BYTES] {
            let started = Instant::now();
            self.client.ask(&Request::Probe { bytes }, Purpose::Probe, 0);
            while !self.client.is_idle() {
                if let Some(Input::Frame(frame)) = self.wait()? {
                    self.client.take(&frame)?;
                }
            }
            rate = Some((f64::from(bytes) / started.elapsed().as_secs_f64().max(1e-6)) as u64);
        }
        Ok(rate)
    }

    fn wire_counters(&self) -> Counters {
        let stats = &self.client.connection().stats;
        Counters {
            wire_in: stats.bytes_in.load(Ordering::Relaxed),
            wire_out: stats.bytes_out.load(Ordering::Relaxed),
            ..Counters::default()
        }
    }

    fn counters(&self, shared: &Shared, resumed: u64) -> Counters {
        let tally = &shared.tally;
        Counters {
            chunks_total: self.version.chunks_used,
            chunks_done: tally.done.load(Ordering::Relaxed),
            chunks_resumed: resumed,
            chunks_seeded: tally.seeded.load(Ordering::Relaxed),
            chunks_received: tally.received.load(Ordering::Relaxed),
            blocks_found: tally.blocks_found.load(Ordering::Relaxed),
            blocks_received: tally.blocks_received.load(Ordering::Relaxed),
            bytes_verified: 0,
            ..self.wire_counters()
        }
    }
}

/// An unfinished attempt at another version, as a seed.
fn previous_attempt(place: &WorkPlace) -> Option<Seed> {
    let (folder, state) = place.previous()?;
    let options = OpenOptions { format: Some(disk_format(state.format)), ..OpenOptions::default() };
    let file = folder.read_file("disk").ok()?;
    let image = goldwire_disk::open_file(file, &folder.path().join("disk"), &options).ok()?;
    let tree = TreeFile::open(&folder, "tree", state.size).ok()?;
    let root = Root(state.root);
    tree.verify(&root).ok()?;
    let present = Bitmap::new(tree.shape().chunks());
    let chunks = Journal::load(&folder.read_file("journal").ok()?, &root, &present).ok()?;
    (chunks > 0).then(|| Seed {
        image,
        tree,
        name: "an unfinished earlier sync".into(),
        present: Some(present),
    })
}

fn disk_format(format: WireFormat) -> Format {
    match format {
        WireFormat::Raw => Format::Raw,
        WireFormat::VhdFixed => Format::VhdFixed,
        WireFormat::VhdDynamic => Format::VhdDynamic,
        WireFormat::Qcow2 => Format::Qcow2,
    }
}

/// The container's uuid, from the content, so that the same version is the same file at every site: version 8 of
/// RFC 9562 (custom), section 5.8.
pub(crate) fn uuid_of(root: &Root) -> Uuid {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&root.0[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Uuid(uuid)
}

/// Bytes that this process may still write to the file system of `path`'s folder.
fn free_bytes(path: &Path) -> Result<u64> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(folder).map_err(|error| {
        Failure::io(format!("ask for the free space of {}", folder.display()), &error.into())
    })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn allocated_bytes(place: &WorkPlace) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let data = place.folder().read_file("disk").and_then(|file| file.metadata());
    data.map_or(0, |data| data.blocks() * 512)
}

/// Drops the file's clean pages, so that reading it asks the medium. A file system without a medium below
/// (tmpfs) ignores it.
fn drop_page_cache(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}
