//! A version in a store as a [`Destination`]: `STORE/IMAGE` or `STORE/IMAGE:CHANNEL`, or the store itself. Chunks that the
//! store has anyway are there before the first request.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use goldwire_disk::{Format, Image, ImageInfo};
use goldwire_store::{BuildOptions, CHUNK_SIZE, Reception, Root, Store, TreeFile, Version};

use super::bitmap::Bitmap;
use super::container::free_bytes;
use super::destination::{Destination, LaidOut, ReadBack};
use super::driver::Watch;
use super::resolve::written_promise;
use super::seeds::Seed;
use crate::failure::Result;
use crate::wire::{Failure, FailureKind, TargetJob};

/// Where in which store a version goes.
pub(crate) struct StoreTarget {
    store: Arc<Store>,
    image: String,
    channel: Option<String>,
}

impl StoreTarget {
    /// What the target of `job` names in a store, or nothing if it leads into none.
    pub(crate) fn find(job: &TargetJob, watch: &Watch<'_>) -> Result<Option<Self>> {
        let path = Path::new(&job.path);
        let (folder, name) = match (path.parent(), path.file_name().and_then(|name| name.to_str())) {
            _ if Store::is_one(path) => (path, image_name(&job.name)),
            (Some(folder), Some(name)) if Store::is_one(folder) => (folder, name),
            _ if job.must_be_store => {
                let text = format!("{} leads into no store", job.path);
                return Err(Failure::new(FailureKind::Invalid, text)
                    .hint("make one there: goldwire store init FOLDER"));
            }
            _ => return Ok(None),
        };
        let given = [
            (job.format.is_some(), "--format"),
            (job.mode.is_some(), "--mode"),
            (job.owner.is_some(), "--owner"),
        ];
        if let Some((_, option)) = given.iter().find(|(is_given, _)| *is_given) {
            let text = format!("{} is in a store, whose versions have no {}", job.path, &option[2..]);
            return Err(Failure::new(FailureKind::Invalid, text).hint(format!("leave {option} away")));
        }
        let (image, channel) = match name.split_once(':') {
            Some((image, channel)) => (image, Some(channel.to_owned())),
            None => (name, None),
        };
        let store = Arc::new(Store::open(folder)?);
        let told = Arc::clone(&watch.told);
        store.when_waiting(watch.stop.clone(), move |text| {
            told.lock().unwrap_or_else(PoisonError::into_inner).push(text.to_owned());
        });
        store.check_names(image, channel.as_deref())?;
        Ok(Some(Self { store, image: image.to_owned(), channel }))
    }

    /// As people call it.
    pub(crate) fn path(&self) -> String {
        let label = self.channel.as_ref().map_or(String::new(), |channel| format!(":{channel}"));
        format!("{}/{}{label}", self.store.path().display().to_string().trim_end_matches('/'), self.image)
    }

    /// Bytes that the store's file system has free.
    pub(crate) fn free(&self) -> Result<u64> {
        free_bytes(&self.store.path().join("packs"))
    }

    /// Refuses a version that may not have its name here: by what the job requires, and by what the store itself does.
    pub(crate) fn check_may_come(&self, version: &Version, job: &TargetJob) -> Result<()> {
        if let Some(required) = job.requirement()? {
            self.store.check_required(&self.image, version, &required)?;
        }
        Ok(self.store.check_naming(&self.image, self.channel.as_deref(), version)?)
    }

    /// Names the version, if it is here already.
    pub(crate) fn take_what_is_here(&self, version: &Version, job: &TargetJob) -> Result<bool> {
        if !self.store.has(&version.root)? {
            return Ok(false);
        }
        if !job.dry_run {
            self.store.name_version(&self.image, self.channel.as_deref(), version, &job.version)?;
        }
        Ok(true)
    }

    /// The version here that is likest to the one that comes.
    pub(crate) fn seed(&self, version: &Version) -> Result<Option<Seed>> {
        let Some(near) = self.store.near(&self.image, version)? else { return Ok(None) };
        // It only saves work: one that is damaged, or was pruned meanwhile, saves none.
        let Ok(device) = self.store.version(&near) else { return Ok(None) };
        let (tree, device) = (device.open_tree()?, device.unproven());
        let size = tree.shape().size();
        let info = ImageInfo {
            format: Format::Raw,
            size,
            uuid: None,
            created: None,
            hidden: None,
            details: Vec::new(),
        };
        let image = Image { device: Arc::new(device), chain: Vec::new(), info, notices: Vec::new() };
        let short = &near.to_string()[..12];
        Ok(Some(Seed { image, tree, name: format!("version {short} of {}", self.image), present: None }))
    }

    /// Begins to take the version, for this process alone.
    pub(crate) fn claim(&self, version: &Version, descriptor: &[u8]) -> Result<StoreDestination> {
        Ok(StoreDestination {
            reception: Reception::begin(&self.store, version)?,
            near: self.store.near(&self.image, version)?,
            store: Arc::clone(&self.store),
            image: self.image.clone(),
            channel: self.channel.clone(),
            descriptor: descriptor.to_vec(),
        })
    }
}

/// What an image is called that comes from a file of this name.
pub fn image_name(name: &str) -> &str {
    let name = name.split(':').next().unwrap_or(name);
    match (written_promise(name), name.rsplit_once('.')) {
        (Some(_), Some((stem, _))) => stem,
        _ => name,
    }
}

/// A version that a store takes.
pub(crate) struct StoreDestination {
    reception: Reception,
    store: Arc<Store>,
    near: Option<Root>,
    image: String,
    channel: Option<String>,
    descriptor: Vec<u8>,
}

impl Destination for StoreDestination {
    fn tree(&self) -> Result<(TreeFile, bool)> {
        Ok(self.reception.tree()?)
    }

    fn lay_out(&self, tree: &TreeFile, done: &Bitmap, options: &BuildOptions<'_>) -> Result<LaidOut> {
        let mut here = 0;
        let is_continued = self.reception.lay_out(tree, self.near, options, |chunks| {
            here += chunks.filter(|index| done.set(*index)).count() as u64;
        })?;
        let missing = self.reception.chunks_missing()? * CHUNK_SIZE as u64;
        let free = free_bytes(&self.store.path().join("packs"))?;
        if missing > free {
            let text = format!(
                "{missing} bytes are new to the store {}, and {free} are free",
                self.store.path().display()
            );
            return Err(
                Failure::new(FailureKind::Space, text).hint("make room, for example: goldwire image prune")
            );
        }
        Ok(LaidOut { resumed: here, is_continued, notice: None })
    }

    fn write(&self, first: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.reception.write(first, bytes)?)
    }

    fn overwrite(&self, first: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.reception.mend(first, bytes)?)
    }

    fn read(&self, index: u64, chunk: &mut [u8]) -> Result<()> {
        Ok(self.reception.read(index, chunk)?)
    }

    fn journal(&self, runs: &[(u64, u64)]) -> Result<()> {
        Ok(self.reception.note(runs)?)
    }

    fn read_back(&self, options: &BuildOptions<'_>) -> Result<ReadBack> {
        let (root, tree) = self.reception.read_back(options)?;
        Ok(ReadBack { root, tree })
    }

    fn publish(&self) -> Result<Option<String>> {
        self.reception.publish(&self.image, self.channel.as_deref(), &self.descriptor)?;
        Ok(None)
    }
}
