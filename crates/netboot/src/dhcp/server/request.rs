//! A request: how it came, and what is known of it before it is answered.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use super::answer;
use super::outputs::Reply;
use super::settings::Settings;
use crate::device::Device;
use crate::dhcp::destination::Destination;
use crate::dhcp::lease::{ClientId, Requester};
use crate::dhcp::wire::{Message, code};

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Our address to which it came; of the interface, where it was broadcast.
    pub received_on: Ipv4Addr,
    /// Whether it was broadcast.
    pub is_broadcast: bool,
    /// Who sent it.
    pub from: SocketAddrV4,
    /// A number by which the driver knows where it heard it.
    pub link: usize,
}

/// What is known of a request before it is answered.
pub(super) struct Request<'a> {
    pub(super) message: &'a Message,
    pub(super) arrival: Arrival,
    pub(super) device: Device,
    pub(super) client: ClientId,
    /// The subnet of the address that it is about; before there is one, that of where the client was heard.
    pub(super) subnet: usize,
    /// The subnets of which the client can have an address.
    pub(super) link: Arc<[usize]>,
}

impl Request<'_> {
    pub(super) fn requester(&self) -> Requester<'_> {
        let sent = self.message.options.get(code::RELAY_AGENT);
        let is_direct = self.message.giaddr.is_unspecified() && !self.arrival.is_broadcast;
        let relay_agent = sent.or((!is_direct).then_some(&[]));
        Requester { client: &self.client, circuit_id: &self.device.circuit_id, relay_agent }
    }

    pub(super) fn answer(&self, message: Message) -> Reply {
        Reply {
            size_max: self.message.reply_size_max(),
            destination: Destination::of(self.message, &message),
            message,
            arrival: self.arrival,
        }
    }
}

/// Whether a message names us in option 54, by any of our addresses or by the one that its relay made of ours.
pub(super) fn is_asked_of(settings: &Settings, message: &Message, received_on: Ipv4Addr) -> bool {
    message.options.address(code::SERVER_ID).is_some_and(|named| {
        named == received_on
            || named == answer::server_id(message, received_on)
            || settings.addresses.contains(&named)
    })
}
