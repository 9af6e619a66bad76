//! RFC 2131, message by message.

use std::net::SocketAddrV4;
use std::time::Duration;

use super::setup::*;
use crate::dhcp::destination::Destination;
use crate::dhcp::lease::{AddressRange, Reservation};
use crate::dhcp::server::{Arrival, Outputs, Probe, Server};
use crate::dhcp::testing::{boot, discover as discover_of, file};
use crate::dhcp::wire::{BROADCAST, Message, MessageType, SIZE_MIN, code};
use crate::network::NetworkV4;
use crate::policy::Action;

fn kind(server: &mut Server, seconds: u64, message: &Message, is_broadcast: bool) -> Option<MessageType> {
    let arrival = if is_broadcast { broadcast() } else { unicast(message.ciaddr) };
    answer(server, at(seconds), message, arrival).and_then(|reply| reply.message.kind())
}

#[test]
fn an_exchange_gives_an_address_and_what_was_asked_for() {
    let mut server = server();
    let mut request = discover(mac(1));
    request.options.set(code::PARAMETER_LIST, [1, 3, 6, 15, 28, 99]);
    request.options.set(code::CLIENT_ID, *b"\x01\x02\0\0\0\0\x01");
    let offer = answer(&mut server, at(0), &request, broadcast()).unwrap();
    assert_eq!(offer.destination, Destination::ToHardware { mac: mac(1), address: ip("10.0.0.100") });
    let offer = offer.message;
    assert_eq!((offer.kind(), offer.yiaddr), (Some(MessageType::OFFER), ip("10.0.0.100")));
    let options = &offer.options;
    assert_eq!(options.address(code::SERVER_ID), Some(US));
    assert_eq!(options.address(code::SUBNET_MASK), Some(ip("255.255.255.0")));
    assert_eq!(options.address(code::ROUTER), Some(ip("10.0.0.254")));
    assert_eq!(options.get(code::DNS), Some(&[10, 0, 0, 53, 10, 0, 1, 53][..]));
    assert_eq!(options.get(code::DOMAIN_NAME), Some(&b"lab.example"[..]));
    assert_eq!(options.address(code::BROADCAST), Some(ip("10.0.0.255")));
    assert_eq!(options.get(code::CLIENT_ID), request.options.get(code::CLIENT_ID), "RFC 6842");
    let times = [code::LEASE_TIME, code::RENEWAL_TIME, code::REBINDING_TIME];
    assert_eq!(
        times.map(|code| options.array(code).map(u32::from_be_bytes)),
        [Some(3600), Some(1800), Some(3150)]
    );
    assert_eq!(lease(&mut server, at(1), mac(1)), ip("10.0.0.100"));
}

#[test]
fn boot_stages_have_short_leases_and_the_boot_file_and_the_system_keeps_the_address() {
    let boot = Action::Boot(Box::new(boot(file("undionly.kpxe"), &["10.0.0.1"])));
    let mut server = server_of(settings(), boot);
    let request = discover_of("PXEClient:Arch:00000:UNDI:002001", 0);
    let mac = request.mac().unwrap();
    let offer = answer(&mut server, at(0), &request, broadcast()).unwrap().message;
    assert_eq!(offer.options.array(code::LEASE_TIME), Some(300_u32.to_be_bytes()));
    assert_eq!((&offer.file[..], offer.siaddr), (&b"undionly.kpxe"[..], US));
    let mut take = selecting(mac, offer.yiaddr, US);
    for option in [code::VENDOR_CLASS, code::CLIENT_ARCH, code::CLIENT_UUID] {
        take.options.set(option, request.options.get(option).unwrap());
    }
    let ack = answer(&mut server, at(4), &take, broadcast()).unwrap().message;
    assert_eq!(&ack.file[..], b"undionly.kpxe");

    let mut system = discover(mac);
    system.options.set(code::CLIENT_ID, *b"\xffduid");
    let offer = answer(&mut server, at(60), &system, broadcast()).unwrap().message;
    assert_eq!(offer.yiaddr, ack.yiaddr);
    assert_eq!(offer.options.array(code::LEASE_TIME), Some(3600_u32.to_be_bytes()));
    assert!(offer.file.is_empty(), "it does not boot");
}

