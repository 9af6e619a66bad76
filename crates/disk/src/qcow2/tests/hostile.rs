//! Damaged and forged images: an error or some data, but no panic, no endless work, no large allocation.

use std::path::PathBuf;

use goldwire_stdx::Hints as _;
use goldwire_stdx::testing::cases;

use super::*;
use crate::qcow2::header::Header;
use crate::qcow2::tables::{Geometry, InSpan};
use crate::{Error, ErrorKind};

/// A small image with data in two tables.
fn ours(folder: &Path) -> PathBuf {
    let path = folder.join("ours.qcow2");
    let device = create_image(&path, 700 * MIB);
    device.write_at(&noise(1, 200_000), 5).unwrap();
    device.write_at(&noise(2, 1000), 600 * MIB).unwrap();
    device.flush().unwrap();
    path
}

/// Does everything that can be done with an image, for a bounded time.
fn exercise(path: &Path) {
    let _ = check_image(path);
    for access in [Access::Read, Access::Write] {
        let Ok((device, _)) = open_image(path, access) else { continue };
        let mut at = 0;
        let mut bytes = vec![0; 100_000];
        for _ in 0..200 {
            let Ok(extent) = device.extent_at(at) else { break };
            let length = (device.size() - at).min(bytes.len() as u64) as usize;
            let _ = device.read_at(&mut bytes[..length], at);
            at += extent.length;
            if at >= device.size() {
                break;
            }
        }
        if access == Access::Write && device.size() > 0 {
            let length = device.size().min(150_000);
            let _ = device.write_at(&vec![1; length as usize], device.size() - length);
            let _ = device.flush();
        }
    }
}

/// Flips bytes of the header and of the tables.
fn damage(original: &[u8], path: &Path, seed: u64, tables: &[(usize, usize)]) {
    let mut bytes = original.to_vec();
    let random = noise(seed, 64);
    for pick in random.chunks_exact(8).take(1 + (seed % 4) as usize) {
        let (start, length) = tables[pick[0] as usize % tables.len()];
        let at = start + usize::from(u16::from_le_bytes([pick[1], pick[2]])) % length;
        let value = match pick[3] % 4 {
            0 => 0xff,
            1 => 0,
            2 => pick[4],
            _ => bytes.get(at).copied().unwrap_or(0) ^ (1 << (pick[4] % 8)),
        };
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
    }
    if seed.is_multiple_of(50) {
        bytes.truncate(usize::from(u16::from_le_bytes([random[60], random[61]])) * bytes.len() / 65_536);
    }
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn damaged_images_of_ours() {
    let folder = tempfile::tempdir().unwrap();
    let original = std::fs::read(ours(folder.path())).unwrap();
    let cluster = CLUSTER as usize;
    // The header, the refcount table, the first refcount block, the L1 table, an L2 table's beginning.
    let tables = [(0, 112), (cluster, 16), (2 * cluster, 32), (3 * cluster, 16), (4 * cluster, 40)];
    let path = folder.path().join("damaged.qcow2");
    for seed in 0..u64::from(cases(300)) {
        damage(&original, &path, seed, &tables);
        exercise(&path);
    }
}

#[test]
fn damaged_images_of_qemu() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut source = noise(5, 300_000);
    source.resize(900_000, 3);
    std::fs::write(folder.path().join("source.raw"), source).unwrap();
    for options in [
        "cluster_size=512",
        "cluster_size=4096,compat=0.10",
        "cluster_size=16384,extended_l2=on",
        "cluster_size=4096,compression_type=zstd",
        "cluster_size=2097152",
    ] {
        for flags in ["", "-c "] {
            qemu_img(
                folder.path(),
                &format!("convert {flags}-f raw -O qcow2 -o {options} source.raw a.qcow2"),
            );
            let original = std::fs::read(folder.path().join("a.qcow2")).unwrap();
            let header = Header::parse(&original, folder.path()).unwrap();
            let l1 = header.l1_offset as usize;
            let l2 = u64::from_be_bytes(*original[l1..].first_chunk().unwrap()) & 0xff_ffff_fe00;
            let refcounts = header.refcount_table_offset as usize;
            let tables = [(0, 112), (l1, 64), (l2 as usize, 256), (refcounts, 16)];
            let path = folder.path().join("damaged.qcow2");
            for seed in 0..u64::from(cases(30)) {
                damage(&original, &path, seed, &tables);
                exercise(&path);
            }
        }
    }
}

