//! A tree in a file: random access by level and index, sparse where the disk is zero, small in memory whatever
//! the disk's size. Byte layout in `docs/tree-and-version.md`.
//!
//! The same layout serves as the cache beside an image, and as the scratch tree of a transfer that is still
//! being walked. Ids are all-zero bytes for zero content, so untouched parts are file holes.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use goldwire_disk::FileIdentity;
use goldwire_stdx::{Folder, read_at_once};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::geometry::{DISK_SIZE_MAX, FANOUT, Root, TreeGeometry, node_id};
use crate::chunk::{BLOCKS_PER_CHUNK, ChunkId};
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"GWTREE\r\n";
const FORMAT_VERSION: u32 = 1;
/// The header's place; levels start here, each aligned to it.
const PAGE: u64 = 4096;
const HEADER_LENGTH: usize = 136;
/// Bytes of fingerprints per chunk: the low 32 bits of each block's hash.
const FINGERPRINTS_LENGTH: u64 = BLOCKS_PER_CHUNK as u64 * 4;

/// An open tree file.
#[derive(Debug)]
pub struct TreeFile {
    file: File,
    path: PathBuf,
    shape: TreeGeometry,
    /// Where each level starts, then where the fingerprints start.
    starts: Vec<u64>,
}

/// What the header seals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The content's digest.
    pub root: Root,
    /// What the tree was made from: the digest of the files' identities.
    pub key: [u8; 32],
    /// Chunks that are not zero.
    pub chunks_used: u64,
}

impl TreeFile {
    /// A new, empty (all-zero) tree `name` in `folder`, in the place of what has that name.
    ///
    /// # Errors
    /// `TreeFile` when the file cannot be made.
    pub fn create(folder: &Folder, name: impl AsRef<OsStr>, shape: TreeGeometry) -> Result<Self> {
        let name = name.as_ref();
        let path = folder.path().join(name);
        let made = folder.remove_file(name).and_then(|()| folder.create_new(name, 0o600));
        Self::empty(made.map_err(|source| error("create", &path, source))?, &path, shape)
    }

    /// A new, empty tree without a name, in the folder for temporary files. It is gone with its last handle.
    ///
    /// # Errors
    /// `TreeFile` when no file can be made there.
    pub fn unnamed(shape: TreeGeometry) -> Result<Self> {
        let folder = std::env::temp_dir();
        // Made by us and by nobody else: the folder is everybody's, and a link under our name would lead elsewhere.
        let made = (0..100).find_map(|number| {
            let path = folder.join(format!("goldwire-tree-{}-{number}", std::process::id()));
            let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
            (!matches!(&file, Err(error) if error.kind() == io::ErrorKind::AlreadyExists))
                .then_some((file, path))
        });
        let (file, path) = made.unwrap_or_else(|| (Err(io::ErrorKind::AlreadyExists.into()), folder));
        let file = file.map_err(|source| error("create", &path, source))?;
        let _ = std::fs::remove_file(&path);
        Self::empty(file, &path, shape)
    }

    fn empty(file: File, path: &Path, shape: TreeGeometry) -> Result<Self> {
        let tree = Self::over(file, path, shape);
        tree.file.set_len(tree.length()).map_err(|source| error("size", path, source))?;
        Ok(tree)
    }

    /// Opens the tree file `name` in `folder`, sealed or not, for writing too if that is allowed.
    ///
    /// # Errors
    /// `TreeFile`, `DamagedTree`.
    pub fn open(folder: &Folder, name: impl AsRef<OsStr>, size: u64) -> Result<Self> {
        let name = name.as_ref();
        let path = folder.path().join(name);
        let file = match folder.write_file(name) {
            // A reader without write permission, or of a medium that cannot be written, may still use what others made.
            Err(denied)
                if matches!(
                    denied.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                folder.read_file(name)
            }
            other => other,
        }
        .map_err(|source| error("open", &path, source))?;
        let shape =
            TreeGeometry::new(size).ok_or_else(|| damaged(&path, "the disk is larger than 64 TiB"))?;
        let tree = Self::over(file, &path, shape);
        let length = tree.file.metadata().map_err(|source| error("stat", &path, source))?.len();
        if length != tree.length() {
            return Err(damaged(&path, format!("{length} bytes long instead of {}", tree.length())));
        }
        Ok(tree)
    }

