//! Opening an image as a source: its tree, its descriptor, and a server for its content.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use goldwire_disk::{Folders, Format, OpenOptions};
use goldwire_stdx::{Stop, watched};
use goldwire_store::{BuildOptions, Progress, TreeCache, Version, beside};

use super::{LocalServer, Pace, Server, SharedServer};
use crate::connection::Connection;
use crate::failure::Result;
use crate::wire::{Event, Failure, Frame, Kind, SourceJob, SourceReady, WireFormat};

/// How often the control side hears how far hashing is.
const REPORT_EVERY: Duration = Duration::from_millis(200);

/// Opens the image, gets its tree and starts serving it.
pub(crate) fn open_source(
    job: &SourceJob,
    connection: &Connection,
    stop: &Stop,
    pace: Arc<Pace>,
) -> Result<(SourceReady, Arc<dyn Server>)> {
    let path =
        fs::canonicalize(&job.path).map_err(|error| Failure::io(format!("find {}", job.path), &error))?;
    let mut folders: Vec<PathBuf> = path.parent().map(Path::to_owned).into_iter().collect();
    folders.extend(job.parent_folders.iter().map(PathBuf::from));
    let options = OpenOptions { gate: Arc::new(Folders(folders)), ..OpenOptions::default() };
    let opened = goldwire_disk::open(&path, &options)?;
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
    let ready = SourceReady {
        version: beside(&path, &cached.root)?
            .map_or_else(|| new_version(&name, image, &cached), |(_, bytes)| bytes),
        format: wire_format(image.info.format),
        name,
        mode: std::os::unix::fs::MetadataExt::mode(&data) & 0o777,
        tree_was_cached: cached.was_cached,
    };
    let local = LocalServer::start(opened, cached.tree, job.level, pace)?;
    Ok((ready, Arc::new(SharedServer::new(Arc::new(local), job.keep_bytes))))
}

fn new_version(name: &str, image: &goldwire_disk::Image, cached: &TreeCache) -> Vec<u8> {
    let modified_ns = image.chain.first().map_or(0, |file| file.identity.modified_ns);
    let version = Version {
        root: cached.root,
        size: image.device.size(),
        chunks_used: cached.chunks_used,
        created: modified_ns.div_euclid(1_000_000_000) as i64,
        parent: None,
        name: name.chars().take(200).collect(),
        note: String::new(),
        signer: None,
    };
    // Name and note are within their limits.
    version.encode(None).unwrap_or_default()
}

fn wire_format(format: Format) -> WireFormat {
    match format {
        Format::Raw => WireFormat::Raw,
        Format::VhdFixed => WireFormat::VhdFixed,
        Format::VhdDynamic | Format::VhdDifferencing => WireFormat::VhdDynamic,
        Format::Qcow2 => WireFormat::Qcow2,
    }
}
