//! What an image's versions are called: as it is, and with the right digest.
#![no_main]

use goldwire_store::fuzzing::names;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    names(input);
    let mut forged = input.to_vec();
    let digest = format!("blake3 {}\n", blake3::hash(input).to_hex());
    forged.extend(digest.as_bytes());
    names(&forged);
});
