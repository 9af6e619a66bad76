//! The log against crashes, bad disks and full disks.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::{CrashingVolume, any_record};
use crate::dhcp::lease::record::Place;
use crate::dhcp::lease::{Log, LogError, MemberId, Opened, Record, Time, scan};

const LOG: &str = "leases.log";

fn open(volume: &CrashingVolume) -> (Log, Opened, Vec<Record>) {
    let mut records = Vec::new();
    let (log, opened) =
        Log::open(Box::new(volume.clone()), MemberId(1), |record| records.push(record)).unwrap();
    (log, opened, records)
}

/// What a server does at its start: rewrites the log if it has to be.
fn open_and_repair(volume: &CrashingVolume) -> (Log, Opened, BTreeMap<Ipv4Addr, Record>) {
    let (mut log, opened, records) = open(volume);
    let state: BTreeMap<_, _> = records.into_iter().map(|record| (record.address, record)).collect();
    if opened.needs_rewrite {
        rewrite(&mut log, &state).unwrap();
    }
    (log, opened, state)
}

fn rewrite(log: &mut Log, state: &BTreeMap<Ipv4Addr, Record>) -> Result<bool, LogError> {
    log.begin_rewrite(Time(1), 7)?;
    for record in state.values() {
        log.rewrite(std::slice::from_ref(record))?;
    }
    log.finish_rewrite()
}

fn fresh(batches: &[Vec<Record>]) -> CrashingVolume {
    let volume = CrashingVolume::default();
    let (mut log, _, _) = open_and_repair(&volume);
    for batch in batches {
        log.commit(batch).unwrap();
    }
    volume
}

fn any_batches() -> impl Strategy<Value = Vec<Vec<Record>>> {
    prop::collection::vec(prop::collection::vec(any_record(), 1..5), 1..6)
}

