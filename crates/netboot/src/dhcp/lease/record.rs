//! One record of the lease log, bytes ⇄ [`Record`]. Layout: `docs/lease-log.md`.

use std::net::Ipv4Addr;

use goldwire_stdx::Uuid;

use super::Time;
use super::identity::{CLIENT_ID_MAX, ClientId, Hardware, IdentifiedBy};

/// What a record begins with.
pub(super) const MARKER: [u8; 4] = *b"GWLR";
/// Bytes before the client identifier and what a relay told.
const FIXED: usize = 112;
/// Most bytes of a relay agent information (option 82) that are grace_until: what one option holds.
const RELAY_AGENT_MAX: usize = 255;
/// The longest record.
pub(super) const LENGTH_MAX: usize = FIXED + (CLIENT_ID_MAX + 1 + RELAY_AGENT_MAX).next_multiple_of(8);
/// Where the checksum is.
const CHECKSUM: std::ops::Range<usize> = 8..16;
const FLAG_BOOT: u8 = 1;
const FLAG_UUID: u8 = 2;
const FLAG_RELAY_AGENT: u8 = 4;

/// A member of a boot group, as records name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

impl MemberId {
    /// Of the member with this name.
    pub fn of(name: &str) -> Self {
        Self(digest(name.as_bytes()))
    }
}

/// A relay agent information (option 82), as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RelayAgent(Box<[u8]>);

impl RelayAgent {
    /// From the option's value. Nothing of a value that is longer than one option: a part of it would say something
    /// else, and no relay sends it.
    pub(crate) fn new(value: &[u8]) -> Self {
        if value.len() <= RELAY_AGENT_MAX { Self(value.into()) } else { Self::default() }
    }

    /// The option's value; empty if there was none.
    pub(crate) fn value(&self) -> &[u8] {
        &self.0
    }
}

/// What a record says about its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RecordState {
    /// The client has it until the lease ends.
    Granted = 1,
    /// The client gave it back.
    Released = 2,
    /// A client found it in use by somebody else.
    Declined = 3,
}

/// All that is known of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The address.
    pub address: Ipv4Addr,
    /// What it says.
    pub state: RecordState,
    /// Whom it concerns.
    pub client: ClientId,
    /// What the relay told of itself and of its port when the client asked last (option 82); empty if none did.
    pub(crate) relay_agent: RelayAgent,
    /// The member that decided this.
    pub member: MemberId,
    /// The number that this member gave it.
    pub(crate) member_sequence: u64,
    /// When: the client's last transaction.
    pub changed: Time,
    /// When the lease, or the time for which the address is put aside, ends.
    pub(crate) expires: Time,
    /// Until when the address's owner keeps it for this client, as it said last.
    pub(crate) grace_until: Time,
}

/// Where a record stands in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The file's generation.
    pub(super) generation: u32,
    /// The record's number in the file.
    pub(super) sequence: u64,
    /// How many records of its batch stand before it.
    pub(super) position: u32,
}

impl Place {
    /// The number of the first record of its batch.
    pub(super) fn batch_start(self) -> u64 {
        self.sequence.saturating_sub(u64::from(self.position))
    }
}

