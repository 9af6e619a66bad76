//! A lease log as a crash or a bad disk left it, and one that somebody wrote with the right checksums.
#![no_main]

use std::net::Ipv4Addr;

use goldwire_netboot::dhcp::{AddressRange, Plan};
use goldwire_netboot::fuzzing::dhcp::{MemberId, Record, Table, Terms, scan};
use libfuzzer_sys::fuzz_target;

const HEADER: usize = 64;

fuzz_target!(|input: &[u8]| {
    read(input);
    let mut forged = input.to_vec();
    forge(&mut forged);
    read(&forged);
});

/// Nobody guesses a checksum, so each place that could be the header or a record gets its own (`docs/lease-log.md`).
fn forge(bytes: &mut [u8]) {
    let digest = |bytes: &[u8]| blake3::hash(bytes).as_bytes()[..8].to_vec();
    if let Some(header) = bytes.get_mut(..HEADER) {
        let checksum = digest(&header[..56]);
        header[56..].copy_from_slice(&checksum);
    }
    let mut at = HEADER;
    while let Some(head) = bytes.get(at..at + 6) {
        let length = usize::from(u16::from_le_bytes([head[4], head[5]]));
        match bytes
            .get_mut(at..at + length)
            .filter(|record| record.starts_with(b"GWLR") && record.len() >= 16)
        {
            Some(record) => {
                record[8..16].fill(0);
                let checksum = digest(record);
                record[8..16].copy_from_slice(&checksum);
                at += length;
            }
            None => at += 8,
        }
    }
}

fn read(input: &[u8]) {
    let mut records: Vec<Record> = Vec::new();
    let found = scan(&mut &*input, |record| records.push(record)).expect("a slice can be read");
    assert_eq!(found.records, records.len() as u64);
    if found.other_version.is_some() {
        return;
    }
    assert_eq!(found.length, input.len() as u64);
    assert!(found.valid_until <= found.length && found.torn_bytes <= found.length);
    assert!(found.damage.len() as u64 <= found.damage_count);

    // Whatever the records say, the table takes them, and its own account of them again.
    let plan = || Plan {
        pools: vec![AddressRange { first: Ipv4Addr::UNSPECIFIED, last: Ipv4Addr::new(0, 0, 255, 255) }],
        peer_pools: vec![AddressRange { first: Ipv4Addr::new(0, 1, 0, 0), last: Ipv4Addr::BROADCAST }],
        ..Plan::default()
    };
    let table = || Table::new(MemberId(1), vec![plan()], Terms::default());
    let mut first = table();
    records.into_iter().for_each(|record| assert!(first.restore(record), "every address is in the plan"));
    let mut second = table();
    first.snapshot(None, usize::MAX).0.into_iter().for_each(|record| assert!(second.restore(record)));
    assert_eq!(first.snapshot(None, usize::MAX), second.snapshot(None, usize::MAX));
}
