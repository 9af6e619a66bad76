//! What the boot servers count, for Prometheus.

use std::sync::Mutex;

use goldwire_netboot::{Event, EventKind, MemberState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
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
}
