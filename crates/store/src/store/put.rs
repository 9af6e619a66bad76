//! Putting a version into a store: its chunks come in any order, from an image here or over the wire. Cut at any moment,
//! the next reception of the same version goes on from what is durable.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use goldwire_disk::BlockDevice;
use goldwire_stdx::{AlignedBuffer, Existing, Folder, spawn_scoped};

use super::device::Unproven;
use super::image::{ImageNames, now};
use super::layout::lay_out;
use super::{DESCRIPTOR, MAP, Store, StoreError, StoreResult, TREE, Twin, traces};
use crate::chunk::{BLOCKS_PER_CHUNK, CHUNK_SIZE, ChunkId};
use crate::error::Error;
use crate::map::{Map, Place, Run};
use crate::pack::{Have, Ids, Pack, PackNumber, Slots};
use crate::tree::{BuildOptions, Root, Seal, TreeFile, TreeGeometry, build_tree, fingerprint};
use crate::version::Version;

/// Chunks that are read and written at a time.
const STEP: u32 = 16;
/// Bytes after which what was written is made durable and noted.
const NOTE_EVERY: u64 = 64 << 20;
const READ_BACK: &str = "readback";

/// A version that comes from an image here.
#[derive(Clone, Copy)]
pub struct Incoming<'a> {
    /// Its content.
    pub device: &'a dyn BlockDevice,
    /// Its tree.
    pub tree: &'a TreeFile,
    /// What it is.
    pub version: &'a Version,
    /// The bytes of its descriptor.
    pub descriptor: &'a [u8],
    /// A version that is here, which looked on when the tree was made from the content.
    pub twin: Option<&'a Twin>,
}

/// What putting a version in did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Put {
    /// The version was here already; nothing was stored.
    pub was_here: bool,
    /// Chunks that were written, by this call or those that it goes on from.
    pub chunks_new: u64,
    /// Chunks that an earlier call had made durable.
    pub chunks_resumed: u64,
}

/// A version that is being put in. Dropped before it is published it leaves what the next one goes on from.
#[derive(Debug)]
pub struct Reception {
    store: Arc<Store>,
    version: Version,
    work: Folder,
    lock_name: String,
    lock: File,
    layout: OnceLock<Layout>,
}

/// Where everything goes.
#[derive(Debug)]
struct Layout {
    map: Map,
    fills: BTreeMap<PackNumber, Fill>,
    /// Packs that are whole, opened to be mended.
    whole: Mutex<BTreeMap<PackNumber, Arc<Pack>>>,
}

/// A pack that is being filled.
#[derive(Debug)]
struct Fill {
    ids: Ids,
    pack: Arc<Pack>,
    have: Mutex<Have>,
    /// Slots that an earlier reception made durable.
    slots: Slots,
}

impl Store {
    /// Puts a version of an image here in as the newest of `image`, and moves `channel` to it if one is named. Bytes of the
    /// device are read only for chunks that are not here.
    ///
    /// # Errors
    /// `Busy` if another process puts the same version in; `Changed`, `Name`, `File`, `Corrupt`, `Tree`.
    pub fn publish(
        self: &Arc<Self>,
        image: &str,
        channel: Option<&str>,
        incoming: &Incoming<'_>,
        options: &BuildOptions<'_>,
    ) -> StoreResult<Put> {
        let root = &incoming.version.root;
        self.check_naming(image, channel, incoming.version)?;
        let reception = Reception::begin(self, incoming.version)?;
        if self.has(root)? {
            reception.give_up();
            self.name_version(image, channel, incoming.version, incoming.descriptor)?;
            return Ok(Put { was_here: true, ..Put::default() });
        }
        let (tree, is_whole) = reception.tree()?;
        if !is_whole {
            copy_tree(incoming.tree, &tree)?;
            traces::take_over(incoming.tree, &tree)?;
            tree.sync()?;
        }
        let near = (self.near(image, incoming.version)?, incoming.twin);
        reception.lay_out_beside(&tree, near, options, |_| ())?;
        let put = reception.fill(incoming, options)?;
        let root = reception.read_back(options)?.0;
        if root != incoming.version.root {
            return Err(reception.forget_what_is_wrong());
        }
        reception.publish(image, channel, incoming.descriptor)?;
        Ok(put)
    }

