//! Members that hear each other: small authenticated datagrams, ten a second between each two members.
//!
//! A heartbeat counts only if its sender proves that it lives *now*: it has to echo the number that the receiver drew
//! for it, and to raise its sequence. Recorded datagrams are worth nothing then, however old or young, and clocks play
//! no part: a member whose clock steps by a year stays alive. Clocks are compared all the same, because short-lived
//! tokens need them to agree; a difference is a warning.
//!
//! How the interval follows from the promise: a dead member has to leave the replies within 2 s, so silence of
//! [`DEAD_AFTER`] is death, and half a second is left for the network and the reader's own scheduling. At
//! [`INTERVAL`] that silence takes 14 heartbeats lost in a row. Where each is lost with probability 0.2 this happens to
//! a pair of members with probability 0.2¹⁴ = 1.6·10⁻¹⁰ per heartbeat, 6·10⁻⁶ per hour.

mod driver;
pub(crate) mod machine;
#[cfg(test)]
mod simulation;
pub(crate) mod wire;

pub use driver::{HeartbeatSettings, Heartbeats, RunningHeartbeats};
pub use machine::{Group, Peer};
pub use wire::{Announcement, Condition, Key};
