//! A site's store: versions of images in packs that they share. Bytes in `docs/store-format.md`.

mod check;
mod device;
mod error;
mod image;
mod layout;
mod lock;
mod moves;
mod pieces;
mod prune;
mod put;
mod repack;
#[cfg(test)]
mod repack_tests;
mod require;
#[cfg(test)]
mod tests;
mod traces;
mod twin;

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;

use goldwire_stdx::{Folder, Uuid, from_hex};

pub use check::{Checked, StoreProblem};
pub use device::StoredVersion;
pub use error::{StoreError, StoreResult};
pub use image::{Channel, ImageNames, ImageVersion, LATEST, Moved};
pub use pieces::{Lying, Pieces};
pub use prune::{Keep, Pruned};
pub use put::{Incoming, Put, Reception};
pub use repack::{OutOfOrder, Reordered, RepackBounds, Repacked};
#[cfg(feature = "fuzzing")]
pub(crate) use require::decode as decode_requirement;
pub use twin::Twin;

use crate::pack::{PackNumber, Reader};
use crate::tree::{Root, TreeGeometry};
use crate::version::{PublicKey, Version};

const FORMAT: &str = "format";
/// The key that must have signed what comes.
const REQUIRE: &str = "require";
const MAGIC: &[u8; 8] = b"GWSTORE\n";
/// Layout versions of `format`: of a store that takes anything, and of one with a `require`, which older programs do not know.
const LAYOUT: u32 = 1;
const LAYOUT_REQUIRING: u32 = 2;
const LOCK: &str = "lock";
const FOLDERS: [&str; 4] = ["packs", "versions", "work", "images"];
/// All that lies in a store.
const ENTRIES: [&str; 7] = [FOLDERS[0], FOLDERS[1], FOLDERS[2], FOLDERS[3], FORMAT, LOCK, REQUIRE];
/// The longest descriptor.
const DESCRIPTOR_MAX: u64 = 16 << 10;
/// Hexadecimal digits that a prefix of a root has at least.
const PREFIX_MIN: usize = 6;

/// The folders and files of a version.
pub(crate) const MAP: &str = "map";
pub(crate) const TREE: &str = "tree";
pub(crate) const DESCRIPTOR: &str = "descriptor";

/// A store, open.
#[derive(Debug)]
pub struct Store {
    folder: Folder,
    uuid: Uuid,
    packs: Arc<Folder>,
    versions: Folder,
    work: Folder,
    images: Folder,
    waiting: lock::Waiting,
}

/// How much is in a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreSize {
    /// Images.
    pub images: usize,
    /// Versions.
    pub versions: usize,
    /// Packs.
    pub packs: usize,
    /// Chunks that some version may name.
    pub chunks: u64,
    /// Bytes that packs take on the medium.
    pub bytes_stored: u64,
    /// Bytes that all versions would take if each had its own.
    pub bytes_named: u64,
}

impl Store {
    /// Makes a store of the folder, which is empty or does not exist.
    ///
    /// # Errors
    /// `NotInitialized`, `File`.
    pub fn init(path: &Path) -> StoreResult<Self> {
        Self::make(path, None)
    }

    /// As [`init`](Self::init); the store takes only what `key` signed.
    ///
    /// # Errors
    /// As [`init`](Self::init).
    pub fn init_requiring(path: &Path, key: &PublicKey) -> StoreResult<Self> {
        Self::make(path, Some(key))
    }

    fn make(path: &Path, required: Option<&PublicKey>) -> StoreResult<Self> {
        let refuse = |why: String| StoreError::NotInitialized { path: path.to_owned(), why };
        let (around, name) = Folder::around(path).map_err(|error| refuse(error.to_string()))?;
        let folder = around.make_child(name, 0o700).map_err(|error| refuse(error.to_string()))?;
        if !folder.entries().map_err(StoreError::file("list", path))?.is_empty() {
            return Err(refuse("it is not empty".into()));
        }
        check_owner(&folder, path)?;
        for name in FOLDERS {
            folder.make_child(name, 0o755).map_err(StoreError::file("make a folder in", path))?;
        }
        let mut random = [0; 16];
        random.copy_from_slice(&blake3::hash(&seed(path)).as_bytes()[..16]);
        let format = format_of(Uuid(random), required.is_some());
        if let Some(key) = required {
            require::write(&folder, key)?;
        }
        folder.create_whole(LOCK, b"", 0o644).map_err(StoreError::file("write into", path))?;
        folder.create_whole(FORMAT, &format, 0o644).map_err(StoreError::file("write into", path))?;
        Self::open(path)
    }

