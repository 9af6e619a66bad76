//! Whether this process can do its part: what is stuck or fails in it, so that its health knows.
//!
//! A member that is half alive is worse than a dead one: it answers first and then never again. Every part of the job
//! that can hang (a disk) says here when it begins something and when that is done, and what fails until it works again.
//! Whoever is asked for the member's health, or is about to promise something that needs the part, looks here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A part of the job that can be stuck while the rest goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The lease log's disk: without it no address is given away.
    LeaseLog,
    /// The disk of the boot tree.
    BootTree,
}

impl Part {
    /// The name in logs and on `/health`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::LeaseLog => "the lease log",
            Self::BootTree => "the boot tree",
        }
    }
}

/// A disk that does not answer for so long is stuck, or as good as that for what boots: iPXE waits as long for a byte.
const READ_PATIENCE: Duration = Duration::from_secs(5);

/// What the parts have said.
#[derive(Debug)]
pub struct Fitness {
    state: Mutex<State>,
    read_patience: Duration,
}

impl Default for Fitness {
    fn default() -> Self {
        Self::with_patience(READ_PATIENCE)
    }
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// What is under way: the part, when that is too long, since when.
    running: BTreeMap<u64, (Part, Instant, Instant)>,
    failing: BTreeMap<Part, String>,
    /// Troubles that were logged and have not ended.
    warned: BTreeSet<Part>,
}

/// Something is under way, until this is dropped.
#[derive(Debug)]
pub(crate) struct Working {
    fitness: Arc<Fitness>,
    number: u64,
}

impl Fitness {
    /// With another patience for the boot tree's disk than five seconds.
    pub(crate) fn with_patience(read_patience: Duration) -> Self {
        Self { state: Mutex::default(), read_patience }
    }

    /// Somebody begins to read what may wait for the boot tree's disk.
    pub(crate) fn begin_read(self: &Arc<Self>) -> Working {
        self.begin(Part::BootTree, self.read_patience)
    }

    /// A part begins something that is done within `patience`, or the part is stuck.
    pub(crate) fn begin(self: &Arc<Self>, part: Part, patience: Duration) -> Working {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let number = state.next;
        state.next = number.wrapping_add(1);
        state.running.insert(number, (part, now + patience, now));
        Working { fitness: Arc::clone(self), number }
    }

    /// A part fails, for this reason, until it [`works`](Self::works).
    pub(crate) fn fails(&self, part: Part, why: String) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failing.insert(part, why);
        self.trouble();
    }

    /// A part works.
    pub(crate) fn works(&self, part: Part) {
        let was_failing =
            self.state.lock().unwrap_or_else(PoisonError::into_inner).failing.remove(&part).is_some();
        if was_failing {
            self.trouble();
        }
    }

    /// Whether a part can be relied on now.
    pub(crate) fn is_fit(&self, part: Part) -> bool {
        let now = Instant::now();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.trouble_of(part, now).is_none()
    }

    /// What is wrong, in a sentence without a full stop; none if all is well. What begins and ends is logged once, by who
    /// asks first.
    pub fn trouble(&self) -> Option<String> {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut first = None;
        for part in [Part::LeaseLog, Part::BootTree] {
            match state.trouble_of(part, now) {
                Some(why) => {
                    let trouble = format!("{}: {why}", part.name());
                    if state.warned.insert(part) {
                        tracing::warn!(part = part.name(), why, "this member can serve no new device");
                    }
                    first = first.or(Some(trouble));
                }
                None if state.warned.remove(&part) => {
                    tracing::info!(part = part.name(), "it works again");
                }
                None => {}
            }
        }
        first
    }
}

impl State {
    fn trouble_of(&self, part: Part, now: Instant) -> Option<String> {
        if let Some(why) = self.failing.get(&part) {
            return Some(why.clone());
        }
        let late = self.running.values().filter(|(of, late, _)| *of == part && *late <= now);
        let since = late.map(|(_, _, since)| *since).min()?;
        Some(format!("its disk has not answered for {:.1} s", now.duration_since(since).as_secs_f64()))
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.fitness.state.lock().unwrap_or_else(PoisonError::into_inner).running.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Begin(Part, bool),
        End(usize),
        Fails(Part),
        Works(Part),
    }

    fn part() -> impl Strategy<Value = Part> {
        prop_oneof![Just(Part::LeaseLog), Just(Part::BootTree)]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (part(), any::<bool>()).prop_map(|(part, is_late)| Step::Begin(part, is_late)),
            (0..8_usize).prop_map(Step::End),
            part().prop_map(Step::Fails),
            part().prop_map(Step::Works),
        ]
    }

    proptest! {
        /// The rule: a member is fit exactly while nothing of it fails and nothing takes longer than it may.
        #[test]
        fn a_part_that_is_stuck_or_fails_is_known(steps in prop::collection::vec(step(), 0..30)) {
            let fitness = Arc::new(Fitness::default());
            let mut running: Vec<(Part, bool, Working)> = Vec::new();
            let mut failing = BTreeSet::new();
            for step in steps {
                match step {
                    Step::Begin(part, is_late) => {
                        let patience = if is_late { Duration::ZERO } else { Duration::from_secs(3600) };
                        running.push((part, is_late, fitness.begin(part, patience)));
                    }
                    Step::End(at) if at < running.len() => drop(running.remove(at)),
                    Step::End(_) => {}
                    Step::Fails(part) => {
                        fitness.fails(part, "no space".into());
                        failing.insert(part);
                    }
                    Step::Works(part) => {
                        fitness.works(part);
                        failing.remove(&part);
                    }
                }
                let is_bad = |wanted: Part| {
                    failing.contains(&wanted) || running.iter().any(|(part, is_late, _)| *part == wanted && *is_late)
                };
                prop_assert_eq!(fitness.is_fit(Part::LeaseLog), !is_bad(Part::LeaseLog));
                prop_assert_eq!(fitness.is_fit(Part::BootTree), !is_bad(Part::BootTree));
                prop_assert_eq!(fitness.trouble().is_some(), is_bad(Part::LeaseLog) || is_bad(Part::BootTree));
            }
        }
    }
}
