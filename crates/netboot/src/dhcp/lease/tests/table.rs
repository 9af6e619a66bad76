//! The table: whose an address is, and for how long.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::prelude::*;

use crate::device::Mac;
use crate::dhcp::lease::{
    AddressRange, ClientId, Denied, Held, MemberId, Plan, Requester, Reservation, State, Table, Terms, Time,
};

const HOUR: Duration = Duration::from_secs(3600);

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn range(first: u8, last: u8) -> AddressRange {
    AddressRange { first: address(first), last: address(last) }
}

fn terms() -> Terms {
    Terms { hold: Duration::from_secs(30), decline: Duration::from_secs(900), grace: HOUR }
}

fn plan(first: u8, last: u8) -> Plan {
    Plan { pools: vec![range(first, last)], ..Plan::default() }
}

fn table(plan: Plan) -> Table {
    Table::new(MemberId(1), vec![plan], terms())
}

fn system(mac: u8) -> ClientId {
    ClientId::new(Some(Mac([2, 0, 0, 0, 0, mac]).into()), None, b"\xffsystem", false).unwrap()
}

fn firmware(mac: u8) -> ClientId {
    ClientId::new(Some(Mac([2, 0, 0, 0, 0, mac]).into()), None, &[], true).unwrap()
}

fn by(client: &ClientId) -> Requester<'_> {
    Requester { client, circuit_id: &[], relay_agent: Some(&[]) }
}

/// Time in seconds.
fn at(seconds: u64) -> Time {
    Time(1_000_000_000_000 + seconds * 1000)
}

fn lease(table: &mut Table, now: u64, client: &ClientId, seconds: u64) -> Result<Ipv4Addr, Denied> {
    let held = table.hold(&[0], at(now), by(client), None)?;
    table.grant(&[0], at(now), by(client), held.address, Duration::from_secs(seconds))?;
    Ok(held.address)
}

#[test]
fn the_last_number_of_all_in_a_log_is_no_end() {
    let mut first = table(plan(1, 2));
    let address = lease(&mut first, 0, &system(1), 100).unwrap();
    let mut record = first.snapshot(None, 1).0.remove(0);
    record.member_sequence = u64::MAX;
    let mut second = table(plan(1, 2));
    assert!(second.restore(record));
    assert_eq!(lease(&mut second, 1, &system(1), 100), Ok(address));
    assert_eq!(second.member_sequence(), u64::MAX);
}

#[test]
fn an_offered_address_is_offered_to_nobody_else_until_the_hold_ends() {
    let mut table = table(plan(1, 8));
    let first = table.hold(&[0], at(0), by(&system(1)), None).unwrap();
    let wanted = table.hold(&[0], at(1), by(&system(2)), Some(first.address)).unwrap();
    assert_ne!(first.address, wanted.address);
    assert_eq!(table.grant(&[0], at(1), by(&system(2)), first.address, HOUR).unwrap_err(), Denied::Taken);
    // The same client is offered the same address.
    assert_eq!(table.hold(&[0], at(2), by(&system(1)), None).unwrap().address, first.address);
    // A hold leaves nothing behind.
    assert_eq!(table.hold(&[0], at(60), by(&system(3)), None).unwrap().address, first.address);
    assert_eq!(table.leases(None).count(), 1);
}

