//! For tests of whoever implements or wraps a device: one suite that every device must pass, and a device in
//! memory that fails on demand.
//!
//! Failures are panics, as tests want them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a failed expectation fails the test"
)]

mod mem;

use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::thread;

use goldwire_stdx::spawn_scoped;

use crate::sync::lock;
use crate::{BlockDevice, ErrorKind, ExtentKind};

pub use mem::MemDevice;

/// The disk that most of the suite works on: several blocks of every format, and a last one that is not whole.
const SIZE: u64 = (9 << 20) + 4096 + 512;

/// The promises of [`BlockDevice`], put to a device that is written to. `make` returns a new, zeroed device of
/// the given size, a multiple of 512.
pub fn conformance(make: impl Fn(u64) -> Arc<dyn BlockDevice>) {
    a_new_disk_is_zero(&*make(SIZE));
    a_new_disk_is_zero(&*make(512));
    writes_are_read_back(&*make(SIZE));
    ranges_are_refused(&*make(SIZE));
    empty_ranges_are_nothing(&*make(SIZE));
    allocation_changes_no_content(&*make(SIZE));
    zeroes_are_read_back(&*make(SIZE));
    what_is_discarded_is_as_before_or_zero(&*make(SIZE));
    // Less than a cluster, and more than one.
    for piece in [24_577, 300_007] {
        threads_do_not_disturb_each_other(&make(SIZE), piece);
    }
    of_two_at_once_each_byte_is_one_of_theirs(&make(SIZE));
}

/// The promises of [`BlockDevice`], put to a device that is read. Its content must be `expected`.
pub fn conformance_read(device: &dyn BlockDevice, expected: &[u8]) {
    assert_eq!(device.size(), expected.len() as u64, "size");
    // Before anything was read, and with everything in memory.
    at_once_is_the_same(device, expected);
    same_content(device, expected);
    at_once_is_the_same(device, expected);
    // Unaligned reads of many lengths, around every kind of boundary.
    let size = expected.len() as u64;
    let mut offset = 0;
    for step in 0..400 {
        let length = (random(step) % 70_000).min(size - offset);
        let mut buf = vec![0xa5; length as usize];
        device.read_at(&mut buf, offset).unwrap();
        let slice = &expected[offset as usize..(offset + length) as usize];
        assert!(buf == slice, "{length} bytes at {offset} differ");
        offset = random(step ^ 0xffff) % (size + 1);
    }
    ranges_are_refused_for_reading(device);
    for step in 0..(100 * size.min(1)) {
        let offset = random(step ^ 0x5555) % size;
        if let Some(place) = device.place_of(offset).unwrap() {
            let end = offset + place.length;
            assert!(place.length > 0 && end <= size, "{place:?} of byte {offset}");
            let mut bytes = vec![0x5a; place.length as usize];
            place.file.read_exact_at(&mut bytes, place.offset).unwrap();
            assert!(bytes == expected[offset as usize..end as usize], "{place:?} of byte {offset}");
        }
    }
    if size > 0 {
        extents_from(device, expected, random(7) % size);
    }
}

/// Whether all of `device`, which holds `expected`, is told at once in pieces of this size. Nothing is waited for, and what
/// is told is true.
pub fn is_told_at_once(device: &dyn BlockDevice, expected: &[u8], piece: usize) -> bool {
    let mut is_told = true;
    for (at, part) in expected.chunks(piece).enumerate() {
        is_told &= tells_at_once(device, (at * piece) as u64, part);
    }
    is_told
}

fn tells_at_once(device: &dyn BlockDevice, offset: u64, expected: &[u8]) -> bool {
    let mut buf = vec![0xa5; expected.len()];
    #[cfg(test)]
    let before = crate::journal::waits();
    let is_told = device.read_at_once(&mut buf, offset).unwrap();
    #[cfg(test)]
    assert_eq!(crate::journal::waits(), before, "a read at once may have waited");
    assert!(!is_told || buf == expected, "{} bytes at {offset} are told wrongly", expected.len());
    is_told
}

fn at_once_is_the_same(device: &dyn BlockDevice, expected: &[u8]) {
    let size = expected.len() as u64;
    for step in 0..200 {
        let offset = random(step ^ 0xaaaa) % (size + 1);
        let length = (random(step) % 70_000).min(size - offset);
        tells_at_once(device, offset, &expected[offset as usize..(offset + length) as usize]);
    }
}

/// The promises of [`BlockDevice`], put to a device that was opened for reading only. Its content must be `expected`, and
/// nothing changes it.
pub fn conformance_read_only(device: &dyn BlockDevice, expected: &[u8]) {
    conformance_read(device, expected);
    let size = device.size();
    for (offset, length) in [(0, 0), (0, 1), (0, size), (size / 2, size - size / 2)] {
        for refused in [
            device.write_at(&vec![1; length as usize], offset),
            device.allocate(offset, length),
            device.discard(offset, length),
            device.write_zeroes(offset, length),
        ] {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnly, "{length} bytes at {offset}");
        }
    }
    device.flush().unwrap();
    same_content(device, expected);
}

