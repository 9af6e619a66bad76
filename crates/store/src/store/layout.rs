//! Where the chunks of a version that comes will lie: those that are here stay where they are, the others get slots of
//! new packs in the order of the disk. All places are known, durably, before the first byte of a pack is written.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::thread;

use goldwire_stdx::{Folder, spawn_scoped};

use super::{MAP, Store, StoreError, StoreResult, StoredVersion, Twin};
use crate::chunk::{CHUNK_SIZE, ChunkId};
use crate::error::Error;
use crate::map::{MapWriter, Place, Run};
use crate::pack::{Have, Ids, Pack, PackNumber, SLOTS_MAX};
use crate::tree::{BuildOptions, Root, TreeFile};

/// Chunks whose places are looked for together: 4 GiB of disk, 4 MiB of memory.
const BATCH: u64 = 65_536;

/// Chunks that are read together to be proven.
const PROVEN_AT_ONCE: usize = 16;

/// A place in a pack.
pub(super) type Slot = (PackNumber, u32);

/// Writes the map of version `root`, whose tree is `tree`, into `work`, and the ids of the packs that it adds. The caller
/// holds the writers' lock. `near` is a version that is like it, `twin` one that was looked at when the tree was made.
pub(super) fn lay_out(
    store: &Store,
    work: &Folder,
    root: &Root,
    tree: &TreeFile,
    (near, twin): (Option<&StoredVersion>, Option<&Twin>),
    options: &BuildOptions<'_>,
) -> StoreResult<()> {
    clear_unfinished(store, root)?;
    let shape = tree.shape();
    let mut map = MapWriter::create(work, MAP)?;
    let mut fresh = Fresh::new(store, *root)?;
    let whole = whole_packs(store)?;
    let mut chunk = vec![0; CHUNK_SIZE];
    for start in (0..shape.chunks()).step_by(BATCH as usize) {
        if options.stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped.into());
        }
        let ids = tree.ids(0, start..(start + BATCH).min(shape.chunks()))?;
        let mut places = vec![None; ids.len()];
        if let Some(twin) = twin {
            twin.note_places(start, &ids, &mut places)?;
        }
        if let Some(near) = near {
            find_near(near, start, &ids, &mut places, options.threads)?;
        }
        let mut open: Vec<usize> =
            (0..ids.len()).filter(|at| places[*at].is_none() && !ids[*at].is_zero()).collect();
        open.sort_unstable_by_key(|at| ids[*at]);
        for number in &whole {
            if open.is_empty() {
                break;
            }
            find_in(store, *number, &ids, &mut places, &open, &mut chunk)?;
            open.retain(|at| places[*at].is_none());
        }
        for ((index, id), place) in (start..).zip(&ids).zip(places) {
            if id.is_zero() {
                continue;
            }
            let (pack, slot) = place.map_or_else(|| fresh.place(id), Ok)?;
            map.push(Run { first: index, count: 1, pack, slot })?;
        }
    }
    fresh.end_pack()?;
    map.finish(root, shape.size())?;
    work.sync().map_err(StoreError::file("make durable", work.path()))
}

/// The packs from which chunks may be taken: those that are whole.
fn whole_packs(store: &Store) -> StoreResult<Vec<PackNumber>> {
    let mut numbers = store.packs_with("ids")?;
    let unfinished = store.packs_with("have")?;
    numbers.retain(|number| unfinished.binary_search(number).is_err());
    // What came last is likest to what comes now.
    numbers.reverse();
    Ok(numbers)
}

/// Takes away what an attempt left that did not come to its map, and packs without ids.
fn clear_unfinished(store: &Store, root: &Root) -> StoreResult<()> {
    for number in store.packs_with("have")? {
        let is_ours = match Ids::open(&store.packs, number) {
            Ok(ids) => ids.root() == root,
            Err(StoreError::File { source, .. }) => source.kind() == std::io::ErrorKind::NotFound,
            Err(error) => return Err(error),
        };
        if is_ours {
            remove_pack(store, number)?;
        }
    }
    Ok(())
}

/// Removes a pack that no map names. The ids go first, so that nobody finds a chunk in it.
pub(super) fn remove_pack(store: &Store, number: PackNumber) -> StoreResult<()> {
    for ending in ["ids", "pack", "have"] {
        let name = number.file(ending);
        let path = store.packs.path().join(&name);
        store.packs.remove_file(&name).map_err(StoreError::file("remove", &path))?;
    }
    store.packs.sync().map_err(StoreError::file("make durable", store.packs.path()))
}

