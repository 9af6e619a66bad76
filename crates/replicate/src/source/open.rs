//! Opening an image as a source: its tree, its descriptor, and a server for its content.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use goldwire_disk::{Format, OpenOptions, SameFolderOr};
use goldwire_stdx::{Stop, watched};
use goldwire_store::{BuildOptions, Progress, TreeCache, describe, refuse_own, signed_for_other};

use super::device::DeviceWatch;
use super::{LocalServer, Pace, Server, SharedServer, Stored};
use crate::connection::Connection;
use crate::failure::Result;
use crate::wire::{
    Event, Failure, FailureKind, Frame, Kind, SourceFormat, SourceJob, SourceReady, WireFormat,
};

/// How often the control side hears how far hashing is.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// Opens the image, gets its tree and starts serving it.
pub(crate) fn open_source(
    job: &SourceJob,
    connection: &Connection,
    stop: &Stop,
    pace: Arc<Pace>,
) -> Result<(SourceReady, Arc<dyn Server>)> {
    if let Some(stored) = Stored::find(Path::new(&job.path))? {
        return open_stored(stored, job, pace);
    }
    let path =
        fs::canonicalize(&job.path).map_err(|error| Failure::io(format!("find {}", job.path), &error))?;
    refuse_own(&path)?;
    // Before the first byte is read, so that nothing that is written from then on goes unseen.
    let mut watches: Vec<_> = DeviceWatch::start(&path)?.into_iter().collect();
    let folders = job.parent_folders.iter().map(PathBuf::from).collect();
    let options = OpenOptions {
        format: job.format.map(Into::into),
        gate: Arc::new(SameFolderOr(folders)),
        ..OpenOptions::default()
    };
    // By the name that the user wrote, which may promise something that a link's end does not.
    let mut opened = goldwire_disk::open(&job.path, &options)?;
    let parents: Vec<PathBuf> = opened.chain.iter().skip(1).map(|file| file.path.clone()).collect();
    for parent in &parents {
        watches.extend(DeviceWatch::start(parent)?);
    }
    // The tables of a parent that is a device were read before it was watched.
    if parents.iter().any(|parent| watches.iter().any(|watch| watch.path() == parent)) {
        opened = goldwire_disk::open(&job.path, &options)?;
        if !parents.iter().eq(opened.chain.iter().skip(1).map(|file| &file.path)) {
            let text = format!("{} changed while it was opened", job.path);
            return Err(Failure::new(FailureKind::SourceChanged, text));
        }
    }
    for notice in &opened.notices {
        connection.send(Frame::of(Kind::Event, 0, 0, &Event::Notice(notice.clone())));
    }
    let image = &opened;
    let progress = Progress::default();
    let threads = job.threads.and_then(|threads| NonZeroUsize::new(threads.into()));
    let options = BuildOptions { threads, stop: stop.flag(), progress: &progress };
    let work = || match job.read_all {
        true => TreeCache::rebuild(image, &options),
        false => TreeCache::of(image, &options),
    };
    let report = || {
        let done = progress.bytes_done.load(Ordering::Relaxed);
        let total = progress.bytes_total.load(Ordering::Relaxed);
        connection.send(Frame::of(Kind::Event, 0, 0, &Event::Hashing { done, total }));
    };
    let cached =
        watched(REPORT_EVERY, work, report).map_err(|error| Failure::io("start a thread", &error))??;
    let data =
        fs::metadata(&path).map_err(|error| Failure::io(format!("look at {}", path.display()), &error))?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let version = describe(&path, image, &cached)?.1;
    // Only what is said of a signature is at stake.
    let other_descriptor = signed_for_other(&path, &cached.root).ok().flatten();
    let other_descriptor = other_descriptor.map(|path| path.display().to_string());
    let ready = SourceReady {
        version,
        other_descriptor,
        format: wire_format(image.info.format),
        name,
        mode: std::os::unix::fs::MetadataExt::mode(&data) & 0o777,
        tree_was_cached: cached.was_cached,
    };
    let local = LocalServer::start(opened, cached.tree, job.level, pace, watches)?;
    Ok((ready, Arc::new(SharedServer::new(Arc::new(local), job.keep_bytes))))
}

/// A version of a store: it never changes, and its tree is there.
fn open_stored(stored: Stored, job: &SourceJob, pace: Arc<Pace>) -> Result<(SourceReady, Arc<dyn Server>)> {
    if job.format.is_some_and(|format| format != SourceFormat::Raw) {
        let text = format!("{} is a version of a store, which has no format of its own", job.path);
        return Err(Failure::new(FailureKind::Invalid, text).hint("leave --source-format away"));
    }
    let (image, tree) = stored.open()?;
    let ready = SourceReady {
        version: stored.descriptor,
        other_descriptor: None,
        format: WireFormat::Raw,
        name: stored.name,
        mode: 0o644,
        tree_was_cached: true,
    };
    let local = LocalServer::start(image, tree, job.level, pace, Vec::new())?;
    Ok((ready, Arc::new(SharedServer::new(Arc::new(local), job.keep_bytes))))
}

fn wire_format(format: Format) -> WireFormat {
    match format {
        Format::Raw => WireFormat::Raw,
        Format::VhdFixed => WireFormat::VhdFixed,
        Format::VhdDynamic | Format::VhdDifferencing => WireFormat::VhdDynamic,
        Format::Qcow2 => WireFormat::Qcow2,
    }
}
