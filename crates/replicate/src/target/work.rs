//! The place where a version grows before it is published, and the lock that keeps two syncs apart.
//!
//! ```text
//! SR/Win10.vhd                              the published disk, or its previous version, untouched
//! SR/.goldwire/work/Win10.vhd.lock          held while a sync runs
//! SR/.goldwire/work/Win10.vhd/state         what is being received; a mismatch starts afresh
//!                             disk          the container, its name without an ending that a scanner knows
//!                             tree          the version's tree, sealed once it is wholly known
//!                             laid-out      empty; there once `disk` has its final layout
//!                             journal       chunks that are in `disk`, durable
//!                             readback      the tree that reading back gives
//!                             previous/     the same files of an unfinished other version, now a seed
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use goldwire_store::{WORK_FOLDER, make_own_folder};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::failure::Result;
use crate::wire::{Failure, FailureKind, WireFormat};

/// What determines the bytes of the work file. Only an equal state may be continued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// Of the layout of the work folder.
    pub(crate) layout: u32,
    pub(crate) root: [u8; 32],
    pub(crate) size: u64,
    pub(crate) created: i64,
    pub(crate) format: WireFormat,
}

/// A claimed work folder. The lock goes with it.
#[derive(Debug)]
pub(crate) struct WorkPlace {
    folder: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl WorkPlace {
    /// Claims the work folder for `target`.
    pub(crate) fn claim(target: &Path) -> Result<Self> {
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(Failure::new(FailureKind::Invalid, format!("{} names no file", target.display())));
        };
        let failed = |error| {
            let place = parent.join(WORK_FOLDER).join("work").join(name);
            Failure::io(format!("make the work folder {}", place.display()), &error)
        };
        let folder = make_own_folder(parent, "work").map_err(failed)?.join(name);
        let lock_path = folder.with_added_extension("lock");
        let lock = lock(&lock_path)?;
        make_folder(&folder).map_err(failed)?;
        Ok(Self { folder, lock_path, _lock: lock })
    }

    /// Whether an unfinished attempt at exactly this state is here. Otherwise clears the place: an unfinished
    /// attempt at something else moves to `previous`.
    pub(crate) fn prepare(&self, state: &State) -> Result<bool> {
        let failed =
            |error| Failure::io(format!("prepare the work folder {}", self.folder.display()), &error);
        let found = fs::read(self.path("state")).ok();
        if found.as_deref().and_then(|bytes| postcard::from_bytes::<State>(bytes).ok()).as_ref()
            == Some(state)
        {
            return Ok(true);
        }
        let previous = self.previous();
        let is_worth_keeping = found.is_some() && self.path("disk").exists() && self.path("tree").exists();
        if is_worth_keeping {
            let _ = fs::remove_dir_all(&previous);
            make_folder(&previous).map_err(failed)?;
        }
        for name in ["state", "laid-out", "disk", "tree", "journal", "readback"] {
            let path = self.path(name);
            let cleared = if is_worth_keeping {
                fs::rename(&path, previous.join(name))
            } else {
                fs::remove_file(&path)
            };
            match cleared {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        Ok(false)
    }

    /// Records what is being received. From here on a killed run can be continued.
    pub(crate) fn record(&self, state: &State) -> Result<()> {
        let write = || -> io::Result<()> {
            let scratch = self.path("state.new");
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&scratch)?;
            file.write_all(&postcard::to_allocvec(state).unwrap_or_default())?;
            file.sync_all()?;
            fs::rename(&scratch, self.path("state"))?;
            sync_folder(&self.folder)
        };
        write().map_err(|error| Failure::io(format!("write {}", self.path("state").display()), &error))
    }

    /// The path of one of the files drawn above.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where an unfinished other version lies, if there is one.
    pub(crate) fn previous(&self) -> PathBuf {
        self.folder.join("previous")
    }

    /// Gives the place up again when there was nothing to do. Unfinished work stays.
    pub(crate) fn release(self) {
        let _ = fs::remove_dir(&self.folder);
        let _ = fs::remove_file(&self.lock_path);
    }

    /// Removes the work folder after publishing.
    pub(crate) fn clear(self) {
        // What cannot be removed is cleared by the next run; the version is published either way.
        let _ = fs::remove_dir_all(&self.folder);
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Takes the lock or says who has it.
fn lock(path: &Path) -> Result<File> {
    let failed = |error: &io::Error| Failure::io(format!("lock {}", path.display()), error);
    loop {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(path)
            .map_err(|error| failed(&error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = file.take(200).read_to_string(&mut holder);
                let holder = holder.trim();
                let who = if holder.is_empty() { "another process".to_owned() } else { holder.to_owned() };
                return Err(Failure::new(
                    FailureKind::Busy,
                    format!("another sync to this target is running ({who}, lock {})", path.display()),
                )
                .hint("wait for it to end, or stop it; two syncs never write to one target"));
            }
            Err(error) => return Err(failed(&error.into())),
        }
        // The previous holder removes the file when it is done: a lock on a removed file guards nothing.
        let held = goldwire_disk::FileIdentity::of(&file).ok();
        let named = goldwire_disk::FileIdentity::of_path(path).ok();
        if held.map(|identity| (identity.device, identity.inode))
            == named.map(|identity| (identity.device, identity.inode))
        {
            let host = rustix::system::uname();
            let text = format!("process {} on {}\n", std::process::id(), host.nodename().to_string_lossy());
            let written =
                file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes()));
            written.map_err(|error| failed(&error))?;
            return Ok(file);
        }
    }
}

pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Makes renames within `folder` durable.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(root: u8) -> State {
        State { layout: 1, root: [root; 32], size: 1 << 20, created: 0, format: WireFormat::VhdDynamic }
    }

    #[test]
    fn a_second_claim_is_refused_until_the_first_goes() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a.vhd");
        let first = WorkPlace::claim(&target).unwrap();
        let refused = WorkPlace::claim(&target).unwrap_err();
        assert_eq!(refused.kind, FailureKind::Busy);
        assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
        WorkPlace::claim(&folder.path().join("b.vhd")).unwrap();
        first.clear();
        WorkPlace::claim(&target).unwrap();
    }

    #[test]
    fn only_the_same_state_continues_and_another_becomes_the_previous() {
        let folder = tempfile::tempdir().unwrap();
        let place = WorkPlace::claim(&folder.path().join("a.vhd")).unwrap();
        assert!(!place.prepare(&state(1)).unwrap());
        fs::write(place.path("disk"), "d").unwrap();
        fs::write(place.path("tree"), "t").unwrap();
        place.record(&state(1)).unwrap();
        assert!(place.prepare(&state(1)).unwrap());
        assert!(!place.prepare(&state(2)).unwrap());
        assert_eq!(fs::read(place.previous().join("disk")).unwrap(), b"d");
        assert!(!place.path("disk").exists() && !place.path("state").exists());
    }
}
