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

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use goldwire_disk::Image;
use goldwire_stdx::{Existing, Folder, to_hex};

use super::build::{BuildOptions, Look, build_tree_looking};
use super::file::{Seal, TreeFile};
use super::geometry::{Root, TreeGeometry};
use crate::error::{Error, Result};
use crate::own::{Kept, find_own, with_own};

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
        Self::of_looking(image, options, &|_, _| ())
    }

    /// As [`of`](Self::of); `look` sees the bytes of all chunks that are hashed, and nothing where a tree was kept: the
    /// index of the first, and chunks that lie end to end. Several threads call it.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn of_looking(image: &Image, options: &BuildOptions<'_>, look: &Look<'_>) -> Result<Self> {
        Self::load(image).map_or_else(|| Self::rebuild_looking(image, options, look), Ok)
    }

    /// The image's tree from its bytes, whatever is kept: for when a kept tree is no proof.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn rebuild(image: &Image, options: &BuildOptions<'_>) -> Result<Self> {
        Self::rebuild_looking(image, options, &|_, _| ())
    }

    /// As [`rebuild`](Self::rebuild); `look` sees all that is hashed.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn rebuild_looking(image: &Image, options: &BuildOptions<'_>, look: &Look<'_>) -> Result<Self> {
        let size = image.device.size();
        let shape = TreeGeometry::new(size).ok_or(Error::TooLarge { size })?;
        let scratch = Scratch::new(image, shape)?;
        let tree = &scratch.tree;
        let (root, chunks_used) = build_tree_looking(image.device.as_ref(), tree, options, look)?;
        if let Some(path) = image.changed().map_err(|source| Error::read_disk(0, source))? {
            return Err(Error::Changed { path });
        }
        if settled(image, scratch.started_ns)
            && let Some(key) = key(image)
        {
            tree.seal(&Seal { root, key, chunks_used })?;
            scratch.keep();
        }
        Ok(Self { tree: scratch.tree, root, chunks_used, was_cached: false })
    }

    /// The kept tree, if there is one and it is true. Only trees that we or root kept are believed: whoever makes up a
    /// tree makes up its key and its checksum too.
    pub fn load(image: &Image) -> Option<Self> {
        let key = key(image)?;
        let place = Place::of(image)?;
        let beside =
            find_own(&place.around, Kept::Trees, &[]).into_iter().map(|folder| (folder, &place.beside));
        beside.chain(find_in_cache().map(|folder| (folder, &place.in_cache))).find_map(|(folder, name)| {
            let tree = TreeFile::open(&folder, name, image.device.size()).ok()?;
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

    /// Makes the tree file `name` of the folder `work` the kept tree of `image`, whose content the caller has just
    /// written, verified against `root` and published itself.
    ///
    /// # Errors
    /// `TreeFile`.
    pub fn adopt(image: &Image, work: &Folder, name: &str, root: Root, chunks_used: u64) -> Result<()> {
        let (Some(key), Some(place)) = (key(image), Place::of(image)) else { return Ok(()) };
        let tree = TreeFile::open(work, name, image.device.size())?;
        tree.seal(&Seal { root, key, chunks_used })?;
        let rename = |folder: Folder| work.rename(name, &folder, &place.beside, Existing::Replace);
        with_own(&place.around, Kept::Trees, rename).map_err(|source| Error::TreeFile {
            doing: "keep",
            path: tree.path().to_owned(),
            source,
        })
    }
}

/// A tree file in the making.
struct Scratch {
    tree: TreeFile,
    /// The file system's clock when the run began.
    started_ns: i128,
    /// `None` for a tree that cannot be kept.
    named: Option<Named>,
}

/// The name of a tree file in the making; it goes when this does, unless the tree was kept.
struct Named {
    folder: Folder,
    scratch: String,
    /// The name that it is kept under.
    kept: OsString,
}

impl Drop for Named {
    fn drop(&mut self) {
        // After a successful keep the name is gone already.
        let _ = self.folder.remove_file(&self.scratch);
    }
}

impl Scratch {
    /// In the first folder that takes a file: beside the image, in the user's cache, or, for a tree that will not be
    /// kept, without a name in the folder for temporary files.
    fn new(image: &Image, shape: TreeGeometry) -> Result<Self> {
        let unique = format!("{}-{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let begin = |folder: Folder| -> io::Result<(Folder, TreeFile)> {
            sweep(&folder);
            match TreeFile::create(&folder, &unique, shape.clone()) {
                Ok(tree) => Ok((folder, tree)),
                Err(Error::TreeFile { source, .. }) => Err(source),
                Err(other) => Err(io::Error::other(other)),
            }
        };
        let place = Place::of(image);
        let beside = || {
            let place = place.as_ref()?;
            Some((with_own(&place.around, Kept::Trees, begin).ok()?, place.beside.clone()))
        };
        let in_cache = || {
            let place = place.as_ref()?;
            Some((make_in_cache().and_then(begin).ok()?, place.in_cache.clone()))
        };
        if let Some(((folder, tree), kept)) = beside().or_else(in_cache) {
            let started_ns = tree.identity().map_or(0, |identity| identity.changed_ns);
            return Ok(Self { tree, started_ns, named: Some(Named { folder, scratch: unique, kept }) });
        }
        Ok(Self { tree: TreeFile::unnamed(shape)?, started_ns: 0, named: None })
    }

    /// Not being able to keep it costs only time, later.
    fn keep(&self) {
        if let Some(Named { folder, scratch, kept }) = &self.named {
            let _ = folder.rename(scratch, folder, kept, Existing::Replace);
        }
    }
}

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Removes tree files in the making that a killed run left a day ago or more.
fn sweep(folder: &Folder) {
    for name in folder.entries().unwrap_or_default() {
        let is_scratch = name.as_encoded_bytes().ends_with(b".tmp");
        let modified = || folder.read_file(&name).ok()?.metadata().ok()?.modified().ok()?.elapsed().ok();
        if is_scratch && modified().is_some_and(|age| age > Duration::from_secs(24 * 3600)) {
            let _ = folder.remove_file(&name);
        }
    }
}

/// Where an image's tree may be kept.
struct Place {
    /// The image's folder.
    around: Folder,
    /// The tree's name beside the image.
    beside: OsString,
    /// The tree's name in the user's cache.
    in_cache: OsString,
}

impl Place {
    fn of(image: &Image) -> Option<Self> {
        let head = fs::canonicalize(&image.chain.first()?.path).ok()?;
        let around = Folder::open(head.parent()?).ok()?;
        let digest = to_hex(&blake3::hash(head.as_os_str().as_encoded_bytes()).as_bytes()[..16]);
        Some(Self {
            around,
            beside: with_ending(head.file_name()?),
            in_cache: with_ending(OsStr::new(&digest)),
        })
    }
}

fn with_ending(name: &OsStr) -> OsString {
    let mut name = name.to_owned();
    name.push(".tree");
    name
}

fn cache_path() -> Option<PathBuf> {
    std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .filter(|path| path.is_absolute())
}

/// The trees in the user's cache. The folder around is what the user's environment names; what is ours begins below it.
fn make_in_cache() -> io::Result<Folder> {
    let path = cache_path().ok_or(io::ErrorKind::NotFound)?;
    fs::create_dir_all(&path)?;
    let cache = Folder::open(&path)?;
    let manners = cache.manners()?;
    cache.own_child("goldwire", manners)?.own_child("trees", manners)
}

fn find_in_cache() -> Option<Folder> {
    let me = rustix::process::geteuid().as_raw();
    let is_own = |folder: &Folder| folder.owner().is_ok_and(|owner| owner.is_only(me));
    let own = Folder::open(&cache_path()?).ok()?.child("goldwire").ok().filter(is_own)?;
    own.child("trees").ok().filter(is_own)
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
