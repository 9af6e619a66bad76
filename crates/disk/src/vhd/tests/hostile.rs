//! What a stranger's bytes can do: an error that names its place, never a panic, a hang or a gigabyte.

use std::fs::File;

use goldwire_stdx::Hints as _;
use goldwire_stdx::testing::cases;
use proptest::prelude::*;

use super::build::{Vhd, seal};
use super::*;
use crate::ErrorKind;

/// Puts a disk through everything that reads it.
fn exercise(path: &Path) {
    let _ = crate::detect(path);
    let _ = crate::check(path, &OpenOptions::default());
    for image in [open(path), open_writable(path)].into_iter().flatten() {
        let size = image.device.size();
        let mut offset = 0;
        for _ in 0..50 {
            if offset >= size {
                break;
            }
            let Ok(extent) = image.device.extent_at(offset) else { break };
            assert!(extent.length > 0 && extent.length <= size - offset);
            let mut buf = vec![0; extent.length.min(1 << 20) as usize];
            let _ = image.device.read_at(&mut buf, offset);
            offset += extent.length;
        }
        if size > 0 {
            let _ = image.device.read_at(&mut [0], size - 1);
            let _ = image.device.write_at(&[1], size - 1);
            let _ = image.device.flush();
        }
    }
}

/// Our own small disk with a batmap, or a child with locators.
fn sample(folder: &Folder, child: bool) -> Vec<u8> {
    folder.file("parent.vhd", &Vhd { block_size: 4096, entries: 4, ..Vhd::dynamic(16384) }.bytes());
    if child {
        let vhd = Vhd { block_size: 4096, entries: 4, ..Vhd::differencing(16384) };
        return vhd.block(1, &[0xf0], 0x33).block(3, &[0xff], 0x34).bytes();
    }
    let vhd =
        Vhd { block_size: 4096, entries: 4, creator: *b"tap\0", version: 0x0001_0001, ..Vhd::dynamic(16384) };
    vhd.block(0, &[0xff], 0x35).block(2, &[0x0f], 0x36).bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(300)))]

    #[test]
    fn a_changed_byte(child: bool, at in 0_usize..4096, value: u8, sealed: bool, both: bool) {
        let folder = Folder::new();
        let mut bytes = sample(&folder, child);
        let at = at % bytes.len();
        bytes[at] = value;
        if sealed {
            seal(&mut bytes[..512], 64);
            seal(&mut bytes[512..1536], 36);
            if both {
                let footer = bytes[..512].to_vec();
                let end = bytes.len() - 512;
                bytes[end..].copy_from_slice(&footer);
            }
        }
        exercise(&folder.file("a.vhd", &bytes));
    }

    #[test]
    fn a_changed_number(child: bool, header: bool, at in 0_usize..300, value: u64, width in 1_usize..=8) {
        let folder = Folder::new();
        let mut bytes = sample(&folder, child);
        let (base, size, checksum) = if header { (512, 1024, 36) } else { (0, 512, 64) };
        let at = base + at * 4 % (size - 8);
        // Small numbers, large ones and those around a power of two.
        bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[..width]);
        seal(&mut bytes[base..base + size], checksum);
        let footer = bytes[..512].to_vec();
        let end = bytes.len() - 512;
        bytes[end..].copy_from_slice(&footer);
        exercise(&folder.file("a.vhd", &bytes));
    }

    #[test]
    fn a_cut_file(child: bool, length in 0_usize..12_000) {
        let folder = Folder::new();
        let bytes = sample(&folder, child);
        exercise(&folder.file("a.vhd", &bytes[..length.min(bytes.len())]));
    }
}

/// A disk with the header field at `at` set to `value`, both checksums right.
fn with_field(vhd: &Vhd, at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = vhd.bytes();
    bytes[at..at + value.len()].copy_from_slice(value);
    seal(&mut bytes[..512], 64);
    seal(&mut bytes[512..1536], 36);
    let footer = bytes[..512].to_vec();
    let end = bytes.len() - 512;
    bytes[end..].copy_from_slice(&footer);
    bytes
}

