//! Where a version is put together, seen from the transfer: a container file beside images answers this need, a pack of
//! a store can. Nothing here says file, name or path.

use goldwire_store::{BuildOptions, Root, TreeFile};

use super::bitmap::Bitmap;
use crate::failure::Result;

/// A place that takes the chunks of one version in any order, and shows them to others only once all are proven.
///
/// Chunks are addressed by index. `bytes` are whole chunks that lie end to end; what passes the end of the disk is zero
/// and is not kept. Methods may be called from several threads at once, but [`lay_out`](Self::lay_out) comes before
/// every write and [`publish`](Self::publish) after all of them.
pub(crate) trait Destination: Send + Sync {
    /// The version's tree, with whether an earlier attempt left it whole and proven; an empty one otherwise.
    fn tree(&self) -> Result<(TreeFile, bool)>;

    /// Gives every chunk of `tree` that is not zero its place, and adds to `done` what an earlier attempt has put there
    /// durably. The layout follows from the tree alone; `options` say where to tell how many bytes have their place, and
    /// whether to stop.
    fn lay_out(&self, tree: &TreeFile, done: &Bitmap, options: &BuildOptions<'_>) -> Result<LaidOut>;

    /// Writes chunks from chunk `first` on, at places that never held anything else.
    fn write(&self, first: u64, bytes: &[u8]) -> Result<()>;

    /// Writes chunks from chunk `first` on over whatever is there.
    fn overwrite(&self, first: u64, bytes: &[u8]) -> Result<()>;

    /// What is in the place of chunk `index`.
    fn read(&self, index: u64, chunk: &mut [u8]) -> Result<()>;

    /// Makes everything written durable, and then notes durably that these runs (first chunk, count) are in place.
    fn journal(&self, runs: &[(u64, u64)]) -> Result<()>;

    /// Reads everything back as a later reader will, from the medium where that can be had.
    fn read_back(&self, options: &BuildOptions<'_>) -> Result<ReadBack>;

    /// Shows the version to others, in one step. What is worth saying about it.
    fn publish(&self) -> Result<Option<String>>;
}

/// What a layout found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LaidOut {
    /// Chunks that an earlier attempt noted as durable.
    pub(crate) resumed: u64,
    /// Whether there may be more of them than it noted.
    pub(crate) is_continued: bool,
    /// Something worth saying.
    pub(crate) notice: Option<String>,
}

/// What reading back gave.
pub(crate) struct ReadBack {
    /// The root of what is there.
    pub(crate) root: Root,
    /// The tree of what is there.
    pub(crate) tree: TreeFile,
}
