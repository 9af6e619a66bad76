//! Taking away versions that nobody wants, and the chunks that no version names. It may run beside everything: names and
//! places are looked at under the writers' lock, and a version that somebody reads is left.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use goldwire_stdx::{Existing, Folder};

use super::image::{ImageNames, now};
use super::layout::remove_pack;
use super::{MAP, Store, StoreError, StoreResult, root_of};
use crate::chunk::{CHUNK_SIZE, ChunkId};
use crate::error::Error;
use crate::map::Map;
use crate::pack::{Ids, Pack, PackNumber, SLOTS_MAX};
use crate::tree::Root;

/// Packs whose slots are looked at together: 32 MiB of memory.
const PACKS_AT_ONCE: usize = 256;
/// After so many seconds nobody is waited for to go on with what he began.
const ABANDONED_AFTER: i64 = 24 * 3600;
const GONE: &str = ".gone";

/// Which versions of an image stay although nothing names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// The newest so many.
    pub count: usize,
    /// Those that came less than so many seconds ago.
    pub seconds: i64,
    /// Those that a channel would name after a rollback.
    pub rollbacks: bool,
}

/// What a prune took away, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The versions that images lost.
    pub versions: Vec<(String, Root)>,
    /// Versions without a name that stay, because somebody reads them.
    pub in_use: Vec<Root>,
    /// Chunks that no version names any more.
    pub chunks: u64,
    /// Bytes that came back.
    pub bytes: u64,
    /// Packs that went as a whole.
    pub packs: usize,
    /// Bytes that are free and that the file system cannot give back.
    pub bytes_stuck: u64,
}

/// Where a map lies whose slots are in use. It is opened when it is looked at: there are more versions than descriptors.
enum MapAt {
    Version(Root),
    /// One that was replaced, and by which somebody still reads the version.
    Before(Root, String),
    Work(Root),
}

impl MapAt {
    fn open(&self, store: &Store) -> StoreResult<Map> {
        let (around, root, name) = match self {
            Self::Version(root) => (&store.versions, root, MAP),
            Self::Before(root, name) => (&store.versions, root, name.as_str()),
            Self::Work(root) => (&store.work, root, MAP),
        };
        let path = around.path().join(root.to_string());
        let folder = around.child(root.to_string()).map_err(StoreError::file("open", &path))?;
        Map::open(&folder, name)
    }
}

/// What must stay.
#[derive(Default)]
struct InUse {
    /// Maps of versions.
    maps: Vec<MapAt>,
    /// Versions that somebody brings or will go on with.
    coming: HashSet<Root>,
    /// The pack of copies that somebody makes, by what stands in its ids, and the map of what they are copied from.
    copies: Option<(Root, Map)>,
}

impl InUse {
    fn for_each_map(&self, store: &Store, mut each: impl FnMut(&Map) -> StoreResult<()>) -> StoreResult<()> {
        self.maps.iter().try_for_each(|map| each(&map.open(store)?))?;
        self.copies.as_ref().map_or(Ok(()), |(_, map)| each(map))
    }

    /// A version, by whatever map it is read.
    fn add_version(&mut self, store: &Store, root: Root, is_dry: bool) -> StoreResult<()> {
        let before = store.maps_before(&root, is_dry)?;
        self.maps.extend(before.into_iter().map(|name| MapAt::Before(root, name)));
        self.maps.push(MapAt::Version(root));
        Ok(())
    }
}

