//! Weighted rendezvous hashing: which member is the best for a client.
//!
//! Each pair of member and client draws one number from a hash. A member's score is its weight divided by `-log2` of
//! that number in (0, 1); the highest score wins, so a member wins its weight's share of the clients, and taking one
//! away moves nobody but its own clients (Schindelhauer and Schomaker, "Weighted distributed hash tables", 2005).
//! All of it is integer arithmetic: every member computes the same order, whatever its processor and C library.

use std::cmp::Ordering;

/// How well a member suits a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Score {
    weight: u32,
    /// `-log2` of what was drawn, with 32 bits behind the point; never 0.
    distance: u64,
}

impl Score {
    /// The score of the member with this name and weight for this client.
    pub(super) fn of(name: &str, weight: u32, key: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"goldwire boot member rank 1\0");
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(key);
        let mut drawn = [0; 8];
        hasher.finalize_xof().fill(&mut drawn);
        Self { weight, distance: distance(u64::from_le_bytes(drawn)) }
    }

    /// The better one first.
    pub(super) fn better_first(self, other: Self) -> Ordering {
        let [ours, theirs] = [(self, other), (other, self)]
            .map(|(one, another)| u128::from(one.weight) * u128::from(another.distance));
        theirs.cmp(&ours)
    }
}

/// `64 - log2(drawn)`, with 32 bits behind the point.
fn distance(drawn: u64) -> u64 {
    let drawn = drawn.max(1);
    let whole = u64::from(drawn.ilog2());
    // In [1, 2), with 63 bits behind the point. Squaring doubles the logarithm, and carries its next bit out.
    let mut mantissa = u128::from(drawn << drawn.leading_zeros());
    let mut fraction = 0_u64;
    for _ in 0..32 {
        mantissa = (mantissa * mantissa) >> 63;
        let bit = mantissa >> 64;
        mantissa >>= bit;
        fraction = fraction << 1 | bit as u64;
    }
    (64 << 32) - (whole << 32 | fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_one() {
        for drawn in [1, 2, 3, 1000, 1 << 40, 0x1234_5678_9abc_def0, u64::MAX] {
            let expected = 64.0 - (drawn as f64).log2();
            let found = distance(drawn) as f64 / f64::from(1_u32 << 16) / f64::from(1_u32 << 16);
            assert!((expected - found).abs() < 1e-8, "{drawn}: {expected} {found}");
        }
        assert!(distance(u64::MAX) > 0 && distance(0) == 64 << 32);
    }

    #[test]
    fn members_win_their_weights_share() {
        let members = [("a", 1), ("b", 2), ("c", 5)];
        let mut wins = [0_u32; 3];
        for client in 0..80_000_u32 {
            let scores = members.map(|(name, weight)| Score::of(name, weight, &client.to_le_bytes()));
            let best = (0..3).min_by(|a, b| scores[*a].better_first(scores[*b])).unwrap();
            wins[best] += 1;
        }
        // Five standard deviations are 500.
        for (won, expected) in wins.into_iter().zip([10_000, 20_000, 50_000]) {
            assert!(won.abs_diff(expected) < 600, "{wins:?}");
        }
    }

    #[test]
    fn the_order_stays_the_same_in_every_release() {
        // Members of different releases share a group; a changed hash would send a client to another at each packet.
        assert_eq!(
            Score::of("boot1", 3, b"\x52\x54\x00\x12\x34\x56"),
            Score { weight: 3, distance: 5_120_270_830 }
        );
    }
}
