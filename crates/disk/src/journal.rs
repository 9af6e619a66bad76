//! For crash tests: every change of a file in order, and what a crash leaves of them.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// One change of a file.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Write {
        offset: u64,
        bytes: Vec<u8>,
    },
    SetLength(u64),
    /// These bytes read as zero. The file does not become longer by it.
    Zero {
        offset: u64,
        length: u64,
    },
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
            Change::Zero { offset, length } => {
                let end = file.metadata().unwrap().len().min(offset + length);
                file.write_all_at(&vec![0; end.saturating_sub(*offset) as usize], *offset).unwrap();
            }
            Change::Sync => {}
        }
    }
}

thread_local! {
    static WAITS: Cell<u64> = const { Cell::new(0) };
    static HAS_NO_HOLES: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` as on a file system that can neither punch holes nor zero ranges, such as NFS of version 3. It holds for
/// the files that this thread opens meanwhile, whoever uses them.
pub(crate) fn without_holes<T>(work: impl FnOnce() -> T) -> T {
    HAS_NO_HOLES.set(true);
    let done = work();
    HAS_NO_HOLES.set(false);
    done
}

/// Whether [`without_holes`] is running.
pub(crate) fn has_no_holes() -> bool {
    HAS_NO_HOLES.get()
}

/// Counts that this thread asks a file for something that it may have to wait for.
pub(crate) fn wait() {
    WAITS.set(WAITS.get() + 1);
}

/// How often this thread may have waited so far.
pub(crate) fn waits() -> u64 {
    WAITS.get()
}
