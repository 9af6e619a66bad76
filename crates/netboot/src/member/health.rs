//! From signs of life to a verdict that does not flap. Time is an argument.

use std::time::Duration;

/// What is thought of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing was heard of it yet: it is not given to anybody, and its first sign is enough.
    Unheard,
    /// It lives. The time of its last sign.
    Up(Duration),
    /// It is dead. Signs since then in a row, and the time of the last one.
    Down(u32, Duration),
}

/// One member's signs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Health {
    verdict: Verdict,
    /// Signs in a row that bring a dead member back.
    signs_to_return: u32,
}

impl Health {
    /// Of a member of whom nothing is known.
    pub(super) fn new(signs_to_return: u32) -> Self {
        Self { verdict: Verdict::Unheard, signs_to_return }
    }

    /// Whether it lives.
    pub(super) fn is_up(&self) -> bool {
        matches!(self.verdict, Verdict::Up(_))
    }

    /// When it last gave a sign, as long as it lives.
    pub(super) fn last_sign(&self) -> Option<Duration> {
        match self.verdict {
            Verdict::Up(at) => Some(at),
            Verdict::Unheard | Verdict::Down(..) => None,
        }
    }

    /// It gave a sign of life.
    pub(super) fn sign(&mut self, now: Duration) {
        self.verdict = match self.verdict {
            Verdict::Unheard | Verdict::Up(_) => Verdict::Up(now),
            Verdict::Down(signs, _) if signs + 1 >= self.signs_to_return => Verdict::Up(now),
            Verdict::Down(signs, _) => Verdict::Down(signs + 1, now),
        };
    }

    /// It is known to be dead.
    pub(super) fn fail(&mut self, now: Duration) {
        self.verdict = Verdict::Down(0, now);
    }

    /// Takes the time: silence of `limit` is death, and between the signs of a return it starts the count anew.
    pub(super) fn expire(&mut self, now: Duration, limit: Duration) {
        match self.verdict {
            Verdict::Up(at) | Verdict::Down(1.., at) if now.saturating_sub(at) >= limit => self.fail(now),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(3);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_sign_is_enough_and_a_return_needs_several_in_a_row() {
        let mut health = Health::new(3);
        assert!(!health.is_up());
        health.sign(at(1));
        assert!(health.is_up());
        health.expire(at(3), LIMIT);
        assert!(health.is_up());
        health.expire(at(4), LIMIT);
        assert!(!health.is_up());
        health.sign(at(5));
        health.sign(at(6));
        // Silence in between starts the count anew.
        health.expire(at(9), LIMIT);
        health.sign(at(10));
        health.sign(at(11));
        assert!(!health.is_up());
        health.sign(at(12));
        assert_eq!(health.last_sign(), Some(at(12)));
    }
}