#[test]
fn expired_addresses_are_reused_oldest_first_and_only_when_no_fresh_one_is_left() {
    let mut table = table(plan(1, 4));
    for (mac, seconds) in [(1, 300), (2, 100), (3, 200)] {
        assert_eq!(lease(&mut table, 0, &system(mac), seconds), Ok(address(mac)));
    }
    assert_eq!(lease(&mut table, 1000, &system(4), 9999), Ok(address(4)));
    // A client that comes back finds its own.
    assert_eq!(lease(&mut table, 1000, &system(3), 9999), Ok(address(3)));
    assert_eq!(lease(&mut table, 1000, &system(5), 9999), Ok(address(2)));
    assert_eq!(lease(&mut table, 1000, &system(6), 9999), Ok(address(1)));
    assert_eq!(lease(&mut table, 1000, &system(7), 9999), Err(Denied::Exhausted));
    // Whose address went to another one gets another one.
    assert_eq!(table.grant(&[0], at(1000), by(&system(1)), address(1), HOUR).unwrap_err(), Denied::Taken);
    // One that is given back goes to the next.
    assert!(table.release(0, at(1001), by(&system(1)), address(1)).is_none(), "it is not its own");
    assert!(table.release(0, at(1001), by(&system(6)), address(1)).is_some());
    assert_eq!(lease(&mut table, 1001, &system(7), 9999), Ok(address(1)));
}

#[test]
fn a_declined_address_is_put_aside_for_a_while() {
    let mut table = table(plan(1, 2));
    assert_eq!(lease(&mut table, 0, &system(1), 3600), Ok(address(1)));
    assert!(table.decline(0, at(1), by(&system(2)), address(1)).is_none(), "it is not its own");
    assert!(table.decline(0, at(1), by(&system(1)), address(1)).is_some());
    assert!(table.decline(0, at(1), by(&system(1)), address(1)).is_none(), "once is enough");
    assert_eq!(lease(&mut table, 2, &system(1), 3600), Ok(address(2)));
    assert_eq!(lease(&mut table, 2, &system(3), 3600), Err(Denied::Exhausted));
    assert_eq!(table.grant(&[0], at(2), by(&system(3)), address(1), HOUR).unwrap_err(), Denied::Declined);
    assert_eq!(lease(&mut table, 1000, &system(3), 3600), Ok(address(1)));
}

#[test]
fn a_machine_keeps_its_address_through_all_stages_of_its_boot_and_the_next() {
    let mut table = table(plan(1, 9));
    assert_eq!(lease(&mut table, 0, &firmware(1), 60), Ok(address(1)));
    assert_eq!(lease(&mut table, 5, &system(1), 3600), Ok(address(1)));
    // The system's own; not that of another system behind the same hardware address.
    let other = ClientId::new(Some(Mac([2, 0, 0, 0, 0, 1]).into()), None, b"\xffother", false).unwrap();
    assert_eq!(lease(&mut table, 6, &other, 3600), Ok(address(2)));
    assert_eq!(lease(&mut table, 6, &system(1), 3600), Ok(address(1)));
    // It is restarted.
    assert_eq!(lease(&mut table, 100, &firmware(1), 60), Ok(address(1)));
    assert_eq!(lease(&mut table, 105, &system(1), 3600), Ok(address(1)));
    // Clones of one image have one identifier.
    assert_eq!(lease(&mut table, 106, &system(2), 3600), Ok(address(3)));
}

#[test]
fn strangers_cannot_hold_a_whole_pool() {
    let mut table = table(plan(1, 200));
    assert_eq!(lease(&mut table, 0, &system(0), 3600), Ok(address(1)));
    let results: Vec<_> = (1..=200).map(|mac| table.hold(&[0], at(1), by(&system(mac)), None)).collect();
    assert!(results.iter().all(Result::is_ok), "the oldest offers give way");
    assert_eq!(table.leases(None).count(), 1 + 150, "three quarters of what is free are held, and no more");
    let known = Held { address: address(1), is_known: true };
    assert_eq!(table.hold(&[0], at(1), by(&system(0)), None), Ok(known), "who has a lease is served");
    // Who is offered an address in the middle of it gets it, if it comes back for it before the pool went round once.
    let honest = system(250);
    let offered = table.hold(&[0], at(1), by(&honest), None).unwrap().address;
    for mac in 1..=49 {
        let _ = table.hold(&[0], at(1), by(&firmware(mac)), None);
    }
    assert!(table.grant(&[0], at(1), by(&honest), offered, HOUR).is_ok());
    assert!(table.release(0, at(1), by(&honest), offered).is_some());
    // The flood ends, and nothing is left of it.
    for second in 40..44 {
        let _ = table.hold(&[0], at(second), by(&system(201)), None);
    }
    assert_eq!(table.leases(None).count(), 3);
}

