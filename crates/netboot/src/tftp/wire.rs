//! TFTP packets, bytes ⇄ [`Packet`] (RFC 1350 §5, options by RFC 2347, 2348, 2349 and 7440).
//!
//! ```text
//! RRQ, WRQ   1|2 (u16)  file NUL  mode NUL  [ option NUL  value NUL ]…
//! DATA       3          block (u16)         0 to blksize bytes
//! ACK        4          block (u16)
//! ERROR      5          code (u16)          message NUL
//! OACK       6          [ option NUL  value NUL ]…
//! ```
//!
//! Numbers are big-endian, options are decimal text, names in any case. Decoding is total. What a request says beyond
//! its mode is read as far as it makes sense: options that are unknown, repeated or have no sensible value are left out,
//! which is what a server answers to them (RFC 2347: "if the server does not support it, it is omitted"), and padding
//! behind the last pair, which some boot ROMs send, means nothing.

/// A request has at most this many bytes (RFC 2347).
pub(crate) const REQUEST_MAX: usize = 512;
/// The longest name of a file that is looked at. Longer ones do not fit a request with its options anyway.
pub(crate) const FILE_NAME_MAX: usize = 400;
/// Bytes of a block when nothing else was agreed (RFC 1350 §2).
pub(crate) const BLOCK_SIZE_DEFAULT: u16 = 512;
/// Smallest block that may be asked for (RFC 2348).
pub(crate) const BLOCK_SIZE_MIN: u16 = 8;
/// Largest block that may be asked for (RFC 2348).
pub(crate) const BLOCK_SIZE_MAX: u16 = 65464;
/// Bytes before a block's data.
pub(crate) const DATA_HEADER: usize = 4;
/// The longest message of an ERROR that is kept; it is only for the log.
const MESSAGE_MAX: usize = 120;
/// Each of the four options once.
const OPTIONS_MAX: usize = 4;

const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OPTION_ACK: u16 = 6;

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// RRQ: a client wants a file.
    Read(Request<'a>),
    /// WRQ: a client wants to store a file.
    Write(Request<'a>),
    /// DATA.
    Data {
        /// The block's number, the first is 1. After 65535 comes 0.
        block: u16,
        /// Its bytes; fewer than the block size only in the last one.
        bytes: &'a [u8],
    },
    /// ACK of this block and all before it (RFC 7440 §4).
    Ack {
        /// The block's number, 0 for an OACK.
        block: u16,
    },
    /// ERROR: the transfer is over, and nothing is answered to it.
    Error {
        /// What happened.
        code: ErrorCode,
        /// What happened, for people.
        message: String,
    },
    /// OACK: these options hold.
    OptionAck(Options),
}

/// What RRQ and WRQ say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// The file's name as it came.
    pub file: &'a [u8],
    /// How it is to be sent.
    pub mode: Mode,
    /// What the client can do.
    pub options: Options,
}

/// How a file is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As it is.
    Octet,
    /// As text with line ends of a network terminal.
    Netascii,
    /// Anything else: obsolete `mail`, nonsense.
    Other,
}

/// An option that we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionName {
    /// `blksize`: bytes of data in a block (RFC 2348).
    BlockSize,
    /// `timeout`: seconds until the server sends again (RFC 2349).
    TimeoutS,
    /// `tsize`: bytes of the whole file; 0 asks for them (RFC 2349).
    TransferSize,
    /// `windowsize`: blocks that are sent before an ACK is waited for (RFC 7440).
    WindowSize,
}

impl OptionName {
    const ALL: [Self; OPTIONS_MAX] = [Self::BlockSize, Self::TimeoutS, Self::TransferSize, Self::WindowSize];

    /// As it stands on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::BlockSize => "blksize",
            Self::TimeoutS => "timeout",
            Self::TransferSize => "tsize",
            Self::WindowSize => "windowsize",
        }
    }

    fn from_wire(bytes: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name().as_bytes().eq_ignore_ascii_case(bytes))
    }
}

/// Options with their values, in the order in which they were asked for: an OACK repeats that order, because clients
/// were met that rely on it. Each name once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(Vec<(OptionName, u64)>);

impl Options {
    /// An option's value.
    pub fn get(&self, name: OptionName) -> Option<u64> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// Adds an option unless it is there already.
    pub fn add(&mut self, name: OptionName, value: u64) {
        if self.get(name).is_none() {
            self.0.push((name, value));
        }
    }

