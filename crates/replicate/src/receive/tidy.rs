//! Taking away what syncs left beside images: unfinished work, locks of killed runs, digests and descriptors of images that
//! are gone. Everybody tidies what is his own; what a running sync holds is left alone.
//!
//! Whether something is needed is asked while its image's lock is held: before that, a sync may publish in between. One
//! thing that cannot be taken away keeps nothing else from it.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use goldwire_stdx::{Folder, is_scratch};
use goldwire_store::{Kept, find_ours, is_own_folder, own_place, remove_empty, user_beside};
use rustix::fs::FileType;

use super::lock::{self, TargetLock};
use super::probe;
use crate::failure::Result;
use crate::wire::{Failure, FailureKind};

/// How much is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// What nobody needs any more, and unfinished work.
    Leftovers,
    /// Digests and descriptors of images that are there, too, and what is in the making.
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
    /// Something in the making that a killed run left.
    Scratch,
    /// Another user's folder for all that.
    Folder,
}

/// Why something was left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A running sync holds its image.
    Held,
    /// It is this user's.
    OtherUser(u32),
}

/// Something that is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spared {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub what: Leftover,
    /// Why it stays.
    pub reason: Reason,
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

/// What came of tidying a folder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tidied {
    /// What was taken away, or would be.
    pub left: Vec<Left>,
    /// What was left alone, although it would be taken away otherwise.
    pub spared: Vec<Spared>,
    /// The first thing that failed.
    pub failure: Option<Failure>,
}

/// Takes away what this user's syncs left in `folder`, beside the images there.
pub fn tidy(folder: &Path, extent: Extent, tidying: Tidying) -> Tidied {
    // In a folder of goldwire's own nothing is beside images, and nothing would be found.
    if let Some(own) = fs::canonicalize(folder).ok().and_then(|folder| own_place(&folder)) {
        let failure = Failure::new(FailureKind::Invalid, format!("{own}, and is not tidied itself"))
            .hint("name the folder around .goldwire; a store is tidied by goldwire image prune");
        return Tidied { failure: Some(failure), ..Tidied::default() };
    }
    match Folder::open(folder) {
        Ok(around) => tidy_by(&around, extent, tidying, &|image| hold(folder, image, tidying)),
        Err(error) => Tidied { failure: Some(failed(folder, &error)), ..Tidied::default() },
    }
}

/// [`tidy`] by a way to hold an image, which tests have another of.
fn tidy_by(around: &Folder, extent: Extent, tidying: Tidying, hold: &Hold<'_>) -> Tidied {
    let mut run = Run { around, extent, tidying, hold, tidied: Tidied::default() };
    run.all();
    run.tidied
}

/// Keeps syncs from an image: its lock, which takes its file away when it goes, or nothing when only looking. `None` if a
/// sync holds it.
type Hold<'a> = dyn Fn(&OsStr) -> Result<Option<Option<TargetLock>>> + 'a;

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

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::io(format!("tidy {}", path.display()), error)
}

struct Run<'a> {
    around: &'a Folder,
    extent: Extent,
    tidying: Tidying,
    hold: &'a Hold<'a>,
    tidied: Tidied,
}

