//! A VHD of any kind, once as the bytes are and once with checksums and the end of the file made right.
#![no_main]

use std::sync::Arc;

use goldwire_disk::{DenyAll, Format, set_hidden};
use goldwire_fuzz::{look, look_at_bytes, scratch, write_mended_vhd};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // Which of the three does not matter: the footer decides.
    look_at_bytes("plain.vhd", input, Some(Format::VhdDynamic));
    let path = scratch("mended.vhd");
    write_mended_vhd(&path, input);
    look(&path, Some(Format::VhdDynamic), Arc::new(DenyAll));
    let _ = set_hidden(&path, true);
});
