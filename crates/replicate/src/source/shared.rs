//! One answer for many targets that ask the same.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use goldwire_stdx::AlignedBuffer;

use super::{Callback, Reply, Server};
use crate::wire::Request;

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Failure, Frame, Kind};

    /// Keeps what it is asked until the test answers.
    #[derive(Default)]
    struct Below(Mutex<Vec<(Arc<AlignedBuffer>, Callback)>>);

    impl Server for Below {
        fn submit(&self, request: Arc<AlignedBuffer>, callback: Callback) {
            self.0.lock().unwrap().push((request, callback));
        }
    }

    impl Below {
        fn waiting(&self) -> usize {
            self.0.lock().unwrap().len()
        }

        fn answer(&self, reply: &Reply) {
            let waiting = std::mem::take(&mut *self.0.lock().unwrap());
            waiting.into_iter().for_each(|(_, callback)| callback(reply.clone()));
        }
    }

    struct Scene {
        below: Arc<Below>,
        shared: SharedServer,
        replies: Arc<Mutex<Vec<Reply>>>,
    }

    impl Scene {
        fn new(keep_bytes: u64) -> Self {
            let below = Arc::new(Below::default());
            let shared = SharedServer::new(Arc::clone(&below) as Arc<dyn Server>, keep_bytes);
            Self { below, shared, replies: Arc::default() }
        }

        fn ask(&self, request: &Request) {
            let replies = Arc::clone(&self.replies);
            let payload = Frame::of(Kind::Request, 0, 0, request).payload;
            self.shared.submit(payload, Box::new(move |reply| replies.lock().unwrap().push(reply)));
        }

        fn replies(&self) -> usize {
            self.replies.lock().unwrap().len()
        }
    }

    fn answer(length: usize) -> Reply {
        Ok(Arc::new(vec![1; length].into()))
    }

    fn nodes(index: u64) -> Request {
        Request::Nodes { level: 1, indices: vec![index] }
    }

    #[test]
    fn what_many_ask_is_asked_once_while_it_is_under_way_and_while_it_is_kept() {
        let scene = Scene::new(10_000);
        for _ in 0..5 {
            scene.ask(&nodes(1));
        }
        scene.ask(&nodes(2));
        assert_eq!((scene.below.waiting(), scene.replies()), (2, 0));
        scene.below.answer(&answer(1000));
        assert_eq!(scene.replies(), 6);
        scene.ask(&nodes(1));
        assert_eq!((scene.below.waiting(), scene.replies()), (0, 7));
    }

    #[test]
    fn the_oldest_answers_go_first_and_no_more_is_kept_than_was_said() {
        let scene = Scene::new(3500);
        for index in 0..5 {
            scene.ask(&nodes(index));
            scene.below.answer(&answer(1000));
        }
        for index in [4, 3, 2] {
            scene.ask(&nodes(index));
            assert_eq!(scene.below.waiting(), 0, "{index} is kept");
        }
        scene.ask(&nodes(1));
        assert_eq!(scene.below.waiting(), 1, "1 is not");
        let known = scene.shared.known.lock().unwrap();
        assert!(known.kept_bytes <= 3500 && known.order.len() == 3);
    }

    #[test]
    fn nothing_is_kept_of_a_failure_or_if_nothing_is_to_be_kept() {
        for (keep, reply) in [(10_000, Err(Failure::stopped())), (0, answer(10))] {
            let scene = Scene::new(keep);
            scene.ask(&nodes(1));
            scene.below.answer(&reply);
            scene.ask(&nodes(1));
            assert_eq!(scene.below.waiting(), 1);
            assert!(scene.replies.lock().unwrap()[0].is_ok() == reply.is_ok());
        }
    }

    #[test]
    fn whether_the_source_changed_is_asked_each_time() {
        let scene = Scene::new(10_000);
        for request in [Request::Unchanged, Request::Unchanged, Request::Probe { bytes: 1 }] {
            scene.ask(&request);
        }
        assert_eq!(scene.below.waiting(), 3);
        scene.below.answer(&answer(8));
        scene.ask(&Request::Unchanged);
        assert_eq!(scene.below.waiting(), 1);
        let hashes = Request::BlockHashes { chunks: vec![1] };
        let blocks = Request::Blocks { wants: vec![(1, 1)], is_delta: true };
        for request in [&hashes, &hashes, &blocks, &blocks] {
            scene.ask(request);
        }
        assert_eq!(scene.below.waiting(), 3, "the others are asked once");
    }
}