#[test]
fn ignored_devices_get_nothing() {
    let mut server = server_of(settings(), Action::Ignore);
    assert_eq!(kind(&mut server, 0, &discover(mac(1)), true), None);
    assert_eq!(kind(&mut server, 0, &selecting(mac(1), ip("10.0.0.100"), US), true), None);
    assert_eq!(kind(&mut server, 0, &renewing(mac(1), ip("10.9.0.1")), true), None);
}

#[test]
fn a_request_to_another_server_ends_the_hold_and_is_not_answered() {
    let mut server = server();
    let offer = answer(&mut server, at(0), &discover(mac(1)), broadcast()).unwrap().message;
    let other = selecting(mac(1), ip("10.0.0.200"), ip("10.0.0.2"));
    assert_eq!(kind(&mut server, 1, &other, true), None);
    assert_eq!(
        answer(&mut server, at(1), &discover(mac(2)), broadcast()).unwrap().message.yiaddr,
        offer.yiaddr
    );
    // Nor an address of no network of ours.
    let other = selecting(mac(1), ip("192.168.0.9"), ip("10.0.0.2"));
    assert_eq!(kind(&mut server, 1, &other, true), None);
}

#[test]
fn nak_is_said_about_what_is_surely_wrong_and_nothing_else() {
    let ack = Some(MessageType::ACK);
    let nak = Some(MessageType::NAK);
    let mut settings = settings();
    settings.subnets[0].peer_pools = vec![AddressRange { first: ip("10.0.0.150"), last: ip("10.0.0.199") }];
    let mut server = server_of(settings.clone(), Action::LocalDisk);
    let own = lease(&mut server, at(0), mac(1));
    let theirs = lease(&mut server, at(0), mac(2));
    for (message, is_broadcast, expected, why) in [
        (init_reboot(mac(1), own), true, ack, "its own"),
        (renewing(mac(1), own), false, ack, "its own"),
        (renewing(mac(1), own), true, ack, "its own"),
        (init_reboot(mac(1), theirs), true, nak, "another client's"),
        (renewing(mac(1), theirs), false, nak, "another client's"),
        (init_reboot(mac(3), ip("192.168.1.7")), true, nak, "of another network"),
        (renewing(mac(3), ip("192.168.1.7")), true, nak, "of another network"),
        (renewing(mac(3), ip("192.168.1.7")), false, None, "unicast from a network that we do not know"),
        (init_reboot(mac(3), ip("10.0.0.120")), true, ack, "free and ours to give"),
        (init_reboot(mac(4), ip("10.0.0.160")), true, None, "another member's, unproven"),
        (renewing(mac(4), ip("10.0.0.160")), false, None, "another member's, unproven"),
        (init_reboot(mac(4), ip("10.0.0.220")), true, None, "in nobody's pool"),
        (selecting(mac(4), ip("10.0.0.220"), US), true, nak, "but here it is us who are asked"),
        (selecting(mac(4), theirs, US), true, nak, "another client's"),
    ] {
        assert_eq!(kind(&mut server, 10, &message, is_broadcast), expected, "{why}");
    }
    // Not authoritative: it speaks about its own clients only.
    settings.is_authoritative = false;
    let mut server = server_of(settings, Action::LocalDisk);
    let own = lease(&mut server, at(0), mac(1));
    for (message, expected, why) in [
        (init_reboot(mac(1), own), ack, "its own"),
        (init_reboot(mac(2), own), None, "another client's"),
        (init_reboot(mac(3), ip("192.168.1.7")), None, "of another network"),
        (init_reboot(mac(3), ip("10.0.0.120")), None, "unknown"),
    ] {
        assert_eq!(kind(&mut server, 10, &message, true), expected, "{why}");
    }
}

