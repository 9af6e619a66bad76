//! DHCP messages, bytes ⇄ [`Message`] (RFC 2131 §2, RFC 2132, RFC 3396 for long options).
//!
//! ```text
//!  0        1        2        3
//!  op       htype    hlen     hops
//!  xid
//!  secs              flags (bit 15: broadcast)
//!  ciaddr            client's own address
//!  yiaddr            "your" address
//!  siaddr            next server
//!  giaddr            relay
//!  chaddr (16)
//!  sname (64)        a name, or more options (option 52)
//!  file (128)        a boot file, or more options (option 52)
//!  99 130 83 99      magic cookie, then options: code, length, value; 0 pads, 255 ends
//! ```
//!
//! Decoding is total: options that occur several times are joined (RFC 3396 §7), options in `file` and `sname` are read
//! where option 52 says so, and a message that stops in the middle of an option is refused with the place. Encoding
//! never exceeds the size it is given: it moves into `file` and `sname` what does not fit, and drops from the end what
//! fits nowhere.

pub mod code;
mod options;

use std::net::Ipv4Addr;

pub use options::Options;

use crate::device::Mac;

/// Bytes before the options.
const HEADER: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// A message of RFC 1542 §2.1 has at least this many bytes; some relays and ROMs drop shorter ones.
const LENGTH_MIN: usize = 300;
/// What every client must take (RFC 2132 §9.10): 576 bytes of IP datagram, less the headers of IP and UDP.
pub(crate) const SIZE_MIN: usize = 576 - 28;
/// More than fits an Ethernet frame is never sent: ROMs do not reassemble.
pub const SIZE_MAX: usize = 1500 - 28;
/// No client sends more than this; what is longer is noise.
pub(crate) const RECEIVE_MAX: usize = 4096;
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;

/// The kind of a message: option 53. Unknown numbers survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageType(pub u8);

#[expect(missing_docs, reason = "the names of RFC 2132 §9.6 and RFC 4388 §6.1")]
impl MessageType {
    pub const DISCOVER: Self = Self(1);
    pub const OFFER: Self = Self(2);
    pub const REQUEST: Self = Self(3);
    pub const DECLINE: Self = Self(4);
    pub const ACK: Self = Self(5);
    pub const NAK: Self = Self(6);
    pub const RELEASE: Self = Self(7);
    pub const INFORM: Self = Self(8);
    pub const LEASE_QUERY: Self = Self(10);
    pub const LEASE_UNASSIGNED: Self = Self(11);
    pub const LEASE_UNKNOWN: Self = Self(12);
    pub const LEASE_ACTIVE: Self = Self(13);
}

/// A DHCP message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// 1 from a client, 2 from a server.
    pub op: u8,
    /// Hardware type: 1 Ethernet, 6 IEEE 802, 32 InfiniBand.
    pub(crate) htype: u8,
    /// Bytes of `chaddr` that count; at most 16.
    pub(crate) hlen: u8,
    /// Relays passed.
    pub hops: u8,
    /// The client's number for the exchange.
    pub xid: u32,
    /// Seconds since the client began; iPXE counts packets instead.
    pub(crate) secs: u16,
    /// Bit 15: the client cannot take unicast yet.
    pub flags: u16,
    /// The client's own address, if it can answer ARP for it.
    pub(crate) ciaddr: Ipv4Addr,
    /// The address that the client is given.
    pub yiaddr: Ipv4Addr,
    /// The next server: where the boot file is.
    pub siaddr: Ipv4Addr,
    /// The relay.
    pub giaddr: Ipv4Addr,
    /// Hardware address, padded with zeros.
    pub chaddr: [u8; 16],
    /// Server name field, without what follows its first NUL; empty where it holds options.
    pub sname: Vec<u8>,
    /// Boot file field, without what follows its first NUL; empty where it holds options.
    pub file: Vec<u8>,
    /// All options, those in `file` and `sname` among them. Option 52 itself is not kept.
    pub options: Options,
}

/// The broadcast flag.
pub(crate) const BROADCAST: u16 = 0x8000;

