//! A network whose clock and packets the test moves: clients that join, renew, restart and leave, packets that are lost,
//! doubled and late, a server that crashes at any point of a batch, on a disk that keeps what it likes of what was not
//! synced.
//!
//! Three things must hold. No two clients believe at one time that they have one address. A lease that a client was told
//! of is known to the server until it ends, whatever crashed. And no client loses an address that it rightly has to a NAK.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::setup::*;
use crate::dhcp::driver::open_leases;
use crate::dhcp::lease::{AddressRange, CrashingVolume, Log, Reservation, Time};
use crate::dhcp::server::{Arrival, Outputs, Reply, Server, Settings};
use crate::dhcp::wire::{Message, MessageType, code};
use crate::network::NetworkV4;
use crate::policy::Action;

const CLIENTS: u8 = 30;

/// Xorshift: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit.max(1)
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }
}

/// A client after RFC 2131 §4.4, without its patience.
#[derive(Clone, Debug, Default)]
struct Client {
    /// Every exchange has a number; answers to an older one are dropped.
    xid: u32,
    /// What it believes to have, and until when.
    lease: Option<(Ipv4Addr, Time)>,
    /// What it asked for last, and when.
    asked: Option<(Ipv4Addr, Time)>,
}

struct World {
    settings: Settings,
    random: Random,
    now: Time,
    volume: CrashingVolume,
    server: Server,
    log: Log,
    clients: Vec<Client>,
    /// Packets on their way, by when they arrive.
    wire: BTreeMap<(Time, u64), Packet>,
    sent: u64,
    acks: u64,
    naks: u64,
    crashes: u64,
}

#[derive(Clone)]
enum Packet {
    ToServer(Message, Arrival),
    ToClient(Message),
}

fn ends_a_lease(message: &Message) -> bool {
    matches!(message.kind(), Some(MessageType::RELEASE | MessageType::DECLINE))
}

fn small_settings() -> Settings {
    let mut settings = settings();
    // Fewer addresses than clients, and short leases: they have to be reused.
    settings.subnets[0].pools[0].last = ip("10.0.0.119");
    settings.subnets[0].lease = Duration::from_secs(60);
    settings.terms.hold = Duration::from_secs(10);
    settings.terms.decline = Duration::from_secs(30);
    settings
}

/// The same addresses in two subnets that share the link.
fn shared_settings() -> Settings {
    let mut settings = small_settings();
    let mut sibling = settings.subnets[0].clone();
    settings.subnets[0].pools[0].last = ip("10.0.0.109");
    sibling.network = NetworkV4::new(ip("10.2.0.0"), 24).unwrap();
    sibling.pools = vec![AddressRange { first: ip("10.2.0.110"), last: ip("10.2.0.119") }];
    sibling.reservations = vec![(Reservation::Mac(mac(0)), ip("10.2.0.50"))];
    sibling.routers = vec![ip("10.2.0.254")];
    settings.subnets.push(sibling);
    for subnet in [0, 2] {
        settings.subnets[subnet].shared_network = Some("lan".into());
    }
    settings
}

fn open(volume: &CrashingVolume, settings: Settings) -> (Server, Log) {
    let mut server = server_of(settings, Action::LocalDisk);
    let (log, opened, _) = open_leases(&mut server, Box::new(volume.clone())).unwrap();
    assert_eq!(opened.scan.damage_count, 0, "a crash is no corruption");
    (server, log)
}

impl World {
    fn new(seed: u64, settings: Settings) -> Self {
        let volume = CrashingVolume::default();
        let (server, log) = open(&volume, settings.clone());
        Self {
            settings,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now: at(0),
            volume,
            server,
            log,
            clients: vec![Client::default(); CLIENTS.into()],
            wire: BTreeMap::new(),
            sent: 0,
            acks: 0,
            naks: 0,
            crashes: 0,
        }
    }

