//! The lock that keeps two syncs from one target, whoever runs them.
//!
//! It lies beside the target, `.NAME.goldwire-lock`, and not in a work folder, because those are closed to other users:
//! each has his own, and would never see the other's lock. Whoever may write to the folder may open the lock, and
//! nobody else, so that nobody who could not sync there anyway can hold a sync up.
//!
//! The folder may be somebody else's, who could have put anything under the lock's name, a hard link to a file of root's
//! too. So nothing is written to, nor given away, but what was just made here. And a lock may have more names than its
//! own: somebody copied the folder by hard links. Who holds a lock is what the system says of its file, and nothing that
//! is held is taken away.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use goldwire_disk::FileIdentity;
use goldwire_stdx::{Folder, printable};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::work::{hidden, shown};
use crate::failure::Result;
use crate::wire::{Failure, FailureKind};

const ENDING: &str = ".goldwire-lock";

/// A target that is ours until this is dropped, which removes the lock's file.
#[derive(Debug)]
pub(super) struct TargetLock {
    around: Folder,
    name: OsString,
    file: File,
}

impl TargetLock {
    /// Takes the lock of the target `name` in the folder `around`, or says who has it.
    pub(super) fn take(parent: &Path, target: &OsStr) -> Result<Self> {
        let failed = |error: &io::Error| failed(parent, target, error);
        let around = Folder::open(parent).map_err(|error| failed(&error))?;
        let name = lock_name(target);
        loop {
            let (file, origin) = open(&around, &name).map_err(|error| failed(&error))?;
            let Some(file) = file else { return Err(closed(&around, &name)) };
            match claim(&file, origin, &around, &name).map_err(|error| failed(&error))? {
                Claim::Ours => return Ok(Self { around, name, file }),
                Claim::Another => return Err(busy(file, &around.path().join(&name))),
                Claim::Again => {}
            }
        }
    }

    /// Fails as [`take`](Self::take) would if another sync holds the target; changes nothing.
    pub(super) fn check_free(parent: &Path, target: &OsStr) -> Result<()> {
        let name = lock_name(target);
        let Ok(around) = Folder::open(parent) else { return Ok(()) };
        match around.read_file(&name) {
            Ok(file) if flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK) => {
                Err(busy(file, &around.path().join(&name)))
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(closed(&around, &name)),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(parent, target, &error)),
            _ => Ok(()),
        }
    }
}

impl Drop for TargetLock {
    fn drop(&mut self) {
        // It is still locked. One that cannot be removed is taken over by the next run. If somebody took its name away,
        // what has the name now is another's.
        if is_named(&self.file, &self.around, &self.name) {
            let _ = self.around.remove_file(&self.name);
        }
    }
}

fn lock_name(target: &OsStr) -> OsString {
    hidden(target, ENDING)
}

/// The target whose lock has this name.
pub(super) fn target_of(lock: &OsStr) -> Option<OsString> {
    shown(lock, ENDING)
}

fn path(parent: &Path, target: &OsStr) -> PathBuf {
    parent.join(lock_name(target))
}

fn failed(parent: &Path, target: &OsStr, error: &io::Error) -> Failure {
    Failure::io(format!("lock {}", path(parent, target).display()), error)
}

/// Where a lock's file is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Made just now.
    Ours,
    /// It was there.
    Found,
}

/// What came of a lock's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    /// It is held.
    Ours,
    /// Somebody else holds it.
    Another,
    /// It is no lock, or none any more.
    Again,
}

/// Locks `file`, which had the lock's name a moment ago.
fn claim(file: &File, origin: Origin, around: &Folder, name: &OsStr) -> io::Result<Claim> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(Claim::Another),
        Err(error) => return Err(error.into()),
    }
    // The previous holder removes the file when it is done: a lock on a removed file guards nothing.
    if !is_named(file, around, name) {
        return Ok(Claim::Again);
    }
    match origin {
        Origin::Ours => {
            introduce(file, around);
            Ok(Claim::Ours)
        }
        // Left by a run that was killed, or something else that nobody holds. Who holds it now is written into a file of
        // our own; in a folder where nobody removes what is another's, it is held as it is.
        Origin::Found if around.remove_file(name).is_ok() => Ok(Claim::Again),
        Origin::Found => Ok(Claim::Ours),
    }
}

