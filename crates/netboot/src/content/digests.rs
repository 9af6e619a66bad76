//! Digests of files, remembered by what the kernel says of a file's identity, so that no request reads a file only to
//! name its content.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Stat, fstat};

use super::tree::Tree;
use super::url_builder::Digest;
use crate::member::Fitness;

/// Files up to this size are hashed when they are first asked for (10 ms from the page cache); larger ones in the
/// background.
const AT_ONCE_MAX: u64 = 16 << 20;
/// Most files that are remembered; at 64 bytes each. Past it all are forgotten and hashed again as they are asked for.
const REMEMBERED_MAX: usize = 65_536;
/// Most large files that wait for their digest.
const WAITING_MAX: usize = 1024;
/// A file that was changed this short a time ago can be changed again within the same tick of the file system's clock
/// (up to 10 ms on Linux, 2 s on FAT) and keep its identity. Its digest is used once and not remembered.
const UNSETTLED: Duration = Duration::from_secs(2);
const READ: usize = 256 << 10;

/// What tells a file from another and from itself after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    /// Nanoseconds since 1970, as are the next.
    modified: i128,
    changed: i128,
}

impl Identity {
    pub(super) fn of(stat: &Stat) -> Self {
        let nanoseconds = |seconds: i64, rest: u64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            changed: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Bytes in the file.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// When the file itself or one of its names was changed last; nothing before 1970.
    pub(super) fn changed(&self) -> Option<SystemTime> {
        let nanoseconds = u64::try_from(self.changed).ok()?;
        UNIX_EPOCH.checked_add(Duration::from_nanos(nanoseconds))
    }

    fn is_settled_at(&self, now: SystemTime) -> bool {
        let latest = self.changed.max(self.modified);
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        i128::try_from(now).is_ok_and(|now| now.saturating_sub(latest) > UNSETTLED.as_nanos() as i128)
    }
}

/// The memory and the worker that fills it for large files. The worker ends with the last owner.
#[derive(Debug)]
pub(super) struct Digests {
    shared: Arc<Shared>,
    jobs: SyncSender<Job>,
}

#[derive(Debug, Default)]
struct Shared {
    known: RwLock<HashMap<Identity, Digest>>,
    waiting: Mutex<HashSet<Identity>>,
    /// Hears when the disk does not answer.
    fitness: Arc<Fitness>,
}

enum Job {
    Hash(Arc<File>, Identity),
    Walk(Vec<Arc<Tree>>),
}

impl Digests {
    /// An empty memory.
    pub(super) fn new(fitness: &Arc<Fitness>) -> io::Result<Self> {
        let (jobs, incoming) = sync_channel(WAITING_MAX);
        let shared = Arc::new(Shared { fitness: Arc::clone(fitness), ..Shared::default() });
        let worker = Arc::clone(&shared);
        goldwire_stdx::spawn("digests", move || worker.work(&incoming))?;
        Ok(Self { shared, jobs })
    }

    /// The digest of an open file; none while a large one has not been read yet, or is being written.
    pub(super) fn of(&self, file: &Arc<File>, stat: &Stat) -> io::Result<Option<Digest>> {
        let identity = Identity::of(stat);
        if let Some(digest) = self.shared.recall(&identity) {
            return Ok(Some(digest));
        }
        if identity.size <= AT_ONCE_MAX {
            return self.shared.hash(file, identity);
        }
        if self.shared.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(identity) {
            match self.jobs.try_send(Job::Hash(Arc::clone(file), identity)) {
                Ok(()) => {}
                // Asked for again, it comes again.
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                    self.shared.done_with(&identity)
                }
            }
        }
        Ok(None)
    }

    /// The digest of a file of which it is remembered.
    pub(super) fn known(&self, stat: &Stat) -> Option<Digest> {
        self.shared.recall(&Identity::of(stat))
    }

    /// Starts to hash every file of these trees in the background.
    pub(super) fn warm(&self, trees: Vec<Arc<Tree>>) {
        // A full queue has enough to do already.
        let _ = self.jobs.try_send(Job::Walk(trees));
    }
}

impl Shared {
    fn work(&self, incoming: &Receiver<Job>) {
        let mut to_walk = VecDeque::new();
        while let Ok(job) = incoming.recv() {
            self.take(job, &mut to_walk);
            while let Some(tree) = to_walk.pop_front() {
                tree.walk(&mut |found| {
                    self.catch_up(incoming, &mut to_walk);
                    let identity = Identity::of(&found.stat);
                    if self.recall(&identity).is_none() {
                        self.hash_in_background(&found.file, identity);
                    }
                });
            }
        }
    }

