//! Answers from a source behind a connection.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use goldwire_stdx::AlignedBuffer;

use super::{Callback, Server};
use crate::connection::Connection;
use crate::wire::{Failure, FailureKind, Frame, Kind, Request};

/// Bytes of answers that may be under way from the source: it keeps a bound for us too, and cuts off who asks for more.
const OUTSTANDING_MAX: u64 = 64 << 20;

/// Requests that may be under way.
const REQUESTS_MAX: usize = 1024;

/// Passes requests on over a connection and matches the answers. How much waits here is bounded by what each
/// [`Serving`](super::Serving) submits.
pub(crate) struct RemoteServer {
    connection: Connection,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next_id: u64,
    callbacks: HashMap<u64, (Callback, u64)>,
    /// Bytes that the answers to these may have.
    outstanding: u64,
    queue: VecDeque<(Arc<AlignedBuffer>, Callback, u32)>,
    /// Why nothing more can come.
    ended: Option<Failure>,
}

impl RemoteServer {
    /// A server at the other end of `connection`.
    pub(crate) fn new(connection: Connection) -> Self {
        Self { connection, waiting: Mutex::default() }
    }

    /// Hands over an answer or refusal frame that came over the connection.
    pub(crate) fn deliver(&self, frame: &Frame) {
        let callback = {
            let mut waiting = self.lock();
            let found = waiting.callbacks.remove(&frame.id);
            waiting.outstanding -= found.as_ref().map_or(0, |(_, cost)| *cost);
            found
        };
        if let Some((callback, _)) = callback {
            callback(match frame.kind {
                Kind::Answer => Ok(Arc::clone(&frame.payload)),
                _ => Err(frame.message("refusal").unwrap_or_else(Failure::from)),
            });
        }
        self.go_on();
    }

    /// Asks for what may be asked for now.
    fn go_on(&self) {
        let mut waiting = self.lock();
        while let Some((.., cost)) = waiting.queue.front()
            && (waiting.callbacks.is_empty()
                || (waiting.callbacks.len() < REQUESTS_MAX
                    && waiting.outstanding + u64::from(*cost) <= OUTSTANDING_MAX))
        {
            let Some((request, callback, cost)) = waiting.queue.pop_front() else { break };
            let id = waiting.next_id;
            waiting.next_id += 1;
            waiting.outstanding += u64::from(cost);
            waiting.callbacks.insert(id, (callback, cost.into()));
            self.connection.ask(Frame { kind: Kind::Request, stream: 0, id, payload: request }, cost);
        }
    }

    /// Refuses everything that waits or comes later.
    pub(crate) fn end(&self, failure: &Failure) {
        let (callbacks, queue) = {
            let mut waiting = self.lock();
            waiting.ended = Some(failure.clone());
            waiting.outstanding = 0;
            (std::mem::take(&mut waiting.callbacks), std::mem::take(&mut waiting.queue))
        };
        let asked = callbacks.into_values().map(|(callback, _)| callback);
        let queued = queue.into_iter().map(|(_, callback, _)| callback);
        asked.chain(queued).for_each(|callback| callback(Err(failure.clone())));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server for RemoteServer {
    fn submit(&self, request: Arc<AlignedBuffer>, callback: Callback) {
        let Ok(asked) = postcard::from_bytes::<Request>(&request) else {
            return callback(Err(Failure::new(FailureKind::Invalid, "a request does not decode")));
        };
        let mut waiting = self.lock();
        if let Some(failure) = waiting.ended.clone() {
            drop(waiting);
            return callback(Err(failure));
        }
        waiting.queue.push_back((request, callback, asked.answer_max()));
        drop(waiting);
        self.go_on();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Reply;
    use crate::testing::Peer;

    fn request(bytes: u32) -> Arc<AlignedBuffer> {
        Frame::of(Kind::Request, 0, 0, &Request::Probe { bytes }).payload
    }

    fn keep(replies: &Arc<Mutex<Vec<Reply>>>) -> Callback {
        let replies = Arc::clone(replies);
        Box::new(move |reply| replies.lock().unwrap().push(reply))
    }

    #[test]
    fn no_more_is_asked_of_a_source_at_a_time_than_it_serves() {
        let mut peer = Peer::that_reads();
        let server = RemoteServer::new(peer.connection.clone());
        let replies = Arc::default();
        for _ in 0..100 {
            server.submit(request(2 << 20), keep(&replies));
        }
        let asked = || server.lock().callbacks.len();
        let each = u64::from(Request::Probe { bytes: 2 << 20 }.answer_max());
        assert_eq!(asked() as u64, OUTSTANDING_MAX / each);
        for done in 1..=100 {
            let id = peer.next().id;
            server.deliver(&Frame { kind: Kind::Answer, stream: 0, id, payload: Arc::default() });
            assert_eq!(replies.lock().unwrap().len(), done);
            assert!(server.lock().outstanding <= OUTSTANDING_MAX);
        }
        assert_eq!((asked(), server.lock().outstanding), (0, 0));
        for _ in 0..3000 {
            server.submit(request(1), keep(&replies));
        }
        assert_eq!(asked(), REQUESTS_MAX);
    }

    #[test]
    fn answers_and_refusals_go_to_who_asked_and_the_end_goes_to_all() {
        let peer = Peer::that_reads();
        let server = RemoteServer::new(peer.connection.clone());
        let all: Vec<Arc<Mutex<Vec<Reply>>>> = (0..4).map(|_| Arc::default()).collect();
        all.iter().for_each(|replies| server.submit(request(8), keep(replies)));
        let payload = Arc::new(AlignedBuffer::from(vec![5; 16]));
        server.deliver(&Frame { kind: Kind::Answer, stream: 0, id: 2, payload: Arc::clone(&payload) });
        server.deliver(&Frame::of(Kind::Refusal, 0, 1, &Failure::stopped()));
        server.deliver(&Frame::of(Kind::Refusal, 0, 99, &Failure::stopped()));
        let got = |at: usize| all[at].lock().unwrap().clone();
        assert_eq!(got(2), [Ok(payload)]);
        assert_eq!(got(1), [Err(Failure::stopped())]);
        assert!(got(0).is_empty() && got(3).is_empty());
        let gone = crate::connection::lost("the source", None);
        server.end(&gone);
        assert_eq!((got(0), got(3)), (vec![Err(gone.clone())], vec![Err(gone.clone())]));
        server.submit(request(8), keep(&all[0]));
        assert_eq!(got(0), [Err(gone.clone()), Err(gone)]);
        server.submit(Arc::new(vec![255; 3].into()), keep(&all[1]));
        assert_eq!(all[1].lock().unwrap().len(), 2, "one that does not decode is refused here");
    }
}
