//! What an image tells whoever reads it from end to end is never more than its file holds.

use std::path::PathBuf;

use goldwire_stdx::testing::cases;
use proptest::prelude::*;

use super::*;
use crate::qcow2::header::{Compression, Header};
use crate::qcow2::tables::Geometry;
use crate::{ErrorKind, Severity};

/// Bytes of a cluster here, and clusters of the guest that one table maps.
const SMALL: u64 = 512;
const PER_TABLE: u64 = SMALL / 8;

/// An image of small clusters in `folder`: what each cluster of the guest names, as a number of `clusters` clusters of
/// data.
fn image(folder: &Path, names: &[Option<u64>], clusters: u64) -> PathBuf {
    let size = names.len() as u64 * SMALL;
    let tables = (names.len() as u64).div_ceil(PER_TABLE);
    let l1_clusters = (tables * 8).div_ceil(SMALL);
    let header = Header {
        version: 3,
        geometry: Geometry::new(9, false, 3).unwrap(),
        size,
        refcount_order: 4,
        l1_entries: tables as u32,
        l1_offset: SMALL,
        refcount_table_offset: SMALL * (1 + l1_clusters),
        refcount_table_clusters: 1,
        backing_name: None,
        backing_format: None,
        snapshot_count: 0,
        incompatible: 0,
        autoclear: 0,
        has_bitmaps: false,
        compression: Compression::Deflate,
        unread: Vec::new(),
    };
    let first_table = 2 + l1_clusters;
    let first_data = first_table + tables;
    let mut file = vec![0; ((first_data + clusters) * SMALL) as usize];
    let mut put = |at: u64, bytes: &[u8]| file[at as usize..][..bytes.len()].copy_from_slice(bytes);
    put(0, &header.encode_plain());
    for table in 0..tables {
        put(SMALL + table * 8, &((first_table + table) * SMALL).to_be_bytes());
    }
    for (guest, name) in names.iter().enumerate() {
        if let Some(name) = name {
            put(first_table * SMALL + guest as u64 * 8, &((first_data + name) * SMALL).to_be_bytes());
        }
    }
    put(first_data * SMALL, &noise(clusters, (clusters * SMALL) as usize));
    let path = folder.join("a.qcow2");
    std::fs::write(&path, file).unwrap();
    path
}

/// The bytes of data that a walk from end to end is told, and the error that ended it.
fn told(device: &dyn BlockDevice) -> (u64, Option<crate::Error>) {
    let (mut at, mut told) = (0, 0);
    while at < device.size() {
        match device.extent_at(at) {
            Ok(extent) => {
                told += if extent.kind == ExtentKind::Data { extent.length } else { 0 };
                at += extent.length;
            }
            Err(error) => return (told, Some(error)),
        }
    }
    (told, None)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(200)))]

    /// Whatever the entries name: no walk is told more than the file holds, one that nobody shares in is told all, and
    /// where a walk ends the check says so.
    #[test]
    fn no_walk_is_told_more_than_the_file_holds(
        names in proptest::collection::vec(proptest::option::of(0u64..1000), 1..700),
        clusters in 1u64..1000,
        is_shared: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let mut next = 0..;
        let names: Vec<Option<u64>> = match is_shared {
            true => names.iter().map(|name| name.map(|name| name % clusters)).collect(),
            false => names.iter().map(|name| name.and_then(|_| next.next())).collect(),
        };
        let clusters = clusters.max(next.start);
        let path = image(folder.path(), &names, clusters);
        let length = path.metadata().unwrap().len();
        let (device, _) = open_image(&path, Access::Read).unwrap();
        let (told, error) = told(&*device);
        prop_assert!(told <= length, "{told} bytes of a file of {length}");
        let claimed = names.iter().flatten().count() as u64 * SMALL;
        if is_shared {
            prop_assert_eq!(error.is_some(), claimed > length);
        } else {
            prop_assert!(error.is_none() && told == claimed, "{:?}", error.map(|error| error.to_string()));
        }
        let findings = check_image(&path).unwrap();
        let is_found = |severity, words: &str| {
            findings.iter().any(|finding| finding.severity == severity && finding.message.contains(words))
        };
        if let Some(error) = error {
            prop_assert_eq!(error.kind(), ErrorKind::Corrupt);
            prop_assert!(is_found(Severity::Error, "several places of the disk"));
        }
        let mut distinct: Vec<u64> = names.iter().flatten().copied().collect();
        let all = distinct.len();
        distinct.sort_unstable();
        distinct.dedup();
        prop_assert_eq!(is_found(Severity::Warning, "something else names too"), distinct.len() < all);
    }
}

/// The least that a compressed cluster can take is what QEMU makes of zeros, or less: no sound image is refused.
#[test]
fn what_compresses_best_is_read() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // One byte over and over: QEMU leaves zeros out.
    std::fs::write(folder.path().join("same.raw"), vec![7; 16 << 20]).unwrap();
    for options in [
        "cluster_size=512",
        "cluster_size=65536",
        "cluster_size=2097152",
        "cluster_size=4096,compression_type=zstd",
        "cluster_size=2097152,compression_type=zstd",
        "cluster_size=2097152,compression_type=zstd,extended_l2=on",
    ] {
        qemu_img(folder.path(), &format!("convert -c -f raw -O qcow2 -o {options} same.raw a.qcow2"));
        let (device, _) = open_image(&folder.path().join("a.qcow2"), Access::Read).unwrap();
        assert_eq!(told(&*device).1.map(|error| error.to_string()), None, "{options}");
        assert!(read_all(&*device).iter().all(|byte| *byte == 7), "{options}");
    }
}

/// Space that was only reserved is no data, whatever the file system says of its length.
#[test]
fn what_was_only_preallocated_is_no_data() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    qemu_img(folder.path(), "create -f qcow2 -o preallocation=metadata a.qcow2 64M");
    let (device, _) = open_image(&folder.path().join("a.qcow2"), Access::Read).unwrap();
    let (told, _) = told(&*device);
    if told == 64 * MIB {
        return goldwire_stdx::testing::excuse(goldwire_stdx::testing::Excuse::NoHoles);
    }
    assert!(told <= MIB, "{told}");
    assert!(read_all(&*device).iter().all(|byte| *byte == 0));
}
