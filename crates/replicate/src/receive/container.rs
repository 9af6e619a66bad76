//! A container file as a [`Destination`]: it grows in a work folder beside the image that it will be, and is published
//! by one rename.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use goldwire_disk::{BlockDevice, CreateOptions, ErrorKind, Format, OpenOptions};
use goldwire_stdx::{Folder, Uuid, shell_path};
use goldwire_store::{
    BuildOptions, CHUNK_SIZE, FANOUT, Root, TreeFile, TreeGeometry, Version, beside, build_tree, keep_beside,
};
use rustix::fs::{Access, AtFlags, CWD, Mode, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::bitmap::Bitmap;
use super::chunks::write_sparse;
use super::destination::{Destination, LaidOut, ReadBack};
use super::journal::Journal;
use super::probe::{Holes, check_limit_of_process, probe, shortest};
use super::publish::{publish, set_what_was_asked};
use super::resolve::{TargetFile, how_to_ask_for};
use super::seeds::Seed;
use super::work::{State, WorkPlace, previous_in};
use crate::failure::Result;
use crate::wire::{Failure, FailureKind, TargetJob, WireFormat};

/// One container in the making. Dropping it gives the lock back; unfinished work stays.
pub(crate) struct ContainerFile {
    place: WorkPlace,
    target: TargetFile,
    shape: TreeGeometry,
    version: Version,
    job: TargetJob,
    is_continued: bool,
    device: OnceLock<Arc<dyn BlockDevice>>,
    journal: Mutex<Option<Journal>>,
}

impl ContainerFile {
    /// Claims the place for `target`, so that no other sync writes there.
    pub(crate) fn claim(
        target: TargetFile,
        shape: TreeGeometry,
        version: &Version,
        job: &TargetJob,
    ) -> Result<Self> {
        Ok(Self {
            place: WorkPlace::claim(&target.path)
                .map_err(|failure| or_what_it_needs(failure, &target, version))?,
            target,
            shape,
            version: version.clone(),
            job: job.clone(),
            is_continued: false,
            device: OnceLock::new(),
            journal: Mutex::default(),
        })
    }

    /// Readies the place for this version and refuses before the first byte if the version cannot be published there. From
    /// here on a killed run can be continued.
    pub(crate) fn begin(&mut self) -> Result<()> {
        check_owner(&self.target.path, &self.job)?;
        let state = state_of(&self.version, self.target.format);
        self.is_continued = self.place.prepare(&state)?;
        self.refuse_unless_fit()?;
        self.place.record(&state)
    }

    fn refuse_unless_fit(&self) -> Result<()> {
        let holes = probe(&self.place, &self.version, self.target.format)?;
        // What an unfinished attempt occupies already does not count again.
        let have = if self.is_continued { self.allocated_bytes() } else { 0 };
        check_space(&self.target, &self.version, have, holes)
    }

    /// An unfinished attempt at another version, as a seed.
    pub(crate) fn previous(&self) -> Option<Seed> {
        self.place.previous().and_then(|(folder, state)| seed_of(&folder, &state))
    }

    /// The target holds the version already: gives it the owner and the mode that were asked for, keeps the descriptor
    /// beside it if that says more than the content does, and gives the place up.
    pub(crate) fn already_there(&self) -> Result<()> {
        let (around, name) = self.place.target();
        if self.job.owner.is_some() || self.job.mode.is_some() {
            let file = around.read_file(name);
            let file =
                file.map_err(|error| Failure::io(format!("open {}", self.target.path.display()), &error))?;
            set_what_was_asked(&file, &self.target.path, &self.job)?;
        }
        let is_newer =
            |kept: &Version| kept.signer == self.version.signer && kept.created > self.version.created;
        let kept = beside(&self.target.path, &self.version.root).ok().flatten();
        if self.version.signer.is_some() && !kept.is_some_and(|(kept, _)| is_newer(&kept)) {
            // The content is there and proven; what is said about it is worth no failure.
            let _ = keep_beside(&self.target.path, &self.job.version);
        }
        self.place.clear();
        Ok(())
    }

    fn device(&self) -> Result<&Arc<dyn BlockDevice>> {
        let missing = || Failure::new(FailureKind::Other, "the container was not laid out");
        self.device.get().ok_or_else(missing)
    }

    /// Opens the work file of an earlier attempt, or makes a new one with every block in its place.
    fn open_or_make(
        &self,
        tree: &TreeFile,
        options: &BuildOptions<'_>,
    ) -> Result<(Arc<dyn BlockDevice>, Option<String>)> {
        let path = self.place.shown("disk");
        let format = disk_format(self.target.format);
        let mut notice = None;
        if self.place.has("laid-out") {
            let to_write = OpenOptions {
                access: goldwire_disk::Access::Write,
                format: Some(format),
                ..OpenOptions::default()
            };
            let opened = self
                .place
                .folder()
                .write_file("disk")
                .map_err(|error| Failure::io(format!("open {}", path.display()), &error));
            let opened = opened.and_then(|file| Ok(goldwire_disk::open_file(file, &path, &to_write)?));
            // A raw file that was cut opens as a smaller disk.
            let is_whole = |size: u64| match size == self.version.size {
                true => Ok(()),
                false => Err(Failure::new(FailureKind::Other, format!("it holds {size} bytes"))),
            };
            match opened.and_then(|image| is_whole(image.device.size()).map(|()| image)) {
                Ok(image) => return Ok((image.device, None)),
                Err(failure) => {
                    let why = failure.report().line();
                    notice = Some(format!("the unfinished work cannot be continued and begins anew: {why}"));
                }
            }
        }
        Ok((self.make(tree, &path, options)?, notice))
    }

    fn make(&self, tree: &TreeFile, path: &Path, options: &BuildOptions<'_>) -> Result<Arc<dyn BlockDevice>> {
        let folder = self.place.folder();
        let make = || -> io::Result<File> {
            for name in ["laid-out", "disk", "journal"] {
                folder.remove_file(name)?;
            }
            folder.create_new("disk", 0o600)
        };
        let file = make().map_err(|error| Failure::io(format!("make {}", path.display()), &error))?;
        let device = make_container(file, path, self.target.format, &self.version)?;
        let shape = tree.shape();
        let nodes = if shape.levels() == 1 { 1 } else { shape.count(1) };
        for node in 0..nodes {
            if options.stop.load(Ordering::Relaxed) {
                return Err(Failure::stopped());
            }
            if shape.levels() > 1 && tree.id(1, node)?.is_zero() {
                continue;
            }
            let range = (node * FANOUT)..((node + 1) * FANOUT).min(shape.chunks());
            let mut first = range.start;
            for group in tree.ids(0, range)?.chunk_by(|a, b| a.is_zero() == b.is_zero()) {
                let last = first + group.len() as u64;
                if !group[0].is_zero() {
                    let guest = shape.chunk_range(first).start..shape.chunk_range(last - 1).end;
                    device.allocate(guest.start, guest.end - guest.start)?;
                    options.progress.bytes_done.fetch_add(guest.end - guest.start, Ordering::Relaxed);
                }
                first = last;
            }
        }
        device.flush()?;
        folder
            .create_new("laid-out", 0o600)
            .and_then(|file| file.sync_all())
            .map_err(|error| Failure::io("mark the layout", &error))?;
        Ok(device)
    }

    fn allocated_bytes(&self) -> u64 {
        let data = self.place.folder().read_file("disk").and_then(|file| file.metadata());
        data.map_or(0, |data| data.blocks() * 512)
    }

    fn lock_journal(&self) -> std::sync::MutexGuard<'_, Option<Journal>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Destination for ContainerFile {
    fn tree(&self) -> Result<(TreeFile, bool)> {
        let folder = self.place.folder();
        if let Ok(tree) = TreeFile::open(folder, "tree", self.shape.size())
            && tree.verify(&self.version.root).is_ok()
        {
            return Ok((tree, true));
        }
        Ok((TreeFile::create(folder, "tree", self.shape.clone())?, false))
    }

    fn lay_out(&self, tree: &TreeFile, done: &Bitmap, options: &BuildOptions<'_>) -> Result<LaidOut> {
        let (device, notice) = self.open_or_make(tree, options)?;
        let _ = self.device.set(device);
        let opened = self.place.folder().open_or_create("journal", 0o600);
        let (journal, resumed) =
            opened.and_then(|file| Journal::open(file, self.version.root, done)).map_err(|error| {
                Failure::io(format!("open the journal {}", self.place.shown("journal").display()), &error)
            })?;
        *self.lock_journal() = Some(journal);
        Ok(LaidOut { resumed, is_continued: self.is_continued, notice })
    }

    fn write(&self, first: u64, bytes: &[u8]) -> Result<()> {
        write_sparse(self.device()?.as_ref(), first, bytes)
    }

    fn overwrite(&self, first: u64, bytes: &[u8]) -> Result<()> {
        let start = first * CHUNK_SIZE as u64;
        let inside = self.version.size.saturating_sub(start).min(bytes.len() as u64) as usize;
        Ok(self.device()?.write_at(&bytes[..inside], start)?)
    }

    fn read(&self, index: u64, chunk: &mut [u8]) -> Result<()> {
        let guest = self.shape.chunk_range(index);
        let length = (guest.end - guest.start) as usize;
        chunk[length..].fill(0);
        Ok(self.device()?.read_at(&mut chunk[..length], guest.start)?)
    }

    fn journal(&self, runs: &[(u64, u64)]) -> Result<()> {
        self.device()?.flush()?;
        match self.lock_journal().as_mut() {
            Some(journal) => journal.append(runs).map_err(|error| Failure::io("write the journal", &error)),
            None => Err(Failure::new(FailureKind::Other, "the container was not laid out")),
        }
    }

    fn read_back(&self, options: &BuildOptions<'_>) -> Result<ReadBack> {
        self.device()?.flush()?;
        let path = self.place.shown("disk");
        let file = self
            .place
            .folder()
            .read_file("disk")
            .map_err(|error| Failure::io(format!("open {}", path.display()), &error))?;
        drop_page_cache(&file);
        // A fresh open: what is verified is what a reader of the finished file will see, tables included.
        // By its known format: a raw disk may begin like anything.
        let format = Some(disk_format(self.target.format));
        let image = goldwire_disk::open_file(file, &path, &OpenOptions { format, ..OpenOptions::default() })?;
        let tree = TreeFile::create(self.place.folder(), "readback", self.shape.clone())?;
        let size = image.device.size();
        if size != self.version.size {
            let text = format!("{} has {size} bytes, not {}", path.display(), self.version.size);
            return Err(Failure::new(FailureKind::Other, text));
        }
        let (root, _) = build_tree(image.device.as_ref(), &tree, options)?;
        Ok(ReadBack { root, tree })
    }

    fn publish(&self) -> Result<Option<String>> {
        let format = disk_format(self.target.format);
        publish(&self.place, &self.target.path, format, &self.version, &self.job)
    }
}

/// Refuses what can be known of a target before anything is made there, for a run and for its plan alike.
pub(crate) fn check_target(target: &TargetFile, version: &Version, job: &TargetJob) -> Result<()> {
    check_may_make(target, job)?;
    // First: what is tried below in memory is held to the limit, too.
    check_limit_of_process(getrlimit(Resource::Fsize).current, shortest(version, target.format))?;
    // In memory, and sparse: whether the container can be as large as the disk.
    let file = rustix::fs::memfd_create("goldwire-plan", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|error| Failure::io("plan the container", &error.into()))?;
    make_container(File::from(file), &target.path, target.format, version).map(drop)
}

/// Fails if a run would fail behind [`check_target`] that nothing has been claimed for, as far as that can be known and
/// nothing changed stays: whether a file system shows our files as ours is tried with a folder, where nothing else tells.
pub(crate) fn check_plan(target: &TargetFile, version: &Version, job: &TargetJob) -> Result<()> {
    check_owner(&target.path, job)?;
    check_space(target, version, unfinished(target, version), Holes::Kept)
}

/// What a run at `version` will find of unfinished attempts: the chunks that are kept, and how many, and another version's
/// attempt as a seed. For its plan: nothing is claimed, and chunks that no journal names are not looked for.
pub(crate) fn find_unfinished(target: &TargetFile, version: &Version) -> (Bitmap, u64, Option<Seed>) {
    let chunks = TreeGeometry::new(version.size).map_or(0, |shape| shape.chunks());
    let state = state_of(version, target.format);
    let done = Bitmap::new(chunks);
    match WorkPlace::look(&target.path).first() {
        Some((folder, found)) if *found == state => {
            let kept = journaled(folder, &state, &done).unwrap_or(0);
            (done, kept, previous_in(folder).and_then(|(folder, state)| seed_of(&folder, &state)))
        }
        // The run makes it the previous one.
        Some((folder, found)) => (done, 0, seed_of(folder, found)),
        None => (done, 0, None),
    }
}

/// Adds the chunks that an attempt's journal names to `done`, if its container can be continued.
fn journaled(folder: &Folder, state: &State, done: &Bitmap) -> Option<u64> {
    folder.read_file("laid-out").ok()?;
    let options = OpenOptions { format: Some(disk_format(state.format)), ..OpenOptions::default() };
    let disk = folder.read_file("disk").ok()?;
    let image = goldwire_disk::open_file(disk, &folder.path().join("disk"), &options).ok()?;
    let journal = folder.read_file("journal").ok().filter(|_| image.device.size() == state.size)?;
    Journal::load(&journal, &Root(state.root), done).ok()
}

/// An unfinished attempt as a seed, if chunks of it arrived.
fn seed_of(folder: &Folder, state: &State) -> Option<Seed> {
    let options = OpenOptions { format: Some(disk_format(state.format)), ..OpenOptions::default() };
    let file = folder.read_file("disk").ok()?;
    let image = goldwire_disk::open_file(file, &folder.path().join("disk"), &options).ok()?;
    let tree = TreeFile::open(folder, "tree", state.size).ok()?;
    let root = Root(state.root);
    tree.verify(&root).ok()?;
    let present = Bitmap::new(tree.shape().chunks());
    let chunks = Journal::load(&folder.read_file("journal").ok()?, &root, &present).ok()?;
    (chunks > 0).then(|| Seed {
        image,
        tree,
        name: "an unfinished earlier sync".into(),
        present: Some(present),
    })
}

/// Whether files can be made beside the target, and what is replaced can be.
fn check_may_make(target: &TargetFile, job: &TargetJob) -> Result<()> {
    let folder = target.path.parent().unwrap_or(Path::new("/"));
    let shown = folder.display();
    let all = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    let of_folder = attributes_of(folder);
    rustix::fs::access(folder, all).map_err(|error| {
        let failure = Failure::io(format!("make a work folder in {shown}"), &error.into());
        failure.hint(how_to_write(folder, error, of_folder))
    })?;
    if of_folder.contains(StatxAttributes::APPEND) {
        let text = format!("nothing can be renamed in {shown}: it is append-only");
        return Err(Failure::new(FailureKind::Other, text)
            .hint(format!("make it writable: chattr -a {}", shell_path(folder))));
    }
    if job.replace {
        check_replaceable(&target.path, attributes_of(&target.path))?;
        check_sticky(&target.path, rustix::process::geteuid().as_raw(), may_act_as_owner())?;
    }
    Ok(())
}

/// What somebody can do who may not write to `folder`.
fn how_to_write(folder: &Path, error: Errno, attributes: StatxAttributes) -> String {
    match error {
        Errno::ROFS => "choose another target, or mount the file system for writing".into(),
        _ if attributes.contains(StatxAttributes::IMMUTABLE) => {
            format!("the folder is immutable: chattr -i {}; or choose another target", shell_path(folder))
        }
        _ => "run it as somebody who may write there, or choose another target".into(),
    }
}

/// Refuses what the sticky bit of the folder keeps `me` from replacing: a file of another user in a folder of another user,
/// as in `/tmp`. Whoever may act as any file's owner replaces it.
fn check_sticky(path: &Path, me: u32, acts_as_owner: bool) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let (Ok(around), Ok(file)) = (fs::metadata(folder), fs::symlink_metadata(path)) else { return Ok(()) };
    let is_sticky = around.mode() & Mode::SVTX.as_raw_mode() != 0;
    if acts_as_owner || !is_sticky || [around.uid(), file.uid()].contains(&me) {
        return Ok(());
    }
    let text = format!(
        "{} cannot be replaced: it is user {}'s, and {} has the sticky bit",
        path.display(),
        file.uid(),
        folder.display()
    );
    Err(Failure::new(FailureKind::Other, text)
        .hint("run it as the file's or the folder's owner; or give another target name"))
}

