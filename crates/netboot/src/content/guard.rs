//! Files that only a token opens are known by what they are, not by how they are called: a link or a hard link in a served
//! folder gives them another name, and a protected name can be a link to a file with an open one.
//!
//! A walk through all served folders, links included, finds every file that a protected name leads to. It enters only
//! folders below which a protected name can be, so that a tree without protected files costs nothing, and links in circles
//! end: below a folder of which everything is protected each folder is entered once, elsewhere names are only so long.
//!
//! What the walk cannot finish nobody knows, and then no file is given without a token: a limit or a disk's error must not
//! open what somebody closed.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FileType, Stat};

use super::digests::Identity;
use super::tree::Tree;
use crate::policy::ProtectedFiles;

/// How long is believed at most what a walk found.
const WALK_EVERY: Duration = Duration::from_secs(1);
/// Most entries that a walk looks at, in all folders together.
const WALK_MAX: usize = 100_000;
/// Folders below the root that a walk enters. A path that is asked for has no more parts.
const DEPTH_MAX: usize = 32;
/// Longest path that the kernel takes, with the zero at its end.
const PATH_MAX: usize = 4096;
/// Folders of a walk that are asked for changes before it is believed once more; of a larger walk the first ones.
const WATCHED_MAX: usize = 256;
/// The clock of a file system is behind ours by as much as that.
const TICK: Duration = Duration::from_millis(20);

/// What a file is, whatever its name.
type Inode = (u64, u64);

/// Knows protected files again.
#[derive(Default)]
pub(super) struct Guard {
    walked: Mutex<Option<Walked>>,
}

/// What a walk found, and what shows that it is over.
struct Walked {
    /// What was looked for.
    protected: Arc<ProtectedFiles>,
    /// When it began.
    at: Instant,
    begin: SystemTime,
    /// Tree, path in it and state of folders that were read.
    folders: Vec<(usize, Vec<u8>, Identity)>,
    /// The protected files; none if the walk came to no end.
    files: Option<HashSet<Inode>>,
}

/// Why a walk comes to no end.
#[derive(Debug, thiserror::Error)]
enum Unknown {
    #[error("there are more than {WALK_MAX} files and folders to look at")]
    Large,
    #[error("folders are nested more than {DEPTH_MAX} deep")]
    Deep,
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn inode(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

impl Guard {
    /// Whether the file is one of the protected ones of these trees, each with the name under which it is served.
    /// Nothing if that cannot be told.
    pub(super) fn protects<'a>(
        &self,
        stat: &Stat,
        protected: &Arc<ProtectedFiles>,
        trees: impl Iterator<Item = (&'a str, &'a Tree)>,
    ) -> Option<bool> {
        if protected.is_empty() {
            return Some(false);
        }
        let trees: Vec<_> = trees.collect();
        let mut walked = self.walked.lock().unwrap_or_else(PoisonError::into_inner);
        let current = walked.take_if(|walked| !walked.is_current(stat, protected, &trees));
        let was_known = current.is_none_or(|old| old.files.is_some());
        let walked = walked.get_or_insert_with(|| Walked::new(protected, &trees, was_known));
        walked.files.as_ref().map(|files| files.contains(&inode(stat)))
    }
}

impl Walked {
    fn new(protected: &Arc<ProtectedFiles>, trees: &[(&str, &Tree)], tell: bool) -> Self {
        let (at, begin) = (Instant::now(), SystemTime::now());
        let mut walk = Walk {
            protected,
            trees,
            left: WALK_MAX,
            waiting: VecDeque::new(),
            entered: HashSet::new(),
            folders: Vec::new(),
            files: HashSet::new(),
        };
        let end = walk.run();
        // Once, not with every file that is asked for meanwhile.
        if let Err(error) = &end
            && tell
        {
            tracing::warn!(%error, "cannot tell which files only a token opens: none is given without one");
        }
        let Walk { folders, files, .. } = walk;
        Self { protected: Arc::clone(protected), at, begin, folders, files: end.ok().map(|()| files) }
    }

