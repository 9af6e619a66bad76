//! A version of a store as a disk.
//!
//! Every chunk is hashed when it is read, so that nobody is given bytes that are not the version's, but for those who copy
//! and read back what they have made.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use goldwire_disk::{BlockDevice, Error as DiskError, ErrorKind, Extent, ExtentKind, FilePlace};
use goldwire_stdx::{AlignedBuffer, Folder};

use super::{MAP, Store, StoreError, StoreResult, TREE};
use crate::chunk::{CHUNK_SIZE, ChunkId};
use crate::error::Error;
use crate::map::{Map, Place, Run};
use crate::pack::{Pack, PackNumber};
use crate::tree::{BuildOptions, Root, TreeFile, TreeGeometry};

/// Packs that one version keeps open.
const PACKS_MAX: usize = 64;

/// A version, open for reading. While it lives its chunks are not pruned.
#[derive(Debug)]
pub struct StoredVersion {
    folder: Folder,
    map: Map,
    tree: TreeFile,
    packs: Arc<Folder>,
    open: Mutex<HashMap<PackNumber, Arc<Pack>>>,
    /// Whether what is read is hashed.
    proves: bool,
}

impl StoredVersion {
    pub(super) fn open(store: &Store, root: &Root) -> StoreResult<Self> {
        loop {
            let folder = store.version_folder(root)?;
            let map = Map::open(&folder, MAP)?;
            let path = map.path().to_owned();
            // Who takes versions away locks their map against everybody, so it is either there for as long as we hold it
            // or gone already.
            map.file().lock_shared().map_err(StoreError::file("lock", &path))?;
            let links = map.file().metadata().map_err(StoreError::file("stat", &path))?;
            if std::os::unix::fs::MetadataExt::nlink(&links) == 0 {
                continue;
            }
            if map.root() != root {
                return Err(StoreError::corrupt(&path, "root", 16, "it is the map of another version"));
            }
            let tree = TreeFile::open(&folder, TREE, map.size())?;
            if tree.shape().root(&tree.top()?) != *root {
                let tree = folder.path().join(TREE);
                return Err(StoreError::corrupt(&tree, "tree", 4096, "its top does not give the version"));
            }
            let (packs, open) = (Arc::clone(&store.packs), Mutex::default());
            return Ok(Self { folder, map, tree, packs, open, proves: true });
        }
    }

    /// The same, for whoever proves what he makes of the bytes himself: what is read is not hashed.
    #[must_use]
    pub fn unproven(self) -> Self {
        Self { proves: false, ..self }
    }

    /// The version.
    pub fn root(&self) -> &Root {
        self.map.root()
    }

    /// Its tree.
    pub fn tree(&self) -> &TreeFile {
        &self.tree
    }

    /// The same tree, open once more.
    ///
    /// # Errors
    /// `Tree`.
    pub fn open_tree(&self) -> StoreResult<TreeFile> {
        Ok(TreeFile::open(&self.folder, TREE, self.map.size())?)
    }

    /// In how many pieces it lies.
    pub fn runs(&self) -> u64 {
        self.map.runs()
    }

    pub(crate) fn map(&self) -> &Map {
        &self.map
    }

    fn shape(&self) -> &TreeGeometry {
        self.tree.shape()
    }

    /// The pack if it is open already, and nobody is opening one.
    fn open_pack(&self, number: PackNumber) -> Option<Arc<Pack>> {
        self.open.try_lock().ok()?.get(&number).cloned()
    }