fn may_act_as_owner() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::FOWNER))
}

/// Refuses a file whose attributes keep it from being replaced: the rename that publishes would fail when everything has
/// been received.
fn check_replaceable(path: &Path, attributes: StatxAttributes) -> Result<()> {
    let typed = shell_path(path);
    let (why, hint) = if attributes.contains(StatxAttributes::IMMUTABLE) {
        ("it is immutable", format!("let it be changed: chattr -i {typed}"))
    } else if attributes.contains(StatxAttributes::APPEND) {
        ("it is append-only", format!("let it be changed: chattr -a {typed}"))
    } else if attributes.contains(StatxAttributes::MOUNT_ROOT) {
        ("something is mounted on it", format!("unmount it: umount {typed}"))
    } else {
        return Ok(());
    };
    Err(Failure::new(FailureKind::Other, format!("{} cannot be replaced: {why}", path.display()))
        .hint(format!("{hint}; or give another target name")))
}

/// What the file system says of a file beside its mode. Nothing where there is no file, or no such attributes.
fn attributes_of(path: &Path) -> StatxAttributes {
    statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())
        .map_or(StatxAttributes::empty(), |found| found.stx_attributes & found.stx_attributes_mask)
}

/// Only root gives a file to somebody else.
fn check_owner(target: &Path, job: &TargetJob) -> Result<()> {
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if job.owner.is_some_and(|owner| me.0 != 0 && owner != me) {
        let error = io::Error::from(rustix::io::Errno::PERM);
        return Err(Failure::io(format!("set the owner of {}", target.display()), &error));
    }
    Ok(())
}

