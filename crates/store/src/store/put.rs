//! Putting a version into a store. Cut at any moment, the same call goes on from what is durable.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::Ordering;

use goldwire_disk::BlockDevice;
use goldwire_stdx::{AlignedBuffer, Existing, Folder};

use super::image::now;
use super::layout::lay_out;
use super::{DESCRIPTOR, MAP, Store, StoreError, StoreResult, TREE};
use crate::chunk::{CHUNK_SIZE, ChunkId};
use crate::error::Error;
use crate::map::{Map, Run};
use crate::pack::{Have, Ids, Pack, PackNumber, Slots};
use crate::tree::{BuildOptions, Root, Seal, TreeFile};
use crate::version::Version;

/// Chunks that are read and written at a time.
const STEP: u32 = 16;
/// Bytes after which what was written is made durable and noted.
const NOTE_EVERY: u64 = 64 << 20;

/// A version that comes.
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

/// The name of a version while it is put in: a folder and a lock beside it.
struct Work {
    folder: Folder,
    lock_name: String,
    _lock: File,
}

impl Store {
    /// Puts a version in as the newest of `image`, and moves `channel` to it if one is named. Bytes of the device are read
    /// only for chunks that are not here.
    ///
    /// # Errors
    /// `Busy` if another process puts the same version in; `Changed`, `Name`, `File`, `Corrupt`, `Tree`.
    pub fn publish(
        &self,
        image: &str,
        channel: Option<&str>,
        incoming: &Incoming<'_>,
        options: &BuildOptions<'_>,
    ) -> StoreResult<Put> {
        super::image::check_image(image)?;
        if let Some(channel) = channel {
            super::image::check_name(channel, "a channel")?;
        }
        let root = &incoming.version.root;
        let before = self.image(image)?.unwrap_or_default();
        let mut put = Put { was_here: self.has(root)?, ..Put::default() };
        let work = if put.was_here { None } else { Some(self.begin_work(root)?) };
        if let Some(work) = &work {
            let near = [incoming.version.parent, before.find(super::LATEST)];
            let near = near.into_iter().flatten().find(|near| self.has(near).unwrap_or(false));
            self.lay_out_once(&work.folder, incoming, near, options)?;
            put = self.fill(&work.folder, incoming, options)?;
            keep_tree(&work.folder, incoming)?;
            let path = work.folder.path().join(DESCRIPTOR);
            let kept = work.folder.replace(DESCRIPTOR, incoming.descriptor, 0o644);
            kept.map_err(StoreError::file("write", &path))?;
        }
        // Named in the same breath: a prune takes away what has no name.
        let lock = self.lock()?;
        if work.is_some() && !self.has(root)? {
            let name = root.to_string();
            let moved = self.work.rename(&name, &self.versions, &name, Existing::Keep);
            let moved = moved.and_then(|()| self.versions.sync()).and_then(|()| self.work.sync());
            moved.map_err(StoreError::file("publish", &self.versions.path().join(&name)))?;
        }
        let mut names = self.image(image)?.unwrap_or_default();
        names.add(*root, now())?;
        if let Some(channel) = channel.filter(|channel| names.served(channel, now()) != Some(*root)) {
            names.move_channel(channel, *root, now())?;
        }
        self.write_names(image, &names)?;
        if let Some(work) = work {
            // The lock's file goes last; who waits for it sees that it has no name.
            let _ = self.work.remove_file(&work.lock_name);
        }
        drop(lock);
        Ok(put)
    }

