//! DHCPv6 messages, bytes ⇄ [`Packet`] (RFC 8415 §8, §9, §21.1).
//!
//! ```text
//! from a client or server        from a relay (12, 13)
//!  0        1        2     3      0        1        2 .. 17        18 .. 33
//!  type     transaction           type     hops     link-address   peer-address
//!  options                        options, one of them (9) the relayed packet
//!
//! option: code (2), length (2), value
//! ```
//!
//! Decoding is total: what is cut off is refused with its place. Options keep their order and may repeat.

use std::net::Ipv6Addr;

/// More than any client sends; relays add little.
pub(crate) const RECEIVE_MAX: usize = 4096;
/// Relays in a row (RFC 8415 §7.6, HOP_COUNT_LIMIT).
pub const RELAYS_MAX: usize = 8;

/// Option codes, by the names of RFC 8415 and later.
#[expect(
    missing_docs,
    reason = "the names are the documentation; the RFC that defines each stands behind it"
)]
pub mod code {
    pub const CLIENT_ID: u16 = 1;
    pub const SERVER_ID: u16 = 2;
    pub const IA_NA: u16 = 3;
    pub const RELAY_MESSAGE: u16 = 9;
    pub const STATUS: u16 = 13;
    pub const USER_CLASS: u16 = 15;
    pub const VENDOR_CLASS: u16 = 16;
    pub const INTERFACE_ID: u16 = 18;
    pub const REMOTE_ID: u16 = 37; // RFC 4649
    pub const BOOT_FILE_URL: u16 = 59; // RFC 5970
    pub const BOOT_FILE_PARAMETERS: u16 = 60; // RFC 5970
    pub const CLIENT_ARCH: u16 = 61; // RFC 5970
    pub const CLIENT_NDI: u16 = 62; // RFC 5970
    pub const CLIENT_LINK_LAYER: u16 = 79; // RFC 6939
    pub const RELAY_SOURCE_PORT: u16 = 135; // RFC 8357
}

/// The kind of a message (RFC 8415 §7.3). Unknown numbers survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageType(pub u8);

#[expect(missing_docs, reason = "the names of RFC 8415 §7.3")]
impl MessageType {
    pub const SOLICIT: Self = Self(1);
    pub const ADVERTISE: Self = Self(2);
    pub const REQUEST: Self = Self(3);
    pub const REPLY: Self = Self(7);
    pub const INFORMATION_REQUEST: Self = Self(11);
    pub const RELAY_FORWARD: Self = Self(12);
    pub const RELAY_REPLY: Self = Self(13);
}

/// Options in their order; a code may occur more than once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(Vec<(u16, Vec<u8>)>);

impl Options {
    /// The value of the first option with this code.
    pub fn get(&self, code: u16) -> Option<&[u8]> {
        self.iter().find(|(known, _)| *known == code).map(|(_, value)| value)
    }

    /// Adds an option at the end. A value of more than 65,535 bytes is cut off there.
    pub fn push(&mut self, code: u16, value: impl Into<Vec<u8>>) {
        let mut value = value.into();
        value.truncate(usize::from(u16::MAX));
        self.0.push((code, value));
    }

    /// Each option, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &[u8])> {
        self.0.iter().map(|(code, value)| (*code, value.as_slice()))
    }

    fn decode(bytes: &[u8], start: usize) -> Result<Self, DecodeError> {
        let mut options = Self::default();
        let mut at = start;
        while at < bytes.len() {
            let Some(&[a, b, c, d]) = bytes.get(at..at + 4).and_then(|head| head.first_chunk()) else {
                return Err(DecodeError::NoOption { at });
            };
            let code = u16::from_be_bytes([a, b]);
            let length = usize::from(u16::from_be_bytes([c, d]));
            let value = bytes.get(at + 4..at + 4 + length).ok_or(DecodeError::Truncated { code, at })?;
            options.0.push((code, value.to_vec()));
            at += 4 + length;
        }
        Ok(options)
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        for (code, value) in &self.0 {
            bytes.extend_from_slice(&code.to_be_bytes());
            // `push` and `decode` leave no longer value.
            bytes.extend_from_slice(&(value.len() as u16).to_be_bytes());
            bytes.extend_from_slice(value);
        }
    }
}

