//! The folder beside images that is goldwire's own: kept trees, descriptors, unfinished work.
//!
//! ```text
//! SR/Win10.vhd
//! SR/.goldwire/         of whoever synced here first
//! SR/.goldwire-1001/    of user 1001, to whom the first one is closed
//! ```
//!
//! Image folders can be writable for many, and a lesser user's folder may be synced into by root. Whoever owns what lies
//! below such a folder could have us write through a link, or believe a tree that he made up. So the rule is the same for
//! all that is kept here: *we write only into a folder that only we and root can put things into, reached by
//! descriptors, and we believe only what lies in a folder of a user whom we trust for it.* A folder of somebody else is
//! neither used nor touched; ours then has the user's number in its name. No XenServer SR scan looks into folders.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use goldwire_stdx::{Folder, Hints, Manners};

use crate::store::Store;

/// The name of the first user's folder; the others' have `-UID` behind it.
pub const OWN_FOLDER: &str = ".goldwire";

/// Whether a folder of this name is one of goldwire's own, whoever's it is.
pub fn is_own_folder(name: &OsStr) -> bool {
    let user = name.as_bytes().strip_prefix(OWN_FOLDER.as_bytes());
    user.is_some_and(|user| match user.strip_prefix(b"-") {
        Some(digits) => !digits.is_empty() && digits.iter().all(u8::is_ascii_digit),
        None => user.is_empty(),
    })
}

/// A folder that goldwire keeps in order itself: no disk has its place there, and what lies there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnPlace {
    /// The folder.
    pub path: PathBuf,
    /// What it is.
    pub what: &'static str,
}

impl fmt::Display for OwnPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}", self.path.display(), self.what)
    }
}

/// The folder that goldwire keeps in order itself at `path` or around it. Links are not looked through.
pub fn own_place(path: &Path) -> Option<OwnPlace> {
    path.ancestors().find_map(|around| {
        let what = match around.file_name() {
            Some(name) if is_own_folder(name) => "goldwire's own folder for unfinished work and digests",
            _ if Store::is_one(around) => "a goldwire store",
            _ => return None,
        };
        Some(OwnPlace { path: around.to_owned(), what })
    })
}

/// Why a file is no image to copy or to publish.
#[derive(Debug, thiserror::Error)]
#[error("{image} is no image to copy: {own}", image = .image.display())]
pub struct NoImage {
    image: PathBuf,
    own: OwnPlace,
}

impl Hints for NoImage {
    fn hints(&self) -> Vec<String> {
        vec!["name the image itself; a version in a store is STORE/IMAGE or STORE/IMAGE:CHANNEL".into()]
    }
}

/// Fails if the image at `path`, which has no links in it, is goldwire's own: unfinished work is a file of the right size
/// with holes where chunks are to come.
///
/// # Errors
/// The one.
pub fn refuse_own(path: &Path) -> Result<(), NoImage> {
    own_place(path).map_or(Ok(()), |own| Err(NoImage { image: path.to_owned(), own }))
}

/// What is kept in our own folder, each in a folder of its own there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Trees of the images.
    Trees,
    /// Descriptors of the images.
    Versions,
    /// Versions that are being received.
    Work,
}

impl Kept {
    /// The folder's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Trees => "trees",
            Self::Versions => "versions",
            Self::Work => "work",
        }
    }
}

/// Opens the folder for `kept` beside the images in `around`, and makes it if it is missing. It stays only while something
/// lies in it: who puts something there does it by [`with_own`].
///
/// # Errors
/// `PermissionDenied` if nothing may be made in `around`, or what has our name there is not ours alone; `NotFound` if
/// [`remove_empty`] took it away again at the same time.
pub fn make_own(around: &Folder, kept: Kept) -> io::Result<Folder> {
    let me = rustix::process::geteuid().as_raw();
    let (own, manners) = match around.make_child(OWN_FOLDER, 0o700) {
        // The usual case, without asking the file system for its manners.
        Ok(own) if own.owner()?.is_only(me) => (own, Manners { user: me, keeps_modes: true }),
        // `remove_empty` took it away again, or the folder around is gone.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(error),
        first => {
            let manners = around.manners()?;
            match first {
                Ok(own) if manners.are_ours(own.owner()?) => (own, manners),
                _ => (around.own_child(format!("{OWN_FOLDER}-{}", manners.user), manners)?, manners),
            }
        }
    };
    own.own_child(kept.name(), manners)
}

