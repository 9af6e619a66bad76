//! What a store requires: as it is, and with the right digest.
#![no_main]

use goldwire_store::fuzzing::requirement;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    requirement(input);
    let mut forged = input.to_vec();
    forged.truncate(48);
    forged.extend(*blake3::hash(&forged).as_bytes());
    requirement(&forged);
});
