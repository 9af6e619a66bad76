//! The place where a version grows before it is published.
//!
//! ```text
//! SR/Win10.vhd                              the published disk, or its previous version, untouched
//! SR/.Win10.vhd.goldwire-lock               held while a sync runs
//! SR/.goldwire/work/Win10.vhd/state         what is being received; a mismatch starts afresh
//!                             disk          the container, its name without an ending that a scanner knows
//!                             tree          the version's tree, sealed once it is wholly known
//!                             laid-out      empty; there once `disk` has its final layout
//!                             journal       chunks that are in `disk`, durable
//!                             readback      the tree that reading back gives
//!                             previous/     the same files of an unfinished other version, now a seed
//! ```

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use goldwire_stdx::{Existing, Folder};
use goldwire_store::{Kept, find_ours, remove_empty, with_own};
use serde::{Deserialize, Serialize};

use super::lock::TargetLock;
use crate::failure::Result;
use crate::wire::{Failure, FailureKind, WireFormat};

/// Bytes that a recorded state may have.
pub(super) const STATE_MAX: u64 = 4096;

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

/// A claimed work folder. The lock goes with it. Every step below it is by descriptor: the folders around may be
/// somebody else's.
#[derive(Debug)]
pub(crate) struct WorkPlace {
    /// The target's folder.
    around: Folder,
    /// Our folder for all work there.
    all: Folder,
    /// The work folder of this target.
    folder: Folder,
    /// The target's file name.
    name: OsString,
    _lock: TargetLock,
}

impl WorkPlace {
    /// Claims the work folder for `target`.
    pub(crate) fn claim(target: &Path) -> Result<Self> {
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(Failure::new(FailureKind::Invalid, format!("{} names no file", target.display())));
        };
        let failed = |error| Failure::io(format!("make a work folder in {}", parent.display()), &error);
        let around = Folder::open(parent).map_err(failed)?;
        let lock = TargetLock::take(parent, name)?;
        // Within a folder that is ours alone, so whatever lies here is ours too.
        let make = |all: Folder| all.make_child(name, 0o700).map(|folder| (all, folder));
        let (all, folder) = with_own(&around, Kept::Work, make).map_err(failed)?;
        Ok(Self { around, all, folder, name: name.to_owned(), _lock: lock })
    }

    /// Fails as [`claim`](Self::claim) would if another sync holds `target`; changes nothing.
    pub(crate) fn check_free(target: &Path) -> Result<()> {
        match (target.parent(), target.file_name()) {
            (Some(parent), Some(name)) => TargetLock::check_free(parent, name),
            _ => Ok(()),
        }
    }

    /// The work folders of ours for `target` that an unfinished attempt left, with its state; nothing is claimed.
    pub(crate) fn look(target: &Path) -> Vec<(Folder, State)> {
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else { return Vec::new() };
        let Ok(around) = Folder::open(parent) else { return Vec::new() };
        let places = find_ours(&around, Kept::Work);
        let attempts = places.iter().filter_map(|all| {
            let folder = all.child(name).ok()?;
            let state = recorded(&folder).ok()??;
            Some((folder, state))
        });
        attempts.collect()
    }

    /// Bytes that an unfinished attempt of ours at exactly this state occupies beside `target`; nothing is claimed.
    pub(crate) fn occupied(target: &Path, state: &State) -> u64 {
        let attempts = Self::look(target).into_iter().filter(|(_, found)| found == state);
        let disks = attempts.filter_map(|(folder, _)| folder.read_file("disk").ok()?.metadata().ok());
        disks.map(|disk| disk.blocks() * 512).max().unwrap_or(0)
    }

    /// Whether an unfinished attempt at exactly this state is here. Otherwise clears the place: an unfinished
    /// attempt at something else moves to `previous`.
    pub(crate) fn prepare(&self, state: &State) -> Result<bool> {
        let clear = || -> io::Result<bool> {
            let found = recorded(&self.folder)?;
            if found.as_ref() == Some(state) {
                return Ok(true);
            }
            let is_worth_keeping = found.is_some() && self.has("disk") && self.has("tree");
            if is_worth_keeping {
                self.folder.remove_tree("previous")?;
                let previous = self.folder.make_child("previous", 0o700)?;
                for name in FILES {
                    match self.folder.rename(name, &previous, name, Existing::Replace) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        other => other?,
                    }
                }
            } else {
                FILES.into_iter().try_for_each(|name| self.folder.remove_file(name))?;
            }
            Ok(false)
        };
        clear().map_err(|error| {
            Failure::io(format!("prepare the work folder {}", self.shown("").display()), &error)
        })
    }

    /// Records what is being received. From here on a killed run can be continued.
    pub(crate) fn record(&self, state: &State) -> Result<()> {
        let bytes = postcard::to_allocvec(state).unwrap_or_default();
        let failed = |error| Failure::io(format!("write {}", self.shown("state").display()), &error);
        self.folder.replace("state", &bytes, 0o600).map_err(failed)
    }

    /// The folder that holds the files drawn above.
    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// The target's folder, and its name there.
    pub(crate) fn target(&self) -> (&Folder, &OsString) {
        (&self.around, &self.name)
    }

    /// Whether one of the files drawn above is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.folder.kind_of(name).is_ok_and(|kind| kind.is_some())
    }

    /// One of the files drawn above as messages name it.
    pub(crate) fn shown(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The unfinished attempt at another version, if there is one, with its state.
    pub(crate) fn previous(&self) -> Option<(Folder, State)> {
        previous_in(&self.folder)
    }

    /// Removes the work folder after publishing.
    pub(crate) fn clear(&self) {
        // What cannot be removed is cleared by the next run; the version is published either way.
        let _ = self.all.remove_tree(&self.name);
    }
}

