//! A boot file as anybody might write it, with the templates in it: it is read or refused with a reason. What is good
//! decides about any device, and says by which rule.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use goldwire_control::boot::{Policy, Question, explain, parse};
use goldwire_netboot::content::UrlBuilder;
use goldwire_netboot::{Architecture, BootPolicy, Device, Firmware, LiveMembers, Mac, Member, Proof};
use goldwire_stdx::Uuid;
use libfuzzer_sys::fuzz_target;

/// One that lives, whatever the file says.
struct One;

impl LiveMembers for One {
    fn ordered_for(&self, _key: &[u8], _subnet: Option<IpAddr>) -> Vec<Member> {
        vec![Member {
            name: "a".into(),
            address: [10, 0, 0, 1].into(),
            http_port: 80,
            https_port: Some(443),
            https_name: None,
        }]
    }
}

/// The first that the text names, or one of its first bytes: a device that a rule may be about.
fn mac_in(text: &str) -> Mac {
    let named = text.split(['"', ' ', ',', '[', ']', '\n']).find_map(|word| word.parse().ok());
    let mut bytes = [0x52; 6];
    for (byte, from) in bytes.iter_mut().zip(text.bytes()) {
        *byte = from;
    }
    named.unwrap_or(Mac(bytes))
}

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    // No file that it could name is in this folder.
    let loaded = match parse(text, Path::new("/proc/self/fdinfo/none/boot.toml")) {
        Ok(loaded) => loaded,
        Err(problems) => return assert!(!problems.to_string().is_empty()),
    };
    drop(loaded.warnings.to_string());
    let policy = Policy::new(loaded.rules, Arc::new(One));
    let (mac, address) = (mac_in(text), Ipv4Addr::new(10, 0, 0, 7));
    for firmware in
        [Firmware::BiosPxe, Firmware::EfiPxe, Firmware::HttpClient, Firmware::Ipxe, Firmware::Other]
    {
        for mac in [Some(mac), None] {
            let mut device = Device::new(mac, firmware);
            device.uuid = Some(Uuid([7; 16]));
            assert!(!policy.decide(&device).rule.is_empty());
        }
    }
    policy.may_fetch("a/b.efi", address.into(), Some(mac), Proof::Nothing);
    let question = |arch| Question {
        mac,
        uuid: None,
        arch,
        subnet: Some(address),
        circuit_id: Some(b"port 7".to_vec()),
        server: Ipv4Addr::new(10, 0, 0, 1),
    };
    for arch in [None, Some(Architecture::EFI_ARM64)] {
        let explanation = explain(&policy, &question(arch), &UrlBuilder::default());
        assert!(explanation.answers.iter().all(|answer| !answer.rule.is_empty() && !answer.told.is_empty()));
    }
});
