//! Looking at everything in a store: that every version is whole and every chunk what it is said to be.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
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
                Ok(bad) => {
                    for slot in &bad.wrong {
                        let path = self.packs.path().join(number.file("pack"));
                        let what = format!("slot {slot}: it does not hold the chunk that it should");
                        checked.problems.push(StoreProblem { path, what });
                    }
                    if let Some(error) = bad.why {
                        checked.add(self, number, error)?;
                    }
                    // Sorted, as each of the two is.
                    let mut slots = [bad.wrong, bad.unread].concat();
                    slots.sort_unstable();
                    if !slots.is_empty() {
                        damaged.insert(number, slots);
                    }
                }
                // It was pruned meanwhile. What a version names of it is missed there.
                Err(StoreError::File { source, .. })
                    if source.kind() == ErrorKind::NotFound
                        && self.packs_with("ids")?.binary_search(&number).is_err() => {}
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
                Err(error) => {
                    checked.add(self, PackNumber(0), error)?;
                    checked.say_whom_it_harms(&self.versions.path().join(root.to_string()));
                }
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

    /// The slots of a pack that do not hold what they should, or cannot be read.
    fn check_pack(
        &self,
        number: PackNumber,
        options: &BuildOptions<'_>,
        chunks: &mut u64,
    ) -> StoreResult<BadSlots> {
        let ids = Ids::open(&self.packs, number)?;
        ids.check()?;
        let mut bad = BadSlots::default();
        let pack = match Pack::open(&self.packs, number) {
            Ok(pack) => pack,
            Err(error) => {
                let used = ids.ids(0..ids.slots())?;
                let used = (0..).zip(&used).filter(|(_, id)| !id.is_zero()).map(|(slot, _)| slot);
                return Ok(BadSlots { unread: used.collect(), why: Some(error), ..bad });
            }
        };
        let mut buffer = vec![0; SLOTS_AT_ONCE as usize * CHUNK_SIZE];
        for first in (0..ids.slots()).step_by(SLOTS_AT_ONCE as usize) {
            if options.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped.into());
            }
            let ids = ids.ids(first..(first + SLOTS_AT_ONCE).min(ids.slots()))?;
            if ids.iter().all(ChunkId::is_zero) {
                continue;
            }
            let bytes = &mut buffer[..ids.len() * CHUNK_SIZE];
            let is_read = pack.read(first, bytes).is_ok();
            for ((slot, id), chunk) in (first..).zip(&ids).zip(bytes.chunks_exact_mut(CHUNK_SIZE)) {
                if id.is_zero() {
                    continue;
                }
                // The others beside the one that cannot be read may be whole.
                if !is_read && let Err(error) = pack.read(slot, chunk) {
                    if self.is_still(number, slot, id) {
                        bad.unread.push(slot);
                        bad.why = bad.why.or(Some(error));
                    }
                    continue;
                }
                *chunks += 1;
                options.progress.bytes_done.fetch_add(CHUNK_SIZE as u64, Ordering::Relaxed);
                if ChunkId::of(chunk) != *id && self.is_still(number, slot, id) {
                    bad.wrong.push(slot);
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
        let map = Map::open_to_read(&folder, MAP)?;
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
            let bad = damaged.get(&run.pack).and_then(|bad| {
                let next = bad.partition_point(|slot| *slot < slots.start);
                bad.get(next).filter(|slot| slots.contains(slot))
            });
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

/// Slots of a pack that somebody needs and that do not hold what they should.
#[derive(Default)]
struct BadSlots {
    /// They hold something else.
    wrong: Vec<u32>,
    /// They cannot be read.
    unread: Vec<u32>,
    /// Why the first of these cannot.
    why: Option<StoreError>,
}

impl Checked {
    /// Names the version, whose folder this is, where the problem that was found last lies elsewhere.
    fn say_whom_it_harms(&mut self, version: &Path) {
        if let Some(last) = self.problems.last_mut().filter(|last| !last.path.starts_with(version)) {
            let what = format!("it needs {}: {}", last.path.display(), last.what);
            *last = StoreProblem { path: version.to_owned(), what };
        }
    }

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
