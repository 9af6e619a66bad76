//! How hard answers are compressed: by the speed of the connections that they leave by.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::connection::ConnectionStats;

pub(super) enum LevelChoice {
    Fixed(i32),
    Adaptive(Arc<Pace>),
}

/// What an answer carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// What a seed left over, or words about content: little, beside much work at both ends.
    Little,
    /// Disk content, as much as there is.
    Bulk,
}

impl LevelChoice {
    pub(super) fn for_answer(&self, content: Content) -> i32 {
        match self {
            Self::Fixed(level) => *level,
            // So that a few milliseconds more are no matter.
            Self::Adaptive(pace) if content == Content::Little => pace.level().max(LITTLE_LEVEL_MIN),
            Self::Adaptive(pace) => pace.level(),
        }
    }
}

/// The least level for little.
const LITTLE_LEVEL_MIN: i32 = 5;

/// The speed of the connections that answers leave by, as a compression level: the slower the fastest of them, the
/// more it pays to compress. A connection's speed is what it carried divided by the time that writes to it took, so an
/// idle connection looks fast, which is right: then it is not what we wait for.
#[derive(Debug)]
pub(crate) struct Pace {
    connections: Mutex<Vec<Watched>>,
    level: AtomicI32,
    looked_ms: AtomicU64,
    epoch: Instant,
}

#[derive(Debug)]
struct Watched {
    stats: Arc<ConnectionStats>,
    bytes_out: u64,
    writing_ns: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            connections: Mutex::default(),
            level: AtomicI32::new(1),
            looked_ms: AtomicU64::new(0),
            epoch: Instant::now(),
        }
    }
}

impl Pace {
    const LOOK_EVERY: Duration = Duration::from_millis(250);
    /// From this many bytes per second on, this level: measured so that one core compresses typical disk
    /// content about as fast as the connection takes the result.
    const STEPS: [(u64, i32); 6] =
        [(300_000_000, -3), (120_000_000, 1), (40_000_000, 3), (15_000_000, 6), (4_000_000, 9), (0, 12)];

    /// Takes a connection into account from now on.
    pub(crate) fn watch(&self, stats: Arc<ConnectionStats>) {
        let (bytes_out, writing_ns) = Self::read(&stats);
        self.lock().push(Watched { stats, bytes_out, writing_ns });
    }

    fn level(&self) -> i32 {
        let now = self.epoch.elapsed().as_millis() as u64;
        let looked = self.looked_ms.load(Ordering::Relaxed);
        let due = now.saturating_sub(looked) >= Self::LOOK_EVERY.as_millis() as u64;
        if due && self.looked_ms.compare_exchange(looked, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let fastest = self.lock().iter_mut().filter_map(Watched::rate).max();
            if let Some(rate) = fastest {
                let step = Self::STEPS.iter().find(|(least, _)| rate >= *least);
                self.level.store(step.map_or(1, |(_, level)| *level), Ordering::Relaxed);
            }
        }
        self.level.load(Ordering::Relaxed)
    }

    fn read(stats: &ConnectionStats) -> (u64, u64) {
        (stats.bytes_out.load(Ordering::Relaxed), stats.writing_ns.load(Ordering::Relaxed))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Watched>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// Bytes per second of writing time since the last look; none while too little was written to tell.
    fn rate(&mut self) -> Option<u64> {
        let (bytes_out, writing_ns) = Pace::read(&self.stats);
        let bytes = bytes_out - self.bytes_out;
        if bytes < 256 * 1024 {
            return None;
        }
        let ns = (writing_ns - self.writing_ns).max(1);
        (self.bytes_out, self.writing_ns) = (bytes_out, writing_ns);
        Some((u128::from(bytes) * 1_000_000_000 / u128::from(ns)) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection that took so long to carry so much.
    fn stats(bytes: u64, time: Duration) -> Arc<ConnectionStats> {
        let stats = ConnectionStats::default();
        write(&stats, bytes, time);
        Arc::new(stats)
    }

    fn write(stats: &ConnectionStats, bytes: u64, time: Duration) {
        stats.bytes_out.fetch_add(bytes, Ordering::Relaxed);
        stats.writing_ns.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
    }

    /// The level after the next look.
    fn level(pace: &Pace) -> i32 {
        std::thread::sleep(Pace::LOOK_EVERY + Duration::from_millis(20));
        pace.level()
    }

    #[test]
    fn the_slower_the_fastest_connection_the_harder_is_compressed() {
        for (rate, expected) in [
            (400_000_000, -3),
            (300_000_000, -3),
            (299_000_000, 1),
            (119_000_000, 3),
            (20_000_000, 6),
            (5_000_000, 9),
            (1_000_000, 12),
        ] {
            let pace = Pace::default();
            let (slow, fast) = (stats(0, Duration::ZERO), stats(9 << 30, Duration::from_secs(900)));
            pace.watch(Arc::clone(&slow));
            pace.watch(Arc::clone(&fast));
            write(&slow, 500_000, Duration::from_secs(10));
            // What was carried before counts for nothing.
            write(&fast, rate, Duration::from_secs(1));
            assert_eq!(level(&pace), expected, "{rate}");
            assert_eq!(pace.level(), expected, "between looks");
            write(&fast, 100_000, Duration::from_secs(100));
            assert_eq!(level(&pace), expected, "too little to tell by");
        }
    }

    #[test]
    fn a_delta_is_compressed_well_and_a_fixed_level_is_fixed() {
        let pace = Arc::new(Pace::default());
        let adaptive = LevelChoice::Adaptive(Arc::clone(&pace));
        assert_eq!(
            (adaptive.for_answer(Content::Bulk), adaptive.for_answer(Content::Little)),
            (1, LITTLE_LEVEL_MIN)
        );
        pace.level.store(9, Ordering::Relaxed);
        assert_eq!((adaptive.for_answer(Content::Bulk), adaptive.for_answer(Content::Little)), (9, 9));
        let fixed = LevelChoice::Fixed(-4);
        assert_eq!((fixed.for_answer(Content::Bulk), fixed.for_answer(Content::Little)), (-4, -4));
    }
}
