//! A work folder with any bytes as its state, and as that of the attempt before.
#![no_main]

use goldwire_fuzz::scratch;
use goldwire_replicate::fuzzing::work_state;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let folder = scratch("work");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).expect("a scratch folder");
    work_state(&folder, input);
});