#[test]
fn relays_get_answers_with_their_option_last() {
    let mut server = server();
    let mut request = discover(mac(1));
    request.giaddr = RELAY;
    request.hops = 1;
    let relay_agent = [1, 4, b'p', b'o', b'r', b't', 11, 4, 10, 1, 0, 1];
    request.options.set(code::RELAY_AGENT, relay_agent);
    request.options.set(code::PARAMETER_LIST, [1, 3, 6]);
    let offer = answer(&mut server, at(0), &request, unicast(RELAY)).unwrap();
    assert_eq!(offer.destination, Destination::Relay(RELAY));
    let offer = offer.message;
    assert_eq!((offer.yiaddr, offer.giaddr, offer.hops), (ip("10.1.0.100"), RELAY, 0));
    assert_eq!(offer.options.iter().last(), Some((code::RELAY_AGENT, &relay_agent[..])));
    assert_eq!(offer.options.address(code::SERVER_ID), Some(RELAY), "RFC 5107");
    let mut take = selecting(mac(1), offer.yiaddr, RELAY);
    take.giaddr = RELAY;
    take.options.set(code::RELAY_AGENT, relay_agent);
    let ack = answer(&mut server, at(0), &take, unicast(RELAY)).unwrap().message;
    assert_eq!(ack.kind(), Some(MessageType::ACK));
    // A NAK has to be broadcast by the relay.
    let mut wrong = init_reboot(mac(2), ip("10.0.0.100"));
    wrong.giaddr = RELAY;
    let nak = answer(&mut server, at(0), &wrong, unicast(RELAY)).unwrap();
    assert_eq!((nak.message.kind(), nak.destination), (Some(MessageType::NAK), Destination::Relay(RELAY)));
    assert_ne!(nak.message.flags & BROADCAST, 0);
}

#[test]
fn the_link_selection_and_the_subnet_selection_overrule_the_relay() {
    let mut server = server();
    let mut request = discover(mac(1));
    request.giaddr = ip("172.16.0.1");
    assert!(answer(&mut server, at(0), &request, unicast(request.giaddr)).is_none(), "no such subnet");
    request.options.set(code::SUBNET_SELECTION, [10, 1, 0, 0]);
    let offer = answer(&mut server, at(0), &request, unicast(request.giaddr)).unwrap().message;
    assert_eq!(offer.yiaddr, ip("10.1.0.100"));
    assert_eq!(offer.options.get(code::SUBNET_SELECTION), Some(&[10, 1, 0, 0][..]), "RFC 3011 wants it back");
    request.options.set(code::RELAY_AGENT, [5, 4, 10, 0, 0, 0]);
    let offer = answer(&mut server, at(0), &request, unicast(request.giaddr)).unwrap();
    assert_eq!(offer.message.yiaddr, ip("10.0.0.100"));
    assert_eq!(offer.destination, Destination::Relay(request.giaddr));
}

#[test]
fn decline_release_and_inform() {
    let mut server = server();
    let own = lease(&mut server, at(0), mac(1));
    let mut decline = selecting(mac(1), own, US);
    decline.options.set(code::MESSAGE_TYPE, [MessageType::DECLINE.0]);
    let outputs = ask(&mut server, at(1), &decline, broadcast());
    assert_eq!((outputs.records.len(), outputs.replies.len()), (1, 0));
    let next = lease(&mut server, at(2), mac(1));
    assert_ne!(own, next);

    let mut release = Message { ciaddr: next, ..Message::request(MessageType::RELEASE, mac(1), 9) };
    assert!(ask(&mut server, at(3), &release, unicast(next)).records.is_empty(), "it names no server");
    release.options.set(code::SERVER_ID, US.octets());
    let foreign = Message { chaddr: [9; 16], ..release.clone() };
    assert!(ask(&mut server, at(3), &foreign, unicast(next)).records.is_empty(), "it is not its own");
    assert_eq!(ask(&mut server, at(3), &release, unicast(next)).records.len(), 1);

    let inform = Message { ciaddr: ip("10.0.0.77"), ..Message::request(MessageType::INFORM, mac(5), 9) };
    let reply = answer(&mut server, at(4), &inform, unicast(inform.ciaddr)).unwrap();
    assert_eq!(reply.destination, Destination::Unicast(SocketAddrV4::new(inform.ciaddr, 68)));
    let reply = reply.message;
    assert_eq!((reply.kind(), reply.yiaddr), (Some(MessageType::ACK), ip("0.0.0.0")));
    assert!(reply.options.has(code::ROUTER) && !reply.options.has(code::LEASE_TIME));
}

