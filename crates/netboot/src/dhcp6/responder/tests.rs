use std::net::SocketAddrV6;

use super::*;
use crate::dhcp::testing::{Always, Notes, boot, file, script};
use crate::dhcp6::wire::Relay;
use crate::policy::What;

const US: &str = "2001:db8::2";
const CLIENT: &str = "fe80::5054:ff:fe77:1";

fn address(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn responder(action: Action) -> (Responder, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    let id = server_id(Mac([2, 0, 0, 0, 0, 2]));
    (Responder::new(Arc::new(Always(action)), UrlBuilder::default(), notes.clone(), id), notes)
}

fn to_boot(what: What) -> (Responder, Arc<Notes>) {
    responder(Action::Boot(Box::new(boot(what, &["10.0.0.1", "2001:db8::1"]))))
}

/// As EDK2 asks: a DUID-UUID in SMBIOS's order, class and architecture.
fn edk2(kind: MessageType, class: &str, arch: u16) -> Packet {
    let mut options = Options::default();
    let mut duid = vec![0, 4];
    duid.extend(goldwire_stdx::from_hex::<16>("67452301ab89efcd0123456789000001").unwrap());
    options.push(code::CLIENT_ID, duid);
    options.push(code::IA_NA, [0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
    options.push(code::CLIENT_ARCH, arch.to_be_bytes());
    let mut vendor = ENTERPRISE_INTEL.to_vec();
    vendor.extend((class.len() as u16).to_be_bytes());
    vendor.extend(class.bytes());
    options.push(code::VENDOR_CLASS, vendor);
    Packet { relays: Vec::new(), message: Message { kind, transaction: [1, 2, 3], options } }
}

/// As iPXE asks.
fn ipxe(kind: MessageType) -> Packet {
    let mut options = Options::default();
    options.push(code::CLIENT_ID, [0, 3, 0, 1, 0x52, 0x54, 0, 0x77, 0, 1]);
    options.push(code::USER_CLASS, *b"\0\x04iPXE");
    Packet { relays: Vec::new(), message: Message { kind, transaction: [4, 5, 6], options } }
}

fn ask(responder: &Responder, packet: &Packet, port: u16) -> Option<Message> {
    let reply = responder.handle(packet, address(CLIENT), address(US), port)?;
    assert_eq!(reply.message.transaction, packet.message.transaction);
    assert_eq!(reply.message.options.get(code::CLIENT_ID), packet.message.options.get(code::CLIENT_ID));
    Some(reply.message)
}

fn url(message: &Message) -> &str {
    std::str::from_utf8(message.options.get(code::BOOT_FILE_URL).unwrap()).unwrap()
}

#[test]
fn ipxe_is_answered_when_it_asks_for_information() {
    let (responder, notes) = to_boot(script());
    let reply = ask(&responder, &ipxe(MessageType::INFORMATION_REQUEST), SERVER_PORT).unwrap();
    assert_eq!(reply.kind, MessageType::REPLY);
    assert_eq!(url(&reply), "http://[2001:db8::1]/s/52-54-00-77-00-01/-/-/boot.ipxe");
    assert!(reply.options.get(code::IA_NA).is_none() && reply.options.get(code::VENDOR_CLASS).is_none());
    // It takes no offer without an address, and would only wait for it.
    assert_eq!(ask(&responder, &ipxe(MessageType::SOLICIT), SERVER_PORT), None);
    let notes = notes.0.lock().unwrap();
    assert!(notes[1].starts_with("ack: http://[2001:db8::1]/s/"), "{notes:?}");
}

#[test]
fn uefi_http_boot_gets_a_proxy_offer() {
    let (responder, _) = to_boot(file("snponly.efi"));
    let solicit = edk2(MessageType::SOLICIT, "HTTPClient:Arch:00016:UNDI:003000", 16);
    let offer = ask(&responder, &solicit, SERVER_PORT).unwrap();
    assert_eq!(offer.kind, MessageType::ADVERTISE);
    assert_eq!(offer.options.get(code::VENDOR_CLASS), Some(&b"\0\0\x01\x57\0\x0aHTTPClient"[..]));
    assert_eq!(url(&offer), "http://[2001:db8::1]/snponly.efi");
    assert!(offer.options.get(code::IA_NA).is_none(), "an offer with an address is none of a proxy");
    // A script is nothing for it.
    assert_eq!(ask(&to_boot(script()).0, &solicit, SERVER_PORT), None);
}

#[test]
fn uefi_pxe_is_asked_to_port_4011_of_this_member() {
    let (responder, _) = to_boot(file("snponly.efi"));
    let offer =
        ask(&responder, &edk2(MessageType::SOLICIT, "PXEClient:Arch:00007:UNDI:003000", 7), SERVER_PORT);
    assert_eq!(
        url(&offer.unwrap()),
        "tftp://[2001:db8::2]/snponly.efi",
        "the host is who is asked on port 4011"
    );
    let mut request = edk2(MessageType::REQUEST, "PXEClient:Arch:00007:UNDI:003000", 7);
    // The identifier of another member, which offered.
    request.message.options.push(code::SERVER_ID, [0, 3, 0, 1, 9, 9, 9, 9, 9, 9]);
    let reply = ask(&responder, &request, BINL_PORT).unwrap();
    assert_eq!((reply.kind, url(&reply)), (MessageType::REPLY, "tftp://[2001:db8::1]/snponly.efi"));
    assert_eq!(reply.options.get(code::SERVER_ID), request.message.options.get(code::SERVER_ID));
    // On port 547 that is a matter of the other member.
    assert_eq!(ask(&responder, &request, SERVER_PORT), None);
}

#[test]
fn who_asks_us_for_an_address_is_told_that_there_is_none() {
    let (responder, _) = to_boot(file("snponly.efi"));
    let mut request = edk2(MessageType::REQUEST, "HTTPClient:Arch:00016:UNDI:003000", 16);
    request.message.options.push(code::SERVER_ID, server_id(Mac([2, 0, 0, 0, 0, 2])));
    let reply = ask(&responder, &request, SERVER_PORT).unwrap();
    assert_eq!(
        reply.options.get(code::IA_NA),
        Some(&[0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 13, 0, 2, 0, 2][..])
    );
}

#[test]
fn devices_are_known_by_what_they_send_or_their_relay_says() {
    let packet = edk2(MessageType::SOLICIT, "PXEClient:Arch:00007:UNDI:003000", 7);
    let device = classify(&packet, address(CLIENT), address(US));
    assert_eq!(device.mac, Some(Mac([0x52, 0x54, 0, 0x77, 0, 1])), "from the link-local address");
    assert_eq!(device.uuid.unwrap().to_string(), "01234567-89ab-cdef-0123-456789000001");
    assert_eq!((device.firmware, device.arch), (Firmware::EfiPxe, Some(Architecture::EFI_X64)));
    assert_eq!((device.relay, device.subnet), (None, Some(address(US).into())));

    let mut options = Options::default();
    options.push(code::INTERFACE_ID, *b"ge1");
    options.push(code::REMOTE_ID, *b"sw");
    options.push(code::CLIENT_LINK_LAYER, [0, 1, 2, 0, 0, 0, 0, 7]);
    let relay = Relay { hops: 0, link: address("2001:db8:5::1"), peer: address("fe80::1"), options };
    let relayed = Packet { relays: vec![relay], ..packet };
    let device = classify(&relayed, address("2001:db8:5::1"), address(US));
    assert_eq!(device.mac, Some(Mac([2, 0, 0, 0, 0, 7])), "from RFC 6939");
    assert_eq!(
        (device.relay, device.subnet),
        (Some(address("2001:db8:5::1").into()), Some(address("2001:db8:5::1").into()))
    );
    assert_eq!((&*device.circuit_id, &*device.remote_id), (&b"ge1"[..], &b"sw"[..]));
    let (responder, _) = to_boot(file("snponly.efi"));
    let reply = responder.handle(&relayed, address("2001:db8:5::1"), address(US), SERVER_PORT).unwrap();
    assert_eq!(reply.relays, relayed.relays, "back the way it came, with the relay's own options");

    let device = classify(&ipxe(MessageType::SOLICIT), address("2001:db8::77"), address(US));
    assert_eq!((device.mac, device.firmware), (Some(Mac([0x52, 0x54, 0, 0x77, 0, 1])), Firmware::Ipxe));
}

#[test]
fn nobody_is_answered_who_does_not_boot_or_may_not_or_cannot() {
    let information = |class| edk2(MessageType::INFORMATION_REQUEST, class, 7);
    let (responder, _) = to_boot(file("snponly.efi"));
    assert_eq!(ask(&responder, &information("dhcpcd"), SERVER_PORT), None);
    assert!(ask(&responder, &information("PXEClient"), SERVER_PORT).is_some());
    let http_only_v4 = boot(file("snponly.efi"), &["10.0.0.1"]);
    for action in [Action::LocalDisk, Action::Ignore, Action::Boot(Box::new(http_only_v4))] {
        let (responder, _) = self::responder(action);
        for class in ["PXEClient", "HTTPClient"] {
            assert_eq!(ask(&responder, &information(class), SERVER_PORT), None);
            assert_eq!(ask(&responder, &edk2(MessageType::SOLICIT, class, 7), SERVER_PORT), None);
        }
    }
    for kind in [0, 2, 4, 5, 6, 7, 8, 9, 10, 14, 255] {
        assert_eq!(
            ask(&to_boot(file("a.efi")).0, &edk2(MessageType(kind), "PXEClient", 7), SERVER_PORT),
            None
        );
    }
}

/// OVMF took these very answers of ours and ran what they name, once by TFTP and once by HTTP; everybody else in the
/// capture is not told anything.
#[test]
fn answers_are_those_that_real_firmware_took() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/dhcp6/ovmf-pxe-proxy.hex");
    let text = std::fs::read_to_string(path).unwrap();
    let packets: Vec<(SocketAddrV6, SocketAddrV6, Vec<u8>)> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let [from, ">", to, hex] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            (from.parse().unwrap(), to.parse().unwrap(), (0..hex.len()).step_by(2).map(byte).collect())
        })
        .collect();
    let ours = ["fe80::30d5:8cff:fe37:b506", "fd77::2"].map(address);
    let action = Action::Boot(Box::new(boot(file("snponly.efi"), &["10.77.0.1", "fd77::1"])));
    let responder = Responder::new(
        Arc::new(Always(action)),
        UrlBuilder::default(),
        Arc::new(Notes::default()),
        server_id(Mac([0x32, 0xd5, 0x8c, 0x37, 0xb5, 0x06])),
    );
    let mut answers = Vec::new();
    for (from, to, bytes) in packets.iter().filter(|(from, ..)| !ours.contains(from.ip())) {
        if from.port() == SERVER_PORT {
            continue; // The other server's.
        }
        let packet = Packet::decode(bytes).unwrap();
        let reply = responder.handle(&packet, *from.ip(), address("fd77::2"), to.port());
        let seen = packets.iter().find(|(server, client, answer)| {
            ours.contains(server.ip()) && client == from && answer[1..4] == bytes[1..4]
        });
        let is_a_request_to_another = packet.message.kind == MessageType::REQUEST && to.port() == SERVER_PORT;
        let seen = seen.filter(|_| !is_a_request_to_another).map(|(_, _, bytes)| bytes.clone());
        assert_eq!(reply.as_ref().map(Packet::encode), seen, "{:?} to {to}", packet.message.kind);
        answers.extend(reply.map(|reply| reply.message.kind));
        let device = classify(&packet, *from.ip(), address("fd77::2"));
        if device.firmware == Firmware::EfiPxe {
            assert_eq!(device.mac, Some(Mac([0x52, 0x54, 0, 0x77, 0, 1])), "to {to}");
            assert_eq!(device.uuid.unwrap().to_string(), "01234567-89ab-cdef-0123-456789000001");
        }
    }
    // PXE's offer and its file on port 4011, then the offer for HTTP Boot.
    assert_eq!(answers, [MessageType::ADVERTISE, MessageType::REPLY, MessageType::ADVERTISE]);
}
