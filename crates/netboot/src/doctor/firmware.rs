//! What each firmware sends, byte for byte where it was seen: OVMF 2022.11 (EDK2), iPXE of 2019. The BIOS client is
//! Intel's PXE 2.1 base code as its specification has it (§2.2.3, table 2-1).
//!
//! One thing differs: the broadcast flag is always set. BIOS and iPXE ask for unicast answers to an address that they
//! do not have yet, which only a raw socket could hear here; every server has to broadcast when asked (RFC 2131 §4.1).

use std::net::Ipv4Addr;

use super::Client;
use crate::device::Mac;
use crate::dhcp::wire::{BROADCAST, Message, MessageType, code};

/// Option 55 of EDK2 for PXE; HTTP Boot's ends otherwise.
const EDK2: [u8; 26] =
    [1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67];
const BIOS: [u8; 16] = [1, 2, 3, 5, 6, 11, 12, 13, 15, 16, 17, 18, 43, 54, 60, 67];
const IPXE: [u8; 15] = [1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 119, 175, 203];
/// Vendor options of PXE, asked for by all.
const VENDOR: [u8; 8] = [128, 129, 130, 131, 132, 133, 134, 135];
/// What iPXE says of itself in option 175: version 1.0.0, and what it can do (HTTP, iSCSI, TFTP, DNS, EFI, menu, …).
const IPXE_FEATURES: [u8; 29] = [
    0xeb, 3, 1, 0, 0, 0x17, 1, 1, 0x24, 1, 1, 0x13, 1, 1, 0x11, 1, 1, 0x27, 1, 1, 0x29, 1, 1, 0x15, 1, 1,
    0x12, 1, 1,
];

/// The DISCOVER.
pub(super) fn discover(client: Client, mac: Mac, xid: u32, uuid: [u8; 16]) -> Message {
    let mut message = Message::request(MessageType::DISCOVER, mac, xid);
    message.flags = BROADCAST;
    let (size, arch, undi, class): (u16, u16, [u8; 3], &str) = match client {
        Client::BiosPxe => (1260, 0, [1, 2, 1], "PXEClient:Arch:00000:UNDI:002001"),
        Client::EfiPxe => (1472, 7, [1, 3, 0], "PXEClient:Arch:00007:UNDI:003000"),
        Client::HttpBoot => (1472, 16, [1, 3, 0], "HTTPClient:Arch:00016:UNDI:003000"),
        Client::Ipxe => (1472, 7, [1, 3, 10], "PXEClient:Arch:00007:UNDI:003010"),
    };
    let asked: Vec<u8> = match client {
        Client::BiosPxe => [&BIOS[..], &VENDOR].concat(),
        Client::EfiPxe => [&EDK2[..], &[97], &VENDOR].concat(),
        Client::HttpBoot => [&EDK2[..24], &[67, 97]].concat(),
        Client::Ipxe => [&IPXE[..13], &VENDOR, &IPXE[13..]].concat(),
    };
    let machine = [&[0][..], &uuid].concat();
    let options = &mut message.options;
    options.set(code::MESSAGE_SIZE_MAX, size.to_be_bytes());
    match client {
        Client::Ipxe => {
            options.set(code::CLIENT_ARCH, arch.to_be_bytes());
            options.set(code::CLIENT_NDI, undi);
            options.set(code::VENDOR_CLASS, class);
            options.set(code::USER_CLASS, *b"iPXE");
            options.set(code::PARAMETER_LIST, asked);
            options.set(code::IPXE, IPXE_FEATURES);
            options.set(code::CLIENT_ID, [&[1][..], &mac.0].concat());
            options.set(code::CLIENT_UUID, machine);
        }
        _ => {
            options.set(code::PARAMETER_LIST, asked);
            options.set(code::CLIENT_UUID, machine);
            options.set(code::CLIENT_NDI, undi);
            options.set(code::CLIENT_ARCH, arch.to_be_bytes());
            options.set(code::VENDOR_CLASS, class);
        }
    }
    message
}

/// The REQUEST for an offered address.
pub(super) fn request(discover: &Message, server: Ipv4Addr, address: Ipv4Addr) -> Message {
    let mut message = discover.clone();
    message.options.set(code::MESSAGE_TYPE, [MessageType::REQUEST.0]);
    message.options.set(code::SERVER_ID, server.octets());
    message.options.set(code::REQUESTED_ADDRESS, address.octets());
    message
}

/// The question to port 4011 (PXE 2.1 §2.2.4): a REQUEST from an address that is known, for an entry of the menu.
pub(super) fn boot_request(discover: &Message, address: Ipv4Addr, item: Option<u16>) -> Message {
    let mut message = discover.clone();
    message.flags = 0;
    message.ciaddr = address;
    message.options.set(code::MESSAGE_TYPE, [MessageType::REQUEST.0]);
    if let Some(item) = item {
        let [high, low] = item.to_be_bytes();
        // PXE_BOOT_ITEM: type, layer 0.
        message.options.set(code::VENDOR_SPECIFIC, [71, 4, high, low, 0, 0, 255]);
    }
    message
}

/// Gives the address back: the doctor keeps nothing.
pub(super) fn release(discover: &Message, server: Ipv4Addr, address: Ipv4Addr) -> Message {
    let mut message =
        Message::request(MessageType::RELEASE, discover.mac().unwrap_or(Mac([0; 6])), discover.xid);
    message.ciaddr = address;
    message.options.set(code::SERVER_ID, server.octets());
    if let Some(id) = discover.options.get(code::CLIENT_ID) {
        message.options.set(code::CLIENT_ID, id);
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(client: Client, order: &[u8], list: &[u8]) {
        let message = discover(client, Mac([0x52, 0x54, 0, 0x77, 0, 1]), 1, [0; 16]);
        let codes: Vec<u8> = message.options.iter().map(|(code, _)| code).collect();
        assert_eq!(codes, order, "{client:?}");
        assert_eq!(message.options.get(code::PARAMETER_LIST), Some(list), "{client:?}");
    }

    /// Orders and lists as captured from the real ones; HTTP Boot's list has a byte of garbage (241, 235, 0) where PXE
    /// has 66, which is left out here.
    #[test]
    fn discovers_look_like_the_real_ones() {
        let edk2 = [53, 57, 55, 97, 94, 93, 60];
        check(
            Client::EfiPxe,
            &edk2,
            &[
                1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66,
                67, 97, 128, 129, 130, 131, 132, 133, 134, 135,
            ],
        );
        check(
            Client::HttpBoot,
            &edk2,
            &[
                1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 67,
                97,
            ],
        );
        check(
            Client::Ipxe,
            &[53, 57, 93, 94, 60, 77, 55, 175, 61, 97],
            &[
                1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 119, 128, 129, 130, 131, 132, 133, 134, 135, 175,
                203,
            ],
        );
    }
}