#[test]
fn classless_routes_search_domains_mtu_and_time_servers() {
    let mut settings = settings();
    let near = &mut settings.subnets[0];
    near.routes = vec![(NetworkV4::new(ip("172.16.0.0"), 12).unwrap(), ip("10.0.0.253"))];
    near.search = vec!["lab.example".into(), "example".into()];
    near.mtu = Some(9000);
    near.ntp = vec![ip("10.0.0.123")];
    let mut server = server_of(settings, Action::LocalDisk);
    let mut request = discover(mac(1));
    request.options.set(code::PARAMETER_LIST, [3, 121, 119, 26, 42]);
    let options = answer(&mut server, at(0), &request, broadcast()).unwrap().message.options;
    let routes = [12, 172, 16, 10, 0, 0, 253, 0, 10, 0, 0, 254];
    assert_eq!(options.get(code::CLASSLESS_ROUTES), Some(&routes[..]));
    assert!(!options.has(code::ROUTER), "RFC 3442: the default route is among the routes");
    assert_eq!(options.get(code::DOMAIN_SEARCH), Some(&b"\x03lab\x07example\0\x07example\0"[..]));
    assert_eq!(options.array(code::MTU), Some(9000_u16.to_be_bytes()));
    assert_eq!(options.address(code::NTP), Some(ip("10.0.0.123")));
    request.options.set(code::PARAMETER_LIST, [3]);
    let options = answer(&mut server, at(0), &request, broadcast()).unwrap().message.options;
    assert!(options.has(code::ROUTER) && !options.has(code::CLASSLESS_ROUTES));
}

#[test]
fn small_clients_get_small_answers_that_still_have_the_relays_option() {
    let mut settings = settings();
    settings.subnets[1].search = (0..20).map(|number| format!("department-{number}.lab.example")).collect();
    settings.subnets[1].dns = vec![US; 3];
    let mut server = server_of(settings, Action::LocalDisk);
    let mut request = discover(mac(1));
    request.giaddr = RELAY;
    request.options.set(code::PARAMETER_LIST, [1, 6, 119]);
    request.options.set(code::RELAY_AGENT, vec![1; 60]);
    let reply = answer(&mut server, at(0), &request, unicast(RELAY)).unwrap();
    let bytes = reply.message.encode(reply.size_max);
    assert!(bytes.len() <= SIZE_MIN);
    let read = Message::decode(&bytes).unwrap();
    assert!(read.options.has(code::RELAY_AGENT) && read.options.has(code::DNS));
    assert!(!read.options.has(code::DOMAIN_SEARCH), "it gives way");
}

#[test]
fn an_unknown_address_is_probed_before_it_is_offered_and_a_known_one_is_not() {
    let mut settings = settings();
    settings.probe = Some(Duration::from_millis(500));
    let mut server = server_of(settings, Action::LocalDisk);
    let first = ask(&mut server, at(0), &discover(mac(1)), broadcast());
    assert_eq!((first.probes.len(), first.replies.len()), (1, 0));
    let taken = first.probes[0].address;
    let again = ask(&mut server, at(0), &discover(mac(1)), broadcast());
    assert_eq!((again.probes.len(), again.replies.len()), (0, 0), "it asks again meanwhile");
    // Somebody answers: the next address is probed.
    let mut outputs = Outputs::default();
    server.handle_probe_answer(at(0), taken, None, &mut outputs);
    assert_eq!((outputs.probes.len(), outputs.records.len()), (1, 1));
    // Nobody answers: it is offered when the time is over.
    let until = server.poll_timeout().unwrap();
    assert_eq!(until, at(0).after(Duration::from_millis(500)));
    let mut outputs = Outputs::default();
    server.handle_timeout(until, &mut outputs);
    let offer = &outputs.replies[0].message;
    assert_ne!(offer.yiaddr, taken);
    assert_eq!(kind(&mut server, 1, &selecting(mac(1), offer.yiaddr, US), true), Some(MessageType::ACK));
    let known = ask(&mut server, at(2), &discover(mac(1)), broadcast());
    assert_eq!((known.probes.len(), known.replies.len()), (0, 1));
}

