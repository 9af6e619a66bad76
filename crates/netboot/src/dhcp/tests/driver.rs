//! The driver over a loopback socket, with a disk that is slow, breaks or crashes.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::setup::*;
use crate::device::Mac;
use crate::dhcp::driver::{DriverSettings, Ports, Running, Service, bind, open_leases};
use crate::dhcp::lease::{AddressRange, CrashingVolume, Log, MemberId, Record, Volume, scan};
use crate::dhcp::server::{Settings, Subnet};
use crate::dhcp::wire::{Message, MessageType};
use crate::member::Fitness;
use crate::network::NetworkV4;
use crate::policy::Action;

const RELAY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);
const SERVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
/// A loaded machine may be slow; nothing here waits so long otherwise.
const DEADLINE: Duration = Duration::from_secs(60);

/// A disk whose syncs wait while it is told to.
#[derive(Clone, Default)]
struct SlowVolume {
    disk: CrashingVolume,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

impl SlowVolume {
    fn close(&self, is_closed: bool) {
        *self.gate.0.lock().unwrap() = is_closed;
        self.gate.1.notify_all();
    }
}

impl Volume for SlowVolume {
    fn read(&mut self, name: &str) -> io::Result<Option<Box<dyn Read + '_>>> {
        self.disk.read(name)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        self.disk.create(name)
    }

    fn write_at(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_at(name, at, bytes)
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.disk.truncate(name, length)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let (is_closed, changed) = &*self.gate;
        drop(changed.wait_while(is_closed.lock().unwrap(), |is_closed| *is_closed).unwrap());
        self.disk.sync(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn link(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.disk.link(from, to)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.disk.sync_names()
    }
}

/// A relay with clients behind it, and the server that it asks.
struct Link {
    relay: UdpSocket,
    running: Running,
    fitness: Arc<Fitness>,
}

impl Link {
    fn new(volume: &SlowVolume) -> Self {
        Self::with_patience(volume, DEADLINE)
    }

    fn with_patience(volume: &SlowVolume, patience: Duration) -> Self {
        let relay = UdpSocket::bind((RELAY, 0)).unwrap();
        relay.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let mut subnet = Subnet::new(NetworkV4::new(ip("127.0.0.0"), 8).unwrap());
        subnet.pools = vec![AddressRange { first: ip("127.16.0.0"), last: ip("127.31.255.255") }];
        let settings = DriverSettings {
            addresses: vec![SocketAddrV4::new(SERVER, 0)],
            ports: Ports { relay: relay.local_addr().unwrap().port(), binl: None, ..Ports::default() },
            log_patience: patience,
            ..DriverSettings::default()
        };
        let mut server = server_of(Settings::new("loopback", vec![subnet]), Action::LocalDisk);
        let (log, _, clock) = open_leases(&mut server, Box::new(volume.clone())).unwrap();
        let fitness = Arc::new(Fitness::default());
        let service =
            Service { server: Some((server, log)), proxy: None, fitness: Arc::clone(&fitness), clock };
        Self { relay, running: bind(&settings).unwrap().run(service).unwrap(), fitness }
    }

    fn send(&self, mut message: Message, number: u32) {
        message.giaddr = RELAY;
        message.xid = number;
        self.relay.send_to(&message.encode(548), self.running.addresses()[0]).unwrap();
    }

    /// Client `number` takes the address that has its number.
    fn request(&self, number: u32) {
        self.send(selecting(client(number), address(number), SERVER), number);
    }

    /// The next answer, with the number of its client; none if none comes soon.
    fn answer(&self) -> Option<(u32, Message)> {
        let mut buffer = [0; 2048];
        let (length, _) = self.relay.recv_from(&mut buffer).ok()?;
        let message = Message::decode(&buffer[..length]).unwrap();
        Some((message.xid, message))
    }

    /// Asks until it is acknowledged.
    fn lease(&self, number: u32) {
        let is_ack =
            |(from, message): (u32, Message)| from == number && message.kind() == Some(MessageType::ACK);
        wait_for("an acknowledgement", || {
            self.request(number);
            self.answer().is_some_and(is_ack)
        });
    }

    fn received(&self) -> u64 {
        self.running.counters().received.load(Ordering::Acquire)
    }

    fn dropped(&self) -> u64 {
        self.running.counters().congestion_drops.load(Ordering::Relaxed)
    }
}

fn client(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([2, 1, a, b, c, d])
}

fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(ip("127.16.0.0")) + number)
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_there() {
        assert!(Instant::now() < deadline, "{what} does not come");
    }
}