    /// Refuses names that an image or a channel cannot have, before anything is done.
    ///
    /// # Errors
    /// `Name`.
    pub fn check_names(&self, image: &str, channel: Option<&str>) -> StoreResult<()> {
        super::image::check_image(image)?;
        match channel {
            Some(super::LATEST) => Err(StoreError::Name {
                name: super::LATEST.into(),
                what: "a channel",
                why: "it is always the version that came last",
            }),
            Some(channel) => super::image::check_name(channel, "a channel"),
            None => Ok(()),
        }
    }

    /// Refuses names that a version could not get in the end, and a version that this store does not take, before anything
    /// is done.
    ///
    /// # Errors
    /// As [`name_version`](Self::name_version).
    pub fn check_naming(&self, image: &str, channel: Option<&str>, version: &Version) -> StoreResult<()> {
        self.check_names(image, channel)?;
        self.check_own(image, version)?;
        take_names(&mut self.image(image)?.unwrap_or_default(), channel, &version.root, now())
    }

    /// The version here that is likest to one that comes: its parent, or the image's latest.
    ///
    /// # Errors
    /// `File`, `Corrupt`.
    pub fn near(&self, image: &str, version: &Version) -> StoreResult<Option<Root>> {
        let latest = self.image(image)?.unwrap_or_default().find(super::LATEST, now());
        for near in [version.parent, latest].into_iter().flatten() {
            if self.has(&near)? {
                return Ok(Some(near));
            }
        }
        Ok(None)
    }

    /// Names a version that is here. A descriptor that says more than the one that is here takes its place: one with a
    /// signature that of nobody, and of two without the newer.
    ///
    /// # Errors
    /// `Unknown` if it was pruned meanwhile; `NotSigned`, `SignedByAnother`, `Older` if the store requires a key; `Name`,
    /// `File`, `Corrupt`, `Descriptor`.
    pub fn name_version(
        &self,
        image: &str,
        channel: Option<&str>,
        version: &Version,
        descriptor: &[u8],
    ) -> StoreResult<()> {
        let root = &version.root;
        self.rename(image, |names, now| {
            self.admit(image, root, descriptor)?;
            self.keep_descriptor(root, descriptor)?;
            take_names(names, channel, root, now)
        })
    }

    /// Keeps the descriptor of a version that is here, unless the one that it has is signed. The caller holds the lock.
    fn keep_descriptor(&self, root: &Root, descriptor: &[u8]) -> StoreResult<()> {
        let (kept, bytes) = self.describe(root)?;
        if kept.signer.is_some() || bytes == descriptor {
            return Ok(());
        }
        let folder = self.version_folder(root)?;
        let path = folder.path().join(DESCRIPTOR);
        folder.replace(DESCRIPTOR, descriptor, 0o644).map_err(StoreError::file("write", &path))
    }
}

/// Names a version as the newest, and by a channel.
fn take_names(names: &mut ImageNames, channel: Option<&str>, root: &Root, now: i64) -> StoreResult<()> {
    names.add(*root, now)?;
    match channel.filter(|channel| names.served(channel, now) != Some(*root)) {
        Some(channel) => names.move_channel(channel, *root, now, now),
        None => Ok(()),
    }
}

impl Reception {
    /// Begins to put a version in, or goes on.
    ///
    /// # Errors
    /// `Busy` if another process does; `File`.
    pub fn begin(store: &Arc<Store>, version: &Version) -> StoreResult<Self> {
        store.check_ours()?;
        let root = version.root;
        let lock_name = format!("{root}.lock");
        let path = store.work.path().join(&lock_name);
        loop {
            let lock =
                store.work.open_or_create(&lock_name, 0o600).map_err(StoreError::file("make", &path))?;
            if lock.try_lock().is_err() {
                return Err(StoreError::Busy { root });
            }
            let data = lock.metadata().map_err(StoreError::file("stat", &path))?;
            // Whoever had it took it away as we came.
            if std::os::unix::fs::MetadataExt::nlink(&data) == 0 {
                continue;
            }
            let work = store.work.make_child(root.to_string(), 0o755);
            let work = work.map_err(StoreError::file("make a folder in", store.work.path()))?;
            let (store, version) = (Arc::clone(store), version.clone());
            return Ok(Self { store, version, work, lock_name, lock, layout: OnceLock::new() });
        }
    }

