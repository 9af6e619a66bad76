//! The course of a reception as a state machine. What comes in are frames of the source, reports of workers, finished
//! tasks and the time; what comes out are requests, jobs for workers, events, and tasks for the driver. Nothing here
//! owns a thread, a connection or a clock.
//!
//! ```text
//!                                        ┌── Repairing ◄─┐ chunks read back wrong
//!                                        ▼               │
//! Comparing ─► Laying out ─► Transferring ─► Settling ─► Confirming ─► Reading back ─► Publishing ─► Over
//!   walk          task         planner         task       Unchanged        task            task
//!     └─► Planning ─► Measuring ─► Over                    (a dry run)
//! ```
//!
//! A task is blocking work on this machine; nothing is asked of the source meanwhile. After each `handle_…` the outputs
//! are to be polled until there are none, and [`Machine::handle_timeout`] is due at [`Machine::poll_timeout`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use goldwire_store::{BLOCKS_PER_CHUNK, CHUNK_SIZE, Root, TreeFile, Version};

use super::chunks::ChunkPlan;
use super::client::{Client, Purpose};
use super::hand::Shared;
use super::plan::{First, Planner, pack_bytes};
use super::seeds::Seed;
use super::shift::BlockHashes;
use super::walk::Walk;
use super::workers::{Job, Report};
use crate::connection::{SILENCE_MAX, lost};
use crate::failure::Result;
use crate::wire::{Event, Failure, FailureKind, Frame, Phase, Request, unpack_answer};

/// Rounds of reading back and fetching again what the medium did not keep.
const REPAIR_ROUNDS: usize = 2;

/// Chunks that are fetched again in one request.
const REPAIR_PACK: usize = 16;

/// Chunks that need nothing from the wire are put together in jobs of this many.
const LOCAL_BATCH: usize = 64;

/// The answers by which a connection is measured, in bytes: the first warms it up, the second is timed.
const PROBES: [u32; 2] = [4096, 1 << 20];

/// How far a reception is meant to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// To a published version.
    Publish,
    /// To knowing what would move.
    Plan,
}

/// What the machine wants done.
pub(crate) enum Output {
    /// Send this to the source; its answer's payload has at most so many bytes.
    Request(Frame, u32),
    /// Give this to the workers.
    Job(Job),
    /// Tell this to the control side.
    Event(Event),
    /// Do this, then call [`Machine::handle_finished`].
    Task(Task),
}

/// Blocking work of the driver, one at a time.
pub(crate) enum Task {
    /// Lay the destination out, find what is there already, and start the workers.
    LayOut(Known),
    /// Let the workers finish and journal everything.
    Settle,
    /// Read everything back.
    ReadBack,
    /// Write these chunks, from the first index of each pair, over whatever is there.
    Overwrite(Vec<(u64, Vec<u8>)>),
    /// Publish.
    Publish,
    /// Work out what would move.
    Plan(Known),
}

/// The version's whole tree, with the seeds that it was compared with.
pub(crate) struct Known {
    /// Proven against the root.
    pub(crate) tree: TreeFile,
    /// In no particular order of use.
    pub(crate) seeds: Vec<Seed>,
}

/// A task is finished.
pub(crate) enum Finished {
    /// [`Task::LayOut`]: what the workers share.
    LaidOut(Arc<Shared>),
    /// [`Task::Settle`].
    Settled,
    /// [`Task::ReadBack`].
    ReadBack {
        /// The root of what is there.
        root: Root,
        /// The chunks that are not what the version's tree says.
        wrong: Vec<u64>,
    },
    /// [`Task::Overwrite`].
    Overwritten,
    /// [`Task::Publish`].
    Published,
    /// [`Task::Plan`].
    Planned,
}

/// Where the reception is.
enum State {
    /// Walking the tree down.
    Comparing(Walk),
    /// A task is under way.
    Working,
    /// Everything is fetched, matched and put together.
    Transferring { planner: Planner, is_copied: bool },
    /// The source is asked whether it is still what it was.
    Confirming { asked: Instant, then: Then },
    /// Chunks are fetched whole, one pack at a time.
    Repairing { left: VecDeque<u64>, asked: Vec<u64> },
    /// The connection is measured: which of [`PROBES`], and when it was asked for.
    Measuring { probe: usize, asked: Instant },
    /// Nothing more comes.
    Over,
}