/// What a server would find on this disk.
fn state(volume: &CrashingVolume) -> BTreeMap<Ipv4Addr, Record> {
    let mut found = BTreeMap::new();
    let member = MemberId::of("loopback");
    let (_, opened) =
        Log::open(Box::new(volume.clone()), member, |record| drop(found.insert(record.address, record)))
            .unwrap();
    assert_eq!(opened.scan.damage_count, 0, "a crash is no corruption");
    found
}

fn generation(volume: &CrashingVolume) -> u32 {
    let bytes = volume.with_bytes("leases.log", |bytes| bytes.clone()).unwrap();
    scan(&mut &bytes[..], |_| {}).unwrap().generation.unwrap()
}

#[test]
fn the_log_is_rewritten_under_load_and_a_crash_at_any_time_loses_no_lease() {
    let volume = SlowVolume::default();
    let link = Link::new(&volume);
    let first = generation(&volume.disk);
    let mut acknowledged: BTreeMap<Ipv4Addr, Mac> = BTreeMap::new();
    let mut seed = 1_usize;
    let mut round = 0;
    wait_for("the fifth rewriting", || {
        // Some are new, some renew.
        (0..40).for_each(|number| link.request((round * 10 + number) % 400));
        for _ in 0..40 {
            let Some((number, message)) = link.answer() else { break };
            assert_eq!((message.kind(), message.yiaddr), (Some(MessageType::ACK), address(number)));
            acknowledged.insert(message.yiaddr, client(number));
        }
        round += 1;
        let left = volume.disk.crash(|below| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        });
        let found = state(&left);
        for (address, mac) in &acknowledged {
            let client = found.get(address).and_then(|record| record.client.hardware).and_then(|it| it.mac());
            assert_eq!(client, Some(*mac), "{address} after round {round}");
        }
        generation(&volume.disk) >= first + 5
    });
    link.running.stop();
    assert!(acknowledged.len() > 100, "the test tests something: {}", acknowledged.len());
}

#[test]
fn a_server_whose_disk_is_too_slow_drops_the_oldest_requests_and_keeps_what_it_took() {
    let volume = SlowVolume::default();
    let link = Link::new(&volume);
    volume.close(true);
    let mut sent = 0;
    wait_for("congestion", || {
        // In steps, so that the kernel has room for all of them.
        for _ in 0..64 {
            link.request(sent);
            sent += 1;
        }
        wait_for("a request", || link.received() == u64::from(sent));
        link.dropped() >= 500
    });
    let dropped = link.dropped() as u32;
    link.relay.set_nonblocking(true).unwrap();
    assert!(link.answer().is_none(), "an acknowledgement of what no disk has");
    link.relay.set_nonblocking(false).unwrap();
    volume.close(false);
    let leases = || link.running.leases(None, usize::MAX).unwrap();
    wait_for("the rest", || leases().len() as u32 == sent - dropped);
    let mut kept = leases().into_iter().map(|record| u32::from(record.address) - u32::from(address(0)));
    let taken = kept.by_ref().zip(0..).take_while(|(number, expected)| number == expected).count() as u32;
    // One was taken off to see that it does not follow; then all to the newest.
    assert!(kept.eq(taken + dropped + 1..sent), "not the oldest of those that waited");
    link.lease(sent);
    link.running.stop();
    assert_eq!(state(&volume.disk).len() as u32, sent - dropped + 1);
}

