//! What the control side tells an agent.

use goldwire_store::{PublicKey, Requirement};
use serde::{Deserialize, Serialize};

use super::{Failure, FailureKind, SourceFormat, WireFormat};

/// The control side's words to an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Become lighter on the host. Sent first, if at all.
    Priority {
        /// Nice value to set, 0 to 19.
        nice: Option<u8>,
        /// I/O class: 2 best effort, 3 idle; with level 0 to 7.
        io: Option<(u8, u8)>,
    },
    /// Answer with the images in a folder, or the one image at a path: [`Event::Images`].
    List {
        /// A folder or a file.
        path: String,
        /// File name pattern (`*`, `?`, `[…]`); none takes every file that is an image.
        pattern: Option<String>,
        /// What the images are; none goes by their content.
        format: Option<SourceFormat>,
    },
    /// Open an image and prepare to serve it: [`Event::SourceReady`] or [`Event::Failed`].
    OpenSource(SourceJob),
    /// Reach a target host from here: [`Event::Dialed`], or [`Event::Failed`] on that stream.
    Dial {
        /// The stream that stands for it from now on.
        stream: u16,
        /// The command to reach it, complete but for the remote command; empty starts a local agent.
        ssh: Vec<String>,
    },
    /// Receive a version: events up to [`Event::Done`] or [`Event::Failed`].
    Receive(Box<TargetJob>),
    /// The rate at which this side may send, bytes per second; none is unlimited.
    Limit(Option<u64>),
    /// Send nothing until told otherwise, and do not take silence for death.
    Pause,
    /// Go on.
    Resume,
    /// Stop at the next safe place and leave resumable work.
    Stop,
}

/// What to serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceJob {
    /// The image.
    pub path: String,
    /// What it is; none goes by its content.
    pub format: Option<SourceFormat>,
    /// Folders beside the image's own in which its parents may lie.
    pub parent_folders: Vec<String>,
    /// zstd level; none adapts to the connection; 0 sends plain.
    pub level: Option<i32>,
    /// Bytes of answers to keep for other targets that will ask the same.
    pub keep_bytes: u64,
    /// Hashing threads; none asks the machine.
    pub threads: Option<u16>,
    /// Whether the image is read even if its digests were kept.
    pub read_all: bool,
}

/// What to receive, and where to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetJob {
    /// Folder or file, as the user wrote it.
    pub path: String,
    /// The file name to use when `path` is a folder, `{uuid}` in it standing for a uuid made from content and folder.
    pub name: String,
    /// Whether the user wrote that name, so that it is taken as it is or refused.
    pub is_name_given: bool,
    /// Whether `path` has to lead into a store.
    pub must_be_store: bool,
    /// The descriptor's bytes ([`goldwire_store::Version`]).
    pub version: Vec<u8>,
    /// Who must have signed the descriptor.
    pub required: Option<RequiredSignature>,
    /// The container to write; none goes by the target's file name, or else takes the source's.
    pub format: Option<WireFormat>,
    /// The source's container.
    pub source_format: WireFormat,
    /// Images to take chunks from, as the user wrote them.
    pub seeds: Vec<String>,
    /// Whether to look for seeds in the target's folder.
    pub find_seeds: bool,
    /// Whether to replace a file of other content.
    pub replace: bool,
    /// Plan only.
    pub dry_run: bool,
    /// Permission bits; none takes those of the replaced file, or the source's.
    pub mode: Option<u32>,
    /// The source's permission bits.
    pub source_mode: u32,
    /// User and group id; none takes those of the replaced file, or the agent's own.
    pub owner: Option<(u32, u32)>,
    /// How long to wait for another sync to the target to end.
    pub wait_seconds: u32,
    /// Bytes that may be asked for before they arrive.
    pub window_bytes: u64,
    /// Hashing and writing threads; none asks the machine.
    pub threads: Option<u16>,
}

/// What a target makes sure of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequiredSignature {
    /// The public key that the descriptor must be signed by.
    pub signer: [u8; 32],
    /// Whether a version may replace one of the same signer that was created later.
    pub may_be_older: bool,
}

impl TargetJob {
    /// What the target makes sure of.
    ///
    /// # Errors
    /// `Invalid` for what is no key: nothing is signed by it.
    pub(crate) fn requirement(&self) -> Result<Option<Requirement>, Failure> {
        let Some(RequiredSignature { signer, may_be_older }) = self.required else { return Ok(None) };
        let signer = PublicKey::from_bytes(&signer)
            .ok_or_else(|| Failure::new(FailureKind::Invalid, "the required key is no public key"))?;
        Ok(Some(Requirement { signer, may_be_older }))
    }
}