/// Discards what lies at `offset`, which reads as `model`, and takes into `model` what it reads as then: each byte is as
/// before or zero.
pub fn discard(device: &dyn BlockDevice, offset: u64, model: &mut [u8]) {
    device.discard(offset, model.len() as u64).unwrap();
    let mut now = vec![0x5a; model.len()];
    device.read_at(&mut now, offset).unwrap();
    if now != model && !is_zero(&now) {
        let wrong = now.iter().zip(&*model).position(|(now, before)| now != before && *now != 0);
        assert_eq!(wrong, None, "a byte of the discard at {offset} is neither as before nor zero");
    }
    model.copy_from_slice(&now);
}

/// Bytes that tell their seed and offset, with runs of zeros in between.
pub fn pattern(seed: u64, offset: u64, length: usize) -> Vec<u8> {
    let end = offset + length as u64;
    let first = offset / 8 * 8;
    let mut bytes = Vec::with_capacity(length + 16);
    for at in (first..end).step_by(8) {
        let word = if (at / 8192) % 5 == 4 { 0 } else { random(seed ^ (at / 8)) };
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate((end - first) as usize);
    bytes.split_off((offset - first) as usize)
}

/// A number that looks random and is the same every time (SplitMix64).
pub fn random(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn a_new_disk_is_zero(device: &dyn BlockDevice) {
    same_content(device, &vec![0; device.size() as usize]);
}

fn writes_are_read_back(device: &dyn BlockDevice) {
    const MIB: u64 = 1 << 20;
    let mut model = vec![0; device.size() as usize];
    let places = [
        (0, 1),
        (1, 511),
        (511, 2),
        (4095, 4098),
        // Across the clusters and blocks of every format.
        ((64 << 10) - 3, 7),
        (2 * MIB - 1, 2),
        (4 * MIB - 70_001, 140_003),
        // Over two whole blocks, and over what was written before.
        (3 * MIB + 17, 4 * MIB as usize),
        (100, 70_000),
        (SIZE - 513, 513),
        (SIZE - 1, 1),
    ];
    for (seed, (offset, length)) in places.into_iter().enumerate() {
        let bytes = pattern(seed as u64, offset, length);
        device.write_at(&bytes, offset).unwrap();
        model[offset as usize..offset as usize + length].copy_from_slice(&bytes);
        if seed % 3 == 0 {
            device.flush().unwrap();
        }
    }
    conformance_read(device, &model);
    // Whatever can be written to can change under whoever was told its place.
    for offset in (0..device.size()).step_by(100_000) {
        assert!(device.place_of(offset).unwrap().is_none(), "a place of what is written to");
    }
    device.write_at(&vec![0; 3 * MIB as usize], MIB).unwrap();
    model[MIB as usize..4 * MIB as usize].fill(0);
    device.flush().unwrap();
    same_content(device, &model);
}

fn ranges_are_refused(device: &dyn BlockDevice) {
    ranges_are_refused_for_reading(device);
    let size = device.size();
    for (offset, length) in [(size, 1), (size - 1, 2), (size + 1, 0), (u64::MAX, 1), (u64::MAX - 1, 4)] {
        let kind = device.write_at(&vec![1; length], offset).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::OutOfRange, "write {length} at {offset}");
        let kind = device.allocate(offset, length as u64).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::OutOfRange, "allocate {length} at {offset}");
        let kind = device.discard(offset, length as u64).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::OutOfRange, "discard {length} at {offset}");
        let kind = device.write_zeroes(offset, length as u64).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::OutOfRange, "write {length} zeroes at {offset}");
    }
    for refused in
        [device.allocate(1, u64::MAX), device.discard(1, u64::MAX), device.write_zeroes(1, u64::MAX)]
    {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::OutOfRange);
    }
    a_new_disk_is_zero(device);
}

fn ranges_are_refused_for_reading(device: &dyn BlockDevice) {
    let size = device.size();
    for (offset, length) in [(size, 1), (size.saturating_sub(1), 2), (size + 1, 0), (u64::MAX, 1)] {
        let mut buf = vec![0x5a; length];
        let kind = device.read_at(&mut buf, offset).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::OutOfRange, "read {length} at {offset}");
        let kind = device.read_at_once(&mut buf, offset).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::OutOfRange, "read {length} at {offset} at once");
        assert!(buf.iter().all(|&byte| byte == 0x5a), "a refused read touched the buffer");
    }
    for offset in [size, size + 1, u64::MAX] {
        assert_eq!(device.extent_at(offset).unwrap_err().kind(), ErrorKind::OutOfRange, "extent at {offset}");
        assert_eq!(device.place_of(offset).unwrap_err().kind(), ErrorKind::OutOfRange, "place of {offset}");
    }
}

