//! Whether a peer gets anywhere. One that answers pings, talks, or says the same again may still never come to its end;
//! nobody waits for that. What somebody asked to be waited for, a pause and a target that another sync holds, is no stall.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::connection::{Throttle, lost};
use crate::failure::{AGAIN, Result};
use crate::wire::{Event, Failure, FailureKind, Phase};

/// How often a pause is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Changes of phase that count: an honest target reads back and fetches again twice at most.
const PHASES_MAX: u32 = 16;

/// Disks that one peer hashes, one after another: what it holds, seeds that were named, one that was found.
const DISKS_MAX: u32 = 256;

/// Counts that are looked at.
const COUNTS: usize = 6;

/// What a peer has come to so far, and since when it has come no further.
pub(super) struct Advance {
    since: Instant,
    /// How long it may wait for a target that somebody else holds.
    wait: Duration,
    /// When it was first heard to wait.
    waits_since: Option<Instant>,
    /// The most of each count that was heard.
    most: [u64; COUNTS],
    phase: Option<Phase>,
    phases: u32,
    disks: u32,
    /// Whether it was planned or answered for the first time.
    has_begun: bool,
}

impl Advance {
    /// Of a peer that has nothing to wait for.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            wait: Duration::ZERO,
            waits_since: None,
            most: [0; COUNTS],
            phase: None,
            phases: 0,
            disks: 0,
            has_begun: false,
        }
    }

    /// Of one that may wait so long, by our clock, while somebody else holds its target.
    pub(super) fn waiting(now: Instant, wait: Duration) -> Self {
        Self { wait, ..Self::new(now) }
    }

    /// Notes what was heard: only what has grown, or comes for the first time, is a step.
    fn note(&mut self, event: &Event, now: Instant) {
        let counts = match event {
            Event::Hashing { done, .. } => [*done, 0, 0, 0, 0, 0],
            Event::Progress(counters) => [
                0,
                counters.nodes_received,
                counters.bytes_laid_out,
                counters.chunks_done,
                counters.blocks_received,
                counters.bytes_verified,
            ],
            _ => [0; COUNTS],
        };
        let mut is_step = false;
        if let Event::Hashing { done, .. } = event
            && *done < self.most[0]
            && self.disks < DISKS_MAX
        {
            // The next disk begins.
            self.disks += 1;
            self.most[0] = *done;
        }
        for (most, count) in self.most.iter_mut().zip(counts) {
            is_step |= count > *most;
            *most = count.max(*most);
        }
        match event {
            Event::Waiting => {
                let waits_since = *self.waits_since.get_or_insert(now);
                is_step |= now.saturating_duration_since(waits_since) < self.wait;
            }
            Event::Phase(phase) if self.phase != Some(*phase) && self.phases < PHASES_MAX => {
                self.phase = Some(*phase);
                self.phases += 1;
                is_step = true;
            }
            Event::Planned(_) | Event::Images { .. } | Event::SourceReady(_) | Event::Dialed(_)
                if !self.has_begun =>
            {
                self.has_begun = true;
                is_step = true;
            }
            _ => {}
        }
        if is_step {
            // Some counts begin anew in each phase.
            if matches!(event, Event::Phase(_)) {
                self.most = [0; COUNTS];
            }
            self.since = now;
        }
    }

    /// The next event of `who`, unless it comes no further for longer than `most` while nothing is paused.
    pub(super) fn next(
        &mut self,
        who: &str,
        events: &Receiver<Event>,
        most: Duration,
        throttle: &Throttle,
    ) -> Result<Event> {
        loop {
            let now = Instant::now();
            if throttle.is_paused() {
                self.since = now;
            }
            let left = most.saturating_sub(now.saturating_duration_since(self.since));
            if left.is_zero() {
                return Err(stalled(who, most));
            }
            match events.recv_timeout(left.min(LOOK_EVERY)) {
                Ok(event) => {
                    self.note(&event, Instant::now());
                    return Ok(event);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(lost(who, None)),
            }
        }
    }
}

