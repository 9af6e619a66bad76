//! Seeds: disks at the target from which content can be taken, and the index that finds a 4 KiB block in them
//! wherever it has moved.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use goldwire_disk::{Format, Image, OpenOptions};
use goldwire_stdx::Stop;
use goldwire_store::{
    BLOCK_SIZE, BLOCKS_PER_CHUNK, BuildOptions, CHUNK_SIZE, ChunkId, Progress, TreeCache, TreeFile,
    block_hash,
};

use super::bitmap::Bitmap;
use crate::failure::Result;
use crate::source::Stored;
use crate::wire::{Failure, FailureKind};

/// Seeds used at most; the best ones. More would cost reads for little.
const SEEDS_MAX: usize = 4;

/// Images of a folder that are looked at as seeds.
const CANDIDATES_MAX: usize = 64;

/// One seed.
pub(crate) struct Seed {
    pub(crate) image: Image,
    pub(crate) tree: TreeFile,
    /// For people.
    pub(crate) name: String,
    /// The chunks that are really there, when it is an unfinished attempt.
    pub(crate) present: Option<Bitmap>,
}

impl Seed {
    /// Opens the image at `path` and gets its tree.
    pub(crate) fn open(path: &Path, stop: &Stop, progress: &Progress) -> Result<Self> {
        let image = goldwire_disk::open(path, &OpenOptions::default())?;
        let cached = TreeCache::of(&image, &BuildOptions { threads: None, stop: stop.flag(), progress })?;
        Ok(Self { image, tree: cached.tree, name: path.display().to_string(), present: None })
    }

    /// The id of chunk `index`, if the seed has that chunk.
    pub(crate) fn chunk_id(&self, index: u64) -> Option<ChunkId> {
        if index >= self.tree.shape().chunks()
            || self.present.as_ref().is_some_and(|present| !present.get(index))
        {
            return None;
        }
        self.tree.id(0, index).ok()
    }

    /// Reads `buffer.len()` guest bytes at `offset`, zeros past the end. A seed that cannot be read is not worth
    /// an error: what it would have given is fetched.
    pub(crate) fn read(&self, buffer: &mut [u8], offset: u64) -> bool {
        let size = self.image.device.size();
        let inside = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        buffer[inside..].fill(0);
        inside == 0 || self.image.device.read_at(&mut buffer[..inside], offset).is_ok()
    }
}

/// For each chunk of `range`, whose ids are `wanted`, the first seed that has it at the same place; none for zero
/// chunks. Reads the seeds' trees in one piece each.
pub(crate) fn owners(seeds: &[Seed], range: Range<u64>, wanted: &[ChunkId]) -> Vec<Option<usize>> {
    let mut owners = vec![None; wanted.len()];
    for (number, seed) in seeds.iter().enumerate() {
        let known = range.start..range.end.min(seed.tree.shape().chunks()).max(range.start);
        let Ok(ids) = seed.tree.ids(0, known.clone()) else { continue };
        for ((index, id), (owner, wanted)) in known.zip(ids).zip(owners.iter_mut().zip(wanted)) {
            let is_there = seed.present.as_ref().is_none_or(|present| present.get(index));
            if owner.is_none() && is_there && id == *wanted && !id.is_zero() {
                *owner = Some(number);
            }
        }
    }
    owners
}

/// Finds seeds in the folder of `target` other than `target` itself: the images whose kept trees share most with
/// `tree`'s size, or, if no image has a kept tree and `may_hash`, the
/// youngest one of the same size, which is hashed.
pub(crate) fn find(target: &Path, size: u64, may_hash: bool, stop: &Stop, progress: &Progress) -> Vec<Seed> {
    let Some(folder) = target.parent() else { return Vec::new() };
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut candidates: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let path = entry.path();
            let data = fs::symlink_metadata(&path).ok()?;
            let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            let is_candidate = data.is_file() && data.size() > 0 && !is_hidden && path != target;
            is_candidate.then(|| data.modified().ok().map(|modified| (modified, path)))?
        })
        .collect();
    candidates.sort_by(|a, b| b.cmp(a));
    candidates.truncate(CANDIDATES_MAX);

    let mut unhashed = None;
    let mut seeds = Vec::new();
    for (_, path) in candidates {
        let Ok(image) = goldwire_disk::open(&path, &OpenOptions::default()) else { continue };
        if let Some(cached) = TreeCache::load(&image) {
            seeds.push(Seed { image, tree: cached.tree, name: path.display().to_string(), present: None });
        } else if unhashed.is_none() && image.info.format != Format::Raw && image.device.size() == size {
            unhashed = Some(path);
        }
    }
    if seeds.is_empty()
        && may_hash
        && let Some(path) = unhashed
        && let Ok(seed) = Seed::open(&path, stop, progress)
    {
        seeds.push(seed);
    }
    seeds
}

