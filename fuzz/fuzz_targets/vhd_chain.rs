//! A differencing VHD over a parent in the same folder: the first 8 KiB of the input are the child's head, the rest
//! is the parent's.
#![no_main]

use std::sync::Arc;

use goldwire_disk::SameFolder;
use goldwire_fuzz::{look, scratch, write_mended_vhd};
use libfuzzer_sys::fuzz_target;

const CHILD: usize = 8192;
/// Where a footer has its uuid and a header its parent's.
const UUID: std::ops::Range<usize> = 68..84;
const PARENT_UUID: std::ops::Range<usize> = 512 + 40..512 + 56;

fuzz_target!(|input: &[u8]| {
    let Some((child, parent)) = input.split_at_checked(CHILD) else { return };
    let mut child = child.to_vec();
    // Nobody guesses a uuid.
    if let Some(uuid) = parent.get(UUID) {
        child[PARENT_UUID].copy_from_slice(uuid);
    }
    let path = scratch("child.vhd");
    write_mended_vhd(&path, &child);
    write_mended_vhd(&scratch("parent.vhd"), parent);
    look(&path, None, Arc::new(SameFolder));
});
