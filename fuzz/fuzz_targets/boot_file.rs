//! A boot file as anybody might write it, with the templates in it: it is read or refused with a reason. What is good
//! decides about any device.
#![no_main]

use std::path::Path;

use goldwire_control::boot::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    // No file that it could name is in this folder.
    match parse(text, Path::new("/proc/self/fdinfo/none/boot.toml")) {
        Ok(loaded) => drop(loaded.warnings.to_string()),
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
});