    pub(super) fn pack(&self, number: PackNumber) -> StoreResult<Arc<Pack>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pack) = open.get(&number) {
            return Ok(Arc::clone(pack));
        }
        let pack = Arc::new(Pack::open(&self.packs, number)?);
        if open.len() >= PACKS_MAX {
            open.clear();
        }
        open.insert(number, Arc::clone(&pack));
        Ok(pack)
    }

    /// Reads all of it: every chunk, and that the tree is whole.
    ///
    /// # Errors
    /// The first thing that is wrong; `Stopped`.
    pub fn verify(&self, options: &BuildOptions<'_>) -> StoreResult<()> {
        self.tree.verify(self.root())?;
        options.progress.bytes_total.store(self.size(), Ordering::Relaxed);
        let mut buffer = AlignedBuffer::zeroed(1 << 20);
        let step = buffer.len() as u64;
        for start in (0..self.size()).step_by(buffer.len()) {
            if options.stop.load(Ordering::Relaxed) {
                return Err(Error::Stopped.into());
            }
            let length = step.min(self.size() - start);
            let read = self.read_at(&mut buffer[..length as usize], start);
            read.map_err(|source| Error::read_disk(start, source))?;
            options.progress.bytes_done.fetch_add(length, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Fills `chunks` from chunk `run.first` on, of which there are as many as the run has, and proves each of them, unless
    /// whoever reads does that himself. The pack; none if something would have to be waited for.
    fn read_run(
        &self,
        run: Run,
        chunks: &mut [u8],
        patience: Patience,
    ) -> Result<Option<Arc<Pack>>, DiskError> {
        let range = run.first..run.first + u64::from(run.count);
        let (pack, ids) = match patience {
            Patience::Waits => {
                let pack = self.pack(run.pack).map_err(|error| disk_error(self.map.path(), error))?;
                pack.read(run.slot, chunks).map_err(|error| disk_error(pack.path(), error))?;
                if !self.proves {
                    return Ok(Some(pack));
                }
                let ids = self.tree.ids(0, range);
                (pack, ids.map_err(|error| disk_error(self.tree.path(), error.into()))?)
            }
            Patience::AtOnce => {
                let Some(pack) = self.open_pack(run.pack) else { return Ok(None) };
                let Some(ids) = self.tree.ids_at_once(0, range) else { return Ok(None) };
                if !pack.read_at_once(run.slot, chunks) {
                    return Ok(None);
                }
                (pack, ids)
            }
        };
        for ((slot, id), chunk) in (run.slot..).zip(&ids).zip(chunks.chunks_exact(CHUNK_SIZE)) {
            if ChunkId::of(chunk) != *id {
                let index = run.first + u64::from(slot - run.slot);
                let why = format!("it is not chunk {index} of version {}", self.root());
                let at = u64::from(slot) * CHUNK_SIZE as u64;
                return Err(DiskError::corrupt(pack.path(), "chunk", at, why)
                    .with_hint("see what else is damaged: goldwire store check"));
            }
        }
        Ok(Some(pack))
    }

    /// That chunks that the map does not have are zero in the tree too. False if something would have to be waited for.
    fn prove_zero(&self, chunks: std::ops::Range<u64>, patience: Patience) -> Result<bool, DiskError> {
        if patience == Patience::AtOnce {
            // What is wrong is told by the read that waits.
            let is_zero = |ids: Vec<ChunkId>| ids.iter().all(|id| id.is_zero());
            return Ok(steps(chunks).all(|part| self.tree.ids_at_once(0, part).is_some_and(is_zero)));
        }
        match first_used(&self.tree, chunks).map_err(|error| disk_error(self.tree.path(), error))? {
            None => Ok(true),
            Some(index) => {
                let why = format!("it has no place for chunk {index}");
                Err(DiskError::new(ErrorKind::Corrupt, self.map.path(), why))
            }
        }
    }

    /// Fills `buf` with proven bytes, or unproven ones if those were asked for. False if something would have to be waited for.
    fn read(&self, mut buf: &mut [u8], offset: u64, patience: Patience) -> Result<bool, DiskError> {
        const CHUNK: u64 = CHUNK_SIZE as u64;
        self.check_range(offset, buf.len() as u64)?;
        let mut at = offset;
        while !buf.is_empty() {
            let (index, within) = (at / CHUNK, at % CHUNK);
            let left = buf.len() as u64;
            let place = match patience {
                Patience::Waits => {
                    self.map.place(index).map_err(|error| disk_error(self.map.path(), error))?
                }
                Patience::AtOnce => match self.map.place_at_once(index) {
                    Some(place) => place,
                    None => return Ok(false),
                },
            };
            let length = match place {
                Place::Zero(until) => (until.min(self.shape().chunks()) * CHUNK - at).min(left),
                Place::In(run) if within == 0 && left >= CHUNK => {
                    (left / CHUNK).min(run.count.into()) * CHUNK
                }
                Place::In(_) => (CHUNK - within).min(left),
            };
            let (part, rest) = buf.split_at_mut(length as usize);
            let is_read = match place {
                Place::Zero(_) => {
                    part.fill(0);
                    self.prove_zero(index..(at + length).div_ceil(CHUNK), patience)?
                }
                Place::In(run) if within == 0 && length >= CHUNK => {
                    self.read_run(Run { count: (length / CHUNK) as u32, ..run }, part, patience)?.is_some()
                }
                Place::In(run) if !self.proves && patience == Patience::Waits => {
                    let pack = self.pack(run.pack).map_err(|error| disk_error(self.map.path(), error))?;
                    let read = pack.read_part(run.slot, within, part);
                    read.map_err(|error| disk_error(pack.path(), error))?;
                    true
                }
                // Part of a chunk is proven by the whole of it.
                Place::In(run) => {
                    let mut chunk = vec![0; CHUNK_SIZE];
                    let is_read = self.read_run(Run { count: 1, ..run }, &mut chunk, patience)?.is_some();
                    part.copy_from_slice(&chunk[within as usize..][..part.len()]);
                    is_read
                }
            };
            if !is_read {
                return Ok(false);
            }
            at += length;
            buf = rest;
        }
        Ok(true)
    }
}

/// Whether a read waits for what is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    Waits,
    AtOnce,
}

/// A range of chunks in parts whose ids fit into little memory.
fn steps(chunks: std::ops::Range<u64>) -> impl Iterator<Item = std::ops::Range<u64>> {
    const IDS: usize = 16_384;
    let end = chunks.end;
    chunks.step_by(IDS).map(move |start| start..(start + IDS as u64).min(end))
}

/// The first of some chunks that a tree does not call zero.
pub(super) fn first_used(tree: &TreeFile, chunks: std::ops::Range<u64>) -> StoreResult<Option<u64>> {
    for part in steps(chunks) {
        let ids = tree.ids(0, part.clone())?;
        if let Some(used) = ids.iter().position(|id| !id.is_zero()) {
            return Ok(Some(part.start + used as u64));
        }
    }
    Ok(None)
}

impl BlockDevice for StoredVersion {
    fn size(&self) -> u64 {
        self.map.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.read(buf, offset, Patience::Waits).map(drop)
    }

    /// Only proven bytes are told, at once as ever: a chunk is hashed before any of it is given.
    fn read_at_once(&self, buf: &mut [u8], offset: u64) -> Result<bool, DiskError> {
        self.read(buf, offset, Patience::AtOnce)
    }

    /// One chunk at most, for all that is told is hashed first.
    fn place_of(&self, offset: u64) -> Result<Option<FilePlace>, DiskError> {
        const CHUNK: u64 = CHUNK_SIZE as u64;
        self.check_range(offset, 1)?;
        let place = self.map.place(offset / CHUNK).map_err(|error| disk_error(self.map.path(), error))?;
        let Place::In(run) = place else { return Ok(None) };
        let proven = self.read_run(Run { count: 1, ..run }, &mut vec![0; CHUNK_SIZE], Patience::Waits)?;
        Ok(proven.map(|pack| {
            let (file, start) = pack.place_of(run.slot);
            let within = offset % CHUNK;
            let length = (CHUNK - within).min(self.size() - offset);
            FilePlace { file, offset: start + within, length }
        }))
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<(), DiskError> {
        Err(self.read_only())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        self.check_range(offset, 1)?;
        let place = self.map.place(offset / CHUNK_SIZE as u64);
        extent(place.map_err(|error| disk_error(self.map.path(), error))?, offset, self.size())
    }

    fn allocate(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        Err(self.read_only())
    }

    fn discard(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        Err(self.read_only())
    }

    fn write_zeroes(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        Err(self.read_only())
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

impl StoredVersion {
    fn check_range(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size() => Ok(()),
            _ => {
                let why =
                    format!("{length} bytes at byte {offset} pass the end of the disk at {}", self.size());
                Err(DiskError::new(ErrorKind::OutOfRange, self.map.path(), why))
            }
        }
    }

    fn read_only(&self) -> DiskError {
        DiskError::new(ErrorKind::ReadOnly, self.map.path(), "a version is never written to")
    }
}

/// What lies in the places of a map, proven by nothing: for whoever proves it himself.
pub(super) struct Unproven<'a> {
    map: &'a Map,
    packs: &'a Folder,
}

impl<'a> Unproven<'a> {
    pub(super) fn new(map: &'a Map, packs: &'a Folder) -> Self {
        Self { map, packs }
    }

    fn read_only(&self) -> DiskError {
        DiskError::new(ErrorKind::ReadOnly, self.map.path(), "it is only read here")
    }
}

impl BlockDevice for Unproven<'_> {
    fn size(&self) -> u64 {
        self.map.size()
    }

    /// Whole chunks, or what the last one has: the only reads of whoever builds a tree.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        let first = offset / CHUNK_SIZE as u64;
        for (index, part) in (first..).zip(buf.chunks_mut(CHUNK_SIZE)) {
            let place = self.map.place(index).map_err(|error| disk_error(self.map.path(), error))?;
            let Place::In(run) = place else {
                part.fill(0);
                continue;
            };
            let mut chunk = vec![0; CHUNK_SIZE];
            let read = Pack::open(self.packs, run.pack).and_then(|pack| pack.read(run.slot, &mut chunk));
            read.map_err(|error| disk_error(self.map.path(), error))?;
            part.copy_from_slice(&chunk[..part.len()]);
        }
        Ok(())
    }

    /// None: nothing is proven.
    fn place_of(&self, _offset: u64) -> Result<Option<FilePlace>, DiskError> {
        Ok(None)
    }

    /// Nothing: whoever builds a tree waits for all of it.
    fn read_at_once(&self, _buf: &mut [u8], _offset: u64) -> Result<bool, DiskError> {
        Ok(false)
    }

    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<(), DiskError> {
        Err(self.read_only())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        let place = self.map.place(offset / CHUNK_SIZE as u64);
        extent(place.map_err(|error| disk_error(self.map.path(), error))?, offset, self.size())
    }

    fn allocate(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        Err(self.read_only())
    }

    fn discard(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        Err(self.read_only())
    }

    fn write_zeroes(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        Err(self.read_only())
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

/// The run that begins at a byte whose chunk is in `place`.
fn extent(place: Place, offset: u64, size: u64) -> Result<Extent, DiskError> {
    let (until, kind) = match place {
        Place::In(run) => (run.end(), ExtentKind::Data),
        Place::Zero(until) => (until, ExtentKind::Hole),
    };
    Ok(Extent { length: until.saturating_mul(CHUNK_SIZE as u64).min(size) - offset, kind })
}

fn disk_error(path: &Path, error: StoreError) -> DiskError {
    match error {
        StoreError::File { doing, path, source }
        | StoreError::Tree(Error::TreeFile { doing, path, source }) => DiskError::io(path, doing, source),
        StoreError::Corrupt { path, field, offset, why } => DiskError::corrupt(path, field, offset, why),
        other => DiskError::new(ErrorKind::Corrupt, path, other.to_string()),
    }
}
