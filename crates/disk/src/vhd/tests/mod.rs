//! VHDs from foreign hands, from bytes that these tests assemble after the specification, and from ourselves.

mod build;
mod check;
mod crash;
mod hostile;
mod qemu;
mod read;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldwire_stdx::Uuid;
use tempfile::TempDir;

use crate::{Access, BlockDevice, CreateOptions, Format, Image, OpenOptions, Result};

const MIB: u64 = 1 << 20;

fn options(format: Format, size: u64) -> CreateOptions {
    CreateOptions { format, size, uuid: Uuid(*b"goldwire-a-test!"), created: 1_700_000_000 }
}

fn open(path: &Path) -> Result<Image> {
    crate::open(path, &OpenOptions::default())
}

fn open_writable(path: &Path) -> Result<Image> {
    crate::open(path, &OpenOptions { access: Access::Write, ..OpenOptions::default() })
}

fn content(device: &dyn BlockDevice) -> Vec<u8> {
    let mut content = vec![0xa5; device.size() as usize];
    device.read_at(&mut content, 0).unwrap();
    content
}

/// A folder for a test's files.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn create(&self, name: &str, format: Format, size: u64) -> Arc<dyn BlockDevice> {
        crate::create(self.path(name), &options(format, size)).unwrap()
    }
}
