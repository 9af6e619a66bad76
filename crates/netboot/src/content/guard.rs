//! Files that only a token opens are known by what they are, not by how they are called: a link or a hard link in the boot
//! tree gives them another name, and a protected name can be a link to a file with an open one.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::Stat;

use super::tree::Tree;
use crate::policy::ProtectedFiles;

/// How long is believed what a walk over the tree found. Only prefixes need a walk; names are looked up each time.
const WALK_EVERY: Duration = Duration::from_secs(1);

/// What a file is, whatever its name.
type Inode = (u64, u64);

/// Knows protected files again.
#[derive(Default)]
pub(super) struct Guard {
    walked: Mutex<Option<Walked>>,
}

struct Walked {
    at: Instant,
    prefixes: Vec<String>,
    inodes: HashSet<Inode>,
}

fn inode(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

impl Guard {
    /// Whether the file is one of the protected ones of `tree`.
    pub(super) fn protects(&self, stat: &Stat, protected: &ProtectedFiles, tree: &Tree) -> bool {
        let wanted = inode(stat);
        protected.names.iter().any(|name| tree.stat(name).is_some_and(|found| inode(&found) == wanted))
            || (!protected.prefixes.is_empty() && self.is_below(wanted, &protected.prefixes, tree))
    }

    fn is_below(&self, wanted: Inode, prefixes: &[String], tree: &Tree) -> bool {
        let mut walked = self.walked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = |walked: &Walked| walked.at.elapsed() > WALK_EVERY || walked.prefixes != prefixes;
        if walked.as_ref().is_none_or(is_old) {
            let mut inodes = HashSet::new();
            tree.walk(&mut |found| {
                if prefixes.iter().any(|prefix| found.name.starts_with(prefix.as_str())) {
                    inodes.insert(inode(&found.stat));
                }
            });
            *walked = Some(Walked { at: Instant::now(), prefixes: prefixes.to_vec(), inodes });
        }
        walked.as_ref().is_some_and(|walked| walked.inodes.contains(&wanted))
    }
}
