//! Answering targets: from an opened image ([`LocalServer`]), through a connection to whoever has it
//! ([`RemoteServer`]), and once for many who ask the same ([`SharedServer`]).

mod open;
mod pace;
mod remote;
mod serve;
mod shared;

use std::sync::Arc;

use goldwire_stdx::AlignedBuffer;

pub(crate) use open::open_source;
pub(crate) use pace::Pace;
pub(crate) use remote::RemoteServer;
#[cfg(test)]
pub(crate) use serve::Answerer;
pub(crate) use serve::LocalServer;
pub(crate) use shared::SharedServer;

use crate::connection::Connection;
use crate::failure::Result;
use crate::wire::{Frame, Kind};

/// An answer's payload, or why there is none.
pub(crate) type Reply = Result<Arc<AlignedBuffer>>;

/// Takes the reply when it is there, on a thread of the server.
pub(crate) type Callback = Box<dyn FnOnce(Reply) + Send>;

/// Somebody who answers the requests of targets. The payload is a [`Request`] in postcard, passed on as it is.
pub(crate) trait Server: Send + Sync {
    /// Answers in its own time through `callback`, which is always called.
    fn submit(&self, request: Arc<AlignedBuffer>, callback: Callback);
}

/// Serves one target's requests over its connection.
pub(crate) fn serve_request(server: &dyn Server, connection: &Connection, frame: &Frame) {
    let connection = connection.clone();
    let id = frame.id;
    server.submit(
        Arc::clone(&frame.payload),
        Box::new(move |reply| {
            connection.send(match reply {
                Ok(payload) => Frame { kind: Kind::Answer, stream: 0, id, payload },
                Err(failure) => Frame::of(Kind::Refusal, 0, id, &failure),
            });
        }),
    );
}