    /// The disk size that the header of the tree file `name` claims.
    ///
    /// # Errors
    /// `TreeFile`, `DamagedTree`.
    pub fn claimed_size(folder: &Folder, name: impl AsRef<OsStr>) -> Result<u64> {
        let path = folder.path().join(name.as_ref());
        let file = folder.read_file(name).map_err(|source| error("open", &path, source))?;
        let mut header = [0; HEADER_LENGTH];
        file.read_exact_at(&mut header, 0).map_err(|source| error("read", &path, source))?;
        let size = u64_at(&header, 16);
        if &header[..8] != MAGIC || size > DISK_SIZE_MAX {
            return Err(damaged(&path, "no tree header"));
        }
        Ok(size)
    }

    /// The file's identity as it is now.
    ///
    /// # Errors
    /// `TreeFile`.
    pub fn identity(&self) -> Result<FileIdentity> {
        FileIdentity::of(&self.file).map_err(|source| error("stat", &self.path, source))
    }

    fn over(file: File, path: &Path, shape: TreeGeometry) -> Self {
        let mut starts = vec![PAGE];
        let mut end = PAGE;
        for level in 0..shape.levels() {
            end += (shape.count(level) * 32).next_multiple_of(PAGE);
            starts.push(end);
        }
        Self { file, path: path.to_owned(), shape, starts }
    }

    fn length(&self) -> u64 {
        self.starts[self.shape.levels()] + self.shape.chunks() * FINGERPRINTS_LENGTH
    }

    /// The geometry.
    pub fn shape(&self) -> &TreeGeometry {
        &self.shape
    }

    /// Where the file is, or was before it was renamed or unlinked.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ids `range` of `level`.
    ///
    /// # Errors
    /// `TreeFile` on a failed read; `DamagedTree` for a range outside of the level.
    pub fn ids(&self, level: usize, range: std::ops::Range<u64>) -> Result<Vec<ChunkId>> {
        self.check(level, &range)?;
        let count = (range.end - range.start) as usize;
        let mut bytes = vec![0; count * 32];
        let at = self.starts[level] + range.start * 32;
        self.file.read_exact_at(&mut bytes, at).map_err(|source| error("read", &self.path, source))?;
        Ok(ids_of(&bytes))
    }

    /// The same ids if they are in memory; what is wrong is for [`ids`](Self::ids) to say.
    pub(crate) fn ids_at_once(&self, level: usize, range: std::ops::Range<u64>) -> Option<Vec<ChunkId>> {
        self.check(level, &range).ok()?;
        let mut bytes = vec![0; (range.end - range.start) as usize * 32];
        let at = self.starts[level] + range.start * 32;
        read_at_once(&self.file, &mut bytes, at).then(|| ids_of(&bytes))
    }

    /// One id.
    ///
    /// # Errors
    /// As [`ids`](Self::ids).
    pub fn id(&self, level: usize, index: u64) -> Result<ChunkId> {
        self.ids(level, index..index.saturating_add(1)).map(|ids| ids[0])
    }

    /// The id at the top.
    ///
    /// # Errors
    /// As [`ids`](Self::ids).
    pub fn top(&self) -> Result<ChunkId> {
        self.id(self.shape.levels() - 1, 0)
    }

    /// Writes ids from `first` on. Zero ids over a hole keep the hole.
    ///
    /// # Errors
    /// `TreeFile`, `DamagedTree` for a range outside of the level.
    pub fn set_ids(&self, level: usize, first: u64, ids: &[ChunkId]) -> Result<()> {
        self.check(level, &(first..first.saturating_add(ids.len() as u64)))?;
        let mut bytes = Vec::with_capacity(ids.len() * 32);
        ids.iter().for_each(|id| bytes.extend_from_slice(&id.0));
        let at = self.starts[level] + first * 32;
        self.file.write_all_at(&bytes, at).map_err(|source| error("write", &self.path, source))
    }

