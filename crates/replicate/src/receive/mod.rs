//! Receiving a version: the target decides what it needs, asks for that, and publishes only what it has read
//! back itself.
//!
//! ```text
//! resolve ─► claim ─► seeds ─► walk ─► plan ─► lay out ─► transfer ─► read back ─► publish
//!              lock            tree    space    container   journal      root         rename
//! ```
//!
//! Everything up to *publish* happens below `.goldwire/work`; a run that ends anywhere before it leaves a place
//! that the next run continues from.

mod bitmap;
mod chunks;
mod client;
mod driver;
mod journal;
mod plan;
mod publish;
mod resolve;
mod seeds;
mod shift;
mod walk;
mod work;
mod workers;

pub(crate) use driver::{receive, uuid_of};

use crate::wire::{Frame, WireError};

/// What the driver of a transfer waits for.
pub(crate) enum Input {
    /// An answer or a refusal.
    Frame(Frame),
    /// The connection ended.
    Ended(Option<WireError>),
    /// Stop at the next safe place.
    Stop,
    /// From one of its own threads.
    Worker(workers::Report),
}
