//! Moving versions between hosts: a framed protocol over any byte stream, a target that asks for what it lacks,
//! a source that reads and compresses once for any number of targets.
//!
//! This crate knows what is missing where, sessions, resume and bandwidth. It deliberately does not know how a
//! transfer was decided, nor the command line.

pub mod agent;
mod control;
mod dial;
mod failure;
mod link;
mod list;
mod server;
mod target;
pub mod wire;

pub use control::{
    Choice, Place, Route, Signal, SyncEvent, SyncJob, SyncReport, TargetEvent, format_time, format_uuid,
    own_agent, sync,
};
pub use dial::{Agents, Program, digest_of};
pub use failure::Result;
pub use list::matches;
