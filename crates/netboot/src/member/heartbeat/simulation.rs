//! A group on a network that loses, delays, reorders and repeats, with an attacker on it; clocks step, members die and
//! come back. Everything follows from a seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use std::net::SocketAddr;
use std::time::Duration;

use super::super::MemberState;
use super::machine::{Group, INTERVAL, Machine, Peer, Refusal};
use super::wire::{Announcement, Condition, Key};

/// The promise: a dead member leaves the replies within this time.
const PROMISE: Duration = Duration::from_secs(2);

/// xorshift64*: seeded, and good enough to lose packets by.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

struct Node {
    machine: Option<Machine>,
    /// Its view of the others.
    view: BTreeMap<String, MemberState>,
    /// When it died last.
    died_at: Duration,
    started_at: Duration,
    /// Its clock's error, in milliseconds.
    clock: i64,
    side: u64,
}

/// What the network does to a datagram.
#[derive(Clone, Copy)]
struct NetworkFaults {
    loss: u64,
    repeat: u64,
    delay_ms: u64,
}

/// When, a tie-breaker, whereto, what.
type Arrival = (Duration, u64, usize, Vec<u8>);

struct World {
    now: Duration,
    random: Random,
    nodes: Vec<Node>,
    faults: NetworkFaults,
    is_parted: bool,
    wire: BinaryHeap<Reverse<Arrival>>,
    sent: u64,
    /// What an attacker has recorded.
    record: Vec<(usize, Vec<u8>)>,
    is_recording: bool,
    /// Verdicts of death about members that lived.
    wrong_deaths: u32,
}

impl World {
    fn new(count: usize, seed: u64, faults: NetworkFaults) -> Self {
        let mut world = Self {
            now: Duration::ZERO,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            nodes: Vec::new(),
            faults,
            is_parted: false,
            wire: BinaryHeap::new(),
            sent: 0,
            record: Vec::new(),
            is_recording: false,
            wrong_deaths: 0,
        };
        for _ in 0..count {
            world.nodes.push(Node {
                machine: None,
                view: BTreeMap::new(),
                died_at: Duration::ZERO,
                started_at: Duration::ZERO,
                clock: 0,
                side: 0,
            });
        }
        (0..count).for_each(|node| world.start(node));
        world
    }

    fn start(&mut self, node: usize) {
        let count = self.nodes.len();
        let group = Group {
            key: Key::new(&[7; 32]),
            own: announcement(node),
            peers: (0..count).map(|node| Peer { name: name(node), address: address(node) }).collect(),
            announce_to: Vec::new(),
            accepts_found: false,
        };
        let boot_id = self.random.below(u64::MAX) << 20 | self.random.below(1 << 20);
        let started = &mut self.nodes[node];
        started.machine = Some(Machine::new(group, boot_id, self.now));
        started.view.clear();
        started.started_at = self.now;
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].machine = None;
        self.nodes[node].died_at = self.now;
    }

    fn put(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        if self.is_parted && self.nodes[from].side != self.nodes[to].side {
            return;
        }
        let copies = 1 + u64::from(self.random.percent(self.faults.repeat));
        for _ in 0..copies {
            if !self.random.percent(self.faults.loss) {
                let delay = Duration::from_micros(200 + self.random.below(self.faults.delay_ms * 1000 + 1));
                self.sent += 1;
                self.wire.push(Reverse((self.now + delay, self.sent, to, bytes.clone())));
            }
        }
        if self.is_recording {
            self.record.push((to, bytes));
        }
    }

    /// One millisecond.
    fn step(&mut self) {
        self.step_to(self.now + Duration::from_millis(1));
    }

    fn step_to(&mut self, now: Duration) {
        self.now = now;
        while let Some(Reverse((at, ..))) = self.wire.peek()
            && *at <= self.now
        {
            let Some(Reverse((_, _, to, bytes))) = self.wire.pop() else { break };
            let wall = self.wall(to);
            if let Some(machine) = &mut self.nodes[to].machine {
                let _ = machine.handle_input(self.now, wall, &bytes);
            }
        }
        for node in 0..self.nodes.len() {
            let wall = self.wall(node);
            let Some(mut machine) = self.nodes[node].machine.take() else { continue };
            if machine.poll_timeout() <= self.now {
                machine.handle_timeout(self.now, wall);
            }
            while let Some(datagram) = machine.poll_transmit() {
                let to = usize::from(datagram.to.port() - 1000);
                self.put(node, to, datagram.bytes);
            }
            while let Some(change) = machine.poll_change() {
                let about: usize = change.name[1..].parse().unwrap();
                let state = change.state.unwrap();
                // One that came back just now was rightly missed.
                let lives = self.nodes[about].machine.is_some()
                    && self.now.saturating_sub(self.nodes[about].started_at) > PROMISE;
                let is_reachable = !self.is_parted || self.nodes[about].side == self.nodes[node].side;
                self.wrong_deaths += u32::from(state == MemberState::Dead && lives && is_reachable);
                self.nodes[node].view.insert(change.name, state);
            }
            self.nodes[node].machine = Some(machine);
        }
        self.check();
    }

    /// Nobody gives out who has been dead for longer than was promised.
    fn check(&self) {
        for (at, dead) in self.nodes.iter().enumerate().filter(|(_, node)| node.machine.is_none()) {
            for (by, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.machine.is_some()) {
                let late = self.now.saturating_sub(dead.died_at) > PROMISE;
                let is_given = node.view.get(&name(at)) == Some(&MemberState::Alive);
                assert!(!(late && is_given), "{} gives out {} at {:?}", name(by), name(at), self.now);
            }
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let timeouts =
                self.nodes.iter().filter_map(|node| node.machine.as_ref().map(Machine::poll_timeout));
            let arrival = self.wire.peek().map(|Reverse((at, ..))| *at);
            let next = timeouts.chain(arrival).min().unwrap_or(end);
            self.step_to(next.clamp(self.now, end));
        }
    }

    fn wall(&self, node: usize) -> Duration {
        let millis = 1_700_000_000_000 + self.now.as_millis() as i64 + self.nodes[node].clock;
        Duration::from_millis(millis.max(0) as u64)
    }

    /// Whether every living member sees every other living one.
    fn is_whole(&self) -> bool {
        let living = || self.nodes.iter().enumerate().filter(|(_, node)| node.machine.is_some());
        living().all(|(at, node)| {
            living()
                .filter(|(other, _)| *other != at)
                .all(|(other, _)| node.view.get(&name(other)) == Some(&MemberState::Alive))
        })
    }
}