/// The lock's file, made if there is none; `None` for one that we may not open.
fn open(around: &Folder, name: &OsStr) -> io::Result<(Option<File>, Origin)> {
    loop {
        match around.create_new(name, 0o600) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|file| (Some(file), Origin::Ours)),
        }
        // Network file systems lock exclusively only what is open for writing.
        let opened = around.write_file(name).or_else(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => around.read_file(name),
            _ => Err(error),
        });
        match opened {
            // It went in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Ok((None, Origin::Found));
            }
            opened => return opened.map(|file| (Some(file), Origin::Found)),
        }
    }
}

fn is_named(file: &File, around: &Folder, name: &OsStr) -> bool {
    let named = around.read_file(name).ok().and_then(|file| FileIdentity::of(&file).ok());
    let held = FileIdentity::of(file).ok();
    held.is_some()
        && held.map(|held| (held.device, held.inode)) == named.map(|named| (named.device, named.inode))
}

/// Writes into a lock's file that was just made who we are, and opens it to whoever may write to the folder. The lock is
/// held without either: a full disk, or one without owners and modes, keeps nobody from it.
fn introduce(mut file: &File, around: &Folder) {
    let host = rustix::system::uname();
    let (process, user) = (std::process::id(), rustix::process::geteuid().as_raw());
    let who = format!("process {process} of user {user} on {}\n", host.nodename().to_string_lossy());
    if file.write_all(who.as_bytes()).is_err() {
        // Half a name is nobody's.
        let _ = file.set_len(0);
    }
    let Ok(owner) = around.owner() else { return };
    let _ = fchown(file, (user == 0).then_some(owner.user), Some(owner.group));
    let group = if owner.mode & 0o020 != 0 { 0o060 } else { 0 };
    let others = if owner.mode & 0o002 != 0 { 0o006 } else { 0 };
    let _ = file.set_permissions(std::fs::Permissions::from_mode(0o600 | group | others));
}

/// Somebody else holds the lock in `file`, and has written there who it is.
fn busy(file: File, path: &Path) -> Failure {
    let mut holder = String::new();
    let _ = file.take(200).read_to_string(&mut holder);
    let holder = printable(holder.trim()).into_owned();
    let who = if holder.is_empty() { "another process".to_owned() } else { holder };
    let text = format!("another sync to this target is running ({who}, lock {})", path.display());
    Failure::new(FailureKind::Busy, text)
        .hint("wait for it or stop it: one whose connection was cut gives up after 90 seconds; --wait 2m does the waiting")
}

