//! What follows from requests.

use std::net::Ipv4Addr;

use super::request::Arrival;
use crate::dhcp::destination::Destination;
use crate::dhcp::lease::Record;
use crate::dhcp::wire::Message;

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What it says.
    pub message: Message,
    /// Most bytes of UDP payload that the client takes.
    pub size_max: usize,
    /// Where it goes.
    pub destination: Destination,
    /// How the request came: the answer leaves there.
    pub arrival: Arrival,
}

/// What follows from requests. First send `replies`; then make `records` durable, all at once; then send
/// `durable_replies`, or nothing of them if the records could not be made durable.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Answers that promise nothing.
    pub replies: Vec<Reply>,
    /// What has to be logged.
    pub records: Vec<Record>,
    /// Answers that promise what is in `records`.
    pub durable_replies: Vec<Reply>,
    /// Addresses to probe, in the order in which they were found.
    pub probes: Vec<Probe>,
}

/// An address of which somebody should say whether it is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The address.
    pub address: Ipv4Addr,
    /// The number of the link on which its client was heard; none if a relay stands in between.
    pub link: Option<usize>,
}
