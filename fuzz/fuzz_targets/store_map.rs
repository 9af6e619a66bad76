//! The map of a stored version: as it is, and with the right checksums.
#![no_main]

use goldwire_fuzz::scratch;
use goldwire_store::fuzzing::map;
use libfuzzer_sys::fuzz_target;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const PAGE: usize = 4096;
const HEADER: usize = 104;

fuzz_target!(|input: &[u8]| {
    look(input);
    // Nobody guesses a checksum.
    let mut forged = input.to_vec();
    if forged.len() < HEADER {
        return;
    }
    let digest = *blake3::hash(&forged[..HEADER - 32]).as_bytes();
    forged[HEADER - 32..HEADER].copy_from_slice(&digest);
    for (number, page) in (0_u64..).zip(forged.chunks_exact_mut(PAGE)).skip(1) {
        let checksum = xxh3_64_with_seed(&page[8..], number);
        page[..8].copy_from_slice(&checksum.to_le_bytes());
    }
    look(&forged);
});

fn look(bytes: &[u8]) {
    let path = scratch("map");
    std::fs::write(&path, bytes).expect("room for an input");
    map(std::fs::File::open(&path).expect("the file just made"), &path);
}
