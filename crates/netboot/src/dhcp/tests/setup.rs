//! A server with one subnet and a second one behind a relay.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use crate::NoopObserver;
use crate::device::Mac;
use crate::dhcp::lease::{AddressRange, Time};
use crate::dhcp::server::{Arrival, Outputs, Reply, Server, Settings, Subnet};
use crate::dhcp::testing::Always;
use crate::dhcp::wire::{Message, MessageType, code};
use crate::network::NetworkV4;
use crate::policy::Action;

pub(super) const US: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(super) const RELAY: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

pub(super) fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

pub(super) fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

/// Time in seconds.
pub(super) fn at(seconds: u64) -> Time {
    Time(1_700_000_000_000 + seconds * 1000)
}

pub(super) fn subnet(network: &str, first: &str, last: &str) -> Subnet {
    let mut subnet = Subnet::new(NetworkV4::new(ip(network), 24).unwrap());
    subnet.pools = vec![AddressRange { first: ip(first), last: ip(last) }];
    subnet.lease = Duration::from_secs(3600);
    subnet.boot_lease = Duration::from_secs(300);
    subnet
}

pub(super) fn settings() -> Settings {
    let mut near = subnet("10.0.0.0", "10.0.0.100", "10.0.0.149");
    near.routers = vec![ip("10.0.0.254")];
    near.dns = vec![ip("10.0.0.53"), ip("10.0.1.53")];
    near.domain = Some("lab.example".into());
    let far = subnet("10.1.0.0", "10.1.0.100", "10.1.0.149");
    Settings::new("boot1", vec![near, far])
}

pub(super) fn server_of(settings: Settings, action: Action) -> Server {
    assert_eq!(settings.problems(), Vec::<String>::new());
    Server::new(settings, Arc::new(Always(action)), Default::default(), Arc::new(NoopObserver))
}

pub(super) fn server() -> Server {
    server_of(settings(), Action::LocalDisk)
}

pub(super) fn broadcast() -> Arrival {
    Arrival {
        received_on: US,
        is_broadcast: true,
        from: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
        link: 0,
    }
}

pub(super) fn unicast(from: Ipv4Addr) -> Arrival {
    Arrival { is_broadcast: false, from: SocketAddrV4::new(from, 68), ..broadcast() }
}

/// What one message leads to.
pub(super) fn ask(server: &mut Server, now: Time, message: &Message, arrival: Arrival) -> Outputs {
    let mut outputs = Outputs::default();
    server.handle(now, message, arrival, &mut outputs);
    outputs
}

/// The one answer to a message, if there is one. An ACK has a record, and a record only an ACK.
pub(super) fn answer(server: &mut Server, now: Time, message: &Message, arrival: Arrival) -> Option<Reply> {
    let outputs = ask(server, now, message, arrival);
    assert!(outputs.replies.len() + outputs.durable_replies.len() <= 1);
    assert_eq!(outputs.durable_replies.is_empty(), outputs.records.is_empty());
    outputs.replies.into_iter().chain(outputs.durable_replies).next()
}

pub(super) fn discover(mac: Mac) -> Message {
    Message::request(MessageType::DISCOVER, mac, 7)
}

/// SELECTING: takes our offer.
pub(super) fn selecting(mac: Mac, address: Ipv4Addr, server: Ipv4Addr) -> Message {
    let mut message = Message::request(MessageType::REQUEST, mac, 7);
    message.options.set(code::REQUESTED_ADDRESS, address.octets());
    message.options.set(code::SERVER_ID, server.octets());
    message
}

pub(super) fn init_reboot(mac: Mac, address: Ipv4Addr) -> Message {
    let mut message = Message::request(MessageType::REQUEST, mac, 7);
    message.options.set(code::REQUESTED_ADDRESS, address.octets());
    message
}

/// RENEWING or REBINDING, by how it arrives.
pub(super) fn renewing(mac: Mac, address: Ipv4Addr) -> Message {
    Message { ciaddr: address, ..Message::request(MessageType::REQUEST, mac, 7) }
}

/// Takes an address from DISCOVER to ACK.
pub(super) fn lease(server: &mut Server, now: Time, mac: Mac) -> Ipv4Addr {
    let offer = answer(server, now, &discover(mac), broadcast()).unwrap().message;
    let ack = answer(server, now, &selecting(mac, offer.yiaddr, US), broadcast()).unwrap().message;
    assert_eq!((ack.kind(), ack.yiaddr), (Some(MessageType::ACK), offer.yiaddr));
    ack.yiaddr
}
