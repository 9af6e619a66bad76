//! Receptions in one thread, every choice of order from a seed: answers come in any order, workers and the copying from
//! seeds take turns, and a run is killed after any number of steps.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use goldwire_stdx::testing::cases;
use goldwire_stdx::{AlignedBuffer, Stop};
use goldwire_store::{CHUNK_SIZE, ChunkId, FANOUT, Progress, for_each_difference};
use proptest::prelude::*;

use super::bitmap::Bitmap;
use super::destination::Destination;
use super::hand::{Hand, Shared, Tally};
use super::machine::{Finished, Goal, Known, Machine, Output, Task};
use super::seeds::{self, BlockIndex, Seed};
use super::workers::{Job, Report};
use crate::connection::SILENCE_MAX;
use crate::failure::Result;
use crate::source::Answerer;
use crate::testing::{Disk, MemDestination, Random, change, content};
use crate::wire::{Event, Failure, FailureKind, Frame, Kind, Request, pack_answer, unpack_answer};

/// What a source does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing.
    None,
    /// One answer has a flipped bit in its content.
    Flip,
    /// One answer is cut.
    Cut,
    /// One answer says that it is longer or shorter than was asked for.
    Length,
    /// One request is refused.
    Refuse,
    /// One answer bears another id.
    Id,
    /// One answer comes twice.
    Twice,
    /// From some answer on it says nothing, and lets the time pass.
    Silent,
    /// One answer is that to another request.
    Swap,
}

/// Takes runs that are written.
type Note = Box<dyn FnMut(u64, u64)>;

/// One run of a reception.
struct Run {
    random: Random,
    now: Instant,
    machine: Machine,
    destination: Arc<MemDestination>,
    /// Asked and not yet answered.
    asked: Vec<Frame>,
    jobs: Vec<Job>,
    hand: Option<Hand<Note>>,
    /// Written and not yet journaled.
    written: Rc<RefCell<Vec<(u64, u64)>>>,
    /// The nodes to copy from seeds; `None` before the layout and after the last one.
    nodes: Option<std::ops::Range<u64>>,
    shared: Option<Arc<Shared>>,
    events: Vec<Event>,
    /// Requests in all, in order.
    requests: Vec<Request>,
    fault: Fault,
    /// The answer at which the fault shows.
    fault_at: usize,
    answers: usize,
    resumed: u64,
}

impl Run {
    fn new(disk: &Disk, destination: &Arc<MemDestination>, seeds: Vec<Seed>, goal: Goal, seed: u64) -> Self {
        let window = 1 << (20 + seed % 5);
        let tree = destination.tree().unwrap();
        Self {
            random: Random::new(seed),
            now: Instant::now(),
            machine: Machine::new(&disk.version, goal, window, tree, seeds),
            destination: Arc::clone(destination),
            asked: Vec::new(),
            jobs: Vec::new(),
            hand: None,
            written: Rc::default(),
            nodes: None,
            shared: None,
            events: Vec::new(),
            requests: Vec::new(),
            fault: Fault::None,
            fault_at: 0,
            answers: 0,
            resumed: 0,
        }
    }

    /// Runs to the end, or for so many steps: then it is as if killed.
    fn run(&mut self, source: &mut Answerer, steps: usize) -> Result<Option<goldwire_store::Root>> {
        for _ in 0..steps {
            while let Some(output) = self.machine.poll_output(self.now)? {
                match output {
                    Output::Request(frame, _) => {
                        self.requests.push(frame.message("request").unwrap());
                        self.asked.push(frame);
                    }
                    Output::Job(job) => self.jobs.push(job),
                    Output::Event(event) => self.events.push(event),
                    Output::Task(task) => {
                        let finished = self.perform(task)?;
                        self.machine.handle_finished(finished, self.now)?;
                    }
                }
            }
            if let Some(root) = self.machine.ended() {
                return Ok(Some(root));
            }
            self.step(source)?;
        }
        Ok(None)
    }