/// Why bytes are not a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Shorter than a header with its cookie.
    #[error("{0} bytes are no DHCP message; it has at least 240")]
    Short(usize),
    /// Longer than anything that a client sends.
    #[error("{0} bytes are more than a DHCP message has")]
    Long(usize),
    /// BOOTP without options, or something else.
    #[error("no DHCP magic cookie at byte 236")]
    NoCookie,
    /// `hlen` above 16.
    #[error("field hlen at byte 2: a hardware address of {0} bytes, where 16 fit")]
    HardwareLength(u8),
    /// An option that goes on past its field's end.
    #[error("option {code} at byte {at} goes on past the end of its field")]
    Truncated {
        /// Its code.
        code: u8,
        /// Where it begins.
        at: usize,
    },
}

impl Message {
    /// An empty answer to `request` (RFC 2131 §4.3.1, table 3): xid, flags, giaddr and chaddr are the request's.
    pub fn reply_to(request: &Self, kind: MessageType) -> Self {
        let mut options = Options::default();
        options.set(code::MESSAGE_TYPE, [kind.0]);
        Self {
            op: 2,
            htype: request.htype,
            hlen: request.hlen,
            hops: 0,
            xid: request.xid,
            secs: 0,
            flags: request.flags,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: request.giaddr,
            chaddr: request.chaddr,
            sname: Vec::new(),
            file: Vec::new(),
            options,
        }
    }

    /// A client's message, for tests and for the doctor.
    pub fn request(kind: MessageType, mac: Mac, xid: u32) -> Self {
        let mut options = Options::default();
        options.set(code::MESSAGE_TYPE, [kind.0]);
        let mut chaddr = [0; 16];
        chaddr[..6].copy_from_slice(&mac.0);
        Self {
            op: 1,
            htype: 1,
            hlen: 6,
            hops: 0,
            xid,
            secs: 0,
            flags: 0,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            chaddr,
            sname: Vec::new(),
            file: Vec::new(),
            options,
        }
    }

    /// Its kind; none for plain BOOTP.
    pub fn kind(&self) -> Option<MessageType> {
        self.options.array::<1>(code::MESSAGE_TYPE).map(|[kind]| MessageType(kind))
    }

    /// The client's Ethernet address; none for other hardware.
    pub fn mac(&self) -> Option<Mac> {
        let [a, b, c, d, e, f, ..] = self.chaddr;
        (matches!(self.htype, 1 | 6) && self.hlen == 6).then_some(Mac([a, b, c, d, e, f]))
    }

    /// Whether the client asked for broadcast answers.
    pub(crate) fn wants_broadcast(&self) -> bool {
        self.flags & BROADCAST != 0
    }

    /// The most bytes of UDP payload that the client takes (option 57, RFC 2132 §9.10, which counts the headers of IP
    /// and UDP).
    pub fn reply_size_max(&self) -> usize {
        let announced = self.options.array::<2>(code::MESSAGE_SIZE_MAX).map(u16::from_be_bytes);
        announced.map_or(SIZE_MIN, |size| usize::from(size).saturating_sub(28)).clamp(SIZE_MIN, SIZE_MAX)
    }

