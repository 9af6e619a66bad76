//! What the boot servers count, for Prometheus.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use goldwire_netboot::dhcp::Counters;
use goldwire_netboot::{Event, EventKind, MemberState};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The counters. Labels are protocols, stages, members and fixed words: nothing that a device says, so that their
/// number is bounded.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    stages: Family<StageLabels, Counter>,
    transfers: Family<TransferLabels, Counter>,
    bytes: Family<ProtocolLabels, Counter>,
    seconds: Family<ProtocolLabels, Histogram>,
    refused: Family<ProtocolLabels, Counter>,
    dropped: Family<ProtocolLabels, Counter>,
    members: Family<MemberLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    protocol: &'static str,
    stage: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransferLabels {
    protocol: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProtocolLabels {
    protocol: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemberLabels {
    member: String,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a script of one packet to an image over a thin line.
        let buckets = || Histogram::new(exponential_buckets(0.001, 4.0, 10));
        let metrics = Self {
            registry: Mutex::new(Registry::with_prefix("goldwire_boot")),
            stages: Family::default(),
            transfers: Family::default(),
            bytes: Family::default(),
            seconds: Family::new_with_constructor(buckets),
            refused: Family::default(),
            dropped: Family::default(),
            members: Family::default(),
        };
        if let Ok(mut registry) = metrics.registry.lock() {
            registry.register("stages", "Steps that devices reached", metrics.stages.clone());
            registry.register("transfers", "Transfers that ended", metrics.transfers.clone());
            registry.register("sent_bytes", "Bytes of content sent", metrics.bytes.clone());
            registry.register("transfer_seconds", "Time of complete transfers", metrics.seconds.clone());
            registry.register("refused", "Requests that were refused", metrics.refused.clone());
            registry.register("dropped", "Packets without an answer", metrics.dropped.clone());
            registry.register(
                "member_up",
                "Whether each member answers and takes new devices",
                metrics.members.clone(),
            );
        }
        metrics
    }
}

impl Metrics {
    /// Counts an event.
    pub fn count(&self, event: &Event<'_>) {
        match &event.kind {
            EventKind::Reached { protocol, stage, .. } => {
                let labels = StageLabels { protocol: protocol.name(), stage: stage.name() };
                self.stages.get_or_create(&labels).inc();
            }
            EventKind::Transferred { protocol, bytes, seconds, is_complete, .. } => {
                let protocol = protocol.name();
                let outcome = if *is_complete { "complete" } else { "broken-off" };
                self.transfers.get_or_create(&TransferLabels { protocol, outcome }).inc();
                self.bytes.get_or_create(&ProtocolLabels { protocol }).inc_by(*bytes);
                if *is_complete {
                    self.seconds.get_or_create(&ProtocolLabels { protocol }).observe(*seconds);
                }
            }
            EventKind::Refused { protocol, .. } => {
                self.refused.get_or_create(&ProtocolLabels { protocol: protocol.name() }).inc();
            }
            EventKind::Dropped { protocol, .. } => {
                self.dropped.get_or_create(&ProtocolLabels { protocol: protocol.name() }).inc();
            }
            EventKind::Leased => {}
            EventKind::Member { name, state } => {
                let labels = MemberLabels { member: (*name).to_owned() };
                self.members.get_or_create(&labels).set(i64::from(*state == MemberState::Alive));
            }
        }
    }

    /// Shows what the DHCP server counts, from now on.
    pub fn show_dhcp(&self, counters: Arc<Counters>) {
        if let Ok(mut registry) = self.registry.lock() {
            registry.register_collector(Box::new(DhcpCounters(counters)));
        }
    }

    /// All counters in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Ok(registry) = self.registry.lock() {
            // Writing to a String cannot fail.
            let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
        }
        text
    }
}

/// The counters of the DHCP server, which it counts itself: they are read when somebody asks.
#[derive(Debug)]
struct DhcpCounters(Arc<Counters>);

impl Collector for DhcpCounters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Counters { received, malformed, congestion_drops, unfit_drops, stale_drops } = &*self.0;
        for (name, help, counted) in [
            ("dhcp_received", "Datagrams that came to the DHCP server", received),
            ("dhcp_malformed", "Datagrams that were no DHCP message", malformed),
            ("dhcp_congestion_drops", "DHCP requests dropped because there were too many", congestion_drops),
            (
                "dhcp_unfit_drops",
                "DHCP requests dropped while the disk of the lease log is stuck",
                unfit_drops,
            ),
            ("dhcp_stale_drops", "DHCP requests dropped because they had waited too long", stale_drops),
        ] {
            let counter = ConstCounter::new(counted.load(Ordering::Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldwire_netboot::{Protocol, Stage};

    #[test]
    fn events_are_counted() {
        let metrics = Metrics::default();
        let event = |kind| Event { mac: None, address: None, kind };
        let (protocol, device, detail) = (Protocol::Tftp, None, "x");
        metrics.count(&event(EventKind::Reached { protocol, stage: Stage::Bootstrap, device, detail }));
        for is_complete in [true, false] {
            metrics.count(&event(EventKind::Transferred {
                protocol,
                path: "x",
                bytes: 100,
                seconds: 0.5,
                is_complete,
            }));
        }
        metrics.count(&event(EventKind::Member { name: "boot2", state: MemberState::Dead }));
        let text = metrics.text();
        for line in [
            "goldwire_boot_stages_total{protocol=\"tftp\",stage=\"bootstrap\"} 1",
            "goldwire_boot_transfers_total{protocol=\"tftp\",outcome=\"complete\"} 1",
            "goldwire_boot_transfers_total{protocol=\"tftp\",outcome=\"broken-off\"} 1",
            "goldwire_boot_sent_bytes_total{protocol=\"tftp\"} 200",
            "goldwire_boot_transfer_seconds_count{protocol=\"tftp\"} 1",
            "goldwire_boot_member_up{member=\"boot2\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_dhcp_counts_is_shown() {
        let (metrics, counters) = (Metrics::default(), Arc::new(Counters::default()));
        metrics.show_dhcp(Arc::clone(&counters));
        counters.unfit_drops.fetch_add(3, Ordering::Relaxed);
        counters.stale_drops.fetch_add(2, Ordering::Relaxed);
        let text = metrics.text();
        for line in ["goldwire_boot_dhcp_unfit_drops_total 3", "goldwire_boot_dhcp_stale_drops_total 2"] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    /// Whoever sets an alarm has to know the names.
    #[test]
    fn every_metric_is_in_the_guide() {
        let metrics = Metrics::default();
        metrics.show_dhcp(Arc::default());
        let (protocol, path, reason) = (Protocol::Tftp, "x", "x");
        // A family shows itself from its first event on.
        for kind in [
            EventKind::Reached { protocol, stage: Stage::Bootstrap, device: None, detail: "x" },
            EventKind::Transferred { protocol, path, bytes: 1, seconds: 0.5, is_complete: true },
            EventKind::Refused { protocol, path, reason },
            EventKind::Dropped { protocol, reason },
            EventKind::Member { name: "boot2", state: MemberState::Alive },
        ] {
            metrics.count(&Event { mac: None, address: None, kind });
        }
        let guide = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/boot.md");
        let guide = std::fs::read_to_string(guide).unwrap();
        let text = metrics.text();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let mut count = 0;
        for (name, kind) in types.filter_map(|line| line.split_once(' ')) {
            let end = if kind == "counter" { "_total" } else { "" };
            assert!(guide.contains(&format!("`{name}{end}`")), "{name}{end} is not in the guide");
            count += 1;
        }
        assert!(count >= 12, "{count}");
    }
}
