//! A pack: chunks in slots of a file, the ids of what is in them, and, while it is being filled, which are durable.
//! Bytes in `docs/store-format.md`.

mod bytes;
mod have;
mod ids;

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldwire_stdx::{Folder, read_at_once};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use rustix::io::Errno;

pub(crate) use bytes::{Reader, header};
#[cfg(feature = "fuzzing")]
pub(crate) use have::read as read_have;
pub(crate) use have::{Have, Slots};
pub(crate) use ids::Ids;

use crate::chunk::{CHUNK_SIZE, ChunkId};
use crate::store::{StoreError, StoreResult};

/// The most slots of a pack: 64 GiB of chunks, and ids of 44 MiB.
pub(crate) const SLOTS_MAX: u32 = 1 << 20;

#[cfg(test)]
thread_local! {
    /// Lets this thread see a file system that has no holes.
    pub(crate) static CANNOT_PUNCH: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// The number of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PackNumber(pub(crate) u32);

impl PackNumber {
    /// The name of one of the pack's files.
    pub(crate) fn file(self, ending: &str) -> String {
        format!("{:08x}.{ending}", self.0)
    }

    /// The number in the name of a file with this ending.
    pub(crate) fn of(name: &OsStr, ending: &str) -> Option<Self> {
        let digits = name.to_str()?.strip_suffix(ending)?.strip_suffix('.')?;
        let number = Self(u32::from_str_radix(digits, 16).ok()?);
        (number.0 > 0 && number.file(ending).as_str() == name).then_some(number)
    }
}

/// The file of a pack's chunks.
#[derive(Debug)]
pub(crate) struct Pack {
    file: Arc<File>,
    path: PathBuf,
}

impl Pack {
    /// Opens the pack for reading.
    pub(crate) fn open(packs: &Folder, number: PackNumber) -> StoreResult<Self> {
        let name = number.file("pack");
        let path = packs.path().join(&name);
        let file = packs.read_file(&name).map_err(StoreError::file("open", &path))?;
        // What is served comes by our own reads, which are whole chunks; the kernel's read-ahead helps none of them.
        let _ = fadvise(&file, 0, None, Advice::Random);
        Ok(Self { file: Arc::new(file), path })
    }

    /// Opens a pack that is whole to give space back, or to mend it.
    pub(crate) fn open_to_change(packs: &Folder, number: PackNumber) -> StoreResult<Self> {
        let name = number.file("pack");
        let path = packs.path().join(&name);
        let file = packs.write_file(&name).map_err(StoreError::file("open", &path))?;
        Ok(Self { file: Arc::new(file), path })
    }

    /// Opens the pack for writing, made with room for `slots` if it is not there.
    pub(crate) fn open_to_fill(packs: &Folder, number: PackNumber, slots: u32) -> StoreResult<Self> {
        let name = number.file("pack");
        let path = packs.path().join(&name);
        let file = packs.open_or_create(&name, 0o644).map_err(StoreError::file("make", &path))?;
        file.set_len(u64::from(slots) * CHUNK_SIZE as u64).map_err(StoreError::file("size", &path))?;
        Ok(Self { file: Arc::new(file), path })
    }

    /// The file, and the byte of it where `slot` begins.
    pub(crate) fn place_of(&self, slot: u32) -> (Arc<File>, u64) {
        (Arc::clone(&self.file), at(slot))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `chunks` from slot `first` on.
    pub(crate) fn read(&self, first: u32, chunks: &mut [u8]) -> StoreResult<()> {
        self.file.read_exact_at(chunks, at(first)).map_err(StoreError::file("read", &self.path))
    }

    /// Fills `chunks` from slot `first` on if they are in memory.
    pub(crate) fn read_at_once(&self, first: u32, chunks: &mut [u8]) -> bool {
        read_at_once(&self.file, chunks, at(first))
    }

    /// Fills `part` from byte `within` of slot `slot` on.
    pub(crate) fn read_part(&self, slot: u32, within: u64, part: &mut [u8]) -> StoreResult<()> {
        self.file.read_exact_at(part, at(slot) + within).map_err(StoreError::file("read", &self.path))
    }

    /// The chunk in `slot`, if it has the id that it is said to have.
    pub(crate) fn proves(&self, slot: u32, id: &ChunkId, buffer: &mut [u8]) -> bool {
        self.read(slot, buffer).is_ok() && ChunkId::of(buffer) == *id
    }

    /// Writes `chunks` from slot `first` on.
    pub(crate) fn write(&self, first: u32, chunks: &[u8]) -> StoreResult<()> {
        self.file.write_all_at(chunks, at(first)).map_err(StoreError::file("write", &self.path))
    }

    /// Makes what was written durable, and forgets it where the system lets us, so that the next read is the medium's.
    pub(crate) fn sync(&self) -> StoreResult<()> {
        self.file.sync_data().map_err(StoreError::file("make durable", &self.path))?;
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
        Ok(())
    }

    /// Gives the space of `slots` back. False if the file system cannot.
    pub(crate) fn punch(&self, slots: std::ops::Range<u32>) -> StoreResult<bool> {
        #[cfg(test)]
        if CANNOT_PUNCH.get() {
            return Ok(false);
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, at(slots.start), at(slots.end) - at(slots.start)) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(error) => Err(StoreError::file("punch a hole into", &self.path)(error.into())),
        }
    }

    /// Bytes of the medium that the file takes.
    pub(crate) fn allocated(&self) -> StoreResult<u64> {
        let data = self.file.metadata().map_err(StoreError::file("stat", &self.path))?;
        Ok(std::os::unix::fs::MetadataExt::blocks(&data) * 512)
    }
}

fn at(slot: u32) -> u64 {
    u64::from(slot) * CHUNK_SIZE as u64
}
