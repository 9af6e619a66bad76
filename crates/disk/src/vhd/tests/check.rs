//! Each rule of `vhd-util check`, broken once.

use super::build::{Vhd, seal, utf16le};
use super::*;
use crate::{Finding, Severity};

const NOW: u32 = 0x3000_0000;

fn findings(path: &Path) -> Vec<Finding> {
    crate::check(path, &OpenOptions::default()).unwrap()
}

/// Our own disk of two blocks, one of them full: no findings.
fn healthy(folder: &Folder) -> Vec<u8> {
    let disk = folder.create("healthy.vhd", Format::VhdDynamic, 4 * MIB);
    disk.write_at(&[1; 4096], 2 * MIB).unwrap();
    disk.flush().unwrap();
    assert_eq!(findings(&folder.path("healthy.vhd")), []);
    std::fs::read(folder.path("healthy.vhd")).unwrap()
}

/// Sets the bytes at `at` in both footers and seals them.
fn footers(mut bytes: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    bytes[at..at + value.len()].copy_from_slice(value);
    seal(&mut bytes[..512], 64);
    let footer = bytes[..512].to_vec();
    let end = bytes.len() - 512;
    bytes[end..].copy_from_slice(&footer);
    bytes
}

fn header(mut bytes: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    bytes[512 + at..512 + at + value.len()].copy_from_slice(value);
    seal(&mut bytes[512..1536], 36);
    bytes
}

fn plain(mut bytes: Vec<u8>, at: usize, value: &[u8]) -> Vec<u8> {
    bytes[at..at + value.len()].copy_from_slice(value);
    bytes
}

/// The fields of the errors in `bytes`.
fn errors(folder: &Folder, bytes: &[u8]) -> Vec<String> {
    let findings = findings(&folder.file("sick.vhd", bytes));
    findings.into_iter().filter(|f| f.severity == Severity::Error).map(|f| f.field).collect()
}

#[test]
fn footer_rules() {
    let folder = Folder::new();
    let bytes = healthy(&folder);
    let end = bytes.len() - 512;
    for (at, value, field) in [
        (8, &[0, 0, 0, 0][..], "features"),
        (8, &[0, 0, 0, 6], "features"),
        (12, &[0, 2, 0, 0], "format version"),
        (32, &[0, 1, 0, 4], "creator version"),
        (68, &[0; 16], "uuid"),
        (84, &[2], "saved state"),
        (85, &[2], "hidden"),
        (86, &[1], "reserved bytes"),
        (511, &[1], "reserved bytes"),
        (0, b"v_poison", "footer cookie"),
    ] {
        assert_eq!(errors(&folder, &footers(bytes.clone(), at, value)), [field], "{field}");
    }
    assert_eq!(errors(&folder, &plain(bytes.clone(), 90, &[1])), ["footer checksum of the copy"]);
    assert_eq!(errors(&folder, &plain(bytes.clone(), end + 90, &[1])), ["footer checksum at the end"]);
    assert_eq!(errors(&folder, &plain(bytes.clone(), end, &[1])), ["footer cookie at the end"]);
    let mut copy = plain(bytes.clone(), 85, &[1]);
    seal(&mut copy[..512], 64);
    assert_eq!(errors(&folder, &copy), ["footer copy"]);
    // One finding does not hide the next.
    let several = footers(footers(bytes, 68, &[0; 16]), 84, &[7]);
    let several = plain(several, end + 90, &[1]);
    assert_eq!(errors(&folder, &several), ["footer checksum at the end", "uuid", "saved state"]);
}

#[test]
fn fixed_disks() {
    let folder = Folder::new();
    folder.create("fixed.vhd", Format::VhdFixed, MIB).flush().unwrap();
    let path = folder.path("fixed.vhd");
    assert_eq!(findings(&path), []);
    let bytes = std::fs::read(&path).unwrap();
    let end = bytes.len() - 512;
    let set = |at: usize, value: &[u8]| {
        let mut bytes = plain(bytes.clone(), end + at, value);
        seal(&mut bytes[end..], 64);
        errors(&folder, &bytes)
    };
    assert_eq!(set(16, &[0]), ["footer data offset"]);
    assert_eq!(set(48, &(2 * MIB).to_be_bytes()), ["footer current size"]);
}