/// Keeps the seeds that share most chunks with `tree`, judged by a sample of its chunks, best first.
pub(crate) fn keep_best(seeds: &mut Vec<Seed>, tree: &TreeFile, named: usize) {
    let chunks = tree.shape().chunks();
    let stride = (chunks / 4096).max(1);
    let score = |seed: &Seed| -> u64 {
        (0..chunks)
            .step_by(stride as usize)
            .filter(|index| {
                let id = tree.id(0, *index).unwrap_or(ChunkId::ZERO);
                !id.is_zero() && seed.chunk_id(*index) == Some(id)
            })
            .count() as u64
    };
    // Seeds that the user named stay in front; a found one must earn its place.
    let mut found: Vec<(u64, Seed)> =
        seeds.drain(named.min(seeds.len())..).map(|seed| (score(&seed), seed)).collect();
    found.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
    // Where no whole chunk is the same, blocks may still be: one seed is worth its place even then.
    let is_alone = seeds.is_empty();
    let worthy =
        found.into_iter().enumerate().filter(|(place, (score, _))| *score > 0 || (is_alone && *place == 0));
    seeds.extend(worthy.map(|(_, (_, seed))| seed));
    seeds.truncate(SEEDS_MAX.max(named));
}

/// Opens a seed that was named: an image, or a version of a store, whose tree is there. Fails for one that cannot be used.
pub(crate) fn open_named(path: &str, stop: &Stop, progress: &Progress) -> Result<Seed> {
    let opened = match Stored::find(Path::new(path)) {
        Ok(Some(stored)) => stored.open_unproven().map(|(image, tree)| Seed {
            image,
            tree,
            name: path.to_owned(),
            present: None,
        }),
        Ok(None) => Seed::open(Path::new(path), stop, progress),
        Err(failure) => Err(failure),
    };
    opened.map_err(|failure| match failure.kind {
        FailureKind::Stopped => failure,
        _ => Failure { kind: FailureKind::Invalid, ..failure }.context(format!("open the seed {path}")),
    })
}

/// Where to find blocks by fingerprint in one seed.
///
/// Sorted pairs of fingerprint and block number, at most [`BlockIndex::ENTRIES_MAX`]. For a larger seed only
/// blocks whose fingerprint ends in some zero bits are indexed: the same content is then either in the index or
/// not, wherever it lies, and neighbours of a hit are tried directly.
pub(crate) struct BlockIndex {
    entries: Vec<u64>,
    pub(crate) is_sampled: bool,
}

impl BlockIndex {
    /// 64 MiB of entries: every block of 32 GiB.
    const ENTRIES_MAX: u64 = 8 << 20;
    /// Candidates tried for one fingerprint.
    const TRIES_MAX: usize = 4;

    /// The index of the first seed that is wholly there and stands first; none without one.
    pub(crate) fn for_first(seeds: &[Seed]) -> Result<Option<Self>> {
        let Some(seed) = seeds.first() else { return Ok(None) };
        let used =
            seed.tree.shape().chunks().min(seed.tree.read_seal().map_or(u64::MAX, |seal| seal.chunks_used));
        Self::build(&seed.tree, used).map(Some)
    }

    /// Indexes the blocks of `tree`, of which about `chunks_used` chunks are not zero.
    pub(crate) fn build(tree: &TreeFile, chunks_used: u64) -> Result<Self> {
        let blocks = chunks_used.saturating_mul(BLOCKS_PER_CHUNK as u64);
        let sample_bits = blocks.div_ceil(Self::ENTRIES_MAX).max(1).next_power_of_two().trailing_zeros();
        let sample_mask = (1_u32 << sample_bits.min(31)) - 1;
        let mut entries = Vec::new();
        let chunks = tree.shape().chunks();
        let mut first = 0;
        while first < chunks {
            let node = first / 256;
            let last = (first + 256).min(chunks);
            if tree.shape().levels() == 1 || !tree.id(1, node)?.is_zero() {
                let words = tree.fingerprints(first..last)?;
                for (block, word) in (first * BLOCKS_PER_CHUNK as u64..).zip(words) {
                    if word != 0 && word & sample_mask == 0 && (entries.len() as u64) < Self::ENTRIES_MAX * 2
                    {
                        entries.push(u64::from(word) << 32 | (block & 0xffff_ffff));
                    }
                }
            }
            first = last;
        }
        entries.sort_unstable();
        Ok(Self { entries, is_sampled: sample_bits > 0 })
    }

    /// The guest offset of a block of `seed` with this hash, proven by reading it.
    pub(crate) fn find(&self, seed: &Seed, hash: u64) -> Option<u64> {
        let key = u64::from(hash as u32) << 32;
        let start = self.entries.partition_point(|entry| *entry < key);
        self.entries[start..]
            .iter()
            .take(Self::TRIES_MAX)
            .take_while(|entry| *entry >> 32 == key >> 32)
            .map(|entry| (entry & 0xffff_ffff) * BLOCK_SIZE as u64)
            .find(|offset| has_block(seed, *offset, hash))
    }
}

/// Whether `seed` holds a block with this hash at `offset`.
pub(crate) fn has_block(seed: &Seed, offset: u64, hash: u64) -> bool {
    let mut block = [0; BLOCK_SIZE];
    let is_present = seed.present.as_ref().is_none_or(|present| present.get(offset / CHUNK_SIZE as u64));
    is_present
        && offset < seed.image.device.size()
        && seed.read(&mut block, offset)
        && block_hash(&block) == hash
}
