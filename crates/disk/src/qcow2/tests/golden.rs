//! Images made by QEMU, judged against `qemu-img convert -O raw`.

use std::path::Path;

use goldwire_stdx::testing::some;

use super::*;
use crate::ErrorKind;
use crate::testing::conformance_read;

/// A disk with noise, text, holes and an odd end.
fn source(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut put = |at: usize, part: &[u8]| {
        let end = size.min(at + part.len());
        if at < end {
            bytes[at..end].copy_from_slice(&part[..end - at]);
        }
    };
    put(0, &noise(1, 100_000));
    put(300_000, &b"the same words again and again. ".repeat(20_000));
    put(1_500_000, &noise(2, 700));
    put(2 << 20, &noise(3, 400_000));
    put(3 << 20, &[7; 150_000]);
    put(size - 1000, &noise(4, 1000));
    bytes
}

/// What QEMU reads from the image.
fn judged(folder: &Path, name: &str) -> Vec<u8> {
    let _ = std::fs::remove_file(folder.join("judged.raw"));
    qemu_img(folder, &format!("convert -f qcow2 -O raw {name} judged.raw"));
    std::fs::read(folder.join("judged.raw")).unwrap()
}

fn assert_agrees(folder: &Path, name: &str) -> ImageInfo {
    let path = folder.join(name);
    let (device, info) = open_image(&path, Access::Read).unwrap();
    let judged = judged(folder, name);
    assert_holds(&*device, &judged);
    conformance_read(&*device, &judged);
    assert_eq!(check_image(&path).unwrap(), []);
    info
}

#[test]
fn every_version_and_cluster_size() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("source.raw"), source(5 * MIB as usize + 1536)).unwrap();
    let mut all = Vec::new();
    for cluster_size in [512, 1024, 4096, 65_536, 262_144, 2_097_152] {
        for (compat, flags) in [("0.10", ""), ("1.1", "-c "), ("0.10", "-c "), ("1.1", "")] {
            all.push((compat, cluster_size, flags));
        }
    }
    for (compat, cluster_size, flags) in some(&all) {
        let options = format!("compat={compat},cluster_size={cluster_size}");
        let name = format!("{compat}-{cluster_size}{}.qcow2", flags.trim());
        qemu_img(folder.path(), &format!("convert {flags}-f raw -O qcow2 -o {options} source.raw {name}"));
        let info = assert_agrees(folder.path(), &name);
        assert_eq!(info.size, 5 * MIB + 1536);
    }
}

#[test]
fn zstd_clusters() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("source.raw"), source(6 * MIB as usize)).unwrap();
    for cluster_size in [4096, 65_536, 2_097_152] {
        let options = format!("compression_type=zstd,cluster_size={cluster_size}");
        let name = format!("zstd-{cluster_size}.qcow2");
        qemu_img(folder.path(), &format!("convert -c -f raw -O qcow2 -o {options} source.raw {name}"));
        let info = assert_agrees(folder.path(), &name);
        assert!(info.details.contains(&("compression", "zstd".to_owned())));
    }
}

#[test]
fn zero_clusters_and_extents() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    qemu_img(folder.path(), "create -f qcow2 a.qcow2 1200M");
    let commands = [
        "write -P 0x11 0 256k",
        "write -z 64k 64k",
        "write -z 512k 128k",
        "write -z -u 128k 64k",
        "write -P 0x22 1100M 128k",
    ];
    qemu_io(folder.path(), "a.qcow2", &commands);
    let (device, _) = open_image(&folder.path().join("a.qcow2"), Access::Read).unwrap();
    let expected = [
        (0, CLUSTER, ExtentKind::Data),
        (CLUSTER, 2 * CLUSTER, ExtentKind::Zero),
        (3 * CLUSTER, CLUSTER, ExtentKind::Data),
        (4 * CLUSTER, 4 * CLUSTER, ExtentKind::Hole),
        (8 * CLUSTER, 2 * CLUSTER, ExtentKind::Zero),
        (10 * CLUSTER, 1100 * MIB - 10 * CLUSTER, ExtentKind::Hole),
        (1100 * MIB, 2 * CLUSTER, ExtentKind::Data),
        (1100 * MIB + 2 * CLUSTER, 100 * MIB - 2 * CLUSTER, ExtentKind::Hole),
    ];
    assert_eq!(extents(&*device), expected);
    let mut bytes = vec![0xee; 640 << 10];
    device.read_at(&mut bytes, 0).unwrap();
    let judged = judged(folder.path(), "a.qcow2");
    assert!(bytes == judged[..bytes.len()]);
    device.read_at(&mut bytes, 1100 * MIB - 1000).unwrap();
    let start = 1100 * MIB as usize - 1000;
    assert!(bytes == judged[start..start + bytes.len()]);
}

#[test]
fn a_table_without_entries_is_one_hole() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    qemu_img(folder.path(), "create -f qcow2 a.qcow2 1T");
    let (device, _) = open_image(&folder.path().join("a.qcow2"), Access::Read).unwrap();
    let extent = device.extent_at(5).unwrap();
    assert_eq!((extent.length, extent.kind), ((1 << 40) - 5, ExtentKind::Hole));
}

