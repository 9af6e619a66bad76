//! The boot policy: a file of devices, groups and profiles, and the decision for each device. And what happened: the
//! timeline, the metrics, the log.

pub mod metrics;
pub mod telemetry;
pub mod timeline;