fn name(node: usize) -> String {
    format!("m{node}")
}

fn address(node: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, node as u8], 1000 + node as u16))
}

fn announcement(node: usize) -> Announcement {
    Announcement {
        name: name(node),
        address: address(node).ip(),
        http_port: 80,
        https_port: None,
        https_name: None,
        tftp_port: 69,
        heartbeat_port: address(node).port(),
        weight: 1,
        condition: Condition::Serving,
        digest: [0; 16],
    }
}

const MINUTE: Duration = Duration::from_secs(60);

/// Who slept over several intervals says so once.
#[test]
fn a_late_heartbeat_is_one_heartbeat() {
    let own = announcement(0);
    let peers = vec![Peer { name: name(1), address: address(1) }];
    let group = Group { key: Key::new(&[7; 32]), own, peers, announce_to: Vec::new(), accepts_found: false };
    let mut machine = Machine::new(group, 1, Duration::ZERO);
    for late in [1, 2, 3, 10] {
        let now = machine.poll_timeout() + INTERVAL * late;
        machine.handle_timeout(now, now);
        assert!(machine.poll_timeout() > now && machine.poll_timeout() <= now + INTERVAL);
        assert!(machine.poll_transmit().is_some() && machine.poll_transmit().is_none());
    }
}

#[test]
fn an_hour_with_a_fifth_lost_kills_nobody() {
    let faults = NetworkFaults { loss: 20, repeat: 1, delay_ms: 30 };
    let mut world = World::new(3, 1, faults);
    world.run(MINUTE * 60);
    assert!(world.is_whole());
    assert_eq!(world.wrong_deaths, 0);
}

#[test]
fn the_dead_are_given_to_nobody_two_seconds_later_whatever_the_network_does() {
    for seed in 1..=6 {
        let faults = NetworkFaults { loss: 10 * (seed % 3), repeat: 20, delay_ms: 250 };
        let mut world = World::new(4, seed, faults);
        world.run(Duration::from_secs(3));
        assert!(world.is_whole(), "seed {seed}");
        for _ in 0..25 {
            let node = world.random.below(4) as usize;
            match world.nodes[node].machine {
                Some(_) => world.kill(node),
                None => world.start(node),
            }
            let pause = Duration::from_millis(world.random.below(5000));
            world.run(pause);
        }
        for node in 0..4 {
            if world.nodes[node].machine.is_none() {
                world.start(node);
            }
        }
        world.run(Duration::from_secs(5));
        assert!(world.is_whole(), "seed {seed}: all came back");
        assert_eq!(world.wrong_deaths, 0, "seed {seed}");
    }
}