/// A message between a client and a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its kind.
    pub kind: MessageType,
    /// The client's number for the exchange.
    pub transaction: [u8; 3],
    /// Its options.
    pub options: Options,
}

/// What one relay says about what it passes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Relays before this one.
    pub hops: u8,
    /// An address of the client's link; unspecified where the relay has none to tell.
    pub link: Ipv6Addr,
    /// From whom it heard the message: the client, or a relay before it.
    pub peer: Ipv6Addr,
    /// Its options, but not the relayed message.
    pub options: Options,
}

/// A message with the relays that it came through, the outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The relays, at most [`RELAYS_MAX`].
    pub relays: Vec<Relay>,
    /// The message.
    pub message: Message,
}

/// Why bytes are not a packet. Places count from the start of the relayed message that is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too short for the header of its kind.
    #[error("{0} bytes are no DHCPv6 message of their kind")]
    Short(usize),
    /// Longer than anything that a client or relay sends.
    #[error("{0} bytes are more than a DHCPv6 message has")]
    Long(usize),
    /// Fewer bytes than an option's code and length.
    #[error("byte {at} begins no option")]
    NoOption {
        /// Where it would begin.
        at: usize,
    },
    /// An option that goes on past the end.
    #[error("option {code} at byte {at} goes on past the end of the message")]
    Truncated {
        /// Its code.
        code: u16,
        /// Where it begins.
        at: usize,
    },
    /// A relay that relays nothing.
    #[error("a relay's message holds no option 9")]
    NothingRelayed,
    /// More relays than the RFC allows.
    #[error("relayed more than {RELAYS_MAX} times")]
    ManyRelays,
    /// A relay's answer, which no server takes.
    #[error("a relay-reply was sent to a server")]
    RelayReply,
}

impl Packet {
    /// Reads a packet that was sent to a server.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > RECEIVE_MAX {
            return Err(DecodeError::Long(bytes.len()));
        }
        let mut relays = Vec::new();
        let mut relayed;
        let mut bytes = bytes;
        loop {
            let Some(&[kind, a, b, c]) = bytes.first_chunk() else {
                return Err(DecodeError::Short(bytes.len()));
            };
            match MessageType(kind) {
                MessageType::RELAY_REPLY => return Err(DecodeError::RelayReply),
                MessageType::RELAY_FORWARD => {
                    if relays.len() == RELAYS_MAX {
                        return Err(DecodeError::ManyRelays);
                    }
                    let address =
                        |at| bytes.get(at..at + 16).and_then(|part| <[u8; 16]>::try_from(part).ok());
                    let (Some(link), Some(peer)) = (address(2), address(18)) else {
                        return Err(DecodeError::Short(bytes.len()));
                    };
                    let mut options = Options::decode(bytes, 34)?;
                    let at = options.0.iter().position(|(code, _)| *code == code::RELAY_MESSAGE);
                    relayed = options.0.remove(at.ok_or(DecodeError::NothingRelayed)?).1;
                    relays.push(Relay { hops: a, link: link.into(), peer: peer.into(), options });
                    bytes = &relayed;
                }
                kind => {
                    let options = Options::decode(bytes, 4)?;
                    return Ok(Self { relays, message: Message { kind, transaction: [a, b, c], options } });
                }
            }
        }
    }

    /// Writes a message as it goes to a client: within a relay-reply for each relay that the request came through
    /// (RFC 8415 §19.3), each with the interface identifier that the relay sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.message.kind.0];
        bytes.extend_from_slice(&self.message.transaction);
        self.message.options.encode(&mut bytes);
        for relay in self.relays.iter().rev() {
            let inner = std::mem::replace(&mut bytes, vec![MessageType::RELAY_REPLY.0, relay.hops]);
            bytes.extend_from_slice(&relay.link.octets());
            bytes.extend_from_slice(&relay.peer.octets());
            let mut options = relay.options.clone();
            options.push(code::RELAY_MESSAGE, inner);
            options.encode(&mut bytes);
        }
        bytes
    }
}