    /// The version's tree: whole if an earlier reception had it, else empty.
    ///
    /// # Errors
    /// `Tree`, `File`.
    pub fn tree(&self) -> StoreResult<(TreeFile, bool)> {
        if let Ok(tree) = TreeFile::open(&self.work, TREE, self.version.size)
            && tree.verify(&self.version.root).is_ok()
        {
            return Ok((tree, true));
        }
        Ok((TreeFile::create(&self.work, TREE, self.shape()?)?, false))
    }

    fn shape(&self) -> StoreResult<TreeGeometry> {
        let size = self.version.size;
        Ok(TreeGeometry::new(size).ok_or(Error::TooLarge { size })?)
    }

    /// Gives every chunk its place, unless an earlier reception did, and says which chunks are there: those that the store
    /// has anyway and those that were made durable. `near` is a version that is like this one. Says whether it goes on with
    /// what an earlier reception laid out.
    ///
    /// # Errors
    /// `Tree`, `Corrupt`, `File`, `TooMuch`.
    pub fn lay_out(
        &self,
        tree: &TreeFile,
        near: Option<Root>,
        options: &BuildOptions<'_>,
        is_here: impl FnMut(Range<u64>),
    ) -> StoreResult<bool> {
        self.lay_out_beside(tree, (near, None), options, is_here)
    }

    fn lay_out_beside(
        &self,
        tree: &TreeFile,
        (near, twin): (Option<Root>, Option<&Twin>),
        options: &BuildOptions<'_>,
        mut is_here: impl FnMut(Range<u64>),
    ) -> StoreResult<bool> {
        let root = &self.version.root;
        // If an earlier reception came so far, what it found here is not pruned.
        let is_continued = Map::open(&self.work, MAP).is_ok_and(|map| map.root() == root);
        if !is_continued {
            // It only saves work: one that is damaged, or was pruned meanwhile, saves none.
            let near = near.and_then(|near| self.store.version(&near).ok());
            let _lock = self.store.lock()?;
            lay_out(&self.store, &self.work, root, tree, (near.as_ref(), twin), options)?;
        }
        let map = Map::open(&self.work, MAP)?;
        let packs = &self.store.packs;
        let mut fills = BTreeMap::new();
        for number in self.store.packs_with("have")? {
            let ids = match Ids::open(packs, number) {
                // Somebody lays out or was killed before he had; it is not ours.
                Err(StoreError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    continue;
                }
                opened => opened?,
            };
            if ids.root() == root
                && let Some((have, slots)) = Have::open(packs, number)?
            {
                let pack = Arc::new(Pack::open_to_fill(packs, number, ids.slots())?);
                fills.insert(number, Fill { ids, pack, have: Mutex::new(have), slots });
            }
        }
        packs.sync().map_err(StoreError::file("make durable", packs.path()))?;
        map.for_each(|run| {
            match fills.get(&run.pack) {
                None => is_here(run.first..run.end()),
                Some(fill) => (0..run.count)
                    .filter(|step| fill.slots.contains(run.slot + step))
                    .for_each(|step| is_here(run.first + u64::from(step)..run.first + u64::from(step) + 1)),
            }
            Ok(())
        })?;
        let _ = self.layout.set(Layout { map, fills, whole: Mutex::default() });
        Ok(is_continued)
    }

    /// Chunks that are to come.
    ///
    /// # Errors
    /// Nothing was laid out.
    pub fn chunks_missing(&self) -> StoreResult<u64> {
        let missing = |fill: &Fill| u64::from(fill.ids.slots().saturating_sub(fill.slots.count()));
        Ok(self.layout()?.fills.values().map(missing).sum())
    }

