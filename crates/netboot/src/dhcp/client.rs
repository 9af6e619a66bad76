//! Who sent a message: what DHCP tells about a device and the program that speaks for it.
//!
//! Lenient on purpose. Options 94 and 97 may be missing, a UUID may be all zero (OVMF of a machine without one), the
//! architecture may stand in the vendor class alone, and iPXE's user class is not in the form of RFC 3004.

use std::net::Ipv4Addr;

use goldwire_stdx::Uuid;

use super::wire::{Message, code};
use crate::device::{Architecture, Device, Firmware, Mac};

/// What option 60 of PXE begins with (RFC 4578 §2.1 and PXE 2.1 §2.2.1).
pub(crate) const PXE_CLIENT: &[u8] = b"PXEClient";
/// What option 60 of UEFI HTTP Boot begins with (UEFI 2.10 §24.7.2).
pub(crate) const HTTP_CLIENT: &[u8] = b"HTTPClient";

/// Hardware address blocks of Raspberry Pi (IEEE MA-L). Their boot ROM calls itself a PXE client of architecture 0 like
/// any BIOS; nothing else in its DISCOVER tells it apart (seen up to model 5).
const RASPBERRY_PI: [[u8; 3]; 7] = [
    [0x28, 0xcd, 0xc1],
    [0x2c, 0xcf, 0x67],
    [0x88, 0xa2, 0x9e],
    [0xb8, 0x27, 0xeb],
    [0xd8, 0x3a, 0xdd],
    [0xdc, 0xa6, 0x32],
    [0xe4, 0x5f, 0x01],
];
/// IANA's own number for a Raspberry Pi's boot ROM.
const ARCH_RASPBERRY_PI: Architecture = Architecture(41);

/// Who sent this message, that came to our address `received_on`: its MAC, UUID (97), architecture (93), vendor and
/// user class, relay, option 82, and which program speaks.
///
/// The subnet is that of the link selection (RFC 3527), the subnet selection (RFC 3011), the relay, the client's own
/// address, or else `received_on`: each overrules those behind it.
pub fn classify(message: &Message, received_on: Ipv4Addr) -> Device {
    let options = &message.options;
    let vendor_class = options.get(code::VENDOR_CLASS).unwrap_or_default();
    let user_class = options.get(code::USER_CLASS).unwrap_or_default();
    let mac = message.mac();
    let arch = architecture(options.get(code::CLIENT_ARCH), vendor_class);
    let relay_agent = options.get(code::RELAY_AGENT).unwrap_or_default();
    let specified = |address: Option<Ipv4Addr>| address.filter(|address| !address.is_unspecified());
    let relay = specified(Some(message.giaddr));
    let link_selection = sub_option(relay_agent, 5).and_then(|value| <[u8; 4]>::try_from(value).ok());
    let subnet = specified(link_selection.map(Ipv4Addr::from))
        .or_else(|| specified(options.address(code::SUBNET_SELECTION)))
        .or(relay)
        .or_else(|| specified(Some(message.ciaddr)))
        .unwrap_or(received_on);
    Device {
        mac,
        uuid: options.get(code::CLIENT_UUID).and_then(uuid),
        arch,
        firmware: firmware_of(mac, arch, vendor_class, user_class, options.has(code::IPXE)),
        vendor_class: vendor_class.to_vec(),
        user_class: user_class.to_vec(),
        relay: relay.map(Into::into),
        subnet: Some(subnet.into()),
        circuit_id: sub_option(relay_agent, 1).unwrap_or_default().to_vec(),
        remote_id: sub_option(relay_agent, 2).unwrap_or_default().to_vec(),
    }
}

/// Whether option 77 holds this class, alone as bare text (as iPXE writes it) or among RFC 3004's counted strings.
pub(crate) fn has_user_class(user_class: &[u8], name: &[u8]) -> bool {
    let mut rest = user_class;
    while let Some((length, behind)) = rest.split_first() {
        let Some((class, next)) = behind.split_at_checked(usize::from(*length)) else { break };
        if class == name {
            return true;
        }
        rest = next;
    }
    // Some scripts set `iPXE` with a NUL or with text of their own behind it.
    user_class.starts_with(name)
}

