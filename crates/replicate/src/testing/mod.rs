//! What the tests of this room share: disks with a known content, an honest source without threads, and a destination in
//! memory that fills up, tears, rots and crashes on request. Everything that looks random comes from a seed.

mod pipe;
mod script;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use goldwire_disk::testing::MemDevice;
use goldwire_disk::{BlockDevice, Format, Image, OpenOptions};
use goldwire_stdx::Folder;
use goldwire_store::{BuildOptions, CHUNK_SIZE, Progress, Root, TreeFile, TreeGeometry, Version, build_tree};
use tempfile::TempDir;

pub(crate) use goldwire_stdx::testing::until;

pub(crate) use self::pipe::{Peer, PipeReader, PipeWriter, pipe};
pub(crate) use self::script::{Script, greeting};
use crate::failure::Result;
use crate::receive::testing::{Bitmap, Destination, LaidOut, ReadBack, Seed};
use crate::wire::{Failure, FailureKind};

/// A generator of numbers that look random and follow from its seed.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    /// Below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        goldwire_disk::testing::random(self.0) % limit
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Whether this process runs nothing but the calling test. If others run beside it, what the process holds says nothing of
/// the test: then a process of its own runs it, and has to succeed.
pub(crate) fn runs_alone() -> bool {
    const ALONE: &str = "GOLDWIRE_TEST_ALONE";
    let is_alone = std::env::var_os(ALONE).is_some()
        || std::env::var("NEXTEST_EXECUTION_MODE").is_ok_and(|mode| mode == "process-per-test");
    let thread = std::thread::current();
    // The harness names a test's thread after it.
    let Some(name) = thread.name().filter(|name| !is_alone && *name != "main") else { return true };
    let alone = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&alone.stdout);
    assert!(alone.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// Bytes of memory that this process occupies.
pub(crate) fn memory_of() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// A disk of `chunks` chunks, the last one cut short by `short` bytes; about one in three is used. The content of a chunk
/// follows from `seed` and its index.
pub(crate) fn content(seed: u64, chunks: u64, short: u64) -> Vec<u8> {
    let mut bytes = vec![0; (chunks * CHUNK_SIZE as u64 - short) as usize];
    for (index, chunk) in bytes.chunks_mut(CHUNK_SIZE).enumerate() {
        fill(seed, index as u64, chunk);
    }
    bytes
}

fn fill(seed: u64, index: u64, chunk: &mut [u8]) {
    let mut random = Random::new(seed ^ (index << 20));
    if random.below(3) > 0 {
        return;
    }
    let mut word = random.below(u64::MAX);
    for place in chunk.chunks_mut(8) {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        place.copy_from_slice(&word.to_le_bytes()[..place.len()]);
    }
}

/// Changes some bytes of some chunks.
pub(crate) fn change(bytes: &mut [u8], random: &mut Random, changes: u64) {
    for _ in 0..changes {
        let at = random.below(bytes.len() as u64) as usize;
        let length = (random.below(20_000) as usize).min(bytes.len() - at);
        let value = random.below(256) as u8;
        bytes[at..at + length].fill(value);
    }
}

/// A raw image in a folder of its own, with its tree.
pub(crate) struct Disk {
    _folder: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) version: Version,
    pub(crate) content: Vec<u8>,
}

impl Disk {
    pub(crate) fn new(content: Vec<u8>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, &content).unwrap();
        let tree = TreeFile::unnamed(TreeGeometry::new(content.len() as u64).unwrap()).unwrap();
        let (root, chunks_used) = hash(&MemDevice::with_content(content.clone()), &tree);
        let version = Version {
            root,
            size: content.len() as u64,
            chunks_used,
            created: 1_780_000_000,
            parent: None,
            name: "disk".into(),
            note: String::new(),
            signer: None,
        };
        Self { _folder: folder, path, version, content }
    }

    pub(crate) fn image(&self) -> Image {
        let options = OpenOptions { format: Some(Format::Raw), ..OpenOptions::default() };
        goldwire_disk::open(&self.path, &options).unwrap()
    }

    pub(crate) fn tree(&self) -> TreeFile {
        let tree = TreeFile::unnamed(TreeGeometry::new(self.content.len() as u64).unwrap()).unwrap();
        hash(&MemDevice::with_content(self.content.clone()), &tree);
        tree
    }

    pub(crate) fn seed(&self) -> Seed {
        Seed { image: self.image(), tree: self.tree(), name: "seed".into(), present: None }
    }
}

fn hash(device: &dyn BlockDevice, tree: &TreeFile) -> (Root, u64) {
    let (stop, progress) = (false.into(), Progress::default());
    let options = BuildOptions { threads: std::num::NonZeroUsize::new(1), stop: &stop, progress: &progress };
    build_tree(device, tree, &options).unwrap()
}

/// A destination in memory. It outlives the receptions that use it, as a disk outlives a process.
pub(crate) struct MemDestination {
    version: Version,
    folder: TempDir,
    state: Mutex<State>,
}