/// What a changed header field is answered with.
fn with_field(original: &[u8], at: usize, value: &[u8]) -> Result<Header, Error> {
    let mut bytes = original.to_vec();
    bytes[at..at + value.len()].copy_from_slice(value);
    Header::parse(&bytes, Path::new("x"))
}

#[test]
fn header_fields_out_of_their_limits() {
    let folder = tempfile::tempdir().unwrap();
    let original = std::fs::read(ours(folder.path())).unwrap();
    let cases: &[(&str, usize, &[u8], ErrorKind)] = &[
        ("magic", 0, b"QFI\0", ErrorKind::Corrupt),
        ("version 4", 4, &4u32.to_be_bytes(), ErrorKind::Unsupported),
        ("cluster_bits", 20, &8u32.to_be_bytes(), ErrorKind::Corrupt),
        ("cluster_bits", 20, &22u32.to_be_bytes(), ErrorKind::Corrupt),
        ("cluster_bits", 20, &u32::MAX.to_be_bytes(), ErrorKind::Corrupt),
        ("l1_size", 24, &u64::MAX.to_be_bytes(), ErrorKind::Corrupt),
        ("encryption method 7", 32, &7u32.to_be_bytes(), ErrorKind::Unsupported),
        ("l1_size", 36, &u32::MAX.to_be_bytes(), ErrorKind::Corrupt),
        ("l1_size", 36, &0u32.to_be_bytes(), ErrorKind::Corrupt),
        ("l1_table_offset", 40, &512u64.to_be_bytes(), ErrorKind::Corrupt),
        ("l1_table_offset", 40, &(u64::MAX << 16).to_be_bytes(), ErrorKind::Corrupt),
        ("refcount_table_offset", 48, &1u64.to_be_bytes(), ErrorKind::Corrupt),
        ("refcount_table_clusters", 56, &u32::MAX.to_be_bytes(), ErrorKind::Corrupt),
        ("refcount_table_clusters", 56, &0u32.to_be_bytes(), ErrorKind::Corrupt),
        ("external data file", 72, &4u64.to_be_bytes(), ErrorKind::Unsupported),
        ("compression_type", 72, &8u64.to_be_bytes(), ErrorKind::Corrupt),
        ("feature bit 5", 72, &32u64.to_be_bytes(), ErrorKind::Unsupported),
        ("feature bit 63", 72, &(1u64 << 63).to_be_bytes(), ErrorKind::Unsupported),
        ("refcount_order", 96, &7u32.to_be_bytes(), ErrorKind::Corrupt),
        ("header_length", 100, &100u32.to_be_bytes(), ErrorKind::Corrupt),
        ("header_length", 100, &(u32::MAX - 7).to_be_bytes(), ErrorKind::Corrupt),
        ("header extension", 104, &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff], ErrorKind::Corrupt),
    ];
    for (words, at, value, kind) in cases {
        let error = with_field(&original, *at, value).unwrap_err();
        assert_eq!(error.kind(), *kind, "{error}");
        assert!(error.to_string().contains(words), "{error} does not name {words}");
    }
    let name_at = |offset: u64, length: u32| {
        let mut field = offset.to_be_bytes().to_vec();
        field.extend(length.to_be_bytes());
        with_field(&original, 8, &field)
    };
    for (offset, length) in [(200, 1024), (CLUSTER * 50, 4), (u64::MAX, 1023), (200, 5)] {
        assert_eq!(name_at(offset, length).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

/// The dirty bit does not keep anybody from reading, the corrupt bit neither; nobody writes.
#[test]
fn flagged_images_are_readable() {
    let folder = tempfile::tempdir().unwrap();
    let path = ours(folder.path());
    let original = std::fs::read(&path).unwrap();
    for (bits, detail, kind) in [(1u64, "dirty", ErrorKind::Unsupported), (2, "corrupt", ErrorKind::Corrupt)]
    {
        let mut bytes = original.clone();
        bytes[72..80].copy_from_slice(&bits.to_be_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let (device, info) = open_image(&path, Access::Read).unwrap();
        let mut data = vec![0; 200_000];
        device.read_at(&mut data, 5).unwrap();
        assert!(data == noise(1, 200_000));
        assert!(info.details.iter().any(|(name, _)| *name == detail));
        let error = open_image(&path, Access::Write).err().unwrap();
        assert_eq!(error.kind(), kind);
        assert!(!error.hints().is_empty());
    }
}

#[test]
fn bad_entries_name_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = ours(folder.path());
    let original = std::fs::read(&path).unwrap();
    let l1 = 3 * CLUSTER as usize;
    let l2 = 4 * CLUSTER as usize;
    let cases: &[(&str, usize, u64)] = &[
        ("L1 entry", l1, 5 << 16 | 1),
        ("L1 entry", l1, 1 << 56 | 4 << 16),
        ("L1 entry", l1, 0x1200),
        ("L1 entry", l1, 1 << 40),
        ("L2 entry", l2, 1 << 62 | 1 << 50),
        ("L2 entry", l2, 5 << 16 | 2),
        ("L2 entry", l2, 5 << 16 | 512),
        ("L2 entry", l2, 1 << 40),
        ("L2 entry", l2, 1 << 57),
    ];
    for (field, at, entry) in cases {
        let mut bytes = original.clone();
        bytes[*at..*at + 8].copy_from_slice(&entry.to_be_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let (device, _) = open_image(&path, Access::Read).unwrap();
        let error = device.read_at(&mut [0; 512], 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(&format!("{field} at byte {at}:")), "{error}");
        assert!(device.extent_at(0).is_err());
        assert!(open_image(&path, Access::Write).is_err());
        assert!(!check_image(&path).unwrap().is_empty());
    }
}

/// An L2 table of noise never leads out of the cluster that is asked about.
#[test]
fn noise_is_mapped_within_bounds() {
    for (bits, is_extended) in [(9, false), (16, false), (21, false), (14, true), (21, true)] {
        let geometry = Geometry::new(bits, is_extended, 3).unwrap();
        let table = noise(u64::from(bits), geometry.cluster_size() as usize);
        for pick in noise(9, 8000).chunks_exact(8) {
            let within = u64::from_le_bytes(*pick.first_chunk().unwrap()) % geometry.table_span();
            if let Ok(run) = geometry.run(&table, InSpan(within), u64::MAX) {
                assert!(run.length > 0 && run.length <= geometry.table_span() - within);
            }
        }
    }
}

/// A file of 384 KiB was a terabyte of data to read.
#[test]
fn one_table_does_not_stand_for_many() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let device = create_image(&path, 1 << 40);
    device.write_at(&noise(1, 1000), 0).unwrap();
    device.flush().unwrap();
    let header = Header::parse(&std::fs::read(&path).unwrap()[..CLUSTER as usize], &path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let l1 = header.l1_offset as usize;
    let first = bytes[l1..l1 + 8].to_vec();
    for entry in bytes[l1 + 8..l1 + header.l1_bytes() as usize].chunks_exact_mut(8) {
        entry.copy_from_slice(&first);
    }
    std::fs::write(&path, &bytes).unwrap();
    let error = open_image(&path, Access::Read).err().unwrap();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("L2 table"), "{error}");
    // Two are as wrong as all.
    for entry in bytes[l1 + 8..l1 + header.l1_bytes() as usize - 8].chunks_exact_mut(8) {
        entry.fill(0);
    }
    std::fs::write(&path, &bytes).unwrap();
    assert!(open_image(&path, Access::Read).is_err());
    bytes[l1 + header.l1_bytes() as usize - 8..l1 + header.l1_bytes() as usize].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    open_image(&path, Access::Read).unwrap();
}
