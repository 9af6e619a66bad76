//! Answering targets: from an opened image ([`LocalServer`]), through a connection to whoever has it
//! ([`RemoteServer`]), and once for many who ask the same ([`SharedServer`]). A [`Serving`] stands between a server and
//! each peer and keeps the bounds.

mod device;
mod open;
mod pace;
mod remote;
mod serve;
mod serving;
mod shared;
mod stored;

use std::sync::Arc;

use goldwire_stdx::AlignedBuffer;

pub(crate) use open::open_source;
pub(crate) use pace::Pace;
pub(crate) use remote::RemoteServer;
#[cfg(test)]
pub(crate) use serve::Answerer;
pub(crate) use serve::LocalServer;
pub(crate) use serving::Serving;
pub(crate) use shared::SharedServer;
pub(crate) use stored::{Stored, place_of_version};

use crate::failure::Result;

/// An answer's payload, or why there is none.
pub(crate) type Reply = Result<Arc<AlignedBuffer>>;

/// Takes the reply when it is there, on a thread of the server.
pub(crate) type Callback = Box<dyn FnOnce(Reply) + Send>;

/// Somebody who answers the requests of targets. The payload is a [`Request`] in postcard, passed on as it is.
pub(crate) trait Server: Send + Sync {
    /// Answers in its own time through `callback`, which is always called.
    fn submit(&self, request: Arc<AlignedBuffer>, callback: Callback);
}
