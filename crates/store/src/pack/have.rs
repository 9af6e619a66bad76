//! Which slots of a pack are durable while it is being filled.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use goldwire_stdx::Folder;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{PackNumber, SLOTS_MAX};
use crate::store::{StoreError, StoreResult};

const SEED: u64 = 0x6576_6168;
const RECORD: usize = 16;
/// A record says at least one slot, so that a log has no more of them than a pack has slots.
const LENGTH_MAX: u64 = SLOTS_MAX as u64 * RECORD as u64;

/// A set of slots, as runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slots(Vec<std::ops::Range<u32>>);

impl Slots {
    pub(crate) fn insert(&mut self, new: std::ops::Range<u32>) {
        if new.is_empty() {
            return;
        }
        // Those that touch the new one lie next to each other.
        let from = self.0.partition_point(|run| run.end < new.start);
        let to = self.0.partition_point(|run| run.start <= new.end);
        let touched = &self.0[from..to.max(from)];
        let start = touched.first().map_or(new.start, |run| run.start.min(new.start));
        let end = touched.last().map_or(new.end, |run| run.end.max(new.end));
        self.0.splice(from..to.max(from), std::iter::once(start..end));
    }

    pub(crate) fn contains(&self, slot: u32) -> bool {
        let after = self.0.partition_point(|run| run.start <= slot);
        after > 0 && slot < self.0[after - 1].end
    }

    /// The runs, sorted, none next to another.
    pub(crate) fn runs(&self) -> &[std::ops::Range<u32>] {
        &self.0
    }

    /// How many slots.
    pub(crate) fn count(&self) -> u32 {
        self.0.iter().map(|run| run.end - run.start).sum()
    }
}

/// The log of a pack's durable slots.
#[derive(Debug)]
pub(crate) struct Have {
    file: File,
    path: PathBuf,
    number: PackNumber,
}

impl Have {
    /// Whether the pack is not whole yet.
    pub(crate) fn is_there(packs: &Folder, number: PackNumber) -> StoreResult<bool> {
        let name = number.file("have");
        let kind = packs.kind_of(&name).map_err(StoreError::file("stat", &packs.path().join(&name)))?;
        Ok(kind.is_some())
    }

    /// Begins an empty log, durably: from here on the pack is not whole.
    pub(crate) fn create(packs: &Folder, number: PackNumber) -> StoreResult<()> {
        let name = number.file("have");
        packs.replace(&name, b"", 0o644).map_err(StoreError::file("write", &packs.path().join(&name)))
    }

    /// The log and what it says, so that more can be added. `None` if the pack is whole.
    pub(crate) fn open(packs: &Folder, number: PackNumber) -> StoreResult<Option<(Self, Slots)>> {
        let name = number.file("have");
        let path = packs.path().join(&name);
        let bytes = packs.read_bounded(&name, LENGTH_MAX).map_err(StoreError::file("read", &path))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let (slots, length) = read(number, &bytes);
        let mut file = packs.write_file(&name).map_err(StoreError::file("open", &path))?;
        // What a crash tore is cut off, so that what is added follows what was read.
        file.set_len(length).map_err(StoreError::file("cut", &path))?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0)).map_err(StoreError::file("read", &path))?;
        Ok(Some((Self { file, path, number }, slots)))
    }

    /// Notes durably that the slots, which are durable, are there.
    pub(crate) fn add(&mut self, slots: std::ops::Range<u32>) -> StoreResult<()> {
        let record = record(self.number, slots.start, slots.end - slots.start);
        let done = self.file.write_all(&record).and_then(|()| self.file.sync_data());
        done.map_err(StoreError::file("write", &self.path))
    }
}

/// What the log says, and how many of its bytes say it.
pub(crate) fn read(number: PackNumber, bytes: &[u8]) -> (Slots, u64) {
    let mut slots = Slots::default();
    let mut length = 0;
    for bytes in bytes.as_chunks::<RECORD>().0 {
        let [a, b, c, d, e, f, g, h, ..] = *bytes;
        let (first, count) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        let Some(end) = first.checked_add(count).filter(|end| *end <= SLOTS_MAX) else { break };
        if *bytes != record(number, first, count) {
            break;
        }
        slots.insert(first..end);
        length += RECORD as u64;
    }
    (slots, length)
}

fn record(number: PackNumber, first: u32, count: u32) -> [u8; RECORD] {
    let mut covered = [0; 12];
    covered[..4].copy_from_slice(&number.0.to_le_bytes());
    covered[4..8].copy_from_slice(&first.to_le_bytes());
    covered[8..].copy_from_slice(&count.to_le_bytes());
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(&covered[4..]);
    record[8..].copy_from_slice(&xxh3_64_with_seed(&covered, SEED).to_le_bytes());
    record
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn runs_are_a_set(runs in proptest::collection::vec((0_u32..200, 0_u32..30), 0..40)) {
            let mut slots = Slots::default();
            let mut model = std::collections::BTreeSet::new();
            for (first, count) in runs {
                slots.insert(first..first + count);
                model.extend(first..first + count);
            }
            for slot in 0..240 {
                prop_assert_eq!(slots.contains(slot), model.contains(&slot), "{}", slot);
            }
            prop_assert!(slots.runs().windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(slots.count() as usize, model.len());
        }

        /// Whatever a crash made of the end: what was noted before it is still said, and nothing that was not noted.
        #[test]
        fn a_torn_log_says_what_was_whole(
            counts in proptest::collection::vec(1_u32..50, 1..20), cut in 0_usize..400, flip in any::<(usize, u8)>(),
        ) {
            let number = PackNumber(7);
            let mut bytes = Vec::new();
            let mut end = 0;
            for count in &counts {
                bytes.extend(record(number, end, *count));
                end += count;
            }
            bytes.truncate(cut);
            let whole = bytes.len() / RECORD;
            let mut expected: u32 = counts[..whole.min(counts.len())].iter().sum();
            if let Some(byte) = bytes.get_mut(flip.0 % 400) && flip.1 != 0 {
                *byte ^= flip.1;
                expected = expected.min(counts[..flip.0 % 400 / RECORD].iter().sum());
            }
            let (slots, _) = read(number, &bytes);
            for slot in 0..end + 5 {
                prop_assert_eq!(slots.contains(slot), slot < expected, "{}", slot);
            }
            prop_assert_eq!(read(PackNumber(8), &bytes).1, 0);
        }
    }
}
