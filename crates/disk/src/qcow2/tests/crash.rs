//! What a crash leaves: every change of the file is recorded, and replayed up to a cut.
//!
//! A killed process leaves a prefix of the changes. A power failure leaves everything before the last completed
//! barrier and any part of what came after it.

use super::*;
use crate::host::HostFile;
use crate::journal::{Change, Journal, replay, without_holes};
use crate::qcow2::write::Writer;
use crate::{ErrorKind, Severity};

const SIZE: u64 = 1100 * MIB;
/// The part of the disk that is looked at byte by byte; two clusters lie in other tables.
const WINDOW: usize = 3 << 20;
const FAR: [u64; 2] = [600 * MIB, 1099 * MIB];

/// A part of the disk that is never written, but allocated after a crash.
const UNWRITTEN: u64 = 50 * MIB;
const UNWRITTEN_LENGTH: u64 = 30 * CLUSTER;

/// What was done, and after how many changes each step was complete.
struct History {
    changes: Vec<Change>,
    /// Changes made when the step was complete, the window's bytes then, whether the step was a flush.
    steps: Vec<(usize, Vec<u8>, bool)>,
}

fn window(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; WINDOW];
    device.read_at(&mut bytes, 0).unwrap();
    for offset in FAR {
        let mut far = vec![0; CLUSTER as usize];
        device.read_at(&mut far, offset).unwrap();
        bytes.extend(far);
    }
    bytes
}

/// Writes in no order, with overwrites of flushed data. Some is given up, of what was flushed and of what was not; what is
/// discarded was written here before, so that the end is the same wherever it began.
fn scribble(device: &dyn BlockDevice, mut done: impl FnMut(bool)) {
    let mut write = |seed: u64, at: u64, length: usize| {
        device.write_at(&noise(seed, length), at).unwrap();
        done(false);
        if seed % 4 == 3 {
            device.flush().unwrap();
            done(true);
        }
        if seed == 4 || seed == 10 {
            device.write_zeroes(2 * MIB - 3, CLUSTER + 50).unwrap();
            done(false);
        }
        if seed == 7 {
            device.discard(FAR[1] + 100, 4900).unwrap();
            done(false);
        }
        if seed == 9 {
            device.discard(2 * MIB + CLUSTER, CLUSTER).unwrap();
            done(false);
            device.write_zeroes(CLUSTER * 9, 2 * CLUSTER).unwrap();
            done(false);
        }
    };
    write(1, 2 * MIB, 100_000);
    write(2, 1000, 3000);
    write(3, FAR[1], 5000);
    write(4, MIB - 10, 20);
    write(5, 2 * MIB + 50_000, 200_000);
    write(6, FAR[0] + 5, 100);
    write(7, 900, 300);
    write(8, 2 * MIB, 100);
    write(9, 500_000, 400_000);
    write(10, CLUSTER * 9 + 100, 200);
    write(11, 2 * MIB + 700_000, 70_000);
    write(12, 2 * MIB + 10_000, 100);
    write(15, 2 * MIB + 12_000, 100);
}

fn record(path: &Path) -> History {
    let journal = Journal::default();
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let device = Writer::create(HostFile::journaled(file, path, journal.clone()), SIZE).unwrap();
    let mut steps = vec![(journal.changes().len(), window(&device), true)];
    scribble(&device, |is_flush| steps.push((journal.changes().len(), window(&device), is_flush)));
    History { changes: journal.changes(), steps }
}

impl History {
    /// Every byte of `now` must have been there at some time since the last flush that was complete after
    /// `certain` changes. `made` changes may have arrived.
    fn assert_possible(&self, now: &[u8], certain: usize, made: usize) {
        let flushed = self.steps.iter().rposition(|(changes, _, is_flush)| *is_flush && *changes <= certain);
        let first = flushed.expect("the header was durable");
        let begun = self.steps.iter().position(|(changes, _, _)| *changes >= made);
        let last = begun.unwrap_or(self.steps.len() - 1);
        let states = &self.steps[first..=last];
        for (at, byte) in now.iter().enumerate() {
            assert!(states.iter().any(|(_, state, _)| state[at] == *byte), "byte {at} is garbage");
        }
    }
}

/// The image that a crash left: consistent, without garbage, and good to go on with.
fn assert_survives(history: &History, path: &Path, certain: usize, made: usize) {
    let (device, _) = open_image(path, Access::Read).unwrap();
    history.assert_possible(&window(&*device), certain, made);
    let findings = check_image(path).unwrap();
    assert!(findings.iter().all(|finding| finding.severity == Severity::Warning), "{findings:?}");
    if has_qemu() {
        let (code, text) = qemu_check(path);
        assert!(code == 0 || code == 3, "{text}");
    }
    let (device, _) = open_image(path, Access::Write).unwrap();
    history.assert_possible(&window(&*device), certain, made);
    // Other clusters than before take the places that the crash left free, and must not show what was there.
    device.allocate(UNWRITTEN, UNWRITTEN_LENGTH).unwrap();
    scribble(&*device, |_| {});
    device.flush().unwrap();
    let mut unwritten = vec![1; UNWRITTEN_LENGTH as usize];
    device.read_at(&mut unwritten, UNWRITTEN).unwrap();
    assert!(unwritten.iter().all(|byte| *byte == 0), "leftovers are shown");
    assert!(window(&*device) == history.steps.last().unwrap().1);
    drop(device);
    assert_eq!(check_image(path).unwrap(), []);
    if has_qemu() {
        assert_clean(path);
    }
    assert!(window(&*open_image(path, Access::Read).unwrap().0) == history.steps.last().unwrap().1);
}