impl Store {
    /// Takes away the versions that no tag or channel names and `keep` does not keep, of the images named or of all, and
    /// every chunk that no version names. With `is_dry` nothing is changed.
    ///
    /// # Errors
    /// `Unknown` for an image; `Corrupt` if what a version uses cannot be read: then no chunk goes; `File`, `Stopped`.
    pub fn prune(
        &self,
        images: &[String],
        keep: &Keep,
        is_dry: bool,
        stop: &AtomicBool,
    ) -> StoreResult<Pruned> {
        let _lock = self.lock()?;
        let mut pruned = Pruned::default();
        let here = self.images()?;
        if let Some(unknown) = images.iter().find(|image| !here.contains(image)) {
            return Err(StoreError::Unknown { name: format!("image {unknown}"), candidates: here });
        }
        let mut named = HashSet::new();
        for image in here {
            let mut names = self.image(&image)?.unwrap_or_default();
            if images.is_empty() || images.contains(&image) {
                let gone = surplus(&names, keep);
                for root in &gone {
                    names.forget(root);
                }
                if !gone.is_empty() && !is_dry {
                    self.write_names(&image, &names)?;
                }
                pruned.versions.extend(gone.into_iter().map(|root| (image.clone(), root)));
            }
            named.extend(names.versions.iter().map(|version| version.root));
        }
        let mut in_use = InUse::default();
        self.tidy_work(is_dry, &mut in_use)?;
        for root in self.versions()? {
            if named.contains(&root) {
                in_use.add_version(self, root, is_dry)?;
            } else if self.is_read_or_dropped(&root, is_dry)? {
                pruned.in_use.push(root);
                in_use.add_version(self, root, is_dry)?;
            }
        }
        self.free(&in_use, is_dry, stop, &mut pruned)?;
        Ok(pruned)
    }

    /// Gives back what no version uses, and takes no version away: the bytes that came back.
    pub(super) fn give_back(&self, stop: &AtomicBool) -> StoreResult<u64> {
        let _lock = self.lock()?;
        let (mut pruned, mut in_use) = (Pruned::default(), InUse::default());
        self.tidy_work(false, &mut in_use)?;
        for root in self.versions()? {
            in_use.add_version(self, root, false)?;
        }
        self.free(&in_use, false, stop, &mut pruned)?;
        Ok(pruned.bytes)
    }

    /// Frees every slot of every pack that is not in use.
    fn free(&self, in_use: &InUse, is_dry: bool, stop: &AtomicBool, pruned: &mut Pruned) -> StoreResult<()> {
        for group in self.packs_with("ids")?.chunks(PACKS_AT_ONCE) {
            let mut used: BTreeMap<PackNumber, Vec<u64>> =
                group.iter().map(|number| (*number, vec![0; SLOTS_MAX as usize / 64])).collect();
            in_use.for_each_map(self, |map| {
                if stop.load(Ordering::Relaxed) {
                    return Err(Error::Stopped.into());
                }
                map.for_each(|run| {
                    if let Some(bits) = used.get_mut(&run.pack) {
                        (run.slot..run.slot + run.count)
                            .for_each(|slot| bits[slot as usize / 64] |= 1 << (slot % 64));
                    }
                    Ok(())
                })
            })?;
            for (number, bits) in used {
                self.sweep(number, &bits, in_use, is_dry, pruned)?;
            }
        }
        self.clear_leftovers(in_use, is_dry)
    }

    /// Removes what a killed process left of packs: chunks and logs without ids, which no map names.
    fn clear_leftovers(&self, in_use: &InUse, is_dry: bool) -> StoreResult<()> {
        let whole = self.packs_with("ids")?;
        let mut left: HashSet<PackNumber> = self.packs_with("pack")?.into_iter().collect();
        left.extend(self.packs_with("have")?);
        left.retain(|number| whole.binary_search(number).is_err());
        if left.is_empty() || is_dry {
            return Ok(());
        }
        in_use.for_each_map(self, |map| {
            map.for_each(|run| {
                left.remove(&run.pack);
                Ok(())
            })
        })?;
        left.into_iter().try_for_each(|number| remove_pack(self, number))
    }

