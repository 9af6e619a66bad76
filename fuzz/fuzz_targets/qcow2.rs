//! A QCOW2 image.
#![no_main]

use goldwire_disk::Format;
use goldwire_fuzz::look_at_bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| look_at_bytes("image.qcow2", input, Some(Format::Qcow2)));