    /// Opens a store.
    ///
    /// # Errors
    /// `NoStore`, `Owner`, `Corrupt`, `File`.
    pub fn open(path: &Path) -> StoreResult<Self> {
        let folder = Folder::open(path)
            .map_err(|error| StoreError::NoStore { path: path.to_owned(), why: error.to_string() })?;
        let (uuid, _) = read_format(&folder)?;
        check_owner(&folder, path)?;
        let child = |name: &'static str| {
            let child = folder.child(name).map_err(StoreError::file("open", &path.join(name)))?;
            check_owner(&child, &path.join(name))?;
            Ok::<_, StoreError>(child)
        };
        let (packs, versions) = (Arc::new(child("packs")?), child("versions")?);
        let (work, images) = (child("work")?, child("images")?);
        Ok(Self { folder, uuid, packs, versions, work, images, waiting: lock::Waiting::default() })
    }

    /// Whether the folder says of itself that it is a store.
    pub fn is_one(path: &Path) -> bool {
        let format = Folder::open(path).and_then(|folder| folder.read_bounded(FORMAT, 64));
        format.is_ok_and(|format| format.is_some_and(|format| format.starts_with(MAGIC)))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Its uuid.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Every version that is here whole, sorted.
    ///
    /// # Errors
    /// `File`.
    pub fn versions(&self) -> StoreResult<Vec<Root>> {
        let names = Self::entries(&self.versions)?;
        let mut roots: Vec<Root> = names.iter().filter_map(|name| root_of(name)).collect();
        roots.sort_unstable_by_key(|root| root.0);
        Ok(roots)
    }

    /// Whether the version is here whole.
    ///
    /// # Errors
    /// `File`.
    pub fn has(&self, root: &Root) -> StoreResult<bool> {
        let kind = self.versions.kind_of(root.to_string());
        Ok(kind.map_err(StoreError::file("look into", self.versions.path()))?.is_some())
    }

    /// What a version is, with its descriptor's bytes.
    ///
    /// # Errors
    /// `Unknown`, `Descriptor`, `File`.
    pub fn describe(&self, root: &Root) -> StoreResult<(Version, Vec<u8>)> {
        let folder = self.version_folder(root)?;
        let path = folder.path().join(DESCRIPTOR);
        let bytes =
            folder.read_bounded(DESCRIPTOR, DESCRIPTOR_MAX).map_err(StoreError::file("read", &path))?;
        let bytes = bytes.ok_or_else(|| StoreError::corrupt(&path, "descriptor", 0, "it is missing"))?;
        let version = Version::decode(&bytes)
            .map_err(|source| StoreError::Descriptor { path: path.clone(), source })?;
        if version.root != *root {
            return Err(StoreError::corrupt(&path, "root", 40, "it describes another version"));
        }
        let chunks = TreeGeometry::new(version.size).map_or(0, |shape| shape.chunks());
        if version.chunks_used > chunks {
            let why = format!("{} of {chunks} chunks", version.chunks_used);
            return Err(StoreError::corrupt(&path, "chunks used", 24, why));
        }
        Ok((version, bytes))
    }

    /// Opens a version. It stays whole while it is open, whatever is pruned.
    ///
    /// # Errors
    /// `Unknown`, `Corrupt`, `File`.
    pub fn version(&self, root: &Root) -> StoreResult<StoredVersion> {
        StoredVersion::open(self, root)
    }

    /// The version that a person named: a root, the beginning of one, `IMAGE`, `IMAGE:CHANNEL`, `IMAGE:TAG`.
    ///
    /// # Errors
    /// `Unknown`, with what is like it; `File`, `Corrupt`.
    pub fn find(&self, name: &str) -> StoreResult<Root> {
        let unknown = |candidates| StoreError::Unknown { name: name.to_owned(), candidates };
        let (image, label) = name.split_once(':').unwrap_or((name, LATEST));
        if let Some(names) = self.image(image)? {
            let root = names.find(label, image::now());
            return root.ok_or_else(|| {
                unknown(names.labels().iter().map(|label| format!("{image}:{label}")).collect())
            });
        }
        if name.len() >= PREFIX_MIN && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let prefix = name.to_ascii_lowercase();
            let versions = self.versions()?;
            let like: Vec<&Root> =
                versions.iter().filter(|root| root.to_string().starts_with(&prefix)).collect();
            return match like[..] {
                [root] => Ok(*root),
                _ => Err(unknown(like.iter().map(ToString::to_string).collect())),
            };
        }
        Err(unknown(self.images()?))
    }

    /// How much is here.
    ///
    /// # Errors
    /// `File`, `Corrupt`.
    pub fn size(&self) -> StoreResult<StoreSize> {
        let mut size = StoreSize { images: self.images()?.len(), ..StoreSize::default() };
        for number in self.packs_with("ids")? {
            size.packs += 1;
            size.chunks += u64::from(crate::pack::Ids::open(&self.packs, number)?.entries());
            if let Ok(pack) = crate::pack::Pack::open(&self.packs, number) {
                size.bytes_stored += pack.allocated()?;
            }
        }
        for root in self.versions()? {
            size.versions += 1;
            size.bytes_named += self.describe(&root)?.0.chunks_used * crate::chunk::CHUNK_SIZE as u64;
        }
        Ok(size)
    }

    /// The numbers of the packs that have a file with this ending, sorted.
    pub(crate) fn packs_with(&self, ending: &str) -> StoreResult<Vec<PackNumber>> {
        let names = Self::entries(&self.packs)?;
        let mut numbers: Vec<PackNumber> =
            names.iter().filter_map(|name| PackNumber::of(name, ending)).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// What lies in one of the folders. A listing that is cut is an error: what is not seen would be taken for gone.
    pub(crate) fn entries(folder: &Folder) -> StoreResult<Vec<std::ffi::OsString>> {
        let names = folder.entries().map_err(StoreError::file("list", folder.path()))?;
        if names.len() + 2 >= goldwire_stdx::ENTRIES_MAX {
            let what = format!("{} has more than {} entries", folder.path().display(), names.len());
            return Err(StoreError::TooMuch { what });
        }
        Ok(names)
    }

    pub(crate) fn version_folder(&self, root: &Root) -> StoreResult<Folder> {
        let name = root.to_string();
        self.versions.child(&name).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Unknown { name, candidates: Vec::new() },
            _ => StoreError::file("open", &self.versions.path().join(root.to_string()))(error),
        })
    }

    /// Refuses to write into a store of somebody else: what root makes there its owner could not change any more.
    pub(crate) fn check_ours(&self) -> StoreResult<()> {
        let owner = self.folder.owner().map_err(StoreError::file("stat", self.path()))?.user;
        if owner == rustix::process::geteuid().as_raw() {
            return Ok(());
        }
        let why = format!("it belongs to user {owner}, who alone writes into it");
        Err(StoreError::Owner { path: self.path().to_owned(), why })
    }
}

