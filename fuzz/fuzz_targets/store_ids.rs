//! The ids of a pack, and the log of its durable slots.
#![no_main]

use goldwire_fuzz::scratch;
use goldwire_store::fuzzing::{have, ids};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let path = scratch("ids");
    std::fs::write(&path, input).expect("room for an input");
    ids(std::fs::File::open(&path).expect("the file just made"), &path);
    let (count, length) = have(input);
    assert!(u64::from(count) == 0 || length > 0);
});