/// Finds the chunks without a place that `near` has at the same index. Each is read, on several cores: what is damaged there
/// is no chunk.
fn find_near(
    near: &StoredVersion,
    start: u64,
    ids: &[ChunkId],
    places: &mut [Option<Slot>],
    threads: Option<NonZeroUsize>,
) -> StoreResult<()> {
    let end = (start + ids.len() as u64).min(near.tree().shape().chunks());
    if start >= end {
        return Ok(());
    }
    let old = near.tree().ids(0, start..end)?;
    let is_same = |((old, id), place): ((&ChunkId, &ChunkId), &Option<Slot>)| {
        old == id && !old.is_zero() && place.is_none()
    };
    let same: Vec<bool> = old.iter().zip(ids).zip(&*places).map(is_same).collect();
    if !same.contains(&true) {
        return Ok(());
    }
    let threads = threads.or_else(|| thread::available_parallelism().ok()).map_or(2, NonZeroUsize::get);
    let part = same.len().div_ceil(threads).max(PROVEN_AT_ONCE);
    thread::scope(|scope| {
        let parts = same.chunks(part).zip(ids.chunks(part)).zip(places.chunks_mut(part));
        let mut workers = Vec::new();
        for (number, ((same, ids), places)) in parts.enumerate() {
            let first = start + (number * part) as u64;
            let work = move || prove_part(near, first, same, ids, places);
            workers.push(spawn_scoped(scope, "prove", work));
        }
        workers.into_iter().try_for_each(|worker| match worker {
            Ok(worker) => worker.join().unwrap_or(Err(Error::Stopped.into())),
            // A system that is short of threads saves no work: what was not proven is brought.
            Err(_) => Ok(()),
        })
    })
}

/// Notes the places of those chunks, from chunk `first` on, that are the `same` in `near` and are there.
fn prove_part(
    near: &StoredVersion,
    first: u64,
    same: &[bool],
    ids: &[ChunkId],
    places: &mut [Option<Slot>],
) -> StoreResult<()> {
    let mut chunks = vec![0; PROVEN_AT_ONCE * CHUNK_SIZE];
    let mut at = 0;
    while at < same.len() {
        let Place::In(run) = near.map().place(first + at as u64)? else {
            at += 1;
            continue;
        };
        let most = PROVEN_AT_ONCE.min(run.count as usize).min(same.len() - at);
        let count = same[at..at + most].iter().take_while(|is_same| **is_same).count();
        let bytes = &mut chunks[..count * CHUNK_SIZE];
        if count > 0 && near.pack(run.pack)?.read(run.slot, bytes).is_ok() {
            for (step, chunk) in bytes.chunks_exact(CHUNK_SIZE).enumerate() {
                if ChunkId::of(chunk) == ids[at + step] {
                    places[at + step] = Some((run.pack, run.slot + step as u32));
                }
            }
        }
        at += count.max(1);
    }
    Ok(())
}

/// Looks for the chunks `open` in a pack. One is taken only if what lies there is it.
fn find_in(
    store: &Store,
    number: PackNumber,
    ids: &[ChunkId],
    places: &mut [Option<Slot>],
    open: &[usize],
    chunk: &mut [u8],
) -> StoreResult<()> {
    let index = Ids::open(&store.packs, number)?;
    let mut pack = None;
    for at in open {
        let Some(slot) = index.find(&ids[*at])? else { continue };
        if pack.is_none() {
            pack = Some(Pack::open(&store.packs, number)?);
        }
        if pack.as_ref().is_some_and(|pack| pack.proves(slot, &ids[*at], chunk)) {
            places[*at] = Some((number, slot));
        }
    }
    Ok(())
}

/// The packs that a version adds.
struct Fresh<'a> {
    store: &'a Store,
    root: Root,
    number: PackNumber,
    ids: Vec<ChunkId>,
    /// Where an id is in the pack that is being laid out.
    slots: HashMap<ChunkId, u32>,
}

impl<'a> Fresh<'a> {
    fn new(store: &'a Store, root: Root) -> StoreResult<Self> {
        Ok(Self { store, root, number: next_number(store)?, ids: Vec::new(), slots: HashMap::new() })
    }

    fn place(&mut self, id: &ChunkId) -> StoreResult<Slot> {
        if let Some(slot) = self.slots.get(id) {
            return Ok((self.number, *slot));
        }
        if self.ids.len() >= SLOTS_MAX as usize {
            self.end_pack()?;
            self.number = next(self.number)?;
        }
        let slot = self.ids.len() as u32;
        self.ids.push(*id);
        self.slots.insert(*id, slot);
        Ok((self.number, slot))
    }

    fn end_pack(&mut self) -> StoreResult<()> {
        if self.ids.is_empty() {
            return Ok(());
        }
        // From here on there is a pack, and it is not whole.
        Have::create(&self.store.packs, self.number)?;
        Ids::write(&self.store.packs, self.number, &self.root, &self.ids)?;
        self.ids.clear();
        self.slots.clear();
        Ok(())
    }
}

/// The number of the next new pack. The caller holds the writers' lock.
pub(super) fn next_number(store: &Store) -> StoreResult<PackNumber> {
    let mut last = PackNumber(0);
    for ending in ["ids", "pack", "have"] {
        last = last.max(store.packs_with(ending)?.last().copied().unwrap_or(last));
    }
    next(last)
}

fn next(number: PackNumber) -> StoreResult<PackNumber> {
    let next = number.0.checked_add(1).map(PackNumber);
    next.ok_or_else(|| StoreError::TooMuch { what: "the store has had 4,294,967,295 packs".into() })
}