    /// Leaves nothing behind: the version is here.
    fn give_up(self) {
        // What stays is taken away by a prune.
        let _ = self.store.work.remove_tree(self.version.root.to_string());
        let _ = self.store.work.remove_file(&self.lock_name);
    }

    fn layout(&self) -> StoreResult<&Layout> {
        let missing = || StoreError::corrupt(self.work.path(), MAP, 0, "nothing has its place yet");
        self.layout.get().ok_or_else(missing)
    }

    /// Writes chunks, which lie end to end in `bytes`, from chunk `first` on.
    ///
    /// # Errors
    /// `File`; `Corrupt` for a chunk that the tree calls zero.
    pub fn write(&self, first: u64, bytes: &[u8]) -> StoreResult<()> {
        let layout = self.layout()?;
        layout.each_piece(first, bytes.len() / CHUNK_SIZE, |run, range| {
            layout.pack(&self.store, run.pack)?.write(run.slot, &bytes[range])
        })
    }

    /// Writes chunks over what is wrong in their places. They may be other versions' places, so they are proven first.
    ///
    /// # Errors
    /// As [`write`](Self::write); `Changed` for bytes that are not the version's.
    pub fn mend(&self, first: u64, bytes: &[u8]) -> StoreResult<()> {
        let ids = self.tree()?.0.ids(0, first..first + (bytes.len() / CHUNK_SIZE) as u64)?;
        for ((chunk, id), bytes) in (first..).zip(&ids).zip(bytes.chunks_exact(CHUNK_SIZE)) {
            if ChunkId::of(bytes) != *id {
                return Err(StoreError::Changed { chunk });
            }
        }
        self.write(first, bytes)
    }

