//! How well a version lies: in how many pieces of the packs a read of it falls.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};

use super::image::now;
use super::{LATEST, MAP, Store, StoreError, StoreResult};
use crate::error::Error;
use crate::map::{Map, Run};
use crate::pack::{Ids, PackNumber};
use crate::tree::Root;

/// Chunks of a stretch, the part of a disk that is measured: 1 MiB, at a multiple of it.
pub(super) const STRETCH: u64 = 16;

/// More ranges than this, for each stretch with data, is not in order.
pub(super) const RANGES_MAX: u64 = 4;

/// Ids that are counted together: 16 MiB of memory.
const COUNTED_AT_ONCE: u64 = 1 << 21;

/// In how many pieces a version is read. A stretch is an aligned MiB of the disk that is not all zero; its ranges are the
/// parts of packs that have to be read for it, one after another: a chunk begins a new one unless it lies right behind the
/// chunk before it, or is that chunk once more. Zero chunks between them need no read and end no range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pieces {
    /// Stretches with data.
    pub stretches: u64,
    /// Ranges of all of them.
    pub ranges: u64,
}

impl Pieces {
    /// Ranges of a stretch, on average. A version without data has none.
    pub fn mean(self) -> f64 {
        if self.stretches == 0 { 0.0 } else { self.ranges as f64 / self.stretches as f64 }
    }

    /// Whether reading it takes more than four pieces a MiB.
    pub fn is_out_of_order(self) -> bool {
        self.ranges > RANGES_MAX.saturating_mul(self.stretches)
    }
}

/// How a version lies that a channel names, or that is the newest of its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lying {
    /// The image.
    pub image: String,
    /// What names it: a channel, now or from a time on, or `latest`.
    pub label: String,
    /// The version.
    pub root: Root,
    /// In how many pieces it is read.
    pub pieces: Pieces,
    /// How many versions of the image are newer.
    pub(super) age: usize,
}

/// A version that should be in order.
pub(super) struct Served {
    pub(super) image: String,
    pub(super) label: String,
    pub(super) root: Root,
    /// How many versions of the image are newer.
    pub(super) age: usize,
}

impl Store {
    /// How the versions lie that channels name, now or from a time on, and the newest of each image.
    ///
    /// # Errors
    /// `Unknown` for an image; `Corrupt`, `File`.
    pub fn lying(&self, images: &[String]) -> StoreResult<Vec<Lying>> {
        let mut measured: HashMap<Root, Pieces> = HashMap::new();
        let mut all = Vec::new();
        for Served { image, label, root, age } in self.served(images)? {
            let pieces = match measured.get(&root) {
                Some(pieces) => *pieces,
                None => {
                    let map = self.version_folder(&root).and_then(|folder| Map::open(&folder, MAP));
                    let pieces = match map {
                        Ok(map) => pieces(&map)?,
                        // It was pruned meanwhile, or never came: `check` says so.
                        Err(StoreError::Unknown { .. }) => continue,
                        Err(StoreError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    *measured.entry(root).or_insert(pieces)
                }
            };
            all.push(Lying { image, label, root, pieces, age });
        }
        Ok(all)
    }

    /// The chunks in packs, and how many there would be if none were there twice: counted by the first eight bytes of their
    /// ids, in parts, so that the memory is bounded.
    ///
    /// # Errors
    /// `Corrupt`, `File`, `Stopped`.
    pub fn distinct(&self, stop: &AtomicBool) -> StoreResult<(u64, u64)> {
        let packs = self.packs_with("ids")?;
        // A prune may take packs away meanwhile.
        let open = |number: PackNumber| match Ids::open(&self.packs, number) {
            Err(StoreError::File { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        };
        let mut chunks = 0;
        for number in &packs {
            chunks += open(*number)?.map_or(0, |ids| u64::from(ids.entries()));
        }
        let bits = (chunks / COUNTED_AT_ONCE).checked_ilog2().map_or(0, |log| log + 1);
        let mut distinct = 0;
        for part in 0..1_u64 << bits {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped.into());
            }
            let mut ids = Vec::new();
            for number in &packs {
                if let Some(of_pack) = open(*number)? {
                    ids.extend(of_pack.beginnings(part, bits)?);
                }
            }
            ids.sort_unstable();
            ids.dedup();
            distinct += ids.len() as u64;
        }
        // What came since they were counted.
        Ok((chunks.max(distinct), distinct))
    }

    /// The versions that should be in order.
    pub(super) fn served(&self, images: &[String]) -> StoreResult<Vec<Served>> {
        let here = self.images()?;
        if let Some(unknown) = images.iter().find(|image| !here.contains(image)) {
            return Err(StoreError::Unknown { name: format!("image {unknown}"), candidates: here });
        }
        let now = now();
        let mut all = Vec::new();
        for image in here.into_iter().filter(|image| images.is_empty() || images.contains(image)) {
            let names = self.image(&image)?.unwrap_or_default();
            let mut add = |label: &str, root: Root| {
                let age = names.versions.iter().rev().position(|version| version.root == root);
                let age = age.unwrap_or(usize::MAX);
                all.push(Served { image: image.clone(), label: label.to_owned(), root, age });
            };
            for channel in &names.channels {
                let served = names.served(&channel.name, now).filter(|served| *served != channel.root);
                served.into_iter().chain([channel.root]).for_each(|root| add(&channel.name, root));
            }
            names.find(LATEST, now).into_iter().for_each(|root| add(LATEST, root));
        }
        Ok(all)
    }
}

/// In how many pieces the version of a map is read.
pub(super) fn pieces(map: &Map) -> StoreResult<Pieces> {
    let mut pieces = Pieces::default();
    for_each_stretch(map, |runs| {
        pieces.stretches += 1;
        pieces.ranges += ranges(runs);
        Ok(())
    })?;
    Ok(pieces)
}

/// The ranges of packs in which runs lie, which are read one after another.
pub(super) fn ranges(runs: &[Run]) -> u64 {
    let mut last: Option<(PackNumber, u32)> = None;
    let mut ranges = 0;
    for run in runs {
        let is_next = |(pack, slot): (PackNumber, u32)| {
            pack == run.pack && (slot == run.slot || slot.checked_add(1) == Some(run.slot))
        };
        ranges += u64::from(!last.is_some_and(is_next));
        last = Some((run.pack, run.slot + run.count - 1));
    }
    ranges
}

/// The runs of each stretch with data, cut at its ends.
pub(super) fn for_each_stretch(
    map: &Map,
    mut each: impl FnMut(&[Run]) -> StoreResult<()>,
) -> StoreResult<()> {
    let mut runs: Vec<Run> = Vec::with_capacity(STRETCH as usize);
    map.for_each(|mut run| {
        while run.count > 0 {
            let stretch = run.first / STRETCH;
            if runs.first().is_some_and(|first| first.first / STRETCH != stretch) {
                each(&runs)?;
                runs.clear();
            }
            let count = run.count.min(((stretch + 1) * STRETCH - run.first) as u32);
            runs.push(Run { count, ..run });
            run = Run {
                first: run.first + u64::from(count),
                count: run.count - count,
                slot: run.slot + count,
                pack: run.pack,
            };
        }
        Ok(())
    })?;
    if runs.is_empty() { Ok(()) } else { each(&runs) }
}