#[test]
fn header_rules() {
    let folder = Folder::new();
    let bytes = healthy(&folder);
    for (at, value, field) in [
        (8, &[0][..], "dynamic header data offset"),
        (40, &[1], "parent uuid"),
        (56, &[1], "parent time"),
        (60, &[1], "dynamic header reserved bytes"),
        (64, &[1], "parent name"),
        (576, b"MacX", "parent locators"),
        (768, &[1], "dynamic header reserved bytes"),
        (16, &[0, 0, 0, 0, 0, 0, 6, 1], "table offset"),
        (32, &[0, 0x30, 0, 0], "block size"),
        (28, &[0, 0, 0, 1], "table entries"),
    ] {
        assert_eq!(errors(&folder, &header(bytes.clone(), at, value)), [field], "{field}");
    }
    assert_eq!(errors(&folder, &plain(bytes, 512 + 70, &[1])), ["dynamic header checksum"]);
}

#[test]
fn table_and_batmap_rules() {
    let folder = Folder::new();
    let bytes = healthy(&folder);
    let bitmap = u32::from_be_bytes(bytes[1540..1544].try_into().unwrap()) as usize * 512;
    assert_eq!(
        errors(&folder, &plain(bytes.clone(), 1536, &[0, 0, 0, 4])),
        ["table entry 0", "table entry 1"]
    );
    assert_eq!(errors(&folder, &plain(bytes.clone(), 1536, &bytes[1540..1544])), ["table entry 1"]);
    assert_eq!(errors(&folder, &plain(bytes.clone(), 2560, &[0xc0])), ["batmap checksum", "batmap"]);
    assert_eq!(errors(&folder, &plain(bytes.clone(), bitmap + 7, &[0xfe])), ["batmap"]);
    assert_eq!(errors(&folder, &plain(bytes.clone(), 2048, b"x")), ["batmap cookie"]);
    assert_eq!(errors(&folder, &plain(bytes.clone(), 2048 + 16, &[0, 0, 0, 0])), ["batmap size"]);
    assert_eq!(errors(&folder, &plain(bytes.clone(), 2048 + 8, &[0xff])), ["batmap offset"]);
    assert_eq!(errors(&folder, &plain(bytes.clone(), 2048 + 20, &[0, 1, 0, 3])), ["batmap version"]);
    // QEMU appends a block to a disk of XenServer and knows nothing of its batmap.
    assert!(open(&folder.file("sick.vhd", &plain(bytes, 2048, b"x"))).is_ok());
}

#[test]
fn parent_rules() {
    let folder = Folder::new();
    folder.file("parent.vhd", &Vhd { timestamp: NOW, ..Vhd::dynamic(2 * MIB) }.bytes());
    let child = Vhd { timestamp: NOW, geometry: 0, ..Vhd::differencing(2 * MIB) };
    assert_eq!(errors(&folder, &child.bytes()), [""; 0]);
    let bytes = child.bytes();
    assert_eq!(warnings(&folder, &header(bytes.clone(), 56, &[0xff; 4])), ["parent time"]);
    // Windows writes the whole path into the header.
    let by_windows = Vhd { parent_name: "C:\\vms\\parent.vhd".into(), ..child.clone() };
    assert_eq!(errors(&folder, &by_windows.bytes()), [""; 0]);
    let by_windows = Vhd { parent_name: "C:\\vms\\other.vhd".into(), ..child.clone() };
    assert_eq!(errors(&folder, &by_windows.bytes()), ["parent locator 0"]);
    assert_eq!(errors(&folder, &header(bytes.clone(), 576, b"MacZ")), ["parent locator 0"]);
    assert_eq!(errors(&folder, &header(bytes.clone(), 580, &[0, 0, 2, 1])), ["parent locator 0"]);
    assert_eq!(errors(&folder, &header(bytes.clone(), 588, &[1])), ["parent locator 0"]);
    assert_eq!(errors(&folder, &header(bytes.clone(), 604, &[1])), ["parent locator 1"]);
    let twice = vec![child.locators[0].clone(), child.locators[0].clone()];
    assert_eq!(errors(&folder, &Vhd { locators: twice, ..child.clone() }.bytes()), ["parent locator 1"]);
    let elsewhere = vec![child.locators[0].clone(), (b"W2ru", 512, utf16le(".\\other.vhd"))];
    assert_eq!(errors(&folder, &Vhd { locators: elsewhere, ..child.clone() }.bytes()), ["parent locator 1"]);
    // Another parent, and none.
    folder.file("parent.vhd", &Vhd { uuid: [9; 16], ..Vhd::dynamic(2 * MIB) }.bytes());
    assert_eq!(errors(&folder, &bytes), ["image"]);
    std::fs::remove_file(folder.path("parent.vhd")).unwrap();
    assert_eq!(errors(&folder, &bytes), ["image"]);
}

