//! Logs that an older goldwire wrote.

use std::net::Ipv4Addr;

use goldwire_stdx::Uuid;

use super::CrashingVolume;
use crate::dhcp::lease::{IdentifiedBy, Log, MemberId, Record, RecordState, RelayAgent, Time, Volume as _};

const LOG: &str = "leases.log";
/// When the log in `testdata` was begun.
const BEGUN: u64 = 1_700_000_000_000;

/// The bytes of `testdata/leases/NAME.hex`.
fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/testdata/leases/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect(&path);
    let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

fn volume(bytes: &[u8]) -> CrashingVolume {
    let mut volume = CrashingVolume::default();
    volume.create(LOG).unwrap();
    volume.write_at(LOG, 0, bytes).unwrap();
    volume.sync(LOG).unwrap();
    volume.sync_names().unwrap();
    volume
}

fn open(volume: &CrashingVolume) -> (Log, bool, Vec<Record>) {
    let mut records = Vec::new();
    let (log, opened) =
        Log::open(Box::new(volume.clone()), MemberId::of("boot1"), |r| records.push(r)).unwrap();
    assert_eq!((opened.scan.damage_count, opened.scan.torn_bytes), (0, 0));
    (log, opened.needs_rewrite, records)
}

#[test]
fn version_1_is_read_and_rewritten_before_anything_is_added() {
    let old = golden("version-1");
    let volume = volume(&old);
    let (mut log, needs_rewrite, records) = open(&volume);
    assert!(needs_rewrite);
    let times: Vec<_> = records
        .iter()
        .map(|record| {
            let mac = record.client.hardware.and_then(|hardware| hardware.mac()).unwrap();
            let after = |time: Time| time.0 - BEGUN;
            let times = (after(record.changed), after(record.expires), after(record.grace_until));
            (record.address.octets()[3], record.state, mac.0[5], record.member_sequence, times)
        })
        .collect();
    // As the layout of version 1 says; the remarks in the file tell which record is which.
    assert_eq!(
        times,
        [
            (100, RecordState::Granted, 1, 41, (1000, 3_601_000, 3_601_000)),
            (101, RecordState::Granted, 2, 42, (1500, 301_500, 301_500)),
            (102, RecordState::Declined, 3, 43, (2000, 902_000, 902_000)),
            (101, RecordState::Released, 2, 44, (60_000, 60_000, 60_000)),
        ]
    );
    let [system, firmware, declined, _] = &records[..] else { panic!() };
    assert_eq!(system.client.identified_by, IdentifiedBy::ClientId);
    assert_eq!(&*system.client.client_id, b"\xffsystem");
    assert_eq!(firmware.client.uuid, Some(Uuid(*b"0123456789abcdef")));
    assert!(firmware.client.is_boot && !system.client.is_boot);
    assert_eq!(&*declined.client.client_id, [1, 0x52, 0x54, 0, 0, 0, 3]);
    assert!(records.iter().all(|record| record.relay_agent == RelayAgent::default()));

    // Until it is rewritten it takes nothing, and a crash leaves it as it was.
    assert!(log.commit(&records[..1]).is_err());
    assert_eq!(volume.with_bytes(LOG, |bytes| bytes.clone()), Some(old));
    let relayed = Record { relay_agent: RelayAgent::new(b"\x01\x04port"), ..system.clone() };
    let other = Record { address: Ipv4Addr::new(10, 0, 0, 103), ..relayed.clone() };
    log.begin_rewrite(Time(BEGUN), 45).unwrap();
    log.rewrite(std::slice::from_ref(&relayed)).unwrap();
    log.finish_rewrite().unwrap();
    log.commit(std::slice::from_ref(&other)).unwrap();
    drop(log);
    assert_eq!(volume.with_bytes(LOG, |bytes| bytes[8]), Some(2));
    let (_, needs_rewrite, records) = open(&volume);
    assert_eq!((needs_rewrite, records), (false, vec![relayed, other]));
}

#[test]
fn what_a_relay_told_stands_behind_the_client_identifier() {
    let (_, _, records) = open(&volume(&golden("version-1")));
    let record = Record { relay_agent: RelayAgent::new(b"\x01\x04port"), ..records[2].clone() };
    let volume = CrashingVolume::default();
    let (mut log, _, _) = open(&volume);
    log.begin_rewrite(Time(BEGUN), 45).unwrap();
    log.rewrite(&[record]).unwrap();
    log.finish_rewrite().unwrap();
    // docs/lease-log.md: the client identifier from 112 on, the length of option 82, its value, zeros.
    let bytes = volume.with_bytes(LOG, |bytes| bytes[64..192].to_vec()).unwrap();
    assert_eq!((bytes[4], bytes[7] & 4, bytes[74]), (128, 4, 7));
    assert_eq!(bytes[112..], *b"\x01\x52\x54\0\0\0\x03\x06\x01\x04port\0\0");
}