#[test]
fn a_probe_goes_to_the_clients_link_unless_a_relay_stands_in_between() {
    let mut settings = settings();
    settings.probe = Some(Duration::from_millis(500));
    let mut server = server_of(settings, Action::LocalDisk);
    let direct = ask(&mut server, at(0), &discover(mac(1)), Arrival { link: 7, ..broadcast() });
    assert_eq!(direct.probes, [Probe { address: ip("10.0.0.100"), link: Some(7) }]);
    let relayed = Message { giaddr: RELAY, ..discover(mac(2)) };
    let relayed = ask(&mut server, at(0), &relayed, unicast(RELAY));
    assert_eq!(relayed.probes, [Probe { address: ip("10.1.0.100"), link: None }]);
}

#[test]
fn a_client_that_answers_for_its_own_address_is_offered_it() {
    let mut settings = settings();
    settings.probe = Some(Duration::from_millis(500));
    let mut server = server_of(settings, Action::LocalDisk);
    let address = ask(&mut server, at(0), &discover(mac(1)), broadcast()).probes[0].address;
    let mut outputs = Outputs::default();
    server.handle_probe_answer(at(0), address, Some(mac(1)), &mut outputs);
    assert_eq!((outputs.replies[0].message.yiaddr, outputs.records.len()), (address, 0));
    // Once the question is settled, nothing that is seen matters.
    let mut outputs = Outputs::default();
    server.handle_probe_answer(at(0), address, Some(mac(2)), &mut outputs);
    assert!(outputs.records.is_empty() && outputs.probes.is_empty());
}

#[test]
fn a_reservation_by_uuid_reaches_from_the_firmware_to_the_system() {
    let uuid = "01234567-89ab-cdef-0123-456789000001".parse().unwrap();
    let mut settings = settings();
    settings.subnets[0].reservations = vec![(Reservation::Uuid(uuid), ip("10.0.0.50"))];
    let mut server = server_of(settings, Action::LocalDisk);
    let mut firmware = discover_of("PXEClient:Arch:00007:UNDI:003000", 7);
    let sent = goldwire_stdx::from_hex::<16>("67452301ab89efcd0123456789000001").unwrap();
    firmware.options.set(code::CLIENT_UUID, [&[0][..], &sent].concat());
    let mac = firmware.mac().unwrap();
    let offer = answer(&mut server, at(0), &firmware, broadcast()).unwrap().message;
    assert_eq!(offer.yiaddr, ip("10.0.0.50"));
    let mut take = firmware.clone();
    take.options.set(code::MESSAGE_TYPE, [MessageType::REQUEST.0]);
    take.options.set(code::SERVER_ID, US.octets());
    take.options.set(code::REQUESTED_ADDRESS, offer.yiaddr.octets());
    assert_eq!(kind(&mut server, 1, &take, true), Some(MessageType::ACK));
    assert_eq!(lease(&mut server, at(30), mac), ip("10.0.0.50"));
    assert_eq!(lease(&mut server, at(1000), mac), ip("10.0.0.50"));
}

#[test]
fn what_is_no_request_is_not_answered() {
    let mut server = server();
    let reply = Message { op: 2, ..discover(mac(1)) };
    assert_eq!(kind(&mut server, 0, &reply, true), None);
    let mut bootp = discover(mac(1));
    bootp.options.remove(code::MESSAGE_TYPE);
    assert_eq!(kind(&mut server, 0, &bootp, true), None);
    let nobody = Message { hlen: 0, ..discover(mac(1)) };
    assert_eq!(kind(&mut server, 0, &nobody, true), None);
    let without_address = Message::request(MessageType::REQUEST, mac(1), 1);
    assert_eq!(kind(&mut server, 0, &without_address, true), None);
}

#[test]
fn settings_that_cannot_be_right_are_told() {
    let mut settings = settings();
    settings.addresses = vec![ip("10.0.0.120")];
    settings.subnets[0].peer_pools = vec![AddressRange { first: ip("10.0.0.140"), last: ip("10.0.0.160") }];
    settings.subnets[0].domain = Some("no name".into());
    settings.subnets[1].network = NetworkV4::new(ip("10.0.0.128"), 25).unwrap();
    let problems = settings.problems().join("\n");
    for part in ["10.0.0.120 in it", "overlap", "\"no name\" is no domain name", "is not inside it"] {
        assert!(problems.contains(part), "{part}: {problems}");
    }
}