    /// One thing happens, whichever.
    fn step(&mut self, source: &mut Answerer) -> Result<()> {
        self.now += Duration::from_millis(self.random.below(20));
        self.machine.handle_timeout(self.now)?;
        let is_silent = self.fault == Fault::Silent && self.answers >= self.fault_at;
        if is_silent && self.jobs.is_empty() && self.nodes.is_none() {
            assert!(!self.asked.is_empty(), "waits for nothing");
            self.now += SILENCE_MAX;
            self.machine.handle_timeout(self.now)?;
            // Whoever owns the connection sees that nothing comes.
            return Err(crate::connection::lost("the source", None));
        }
        match self.random.below(4) {
            0 if !self.asked.is_empty() && !is_silent => {
                let at = self.random.below(self.asked.len() as u64) as usize;
                let request = self.asked.swap_remove(at);
                let frames = self.answer(source, &request);
                frames.iter().try_for_each(|frame| self.machine.handle_frame(frame, self.now))
            }
            1 if !self.jobs.is_empty() => {
                let job = self.jobs.swap_remove(self.random.below(self.jobs.len() as u64) as usize);
                let report = self.hand.as_mut().unwrap().work(job)?;
                self.machine.handle_report(report, self.now)
            }
            2 => match self.nodes.as_mut().map(Iterator::next) {
                Some(Some(node)) => {
                    let missing = self.hand.as_mut().unwrap().copy_node(node)?;
                    self.machine.handle_report(Report::Missing(missing), self.now)
                }
                Some(None) => {
                    self.nodes = None;
                    self.machine.handle_report(Report::CopyDone, self.now)
                }
                None => Ok(()),
            },
            3 if self.random.chance(20) => self.journal(),
            _ => Ok(()),
        }
    }

    fn journal(&mut self) -> Result<()> {
        let runs: Vec<_> = self.written.borrow_mut().drain(..).collect();
        if runs.is_empty() { Ok(()) } else { self.destination.journal(&runs) }
    }

    fn answer(&mut self, source: &mut Answerer, request: &Frame) -> Vec<Frame> {
        let is_due = self.answers == self.fault_at;
        self.answers += 1;
        let answer = source.answer(&request.payload);
        let frame = |kind, id, payload: Vec<u8>| Frame {
            kind,
            stream: 0,
            id,
            payload: Arc::new(AlignedBuffer::from(payload)),
        };
        let mut payload = match answer {
            Ok(payload) => {
                let asked: Request = request.message("request").unwrap();
                assert!(payload.len() <= asked.answer_max() as usize, "{asked:?}");
                payload
            }
            Err(failure) => return vec![Frame::of(Kind::Refusal, 0, request.id, &failure)],
        };
        let fault = if is_due { self.fault } else { Fault::None };
        match fault {
            Fault::None | Fault::Silent => {}
            Fault::Refuse => {
                let failure = Failure::new(FailureKind::SourceChanged, "changed");
                return vec![Frame::of(Kind::Refusal, 0, request.id, &failure)];
            }
            Fault::Flip => {
                let length = u32::from_le_bytes(payload[4..8].try_into().unwrap()) as usize;
                let mut raw = unpack_answer(&payload, length).unwrap();
                if raw.is_empty() {
                    payload.push(1);
                } else {
                    let at = self.random.below(raw.len() as u64) as usize;
                    raw[at] ^= 1 << self.random.below(8);
                    payload = pack_answer(&raw, None);
                }
            }
            Fault::Cut => {
                payload.truncate(self.random.below(payload.len() as u64) as usize);
            }
            Fault::Length => payload[4] ^= 1,
            Fault::Id => return vec![frame(Kind::Answer, request.id + 1000, payload)],
            Fault::Twice => {
                let twin = frame(Kind::Answer, request.id, payload.clone());
                return vec![frame(Kind::Answer, request.id, payload), twin];
            }
            Fault::Swap => {
                let other = Frame::of(Kind::Request, 0, 0, &Request::Probe { bytes: 77 });
                payload = source.answer(&other.payload).unwrap();
            }
        }
        vec![frame(Kind::Answer, request.id, payload)]
    }

