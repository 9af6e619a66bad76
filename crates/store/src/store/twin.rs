//! A version that is here, beside an image that is being read for a publish: where both have the same bytes, the bytes
//! here are what the image's chunk is hashed from, and need no second proof.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use goldwire_stdx::AlignedBuffer;

use super::layout::Slot;
use super::{LATEST, Store, StoreResult, StoredVersion};
use crate::chunk::{CHUNK_SIZE, ChunkId};
use crate::map::Place;

/// Chunks that are read together: what is read of the image at a time.
const AT_ONCE: usize = 16;

/// The most chunks that are remembered, a bit each: 16 TiB of disk in 32 MiB of memory. Larger versions are proven as if
/// nobody had looked.
const CHUNKS_MAX: u64 = 1 << 28;

/// A version that is here, and what of it an image was seen to have at the same place. While it lives the version is not
/// pruned.
#[derive(Debug)]
pub struct Twin {
    version: StoredVersion,
    /// A bit for each chunk.
    same: Vec<AtomicU64>,
    /// Those that no thread uses.
    buffers: Mutex<Vec<AlignedBuffer>>,
}

impl Store {
    /// The latest version of `image`, to be looked at while a new one is read. It only saves work: none if there is none,
    /// or if it cannot be read.
    ///
    /// # Errors
    /// `File`, `Corrupt`: the names of the image cannot be read.
    pub fn twin(&self, image: &str) -> StoreResult<Option<Twin>> {
        let latest = self.image(image)?.and_then(|names| names.find(LATEST, super::image::now()));
        let version = latest.and_then(|root| self.version(&root).ok());
        Ok(version.and_then(Twin::new))
    }
}

impl Twin {
    fn new(version: StoredVersion) -> Option<Self> {
        let chunks = version.tree().shape().chunks();
        let words = chunks.div_ceil(64) as usize;
        (chunks <= CHUNKS_MAX).then(|| Self {
            version,
            same: (0..words).map(|_| AtomicU64::new(0)).collect(),
            buffers: Mutex::default(),
        })
    }

    #[cfg(test)]
    pub(super) fn version(&self) -> &StoredVersion {
        &self.version
    }

    /// Compares chunks of the image, which lie end to end from chunk `first` on, with those in their places here. Called by
    /// several threads, each for the bytes that it is hashing.
    pub fn look(&self, first: u64, chunks: &[u8]) {
        let mut buffers = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let free = buffers.pop();
        drop(buffers);
        let mut buffer = free.unwrap_or_else(|| AlignedBuffer::zeroed(AT_ONCE * CHUNK_SIZE));
        let end = first + (chunks.len() / CHUNK_SIZE) as u64;
        let mut index = first;
        while index < end {
            index = match self.version.map().place(index) {
                Ok(Place::In(run)) => {
                    let count = u64::from(run.count).min(end - index).min(AT_ONCE as u64);
                    let bytes =
                        &chunks[(index - first) as usize * CHUNK_SIZE..][..count as usize * CHUNK_SIZE];
                    let here = &mut buffer[..bytes.len()];
                    let pack = self.version.pack(run.pack);
                    if pack.is_ok_and(|pack| pack.read(run.slot, here).is_ok()) {
                        self.compare(index, bytes, here);
                    }
                    index + count
                }
                Ok(Place::Zero(next)) => next,
                // What is not seen to be the same is proven another way.
                Err(_) => end,
            };
        }
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }

    fn compare(&self, first: u64, bytes: &[u8], here: &[u8]) {
        let pairs = bytes.chunks_exact(CHUNK_SIZE).zip(here.chunks_exact(CHUNK_SIZE));
        for (index, _) in (first..).zip(pairs).filter(|(_, (bytes, here))| bytes == here) {
            if let Some(word) = self.same.get((index / 64) as usize) {
                word.fetch_or(1 << (index % 64), Ordering::Relaxed);
            }
        }
    }

    /// Notes where those of the chunks from `first` on, whose ids are `ids`, are that were seen to be the same. An id that
    /// the version here has not is none of those, whatever was seen.
    pub(super) fn note_places(
        &self,
        first: u64,
        ids: &[ChunkId],
        places: &mut [Option<Slot>],
    ) -> StoreResult<()> {
        let end = (first + ids.len() as u64).min(self.version.tree().shape().chunks());
        if first >= end {
            return Ok(());
        }
        let old = self.version.tree().ids(0, first..end)?;
        for ((index, place), (id, old)) in (first..).zip(places).zip(ids.iter().zip(&old)) {
            let word = self.same.get((index / 64) as usize).map_or(0, |word| word.load(Ordering::Relaxed));
            if word & (1 << (index % 64)) != 0
                && id == old
                && !id.is_zero()
                && let Place::In(run) = self.version.map().place(index)?
            {
                *place = Some((run.pack, run.slot));
            }
        }
        Ok(())
    }
}
