//! The content side of goldwire: what a version *is*, apart from any container or transport.
//!
//! A disk is cut into chunks of 64 KiB; a chunk's id is its BLAKE3 digest; nodes of 256 ids form a tree whose
//! root, together with the disk's size, names the version. Byte layouts are in `docs/tree-and-version.md`.
//!
//! This crate knows digests and devices. It deliberately does not know who asks, which site, or SSH.

mod build;
mod cache;
mod chunk;
mod error;
mod file;
mod own;
mod rolling;
mod shape;
mod sign;
mod version;

pub use build::{BuildOptions, Progress, build_tree};
pub use cache::TreeCache;
pub use chunk::{BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, ChunkId, block_hash, is_zero};
pub use error::{Error, Result};
pub use file::{Seal, TreeFile};
pub use own::{Kept, OWN_FOLDER, find_own, make_own};
pub use rolling::Rolling;
pub use shape::{FANOUT, Root, Shape, node_id};
pub use sign::{PublicKey, SecretKey};
pub use version::{Version, VersionError};