    /// Reads a message.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() < HEADER + COOKIE.len() {
            return Err(DecodeError::Short(bytes.len()));
        }
        if bytes.len() > RECEIVE_MAX {
            return Err(DecodeError::Long(bytes.len()));
        }
        if bytes[HEADER..HEADER + 4] != COOKIE {
            return Err(DecodeError::NoCookie);
        }
        let [op, htype, hlen, hops] = array(bytes, 0);
        if hlen > 16 {
            return Err(DecodeError::HardwareLength(hlen));
        }
        let mut options = Options::default();
        decode_options(bytes, HEADER + 4..bytes.len(), &mut options)?;
        // RFC 2132 §9.3; RFC 3396 §5 says the order: options, file, sname.
        let overload = options.remove(code::OVERLOAD).and_then(|value| value.first().copied()).unwrap_or(0);
        for (bit, field) in [(1, FILE), (2, SNAME)] {
            if overload & bit != 0 {
                decode_options(bytes, field, &mut options)?;
            }
        }
        options.remove(code::OVERLOAD);
        let text = |bit, field: std::ops::Range<usize>| {
            let field = if overload & bit != 0 { &[][..] } else { &bytes[field] };
            field.split(|byte| *byte == 0).next().unwrap_or(&[]).to_vec()
        };
        let address = |at| Ipv4Addr::from(array::<4>(bytes, at));
        Ok(Self {
            op,
            htype,
            hlen,
            hops,
            xid: u32::from_be_bytes(array(bytes, 4)),
            secs: u16::from_be_bytes(array(bytes, 8)),
            flags: u16::from_be_bytes(array(bytes, 10)),
            ciaddr: address(12),
            yiaddr: address(16),
            siaddr: address(20),
            giaddr: address(24),
            chaddr: array(bytes, 28),
            sname: text(2, SNAME),
            file: text(1, FILE),
            options,
        })
    }

    /// Writes the message in at most `size_max` bytes (at least [`SIZE_MIN`] is used). Options that do not fit behind
    /// the header go into `file` and `sname` where those are empty; what fits nowhere is left out from the end of the
    /// list, so put first what matters most. What an answer is none without ([`ESSENTIAL`]) has its room before all
    /// others, wherever it stands in the list; the relay's option comes last in the message proper (RFC 3046 §2.1, §2.2).
    pub fn encode(&self, size_max: usize) -> Vec<u8> {
        let size_max = size_max.max(SIZE_MIN);
        let mut bytes = Vec::with_capacity(size_max);
        bytes.extend_from_slice(&[self.op, self.htype, self.hlen.min(16), self.hops]);
        bytes.extend_from_slice(&self.xid.to_be_bytes());
        bytes.extend_from_slice(&self.secs.to_be_bytes());
        bytes.extend_from_slice(&self.flags.to_be_bytes());
        for address in [self.ciaddr, self.yiaddr, self.siaddr, self.giaddr] {
            bytes.extend_from_slice(&address.octets());
        }
        bytes.extend_from_slice(&self.chaddr);
        bytes.resize(HEADER, 0);
        fill(&mut bytes, SNAME, &self.sname);
        fill(&mut bytes, FILE, &self.file);
        bytes.extend_from_slice(&COOKIE);

        // One byte for the end mark, one of padding before it: EDK2 writes a NUL behind the boot file's value.
        let room = size_max - bytes.len() - 2;
        let mut areas = vec![Area::new(room)];
        let total: usize = self.options.iter().map(|(_, value)| Area::length_of(value)).sum();
        if total > room {
            areas[0].limit -= 3;
            if self.file.is_empty() {
                areas.push(Area::new(FILE.len() - 1));
            }
            if self.sname.is_empty() {
                areas.push(Area::new(SNAME.len() - 1));
            }
        }
        let is_essential = |code: u8| total > room && ESSENTIAL.contains(&code);
        // Each takes its room away from the others; one that is too long for all of it is left out.
        let mut reserved: Vec<u8> = Vec::new();
        for (code, value) in ESSENTIAL.iter().filter_map(|code| Some((*code, self.options.get(*code)?))) {
            if is_essential(code) && Area::length_of(value) <= areas[0].limit {
                areas[0].limit -= Area::length_of(value);
                reserved.push(code);
            }
        }
        // A long option may only be split in the order in which the fields are read, so it stays in one area. What is too
        // long for the fields has the message proper before what could go into them.
        let is_large = |value: &[u8]| total > room && Area::length_of(value) >= FILE.len();
        let mut placed: Vec<(usize, u8)> = Vec::new();
        let others = || self.options.iter().filter(|(code, _)| !is_essential(*code));
        let large = others().filter(|(_, value)| is_large(value));
        for (code, value) in large.chain(others().filter(|(_, value)| !is_large(value))) {
            if let Some(at) = areas.iter().position(|area| area.fits(value)) {
                areas[at].used += Area::length_of(value);
                placed.push((at, code));
            }
        }
        for (code, value) in self.options.iter() {
            let at = placed.iter().find(|(_, known)| *known == code).map(|(at, _)| *at);
            let at = at.or_else(|| reserved.contains(&code).then_some(0));
            let waits = total > room && code == code::RELAY_AGENT;
            if let Some(at) = at.filter(|at| *at > 0 || !waits) {
                areas[at].push(code, value);
            }
        }
        let is_relayed = reserved.contains(&code::RELAY_AGENT);
        if let Some(value) = self.options.get(code::RELAY_AGENT).filter(|_| is_relayed) {
            areas[0].push(code::RELAY_AGENT, value);
        }
        let mut used = 0;
        let mut areas = areas.into_iter();
        let main = areas.next().map(|area| area.bytes).unwrap_or_default();
        let mut fields = Vec::new();
        if self.file.is_empty() && total > room {
            fields.push((1, FILE));
        }
        if self.sname.is_empty() && total > room {
            fields.push((2, SNAME));
        }
        for ((bit, field), area) in fields.into_iter().zip(areas) {
            if !area.bytes.is_empty() {
                let mut value = area.bytes;
                value.push(code::END);
                fill(&mut bytes, field, &value);
                used |= bit;
            }
        }
        if used != 0 {
            bytes.extend_from_slice(&[code::OVERLOAD, 1, used]);
        }
        bytes.extend_from_slice(&main);
        bytes.extend_from_slice(&[code::PAD, code::END]);
        if bytes.len() < LENGTH_MIN {
            bytes.resize(LENGTH_MIN, 0);
        }
        bytes
    }
}

