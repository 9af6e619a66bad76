//! A folder held by its descriptor. What lies below it is reached through the descriptor and by one name at a time, and
//! no link is followed, so that whoever may rename and plant things around us cannot lead us elsewhere between a check
//! and the use of what was checked (CWE-59, CWE-367). Every step that root takes in a folder of lesser users goes
//! through here.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, RenameFlags, Uid, fchown, fstat, mkdirat, openat,
    renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

/// The most entries that [`Folder::entries`] gives.
pub const ENTRIES_MAX: usize = 100_000;

/// The deepest tree that [`Folder::remove_tree`] takes away: ours have three levels.
const DEPTH_MAX: usize = 16;

/// A folder held open.
#[derive(Debug)]
pub struct Folder {
    descriptor: OwnedFd,
    /// As it was reached, for messages only.
    path: PathBuf,
}

/// Who owns a folder and who else may write to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The owner's user id as this file system shows it.
    pub user: u32,
    /// The owner's group id.
    pub group: u32,
    /// Permission bits, with set-id and sticky.
    pub mode: u32,
}

impl Owner {
    /// Whether only `user` and root can put things there.
    pub fn is_only(self, user: u32) -> bool {
        self.user == user && self.mode & 0o022 == 0
    }
}

/// How a file system shows what we make on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manners {
    /// The user id that our files bear: the effective one, unless a network file system maps it to another.
    pub user: u32,
    /// Whether permission bits stay as they were set. Where they do not (FAT, exFAT, NTFS, many a CIFS mount), whoever
    /// can reach the mount can write anywhere in it, and there is nothing that a mode could protect.
    pub keeps_modes: bool,
}

impl Manners {
    /// Whether, as far as this file system can tell, only we and root can put things into a folder of this owner.
    pub fn are_ours(self, owner: Owner) -> bool {
        owner.user == self.user && (owner.is_only(self.user) || !self.keeps_modes)
    }
}

/// What a rename does with what has the name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// The rename is refused with `AlreadyExists`.
    Keep,
    /// It is gone.
    Replace,
}

