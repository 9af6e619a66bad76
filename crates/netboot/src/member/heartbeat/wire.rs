//! The heartbeat datagram, layout in `docs/heartbeat.md`.
//!
//! ```text
//! 0        8         16         24      32     40        48      49      50       52     54      56     58
//! +--------+---------+----------+-------+------+---------+-------+-------+--------+------+-------+------+
//! | magic  | boot id | sequence | nonce | echo | sent at | state | flags | weight | http | https | tftp |
//! +--------+---------+----------+-------+------+---------+-------+-------+--------+------+-------+------+
//! 58        60            76       92     93           94
//! +---------+-------------+--------+------+------------+------+------------+--------------------+
//! | port    | address     | digest | name | https name | name | https name | keyed BLAKE3 (32)  |  little endian
//! |         | (IPv6)      |        | len. | length     |      |            | of all before      |
//! +---------+-------------+--------+------+------------+------+------------+--------------------+
//! ```

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use super::super::NAME_MAX;

/// Longest name in a certificate: a host name (RFC 1035, 2.3.4).
pub(crate) const HTTPS_NAME_MAX: usize = 253;

/// Longest datagram.
pub const DATAGRAM_MAX: usize = HEAD_LENGTH + NAME_MAX + HTTPS_NAME_MAX + MAC_LENGTH;

/// The last byte is the version of the layout.
const MAGIC: [u8; 8] = *b"GWBEAT\0\x01";
const HEAD_LENGTH: usize = 94;
const MAC_LENGTH: usize = 32;

/// The secret that the members of one group share.
#[derive(Clone)]
pub struct Key([u8; 32]);

impl Key {
    /// From the group's shared secret, of any length; it is only as hard to guess as that. What is derived authenticates heartbeats and nothing else, so that the same
    /// secret can also sign tokens.
    pub fn new(secret: &[u8]) -> Self {
        Self(blake3::derive_key("goldwire 2026-11 boot group heartbeat", secret))
    }

    fn authenticate(&self, bytes: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, bytes)
    }

    /// A number that nobody without the key can foretell.
    pub(super) fn number(&self, seed: u64, name: &str, count: u64) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"nonce\0").update(&seed.to_le_bytes()).update(&count.to_le_bytes());
        let mut number = [0; 8];
        hasher.update(name.as_bytes()).finalize_xof().fill(&mut number);
        // 0 means that there is none.
        u64::from_le_bytes(number).max(1)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// What a member says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It serves.
    Serving,
    /// It serves whom it serves, and wants nobody new.
    Draining,
    /// It stops now.
    Leaving,
}

/// What a member announces: enough to be given to devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Its name in the group.
    pub name: String,
    /// Where devices reach it.
    pub address: IpAddr,
    /// Port of its HTTP server.
    pub http_port: u16,
    /// Port of its HTTPS server, if it has one.
    pub https_port: Option<u16>,
    /// The name in its certificate, if it has one.
    pub https_name: Option<String>,
    /// Port of its TFTP server.
    pub tftp_port: u16,
    /// UDP port on which it hears heartbeats.
    pub heartbeat_port: u16,
    /// Its share of the clients; at least 1.
    pub weight: u16,
    /// What it says of itself.
    pub condition: Condition,
    /// Digest of its boot tree and configuration. Members that differ give different answers.
    pub digest: [u8; 16],
}

impl Announcement {
    /// Whether it survives the wire: names that are too long, or not plain, do not.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), DecodeError> {
        let key = Key::new(&[0; 32]);
        let announcement = self.clone();
        let beat = Beat { boot_id: 1, sequence: 1, nonce: 0, echo: 0, sent_at: 0, announcement };
        Beat::decode(&beat.encode(&key), &key).map(|_| ())
    }
}

/// One heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Drawn when the sender started; another one is another life.
    pub(crate) boot_id: u64,
    /// Rises with each datagram of a life.
    pub(crate) sequence: u64,
    /// What the receiver shall echo; 0 in an announcement to everybody.
    pub(crate) nonce: u64,
    /// The receiver's nonce, if the sender knows it: proof that the sender lives now. 0 if not.
    pub echo: u64,
    /// The sender's clock, in milliseconds since 1970.
    pub(crate) sent_at: u64,
    /// Who it is.
    pub announcement: Announcement,
}