    /// What is in the place of chunk `index`.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn read(&self, index: u64, chunk: &mut [u8]) -> StoreResult<()> {
        let layout = self.layout()?;
        layout.each_piece(index, 1, |run, _| layout.pack(&self.store, run.pack)?.read(run.slot, chunk))
    }

    /// Makes everything written durable, and notes that these chunks (first, count) are.
    ///
    /// # Errors
    /// `File`.
    pub fn note(&self, chunks: &[(u64, u64)]) -> StoreResult<()> {
        let layout = self.layout()?;
        // A prune takes away what nobody has gone on with for long. A file system without times has no such prune.
        let _ = self.lock.set_modified(std::time::SystemTime::now());
        let mut slots: BTreeMap<PackNumber, Slots> = BTreeMap::new();
        for (first, count) in chunks {
            layout.each_piece(*first, *count as usize, |run, _| {
                slots.entry(run.pack).or_default().insert(run.slot..run.slot + run.count);
                Ok(())
            })?;
        }
        for (number, slots) in slots {
            layout.pack(&self.store, number)?.sync()?;
            if let Some(fill) = layout.fills.get(&number) {
                let mut have = fill.have.lock().unwrap_or_else(PoisonError::into_inner);
                slots.runs().iter().try_for_each(|run| have.add(run.clone()))?;
            }
        }
        Ok(())
    }

    /// Reads back what came, from the medium where the system lets us: the root of what is there, and its tree.
    ///
    /// # Errors
    /// `File`, `Tree`, `Corrupt`.
    pub fn read_back(&self, options: &BuildOptions<'_>) -> StoreResult<(Root, TreeFile)> {
        let layout = self.layout()?;
        for pack in layout.whole.lock().unwrap_or_else(PoisonError::into_inner).values() {
            pack.sync()?;
        }
        layout.fills.values().try_for_each(|fill| fill.pack.sync())?;
        let tree = self.tree()?.0;
        // What was here before was proven when it came or when it was found.
        if layout.is_right(&tree, options)? {
            return Ok((self.version.root, tree));
        }
        let device = Unproven::new(&layout.map, &self.store.packs);
        let tree = TreeFile::create(&self.work, READ_BACK, self.shape()?)?;
        let (root, _) = build_tree(&device, &tree, options)?;
        Ok((root, tree))
    }

    /// Shows the version to others under its names, in one step. What came was read back.
    ///
    /// # Errors
    /// As [`Store::name_version`].
    pub fn publish(&self, image: &str, channel: Option<&str>, descriptor: &[u8]) -> StoreResult<()> {
        let (store, root) = (&self.store, &self.version.root);
        store.check_names(image, channel)?;
        for number in self.layout()?.fills.keys() {
            let name = number.file("have");
            let path = store.packs.path().join(&name);
            store.packs.remove_file(&name).map_err(StoreError::file("remove", &path))?;
        }
        store.packs.sync().map_err(StoreError::file("make durable", store.packs.path()))?;
        let (tree, is_whole) = self.tree()?;
        if !is_whole {
            return Err(StoreError::corrupt(tree.path(), "tree", 4096, "it was whole and is not"));
        }
        tree.seal(&Seal { root: *root, key: [0; 32], chunks_used: self.version.chunks_used })?;
        // What is near this one knows most of its blocks.
        if let Some(near) = store.near(image, &self.version)?.and_then(|near| store.tree_of(&near)) {
            let _ = traces::take_over(&near, &tree);
        }
        tree.sync()?;
        let path = self.work.path().join(DESCRIPTOR);
        let kept = self.work.replace(DESCRIPTOR, descriptor, 0o644);
        kept.and_then(|()| self.work.remove_file(READ_BACK)).map_err(StoreError::file("write", &path))?;
        // Named in the same breath: a prune takes away what has no name.
        let lock = store.lock()?;
        let mut names = store.image(image)?.unwrap_or_default();
        let before = names.find(super::LATEST, now());
        store.admit(image, root, descriptor)?;
        take_names(&mut names, channel, root, now())?;
        if store.has(root)? {
            store.keep_descriptor(root, descriptor)?;
        } else {
            let name = root.to_string();
            let moved = store.work.rename(&name, &store.versions, &name, Existing::Keep);
            let moved = moved.and_then(|()| store.versions.sync()).and_then(|()| store.work.sync());
            moved.map_err(StoreError::file("publish", &store.versions.path().join(&name)))?;
        }
        store.write_names(image, &names)?;
        // The lock's file goes last; who waits for it sees that it has no name.
        let _ = store.work.remove_file(&self.lock_name);
        drop(lock);
        if let Some(before) = before.filter(|before| before != root) {
            store.forget_traces(&before);
        }
        Ok(())
    }

    /// Reads the chunks that are not here from an image, on several cores.
    fn fill(&self, incoming: &Incoming<'_>, options: &BuildOptions<'_>) -> StoreResult<Put> {
        let layout = self.layout()?;
        let mut put = Put::default();
        let mut taken = BTreeMap::new();
        for (number, fill) in &layout.fills {
            put.chunks_new += u64::from(fill.ids.slots());
            put.chunks_resumed += u64::from(fill.slots.count());
            taken.insert(*number, fill.slots.clone());
        }
        let progress = options.progress;
        progress.bytes_total.store(put.chunks_new * CHUNK_SIZE as u64, Ordering::Relaxed);
        progress.bytes_done.store(put.chunks_resumed * CHUNK_SIZE as u64, Ordering::Relaxed);
        let pieces = Mutex::new(Pieces { next: 0, taken });
        let unnoted = Mutex::new((Vec::new(), 0));
        let done = on_cores(options.threads, |has_failed| {
            let mut buffer = AlignedBuffer::zeroed(STEP as usize * CHUNK_SIZE);
            while !has_failed.load(Ordering::Relaxed) {
                if options.stop.load(Ordering::Relaxed) {
                    return Err(Error::Stopped.into());
                }
                let mut pieces = pieces.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(piece) = pieces.next(layout)? else { return Ok(()) };
                drop(pieces);
                let chunks = &mut buffer[..piece.count as usize * CHUNK_SIZE];
                read_chunks(incoming, piece.first, chunks)?;
                layout.pack(&self.store, piece.pack)?.write(piece.slot, chunks)?;
                progress.bytes_done.fetch_add(chunks.len() as u64, Ordering::Relaxed);
                let mut unnoted = unnoted.lock().unwrap_or_else(PoisonError::into_inner);
                unnoted.0.push((piece.first, u64::from(piece.count)));
                unnoted.1 += chunks.len() as u64;
                if unnoted.1 >= NOTE_EVERY {
                    let (chunks, _) = std::mem::take(&mut *unnoted);
                    drop(unnoted);
                    self.note(&chunks)?;
                }
            }
            Ok(())
        });
        // Also of a run that fails: what is written is not written again.
        self.note(&unnoted.into_inner().unwrap_or_else(PoisonError::into_inner).0)?;
        done.map(|()| put)
    }

    /// A medium that does not keep what it is given: nothing of what came is believed by the next reception.
    fn forget_what_is_wrong(&self) -> StoreError {
        let number = self.layout.get().and_then(|layout| layout.fills.keys().next()).copied();
        for number in self.layout.get().into_iter().flat_map(|layout| layout.fills.keys()) {
            if let Err(error) = Have::create(&self.store.packs, *number) {
                return error;
            }
        }
        StoreError::Medium { pack: number.map_or(0, |number| number.0) }
    }
}