proptest! {
    /// The invariant of the log: what was committed is there, whatever a crash does to the rest.
    #[test]
    fn a_crash_at_any_point_loses_nothing_that_was_committed(
        batches in any_batches(), operations in 0_u64..60, choices in prop::collection::vec(any::<prop::sample::Index>(), 64),
        rewrite_at in 0_usize..6,
    ) {
        let volume = CrashingVolume::default();
        let (mut log, _, _) = open_and_repair(&volume);
        volume.fail_after(Some(operations));
        let mut committed: BTreeMap<Ipv4Addr, Record> = BTreeMap::new();
        let mut written: Vec<Record> = Vec::new();
        for (number, batch) in batches.iter().enumerate() {
            written.extend(batch.iter().cloned());
            let mut next = committed.clone();
            next.extend(batch.iter().map(|record| (record.address, record.clone())));
            if number == rewrite_at && log.begin_rewrite(Time(2), 9).is_ok() {
                // Half of the state before the batch, half after it.
                let half = committed.len() / 2;
                let _ = log.rewrite(&committed.values().take(half).cloned().collect::<Vec<_>>());
                if log.commit(batch).is_ok() {
                    committed = next;
                }
                let _ = log.rewrite(&committed.values().skip(half).cloned().collect::<Vec<_>>());
                let _ = log.finish_rewrite();
            } else if log.commit(batch).is_ok() {
                committed = next;
            }
            if log.wants_room() {
                let _ = log.make_room();
            }
        }
        drop(log);
        volume.fail_after(None);
        let mut choices = choices.iter().cycle();
        let left = volume.crash(|below| choices.next().map_or(0, |choice| choice.index(below)));
        let (_, opened, state) = open_and_repair(&left);
        prop_assert_eq!(opened.scan.damage_count, 0, "a crash is no corruption: {:?}", opened);
        for (address, record) in &committed {
            let found = state.get(address);
            let is_there = found.is_some_and(|found| {
                found == record || written.iter().rev().take_while(|later| *later != record).any(|later| later == found)
            });
            prop_assert!(is_there, "{} is {:?}, was {:?}", address, found, record);
        }
        // And after the repair, all is well.
        let (_, opened, again) = open(&left);
        prop_assert_eq!((opened.scan.torn_bytes, opened.needs_rewrite), (0, false));
        prop_assert_eq!(again.into_iter().map(|record| (record.address, record)).collect::<BTreeMap<_, _>>(), state);
    }

    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let found = scan(&mut &bytes[..], |_| {}).unwrap();
        prop_assert_eq!(found.length, bytes.len() as u64);
    }

    #[test]
    fn a_cut_at_any_byte_costs_only_what_is_behind_it(batches in any_batches(), at: prop::sample::Index) {
        let volume = fresh(&batches);
        let length = volume.with_bytes(LOG, |bytes| {
            let length = 64 + at.index(bytes.len() - 63);
            bytes.truncate(length);
            length as u64
        }).unwrap();
        let (_, opened, records) = open(&volume);
        let scan = opened.scan;
        prop_assert_eq!(scan.valid_until + scan.torn_bytes + scan.room, length);
        prop_assert_eq!(&records[..], &batches.concat()[..records.len()]);
        let left = volume.with_bytes(LOG, |bytes| bytes.clone()).unwrap();
        prop_assert!(left[scan.valid_until as usize..].iter().all(|byte| *byte == 0));
    }

    /// Of a batch that goes into the room, a crash leaves any sectors; the others still hold zeros.
    #[test]
    fn a_batch_torn_within_the_room_costs_nothing_before_it(
        batches in any_batches(), last in prop::collection::vec(any_record(), 1..40), is_there in prop::collection::vec(any::<bool>(), 64),
    ) {
        let volume = fresh(&batches);
        let before = volume.with_bytes(LOG, |bytes| bytes.clone()).unwrap();
        let (mut log, opened, _) = open(&volume);
        log.commit(&last).unwrap();
        drop(log);
        volume.with_bytes(LOG, |bytes| {
            for (sector, is_there) in (0..bytes.len()).step_by(512).zip(is_there.iter().cycle()) {
                let end = (sector + 512).min(bytes.len());
                if !is_there {
                    let old = (sector..end).map(|at| before.get(at).copied().unwrap_or(0)).collect::<Vec<_>>();
                    bytes[sector..end].copy_from_slice(&old);
                }
            }
        });
        let (_, found, state) = open_and_repair(&volume);
        prop_assert_eq!(found.scan.damage_count, 0);
        prop_assert!(found.scan.records >= opened.scan.records);
        let written = batches.concat().into_iter().chain(last);
        let all = written.fold(BTreeMap::<_, Vec<_>>::new(), |mut all, record| {
            all.entry(record.address).or_default().push(record);
            all
        });
        for batch in batches.concat() {
            prop_assert!(state.get(&batch.address).is_some_and(|found| all[&batch.address].contains(found)));
        }
        let (_, again, _) = open(&volume);
        prop_assert_eq!((again.scan.torn_bytes, again.needs_rewrite), (0, false));
    }

    #[test]
    fn damage_in_the_middle_is_told_and_costs_one_record(batches in any_batches(), at: prop::sample::Index, value: u8) {
        let volume = fresh(&batches);
        let last = vec![batches[0][0].clone()];
        let (mut log, _, _) = open(&volume);
        let end = log.length();
        log.commit(&last).unwrap();
        drop(log);
        let place = 64 + at.index(end as usize - 64);
        let is_changed = volume.with_bytes(LOG, |bytes| std::mem::replace(&mut bytes[place], value) != value).unwrap();
        let before = volume.with_bytes(LOG, |bytes| bytes.clone()).unwrap();
        let (_, opened, _) = open_and_repair(&volume);
        let all = batches.concat().len() as u64 + 1;
        if is_changed {
            prop_assert_eq!(opened.scan.damage_count, 1);
            let damage = opened.scan.damage[0];
            prop_assert!(damage.at <= place as u64 && (place as u64) < damage.at + damage.bytes, "{:?} {}", damage, place);
            prop_assert_eq!((damage.records, opened.scan.records), (1, all - 1));
            prop_assert_eq!(volume.with_bytes("leases.log.damaged", |bytes| bytes.clone()), Some(before));
        } else {
            prop_assert_eq!((opened.scan.damage_count, opened.scan.records), (0, all));
        }
        prop_assert_eq!(open(&volume).1.scan.damage_count, 0);
    }
}

#[test]
fn records_of_an_older_file_in_reused_blocks_are_not_taken() {
    let record = |last| Record { address: Ipv4Addr::new(10, 0, 0, last), ..sample() };
    let volume = fresh(&[vec![record(1)], vec![record(2)]]);
    let old = volume.with_bytes(LOG, |bytes| bytes[64..].to_vec()).unwrap();
    let (mut log, _, _) = open(&volume);
    rewrite(&mut log, &BTreeMap::new()).unwrap();
    drop(log);
    volume.with_bytes(LOG, |bytes| bytes.splice(64.., old.iter().copied()).count());
    let (_, opened, records) = open(&volume);
    assert_eq!(
        (records.len(), opened.scan.torn_bytes, opened.scan.room),
        (0, 2 * 128, old.len() as u64 - 2 * 128)
    );
}

#[test]
fn a_batch_goes_into_the_room_and_the_file_stays_as_long_as_it_is() {
    let volume = fresh(&[]);
    let (mut log, opened, _) = open(&volume);
    assert!(opened.scan.room > 1 << 10 && opened.scan.torn_bytes == 0);
    let length = || volume.with_bytes(LOG, |bytes| bytes.len() as u64).unwrap();
    let mut last = length();
    let mut growths = 0;
    for _ in 0..200 {
        if log.wants_room() {
            log.make_room().unwrap();
            growths += 1;
            last = length();
        }
        log.commit(&[sample()]).unwrap();
        assert_eq!(length(), last);
    }
    assert!(growths > 2, "{growths}");
}