#[test]
fn reservations_by_every_name() {
    let reservations = vec![
        (Reservation::Mac(Mac([2, 0, 0, 0, 0, 1])), address(3)),
        (Reservation::ClientId(b"\xffnamed".to_vec()), address(100)),
        (Reservation::CircuitId(b"port 7".to_vec()), address(4)),
    ];
    let mut table = table(Plan { reservations, ..plan(1, 4) });
    assert_eq!(lease(&mut table, 0, &firmware(1), 60), Ok(address(3)));
    assert_eq!(lease(&mut table, 0, &system(1), 60), Ok(address(3)));
    let named = ClientId::new(Some(Mac([2, 0, 0, 0, 0, 9]).into()), None, b"\xffnamed", false).unwrap();
    assert_eq!(lease(&mut table, 0, &named, 60), Ok(address(100)), "outside of the pool");
    let behind = firmware(5);
    let requester =
        Requester { client: &behind, circuit_id: b"port 7", relay_agent: Some(b"\x01\x06port 7") };
    assert_eq!(table.hold(&[0], at(0), requester, None).map(|held| held.address), Ok(address(4)));
    // Nobody else gets them.
    assert_eq!(table.grant(&[0], at(0), by(&system(7)), address(3), HOUR).unwrap_err(), Denied::Taken);
    assert_eq!(lease(&mut table, 0, &system(7), 60), Ok(address(1)));
    assert_eq!(lease(&mut table, 0, &system(8), 60), Ok(address(2)));
    assert_eq!(lease(&mut table, 9999, &system(9), 60), Ok(address(1)));
    assert_eq!(table.grant(&[0], at(0), by(&system(7)), address(50), HOUR).unwrap_err(), Denied::Unmanaged);
}

#[test]
fn a_member_renews_what_the_other_logged_within_the_bound_that_both_know() {
    let mut owner = table(Plan { peer_pools: vec![range(5, 8)], ..plan(1, 4) });
    let mut other =
        Table::new(MemberId(2), vec![Plan { peer_pools: vec![range(1, 4)], ..plan(5, 8) }], terms());
    let client = system(1);
    let (expires, records) = owner.grant(&[0], at(0), by(&client), address(1), HOUR).unwrap();
    assert_eq!(other.grant(&[0], at(10), by(&client), address(1), HOUR).unwrap_err(), Denied::Unproven);
    assert!(other.apply_foreign(at(10), &records[0]));
    assert!(!other.apply_foreign(at(10), &records[0]), "twice is once");
    // Another client cannot use that proof.
    assert_eq!(other.grant(&[0], at(10), by(&system(2)), address(1), HOUR).unwrap_err(), Denied::Taken);
    // However often it is renewed there, it ends at the bound.
    let (first, _) = other.grant(&[0], at(1800), by(&client), address(1), HOUR).unwrap();
    let (last, renewed) = other.grant(&[0], at(5000), by(&client), address(1), 5 * HOUR).unwrap();
    assert_eq!((first, last), (at(1800 + 3600), expires.after(HOUR)));
    assert_eq!(other.grant(&[0], at(7300), by(&client), address(1), HOUR).unwrap_err(), Denied::Unproven);
    // The owner, which has heard nothing, keeps the address until then.
    for mac in 11..14 {
        lease(&mut owner, 0, &system(mac), 99_999).unwrap();
    }
    assert_eq!(lease(&mut owner, 3700, &system(9), 60), Err(Denied::Exhausted));
    assert_eq!(lease(&mut owner, 7100, &system(9), 60), Err(Denied::Exhausted));
    // When it hears of it, it goes on from there.
    assert!(owner.apply_foreign(at(7100), &renewed[0]));
    assert!(owner.lease(address(1)).unwrap().is_active(at(7100)));
    assert_eq!(lease(&mut owner, 7201, &system(9), 60), Ok(address(1)));
    // A record that would take an address from the client that has it is not believed.
    let mut forged = renewed[0].clone();
    (forged.changed, forged.client) = (at(7210), system(77));
    assert!(!owner.apply_foreign(at(7210), &forged));
}