/// Does `work` in the folder for `kept` beside the images in `around`. The folder is made if it is missing. It is made anew,
/// and `work` done again, if [`remove_empty`] took it away before anything lay in it: whoever ends beside us does that.
/// `work` is done again also when something else of it is not found, so it must not matter how often it is begun.
///
/// # Errors
/// As [`make_own`]; those of `work`.
pub fn with_own<T>(
    around: &Folder,
    kept: Kept,
    mut work: impl FnMut(Folder) -> io::Result<T>,
) -> io::Result<T> {
    let mut tries = 1;
    loop {
        match make_own(around, kept).and_then(&mut work) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < MAKE_TRIES => tries += 1,
            done => return done,
        }
    }
}

/// How often a folder is made anew that somebody took away.
const MAKE_TRIES: usize = 20;

/// The folders for `kept` beside the images in `around` that belong to us, to root or to one of `trusted` (user
/// numbers), and to which nobody else can write. Nothing is made.
pub fn find_own(around: &Folder, kept: Kept, trusted: &[u32]) -> Vec<Folder> {
    let me = rustix::process::geteuid().as_raw();
    let trusted: Vec<u32> = [me, 0].into_iter().chain(trusted.iter().copied()).collect();
    let is_trusted = |folder: &Folder| {
        folder.owner().is_ok_and(|owner| trusted.contains(&owner.user) && owner.is_only(owner.user))
    };
    let mut names = vec![OWN_FOLDER.to_owned()];
    for user in &trusted {
        let name = format!("{OWN_FOLDER}-{user}");
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
        .iter()
        .filter_map(|name| around.child(name).ok().filter(is_trusted)?.child(kept.name()).ok())
        .filter(is_trusted)
        .collect()
}

/// The folders for `kept` beside the images in `around` that [`make_own`] made for us. Nothing is made that stays.
pub fn find_ours(around: &Folder, kept: Kept) -> Vec<Folder> {
    let (own, manners) = ours(around);
    let are_ours = |folder: &Folder| folder.owner().is_ok_and(|owner| manners.are_ours(owner));
    own.iter()
        .filter(|own| are_ours(own))
        .filter_map(|own| own.child(kept.name()).ok())
        .filter(are_ours)
        .collect()
}

/// The user number that what we made beside the images in `around` bears.
pub fn user_beside(around: &Folder) -> u32 {
    ours(around).1.user
}

/// Our own folders beside the images in `around`, by owner alone, and how the file system shows them.
fn ours(around: &Folder) -> (Vec<Folder>, Manners) {
    let me = rustix::process::geteuid().as_raw();
    let plain = Manners { user: me, keeps_modes: true };
    let first = around.child(OWN_FOLDER).and_then(|own| own.owner());
    // As in `make_own`, the file system is asked for its manners only if the first folder is not plainly ours: it may be
    // another user's, or ours on a network file system that maps us to another, or on one without modes.
    let manners = match first {
        Ok(owner) if !owner.is_only(me) => around.manners().unwrap_or(plain),
        _ => plain,
    };
    let names = [OWN_FOLDER.to_owned(), format!("{OWN_FOLDER}-{}", manners.user)];
    let own = names.iter().filter_map(|name| around.child(name).ok());
    (own.filter(|own| own.owner().is_ok_and(|owner| owner.user == manners.user)).collect(), manners)
}

/// Takes our own folders beside the images in `around` away as far as they are empty. Whoever makes one at the same time
/// makes it again: see [`with_own`].
pub fn remove_empty(around: &Folder) {
    // Another user's is another user's. A folder that is not empty refuses to go.
    for own in ours(around).0 {
        for kept in [Kept::Trees, Kept::Versions, Kept::Work] {
            let _ = own.remove_folder(kept.name());
        }
        if let Some(name) = own.path().file_name() {
            let _ = around.remove_folder(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use goldwire_stdx::Existing;

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_goldwires_own_is_no_image_and_no_place_for_one() {
        let scene = tempfile::tempdir().unwrap();
        let folder = scene.path();
        Store::init(&folder.join("store")).unwrap();
        for (path, around) in [
            (".goldwire/work/a.raw/disk", Some(".goldwire")),
            (".goldwire-1001", Some(".goldwire-1001")),
            ("store", Some("store")),
            ("store/packs/a", Some("store")),
            (".goldwired/a.raw", None),
            ("a.raw", None),
        ] {
            let path = folder.join(path);
            assert_eq!(own_place(&path).map(|own| own.path), around.map(|around| folder.join(around)));
            assert_eq!(refuse_own(&path).is_err(), around.is_some(), "{}", path.display());
        }
        let refused = goldwire_stdx::Report::from(refuse_own(&folder.join("store/packs/a")).unwrap_err());
        assert!(refused.line().contains("is a goldwire store") && !refused.hints.is_empty(), "{refused}");
    }

    /// What lies under our name, and below it, before we come.
    #[test]
    fn nothing_is_made_or_believed_through_what_somebody_planted() {
        type Plant = fn(&Path, &Path);
        let plants: [(&str, Plant); 6] = [
            ("a link", |own, out| symlink(out, own).unwrap()),
            ("a file", |own, _| fs::write(own, "").unwrap()),
            ("open to all", |own, _| {
                fs::create_dir(own).unwrap();
                mode(own, 0o777);
            }),
            ("a link inside", |own, out| {
                fs::create_dir(own).unwrap();
                mode(own, 0o777);
                symlink(out, own.join("work")).unwrap();
            }),
            ("open inside", |own, _| {
                fs::create_dir_all(own.join("work")).unwrap();
                mode(own, 0o777);
                mode(&own.join("work"), 0o777);
            }),
            ("a dangling link", |own, out| symlink(out.join("new"), own).unwrap()),
        ];
        for (what, plant) in plants {
            let (scene, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            plant(&scene.path().join(OWN_FOLDER), out.path());
            let around = Folder::open(scene.path()).unwrap();
            assert!(find_own(&around, Kept::Work, &[]).is_empty(), "{what}");
            let made = make_own(&around, Kept::Work).unwrap();
            let me = fs::metadata(out.path()).unwrap().uid();
            assert!(made.path().ends_with(format!("{OWN_FOLDER}-{me}/work")), "{what}: {made:?}");
            assert!(made.owner().unwrap().is_only(me), "{what}");
            assert_eq!(find_own(&around, Kept::Work, &[]).len(), 1, "{what}");
            assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "{what}");
        }
    }

    #[test]
    fn a_link_below_a_folder_of_our_own_is_refused() {
        let (scene, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let around = Folder::open(scene.path()).unwrap();
        make_own(&around, Kept::Trees).unwrap();
        symlink(out.path(), scene.path().join(OWN_FOLDER).join("work")).unwrap();
        assert!(make_own(&around, Kept::Work).is_err());
        assert!(find_own(&around, Kept::Work, &[]).is_empty());
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }

    #[test]
    fn another_users_folder_is_left_alone_and_believed_only_if_that_user_is_trusted() {
        let scene = tempfile::tempdir().unwrap();
        let own = scene.path().join(OWN_FOLDER);
        fs::create_dir_all(own.join("trees")).unwrap();
        mode(&own, 0o755);
        mode(&own.join("trees"), 0o755);
        let other = 4711;
        if std::os::unix::fs::chown(&own, Some(other), None).is_err() {
            // Not root: then the folder is ours, and the other half of the rule is tested above.
            return;
        }
        std::os::unix::fs::chown(own.join("trees"), Some(other), None).unwrap();
        let around = Folder::open(scene.path()).unwrap();
        assert!(find_own(&around, Kept::Trees, &[]).is_empty());
        assert_eq!(find_own(&around, Kept::Trees, &[other]).len(), 1);
        let ours = make_own(&around, Kept::Trees).unwrap();
        assert!(ours.path().ends_with(".goldwire-0/trees"));
        assert_eq!(fs::read_dir(own.join("trees")).unwrap().count(), 0);
        assert_eq!(find_own(&around, Kept::Trees, &[]).len(), 1);
        assert_eq!(find_own(&around, Kept::Trees, &[other]).len(), 2);
    }

    #[test]
    fn only_what_is_empty_and_ours_is_taken_away() {
        let scene = tempfile::tempdir().unwrap();
        let around = Folder::open(scene.path()).unwrap();
        let work = make_own(&around, Kept::Work).unwrap();
        make_own(&around, Kept::Trees).unwrap();
        work.create_new("a", 0o600).unwrap();
        remove_empty(&around);
        assert_eq!(around.child(OWN_FOLDER).unwrap().entries().unwrap(), ["work"]);
        work.remove_file("a").unwrap();
        let out = tempfile::tempdir().unwrap();
        symlink(out.path(), scene.path().join(OWN_FOLDER).join("trees")).unwrap();
        remove_empty(&around);
        assert_eq!(around.child(OWN_FOLDER).unwrap().entries().unwrap(), ["trees"], "no link is followed");
        fs::remove_file(scene.path().join(OWN_FOLDER).join("trees")).unwrap();
        if std::os::unix::fs::chown(scene.path().join(OWN_FOLDER), Some(4711), None).is_ok() {
            remove_empty(&around);
            assert_eq!(around.entries().unwrap(), [OWN_FOLDER], "another user's");
            std::os::unix::fs::chown(scene.path().join(OWN_FOLDER), Some(0), None).unwrap();
        }
        remove_empty(&around);
        assert!(around.entries().unwrap().is_empty());
    }

    /// What was made is found and taken away again by whoever made it, whatever the first folder is like, in each of the
    /// ways that `make_own` goes.
    #[test]
    fn what_was_made_is_found_as_ours_and_goes() {
        type Plant = fn(&Path);
        let plants: [(&str, Plant); 3] = [
            ("nothing", |_| {}),
            ("open to all", |own| {
                fs::create_dir(own).unwrap();
                mode(own, 0o777);
            }),
            ("another user's", |own| {
                fs::create_dir(own).unwrap();
                mode(own, 0o700);
                // Not root: then it is ours, which goes, too.
                let _ = std::os::unix::fs::chown(own, Some(4711), None);
            }),
        ];
        for (what, plant) in plants {
            let scene = tempfile::tempdir().unwrap();
            plant(&scene.path().join(OWN_FOLDER));
            let around = Folder::open(scene.path()).unwrap();
            for kept in [Kept::Trees, Kept::Versions, Kept::Work] {
                let made = make_own(&around, kept).unwrap();
                let found: Vec<_> =
                    find_ours(&around, kept).iter().map(|own| own.path().to_owned()).collect();
                assert_eq!(found, [made.path()], "{what}");
                assert_eq!(user_beside(&around), made.owner().unwrap().user, "{what}");
            }
            remove_empty(&around);
            assert!(find_ours(&around, Kept::Work).is_empty(), "{what}");
            assert!(around.entries().unwrap().iter().all(|entry| entry == OWN_FOLDER), "{what}");
        }
    }

    /// One ends and takes away what is empty, while others put in what they keep: a descriptor, a tree by its rename.
    #[test]
    fn what_is_kept_is_kept_while_others_end_beside_it() {
        const ROUNDS: usize = 2000;
        let scene = tempfile::tempdir().unwrap();
        let around = Folder::open(scene.path()).unwrap();
        // So many end in a round, and so many at most are late: fewer than there are tries.
        const ENDS: usize = 3;
        let (ends, ending) = std::sync::mpsc::sync_channel::<bool>(ENDS);
        let keep = |round: usize| -> io::Result<()> {
            let name = round.to_string();
            (0..ENDS).for_each(|_| ends.send(true).unwrap());
            match round % 2 {
                0 => with_own(&around, Kept::Versions, |folder| folder.create_new(&name, 0o600).map(drop))?,
                _ => {
                    around.create_new(&name, 0o600)?;
                    with_own(&around, Kept::Trees, |folder| {
                        around.rename(&name, &folder, &name, Existing::Replace)
                    })?;
                }
            }
            let kept = if round.is_multiple_of(2) { Kept::Versions } else { Kept::Trees };
            let [folder] = &find_own(&around, kept, &[])[..] else {
                return Err(io::ErrorKind::NotFound.into());
            };
            folder.read_file(&name)?;
            folder.remove_file(&name)
        };
        let kept: Vec<io::Result<()>> = std::thread::scope(|scope| {
            let around = &around;
            goldwire_stdx::spawn_scoped(scope, "ends", move || {
                ending.into_iter().take_while(|goes_on| *goes_on).for_each(|_| {
                    remove_empty(around);
                });
            })
            .unwrap();
            let kept = (0..ROUNDS).map(keep).collect();
            ends.send(false).unwrap();
            kept
        });
        let lost = kept.iter().filter(|kept| kept.is_err()).count();
        assert_eq!(lost, 0, "of {ROUNDS}: {:?}", kept.iter().find(|kept| kept.is_err()));
        remove_empty(&around);
        assert!(around.entries().unwrap().is_empty());
    }

    /// What is not found for another reason is said, and not tried for ever; other failures are final.
    #[test]
    fn tries_have_an_end() {
        let scene = tempfile::tempdir().unwrap();
        let around = Folder::open(scene.path()).unwrap();
        for (kind, most) in [(io::ErrorKind::NotFound, MAKE_TRIES), (io::ErrorKind::StorageFull, 1)] {
            let mut begun = 0;
            let failed = with_own(&around, Kept::Trees, |_| -> io::Result<()> {
                begun += 1;
                Err(kind.into())
            });
            assert_eq!((failed.unwrap_err().kind(), begun), (kind, most));
        }
    }

    #[test]
    fn the_first_user_has_the_plain_name_every_time() {
        let scene = tempfile::tempdir().unwrap();
        let around = Folder::open(scene.path()).unwrap();
        for _ in 0..2 {
            let made = make_own(&around, Kept::Versions).unwrap();
            assert_eq!(made.path(), scene.path().join(".goldwire/versions"));
        }
        assert_eq!(around.entries().unwrap(), [OWN_FOLDER]);
    }
}
