//! The boot servers of a group that can answer for each other, and which of them a device is given.

mod fitness;
mod health;
pub mod heartbeat;
pub(crate) mod one;
mod probe;
mod rank;
mod table;

pub use fitness::Fitness;
pub(crate) use fitness::Part;
pub(crate) use one::{LiveMembers, Member, MemberState};
pub use probe::{ProbeSettings, Prober};
pub use table::{MEMBERS_MAX, MemberConfig, NAME_MAX, Table, TableError};
