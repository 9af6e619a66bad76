//! What the tests of several files share.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// A file with this content of which the page cache has nothing; none, and a word on stderr, where it cannot be evicted.
pub(super) fn evicted(content: &[u8]) -> Option<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    evict(&file).then_some(file)
}

/// Takes a file out of the page cache; whether its file system can do that.
pub(super) fn evict(file: &File) -> bool {
    let drop_pages = || fadvise(file, 0, None, Advice::DontNeed).unwrap();
    file.sync_all().unwrap();
    drop_pages();
    let probe = preadv2(file, &mut [IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT);
    if probe != Err(Errno::AGAIN) {
        goldwire_stdx::testing::excuse(goldwire_stdx::testing::Excuse::NoMedium);
        return false;
    }
    // The probe made the kernel begin to read, and pages that are being read stay: wait for them.
    let mut offset = 0;
    let mut buffer = vec![0; 1 << 20];
    while let Ok(count @ 1..) = file.read_at(&mut buffer, offset) {
        offset += count as u64;
    }
    drop_pages();
    true
}
