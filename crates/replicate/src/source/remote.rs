//! Answers from a source behind a connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use goldwire_stdx::AlignedBuffer;

use super::{Callback, Server};
use crate::connection::Connection;
use crate::wire::{Failure, Frame, Kind};

/// Passes requests on over a connection and matches the answers.
pub(crate) struct RemoteServer {
    connection: Connection,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next_id: u64,
    callbacks: HashMap<u64, Callback>,
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
        let callback = self.lock().callbacks.remove(&frame.id);
        if let Some(callback) = callback {
            callback(match frame.kind {
                Kind::Answer => Ok(Arc::clone(&frame.payload)),
                _ => Err(frame.message("refusal").unwrap_or_else(Failure::from)),
            });
        }
    }

    /// Refuses everything that waits or comes later.
    pub(crate) fn end(&self, failure: &Failure) {
        let callbacks = {
            let mut waiting = self.lock();
            waiting.ended = Some(failure.clone());
            std::mem::take(&mut waiting.callbacks)
        };
        callbacks.into_values().for_each(|callback| callback(Err(failure.clone())));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server for RemoteServer {
    fn submit(&self, request: Arc<AlignedBuffer>, callback: Callback) {
        let mut waiting = self.lock();
        if let Some(failure) = waiting.ended.clone() {
            drop(waiting);
            return callback(Err(failure));
        }
        let id = waiting.next_id;
        waiting.next_id += 1;
        waiting.callbacks.insert(id, callback);
        drop(waiting);
        self.connection.send(Frame { kind: Kind::Request, stream: 0, id, payload: request });
    }
}