fn empty_ranges_are_nothing(device: &dyn BlockDevice) {
    for offset in [0, 1, device.size() / 2, device.size()] {
        device.read_at(&mut [], offset).unwrap();
        device.read_at_once(&mut [], offset).unwrap();
        device.write_at(&[], offset).unwrap();
        device.allocate(offset, 0).unwrap();
        device.discard(offset, 0).unwrap();
        device.write_zeroes(offset, 0).unwrap();
    }
    device.flush().unwrap();
    a_new_disk_is_zero(device);
}

fn allocation_changes_no_content(device: &dyn BlockDevice) {
    let mut model = vec![0; device.size() as usize];
    let bytes = pattern(1, 3 << 20, 100_000);
    device.write_at(&bytes, 3 << 20).unwrap();
    model[3 << 20..(3 << 20) + bytes.len()].copy_from_slice(&bytes);
    device.allocate((2 << 20) - 1, 2).unwrap();
    device.allocate(0, device.size()).unwrap();
    same_content(device, &model);
    let bytes = pattern(2, 77, 5 << 20);
    device.write_at(&bytes, 77).unwrap();
    model[77..77 + bytes.len()].copy_from_slice(&bytes);
    device.flush().unwrap();
    same_content(device, &model);
}

/// Ranges across the clusters, blocks, pages and sectors of every format, and inside of each.
const RANGES: [(u64, u64); 12] = [
    (0, 1),
    (4095, 4098),
    (5 << 12, 4096),
    ((64 << 10) - 3, 7),
    (1 << 20, 64 << 10),
    ((1 << 20) + 511, 130_000),
    ((2 << 20) - 1, 2),
    (4 << 20, 2 << 20),
    ((3 << 20) + 17, (4 << 20) + 1),
    (100, 70_000),
    (SIZE - 513, 513),
    (SIZE - 1, 1),
];

/// Fills the disk, but for a part of it that stays without a place.
fn fill(device: &dyn BlockDevice, seed: u64) -> Vec<u8> {
    let mut model = vec![0; device.size() as usize];
    for (start, end) in [(0, 5 << 20), (7 << 20, device.size())] {
        let bytes = pattern(seed, start, (end - start) as usize);
        device.write_at(&bytes, start).unwrap();
        model[start as usize..end as usize].copy_from_slice(&bytes);
    }
    model
}

