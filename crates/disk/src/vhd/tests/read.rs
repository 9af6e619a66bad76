use std::process::Command;

use goldwire_stdx::Hints as _;

use super::build::{CHILD_UUID, PARENT_UUID, Vhd, utf16le};
use super::*;
use crate::testing::conformance_read;
use crate::{DenyAll, ErrorKind, ExtentKind};

const ALL: [u8; 512] = [0xff; 512];

#[test]
fn a_dynamic_disk_shows_present_sectors_only() {
    let folder = Folder::new();
    // Byte 1 of the bitmap is partial: sectors 8 to 11 are present, 12 to 15 are not.
    let vhd = Vhd::dynamic(6 * MIB).block(2, &[0x00, 0xf0, 0x01], 0xaa);
    let path = folder.file("a.vhd", &vhd.bytes());
    let image = open(&path).unwrap();
    let mut expected = vec![0; 6 << 20];
    for sector in [8, 9, 10, 11, 23] {
        let at = (4 << 20) + sector * 512;
        expected[at..at + 512].fill(0xaa);
    }
    conformance_read(&*image.device, &expected);
    assert_eq!(image.info.format, Format::VhdDynamic);
    assert_eq!(image.info.uuid, Some(Uuid(PARENT_UUID)));
    assert_eq!(image.info.created, Some(946_684_800 + 0x2b00_0000));
    let kinds: Vec<_> = [0, 4 * MIB, 4 * MIB + 4096].map(|at| image.device.extent_at(at).unwrap()).into();
    assert_eq!((kinds[0].kind, kinds[0].length), (ExtentKind::Hole, 4 * MIB));
    assert_eq!((kinds[1].kind, kinds[1].length), (ExtentKind::Zero, 4096));
    assert_eq!((kinds[2].kind, kinds[2].length), (ExtentKind::Data, 2048));
}

#[test]
fn a_child_is_merged_with_its_parent_sector_by_sector() {
    // libvhdi takes the low nibble of a last set byte 0xF0 from the child (its 20260901): sectors 4 to 7 here.
    let folder = Folder::new();
    folder.file("parent.vhd", &Vhd::dynamic(6 * MIB).block(0, &ALL, 0x11).block(1, &[0xff], 0x12).bytes());
    let child = Vhd::differencing(6 * MIB).block(0, &[0xf0], 0x22).block(2, &[0x80], 0x23);
    let path = folder.file("child.vhd", &child.bytes());
    let image = open(&path).unwrap();
    let mut expected = vec![0; 6 << 20];
    expected[..2 << 20].fill(0x11);
    expected[..2048].fill(0x22);
    expected[2 << 20..(2 << 20) + 4096].fill(0x12);
    expected[4 << 20..(4 << 20) + 512].fill(0x23);
    conformance_read(&*image.device, &expected);
    assert_eq!(image.chain.len(), 2);
    assert_eq!(image.chain[1].format, Format::VhdDynamic);
    assert_eq!(image.info.uuid, Some(Uuid(CHILD_UUID)));
    assert_eq!(image.changed().unwrap(), None);
    std::fs::write(folder.path("parent.vhd"), b"replaced").unwrap();
    assert_eq!(image.changed().unwrap(), Some(folder.path("parent.vhd").canonicalize().unwrap()));
}

#[test]
fn a_parent_may_be_smaller_or_larger() {
    for (parent_size, child_size) in [(2 * MIB + 512, 6 * MIB), (6 * MIB, 2 * MIB + 512)] {
        let folder = Folder::new();
        let blocks = [0, 1, 2].into_iter().filter(|block| u64::from(*block) * 2 * MIB < parent_size);
        let parent = blocks.fold(Vhd::dynamic(parent_size), |vhd, block| vhd.block(block, &ALL, 0x77));
        folder.file("parent.vhd", &parent.bytes());
        let path = folder.file("child.vhd", &Vhd::differencing(child_size).block(0, &[0x80], 0x66).bytes());
        let mut expected = vec![0x77; parent_size.min(child_size) as usize];
        expected[..512].fill(0x66);
        expected.resize(child_size as usize, 0);
        conformance_read(&*open(&path).unwrap().device, &expected);
    }
}

