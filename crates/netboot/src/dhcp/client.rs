//! Who sent a message: what DHCP tells about a device and the program that speaks for it.
//!
//! Lenient on purpose. Options 94 and 97 may be missing, a UUID may be all zero (OVMF of a machine without one), the
//! architecture may stand in the vendor class alone, and iPXE's user class is not in the form of RFC 3004.

use std::net::Ipv4Addr;

use super::wire::{Message, code};
use crate::device::{Architecture, Device, Firmware, Mac, Uuid};

/// What option 60 of PXE begins with (RFC 4578 §2.1 and PXE 2.1 §2.2.1).
pub const PXE_CLIENT: &[u8] = b"PXEClient";
/// What option 60 of UEFI HTTP Boot begins with (UEFI 2.10 §24.7.2).
pub const HTTP_CLIENT: &[u8] = b"HTTPClient";

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
    let told = |address: Option<Ipv4Addr>| address.filter(|address| !address.is_unspecified());
    let relay = told(Some(message.giaddr));
    let link_selection = sub_option(relay_agent, 5).and_then(|value| <[u8; 4]>::try_from(value).ok());
    let subnet = told(link_selection.map(Ipv4Addr::from))
        .or_else(|| told(options.address(code::SUBNET_SELECTION)))
        .or(relay)
        .or_else(|| told(Some(message.ciaddr)))
        .unwrap_or(received_on);
    Device {
        mac,
        uuid: options.get(code::CLIENT_UUID).and_then(uuid),
        arch,
        firmware: firmware(mac, arch, vendor_class, user_class, options.has(code::IPXE)),
        vendor_class: vendor_class.to_vec(),
        user_class: user_class.to_vec(),
        relay: relay.map(Into::into),
        subnet: Some(subnet.into()),
        circuit_id: sub_option(relay_agent, 1).unwrap_or_default().to_vec(),
        remote_id: sub_option(relay_agent, 2).unwrap_or_default().to_vec(),
    }
}

/// Whether option 77 holds this class, alone as bare text (as iPXE writes it) or among RFC 3004's counted strings.
pub fn has_user_class(user_class: &[u8], name: &[u8]) -> bool {
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
pub fn sub_option(relay_agent: &[u8], wanted: u8) -> Option<&[u8]> {
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

fn firmware(
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
        [0, bytes @ ..] => bytes.try_into().ok().and_then(Uuid::from_smbios),
        _ => None,
    }
}
