//! What the targets share: files to write inputs to, checksums made right, and a bounded look at a disk.

#![allow(clippy::expect_used, clippy::panic, missing_docs)] // A fuzz target reports by panicking.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use goldwire_disk::{Access, BlockDevice, DenyAll, Format, Gate, OpenOptions, check, open};

/// Room behind the input of a VHD, so that an input of some KiB can allocate a block of the usual 2 MiB.
const HOLE: u64 = 3 << 20;
/// A disk may claim 64 TiB in extents of 512 bytes; a look at the first and the last of them has to do.
const EXTENTS_MAX: usize = 512;
const READS_MAX: usize = 64;
const FOOTER: usize = 512;

/// One folder for all inputs of this process. Nobody removes it from here, because libFuzzer ends processes
/// without unwinding; `tools/fuzz` removes the `TMPDIR` that it gave us.
pub fn scratch(name: &str) -> PathBuf {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
        let folder = std::env::temp_dir().join(format!("goldwire-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a scratch folder");
        folder.canonicalize().expect("a scratch folder")
    });
    FOLDER.join(name)
}

/// Opens the image at `path` and looks at what it claims to hold; then checks it; then writes to it.
pub fn look(path: &Path, format: Option<Format>, gate: Arc<dyn Gate>) {
    let options = OpenOptions { access: Access::Read, format, gate };
    if let Ok(image) = open(path, &options) {
        assert_eq!(image.device.size(), image.info.size);
        assert!(!image.chain.is_empty());
        walk(&*image.device);
    }
    let _ = check(path, &options);
    if let Ok(image) = open(path, &OpenOptions { access: Access::Write, ..options }) {
        write(&*image.device);
    }
}

fn walk(disk: &dyn BlockDevice) {
    let size = disk.size();
    assert!(disk.extent_at(size).is_err(), "an extent past the end");
    assert!(disk.read_at(&mut [0], size).is_err(), "a byte past the end");
    let mut buffer = [0xa5; 4096];
    let (mut offset, mut reads) = (0, 0);
    for _ in 0..EXTENTS_MAX {
        if offset >= size {
            break;
        }
        let Ok(extent) = disk.extent_at(offset) else { break };
        assert!(extent.length > 0 && extent.length <= size - offset, "{extent:?} at {offset} of {size}");
        if reads < READS_MAX {
            reads += 1;
            let length = extent.length.min(buffer.len() as u64) as usize;
            // Once at the start of the extent and once at its end.
            for at in [offset, offset + extent.length - length as u64] {
                buffer.fill(0xa5);
                if disk.read_at(&mut buffer[..length], at).is_ok() && extent.kind.is_zero() {
                    assert!(
                        buffer[..length].iter().all(|byte| *byte == 0),
                        "{extent:?} at {offset} is not zero"
                    );
                }
            }
        }
        offset += extent.length;
    }
    if let Some(last) = size.checked_sub(1) {
        let _ = disk.extent_at(last);
        let _ = disk.read_at(&mut buffer[..1], last);
    }
}

fn write(disk: &dyn BlockDevice) {
    let length = disk.size().min(1024) as usize;
    let written = vec![0x5a; length];
    for at in [0, (disk.size() - length as u64) & !511] {
        if disk.write_at(&written, at).is_ok() {
            let mut read = vec![0; length];
            disk.read_at(&mut read, at).expect("what was written is readable");
            assert!(read == written, "what was written at {at} reads otherwise");
        }
    }
    let _ = disk.flush();
}

/// Writes `input` as a VHD whose end was cut off: its bytes, a hole, and its first sector again as the footer that
/// belongs at the end. With checksums that fit, because nobody guesses those.
pub fn write_mended_vhd(path: &Path, input: &[u8]) {
    let mut head = input.to_vec();
    mend(&mut head, 0, FOOTER, 64);
    let header_at = head.get(16..24).map_or(0, |at| u64::from_be_bytes(at.try_into().expect("eight bytes")));
    if let Ok(at) = usize::try_from(header_at) {
        // A header inside the footer would spoil the footer's checksum.
        if at >= FOOTER {
            mend(&mut head, at, 1024, 36);
        }
    }
    let end = (head.len() as u64).next_multiple_of(512) + HOLE;
    let file = File::create(path).expect("a scratch file");
    file.write_all_at(&head, 0).expect("room for an input");
    if let Some(footer) = head.get(..FOOTER) {
        file.write_all_at(footer, end).expect("room for a footer");
    }
}

/// Makes a VHD's checksum right: the complement of the sum of all other bytes of the structure.
fn mend(bytes: &mut [u8], at: usize, length: usize, checksum_at: usize) {
    let Some(structure) = at.checked_add(length).and_then(|end| bytes.get_mut(at..end)) else { return };
    structure[checksum_at..checksum_at + 4].fill(0);
    let sum: u32 = structure.iter().map(|byte| u32::from(*byte)).sum();
    structure[checksum_at..checksum_at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

/// [`look`] at one file of these bytes that may name no other.
pub fn look_at_bytes(name: &str, bytes: &[u8], format: Option<Format>) {
    let path = scratch(name);
    std::fs::write(&path, bytes).expect("room for an input");
    look(&path, format, Arc::new(DenyAll));
}