struct State {
    device: MemDevice,
    is_laid_out: bool,
    /// Durable.
    journal: Vec<(u64, u64)>,
    published: Option<Vec<u8>>,
    /// Bytes that can still be written.
    space: u64,
    /// Chunks that the medium does not keep: the next read-back finds zeros there.
    rot: Vec<u64>,
}

impl MemDestination {
    pub(crate) fn new(version: &Version) -> Self {
        let state = State {
            device: MemDevice::new(version.size),
            is_laid_out: false,
            journal: Vec::new(),
            published: None,
            space: u64::MAX,
            rot: Vec::new(),
        };
        let folder = tempfile::tempdir().unwrap();
        Self { version: version.clone(), folder, state: Mutex::new(state) }
    }

    /// Lets only so many bytes more be written.
    pub(crate) fn set_space(&self, bytes: u64) {
        self.lock().space = bytes;
    }

    /// The medium will not keep this chunk.
    pub(crate) fn rot(&self, chunk: u64) {
        self.lock().rot.push(chunk);
    }

    /// The power fails: of what was not flushed each write is there or not.
    pub(crate) fn crash(&self, random: &mut Random) {
        let mut state = self.lock();
        let seed = random.below(u64::MAX);
        let image = state.device.crash_image(|write| Random::new(seed ^ write as u64).chance(50));
        state.device = MemDevice::with_content(image);
    }

    pub(crate) fn published(&self) -> Option<Vec<u8>> {
        self.lock().published.clone()
    }

    /// Chunks that the journal names.
    pub(crate) fn journaled(&self) -> u64 {
        let mut chunks: Vec<u64> =
            self.lock().journal.iter().flat_map(|(first, count)| *first..first + count).collect();
        chunks.sort_unstable();
        chunks.dedup();
        chunks.len() as u64
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn put(state: &mut State, size: u64, first: u64, bytes: &[u8]) -> Result<()> {
        let start = first * CHUNK_SIZE as u64;
        let inside = (size - start).min(bytes.len() as u64) as usize;
        if state.space < inside as u64 {
            return Err(Failure::new(FailureKind::Space, "the disk is full"));
        }
        state.space -= inside as u64;
        Ok(state.device.write_at(&bytes[..inside], start)?)
    }
}

impl Destination for MemDestination {
    fn tree(&self) -> Result<(TreeFile, bool)> {
        let folder = Folder::open(self.folder.path()).unwrap();
        if let Ok(tree) = TreeFile::open(&folder, "tree", self.version.size)
            && tree.verify(&self.version.root).is_ok()
        {
            return Ok((tree, true));
        }
        Ok((TreeFile::create(&folder, "tree", TreeGeometry::new(self.version.size).unwrap())?, false))
    }

    fn lay_out(&self, _: &TreeFile, done: &Bitmap, _: &BuildOptions<'_>) -> Result<LaidOut> {
        let mut state = self.lock();
        let is_continued = std::mem::replace(&mut state.is_laid_out, true);
        let journaled = state.journal.iter().flat_map(|(first, count)| *first..first + count);
        let resumed = journaled.filter(|chunk| done.set(*chunk)).count() as u64;
        Ok(LaidOut { resumed, is_continued, notice: None })
    }

    fn write(&self, first: u64, bytes: &[u8]) -> Result<()> {
        let mut state = self.lock();
        assert!(state.is_laid_out && state.published.is_none());
        Self::put(&mut state, self.version.size, first, bytes)
    }

    fn overwrite(&self, first: u64, bytes: &[u8]) -> Result<()> {
        self.write(first, bytes)
    }

    fn read(&self, index: u64, chunk: &mut [u8]) -> Result<()> {
        let start = index * CHUNK_SIZE as u64;
        let inside = (self.version.size - start).min(chunk.len() as u64) as usize;
        chunk[inside..].fill(0);
        Ok(self.lock().device.read_at(&mut chunk[..inside], start)?)
    }

    fn journal(&self, runs: &[(u64, u64)]) -> Result<()> {
        let mut state = self.lock();
        state.device.flush()?;
        state.journal.extend_from_slice(runs);
        Ok(())
    }

    fn read_back(&self, _: &BuildOptions<'_>) -> Result<ReadBack> {
        let mut state = self.lock();
        state.device.flush()?;
        for chunk in std::mem::take(&mut state.rot) {
            let start = chunk * CHUNK_SIZE as u64;
            let inside = (self.version.size - start).min(CHUNK_SIZE as u64) as usize;
            state.device.write_at(&vec![0; inside], start)?;
        }
        let tree = TreeFile::unnamed(TreeGeometry::new(self.version.size).unwrap())?;
        let (root, _) = hash(&state.device, &tree);
        Ok(ReadBack { root, tree })
    }

    fn publish(&self) -> Result<Option<String>> {
        let mut state = self.lock();
        state.published = Some(state.device.content());
        Ok(None)
    }
}
