//! The last step: owner, mode and times, then one rename, then the folder made durable. Before it, the target's
//! folder holds nothing new; after it, the whole version.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::Path;
use std::time::{Duration, SystemTime};

use goldwire_disk::{Format, OpenOptions};
use goldwire_stdx::{Existing, spawn};
use goldwire_store::{TreeCache, Version, keep_beside};

use super::attributes;
use super::work::WorkPlace;
use crate::failure::Result;
use crate::wire::{Failure, FailureKind, TargetJob};

/// Publishes the verified work file of `place` as `target`. What is worth saying about it.
pub(crate) fn publish(
    place: &WorkPlace,
    target: &Path,
    format: Format,
    version: &Version,
    job: &TargetJob,
) -> Result<Option<String>> {
    let failed = |doing: &str, error: &io::Error| Failure::io(format!("{doing} {}", target.display()), error);
    let (around, name) = place.target();
    let replaced = around.owner_of(name).ok().flatten();
    let file = place.folder().read_file("disk").map_err(|error| failed("open the work file of", &error))?;
    // What is only kept need not succeed: only root gives files away, and a file system without modes refuses any.
    if let (None, Some(replaced)) = (job.owner, replaced) {
        let _ = fchown(&file, Some(replaced.user), Some(replaced.group));
    }
    if job.mode.is_none() {
        // As rsync without --perms: the source's, as far as the user here lets new files have it.
        let kept = replaced.map_or_else(|| job.source_mode & umask_allows(place), |replaced| replaced.mode);
        let _ = file.set_permissions(Permissions::from_mode(kept & 0o777));
    }
    let old = around.read_file(name);
    // After the mode, which an access list goes with, and before the one that was asked for.
    let old_or_not = old.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()));
    let lost = attributes::keep(old_or_not, &file);
    set_what_was_asked(&file, target, job)?;
    // The content's own time, as rsync -t keeps it. It also makes every later write move the modification time,
    // however coarse the file system's clock is, which the kept trees rely on.
    let created = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(version.created.max(0) as u64));
    if let Some(created) = created {
        // Nobody asked for it, and a file system that cannot keep it loses nothing that was received.
        let _ = file.set_modified(created);
    }
    file.sync_all().map_err(|error| failed("sync the work file of", &error))?;
    // To give a large file's space back takes the file system a while. With the replaced disk held open the rename
    // does not, and nobody waits for the thread that does; where there can be none, it is done here.
    let existing = if job.replace { Existing::Replace } else { Existing::Keep };
    rename(place, OsStr::new("disk"), name, existing).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => exists(target),
        _ => failed("rename the finished work file to", &error),
    })?;
    let _ = spawn("give space back", move || drop(old));
    around.sync().map_err(|error| failed("sync the folder of", &error))?;
    keep_records(place, target, format, version, job);
    place.clear();
    Ok(lost.map(|lost| format!("{} {lost}", target.display())))
}

/// Gives the file the owner and the mode that the user asked for, or fails.
pub(crate) fn set_what_was_asked(file: &File, target: &Path, job: &TargetJob) -> Result<()> {
    let failed = |doing: &str, error: &io::Error| Failure::io(format!("{doing} {}", target.display()), error);
    if let Some((user, group)) = job.owner {
        let is_so = file.metadata().is_ok_and(|data| data.uid() == user && data.gid() == group);
        if !is_so {
            fchown(file, Some(user), Some(group)).map_err(|error| failed("set the owner of", &error))?;
        }
    }
    if let Some(mode) = job.mode {
        let is_so = file.metadata().is_ok_and(|data| data.mode() & 0o7777 == mode);
        if !is_so {
            let set = file.set_permissions(Permissions::from_mode(mode & 0o777));
            set.map_err(|error| failed("set the mode of", &error))?;
        }
    }
    Ok(())
}

/// The permission bits that a new file of this process may have.
fn umask_allows(place: &WorkPlace) -> u32 {
    let made = place.folder().create_new("umask", 0o777).and_then(|file| file.metadata());
    let _ = place.folder().remove_file("umask");
    made.map_or(0o755, |data| data.mode() & 0o777)
}

/// Gives `file` of the work folder the name `name` in the target's folder.
pub(super) fn rename(place: &WorkPlace, file: &OsStr, name: &OsStr, existing: Existing) -> io::Result<()> {
    let (around, _) = place.target();
    let work = place.folder();
    let renamed = work.rename(file, around, name, existing);
    // Not every file system keeps what exists (NFS does not). There a hard link refuses to replace.
    if !renamed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Unsupported) {
        return renamed;
    }
    let linked = work.hard_link(file, around, name).and_then(|()| work.remove_file(file));
    // Nor has each hard links (FAT, exFAT). There our lock is what keeps two syncs apart.
    if !linked.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists) {
        return linked;
    }
    match around.kind_of(name)? {
        None => work.rename(file, around, name, Existing::Replace),
        Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// The target holds something else.
pub(crate) fn exists(target: &Path) -> Failure {
    Failure::new(FailureKind::Exists, format!("{} exists and holds another version", target.display()))
        .hint("--replace puts the new version in its place once it is verified; or give another target name")
}

/// The target has something that nobody asked to replace, and which version it is cannot be said: `failure`.
pub(super) fn exists_unread(target: &Path, failure: &Failure) -> Failure {
    let hint = match File::open(target) {
        Ok(_) => "--replace puts the new version in its place once it is verified",
        Err(_) => "run it as somebody who may read it",
    };
    let text = format!("{} exists and is not read as a disk: {}", target.display(), failure.report().line());
    Failure::new(FailureKind::Exists, text).hint(format!("{hint}; or give another target name"))
}

/// Keeps the tree and the descriptor beside the published disk. Losing them costs time later and nothing else.
fn keep_records(place: &WorkPlace, target: &Path, format: Format, version: &Version, job: &TargetJob) {
    let options = OpenOptions { format: Some(format), ..OpenOptions::default() };
    if let Ok(image) = goldwire_disk::open(target, &options) {
        let _ = TreeCache::adopt(&image, place.folder(), "readback", version.root, version.chunks_used);
    }
    let _ = keep_beside(target, &job.version);
}
