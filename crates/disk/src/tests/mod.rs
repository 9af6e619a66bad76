//! The doors: what is opened, what is refused, how a chain is guarded.

mod at_once;
mod block_device;
mod kinds;

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;

use goldwire_stdx::Uuid;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::parents::Parents as _;
use crate::testing::conformance_read;
use crate::{
    ChainFile, CreateOptions, DenyAll, ErrorKind, ExtentKind, FileIdentity, Format, OpenOptions,
    ParentReference, SameFolderOr, create, detect, open,
};

fn options(format: Format, size: u64) -> CreateOptions {
    CreateOptions { format, size, uuid: Uuid([7; 16]), created: 0 }
}

#[test]
fn formats_are_told_by_content() {
    let folder = tempfile::tempdir().unwrap();
    for format in [Format::Raw, Format::VhdFixed, Format::VhdDynamic, Format::Qcow2] {
        let path = folder.path().join(format!("{format:?}.iso"));
        create(&path, &options(format, 1 << 20)).unwrap().flush().unwrap();
        assert_eq!(detect(&path).unwrap(), format);
        let image = open(&path, &OpenOptions::default()).unwrap();
        assert_eq!((image.info.format, image.info.size, image.device.size()), (format, 1 << 20, 1 << 20));
        assert_eq!(path.metadata().unwrap().permissions(), Permissions::from_mode(0o100_600));
    }
    for length in [1, 3, 4, 511, 512] {
        let path = folder.path().join("short");
        std::fs::write(&path, vec![0; length]).unwrap();
        assert_eq!(detect(&path).unwrap(), Format::Raw);
        assert_eq!(open(&path, &OpenOptions::default()).unwrap().device.size(), length as u64);
        let promised = folder.path().join("short.vhd");
        std::fs::rename(&path, &promised).unwrap();
        assert_eq!(detect(&promised).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn raw_images_have_any_length_and_holes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let disk = create(&path, &options(Format::Raw, (4 << 20) + 1)).unwrap();
    disk.write_at(&[1; 4096], 1 << 20).unwrap();
    disk.flush().unwrap();
    let mut expected = vec![0; (4 << 20) + 1];
    expected[1 << 20..(1 << 20) + 4096].fill(1);
    let image = open(&path, &OpenOptions::default()).unwrap();
    conformance_read(&*image.device, &expected);
    let first = image.device.extent_at(0).unwrap();
    if first.kind == ExtentKind::Data {
        return goldwire_stdx::testing::excuse(goldwire_stdx::testing::Excuse::NoHoles);
    }
    assert_eq!(first.length, 1 << 20);
    assert_eq!(image.device.extent_at(1 << 20).unwrap().kind, ExtentKind::Data);
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for path in [fifo.as_path(), folder.path(), "/dev/null".as_ref()] {
        let error = open(path, &OpenOptions::default()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
    let error = open(folder.path().join("gone"), &OpenOptions::default()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// A chain context is asked for `name` as a raw parent of `folder/child`.
fn parent_kind(folder: &std::path::Path, name: &str, options: &OpenOptions) -> Result<(), ErrorKind> {
    let child = folder.join("child");
    std::fs::write(&child, b"x").unwrap();
    let mut chain = crate::chain::Chain::new(Arc::clone(&options.gate));
    let reference = ParentReference { paths: vec![name.into()], uuid: None, format: Some("raw".to_owned()) };
    chain.open_parent(&child, &reference).map(drop).map_err(|error| error.kind())
}

#[test]
fn a_parent_is_a_regular_file_that_the_gate_allows() {
    let folder = tempfile::tempdir().unwrap();
    let outside = tempfile::tempdir().unwrap();
    let options = OpenOptions::default();
    std::fs::write(outside.path().join("secret"), b"s").unwrap();
    std::fs::write(folder.path().join("parent"), b"p").unwrap();
    symlink(outside.path().join("secret"), folder.path().join("leaves")).unwrap();
    symlink("parent", folder.path().join("stays")).unwrap();
    mknodat(CWD, folder.path().join("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    let secret = outside.path().join("secret").to_str().unwrap().to_owned();
    for (name, expected) in [
        ("parent", Ok(())),
        ("stays", Ok(())),
        ("leaves", Err(ErrorKind::Denied)),
        (secret.as_str(), Err(ErrorKind::Denied)),
        ("/dev/zero", Err(ErrorKind::Denied)),
        ("fifo", Err(ErrorKind::Denied)),
        ("folder", Err(ErrorKind::Denied)),
        ("gone", Err(ErrorKind::NotFound)),
    ] {
        assert_eq!(parent_kind(folder.path(), name, &options), expected, "{name}");
    }
    let everywhere = OpenOptions { gate: Arc::new(SameFolderOr(vec!["/".into()])), ..OpenOptions::default() };
    assert_eq!(parent_kind(folder.path(), "leaves", &everywhere), Ok(()));
    assert_eq!(parent_kind(folder.path(), "/dev/zero", &everywhere), Err(ErrorKind::Denied));
    let closed = OpenOptions { gate: Arc::new(DenyAll), ..OpenOptions::default() };
    assert_eq!(parent_kind(folder.path(), "parent", &closed), Err(ErrorKind::Denied));
}

#[test]
fn identities_notice_a_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    std::fs::write(&path, b"\0one").unwrap();
    let image = open(&path, &OpenOptions::default()).unwrap();
    let [ChainFile { identity, .. }] = image.chain[..] else { panic!("a raw image has no parent") };
    assert_eq!(identity, FileIdentity::of_path(&path).unwrap());
    assert_eq!(image.changed().unwrap(), None);
    std::fs::rename(&path, folder.path().join("b")).unwrap();
    assert_eq!(image.changed().unwrap(), Some(path.clone()));
    std::fs::write(&path, b"\0one").unwrap();
    assert_eq!(image.changed().unwrap(), Some(path));
}

/// The formats know the words (`image`, `finding`, `parents`) and what is below them, and no door: a format that called
/// back into opening made one circle of fourteen files, of which none could be read alone.
#[test]
fn no_format_knows_a_door() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![source.join("raw.rs")];
    for folder in ["vhd", "qcow2"] {
        files.extend(std::fs::read_dir(source.join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    assert!(files.len() > 20, "{files:?}");
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        for door in ["open", "chain", "detect", "check"] {
            for spelling in [format!("crate::{door}::"), format!("crate::{door}(")] {
                assert!(!text.contains(&spelling), "{} uses {spelling}", path.display());
            }
        }
    }
    for word in ["image.rs", "finding.rs", "parents.rs", "error.rs", "device.rs", "host.rs"] {
        let text = std::fs::read_to_string(source.join(word)).unwrap();
        for upper in ["raw", "vhd", "qcow2", "open", "chain", "detect", "gate"] {
            assert!(!text.contains(&format!("crate::{upper}")), "{word} uses {upper}");
        }
    }
}
