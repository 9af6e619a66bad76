//! Any file under any name: what it is taken for, and then opened as that. A name never stands over what it does not
//! promise.
#![no_main]

use goldwire_disk::{Promise, children, detect};
use goldwire_fuzz::{look_at_bytes, scratch};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 6] = ["anything", "a.raw", "a.vhd", "a.avhd", "a.qcow2", "a.vmdk"];

fuzz_target!(|input: &[u8]| {
    // One name for each input, so that all of them have their turn.
    let name = NAMES[input.iter().fold(0, |sum: usize, byte| sum + usize::from(*byte)) % NAMES.len()];
    look_at_bytes(name, input, None);
    let path = scratch(name);
    std::fs::write(&path, input).expect("room for an input");
    if let Ok(format) = detect(&path) {
        assert!(!input.is_empty(), "nothing is no disk");
        assert!(Promise::of(name).is_none_or(|promise| promise.is_kept_by(format)), "{name} is {format:?}");
    }
    let _ = children(&path);
    let _ = std::fs::remove_file(&path);
});
