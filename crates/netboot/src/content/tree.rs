//! A folder whose files may be read, and nothing outside it: the kernel holds the border (`openat2` with
//! `RESOLVE_BENEATH`), not a comparison of strings. Links that stay inside are followed.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat, openat2};
use rustix::io::Errno;

/// Most entries of one folder that are looked through for a name in another case.
const ENTRIES_MAX: usize = 16_384;
/// Folders below the root that a walk enters.
const DEPTH_MAX: usize = 16;
/// Most files that a walk visits.
const WALK_MAX: usize = 100_000;

/// How files are opened: a FIFO must not hold us up, nor a terminal become ours.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// An open folder.
#[derive(Debug)]
pub(super) struct Tree {
    folder: OwnedFd,
    path: PathBuf,
    /// Linux before 5.6 and some sandboxes lack `openat2`; there no link is followed at all.
    has_openat2: bool,
}

/// A regular file of a tree.
#[derive(Debug)]
pub(super) struct Found {
    /// The open file.
    pub(super) file: File,
    /// What the kernel says of it.
    pub(super) stat: Stat,
    /// The name by which it was opened; it differs in case from the name that was asked for, if at all.
    pub(super) name: String,
}

impl Tree {
    /// Opens the root; it stays the same folder whatever happens to its name.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let folder = open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let has_openat2 =
            openat2(&folder, c".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::BENEATH)
                .is_ok();
        Ok(Self { folder, path: path.to_owned(), has_openat2 })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file of this name (relative, without `..`), or else the one whose name differs only in the case of
    /// ASCII letters: Windows' bootstraps ask for `boot\bcd` where the tree has `Boot/BCD`. Among several the first in
    /// byte order. Nothing if it is not there, not a regular file, or outside.
    pub(super) fn find(&self, name: &str) -> io::Result<Option<Found>> {
        if let Some((file, stat)) = self.regular(name)? {
            return Ok(Some(Found { file, stat, name: name.to_owned() }));
        }
        let Some(name) = self.in_other_case(name)? else { return Ok(None) };
        Ok(self.regular(&name)?.map(|(file, stat)| Found { file, stat, name }))
    }

    /// The same for a name that is spelled as it is there, if the kernel knows all folders on the way without a disk.
    pub(super) fn find_at_once(&self, name: &str) -> Option<Found> {
        if !self.has_openat2 {
            return None;
        }
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::CACHED;
        // Linux before 5.12 does not know CACHED and refuses it.
        let file = openat2(&self.folder, name, FILE, Mode::empty(), resolve).ok()?;
        let (file, stat) = regular(file).ok()??;
        Some(Found { file, stat, name: name.to_owned() })
    }

    /// What the kernel says of what [`find`](Self::find) would open by exactly this name, be it a file or not; nothing
    /// where there is none that we may reach.
    pub(super) fn stat(&self, name: &[u8]) -> io::Result<Option<Stat>> {
        let found = self.open_beneath(name, OFlags::PATH | OFlags::CLOEXEC)?;
        found.map(|found| fstat(found).map_err(io::Error::from)).transpose()
    }

    /// The names in a folder, whatever they are, at most `count_max`, with what the kernel said of the folder before;
    /// nothing if there is no such folder that we may reach.
    pub(super) fn names_in(
        &self,
        folder: &[u8],
        count_max: usize,
    ) -> io::Result<Option<(Stat, Vec<CString>)>> {
        let Some(opened) = self.open_folder(folder)? else { return Ok(None) };
        let stat = fstat(&opened)?;
        let mut names = Vec::new();
        for entry in Dir::new(opened)? {
            let entry = entry?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            if names.len() == count_max {
                break;
            }
            names.push(entry.file_name().to_owned());
        }
        Ok(Some((stat, names)))
    }

    /// Visits every regular file that is not hidden, not through links; stops at its limits.
    pub(super) fn walk(&self, visit: &mut dyn FnMut(Found)) {
        let mut folders = vec![(String::new(), 0)];
        let mut count = 0;
        while let Some((folder, depth)) = folders.pop() {
            for (name, kind) in self.list(&folder).unwrap_or_default() {
                count += 1;
                if count > WALK_MAX {
                    return;
                }
                let name = join(&folder, &name);
                match kind {
                    FileType::Directory if depth < DEPTH_MAX => folders.push((name, depth + 1)),
                    FileType::RegularFile => {
                        if let Ok(Some((file, stat))) = self.regular(&name) {
                            visit(Found { file, stat, name });
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn regular(&self, name: &str) -> io::Result<Option<(File, Stat)>> {
        let Some(file) = self.open_beneath(name.as_bytes(), FILE)? else { return Ok(None) };
        regular(file)
    }

    /// The entry of this name, or nothing where there is none that we may reach.
    fn open_beneath(&self, name: &[u8], flags: OFlags) -> io::Result<Option<OwnedFd>> {
        let opened = if self.has_openat2 {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
            // A concurrent rename makes the kernel give up with EAGAIN; the next try sees either name.
            let once = || openat2(&self.folder, name, flags, Mode::empty(), resolve);
            (0..4)
                .map(|_| once())
                .find(|result| !matches!(result, Err(Errno::AGAIN | Errno::INTR)))
                .unwrap_or_else(once)
        } else {
            self.open_by_steps(name, flags)
        };
        match opened {
            Ok(file) => Ok(Some(file)),
            // Not there; a link to outside (EXDEV) or in circles; a socket or a device without a driver (ENXIO).
            Err(
                Errno::NOENT
                | Errno::NOTDIR
                | Errno::XDEV
                | Errno::LOOP
                | Errno::NAMETOOLONG
                | Errno::NXIO
                | Errno::NODEV,
            ) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn open_by_steps(&self, name: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let (folders, last) = match name.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&name[..at], &name[at + 1..]),
            None => (&[][..], name),
        };
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at: Option<OwnedFd> = None;
        for part in folders.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            at = Some(openat(at.as_ref().unwrap_or(&self.folder), part, step, Mode::empty())?);
        }
        let last = if last.is_empty() { b"." } else { last };
        openat(at.as_ref().unwrap_or(&self.folder), last, flags | OFlags::NOFOLLOW, Mode::empty())
    }

    fn in_other_case(&self, name: &str) -> io::Result<Option<String>> {
        let mut actual = String::new();
        for part in name.split('/') {
            let mut best: Option<String> = None;
            for (entry, _) in self.list(&actual)? {
                if entry == part {
                    best = Some(entry);
                    break;
                }
                if entry.eq_ignore_ascii_case(part) && best.as_ref().is_none_or(|best| entry < *best) {
                    best = Some(entry);
                }
            }
            let Some(best) = best else { return Ok(None) };
            actual = join(&actual, &best);
        }
        Ok((actual != name).then_some(actual))
    }

    fn open_folder(&self, folder: &[u8]) -> io::Result<Option<OwnedFd>> {
        let folder = if folder.is_empty() { b"." } else { folder };
        self.open_beneath(folder, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC)
    }

    /// The entries of a folder that are not hidden; none if it is no folder.
    fn list(&self, folder: &str) -> io::Result<Vec<(String, FileType)>> {
        let Some(opened) = self.open_folder(folder.as_bytes())? else { return Ok(Vec::new()) };
        let mut entries = Vec::new();
        for entry in Dir::new(opened)?.take(ENTRIES_MAX) {
            let entry = entry?;
            match entry.file_name().to_str() {
                Ok(name) if !name.starts_with('.') => entries.push((name.to_owned(), entry.file_type())),
                _ => {}
            }
        }
        Ok(entries)
    }
}

fn regular(file: OwnedFd) -> io::Result<Option<(File, Stat)>> {
    let stat = fstat(&file)?;
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    Ok(is_regular.then(|| (File::from(file), stat)))
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::CWD;

    use super::*;

    fn tree() -> (tempfile::TempDir, Tree) {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("root");
        fs::create_dir_all(root.join("Boot/Fonts")).unwrap();
        fs::write(outer.path().join("secret"), "secret").unwrap();
        fs::write(root.join("Boot/BCD"), "bcd").unwrap();
        fs::write(root.join("plain.efi"), "efi").unwrap();
        symlink("Boot/BCD", root.join("inside")).unwrap();
        symlink("../plain.efi", root.join("Boot/up")).unwrap();
        symlink("../secret", root.join("outside")).unwrap();
        symlink(outer.path().join("secret"), root.join("absolute")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("..", root.join("parent")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        let tree = Tree::open(&root).unwrap();
        (outer, tree)
    }

    fn name_of(tree: &Tree, name: &str) -> Option<String> {
        tree.find(name).unwrap().map(|found| found.name)
    }

    #[test]
    fn links_stay_inside() {
        let (_outer, tree) = tree();
        assert!(tree.has_openat2);
        for name in ["plain.efi", "Boot/BCD", "inside", "Boot/up"] {
            assert_eq!(name_of(&tree, name).as_deref(), Some(name), "{name}");
        }
        let refused = [
            "outside",
            "absolute",
            "loop",
            "parent/secret",
            "magic/etc/passwd",
            "fifo",
            "Boot",
            "plain.efi/x",
            "../secret",
            "Boot/../../secret",
            "/etc/passwd",
            "nothing",
        ];
        for name in refused {
            assert_eq!(name_of(&tree, name), None, "{name}");
        }
    }

    #[test]
    fn without_openat2_no_link_is_followed() {
        let (_outer, mut tree) = tree();
        tree.has_openat2 = false;
        assert_eq!(name_of(&tree, "boot/bcd").as_deref(), Some("Boot/BCD"));
        for name in
            ["inside", "outside", "absolute", "loop", "parent/secret", "magic/etc/passwd", "fifo", "Boot"]
        {
            assert_eq!(name_of(&tree, name), None, "{name}");
        }
    }

    #[test]
    fn another_case_is_found_and_the_exact_name_comes_first() {
        let (outer, tree) = tree();
        assert_eq!(name_of(&tree, "BOOT/bcd").as_deref(), Some("Boot/BCD"));
        assert_eq!(name_of(&tree, "PLAIN.EFI").as_deref(), Some("plain.efi"));
        let root = outer.path().join("root");
        fs::write(root.join("PLAIN.efi"), "other").unwrap();
        assert_eq!(name_of(&tree, "plain.efi").as_deref(), Some("plain.efi"));
        assert_eq!(name_of(&tree, "pLAIN.efi").as_deref(), Some("PLAIN.efi"), "first in byte order");
        assert_eq!(name_of(&tree, "OUTSIDE"), None, "not through another case either");
    }

    #[test]
    fn a_walk_sees_files_and_no_links() {
        let (outer, tree) = tree();
        fs::write(outer.path().join("root/.hidden"), "").unwrap();
        let mut names = Vec::new();
        tree.walk(&mut |found| names.push(found.name));
        names.sort();
        assert_eq!(names, ["Boot/BCD", "plain.efi"]);
    }
}