    /// What was asked for meanwhile comes before the rest of a walk, which may take hours.
    fn catch_up(&self, incoming: &Receiver<Job>, to_walk: &mut VecDeque<Arc<Tree>>) {
        while let Ok(job) = incoming.try_recv() {
            self.take(job, to_walk);
        }
    }

    fn take(&self, job: Job, to_walk: &mut VecDeque<Arc<Tree>>) {
        match job {
            Job::Hash(file, identity) => {
                self.hash_in_background(&file, identity);
                self.done_with(&identity);
            }
            Job::Walk(trees) => to_walk.extend(trees),
        }
    }

    fn hash_in_background(&self, file: &File, identity: Identity) {
        // Who asks for the file meets the same error and is told.
        if let Err(error) = self.hash(file, identity) {
            tracing::debug!(%error, "cannot hash a file of the boot tree");
        }
    }

    fn recall(&self, identity: &Identity) -> Option<Digest> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(identity).copied()
    }

    fn done_with(&self, identity: &Identity) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(identity);
    }

    /// Reads the file. Nothing if it changed meanwhile.
    fn hash(&self, file: &File, identity: Identity) -> io::Result<Option<Digest>> {
        let begin = SystemTime::now();
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; READ.min(usize::try_from(identity.size).unwrap_or(READ)).max(1)];
        let mut offset = 0;
        while offset < identity.size {
            let working = self.fitness.begin_read();
            let read = file.read_at(&mut buffer, offset);
            drop(working);
            match read {
                Ok(0) => return Ok(None),
                Ok(count) => {
                    hasher.update(&buffer[..count]);
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if Identity::of(&fstat(file)?) != identity {
            return Ok(None);
        }
        let digest = Digest::from(hasher.finalize());
        if identity.is_settled_at(begin) {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            if known.len() >= REMEMBERED_MAX {
                known.clear();
            }
            known.insert(identity, digest);
        } else if identity.size > AT_ONCE_MAX {
            // A large file cannot be read for each request: until it has settled it has no digest, and is read again.
            return Ok(None);
        }
        Ok(Some(digest))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{Timespec, Timestamps, futimens};

    use super::*;

    fn digest(digests: &Digests, path: &std::path::Path) -> Option<Digest> {
        let file = Arc::new(File::open(path).unwrap());
        let stat = fstat(&file).unwrap();
        digests.of(&file, &stat).unwrap()
    }

    #[test]
    fn a_changed_file_never_keeps_an_old_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let digests = Digests::new(&Arc::default()).unwrap();
        for round in 0..200_u32 {
            // Same size, and the old time put back: what `cp -p` and restores do within one tick of the clock.
            fs::write(&path, round.to_be_bytes()).unwrap();
            let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
            futimens(File::open(&path).unwrap(), &Timestamps { last_access: time, last_modification: time })
                .unwrap();
            assert_eq!(digest(&digests, &path), Some(Digest::of(&round.to_be_bytes())), "round {round}");
        }
        assert!(digests.shared.known.read().unwrap().is_empty(), "nothing unsettled is remembered");
    }

    #[test]
    fn what_is_asked_for_comes_before_the_rest_of_a_walk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("asked");
        fs::write(&path, "asked").unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        let identity = Identity::of(&fstat(&file).unwrap());
        goldwire_stdx::testing::until("the file has settled", || identity.is_settled_at(SystemTime::now()));
        let (jobs, incoming) = sync_channel(2);
        let tree = Arc::new(Tree::open(folder.path()).unwrap());
        jobs.send(Job::Walk(vec![tree])).unwrap();
        jobs.send(Job::Hash(file, identity)).unwrap();
        // A walk is at a file and looks what has come.
        let (shared, mut to_walk) = (Shared::default(), VecDeque::new());
        shared.catch_up(&incoming, &mut to_walk);
        assert_eq!(shared.recall(&identity), Some(Digest::of(b"asked")));
        assert_eq!(to_walk.len(), 1, "the other walk is for later");
    }

    #[test]
    fn large_files_get_theirs_in_the_background_once_settled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large");
        let content = vec![7; AT_ONCE_MAX as usize + 1];
        fs::write(&path, &content).unwrap();
        let digests = Digests::new(&Arc::default()).unwrap();
        assert_eq!(digest(&digests, &path), None);
        goldwire_stdx::testing::until("there is a digest", || digest(&digests, &path).is_some());
        assert_eq!(digest(&digests, &path), Some(Digest::of(&content)));
        assert!(digests.shared.waiting.lock().unwrap().is_empty());
    }
}