/// Why bytes are no heartbeat of this group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Not a heartbeat at all, or of another version.
    #[error("not a heartbeat of this version")]
    Magic,
    /// Cut off or too long.
    #[error("a heartbeat of {0} bytes")]
    Length(usize),
    /// Another key, or forged.
    #[error("the key is not this group's")]
    Key,
    /// A field has a value that it cannot have, at this offset; only a faulty member of the group can send it.
    #[error("wrong {field} at byte {offset}")]
    Field {
        /// Which one.
        field: &'static str,
        /// Where it starts.
        offset: usize,
    },
}

impl Beat {
    /// The datagram.
    pub fn encode(&self, key: &Key) -> Vec<u8> {
        let said = &self.announcement;
        let https_name = said.https_name.as_deref().unwrap_or("");
        let condition = match said.condition {
            Condition::Serving => 0,
            Condition::Draining => 1,
            Condition::Leaving => 2,
        };
        let mut bytes = Vec::with_capacity(DATAGRAM_MAX);
        bytes.extend(MAGIC);
        for number in [self.boot_id, self.sequence, self.nonce, self.echo, self.sent_at] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend([condition, 0]);
        let https_port = said.https_port.unwrap_or(0);
        for number in [said.weight, said.http_port, https_port, said.tftp_port, said.heartbeat_port] {
            bytes.extend(number.to_le_bytes());
        }
        let address = match said.address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        bytes.extend(address.octets());
        bytes.extend(said.digest);
        // `Announcement::check` made sure of the lengths before the first heartbeat was sent.
        bytes.extend([said.name.len() as u8, https_name.len() as u8]);
        bytes.extend(said.name.as_bytes());
        bytes.extend(https_name.as_bytes());
        let mac = key.authenticate(&bytes);
        bytes.extend(mac.as_bytes());
        bytes
    }

    /// Reads a datagram. Nothing of it is looked at before the key is proven, but that it starts as ours do.
    ///
    /// # Errors
    /// Whatever makes it no heartbeat of this group.
    pub fn decode(bytes: &[u8], key: &Key) -> Result<Self, DecodeError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(DecodeError::Magic);
        }
        let wrong_length = DecodeError::Length(bytes.len());
        if bytes.len() < HEAD_LENGTH + MAC_LENGTH || bytes.len() > DATAGRAM_MAX {
            return Err(wrong_length);
        }
        let (signed, mac) = bytes.split_at(bytes.len() - MAC_LENGTH);
        let mac: [u8; MAC_LENGTH] = mac.try_into().map_err(|_| wrong_length)?;
        // The comparison of two `Hash`es takes the same time wherever they differ.
        if key.authenticate(signed) != blake3::Hash::from_bytes(mac) {
            return Err(DecodeError::Key);
        }
        let (head, names) = signed.split_at(HEAD_LENGTH);
        let name_length = usize::from(head[92]);
        let https_name = names.get(name_length..).filter(|rest| rest.len() == usize::from(head[93]));
        let https_name = text(https_name.ok_or(wrong_length)?, "https name", HEAD_LENGTH + name_length)?;
        let name = text(&names[..name_length], "name", HEAD_LENGTH)?;
        let field = |field, offset| DecodeError::Field { field, offset };
        if name.is_empty() || name.len() > NAME_MAX {
            return Err(field("name length", 92));
        }
        if https_name.len() > HTTPS_NAME_MAX {
            return Err(field("https name length", 93));
        }
        let condition = match head[48] {
            0 => Condition::Serving,
            1 => Condition::Draining,
            2 => Condition::Leaving,
            _ => return Err(field("state", 48)),
        };
        if head[49] != 0 {
            return Err(field("flags", 49));
        }
        let weight = short(head, 50);
        if weight == 0 {
            return Err(field("weight", 50));
        }
        Ok(Self {
            boot_id: long(head, 8),
            sequence: long(head, 16),
            nonce: long(head, 24),
            echo: long(head, 32),
            sent_at: long(head, 40),
            announcement: Announcement {
                name,
                address: Ipv6Addr::from(array::<16>(head, 60)).to_canonical(),
                http_port: short(head, 52),
                https_port: Some(short(head, 54)).filter(|port| *port != 0),
                https_name: Some(https_name).filter(|name| !name.is_empty()),
                tftp_port: short(head, 56),
                heartbeat_port: short(head, 58),
                weight,
                condition,
                digest: array(head, 76),
            },
        })
    }
}