    /// The low halves of the block hashes of chunks `range`, 16 a chunk; 0 where nothing is known or the block
    /// is zero.
    ///
    /// # Errors
    /// `TreeFile`, `DamagedTree` for a range outside of the disk.
    pub fn fingerprints(&self, range: std::ops::Range<u64>) -> Result<Vec<u32>> {
        self.check(0, &range)?;
        let mut bytes = vec![0; ((range.end - range.start) * FINGERPRINTS_LENGTH) as usize];
        let at = self.starts[self.shape.levels()] + range.start * FINGERPRINTS_LENGTH;
        self.file.read_exact_at(&mut bytes, at).map_err(|source| error("read", &self.path, source))?;
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }

    /// Writes fingerprints from chunk `first` on, 16 a chunk.
    ///
    /// # Errors
    /// `TreeFile`, `DamagedTree` for a range outside of the disk.
    pub fn set_fingerprints(&self, first: u64, words: &[u32]) -> Result<()> {
        self.check(0, &(first..first.saturating_add((words.len() / BLOCKS_PER_CHUNK) as u64)))?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let at = self.starts[self.shape.levels()] + first * FINGERPRINTS_LENGTH;
        self.file.write_all_at(&bytes, at).map_err(|source| error("write", &self.path, source))
    }

    /// Computes levels 2 and up from level 1 and returns the root. Level 1 is filled by whoever fills level 0.
    ///
    /// # Errors
    /// `TreeFile`.
    pub fn close_upper_levels(&self) -> Result<Root> {
        for level in 2..self.shape.levels() {
            for index in 0..self.shape.count(level) {
                let children = self.ids(level - 1, self.shape.children(level, index))?;
                let id = node_id(level, &children);
                if !id.is_zero() {
                    self.set_ids(level, index, &[id])?;
                }
            }
        }
        Ok(self.shape.root(&self.top()?))
    }