    fn perform(&mut self, task: Task) -> Result<Finished> {
        Ok(match task {
            Task::LayOut(Known { tree, mut seeds }) => {
                tree.sync()?;
                let named = seeds.len();
                seeds::keep_best(&mut seeds, &tree, named);
                let done = Bitmap::new(tree.shape().chunks());
                let (stop, progress) = (false.into(), Progress::default());
                let options =
                    goldwire_store::BuildOptions { threads: None, stop: &stop, progress: &progress };
                let laid_out = self.destination.lay_out(&tree, &done, &options)?;
                self.resumed = laid_out.resumed;
                if laid_out.is_continued {
                    self.probe(&tree, &done);
                }
                let nodes = if seeds.is_empty() { 0 } else { tree.shape().chunks().div_ceil(FANOUT) };
                self.nodes = Some(0..nodes);
                let shared = Arc::new(Shared {
                    index: BlockIndex::for_first(&seeds)?,
                    tree,
                    destination: Arc::clone(&self.destination) as Arc<dyn Destination>,
                    seeds,
                    done,
                    tally: Tally { done: AtomicU64::new(self.resumed), ..Tally::default() },
                    stop: Stop::new(),
                });
                let written = Rc::clone(&self.written);
                let note: Note = Box::new(move |first, count| written.borrow_mut().push((first, count)));
                self.hand = Some(Hand::new(Arc::clone(&shared), note));
                self.shared = Some(Arc::clone(&shared));
                Finished::LaidOut(shared)
            }
            Task::Settle => {
                assert!(self.jobs.is_empty() && self.asked.is_empty(), "settled before all was done");
                self.journal()?;
                Finished::Settled
            }
            Task::ReadBack => {
                let (stop, progress) = (false.into(), Progress::default());
                let options =
                    goldwire_store::BuildOptions { threads: None, stop: &stop, progress: &progress };
                let read = self.destination.read_back(&options)?;
                let mut wrong = Vec::new();
                let shared = self.shared.as_ref().unwrap();
                for_each_difference(&shared.tree, &read.tree, |chunk| wrong.push(chunk))?;
                Finished::ReadBack { root: read.root, wrong }
            }
            Task::Overwrite(chunks) => {
                chunks.iter().try_for_each(|(first, bytes)| self.destination.overwrite(*first, bytes))?;
                Finished::Overwritten
            }
            Task::Publish => {
                self.destination.publish()?;
                Finished::Published
            }
            Task::Plan(_) => Finished::Planned,
        })
    }

    /// As the driver does after a crash.
    fn probe(&mut self, tree: &goldwire_store::TreeFile, done: &Bitmap) {
        let mut chunk = vec![0; CHUNK_SIZE];
        for index in 0..tree.shape().chunks() {
            let id = tree.id(0, index).unwrap();
            if !id.is_zero() {
                self.destination.read(index, &mut chunk).unwrap();
                let is_there = ChunkId::of(&chunk) == id;
                assert!(is_there || !done.get(index), "the journal names chunk {index}, which is not there");
                if is_there && done.set(index) {
                    self.resumed += 1;
                }
            }
        }
    }

    fn blocks_asked(&self) -> u64 {
        let wants = self.requests.iter().filter_map(|request| match request {
            Request::Blocks { wants, .. } => Some(wants),
            _ => None,
        });
        wants.flatten().map(|(_, mask)| u64::from(mask.count_ones())).sum()
    }
}

fn source(disk: &Disk) -> Answerer {
    Answerer::new(disk.image(), disk.tree(), 1)
}

/// A disk, and the seeds of a target: none, an older version, or the very same.
fn scene(seed: u64) -> (Disk, Vec<Disk>) {
    let mut random = Random::new(seed);
    // Below and above one node of 256 chunks.
    let chunks = [1, 2, 40, 255, 256, 257, 300][random.below(7) as usize];
    let short = [0, 1, 512, 65_535][random.below(4) as usize];
    let bytes = content(seed, chunks, short);
    let mut older = bytes.clone();
    let seeds = match random.below(4) {
        0 => Vec::new(),
        1 => vec![Disk::new(bytes.clone())],
        2 => {
            change(&mut older, &mut random, 5);
            vec![Disk::new(older)]
        }
        // Everything lies a little further on.
        _ => {
            older.rotate_left(700 % bytes.len());
            older.truncate(older.len().max(4096) - 4095);
            vec![Disk::new(older)]
        }
    };
    (Disk::new(bytes), seeds)
}

