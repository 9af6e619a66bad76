//! Lease queries (RFC 4388).

use super::setup::*;
use crate::dhcp::server::Network;
use crate::dhcp::wire::{Message, MessageType, code};
use crate::policy::Action;

fn query() -> Message {
    let blank = Message::request(MessageType::LEASE_QUERY, mac(0), 3);
    Message { giaddr: RELAY, hlen: 0, htype: 0, chaddr: [0; 16], ..blank }
}

#[test]
fn by_address_hardware_and_client_identifier_and_only_for_whom_it_is_allowed() {
    let mut settings = settings();
    settings.query_from = vec![Network::new(RELAY, 32).unwrap()];
    let mut server = server_of(settings, Action::Local);
    let mut take = selecting(mac(1), ip("10.0.0.100"), US);
    take.options.set(code::CLIENT_ID, *b"\xffsystem");
    answer(&mut server, at(0), &take, broadcast()).unwrap();

    let by_address = Message { ciaddr: ip("10.0.0.100"), ..query() };
    let by_hardware = Message { htype: 1, hlen: 6, chaddr: take.chaddr, ..query() };
    let mut by_client_id = query();
    by_client_id.options.set(code::CLIENT_ID, *b"\xffsystem");
    for message in [&by_address, &by_hardware, &by_client_id] {
        let reply = answer(&mut server, at(600), message, unicast(RELAY)).unwrap().message;
        assert_eq!((reply.kind(), reply.ciaddr), (Some(MessageType::LEASE_ACTIVE), ip("10.0.0.100")));
        assert_eq!(reply.mac(), Some(mac(1)));
        assert_eq!(reply.options.get(code::CLIENT_ID), Some(&b"\xffsystem"[..]));
        let seconds = [code::LEASE_TIME, code::LEASE_QUERY_LAST].map(|code| reply.options.array(code));
        assert_eq!(seconds, [Some(3000_u32.to_be_bytes()), Some(600_u32.to_be_bytes())]);
    }
    let check = |server: &mut _, message: &Message, expected| {
        let reply = answer(server, at(600), message, unicast(message.giaddr));
        assert_eq!(reply.and_then(|reply| reply.message.kind()), expected);
    };
    let unassigned = Message { ciaddr: ip("10.0.0.101"), ..query() };
    check(&mut server, &unassigned, Some(MessageType::LEASE_UNASSIGNED));
    check(&mut server, &Message { ciaddr: ip("192.168.0.1"), ..query() }, Some(MessageType::LEASE_UNKNOWN));
    let stranger = Message { htype: 1, hlen: 6, chaddr: [7; 16], ..query() };
    check(&mut server, &stranger, Some(MessageType::LEASE_UNKNOWN));
    check(&mut server, &query(), None);
    check(&mut server, &Message { giaddr: ip("10.1.0.2"), ..by_address }, None);
}