    /// Checks every node below the root, top down, skipping zero subtrees.
    ///
    /// # Errors
    /// `DamagedTree` for the first node that does not have its id, `TreeFile`.
    pub fn verify(&self, root: &Root) -> Result<()> {
        if self.shape.root(&self.top()?) != *root {
            return Err(damaged(&self.path, "the top does not give the root"));
        }
        for level in (1..self.shape.levels()).rev() {
            let count = self.shape.count(level);
            for first in (0..count).step_by(FANOUT as usize) {
                let ids = self.ids(level, first..(first + FANOUT).min(count))?;
                for (index, id) in (first..).zip(&ids).filter(|(_, id)| !id.is_zero()) {
                    let children = self.ids(level - 1, self.shape.children(level, index))?;
                    if node_id(level, &children) != *id {
                        return Err(damaged(&self.path, format!("node {index} of level {level}")));
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the header. The file is a usable cache from here on.
    ///
    /// # Errors
    /// `TreeFile`.
    pub fn seal(&self, seal: &Seal) -> Result<()> {
        let mut header = [0; HEADER_LENGTH];
        header[..8].copy_from_slice(MAGIC);
        header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&self.shape.size().to_le_bytes());
        header[24..32].copy_from_slice(&seal.chunks_used.to_le_bytes());
        header[32..64].copy_from_slice(&seal.root.0);
        header[64..96].copy_from_slice(&seal.key);
        let checksum = *blake3::hash(&header[..96]).as_bytes();
        header[96..128].copy_from_slice(&checksum);
        self.file.write_all_at(&header, 0).map_err(|source| error("seal", &self.path, source))
    }

    /// What the header seals.
    ///
    /// # Errors
    /// `DamagedTree` for an unsealed file, a wrong checksum, another version or another disk size, more
    /// chunks than the disk has.
    pub fn read_seal(&self) -> Result<Seal> {
        let mut header = [0; HEADER_LENGTH];
        self.file.read_exact_at(&mut header, 0).map_err(|source| error("read", &self.path, source))?;
        let fits = &header[..8] == MAGIC
            && header[8..12] == FORMAT_VERSION.to_le_bytes()
            && header[96..128] == *blake3::hash(&header[..96]).as_bytes()
            && u64_at(&header, 16) == self.shape.size()
            && u64_at(&header, 24) <= self.shape.chunks();
        if !fits {
            return Err(damaged(&self.path, "the header is not sealed for this disk"));
        }
        Ok(Seal {
            root: Root(array_at(&header, 32)),
            key: array_at(&header, 64),
            chunks_used: u64_at(&header, 24),
        })
    }

    /// Gives the space of the fingerprints back, where the file system can: all are unknown from then on. The file keeps its
    /// length, so that nobody who reads it meets its end.
    ///
    /// # Errors
    /// `TreeFile`.
    pub(crate) fn forget_fingerprints(&self) -> Result<()> {
        let start = self.starts[self.shape.levels()];
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, start, self.length() - start) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            Err(failed) => Err(error("punch a hole into", &self.path, failed.into())),
        }
    }

    /// Makes the file durable.
    ///
    /// # Errors
    /// `TreeFile`.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|source| error("sync", &self.path, source))
    }

    fn check(&self, level: usize, range: &std::ops::Range<u64>) -> Result<()> {
        if range.start > range.end || range.end > self.shape.count(level) {
            return Err(damaged(&self.path, format!("ids {range:?} of level {level} do not exist")));
        }
        Ok(())
    }
}

fn ids_of(bytes: &[u8]) -> Vec<ChunkId> {
    let (ids, _) = bytes.as_chunks::<32>();
    ids.iter().map(|id| ChunkId(*id)).collect()
}

fn error(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::TreeFile { doing, path: path.to_owned(), source }
}

fn damaged(path: &Path, why: impl Into<String>) -> Error {
    Error::DamagedTree { path: path.to_owned(), why: why.into() }
}

fn array_at<const N: usize>(bytes: &[u8; HEADER_LENGTH], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u64_at(bytes: &[u8; HEADER_LENGTH], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_file_opens_and_a_flipped_bit_does_not_pass() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tree");
        let folder = Folder::open(folder.path()).unwrap();
        let shape = TreeGeometry::new(40 << 20).unwrap();
        let tree = TreeFile::create(&folder, "tree", shape.clone()).unwrap();
        let ids = [ChunkId([1; 32]), ChunkId([2; 32])];
        tree.set_ids(0, 300, &ids).unwrap();
        let children = tree.ids(0, shape.children(1, 1)).unwrap();
        tree.set_ids(1, 1, &[node_id(1, &children)]).unwrap();
        let root = tree.close_upper_levels().unwrap();
        let seal = Seal { root, key: [9; 32], chunks_used: 2 };
        tree.seal(&seal).unwrap();
        let opened = TreeFile::open(&folder, "tree", 40 << 20).unwrap();
        assert_eq!(opened.read_seal().unwrap(), seal);
        opened.verify(&root).unwrap();
        // A right checksum proves no number.
        for (chunks_used, is_read) in [(640, true), (641, false), (u64::MAX, false)] {
            tree.seal(&Seal { chunks_used, ..seal }).unwrap();
            assert_eq!(opened.read_seal().is_ok(), is_read, "{chunks_used}");
        }
        tree.seal(&seal).unwrap();
        assert_eq!(TreeFile::claimed_size(&folder, "tree").unwrap(), 40 << 20);

        let bytes = std::fs::read(&path).unwrap();
        for position in [0, 9, 17, 25, 40, 70, 100, PAGE as usize + 300 * 32] {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1;
            std::fs::write(&path, &damaged).unwrap();
            let tree = TreeFile::open(&folder, "tree", 40 << 20).unwrap();
            let passes = tree.read_seal().is_ok_and(|seal| tree.verify(&seal.root).is_ok());
            assert!(!passes, "byte {position}");
        }
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(TreeFile::open(&folder, "tree", 40 << 20).is_err());
    }
}
