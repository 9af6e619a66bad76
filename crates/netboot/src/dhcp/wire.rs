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

use std::net::Ipv4Addr;

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

/// Option codes, by the names of RFC 2132 and later.
#[expect(
    missing_docs,
    reason = "the names are the documentation; the RFC that defines each stands behind it"
)]
pub mod code {
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const HOST_NAME: u8 = 12;
    pub const DOMAIN_NAME: u8 = 15;
    pub const ROOT_PATH: u8 = 17;
    pub const MTU: u8 = 26;
    pub const BROADCAST: u8 = 28;
    pub const NTP: u8 = 42;
    pub const VENDOR_SPECIFIC: u8 = 43;
    pub const REQUESTED_ADDRESS: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const OVERLOAD: u8 = 52;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER_ID: u8 = 54;
    pub const PARAMETER_LIST: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const MESSAGE_SIZE_MAX: u8 = 57;
    pub const RENEWAL_TIME: u8 = 58;
    pub const REBINDING_TIME: u8 = 59;
    pub const VENDOR_CLASS: u8 = 60;
    pub const CLIENT_ID: u8 = 61;
    pub const TFTP_SERVER: u8 = 66;
    pub const BOOT_FILE: u8 = 67;
    pub const USER_CLASS: u8 = 77; // RFC 3004
    pub const RELAY_AGENT: u8 = 82; // RFC 3046
    pub const LEASE_QUERY_LAST: u8 = 91; // RFC 4388 client-last-transaction-time
    pub const ASSOCIATED_IP: u8 = 92; // RFC 4388
    pub const CLIENT_ARCH: u8 = 93; // RFC 4578
    pub const CLIENT_NDI: u8 = 94; // RFC 4578
    pub const CLIENT_UUID: u8 = 97; // RFC 4578
    pub const SUBNET_SELECTION: u8 = 118; // RFC 3011
    pub const DOMAIN_SEARCH: u8 = 119; // RFC 3397
    pub const CLASSLESS_ROUTES: u8 = 121; // RFC 3442
    pub const IPXE: u8 = 175; // Etherboot's encapsulated options, ipxe src/include/ipxe/dhcp.h
    pub const IPXE_INITIATOR: u8 = 203; // iSCSI initiator name
    pub const END: u8 = 255;
}

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

/// Options in the order in which they came or are to be sent, each code once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(Vec<(u8, Vec<u8>)>);