/// A sub-option of option 82 (RFC 3046 §2.0). What is cut off is left out: a relay's fault is no reason to leave the
/// device without an answer.
pub(crate) fn sub_option(relay_agent: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = relay_agent;
    while let [code, length, behind @ ..] = rest {
        let (value, next) = behind.split_at_checked(usize::from(*length))?;
        if *code == wanted {
            return Some(value);
        }
        rest = next;
    }
    None
}

/// Which program speaks, by what it says of itself over either version of IP.
pub(crate) fn firmware_of(
    mac: Option<Mac>,
    arch: Option<Architecture>,
    vendor_class: &[u8],
    user_class: &[u8],
    has_ipxe_options: bool,
) -> Firmware {
    // gPXE first: it knows option 175 too.
    if has_user_class(user_class, b"gPXE") {
        return Firmware::Gpxe;
    }
    if has_ipxe_options || has_user_class(user_class, b"iPXE") {
        return Firmware::Ipxe;
    }
    if vendor_class.starts_with(HTTP_CLIENT) {
        return Firmware::HttpClient;
    }
    if !vendor_class.starts_with(PXE_CLIENT) {
        return Firmware::Other;
    }
    let is_of_raspberry = mac.is_some_and(|mac| RASPBERRY_PI.iter().any(|block| mac.0.starts_with(block)));
    match arch {
        Some(ARCH_RASPBERRY_PI) => Firmware::RaspberryPi,
        None | Some(Architecture::BIOS) if is_of_raspberry => Firmware::RaspberryPi,
        None | Some(Architecture::BIOS) => Firmware::BiosPxe,
        Some(_) => Firmware::EfiPxe,
    }
}

/// The first architecture of option 93, which the client likes best (RFC 4578 §2.1), else the one in
/// `PXEClient:Arch:00007:UNDI:003000`.
fn architecture(option: Option<&[u8]>, vendor_class: &[u8]) -> Option<Architecture> {
    if let Some([high, low, ..]) = option {
        return Some(Architecture(u16::from_be_bytes([*high, *low])));
    }
    let text = std::str::from_utf8(vendor_class).ok()?;
    let (_, behind) = text.split_once(":Arch:")?;
    behind.get(..5)?.parse().ok().map(Architecture)
}

