//! A network whose clock and packets the test moves: clients that join, renew, restart and leave, packets that are lost,
//! doubled and late, a server that crashes at any point of a batch, on a disk that keeps what it likes of what was not
//! synced.
//!
//! Three things must hold. No two clients believe at one time that they have one address. A lease that a client was told
//! of is known to the server until it ends, whatever crashed. And no client loses an address that it rightly has to a NAK.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::time::Duration;

use super::setup::*;
use crate::dhcp::driver::open_leases;
use crate::dhcp::lease::{CrashingVolume, Log, Time};
use crate::dhcp::server::{Arrival, Outputs, Reply, Server, Settings};
use crate::dhcp::wire::{Message, MessageType, code};
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

fn open(volume: &CrashingVolume) -> (Server, Log) {
    let mut server = server_of(small_settings(), Action::Local);
    let (log, opened, _) = open_leases(&mut server, Box::new(volume.clone())).unwrap();
    assert_eq!(opened.scan.damage_count, 0, "a crash is no corruption");
    (server, log)
}

impl World {
    fn new(seed: u64) -> Self {
        let volume = CrashingVolume::default();
        let (server, log) = open(&volume);
        Self {
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
        (self.server, self.log) = open(&self.volume);
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
            let owner = known.and_then(|lease| lease.holder.hardware).and_then(|hardware| hardware.mac());
            assert_eq!(owner, Some(mac(number as u8)), "{address} is forgotten: {lease:?}");
        }
    }
}

#[test]
fn no_address_is_held_by_two_and_no_acknowledged_lease_is_forgotten() {
    let mut totals = [0; 3];
    for seed in 1..=30 {
        let mut world = World::new(seed);
        for _ in 0..700 {
            world.step();
        }
        for (total, count) in totals.iter_mut().zip([world.acks, world.naks, world.crashes]) {
            *total += count;
        }
    }
    let [acks, naks, crashes] = totals;
    assert!(acks > 1500 && naks > 50 && crashes > 150, "the test tests something: {totals:?}");
}