/// An empty container for `version` in `file`.
fn make_container(
    file: File,
    path: &Path,
    format: WireFormat,
    version: &Version,
) -> Result<Arc<dyn BlockDevice>> {
    let options = CreateOptions {
        format: disk_format(format),
        size: version.size,
        uuid: uuid_of(&version.root),
        created: version.created,
    };
    goldwire_disk::create_in(file, path, &options).map_err(|error| match error.kind() {
        ErrorKind::Invalid => Failure { kind: FailureKind::Invalid, ..error.into() }
            .hint(format!("choose another container: {}", how_to_ask_for(WireFormat::Raw))),
        _ => error.into(),
    })
}

/// Refuses a version that cannot fit where `have` bytes of it are already. What the target holds until then stays there
/// until the new file has its name, so that both must fit.
fn check_space(target: &TargetFile, version: &Version, have: u64, holes: Holes) -> Result<()> {
    let free = free_bytes(&target.path)?;
    let needed = bytes_needed(version, target.format, holes);
    let missing = needed.saturating_sub(have);
    if missing <= free {
        return Ok(());
    }
    let why = match holes {
        Holes::Filled
            if missing.saturating_sub(free) <= needed - bytes_needed(version, target.format, Holes::Kept) =>
        {
            ", because the file system there keeps no holes"
        }
        _ => "",
    };
    let text = format!(
        "{} needs {} more, but only {} are free there{why}",
        target.path.display(),
        goldwire_stdx::ByteSize(missing),
        goldwire_stdx::ByteSize(free),
    );
    Err(Failure::new(FailureKind::Space, text)
        .hint("free some space, or choose another target; nothing was sent"))
}

