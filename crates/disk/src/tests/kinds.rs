//! What a file is, is known before it is used: recognised formats are named, a name that promises another container is
//! an error unless the format is named, a truncated file is not a smaller disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use goldwire_stdx::{Hints as _, Uuid, testing};
use proptest::prelude::*;

use crate::content::FOREIGN;
use crate::testing::pattern;
use crate::{CreateOptions, ErrorKind, Format, OpenOptions, Promise, children, create, detect, open};

const SIZE: u64 = 5 << 20;

/// A disk whose last bytes are not zero, so that nothing of it can be missed.
fn content() -> Vec<u8> {
    let mut content = vec![0; SIZE as usize];
    for (seed, start) in [(1, 0), (2, 2 << 20), (3, SIZE - 70_000)] {
        content[start as usize..start as usize + 70_000].copy_from_slice(&pattern(seed, start, 70_000));
    }
    content
}

/// The bytes of a file of `format` that holds [`content`].
fn file_of(format: Format) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let disk = create(&path, &CreateOptions { format, size: SIZE, uuid: Uuid([7; 16]), created: 0 }).unwrap();
    let content = content();
    for start in [0, 2 << 20, SIZE - 70_000] {
        disk.write_at(&content[start as usize..start as usize + 70_000], start).unwrap();
    }
    disk.flush().unwrap();
    fs::read(&path).unwrap()
}

/// Everything that the image at `path` shows its guest; an error at any step is one.
fn read(path: &Path, format: Option<Format>) -> crate::Result<(Format, Vec<u8>)> {
    let image = open(path, &OpenOptions { format, ..OpenOptions::default() })?;
    let mut bytes = vec![0; image.device.size() as usize];
    for (index, piece) in bytes.chunks_mut(300_000).enumerate() {
        image.device.read_at(piece, index as u64 * 300_000)?;
    }
    Ok((image.info.format, bytes))
}

const NAMES: [&str; 12] = [
    "a", "a.img", "a.raw", "a.vhd", "a.AVHD", "a.qcow2", "a.vmdk", "a.vdi", "a.vhdx", "a.gz", "a.tar",
    "a.bak",
];

fn is_vhd(format: Format) -> bool {
    matches!(format, Format::VhdFixed | Format::VhdDynamic)
}

/// What was done to the file.
#[derive(Clone, Debug)]
enum Harm {
    Nothing,
    CutTo(usize),
    ZerosBehind(usize),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        2 => Just(Harm::Nothing),
        // From one sector on: of what is shorter no mark is left.
        3 => (512..1000_usize).prop_map(Harm::CutTo),
        1 => prop_oneof![1..5000_usize, Just(512), Just(1 << 20)].prop_map(Harm::ZerosBehind),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(testing::cases(300)))]
    /// The judge is the content that was written and the bytes of the file, and no code of ours.
    #[test]
    fn what_is_read_is_the_disk_or_what_the_user_named_or_nothing(
        format in prop_oneof![
            Just(Format::Raw), Just(Format::VhdFixed), Just(Format::VhdDynamic), Just(Format::Qcow2)
        ],
        name in proptest::sample::select(NAMES.to_vec()),
        option in proptest::sample::select(vec![
            None, Some(Format::Raw), Some(Format::VhdDynamic), Some(Format::Qcow2)
        ]),
        harm in harm(),
    ) {
        thread_local! {
            static FILES: [(Format, Vec<u8>); 4] =
                [Format::Raw, Format::VhdFixed, Format::VhdDynamic, Format::Qcow2].map(|f| (f, file_of(f)));
        }
        let mut bytes = FILES.with(|files| files.iter().find(|(f, _)| *f == format).unwrap().1.clone());
        match harm {
            Harm::Nothing => {}
            // Anywhere: a thousandth of the length at a time.
            Harm::CutTo(part) => bytes.truncate((bytes.len() - 1) * part / 1000 + usize::from(part < 2)),
            Harm::ZerosBehind(length) => bytes.resize(bytes.len() + length, 0),
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, &bytes).unwrap();
        let read = read(&path, option);
        match option {
            // Whoever names raw gets the file's bytes, whatever they are.
            Some(Format::Raw) => prop_assert_eq!(read.unwrap().1, bytes),
            Some(named) => {
                let is_named = named == format || (is_vhd(named) && is_vhd(format));
                match (is_named, matches!(harm, Harm::Nothing)) {
                    (true, true) => prop_assert_eq!(read.unwrap(), (format, content())),
                    (true, false) => prop_assert!(read.is_err() || read.unwrap().1 == content()),
                    (false, _) => prop_assert!(read.is_err()),
                }
            }
            None => {
                let promise = Promise::of(&path);
                let is_kept = promise.is_none_or(|promise| promise.is_kept_by(format));
                // The only mark of a fixed VHD lies at its end. Without it, and under a name that promises nothing,
                // nobody can tell it from a raw disk; nor a part of a raw disk from the whole.
                let has_no_mark = format == Format::Raw
                    || (format == Format::VhdFixed && !matches!(harm, Harm::Nothing));
                if has_no_mark && promise.is_none_or(|promise| promise == Promise::Raw) {
                    prop_assert_eq!(read.unwrap(), (Format::Raw, bytes));
                } else if !is_kept {
                    let error = read.unwrap_err();
                    prop_assert!(!error.hints().is_empty());
                } else if matches!(harm, Harm::Nothing) {
                    prop_assert_eq!(read.unwrap(), (format, content()));
                } else {
                    prop_assert!(read.is_err() || read.unwrap() == (format, content()));
                }
            }
        }
    }
}