    /// Whether it can still be believed about a file.
    fn is_current(&self, stat: &Stat, protected: &Arc<ProtectedFiles>, trees: &[(&str, &Tree)]) -> bool {
        let is_same = |(tree, path, known): &(usize, Vec<u8>, Identity)| {
            let stat = trees.get(*tree).and_then(|(_, tree)| tree.stat(path).ok()?);
            stat.is_some_and(|stat| Identity::of(&stat) == *known)
        };
        Arc::ptr_eq(&self.protected, protected)
            && self.at.elapsed() <= WALK_EVERY
            && !self.is_outrun_by(stat)
            && self.folders.iter().all(is_same)
    }

    /// Whether the file has got a name, or lost one, since the walk began. A time to come is of another clock and says
    /// nothing.
    fn is_outrun_by(&self, stat: &Stat) -> bool {
        let changed = Identity::of(stat).changed();
        changed.is_some_and(|changed| changed + TICK >= self.begin && changed <= SystemTime::now() + TICK)
    }
}

/// A folder to be read.
struct Folder {
    tree: usize,
    /// In its tree.
    path: Vec<u8>,
    /// As it is asked for.
    name: String,
    depth: usize,
    /// Whether everything below it is protected.
    is_whole: bool,
}

/// A walk under way.
struct Walk<'a> {
    protected: &'a ProtectedFiles,
    trees: &'a [(&'a str, &'a Tree)],
    /// Entries that it may still look at.
    left: usize,
    waiting: VecDeque<Folder>,
    /// Folders by tree and inode; by name too where names decide.
    entered: HashSet<(usize, Inode, Option<String>)>,
    folders: Vec<(usize, Vec<u8>, Identity)>,
    files: HashSet<Inode>,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<(), Unknown> {
        for (tree, (name, _)) in self.trees.iter().enumerate() {
            self.enter(tree, Vec::new(), (*name).to_owned(), 0, false)?;
        }
        // The nearest first: then a folder is as deep as its shortest way, whatever circles lead there too.
        while let Some(folder) = self.waiting.pop_front() {
            self.read(&folder)?;
        }
        Ok(())
    }

    fn enter(
        &mut self,
        tree: usize,
        path: Vec<u8>,
        name: String,
        depth: usize,
        is_whole: bool,
    ) -> Result<(), Unknown> {
        let is_whole = is_whole || self.protected.cover_all_of(&name);
        if !is_whole && !self.protected.are_below(&name) {
            return Ok(());
        }
        let Some(stat) = self.trees[tree].1.stat(if path.is_empty() { b"." } else { &path })? else {
            return Ok(());
        };
        let by_name = (!is_whole).then(|| name.to_ascii_lowercase());
        if !self.entered.insert((tree, inode(&stat), by_name)) {
            return Ok(());
        }
        if depth > DEPTH_MAX || path.len() >= PATH_MAX {
            return Err(Unknown::Deep);
        }
        self.waiting.push_back(Folder { tree, path, name, depth, is_whole });
        Ok(())
    }

    fn read(&mut self, folder: &Folder) -> Result<(), Unknown> {
        let tree = self.trees[folder.tree].1;
        let Some((stat, entries)) = tree.names_in(&folder.path, self.left + 1)? else { return Ok(()) };
        if self.folders.len() < WATCHED_MAX {
            let path = if folder.path.is_empty() { b".".to_vec() } else { folder.path.clone() };
            self.folders.push((folder.tree, path, Identity::of(&stat)));
        }
        self.left = self.left.checked_sub(entries.len()).ok_or(Unknown::Large)?;
        for entry in entries {
            let name = join(folder.name.as_bytes(), entry.to_string_lossy().as_bytes());
            let name = String::from_utf8_lossy(&name).into_owned();
            let is_protected = folder.is_whole || self.protected.covers(&name);
            if !is_protected && !self.protected.are_below(&name) {
                continue;
            }
            let path = join(&folder.path, entry.to_bytes());
            if path.len() >= PATH_MAX {
                return Err(Unknown::Deep);
            }
            let Some(stat) = tree.stat(&path)? else { continue };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile if is_protected => {
                    self.files.insert(inode(&stat));
                }
                FileType::Directory => {
                    self.enter(folder.tree, path, name, folder.depth + 1, folder.is_whole)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() { name.to_vec() } else { [folder, b"/", name].concat() }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
