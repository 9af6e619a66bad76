//! Fingerprints of a version's blocks, by which a push finds blocks that moved. They are kept in the tree of an image's
//! latest version, which is the seed of the next one, and cost 64 bytes a chunk; losing them costs bytes on the wire.

use super::Store;
use crate::chunk::BLOCKS_PER_CHUNK;
use crate::error::Result;
use crate::tree::{FANOUT, Root, TreeFile};

/// Takes the fingerprints that are known in `from` over to the same chunks of `to`, at the same place, of which none are
/// known.
pub(super) fn take_over(from: &TreeFile, to: &TreeFile) -> Result<()> {
    let chunks = from.shape().chunks().min(to.shape().chunks());
    for first in (0..chunks).step_by(FANOUT as usize) {
        let range = first..(first + FANOUT).min(chunks);
        if to.shape().levels() > 1 && to.id(1, first / FANOUT)?.is_zero() {
            continue;
        }
        let (ids, others) = (to.ids(0, range.clone())?, from.ids(0, range.clone())?);
        let (mut words, known) = (to.fingerprints(range.clone())?, from.fingerprints(range)?);
        let mut is_changed = false;
        let pairs = words.chunks_exact_mut(BLOCKS_PER_CHUNK).zip(known.chunks_exact(BLOCKS_PER_CHUNK));
        for ((words, known), (id, other)) in pairs.zip(ids.iter().zip(&others)) {
            let is_new = words.iter().all(|word| *word == 0) && known.iter().any(|word| *word != 0);
            if id == other && is_new {
                words.copy_from_slice(known);
                is_changed = true;
            }
        }
        if is_changed {
            to.set_fingerprints(first, &words)?;
        }
    }
    Ok(())
}

impl Store {
    /// The tree of a version, if it is here and can be opened.
    pub(super) fn tree_of(&self, root: &Root) -> Option<TreeFile> {
        self.version(root).and_then(|version| version.open_tree()).ok()
    }

    /// Gives the space back that the fingerprints of a version take, which is no image's latest any more. That need not
    /// succeed.
    pub(super) fn forget_traces(&self, root: &Root) {
        let _ = self.tree_of(root).map(|tree| tree.forget_fingerprints());
    }
}
