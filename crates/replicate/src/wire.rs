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

use std::io::{self, Read, Write};
use std::sync::Arc;

use goldwire_stdx::{AlignedBuffer, Uuid};
use serde::{Deserialize, Serialize};

/// What both sides must agree on before anything else. Raised with every change of layout or meaning.
pub const PROTOCOL_VERSION: u32 = 3;

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

/// Largest payload of a request: a chunk number and a mask take at most 13 bytes.
const REQUEST_MAX: u32 = 16 * REQUEST_ITEMS_MAX as u32;

/// Largest payload of what is said in words: a failure, a job.
const WORDS_MAX: u32 = 1 << 20;

const HEADER_LENGTH: usize = 16;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// [`Hello`], the first frame of an agent.
    Hello = 1,
    /// [`Command`], from the control side.
    Command = 2,
    /// [`Event`], to the control side.
    Event = 3,
    /// [`Request`], from a target to whoever serves it.
    Request = 4,
    /// The bytes asked for: see [`pack_answer`].
    Answer = 5,
    /// A [`Failure`] instead of an answer.
    Refusal = 6,
    /// Nothing; keeps a silent connection from looking dead.
    Ping = 7,
}

impl Kind {
    fn from_wire(number: u16) -> Option<Self> {
        [Self::Hello, Self::Command, Self::Event, Self::Request, Self::Answer, Self::Refusal, Self::Ping]
            .into_iter()
            .find(|kind| *kind as u16 == number)
    }

    /// Largest payload that a frame of this kind has.
    fn payload_max(self) -> u32 {
        match self {
            Self::Hello | Self::Ping => 64 << 10,
            Self::Command | Self::Refusal => WORDS_MAX,
            // Also the list of a large folder.
            Self::Event => PAYLOAD_MAX,
            Self::Request => REQUEST_MAX,
            Self::Answer => (ANSWER_HEADER + ANSWER_RAW_MAX) as u32,
        }
    }
}

/// What a frame's header says, before its payload is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What it is.
    pub kind: Kind,
    /// Whom it concerns.
    pub stream: u16,
    /// Pairs answers with requests.
    pub id: u64,
    /// Bytes of payload.
    pub length: u32,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Whom it concerns.
    pub stream: u16,
    /// Pairs answers with requests.
    pub id: u64,
    /// Its content; shared, because one answer may go to many targets.
    pub payload: Arc<AlignedBuffer>,
}

/// Why bytes are not our protocol.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The stream ended inside a frame, or reading failed.
    #[error("read from the peer")]
    Read(#[source] io::Error),
    /// The header is not one of ours.
    #[error("the peer sent a frame that is not of this protocol: {0}")]
    Header(String),
    /// An answer that was not asked for, comes twice, or is longer than what was asked for.
    #[error("the peer sent an answer of {length} bytes that nobody asked for")]
    Unasked {
        /// Bytes of its payload.
        length: u32,
    },
    /// A payload does not decode.
    #[error("the peer sent a malformed {what}")]
    Payload {
        /// What it should have been.
        what: &'static str,
    },
}

impl Frame {
    /// A frame whose payload is `message` in postcard.
    pub fn of(kind: Kind, stream: u16, id: u64, message: &impl Serialize) -> Self {
        // Serialising our own plain types into a growing vector cannot fail.
        let payload = Arc::new(postcard::to_allocvec(message).unwrap_or_default().into());
        Self { kind, stream, id, payload }
    }

    /// The payload as a message.
    ///
    /// # Errors
    /// `Payload`.
    pub fn message<'a, T: Deserialize<'a>>(&'a self, what: &'static str) -> Result<T, WireError> {
        match postcard::take_from_bytes(&self.payload) {
            Ok((message, [])) => Ok(message),
            _ => Err(WireError::Payload { what }),
        }
    }

