//! Leases: who holds which address, in memory ([`Table`]) and on the disk ([`Log`], `docs/lease-log.md`).

use std::time::Duration;

mod identity;
mod log;
mod pool;
mod record;
mod scan;
mod state;
mod subnet;
mod table;
mod volume;

pub use identity::{ClientId, Hardware, Key};
pub use log::LogError;
pub(crate) use log::{Log, Opened};
pub use pool::AddressRange;
pub use record::{MemberId, Record, RecordState};
pub use scan::{Damage, Header, Scan, scan};
pub use state::{Lease, State};
pub(crate) use subnet::Requester;
pub use subnet::{Plan, Reservation, Terms};
pub(crate) use table::Denied;
pub use table::Table;
pub(crate) use volume::{Folder, Volume};

#[cfg(test)]
pub(super) use tests::CrashingVolume;
#[cfg(test)]
pub(crate) use {identity::IdentifiedBy, record::RelayAgent, table::Held};

/// A point in time: milliseconds since the Unix epoch. The driver's clock follows the machine's when
/// somebody sets that, and what was decided meanwhile moves with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// This much later; the end of time where there is none.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// This many milliseconds later, or earlier if it is negative.
    pub(crate) fn shifted(self, by_ms: i64) -> Self {
        Self(self.0.saturating_add_signed(by_ms))
    }

    /// How long until this, seen from `now`; zero when it is over.
    pub(crate) fn remaining(self, now: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(now.0))
    }
}

#[cfg(test)]
mod tests;
