//! The server's clock: the machine's time, taken once and counted on by a clock that nobody sets; and followed when
//! somebody sets the machine's.
//!
//! A machine without a battery starts in 1970 and jumps when it hears of the time; one that was resumed, or that had a bad
//! battery, jumps a day ahead or back. With the wall clock alone, all leases would seem to have ended, or to have begun in
//! the future. So time is counted by the boot clock, never from before the last record of the lease log, and a step of the
//! wall clock against it is noticed: whoever keeps times moves them by what [`Clock::follow`] says.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::dhcp::lease::Time;

/// A smaller difference is no step: time servers slew it, and both clocks alike.
const STEP_MIN_MS: i64 = 2000;

/// A clock that runs evenly between steps.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// Since when this run has given out times, by this clock.
    started: Time,
    /// This clock's time at the boot clock's zero.
    base_ms: i64,
    /// The wall clock's time at the boot clock's zero, as it was seen last.
    wall_base_ms: i64,
}

impl Clock {
    /// Starts at the machine's time, but not before `not_before`.
    pub(crate) fn start(not_before: Time) -> Self {
        Self::start_at(wall_ms(), boot_ms(), not_before)
    }

    fn start_at(wall_ms: i64, boot_ms: i64, not_before: Time) -> Self {
        let wall_base_ms = wall_ms - boot_ms;
        let started = Time(wall_ms.unsigned_abs()).max(not_before);
        let base_ms = i64::try_from(started.0).unwrap_or(i64::MAX).saturating_sub(boot_ms);
        Self { started, base_ms, wall_base_ms }
    }

    /// The time now.
    pub(crate) fn now(&self) -> Time {
        self.at(boot_ms())
    }

    fn at(&self, boot_ms: i64) -> Time {
        Time(self.base_ms.saturating_add(boot_ms).max(0).unsigned_abs())
    }

    /// Since when this run has given out times, by this clock.
    pub(crate) fn started(&self) -> Time {
        self.started
    }

    /// The times of this run were moved by so much.
    pub(crate) fn moved_start(&mut self, by_ms: i64) {
        self.started = self.started.shifted(by_ms);
    }

    /// Looks whether the machine's clock was set, and if so goes by it from now on. Returns by how many milliseconds this
    /// clock has moved, forward or back.
    pub(crate) fn follow(&mut self) -> Option<i64> {
        self.follow_at(wall_ms(), boot_ms())
    }

    fn follow_at(&mut self, wall_ms: i64, boot_ms: i64) -> Option<i64> {
        let wall_base_ms = wall_ms - boot_ms;
        if (wall_base_ms - self.wall_base_ms).abs() < STEP_MIN_MS {
            return None;
        }
        self.wall_base_ms = wall_base_ms;
        let step_ms = wall_base_ms.saturating_sub(self.base_ms);
        self.base_ms = wall_base_ms;
        (step_ms != 0).then_some(step_ms)
    }
}

fn wall_ms() -> i64 {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(wall.as_millis()).unwrap_or(i64::MAX)
}

/// Milliseconds since the machine was started, sleep included: leases end while it sleeps.
fn boot_ms() -> i64 {
    let time = clock_gettime(ClockId::Boottime);
    let time = Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0));
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY_MS: i64 = 86_400_000;

    proptest! {
        /// The rule: however wrong the machine's clock was at the start, and however often it is set, from its last step on
        /// this clock says what it says; and the sum of the steps is by how much what was decided before has to move.
        #[test]
        fn the_clock_goes_by_the_machines_from_its_last_step_on(
            wrong_ms in -20_000 * DAY_MS..2 * DAY_MS,
            ahead_ms in 0..3 * DAY_MS,
            steps in prop::collection::vec((1..DAY_MS, -DAY_MS..DAY_MS), 1..6),
        ) {
            let (mut wall, mut boot) = ((20_500 * DAY_MS + wrong_ms).max(0), 60_000);
            let not_before = Time((wall + ahead_ms - DAY_MS).max(0).unsigned_abs());
            let mut clock = Clock::start_at(wall, boot, not_before);
            prop_assert!(clock.at(boot) >= not_before && clock.at(boot) >= Time(wall.unsigned_abs()));
            let mut expected = clock.at(boot);
            for (passed, step) in steps {
                wall += passed;
                boot += passed;
                expected = expected.shifted(passed);
                prop_assert_eq!(clock.follow_at(wall, boot), None);
                prop_assert_eq!(clock.at(boot), expected);
                if step.abs() >= STEP_MIN_MS && wall + step >= 0 {
                    wall += step;
                    let moved = clock.follow_at(wall, boot).unwrap_or(0);
                    expected = expected.shifted(moved);
                    prop_assert_eq!(expected, Time(wall.unsigned_abs()));
                    prop_assert_eq!(clock.at(boot), expected);
                }
            }
        }
    }
}
