//! Where an answer goes (RFC 2131 §4.1).

use std::net::{Ipv4Addr, SocketAddrV4};

use super::wire::{Message, MessageType};
use crate::device::Mac;

/// The port on which servers and relays listen.
pub(crate) const SERVER_PORT: u16 = 67;
/// The port on which clients listen.
pub(crate) const CLIENT_PORT: u16 = 68;

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    /// To the relay, port 67.
    Relay(Ipv4Addr),
    /// To an address that the client answers ARP for.
    Unicast(SocketAddrV4),
    /// To 255.255.255.255, port 68, on the interface of the request.
    Broadcast,
    /// To a client that cannot answer ARP yet: its future address, port 68, in a frame to its hardware address.
    ToHardware {
        /// The frame's destination.
        mac: Mac,
        /// The datagram's destination.
        address: Ipv4Addr,
    },
}

impl Destination {
    /// Where RFC 2131 §4.1 sends `reply`, an answer to a `request` that was heard on port 67.
    pub fn of(request: &Message, reply: &Message) -> Self {
        if !request.giaddr.is_unspecified() {
            return Self::Relay(request.giaddr);
        }
        if reply.kind() == Some(MessageType::NAK) {
            return Self::Broadcast;
        }
        if !request.ciaddr.is_unspecified() {
            return Self::Unicast(SocketAddrV4::new(request.ciaddr, CLIENT_PORT));
        }
        match request.mac() {
            // Hardware without a MAC here (InfiniBand) is asked by RFC 4390 §2.2 to set the broadcast flag anyway.
            Some(mac) if !request.wants_broadcast() && !reply.yiaddr.is_unspecified() => {
                Self::ToHardware { mac, address: reply.yiaddr }
            }
            _ => Self::Broadcast,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::wire::BROADCAST;

    #[test]
    fn answers_go_where_rfc_2131_sends_them() {
        let mac = Mac([2, 0, 0, 0, 0, 1]);
        let address = Ipv4Addr::new(10, 0, 0, 9);
        let plain = Message::request(MessageType::DISCOVER, mac, 1);
        let check = |request: &Message, kind, yiaddr, expected| {
            let mut reply = Message::reply_to(request, kind);
            reply.yiaddr = yiaddr;
            assert_eq!(Destination::of(request, &reply), expected, "{request:?}");
        };
        check(&plain, MessageType::OFFER, address, Destination::ToHardware { mac, address });
        check(&plain, MessageType::OFFER, Ipv4Addr::UNSPECIFIED, Destination::Broadcast);
        check(&plain, MessageType::NAK, address, Destination::Broadcast);
        let flagged = Message { flags: BROADCAST, ..plain.clone() };
        check(&flagged, MessageType::OFFER, address, Destination::Broadcast);
        let renewing = Message { ciaddr: address, ..flagged.clone() };
        let unicast = Destination::Unicast(SocketAddrV4::new(address, 68));
        check(&renewing, MessageType::ACK, address, unicast);
        check(&renewing, MessageType::NAK, Ipv4Addr::UNSPECIFIED, Destination::Broadcast);
        let relay = Ipv4Addr::new(10, 1, 0, 1);
        let relayed = Message { giaddr: relay, ..renewing.clone() };
        check(&relayed, MessageType::NAK, Ipv4Addr::UNSPECIFIED, Destination::Relay(relay));
        // InfiniBand: no hardware address in the header.
        let infiniband = Message { htype: 32, hlen: 0, chaddr: [0; 16], ..plain };
        check(&infiniband, MessageType::OFFER, address, Destination::Broadcast);
    }
}