/// Nothing empty stays, however the work ended. Unfinished work does.
impl Drop for WorkPlace {
    fn drop(&mut self) {
        let _ = self.all.remove_folder(&self.name);
        remove_empty(&self.around);
    }
}

/// The name of what lies hidden beside `target` itself.
pub(super) fn hidden(target: &OsStr, ending: &str) -> OsString {
    let mut name = OsString::from(".");
    name.push(target);
    name.push(ending);
    name
}

/// The target beside which `name` lies [`hidden`].
pub(super) fn shown(name: &OsStr, ending: &str) -> Option<OsString> {
    let target = name.as_bytes().strip_prefix(b".")?.strip_suffix(ending.as_bytes())?;
    (!target.is_empty()).then(|| OsStr::from_bytes(target).to_owned())
}

/// The state that a work folder records; `None` if there is none, or it is no state of ours.
fn recorded(folder: &Folder) -> io::Result<Option<State>> {
    match folder.read_bounded("state", STATE_MAX) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Ok(None),
        read => Ok(read?.and_then(|bytes| postcard::from_bytes(&bytes).ok())),
    }
}

/// The unfinished attempt at another version that a work folder holds, with its state.
pub(super) fn previous_in(folder: &Folder) -> Option<(Folder, State)> {
    let folder = folder.child("previous").ok()?;
    let state = recorded(&folder).ok()??;
    Some((folder, state))
}

/// What a work folder holds of one attempt.
const FILES: [&str; 6] = ["state", "laid-out", "disk", "tree", "journal", "readback"];

#[cfg(test)]
mod tests {
    use super::*;

    fn state(root: u8) -> State {
        State { layout: 1, root: [root; 32], size: 1 << 20, created: 0, format: WireFormat::VhdDynamic }
    }

    /// Where nothing unfinished is, nothing of ours is, whoever comes and goes beside us.
    #[test]
    fn places_come_and_go_and_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for number in 0..3 {
                let target = folder.path().join(format!("{number}.vhd"));
                goldwire_stdx::spawn_scoped(scope, "syncs", move || {
                    for round in 0..100 {
                        let place = WorkPlace::claim(&target).unwrap();
                        if round % 2 == 1 {
                            std::fs::write(place.shown("disk"), "d").unwrap();
                            place.clear();
                        }
                    }
                })
                .unwrap();
            }
        });
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let place = WorkPlace::claim(&folder.path().join("a.vhd")).unwrap();
        std::fs::write(place.shown("disk"), "d").unwrap();
        drop(place);
        assert!(folder.path().join(".goldwire/work/a.vhd/disk").is_file(), "unfinished work stays");
    }

    /// Whatever has the state's name, the next attempt begins.
    #[test]
    fn a_state_of_any_bytes_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let place = WorkPlace::claim(&folder.path().join("a.vhd")).unwrap();
        for bytes in [&b""[..], b"\xff\xff", &[1; 4096], &[1; 4097], &[0; 100_000]] {
            std::fs::write(place.shown("state"), bytes).unwrap();
            assert!(!place.prepare(&state(1)).unwrap(), "{} bytes", bytes.len());
            place.record(&state(1)).unwrap();
            assert!(place.prepare(&state(1)).unwrap());
        }
    }

    #[test]
    fn only_the_same_state_continues_and_another_becomes_the_previous() {
        let folder = tempfile::tempdir().unwrap();
        let place = WorkPlace::claim(&folder.path().join("a.vhd")).unwrap();
        assert!(!place.prepare(&state(1)).unwrap());
        std::fs::write(place.shown("disk"), "d").unwrap();
        std::fs::write(place.shown("tree"), "t").unwrap();
        place.record(&state(1)).unwrap();
        assert!(place.prepare(&state(1)).unwrap());
        assert!(!place.prepare(&state(2)).unwrap());
        let (previous, kept) = place.previous().unwrap();
        assert_eq!(previous.read_bounded("disk", 9).unwrap(), Some(b"d".to_vec()));
        assert_eq!(kept, state(1));
        assert!(!place.has("disk") && !place.has("state"));
    }
}
