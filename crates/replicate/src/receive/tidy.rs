//! Taking away what syncs left beside images: unfinished work, locks of killed runs, digests and descriptors of images that
//! are gone. Everybody tidies what is his own; what a running sync holds is left alone.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use goldwire_stdx::Folder;
use goldwire_store::{Kept, find_own, remove_empty};

use super::lock::{TargetLock, target_of};
use crate::failure::Result;
use crate::wire::{Failure, FailureKind};

/// How much is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What nobody needs any more, and unfinished work.
    Leftovers,
    /// Digests and descriptors of images that are there, too.
    Everything,
}

/// Whether it is taken away, or only said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tidying {
    /// Taken away.
    Remove,
    /// Only said.
    Look,
}

/// What something beside images is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// A version that was not received to its end.
    Work,
    /// The lock of a run that was killed.
    Lock,
    /// The digests of an image.
    Digests,
    /// The descriptor of an image.
    Descriptor,
}

/// Something that is taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Where it is, or was.
    pub path: PathBuf,
    /// What it is.
    pub what: Leftover,
    /// Bytes that it occupies.
    pub bytes: u64,
}

/// Takes away what this user's syncs left in `folder`, beside the images there. What was taken away, or would be.
///
/// # Errors
/// The folder cannot be read, or something in it cannot be taken away.
pub fn tidy(folder: &Path, extent: Extent, tidying: Tidying) -> Result<Vec<Left>> {
    let failed = |error| Failure::io(format!("tidy {}", folder.display()), &error);
    let around = Folder::open(folder).map_err(failed)?;
    let me = rustix::process::geteuid().as_raw();
    let mut left = Vec::new();
    for (kept, what, ending) in [
        (Kept::Work, Leftover::Work, ""),
        (Kept::Trees, Leftover::Digests, ".tree"),
        (Kept::Versions, Leftover::Descriptor, ".gwv"),
    ] {
        let own = find_own(&around, kept, &[]);
        for own in own.iter().filter(|own| own.owner().is_ok_and(|owner| owner.user == me)) {
            for entry in own.entries().map_err(failed)? {
                let Some(image) = entry.as_bytes().strip_suffix(ending.as_bytes()).map(OsStr::from_bytes)
                else {
                    continue;
                };
                let is_needed = what != Leftover::Work && extent == Extent::Leftovers;
                if is_needed && around.kind_of(image).map_err(failed)?.is_some() {
                    continue;
                }
                let Some(_held) = hold(folder, image, tidying)? else { continue };
                left.push(Left { path: own.path().join(&entry), what, bytes: occupied(own, &entry, 0) });
                if tidying == Tidying::Remove {
                    own.remove_tree(&entry).map_err(failed)?;
                }
            }
        }
    }
    for entry in around.entries().map_err(failed)? {
        if let Some(image) = target_of(&entry)
            && let Some(_held) = hold(folder, &image, tidying)?
        {
            left.push(Left { path: folder.join(&entry), what: Leftover::Lock, bytes: 0 });
        }
    }
    if tidying == Tidying::Remove {
        remove_empty(&around);
    }
    Ok(left)
}

/// The lock of `image`, which takes its file away when it goes; nothing when only looking. `None` if a sync holds it.
fn hold(folder: &Path, image: &OsStr, tidying: Tidying) -> Result<Option<Option<TargetLock>>> {
    let held = match tidying {
        Tidying::Remove => TargetLock::take(folder, image).map(Some),
        Tidying::Look => TargetLock::check_free(folder, image).map(|()| None),
    };
    match held {
        Err(failure) if failure.kind == FailureKind::Busy => Ok(None),
        held => held.map(Some),
    }
}