fn seeds_of(disks: &[Disk]) -> Vec<Seed> {
    disks.iter().map(Disk::seed).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(24)))]

    /// Whatever the order of answers, workers and copies: the disk arrives as it is, and every target with the same
    /// seeds asks the same requests.
    #[test]
    fn an_honest_source_gives_the_same_disk_in_any_order(seed in any::<u64>(), order in any::<(u64, u64)>()) {
        let (disk, seeds) = scene(seed);
        let mut asked = Vec::new();
        for order in [order.0, order.1] {
            let destination = Arc::new(MemDestination::new(&disk.version));
            let mut run = Run::new(&disk, &destination, seeds_of(&seeds), Goal::Publish, order);
            let root = run.run(&mut source(&disk), usize::MAX).unwrap();
            prop_assert_eq!(root, Some(disk.version.root));
            prop_assert!(destination.published().unwrap() == disk.content);
            let mut requests: Vec<String> = run.requests.iter().map(|request| format!("{request:?}")).collect();
            requests.sort();
            asked.push(requests);
        }
        prop_assert_eq!(&asked[0], &asked[1]);
    }

    /// A run that is killed after any step leaves what the next one goes on from: nothing that is durable is asked for
    /// again, whatever a crash made of the rest.
    #[test]
    fn a_killed_run_is_continued(seed in any::<u64>(), kills in proptest::collection::vec(1_usize..400, 1..4)) {
        let (disk, seeds) = scene(seed);
        let destination = Arc::new(MemDestination::new(&disk.version));
        let mut random = Random::new(seed);
        let mut last = None;
        for (number, steps) in kills.into_iter().chain([usize::MAX]).enumerate() {
            let durable = destination.journaled();
            let mut run =
                Run::new(&disk, &destination, seeds_of(&seeds), Goal::Publish, seed ^ number as u64);
            last = run.run(&mut source(&disk), steps).unwrap();
            if run.shared.is_some() {
                prop_assert!(run.resumed >= durable);
                let left = disk.version.chunks_used - run.resumed;
                prop_assert!(run.blocks_asked() <= left * 16, "{} of {left} chunks", run.blocks_asked());
            }
            if last.is_some() {
                break;
            }
            prop_assert!(destination.published().is_none());
            destination.crash(&mut random);
        }
        prop_assert_eq!(last, Some(disk.version.root));
        prop_assert!(destination.published().unwrap() == disk.content);
    }

    /// A source that does one thing wrong gets nothing wrong published: either it is an error, or (a chunk put together
    /// wrongly is fetched again, the bytes of a measured answer are any) the disk is right all the same.
    #[test]
    fn nothing_wrong_is_published(
        seed in any::<u64>(),
        fault in proptest::sample::select(vec![
            Fault::Flip, Fault::Cut, Fault::Length, Fault::Refuse, Fault::Id, Fault::Twice, Fault::Silent,
            Fault::Swap,
        ]),
        at in 0_usize..12,
    ) {
        let (disk, seeds) = scene(seed);
        let destination = Arc::new(MemDestination::new(&disk.version));
        let mut run = Run::new(&disk, &destination, seeds_of(&seeds), Goal::Publish, seed);
        (run.fault, run.fault_at) = (fault, at);
        match run.run(&mut source(&disk), usize::MAX) {
            Ok(root) => {
                prop_assert_eq!(root, Some(disk.version.root));
                prop_assert!(destination.published().unwrap() == disk.content);
                // Hashes only say where to look: a wrong one costs a block, an unasked one is the end.
                let is_harmless = run.answers <= at || matches!(fault, Fault::Flip | Fault::Cut | Fault::Swap);
                prop_assert!(is_harmless, "{:?} at {} of {}", fault, at, run.answers);
            }
            Err(failure) => {
                prop_assert!(destination.published().is_none());
                prop_assert!(!failure.chain.is_empty());
            }
        }
        // The same place, an honest source: it goes on.
        let mut run = Run::new(&disk, &destination, seeds_of(&seeds), Goal::Publish, seed);
        if destination.published().is_none() {
            prop_assert_eq!(run.run(&mut source(&disk), usize::MAX).unwrap(), Some(disk.version.root));
            prop_assert!(destination.published().unwrap() == disk.content);
        }
    }

    /// A full disk ends the run with that word, and with more space the next one goes on.
    #[test]
    fn a_full_disk_is_told_and_continued_from(seed in any::<u64>(), share in 0_u64..100) {
        let (disk, seeds) = scene(seed);
        let destination = Arc::new(MemDestination::new(&disk.version));
        // The last chunk may be short: two chunks, of which one has a byte, fit where half of two whole ones does.
        let used = disk.content.chunks(CHUNK_SIZE).filter(|chunk| chunk.iter().any(|byte| *byte != 0));
        let needed: u64 = used.map(|chunk| chunk.len() as u64).sum();
        let space = disk.version.chunks_used * CHUNK_SIZE as u64 * share / 100;
        destination.set_space(space);
        let mut run = Run::new(&disk, &destination, seeds_of(&seeds), Goal::Publish, seed);
        match run.run(&mut source(&disk), usize::MAX) {
            Ok(_) => prop_assert!(needed <= space, "{} bytes in {}", needed, space),
            Err(failure) => prop_assert_eq!(failure.kind, FailureKind::Space),
        }
        destination.set_space(u64::MAX);
        if destination.published().is_none() {
            let mut run = Run::new(&disk, &destination, seeds_of(&seeds), Goal::Publish, seed);
            prop_assert_eq!(run.run(&mut source(&disk), usize::MAX).unwrap(), Some(disk.version.root));
        }
        prop_assert!(destination.published().unwrap() == disk.content);
    }
}