impl Record {
    /// Writes the record at the end of `bytes`.
    pub(super) fn encode(&self, place: Place, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        let client_id = &self.client.client_id[..self.client.client_id.len().min(CLIENT_ID_MAX)];
        let relay_agent = self.relay_agent.value();
        let has_relay_agent = !relay_agent.is_empty();
        let variable_length = client_id.len() + if has_relay_agent { 1 + relay_agent.len() } else { 0 };
        let length = FIXED + variable_length.next_multiple_of(8);
        let identified_by = match self.client.identified_by {
            IdentifiedBy::Hardware => 1,
            IdentifiedBy::Uuid => 2,
            IdentifiedBy::ClientId => 3,
        };
        let mut flags = 0;
        if self.client.is_boot {
            flags |= FLAG_BOOT;
        }
        if self.client.uuid.is_some() {
            flags |= FLAG_UUID;
        }
        if has_relay_agent {
            flags |= FLAG_RELAY_AGENT;
        }
        let hardware = self.client.hardware.unwrap_or(Hardware { kind: 0, length: 0, address: [0; 16] });
        bytes.extend_from_slice(&MARKER);
        bytes.extend_from_slice(&(length as u16).to_le_bytes());
        bytes.extend_from_slice(&[self.state as u8, flags]);
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&place.sequence.to_le_bytes());
        bytes.extend_from_slice(&place.position.to_le_bytes());
        bytes.extend_from_slice(&self.address.octets());
        for number in
            [self.member.0, self.member_sequence, self.changed.0, self.expires.0, self.grace_until.0]
        {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&[hardware.kind, hardware.length, client_id.len() as u8, identified_by]);
        bytes.extend_from_slice(&place.generation.to_le_bytes());
        bytes.extend_from_slice(&hardware.address);
        bytes.extend_from_slice(&self.client.uuid.map_or([0; 16], |uuid| uuid.0));
        bytes.extend_from_slice(client_id);
        if has_relay_agent {
            bytes.push(relay_agent.len() as u8);
            bytes.extend_from_slice(relay_agent);
        }
        bytes.resize(start + length, 0);
        let checksum = digest(&bytes[start..]);
        bytes[start + CHECKSUM.start..start + CHECKSUM.end].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads the record at the start of `bytes`, and its length; none unless all of it is right.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, Place, usize)> {
        if !bytes.starts_with(&MARKER) {
            return None;
        }
        let length = usize::from(u16::from_le_bytes(array(bytes, 4)?));
        if !(FIXED..=LENGTH_MAX).contains(&length) || length % 8 != 0 {
            return None;
        }
        let bytes = bytes.get(..length)?;
        let mut zeroed = [0; LENGTH_MAX];
        let zeroed = &mut zeroed[..length];
        zeroed.copy_from_slice(bytes);
        zeroed[CHECKSUM].fill(0);
        let number = |at| array(bytes, at).map(u64::from_le_bytes);
        if digest(zeroed) != number(CHECKSUM.start)? {
            return None;
        }
        let state = match bytes[6] {
            1 => RecordState::Granted,
            2 => RecordState::Released,
            3 => RecordState::Declined,
            _ => return None,
        };
        let flags = bytes[7];
        let [htype, hlen, id_length, identified_by] = array(bytes, 72)?;
        let hardware = Hardware::new(htype, hlen, array(bytes, 80)?);
        let uuid = (flags & FLAG_UUID != 0).then_some(Uuid(array(bytes, 96)?));
        let (client_id, behind) = bytes.get(FIXED..)?.split_at_checked(id_length.into())?;
        let relay_agent = if flags & FLAG_RELAY_AGENT != 0 {
            let (length, behind) = behind.split_first()?;
            behind.get(..usize::from(*length))?
        } else {
            &[]
        };
        let identified_by = match identified_by {
            1 if hardware.is_some() => IdentifiedBy::Hardware,
            2 if uuid.is_some() => IdentifiedBy::Uuid,
            3 => IdentifiedBy::ClientId,
            _ => return None,
        };
        let client = ClientId {
            identified_by,
            hardware,
            uuid,
            client_id: client_id.into(),
            is_boot: flags & FLAG_BOOT != 0,
        };
        let record = Self {
            address: Ipv4Addr::from(array::<4>(bytes, 28)?),
            state,
            client,
            relay_agent: RelayAgent::new(relay_agent),
            member: MemberId(number(32)?),
            member_sequence: number(40)?,
            changed: Time(number(48)?),
            expires: Time(number(56)?),
            grace_until: Time(number(64)?),
        };
        let place = Place {
            generation: u32::from_le_bytes(array(bytes, 76)?),
            sequence: number(16)?,
            position: u32::from_le_bytes(array(bytes, 24)?),
        };
        Some((record, place, length))
    }
}

/// The first 8 bytes of a BLAKE3.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// `N` bytes from a place, if they are there.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::lease::tests::any_record;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(record in any_record(), generation: u32, sequence: u64, position: u32) {
            let place = Place { generation, sequence, position };
            let mut bytes = Vec::new();
            record.encode(place, &mut bytes);
            prop_assert!(bytes.len() % 8 == 0 && bytes.len() <= LENGTH_MAX);
            prop_assert_eq!(Record::decode(&bytes), Some((record, place, bytes.len())));
        }

        #[test]
        fn one_wrong_bit_is_seen(record in any_record(), at: prop::sample::Index, bit in 0_u8..8) {
            let mut bytes = Vec::new();
            record.encode(Place { generation: 1, sequence: 1, position: 0 }, &mut bytes);
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert_eq!(Record::decode(&bytes), None);
        }
    }
}