/// What a store's folder says of itself: its uuid, and whether it has a requirement.
fn read_format(folder: &Folder) -> StoreResult<(Uuid, bool)> {
    let refuse = |why: String| StoreError::NoStore { path: folder.path().to_owned(), why };
    let place = folder.path().join(FORMAT);
    let format = folder.read_bounded(FORMAT, 64).map_err(|error| refuse(format!("{FORMAT}: {error}")))?;
    let format = format.ok_or_else(|| refuse(format!("it has no file named {FORMAT}")))?;
    let mut reader = Reader::new(&format, &place);
    let layout = reader.begins_up_to(MAGIC, LAYOUT_REQUIRING)?;
    reader.u32("zero")?;
    let uuid = Uuid(reader.array("uuid")?);
    if reader.array::<32>("digest")? != *blake3::hash(&format[..32]).as_bytes() {
        return Err(StoreError::corrupt(&place, "digest", 32, "it does not fit the rest"));
    }
    Ok((uuid, layout == LAYOUT_REQUIRING))
}

/// The bytes by which a store's folder says what it is.
fn format_of(uuid: Uuid, is_requiring: bool) -> [u8; 64] {
    let mut format = [0; 64];
    format[..8].copy_from_slice(MAGIC);
    format[8..12].copy_from_slice(&(if is_requiring { LAYOUT_REQUIRING } else { LAYOUT }).to_le_bytes());
    format[16..32].copy_from_slice(&uuid.0);
    let digest = *blake3::hash(&format[..32]).as_bytes();
    format[32..].copy_from_slice(&digest);
    format
}

/// The version that a folder is named by.
pub(crate) fn root_of(name: &OsStr) -> Option<Root> {
    let text = name.to_str().filter(|text| !text.bytes().any(|byte| byte.is_ascii_uppercase()))?;
    from_hex(text).map(Root)
}

/// Refuses a folder into which others than its owner and root can put things, and one of a stranger: who may write into a
/// store decides what its users run. Root reads everybody's, since nothing there leads out.
fn check_owner(folder: &Folder, path: &Path) -> StoreResult<()> {
    let owner = folder.owner().map_err(StoreError::file("stat", path))?;
    let me = rustix::process::geteuid().as_raw();
    let refuse = |why: String| Err(StoreError::Owner { path: path.to_owned(), why });
    if !owner.is_only(owner.user) {
        return refuse(format!("others may write to it (mode {:o})", owner.mode & 0o7777));
    }
    if ![0, me].contains(&owner.user) && me != 0 {
        return refuse(format!("it belongs to user {}", owner.user));
    }
    Ok(())
}

/// What no other store is made from: its uuid only tells stores apart.
fn seed(path: &Path) -> Vec<u8> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut seed = path.as_os_str().as_encoded_bytes().to_vec();
    seed.extend(now.as_nanos().to_le_bytes());
    seed.extend(std::process::id().to_le_bytes());
    seed
}