/// A name that is safe to stand in a log and in a URL.
fn text(bytes: &[u8], field: &'static str, offset: usize) -> Result<String, DecodeError> {
    let is_plain = bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte));
    match std::str::from_utf8(bytes) {
        Ok(text) if is_plain => Ok(text.to_owned()),
        _ => Err(DecodeError::Field { field, offset }),
    }
}

/// `N` bytes of a head whose length was checked.
fn array<const N: usize>(head: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&head[offset..offset + N]);
    bytes
}

fn short(head: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array(head, offset))
}

fn long(head: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array(head, offset))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn beat() -> Beat {
        Beat {
            boot_id: 0x0102_0304_0506_0708,
            sequence: 9,
            nonce: 10,
            echo: 11,
            sent_at: 1_700_000_000_000,
            announcement: Announcement {
                name: "boot1".into(),
                address: "10.0.0.1".parse().unwrap(),
                http_port: 80,
                https_port: Some(443),
                https_name: Some("boot1.example".into()),
                tftp_port: 69,
                heartbeat_port: 6970,
                weight: 3,
                condition: Condition::Draining,
                digest: [0xd1; 16],
            },
        }
    }

    #[test]
    fn the_layout_is_the_documents() {
        let bytes = beat().encode(&Key::new(&[7; 32]));
        let expected = concat!(
            "475742454154",
            "0001", // magic
            "0807060504030201",
            "0900000000000000", // boot id, sequence
            "0a00000000000000",
            "0b00000000000000", // nonce, echo
            "0068e5cf8b010000", // sent at
            "01",
            "00",
            "0300",
            "5000",
            "bb01",
            "4500",
            "3a1b",                             // state, flags, weight, ports
            "00000000000000000000ffff0a000001", // address
            "d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1d1", // digest
            "05",
            "0d",
            "626f6f7431",
            "626f6f74312e6578616d706c65"
        );
        let (signed, mac) = bytes.split_at(bytes.len() - 32);
        assert_eq!(goldwire_stdx::to_hex(signed), expected);
        assert_eq!(mac, Key::new(&[7; 32]).authenticate(signed).as_bytes());
    }

    #[test]
    fn an_announcement_that_does_not_survive_the_wire_is_known_before() {
        let said = beat().announcement;
        assert_eq!(said.check(), Ok(()));
        for wrong in [
            Announcement { name: String::new(), ..said.clone() },
            Announcement { name: "n".repeat(NAME_MAX + 1), ..said.clone() },
            Announcement { name: "n".repeat(256), ..said.clone() },
            Announcement { name: "a b".into(), ..said.clone() },
            Announcement { weight: 0, ..said.clone() },
            Announcement { https_name: Some("n".repeat(254)), ..said.clone() },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn one_flipped_bit_anywhere_is_refused() {
        let key = Key::new(&[7; 32]);
        let bytes = beat().encode(&key);
        assert_eq!(Beat::decode(&bytes, &key), Ok(beat()));
        assert_eq!(Beat::decode(&bytes, &Key::new(&[8; 32])), Err(DecodeError::Key));
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(Beat::decode(&forged, &key).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(Beat::decode(&bytes[..length], &key).is_err(), "{length} bytes");
        }
    }

    proptest! {
        /// A faulty member has the key, so what it signs has to be read safely too.
        #[test]
        fn signed_nonsense_is_refused_or_survives_a_round_trip(
            mut signed in prop::collection::vec(any::<u8>(), 80..420),
            name in 0_u8..70, https in 0_u8..=255,
        ) {
            let key = Key::new(&[7; 32]);
            signed[..8].copy_from_slice(&MAGIC);
            if signed.len() >= HEAD_LENGTH {
                signed[48] %= 4;
                signed[49] = 0;
                signed[92] = name;
                signed[93] = https;
                signed.resize(HEAD_LENGTH + usize::from(name) + usize::from(https), b'n');
                signed[HEAD_LENGTH..].fill(b'n');
            }
            let mac = key.authenticate(&signed);
            signed.extend(mac.as_bytes());
            if let Ok(beat) = Beat::decode(&signed, &key) {
                prop_assert_eq!(Beat::decode(&beat.encode(&key), &key), Ok(beat));
            }
        }
    }
}
