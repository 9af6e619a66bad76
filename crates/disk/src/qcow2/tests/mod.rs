//! Our view of QEMU's images, QEMU's view of ours, and what crashes and strangers do to them.

mod checked;
mod claims;
mod crash;
mod golden;
mod hostile;
mod written;

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use super::{check, create, open};
use crate::chain::Chain;
use crate::{Access, BlockDevice, ExtentKind, Finding, ImageInfo, Result, SameFolder};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const CLUSTER: u64 = 64 << 10;

/// Whether QEMU's programs are here; says so when they are not.
fn has_qemu() -> bool {
    goldwire_stdx::testing::programs(&["qemu-img", "qemu-io"])
}

fn run(program: &str, folder: &Path, arguments: &[&str]) -> Output {
    Command::new(program).current_dir(folder).args(arguments).output().unwrap()
}

/// Runs `qemu-img` with words separated by spaces, which must succeed.
fn qemu_img(folder: &Path, arguments: &str) -> String {
    let output = run("qemu-img", folder, &arguments.split(' ').collect::<Vec<_>>());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "qemu-img {arguments}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Runs `commands` of `qemu-io` on an image.
fn qemu_io(folder: &Path, name: &str, commands: &[&str]) {
    let mut arguments = vec!["-f", "qcow2"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(name);
    let output = run("qemu-io", folder, &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The exit code of `qemu-img check`: 0 clean, 2 errors, 3 leaks only.
fn qemu_check(path: &Path) -> (i32, String) {
    let path = path.to_str().unwrap();
    let output = Command::new("qemu-img").args(["check", "-f", "qcow2", path]).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

fn assert_clean(path: &Path) {
    let (code, text) = qemu_check(path);
    assert_eq!(code, 0, "{text}");
}

fn open_image(path: &Path, access: Access) -> Result<(Arc<dyn BlockDevice>, ImageInfo)> {
    let file = OpenOptions::new().read(true).write(access == Access::Write).open(path).unwrap();
    let mut chain = Chain::new(Arc::new(SameFolder));
    open(file, path, access, &mut chain)
}

fn check_image(path: &Path) -> Result<Vec<Finding>> {
    check(File::open(path).unwrap(), path, &mut Chain::new(Arc::new(SameFolder)))
}

fn create_image(path: &Path, size: u64) -> Arc<dyn BlockDevice> {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    create(file, path, size).unwrap()
}

/// All bytes, read in pieces of odd sizes.
fn read_all(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0xee; device.size() as usize];
    let mut at = 0;
    for length in [1, 511, 4096, 70_001, 3_000_000].into_iter().cycle() {
        if at == bytes.len() {
            break;
        }
        let end = bytes.len().min(at + length);
        device.read_at(&mut bytes[at..end], at as u64).unwrap();
        at = end;
    }
    bytes
}

/// The extents, neighbours of one kind joined.
fn extents(device: &dyn BlockDevice) -> Vec<(u64, u64, ExtentKind)> {
    let mut all: Vec<(u64, u64, ExtentKind)> = Vec::new();
    let mut at = 0;
    while at < device.size() {
        let extent = device.extent_at(at).unwrap();
        assert!(extent.length > 0 && extent.length <= device.size() - at);
        match all.last_mut() {
            Some(last) if last.2 == extent.kind => last.1 += extent.length,
            _ => all.push((at, extent.length, extent.kind)),
        }
        at += extent.length;
    }
    all
}

/// The device holds `expected`, and its extents do not lie about zeros.
fn assert_holds(device: &dyn BlockDevice, expected: &[u8]) {
    let bytes = read_all(device);
    assert_eq!(bytes.len(), expected.len());
    if let Some(at) = (0..bytes.len()).find(|at| bytes[*at] != expected[*at]) {
        panic!("byte {at} is {:#x}, expected {:#x}", bytes[at], expected[at]);
    }
    for (offset, length, kind) in extents(device) {
        let range = &expected[offset as usize..(offset + length) as usize];
        assert!(!kind.is_zero() || range.iter().all(|byte| *byte == 0), "{kind:?} at {offset}");
    }
}

/// Bytes that look random and depend on `seed` alone.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(length).collect()
}