/// What the source's word that it is unchanged is for.
enum Then {
    /// Go on.
    ReadBack,
    /// The chunk at this index is not what the tree says, though nothing changed.
    Blame(u64),
}

/// One reception.
pub(crate) struct Machine {
    root: Root,
    goal: Goal,
    client: Client,
    state: State,
    outputs: VecDeque<Output>,
    /// From the layout on.
    shared: Option<Arc<Shared>>,
    /// Rounds of reading back that failed.
    repairs: usize,
    /// The root that reading back gave.
    proven: Option<Root>,
    link_rate: Option<u64>,
    /// Nodes of the tree that came.
    nodes_received: u64,
}

impl Machine {
    /// A reception of `version`, whose tree is to be filled unless it `is_whole`; `window` bytes may be asked for before
    /// they arrive.
    pub(crate) fn new(
        version: &Version,
        goal: Goal,
        window: u64,
        (tree, is_whole): (TreeFile, bool),
        seeds: Vec<Seed>,
    ) -> Self {
        let mut machine = Self {
            root: version.root,
            goal,
            client: Client::new(window),
            state: State::Working,
            outputs: VecDeque::new(),
            shared: None,
            repairs: 0,
            proven: None,
            link_rate: None,
            nodes_received: 0,
        };
        if is_whole {
            machine.compared(Known { tree, seeds });
        } else {
            machine.event(Event::Phase(Phase::Comparing));
            machine.state = State::Comparing(Walk::new(tree, version.root, seeds));
        }
        machine
    }

    /// The next thing to do.
    ///
    /// # Errors
    /// The destination's or a seed's tree cannot be read.
    pub(crate) fn poll_output(&mut self, now: Instant) -> Result<Option<Output>> {
        if self.outputs.is_empty() {
            self.advance(now)?;
        }
        if let Some(output) = self.outputs.pop_front() {
            return Ok(Some(output));
        }
        Ok(self.client.next_frame().map(|(frame, answer_max)| Output::Request(frame, answer_max)))
    }