    /// Each option, in order.
    pub fn iter(&self) -> impl Iterator<Item = (OptionName, u64)> {
        self.0.iter().copied()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn decode(mut rest: &[u8]) -> Self {
        let mut options = Self::default();
        while let Some((name, after)) = text(rest) {
            let Some((value, after)) = text(after) else { break };
            rest = after;
            if let (Some(name), Some(value)) = (OptionName::from_wire(name), number(value)) {
                options.add(name, value);
            }
        }
        options
    }

    fn encode(&self, into: &mut Vec<u8>) {
        for (name, value) in self.iter() {
            into.extend_from_slice(name.name().as_bytes());
            into.push(0);
            into.extend_from_slice(value.to_string().as_bytes());
            into.push(0);
        }
    }
}

/// The code of an ERROR (RFC 1350 §5, RFC 2347). Unknown numbers survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorCode(pub u16);

#[expect(missing_docs, reason = "the names of RFC 1350's appendix and RFC 2347")]
impl ErrorCode {
    pub const NOT_DEFINED: Self = Self(0);
    pub const FILE_NOT_FOUND: Self = Self(1);
    pub const ACCESS_VIOLATION: Self = Self(2);
    pub const ILLEGAL_OPERATION: Self = Self(4);
    pub const UNKNOWN_TRANSFER_ID: Self = Self(5);
    pub const OPTION_NEGOTIATION: Self = Self(8);
}

/// Why bytes are not a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No packet is so short.
    #[error("{0} bytes are no TFTP packet; it has at least 4")]
    Short(usize),
    /// A request longer than RFC 2347 allows.
    #[error("a request of {0} bytes, where 512 are the limit")]
    Long(usize),
    /// Not one of the six.
    #[error("field opcode at byte 0: {0} is none")]
    Opcode(u16),
    /// A text without its NUL.
    #[error("field {field} at byte {at} has no end")]
    Unterminated {
        /// Which one.
        field: &'static str,
        /// Where it begins.
        at: usize,
    },
}

impl<'a> Packet<'a> {
    /// Reads a packet.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let Some(([a, b], rest)) = bytes.split_first_chunk::<2>() else {
            return Err(DecodeError::Short(bytes.len()));
        };
        match u16::from_be_bytes([*a, *b]) {
            READ => Request::decode(bytes).map(Self::Read),
            WRITE => Request::decode(bytes).map(Self::Write),
            OPTION_ACK => Ok(Self::OptionAck(Options::decode(rest))),
            opcode @ (DATA | ACK | ERROR) => {
                let Some((number, rest)) = rest.split_first_chunk::<2>() else {
                    return Err(DecodeError::Short(bytes.len()));
                };
                let number = u16::from_be_bytes(*number);
                Ok(match opcode {
                    DATA => Self::Data { block: number, bytes: rest },
                    // Some clients pad an ACK to the least size of an Ethernet frame.
                    ACK => Self::Ack { block: number },
                    _ => Self::Error { code: ErrorCode(number), message: message(rest) },
                })
            }
            unknown => Err(DecodeError::Opcode(unknown)),
        }
    }

    /// Writes a packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(REQUEST_MAX);
        match self {
            Self::Read(request) => request.encode(READ, &mut bytes),
            Self::Write(request) => request.encode(WRITE, &mut bytes),
            Self::Data { block, bytes: data } => {
                bytes.extend_from_slice(&data_header(*block));
                bytes.extend_from_slice(data);
            }
            Self::Ack { block } => {
                bytes.extend_from_slice(&ACK.to_be_bytes());
                bytes.extend_from_slice(&block.to_be_bytes());
            }
            Self::Error { code, message } => {
                bytes.extend_from_slice(&ERROR.to_be_bytes());
                bytes.extend_from_slice(&code.0.to_be_bytes());
                bytes.extend(message.bytes().filter(|byte| *byte != 0).take(MESSAGE_MAX));
                bytes.push(0);
            }
            Self::OptionAck(options) => {
                bytes.extend_from_slice(&OPTION_ACK.to_be_bytes());
                options.encode(&mut bytes);
            }
        }
        bytes
    }
}

impl<'a> Request<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        if bytes.len() > REQUEST_MAX {
            return Err(DecodeError::Long(bytes.len()));
        }
        let unterminated =
            |field, rest: &[u8]| DecodeError::Unterminated { field, at: bytes.len() - rest.len() };
        let rest = &bytes[2..];
        let (file, rest) = text(rest).ok_or_else(|| unterminated("file", rest))?;
        let (mode, rest) = text(rest).ok_or_else(|| unterminated("mode", rest))?;
        let mode = match mode {
            mode if mode.eq_ignore_ascii_case(b"octet") => Mode::Octet,
            mode if mode.eq_ignore_ascii_case(b"netascii") => Mode::Netascii,
            _ => Mode::Other,
        };
        Ok(Self { file, mode, options: Options::decode(rest) })
    }

    fn encode(&self, opcode: u16, into: &mut Vec<u8>) {
        into.extend_from_slice(&opcode.to_be_bytes());
        into.extend_from_slice(self.file);
        into.push(0);
        into.extend_from_slice(match self.mode {
            Mode::Octet => b"octet",
            Mode::Netascii => b"netascii",
            Mode::Other => b"mail",
        });
        into.push(0);
        self.options.encode(into);
    }
}

