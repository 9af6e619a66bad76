//! The content side of goldwire: what a version *is*, apart from any container or transport.
//!
//! A disk is cut into chunks of 64 KiB; a chunk's id is its BLAKE3 digest; nodes of 256 ids form a tree whose
//! root, together with the disk's size, names the version. Byte layouts are in `docs/tree-and-version.md`. A [`Store`]
//! keeps versions of a site's images in packs that they share (`docs/store-format.md`).
//!
//! This crate knows digests and devices. It deliberately does not know who asks, which site, or SSH.

mod chunk;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod map;
mod own;
mod pack;
mod rolling;
mod store;
mod tree;
mod version;

pub use chunk::{BLOCK_SIZE, BLOCKS_PER_CHUNK, CHUNK_SIZE, ChunkId, block_hash, is_zero};
pub use error::{Error, Result};
pub use own::{
    Kept, NoImage, OWN_FOLDER, OwnPlace, find_ours, find_own, is_own_folder, make_own, own_place, refuse_own,
    remove_empty, user_beside, with_own,
};
pub use rolling::Rolling;
pub use store::{
    Channel, Checked, ImageNames, ImageVersion, Incoming, Keep, LATEST, Lying, Moved, OutOfOrder, Pieces,
    Pruned, Put, Reception, Reordered, RepackBounds, Repacked, Store, StoreError, StoreProblem, StoreResult,
    StoreSize, StoredVersion, Twin,
};
pub use tree::{
    BuildOptions, Differences, FANOUT, Progress, Root, Seal, TreeCache, TreeFile, TreeGeometry, build_tree,
    differences, for_each_difference, node_id,
};
pub use version::{
    BesideError, PublicKey, Requirement, SecretKey, Version, VersionError, beside, describe, keep_beside,
    signed_for_other, wrong_signer,
};
