//! What an agent tells the control side.

use goldwire_stdx::Uuid;
use serde::{Deserialize, Serialize};

use super::{Failure, Hello, WireFormat};

/// An image that a folder offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Where it is, as the host sees it.
    pub path: String,
    /// Container format, for people.
    pub format: String,
    /// Guest size in bytes.
    pub size: u64,
    /// File length in bytes.
    pub file_length: u64,
    /// The container's uuid.
    #[serde(with = "uuid_bytes")]
    pub uuid: Option<Uuid>,
    /// XenServer's `hidden` byte.
    pub hidden: bool,
    /// Whether it needs a parent.
    pub has_parent: bool,
    /// Modification time, seconds since 1970.
    pub modified: i64,
    /// Creation time by the container, seconds since 1970.
    pub created: Option<i64>,
}

/// A uuid goes as its bytes.
mod uuid_bytes {
    use goldwire_stdx::Uuid;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(uuid: &Option<Uuid>, serializer: S) -> Result<S::Ok, S::Error> {
        uuid.map(|uuid| uuid.0).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Uuid>, D::Error> {
        Ok(Option::<[u8; 16]>::deserialize(deserializer)?.map(Uuid))
    }
}

/// An agent's words to the control side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The answer to [`Command::List`].
    Images {
        /// Whether the path is a folder.
        is_folder: bool,
        /// What is there, by path.
        images: Vec<Candidate>,
    },
    /// Hashing an image, at source or target.
    Hashing {
        /// Guest bytes done.
        done: u64,
        /// Guest bytes in all.
        total: u64,
    },
    /// The source is open and its tree known.
    SourceReady(SourceReady),
    /// A direct target answered.
    Dialed(Hello),
    /// What a target knows before it moves anything.
    Planned(Plan),
    /// How far a target is.
    Progress(Counters),
    /// A target entered a phase.
    Phase(Phase),
    /// Something worth telling that is no failure.
    Notice(String),
    /// Somebody else holds the target, and it is waited for, as the job allows. Said again and again.
    Waiting,
    /// A target has published the version, or planned it if that was all that was asked.
    Done(Outcome),
    /// What was asked for did not happen.
    Failed(Failure),
}

/// What the source found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReady {
    /// The descriptor's bytes: a kept, possibly signed one if it fits the content.
    pub version: Vec<u8>,
    /// A signed descriptor beside the image that describes other content.
    pub other_descriptor: Option<String>,
    /// The source's container format.
    pub format: WireFormat,
    /// File name of the image.
    pub name: String,
    /// Permission bits of the file.
    pub mode: u32,
    /// Whether the tree was at hand.
    pub tree_was_cached: bool,
}

/// What a target is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Walking the tree.
    Comparing,
    /// Copying from seeds and receiving.
    Transferring,
    /// Reading everything back.
    Verifying,
    /// Renaming.
    Publishing,
}

/// What a target intends.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The file that will be there.
    pub path: String,
    /// Chunks that are not zero.
    pub chunks_used: u64,
    /// Chunks that a previous attempt left, verified.
    pub chunks_resumed: u64,
    /// Chunks that seeds hold as they are.
    pub chunks_seeded: u64,
    /// Chunks of which at least a part must come over the wire.
    pub chunks_missing: u64,
    /// Bytes that the file system has free for us.
    pub bytes_free: u64,
    /// Bytes that the new file will still occupy.
    pub bytes_needed: u64,
    /// The seeds that will be used.
    pub seeds: Vec<String>,
    /// Measured speed of the connection in bytes per second; only in a dry run.
    pub link_rate: Option<u64>,
}

/// How far a target is. All counts are of the current attempt unless they say otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Chunks to have in the end (not zero).
    pub chunks_total: u64,
    /// Nodes of the version's tree that were received.
    pub nodes_received: u64,
    /// Guest bytes that were given their place in the container.
    pub bytes_laid_out: u64,
    /// Chunks in place, whoever brought them.
    pub chunks_done: u64,
    /// Chunks from an earlier attempt.
    pub chunks_resumed: u64,
    /// Chunks copied from seeds as they were.
    pub chunks_seeded: u64,
    /// Chunks of which at least a part was received.
    pub chunks_received: u64,
    /// 4 KiB blocks of those chunks that were found at the target.
    pub blocks_found: u64,
    /// 4 KiB blocks that were received.
    pub blocks_received: u64,
    /// Bytes read from the wire by the target, everything included.
    pub wire_in: u64,
    /// Bytes written to the wire by the target.
    pub wire_out: u64,
    /// Bytes read back and verified.
    pub bytes_verified: u64,
}

/// How it ended well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The file.
    pub path: String,
    /// The root that the target's own read-back gave.
    pub root: [u8; 32],
    /// The final counts.
    pub counters: Counters,
    /// Whether nothing had to be done because the target held the version already.
    pub already_there: bool,
}
