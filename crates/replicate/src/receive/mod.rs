//! Receiving a version: the target decides what it needs, asks for that, and publishes only what it has read
//! back itself.
//!
//! ```text
//! resolve ─► claim ─► seeds ─► walk ─► plan ─► lay out ─► transfer ─► read back ─► publish
//!              lock            tree    space    container   journal      root         rename
//! ```
//!
//! Everything up to *publish* happens below `.goldwire/work`; a run that ends anywhere before it leaves a place
//! that the next run continues from. From *walk* on the course is a [`machine`] without threads, connection or clock;
//! the [`driver`] has those, and a [`destination`] takes the chunks.

mod attributes;
mod bitmap;
mod chunks;
mod client;
mod container;
mod destination;
mod driver;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod hand;
mod journal;
mod lock;
mod machine;
mod plan;
mod probe;
mod publish;
mod resolve;
mod seeds;
mod shift;
#[cfg(test)]
mod simulation;
mod stored;
#[cfg(test)]
mod tests;
mod tidy;
mod walk;
mod work;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use goldwire_stdx::{ByteSize, Stop};
use goldwire_store::{CHUNK_SIZE, Requirement, TreeFile, TreeGeometry, Version, beside};

use self::container::{ContainerFile, check_plan, check_target, disk_format, find_unfinished, free_bytes};
use self::destination::Destination;
use self::driver::{Driver, Watch, wire_counters};
use self::machine::{Goal, Machine};
use self::publish::{exists, exists_unread};
pub(crate) use self::resolve::written_promise;
use self::resolve::{TargetFile, resolve};
use self::seeds::Seed;
use self::stored::StoreTarget;
pub use self::stored::image_name;
pub use self::tidy::{Extent, Left, Leftover, Reason, Spared, Tidied, Tidying, tidy};
use self::work::WorkPlace;
use crate::connection::Connection;
use crate::failure::Result;
use crate::wire::{
    ANSWER_RAW_MAX, Counters, Event, Failure, FailureKind, Frame, Outcome, TargetJob, WireError,
};

/// What the driver of a transfer waits for.
pub(crate) enum Input {
    /// An answer or a refusal.
    Frame(Frame),
    /// The connection ended.
    Ended(Option<WireError>),
    /// Stop at the next safe place.
    Stop,
    /// From one of its own threads.
    Worker(workers::Report),
}

/// Receives the version of `job` over `connection`. `inputs` carries what the connection's reader and the threads that
/// `reports` feeds have to say; `emit` passes events to the control side.
///
/// # Errors
/// Whatever kept the version from being published. The work folder then holds what the next run continues from.
pub(crate) fn receive(
    job: &TargetJob,
    connection: Connection,
    inputs: &Receiver<Input>,
    reports: &Sender<Input>,
    emit: &(dyn Fn(Event) + Sync),
    stop: &Stop,
) -> Result<Outcome> {
    let version = Version::decode(&job.version).map_err(|error| Failure::of(FailureKind::Invalid, &error))?;
    check_signer(&version, job.requirement()?.as_ref())?;
    let shape = TreeGeometry::new(version.size)
        .ok_or_else(|| Failure::new(FailureKind::Invalid, "the disk is larger than 64 TiB"))?;
    let watch = Watch { inputs, reports, emit, stop, told: Arc::default() };
    if let Some(target) = StoreTarget::find(job, &watch)? {
        return receive_into_store(&target, job, &version, shape, connection, watch);
    }
    let target = resolve(job, &version.root)?;
    let already_there = || {
        let used = version.chunks_used;
        let counters = Counters { chunks_total: used, chunks_done: used, ..wire_counters(&connection) };
        let path = target.path.display().to_string();
        Outcome { path, root: version.root.0, counters, already_there: true }
    };
    let claim = || {
        check_target(&target, &version, job)?;
        match job.dry_run {
            // A plan leaves nothing changed, so it claims nothing either.
            true => WorkPlace::check_free(&target.path).map(|()| None),
            false => ContainerFile::claim(target.clone(), shape.clone(), &version, job).map(Some),
        }
    };
    let patience = if job.dry_run { 0 } else { job.wait_seconds };
    let container = match watch.when_free(Duration::from_secs(patience.into()), claim) {
        Ok(container) => container,
        // What is there already needs no room to work in.
        Err(failure)
            if job.owner.is_none() && job.mode.is_none() && check_target(&target, &version, job).is_err() =>
        {
            let found = target.path.exists().then(|| look_at_existing(&target, &version, job, &watch));
            return match found {
                Some(Ok(Existing::Same)) => Ok(already_there()),
                _ => Err(failure),
            };
        }
        Err(failure) => return Err(failure),
    };
    let mut seeds = Vec::new();
    if target.path.exists() {
        match look_at_existing(&target, &version, job, &watch)? {
            Existing::Same => {
                if let Some(container) = container {
                    container.already_there()?;
                }
                return Ok(already_there());
            }
            Existing::Seed(seed) => seeds.push(*seed),
            Existing::Replaced => {}
        }
    }
    gather_seeds(&mut seeds, &target, &version, job, &watch)?;
    watch.check_stopped()?;
    let place = (target.path.display().to_string(), free_bytes(&target.path)?);
    let window = job.window_bytes.clamp(ANSWER_RAW_MAX as u64, 1 << 30);
    let (machine, destination, previous, kept) = match container {
        Some(mut container) => {
            container.begin()?;
            let previous = container.previous();
            let tree = container.tree()?;
            let machine = Machine::new(&version, Goal::Publish, window, tree, seeds);
            (machine, Some(Arc::new(container) as Arc<dyn Destination>), previous, None)
        }
        None => {
            check_plan(&target, &version, job)?;
            let tree = (TreeFile::unnamed(shape)?, false);
            let (done, kept, previous) = find_unfinished(&target, &version);
            (Machine::new(&version, Goal::Plan, window, tree, seeds), None, previous, Some((done, kept)))
        }
    };
    let (named, threads) = (job.seeds.len(), job.threads);
    let driver =
        Driver { watch, connection, version: &version, destination, place, named, previous, kept, threads };
    driver.run(machine)
}

