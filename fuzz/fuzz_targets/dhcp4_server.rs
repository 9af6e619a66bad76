//! A conversation of anybody with the DHCP server: what it promises is what it logs, and comes from its own pools.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use goldwire_netboot::content::UrlBuilder;
use goldwire_netboot::dhcp::{
    AddressRange, Message, MessageType, Reservation, Server, Settings, Subnet, Time,
};
use goldwire_netboot::fuzzing::dhcp::{Arrival, MemberId, Outputs, Record, Reply, Table};
use goldwire_netboot::{Action, BootPolicy, Decision, Device, Mac, NetworkV4, NoopObserver, Proof};
use libfuzzer_sys::fuzz_target;

const US: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
const LAST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 103);
const RESERVED: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
/// More packets than this teach nothing.
const PACKETS_MAX: usize = 100;

struct Policy;

impl BootPolicy for Policy {
    fn decide(&self, _device: &Device) -> Decision {
        Decision { rule: "fuzz".into(), action: Action::LocalDisk }
    }

    fn may_fetch(&self, _path: &str, _address: IpAddr, _mac: Option<Mac>, _proof: Proof) -> bool {
        true
    }
}

// The input is a row of: who sends or how much time passes, a length, a packet.
fuzz_target!(|input: &[u8]| {
    let mut rest = input;
    let settings = settings();
    let (plans, terms) = (settings.plans(), settings.terms);
    let mut server = Server::new(settings, Arc::new(Policy), UrlBuilder::default(), Arc::new(NoopObserver));
    let mut logged: Vec<Record> = Vec::new();
    let mut now = Time(1_800_000_000_000);
    for _ in 0..PACKETS_MAX {
        let Some(([how, low, high], behind)) = rest.split_first_chunk::<3>() else { break };
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(behind.len());
        let (packet, behind) = behind.split_at(length);
        rest = behind;
        let mut outputs = Outputs::default();
        let mut size_max = None;
        if *how >= 0xc0 {
            now = now.after(Duration::from_secs(1 << (*how & 0x0f)));
            server.handle_timeout(now, &mut outputs);
        } else if *how >= 0x80 {
            let address = Ipv4Addr::from_bits(FIRST.to_bits() + u32::from(*how & 3));
            let by = (*how & 4 != 0).then_some(Mac([2, 0, 0, 0, 0, *low]));
            server.handle_probe_answer(now, address, by, &mut outputs);
        } else if let Ok(message) = Message::decode(packet) {
            let from = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, *how & 0x3f), 68);
            let arrival = Arrival { received_on: US, is_broadcast: *how & 0x40 != 0, from, link: 0 };
            server.handle(now, &message, arrival, &mut outputs);
            size_max = Some(message.reply_size_max());
        }
        for reply in outputs.replies.iter().chain(&outputs.durable_replies) {
            check(reply);
            assert!(size_max.is_none_or(|size| reply.size_max <= size));
        }
        logged.append(&mut outputs.records);
    }
    let mut restored = Table::new(MemberId::of("fuzz"), plans, terms);
    logged.into_iter().for_each(|record| assert!(restored.restore(record), "an address of ours"));
    // What was offered and not taken is remembered, and nowhere written.
    assert_eq!(restored.snapshot(None, usize::MAX).0, server.table().snapshot(None, usize::MAX).0);
});

fn settings() -> Settings {
    let mut subnet = Subnet::new(NetworkV4::new(Ipv4Addr::new(10, 77, 0, 0), 24).expect("a network"));
    subnet.pools = vec![AddressRange { first: FIRST, last: LAST }];
    subnet.peer_pools =
        vec![AddressRange { first: Ipv4Addr::new(10, 77, 0, 200), last: Ipv4Addr::new(10, 77, 0, 203) }];
    subnet.reservations = vec![(Reservation::Mac(Mac([0x52, 0x54, 0, 0x77, 0, 1])), RESERVED)];
    subnet.search = vec!["lab.example".into()];
    subnet.mtu = Some(1400);
    let mut settings = Settings::new("fuzz", vec![subnet]);
    settings.query_from =
        vec![goldwire_netboot::Network::new(Ipv4Addr::UNSPECIFIED.into(), 0).expect("a network")];
    settings.probe = Some(Duration::from_secs(1));
    settings
}

/// An answer that can be taken and read, and that gives away what is ours.
fn check(reply: &Reply) {
    let sent = reply.message.encode(reply.size_max);
    assert!(sent.len() <= reply.size_max);
    let read = Message::decode(&sent).expect("our own answer");
    assert_eq!((read.op, read.xid, read.yiaddr), (2, reply.message.xid, reply.message.yiaddr));
    let kind = reply.message.kind();
    if kind == Some(MessageType::OFFER) {
        assert!((FIRST..=LAST).contains(&read.yiaddr) || read.yiaddr == RESERVED, "{}", read.yiaddr);
    }
    if kind == Some(MessageType::NAK) {
        assert!(read.yiaddr.is_unspecified());
    }
}