/// The lock is another user's, and closed to us.
fn closed(around: &Folder, name: &OsStr) -> Failure {
    let path = around.path().join(name);
    let text =
        format!("another user syncs to this target, or did: the lock {} is closed to us", path.display());
    Failure::new(FailureKind::Busy, text).hint("if no sync of his runs there, remove the lock's file")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    use super::*;

    const NAME: &str = "a.vhd";

    fn take(folder: &Path) -> Result<TargetLock> {
        TargetLock::take(folder, OsStr::new(NAME))
    }

    fn lock_in(folder: &Path) -> PathBuf {
        path(folder, OsStr::new(NAME))
    }

    #[test]
    fn the_second_is_refused_until_the_first_goes_and_nothing_stays() {
        let folder = tempfile::tempdir().unwrap();
        let first = take(folder.path()).unwrap();
        let refused = take(folder.path()).unwrap_err();
        assert_eq!(refused.kind, FailureKind::Busy);
        assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
        let check = |name: &str| TargetLock::check_free(folder.path(), OsStr::new(name));
        assert_eq!(check(NAME).unwrap_err(), refused);
        check("b.vhd").unwrap();
        TargetLock::take(folder.path(), OsStr::new("b.vhd")).unwrap();
        drop(first);
        check(NAME).unwrap();
        drop(take(folder.path()).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    /// Somebody opened the file, or made it, and somebody else came between that and the lock.
    #[test]
    fn a_file_that_lost_its_name_is_no_lock_and_its_successor_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (around, name) = (Folder::open(folder.path()).unwrap(), lock_name(OsStr::new(NAME)));
        let first = take(folder.path()).unwrap();
        let (found, origin) = open(&around, &name).unwrap();
        assert_eq!(origin, Origin::Found);
        drop(first);
        let (made, ours) = open(&around, &name).unwrap();
        assert_eq!(ours, Origin::Ours);
        // What was made and not yet locked looks as if a killed run had left it.
        let held = take(folder.path()).unwrap();
        for (file, origin) in [(found, origin), (made, ours)] {
            assert_eq!(claim(&file.unwrap(), origin, &around, &name).unwrap(), Claim::Again, "{origin:?}");
            assert_eq!(take(folder.path()).unwrap_err().kind, FailureKind::Busy, "{origin:?}");
        }
        drop(held);
    }

    /// Many who come and go at once: never two hold it.
    #[test]
    fn nobody_holds_a_lock_that_was_removed() {
        let folder = tempfile::tempdir().unwrap();
        let inside = std::sync::atomic::AtomicUsize::new(0);
        let taken = std::sync::atomic::AtomicUsize::new(0);
        let order = std::sync::atomic::Ordering::SeqCst;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                goldwire_stdx::spawn_scoped(scope, "syncs", || {
                    while taken.load(order) < 500 {
                        let Ok(lock) = take(folder.path()) else { continue };
                        assert_eq!(inside.fetch_add(1, order), 0);
                        taken.fetch_add(1, order);
                        inside.fetch_sub(1, order);
                        drop(lock);
                    }
                })
                .unwrap();
            }
        });
    }

    #[test]
    fn a_lock_that_a_killed_run_left_is_taken_over_under_its_new_holders_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(lock_in(folder.path()), "process 1 of user 2 on gone\n").unwrap();
        let held = take(folder.path()).unwrap();
        assert!(!take(folder.path()).unwrap_err().to_string().contains("gone"));
        drop(held);
        assert!(!lock_in(folder.path()).exists());
    }

    /// Whether both names are of one file.
    fn is_one_file(lock: &Path, other: &Path) -> bool {
        fs::metadata(lock).unwrap().ino() == fs::metadata(other).unwrap().ino()
    }

    /// A folder of images was copied by hard links (`cp -al`, rsnapshot) while a sync ran: its lock had another name, was
    /// taken for none and removed, and a second sync wrote into the first one's work.
    #[test]
    fn a_held_lock_is_held_whatever_other_names_it_has() {
        let scene = tempfile::tempdir().unwrap();
        let [folder, copy] = ["images", "copy"].map(|name| scene.path().join(name));
        for made in [&folder, &copy] {
            fs::create_dir(made).unwrap();
        }
        let held = take(&folder).unwrap();
        fs::hard_link(lock_in(&folder), lock_in(&copy)).unwrap();
        for around in [&folder, &copy] {
            assert_eq!(take(around).unwrap_err().kind, FailureKind::Busy, "{around:?}");
            let checked = TargetLock::check_free(around, OsStr::new(NAME)).unwrap_err();
            assert_eq!(checked.kind, FailureKind::Busy, "{around:?}");
            assert!(lock_in(around).exists(), "{around:?}");
        }
        drop(held);
        // The copy's is one that nobody holds any more.
        for around in [&folder, &copy] {
            drop(take(around).unwrap());
            assert!(!lock_in(around).exists(), "{around:?}");
        }
    }

    /// Somebody removed a lock that was held. Its holder, when it ends, removed its successor's.
    #[test]
    fn who_lost_the_locks_name_takes_nobody_elses_away() {
        let folder = tempfile::tempdir().unwrap();
        let first = take(folder.path()).unwrap();
        fs::remove_file(lock_in(folder.path())).unwrap();
        let second = take(folder.path()).unwrap();
        drop(first);
        assert_eq!(take(folder.path()).unwrap_err().kind, FailureKind::Busy);
        drop(second);
        assert!(!lock_in(folder.path()).exists());
    }

    /// As on a full disk: every write to the file fails, and it is a lock all the same.
    #[test]
    fn a_lock_that_cannot_be_written_to_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let (around, name) = (Folder::open(folder.path()).unwrap(), lock_name(OsStr::new(NAME)));
        around.create_new(&name, 0o600).unwrap();
        let unwritable = around.read_file(&name).unwrap();
        assert_eq!(claim(&unwritable, Origin::Ours, &around, &name).unwrap(), Claim::Ours);
        let refused = take(folder.path()).unwrap_err();
        assert_eq!(refused.kind, FailureKind::Busy);
        assert!(refused.to_string().contains("another process"), "{refused}");
    }

    /// Whatever somebody put under the lock's name, it is neither written to nor given away.
    #[test]
    fn a_planted_lock_leads_nowhere() {
        let scene = tempfile::tempdir().unwrap();
        let victim = scene.path().join("victim");
        for plant in ["hard link", "link", "dangling link", "folder"] {
            fs::write(&victim, "precious").unwrap();
            fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
            let folder = scene.path().join(plant);
            fs::create_dir(&folder).unwrap();
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
            let lock = lock_in(&folder);
            match plant {
                "hard link" => fs::hard_link(&victim, &lock).unwrap(),
                "link" => std::os::unix::fs::symlink(&victim, &lock).unwrap(),
                "dangling link" => std::os::unix::fs::symlink(folder.join("new"), &lock).unwrap(),
                _ => fs::create_dir(&lock).unwrap(),
            }
            let taken = take(&folder);
            let checked = TargetLock::check_free(&folder, OsStr::new(NAME));
            if plant == "hard link" {
                assert!(taken.is_ok() && !is_one_file(&lock, &victim), "{taken:?}");
                drop(taken);
                // Who holds the victim, for reasons of his own, holds it up.
                fs::hard_link(&victim, &lock).unwrap();
                let holder = File::open(&victim).unwrap();
                flock(&holder, FlockOperation::LockExclusive).unwrap();
                assert_eq!(take(&folder).unwrap_err().kind, FailureKind::Busy);
                assert!(is_one_file(&lock, &victim));
            } else {
                // What can be no lock is said before a sync, too.
                assert!(taken.is_err() && checked.is_err(), "{plant}: {taken:?} {checked:?}");
            }
            assert_eq!(fs::read(&victim).unwrap(), b"precious", "{plant}");
            assert_eq!(fs::metadata(&victim).unwrap().mode() & 0o777, 0o600, "{plant}");
            assert!(!folder.join("new").exists());
        }
    }

    /// Whoever may write to the folder sees the lock of whoever else does; for others it is closed.
    #[test]
    fn users_of_a_shared_folder_see_each_others_locks() {
        if !goldwire_stdx::testing::root() || goldwire_stdx::testing::program("setpriv").is_none() {
            return;
        }
        let is_held_for = |folder: &Path, user: u32, group: u32| {
            let [user, group] = [("reuid", user), ("regid", group)].map(|(who, id)| format!("--{who}={id}"));
            let test = format!("exec 9<>'{}' || exit 2; flock -n 9", lock_in(folder).display());
            let run =
                Command::new("setpriv").args([&user, &group, "--clear-groups", "sh", "-c", &test]).output();
            match run.unwrap().status.code() {
                Some(0) => Some(false),
                Some(1) => Some(true),
                _ => None,
            }
        };
        let scene = tempfile::tempdir().unwrap();
        fs::set_permissions(scene.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for (mode, of_owner, of_group, of_others) in [
            (0o755, Some(true), None, None),
            (0o2775, Some(true), Some(true), None),
            (0o1777, Some(true), Some(true), Some(true)),
        ] {
            let folder = scene.path().join(format!("{mode:o}"));
            fs::create_dir(&folder).unwrap();
            std::os::unix::fs::chown(&folder, Some(4711), Some(4712)).unwrap();
            fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).unwrap();
            let held = take(&folder).unwrap();
            let seen = [(4711, 1), (4713, 4712), (4713, 4713)]
                .map(|(user, group)| is_held_for(&folder, user, group));
            assert_eq!(seen, [of_owner, of_group, of_others], "{mode:o}");
            drop(held);
            // Another user's, left by a killed run.
            fs::write(lock_in(&folder), "").unwrap();
            std::os::unix::fs::chown(lock_in(&folder), Some(4713), Some(4713)).unwrap();
            drop(take(&folder).unwrap());
        }
    }
}