/// vhd-util, libvhdi and dissect read such a disk; QEMU does not.
#[test]
fn a_file_may_end_with_the_disk_inside_its_last_block() {
    let folder = Folder::new();
    let size = 2 * MIB + 1536;
    let whole = Vhd::dynamic(size).block(1, &ALL, 0x5b).bytes();
    let mut expected = vec![0; size as usize];
    expected[2 << 20..].fill(0x5b);
    let footer = whole.len() - 512;
    let behind_the_disk = footer - ((2 << 20) - 1536);
    let cut = |end: usize| [&whole[..end], &whole[footer..]].concat();
    let path = folder.file("a.vhd", &cut(behind_the_disk));
    conformance_read(&*open(&path).unwrap().device, &expected);
    let findings = crate::check(&path, &OpenOptions::default()).unwrap();
    assert!(findings.iter().all(|finding| finding.severity == crate::Severity::Warning), "{findings:?}");
    let disk = open_writable(&path).unwrap().device;
    disk.write_at(&[0x5c; 1024], 1 << 20).unwrap();
    disk.flush().unwrap();
    expected[1 << 20..][..1024].fill(0x5c);
    conformance_read(&*disk, &expected);
    conformance_read(&*open(&path).unwrap().device, &expected);
    // A sector less, and some of the disk is gone.
    let short = folder.file("short.vhd", &cut(behind_the_disk - 512));
    assert_eq!(open(&short).err().unwrap().kind(), ErrorKind::Corrupt);
}

#[test]
fn a_fixed_disk_has_its_footer_behind() {
    let data = crate::testing::pattern(1, 0, 70_000 / 512 * 512);
    let vhd = Vhd { kind: 2, ..Vhd::dynamic(data.len() as u64) };
    for length in [512, 511] {
        let folder = Folder::new();
        let path = folder.file("no-extension", &[&data, &vhd.footer()[..length]].concat());
        assert_eq!(crate::detect(&path).unwrap(), Format::VhdFixed);
        conformance_read(&*open(&path).unwrap().device, &data);
    }
}

#[test]
fn a_short_or_lost_footer_is_read_around() {
    let vhd = Vhd::dynamic(6 * MIB).block(1, &ALL, 0x42);
    for footer_length in [511, 0, 100] {
        let folder = Folder::new();
        let path = folder.file("a.vhd", &Vhd { footer_length, ..vhd.clone() }.bytes());
        let image = open(&path).unwrap();
        assert_eq!(content(&*image.device)[2 << 20], 0x42, "{footer_length}");
        // A file that was cut is no smaller disk, and nobody takes it for a whole one.
        let is_told = image.notices.iter().any(|notice| notice.contains("as if it had been cut"));
        assert_eq!(is_told, footer_length < 511, "{:?}", image.notices);
        let findings = crate::check(&path, &OpenOptions::default()).unwrap();
        let is_found = findings.iter().any(|finding| finding.severity == crate::Severity::Error);
        assert_eq!(is_found, footer_length < 511, "{findings:?}");
    }
    // And the other one: a disk whose copy at the start is gone is read by the footer at the end.
    let mut bytes = vhd.bytes();
    bytes[..512].fill(0);
    let path = Folder::new();
    let path = path.file("b.vhd", &bytes);
    assert_eq!(content(&*open(&path).unwrap().device)[2 << 20], 0x42);
}

#[test]
fn every_kind_of_locator_leads_to_the_parent() {
    let folder = Folder::new();
    let absolute = folder.0.path().canonicalize().unwrap().join("parent.vhd");
    let absolute = absolute.to_str().unwrap();
    folder.file("parent.vhd", &Vhd::dynamic(2 * MIB).block(0, &ALL, 0x31).bytes());
    let cases: Vec<(&[u8; 4], u32, Vec<u8>)> = vec![
        (b"MacX", 512, b"file://./parent.vhd".to_vec()),
        (b"MacX", 1, b"file://./p%61rent.vhd".to_vec()),
        (b"MacX", 512, format!("file://{absolute}").into_bytes()),
        (b"MacX", 512, format!("file://localhost{absolute}\0").into_bytes()),
        (b"W2ru", 512, utf16le(".\\parent.vhd")),
        (b"W2ru", 1, utf16le("parent.vhd\0")),
        (b"W2ku", 512, utf16le("C:\\Hyper-V\\Disks\\parent.vhd")),
        (b"W2ku", 512, utf16le("\\\\server\\share\\parent.vhd")),
    ];
    for locator in cases {
        let label = format!("{:?}", String::from_utf8_lossy(&locator.2));
        let vhd = Vhd { locators: vec![locator], parent_name: String::new(), ..Vhd::differencing(2 * MIB) };
        let path = folder.file("child.vhd", &vhd.bytes());
        assert_eq!(
            content(&*open(&path).unwrap_or_else(|e| panic!("{label}: {e}")).device)[0],
            0x31,
            "{label}"
        );
    }
}

