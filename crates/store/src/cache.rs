//! The tree of an image, computed once and kept beside it.
//!
//! A cached tree is used only while every file of the chain has the identity (device, inode, length, modification
//! and change time) that it had when the tree was made. Two holes in that rule are closed:
//!
//! * *A write within the clock's grain.* A file that changed less than [`SETTLE`] before the run began could
//!   change again without its times moving, so its tree is used but not kept.
//! * *A block device* has no modification time that means anything; its tree is never kept.
//!
//! The key covers the path's file names too, so a cache does not follow a file that is moved elsewhere.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use goldwire_disk::{FileIdentity, Image};
use goldwire_stdx::to_hex;

use crate::build::{BuildOptions, build_tree};
use crate::error::{Error, Result};
use crate::file::{Seal, TreeFile};
use crate::folder::{WORK_FOLDER, make_own_folder};
use crate::shape::{Root, Shape};

/// How long a file must have been left alone before its tree is kept. NFS servers may keep whole seconds.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);

const KEY_CONTEXT: &str = "goldwire 2026-11 tree cache key";

/// A tree together with what it stands for.
#[derive(Debug)]
pub struct TreeCache {
    /// The tree.
    pub tree: TreeFile,
    /// Its root.
    pub root: Root,
    /// Chunks that are not zero.
    pub chunks_used: u64,
    /// Whether it was there already.
    pub was_cached: bool,
}

impl TreeCache {
    /// The image's tree: the kept one if it is still true, otherwise a new one, which is kept if it may be.
    ///
    /// # Errors
    /// Reading the disk; `Changed` when a file of the chain changed during the run; `Stopped`. A cache that
    /// cannot be read or written is no error.
    pub fn of(image: &Image, options: &BuildOptions<'_>) -> Result<Self> {
        Self::load(image).map_or_else(|| Self::afresh(image, options), Ok)
    }

    /// The image's tree from its bytes, whatever is kept: for when a kept tree is no proof.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn afresh(image: &Image, options: &BuildOptions<'_>) -> Result<Self> {
        let size = image.device.size();
        let shape = Shape::new(size).ok_or(Error::TooLarge { size })?;
        let scratch = Scratch::new(image)?;
        let tree = TreeFile::create(&scratch.path, shape)?;
        let started_ns = FileIdentity::of_path(&scratch.path).map_or(0, |identity| identity.changed_ns);
        let (root, chunks_used) = build_tree(image.device.as_ref(), &tree, options)?;
        if let Some(path) = image.changed().map_err(|source| Error::read_disk(0, source))? {
            return Err(Error::Changed { path });
        }
        let made = Self { tree, root, chunks_used, was_cached: false };
        if settled(image, started_ns)
            && let Some(key) = key(image)
            && let Some(place) = &scratch.place
        {
            made.tree.seal(&Seal { root, key, chunks_used })?;
            // Not being able to keep it costs only time, later.
            let _ = fs::rename(&scratch.path, place);
        }
        Ok(made)
    }

    /// The kept tree, if there is one and it is true.
    pub fn load(image: &Image) -> Option<Self> {
        let key = key(image)?;
        places(image).into_iter().find_map(|place| {
            let tree = TreeFile::open(&place, image.device.size()).ok()?;
            let seal = tree.read_seal().ok()?;
            // The whole tree is verified here, so that nobody who is served from it meets a damaged node.
            (seal.key == key && tree.verify(&seal.root).is_ok()).then_some(Self {
                tree,
                root: seal.root,
                chunks_used: seal.chunks_used,
                was_cached: true,
            })
        })
    }

    /// Makes the tree file at `path` the kept tree of `image`, whose content the caller has just written,
    /// verified against `root` and published itself.
    ///
    /// # Errors
    /// `TreeFile`.
    pub fn adopt(image: &Image, path: &Path, root: Root, chunks_used: u64) -> Result<()> {
        let (Some(key), Some(place)) = (key(image), places(image).into_iter().next()) else { return Ok(()) };
        let failed = |source| Error::TreeFile { doing: "keep", path: place.clone(), source };
        let tree = TreeFile::open(path, image.device.size())?;
        tree.seal(&Seal { root, key, chunks_used })?;
        make_place(&place).map_err(failed)?;
        fs::rename(path, &place).map_err(failed)
    }
}