#[test]
fn contradictions_are_named() {
    let vhd = Vhd::dynamic(8 * MIB).block(0, &[0xff], 1).block(2, &[0xff], 2);
    let entry = |sector: u32| sector.to_be_bytes().to_vec();
    let cases: Vec<(usize, Vec<u8>, ErrorKind, &str)> = vec![
        (48, (8 * MIB + 1).to_be_bytes().to_vec(), ErrorKind::Corrupt, "whole sectors"),
        (48, (10 * MIB).to_be_bytes().to_vec(), ErrorKind::Corrupt, "too few"),
        (60, 9_u32.to_be_bytes().to_vec(), ErrorKind::Corrupt, "disk type"),
        (16, 100_u64.to_be_bytes().to_vec(), ErrorKind::Corrupt, "data offset"),
        (16, u64::MAX.to_be_bytes().to_vec(), ErrorKind::Corrupt, "data offset"),
        (512 + 16, 512_u64.to_be_bytes().to_vec(), ErrorKind::Corrupt, "lies over"),
        (512 + 16, 1537_u64.to_be_bytes().to_vec(), ErrorKind::Corrupt, "table offset"),
        (512 + 16, (u64::MAX - 511).to_be_bytes().to_vec(), ErrorKind::Corrupt, "table offset"),
        (512 + 24, 2_u32.to_be_bytes().to_vec(), ErrorKind::Unsupported, "version"),
        (512 + 28, 3_u32.to_be_bytes().to_vec(), ErrorKind::Corrupt, "table entries"),
        (512 + 28, u32::MAX.to_be_bytes().to_vec(), ErrorKind::Corrupt, "table offset"),
        (512 + 32, 3_000_000_u32.to_be_bytes().to_vec(), ErrorKind::Corrupt, "power of two"),
        (512 + 32, 256_u32.to_be_bytes().to_vec(), ErrorKind::Corrupt, "power of two"),
        (512 + 32, (1_u32 << 30).to_be_bytes().to_vec(), ErrorKind::Corrupt, "power of two"),
        // The first entry: past the end, over the header, over the table, over block 2.
        (1536, entry(0x00ff_ffff), ErrorKind::Corrupt, "data ends"),
        (1536, entry(u32::MAX - 1), ErrorKind::Corrupt, "data ends"),
        (1536, entry(1), ErrorKind::Corrupt, "the dynamic header"),
        (1536, entry(3), ErrorKind::Corrupt, "the block allocation table"),
        (1536, entry(4 + 4097), ErrorKind::Corrupt, "over block"),
        (1536, entry(4 + 4000), ErrorKind::Corrupt, "over block"),
    ];
    for (at, value, kind, text) in cases {
        let folder = Folder::new();
        let path = folder.file("a.vhd", &with_field(&vhd, at, &value));
        let error = open(&path).err().unwrap_or_else(|| panic!("{text} at {at} was accepted"));
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(text), "{text} at {at}: {error}");
        assert!(!crate::check(&path, &OpenOptions::default()).unwrap().is_empty(), "{text} at {at}");
    }
}

/// The fuzzer put a locator into the last sector that 64 bits can address. Its end was still a number, but rounding
/// that up to a whole sector was not: a panic where overflow is checked, a region that ends at 0 elsewhere.
#[test]
fn a_locator_at_the_end_of_all_numbers_takes_no_room() {
    let folder = Folder::new();
    folder.file("parent.vhd", &Vhd::dynamic(8 * MIB).bytes());
    let child = Vhd::differencing(8 * MIB);
    let bytes = with_field(&child, 512 + 576 + 16, &(u64::MAX - 100).to_be_bytes());
    let path = folder.file("a.vhd", &bytes);
    // The parent's name in the header still leads to it.
    assert!(open(&path).is_ok());
    exercise(&path);
}

#[test]
fn a_table_that_needs_too_much_memory_is_not_read() {
    // A sparse file of gigabytes costs its author nothing.
    let folder = Folder::new();
    let vhd = Vhd { block_size: 512, entries: 4, ..Vhd::dynamic(2048) };
    let bytes = with_field(&vhd, 48, &(4_u64 << 30).to_be_bytes());
    let mut bytes = bytes[..bytes.len() - 512].to_vec();
    bytes[512 + 28..512 + 32].copy_from_slice(&(8_u32 << 20).to_be_bytes());
    seal(&mut bytes[512..1536], 36);
    let path = folder.file("a.vhd", &bytes);
    File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
    let error = open(&path).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
}

#[test]
fn a_broken_vhd_is_not_taken_for_a_plain_disk() {
    let folder = Folder::new();
    let mut bytes = Vhd::dynamic(2 * MIB).bytes();
    bytes[100] = 1;
    let end = bytes.len() - 100;
    bytes[end] = 1;
    let path = folder.file("a.vhd", &bytes);
    assert_eq!(crate::detect(&path).unwrap(), Format::VhdDynamic);
    let error = open(&path).err().unwrap();
    assert!(error.to_string().contains("checksum") && error.hints()[0].contains("raw"), "{error}");
    let raw = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
    assert_eq!(crate::open(&path, &raw).unwrap().device.size(), bytes.len() as u64);
}

#[test]
fn a_truncated_copy_is_found_out() {
    // `vhd-util scan -f` calls it healthy, because it reads the copy of the footer only.
    let folder = Folder::new();
    let bytes = Vhd::dynamic(8 * MIB).block(0, &[0xff], 1).block(2, &[0xff], 2).bytes();
    let path = folder.file("a.vhd", &bytes[..3 << 20]);
    let error = open(&path).err().unwrap();
    assert!(error.to_string().contains("table entry 2"), "{error}");
    let findings = crate::check(&path, &OpenOptions::default()).unwrap();
    assert!(findings.iter().any(|finding| finding.field == "table entry 2"), "{findings:?}");
}
