//! What `check` finds, beside what QEMU finds.

use super::*;
use crate::{ErrorKind, Severity};

/// An image of ours with one L2 table at cluster 4 and three clusters of data behind it.
fn image(folder: &Path) -> (std::path::PathBuf, Vec<u8>) {
    let path = folder.join("a.qcow2");
    let device = create_image(&path, 10 * MIB);
    device.write_at(&noise(1, 3 * CLUSTER as usize), MIB).unwrap();
    device.flush().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

fn put(bytes: &mut [u8], at: u64, value: &[u8]) {
    bytes[at as usize..at as usize + value.len()].copy_from_slice(value);
}

const COPIED: u64 = 1 << 63;
const REFCOUNTS: u64 = 2 * CLUSTER;
/// The L2 entries of the three clusters.
const ENTRIES: u64 = 4 * CLUSTER + 16 * 8;

#[test]
fn findings_agree_with_qemu() {
    let folder = tempfile::tempdir().unwrap();
    let (path, original) = image(folder.path());
    type Damage = fn(&mut Vec<u8>);
    let cases: &[(&str, Severity, Damage)] = &[
        ("leak", Severity::Warning, |b| put(b, ENTRIES, &[0; 8])),
        ("refcount 0, used 1", Severity::Error, |b| put(b, REFCOUNTS + 5 * 2, &[0, 0])),
        ("refcount 1, used 2", Severity::Error, |b| put(b, ENTRIES, &(COPIED | (6 * CLUSTER)).to_be_bytes())),
        ("copied flag is clear", Severity::Error, |b| put(b, ENTRIES, &(5 * CLUSTER).to_be_bytes())),
        ("reserved bit", Severity::Error, |b| put(b, ENTRIES, &(COPIED | (5 * CLUSTER) | 4).to_be_bytes())),
        ("behind the end", Severity::Error, |b| put(b, ENTRIES, &(COPIED | (99 * CLUSTER)).to_be_bytes())),
        ("used for something else", Severity::Error, |b| {
            put(b, ENTRIES, &(COPIED | (3 * CLUSTER)).to_be_bytes());
        }),
        ("overlaps the L2 table", Severity::Error, |b| {
            put(b, 24, &(700 * MIB).to_be_bytes());
            put(b, 36, &2u32.to_be_bytes());
            let entry = b[3 * CLUSTER as usize..][..8].to_vec();
            put(b, 3 * CLUSTER + 8, &entry);
        }),
        ("no place inside the file", Severity::Error, |b| put(b, CLUSTER, &(77 * CLUSTER).to_be_bytes())),
        ("cluster_bits", Severity::Error, |b| put(b, 20, &30u32.to_be_bytes())),
    ];
    for (words, severity, damage) in cases {
        let mut bytes = original.clone();
        damage(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let findings = check_image(&path).unwrap();
        let is_named = |finding: &Finding| {
            let text = format!("{}: {}", finding.field, finding.message);
            text.contains(words) && finding.severity == *severity
        };
        assert!(findings.iter().any(is_named), "{words}: {findings:?}");
        if has_qemu() {
            let (code, text) = qemu_check(&path);
            assert_ne!(code, 0, "{words}: {text}");
        }
    }
}

#[test]
fn flags_are_findings() {
    let folder = tempfile::tempdir().unwrap();
    let (path, mut bytes) = image(folder.path());
    for (flags, severity) in [(1u64, Severity::Warning), (2, Severity::Error)] {
        put(&mut bytes, 72, &flags.to_be_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let findings = check_image(&path).unwrap();
        assert_eq!(findings.iter().map(|finding| finding.severity).collect::<Vec<_>>(), [severity]);
        assert!(findings[0].message.contains("marked as"));
    }
}

/// QEMU does not look behind the end of the file.
#[test]
fn refcounts_behind_the_end_are_leaks() {
    let folder = tempfile::tempdir().unwrap();
    let (path, mut bytes) = image(folder.path());
    put(&mut bytes, REFCOUNTS + 20_000, &[0, 1]);
    std::fs::write(&path, &bytes).unwrap();
    let findings = check_image(&path).unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(
        findings[0].message.starts_with("leak: 1 clusters") && findings[0].offset == Some(10_000 * CLUSTER)
    );
}

/// A file of 3 TiB, almost all of it hole: too many clusters to count, and a lie about where the table is.
#[test]
fn too_large_to_count() {
    let folder = tempfile::tempdir().unwrap();
    let (path, _) = image(folder.path());
    File::options().write(true).open(&path).unwrap().set_len(3 << 40).unwrap();
    let findings = check_image(&path).unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].severity, Severity::Warning);
    assert!(findings[0].message.contains("only the structure"));
}

/// Thousands of contradictions are not thousands of findings.
#[test]
fn findings_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let (path, mut bytes) = image(folder.path());
    for entry in 0..8192 {
        put(&mut bytes, 4 * CLUSTER + entry * 8, &(COPIED | (99 * CLUSTER)).to_be_bytes());
    }
    std::fs::write(&path, &bytes).unwrap();
    let findings = check_image(&path).unwrap();
    assert!(findings.len() <= 101, "{}", findings.len());
}

/// A file that ends early is never a disk with zeros at the end, and `check` says so. The judge is what the whole image
/// holds.
#[test]
fn a_cut_image_is_an_error_wherever_it_is_cut() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let read = || -> Result<Vec<u8>> {
        let (device, _) = open_image(&path, Access::Read)?;
        let mut bytes = vec![0; device.size() as usize];
        device.read_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    let mut raw = vec![0; 3 * MIB as usize + 1536];
    for start in [0, MIB as usize, raw.len() - 100_000] {
        raw[start..start + 100_000].copy_from_slice(&noise(start as u64, 100_000));
    }
    std::fs::write(folder.path().join("a.raw"), &raw).unwrap();
    for (options, then) in [
        ("", &[][..]),
        ("-c", &[]),
        ("-o extended_l2=on,cluster_size=64k", &[]),
        ("", &["bitmap --add a.qcow2 b"]),
        ("", &["snapshot -c s a.qcow2"]),
    ] {
        let convert = format!("convert -f raw -O qcow2 {options} a.raw a.qcow2");
        qemu_img(folder.path(), &convert.split_whitespace().collect::<Vec<_>>().join(" "));
        for command in then {
            qemu_img(folder.path(), command);
        }
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(read().unwrap(), raw);
        let mut errors = 0;
        let length = whole.len() as u64;
        for cut in [1, 511, 512, 2000, 4096, 40_000, CLUSTER, CLUSTER + 1, 2 * CLUSTER, length / 2] {
            std::fs::write(&path, &whole[..(length - cut) as usize]).unwrap();
            match read() {
                // Compressed bytes and the last cluster's padding may be cut off.
                Ok(bytes) => assert!(bytes == raw, "{options} {then:?}: {cut} bytes less"),
                Err(error) => {
                    errors += 1;
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                    let findings = check_image(&path).unwrap();
                    let is_told = findings.iter().any(|finding| finding.severity == Severity::Error);
                    assert!(is_told, "{options} {then:?}: {cut} bytes less: {error}; check is silent");
                }
            }
        }
        assert!(errors >= 3, "{options} {then:?}: {errors}");
        if !then.is_empty() {
            std::fs::write(&path, &whole[..(length - 512) as usize]).unwrap();
            let error = read().unwrap_err();
            assert!(error.to_string().contains("cut"), "what lies at the end is gone: {error}");
        }
    }
}