#[test]
fn killed_at_any_moment() {
    killed();
    without_holes(killed);
}

fn killed() {
    let folder = tempfile::tempdir().unwrap();
    let history = record(&folder.path().join("a.qcow2"));
    let cut = folder.path().join("cut.qcow2");
    let created = history.steps[0].0;
    for made in 0..=history.changes.len() {
        replay(&cut, &history.changes[..made]);
        // Before its header is written the file is no image, and nobody takes it for one.
        if made < created - 1 {
            assert_eq!(open_image(&cut, Access::Read).err().map(|e| e.kind()), Some(ErrorKind::Corrupt));
        } else {
            assert_survives(&history, &cut, made.max(created), made);
        }
    }
}

#[test]
fn power_fails_at_any_moment() {
    power_fails();
    without_holes(power_fails);
}

fn power_fails() {
    let folder = tempfile::tempdir().unwrap();
    let history = record(&folder.path().join("a.qcow2"));
    let cut = folder.path().join("cut.qcow2");
    let created = history.steps[0].0;
    for (certain, made) in epochs(&history.changes).filter(|(certain, _)| *certain >= created) {
        for seed in 0..6 {
            replay(&cut, survivors(&history.changes, certain, made, seed));
            assert_survives(&history, &cut, certain, made);
        }
    }
}

/// The changes between two barriers, from and to.
fn epochs(changes: &[Change]) -> impl Iterator<Item = (usize, usize)> {
    let syncs = changes.iter().enumerate().filter(|(_, change)| matches!(change, Change::Sync));
    let mut barriers: Vec<usize> = syncs.map(|(index, _)| index + 1).collect();
    barriers.push(changes.len());
    (1..barriers.len()).map(move |index| (barriers[index - 1], barriers[index]))
}

/// The first `certain` changes, and about half of those up to `made`.
fn survivors(changes: &[Change], certain: usize, made: usize, seed: u64) -> Vec<&Change> {
    let luck = noise(seed + made as u64 * 100, made - certain);
    let arrived = changes[certain..made].iter().zip(luck).filter(|(_, luck)| luck % 2 == 0);
    changes[..certain].iter().chain(arrived.map(|(change, _)| change)).collect()
}

/// Behind 2 GiB of file a second refcount block is needed, and an entry for it.
#[test]
fn power_fails_while_the_refcount_table_grows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let journal = Journal::default();
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let device = Writer::create(HostFile::journaled(file, &path, journal.clone()), 3 << 30).unwrap();
    let created = journal.changes().len();
    device.allocate(0, 2040 * MIB).unwrap();
    device.flush().unwrap();
    device.allocate(2040 * MIB, 20 * MIB).unwrap();
    device.flush().unwrap();
    let changes = journal.changes();
    let cut = folder.path().join("cut.qcow2");
    for (certain, made) in epochs(&changes).filter(|(certain, _)| *certain >= created) {
        for seed in 0..6 {
            replay(&cut, survivors(&changes, certain, made, seed));
            let findings = check_image(&cut).unwrap();
            assert!(findings.iter().all(|finding| finding.severity == Severity::Warning), "{findings:?}");
            let (device, _) = open_image(&cut, Access::Write).unwrap();
            device.allocate(0, 2060 * MIB).unwrap();
            device.flush().unwrap();
            assert_eq!(check_image(&cut).unwrap(), []);
        }
    }
    if has_qemu() {
        assert_clean(&cut);
    }
}

/// The plan of a resumable transfer: allocate everything in ascending order, then write. Whatever the cut, going
/// on leads to the same file.
#[test]
fn a_killed_plan_leads_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let ranges = [(0, 300_000), (MIB, 10), (510 * MIB, 5 * MIB), (FAR[1], 100)];
    let work = |device: &dyn BlockDevice| {
        for (offset, length) in ranges {
            device.allocate(offset, length).unwrap();
        }
        device.flush().unwrap();
        for (offset, length) in ranges.iter().rev() {
            device.write_at(&noise(*offset, *length as usize), *offset).unwrap();
        }
        device.flush().unwrap();
    };
    let path = folder.path().join("whole.qcow2");
    let journal = Journal::default();
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let device = Writer::create(HostFile::journaled(file, &path, journal.clone()), SIZE).unwrap();
    let created = journal.changes().len();
    work(&device);
    let whole = std::fs::read(&path).unwrap();
    let changes = journal.changes();
    let cut = folder.path().join("cut.qcow2");
    for made in created..=changes.len() {
        replay(&cut, &changes[..made]);
        let (device, _) = open_image(&cut, Access::Write).unwrap();
        work(&*device);
        drop(device);
        assert!(std::fs::read(&cut).unwrap() == whole, "cut after {made} of {} changes", changes.len());
    }
}