/// A file of every foreign kind in [`FOREIGN`] is refused by its name under every name, and read as raw by whoever says
/// so.
#[test]
fn every_known_magic_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    for (at, bytes, foreign) in FOREIGN {
        let mut file = pattern(9, 0, 70_000);
        file[0] = 0xeb;
        if foreign.what.contains("bzip2") {
            file[..4].copy_from_slice(b"BZh9");
        }
        file[*at..at + bytes.len()].copy_from_slice(bytes);
        for name in NAMES {
            let path = folder.path().join(name);
            fs::write(&path, &file).unwrap();
            let error = detect(&path).unwrap_err();
            assert!(error.to_string().contains(foreign.what), "{name}: {error}, not {}", foreign.what);
            assert!(error.hints().len() >= 2, "{error}");
            assert!(open(&path, &OpenOptions::default()).is_err());
            assert!(crate::check(&path, &OpenOptions::default()).is_err());
            assert_eq!(read(&path, Some(Format::Raw)).unwrap().1, file);
        }
    }
}

/// Files made by the programs that people use.
#[test]
fn what_other_programs_make_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("disk.raw");
    fs::write(&raw, content()).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let Some(program) = testing::program(program) else { return false };
        let output = Command::new(program).current_dir(folder.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        true
    };
    let refused = |name: &str, word: &str| {
        // Also under a name that says nothing, as it lies in many an image library.
        let plain = folder.path().join("plain");
        fs::copy(folder.path().join(name), &plain).unwrap();
        for path in [folder.path().join(name), plain] {
            let error = detect(&path).unwrap_err();
            assert!(error.to_string().contains(word), "{name}: {error}");
            assert!([ErrorKind::Unsupported, ErrorKind::Invalid].contains(&error.kind()), "{error}");
        }
    };
    for (format, options, word) in [
        ("vmdk", "subformat=monolithicSparse", "VMDK"),
        ("vmdk", "subformat=streamOptimized", "VMDK"),
        ("vmdk", "subformat=monolithicFlat", "VMDK"),
        ("vmdk", "subformat=twoGbMaxExtentSparse", "VMDK"),
        ("vdi", "static=off", "VDI"),
        ("vdi", "static=on", "VDI"),
        ("vhdx", "subformat=dynamic", "VHDX"),
        ("vhdx", "subformat=fixed", "VHDX"),
        ("qed", "cluster_size=65536", "QED"),
        ("qcow", "encryption=off", "QCOW"),
        ("parallels", "cluster_size=1048576", "Parallels"),
    ] {
        let name = format!("win.{format}");
        let arguments = ["convert", "-f", "raw", "-O", format, "-o", options, "disk.raw", &name];
        if run("qemu-img", &arguments) {
            refused(&name, word);
            fs::remove_file(folder.path().join(&name)).unwrap();
        }
    }
    for (program, arguments, name, word) in [
        ("gzip", &["-k", "disk.raw"][..], "disk.raw.gz", "gzip"),
        ("xz", &["-k0", "disk.raw"], "disk.raw.xz", "xz"),
        ("xz", &["-k0", "--format=lzma", "disk.raw"], "disk.raw.lzma", "lzma"),
        ("zstd", &["-qk", "disk.raw"], "disk.raw.zst", "zstd"),
        ("bzip2", &["-k", "disk.raw"], "disk.raw.bz2", "bzip2"),
        ("tar", &["-cf", "disk.tar", "disk.raw"], "disk.tar", "tar archive"),
        ("tar", &["--format=v7", "-cf", "old.tar", "disk.raw"], "old.tar", "tar archive"),
        ("tar", &["--format=pax", "-cf", "pax.tar", "disk.raw"], "pax.tar", "tar archive"),
    ] {
        if run(program, arguments) {
            refused(name, word);
        }
    }
    for (first, word) in [("ova.xml", "XVA"), ("win.ovf", "OVA")] {
        fs::write(folder.path().join(first), "<a/>").unwrap();
        if run("tar", &["-cf", "machine", first, "disk.raw"]) {
            refused("machine", word);
        }
    }
}

