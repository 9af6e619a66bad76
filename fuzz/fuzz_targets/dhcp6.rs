//! What anybody on the network can send to the DHCPv6 ports: reading, telling who asks, and every answer to it.
#![no_main]

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use goldwire_netboot::content::UrlBuilder;
use goldwire_netboot::fuzzing::dhcp6::{Packet, RELAYS_MAX, Responder, classify, code, server_id};
use goldwire_netboot::{Action, Boot, BootPolicy, Decision, Device, Mac, Member, NoopObserver, Proof, What};
use libfuzzer_sys::fuzz_target;

const US: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const CLIENT: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe77, 1);

struct Policy;

impl BootPolicy for Policy {
    fn decide(&self, _device: &Device) -> Decision {
        let member = Member {
            name: "a".into(),
            address: IpAddr::V6(US),
            http_port: 80,
            https_port: None,
            https_name: None,
        };
        let boot = Boot {
            profile: "fuzz".into(),
            what: What::File("shim/grubx64.efi".into()),
            members: vec![member],
            is_secure: false,
            has_token: false,
            root_path: None,
            host_name: None,
        };
        Decision { rule: "fuzz".into(), action: Action::Boot(Box::new(boot)) }
    }

    fn may_fetch(&self, _path: &str, _address: IpAddr, _mac: Option<Mac>, _proof: Proof) -> bool {
        true
    }
}

fuzz_target!(|input: &[u8]| {
    let Ok(packet) = Packet::decode(input) else { return };
    assert!(packet.relays.len() <= RELAYS_MAX);
    assert!(packet.encode().len() <= input.len());
    let _ = classify(&packet, CLIENT, US);
    let id = server_id(Mac([2, 0, 0, 0, 0, 2]));
    let responder = Responder::new(Arc::new(Policy), UrlBuilder::default(), Arc::new(NoopObserver), id);
    for port in [547, 4011] {
        if let Some(reply) = responder.handle(&packet, CLIENT, US, port) {
            assert_eq!(reply.relays, packet.relays);
            assert_eq!(reply.message.transaction, packet.message.transaction);
            assert!(reply.message.options.get(code::BOOT_FILE_URL).is_some());
            let mut alone = reply;
            alone.relays.clear();
            assert_eq!(Packet::decode(&alone.encode()).expect("our own answer"), alone);
        }
    }
});