    /// The header's bytes for a payload of this length.
    pub fn header(&self) -> [u8; HEADER_LENGTH] {
        let mut header = [0; HEADER_LENGTH];
        header[..4].copy_from_slice(&(self.payload.len() as u32).to_le_bytes());
        header[4..6].copy_from_slice(&(self.kind as u16).to_le_bytes());
        header[6..8].copy_from_slice(&self.stream.to_le_bytes());
        header[8..].copy_from_slice(&self.id.to_le_bytes());
        header
    }

    /// Bytes on the wire.
    pub fn length(&self) -> u64 {
        (HEADER_LENGTH + self.payload.len()) as u64
    }

    /// Writes the frame.
    ///
    /// # Errors
    /// Whatever the writer answers.
    pub fn write(&self, writer: &mut impl Write) -> io::Result<()> {
        writer.write_all(&self.header())?;
        writer.write_all(&self.payload)
    }

    /// Reads the next frame; `None` at a clean end of the stream.
    ///
    /// # Errors
    /// `Read`, `Header`.
    pub fn read(reader: &mut impl Read) -> Result<Option<Self>, WireError> {
        Self::read_admitted(reader, |_| Ok(()))
    }

    /// [`Self::read`], with a say in whether the payload is read at all.
    ///
    /// # Errors
    /// `Read`, `Header`, whatever `admit` says.
    pub fn read_admitted(
        reader: &mut impl Read,
        admit: impl FnOnce(&Head) -> Result<(), WireError>,
    ) -> Result<Option<Self>, WireError> {
        let mut header = [0; HEADER_LENGTH];
        let mut filled = 0;
        while filled < HEADER_LENGTH {
            match reader.read(&mut header[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(WireError::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(WireError::Read(error)),
            }
        }
        let [l0, l1, l2, l3, k0, k1, s0, s1, id @ ..] = header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let kind = u16::from_le_bytes([k0, k1]);
        let kind = Kind::from_wire(kind).ok_or_else(|| WireError::Header(format!("kind {kind}")))?;
        if length > kind.payload_max() {
            return Err(WireError::Header(format!("a payload of {length} bytes")));
        }
        let (stream, id) = (u16::from_le_bytes([s0, s1]), u64::from_le_bytes(id));
        admit(&Head { kind, stream, id, length })?;
        let mut payload = AlignedBuffer::zeroed(length as usize);
        reader.read_exact(&mut payload).map_err(WireError::Read)?;
        Ok(Some(Self { kind, stream, id, payload: Arc::new(payload) }))
    }
}

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

/// Which content a target wants, in terms of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The children's ids of these nodes of a level, concatenated.
    Nodes {
        /// 1 or more.
        level: u8,
        /// Ascending.
        indices: Vec<u64>,
    },
    /// For each of the 16 blocks of each chunk its XXH3-64 (u64) and its rolling checksum (u32), concatenated.
    BlockHashes {
        /// Ascending.
        chunks: Vec<u64>,
    },
    /// The wanted 4 KiB blocks of each chunk, concatenated.
    Blocks {
        /// Chunk index and the set of its blocks, ascending.
        wants: Vec<(u64, u16)>,
        /// Whether the target works from a seed: then the bytes are few, and worth compressing well.
        is_delta: bool,
    },
    /// Nothing, answered once the source has made sure that it is still what it was.
    Unchanged,
    /// This many bytes that do not compress, to measure the connection.
    Probe {
        /// How many.
        bytes: u32,
    },
}

impl Request {
    /// The most bytes that the payload of its answer has. A request that a source would refuse has the largest.
    pub fn answer_max(&self) -> u32 {
        let raw = match self {
            // A node has at most 256 children of 32 bytes each.
            Self::Nodes { indices, .. } => indices.len().saturating_mul(256 * 32),
            Self::BlockHashes { chunks } => chunks.len().saturating_mul(16 * 12),
            Self::Blocks { wants, .. } => {
                let blocks: usize = wants.iter().map(|(_, mask)| mask.count_ones() as usize).sum();
                blocks.saturating_mul(4096)
            }
            Self::Unchanged => 0,
            Self::Probe { bytes } => *bytes as usize,
        };
        (ANSWER_HEADER + raw.min(ANSWER_RAW_MAX)) as u32
    }
}

/// Bytes before an answer's content: codec (0 plain, 1 zstd), three reserved bytes, raw length.
const ANSWER_HEADER: usize = 8;

/// An answer's payload: `raw`, compressed if that makes it smaller.
pub fn pack_answer(raw: &[u8], compressor: Option<&mut zstd::bulk::Compressor<'_>>) -> Vec<u8> {
    let mut payload = vec![0; ANSWER_HEADER];
    payload[4..8].copy_from_slice(&(raw.len() as u32).to_le_bytes());
    if let Some(compressor) = compressor {
        payload.resize(ANSWER_HEADER + zstd::zstd_safe::compress_bound(raw.len()), 0);
        if let Ok(length) = compressor.compress_to_buffer(raw, &mut payload[ANSWER_HEADER..])
            && length < raw.len()
        {
            payload[0] = 1;
            payload.truncate(ANSWER_HEADER + length);
            return payload;
        }
        payload.truncate(ANSWER_HEADER);
    }
    payload.extend_from_slice(raw);
    payload
}

/// An answer's content, which must have exactly `length` bytes.
///
/// # Errors
/// `Payload`.
pub fn unpack_answer(payload: &[u8], length: usize) -> Result<Vec<u8>, WireError> {
    let malformed = WireError::Payload { what: "answer" };
    let Some((header, content)) = payload.split_first_chunk::<ANSWER_HEADER>() else { return Err(malformed) };
    let [codec, _, _, _, claimed @ ..] = *header;
    if u32::from_le_bytes(claimed) as usize != length || length > ANSWER_RAW_MAX {
        return Err(malformed);
    }
    let raw = match codec {
        0 => content.to_vec(),
        1 => zstd::bulk::decompress(content, length)
            .map_err(|_| WireError::Payload { what: "compressed answer" })?,
        _ => return Err(malformed),
    };
    if raw.len() == length { Ok(raw) } else { Err(malformed) }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_round_trip_and_a_torn_one_is_an_error() {
        let frame = Frame::of(
            Kind::Request,
            3,
            77,
            &Request::Blocks { wants: vec![(5, 0xffff), (1 << 40, 1)], is_delta: true },
        );
        let mut bytes = Vec::new();
        frame.write(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, frame.length());
        assert_eq!(Frame::read(&mut bytes.as_slice()).unwrap(), Some(frame));
        assert!(Frame::read(&mut [].as_slice()).unwrap().is_none());
        for length in 1..bytes.len() {
            assert!(Frame::read(&mut &bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn an_absurd_length_allocates_nothing() {
        let mut header = [0xff; HEADER_LENGTH];
        header[4..6].copy_from_slice(&5_u16.to_le_bytes());
        assert!(matches!(Frame::read(&mut header.as_slice()), Err(WireError::Header(_))));
    }

    #[test]
    fn answers_unpack_to_what_was_packed_and_to_nothing_else() {
        let raw: Vec<u8> = (0..100_000_u32).map(|n| (n / 100) as u8).collect();
        let mut compressor = zstd::bulk::Compressor::new(1).unwrap();
        for payload in [pack_answer(&raw, None), pack_answer(&raw, Some(&mut compressor))] {
            assert_eq!(unpack_answer(&payload, raw.len()).unwrap(), raw);
            assert!(unpack_answer(&payload, raw.len() - 1).is_err());
            assert!(unpack_answer(&payload[..payload.len() - 1], raw.len()).is_err());
        }
        assert!(unpack_answer(&[2; 20], 0x0202_0202).is_err());
        assert!(unpack_answer(&[0; 5], 0).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Frame::read(&mut bytes.as_slice());
            let frame = Frame { kind: Kind::Request, stream: 0, id: 0, payload: Arc::new(bytes.into()) };
            let _ = frame.message::<Request>("request");
            let _ = frame.message::<Command>("command");
            let _ = frame.message::<Event>("event");
            let _ = unpack_answer(&frame.payload, 300);
        }
    }
}