/// What the medium did not keep is found when it is read back and fetched again; a medium that never keeps it is told.
#[test]
fn a_medium_that_forgets_is_repaired_or_refused() {
    let disk = Disk::new(content(5, 300, 77));
    let tree = disk.tree();
    let used: Vec<u64> = (0..300).filter(|index| !tree.id(0, *index).unwrap().is_zero()).collect();
    for rounds in 0..4 {
        let destination = Arc::new(MemDestination::new(&disk.version));
        let mut run = Run::new(&disk, &destination, Vec::new(), Goal::Publish, 3);
        used.iter().take(20).for_each(|chunk| destination.rot(*chunk));
        let mut done = Ok(None);
        let mut repairs = 0;
        let mut source = source(&disk);
        while matches!(done, Ok(None)) {
            done = run.run(&mut source, 1);
            let said = run.events.iter().filter(|event| matches!(event, Event::Notice(_))).count();
            if said > repairs {
                repairs = said;
                if repairs < rounds {
                    destination.rot(used[3]);
                }
            }
        }
        if rounds <= 2 {
            assert_eq!(done.unwrap(), Some(disk.version.root), "{rounds}");
            assert_eq!(repairs, rounds.max(1), "{rounds}");
            assert!(destination.published().unwrap() == disk.content);
        } else {
            assert!(done.unwrap_err().to_string().contains("reads back other bytes"));
            assert!(destination.published().is_none());
        }
    }
}

/// A dry run walks the tree and measures the line; it lays nothing out and fetches nothing.
#[test]
fn a_plan_fetches_no_content() {
    let disk = Disk::new(content(6, 300, 0));
    let destination = Arc::new(MemDestination::new(&disk.version));
    let mut run = Run::new(&disk, &destination, Vec::new(), Goal::Plan, 3);
    assert_eq!(run.run(&mut source(&disk), usize::MAX).unwrap(), Some(disk.version.root));
    assert_eq!(run.blocks_asked(), 0);
    assert!(run.machine.link_rate().is_some_and(|rate| rate > 0));
    assert!(destination.published().is_none() && run.shared.is_none());
}

/// A source that changed while it was read says so at the end, and nothing is published.
#[test]
fn a_source_that_changed_is_not_published() {
    let disk = Disk::new(content(7, 40, 0));
    let mut source = source(&disk);
    std::fs::write(&disk.path, content(8, 40, 0)).unwrap();
    let destination = Arc::new(MemDestination::new(&disk.version));
    let mut run = Run::new(&disk, &destination, Vec::new(), Goal::Publish, 3);
    let failure = run.run(&mut source, usize::MAX).unwrap_err();
    assert_eq!(failure.kind, FailureKind::SourceChanged);
    assert!(destination.published().is_none());
}
