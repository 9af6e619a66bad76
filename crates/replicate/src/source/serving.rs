//! One peer's requests, and the bounds that we keep for it: what it asked for and does not read costs us no more than
//! [`UNSENT_MAX`], and what it asks beyond [`WAITING_MAX`] ends its connection. An honest target stays far below both,
//! since its window is smaller.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use goldwire_stdx::AlignedBuffer;

use super::Server;
use crate::connection::Connection;
use crate::failure::Result;
use crate::wire::{Failure, FailureKind, Frame, Kind, Request};

/// Bytes of answers in the making or waiting to be written, per peer. One answer is always allowed.
const UNSENT_MAX: u64 = 32 << 20;

/// Answers in the making or waiting to be written, per peer.
const UNDER_WAY_MAX: usize = 1024;

/// Requests that wait for their turn, per peer: more than the largest window holds of the smallest requests.
const WAITING_MAX: usize = 4096;

/// Bytes of those requests.
const WAITING_BYTES_MAX: usize = 4 << 20;

/// What even a small answer is counted as: its frame, its places in queues.
const COST_MIN: u64 = 4096;

/// Serves one peer. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Serving {
    shared: Arc<Shared>,
}

struct Shared {
    server: Arc<dyn Server>,
    connection: Connection,
    load: Mutex<Load>,
}

#[derive(Default)]
struct Load {
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    under_way: usize,
    unsent: u64,
}

struct Waiting {
    id: u64,
    payload: Arc<AlignedBuffer>,
    cost: u64,
}

impl Serving {
    /// Answers what comes over `connection` from `server`.
    pub(crate) fn new(server: Arc<dyn Server>, connection: Connection) -> Self {
        Self { shared: Arc::new(Shared { server, connection, load: Mutex::default() }) }
    }

    /// Takes a request; its answer or refusal will be sent.
    ///
    /// # Errors
    /// The peer asks for more than any honest one does; nothing more may be taken from it.
    pub(crate) fn take(&self, frame: &Frame) -> Result<()> {
        // One that does not decode is refused by the server.
        let cost = frame.message::<Request>("request").map_or(0, |request| request.answer_max().into());
        let mut load = self.shared.lock();
        load.waiting_bytes += frame.payload.len();
        let payload = Arc::clone(&frame.payload);
        load.waiting.push_back(Waiting { id: frame.id, payload, cost: cost.max(COST_MIN) });
        if load.waiting.len() > WAITING_MAX || load.waiting_bytes > WAITING_BYTES_MAX {
            return Err(Failure::new(
                FailureKind::Invalid,
                "the peer asks for more than it takes; nothing more is sent to it",
            ));
        }
        drop(load);
        Shared::go_on(&self.shared);
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has made what the peer's load allows.
    fn go_on(shared: &Arc<Self>) {
        while let Some(Waiting { id, payload, cost }) = shared.next() {
            let credit = Credit { shared: Arc::clone(shared), cost };
            shared.server.submit(
                payload,
                Box::new(move |reply| {
                    let connection = credit.shared.connection.clone();
                    let frame = match reply {
                        Ok(payload) => Frame { kind: Kind::Answer, stream: 0, id, payload },
                        Err(failure) => Frame::of(Kind::Refusal, 0, id, &failure),
                    };
                    connection.answer(frame, Box::new(credit));
                }),
            );
        }
    }

    fn next(&self) -> Option<Waiting> {
        let mut load = self.lock();
        if self.connection.is_lost() {
            load.waiting.clear();
            return None;
        }
        let cost = load.waiting.front()?.cost;
        let is_allowed =
            load.under_way == 0 || (load.under_way < UNDER_WAY_MAX && load.unsent + cost <= UNSENT_MAX);
        if !is_allowed {
            return None;
        }
        let next = load.waiting.pop_front()?;
        load.waiting_bytes -= next.payload.len();
        load.under_way += 1;
        load.unsent += cost;
        Some(next)
    }
}

/// One answer's share of the load; dropped when it has been written, or cannot be.
struct Credit {
    shared: Arc<Shared>,
    cost: u64,
}

impl Drop for Credit {
    fn drop(&mut self) {
        let mut load = self.shared.lock();
        load.under_way -= 1;
        load.unsent -= self.cost;
        drop(load);
        Shared::go_on(&self.shared);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Callback;
    use crate::testing::{Peer, memory_of, runs_alone};

    /// Answers at once with as many bytes as were asked for, and counts what is held.
    struct Generous;

    impl Server for Generous {
        fn submit(&self, request: Arc<AlignedBuffer>, callback: Callback) {
            let length = match postcard::from_bytes(&request) {
                Ok(Request::Probe { bytes }) => bytes as usize,
                _ => 0,
            };
            callback(Ok(Arc::new(vec![7; length + 8].into())));
        }
    }

    fn probe(id: u64, bytes: u32) -> Frame {
        Frame::of(Kind::Request, 0, id, &Request::Probe { bytes })
    }

    #[test]
    fn a_peer_that_never_reads_costs_no_more_than_its_share() {
        if !runs_alone() {
            return;
        }
        let peer = Peer::that_never_reads();
        let serving = Serving::new(Arc::new(Generous), peer.connection.clone());
        let before = memory_of();
        let mut taken = 0;
        while serving.take(&probe(taken, 2 << 20)).is_ok() {
            taken += 1;
            assert!(taken < 100_000, "never refused");
            let load = serving.shared.lock();
            assert!(load.unsent <= UNSENT_MAX && load.waiting.len() <= WAITING_MAX);
        }
        assert!(taken >= WAITING_MAX as u64, "{taken}");
        assert!(memory_of().saturating_sub(before) < 64 << 20);
    }

    #[test]
    fn an_answer_larger_than_the_share_is_still_given_and_the_share_comes_back() {
        let mut peer = Peer::that_reads();
        let serving = Serving::new(Arc::new(Generous), peer.connection.clone());
        for id in 0..100 {
            serving.take(&probe(id, 2 << 20)).unwrap();
        }
        let mut ids: Vec<u64> = (0..100).map(|_| peer.next().id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..100).collect::<Vec<_>>());
        crate::testing::until("the share comes back", || {
            let load = serving.shared.lock();
            load.under_way == 0 && load.unsent == 0
        });
    }

    #[test]
    fn a_peer_that_goes_away_gives_everything_back() {
        let peer = Peer::that_never_reads();
        let serving = Serving::new(Arc::new(Generous), peer.connection.clone());
        for id in 0..200 {
            serving.take(&probe(id, 2 << 20)).unwrap();
        }
        assert!(!serving.shared.lock().waiting.is_empty());
        peer.break_off();
        crate::testing::until("everything is given back", || {
            let load = serving.shared.lock();
            load.under_way == 0 && load.unsent == 0
        });
        serving.take(&probe(1, 100)).unwrap();
        assert!(serving.shared.lock().waiting.is_empty());
    }
}