    /// When [`Self::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Confirming { asked, .. } => Some(*asked + SILENCE_MAX),
            _ => None,
        }
    }

    /// Whether it has come to its end, and with which root: that of the read-back, or of the plan's version.
    pub(crate) fn ended(&self) -> Option<Root> {
        match (&self.state, self.goal) {
            (State::Over, Goal::Publish) => self.proven,
            (State::Over, Goal::Plan) => Some(self.root),
            _ => None,
        }
    }

    /// Bytes per second that the connection was measured to carry.
    pub(crate) fn link_rate(&self) -> Option<u64> {
        self.link_rate
    }

    /// Nodes of the tree that came and are proven.
    pub(crate) fn nodes_received(&self) -> u64 {
        self.nodes_received
    }

    /// Time has passed.
    ///
    /// # Errors
    /// The source did not answer in time.
    pub(crate) fn handle_timeout(&self, now: Instant) -> Result<()> {
        match self.poll_timeout() {
            Some(due) if now >= due => Err(lost("the source", None)),
            _ => Ok(()),
        }
    }

    /// An answer or a refusal came.
    ///
    /// # Errors
    /// The refusal; an answer that nobody asked for; one that is not what the version's tree says.
    pub(crate) fn handle_frame(&mut self, frame: &Frame, now: Instant) -> Result<()> {
        let (purpose, cost) = self.client.take(frame)?;
        let payload = Arc::clone(&frame.payload);
        match (purpose, &mut self.state) {
            (Purpose::Nodes(indices, length), State::Comparing(walk)) => {
                self.client.refund(cost);
                walk.take(&indices, &unpack_answer(&payload, length)?)?;
                self.nodes_received += indices.len() as u64;
            }
            (Purpose::Hashes(chunks, order), State::Transferring { .. }) => {
                self.client.refund(cost);
                self.outputs.push_back(Output::Job(Job::Match { order, chunks, payload }));
            }
            (Purpose::Blocks(plans), State::Transferring { .. }) => {
                self.outputs.push_back(Output::Job(Job::Assemble { plans, payload: Some(payload), cost }));
            }
            (Purpose::Blocks(_), State::Repairing { asked, .. }) => {
                self.client.refund(cost);
                let asked = std::mem::take(asked);
                let bytes = unpack_answer(&payload, asked.len() * CHUNK_SIZE)?;
                let chunks = asked.into_iter().zip(bytes.chunks_exact(CHUNK_SIZE).map(<[u8]>::to_vec));
                let task = Task::Overwrite(chunks.collect());
                self.outputs.push_back(Output::Task(task));
            }
            (Purpose::Unchanged, State::Confirming { then, .. }) => {
                unpack_answer(&payload, 0)?;
                self.client.refund(cost);
                if let Then::Blame(chunk) = then {
                    return Err(not_what_its_tree_says(*chunk));
                }
                self.state = State::Working;
                self.read_back();
            }
            (Purpose::Probe, State::Measuring { probe, asked }) => {
                unpack_answer(&payload, PROBES[*probe] as usize)?;
                self.client.refund(cost);
                let (probe, seconds) = (*probe, now.duration_since(*asked).as_secs_f64());
                self.link_rate = Some((f64::from(PROBES[probe]) / seconds.max(1e-6)) as u64);
                self.measure(probe + 1, now);
            }
            // What was asked for before the course changed.
            _ => self.client.refund(cost),
        }
        Ok(())
    }

    /// A worker has something to say.
    ///
    /// # Errors
    /// The report is of a failure.
    pub(crate) fn handle_report(&mut self, report: Report, now: Instant) -> Result<()> {
        let report = match (report, &mut self.state) {
            (Report::Fatal(failure), _) => return Err(failure),
            (report, State::Transferring { planner, is_copied }) => match report {
                Report::Matched { order, plans } => {
                    let local = planner.matched(order, plans);
                    for plans in local.chunks(LOCAL_BATCH) {
                        self.client.charge(1);
                        let job = Job::Assemble { plans: plans.to_vec(), payload: None, cost: 1 };
                        self.outputs.push_back(Output::Job(job));
                    }
                    return Ok(());
                }
                Report::Missing(chunks) => {
                    planner.again(chunks);
                    return Ok(());
                }
                Report::CopyDone => {
                    *is_copied = true;
                    return Ok(());
                }
                other => other,
            },
            (other, _) => other,
        };
        if let Report::Assembled { failed, cost } = report {
            self.client.refund(cost);
            self.retry(failed, now);
        }
        Ok(())
    }

    /// A task is finished.
    ///
    /// # Errors
    /// The medium keeps other bytes than were written.
    pub(crate) fn handle_finished(&mut self, finished: Finished, now: Instant) -> Result<()> {
        match finished {
            Finished::LaidOut(shared) => {
                self.event(Event::Phase(Phase::Transferring));
                let first = if shared.seeds.is_empty() { First::Blocks } else { First::Hashes };
                let planner = Planner::new(first);
                self.shared = Some(shared);
                self.state = State::Transferring { planner, is_copied: false };
            }
            Finished::Settled => self.confirm(Then::ReadBack, now),
            Finished::ReadBack { root, .. } if root == self.root => {
                self.proven = Some(root);
                self.event(Event::Phase(Phase::Publishing));
                self.outputs.push_back(Output::Task(Task::Publish));
            }
            Finished::ReadBack { .. } if self.repairs == REPAIR_ROUNDS => {
                return Err(Failure::new(
                    FailureKind::Other,
                    "the new disk reads back other bytes than were written",
                )
                .hint("the target's medium or memory is failing; nothing was published"));
            }
            Finished::ReadBack { wrong, .. } => {
                self.repairs += 1;
                let count = wrong.len();
                self.event(Event::Notice(format!("{count} chunks read back wrong; fetching them again")));
                self.state = State::Repairing { left: wrong.into(), asked: Vec::new() };
            }
            Finished::Overwritten => {}
            Finished::Published => self.state = State::Over,
            Finished::Planned => self.measure(0, now),
        }
        Ok(())
    }

    /// Goes on as far as the window and what is known allow.
    fn advance(&mut self, now: Instant) -> Result<()> {
        match &mut self.state {
            State::Comparing(walk) => {
                while self.client.has_room()
                    && !walk.is_done()
                    && let Some((request, length)) = walk.next_request()
                {
                    if let Request::Nodes { indices, .. } = &request {
                        let purpose = Purpose::Nodes(indices.clone(), length);
                        self.client.ask(&request, purpose, length as u64);
                    }
                }
                if walk.is_done()
                    && let State::Comparing(walk) = std::mem::replace(&mut self.state, State::Working)
                {
                    let (tree, seeds) = walk.into_parts();
                    self.compared(Known { tree, seeds });
                }
            }
            State::Transferring { planner, is_copied } => {
                if let Some(shared) = &self.shared {
                    ask_more(&mut self.client, planner, shared)?;
                }
                if *is_copied && planner.is_finished() && self.client.is_idle() {
                    self.state = State::Working;
                    self.outputs.push_back(Output::Task(Task::Settle));
                }
            }
            State::Repairing { left, asked } if asked.is_empty() => {
                if left.is_empty() {
                    self.confirm(Then::ReadBack, now);
                    return Ok(());
                }
                *asked = left.drain(..left.len().min(REPAIR_PACK)).collect();
                let wants = asked.iter().map(|index| (*index, u16::MAX)).collect();
                let plans: Vec<ChunkPlan> = asked.iter().map(|index| ChunkPlan::whole(*index)).collect();
                let cost = pack_bytes(&plans);
                self.client.ask(&Request::Blocks { wants, is_delta: true }, Purpose::Blocks(plans), cost);
            }
            State::Repairing { .. }
            | State::Working
            | State::Confirming { .. }
            | State::Measuring { .. }
            | State::Over => {}
        }
        Ok(())
    }

    fn compared(&mut self, known: Known) {
        let task = match self.goal {
            Goal::Publish => Task::LayOut(known),
            Goal::Plan => Task::Plan(known),
        };
        self.outputs.push_back(Output::Task(task));
    }

    fn read_back(&mut self) {
        self.event(Event::Phase(Phase::Verifying));
        self.outputs.push_back(Output::Task(Task::ReadBack));
    }

    fn confirm(&mut self, then: Then, now: Instant) {
        self.client.ask(&Request::Unchanged, Purpose::Unchanged, 0);
        self.state = State::Confirming { asked: now, then };
    }

    fn measure(&mut self, probe: usize, now: Instant) {
        let Some(bytes) = PROBES.get(probe) else {
            self.state = State::Over;
            return;
        };
        self.client.ask(&Request::Probe { bytes: *bytes }, Purpose::Probe, 0);
        self.state = State::Measuring { probe, asked: now };
    }

    /// A chunk that was put together wrongly is fetched whole; one that came whole and is still wrong means that
    /// the source does not hold what its tree says.
    fn retry(&mut self, failed: Vec<ChunkPlan>, now: Instant) {
        if let Some(plan) = failed.iter().find(|plan| plan.wanted() == u16::MAX) {
            // Unless it has changed, which it will say itself.
            if !matches!(self.state, State::Confirming { .. }) {
                self.confirm(Then::Blame(plan.index), now);
            }
        } else if let State::Transferring { planner, .. } = &mut self.state {
            planner.again(failed.into_iter().map(|plan| plan.index));
        }
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
}