impl Folder {
    /// Opens the folder that the user named. Links on the way are the user's own word and are followed.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, `PermissionDenied` and what else the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let descriptor =
            openat(CWD, path, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY, Mode::empty())?;
        Ok(Self { descriptor, path: path.to_owned() })
    }

    /// Opens the folder around what the user named, as [`open`](Self::open), and says the name in it.
    ///
    /// # Errors
    /// `InvalidInput` for what has no name (`/`, `..`); as [`open`](Self::open).
    pub fn around(path: &Path) -> io::Result<(Self, &OsStr)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no name"));
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        Ok((Self::open(parent)?, name))
    }

    /// Opens the folder `name` in this one, which must not be a link.
    ///
    /// # Errors
    /// `NotADirectory` or `InvalidInput` for a link.
    pub fn child(&self, name: impl AsRef<OsStr>) -> io::Result<Self> {
        let name = plain(name.as_ref())?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let descriptor = openat(&self.descriptor, name, flags, Mode::empty()).map_err(no_link)?;
        Ok(Self { descriptor, path: self.path.join(name) })
    }

    /// [`Self::child`], made first if nothing has the name. `mode` is not changed by the umask.
    ///
    /// # Errors
    /// As [`Self::child`]; what kept it from being made.
    pub fn make_child(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<Self> {
        let name = plain(name.as_ref())?;
        let is_new = match mkdirat(&self.descriptor, name, Mode::from_raw_mode(mode)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        let made = self.child(name)?;
        if is_new && made.owner()?.mode & 0o7777 != mode {
            // Best effort: file systems without modes refuse it.
            let _ = rustix::fs::fchmod(&made.descriptor, Mode::from_raw_mode(mode));
        }
        Ok(made)
    }

    /// Makes the folder `name`, which nothing may have as its name. `mode` is not changed by the umask.
    ///
    /// # Errors
    /// `AlreadyExists`; what kept it from being made.
    pub fn make_new_child(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<Self> {
        let name = plain(name.as_ref())?;
        mkdirat(&self.descriptor, name, Mode::from_raw_mode(mode))?;
        // Whoever may write here could have put another folder in its place by now; then it is not root's, as ours is.
        let made = self.child(name)?;
        let owner = made.owner()?;
        if rustix::process::geteuid().is_root() && owner.user != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "somebody replaced the folder that was just made",
            ));
        }
        if owner.mode & 0o7777 != mode {
            // Best effort: file systems without modes refuse it.
            let _ = rustix::fs::fchmod(&made.descriptor, Mode::from_raw_mode(mode));
        }
        Ok(made)
    }

    /// [`Self::make_child`], refused unless it is ours alone.
    ///
    /// # Errors
    /// `PermissionDenied` for a folder that somebody else owns or may write to.
    pub fn own_child(&self, name: impl AsRef<OsStr>, manners: Manners) -> io::Result<Self> {
        let child = self.make_child(name, 0o700)?;
        let owner = child.owner()?;
        if manners.are_ours(owner) {
            return Ok(child);
        }
        let why = match owner.user == manners.user {
            true => format!("others may write to it (mode {:o})", owner.mode & 0o7777),
            false => format!("it belongs to user {} and not to {}", owner.user, manners.user),
        };
        let text = format!("{} is not a folder of our own: {why}", child.path.display());
        Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
    }

    /// How the folder was reached, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Who owns the folder.
    ///
    /// # Errors
    /// `fstat` failed.
    pub fn owner(&self) -> io::Result<Owner> {
        let data = fstat(&self.descriptor)?;
        Ok(Owner { user: data.st_uid, group: data.st_gid, mode: data.st_mode & 0o7777 })
    }

    /// Gives the folder itself to somebody else.
    ///
    /// # Errors
    /// Only root gives folders away.
    pub fn give_to(&self, user: u32, group: u32) -> io::Result<()> {
        Ok(fchown(&self.descriptor, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?)
    }

    /// How the file system shows what this process makes here, found by making a folder for a moment.
    ///
    /// # Errors
    /// Nothing can be made here.
    pub fn manners(&self) -> io::Result<Manners> {
        let name = self.scratch_name("probe");
        mkdirat(&self.descriptor, name.as_str(), Mode::from_raw_mode(0o700))?;
        let shown = self.child(&name).and_then(|made| made.owner());
        self.remove_folder(&name)?;
        let shown = shown?;
        Ok(Manners { user: shown.user, keeps_modes: shown.mode & 0o077 == 0 })
    }

    /// Opens the regular file `name` for reading.
    ///
    /// # Errors
    /// `InvalidInput` for a link, a device, a pipe.
    pub fn read_file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.open_file(name.as_ref(), OFlags::RDONLY)
    }

    /// Opens the regular file `name` for reading and writing.
    ///
    /// # Errors
    /// As [`Self::read_file`].
    pub fn write_file(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.open_file(name.as_ref(), OFlags::RDWR)
    }

    /// Opens the regular file `name` for reading and writing, made with `mode` if nothing has the name.
    ///
    /// # Errors
    /// As [`Self::read_file`].
    pub fn open_or_create(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        let name = name.as_ref();
        loop {
            match self.create_new(name, mode) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made,
            }
            match self.write_file(name) {
                // It went in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened,
            }
        }
    }

    /// Makes the file `name`, which nothing may have as its name, for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists`, for a dangling link too.
    pub fn create_new(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name = plain(name.as_ref())?;
        Ok(openat(&self.descriptor, name, flags, Mode::from_raw_mode(mode))?.into())
    }

    /// Makes the file `name`, which nothing may have as its name, with `content`, durably; nothing stays if that fails.
    ///
    /// # Errors
    /// As [`Self::create_new`]; what writing meets.
    pub fn create_whole(&self, name: impl AsRef<OsStr>, content: &[u8], mode: u32) -> io::Result<()> {
        let name = name.as_ref();
        let mut file = self.create_new(name, mode)?;
        let done = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| self.sync());
        if done.is_err() {
            let _ = self.remove_file(name);
        }
        done
    }

    /// Puts a file with `content` in the place of `name`, durably: a reader sees the old content or the new one, and a
    /// crash leaves one of them.
    ///
    /// # Errors
    /// The old content is still there.
    pub fn replace(&self, name: impl AsRef<OsStr>, content: &[u8], mode: u32) -> io::Result<()> {
        let (scratch, mut file) = loop {
            let scratch = self.scratch_name("new");
            match self.create_new(&scratch, mode) {
                // A process of our number left it when it was killed; the next name is another.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => break (scratch, made?),
            }
        };
        let done = file
            .write_all(content)
            .and_then(|()| file.sync_all())
            .and_then(|()| self.rename(&scratch, self, name.as_ref(), Existing::Replace));
        if done.is_err() {
            let _ = self.remove_file(&scratch);
        }
        done?;
        self.sync()
    }

    /// At most `limit` bytes of the regular file `name`; `None` if there is none.
    ///
    /// # Errors
    /// `FileTooLarge`; as [`Self::read_file`].
    pub fn read_bounded(&self, name: impl AsRef<OsStr>, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let file = match self.read_file(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        crate::read_open_bounded(&file, limit).map(Some)
    }

    /// Gives the entry `from` the name `to` in `folder`.
    ///
    /// # Errors
    /// `AlreadyExists` with [`Existing::Keep`]; `Unsupported` where the file system cannot keep what exists.
    pub fn rename(
        &self,
        from: impl AsRef<OsStr>,
        folder: &Self,
        to: impl AsRef<OsStr>,
        existing: Existing,
    ) -> io::Result<()> {
        let (from, to) = (plain(from.as_ref())?, plain(to.as_ref())?);
        match existing {
            Existing::Replace => Ok(renameat(&self.descriptor, from, &folder.descriptor, to)?),
            Existing::Keep => {
                match renameat_with(&self.descriptor, from, &folder.descriptor, to, RenameFlags::NOREPLACE) {
                    Err(Errno::INVAL | Errno::NOSYS) => Err(io::ErrorKind::Unsupported.into()),
                    other => Ok(other?),
                }
            }
        }
    }

    /// Gives the file `from` one more name.
    ///
    /// # Errors
    /// `AlreadyExists`; file systems without hard links say `PermissionDenied` or `Unsupported`.
    pub fn hard_link(&self, from: impl AsRef<OsStr>, folder: &Self, to: impl AsRef<OsStr>) -> io::Result<()> {
        let (from, to) = (plain(from.as_ref())?, plain(to.as_ref())?);
        Ok(rustix::fs::linkat(&self.descriptor, from, &folder.descriptor, to, AtFlags::empty())?)
    }

    /// Removes the file or link `name`, if there is one.
    ///
    /// # Errors
    /// It is a folder, or may not be removed.
    pub fn remove_file(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        absent_is_fine(unlinkat(&self.descriptor, plain(name.as_ref())?, AtFlags::empty()))
    }

    /// Removes the empty folder `name`, if there is one.
    ///
    /// # Errors
    /// It is not empty, no folder, or may not be removed.
    pub fn remove_folder(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        absent_is_fine(unlinkat(&self.descriptor, plain(name.as_ref())?, AtFlags::REMOVEDIR))
    }

    /// Removes `name` and everything below it, following no link.
    ///
    /// # Errors
    /// What could not be removed; what could be is gone.
    pub fn remove_tree(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        self.remove_below(name.as_ref(), DEPTH_MAX)
    }

    fn remove_below(&self, name: &OsStr, depth: usize) -> io::Result<()> {
        match self.kind_of(name)? {
            None => return Ok(()),
            Some(FileType::Directory) => {}
            Some(_) => return self.remove_file(name),
        }
        if depth == 0 {
            return Err(io::Error::other(format!("{} lies too deep", self.path.join(name).display())));
        }
        let folder = self.child(name)?;
        for entry in folder.entries()? {
            folder.remove_below(&entry, depth - 1)?;
        }
        self.remove_folder(name)
    }

    /// What `name` is, a link being a link; `None` if there is nothing.
    ///
    /// # Errors
    /// `fstatat` failed.
    pub fn kind_of(&self, name: impl AsRef<OsStr>) -> io::Result<Option<FileType>> {
        match statat(&self.descriptor, plain(name.as_ref())?, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            found => Ok(Some(FileType::from_raw_mode(found?.st_mode))),
        }
    }

    /// Who owns what has the name `name`, a link being a link; `None` if there is nothing.
    ///
    /// # Errors
    /// `fstatat` failed.
    pub fn owner_of(&self, name: impl AsRef<OsStr>) -> io::Result<Option<Owner>> {
        match statat(&self.descriptor, plain(name.as_ref())?, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            found => found
                .map(|data| {
                    Some(Owner { user: data.st_uid, group: data.st_gid, mode: data.st_mode & 0o7777 })
                })
                .map_err(io::Error::from),
        }
    }

    /// The names in the folder, unsorted, at most [`ENTRIES_MAX`], without `.` and `..`.
    ///
    /// # Errors
    /// Reading failed.
    pub fn entries(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.descriptor)?.take(ENTRIES_MAX) {
            let name = entry?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        Ok(names)
    }

    /// Makes names that came and went durable.
    ///
    /// # Errors
    /// The file system could not; one that has no notion of it is no error.
    pub fn sync(&self) -> io::Result<()> {
        match rustix::fs::fsync(&self.descriptor) {
            Err(Errno::INVAL) => Ok(()),
            other => Ok(other?),
        }
    }

    /// A name that nothing here has, for a file in the making.
    fn scratch_name(&self, purpose: &str) -> String {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        format!("{SCRATCH_START}{purpose}-{}-{number}{SCRATCH_END}", std::process::id())
    }

    fn open_file(&self, name: &OsStr, access: OFlags) -> io::Result<File> {
        // Without O_NONBLOCK, opening a pipe that somebody planted waits for ever.
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let name = plain(name)?;
        let no_file = || {
            let text = format!("{} is not a regular file", self.path.join(name).display());
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        match openat(&self.descriptor, name, flags, Mode::empty()) {
            Ok(file) => {
                let file = File::from(file);
                if file.metadata()?.is_file() { Ok(file) } else { Err(no_file()) }
            }
            // A folder opens for reading only, a socket for neither: one answer for all.
            Err(Errno::ISDIR | Errno::NXIO) => Err(no_file()),
            Err(error) => Err(no_link(error)),
        }
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Whether `name` is one that [`Folder`] gives to what it makes for a moment; a process that is killed leaves it.
pub fn is_scratch(name: &OsStr) -> bool {
    name.as_bytes().starts_with(SCRATCH_START.as_bytes()) && name.as_bytes().ends_with(SCRATCH_END.as_bytes())
}

const SCRATCH_START: &str = ".goldwire-";
const SCRATCH_END: &str = ".tmp";

/// One name of a folder's entry, and nothing that leads elsewhere.
fn plain(name: &OsStr) -> io::Result<&OsStr> {
    let is_plain = !matches!(name.as_bytes(), b"" | b"." | b"..") && !name.as_bytes().contains(&b'/');
    match is_plain {
        true => Ok(name),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is not a file name"))),
    }
}

fn no_link(error: Errno) -> io::Error {
    match error {
        Errno::LOOP => {
            io::Error::new(io::ErrorKind::InvalidInput, "it is a link, which is not followed here")
        }
        other => other.into(),
    }
}

fn absent_is_fine(outcome: rustix::io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn scene() -> (tempfile::TempDir, Folder, PathBuf) {
        let scene = tempfile::tempdir().unwrap();
        fs::create_dir_all(scene.path().join("in")).unwrap();
        fs::create_dir_all(scene.path().join("out/folder")).unwrap();
        fs::write(scene.path().join("out/victim"), "precious").unwrap();
        let folder = Folder::open(&scene.path().join("in")).unwrap();
        let out = scene.path().join("out");
        (scene, folder, out)
    }

    /// Whatever name is planted, nothing outside is read, written, removed or given away.
    #[test]
    fn no_planted_link_leads_out() {
        let (scene, folder, out) = scene();
        let plants: [(&str, PathBuf); 4] = [
            ("victim", out.join("victim")),
            ("folder", out.join("folder")),
            ("dangling", out.join("new")),
            ("parent", "..".into()),
        ];
        for (name, target) in &plants {
            symlink(target, folder.path().join(name)).unwrap();
        }
        for (name, _) in &plants {
            assert!(folder.child(name).is_err(), "{name}");
            assert!(folder.make_child(name, 0o700).is_err(), "{name}");
            assert!(folder.own_child(name, folder.manners().unwrap()).is_err(), "{name}");
            assert!(folder.read_file(name).is_err(), "{name}");
            assert!(folder.write_file(name).is_err(), "{name}");
            assert!(folder.open_or_create(name, 0o600).is_err(), "{name}");
            assert!(folder.create_new(name, 0o600).is_err(), "{name}");
            assert!(folder.read_bounded(name, 100).is_err(), "{name}");
            assert_eq!(folder.kind_of(name).unwrap(), Some(FileType::Symlink), "{name}");
        }
        folder.replace("victim", b"ours", 0o600).unwrap();
        assert_eq!(fs::read(folder.path().join("victim")).unwrap(), b"ours");
        for (name, _) in &plants {
            folder.remove_tree(name).unwrap();
        }
        assert_eq!(folder.entries().unwrap(), Vec::<OsString>::new());
        assert_eq!(fs::read(out.join("victim")).unwrap(), b"precious");
        assert_eq!(fs::read_dir(&out).unwrap().count(), 2);
        assert!(scene.path().join("out/folder").is_dir());
    }

    /// A hard link is the victim itself; what is put in its place is not.
    #[test]
    fn replacing_a_planted_hard_link_leaves_the_victim() {
        let (_scene, folder, out) = scene();
        fs::hard_link(out.join("victim"), folder.path().join("state")).unwrap();
        folder.replace("state", b"ours", 0o600).unwrap();
        assert_eq!(fs::read(out.join("victim")).unwrap(), b"precious");
    }

    /// Who tries without writing hears what who writes would.
    #[test]
    fn what_is_no_file_is_refused_in_the_same_words_for_reading_and_for_writing() {
        let (_scene, folder, _) = scene();
        fs::create_dir(folder.path().join("folder")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        for name in ["folder", "socket"] {
            let (read, write) = (folder.read_file(name).unwrap_err(), folder.write_file(name).unwrap_err());
            assert!(read.to_string().contains("is not a regular file"), "{read}");
            assert_eq!(read.to_string(), write.to_string());
        }
    }

    #[test]
    fn a_folder_that_is_moved_away_is_still_the_one_that_was_checked() {
        let (scene, folder, out) = scene();
        let work = folder.make_child("work", 0o700).unwrap();
        fs::rename(folder.path().join("work"), folder.path().join("away")).unwrap();
        symlink(out.join("folder"), folder.path().join("work")).unwrap();
        work.create_new("disk", 0o600).unwrap();
        assert!(scene.path().join("in/away/disk").exists());
        assert_eq!(fs::read_dir(out.join("folder")).unwrap().count(), 0);
    }

    #[test]
    fn names_that_lead_elsewhere_are_no_names() {
        let (_scene, folder, _) = scene();
        for name in ["", ".", "..", "a/b", "/etc/passwd", "../out/victim"] {
            assert!(folder.child(name).is_err(), "{name}");
            assert!(folder.make_child(name, 0o700).is_err(), "{name}");
            assert!(folder.read_file(name).is_err(), "{name}");
            assert!(folder.create_new(name, 0o600).is_err(), "{name}");
            assert!(folder.remove_tree(name).is_err(), "{name}");
            assert!(folder.rename(name, &folder, "b", Existing::Replace).is_err(), "{name}");
            assert!(folder.rename("a", &folder, name, Existing::Replace).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_made_for_a_moment_is_known_by_its_name() {
        let (_scene, folder, _) = scene();
        assert!(["probe", "new"].iter().all(|purpose| is_scratch(folder.scratch_name(purpose).as_ref())));
        for name in [".goldwire", ".goldwire-0", ".a.goldwire-lock", "goldwire-new-1-2.tmp", "1-2.tmp"] {
            assert!(!is_scratch(name.as_ref()), "{name}");
        }
    }

    #[test]
    fn pipes_and_devices_are_no_files_and_nobody_waits_for_them() {
        let (_scene, folder, _) = scene();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(&folder, "pipe", fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(folder.read_file("pipe").is_err());
        assert!(folder.write_file("pipe").is_err());
    }

    #[test]
    fn only_ones_own_folder_is_ones_own() {
        let (_scene, folder, _) = scene();
        let manners = folder.manners().unwrap();
        let me = manners.user;
        let own = folder.own_child("own", manners).unwrap();
        assert!(own.owner().unwrap().is_only(me));
        assert!(folder.own_child("own", Manners { user: me + 1, ..manners }).is_err());
        assert!(folder.own_child("own", Manners { user: me + 1, keeps_modes: false }).is_err());
        for mode in [0o770, 0o707, 0o1777] {
            fs::set_permissions(own.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert!(folder.own_child("own", Manners { keeps_modes: true, ..manners }).is_err(), "{mode:o}");
            folder.own_child("own", Manners { keeps_modes: false, ..manners }).unwrap();
        }
        assert_eq!(folder.entries().unwrap(), ["own"]);
    }

    #[test]
    fn a_whole_file_is_made_once_where_its_path_says() {
        let scene = tempfile::tempdir().unwrap();
        let path = scene.path().join("key");
        let (folder, name) = Folder::around(&path).unwrap();
        folder.create_whole(name, b"first", 0o600).unwrap();
        let again = folder.create_whole(name, b"second", 0o600).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"first");
        assert!(
            Folder::around(Path::new("Cargo.toml"))
                .is_ok_and(|(here, _)| here.read_file("Cargo.toml").is_ok())
        );
        for nameless in ["/", "..", ""] {
            assert_eq!(Folder::around(Path::new(nameless)).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn what_exists_is_kept_or_replaced_as_asked() {
        let (_scene, folder, _) = scene();
        folder.replace("a", b"a", 0o600).unwrap();
        folder.replace("b", b"b", 0o640).unwrap();
        match folder.rename("a", &folder, "b", Existing::Keep) {
            Err(error) => {
                assert!(matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::Unsupported))
            }
            Ok(()) => panic!("b was replaced"),
        }
        folder.rename("a", &folder, "b", Existing::Replace).unwrap();
        assert_eq!(folder.read_bounded("b", 1).unwrap(), Some(b"a".to_vec()));
        assert_eq!(folder.read_bounded("b", 0).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(folder.read_bounded("a", 1).unwrap(), None);
        folder.sync().unwrap();
    }
}