/// What stands before a block's data.
pub(crate) fn data_header(block: u16) -> [u8; DATA_HEADER] {
    let [a, b] = DATA.to_be_bytes();
    let [c, d] = block.to_be_bytes();
    [a, b, c, d]
}

/// A text and what follows its NUL.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// A decimal number, and nothing else.
fn number(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}

/// The message of an ERROR; some clients leave out its NUL.
fn message(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()).min(MESSAGE_MAX);
    // Not one byte more than was there, or a message that is read and written again grows.
    bytes[..end]
        .iter()
        .map(|byte| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(pairs: &[(OptionName, u64)]) -> Options {
        Options(pairs.to_vec())
    }

    #[test]
    fn requests_with_options_in_any_case_and_order() {
        let bytes = b"\0\x01pxe\\boot.0\0OcTeT\0TSIZE\x000\0multicast\0\0BlkSize\x001468\0WindowSize\x004\0";
        let Ok(Packet::Read(request)) = Packet::decode(bytes) else { panic!() };
        assert_eq!((request.file, request.mode), (&b"pxe\\boot.0"[..], Mode::Octet));
        let asked =
            [(OptionName::TransferSize, 0), (OptionName::BlockSize, 1468), (OptionName::WindowSize, 4)];
        assert_eq!(request.options, options(&asked));
    }

    #[test]
    fn options_without_sense_are_left_out() {
        for rest in [
            &b"blksize\0"[..],
            b"blksize\0\0",
            b"blksize\0-1\0",
            b"blksize\0 512\0",
            b"blksize\x0099999999999999999999999\0",
            b"blksize\x00512",
            b"\0\0\0\0\0",
        ] {
            let bytes = [b"\0\x01a\0octet\0", rest].concat();
            let Ok(Packet::Read(request)) = Packet::decode(&bytes) else { panic!("{rest:?}") };
            assert!(request.options.is_empty(), "{rest:?}");
        }
        let twice = b"\0\x01a\0octet\0blksize\x00600\0blksize\x00700\0";
        let Ok(Packet::Read(request)) = Packet::decode(twice) else { panic!() };
        assert_eq!(request.options, options(&[(OptionName::BlockSize, 600)]));
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        assert_eq!(Packet::decode(b""), Err(DecodeError::Short(0)));
        assert_eq!(Packet::decode(b"\0\x04\0"), Err(DecodeError::Short(3)));
        assert_eq!(Packet::decode(b"\0\x07\0\0"), Err(DecodeError::Opcode(7)));
        let open = |field, at| Err(DecodeError::Unterminated { field, at });
        assert_eq!(Packet::decode(b"\0\x01abc"), open("file", 2));
        assert_eq!(Packet::decode(b"\0\x01abc\0octet"), open("mode", 6));
        assert_eq!(Packet::decode(&[&b"\0\x01"[..], &[b'a'; 600]].concat()), Err(DecodeError::Long(602)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(opcode in 0_u8..8, bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Packet::decode(&bytes);
            let framed = [&[0, opcode][..], &bytes].concat();
            if let Ok(packet) = Packet::decode(&framed) {
                let written = packet.encode();
                prop_assert_eq!(Packet::decode(&written), Ok(packet));
            }
        }

        #[test]
        fn what_is_written_is_read_the_same(file in "[ -~]{1,80}", block: u16, size: u64, window: u64) {
            let options = options(&[(OptionName::WindowSize, window), (OptionName::TransferSize, size)]);
            let request = Request { file: file.as_bytes(), mode: Mode::Octet, options: options.clone() };
            for packet in [
                Packet::Read(request.clone()),
                Packet::Write(request),
                Packet::Data { block, bytes: file.as_bytes() },
                Packet::Ack { block },
                Packet::Error { code: ErrorCode(block), message: file.clone() },
                Packet::OptionAck(options),
            ] {
                let written = packet.encode();
                prop_assert_eq!(Packet::decode(&written), Ok(packet));
            }
        }
    }
}