fn ask_more(client: &mut Client, planner: &mut Planner, shared: &Shared) -> Result<()> {
    let is_delta = !shared.seeds.is_empty();
    while client.has_room() {
        planner.scan(&shared.tree, &shared.seeds, &shared.done)?;
        if let Some(pack) = planner.next_pack() {
            let wants = pack.iter().map(|plan| (plan.index, plan.wanted())).collect();
            let cost = pack_bytes(&pack);
            client.ask(&Request::Blocks { wants, is_delta }, Purpose::Blocks(pack), cost);
        } else if let Some((chunks, order)) = planner.next_hashes() {
            let cost = (chunks.len() * BLOCKS_PER_CHUNK * BlockHashes::LENGTH) as u64;
            let request = Request::BlockHashes { chunks: chunks.clone() };
            client.ask(&request, Purpose::Hashes(chunks, order), cost);
        } else {
            break;
        }
    }
    Ok(())
}

fn not_what_its_tree_says(chunk: u64) -> Failure {
    let at = chunk * CHUNK_SIZE as u64;
    Failure::new(
        FailureKind::SourceChanged,
        format!("the source's bytes at {at} do not have the digest that its tree gives"),
    )
    .hint(
        "delete the .goldwire folder beside the source image and try again; if it repeats, check that machine's \
         memory and disk",
    )
}
