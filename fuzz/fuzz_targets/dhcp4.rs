//! What anybody on the network can send to the DHCP ports: reading, telling who asks, and every answer to it.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use goldwire_netboot::content::UrlBuilder;
use goldwire_netboot::dhcp::{
    BootReply, Message, MessageType, ProxyResponder, Role, add_boot, classify, code,
};
use goldwire_netboot::fuzzing::dhcp::{Destination, SIZE_MAX};
use goldwire_netboot::{Action, Boot, BootPolicy, Decision, Device, Mac, Member, NoopObserver, Proof, What};
use libfuzzer_sys::fuzz_target;

const US: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 77), 68);

struct Policy;

impl BootPolicy for Policy {
    fn decide(&self, _device: &Device) -> Decision {
        Decision { rule: "fuzz".into(), action: Action::Boot(Box::new(boot())) }
    }

    fn may_fetch(&self, _path: &str, _address: IpAddr, _mac: Option<Mac>, _proof: Proof) -> bool {
        true
    }
}

fn boot() -> Boot {
    Boot {
        profile: "fuzz".into(),
        what: What::File("shim/grubx64.efi".into()),
        members: vec![Member {
            name: "a".into(),
            address: [10, 0, 0, 1].into(),
            http_port: 80,
            https_port: None,
            https_name: None,
        }],
        is_secure: false,
        has_token: false,
        root_path: Some("iscsi:10.0.0.1::3260:1:iqn.2026-11.example:disk".into()),
        host_name: Some("seat-17".into()),
    }
}

fuzz_target!(|input: &[u8]| {
    let Ok(message) = Message::decode(input) else { return };
    // What fits no frame is cut off at the end, and what is left reads the same.
    let again = Message::decode(&message.encode(SIZE_MAX)).expect("our own message");
    assert_eq!((again.xid, again.chaddr, again.giaddr), (message.xid, message.chaddr, message.giaddr));
    for (code, value) in again.options.iter() {
        assert_eq!(message.options.get(code), Some(value));
    }

    let device = classify(&message, US);
    for role in [Role::Server, Role::Proxy, Role::ProxyWithoutBinl, Role::Binl] {
        let mut reply = Message::reply_to(&message, MessageType::OFFER);
        reply.options.set(code::SERVER_ID, US.octets());
        let boot_reply = add_boot(&mut reply, &message, &device, &boot(), &UrlBuilder::default(), role);
        if matches!(boot_reply, BootReply::Nothing(_)) {
            assert!(reply.siaddr.is_unspecified() && reply.file.is_empty());
            assert!(!reply.options.has(code::BOOT_FILE) && !reply.options.has(code::VENDOR_CLASS));
        }
        check(&message, &reply);
        let _ = Destination::of(&message, &reply);
    }
    for has_binl in [true, false] {
        let proxy =
            ProxyResponder::new(Arc::new(Policy), UrlBuilder::default(), Arc::new(NoopObserver), has_binl);
        for port in [67, 4011] {
            if let Some((reply, _)) = proxy.handle(&message, CLIENT, US, port) {
                assert!(reply.yiaddr.is_unspecified() && reply.kind() != Some(MessageType::NAK));
                check(&message, &reply);
            }
        }
    }
});

/// An answer is one that the requester can take and read.
fn check(request: &Message, reply: &Message) {
    let sent = reply.encode(request.reply_size_max());
    assert!(sent.len() <= request.reply_size_max());
    let read = Message::decode(&sent).expect("our own answer");
    assert_eq!((read.op, read.xid, read.chaddr), (2, request.xid, request.chaddr));
    assert_eq!((read.siaddr, &read.file), (reply.siaddr, &reply.file));
    assert_eq!(read.options.get(code::SERVER_ID), reply.options.get(code::SERVER_ID));
    assert_eq!(read.options.get(code::BOOT_FILE), reply.options.get(code::BOOT_FILE));
}