#[test]
fn a_log_without_room_is_read_and_goes_on() {
    let volume = fresh(&[vec![sample()]]);
    let end = open(&volume).1.scan.valid_until;
    volume.with_bytes(LOG, |bytes| bytes.truncate(end as usize));
    let (mut log, opened, records) = open(&volume);
    assert_eq!((opened.scan.room, opened.scan.torn_bytes, records.len()), (0, 0, 1));
    log.commit(&[sample()]).unwrap();
    assert!(log.wants_room());
    // A crash while room is made, and one while it is not even written in part.
    for operations in 0..3 {
        volume.fail_after(Some(operations));
        let _ = log.make_room();
        volume.fail_after(None);
        log.commit(&[sample()]).unwrap();
        let left = volume.crash(|below| below / 2);
        let (_, opened, records) = open(&left);
        assert_eq!((opened.scan.torn_bytes, records.len() as u64), (0, 3 + operations));
    }
}

#[test]
fn a_lost_header_loses_no_record() {
    let volume = fresh(&[vec![sample()], vec![sample()]]);
    volume.with_bytes(LOG, |bytes| bytes[..64].fill(0xee));
    let (_, opened, records) = open(&volume);
    assert_eq!((records.len(), opened.scan.damage_count, opened.needs_rewrite), (2, 1, true));
    assert_eq!(opened.scan.damage[0].at, 0);
}

#[test]
fn a_log_of_a_later_version_is_left_alone() {
    let volume = fresh(&[vec![sample()]]);
    volume.with_bytes(LOG, |bytes| {
        bytes[8] = 3;
        let checksum = blake3::hash(&bytes[..56]);
        bytes[56..64].copy_from_slice(&checksum.as_bytes()[..8]);
    });
    let result = Log::open(Box::new(volume), MemberId(1), |_| {});
    assert!(matches!(result, Err(LogError::Version(3))));
}

#[test]
fn after_a_failed_write_nothing_is_acknowledged_before_a_rewrite() {
    let volume = fresh(&[vec![sample()]]);
    let (mut log, _, _) = open(&volume);
    // The append succeeds, the sync fails.
    volume.fail_after(Some(1));
    assert!(matches!(log.commit(&[sample()]), Err(LogError::Sync(_))));
    volume.fail_after(None);
    assert!(matches!(log.commit(&[sample()]), Err(LogError::Suspect)));
    assert!(log.wants_rewrite());
    rewrite(&mut log, &BTreeMap::from([(sample().address, sample())])).unwrap();
    log.commit(&[sample()]).unwrap();
    // The append fails, and what it left is cut off.
    volume.fail_after(Some(0));
    assert!(matches!(log.commit(&[sample()]), Err(LogError::Append(_))));
    volume.fail_after(None);
    assert!(log.is_suspect(), "the cut failed as well");
}

/// A log whose only record has the number before the last one.
fn with_one_number_left() -> CrashingVolume {
    let volume = fresh(&[]);
    let generation = open(&volume).1.scan.generation.unwrap();
    let mut last = Vec::new();
    sample().encode(Place { generation, sequence: u64::MAX - 1, position: 0 }, &mut last);
    volume.with_bytes(LOG, |bytes| bytes[64..64 + last.len()].copy_from_slice(&last));
    volume
}

#[test]
fn a_file_whose_record_numbers_are_used_up_is_rewritten_and_goes_on() {
    let volume = with_one_number_left();
    let (mut log, opened, _) = open(&volume);
    assert_eq!(opened.scan.sequence, u64::MAX - 1);
    assert!(matches!(log.commit(&[sample(), sample()]), Err(LogError::Exhausted)));
    assert!(matches!(log.commit(&[]), Err(LogError::Suspect)), "what was refused is not acknowledged later");
    assert!(log.wants_rewrite());
    rewrite(&mut log, &BTreeMap::from([(sample().address, sample())])).unwrap();
    log.commit(&[sample(), sample()]).unwrap();
    drop(log);
    let (_, opened, records) = open(&volume);
    assert_eq!((opened.scan.sequence, records.len(), opened.needs_rewrite), (3, 3, false));
}

#[test]
fn the_last_record_number_is_given() {
    let volume = with_one_number_left();
    let (mut log, _, _) = open(&volume);
    log.commit(&[sample()]).unwrap();
    assert!(matches!(log.commit(&[sample()]), Err(LogError::Exhausted)));
    drop(log);
    assert_eq!(open(&volume).1.scan.sequence, u64::MAX);
}

fn sample() -> Record {
    use crate::device::Mac;
    use crate::dhcp::lease::{ClientId, RecordState, RelayAgent};
    let client = ClientId::new(Some(Mac([2, 0, 0, 0, 0, 1]).into()), None, b"an identifier", false).unwrap();
    Record {
        address: Ipv4Addr::new(10, 0, 0, 1),
        state: RecordState::Granted,
        client,
        relay_agent: RelayAgent::default(),
        member: MemberId(1),
        member_sequence: 1,
        changed: Time(1),
        expires: Time(2),
        grace_until: Time(2),
    }
}