/// Receives the version into a store.
fn receive_into_store(
    target: &StoreTarget,
    job: &TargetJob,
    version: &Version,
    shape: TreeGeometry,
    connection: Connection,
    watch: Watch<'_>,
) -> Result<Outcome> {
    target.check_may_come(version, job)?;
    if watch.watching(|| target.take_what_is_here(version, job), || ())? {
        let used = version.chunks_used;
        let counters = Counters { chunks_total: used, chunks_done: used, ..wire_counters(&connection) };
        return Ok(Outcome { path: target.path(), root: version.root.0, counters, already_there: true });
    }
    let mut seeds = Vec::new();
    for seed in &job.seeds {
        seeds.push(watch.hashing(|stop, progress| seeds::open_named(seed, stop, progress))?);
    }
    if job.find_seeds || !job.seeds.is_empty() {
        seeds.extend(target.seed(version)?);
    }
    let window = job.window_bytes.clamp(ANSWER_RAW_MAX as u64, 1 << 30);
    let (machine, destination) = match job.dry_run {
        true => {
            let tree = (TreeFile::unnamed(shape)?, false);
            (Machine::new(version, Goal::Plan, window, tree, seeds), None)
        }
        false => {
            let claim = || target.claim(version, &job.version);
            let claimed = watch.when_free(Duration::from_secs(job.wait_seconds.into()), claim)?;
            let machine = Machine::new(version, Goal::Publish, window, claimed.tree()?, seeds);
            (machine, Some(Arc::new(claimed) as Arc<dyn Destination>))
        }
    };
    let place = (target.path(), target.free()?);
    let (named, threads) = (job.seeds.len(), job.threads);
    let (previous, kept) = (None, None);
    let driver = Driver { watch, connection, version, destination, place, named, previous, kept, threads };
    driver.run(machine)
}

/// What has the target's name already.
enum Existing {
    /// The very version.
    Same,
    /// Another disk, which is replaced and is the best seed as a rule; it has to show it like any other.
    Seed(Box<Seed>),
    /// Something that is replaced and is of no use.
    Replaced,
}

fn look_at_existing(
    target: &TargetFile,
    version: &Version,
    job: &TargetJob,
    watch: &Watch<'_>,
) -> Result<Existing> {
    let existing = watch.hashing(|stop, progress| Seed::open(&target.path, stop, progress));
    let is_same = |existing: &Seed| {
        existing.tree.top().is_ok_and(|top| existing.tree.shape().root(&top) == version.root)
    };
    match existing {
        Err(failure) if failure.kind == FailureKind::Stopped => Err(failure),
        Ok(existing) if is_same(&existing) => match job.format.map(disk_format) {
            Some(wanted) if wanted != existing.image.info.format && !job.replace => {
                let text = format!(
                    "{} holds this version already, as {} and not as {}",
                    target.path.display(),
                    existing.image.info.format.name(),
                    wanted.name()
                );
                Err(Failure::new(FailureKind::Exists, text)
                    .hint("--replace writes it anew in that container; without --format it stays as it is"))
            }
            Some(wanted) if wanted != existing.image.info.format => {
                replace(target, version, job, watch, Ok(existing))
            }
            _ => Ok(Existing::Same),
        },
        Ok(_) if !job.replace => Err(exists(&target.path)),
        Err(failure) if !job.replace => Err(exists_unread(&target.path, &failure)),
        Ok(existing) if is_rolled_back(&existing, target, version, job)? => {
            let text = format!(
                "{} holds a version of the same signer that was created later",
                target.path.display()
            );
            Err(Failure::new(FailureKind::Exists, text).hint(
                "an old version may have been put in the place of the new one; --allow-older goes back to it",
            ))
        }
        existing => replace(target, version, job, watch, existing),
    }
}

