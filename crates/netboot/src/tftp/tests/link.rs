//! A transfer over a network that loses, copies and delays packets, seeded: the file arrives as it is or the transfer
//! fails, and the number of packets is bounded.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::receive::{Receiver, Step};
use super::super::settings::Settings;
use super::super::wire::{OptionName, Options, Packet};
use super::{Harness, files, key, pattern};

/// A small generator of numbers (xorshift64*), so that a seed always means the same.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit
    }
}

/// What the network does to a hundred packets.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NetworkFaults {
    pub(super) lost: u64,
    pub(super) copied: u64,
    pub(super) delayed: u64,
    /// One way, in microseconds.
    pub(super) latency_us: u64,
}

pub(super) struct Journey {
    pub(super) file: Option<Vec<u8>>,
    pub(super) packets: u64,
    pub(super) elapsed: Duration,
}

/// Fetches a file of this length over the network.
pub(super) fn fetch(seed: u64, faults: NetworkFaults, length: usize, asked: &[(OptionName, u64)]) -> Journey {
    const CLIENT_PATIENCE_US: u64 = 1_500_000;
    let mut harness = Harness::new(Settings::default(), files(&[("f", length)]));
    let start = harness.now;
    let mut random = Random(seed * 2 + 1);
    let mut options = Options::default();
    for (name, value) in asked {
        options.add(*name, *value);
    }
    let mut receiver = Receiver::new(options);
    let client = key(2, 1000);
    // By the time of arrival and a running number: whether it goes to the server, and the packet.
    let mut air: BTreeMap<(u64, u64), (bool, Vec<u8>)> = BTreeMap::new();
    let (mut time_us, mut packets, mut heard_us) = (0_u64, 0_u64, 0_u64);
    let mut throw = |air: &mut BTreeMap<_, _>, time_us: u64, to_server: bool, packet: Vec<u8>| {
        packets += 1;
        let copies = 1 + u64::from(random.below(100) < faults.copied);
        for _ in 0..copies {
            if random.below(100) >= faults.lost {
                let extra = if random.below(100) < faults.delayed { random.below(3000) } else { 0 };
                air.insert(
                    (time_us + faults.latency_us + extra, packets * 2 + copies),
                    (to_server, packet.clone()),
                );
            }
        }
        packets
    };
    let mut sent = throw(&mut air, 0, true, receiver.request("f"));
    let mut file = Vec::new();
    loop {
        let timer_us = harness.server.poll_timeout().map(|at| (at - start).as_micros() as u64 + 1);
        let packet_us = air.keys().next().map(|(at, _)| *at);
        let client_us = heard_us + CLIENT_PATIENCE_US;
        time_us = time_us.max([timer_us, packet_us, Some(client_us)].into_iter().flatten().min().unwrap());
        harness.now = start + Duration::from_micros(time_us);
        if time_us > heard_us + 60_000_000 || time_us > 3_600_000_000 {
            return Journey { file: None, packets: sent, elapsed: harness.now - start };
        }
        harness.server.handle_timeout(harness.now);
        if packet_us.is_some_and(|at| at <= time_us) {
            let (_, (to_server, packet)) = air.pop_first().unwrap();
            if to_server {
                harness.server.handle_datagram(harness.now, client, &packet);
            } else {
                let before = file.len();
                let step = receiver.handle_packet(&Packet::decode(&packet).unwrap(), &mut |offset, bytes| {
                    assert_eq!(offset, file.len() as u64);
                    file.extend_from_slice(bytes);
                });
                if file.len() > before || step != Step::Wait {
                    heard_us = time_us;
                }
                match step {
                    Step::Wait => {}
                    Step::Acknowledge(packet) => sent = throw(&mut air, time_us, true, packet.to_vec()),
                    Step::Done(_) => {
                        return Journey { file: Some(file), packets: sent, elapsed: harness.now - start };
                    }
                    Step::Failed(..) => {
                        return Journey { file: None, packets: sent, elapsed: harness.now - start };
                    }
                    Step::Refuse(_) => panic!("the server changed the options"),
                }
            }
        } else if time_us >= client_us {
            heard_us = time_us;
            let packet = receiver.reminder().map_or_else(|| receiver.request("f"), |ack| ack.to_vec());
            sent = throw(&mut air, time_us, true, packet);
        }
        for (_, packet) in harness.sent() {
            sent = throw(&mut air, time_us, false, packet);
        }
    }
}

#[test]
fn the_file_arrives_as_it_is_or_not_at_all() {
    let mut arrived = 0;
    for seed in 0..120 {
        let (block, window) = ([8, 512, 1468][seed as usize % 3], [1, 2, 4, 16, 64][seed as usize % 5]);
        let faults = NetworkFaults {
            lost: [0, 1, 5, 20][seed as usize % 4],
            copied: [0, 10, 50, 100][seed as usize / 4 % 4],
            delayed: [0, 5, 30][seed as usize / 16 % 3],
            latency_us: [10, 500, 20_000][seed as usize / 5 % 3],
        };
        let length = [0, 1, 511, 512, 5000, 40_000][seed as usize % 6];
        let asked = [(OptionName::BlockSize, block), (OptionName::WindowSize, window)];
        let journey = fetch(seed, faults, length, &asked[..if seed % 7 == 0 { 0 } else { 2 }]);
        if let Some(file) = journey.file {
            assert!(file[..] == pattern(length)[..], "seed {seed}: wrong bytes");
            arrived += 1;
        }
        let blocks = length as u64 / block.min(512) + 1;
        // A loss can cost a window, and a timeout as well.
        let bound =
            20 + blocks * 2 * if faults.lost + faults.delayed + faults.copied == 0 { 1 } else { 2 + window };
        assert!(
            journey.packets <= bound,
            "seed {seed}: {} packets for {blocks} blocks, {faults:?}",
            journey.packets
        );
    }
    assert!(arrived >= 110, "only {arrived} of 120 arrived");
}

#[test]
fn when_every_packet_comes_twice_nothing_multiplies() {
    let faults = NetworkFaults { copied: 100, latency_us: 200, ..NetworkFaults::default() };
    for window in [1, 4, 16] {
        let asked = [(OptionName::BlockSize, 512), (OptionName::WindowSize, window)];
        let journey = fetch(3, faults, 200_000, &asked);
        assert!(journey.file.unwrap()[..] == pattern(200_000)[..]);
        // 391 blocks. Every ACK that comes twice may cost one window once, in every other window, and without a window
        // nothing; what the client says again to a copy comes on top.
        let bound = if window == 1 { 391 * 4 } else { 391 * 3 };
        assert!(journey.packets < bound, "window {window}: {} packets", journey.packets);
    }
}
