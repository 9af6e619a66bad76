//! What is in memory is told without waiting, of every format, and nothing else is.

use std::path::Path;
use std::process::Command;

use goldwire_stdx::testing::{program, tells_at_once};

use super::options;
use crate::testing::{is_told_at_once, pattern};
use crate::{Access, BlockDevice, Format, OpenOptions, create, open};

const SIZE: usize = (6 << 20) + 512;

/// Data, zeros between them, and a part without a place.
fn content() -> Vec<u8> {
    let mut content = vec![0; SIZE];
    content[..1 << 20].copy_from_slice(&pattern(1, 0, 1 << 20));
    content[(5 << 20) - 700..5 << 20].copy_from_slice(&pattern(2, 0, 700));
    content
}

fn write(device: &dyn BlockDevice, content: &[u8]) {
    device.write_at(&content[..1 << 20], 0).unwrap();
    device.write_at(&content[(5 << 20) - 700..5 << 20], (5 << 20) - 700).unwrap();
    device.flush().unwrap();
}

fn tells(device: &dyn BlockDevice, content: &[u8]) -> bool {
    [4096, 70_001, SIZE].into_iter().all(|piece| is_told_at_once(device, content, piece))
}

#[test]
fn what_is_in_memory_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    if !tells_at_once(folder.path()) {
        return;
    }
    let content = content();
    for format in [Format::Raw, Format::VhdFixed, Format::VhdDynamic, Format::Qcow2] {
        let path = folder.path().join(format!("{format:?}.iso"));
        let device = create(&path, &options(format, SIZE as u64)).unwrap();
        write(&*device, &content);
        device.read_at(&mut vec![0; SIZE], 0).unwrap();
        assert!(tells(&*device, &content), "{format:?}, created");
        drop(device);
        for access in [Access::Read, Access::Write] {
            let device = open(&path, &OpenOptions { access, ..OpenOptions::default() }).unwrap().device;
            device.read_at(&mut vec![0; SIZE], 0).unwrap();
            // Also what was opened for reading is changed by whoever may write to it.
            assert!((0..SIZE).step_by(5000).all(|at| device.place_of(at as u64).unwrap().is_none()));
            assert!(tells(&*device, &content), "{format:?}, opened to {access:?}");
        }
    }
}

/// Tables that are not in memory are waited for by nobody; what needs none of them is told.
#[test]
fn tables_are_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let content = content();
    for format in [Format::VhdDynamic, Format::Qcow2] {
        let path = folder.path().join(format!("{format:?}.iso"));
        let device = create(&path, &options(format, 2 << 30)).unwrap();
        write(&*device, &content);
        drop(device);
        let device = open(&path, &OpenOptions::default()).unwrap().device;
        let mut buf = [0x5a; 4096];
        assert!(!device.read_at_once(&mut buf, 0).unwrap(), "{format:?}");
        assert!(device.read_at_once(&mut buf, 1 << 30).unwrap(), "{format:?}: nothing has a place there");
        assert_eq!(buf, [0; 4096]);
    }
}

/// Through overlays, past the end of what is below, and from compressed clusters.
#[test]
fn what_is_below_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let Some(qemu_img) = program("qemu-img") else { return };
    if !tells_at_once(folder.path()) {
        return;
    }
    let run = |arguments: &[&str]| {
        let status =
            Command::new(&qemu_img).current_dir(folder.path()).args(arguments).output().unwrap().status;
        assert!(status.success(), "{arguments:?}");
    };
    let content = content();
    std::fs::write(folder.path().join("base.raw"), &content).unwrap();
    run(&["convert", "-c", "-f", "raw", "-O", "qcow2", "base.raw", "base.qcow2"]);
    let mut longer = content;
    longer.resize(8 << 20, 0);
    for (base, format) in [("base.raw", "raw"), ("base.qcow2", "qcow2")] {
        run(&["create", "-f", "qcow2", "-F", format, "-b", base, "child.qcow2", "8M"]);
        let path = folder.path().join("child.qcow2");
        let device = open(Path::new(&path), &OpenOptions::default()).unwrap().device;
        device.read_at(&mut vec![0; longer.len()], 0).unwrap();
        assert!(tells(&*device, &longer), "over {base}");
    }
}
