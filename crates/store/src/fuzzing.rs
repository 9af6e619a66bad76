//! Doors for the fuzz targets of what lies in a store.

use std::fs::File;
use std::path::Path;

use crate::chunk::ChunkId;
use crate::map::{Map, Place};
use crate::pack::{Ids, PackNumber, read_have};
use crate::store::{ImageNames, decode_requirement};

/// Opens a map and asks it for many chunks.
pub fn map(file: File, path: &Path) {
    let Ok(map) = Map::over(file, path.to_owned()) else { return };
    let mut counted = 0;
    let walked = map.for_each(|run| {
        counted += u64::from(run.count);
        let place = map.place(run.first)?;
        assert_eq!(place, Place::In(run));
        Ok(())
    });
    assert!(walked.is_ok() && counted == map.chunks(), "what was looked at when it was opened");
    for index in [0, 1, counted, map.size() / 65_536, u64::MAX] {
        if let Ok(Place::Zero(until)) = map.place(index) {
            assert!(until > index || index == u64::MAX);
        }
    }
}

/// Opens the ids of a pack and looks for some.
pub fn ids(file: File, path: &Path) {
    let Ok(ids) = Ids::over(file, path.to_owned()) else { return };
    let _ = ids.check();
    let first = ids.ids(0..ids.slots().min(100)).unwrap_or_default();
    for id in first.iter().chain(&[ChunkId([0xff; 32])]) {
        if let Ok(Some(slot)) = ids.find(id) {
            assert!(ids.ids(slot..slot + 1).is_ok_and(|found| found[0] == *id), "what was found is it");
        }
    }
    assert!(ids.ids(ids.slots()..ids.slots() + 1).is_err(), "a slot past the end");
}

/// Reads the log of a pack's durable slots: how many, and how much of the log says so.
pub fn have(bytes: &[u8]) -> (u32, u64) {
    let (slots, length) = read_have(PackNumber(1), bytes);
    assert!(length <= bytes.len() as u64);
    (slots.count(), length)
}

/// Reads an image's names, and what was written of them again.
pub fn names(bytes: &[u8]) {
    let Ok(names) = ImageNames::decode(bytes, Path::new("image")) else { return };
    let again = ImageNames::decode(names.encode().as_bytes(), Path::new("image"));
    assert_eq!(again.ok(), Some(names), "what is written is read");
}

/// Reads what a store requires.
pub fn requirement(bytes: &[u8]) {
    let _ = decode_requirement(bytes, Path::new("require"));
}
