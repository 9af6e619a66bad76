//! A token bucket without a clock: the caller says what time it is and sleeps itself.

use std::time::Duration;

/// Grants bytes at a rate, with a burst of at most a tenth of a second's worth (but at least one byte, so that
/// every positive rate makes progress).
#[derive(Clone, Debug)]
pub struct TokenBucket {
    /// Bytes per second; none means unlimited.
    rate: Option<u64>,
    /// Bytes that may be sent now; negative while a debt is paid off.
    tokens: f64,
    /// The time of the last refill, since an epoch of the caller's choice.
    refilled_at: Duration,
}

impl TokenBucket {
    /// A bucket for `rate` bytes per second (none: unlimited) that starts empty at `now`.
    pub fn new(rate: Option<u64>, now: Duration) -> Self {
        Self { rate, tokens: 0.0, refilled_at: now }
    }

    /// Changes the rate from `now` on; what was granted stays granted.
    pub fn set_rate(&mut self, rate: Option<u64>, now: Duration) {
        self.refill(now);
        self.rate = rate;
        self.tokens = self.tokens.min(self.burst());
    }

    /// Takes `bytes` at `now` and says how long to wait before sending them. The debt model lets one message be
    /// larger than the burst without ever exceeding the rate in the long run.
    pub fn take(&mut self, bytes: u64, now: Duration) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        self.refill(now);
        self.tokens -= bytes as f64;
        if self.tokens >= 0.0 {
            return Duration::ZERO;
        }
        // A rate of 0 pauses: an hour at a time, after which the caller asks again.
        Duration::try_from_secs_f64(-self.tokens / rate as f64).unwrap_or(Duration::from_secs(3600))
    }

    fn refill(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.refilled_at);
        self.refilled_at = self.refilled_at.max(now);
        if let Some(rate) = self.rate {
            self.tokens = (self.tokens + elapsed.as_secs_f64() * rate as f64).min(self.burst());
        }
    }

    fn burst(&self) -> f64 {
        self.rate.map_or(0.0, |rate| (rate as f64 / 10.0).max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_run_rate_holds_for_large_and_small_messages() {
        for message in [10_u64, 1_000, 500_000] {
            let mut now = Duration::ZERO;
            let mut bucket = TokenBucket::new(Some(100_000), now);
            let mut sent = 0;
            while sent < 2_000_000 {
                now += bucket.take(message, now);
                sent += message;
            }
            let rate = sent as f64 / now.as_secs_f64();
            assert!((95_000.0..=105_000.0).contains(&rate), "{message}: {rate}");
        }
    }

    #[test]
    fn unlimited_never_waits_and_a_new_rate_binds_at_once() {
        let mut bucket = TokenBucket::new(None, Duration::ZERO);
        assert_eq!(bucket.take(u64::MAX, Duration::ZERO), Duration::ZERO);
        bucket.set_rate(Some(1_000), Duration::from_secs(5));
        assert_eq!(bucket.take(2_000, Duration::from_secs(5)), Duration::from_secs(2));
    }

    #[test]
    fn a_clock_that_steps_back_grants_nothing() {
        let mut bucket = TokenBucket::new(Some(1_000), Duration::from_secs(10));
        assert_eq!(bucket.take(1_000, Duration::from_secs(3)), Duration::from_secs(1));
        assert_eq!(bucket.take(0, Duration::from_secs(3)), Duration::from_secs(1));
    }
}