    fn send(&mut self, packet: &Packet) {
        if self.random.one_in(10) {
            return;
        }
        let copies = if self.random.one_in(10) { 2 } else { 1 };
        for _ in 0..copies {
            // Some come late enough to overtake whole exchanges.
            let late = match packet {
                // Nothing tells a late RELEASE or DECLINE from a new one, so one that overtakes the client's next lease
                // ends that: a hole of the protocol, and not what is tested here.
                Packet::ToServer(message, _) if ends_a_lease(message) => 1,
                _ if self.random.one_in(20) => 8000,
                _ => 40,
            };
            let delay = Duration::from_millis(self.random.below(late) as u64);
            self.sent += 1;
            self.wire.insert((self.now.after(delay), self.sent), packet.clone());
        }
    }

    fn step(&mut self) {
        self.now = self.now.after(Duration::from_millis(self.random.below(400) as u64));
        self.act();
        let mut batch = Vec::new();
        while let Some(entry) = self.wire.first_entry().filter(|entry| entry.key().0 <= self.now) {
            match entry.remove() {
                Packet::ToServer(message, arrival) => batch.push((message, arrival)),
                Packet::ToClient(message) => self.deliver(&message),
            }
        }
        self.serve(batch);
        self.check();
    }

    /// One client does something.
    fn act(&mut self) {
        let number = self.random.below(CLIENTS.into());
        let choice = self.random.below(12);
        let mac = mac(number as u8);
        let now = self.now;
        let client = &mut self.clients[number];
        client.lease = client.lease.filter(|(_, until)| *until > now);
        client.xid += 1;
        let (mut message, arrival) = match (choice, client.lease) {
            (0..=5, Some((address, _))) => (renewing(mac, address), unicast(address)),
            (6, Some((address, _))) => (renewing(mac, address), broadcast()),
            (7, Some((address, _))) => (init_reboot(mac, address), broadcast()),
            (8, Some((address, _))) => {
                client.lease = None;
                let message = selecting(mac, address, US);
                let mut message = Message { ciaddr: address, ..message };
                message.options.remove(code::REQUESTED_ADDRESS);
                message.options.set(code::MESSAGE_TYPE, [MessageType::RELEASE.0]);
                (message, unicast(address))
            }
            (9, Some((address, _))) => {
                client.lease = None;
                let mut message = selecting(mac, address, US);
                message.options.set(code::MESSAGE_TYPE, [MessageType::DECLINE.0]);
                (message, broadcast())
            }
            // It comes from another network, or takes another server's offer.
            (10, None) => (init_reboot(mac, ip("192.168.7.7")), broadcast()),
            (11, None) => (selecting(mac, ip("10.0.0.200"), ip("10.0.0.2")), broadcast()),
            (_, None) => (discover(mac), broadcast()),
            _ => return,
        };
        client.asked = client.lease.map(|(address, _)| (address, now));
        message.xid = client.xid;
        self.send(&Packet::ToServer(message, arrival));
    }

    fn serve(&mut self, batch: Vec<(Message, Arrival)>) {
        let mut outputs = Outputs::default();
        for (message, arrival) in &batch {
            self.server.handle(self.now, message, *arrival, &mut outputs);
        }
        // A crash before, within or after the commit: whatever of it reached the disk, no ACK has left yet.
        let crash = self.random.one_in(40);
        if crash {
            let operations = self.random.below(3) as u64;
            self.volume.fail_after(Some(operations));
        }
        let is_durable = self.log.commit(&outputs.records).is_ok();
        if self.log.wants_room() {
            // Not even a failure matters.
            let _ = self.log.make_room();
        }
        self.volume.fail_after(None);
        outputs.replies.iter().for_each(|reply| self.reply(reply));
        if is_durable {
            outputs.durable_replies.iter().for_each(|reply| self.reply(reply));
        }
        if crash {
            self.restart();
        } else if self.random.one_in(60) {
            self.rewrite();
        }
    }

    fn reply(&mut self, reply: &Reply) {
        let bytes = reply.message.encode(reply.size_max);
        self.send(&Packet::ToClient(Message::decode(&bytes).unwrap()));
    }

    fn restart(&mut self) {
        self.crashes += 1;
        let random = &mut self.random;
        self.volume = self.volume.crash(|limit| random.below(limit));
        (self.server, self.log) = open(&self.volume, self.settings.clone());
    }

