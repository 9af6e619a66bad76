//! Hears of every event and keeps it: in the metrics, the timeline and the log.

use std::sync::Arc;

use goldwire_netboot::{Event, EventKind, Neighbours, Observer, Stage};
use jiff::Timestamp;
use tracing::{debug, info, warn};

use super::metrics::Metrics;
use super::timeline::{Record, Writer};

/// Where events go.
#[derive(Debug)]
pub struct Telemetry {
    member: String,
    metrics: Metrics,
    timeline: Option<Writer>,
    neighbours: Arc<Neighbours>,
}

impl Telemetry {
    /// For the boot server of this name; without a timeline nothing is kept across restarts. `neighbours` learn which
    /// device has which address, so that HTTP and TFTP know whom they serve.
    pub fn new(member: String, timeline: Option<Writer>, neighbours: Arc<Neighbours>) -> Self {
        Self { member, metrics: Metrics::default(), timeline, neighbours }
    }

    /// What was counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

impl Observer for Telemetry {
    fn observe(&self, event: &Event<'_>) {
        self.metrics.count(event);
        if let (EventKind::Reached { stage: Stage::Ack, .. }, Some(mac), Some(address)) =
            (&event.kind, event.mac, event.address)
        {
            self.neighbours.learn(address, mac);
        }
        if let (Some(timeline), Some(record)) =
            (&self.timeline, Record::of(event, &self.member, Timestamp::now()))
        {
            timeline.write(record);
        }
        log(event);
    }
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
            info!(mac = mac(), address = address(), protocol = protocol.name(), stage = stage.name(), %detail, "reached");
        }
        EventKind::Transferred { protocol, path, bytes, seconds, is_complete } => {
            debug!(mac = mac(), address = address(), protocol = protocol.name(), %path, bytes, seconds, is_complete, "transferred");
        }
        EventKind::Refused { protocol, path, reason } => {
            warn!(mac = mac(), address = address(), protocol = protocol.name(), %path, %reason, "refused");
        }
        EventKind::Dropped { protocol, reason } => {
            debug!(mac = mac(), address = address(), protocol = protocol.name(), %reason, "dropped");
        }
        // The table of members says it itself, with the reason.
        EventKind::Member { .. } => {}
    }
}
