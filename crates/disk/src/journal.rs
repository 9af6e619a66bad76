//! For crash tests: every change of a file in order, and what a crash leaves of them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// One change of a file.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    SetLength(u64),
    Sync,
}

/// The changes of one file, shared by the device that makes them and the test.
#[derive(Clone, Default)]
pub(crate) struct Journal(Arc<Mutex<Vec<Change>>>);

impl Journal {
    pub(crate) fn push(&self, change: Change) {
        self.0.lock().unwrap().push(change);
    }

    pub(crate) fn changes(&self) -> Vec<Change> {
        self.0.lock().unwrap().clone()
    }
}

/// Makes `path` what `changes` leave of an empty file.
pub(crate) fn replay<'a>(path: &Path, changes: impl IntoIterator<Item = &'a Change>) {
    let file = File::create(path).unwrap();
    for change in changes {
        match change {
            Change::Write { offset, bytes } => file.write_all_at(bytes, *offset).unwrap(),
            Change::SetLength(length) => file.set_len(*length).unwrap(),
            Change::Sync => {}
        }
    }
}