/// `failure` to claim the place; where there was no space for that, how much the version needs.
fn or_what_it_needs(failure: Failure, target: &TargetFile, version: &Version) -> Failure {
    if failure.kind != FailureKind::Space {
        return failure;
    }
    check_space(target, version, unfinished(target, version), Holes::Kept).err().unwrap_or(failure)
}

/// Bytes that an unfinished attempt at `version` has there already.
fn unfinished(target: &TargetFile, version: &Version) -> u64 {
    WorkPlace::occupied(&target.path, &state_of(version, target.format))
}

/// What determines the work file for `version`.
fn state_of(version: &Version, format: WireFormat) -> State {
    let Version { root, size, created, .. } = *version;
    State { layout: 1, root: root.0, size, created, format }
}

/// Upper bound of what the new file and its tree occupy.
fn bytes_needed(version: &Version, format: WireFormat, holes: Holes) -> u64 {
    let chunks = version.chunks_used;
    let data = match holes {
        Holes::Kept => chunks.saturating_mul(CHUNK_SIZE as u64),
        Holes::Filled => shortest(version, format).max(chunks.saturating_mul(CHUNK_SIZE as u64)),
    };
    let tables = match format {
        WireFormat::Raw => 0,
        // Sector bitmaps, block tables, their alignment.
        _ => chunks.saturating_mul(4096).min(version.size / 64) + (1 << 20),
    };
    // The tree beside it: ids and fingerprints, 160 bytes a chunk, by whole pages.
    data.saturating_add(tables).saturating_add(chunks.saturating_mul(200)).saturating_add(1 << 16)
}

pub(crate) fn disk_format(format: WireFormat) -> Format {
    match format {
        WireFormat::Raw => Format::Raw,
        WireFormat::VhdFixed => Format::VhdFixed,
        WireFormat::VhdDynamic => Format::VhdDynamic,
        WireFormat::Qcow2 => Format::Qcow2,
    }
}

/// The container's uuid, from the content, so that the same version is the same file at every site: version 8 of
/// RFC 9562 (custom), section 5.8.
pub(crate) fn uuid_of(root: &Root) -> Uuid {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&root.0[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Uuid(uuid)
}

/// Bytes that this process may still write to the file system of `path`'s folder.
pub(crate) fn free_bytes(path: &Path) -> Result<u64> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(folder).map_err(|error| {
        Failure::io(format!("ask for the free space of {}", folder.display()), &error.into())
    })?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Drops the file's clean pages, so that reading it asks the medium. A file system without a medium below
/// (tmpfs) ignores it.
fn drop_page_cache(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

#[cfg(test)]
mod tests;
