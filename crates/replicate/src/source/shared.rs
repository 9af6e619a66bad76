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