    /// The folder in which the version is put together, for this process alone.
    fn begin_work(&self, root: &Root) -> StoreResult<Work> {
        let lock_name = format!("{root}.lock");
        let path = self.work.path().join(&lock_name);
        loop {
            let lock =
                self.work.open_or_create(&lock_name, 0o600).map_err(StoreError::file("make", &path))?;
            if lock.try_lock().is_err() {
                return Err(StoreError::Busy { root: *root });
            }
            let data = lock.metadata().map_err(StoreError::file("stat", &path))?;
            // Whoever had it took it away as we came.
            if std::os::unix::fs::MetadataExt::nlink(&data) > 0 {
                let folder = self.work.make_child(root.to_string(), 0o755);
                let folder = folder.map_err(StoreError::file("make a folder in", self.work.path()))?;
                return Ok(Work { folder, lock_name, _lock: lock });
            }
        }
    }

    /// Gives every chunk its place, unless an earlier attempt did.
    fn lay_out_once(
        &self,
        work: &Folder,
        incoming: &Incoming<'_>,
        near: Option<Root>,
        options: &BuildOptions<'_>,
    ) -> StoreResult<()> {
        let root = &incoming.version.root;
        if Map::open(work, MAP).is_ok_and(|map| map.root() == root) {
            return Ok(());
        }
        let near = near.map(|near| self.version(&near)).transpose()?;
        let _lock = self.lock()?;
        lay_out(self, work, root, incoming.tree, near.as_ref(), options)
    }

    /// Writes the chunks that are not here yet, reads them back, and makes their packs whole.
    fn fill(&self, work: &Folder, incoming: &Incoming<'_>, options: &BuildOptions<'_>) -> StoreResult<Put> {
        let map = Map::open(work, MAP)?;
        let mut fills: BTreeMap<PackNumber, Fill> = BTreeMap::new();
        for number in self.packs_with("have")? {
            let ids = Ids::open(&self.packs, number)?;
            if ids.root() == map.root()
                && let Some((have, slots)) = Have::open(&self.packs, number)?
            {
                let pack = Pack::open_to_fill(&self.packs, number, ids.slots())?;
                fills.insert(number, Fill { ids, pack, have, slots, unnoted: Slots::default(), bytes: 0 });
            }
        }
        self.packs.sync().map_err(StoreError::file("make durable", self.packs.path()))?;
        let mut put = Put::default();
        for fill in fills.values() {
            put.chunks_new += u64::from(fill.ids.slots());
            put.chunks_resumed += u64::from(fill.slots.count());
        }
        let progress = options.progress;
        progress.bytes_total.store(put.chunks_new * CHUNK_SIZE as u64, Ordering::Relaxed);
        progress.bytes_done.store(put.chunks_resumed * CHUNK_SIZE as u64, Ordering::Relaxed);
        let mut buffer = AlignedBuffer::zeroed(STEP as usize * CHUNK_SIZE);
        map.for_each(|run| match fills.get_mut(&run.pack) {
            Some(fill) => fill.take(run, incoming, &mut buffer, options),
            None => Ok(()),
        })?;
        for (number, mut fill) in fills {
            fill.note()?;
            fill.read_back(&self.packs, number, &mut buffer, options)?;
            let name = number.file("have");
            self.packs
                .remove_file(&name)
                .map_err(StoreError::file("remove", &self.packs.path().join(&name)))?;
        }
        self.packs.sync().map_err(StoreError::file("make durable", self.packs.path()))?;
        Ok(put)
    }
}

/// A pack that is being filled.
struct Fill {
    ids: Ids,
    pack: Pack,
    have: Have,
    /// Slots that are written.
    slots: Slots,
    /// Those of them that are not noted as durable.
    unnoted: Slots,
    bytes: u64,
}

