use proptest::prelude::*;

use super::*;
use crate::dhcp::testing::{
    Always, Notes, boot, capture, discover, discover_of_ipxe, exchanges, file, script,
};
use crate::dhcp::wire::RECEIVE_MAX;
use crate::policy::{Boot, Decision, What};

const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);

fn proxy(action: Action, has_binl: bool) -> (ProxyResponder, Arc<Notes>) {
    let notes = Arc::new(Notes::default());
    let responder =
        ProxyResponder::new(Arc::new(Always(action)), UrlBuilder::default(), notes.clone(), has_binl);
    (responder, notes)
}

fn to_boot(boot: Boot) -> Action {
    Action::Boot(Box::new(boot))
}

/// What the policy of the lab said.
struct Lab(Option<&'static str>);

impl BootPolicy for Lab {
    fn decide(&self, device: &Device) -> Decision {
        let what = match (device.firmware, self.0) {
            (Firmware::EfiPxe, _) => file("snponly.efi"),
            (Firmware::HttpClient, _) => file("marker.efi"),
            (_, Some(url)) => What::Literal(url.into()),
            (_, None) => file("hello.ipxe"),
        };
        // iPXE in the lab was named the proxy's own address, and a URL of the server's.
        let members = if self.0.is_some() { &[][..] } else { &["10.77.0.1"][..] };
        Decision { rule: "lab".into(), action: to_boot(boot(what, members)) }
    }

    fn may_fetch(&self, _: &str, _: IpAddr, _: Option<crate::Mac>, _: crate::Proof) -> bool {
        true
    }
}

/// Header and options, without the order of options and without the NUL behind a URL.
fn essence(message: &Message) -> (Message, Vec<(u8, Vec<u8>)>) {
    let mut options: Vec<_> = message.options.iter().map(|(code, value)| (code, value.to_vec())).collect();
    for (code, value) in &mut options {
        if *code == code::BOOT_FILE && value.last() == Some(&0) {
            value.pop();
        }
    }
    options.sort();
    let mut header = message.clone();
    header.options = crate::dhcp::wire::Options::default();
    (header, options)
}

/// Every packet of the proxy in these captures, which real firmware booted by, is what we answer: header and options.
#[test]
fn whole_answers_are_those_that_real_firmware_took() {
    for (name, url, has_binl, answers) in [
        ("ipxe-bios-proxy", Some("http://10.77.0.1/hello.ipxe"), true, 1),
        ("ovmf-http-proxy", None, true, 1),
        ("ovmf-pxe-proxy-43", None, false, 1),
        ("ovmf-pxe-proxy-binl", None, true, 3),
    ] {
        let responder = ProxyResponder::new(
            Arc::new(Lab(url)),
            UrlBuilder::default(),
            Arc::new(Notes::default()),
            has_binl,
        );
        let exchanges = exchanges(name, "10.77.0.2");
        assert_eq!(exchanges.len(), answers, "{name}");
        for (request, golden) in exchanges {
            let port = request.to.port();
            let (reply, destination) =
                responder.handle(&request.message, request.from, US, port).expect(name);
            let ours = Message::decode(&reply.encode(request.message.reply_size_max())).unwrap();
            assert_eq!(essence(&ours), essence(&golden.message), "{name}");
            match destination {
                Destination::Unicast(to) => assert_eq!(to, golden.to, "{name}"),
                other => assert_eq!((other, *golden.to.ip()), (Destination::Broadcast, Ipv4Addr::BROADCAST)),
            }
        }
    }
}

/// OVMF asks the servers of all BINL offers, one after the other, four times each.
#[test]
fn uefi_turns_to_the_next_proxy_where_one_died() {
    let asked: Vec<String> = capture("ovmf-pxe-proxy-failover")
        .iter()
        .filter(|packet| packet.message.op == 1 && packet.to.port() == BINL_PORT)
        .map(|packet| packet.to.ip().to_string())
        .collect();
    assert_eq!(asked, ["10.77.0.2", "10.77.0.2", "10.77.0.2", "10.77.0.2", "10.77.0.3"]);
    let second =
        ProxyResponder::new(Arc::new(Lab(None)), UrlBuilder::default(), Arc::new(Notes::default()), true);
    let mut answers = 0;
    for (request, golden) in exchanges("ovmf-pxe-proxy-failover", "10.77.0.3") {
        let us = Ipv4Addr::new(10, 77, 0, 3);
        let (reply, _) = second.handle(&request.message, request.from, us, request.to.port()).unwrap();
        assert_eq!(essence(&reply), essence(&golden.message));
        answers += 1;
    }
    assert!(answers >= 1);
}

/// Row 6: NAKs kill the boot. A proxy has no say about addresses and never sends one.
#[test]
fn row_06_a_proxy_never_sends_a_nak_and_leaves_requests_alone() {
    let (proxy, _) = proxy(to_boot(boot(file("grubx64.efi"), &["10.77.0.1"])), true);
    for kind in 0..=13 {
        for port in [SERVER_PORT, BINL_PORT, 68] {
            let mut message = discover("PXEClient:Arch:00007:UNDI:003000", 7);
            message.options.set(code::MESSAGE_TYPE, [kind]);
            // An address of a pool that is not ours, from a server that is not we.
            message.options.set(code::REQUESTED_ADDRESS, [192, 168, 1, 1]);
            message.options.set(code::SERVER_ID, [192, 168, 1, 254]);
            let answer = proxy.handle(&message, CLIENT, US, port);
            let expected = match (MessageType(kind), port) {
                (MessageType::DISCOVER, SERVER_PORT) => Some(MessageType::OFFER),
                (MessageType::REQUEST, BINL_PORT) => Some(MessageType::ACK),
                (MessageType::INFORM, SERVER_PORT | BINL_PORT) => Some(MessageType::ACK),
                _ => None,
            };
            assert_eq!(answer.and_then(|(reply, _)| reply.kind()), expected, "kind {kind} on {port}");
        }
    }
}

/// Row 8: iPXE misses the proxy's offer. Each of its tries is answered, and always the same.
#[test]
fn row_08_every_try_is_answered_the_same() {
    let (proxy, _) = proxy(to_boot(boot(script(), &["10.77.0.1"])), true);
    let mut request = discover_of_ipxe();
    let first = proxy.handle(&request, CLIENT, US, SERVER_PORT).unwrap();
    for secs in [4, 8, 12, 60] {
        request.secs = secs;
        assert_eq!(proxy.handle(&request, CLIENT, US, SERVER_PORT).as_ref(), Some(&first));
    }
}

/// Row 13: the answer comes from another address than was asked, or does not find its way back through the relay.
#[test]
fn row_13_answers_name_the_address_that_was_asked_and_go_back_through_the_relay() {
    let (proxy, _) = proxy(to_boot(boot(file("grubx64.efi"), &["10.77.0.1"])), true);
    for us in [Ipv4Addr::new(10, 77, 0, 2), Ipv4Addr::new(10, 77, 0, 250)] {
        let mut request = discover("PXEClient:Arch:00007:UNDI:003000", 7);
        let (reply, destination) = proxy.handle(&request, CLIENT, us, SERVER_PORT).unwrap();
        assert_eq!(reply.options.address(code::SERVER_ID), Some(us));
        assert_eq!((reply.siaddr, destination), (us, Destination::Broadcast));

        request.giaddr = Ipv4Addr::new(10, 5, 0, 1);
        request.hops = 1;
        request.options.set(code::RELAY_AGENT, *b"\x01\x03ge1");
        let (reply, destination) = proxy.handle(&request, CLIENT, us, SERVER_PORT).unwrap();
        assert_eq!((reply.giaddr, destination), (request.giaddr, Destination::Relay(request.giaddr)));
        assert_eq!(reply.options.get(code::RELAY_AGENT), Some(&b"\x01\x03ge1"[..]));
        assert_eq!(reply.options.iter().last().unwrap().0, code::RELAY_AGENT);
        assert!(reply.yiaddr.is_unspecified());
    }
    // On port 4011 the sender has an address, and whichever port it likes.
    let mut request = discover("PXEClient:Arch:00007:UNDI:003000", 7);
    request.options.set(code::MESSAGE_TYPE, [MessageType::REQUEST.0]);
    request.ciaddr = Ipv4Addr::new(10, 5, 0, 77);
    for port in [68, 4011] {
        let from = SocketAddrV4::new(request.ciaddr, port);
        let (_, destination) = proxy.handle(&request, from, US, BINL_PORT).unwrap();
        assert_eq!(destination, Destination::Unicast(from));
    }
}

/// Row 22: what one protocol denies, another gives away.
#[test]
fn row_22_who_may_not_boot_hears_nothing_on_either_port() {
    for action in [Action::LocalDisk, Action::Ignore, to_boot(boot(file("grubx64.efi"), &[]))] {
        let (proxy, notes) = proxy(action, true);
        for vendor_class in ["PXEClient:Arch:00007:UNDI:003000", "HTTPClient:Arch:00016:UNDI:003000"] {
            for (kind, port) in [
                (MessageType::DISCOVER, SERVER_PORT),
                (MessageType::REQUEST, BINL_PORT),
                (MessageType::INFORM, BINL_PORT),
            ] {
                let mut request = discover(vendor_class, 7);
                request.options.set(code::MESSAGE_TYPE, [kind.0]);
                assert_eq!(proxy.handle(&request, CLIENT, US, port), None);
            }
        }
        assert!(
            !notes.0.lock().unwrap().iter().any(|note| note.starts_with("offer") || note.starts_with("ack"))
        );
    }
}

#[test]
fn operating_systems_servers_and_bootp_are_left_alone() {
    let (proxy, notes) = proxy(to_boot(boot(file("grubx64.efi"), &["10.77.0.1"])), true);
    let mut request = discover("MSFT 5.0", 7);
    assert_eq!(proxy.handle(&request, CLIENT, US, SERVER_PORT), None);
    request.options.remove(code::VENDOR_CLASS);
    assert_eq!(proxy.handle(&request, CLIENT, US, SERVER_PORT), None);
    let mut request = discover("PXEClient", 0);
    request.op = 2;
    assert_eq!(proxy.handle(&request, CLIENT, US, SERVER_PORT), None);
    request.op = 1;
    request.options.remove(code::MESSAGE_TYPE);
    assert_eq!(proxy.handle(&request, CLIENT, US, SERVER_PORT), None);
    assert!(notes.0.lock().unwrap().is_empty());
}

#[test]
fn the_timeline_hears_what_was_told_and_why_nothing() {
    let (responder, notes) = proxy(to_boot(boot(file("snponly.efi"), &["10.77.0.1"])), true);
    let mut request = discover("PXEClient:Arch:00007:UNDI:003000", 7);
    responder.handle(&request, CLIENT, US, SERVER_PORT);
    request.options.set(code::MESSAGE_TYPE, [MessageType::REQUEST.0]);
    responder.handle(&request, CLIENT, US, BINL_PORT);
    assert_eq!(
        *notes.0.lock().unwrap(),
        [
            "discover: PXEClient:Arch:00007:UNDI:003000",
            "offer: ask on port 4011 by default (boot.toml:1)",
            "request: PXEClient:Arch:00007:UNDI:003000",
            "ack: tftp://10.77.0.1/snponly.efi by default (boot.toml:1)",
        ]
    );
    let (responder, notes) = proxy(to_boot(boot(file("snponly.efi"), &[])), true);
    responder.handle(&request, CLIENT, US, BINL_PORT);
    assert_eq!(
        notes.0.lock().unwrap()[1],
        "refused lab: default (boot.toml:1): no live member that it can reach"
    );
}

proptest! {
    /// Whatever is asked, an answer is one that the requester can take: its size, its number, no address, never a NAK.
    #[test]
    fn any_message_gets_a_sound_answer_or_none(
        options in proptest::collection::btree_map(1_u8..255, proptest::collection::vec(any::<u8>(), 0..40), 0..12),
        vendor_class in prop_oneof![Just("PXEClient"), Just("HTTPClient:Arch:00016:UNDI:003000"), Just("x")],
        header in proptest::array::uniform32(any::<u8>()), port in prop_oneof![Just(67), Just(4011)], kind in 0..9_u8,
    ) {
        let (proxy, _) = proxy(to_boot(boot(file("grubx64.efi"), &["10.77.0.1"])), true);
        let mut request = discover(vendor_class, 7);
        for (code, value) in options {
            request.options.set(code, value);
        }
        request.options.set(code::MESSAGE_TYPE, [kind]);
        let mut bytes = request.encode(RECEIVE_MAX);
        bytes[1..28].copy_from_slice(&header[1..28]);
        bytes[2] %= 17;
        let request = Message::decode(&bytes).unwrap();
        if let Some((reply, _)) = proxy.handle(&request, CLIENT, US, port) {
            let sent = reply.encode(request.reply_size_max());
            prop_assert!(sent.len() <= request.reply_size_max());
            let read = Message::decode(&sent).unwrap();
            prop_assert_eq!((read.op, read.xid, read.yiaddr), (2, request.xid, Ipv4Addr::UNSPECIFIED));
            prop_assert!(matches!(read.kind(), Some(MessageType::OFFER | MessageType::ACK)));
            prop_assert_eq!(read.options.address(code::SERVER_ID), Some(US));
        }
    }
}
