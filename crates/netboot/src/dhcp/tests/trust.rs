//! What DHCP believes, and whom.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::setup::*;
use crate::dhcp::lease::{MemberId, RecordState, Table, Terms};
use crate::dhcp::lease::{Reservation, Time};
use crate::dhcp::relay::Relays;
use crate::dhcp::server::Server;
use crate::dhcp::testing::Always;
use crate::dhcp::wire::{Message, MessageType, code};
use crate::event::{Event, EventKind, Observer};
use crate::policy::Action;

#[derive(Default)]
struct Leased(Mutex<Vec<(String, String)>>);

impl Observer for Leased {
    fn observe(&self, event: &Event<'_>) {
        if let (EventKind::Leased, Some(mac), Some(address)) = (&event.kind, event.mac, event.address) {
            self.0.lock().unwrap().push((mac.to_string(), address.to_string()));
        }
    }
}

// A host that writes option 82 itself was put behind the relay's port that it named, with that port's reservation and
// profile; so was one that wrote `giaddr` too.
#[test]
fn only_a_relay_that_is_known_says_behind_which_port_a_client_is() {
    let mut settings = settings();
    settings.subnets[0].reservations = vec![(Reservation::CircuitId(b"safe".to_vec()), ip("10.0.0.50"))];
    settings.subnets[1].reservations = vec![(Reservation::CircuitId(b"safe".to_vec()), ip("10.1.0.50"))];
    settings.relays = Relays::new(vec!["10.1.0.1".parse().unwrap()]);
    let mut server = server_of(settings, Action::LocalDisk);
    let asked = |giaddr: std::net::Ipv4Addr| {
        let mut message = discover(mac(1));
        message.giaddr = giaddr;
        message.options.set(code::RELAY_AGENT, b"\x01\x04safe");
        message
    };
    let direct = answer(&mut server, at(0), &asked(ip("0.0.0.0")), broadcast()).unwrap().message;
    assert_eq!(direct.yiaddr, ip("10.0.0.100"));
    assert!(!direct.options.has(code::RELAY_AGENT), "what is ignored is not given back (RFC 3046 §2.2)");
    for (giaddr, from) in
        [(RELAY, ip("10.1.0.77")), (ip("10.1.0.77"), ip("10.1.0.77")), (ip("10.1.0.77"), RELAY)]
    {
        assert!(answer(&mut server, at(0), &asked(giaddr), unicast(from)).is_none(), "{giaddr} {from}");
    }
    let relayed = answer(&mut server, at(0), &asked(RELAY), unicast(RELAY)).unwrap().message;
    assert_eq!(relayed.yiaddr, ip("10.1.0.50"));
}

// One forged INFORM rewrote whose an address is, and with it for whom a token is good.
#[test]
fn whose_an_address_is_is_learned_from_the_lease_alone() {
    let leased = Arc::new(Leased::default());
    let observer: Arc<dyn Observer> = leased.clone();
    let mut server =
        Server::new(settings(), Arc::new(Always(Action::LocalDisk)), Default::default(), observer);
    let own = lease(&mut server, at(0), mac(1));
    let expected = vec![(mac(1).to_string(), own.to_string())];
    assert_eq!(*leased.0.lock().unwrap(), expected);
    let forged = Message { ciaddr: own, ..Message::request(MessageType::INFORM, mac(2), 1) };
    assert!(answer(&mut server, at(1), &renewing(mac(2), own), unicast(own)).is_some(), "it is refused");
    ask(&mut server, at(1), &forged, unicast(own));
    ask(&mut server, at(1), &Message { ciaddr: own, ..discover(mac(2)) }, broadcast());
    assert_eq!(*leased.0.lock().unwrap(), expected);
}

// Three quarters of a pool were held for 75 inventions, and for half a minute nobody new was answered.
#[test]
fn a_flood_of_inventions_keeps_no_new_client_out() {
    for free in [3_u8, 10, 50] {
        let mut settings = settings();
        settings.subnets[0].pools[0].last =
            std::net::Ipv4Addr::from(u32::from(ip("10.0.0.99")) + u32::from(free));
        let mut server = server_of(settings, Action::LocalDisk);
        let invented = |number: u16| crate::device::Mac([6, 0, 0, 0, (number >> 8) as u8, number as u8]);
        for number in 0..300 {
            let offer = answer(&mut server, at(0), &discover(invented(number)), broadcast());
            assert!(offer.is_some(), "{free}: {number}");
        }
        lease(&mut server, at(0), mac(1));
    }
}

proptest! {
    /// The rule: a clock that was wrong since the start and is set moves nothing apart from the times. What the log says
    /// afterwards lets every lease of that time end when its client believes, and leaves those of before alone.
    #[test]
    fn a_step_of_the_clock_moves_what_was_decided_by_the_wrong_time(
        step_ms in -86_400_000_i64..86_400_000,
        clients in 1_u8..20,
        renewing in 0_u8..20,
    ) {
        let plan = || vec![crate::dhcp::lease::Plan {
            pools: vec![crate::dhcp::lease::AddressRange { first: ip("10.0.0.1"), last: ip("10.0.0.40") }],
            ..Default::default()
        }];
        let mut table = Table::new(MemberId(1), plan(), Terms::default());
        let client = |number: u8| {
            crate::dhcp::lease::ClientId::new(Some(mac(number).into()), None, &[], false).unwrap()
        };
        let hour = std::time::Duration::from_secs(3600);
        let grant = |table: &mut Table, now: Time, number: u8| {
            let client = client(number);
            let requester = crate::dhcp::lease::Requester { client: &client, circuit_id: &[], relay_agent: None };
            let held = table.hold(&[0], now, requester, None).unwrap();
            let address = held.address;
            table.grant(&[0], now, requester, address, hour).unwrap();
            address
        };
        // Before the start, by a right clock.
        let before: Vec<_> = (0..20).map(|number| grant(&mut table, at(0), number)).collect();
        let started = at(1000);
        let during: Vec<_> = (20..20 + clients).map(|number| grant(&mut table, at(1001), number)).collect();
        let renewed: Vec<_> = (0..renewing).map(|number| grant(&mut table, at(1002), number)).collect();
        prop_assert_eq!(&renewed[..], &before[..usize::from(renewing)]);
        let expires = |table: &Table, address| table.lease(address).unwrap().expires;
        let ends: Vec<_> = before.iter().chain(&during).map(|address| (*address, expires(&table, *address))).collect();
        table.shift_times(started, step_ms);
        for (place, (address, end)) in ends.into_iter().enumerate() {
            let is_of_this_run = place < usize::from(renewing) || place >= 20;
            let expected = if is_of_this_run { end.shifted(step_ms) } else { end };
            prop_assert_eq!(expires(&table, address), expected, "{}", address);
        }
        // What is rewritten now and read after the next start keeps everybody's address.
        let (records, _) = table.snapshot(None, usize::MAX);
        prop_assert!(records.iter().all(|record| record.state == RecordState::Granted));
        let mut next = Table::new(MemberId(1), plan(), Terms::default());
        for record in records {
            prop_assert!(next.restore(record));
        }
        let now = at(1800).shifted(step_ms);
        let stranger = grant(&mut next, now, 200);
        prop_assert!(!during.contains(&stranger) && !renewed.contains(&stranger), "{} is given twice", stranger);
        let known = during.iter().zip(20..).chain(renewed.iter().zip(0..));
        for (address, number) in known.take(3) {
            prop_assert_eq!(grant(&mut next, now, number), *address);
        }
    }
}
