//! Looking at everything in a store: that every version is whole and every chunk what it is said to be.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use super::device::first_used;
use super::{MAP, Store, StoreError, StoreResult, TREE};
use crate::chunk::{CHUNK_SIZE, ChunkId};
use crate::error::Error;
use crate::map::Map;
use crate::pack::{Ids, Pack, PackNumber};
use crate::tree::{BuildOptions, Root, TreeFile};

const SLOTS_AT_ONCE: u32 = 16;

/// Something wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreProblem {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
}

/// What a check saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Versions looked at.
    pub versions: usize,
    /// Packs looked at.
    pub packs: usize,
    /// Chunks read.
    pub chunks: u64,
    /// What is wrong.
    pub problems: Vec<StoreProblem>,
}

impl Store {
    /// Reads all that is here: names, descriptors, trees, maps, ids and every chunk. Others may read and write meanwhile.
    ///
    /// # Errors
    /// `Stopped`; what is wrong with the store is no error.
    pub fn check(&self, options: &BuildOptions<'_>) -> StoreResult<Checked> {
        let mut checked = Checked::default();
        let mut damaged: BTreeMap<PackNumber, Vec<u32>> = BTreeMap::new();
        let packs = self.packs_with("ids")?;
        let total: u64 = packs
            .iter()
            .filter_map(|number| Ids::open(&self.packs, *number).ok())
            .fold(0, |sum, ids| sum + u64::from(ids.entries()) * CHUNK_SIZE as u64);
        options.progress.bytes_total.store(total, Ordering::Relaxed);
        for number in packs {
            // What is being filled is proven by who fills it.
            if crate::pack::Have::is_there(&self.packs, number)? {
                continue;
            }
            checked.packs += 1;
            match self.check_pack(number, options, &mut checked.chunks) {
                Ok(slots) if slots.is_empty() => {}
                Ok(slots) => {
                    for slot in &slots {
                        let path = self.packs.path().join(number.file("pack"));
                        let what = format!("slot {slot}: it does not hold the chunk that it should");
                        checked.problems.push(StoreProblem { path, what });
                    }
                    damaged.insert(number, slots);
                }
                Err(error) => checked.add(self, number, error)?,
            }
        }
        if let Err(error) = self.required() {
            checked.add(self, PackNumber(0), error)?;
        }
        for root in self.versions()? {
            checked.versions += 1;
            match self.check_version(&root, &damaged) {
                Ok(None) => {}
                Ok(Some(what)) => {
                    let path = self.versions.path().join(root.to_string());
                    checked.problems.push(StoreProblem { path, what });
                }
                // It was pruned meanwhile.
                Err(StoreError::Unknown { .. }) => {}
                Err(error) => checked.add(self, PackNumber(0), error)?,
            }
        }
        for image in self.images()? {
            let path = self.images.path().join(&image);
            match self.image(&image) {
                Ok(names) => {
                    let versions = names.unwrap_or_default().versions;
                    for root in versions.iter().map(|version| version.root) {
                        if !self.has(&root)? {
                            let what = format!("its version {root} is not here");
                            checked.problems.push(StoreProblem { path: path.clone(), what });
                        }
                    }
                }
                Err(error) => checked.add(self, PackNumber(0), error)?,
            }
        }
        Ok(checked)
    }