/// What only some reader minds about a sound disk: the fields.
fn warnings(folder: &Folder, bytes: &[u8]) -> Vec<String> {
    let findings = findings(&folder.file("odd.vhd", bytes));
    findings.into_iter().filter(|f| f.severity == Severity::Warning).map(|f| f.field).collect()
}

/// QEMU is asked what it shows. Version 10.0 changed its mind about all creators but two, and there may be others that
/// took that over: what is told of every version must be true of this one, and what this one does must be told.
#[test]
fn a_disk_of_which_qemu_shows_less_is_told() {
    let folder = Folder::new();
    let Some(qemu_img) = goldwire_stdx::testing::program("qemu-img") else { return };
    for creator in
        [b"vpc ", b"qemu", b"vbox", b"vs  ", b"xo  ", b"simh", b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS"]
    {
        let vhd = Vhd { creator: *creator, timestamp: NOW, ..Vhd::dynamic(64 * MIB) };
        let findings = findings(&folder.file("odd.vhd", &vhd.bytes()));
        let told =
            findings.iter().find(|finding| finding.field == "geometry").map(|finding| &finding.message);
        let output = std::process::Command::new(&qemu_img)
            .args(["info", "-f", "vpc", "--output", "json"])
            .arg(folder.path("odd.vhd"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let shows_all = text.contains(&format!("\"virtual-size\": {}", 64 * MIB));
        assert!(output.status.success() && text.contains("virtual-size"), "{text}");
        let creator = String::from_utf8_lossy(creator);
        assert!(shows_all || told.is_some(), "{creator:?}: {text}");
        assert!(
            !shows_all || !told.is_some_and(|told| told.starts_with("QEMU shows")),
            "{creator:?}: {told:?}"
        );
    }
}

#[test]
fn what_one_reader_minds_is_a_warning() {
    let folder = Folder::new();
    let bytes = healthy(&folder);
    for (at, value, field) in
        [(24, &[0xff, 0xff, 0xff, 0][..], "footer time"), (56, &[0xff, 0xff, 0x10, 0xff], "geometry")]
    {
        let odd = footers(bytes.clone(), at, value);
        assert_eq!((errors(&folder, &odd), warnings(&folder, &odd)), (vec![], vec![field.to_owned()]));
    }
    let warnings = |bytes: &[u8]| warnings(&folder, bytes);
    let vhd = Vhd { timestamp: NOW, ..Vhd::dynamic(64 * MIB) };
    assert_eq!(warnings(&vhd.bytes()), [""; 0]);
    assert_eq!(warnings(&Vhd { footer_length: 511, ..vhd.clone() }.bytes()), ["footer"]);
    assert_eq!(warnings(&Vhd { creator: *b"vpc ", ..vhd.clone() }.bytes()), ["geometry"]);
    let uneven = Vhd { creator: *b"tap\0", version: 0x0001_0001, size: 64 * MIB - 512, ..vhd };
    assert_eq!(warnings(&uneven.bytes()), ["current size"]);
}
