//! Moving versions between hosts: a framed protocol over any byte stream, a target that asks for what it lacks,
//! a source that reads and compresses once for any number of targets.
//!
//! Three sides, as in `docs/protocol.md`: the [`session`] of the control machine, the [`source`] that serves an image, the
//! [`receive`] side that makes it a file. An [`agent`] is the source or the target on a host.
//!
//! This crate knows what is missing where, sessions, resume and bandwidth. It deliberately does not know how a
//! transfer was decided, nor the command line.

pub mod agent;
mod choose;
mod connection;
mod dial;
mod endpoint;
mod failure;
mod install;
mod job;
mod list;
mod receive;
mod session;
mod source;
#[cfg(test)]
mod testing;
pub mod wire;

pub use endpoint::Endpoint;
pub use failure::Result;
pub use install::{Agents, Program, digest_of, own_agent};
pub use job::{
    Choice, Effort, Older, Questions, Reach, Route, STALL_MAX, Seeds, Select, Signal, SyncEvent, SyncJob,
    SyncReport, TargetEvent, Trust, WriteRules,
};
pub use list::matches;
pub use receive::{Extent, Left, Leftover, Reason, Spared, Tidied, Tidying, image_name, tidy};
pub use session::sync;

/// What the fuzz targets reach: what lies in a work folder as anybody may have left it.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    pub use crate::receive::fuzzing::*;
}