#[test]
fn a_renamed_parent_is_found_by_its_uuid() {
    let folder = Folder::new();
    folder.file("other.vhd", &Vhd { uuid: *b"some other uuid!", ..Vhd::dynamic(2 * MIB) }.bytes());
    let path = folder.file("child.vhd", &Vhd::differencing(2 * MIB).bytes());
    // The last is what Hyper-V calls the parent of a checkpoint of a checkpoint.
    for name in ["renamed.VHD", "Win_1A2B.AVHD", "win_1a2b.avhd"] {
        let parent = folder.file(name, &Vhd::dynamic(2 * MIB).block(0, &ALL, 0x32).bytes());
        assert_eq!(content(&*open(&path).unwrap().device)[0], 0x32, "{name}");
        assert_eq!(crate::children(&parent).unwrap().found, [path.canonicalize().unwrap()]);
        std::fs::remove_file(parent).unwrap();
    }
    folder.file("renamed.vhd", &Vhd::dynamic(2 * MIB).bytes());
    // A gate that allows no parent does not look into the folder either.
    let closed = OpenOptions { gate: Arc::new(DenyAll), ..OpenOptions::default() };
    assert_eq!(crate::open(&path, &closed).err().unwrap().kind(), ErrorKind::Denied);
}

#[test]
fn the_wrong_or_no_parent_is_an_error() {
    let folder = Folder::new();
    let path = folder.file("child.vhd", &Vhd::differencing(2 * MIB).bytes());
    let missing = open(&path).err().unwrap();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let hints = goldwire_stdx::Hints::hints(&missing);
    assert!(hints.iter().any(|hint| hint.contains("bring it back there")), "{hints:?}");
    folder.file("parent.vhd", &Vhd { uuid: *b"some other uuid!", ..Vhd::dynamic(2 * MIB) }.bytes());
    let error = open(&path).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(!error.hints().is_empty() && error.to_string().contains("another uuid"), "{error}");
}

#[test]
fn a_raw_parent_is_recorded_by_a_nil_uuid() {
    let folder = Folder::new();
    folder.file("parent.vhd", &[0x51; 4096]);
    let child = Vhd { parent_uuid: [0; 16], ..Vhd::differencing(2 * MIB) }.block(0, &[0x40], 0x52);
    let path = folder.file("child.vhd", &child.bytes());
    let image = open(&path).unwrap();
    let mut expected = vec![0x51; 4096];
    expected[512..1024].fill(0x52);
    expected.resize(2 << 20, 0);
    conformance_read(&*image.device, &expected);
    assert_eq!(image.chain[1].format, Format::Raw);
}

#[test]
fn loops_and_endless_chains_end() {
    let folder = Folder::new();
    // Its own parent, and two that name each other.
    let vhd = |uuid: [u8; 16], parent_uuid, parent: &str| Vhd {
        uuid,
        parent_uuid,
        locators: vec![(b"MacX", 512, format!("file://./{parent}").into_bytes())],
        parent_name: parent.to_owned(),
        ..Vhd::differencing(2 * MIB)
    };
    let path = folder.file("self.vhd", &vhd([1; 16], [1; 16], "self.vhd").bytes());
    assert_eq!(open(&path).err().unwrap().kind(), ErrorKind::Corrupt);
    folder.file("a.vhd", &vhd([2; 16], [3; 16], "b.vhd").bytes());
    let path = folder.file("b.vhd", &vhd([3; 16], [2; 16], "a.vhd").bytes());
    assert!(open(&path).err().unwrap().to_string().contains("loop"));
    for depth in 0..70_u8 {
        let name = format!("{depth}.vhd");
        folder.file(&name, &vhd([100 + depth; 16], [101 + depth; 16], &format!("{}.vhd", depth + 1)).bytes());
    }
    folder.file("70.vhd", &Vhd { uuid: [170; 16], ..Vhd::dynamic(2 * MIB) }.bytes());
    assert!(open(&folder.path("0.vhd")).err().unwrap().to_string().contains("more than 64"));
    assert_eq!(open(&folder.path("7.vhd")).unwrap().chain.len(), 64);
}