/// The name of a tree file in the making; the file goes when this does, unless it was renamed.
struct Scratch {
    path: PathBuf,
    /// Where to keep the finished tree.
    place: Option<PathBuf>,
}

impl Scratch {
    /// A name in the first folder that takes a file: beside the image, in the user's cache, or, for a tree that
    /// will not be kept, the folder for temporary files.
    fn new(image: &Image) -> Result<Self> {
        let unique = format!("{}-{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        for place in places(image) {
            let Some(folder) = place.parent() else { continue };
            sweep(folder);
            let path = place.with_added_extension(&unique);
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            if make_place(&place).and_then(|()| options.open(&path)).is_ok() {
                return Ok(Self { path, place: Some(place) });
            }
        }
        let path = std::env::temp_dir().join(format!("goldwire-tree-{unique}"));
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        options.open(&path).map_err(|source| Error::TreeFile {
            doing: "create",
            path: path.clone(),
            source,
        })?;
        Ok(Self { path, place: None })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // After a successful keep the name is gone already.
        let _ = fs::remove_file(&self.path);
    }
}

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Removes tree files in the making that a killed run left a day ago or more.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let is_scratch = entry.file_name().as_encoded_bytes().ends_with(b".tmp");
        let age =
            entry.metadata().ok().and_then(|data| data.modified().ok()).and_then(|time| time.elapsed().ok());
        if is_scratch && age.is_some_and(|age| age > Duration::from_secs(24 * 3600)) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Makes the folder of a place: beside an image it must be safe, in the user's cache it is the user's.
fn make_place(place: &Path) -> io::Result<()> {
    let folder = place.parent().unwrap_or(Path::new("/"));
    match folder.parent().filter(|own| own.ends_with(WORK_FOLDER)).and_then(Path::parent) {
        Some(around) => make_own_folder(around, "trees").map(drop),
        None => fs::DirBuilder::new().recursive(true).mode(0o700).create(folder),
    }
}

/// Where an image's tree may be kept, best first.
fn places(image: &Image) -> Vec<PathBuf> {
    let Some(head) = image.chain.first().map(|link| &link.path) else { return Vec::new() };
    let Ok(head) = fs::canonicalize(head) else { return Vec::new() };
    let (Some(folder), Some(name)) = (head.parent(), head.file_name()) else { return Vec::new() };
    let mut places = vec![folder.join(WORK_FOLDER).join("trees").join(name).with_added_extension("tree")];
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    if let Some(cache) = cache.filter(|cache| cache.is_absolute()) {
        let name = to_hex(&blake3::hash(head.as_os_str().as_encoded_bytes()).as_bytes()[..16]);
        places.push(cache.join("goldwire").join("trees").join(name).with_added_extension("tree"));
    }
    places
}

/// Whether every file of the chain had been left alone long enough when the run began.
fn settled(image: &Image, started_ns: i128) -> bool {
    image.chain.iter().all(|link| {
        let touched = link.identity.modified_ns.max(link.identity.changed_ns);
        started_ns - touched > SETTLE.as_nanos() as i128
    })
}

/// The digest of the chain's file names and identities; none where a block device is part of it.
fn key(image: &Image) -> Option<[u8; 32]> {
    let mut hasher = blake3::Hasher::new_derive_key(KEY_CONTEXT);
    for link in &image.chain {
        if !fs::metadata(&link.path).ok()?.is_file() {
            return None;
        }
        let name = link.path.file_name()?.as_encoded_bytes();
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
        let identity = &link.identity;
        for number in [identity.device, identity.inode, identity.length] {
            hasher.update(&number.to_le_bytes());
        }
        for time in [identity.modified_ns, identity.changed_ns] {
            hasher.update(&time.to_le_bytes());
        }
    }
    Some(*hasher.finalize().as_bytes())
}