#[derive(Clone, Debug)]
enum Step {
    Hold(u8, Option<u8>),
    Grant(u8, u8, u64),
    Release(u8, u8),
    Decline(u8, u8),
    Wait(u64),
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    let client = 0_u8..12;
    let last = 0_u8..12;
    prop_oneof![
        4 => (client.clone(), prop::option::of(last.clone())).prop_map(|(client, wanted)| Step::Hold(client, wanted)),
        6 => (client.clone(), last.clone(), 1_u64..200).prop_map(|(client, last, time)| Step::Grant(client, last, time)),
        1 => (client.clone(), last.clone()).prop_map(|(client, last)| Step::Release(client, last)),
        1 => (client, last).prop_map(|(client, last)| Step::Decline(client, last)),
        2 => (0_u64..150).prop_map(Step::Wait),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    /// The invariant of the table, against the simplest model: who was promised what, and until when.
    #[test]
    fn no_address_is_promised_to_two(steps in prop::collection::vec(any_step(), 0..200)) {
        let make = || table(Plan {
            reservations: vec![(Reservation::Mac(Mac([2, 0, 0, 0, 0, 3])), address(4))],
            ..plan(1, 8)
        });
        let mut table = make();
        let mut log = Vec::new();
        let mut now = 0;
        // Address to machine and end: what was acknowledged, and what was offered.
        let mut leases: HashMap<Ipv4Addr, (u8, Time)> = HashMap::new();
        let mut holds: HashMap<Ipv4Addr, (u8, Time)> = HashMap::new();
        // To whom each address was offered since somebody was given it.
        let mut offered: HashMap<Ipv4Addr, Vec<u8>> = HashMap::new();
        // Odd clients are the firmware of the machine before them.
        let client_of = |client: u8| if client % 2 == 1 { firmware(client / 2) } else { system(client / 2) };
        for step in steps {
            match step {
                Step::Wait(seconds) => now += seconds,
                Step::Hold(client, wanted) => {
                    let open = table.leases(None).filter(|(_, lease)| lease.state == State::Offered).count();
                    let result = table.hold(&[0], at(now), by(&client_of(client)), wanted.map(address));
                    if let Ok(held) = result
                        && let Some((machine, until)) = leases.get(&held.address)
                    {
                        prop_assert!(*machine == client / 2 || *until <= at(now), "{:?} has it", machine);
                    }
                    // An offer ends before its time only if too many stand open, or it is old and all are taken.
                    holds.retain(|address, (machine, until)| {
                        let hardware = table.lease(*address).and_then(|lease| lease.client.hardware);
                        let is_kept = hardware.and_then(|it| it.mac()).is_some_and(|mac| mac.0[5] == *machine);
                        let is_old = at(now).after(Duration::from_secs(24)) >= *until;
                        assert!(is_kept || open >= 4 || is_old, "{machine} loses {address} of {open}");
                        is_kept
                    });
                    if let Ok(held) = result {
                        holds.insert(held.address, (client / 2, at(now + 30)));
                        offered.entry(held.address).or_default().push(client / 2);
                    }
                }
                Step::Grant(client, last, seconds) => {
                    let address = address(last);
                    let result = table.grant(&[0], at(now), by(&client_of(client)), address, Duration::from_secs(seconds));
                    if let Ok((expires, records)) = result {
                        prop_assert!((1..=8).contains(&last));
                        prop_assert!(last != 4 || client / 2 == 3, "it is reserved");
                        if let Some((machine, until)) = leases.get(&address) {
                            prop_assert!(*machine == client / 2 || *until <= at(now), "{:?} has it", machine);
                        }
                        let other = holds.get(&address).filter(|(machine, until)| *machine != client / 2 && *until > at(now));
                        let was_offered = offered.get(&address).is_some_and(|machines| machines.contains(&(client / 2)));
                        prop_assert!(other.is_none() || was_offered, "{:?} is offered it", other);
                        offered.remove(&address);
                        for record in &records {
                            leases.remove(&record.address);
                        }
                        // What it was offered besides is free again, and nobody else is offered what it has now.
                        holds.retain(|held, (machine, _)| *held != address && *machine != client / 2);
                        leases.insert(address, (client / 2, expires));
                        log.extend(records);
                    }
                }
                Step::Release(client, last) => {
                    if let Some(record) = table.release(0, at(now), by(&client_of(client)), address(last)) {
                        prop_assert_eq!(leases.remove(&address(last)).map(|(machine, _)| machine), Some(client / 2));
                        log.push(record);
                    }
                    if holds.get(&address(last)).is_some_and(|(machine, _)| *machine == client / 2) {
                        holds.remove(&address(last));
                    }
                }
                Step::Decline(client, last) => {
                    if let Some(record) = table.decline(0, at(now), by(&client_of(client)), address(last)) {
                        leases.remove(&address(last));
                        holds.remove(&address(last));
                        log.push(record);
                    }
                }
                Step::Restart => {
                    table = make();
                    for record in &log {
                        prop_assert!(table.restore(record.clone()));
                    }
                    holds.clear();
                    // A rewritten log is as good as the whole.
                    let mut again = make();
                    for record in table.snapshot(None, usize::MAX).0 {
                        again.restore(record);
                    }
                    let state = |table: &Table| {
                        table.leases(None).map(|(address, lease)| (address, lease.clone())).collect::<Vec<_>>()
                    };
                    prop_assert_eq!(state(&again), state(&table));
                }
            }
            // Whoever was acknowledged has its lease until it ends.
            for (address, (machine, until)) in leases.iter().filter(|(_, (_, until))| *until > at(now)) {
                let lease = table.lease(*address).unwrap();
                let mac = lease.client.hardware.unwrap().mac().unwrap().0[5];
                prop_assert_eq!((lease.state, mac, lease.expires), (State::Granted, *machine, *until));
            }
        }
    }
}

#[test]
fn a_large_pool_that_is_nearly_full_is_as_quick_as_an_empty_one() {
    let first = Ipv4Addr::new(10, 0, 0, 0);
    let last = Ipv4Addr::new(10, 1, 255, 255);
    let mut table = table(Plan { pools: vec![AddressRange { first, last }], ..Plan::default() });
    let client_of = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes();
        ClientId::new(Some(Mac([2, 0, a, b, c, d]).into()), None, &[], false).unwrap()
    };
    let mut addresses = std::collections::HashSet::new();
    for number in 0..131_072 {
        let address = lease(&mut table, 0, &client_of(number), 100 + u64::from(number)).unwrap();
        assert!(addresses.insert(address));
    }
    assert_eq!(lease(&mut table, 0, &client_of(200_000), 9), Err(Denied::Exhausted));
    for number in 0..1000 {
        let address = lease(&mut table, 2000, &client_of(300_000 + number), 99_999).unwrap();
        assert_eq!(u32::from(address), u32::from(first) + number, "the oldest first");
    }
}

