//! Any file: what it is taken for, and then opened as that.
#![no_main]

use goldwire_disk::detect;
use goldwire_fuzz::{look_at_bytes, scratch};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    look_at_bytes("anything", input, None);
    // `look` may have written to it; whatever it is now, it is something.
    let _ = detect(scratch("anything"));
});