    /// The slots of a pack that do not hold what they should.
    fn check_pack(
        &self,
        number: PackNumber,
        options: &BuildOptions<'_>,
        chunks: &mut u64,
    ) -> StoreResult<Vec<u32>> {
        let ids = Ids::open(&self.packs, number)?;
        ids.check()?;
        let pack = Pack::open(&self.packs, number)?;
        let mut buffer = vec![0; SLOTS_AT_ONCE as usize * CHUNK_SIZE];
        let mut bad = Vec::new();
        for first in (0..ids.slots()).step_by(SLOTS_AT_ONCE as usize) {
            if options.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped.into());
            }
            let ids = ids.ids(first..(first + SLOTS_AT_ONCE).min(ids.slots()))?;
            if ids.iter().all(ChunkId::is_zero) {
                continue;
            }
            let bytes = &mut buffer[..ids.len() * CHUNK_SIZE];
            pack.read(first, bytes)?;
            for ((slot, id), chunk) in (first..).zip(&ids).zip(bytes.chunks_exact(CHUNK_SIZE)) {
                if id.is_zero() {
                    continue;
                }
                *chunks += 1;
                options.progress.bytes_done.fetch_add(CHUNK_SIZE as u64, Ordering::Relaxed);
                if ChunkId::of(chunk) != *id && self.is_still(number, slot, id) {
                    bad.push(slot);
                }
            }
        }
        Ok(bad)
    }

    /// Whether a slot is still said to hold a chunk: a prune may have freed it since the ids were opened.
    fn is_still(&self, number: PackNumber, slot: u32, id: &ChunkId) -> bool {
        let now = Ids::open(&self.packs, number).and_then(|ids| ids.ids(slot..slot + 1));
        now.is_ok_and(|now| now[0] == *id)
    }

    /// What is wrong with a version: that it cannot be read, or which chunk of it is damaged.
    fn check_version(
        &self,
        root: &Root,
        damaged: &BTreeMap<PackNumber, Vec<u32>>,
    ) -> StoreResult<Option<String>> {
        let (described, _) = self.describe(root)?;
        let folder = self.version_folder(root)?;
        let map = Map::open(&folder, MAP)?;
        if map.root() != root {
            return Ok(Some(format!("its map is that of version {}", map.root())));
        }
        if (map.size(), map.chunks()) != (described.size, described.chunks_used) {
            return Ok(Some("its map and its descriptor tell of other sizes".into()));
        }
        let tree = TreeFile::open(&folder, TREE, map.size())?;
        tree.verify(root)?;
        let (mut wrong, mut zero_from) = (None, 0);
        let mut open: Option<(PackNumber, Ids)> = None;
        map.for_each(|run| {
            let pack = match &open {
                Some((number, ids)) if *number == run.pack => ids,
                _ => &open.insert((run.pack, Ids::open(&self.packs, run.pack)?)).1,
            };
            let slots = run.slot..run.slot + run.count;
            let chunks = run.first..run.first + u64::from(run.count);
            let missing = first_used(&tree, zero_from..run.first)?;
            zero_from = chunks.end;
            let is_same = pack.ids(slots.clone())? == tree.ids(0, chunks)?;
            let bad = damaged.get(&run.pack).into_iter().flatten().find(|slot| slots.contains(slot));
            let found = match (missing, is_same, bad) {
                (Some(chunk), ..) => Some(format!("its map has no place for chunk {chunk}")),
                (_, false, _) => Some(format!("pack {:08x} has other chunks than its map says", run.pack.0)),
                (.., Some(slot)) => {
                    let chunk = run.first + u64::from(slot - run.slot);
                    Some(format!("chunk {chunk} is damaged: slot {slot} of pack {:08x}", run.pack.0))
                }
                _ => None,
            };
            wrong = wrong.take().or(found);
            Ok(())
        })?;
        let missing = first_used(&tree, zero_from..tree.shape().chunks())?;
        Ok(wrong.or(missing.map(|chunk| format!("its map has no place for chunk {chunk}"))))
    }
}

impl Checked {
    fn add(&mut self, store: &Store, number: PackNumber, error: StoreError) -> StoreResult<()> {
        let (path, what) = match error {
            StoreError::Tree(Error::Stopped) => return Err(error),
            StoreError::Corrupt { path, field, offset, why } => {
                (path, format!("{field} at byte {offset}: {why}"))
            }
            StoreError::File { doing, path, source } => (path, format!("{doing}: {source}")),
            StoreError::Descriptor { path, source } => (path, source.to_string()),
            other if number.0 > 0 => (store.packs.path().join(number.file("pack")), other.to_string()),
            other => (store.path().to_owned(), other.to_string()),
        };
        self.problems.push(StoreProblem { path, what });
        Ok(())
    }
}
