//! A timeline as a crash, a full disk or somebody else left it: the first part of the input is the older file, what
//! follows its first line that is `---` the newer one.
#![no_main]

use goldwire_control::boot::timeline::{Boots, Follower, file};
use goldwire_fuzz::scratch;
use libfuzzer_sys::fuzz_target;

const BETWEEN: &[u8] = b"\n---\n";

fuzz_target!(|input: &[u8]| {
    let state = scratch("state");
    let _ = std::fs::create_dir(&state);
    let at = input.windows(BETWEEN.len()).position(|part| part == BETWEEN);
    let (older, newer) = at.map_or((&[][..], input), |at| (&input[..at], &input[at + BETWEEN.len()..]));
    std::fs::write(state.join("timeline.1.jsonl"), older).expect("room for an input");
    std::fs::write(file(&state), newer).expect("room for an input");
    let mut follower = Follower::new(&state);
    let mut boots = Boots::default();
    let mut records = 0;
    // Whatever lies there, the records in it are read, and then it says that there are no more.
    while let Some(record) = follower.next_record().expect("both files can be read") {
        records += 1;
        let device = boots.device_of(&record);
        assert_eq!(boots.take(&record).is_some(), device.is_some());
        let _ = record.is_trouble();
    }
    assert!(records <= input.split(|byte| *byte == b'\n').count());
    for boot in boots.all() {
        assert!(boot.steps.iter().all(|step| step.seconds.is_finite()));
    }
    // What comes later is read too, behind a line that was torn.
    let line = br#"{"at":"2026-11-24T15:00:00Z","member":"a","protocol":"http","what":"kernel"}"#;
    std::fs::write(file(&state), [newer, b"\n", line, b"\n"].concat()).expect("room for a line");
    let mut last = None;
    while let Some(record) = follower.next_record().expect("both files can be read") {
        last = Some(record);
    }
    assert!(last.is_some_and(|record| record.what == "kernel"), "a record behind a torn line");
});
