//! The protocol between goldwire's processes: frames over a byte stream, layout in `docs/protocol.md`.
//!
//! ```text
//! 0        4      6        8                16
//! +--------+------+--------+----------------+---------------------+
//! | length | kind | stream | id             | payload (length)    |   all little endian
//! +--------+------+--------+----------------+---------------------+
//! ```
//!
//! `stream` 0 is the peer itself; on the connection between the control machine and a source host, stream *n*
//! carries the control traffic of the source's *n*-th direct target. `id` pairs an answer with its request.
//! Payloads are postcard except for the bulk of an answer, which is raw bytes behind a small header ([`pack_answer`]).

mod command;
mod event;
mod frame;
mod request;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use self::command::{Command, RequiredSignature, SourceJob, TargetJob};
pub use self::event::{Candidate, Counters, Event, Outcome, Phase, Plan, SourceReady};
pub use self::frame::{Frame, Head, Kind, WireError};
pub use self::request::{Request, pack_answer, unpack_answer};

/// What both sides must agree on before anything else. Raised with every change of layout or meaning.
pub const PROTOCOL_VERSION: u32 = 4;

/// What an agent writes first, so that a peer can skip what a chatty login shell printed before it.
pub const PREAMBLE: &[u8; 16] = b"\0GOLDWIRE-AGENT\n";

/// Bytes of noise that may come before the preamble.
pub const NOISE_MAX: usize = 64 * 1024;

/// Largest payload. An answer carries at most [`ANSWER_RAW_MAX`] bytes before compression; the rest is slack.
pub const PAYLOAD_MAX: u32 = 4 << 20;

/// Most bytes in an answer before compression.
pub const ANSWER_RAW_MAX: usize = 2 << 20;

/// Most nodes, chunks or wants that one request may name.
pub const REQUEST_ITEMS_MAX: usize = 4096;

/// An agent's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`].
    pub protocol: u32,
    /// The program's version, for people.
    pub version: String,
    /// The machine's name, for people.
    pub host: String,
    /// BLAKE3 of the agent's own program file, to notice a damaged installation; zeros when it cannot tell.
    pub program: [u8; 32],
}

/// An error that crosses a process boundary, with what a caller may branch on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What to branch on.
    pub kind: FailureKind,
    /// The sentence and its causes.
    pub chain: Vec<String>,
    /// What the reader can do.
    pub hints: Vec<String>,
}

/// What a caller may branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The source changed while it was read.
    SourceChanged,
    /// Another sync holds the target.
    Busy,
    /// Not enough space, or the disk filled up.
    Space,
    /// The target exists with other content and replacing was not asked for.
    Exists,
    /// Somebody asked to stop; the work can be resumed.
    Stopped,
    /// The connection broke; the work can be resumed.
    Disconnected,
    /// The request cannot be met as it is.
    Invalid,
    /// Anything else.
    Other,
}

impl FailureKind {
    /// The kind in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::SourceChanged => "source-changed",
            Self::Busy => "busy",
            Self::Space => "space",
            Self::Exists => "exists",
            Self::Stopped => "stopped",
            Self::Disconnected => "disconnected",
            Self::Invalid => "invalid",
            Self::Other => "other",
        }
    }
}

/// Container formats on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WireFormat {
    /// Sparse raw file.
    Raw,
    /// VHD with all blocks.
    VhdFixed,
    /// VHD with a block allocation table.
    VhdDynamic,
    /// QCOW2 version 3.
    Qcow2,
}

/// What the user says that a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceFormat {
    /// A plain disk, whatever its bytes look like.
    Raw,
    /// A VHD of any kind.
    Vhd,
    /// QCOW2.
    Qcow2,
}

impl From<SourceFormat> for goldwire_disk::Format {
    /// Of the VHDs any: what kind it is, its footer says.
    fn from(format: SourceFormat) -> Self {
        match format {
            SourceFormat::Raw => Self::Raw,
            SourceFormat::Vhd => Self::VhdDynamic,
            SourceFormat::Qcow2 => Self::Qcow2,
        }
    }
}