/// Bytes that an entry occupies, with what is in it.
fn occupied(folder: &Folder, name: &OsString, depth: u32) -> u64 {
    if let Ok(child) = folder.child(name) {
        let entries = if depth < 4 { child.entries().unwrap_or_default() } else { Vec::new() };
        return entries.iter().map(|entry| occupied(&child, entry, depth + 1)).sum();
    }
    folder.read_file(name).and_then(|file| file.metadata()).map_or(0, |data| data.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::receive::work::WorkPlace;

    const THERE: &str = "there.vhd";

    /// Images that are there and gone with all that is kept of them, work, a killed run's lock, and a sync that runs.
    fn scene() -> (tempfile::TempDir, WorkPlace) {
        let scene = tempfile::tempdir().unwrap();
        let running = WorkPlace::claim(&scene.path().join("running.vhd")).unwrap();
        fs::write(running.shown("disk"), "d").unwrap();
        let unfinished = WorkPlace::claim(&scene.path().join("unfinished.vhd")).unwrap();
        fs::write(unfinished.shown("disk"), vec![1; 8192]).unwrap();
        let around = Folder::open(scene.path()).unwrap();
        for (kept, ending) in [(Kept::Trees, "tree"), (Kept::Versions, "gwv")] {
            let own = goldwire_store::make_own(&around, kept).unwrap();
            for image in [THERE, "gone.vhd", "running.vhd"] {
                own.create_new(format!("{image}.{ending}"), 0o600).unwrap();
            }
        }
        fs::write(scene.path().join(THERE), "").unwrap();
        fs::write(scene.path().join(".killed.vhd.goldwire-lock"), "").unwrap();
        (scene, running)
    }

    fn names(scene: &Path, left: &[Left]) -> Vec<String> {
        let mut names: Vec<_> =
            left.iter().map(|left| left.path.strip_prefix(scene).unwrap().display().to_string()).collect();
        names.sort();
        names
    }

    const LEFTOVERS: [&str; 4] = [
        ".goldwire/trees/gone.vhd.tree",
        ".goldwire/versions/gone.vhd.gwv",
        ".goldwire/work/unfinished.vhd",
        ".killed.vhd.goldwire-lock",
    ];

    #[test]
    fn what_nobody_needs_goes_and_what_is_in_use_stays() {
        let (scene, running) = scene();
        let looked = tidy(scene.path(), Extent::Leftovers, Tidying::Look).unwrap();
        assert_eq!(names(scene.path(), &looked), LEFTOVERS);
        let work = looked.iter().find(|left| left.what == Leftover::Work).unwrap();
        assert!(work.bytes >= 8192);
        let removed = tidy(scene.path(), Extent::Leftovers, Tidying::Remove).unwrap();
        assert_eq!(removed, looked);
        assert_eq!(tidy(scene.path(), Extent::Leftovers, Tidying::Look), Ok(Vec::new()));
        assert!(LEFTOVERS.iter().all(|name| !scene.path().join(name).exists()));
        assert!(scene.path().join(".goldwire/trees/there.vhd.tree").is_file());
        assert!(running.has("disk"));
    }

    #[test]
    fn everything_goes_but_what_a_sync_holds_and_then_nothing_is_left() {
        let (scene, running) = scene();
        tidy(scene.path(), Extent::Everything, Tidying::Remove).unwrap();
        assert!(running.has("disk") && scene.path().join(".goldwire/trees/running.vhd.tree").is_file());
        drop(running);
        tidy(scene.path(), Extent::Everything, Tidying::Remove).unwrap();
        let left: Vec<_> =
            fs::read_dir(scene.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [THERE]);
    }

    #[test]
    fn another_users_is_left_alone() {
        let (scene, running) = scene();
        drop(running);
        if std::os::unix::fs::chown(scene.path().join(".goldwire"), Some(4711), None).is_err() {
            return goldwire_stdx::testing::excuse(goldwire_stdx::testing::Excuse::NotRoot);
        }
        let removed = tidy(scene.path(), Extent::Everything, Tidying::Remove).unwrap();
        assert_eq!(names(scene.path(), &removed), [".killed.vhd.goldwire-lock"]);
        assert!(scene.path().join(".goldwire/work/unfinished.vhd/disk").is_file());
    }
}
