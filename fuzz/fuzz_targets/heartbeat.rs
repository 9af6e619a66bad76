//! What anybody can send to a member's heartbeat port, and what a faulty member of the group can sign.
#![no_main]

use std::time::Duration;

use goldwire_netboot::fuzzing::heartbeat::{Beat, DATAGRAM_MAX, Machine};
use goldwire_netboot::member::heartbeat::{Announcement, Condition, Group, Key, Peer};
use libfuzzer_sys::fuzz_target;

const SECRET: [u8; 32] = [7; 32];
const MAGIC: &[u8; 8] = b"GWBEAT\0\x01";

fuzz_target!(|input: &[u8]| {
    let key = Key::new(&SECRET);
    let _ = Beat::decode(input, &key);
    let mut signed = MAGIC.to_vec();
    signed.extend_from_slice(input);
    let mac_key = blake3::derive_key("goldwire 2026-11 boot group heartbeat", &SECRET);
    signed.extend_from_slice(blake3::keyed_hash(&mac_key, &signed).as_bytes());
    if let Ok(beat) = Beat::decode(&signed, &key) {
        let again = beat.encode(&key);
        assert!(again.len() <= DATAGRAM_MAX);
        assert_eq!(Beat::decode(&again, &key).expect("our own heartbeat"), beat);
    }
    let mut machine = Machine::new(group(key), 1, Duration::ZERO);
    for round in 0..4 {
        let now = Duration::from_millis(700 * round);
        let _ = machine.handle_input(now, now, &signed);
        machine.handle_timeout(now, now);
        while machine.poll_transmit().is_some() {}
        while machine.poll_change().is_some() {}
        while machine.poll_note().is_some() {}
        assert!(machine.poll_timeout() > now);
    }
});

fn group(key: Key) -> Group {
    let own = Announcement {
        name: "a".into(),
        address: [10, 0, 0, 1].into(),
        http_port: 80,
        https_port: None,
        https_name: None,
        tftp_port: 69,
        heartbeat_port: 6970,
        weight: 1,
        condition: Condition::Serving,
        digest: [0; 16],
    };
    let peers = vec![Peer { name: "b".into(), address: ([10, 0, 0, 2], 6970).into() }];
    Group { key, own, peers, announce_to: vec![([239, 1, 1, 1], 6970).into()], accepts_found: true }
}
