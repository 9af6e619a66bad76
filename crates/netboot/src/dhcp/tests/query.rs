//! Lease queries (RFC 4388).

use super::setup::*;
use crate::dhcp::wire::{Message, MessageType, code};
use crate::policy::Action;

fn query() -> Message {
    let blank = Message::request(MessageType::LEASE_QUERY, mac(0), 3);
    Message { giaddr: RELAY, hlen: 0, htype: 0, chaddr: [0; 16], ..blank }
}

#[test]
fn by_address_hardware_and_client_identifier_and_only_for_whom_it_is_allowed() {
    let mut settings = settings();
    settings.query_from = vec![crate::Network::new(RELAY.into(), 32).unwrap()];
    let mut server = server_of(settings, Action::LocalDisk);
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

#[test]
fn an_active_lease_tells_what_its_clients_relay_told_last() {
    let mut settings = settings();
    settings.query_from = vec![crate::Network::new(RELAY.into(), 32).unwrap()];
    let mut server = server_of(settings, Action::LocalDisk);
    let relayed = |message: Message, port: &[u8]| {
        let mut message = Message { giaddr: RELAY, ..message };
        message.options.set(code::RELAY_AGENT, [&[1, port.len() as u8], port].concat());
        message
    };
    let address = ip("10.1.0.100");
    let mut ask_for = |now, take: &Message, arrival| {
        let ack = answer(&mut server, now, take, arrival).unwrap().message;
        assert_eq!(ack.kind(), Some(MessageType::ACK));
        let mut query = Message { ciaddr: address, ..query() };
        let plain = answer(&mut server, now, &query, unicast(RELAY)).unwrap().message;
        assert_eq!(plain.options.get(code::RELAY_AGENT), None, "it was not asked for");
        query.options.set(code::PARAMETER_LIST, [51, code::RELAY_AGENT]);
        // What relayed the query, if anything did, is not the client's relay.
        query.options.set(code::RELAY_AGENT, *b"\x01\x05other");
        let reply = answer(&mut server, now, &query, unicast(RELAY)).unwrap().message;
        assert_eq!((reply.kind(), reply.ciaddr), (Some(MessageType::LEASE_ACTIVE), address));
        reply.options.get(code::RELAY_AGENT).map(<[u8]>::to_vec)
    };
    let first = relayed(selecting(mac(1), address, US), b"port 1");
    assert_eq!(ask_for(at(0), &first, unicast(RELAY)), Some(b"\x01\x06port 1".to_vec()));
    // It renews past its relay: the relay's word still holds.
    let renew = renewing(mac(1), address);
    assert_eq!(ask_for(at(60), &renew, unicast(address)), Some(b"\x01\x06port 1".to_vec()));
    let moved = relayed(init_reboot(mac(1), address), b"port 2");
    assert_eq!(ask_for(at(120), &moved, unicast(RELAY)), Some(b"\x01\x06port 2".to_vec()));
    let silent = Message { giaddr: RELAY, ..init_reboot(mac(1), address) };
    assert_eq!(ask_for(at(180), &silent, unicast(RELAY)), None, "a relay that tells nothing");
}

#[test]
fn the_next_client_of_an_address_does_not_inherit_the_relay() {
    let mut settings = settings();
    settings.query_from = vec![crate::Network::new(RELAY.into(), 32).unwrap()];
    let mut server = server_of(settings, Action::LocalDisk);
    let mut take = Message { giaddr: RELAY, ..selecting(mac(1), ip("10.1.0.100"), US) };
    take.options.set(code::RELAY_AGENT, *b"\x01\x04port");
    answer(&mut server, at(0), &take, unicast(RELAY)).unwrap();
    let renew = renewing(mac(2), ip("10.1.0.100"));
    let ack = answer(&mut server, at(7200), &renew, unicast(ip("10.1.0.100"))).unwrap().message;
    assert_eq!(ack.kind(), Some(MessageType::ACK));
    let mut query = Message { ciaddr: ip("10.1.0.100"), ..query() };
    query.options.set(code::PARAMETER_LIST, [code::RELAY_AGENT]);
    let reply = answer(&mut server, at(7200), &query, unicast(RELAY)).unwrap().message;
    assert_eq!((reply.mac(), reply.options.get(code::RELAY_AGENT)), (Some(mac(2)), None));
}
