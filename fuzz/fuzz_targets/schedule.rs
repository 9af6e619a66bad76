//! A timetable of limits as anybody might write it.
#![no_main]

use libfuzzer_sys::fuzz_target;

/// The program's own: a library it is not.
#[allow(dead_code)]
#[path = "../../crates/goldwire/src/schedule.rs"]
mod schedule;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match text.parse::<schedule::Schedule>() {
        Ok(schedule) => {
            let limits: Vec<Option<u64>> = (0..24 * 60).map(|minute| schedule.limit_at(minute)).collect();
            assert!(limits.iter().all(|limit| *limit != Some(0)), "a limit of nothing");
            assert!(schedule.changes() || limits.iter().all(|limit| *limit == limits[0]));
            // The last entry holds over midnight.
            assert!(text.contains(',') || limits[0] == limits[24 * 60 - 1]);
        }
        Err(why) => assert!(!why.is_empty()),
    }
});
