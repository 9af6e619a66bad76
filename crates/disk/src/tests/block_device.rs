//! A raw disk on a block device, which zeroes and gives back whole blocks only.

use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use goldwire_stdx::testing::{Excuse, excuse, programs, root};

use crate::testing::{conformance, conformance_read_only};
use crate::{Access, BlockDevice, Format, OpenOptions, open};

/// A loop device over a file.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        let path = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Self(path.trim().into()))
    }

    fn open(&self, access: Access) -> Arc<dyn BlockDevice> {
        let options = OpenOptions { access, format: Some(Format::Raw), ..OpenOptions::default() };
        open(&self.0, &options).unwrap().device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn keeps_the_promises() {
    if !root() || !programs(&["losetup"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let file = File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    let Some(looped) = Loop::over(&path) else {
        return excuse(Excuse::NoLoopDevices);
    };
    // Across blocks and inside of them, where no block as a whole lies in the range.
    let device = looped.open(Access::Write);
    device.write_at(&[7; 1 << 20], 0).unwrap();
    let mut model = vec![7; 1 << 20];
    for (at, length) in [(100, 50), (4000, 200), (8192, 4096), (20_000, 300_001), (1 << 19, 1 << 19)] {
        device.write_zeroes(at as u64, length as u64).unwrap();
        model[at..at + length].fill(0);
    }
    device.flush().unwrap();
    drop(device);
    conformance_read_only(&*looped.open(Access::Read), &model);
    assert!(std::fs::read(&path).unwrap() == model, "what lies below the device is something else");

    let loops = RefCell::new(vec![looped]);
    conformance(|size| {
        let path = folder.path().join(loops.borrow().len().to_string());
        File::create(&path).unwrap().set_len(size).unwrap();
        let looped = Loop::over(&path).unwrap();
        let device = looped.open(Access::Write);
        loops.borrow_mut().push(looped);
        device
    });
}
