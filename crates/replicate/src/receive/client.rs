//! The target's side of asking: ids, what is outstanding, and the window that bounds it. Plain state: frames to send
//! are taken out with [`Client::next_frame`].

use std::collections::{HashMap, VecDeque};

use crate::failure::Result;
use crate::receive::chunks::ChunkPlan;
use crate::wire::{Failure, FailureKind, Frame, Kind, Request};

/// What an answer is for.
pub(crate) enum Purpose {
    /// Children of these nodes; the content's length in bytes.
    Nodes(Vec<u64>, usize),
    /// Hashes of these chunks; place in the order.
    Hashes(Vec<u64>, u64),
    /// Blocks for these plans.
    Blocks(Vec<ChunkPlan>),
    /// The source has not changed.
    Unchanged,
    /// Bytes to measure the connection by.
    Probe,
}

/// Requests under way.
pub(crate) struct Client {
    next_id: u64,
    pending: HashMap<u64, (Purpose, u64)>,
    /// With the longest payload of the answer to each.
    unsent: VecDeque<(Frame, u32)>,
    /// Bytes asked for that have not yet been dealt with.
    outstanding: u64,
    window: u64,
}

impl Client {
    /// Nothing asked yet; `window` bytes may be outstanding.
    pub(crate) fn new(window: u64) -> Self {
        Self { next_id: 1, pending: HashMap::new(), unsent: VecDeque::new(), outstanding: 0, window }
    }

    /// Whether more may be asked for.
    pub(crate) fn has_room(&self) -> bool {
        self.outstanding < self.window
    }

    /// Whether nothing is under way or being worked on.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.outstanding == 0
    }

    /// Asks, charging `cost` bytes to the window until [`refund`](Self::refund).
    pub(crate) fn ask(&mut self, request: &Request, purpose: Purpose, cost: u64) {
        let id = self.next_id;
        self.next_id += 1;
        self.outstanding += cost;
        self.pending.insert(id, (purpose, cost));
        self.unsent.push_back((Frame::of(Kind::Request, 0, id, request), request.answer_max()));
    }

    /// The next frame for the source, with the longest payload of its answer.
    pub(crate) fn next_frame(&mut self) -> Option<(Frame, u32)> {
        self.unsent.pop_front()
    }

    /// What an answer frame is for, and its cost.
    ///
    /// # Errors
    /// The refusal, if it is one; an answer that nobody asked for.
    pub(crate) fn take(&mut self, frame: &Frame) -> Result<(Purpose, u64)> {
        let (purpose, cost) = self.pending.remove(&frame.id).ok_or_else(|| {
            Failure::new(FailureKind::Other, "the source answered something that was not asked")
        })?;
        match frame.kind {
            Kind::Answer => Ok((purpose, cost)),
            _ => Err(frame.message("refusal").unwrap_or_else(Failure::from)),
        }
    }

    /// Counts `cost` as outstanding for work that nothing was asked for.
    pub(crate) fn charge(&mut self, cost: u64) {
        self.outstanding += cost;
    }

    /// Charges what has been dealt with no longer.
    pub(crate) fn refund(&mut self, cost: u64) {
        self.outstanding = self.outstanding.saturating_sub(cost);
    }
}