/// Says what is lost, and refuses to take a base from under its overlays.
fn replace(
    target: &TargetFile,
    version: &Version,
    job: &TargetJob,
    watch: &Watch<'_>,
    existing: Result<Seed>,
) -> Result<Existing> {
    let path = target.path.display();
    let children = goldwire_disk::children(&target.path)?;
    if let Some(child) = children.found.first() {
        let text =
            format!("{path} is the base of {}, which would hold nonsense over another one", child.display());
        return Err(Failure::new(FailureKind::Exists, text)
            .hint("write under another name, and give the overlays up or rebase them first"));
    }
    if let Some(files) = children.stopped_after {
        (watch.emit)(Event::Notice(format!(
            "{path} is replaced; only {files} of the files beside it were looked into for overlays that it is the base of"
        )));
    }
    let notice = match &existing {
        Ok(existing) => {
            change_of_size(existing, version).map(|change| format!("{path} is replaced: {change}"))
        }
        Err(failure) => {
            Some(format!("{path} is replaced; it is not read as a disk: {}", failure.report().line()))
        }
    };
    if let Some(notice) = notice {
        (watch.emit)(Event::Notice(notice));
    }
    match existing {
        Ok(existing) if job.find_seeds || !job.seeds.is_empty() => Ok(Existing::Seed(Box::new(existing))),
        // What is there is of no use, no disk, or a broken one; replacing it was asked for.
        _ => Ok(Existing::Replaced),
    }
}

/// What somebody should know who replaces a disk by one of another size, or by one that holds much less.
fn change_of_size(existing: &Seed, version: &Version) -> Option<String> {
    let size = existing.image.device.size();
    if size != version.size {
        return Some(format!("it is a disk of {} bytes, and the new one has {}", size, version.size));
    }
    let used = existing.tree.read_seal().ok()?.chunks_used;
    let is_much_less = version.chunks_used < used / 2;
    let bytes = |chunks: u64| ByteSize(chunks * CHUNK_SIZE as u64);
    is_much_less
        .then(|| format!("it holds {}, and the new one only {}", bytes(used), bytes(version.chunks_used)))
}

/// Fails unless the version is signed as the job requires: whoever passes jobs on must not be able to leave that out.
fn check_signer(version: &Version, required: Option<&Requirement>) -> Result<()> {
    match required {
        Some(required) if !required.is_signed(version) => {
            Err(Failure::new(FailureKind::Invalid, "the version is not signed by the required key")
                .hint("sign it where it was made: goldwire disk tree --sign KEY IMAGE"))
        }
        _ => Ok(()),
    }
}

/// Whether what is there was signed by the required key too, and created later.
fn is_rolled_back(existing: &Seed, target: &TargetFile, version: &Version, job: &TargetJob) -> Result<bool> {
    let Some(required) = job.requirement()?.filter(|required| !required.may_be_older) else {
        return Ok(false);
    };
    let root = existing.tree.shape().root(&existing.tree.top()?);
    let kept = beside(&target.path, &root)?;
    Ok(kept.is_some_and(|(kept, _)| required.is_step_back(version, &kept)))
}

/// Puts the named seeds first, and what is found in the target's folder last.
fn gather_seeds(
    seeds: &mut Vec<Seed>,
    target: &TargetFile,
    version: &Version,
    job: &TargetJob,
    watch: &Watch<'_>,
) -> Result<()> {
    for (place, seed) in job.seeds.iter().enumerate() {
        seeds.insert(place, watch.hashing(|stop, progress| seeds::open_named(seed, stop, progress))?);
    }
    if job.find_seeds {
        let (size, may_hash) = (version.size, seeds.is_empty());
        let path = &target.path;
        seeds.extend(watch.hashing(|stop, progress| Ok(seeds::find(path, size, may_hash, stop, progress)))?);
    }
    Ok(())
}

/// What `crate::testing` implements and makes.
#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use super::bitmap::Bitmap;
    pub(crate) use super::destination::{Destination, LaidOut, ReadBack};
    pub(crate) use super::seeds::Seed;
}
