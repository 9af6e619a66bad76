//! What clients and servers send by TFTP: each packet, and a conversation of them with a server.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use goldwire_netboot::content::{Body, Content, ContentError, Contents, Requester};
use goldwire_netboot::fuzzing::tftp::{
    Admission, Key, OptionName, Options, Packet, Payload, Receiver, Server,
};
use goldwire_netboot::tftp::{Context, Settings};
use goldwire_netboot::{NoopObserver, Stage};
use libfuzzer_sys::fuzz_target;

/// More packets than this teach nothing.
const PACKETS_MAX: usize = 200;
const LENGTH: usize = 5000;

/// Every name has a file, if it is a name that cannot lead out of a folder.
struct Everything;

impl Contents for Everything {
    fn open(&self, path: &str, _asker: &Requester) -> Result<Content, ContentError> {
        assert!(!path.is_empty() && !path.starts_with('/') && !path.contains(['\\', '\0']), "{path:?}");
        assert!(!path.split('/').any(|part| matches!(part, "" | "." | "..")), "{path:?}");
        Ok(Content {
            body: Body::Memory(Arc::from([7; LENGTH])),
            length: LENGTH as u64,
            digest: None,
            media_type: "application/octet-stream",
            modified: None,
            stage: Stage::Bootstrap,
        })
    }
}

fuzz_target!(|input: &[u8]| {
    if let Ok(packet) = Packet::decode(input) {
        let written = packet.encode();
        assert_eq!(Packet::decode(&written).expect("our own packet"), packet);
    }
    converse(input);
});

/// The input is a row of: who sends (or that time passes), a length, a packet.
fn converse(mut input: &[u8]) {
    let settings =
        Arc::new(Settings { transfers_max: 4, transfers_per_address_max: 3, ..Settings::default() });
    let context = Context {
        contents: Arc::new(Everything),
        observer: Arc::new(NoopObserver),
        fitness: Arc::default(),
        mac_of: Arc::new(|_| None),
    };
    let admission = Admission::new(&settings);
    let mut server = Server::new(settings, context, admission);
    let mut options = Options::default();
    options.add(OptionName::BlockSize, 600);
    options.add(OptionName::WindowSize, 4);
    let mut receiver = Receiver::new(options);
    let mut received = 0;
    let mut now = Instant::now();
    for _ in 0..PACKETS_MAX {
        let Some(([who, length], rest)) = input.split_first_chunk::<2>() else { break };
        let (packet, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        input = rest;
        let address = |last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
        let peer = (address(who % 4), 1000 + u16::from(who / 4 % 4)).into();
        if *who >= 0xc0 {
            now += Duration::from_millis(u64::from(*who & 0x3f) * 100);
            server.handle_timeout(now);
        } else {
            server.handle_datagram(now, Key { listener: 0, local: address(1), peer }, packet);
        }
        assert!(server.transfers() <= 4);
        let mut blocks = 0;
        while let Some(transmit) = server.poll_transmit(now) {
            match transmit.payload {
                Payload::Packet(packet) => drop(Packet::decode(packet).expect("our own packet")),
                Payload::Blocks { count, block_size, bytes, .. } => {
                    let (count, size) = (usize::from(count), usize::from(block_size));
                    blocks += count;
                    assert!(count > 0 && bytes.len() <= count * size && bytes.len() >= (count - 1) * size);
                }
            }
        }
        // Four transfers, each a window.
        assert!(blocks <= 4 * 64, "{blocks} blocks for one packet");
        if let Ok(packet) = Packet::decode(packet) {
            receiver.handle_packet(&packet, &mut |offset, bytes| {
                assert_eq!(offset, received);
                received += bytes.len() as u64;
            });
        }
    }
}