/// The UUID of option 97: a type byte of 0, then 16 bytes.
fn uuid(option: &[u8]) -> Option<Uuid> {
    match option {
        [0, bytes @ ..] => bytes.try_into().ok().and_then(crate::device::uuid_from_smbios),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dhcp::testing::{capture, discover, discover_of_ipxe};

    const HERE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

    fn subnet(message: &Message) -> String {
        classify(message, HERE).subnet.unwrap().to_string()
    }

    #[test]
    fn real_firmware_is_told_apart() {
        for (name, arch, firmware) in [
            ("ipxe-bios-server", 0, Firmware::Ipxe),
            ("ovmf-http-server", 16, Firmware::HttpClient),
            ("ovmf-pxe-server", 7, Firmware::EfiPxe),
        ] {
            let device = classify(&capture(name)[0].message, HERE);
            assert_eq!((device.arch, device.firmware), (Some(Architecture(arch)), firmware), "{name}");
            assert_eq!(device.uuid.unwrap().to_string(), "01234567-89ab-cdef-0123-456789000001");
        }
    }

    #[test]
    fn ipxe_is_known_by_its_options_or_its_class_in_either_form() {
        let firmware = |user_class: &[u8], has_options: bool| {
            let mut message = discover("PXEClient:Arch:00000:UNDI:002001", 0);
            message.options.set(code::USER_CLASS, user_class);
            if has_options {
                message.options.set(code::IPXE, [0xb1, 1, 1]);
            }
            classify(&message, HERE).firmware
        };
        assert_eq!(firmware(b"iPXE", false), Firmware::Ipxe);
        assert_eq!(firmware(b"\x04iPXE", false), Firmware::Ipxe);
        assert_eq!(firmware(b"\x03lab\x04iPXE", false), Firmware::Ipxe);
        assert_eq!(firmware(b"", true), Firmware::Ipxe);
        // A site's own class in a script hides the word, and 175 still tells.
        assert_eq!(firmware(b"goldwire", true), Firmware::Ipxe);
        assert_eq!(firmware(b"gPXE", true), Firmware::Gpxe);
        assert_eq!(firmware(b"\x04gPXE", false), Firmware::Gpxe);
        // Counts that point past the end, and words that only look like it.
        assert_eq!(firmware(b"\xffiPXE", false), Firmware::BiosPxe);
        assert_eq!(firmware(b"\x08not iPXE", false), Firmware::BiosPxe);
    }

    #[test]
    fn missing_and_odd_options_do_not_keep_a_machine_from_booting() {
        let mut message = discover("PXEClient:Arch:00007:UNDI:003000", 7);
        message.options.remove(code::CLIENT_UUID);
        message.options.remove(code::CLIENT_ARCH);
        let device = classify(&message, HERE);
        assert_eq!((device.uuid, device.arch), (None, Some(Architecture::EFI_X64)), "from the class alone");
        assert_eq!(device.firmware, Firmware::EfiPxe);
        // OVMF of a machine without a UUID; a type that is none; a short one.
        for uuid in [&[0; 17][..], &[1; 17], &[0; 5], &[]] {
            message.options.set(code::CLIENT_UUID, uuid);
            assert_eq!(classify(&message, HERE).uuid, None);
        }
        message.options.set(code::VENDOR_CLASS, *b"PXEClient");
        assert_eq!(classify(&message, HERE).firmware, Firmware::BiosPxe, "no architecture at all");
        for class in [&b"PXEClient:Arch:abcde"[..], b"PXEClient:Arch:7", b"\xffPXE:Arch:00007", b""] {
            message.options.set(code::VENDOR_CLASS, class);
            assert_eq!(classify(&message, HERE).arch, None);
        }
        // A list: what it likes best comes first.
        message.options.set(code::CLIENT_ARCH, [0, 16, 0, 7]);
        assert_eq!(classify(&message, HERE).arch, Some(Architecture(16)));
    }

    #[test]
    fn hardware_of_other_types() {
        let mut message = discover_of_ipxe();
        message.htype = 6; // IEEE 802: the same address.
        assert_eq!(classify(&message, HERE).mac, Some(Mac([0x52, 0x54, 0, 0x77, 0, 1])));
        (message.htype, message.hlen, message.chaddr) = (32, 0, [0; 16]); // InfiniBand, RFC 4390.
        let device = classify(&message, HERE);
        assert_eq!((device.mac, device.firmware), (None, Firmware::Ipxe));
    }

    #[test]
    fn raspberry_pi_by_its_address_block() {
        let mut message = discover("PXEClient:Arch:00000:UNDI:002001", 0);
        message.chaddr[..3].copy_from_slice(&[0x2c, 0xcf, 0x67]);
        assert_eq!(classify(&message, HERE).firmware, Firmware::RaspberryPi);
        // A Pi that runs UEFI or iPXE is what it runs.
        message.options.set(code::CLIENT_ARCH, [0, 11]);
        assert_eq!(classify(&message, HERE).firmware, Firmware::EfiPxe);
        message.options.set(code::USER_CLASS, *b"iPXE");
        assert_eq!(classify(&message, HERE).firmware, Firmware::Ipxe);
        // IANA's own number says it without the block.
        assert_eq!(classify(&discover("PXEClient", 41), HERE).firmware, Firmware::RaspberryPi);
    }

    #[test]
    fn the_subnet_is_the_most_particular_that_is_told() {
        let mut message = discover_of_ipxe();
        assert_eq!(subnet(&message), "10.0.0.9");
        message.ciaddr = Ipv4Addr::new(10, 1, 0, 5);
        assert_eq!(subnet(&message), "10.1.0.5");
        message.giaddr = Ipv4Addr::new(10, 2, 0, 1);
        assert_eq!(subnet(&message), "10.2.0.1");
        message.options.set(code::SUBNET_SELECTION, [10, 3, 0, 0]);
        assert_eq!(subnet(&message), "10.3.0.0");
        message.options.set(code::RELAY_AGENT, *b"\x01\x03ge1\x02\x02sw\x05\x04\x0a\x04\x00\x00");
        assert_eq!(subnet(&message), "10.4.0.0");
        let device = classify(&message, HERE);
        assert_eq!((&*device.circuit_id, &*device.remote_id), (&b"ge1"[..], &b"sw"[..]));
        assert_eq!(device.relay, Some(Ipv4Addr::new(10, 2, 0, 1).into()));
        // Cut off in the middle: what stands before it counts.
        message.options.set(code::RELAY_AGENT, *b"\x01\x03ge1\x05\x04\x0a");
        assert_eq!(subnet(&message), "10.3.0.0");
        assert_eq!(classify(&message, HERE).circuit_id, b"ge1");
    }
}