/// Offers that stand open at a time, with their ends.
fn open_offers(table: &Table, now: u64) -> Vec<(Ipv4Addr, Time)> {
    let leases = table.leases(None).filter(|(_, lease)| lease.state == State::Offered);
    leases.map(|(address, lease)| (address, lease.held_until)).filter(|(_, until)| *until > at(now)).collect()
}

/// A subnet without a pool, or whose pool is leased, took the place of the one in which an offer could be taken back.
#[test]
fn a_subnet_that_has_nothing_to_give_keeps_nobody_waiting() {
    let reservations = vec![(Reservation::Mac(Mac([2, 0, 0, 0, 0, 9])), address(200))];
    let plans = vec![Plan { reservations, ..Plan::default() }, plan(1, 8), plan(100, 100)];
    let mut table = Table::new(MemberId(1), plans, terms());
    let held = table.hold(&[2], at(0), by(&system(99)), None).unwrap();
    table.grant(&[2], at(0), by(&system(99)), held.address, HOUR).unwrap();
    for mac in 1..=20 {
        let held = table.hold(&[0, 1, 2], at(1), by(&firmware(mac + 100)), None);
        assert!(held.is_ok(), "{mac}: {held:?}");
    }
}

/// Whoever a reserved address is for lost his offer to somebody who was then offered it, and refused.
#[test]
fn an_offer_of_a_reserved_address_is_not_taken_back() {
    let reservations = vec![(Reservation::Mac(Mac([2, 0, 0, 0, 0, 9])), address(4))];
    let mut table = table(Plan { reservations, ..plan(1, 5) });
    let honest = firmware(9);
    assert_eq!(table.hold(&[0], at(0), by(&honest), None).map(|held| held.address), Ok(address(4)));
    for mac in 100..200 {
        let client = firmware(mac);
        let held = table.hold(&[0], at(10), by(&client), None).unwrap();
        assert_ne!(held.address, address(4), "{mac}");
    }
    assert!(open_offers(&table, 10).iter().any(|(open, _)| *open == address(4)));
    assert!(table.grant(&[0], at(11), by(&honest), address(4), HOUR).is_ok());
}

