//! By what a client is known.
//!
//! RFC 2131 §4.2 takes the client identifier (option 61) where there is one, else the hardware address. During a network
//! boot that burns an address per stage: firmware, iPXE and the operating system on one machine each send another
//! identifier or none. So boot stages are known by hardware address (or SMBIOS UUID where the header has none, as on
//! InfiniBand), only operating systems by the identifier, and [`super::Table`] hands an address on from one to the other.
//!
//! An identifier counts together with the hardware address it comes from. Machines made from one golden image often carry
//! one `machine-id`, from which systemd and dhcpcd make the identifier: taken alone, it would give them all one address.

use std::fmt;

use goldwire_stdx::Uuid;

use crate::device::Mac;

/// Most bytes of a client identifier: what one option holds. Longer ones are cut; no client sends them.
pub(super) const CLIENT_ID_MAX: usize = 255;

/// A hardware address with its type, as in the header of a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hardware {
    /// `htype`: 1 Ethernet.
    pub kind: u8,
    /// How many bytes of the address count; at most 16.
    pub length: u8,
    /// The address, padded with zeros.
    pub address: [u8; 16],
}

impl Hardware {
    /// From the fields of a message; none where it names no address.
    pub fn new(kind: u8, length: u8, chaddr: [u8; 16]) -> Option<Self> {
        let count = usize::from(length);
        if count == 0 || count > 16 {
            return None;
        }
        let mut address = [0; 16];
        address[..count].copy_from_slice(&chaddr[..count]);
        (address != [0; 16]).then_some(Self { kind, length, address })
    }

    /// The Ethernet address.
    pub fn mac(&self) -> Option<Mac> {
        let [a, b, c, d, e, f, ..] = self.address;
        (matches!(self.kind, 1 | 6) && self.length == 6).then_some(Mac([a, b, c, d, e, f]))
    }

    /// The bytes that count.
    pub fn bytes(&self) -> &[u8] {
        &self.address[..usize::from(self.length).min(16)]
    }
}

impl From<Mac> for Hardware {
    fn from(mac: Mac) -> Self {
        let mut address = [0; 16];
        address[..6].copy_from_slice(&mac.0);
        Self { kind: 1, length: 6, address }
    }
}

impl fmt::Debug for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, goldwire_stdx::to_hex(self.bytes()))
    }
}

/// What a client's key is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum IdentifiedBy {
    /// Its hardware address.
    Hardware,
    /// Its SMBIOS UUID.
    Uuid,
    /// Its client identifier.
    ClientId,
}

/// A digest of what a client is known by: small, of one size, and nobody makes two that are the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 16]);

impl Key {
    /// The key of a hardware address.
    pub(crate) fn of_hardware(hardware: &Hardware) -> Self {
        Self::digest(&[&[1, hardware.kind], hardware.bytes()])
    }

    /// The key of a UUID.
    pub(crate) fn of_uuid(uuid: Uuid) -> Self {
        Self::digest(&[&[2], &uuid.0])
    }

    /// The key of a client identifier alone.
    pub(crate) fn of_client_id(client_id: &[u8]) -> Self {
        Self::digest(&[&[3], client_id])
    }

    /// The key of a client identifier that comes from a hardware address.
    fn of_both(client_id: &[u8], hardware: &Hardware) -> Self {
        Self::digest(&[&[4, client_id.len() as u8], client_id, &[hardware.kind], hardware.bytes()])
    }

    fn digest(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(key)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&goldwire_stdx::to_hex(&self.0))
    }
}

/// A client, as far as its message tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClientId {
    /// By which of these it is known.
    pub(crate) identified_by: IdentifiedBy,
    /// Its hardware address.
    pub hardware: Option<Hardware>,
    /// Its SMBIOS UUID.
    pub uuid: Option<Uuid>,
    /// Its client identifier, option 61; empty if it sent none.
    pub client_id: Box<[u8]>,
    /// Whether it is firmware or a boot loader, and no operating system.
    pub(crate) is_boot: bool,
}

impl ClientId {
    /// A client that sent this; none if nothing of it tells who it is.
    pub fn new(
        hardware: Option<Hardware>,
        uuid: Option<Uuid>,
        client_id: &[u8],
        is_boot: bool,
    ) -> Option<Self> {
        let client_id = &client_id[..client_id.len().min(CLIENT_ID_MAX)];
        // The usual identifier of Ethernet clients is the hardware address with its type before it.
        let says_more = !client_id.is_empty()
            && hardware
                .is_none_or(|hardware| client_id.split_first() != Some((&hardware.kind, hardware.bytes())));
        let identified_by = if says_more && !is_boot {
            IdentifiedBy::ClientId
        } else if hardware.is_some() {
            IdentifiedBy::Hardware
        } else if uuid.is_some() {
            IdentifiedBy::Uuid
        } else if says_more {
            IdentifiedBy::ClientId
        } else {
            return None;
        };
        Some(Self { identified_by, hardware, uuid, client_id: client_id.into(), is_boot })
    }

    /// The key under which its lease is found.
    pub fn key(&self) -> Key {
        match (self.identified_by, &self.hardware, self.uuid) {
            (IdentifiedBy::Hardware, Some(hardware), _) => Key::of_hardware(hardware),
            (IdentifiedBy::Uuid, _, Some(uuid)) => Key::of_uuid(uuid),
            (_, Some(hardware), _) => Key::of_both(&self.client_id, hardware),
            _ => Key::of_client_id(&self.client_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_stages_of_a_machine_are_one_client() {
        let hardware = Some(Hardware::from(Mac([2, 0, 0, 0, 0, 1])));
        let uuid = Some(Uuid([7; 16]));
        let firmware = ClientId::new(hardware, uuid, &[], true).unwrap();
        let ipxe = ClientId::new(hardware, uuid, &[1, 2, 0, 0, 0, 0, 1], true).unwrap();
        let grub = ClientId::new(hardware, None, b"\xffsomething", true).unwrap();
        assert_eq!((firmware.key(), ipxe.key()), (ipxe.key(), grub.key()));
        // An operating system whose identifier says no more than the hardware address is the same one, too.
        assert_eq!(
            ClientId::new(hardware, None, &[1, 2, 0, 0, 0, 0, 1], false).unwrap().key(),
            firmware.key()
        );
        let system = ClientId::new(hardware, None, b"\xffsomething", false).unwrap();
        assert_eq!(system.identified_by, IdentifiedBy::ClientId);
        assert_ne!(system.key(), firmware.key());
    }

    #[test]
    fn clones_of_an_image_are_different_clients() {
        let clone = |last| {
            ClientId::new(Some(Mac([2, 0, 0, 0, 0, last]).into()), None, b"\xffmachine-id", false).unwrap()
        };
        assert_ne!(clone(1).key(), clone(2).key());
    }

    #[test]
    fn infiniband_is_known_by_what_it_tells() {
        assert_eq!(Hardware::new(32, 0, [0; 16]), None);
        let uuid = Some(Uuid([7; 16]));
        assert_eq!(ClientId::new(None, uuid, b"\x00id", true).unwrap().identified_by, IdentifiedBy::Uuid);
        assert_eq!(
            ClientId::new(None, uuid, b"\x00id", false).unwrap().identified_by,
            IdentifiedBy::ClientId
        );
        assert_eq!(ClientId::new(None, None, &[], false), None);
    }
}