#[test]
fn backing_chain_of_three() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // The base is shorter than what lies over it, and ends inside a cluster.
    std::fs::write(folder.path().join("base.raw"), source(4 * MIB as usize + 512)).unwrap();
    for options in
        ["cluster_size=65536", "cluster_size=4096,compat=0.10", "cluster_size=65536,extended_l2=on"]
    {
        qemu_img(folder.path(), &format!("create -f qcow2 -F raw -b base.raw -o {options} middle.qcow2 6M"));
        qemu_io(
            folder.path(),
            "middle.qcow2",
            &["write -P 0x33 100k 5k", "write -z 1M 1M", "write -P 0x44 4095k 8k"],
        );
        qemu_img(
            folder.path(),
            &format!("create -f qcow2 -F qcow2 -b middle.qcow2 -o {options} top.qcow2 8M"),
        );
        qemu_io(
            folder.path(),
            "top.qcow2",
            &["write -P 0x55 1100k 9k", "write -P 0x66 7M 1k", "write -z 0 4k"],
        );
        let info = assert_agrees(folder.path(), "top.qcow2");
        assert!(info.details.contains(&("backing file", "middle.qcow2".to_owned())));
        assert!(info.details.contains(&("backing format", "qcow2".to_owned())));
        for name in ["middle.qcow2", "top.qcow2"] {
            std::fs::remove_file(folder.path().join(name)).unwrap();
        }
    }
}

/// A guest that owns a raw base could write a QCOW2 header to it. The claim `raw` must win over the content.
#[test]
fn a_claimed_raw_format_is_never_detected() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    qemu_img(folder.path(), "create -f qcow2 forged.img 1M");
    qemu_img(folder.path(), "create -f qcow2 -F raw -b forged.img top.qcow2 1M");
    let (device, _) = open_image(&folder.path().join("top.qcow2"), Access::Read).unwrap();
    let mut magic = [0; 4];
    device.read_at(&mut magic, 0).unwrap();
    assert_eq!(&magic, b"QFI\xfb");
}

#[test]
fn backing_names_that_are_no_paths() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("base.raw"), source(MIB as usize)).unwrap();
    let path = folder.path().join("a.qcow2");
    for (name, kind) in [("nbd://host/x", Some(ErrorKind::Unsupported)), ("file:base.raw", None)] {
        qemu_img(folder.path(), &format!("create -u -f qcow2 -F raw -b {name} a.qcow2 1M"));
        assert_eq!(open_image(&path, Access::Read).err().map(|e| e.kind()), kind);
        std::fs::remove_file(&path).unwrap();
    }
    qemu_img(folder.path(), "create -u -f qcow2 -F raw -b ../base.raw a.qcow2 1M");
    assert!(open_image(&path, Access::Read).is_err(), "the gate keeps the folder");
}

#[test]
fn extended_l2_entries() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("source.raw"), source(6 * MIB as usize)).unwrap();
    for cluster_size in [16_384, 131_072, 2_097_152] {
        let options = format!("extended_l2=on,cluster_size={cluster_size}");
        for flags in ["", "-c "] {
            let name = format!("extended-{cluster_size}{}.qcow2", flags.trim());
            qemu_img(
                folder.path(),
                &format!("convert {flags}-f raw -O qcow2 -o {options} source.raw {name}"),
            );
            let commands =
                ["write -P 0x77 1000k 3k", "write -z 2050k 40k", "write -P 0x78 2060k 1k", "discard 3M 1M"];
            qemu_io(folder.path(), &name, &commands);
            let info = assert_agrees(folder.path(), &name);
            assert!(info.details.contains(&("extended L2 entries", "yes".to_owned())));
        }
    }
}

#[test]
fn preallocated_metadata_and_odd_refcounts() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    qemu_img(folder.path(), "create -f qcow2 -o preallocation=metadata a.qcow2 7M");
    qemu_io(folder.path(), "a.qcow2", &["write -P 0x11 1M 1000"]);
    assert_agrees(folder.path(), "a.qcow2");
    for bits in [1, 2, 4, 8, 32, 64] {
        let name = format!("refcount-{bits}.qcow2");
        qemu_img(folder.path(), &format!("create -f qcow2 -o refcount_bits={bits} {name} 7M"));
        qemu_io(folder.path(), &name, &["write -P 0x11 1M 1000", "write -P 0x12 6M 300k"]);
        let info = assert_agrees(folder.path(), &name);
        assert!(info.details.contains(&("refcount bits", bits.to_string())));
    }
}

#[test]
fn internal_snapshots_are_ignored() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    qemu_img(folder.path(), "create -f qcow2 a.qcow2 4M");
    qemu_io(folder.path(), "a.qcow2", &["write -P 0x11 0 1M"]);
    qemu_img(folder.path(), "snapshot -c before a.qcow2");
    qemu_io(folder.path(), "a.qcow2", &["write -P 0x22 512k 1M"]);
    let path = folder.path().join("a.qcow2");
    let (device, info) = open_image(&path, Access::Read).unwrap();
    assert_holds(&*device, &judged(folder.path(), "a.qcow2"));
    assert!(info.details.contains(&("internal snapshots", "1, ignored".to_owned())));
    let findings = check_image(&path).unwrap();
    assert!(findings.iter().all(|finding| finding.severity == crate::Severity::Warning), "{findings:?}");
    assert_eq!(open_image(&path, Access::Write).err().map(|e| e.kind()), Some(ErrorKind::Unsupported));
}

#[test]
fn features_that_we_do_not_read_have_names() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    qemu_img(folder.path(), "create -f qcow2 -o data_file=a.data a.qcow2 1M");
    let error = open_image(&folder.path().join("a.qcow2"), Access::Read).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("external data file"), "{error}");
    let arguments = [
        "create",
        "--object",
        "secret,id=s,data=x",
        "-f",
        "qcow2",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        "b.qcow2",
        "1M",
    ];
    // QEMU measures how fast it derives keys, and gives up where its clock is too coarse for that: then it is asked again.
    let is_made = |_: &i32| run("qemu-img", folder.path(), &arguments).status.success();
    assert!((0..100).any(|attempt| is_made(&attempt)), "qemu-img makes no LUKS image");
    let error = open_image(&folder.path().join("b.qcow2"), Access::Read).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("LUKS"), "{error}");
}
