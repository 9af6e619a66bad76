//! The digest tree over a version's chunks: its geometry, how it is built, the file that holds it, and where it is kept.

mod build;
mod cache;
mod compare;
mod file;
mod geometry;

pub(crate) use build::fingerprint;
pub use build::{BuildOptions, Progress, build_tree};
pub use cache::TreeCache;
pub use compare::{Differences, differences, for_each_difference};
pub use file::{Seal, TreeFile};
pub(crate) use geometry::DISK_SIZE_MAX;
pub use geometry::{FANOUT, Root, TreeGeometry, node_id};