/// A level that is tried twice costs a chain 2^depth openings before it may say that its base is gone.
#[test]
fn a_missing_base_is_told_at_once() {
    let folder = Folder::new();
    for depth in 0..60_u8 {
        let parent = format!("{}.vhd", depth + 1);
        let vhd = Vhd {
            uuid: [100 + depth; 16],
            parent_uuid: [101 + depth; 16],
            // The first two exist and are not the parent.
            locators: vec![
                (b"MacX", 512, b"file://./decoy.vhd".to_vec()),
                (b"W2ru", 512, utf16le(".\\50.vhd")),
                (b"W2ku", 512, utf16le(&parent)),
            ],
            parent_name: parent,
            ..Vhd::differencing(2 * MIB)
        };
        folder.file(&format!("{depth}.vhd"), &vhd.bytes());
    }
    let decoy = Vhd { uuid: [1; 16], parent_uuid: [100; 16], ..Vhd::differencing(2 * MIB) };
    folder.file("decoy.vhd", &decoy.bytes());
    let error = open(&folder.path("0.vhd")).err().unwrap();
    assert!(error.path().ends_with("59.vhd"), "{error}");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "the decoys carry other uuids");
    folder.file("60.vhd", &Vhd { uuid: [160; 16], ..Vhd::dynamic(2 * MIB) }.bytes());
    assert_eq!(open(&folder.path("0.vhd")).unwrap().chain.len(), 61);
}

#[test]
fn the_first_tapdisk_numbered_bits_from_the_other_end() {
    let folder = Folder::new();
    let vhd = Vhd { creator: *b"tap\0", version: 1, ..Vhd::dynamic(2 * MIB) }.block(0, &[0x03], 0x61);
    let path = folder.file("a.vhd", &vhd.bytes());
    let got = content(&*open(&path).unwrap().device);
    assert!(got[..1024].iter().all(|&byte| byte == 0x61) && got[1024..].iter().all(|&byte| byte == 0));
}

#[test]
fn block_sizes_other_than_two_mebibytes() {
    for block_size in [512_u32, 4096, 512 << 10, 8 << 20] {
        let folder = Folder::new();
        let size = 3 * u64::from(block_size);
        let vhd = Vhd { block_size, entries: 3, ..Vhd::dynamic(size) };
        let bits = vec![0xff; (block_size as usize / 512).div_ceil(8)];
        let path = folder.file("a.vhd", &vhd.block(1, &bits, 0x71).bytes());
        let mut expected = vec![0; size as usize];
        expected[block_size as usize..2 * block_size as usize].fill(0x71);
        conformance_read(&*open(&path).unwrap().device, &expected);
    }
}

/// A chain that `vhd-util` wrote, in a folder that the environment names with the digest of its child:
/// `GOLDWIRE_VHD_CHAIN=folder/child.vhd:sha256`.
#[test]
fn a_chain_from_outside() {
    let Ok(named) = std::env::var("GOLDWIRE_VHD_CHAIN") else {
        return goldwire_stdx::testing::excuse(goldwire_stdx::testing::Excuse::NoForeignChain);
    };
    let (path, digest) = named.rsplit_once(':').unwrap();
    let folder = Folder::new();
    let image = open(Path::new(path)).unwrap();
    let raw = folder.file("raw", &content(&*image.device));
    let output = Command::new("sha256sum").arg(raw).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().starts_with(digest), "{path}");
    assert_eq!(crate::check(path, &OpenOptions::default()).unwrap(), []);
}