impl Fill {
    /// Brings the chunks of `run` into their slots, but for those that are there.
    fn take(
        &mut self,
        run: Run,
        incoming: &Incoming<'_>,
        buffer: &mut [u8],
        options: &BuildOptions<'_>,
    ) -> StoreResult<()> {
        let mut at = 0;
        while at < run.count {
            if self.slots.contains(run.slot + at) {
                at += 1;
                continue;
            }
            if options.stop.load(Ordering::Relaxed) {
                // What is written is not written again.
                self.note()?;
                return Err(Error::Stopped.into());
            }
            let open = (at..run.count.min(at + STEP)).take_while(|at| !self.slots.contains(run.slot + at));
            let count = open.count() as u32;
            let first = run.first + u64::from(at);
            let bytes = &mut buffer[..count as usize * CHUNK_SIZE];
            read_chunks(incoming, first, bytes)?;
            self.pack.write(run.slot + at, bytes)?;
            let slots = run.slot + at..run.slot + at + count;
            self.slots.insert(slots.clone());
            self.unnoted.insert(slots);
            self.bytes += bytes.len() as u64;
            options.progress.bytes_done.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if self.bytes >= NOTE_EVERY {
                self.note()?;
            }
            at += count;
        }
        Ok(())
    }

    /// Makes what was written durable and notes it.
    fn note(&mut self) -> StoreResult<()> {
        self.pack.sync()?;
        for slots in std::mem::take(&mut self.unnoted).runs() {
            self.have.add(slots.clone())?;
        }
        self.bytes = 0;
        Ok(())
    }

    /// Whether the medium has what the pack should hold.
    fn read_back(
        &self,
        packs: &Folder,
        number: PackNumber,
        buffer: &mut [u8],
        options: &BuildOptions<'_>,
    ) -> StoreResult<()> {
        for first in (0..self.ids.slots()).step_by(STEP as usize) {
            if options.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped.into());
            }
            let ids = self.ids.ids(first..(first + STEP).min(self.ids.slots()))?;
            let chunks = &mut buffer[..ids.len() * CHUNK_SIZE];
            self.pack.read(first, chunks)?;
            for ((slot, id), chunk) in (first..).zip(&ids).zip(chunks.chunks_exact(CHUNK_SIZE)) {
                if ChunkId::of(chunk) != *id {
                    // What it has is not known any more: the next attempt writes all of it again.
                    Have::create(packs, number)?;
                    return Err(StoreError::Medium { pack: number.0, slot });
                }
            }
        }
        Ok(())
    }
}

/// Reads chunks of what comes, which must be those of its tree.
fn read_chunks(incoming: &Incoming<'_>, first: u64, bytes: &mut [u8]) -> StoreResult<()> {
    let shape = incoming.tree.shape();
    let count = (bytes.len() / CHUNK_SIZE) as u64;
    let range = shape.chunk_range(first).start..shape.chunk_range(first + count - 1).end;
    let (content, padding) = bytes.split_at_mut((range.end - range.start) as usize);
    incoming.device.read_at(content, range.start).map_err(|source| Error::read_disk(range.start, source))?;
    padding.fill(0);
    let ids = incoming.tree.ids(0, first..first + count)?;
    for ((chunk, id), bytes) in (first..).zip(&ids).zip(bytes.chunks_exact(CHUNK_SIZE)) {
        if ChunkId::of(bytes) != *id {
            return Err(StoreError::Changed { chunk });
        }
    }
    Ok(())
}

/// Keeps the version's tree, without the fingerprints, which only help to find.
fn keep_tree(work: &Folder, incoming: &Incoming<'_>) -> StoreResult<()> {
    const IDS: u64 = 16_384;
    let shape = incoming.tree.shape();
    work.remove_file(TREE).map_err(StoreError::file("replace", &work.path().join(TREE)))?;
    let tree = TreeFile::create(work, TREE, shape.clone())?;
    for level in 0..shape.levels() {
        for first in (0..shape.count(level)).step_by(IDS as usize) {
            let ids = incoming.tree.ids(level, first..(first + IDS).min(shape.count(level)))?;
            if ids.iter().any(|id| !id.is_zero()) {
                tree.set_ids(level, first, &ids)?;
            }
        }
    }
    let root = incoming.version.root;
    tree.verify(&root)?;
    tree.seal(&Seal { root, key: [0; 32], chunks_used: incoming.version.chunks_used })?;
    tree.sync()?;
    Ok(())
}