#[test]
fn text_and_nothing_are_no_disks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.img");
    let long = "A line that somebody wrote.\n".repeat(400);
    for (bytes, word) in [
        (&b""[..], "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "HTML"),
        (b"\xef\xbb\xbf  \r\n<HTML>\0", "HTML"),
        (b"# Disk DescriptorFile\nversion=1\n\0", "VMDK"),
        (b"  # disk descriptorfile", "VMDK"),
        (b"{\"message\":\"Not Found\"}", "text"),
        (b"x", "text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "text"),
        (b"\xff\xfen\0o\0t\0 \0h\0e\0r\0e\0", "text"),
        ("Diese Seite gibt es nicht: für Bücher".as_bytes(), "text"),
        (long.as_bytes(), "text"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = detect(&path).unwrap_err();
        assert!(error.to_string().contains(word), "{error}, not {word}");
        assert_eq!(read(&path, Some(Format::Raw)).unwrap().1, bytes);
    }
    // What real raw disks begin with, and patterns that tests of disks write.
    let mut boot = vec![0; 4096];
    boot[..3].copy_from_slice(b"\xeb\x63\x90");
    boot[510..512].copy_from_slice(b"\x55\xaa");
    let ext4 = [&[0; 1024][..], &[1; 3000]].concat();
    for bytes in [boot, ext4, vec![0; 512], vec![0xaa; 4096], vec![b'B'; 4096], pattern(5, 0, 9000)] {
        fs::write(&path, &bytes).unwrap();
        assert_eq!(detect(&path).unwrap(), Format::Raw, "{:?}", &bytes[..8]);
    }
}

/// Whoever owns the disk inside writes a header of another format to the end that is his. The name decides, and a name
/// that does not is an error.
#[test]
fn a_guest_does_not_choose_how_its_disk_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let mut fixed = file_of(Format::VhdFixed);
    fixed[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    fs::write(path("a.vhd"), &fixed).unwrap();
    assert_eq!(detect(path("a.vhd")).unwrap(), Format::VhdFixed);
    for name in ["a", "a.img", "a.raw", "a.vmdk"] {
        fs::write(path(name), &fixed).unwrap();
        let error = detect(path(name)).unwrap_err();
        assert!(error.to_string().contains("ends like a VHD") && error.hints().len() == 3, "{error}");
    }
    // A foreign head inside a fixed VHD is the guest's own business.
    fixed[..8].copy_from_slice(b"LUKS\xba\xbe\0\x02");
    fs::write(path("b.vhd"), &fixed).unwrap();
    assert_eq!(detect(path("b.vhd")).unwrap(), Format::VhdFixed);

    let footer = fixed[fixed.len() - 512..].to_vec();
    let qcow2 = [file_of(Format::Qcow2), footer.clone()].concat();
    fs::write(path("c.qcow2"), &qcow2).unwrap();
    assert_eq!(detect(path("c.qcow2")).unwrap(), Format::Qcow2);
    fs::write(path("c"), &qcow2).unwrap();
    assert!(detect(path("c")).is_err());

    // A raw disk that calls itself one is never read as something else.
    for (head, tail) in [(&b"QFI\xfb\0\0\0\x03"[..], &b""[..]), (b"", &footer)] {
        let mut raw = content();
        raw[..head.len()].copy_from_slice(head);
        let at = raw.len() - tail.len();
        raw[at..].copy_from_slice(tail);
        fs::write(path("d.raw"), &raw).unwrap();
        let error = detect(path("d.raw")).unwrap_err();
        assert!(error.hints().iter().any(|hint| hint.contains("--source-format raw")), "{error}");
        assert_eq!(read(&path("d.raw"), Some(Format::Raw)).unwrap().1, raw);
    }
}

/// A base is known by what its overlays say, by path (QCOW2) and by uuid, also when it was renamed (VHD).
#[test]
fn overlays_name_their_base() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for (name, format) in [("base.raw", Format::Raw), ("base.vhd", Format::VhdDynamic)] {
        fs::write(path(name), file_of(format)).unwrap();
        assert_eq!(children(path(name)).unwrap().found, [] as [PathBuf; 0]);
    }
    let Some(program) = testing::program("qemu-img") else { return };
    for (name, base, format) in
        [("b.qcow2", "base.raw", "raw"), ("a.qcow2", "./base.raw", "raw"), ("v.qcow2", "base.vhd", "vpc")]
    {
        let arguments = ["create", "-f", "qcow2", "-b", base, "-F", format, name];
        let status =
            Command::new(&program).current_dir(folder.path()).args(arguments).output().unwrap().status;
        assert!(status.success());
    }
    fs::write(path("notes.txt"), "base.raw").unwrap();
    std::os::unix::fs::symlink("base.raw", path("latest.raw")).unwrap();
    assert_eq!(children(path("base.raw")).unwrap().found, [path("a.qcow2"), path("b.qcow2")]);
    assert_eq!(children(path("latest.raw")).unwrap().found, [path("a.qcow2"), path("b.qcow2")]);
    assert_eq!(children(path("base.vhd")).unwrap().found, [path("v.qcow2")]);
    assert_eq!(children(path("a.qcow2")).unwrap().found, [] as [PathBuf; 0]);
}

/// What QEMU wrote before it insisted on a format: the extension that records it becomes one that nobody knows.
fn forget_backing_format(image: &Path) {
    let mut bytes = fs::read(image).unwrap();
    let at = bytes[..512].windows(4).position(|four| four == b"\xe2\x79\x2a\xca").unwrap();
    bytes[at..at + 4].copy_from_slice(b"\x11\x11\x11\x11");
    fs::write(image, bytes).unwrap();
}

/// The same judgement for what an image names as its parent.
#[test]
fn a_parent_of_another_kind_is_not_a_raw_disk() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let Some(program) = testing::program("qemu-img") else { return false };
        let output = Command::new(program).current_dir(folder.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        true
    };
    fs::write(folder.path().join("base.raw"), content()).unwrap();
    for (format, name, word) in [
        ("vmdk", "base.vmdk", "VMDK"),
        ("vdi", "base", "VDI"),
        ("vhdx", "base.img", "VHDX"),
        ("raw", "base.vhd", "VHD"),
        ("qcow2", "base.vhd", "QCOW2"),
    ] {
        if !run(&["convert", "-f", "raw", "-O", format, "base.raw", name]) {
            return;
        }
        let child = folder.path().join("child.qcow2");
        run(&["create", "-u", "-f", "qcow2", "-b", name, "-F", "raw", "child.qcow2", "5M"]);
        forget_backing_format(&child);
        let error = open(&child, &OpenOptions::default()).err().unwrap();
        assert!(error.to_string().contains(word) && error.path().ends_with(name), "{error}");
        assert!(error.hints().iter().any(|hint| hint.contains("qemu-img rebase")), "{error}");
        // A recorded VHD that is none.
        run(&["create", "-u", "-f", "qcow2", "-b", name, "-F", "vpc", "child.qcow2", "5M"]);
        let error = open(&child, &OpenOptions::default()).err().unwrap();
        assert!(error.to_string().contains("is none"), "{error}");
    }
    run(&["create", "-u", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "child.qcow2", "5M"]);
    forget_backing_format(&folder.path().join("child.qcow2"));
    assert_eq!(read(&folder.path().join("child.qcow2"), None).unwrap().1, content());
}