/// Without these an answer is none, or gets lost on its way: what it is, who says it, for how long, how large the network
/// is, and what the relay needs back.
const ESSENTIAL: [u8; 5] =
    [code::MESSAGE_TYPE, code::SERVER_ID, code::LEASE_TIME, code::SUBNET_MASK, code::RELAY_AGENT];

/// Where options are put.
struct Area {
    /// Bytes for what is not reserved.
    limit: usize,
    /// Of these, what is given away.
    used: usize,
    bytes: Vec<u8>,
}

impl Area {
    fn new(limit: usize) -> Self {
        Self { limit, used: 0, bytes: Vec::new() }
    }

    /// Bytes that an option takes, split into parts of at most 255 (RFC 3396 §5).
    fn length_of(value: &[u8]) -> usize {
        value.len() + 2 * value.len().div_ceil(255).max(1)
    }

    fn fits(&self, value: &[u8]) -> bool {
        self.used + Self::length_of(value) <= self.limit
    }

    fn push(&mut self, code: u8, value: &[u8]) {
        if value.is_empty() {
            self.bytes.extend_from_slice(&[code, 0]);
        }
        for part in value.chunks(255) {
            self.bytes.extend_from_slice(&[code, part.len() as u8]);
            self.bytes.extend_from_slice(part);
        }
    }
}

fn decode_options(
    bytes: &[u8],
    field: std::ops::Range<usize>,
    options: &mut Options,
) -> Result<(), DecodeError> {
    let mut at = field.start;
    while at < field.end {
        let code = bytes[at];
        match code {
            code::PAD => at += 1,
            // Leftover bytes behind the end mark mean nothing (RFC 2132 §3.2).
            code::END => break,
            _ => {
                let truncated = DecodeError::Truncated { code, at };
                let length = bytes[..field.end].get(at + 1).copied().map(usize::from).ok_or(truncated)?;
                let value = bytes[..field.end].get(at + 2..at + 2 + length).ok_or(truncated)?;
                options.append(code, value);
                at += 2 + length;
            }
        }
    }
    Ok(())
}

/// Copies as much of a value as leaves room for a NUL behind it, or all of it where it fills the field.
fn fill(bytes: &mut [u8], field: std::ops::Range<usize>, value: &[u8]) {
    let length = value.len().min(field.len());
    bytes[field.start..field.start + length].copy_from_slice(&value[..length]);
}

/// Bytes whose presence the caller has checked.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut found = [0; N];
    found.copy_from_slice(&bytes[at..at + N]);
    found
}

#[cfg(test)]
mod tests;
