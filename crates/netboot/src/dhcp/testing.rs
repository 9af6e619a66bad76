//! What the tests of this folder share: captures of real firmware, and policies and observers that are easy to read.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Mutex;

use super::wire::{Message, MessageType, code};
use crate::device::{Device, Mac};
use crate::event::{Event, EventKind, Observer};
use crate::member::Member;
use crate::policy::{Action, Boot, BootPolicy, Decision, Proof, Script, What};

/// One packet of a capture, see `testdata/README.md`.
pub(crate) struct Packet {
    pub(crate) from: SocketAddrV4,
    pub(crate) to: SocketAddrV4,
    pub(crate) message: Message,
}

/// The packets of `testdata/dhcp/NAME.hex`.
pub(crate) fn capture(name: &str) -> Vec<Packet> {
    let path = format!("{}/testdata/dhcp/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect(&path);
    let packets: Vec<Packet> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let [from, ">", to, hex] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect();
            let message = Message::decode(&bytes).unwrap();
            Packet { from: from.parse().unwrap(), to: to.parse().unwrap(), message }
        })
        .collect();
    assert!(packets.len() >= 4, "{path} has a whole exchange");
    packets
}

/// Every request of a capture with the answer that the server at `server` gave to it.
pub(crate) fn exchanges(name: &str, server: &str) -> Vec<(Packet, Packet)> {
    let server: Ipv4Addr = server.parse().unwrap();
    let mut found = Vec::new();
    let mut requests: Vec<Packet> = Vec::new();
    for packet in capture(name) {
        if packet.message.op == 1 {
            requests.push(packet);
        } else if *packet.from.ip() == server {
            // Another server may have answered, and the client gone on, in between.
            let asked = match packet.message.kind() {
                Some(MessageType::OFFER) => MessageType::DISCOVER,
                _ => MessageType::REQUEST,
            };
            let is_asked = |request: &Packet| {
                request.message.xid == packet.message.xid && request.message.kind() == Some(asked)
            };
            let at = requests.iter().rposition(is_asked).expect("an answer has its request");
            found.push((requests.remove(at), packet));
        }
    }
    assert!(!found.is_empty(), "{server} answers in {name}");
    found
}

/// A member at this address, with HTTP on port 80.
pub(crate) fn member(address: &str) -> Member {
    let address: IpAddr = address.parse().unwrap();
    Member { name: address.to_string(), address, http_port: 80, https_port: None, https_name: None }
}

/// To boot this from these members.
pub(crate) fn boot(what: What, members: &[&str]) -> Boot {
    Boot {
        profile: "lab".into(),
        what,
        members: members.iter().map(|address| member(address)).collect(),
        is_secure: false,
        has_token: false,
        root_path: None,
        host_name: None,
    }
}

pub(crate) fn file(name: &str) -> What {
    What::File(name.into())
}

pub(crate) fn script() -> What {
    What::Script(std::sync::Arc::new(Script {
        name: "desktop".into(),
        template: "#!ipxe".into(),
        variables: std::collections::BTreeMap::new(),
    }))
}

/// A DISCOVER as the firmware with this option 60 sends it, with what every PXE client adds.
pub(crate) fn discover(vendor_class: &str, arch: u16) -> Message {
    let mut message = Message::request(MessageType::DISCOVER, Mac([0x52, 0x54, 0, 0x77, 0, 1]), 0x1234_5678);
    message.options.set(code::PARAMETER_LIST, [1, 3, 6, 12, 17, 43, 60, 66, 67]);
    message.options.set(code::VENDOR_CLASS, vendor_class);
    message.options.set(code::CLIENT_ARCH, arch.to_be_bytes());
    message.options.set(code::CLIENT_UUID, [0; 17]);
    message
}

/// A DISCOVER as iPXE sends it.
pub(crate) fn discover_of_ipxe() -> Message {
    let mut message = discover("PXEClient:Arch:00007:UNDI:003010", 7);
    message.options.set(code::USER_CLASS, *b"iPXE");
    message.options.set(code::IPXE, [0xeb, 3, 1, 0, 0]);
    message
}

/// Decides the same for everybody.
pub(crate) struct Always(pub(crate) Action);

impl BootPolicy for Always {
    fn decide(&self, _device: &Device) -> Decision {
        Decision { rule: "default (boot.toml:1)".into(), action: self.0.clone() }
    }

    fn may_fetch(&self, _path: &str, _address: IpAddr, _mac: Option<Mac>, _proof: Proof) -> bool {
        true
    }
}

/// Writes down what it hears.
#[derive(Default)]
pub(crate) struct Notes(pub(crate) Mutex<Vec<String>>);

impl Observer for Notes {
    fn observe(&self, event: &Event<'_>) {
        let note = match event.kind {
            EventKind::Reached { stage, detail, .. } => format!("{}: {detail}", stage.name()),
            EventKind::Refused { path, reason, .. } => format!("refused {path}: {reason}"),
            ref other => format!("{other:?}"),
        };
        self.0.lock().unwrap().push(note);
    }
}