impl Layout {
    /// The pieces in which `count` chunks from `first` on lie, with the bytes that each has of all.
    fn each_piece(
        &self,
        first: u64,
        count: usize,
        mut each: impl FnMut(Run, Range<usize>) -> StoreResult<()>,
    ) -> StoreResult<()> {
        let mut done = 0;
        while done < count {
            let index = first + done as u64;
            let Place::In(run) = self.map.place(index)? else {
                let why = format!("it has no place for chunk {index}");
                return Err(StoreError::corrupt(self.map.path(), "run", 0, why));
            };
            let length = (run.count as usize).min(count - done);
            let bytes = done * CHUNK_SIZE..(done + length) * CHUNK_SIZE;
            each(Run { count: length as u32, ..run }, bytes)?;
            done += length;
        }
        Ok(())
    }

    /// Whether the medium has what the packs that came should hold: every slot is read, on several cores. `tree` learns the
    /// fingerprints of what it is shown for the first time.
    fn is_right(&self, tree: &TreeFile, options: &BuildOptions<'_>) -> StoreResult<bool> {
        let taken = self.fills.keys().map(|number| (*number, Slots::default())).collect();
        let (pieces, is_right) = (Mutex::new(Pieces { next: 0, taken }), AtomicBool::new(true));
        on_cores(options.threads, |has_failed| {
            let mut buffer = AlignedBuffer::zeroed(STEP as usize * CHUNK_SIZE);
            while is_right.load(Ordering::Relaxed) && !has_failed.load(Ordering::Relaxed) {
                if options.stop.load(Ordering::Relaxed) {
                    return Err(Error::Stopped.into());
                }
                let mut pieces = pieces.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(piece) = pieces.next(self)? else { break };
                drop(pieces);
                let Some(fill) = self.fills.get(&piece.pack) else { continue };
                let ids = fill.ids.ids(piece.slot..piece.slot + piece.count)?;
                let chunks = &mut buffer[..ids.len() * CHUNK_SIZE];
                fill.pack.read(piece.slot, chunks)?;
                options.progress.bytes_done.fetch_add(chunks.len() as u64, Ordering::Relaxed);
                let mut pairs = ids.iter().zip(chunks.chunks_exact(CHUNK_SIZE));
                is_right.fetch_and(pairs.all(|(id, chunk)| ChunkId::of(chunk) == *id), Ordering::Relaxed);
                let mut words = tree.fingerprints(piece.first..piece.first + u64::from(piece.count))?;
                if words.iter().all(|word| *word == 0) {
                    let places = words.chunks_exact_mut(BLOCKS_PER_CHUNK);
                    places
                        .zip(chunks.chunks_exact(CHUNK_SIZE))
                        .for_each(|(words, chunk)| fingerprint(chunk, words));
                    tree.set_fingerprints(piece.first, &words)?;
                }
            }
            Ok(())
        })?;
        Ok(is_right.into_inner())
    }