fn stalled(who: &str, most: Duration) -> Failure {
    let text = format!("{who} has come no further for {} s", most.as_secs_f64());
    Failure::new(FailureKind::Disconnected, text)
        .hint("see what holds it up there: a disk or a line that hangs; --stall-time 6h waits longer")
        .hint(AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Counters, Plan};

    /// What is said at which second; when the last step was.
    fn last_step(said: impl IntoIterator<Item = (u64, Event)>) -> u64 {
        let began = Instant::now();
        let mut advance = Advance::new(began);
        for (second, event) in said {
            advance.note(&event, began + Duration::from_secs(second));
        }
        (advance.since - began).as_secs()
    }

    fn progress(chunks_done: u64, wire_in: u64) -> Event {
        Event::Progress(Counters { chunks_done, wire_in, ..Counters::default() })
    }

    #[test]
    fn only_what_grows_is_a_step() {
        let hashing = |done| Event::Hashing { done, total: u64::MAX };
        assert_eq!(last_step([(1, hashing(5)), (2, hashing(5)), (3, hashing(5))]), 1);
        assert_eq!(last_step([(1, hashing(5)), (2, hashing(6))]), 2);
        assert_eq!(last_step([(1, progress(1, 0)), (2, progress(1, 9)), (3, progress(0, 99))]), 1);
        let verified = |bytes_verified| Event::Progress(Counters { bytes_verified, ..Counters::default() });
        let walked = |nodes_received| Event::Progress(Counters { nodes_received, ..Counters::default() });
        assert_eq!(last_step([(1, walked(0)), (2, walked(32)), (3, walked(64)), (4, walked(64))]), 3);
        let laid_out = |bytes_laid_out| Event::Progress(Counters { bytes_laid_out, ..Counters::default() });
        assert_eq!(last_step([(1, walked(9)), (2, laid_out(1)), (3, laid_out(2)), (4, laid_out(2))]), 3);
        assert_eq!(last_step([(1, progress(7, 0)), (2, verified(1)), (3, verified(2))]), 3);
        assert_eq!(last_step((1..99).map(|second| (second, Event::Notice(second.to_string())))), 0);
        assert_eq!(last_step((1..99).map(|second| (second, Event::Planned(Plan::default())))), 1);
        // The next disk is hashed; a phase begins its counts anew.
        assert_eq!(last_step([(1, hashing(5)), (2, hashing(1)), (3, hashing(2))]), 3);
        let phases = [(1, progress(9, 0)), (2, Event::Phase(Phase::Verifying)), (3, progress(1, 0))];
        assert_eq!(last_step(phases), 3);
    }

    /// A target that another sync holds may wait as long as the user said, however often it says so, and no longer.
    #[test]
    fn waiting_is_a_step_as_long_as_somebody_asked_for_it() {
        for wait in [0, 1, 50, 1000] {
            let began = Instant::now();
            let mut advance = Advance::waiting(began, Duration::from_secs(wait));
            for second in 100..1000 {
                advance.note(&Event::Waiting, began + Duration::from_secs(second));
            }
            let last = (advance.since - began).as_secs();
            let most = (99 + wait).min(999);
            assert_eq!(last, if wait == 0 { 0 } else { most }, "{wait} s");
        }
    }

    /// Whatever a peer repeats, and in whatever turn, comes to an end.
    #[test]
    fn turns_come_to_an_end() {
        let turns = [
            Event::Phase(Phase::Comparing),
            progress(1, 0),
            Event::Phase(Phase::Transferring),
            progress(2, 0),
        ];
        let said = (0..1000).map(|second| (second, turns[second as usize % turns.len()].clone()));
        assert!(last_step(said) < 100);
        let said = (0..10_000).map(|second| (second, Event::Hashing { done: second % 2, total: 2 }));
        assert!(last_step(said) <= 2 * u64::from(DISKS_MAX) + 1);
    }

    #[test]
    fn a_peer_without_a_step_is_given_up_and_a_pause_does_not_count() {
        let (said, events) = crossbeam_channel::unbounded();
        let throttle = Throttle::default();
        let most = Duration::from_millis(50);
        let mut advance = Advance::new(Instant::now());
        said.send(progress(1, 0)).unwrap();
        assert_eq!(advance.next("h", &events, most, &throttle), Ok(progress(1, 0)));
        let given_up = advance.next("host:/sr/", &events, most, &throttle).unwrap_err();
        assert!(given_up.to_string().contains("host:/sr/ has come no further"), "{given_up}");
        throttle.pause();
        std::thread::scope(|scope| {
            let waiting = goldwire_stdx::spawn_scoped(scope, "waits", || {
                Advance::new(Instant::now()).next("h", &events, most, &throttle)
            });
            std::thread::sleep(3 * most);
            said.send(progress(2, 0)).unwrap();
            assert_eq!(waiting.unwrap().join().unwrap(), Ok(progress(2, 0)));
        });
        drop(said);
        let lost = advance.next("the source /a", &events, Duration::from_secs(60), &throttle).unwrap_err();
        assert!(lost.to_string().starts_with("the connection to the source /a was lost"), "{lost}");
    }
}