impl Options {
    /// The value of an option.
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| *known == code).map(|(_, value)| value.as_slice())
    }

    /// Whether the option is there.
    pub fn has(&self, code: u8) -> bool {
        self.get(code).is_some()
    }

    /// An option's value, if it has exactly this length.
    pub(crate) fn array<const N: usize>(&self, code: u8) -> Option<[u8; N]> {
        self.get(code)?.try_into().ok()
    }

    /// An option that holds one address.
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        self.array::<4>(code).map(Ipv4Addr::from)
    }

    /// Sets an option; it goes to the end unless it was there.
    pub fn set(&mut self, code: u8, value: impl Into<Vec<u8>>) {
        match self.0.iter_mut().find(|(known, _)| *known == code) {
            Some((_, old)) => *old = value.into(),
            None => self.0.push((code, value.into())),
        }
    }

    /// Takes an option out.
    pub fn remove(&mut self, code: u8) -> Option<Vec<u8>> {
        let at = self.0.iter().position(|(known, _)| *known == code)?;
        Some(self.0.remove(at).1)
    }

    /// Each option, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.0.iter().map(|(code, value)| (*code, value.as_slice()))
    }

    /// Joins what belongs to one option (RFC 3396 §7).
    fn append(&mut self, code: u8, part: &[u8]) {
        match self.0.iter_mut().find(|(known, _)| *known == code) {
            Some((_, value)) => value.extend_from_slice(part),
            None => self.0.push((code, part.to_vec())),
        }
    }
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message() -> Message {
        let mut message = Message::request(MessageType::DISCOVER, Mac([2, 0, 0, 0, 0, 1]), 7);
        message.options.set(code::VENDOR_CLASS, *b"PXEClient");
        message
    }

    #[test]
    fn long_options_are_split_and_joined() {
        let mut long = message();
        long.options.set(code::BOOT_FILE, vec![b'x'; 600]);
        let bytes = long.encode(SIZE_MAX);
        assert_eq!(Message::decode(&bytes), Ok(long));
    }

    #[test]
    fn what_does_not_fit_goes_into_file_and_sname() {
        let mut large = message();
        large.options.set(code::BOOT_FILE, vec![b'u'; 230]);
        large.options.set(code::DOMAIN_NAME, vec![b'd'; 100]);
        large.options.set(code::ROOT_PATH, vec![b'r'; 50]);
        let bytes = large.encode(SIZE_MIN);
        assert!(bytes.len() <= SIZE_MIN);
        let read = Message::decode(&bytes).unwrap();
        for (code, value) in large.options.iter() {
            assert_eq!(read.options.get(code), Some(value), "{code}");
        }
        // A field that is in use is left alone, and then the last option is what gives way.
        large.file = b"undionly.kpxe".to_vec();
        large.sname = b"boot".to_vec();
        let read = Message::decode(&large.encode(SIZE_MIN)).unwrap();
        assert_eq!((read.file.as_slice(), read.sname.as_slice()), (&b"undionly.kpxe"[..], &b"boot"[..]));
        assert!(read.options.has(code::BOOT_FILE) && !read.options.has(code::DOMAIN_NAME));
    }

    #[test]
    fn nonsense_is_refused_with_its_place() {
        let good = message().encode(SIZE_MIN);
        assert_eq!(Message::decode(&good[..239]), Err(DecodeError::Short(239)));
        assert_eq!(Message::decode(&vec![0; 5000]), Err(DecodeError::Long(5000)));
        let mut bad = good.clone();
        bad[236] = 0;
        assert_eq!(Message::decode(&bad), Err(DecodeError::NoCookie));
        let mut bad = good.clone();
        bad[2] = 17;
        assert_eq!(Message::decode(&bad), Err(DecodeError::HardwareLength(17)));
        let mut bad = good[..246].to_vec();
        bad[243] = 67;
        bad[244] = 9;
        assert_eq!(Message::decode(&bad), Err(DecodeError::Truncated { code: 67, at: 243 }));
    }

    #[test]
    fn sizes_follow_option_57() {
        let mut message = message();
        assert_eq!(message.reply_size_max(), 548);
        for (announced, size) in [(100_u16, 548), (576, 548), (1472, 1444), (65280, 1472)] {
            message.options.set(code::MESSAGE_SIZE_MAX, announced.to_be_bytes());
            assert_eq!(message.reply_size_max(), size, "{announced}");
        }
    }

    proptest! {
        /// The rule: whatever else there is, and however little room, what an answer is none without is in it, and what the
        /// relay needs is last in the message proper, where relays look for it.
        #[test]
        fn what_must_not_be_lost_has_its_room_first(
            circuit in 1..250_usize,
            url in 0..250_usize,
            others in prop::collection::btree_map(
                prop_oneof![Just(3_u8), Just(6), Just(12), Just(15), Just(43), Just(60), Just(97), Just(119), Just(61)],
                prop::collection::vec(any::<u8>(), 0..120),
                0..8,
            ),
            size_max in prop_oneof![Just(0), Just(548), 548..1473_usize],
            is_first in any::<bool>(),
        ) {
            let mut request = Message::request(MessageType::DISCOVER, Mac([2; 6]), 1);
            request.giaddr = Ipv4Addr::new(10, 0, 0, 1);
            let mut reply = Message::reply_to(&request, MessageType::OFFER);
            let set_url = |reply: &mut Message| {
                if url > 0 {
                    reply.options.set(code::BOOT_FILE, vec![b'u'; url]);
                }
            };
            if is_first {
                set_url(&mut reply);
            }
            others.iter().for_each(|(code, value)| reply.options.set(*code, value.clone()));
            reply.options.set(code::SERVER_ID, [10, 0, 0, 1]);
            reply.options.set(code::LEASE_TIME, [0, 0, 1, 0]);
            reply.options.set(code::SUBNET_MASK, [255, 255, 255, 0]);
            set_url(&mut reply);
            reply.options.set(code::RELAY_AGENT, vec![7; circuit]);
            let bytes = reply.encode(size_max);
            prop_assert!(bytes.len() <= size_max.max(548));
            let read = Message::decode(&bytes).unwrap();
            for code in ESSENTIAL {
                prop_assert_eq!(read.options.get(code), reply.options.get(code), "option {}", code);
            }
            for (code, value) in read.options.iter() {
                prop_assert_eq!(reply.options.get(code), Some(value), "option {} is whole or left out", code);
            }
            let mut proper = Options::default();
            decode_options(&bytes, HEADER + 4..bytes.len(), &mut proper).unwrap();
            prop_assert_eq!(proper.iter().last().map(|(code, _)| code), Some(code::RELAY_AGENT));
            // What there is room for is there.
            if is_first && url > 0 && url + circuit <= 250 {
                prop_assert!(read.options.has(code::BOOT_FILE));
            }
        }
    }

    /// The relay's option is written last. That a message had it before another one is no difference.
    #[test]
    fn the_place_of_the_relays_option_is_no_difference() {
        let mut sent = Message::request(MessageType::REQUEST, Mac([2, 0, 0, 0, 0, 9]), 0);
        sent.options.set(code::RELAY_AGENT, []);
        sent.options.set(83, []);
        assert_eq!(Message::decode(&sent.encode(SIZE_MAX)), Ok(sent));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            let _ = Message::decode(&bytes);
            let mut framed = message().encode(SIZE_MIN);
            framed.truncate(240);
            framed.extend(&bytes);
            let _ = Message::decode(&framed);
        }

        #[test]
        fn what_is_read_is_written_the_same(
            options in proptest::collection::btree_map(1_u8..255, proptest::collection::vec(any::<u8>(), 0..40), 0..12),
            xid: u32, flags: u16, file in "[a-z]{0,20}",
        ) {
            let mut sent = Message::request(MessageType::REQUEST, Mac([2, 0, 0, 0, 0, 9]), xid);
            sent.flags = flags;
            sent.file = file.into_bytes();
            for (code, value) in options.into_iter().filter(|(code, _)| *code != code::OVERLOAD && *code != code::MESSAGE_TYPE) {
                sent.options.set(code, value);
            }
            prop_assert_eq!(Message::decode(&sent.encode(SIZE_MAX)), Ok(sent));
        }
    }
}