#[test]
fn while_the_log_fails_nothing_is_acknowledged_and_all_is_when_it_works_again() {
    for operations in [0, 1] {
        let volume = SlowVolume::default();
        let link = Link::new(&volume);
        link.lease(0);
        let before = generation(&volume.disk);
        // The write fails, or the sync behind it; and everything that is tried for repair.
        volume.disk.fail_after(Some(operations));
        link.request(1);
        wait_for("the trouble", || link.fitness.trouble().is_some());
        // What came before the trouble was known may still be offered.
        while link.answer().is_some() {}
        for _ in 0..5 {
            link.request(1);
            link.send(discover(client(2)), 2);
            assert!(link.answer().is_none(), "who offers what it cannot give keeps clients from who can");
        }
        volume.disk.fail_after(None);
        wait_for("the end of the trouble", || link.fitness.trouble().is_none());
        link.lease(1);
        assert!(generation(&volume.disk) > before, "a log that failed is rewritten");
        let found = state(&volume.disk.crash(|_| 0));
        assert_eq!(found.keys().copied().take(2).collect::<Vec<_>>(), [address(0), address(1)]);
    }
}

// Two members; the disk of one hung. It went on offering and said that it was healthy, and most machines did not boot.
#[test]
fn a_member_whose_lease_disk_hangs_offers_nothing_and_knows_it() {
    let volume = SlowVolume::default();
    let link = Link::with_patience(&volume, Duration::from_millis(50));
    link.lease(0);
    assert_eq!(link.fitness.trouble(), None);
    volume.close(true);
    link.request(1);
    wait_for("the trouble", || link.fitness.trouble().is_some());
    while link.answer().is_some() {}
    for number in 2..6 {
        link.send(discover(client(number)), number);
        link.request(number);
        assert!(link.answer().is_none());
    }
    assert!(link.running.counters().unfit_drops.load(Ordering::Relaxed) >= 8);
    volume.close(false);
    wait_for("the end of the trouble", || link.fitness.trouble().is_none());
    link.lease(1);
    wait_for("an offer", || {
        link.send(discover(client(9)), 9);
        link.answer().is_some_and(|(_, message)| message.kind() == Some(MessageType::OFFER))
    });
    link.running.stop();
}

/// A disk with room for so many bytes.
struct SmallVolume {
    disk: CrashingVolume,
    room: Arc<Mutex<u64>>,
}

impl Volume for SmallVolume {
    fn read(&mut self, name: &str) -> io::Result<Option<Box<dyn Read + '_>>> {
        self.disk.read(name)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        self.disk.create(name)
    }

    fn write_at(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        if at + bytes.len() as u64 > *self.room.lock().unwrap() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.disk.write_at(name, at, bytes)
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.disk.truncate(name, length)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.disk.sync(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn link(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.disk.link(from, to)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.disk.sync_names()
    }
}

// A first start with 695 KiB of room failed, and with it HTTP and TFTP: the log wanted 5 MiB for leases of later.
#[test]
fn a_full_disk_keeps_no_server_from_its_start() {
    for room in [0, 10, 1000, 4000, 100_000] {
        let disk = CrashingVolume::default();
        let room = Arc::new(Mutex::new(room));
        let volume = SmallVolume { disk: disk.clone(), room: Arc::clone(&room) };
        let mut server = server();
        let (mut log, _, clock) = open_leases(&mut server, Box::new(volume)).unwrap();
        let has_room = *room.lock().unwrap() >= 1000;
        assert_eq!(log.is_suspect(), !has_room, "records alone need room");
        let outputs = {
            let asked = init_reboot(mac(1), ip("10.0.0.100"));
            ask(&mut server, clock.now(), &asked, broadcast())
        };
        assert_eq!(log.commit(&outputs.records).is_ok(), has_room);
        // Somebody makes room.
        *room.lock().unwrap() = u64::MAX;
        if log.is_suspect() {
            log.begin_rewrite(clock.now(), server.table().member_sequence()).unwrap();
            log.rewrite(&server.table().snapshot(None, usize::MAX).0).unwrap();
            assert!(log.finish_rewrite().unwrap());
        }
        assert_eq!(leases_on(&disk), [ip("10.0.0.100")]);
    }
}

fn leases_on(disk: &CrashingVolume) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    Log::open(Box::new(disk.clone()), MemberId::of("boot1"), |record| found.push(record.address)).unwrap();
    found
}
