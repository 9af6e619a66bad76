//! The last step: owner, mode and times, then one rename, then the folder made durable. Before it, the target's
//! folder holds nothing new; after it, the whole version.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use goldwire_disk::{Format, OpenOptions};
use goldwire_store::{TreeCache, Version, WORK_FOLDER, make_own_folder};
use rustix::fs::{RenameFlags, renameat_with};

use super::work::{WorkPlace, sync_folder};
use crate::failure::Result;
use crate::wire::{Failure, FailureKind, TargetJob};

/// Publishes the verified work file of `place` as `target`.
pub(crate) fn publish(
    place: WorkPlace,
    target: &Path,
    format: Format,
    version: &Version,
    job: &TargetJob,
) -> Result<()> {
    let disk = place.path("disk");
    let failed = |doing: &str, error: &io::Error| Failure::io(format!("{doing} {}", target.display()), error);
    let replaced = fs::metadata(target).ok();
    let file = File::open(&disk).map_err(|error| failed("open the work file of", &error))?;
    let owner = job.owner.or_else(|| replaced.as_ref().map(|data| (data.uid(), data.gid())));
    if let Some((user, group)) = owner {
        let is_mine = file.metadata().is_ok_and(|data| data.uid() == user && data.gid() == group);
        match fchown(&file, Some(user), Some(group)) {
            // Only root gives files away. What the user asked for must be so; what would only be nice need not.
            Err(error) if !is_mine && job.owner.is_some() => return Err(failed("set the owner of", &error)),
            _ => {}
        }
    }
    let mode = job.mode.or_else(|| replaced.as_ref().map(MetadataExt::mode)).unwrap_or(job.source_mode);
    file.set_permissions(Permissions::from_mode(mode & 0o777))
        .map_err(|error| failed("set the mode of", &error))?;
    // The content's own time, as rsync -t keeps it. It also makes every later write move the modification time,
    // however coarse the file system's clock is, which the tree cache relies on.
    let created = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(version.created.max(0) as u64));
    if let Some(created) = created {
        file.set_modified(created).map_err(|error| failed("set the time of", &error))?;
    }
    file.sync_all().map_err(|error| failed("sync the work file of", &error))?;
    // To give a large file's space back takes the file system a while. With the replaced disk held open the rename
    // does not, and nobody waits for the thread that does; where there can be none, it is done here.
    let old = File::open(target);
    rename(&disk, target, job.replace)?;
    let _ = thread::Builder::new().spawn(move || drop(old));
    let folder = target.parent().unwrap_or(Path::new("/"));
    sync_folder(folder).map_err(|error| failed("sync the folder of", &error))?;
    keep_records(&place, target, format, version, job);
    place.clear();
    Ok(())
}

fn rename(disk: &Path, target: &Path, replace: bool) -> Result<()> {
    let cwd = rustix::fs::CWD;
    let flags = if replace { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    match renameat_with(cwd, disk, cwd, target, flags) {
        // Not every file system knows the flag (NFS does not). There a hard link refuses to replace.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) if !replace => {
            fs::hard_link(disk, target).and_then(|()| fs::remove_file(disk))
        }
        other => other.map_err(io::Error::from),
    }
    .map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(target),
        _ => Failure::io(format!("rename the finished work file to {}", target.display()), &error),
    })
}

/// The target holds something else.
pub(crate) fn exists(target: &Path) -> Failure {
    Failure::new(FailureKind::Exists, format!("{} exists and holds another version", target.display()))
        .hint("--replace puts the new version in its place once it is verified; or give another target name")
}

/// Keeps the tree and the descriptor beside the published disk. Losing them costs time later and nothing else.
fn keep_records(place: &WorkPlace, target: &Path, format: Format, version: &Version, job: &TargetJob) {
    let options = OpenOptions { format: Some(format), ..OpenOptions::default() };
    if let Ok(image) = goldwire_disk::open(target, &options) {
        let _ = TreeCache::adopt(&image, &place.path("readback"), version.root, version.chunks_used);
    }
    keep_version(place, target, job);
}

/// Keeps the descriptor beside the image.
pub(crate) fn keep_version(place: &WorkPlace, target: &Path, job: &TargetJob) {
    if let Some(path) = version_path(target) {
        let scratch = place.path("version");
        let _ = make_own_folder(target.parent().unwrap_or(Path::new("/")), "versions")
            .and_then(|_| fs::write(&scratch, &job.version))
            .and_then(|()| fs::rename(&scratch, &path));
    }
}

/// Where the descriptor of the image at `image` lies.
pub(crate) fn version_path(image: &Path) -> Option<std::path::PathBuf> {
    let (folder, name) = (image.parent()?, image.file_name()?);
    Some(folder.join(WORK_FOLDER).join("versions").join(name).with_added_extension("gwv"))
}
