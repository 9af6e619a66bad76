//! The server's clock: the machine's time at its start, and from then on a clock that nobody sets.
//!
//! A machine without a battery starts in 1970 and jumps when it hears of the time; with it, all leases would seem to have
//! ended. So the wall clock is read once, and never a time before the last one in the lease log is taken for true.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::dhcp::lease::Time;

/// A clock that does not run backwards.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Time,
    boot_time_at_start: Duration,
}

impl Clock {
    /// Starts at the machine's time, but not before `not_before`.
    pub fn start(not_before: Time) -> Self {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let wall = Time(u64::try_from(wall.as_millis()).unwrap_or(u64::MAX));
        Self { start: wall.max(not_before), boot_time_at_start: boot_time() }
    }

    /// The time now.
    pub fn now(&self) -> Time {
        self.start.after(boot_time().saturating_sub(self.boot_time_at_start))
    }
}

/// Time since the machine was started, sleep included: leases end while it sleeps.
fn boot_time() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
