//! Frames: what is said, behind a header of fixed length.

use std::io::{self, Read, Write};
use std::sync::Arc;

use goldwire_stdx::AlignedBuffer;
use serde::{Deserialize, Serialize};

use super::request::ANSWER_HEADER;
use super::{ANSWER_RAW_MAX, PAYLOAD_MAX, REQUEST_ITEMS_MAX};

/// Largest payload of a request: a chunk number and a mask take at most 13 bytes.
const REQUEST_MAX: u32 = 16 * REQUEST_ITEMS_MAX as u32;

/// Largest payload of what is said in words: a failure, a job.
const WORDS_MAX: u32 = 1 << 20;

pub(super) const HEADER_LENGTH: usize = 16;

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