/// The counted strings of options 15 and 16 (RFC 8415 §21.15, §21.16): a length of two bytes before each. What is cut
/// off is left out.
pub(crate) fn strings(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (text, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        bytes = rest;
        Some(text)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn solicit() -> Message {
        let mut options = Options::default();
        options.push(code::CLIENT_ID, [0, 3, 0, 1, 2, 0, 0, 0, 0, 1]);
        Message { kind: MessageType::SOLICIT, transaction: [1, 2, 3], options }
    }

    /// As relays forward it: kind 12 instead of 13, and hops counted from the client.
    fn forwarded(message: Message, relays: usize) -> Vec<u8> {
        let mut bytes = Packet { relays: Vec::new(), message }.encode();
        for hops in 0..relays {
            let mut relay = vec![12, hops as u8];
            relay.extend_from_slice(&[0x20; 16]);
            relay.extend_from_slice(&[0xfe; 16]);
            relay.extend_from_slice(&[0, 18, 0, 2, b'g', b'e', 0, 9]);
            relay.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
            relay.extend_from_slice(&bytes);
            bytes = relay;
        }
        bytes
    }

    #[test]
    fn relays_are_unwrapped_and_wrapped_again() {
        for relays in 0..=RELAYS_MAX {
            let bytes = forwarded(solicit(), relays);
            let packet = Packet::decode(&bytes).unwrap();
            assert_eq!((packet.relays.len(), &packet.message), (relays, &solicit()));
            // The same bytes but for the kind of each wrapping, if option 9 was the last.
            let mut back = packet.encode();
            let mut at = 0;
            for _ in 0..relays {
                assert_eq!(back[at], 13);
                back[at] = 12;
                at += 34 + 6 + 4;
            }
            assert_eq!(back, bytes);
        }
        assert_eq!(Packet::decode(&forwarded(solicit(), RELAYS_MAX + 1)), Err(DecodeError::ManyRelays));
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        assert_eq!(Packet::decode(&[1, 2, 3]), Err(DecodeError::Short(3)));
        assert_eq!(Packet::decode(&[0; 5000]), Err(DecodeError::Long(5000)));
        assert_eq!(Packet::decode(&[1, 2, 3, 4, 0, 1]), Err(DecodeError::NoOption { at: 4 }));
        let cut = [1, 2, 3, 4, 0, 59, 0, 9, 1];
        assert_eq!(Packet::decode(&cut), Err(DecodeError::Truncated { code: 59, at: 4 }));
        assert_eq!(Packet::decode(&[12; 20]), Err(DecodeError::Short(20)));
        assert_eq!(Packet::decode(&[12; 34]), Err(DecodeError::NothingRelayed));
        assert_eq!(Packet::decode(&[13; 38]), Err(DecodeError::RelayReply));
    }

    #[test]
    fn counted_strings() {
        let read = |bytes| strings(bytes).map(<[u8]>::to_vec).collect::<Vec<_>>();
        assert_eq!(read(&b"\0\x04iPXE\0\x01x"[..]), [&b"iPXE"[..], b"x"]);
        assert_eq!(read(&b"\0\x04iPXE\0\x09x"[..]), [b"iPXE"]);
        assert!(read(b"\0").is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300), is_relay: bool) {
            let mut bytes = bytes;
            if is_relay && !bytes.is_empty() {
                bytes[0] = 12;
            }
            if let Ok(packet) = Packet::decode(&bytes) {
                prop_assert!(packet.encode().len() <= bytes.len());
            }
        }
    }
}
