//! How much of the timeline one device, and all that are new, may fill. Whoever invents devices must not push out what
//! happened to the real ones.

use std::collections::HashMap;
use std::time::Instant;

use goldwire_netboot::Mac;

/// Records of one device at once: several boots, each of some forty.
const DEVICE_BURST: f64 = 200.0;
/// Records of one device per second from then on.
const DEVICE_PER_S: f64 = 2.0;
/// Devices that are new at once: a large site that is switched on.
const NEW_BURST: f64 = 5000.0;
/// Devices that are new per second from then on.
const NEW_PER_S: f64 = 10.0;
/// Devices that are remembered. Past it all are forgotten, and count as new again.
const DEVICES_MAX: usize = 65_536;

/// What was recorded of whom.
#[derive(Debug)]
pub(super) struct Rates {
    devices: HashMap<Option<Mac>, Bucket>,
    new: Bucket,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn take(&mut self, now: Instant, burst: f64, per_s: f64) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * per_s).min(burst);
        self.at = now;
        let is_room = self.left >= 1.0;
        if is_room {
            self.left -= 1.0;
        }
        is_room
    }
}

impl Rates {
    pub(super) fn new(now: Instant) -> Self {
        Self { devices: HashMap::new(), new: Bucket { left: NEW_BURST, at: now } }
    }

    /// Whether one more record of this device is kept.
    pub(super) fn is_kept(&mut self, now: Instant, device: Option<Mac>) -> bool {
        if let Some(bucket) = self.devices.get_mut(&device) {
            return bucket.take(now, DEVICE_BURST, DEVICE_PER_S);
        }
        if !self.new.take(now, NEW_BURST, NEW_PER_S) {
            return false;
        }
        if self.devices.len() >= DEVICES_MAX {
            self.devices.clear();
        }
        self.devices.insert(device, Bucket { left: DEVICE_BURST - 1.0, at: now });
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    // 60,000 DISCOVERs pushed the whole history out of the timeline.
    #[test]
    fn inventions_do_not_fill_the_timeline_and_known_devices_are_kept() {
        let start = Instant::now();
        let mut rates = Rates::new(start);
        let known = Some(Mac([2, 0, 0, 0, 0, 1]));
        assert!(rates.is_kept(start, known));
        let invented = |number: u32| {
            let [a, b, c, d] = number.to_be_bytes();
            Some(Mac([6, 0, a, b, c, d]))
        };
        let later = |number: u32| start + Duration::from_millis(u64::from(number));
        let kept = (0..60_000).filter(|number| rates.is_kept(later(*number), invented(*number))).count();
        assert!((5000..6000).contains(&kept), "{kept}");
        assert!((0..40).all(|_| rates.is_kept(later(60_000), known)), "a boot of a device that is known");
        let kept = (0..60_000).filter(|number| rates.is_kept(later(60_000 + number), known)).count();
        assert!(kept < 400, "{kept}: one device does not either");
        assert!(rates.is_kept(later(600_000), invented(99_999)), "who is new is kept again");
    }
}
