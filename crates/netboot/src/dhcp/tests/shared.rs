//! Several subnets on one link.

use std::net::Ipv4Addr;

use super::setup::*;
use crate::dhcp::lease::{RecordState, Reservation};
use crate::dhcp::server::{Server, Settings};
use crate::dhcp::wire::{Message, MessageType, code};
use crate::policy::Action;

/// 10.0.0.0/24 with two addresses and 10.2.0.0/24 share a link; 10.1.0.0/24 is behind a relay.
fn shared() -> Settings {
    let mut settings = settings();
    settings.subnets[0].pools[0].last = ip("10.0.0.101");
    let mut sibling = subnet("10.2.0.0", "10.2.0.100", "10.2.0.149");
    sibling.routers = vec![ip("10.2.0.254")];
    sibling.reservations = vec![(Reservation::Mac(mac(9)), ip("10.2.0.9"))];
    settings.subnets.push(sibling);
    for subnet in [0, 2] {
        settings.subnets[subnet].shared_network = Some("hall".into());
    }
    settings
}

fn kind(server: &mut Server, seconds: u64, message: &Message) -> Option<MessageType> {
    answer(server, at(seconds), message, broadcast()).and_then(|reply| reply.message.kind())
}

fn router(message: &Message) -> Option<Ipv4Addr> {
    message.options.address(code::ROUTER)
}

#[test]
fn when_one_pool_is_empty_the_other_one_gives_and_each_has_its_own_router() {
    let mut server = server_of(shared(), Action::LocalDisk);
    let held: Vec<_> = (1..=3).map(|number| lease(&mut server, at(0), mac(number))).collect();
    assert_eq!(held, [ip("10.0.0.100"), ip("10.0.0.101"), ip("10.2.0.100")]);
    let near = answer(&mut server, at(1), &init_reboot(mac(1), held[0]), broadcast()).unwrap().message;
    let far = answer(&mut server, at(1), &renewing(mac(3), held[2]), unicast(held[2])).unwrap().message;
    assert_eq!((near.kind(), router(&near)), (Some(MessageType::ACK), Some(ip("10.0.0.254"))));
    assert_eq!((far.kind(), router(&far)), (Some(MessageType::ACK), Some(ip("10.2.0.254"))));
    assert_eq!(far.options.address(code::BROADCAST), None, "it was not asked for");
    assert_eq!(far.options.address(code::SUBNET_MASK), Some(ip("255.255.255.0")));
    // It asks again: the same address, of whichever subnet.
    assert_eq!(lease(&mut server, at(2), mac(3)), held[2]);
}

#[test]
fn a_request_for_an_address_of_the_sibling_is_not_refused_and_of_another_link_it_is() {
    let (ack, nak) = (Some(MessageType::ACK), Some(MessageType::NAK));
    let mut server = server_of(shared(), Action::LocalDisk);
    assert_eq!(kind(&mut server, 0, &init_reboot(mac(1), ip("10.2.0.120"))), ack);
    assert_eq!(kind(&mut server, 0, &renewing(mac(1), ip("10.2.0.120"))), ack);
    assert_eq!(kind(&mut server, 0, &selecting(mac(2), ip("10.2.0.121"), US)), ack);
    assert_eq!(kind(&mut server, 0, &init_reboot(mac(3), ip("10.1.0.120"))), nak, "behind the relay");
    let mut apart = shared();
    apart.subnets[2].shared_network = Some("another hall".into());
    let mut apart = server_of(apart, Action::LocalDisk);
    assert_eq!(kind(&mut apart, 0, &init_reboot(mac(1), ip("10.2.0.120"))), nak);
}

#[test]
fn a_reservation_in_either_subnet_is_honoured() {
    let mut server = server_of(shared(), Action::LocalDisk);
    assert_eq!(lease(&mut server, at(0), mac(9)), ip("10.2.0.9"));
    assert_eq!(kind(&mut server, 1, &init_reboot(mac(1), ip("10.2.0.9"))), Some(MessageType::NAK));
    let mut wish = discover(mac(1));
    wish.options.set(code::REQUESTED_ADDRESS, ip("10.2.0.130").octets());
    let offer = answer(&mut server, at(1), &wish, broadcast()).unwrap().message;
    assert_eq!(offer.yiaddr, ip("10.2.0.130"), "so is a wish");
}

#[test]
fn a_client_has_one_address_on_the_link() {
    let mut server = server_of(shared(), Action::LocalDisk);
    let first = lease(&mut server, at(0), mac(1));
    let outputs = ask(&mut server, at(1), &init_reboot(mac(1), ip("10.2.0.120")), broadcast());
    let states: Vec<_> = outputs.records.iter().map(|record| (record.address, record.state)).collect();
    assert_eq!(states, [(first, RecordState::Released), (ip("10.2.0.120"), RecordState::Granted)]);
    // A decline is about the address, whichever subnet it is of.
    let mut decline = selecting(mac(1), ip("10.2.0.120"), US);
    decline.options.set(code::MESSAGE_TYPE, [MessageType::DECLINE.0]);
    let outputs = ask(&mut server, at(2), &decline, broadcast());
    assert_eq!(
        (outputs.records[0].address, outputs.records[0].state),
        (ip("10.2.0.120"), RecordState::Declined)
    );
    assert_eq!(kind(&mut server, 3, &init_reboot(mac(2), ip("10.2.0.120"))), Some(MessageType::NAK));
}

#[test]
fn a_relay_in_a_shared_network_gives_addresses_of_either_subnet() {
    let mut settings = shared();
    settings.subnets[1].shared_network = Some("hall".into());
    settings.subnets[1].pools.clear();
    let mut server = server_of(settings, Action::LocalDisk);
    let relayed = Message { giaddr: RELAY, ..discover(mac(1)) };
    let offer = answer(&mut server, at(0), &relayed, unicast(RELAY)).unwrap().message;
    assert_eq!((offer.yiaddr, router(&offer)), (ip("10.0.0.100"), Some(ip("10.0.0.254"))));
}

#[test]
fn an_address_of_the_sibling_that_somebody_uses_is_put_aside() {
    let mut settings = shared();
    settings.probe = Some(std::time::Duration::from_millis(500));
    settings.subnets[0].pools.clear();
    let mut server = server_of(settings, Action::LocalDisk);
    let probes = ask(&mut server, at(0), &discover(mac(1)), broadcast()).probes;
    let address = probes[0].address;
    assert_eq!((address, probes[0].link), (ip("10.2.0.100"), Some(0)));
    let mut outputs = Default::default();
    server.handle_probe_answer(at(0), address, Some(mac(2)), &mut outputs);
    assert_eq!((outputs.records[0].address, outputs.records[0].state), (address, RecordState::Declined));
    assert_eq!(outputs.probes[0].address, ip("10.2.0.101"));
}
