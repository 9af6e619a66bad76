//! Small files that were asked for before, kept in memory: a bootstrap that a whole site asks for is then one question
//! to the kernel, whether it is still the same, and one write.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::fstat;

use super::digests::Identity;
use super::tree::Tree;
use super::{Body, Content};

/// Larger files go from the page cache to the socket, which is quicker from here on.
const SMALL_MAX: u64 = 256 << 10;
/// Most bytes that are kept, besides those of transfers that run. Past it all are forgotten and read again as they are
/// asked for.
const KEPT_MAX: u64 = 32 << 20;
/// What a file counts for beside its bytes, so that many empty ones are bounded too.
const ENTRY: u64 = 1 << 10;

/// The files that are kept, of one tree.
#[derive(Debug, Default)]
pub(super) struct Small {
    kept: RwLock<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    files: HashMap<String, (Identity, Content)>,
    bytes: u64,
}

impl Small {
    /// The file of this name, if it is kept and is still what is there. Where a link leads to meanwhile does not
    /// matter: if it is to the same file, its content is the same.
    pub(super) fn get(&self, tree: &Tree, name: &str) -> Option<Content> {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let (identity, content) = kept.files.get(name)?;
        let stat = tree.stat(name.as_bytes()).ok()??;
        (Identity::of(&stat) == *identity).then(|| content.clone())
    }

    /// Keeps a file that has settled, if it is small and the page cache has it; gives it back, from memory if so.
    pub(super) fn keep(&self, name: &str, identity: Identity, content: Content) -> Content {
        let Body::File(file) = &content.body else { return content };
        if content.length > SMALL_MAX {
            return content;
        }
        let mut bytes = vec![0; content.length as usize];
        let is_read = content.read_at_once(&mut bytes, 0);
        // Had it been changed while it was read, it would have another time now.
        let is_same = fstat(file).is_ok_and(|stat| Identity::of(&stat) == identity);
        if !is_read || !is_same {
            return content;
        }
        let content = Content { body: Body::Memory(Arc::from(bytes)), ..content };
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let size = content.length + ENTRY + name.len() as u64;
        if kept.bytes + size > KEPT_MAX {
            *kept = Kept::default();
        }
        // A former file of the name counts until all are forgotten.
        kept.bytes += size;
        kept.files.insert(name.to_owned(), (identity, content.clone()));
        content
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;
    use crate::event::Stage;

    fn open(folder: &std::path::Path, name: &str) -> (Identity, Content) {
        let file = File::open(folder.join(name)).unwrap();
        let stat = fstat(&file).unwrap();
        let content = Content {
            body: Body::File(Arc::new(file)),
            length: Identity::of(&stat).size(),
            digest: None,
            media_type: "",
            modified: None,
            stage: Stage::Bootstrap,
        };
        (Identity::of(&stat), content)
    }

    fn is_kept(small: &Small, tree: &Tree, name: &str) -> bool {
        small.get(tree, name).is_some_and(|content| matches!(content.body, Body::Memory(_)))
    }

    #[test]
    fn a_file_is_kept_until_it_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let (tree, small) = (Tree::open(folder.path()).unwrap(), Small::default());
        fs::write(folder.path().join("a"), "first").unwrap();
        let (identity, content) = open(folder.path(), "a");
        assert!(!is_kept(&small, &tree, "a"));
        small.keep("a", identity, content);
        let Some(Body::Memory(bytes)) = small.get(&tree, "a").map(|content| content.body) else { panic!() };
        assert_eq!(&*bytes, b"first");
        fs::write(folder.path().join("b"), "other").unwrap();
        fs::rename(folder.path().join("b"), folder.path().join("a")).unwrap();
        assert!(!is_kept(&small, &tree, "a"), "another file has the name");
        fs::remove_file(folder.path().join("a")).unwrap();
        assert!(!is_kept(&small, &tree, "a"), "the name is gone");
    }

    #[test]
    fn memory_is_bounded_and_large_files_stay_where_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let (tree, small) = (Tree::open(folder.path()).unwrap(), Small::default());
        fs::write(folder.path().join("large"), vec![1; SMALL_MAX as usize + 1]).unwrap();
        let (identity, content) = open(folder.path(), "large");
        assert!(matches!(small.keep("large", identity, content).body, Body::File(_)));
        fs::write(folder.path().join("full"), vec![1; SMALL_MAX as usize]).unwrap();
        let (identity, content) = open(folder.path(), "full");
        for number in 0..200 {
            small.keep(&format!("{number}"), identity, content.clone());
            let kept = small.kept.read().unwrap();
            assert!(kept.bytes <= KEPT_MAX && kept.files.len() as u64 * SMALL_MAX <= kept.bytes);
        }
        small.keep("full", identity, content);
        assert!(is_kept(&small, &tree, "full"));
    }
}
