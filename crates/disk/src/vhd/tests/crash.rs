//! What is left of an image when the process or the machine dies between two of its changes.

use std::fs::File;

use super::super::create::create_host;
use super::*;
use crate::Severity;
use crate::host::HostFile;
use crate::journal::{Change, Journal, replay, without_holes};
use crate::testing::{pattern, random};

const SIZE: u64 = 8 * MIB + 512;

/// What the writer does.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    Write(u64, usize),
    Zero(u64, usize),
    Discard(u64, usize),
    Flush,
}

use Step::{Discard, Flush, Write, Zero};

/// Ascending blocks, some touched twice, some over a boundary. Of what was flushed some is given up, of what was not, too.
const STEPS: [Step; 16] = [
    Write(300, 5000),
    Write(2 * MIB - 700, 1400),
    Flush,
    Write(4 * MIB + 8192, 100_000),
    Zero(2 * MIB - 100, 4000),
    Write(100, 600),
    Write(6 * MIB, 4096),
    Discard(4 * MIB, 60_000),
    Flush,
    Flush,
    Write(6 * MIB + 4096, 10),
    Zero(4 * MIB + 70_001, 20_000),
    Write(8 * MIB, 512),
    Zero(0, 400),
    Discard(6 * MIB, 8192),
    Flush,
];

/// A run of [`STEPS`] with everything it changed in its file.
struct Run {
    changes: Vec<Change>,
    /// How many changes creation took.
    created: usize,
    /// For each step the number of changes when it had ended.
    ends: Vec<usize>,
    /// The content after the first 0, 1, … of the steps.
    contents: Vec<Vec<u8>>,
}

fn apply(device: &dyn BlockDevice, step: usize) {
    match STEPS[step] {
        Write(offset, length) => device.write_at(&pattern(step as u64, offset, length), offset).unwrap(),
        Zero(offset, length) => device.write_zeroes(offset, length as u64).unwrap(),
        Discard(offset, length) => device.discard(offset, length as u64).unwrap(),
        Flush => device.flush().unwrap(),
    }
}

fn run(folder: &Folder) -> Run {
    let path = folder.path("run");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let journal = Journal::default();
    let host = HostFile::journaled(file, &path, journal.clone());
    let device = create_host(host, &options(Format::VhdDynamic, SIZE)).unwrap();
    let created = journal.changes().len();
    let (mut ends, mut contents) = (Vec::new(), vec![vec![0; SIZE as usize]]);
    for (step, what) in STEPS.into_iter().enumerate() {
        apply(&*device, step);
        ends.push(journal.changes().len());
        let mut now = contents[step].clone();
        match what {
            Write(offset, length) => now[offset as usize..offset as usize + length]
                .copy_from_slice(&pattern(step as u64, offset, length)),
            Zero(offset, length) => now[offset as usize..offset as usize + length].fill(0),
            // As before or as zero, as the file system can.
            Discard(offset, length) => {
                let range = offset as usize..offset as usize + length;
                device.read_at(&mut now[range.clone()], offset).unwrap();
                let mut changed = now[range.clone()].iter().zip(&contents[step][range]);
                assert!(changed.all(|(now, before)| now == before || *now == 0));
            }
            Flush => {}
        }
        assert!(content(&*device) == now);
        contents.push(now);
    }
    Run { changes: journal.changes(), created, ends, contents }
}

/// Opens what a crash at `cut` left at `path`, checks its content, and lets a second process finish the work.
fn survives(path: &Path, run: &Run, cut: usize, finished: &[u8]) {
    let flushed = (0..STEPS.len()).rfind(|&step| STEPS[step] == Flush && run.ends[step] <= cut);
    let first_lost = flushed.map_or(0, |step| step + 1);
    // Each byte is what was flushed last, or what was written to it after that.
    let allowed = &run.contents[first_lost..];
    let got = content(&*open(path).unwrap_or_else(|e| panic!("after {cut} changes: {e}")).device);
    for (index, piece) in got.chunks(4096).enumerate() {
        let start = index * 4096;
        if allowed.iter().any(|content| content[start..start + piece.len()] == *piece) {
            continue;
        }
        for (at, byte) in (start..).zip(piece) {
            let is_allowed = allowed.iter().any(|content| content[at] == *byte);
            assert!(is_allowed, "byte {at} after {cut} changes is garbage");
        }
    }

    let device = open_writable(path).unwrap().device;
    for step in first_lost..STEPS.len() {
        apply(&*device, step);
    }
    device.flush().unwrap();
    drop(device);
    assert!(std::fs::read(path).unwrap() == finished, "continued after {cut} changes, the file differs");
}

#[test]
fn killed_after_any_change() {
    killed();
    without_holes(killed);
}

fn killed() {
    let folder = Folder::new();
    let run = run(&folder);
    let finished = std::fs::read(folder.path("run")).unwrap();
    let findings = crate::check(folder.path("run"), &OpenOptions::default()).unwrap();
    assert!(findings.iter().all(|finding| finding.severity == Severity::Warning), "{findings:?}");
    let path = folder.path("cut");
    for cut in run.created..=run.changes.len() {
        replay(&path, &run.changes[..cut]);
        survives(&path, &run, cut, &finished);
    }
}

#[test]
fn power_fails_after_any_change() {
    power_fails(3);
    without_holes(|| power_fails(1));
}

fn power_fails(attempts: u64) {
    let folder = Folder::new();
    let run = run(&folder);
    let finished = std::fs::read(folder.path("run")).unwrap();
    let path = folder.path("cut");
    for cut in run.created..=run.changes.len() {
        let synced = (0..cut).rfind(|&at| matches!(run.changes[at], Change::Sync)).unwrap();
        for attempt in 0..attempts {
            // Of what was not synced any part may have arrived.
            let kept = (0..cut).filter(|&at| at <= synced || random(at as u64 ^ (attempt << 32)) & 1 == 0);
            replay(&path, kept.map(|at| &run.changes[at]));
            survives(&path, &run, cut, &finished);
        }
    }
}

#[test]
fn a_torn_batmap_is_rebuilt() {
    let folder = Folder::new();
    let run = run(&folder);
    let finished = std::fs::read(folder.path("run")).unwrap();
    for at in [2048_usize, 2048 + 24, 2560, 2561] {
        let mut bytes = finished.clone();
        bytes[at] ^= 0x55;
        let path = folder.file("torn", &bytes);
        // A destroyed cookie is not a crash's work: such a disk is only read.
        if at == 2048 {
            assert!(open_writable(&path).is_err());
            continue;
        }
        assert!(!crate::check(&path, &OpenOptions::default()).unwrap().is_empty(), "byte {at}");
        survives(&path, &run, run.changes.len(), &finished);
    }
}