    fn rewrite(&mut self) {
        let table = self.server.table();
        self.log.begin_rewrite(self.now, table.member_sequence()).unwrap();
        let mut after = None;
        while let (records, Some(last)) = table.snapshot(after, 3) {
            self.log.rewrite(&records).unwrap();
            after = Some(last);
        }
        self.log.finish_rewrite().unwrap();
    }

    fn deliver(&mut self, message: &Message) {
        let number = usize::from(message.chaddr[5]);
        let now = self.now;
        let client = &mut self.clients[number];
        if message.xid != client.xid {
            return;
        }
        match message.kind() {
            Some(MessageType::OFFER) if client.lease.is_none() && client.asked.is_none() => {
                client.asked = Some((message.yiaddr, now));
                let mut request = selecting(mac(number as u8), message.yiaddr, US);
                request.xid = client.xid;
                self.send(&Packet::ToServer(request, broadcast()));
            }
            Some(MessageType::ACK) => {
                let Some((address, asked_at)) = client.asked else { return };
                assert_eq!(message.yiaddr, address);
                // A client counts from when it asked (RFC 2131 §4.4.1).
                let seconds = message.options.array(code::LEASE_TIME).map(u32::from_be_bytes).unwrap();
                client.lease = Some((address, asked_at.after(Duration::from_secs(seconds.into()))));
                self.acks += 1;
                self.check_network(message);
            }
            Some(MessageType::NAK) => {
                self.naks += 1;
                let rightful = client.lease.filter(|(_, until)| *until > now);
                assert_eq!(rightful, None, "a NAK takes an address from who rightly has it");
                client.asked = None;
            }
            _ => {}
        }
    }

    /// An address comes with what is true in its own subnet.
    fn check_network(&self, message: &Message) {
        let subnet = self.settings.subnets.iter().find(|subnet| subnet.network.contains(message.yiaddr));
        let subnet = subnet.unwrap_or_else(|| panic!("{} is in no subnet", message.yiaddr));
        assert_eq!(message.options.address(code::ROUTER), subnet.routers.first().copied());
    }

    fn check(&self) {
        let mut holders: HashMap<Ipv4Addr, usize> = HashMap::new();
        for (number, client) in self.clients.iter().enumerate() {
            let Some((address, until)) = client.lease.filter(|(_, until)| *until > self.now) else {
                continue;
            };
            let other = holders.insert(address, number);
            assert_eq!(other, None, "{address} is held by two");
            let lease = self.server.table().lease(address);
            let known = lease.filter(|lease| lease.is_active(self.now) && lease.expires >= until);
            let owner = known.and_then(|lease| lease.client.hardware).and_then(|hardware| hardware.mac());
            assert_eq!(owner, Some(mac(number as u8)), "{address} is forgotten: {lease:?}");
        }
    }
}

#[test]
fn no_address_is_held_by_two_and_no_acknowledged_lease_is_forgotten() {
    play(&small_settings());
}

#[test]
fn nor_is_any_where_two_subnets_share_the_link() {
    let held = play(&shared_settings());
    let in_subnet = |second: u8| held.iter().filter(|address| address.octets()[1] == second).count();
    assert!(in_subnet(0) == 10 && in_subnet(2) == 11, "both pools and the reservation are used: {held:?}");
    assert!(held.contains(&ip("10.2.0.50")), "the reservation is honoured: {held:?}");
}

/// Lets clients live for a while, many times over. Returns all addresses that any of them had.
fn play(settings: &Settings) -> BTreeSet<Ipv4Addr> {
    let mut held = BTreeSet::new();
    let mut totals = [0; 3];
    for seed in 1..=30 {
        let mut world = World::new(seed, settings.clone());
        for _ in 0..700 {
            world.step();
            held.extend(world.clients.iter().filter_map(|client| Some(client.lease?.0)));
        }
        for (total, count) in totals.iter_mut().zip([world.acks, world.naks, world.crashes]) {
            *total += count;
        }
    }
    let [acks, naks, crashes] = totals;
    assert!(acks > 1500 && naks > 50 && crashes > 150, "the test tests something: {totals:?}");
    held
}