    fn pack(&self, store: &Store, number: PackNumber) -> StoreResult<Arc<Pack>> {
        if let Some(fill) = self.fills.get(&number) {
            return Ok(Arc::clone(&fill.pack));
        }
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pack) = whole.get(&number) {
            return Ok(Arc::clone(pack));
        }
        let pack = Arc::new(Pack::open_to_change(&store.packs, number)?);
        whole.insert(number, Arc::clone(&pack));
        Ok(pack)
    }
}

/// What an image has to give, in pieces, in the order of the disk.
struct Pieces {
    /// The chunk from which on nothing was given out.
    next: u64,
    /// Slots that are filled or given out: a chunk that the disk has twice is written once.
    taken: BTreeMap<PackNumber, Slots>,
}

impl Pieces {
    fn next(&mut self, layout: &Layout) -> StoreResult<Option<Run>> {
        loop {
            let run = match layout.map.place(self.next)? {
                Place::In(run) => run,
                Place::Zero(u64::MAX) => return Ok(None),
                Place::Zero(until) => {
                    self.next = until;
                    continue;
                }
            };
            let Some(taken) = self.taken.get_mut(&run.pack) else {
                self.next = run.end();
                continue;
            };
            let slots = run.slot..run.slot + run.count.min(STEP);
            let count = slots.take_while(|slot| !taken.contains(*slot)).count() as u32;
            if count == 0 {
                self.next += 1;
                continue;
            }
            taken.insert(run.slot..run.slot + count);
            self.next = run.first + u64::from(count);
            return Ok(Some(Run { count, ..run }));
        }
    }
}

/// Does the same work on `threads` threads, or as many as there are cores, until each is at its end: the first failure. A
/// system that is short of threads does it on fewer, or on this one. The work is told when a thread has failed.
fn on_cores(
    threads: Option<NonZeroUsize>,
    work: impl Fn(&AtomicBool) -> StoreResult<()> + Sync,
) -> StoreResult<()> {
    let threads = threads.or_else(|| thread::available_parallelism().ok()).map_or(2, NonZeroUsize::get);
    let has_failed = AtomicBool::new(false);
    let work = || {
        let outcome = work(&has_failed);
        has_failed.fetch_or(outcome.is_err(), Ordering::Relaxed);
        outcome
    };
    let work = &work;
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map_while(|_| spawn_scoped(scope, "store", work).ok()).collect();
        let here = work();
        others
            .into_iter()
            .map(|other| other.join().unwrap_or(Err(Error::Stopped.into())))
            .fold(here, Result::and)
    })
}

/// Reads chunks of what comes, which must be those of its tree.
fn read_chunks(incoming: &Incoming<'_>, first: u64, bytes: &mut [u8]) -> StoreResult<()> {
    let shape = incoming.tree.shape();
    let count = (bytes.len() / CHUNK_SIZE) as u64;
    let range = shape.chunk_range(first).start..shape.chunk_range(first + count - 1).end;
    let (content, padding) = bytes.split_at_mut((range.end - range.start) as usize);
    let read = incoming.device.read_at(content, range.start);
    read.map_err(|source| Error::read_disk(range.start, source))?;
    padding.fill(0);
    let ids = incoming.tree.ids(0, first..first + count)?;
    for ((chunk, id), bytes) in (first..).zip(&ids).zip(bytes.chunks_exact(CHUNK_SIZE)) {
        if ChunkId::of(bytes) != *id {
            return Err(StoreError::Changed { chunk });
        }
    }
    Ok(())
}

/// Copies the ids of a tree into an empty one.
fn copy_tree(from: &TreeFile, to: &TreeFile) -> StoreResult<()> {
    const IDS: u64 = 16_384;
    let shape = from.shape();
    for level in 0..shape.levels() {
        for first in (0..shape.count(level)).step_by(IDS as usize) {
            let ids = from.ids(level, first..(first + IDS).min(shape.count(level)))?;
            if ids.iter().any(|id| !id.is_zero()) {
                to.set_ids(level, first, &ids)?;
            }
        }
    }
    Ok(())
}