fn zeroes_are_read_back(device: &dyn BlockDevice) {
    let mut model = fill(device, 4);
    for (step, (offset, length)) in RANGES.into_iter().enumerate() {
        device.write_zeroes(offset, length).unwrap();
        model[offset as usize..(offset + length) as usize].fill(0);
        if step % 3 == 0 {
            device.flush().unwrap();
        }
        same_content(device, &model);
        // Over a part of it, so that its neighbours are what they were: zeros, and no old bytes.
        let bytes = pattern(5, offset, (length / 2) as usize);
        device.write_at(&bytes, offset).unwrap();
        model[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
        same_content(device, &model);
    }
    conformance_read(device, &model);
    device.write_zeroes(0, device.size()).unwrap();
    device.flush().unwrap();
    a_new_disk_is_zero(device);
    device.allocate(0, device.size()).unwrap();
    a_new_disk_is_zero(device);
}

fn what_is_discarded_is_as_before_or_zero(device: &dyn BlockDevice) {
    let mut model = fill(device, 6);
    for (step, (offset, length)) in RANGES.into_iter().enumerate() {
        discard(device, offset, &mut model[offset as usize..][..length as usize]);
        same_content(device, &model);
        if step % 3 == 0 {
            device.flush().unwrap();
            same_content(device, &model);
        }
        let bytes = pattern(7, offset, (length / 3) as usize);
        device.write_at(&bytes, offset).unwrap();
        model[offset as usize..offset as usize + bytes.len()].copy_from_slice(&bytes);
    }
    conformance_read(device, &model);
    let size = device.size();
    discard(device, 0, &mut model);
    device.flush().unwrap();
    same_content(device, &model);
    device.allocate(0, size).unwrap();
    same_content(device, &model);
}

fn threads_do_not_disturb_each_other(device: &Arc<dyn BlockDevice>, piece_size: usize) {
    let pieces = device.size() / piece_size as u64;
    let model = Mutex::new(vec![0; device.size() as usize]);
    thread::scope(|scope| {
        for mine in 0..4 {
            let model = &model;
            let work = move || {
                for piece in (0..pieces).filter(|piece| piece % 4 == mine) {
                    let offset = piece * piece_size as u64;
                    let bytes = pattern(3, offset, piece_size);
                    device.write_at(&bytes, offset).unwrap();
                    let mut back = vec![0; piece_size];
                    device.read_at(&mut back, offset).unwrap();
                    assert!(back == bytes, "piece {piece} was disturbed");
                    tells_at_once(device.as_ref(), offset, &bytes);
                    // What lies beside it is in the same clusters and blocks, and others write there.
                    let inner = piece_size / 5..piece_size / 5 + piece_size / 2 + piece as usize % 4096;
                    let start = offset + inner.start as u64;
                    match (piece / 4) % 4 {
                        1 => {
                            device.write_zeroes(start, inner.len() as u64).unwrap();
                            back[inner].fill(0);
                        }
                        2 => discard(device.as_ref(), start, &mut back[inner]),
                        3 => {
                            device.write_zeroes(offset, piece_size as u64).unwrap();
                            back.fill(0);
                            back[inner.clone()].copy_from_slice(&bytes[inner.clone()]);
                            device.write_at(&bytes[inner], start).unwrap();
                        }
                        _ => {}
                    }
                    if piece % 10 == 0 {
                        device.flush().unwrap();
                    }
                    device.extent_at(offset).unwrap();
                    lock(model)[offset as usize..][..piece_size].copy_from_slice(&back);
                }
            };
            spawn_scoped(scope, "a writer", work).unwrap();
        }
    });
    same_content(device.as_ref(), &lock(&model));
}

/// Some write where others make zero and discard. Which of them is last is open, byte by byte, and nothing else is.
fn of_two_at_once_each_byte_is_one_of_theirs(device: &Arc<dyn BlockDevice>) {
    const RANGE: (u64, usize) = ((1 << 20) + 1000, 400_000);
    let bytes = vec![7; RANGE.1];
    let are_theirs = |bytes: &[u8]| {
        let is_one = |part: &[u8]| part == &[0; 4096][..part.len()] || part == &[7; 4096][..part.len()];
        bytes.chunks(4096).all(|part| is_one(part) || part.iter().all(|byte| [0, 7].contains(byte)))
    };
    // From behind, so that a write comes to many places one after the other.
    for at in (0..RANGE.1).step_by(64 << 10).rev() {
        device.allocate(RANGE.0 + at as u64, 1).unwrap();
    }
    thread::scope(|scope| {
        for who in 0..4 {
            let (bytes, are_theirs) = (&bytes, &are_theirs);
            let work = move || {
                let mut read = vec![0; RANGE.1];
                for step in 0..60 {
                    let inner = (random(who << 32 | step) % 100_000) as usize;
                    let (offset, length) = (RANGE.0 + inner as u64, RANGE.1 - 2 * inner);
                    match who {
                        0 | 1 => device.write_at(&bytes[..length], offset).unwrap(),
                        2 => device.write_zeroes(offset, length as u64).unwrap(),
                        _ => device.discard(offset, length as u64).unwrap(),
                    }
                    device.read_at(&mut read, RANGE.0).unwrap();
                    assert!(are_theirs(&read), "something else is there");
                    if step % 16 == who {
                        device.flush().unwrap();
                    }
                }
            };
            spawn_scoped(scope, "one of two", work).unwrap();
        }
    });
    let mut model = vec![0; device.size() as usize];
    device.read_at(&mut model, 0).unwrap();
    assert!(are_theirs(&model), "something else is there");
    device.flush().unwrap();
    conformance_read(device.as_ref(), &model);
}

fn is_zero(bytes: &[u8]) -> bool {
    // Compared as a whole: byte by byte is slow where nothing is optimized.
    bytes.chunks(4096).all(|part| part == &[0; 4096][..part.len()])
}

/// Reads all of `device` and compares it and its extents with `expected`.
fn same_content(device: &dyn BlockDevice, expected: &[u8]) {
    let mut content = vec![0x5a; expected.len()];
    device.read_at(&mut content, 0).unwrap();
    if content != expected {
        let at = content.iter().zip(expected).position(|(a, b)| a != b).unwrap();
        panic!("byte {at} is {:#04x}, not {:#04x}", content[at], expected[at]);
    }
    extents_from(device, expected, 0);
}

/// The extents from `start` on follow each other to the end of the disk, and what they call zero is.
fn extents_from(device: &dyn BlockDevice, expected: &[u8], start: u64) {
    let mut offset = start;
    while offset < device.size() {
        let extent = device.extent_at(offset).unwrap();
        let end = offset + extent.length;
        assert!(extent.length > 0 && end <= device.size(), "extent {extent:?} at {offset}");
        if extent.kind != ExtentKind::Data {
            assert!(extent.kind.is_zero());
            let run = &expected[offset as usize..end as usize];
            assert!(is_zero(run), "{extent:?} at {offset} does not read as zero");
        }
        offset = end;
    }
}