    /// Removes a version that nothing names, unless somebody reads it: then it says so.
    fn is_read_or_dropped(&self, root: &Root, is_dry: bool) -> StoreResult<bool> {
        let folder = self.version_folder(root)?;
        let path = folder.path().join(MAP);
        let held: Option<File> = match folder.read_file(MAP) {
            Ok(map) => match map.try_lock() {
                Ok(()) => Some(map),
                Err(_) => return Ok(true),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(StoreError::file("open", &path)(error)),
        };
        if !self.maps_before(root, is_dry)?.is_empty() {
            return Ok(true);
        }
        if !is_dry {
            let (name, gone) = (root.to_string(), format!("{root}{GONE}"));
            let moved = self.versions.rename(&name, &self.work, &gone, Existing::Keep);
            let moved = moved.and_then(|()| self.versions.sync()).and_then(|()| self.work.remove_tree(&gone));
            moved.map_err(StoreError::file("remove", &self.versions.path().join(&name)))?;
        }
        drop(held);
        Ok(false)
    }

    /// Takes away what nobody will go on with. What somebody may go on with is added: its root and, once it has a map, its
    /// folder.
    fn tidy_work(&self, is_dry: bool, in_use: &mut InUse) -> StoreResult<()> {
        in_use.copies = self.tidy_repack(is_dry, |folder, lock| is_old(folder, Some(lock)))?;
        let entries = Self::entries(&self.work)?;
        for name in entries {
            let path = self.work.path().join(&name);
            let is_gone = name.to_str().is_some_and(|name| name.ends_with(GONE));
            if is_gone && !is_dry {
                self.work.remove_tree(&name).map_err(StoreError::file("remove", &path))?;
            }
            if let Some(root) = name.to_str().and_then(|name| root_of(name.strip_suffix(".lock")?.as_ref())) {
                self.tidy_lock(&root, is_dry).map_err(StoreError::file("remove", &path))?;
            }
            let Some(root) = root_of(&name) else { continue };
            let folder = self.work.child(&name).map_err(StoreError::file("open", &path))?;
            // Held until the folder is gone, so that nobody goes on in it meanwhile.
            let lock_name = format!("{root}.lock");
            let lock = match self.work.read_file(&lock_name) {
                Ok(lock) => Some(lock),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(StoreError::file("look for the lock of", &path)(error)),
            };
            let is_held = lock.as_ref().is_some_and(|lock| lock.try_lock().is_err());
            if !is_held && is_old(&folder, lock.as_ref())? {
                if !is_dry {
                    let gone = self.work.remove_tree(&name).and_then(|()| self.work.remove_file(&lock_name));
                    gone.map_err(StoreError::file("remove", &path))?;
                }
                continue;
            }
            in_use.coming.insert(root);
            match Map::open(&folder, MAP) {
                Ok(_) => in_use.maps.push(MapAt::Work(root)),
                Err(StoreError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                // It has no header yet: of somebody who waits for our lock, or was killed; he lays out anew.
                Err(StoreError::Corrupt { field: "magic", .. }) => {}
                // Nobody knows what it uses.
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes away the lock of a reception whose folder is gone: who was killed after he had moved it left that.
    fn tidy_lock(&self, root: &Root, is_dry: bool) -> io::Result<()> {
        let name = format!("{root}.lock");
        let Ok(lock) = self.work.read_file(&name) else { return Ok(()) };
        // Whoever opened it before now and gets it after us sees that it has no name.
        if is_dry || lock.try_lock().is_err() || self.work.kind_of(root.to_string())?.is_some() {
            return Ok(());
        }
        self.work.remove_file(&name)
    }

    /// Frees the slots of a pack that are not `used`.
    fn sweep(
        &self,
        number: PackNumber,
        used: &[u64],
        in_use: &InUse,
        is_dry: bool,
        pruned: &mut Pruned,
    ) -> StoreResult<()> {
        let is_filling = crate::pack::Have::is_there(&self.packs, number)?;
        let is_free = used.iter().all(|word| *word == 0);
        let index = Ids::open(&self.packs, number).and_then(|index| index.check().map(|()| index));
        let index = match index {
            // Whatever they said, nothing needs it, and nobody may be filling it.
            Err(StoreError::Corrupt { .. }) if is_free && (!is_filling || in_use.coming.is_empty()) => None,
            // What is freed goes by these ids.
            opened => Some(opened?),
        };
        let is_of_copies = |root| in_use.copies.as_ref().is_some_and(|(copies, _)| copies == root);
        let is_coming = |root| is_of_copies(root) || is_filling && in_use.coming.contains(root);
        if index.as_ref().is_some_and(|index| is_coming(index.root())) {
            return Ok(());
        }
        let entries = index.as_ref().map_or(0, |index| u64::from(index.entries()));
        let before = match Pack::open(&self.packs, number) {
            Err(StoreError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
            opened => Some(opened?.allocated()?),
        };
        let Some(index) = index.filter(|_| !is_free) else {
            pruned.chunks += entries;
            pruned.packs += 1;
            pruned.bytes += before.unwrap_or_default();
            return if is_dry { Ok(()) } else { remove_pack(self, number) };
        };
        let Some(before) = before else {
            let why = "versions name it, and it is gone";
            return Err(StoreError::corrupt(&self.packs.path().join(number.file("pack")), "pack", 0, why));
        };
        let mut ids = index.ids(0..index.slots())?;
        let mut dead = 0;
        for (slot, id) in ids.iter_mut().enumerate() {
            let is_used = used[slot / 64] & (1 << (slot % 64)) != 0;
            if is_used && id.is_zero() {
                let path = self.packs.path().join(number.file("ids"));
                let why = format!("slot {slot} is free, and a version names it");
                return Err(StoreError::corrupt(&path, "ids", 64 + slot as u64 * 32, why));
            }
            if !is_used && !id.is_zero() {
                dead += 1;
                *id = ChunkId::ZERO;
            }
        }
        let live = ids.iter().filter(|id| !id.is_zero()).count() as u64 * CHUNK_SIZE as u64;
        pruned.chunks += dead;
        if is_dry {
            pruned.bytes += dead * CHUNK_SIZE as u64;
            return Ok(());
        }
        if dead > 0 {
            Ids::write(&self.packs, number, index.root(), &ids)?;
        }
        // Also what an earlier prune was killed before.
        if dead > 0 || before > live {
            let pack = Pack::open_to_change(&self.packs, number)?;
            let is_given_back = punch_zero(&pack, &ids)?;
            let after = pack.allocated()?;
            pruned.bytes += before.saturating_sub(after);
            if !is_given_back {
                pruned.bytes_stuck += after.saturating_sub(live);
            }
        }
        Ok(())
    }
}

/// Whether nothing was done in a folder for so long that nobody will go on.
fn is_old(folder: &Folder, lock: Option<&File>) -> StoreResult<bool> {
    let changed = rustix::fs::fstat(folder).map_err(io::Error::from);
    let changed = changed.map_err(StoreError::file("stat", folder.path()))?.st_mtime;
    // Whoever goes on says so at the lock.
    let used = lock.and_then(|lock| lock.metadata().ok());
    let used = used.map_or(changed, |data| std::os::unix::fs::MetadataExt::mtime(&data).max(changed));
    Ok(now().saturating_sub(used) > ABANDONED_AFTER)
}

/// Punches out the slots that hold nothing. False if the file system cannot.
fn punch_zero(pack: &Pack, ids: &[ChunkId]) -> StoreResult<bool> {
    let mut slot = 0;
    for run in ids.chunk_by(|left, right| left.is_zero() == right.is_zero()) {
        let end = slot + run.len() as u32;
        if run[0].is_zero() && !pack.punch(slot..end)? {
            return Ok(false);
        }
        slot = end;
    }
    Ok(true)
}

/// The versions of an image that nothing names and nothing keeps, oldest first.
fn surplus(names: &ImageNames, keep: &Keep) -> Vec<Root> {
    let older = names.versions.len().saturating_sub(keep.count);
    let now = now();
    let since = now.saturating_sub(keep.seconds);
    let old = names.versions[..older].iter();
    let is_kept = |root: &Root| names.is_named(root, now) || keep.rollbacks && names.is_before(root);
    old.filter(|version| version.since <= since && !is_kept(&version.root))
        .map(|version| version.root)
        .collect()
}