#[test]
fn clocks_that_step_kill_nobody() {
    let mut world = World::new(3, 9, NetworkFaults { loss: 5, repeat: 5, delay_ms: 20 });
    for step in [0, 3_600_000, -86_400_000, 86_400_000 * 3650, i64::MIN / 4, 0] {
        world.nodes[1].clock = step;
        world.run(Duration::from_secs(5));
        assert!(world.is_whole(), "after a step of {step} ms");
    }
    // A member that starts with a clock of its own is taken in all the same.
    world.kill(1);
    world.run(Duration::from_secs(3));
    world.nodes[1].clock = -1_700_000_000_000;
    world.start(1);
    world.run(Duration::from_secs(3));
    assert!(world.is_whole());
    assert_eq!(world.wrong_deaths, 0);
}

#[test]
fn a_parted_group_comes_together_again() {
    let mut world = World::new(4, 4, NetworkFaults { loss: 10, repeat: 5, delay_ms: 30 });
    world.run(Duration::from_secs(3));
    for round in 0..4 {
        (0..4).for_each(|node| world.nodes[node].side = world.random.below(2) + u64::from(node == 0));
        world.is_parted = true;
        world.run(Duration::from_secs(4));
        for (at, node) in world.nodes.iter().enumerate() {
            for (other, there) in world.nodes.iter().enumerate().filter(|(other, _)| *other != at) {
                let is_alive = node.view.get(&name(other)) == Some(&MemberState::Alive);
                assert_eq!(is_alive, node.side == there.side, "round {round}: {at} about {other}");
            }
        }
        world.is_parted = false;
        world.run(Duration::from_secs(4));
        assert!(world.is_whole(), "round {round}");
    }
    assert_eq!(world.wrong_deaths, 0);
}

#[test]
fn replays_of_everything_that_was_ever_said_raise_nobody_from_the_dead() {
    let mut world = World::new(3, 5, NetworkFaults { loss: 0, repeat: 0, delay_ms: 5 });
    world.is_recording = true;
    world.run(Duration::from_secs(4));
    // A second life, recorded too, so that the attacker has old and young proofs.
    world.kill(2);
    world.run(Duration::from_secs(3));
    world.start(2);
    world.run(Duration::from_secs(4));
    world.kill(2);
    world.is_recording = false;
    let record = std::mem::take(&mut world.record);
    for millisecond in 0..6000 {
        // Everything again and again, in order and out of it, to whom it was for and to others.
        for turn in 0..4 {
            let at = if turn < 2 {
                (millisecond * 2 + turn) % record.len()
            } else {
                world.random.below(record.len() as u64) as usize
            };
            let (to, bytes) = &record[at];
            let to = if turn == 3 { (to + 1) % 3 } else { *to };
            let wall = world.wall(to);
            if let Some(machine) = &mut world.nodes[to].machine {
                let _ = machine.handle_input(world.now, wall, bytes);
            }
        }
        world.step();
    }
    for node in 0..2 {
        assert_eq!(world.nodes[node].view[&name(2)], MemberState::Dead);
        assert_eq!(world.nodes[node].view[&name(1 - node)], MemberState::Alive);
    }
    // Nor do they keep it out when it comes back, or bring down who lives.
    world.start(2);
    for millisecond in 0..4000 {
        let (to, bytes) = &record[millisecond * 7 % record.len()];
        let wall = world.wall(*to);
        let _ = world.nodes[*to].machine.as_mut().unwrap().handle_input(world.now, wall, bytes);
        world.step();
    }
    assert!(world.is_whole());
    assert_eq!(world.wrong_deaths, 0);
}

#[test]
fn forged_and_foreign_datagrams_count_for_nothing() {
    let mut world = World::new(2, 6, NetworkFaults { loss: 0, repeat: 0, delay_ms: 5 });
    world.is_recording = true;
    world.run(Duration::from_secs(1));
    let record = std::mem::take(&mut world.record);
    world.kill(1);
    for _ in 0..4000 {
        let at = world.random.below(record.len() as u64) as usize;
        let (to, mut bytes) = record[at].clone();
        let spoiled = world.random.below(bytes.len() as u64) as usize;
        bytes[spoiled] ^= 1 << world.random.below(8);
        if to == 0 {
            let wall = world.wall(0);
            let taken = world.nodes[0].machine.as_mut().unwrap().handle_input(world.now, wall, &bytes);
            assert!(matches!(taken, Err(Refusal::Decode(_))), "{taken:?}");
        }
        world.step();
    }
    assert_eq!(world.nodes[0].view[&name(1)], MemberState::Dead);
}