impl Run<'_> {
    fn all(&mut self) {
        let around = self.around;
        let beside = self.entries(around);
        // Locks first: whoever holds an image takes over the lock that lies there.
        for entry in &beside {
            let done = self.lock(entry);
            self.note(done);
        }
        let user = user_beside(around);
        for entry in &beside {
            let done = self.beside(entry, user).and_then(|()| self.own_folder(entry, user));
            self.note(done);
        }
        for kept in [Kept::Work, Kept::Trees, Kept::Versions] {
            for own in find_ours(around, kept) {
                for entry in self.entries(&own) {
                    let done = self.kept(&own, kept, &entry);
                    self.note(done);
                }
            }
        }
        if self.tidying == Tidying::Remove {
            remove_empty(around);
        }
    }

    fn note(&mut self, done: Result<()>) {
        if let Err(failure) = done {
            self.tidied.failure.get_or_insert(failure);
        }
    }

    fn entries(&mut self, folder: &Folder) -> Vec<OsString> {
        folder.entries().unwrap_or_else(|error| {
            self.note(Err(failed(folder.path(), &error)));
            Vec::new()
        })
    }

    /// What has a lock's name beside images. It goes when whoever took it over lets it go, unless it is another user's.
    fn lock(&mut self, entry: &OsStr) -> Result<()> {
        let Some(image) = lock::target_of(entry) else { return Ok(()) };
        if self.kind_of(self.around, entry)? != Some(FileType::RegularFile) {
            return Ok(());
        }
        let Some(held) = (self.hold)(&image)? else {
            self.spare(self.around, entry, Leftover::Lock, Reason::Held);
            return Ok(());
        };
        drop(held);
        if self.tidying == Tidying::Look || self.kind_of(self.around, entry)?.is_none() {
            let path = self.around.path().join(entry);
            self.tidied.left.push(Left { path, what: Leftover::Lock, bytes: 0 });
        }
        Ok(())
    }

    /// What else killed runs left beside images, if it is `user`'s.
    fn beside(&mut self, entry: &OsStr, user: u32) -> Result<()> {
        let around = self.around;
        let image = probe::target_of(entry);
        let is_scratch = is_scratch(entry) && self.extent == Extent::Everything;
        if image.is_none() && !is_scratch {
            return Ok(());
        }
        let owner = around.owner_of(entry).map_err(|error| failed(around.path(), &error))?;
        let Some(owner) = owner else { return Ok(()) };
        if owner.user != user {
            self.spare(around, entry, Leftover::Scratch, Reason::OtherUser(owner.user));
            return Ok(());
        }
        match (image, self.kind_of(around, entry)?) {
            (Some(image), Some(FileType::RegularFile)) => {
                let Some(_held) = (self.hold)(&image)? else {
                    self.spare(around, entry, Leftover::Scratch, Reason::Held);
                    return Ok(());
                };
                self.take(around, entry, Leftover::Scratch, |around| around.remove_file(entry))
            }
            // Only a folder is tried with there, and it is empty.
            (None, Some(FileType::Directory)) => {
                self.take(around, entry, Leftover::Scratch, |around| around.remove_folder(entry))
            }
            _ => Ok(()),
        }
    }

    /// A folder that is goldwire's own, and another user's.
    fn own_folder(&mut self, entry: &OsStr, user: u32) -> Result<()> {
        if !is_own_folder(entry) || self.kind_of(self.around, entry)? != Some(FileType::Directory) {
            return Ok(());
        }
        let owner = self.around.owner_of(entry).map_err(|error| failed(self.around.path(), &error))?;
        if let Some(owner) = owner.filter(|owner| owner.user != user) {
            self.spare(self.around, entry, Leftover::Folder, Reason::OtherUser(owner.user));
        }
        Ok(())
    }

    fn spare(&mut self, folder: &Folder, entry: &OsStr, what: Leftover, reason: Reason) {
        self.tidied.spared.push(Spared { path: folder.path().join(entry), what, reason });
    }

    /// What lies in one of our own folders.
    fn kept(&mut self, own: &Folder, kept: Kept, entry: &OsStr) -> Result<()> {
        let (what, ending) = match kept {
            Kept::Work => (Leftover::Work, ""),
            Kept::Trees => (Leftover::Digests, ".tree"),
            Kept::Versions => (Leftover::Descriptor, ".gwv"),
        };
        let remove = |own: &Folder| own.remove_tree(entry);
        if kept != Kept::Work && entry.as_bytes().ends_with(b".tmp") {
            // Of a killed run, or somebody makes it just now, who then keeps nothing.
            return match self.extent {
                Extent::Everything => self.take(own, entry, Leftover::Scratch, remove),
                Extent::Leftovers => Ok(()),
            };
        }
        let Some(image) = entry.as_bytes().strip_suffix(ending.as_bytes()).map(OsStr::from_bytes) else {
            return Ok(());
        };
        // Nobody is kept waiting for an image of which nothing goes.
        if self.is_needed(image, what)? {
            return Ok(());
        }
        let Some(_held) = (self.hold)(image)? else {
            self.spare(own, entry, what, Reason::Held);
            return Ok(());
        };
        // A sync may have published it before it was held.
        if self.is_needed(image, what)? {
            return Ok(());
        }
        self.take(own, entry, what, remove)
    }

    fn is_needed(&self, image: &OsStr, what: Leftover) -> Result<bool> {
        let may_be = what != Leftover::Work && self.extent == Extent::Leftovers;
        Ok(may_be && self.kind_of(self.around, image)?.is_some())
    }

    fn take(
        &mut self,
        folder: &Folder,
        entry: &OsStr,
        what: Leftover,
        remove: impl Fn(&Folder) -> io::Result<()>,
    ) -> Result<()> {
        // Whoever held it may have taken it away.
        if self.kind_of(folder, entry)?.is_none() {
            return Ok(());
        }
        let left = Left { path: folder.path().join(entry), what, bytes: occupied(folder, entry, 0) };
        if self.tidying == Tidying::Remove {
            remove(folder).map_err(|error| failed(&left.path, &error))?;
        }
        self.tidied.left.push(left);
        Ok(())
    }

    fn kind_of(&self, folder: &Folder, entry: &OsStr) -> Result<Option<FileType>> {
        folder.kind_of(entry).map_err(|error| failed(&folder.path().join(entry), &error))
    }
}

/// Bytes that an entry occupies, with what is in it.
fn occupied(folder: &Folder, name: &OsStr, depth: u32) -> u64 {
    if let Ok(child) = folder.child(name) {
        let entries = if depth < 4 { child.entries().unwrap_or_default() } else { Vec::new() };
        return entries.iter().map(|entry| occupied(&child, entry, depth + 1)).sum();
    }
    folder.read_file(name).and_then(|file| file.metadata()).map_or(0, |data| data.blocks() * 512)
}

#[cfg(test)]
mod tests;