proptest! {
    /// An offer is taken back only for who is offered an address in its place: one on his own link, that is nobody's
    /// reservation, and that he gets when he comes for it.
    #[test]
    fn what_is_taken_back_helps_who_asks(
        asked in prop::collection::vec((0_u8..40, 0_usize..2, any::<bool>(), 0_u64..9), 0..200),
    ) {
        let kept = |mac: u8, last: u8| (Reservation::Mac(Mac([2, 0, 0, 0, 0, mac])), address(last));
        let plans = vec![
            Plan { reservations: vec![kept(1, 2), kept(2, 50)], ..plan(1, 6) },
            Plan { reservations: vec![kept(3, 60)], ..Plan::default() },
            plan(10, 14),
            Plan { reservations: vec![kept(1, 20)], ..plan(20, 22) },
        ];
        let reserved = [2, 50, 60, 20].map(address);
        let links = [&[0_usize, 1, 2][..], &[3][..]];
        let is_on = |link: usize, last: u8| (20..50).contains(&last) == (link == 1);
        let mut table = Table::new(MemberId(1), plans, terms());
        let mut now = 0;
        for (mac, link, is_coming_back, wait) in asked {
            now += wait;
            let client = firmware(mac);
            let before = open_offers(&table, now);
            let held = table.hold(links[link], at(now), by(&client), None);
            let after = open_offers(&table, now);
            let ended: Vec<Ipv4Addr> = before
                .iter()
                .map(|(address, _)| *address)
                .filter(|address| !after.iter().any(|(open, _)| open == address) || held.as_ref().is_ok_and(|held| {
                    held.address == *address && !held.is_known
                }))
                .collect();
            prop_assert!(ended.len() <= 1, "{ended:?}");
            for address in ended {
                prop_assert!(held.is_ok(), "{address} was taken back for nothing");
                prop_assert!(!reserved.contains(&address), "{address} is reserved");
                prop_assert!(is_on(link, address.octets()[3]), "{address} is of another link");
            }
            if let Ok(held) = held {
                prop_assert!(is_on(link, held.address.octets()[3]));
                if is_coming_back {
                    let granted = table.grant(links[link], at(now), by(&client), held.address, Duration::from_secs(60));
                    prop_assert!(granted.is_ok(), "{} was offered and refused: {granted:?}", held.address);
                }
            }
        }
    }
}
