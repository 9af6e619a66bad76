//! What holds sending back: a limit, and a pause.

use std::io;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use goldwire_stdx::TokenBucket;

/// Bandwidth limit and pause switch, shared by all connections over which one side sends.
#[derive(Debug)]
pub(crate) struct Throttle {
    state: Mutex<ThrottleState>,
    changed: Condvar,
    epoch: Instant,
}

#[derive(Debug)]
struct ThrottleState {
    bucket: TokenBucket,
    paused: bool,
    /// Counts changes, so that a sleeper notices one.
    generation: u64,
}

impl Default for Throttle {
    fn default() -> Self {
        let bucket = TokenBucket::new(None, Duration::ZERO);
        Self {
            state: Mutex::new(ThrottleState { bucket, paused: false, generation: 0 }),
            changed: Condvar::new(),
            epoch: Instant::now(),
        }
    }
}

impl Throttle {
    /// The longest single sleep, so that urgent frames and pings are not held up.
    const NAP: Duration = Duration::from_millis(200);

    /// Sets the limit in bytes per second; none is unlimited.
    pub(crate) fn set_rate(&self, rate: Option<u64>) {
        let now = self.epoch.elapsed();
        self.change(|state| state.bucket.set_rate(rate, now));
    }

    /// Stops all sending of answers.
    pub(crate) fn pause(&self) {
        self.change(|state| state.paused = true);
    }

    /// Goes on sending.
    pub(crate) fn resume(&self) {
        self.change(|state| state.paused = false);
    }

    /// Whether sending is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.lock().paused
    }

    fn change(&self, change: impl FnOnce(&mut ThrottleState)) {
        let mut state = self.lock();
        change(&mut state);
        state.generation += 1;
        self.changed.notify_all();
    }

    /// Returns when `bytes` may be sent; calls `meanwhile` between naps.
    pub(super) fn admit(&self, bytes: u64, mut meanwhile: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        let mut debt = bytes;
        loop {
            let state = self.lock();
            let generation = state.generation;
            let mut state = state;
            let wait = if state.paused {
                Self::NAP
            } else {
                // The bytes are taken once; a later round only pays off the debt, at whatever rate holds then.
                let wait = state.bucket.take(std::mem::take(&mut debt), self.epoch.elapsed());
                if wait.is_zero() {
                    return Ok(());
                }
                wait.min(Self::NAP)
            };
            let (state, _) = self
                .changed
                .wait_timeout_while(state, wait, |state| state.generation == generation)
                .unwrap_or_else(PoisonError::into_inner);
            drop(state);
            meanwhile()?;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ThrottleState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
