//! Hears of every event and keeps it: in the metrics, the timeline and the log.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use goldwire_netboot::content::without_tokens;
use goldwire_netboot::{Event, EventKind, Neighbours, Observer};
use goldwire_stdx::printable;
use jiff::Timestamp;
use tracing::{debug, info, warn};

use super::metrics::Metrics;
use super::rate::Rates;
use super::timeline::{Record, Writer};

/// Where events go.
#[derive(Debug)]
pub struct Telemetry {
    member: String,
    metrics: Metrics,
    /// Begun once root was dropped; until then nothing is kept.
    timeline: OnceLock<Writer>,
    rates: Mutex<Rates>,
    neighbours: Arc<Neighbours>,
}

impl Telemetry {
    /// For the boot server of this name. `neighbours` learn which device has which address, so that HTTP and TFTP know
    /// whom they serve.
    pub fn new(member: String, neighbours: Arc<Neighbours>) -> Self {
        Self {
            member,
            metrics: Metrics::default(),
            timeline: OnceLock::new(),
            rates: Mutex::new(Rates::new(Instant::now())),
            neighbours,
        }
    }

    /// Keeps what happens from now on in `timeline`, across restarts. A second timeline is not taken.
    pub fn keep(&self, timeline: Writer) {
        let _ = self.timeline.set(timeline);
    }

    /// What was counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

impl Observer for Telemetry {
    fn observe(&self, event: &Event<'_>) {
        self.metrics.count(event);
        let event = &Event { mac: event.device(), ..event.clone() };
        if let (EventKind::Leased, Some(mac), Some(address)) = (&event.kind, event.mac, event.address) {
            self.neighbours.learn(address, mac);
        }
        if let (Some(timeline), Some(record)) =
            (self.timeline.get(), Record::of(event, &self.member, Timestamp::now()))
        {
            let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
            if rates.is_kept(Instant::now(), event.mac) {
                timeline.write(record);
            }
        }
        log(event);
    }
}

/// A text with what devices sent and were sent, as it is kept: one line, and no token that is good.
pub(super) fn shown(text: &str) -> String {
    printable(&without_tokens(text)).into_owned()
}

/// Every line carries the device's MAC and address, `-` where they are not known, so that one search finds a device's
/// whole story.
fn log(event: &Event<'_>) {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    // The text is only made for lines that are printed: these are closures that the macros call last.
    let mac = || or_dash(event.mac.map(|mac| mac.to_string()));
    let address = || or_dash(event.address.map(|address| address.to_string()));
    match &event.kind {
        EventKind::Reached { protocol, stage, detail, .. } => {
            info!(mac = mac(), address = address(), protocol = protocol.name(), stage = stage.name(), detail = %shown(detail), "reached");
        }
        EventKind::Transferred { protocol, path, bytes, seconds, is_complete } => {
            debug!(mac = mac(), address = address(), protocol = protocol.name(), path = %shown(path), bytes, seconds, is_complete, "transferred");
        }
        EventKind::Refused { protocol, path, reason } => {
            warn!(mac = mac(), address = address(), protocol = protocol.name(), path = %shown(path), reason = %shown(reason), "refused");
        }
        EventKind::Dropped { protocol, reason } => {
            debug!(mac = mac(), address = address(), protocol = protocol.name(), reason = %shown(reason), "dropped");
        }
        // The table of members has said it, with its reason; of a lease, its stage.
        EventKind::Member { .. } | EventKind::Leased => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Mutex, PoisonError};

    use goldwire_netboot::{Protocol, Stage};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// Without DHCP the path alone says whose boot it is.
    #[test]
    fn a_path_that_names_a_device_tells_whose_boot_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let timeline = Writer::start(folder.path()).unwrap();
        let telemetry = Telemetry::new("m".into(), Arc::new(Neighbours::new()));
        telemetry.keep(timeline);
        let script = "s/52-54-00-12-34-56/bios/-/boot.ipxe";
        for (mac, protocol, detail) in [
            (None, Protocol::Http, script),
            (Some(goldwire_netboot::Mac([2; 6])), Protocol::Http, script),
            (None, Protocol::Http, "linux/vmlinuz"),
            // A text that DHCP has is no path.
            (None, Protocol::Dhcp, script),
        ] {
            let kind = EventKind::Reached { protocol, stage: Stage::Script, device: None, detail };
            telemetry.observe(&Event { mac, address: None, kind });
        }
        let reason = "the policy ignores this device";
        let kind = EventKind::Refused { protocol: Protocol::Tftp, path: script, reason };
        telemetry.observe(&Event { mac: None, address: None, kind });
        drop(telemetry);
        let mut follower = crate::boot::timeline::Follower::new(folder.path());
        let macs = std::iter::from_fn(|| follower.next_record().unwrap()).map(|record| record.mac);
        let own = Some("52:54:00:12:34:56".to_owned());
        assert_eq!(
            macs.collect::<Vec<_>>(),
            [own.clone(), Some("02:02:02:02:02:02".into()), None, None, own]
        );
    }

    #[test]
    fn a_device_writes_no_lines_of_its_own() {
        let lines = Lines::default();
        let writer = lines.clone();
        let log = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        let hostile =
            "t/000000000102030405060102030405060708090a0b0c0d0e0f10/x\n2026-01-01 INFO all is well\x1b[2J";
        let (protocol, path, reason) = (Protocol::Dhcp, hostile, hostile);
        let kinds = [
            EventKind::Reached { protocol, stage: Stage::Discover, device: None, detail: hostile },
            EventKind::Transferred { protocol, path, bytes: 1, seconds: 1.0, is_complete: true },
            EventKind::Refused { protocol, path, reason },
            EventKind::Dropped { protocol, reason },
        ];
        let count = kinds.len();
        let telemetry = Telemetry::new("m".into(), Arc::new(Neighbours::new()));
        tracing::subscriber::with_default(log, || {
            for kind in kinds {
                telemetry.observe(&Event { mac: None, address: None, kind });
            }
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), count, "{text}");
        assert!(!text.contains('\x1b') && !text.contains("0a0b0c0d"), "{text}");
    }
}
