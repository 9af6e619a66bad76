//! Requests in somebody else's name: what he is sent, and whom they keep out.

use std::time::Duration;

use proptest::prelude::*;

use super::super::settings::Settings;
use super::super::wire::OptionName;
use super::{Harness, ack, files, key, read_request};
use crate::tftp;

/// Bytes of the headers of IPv4 and UDP.
const HEADERS: usize = 28;

fn options() -> impl Strategy<Value = Vec<(OptionName, u64)>> {
    let option = prop_oneof![
        (8..9000_u64).prop_map(|size| (OptionName::BlockSize, size)),
        (1..200_u64).prop_map(|size| (OptionName::WindowSize, size)),
        Just((OptionName::TransferSize, 0)),
        (1..300_u64).prop_map(|seconds| (OptionName::TimeoutS, seconds)),
    ];
    prop::collection::vec(option, 0..4)
}

/// Lets all time pass in which something is sent by itself; how many bytes that is on the wire.
fn sent_in_time(harness: &mut Harness) -> usize {
    let mut bytes = 0;
    while let Some(deadline) = harness.server.poll_timeout() {
        harness.now = deadline;
        harness.server.handle_timeout(harness.now);
        bytes += harness.sent().iter().map(|(_, packet)| packet.len() + HEADERS).sum::<usize>();
    }
    bytes
}

proptest! {
    /// The rule: who has never answered is sent less than twenty times what was sent in his name, however the request is
    /// made, and however often.
    #[test]
    fn an_address_that_never_proved_itself_is_sent_little(
        options in options(),
        length in 0..200_000_usize,
        copies in 1..4_usize,
    ) {
        let mut harness = Harness::new(Settings::default(), files(&[("pxelinux.0", length)]));
        let request = read_request(b"pxelinux.0", &options);
        let (mut asked, mut sent) = (0, 0);
        for _ in 0..copies {
            asked += request.len() + HEADERS;
            let packets = harness.exchange(key(9, 2000), &request);
            sent += packets.iter().map(|packet| packet.len() + HEADERS).sum::<usize>();
        }
        sent += sent_in_time(&mut harness);
        prop_assert!(sent < 20 * asked, "{} for {}", sent, asked);
    }

    /// A window that is acknowledged in somebody else's name once, and never again, is sent once.
    #[test]
    fn a_window_that_nobody_takes_is_not_repeated(window in 2..65_u64, block_size in 512..1469_u64) {
        let mut harness = Harness::new(Settings::default(), files(&[("a", 1 << 20)]));
        let options = [(OptionName::BlockSize, block_size), (OptionName::WindowSize, window)];
        harness.exchange(key(9, 2000), &read_request(b"a", &options));
        let first: usize = harness.exchange(key(9, 2000), &ack(0)).iter().map(|packet| packet.len() + HEADERS).sum();
        let block = block_size as usize + 4 + HEADERS;
        prop_assert_eq!(first, window as usize * block);
        prop_assert!(sent_in_time(&mut harness) <= 6 * block);
    }
}

// ACKs that are sent one behind the other without looking had a whole file sent to somebody else.
#[test]
fn blind_acks_end_a_transfer() {
    let mut harness = Harness::new(Settings::default(), files(&[("a", 27 << 20)]));
    let options = [(OptionName::BlockSize, 1468), (OptionName::WindowSize, 64)];
    harness.exchange(key(9, 2000), &read_request(b"a", &options));
    let mut sent = 0;
    // They come faster than what they acknowledge is sent.
    for round in 0..50_u16 {
        for step in 0..8 {
            harness.server.handle_datagram(harness.now, key(9, 2000), &ack((round * 8 + step) * 64));
        }
        sent += harness.sent().iter().map(|(_, packet)| packet.len()).sum::<usize>();
    }
    assert_eq!(harness.server.transfers(), 0);
    assert!(sent < 2 * 64 * 1472, "{sent}");
}

#[test]
fn what_icmp_says_ends_the_clients_transfers_and_nobody_elses() {
    let mut harness = Harness::new(Settings::default(), files(&[("a", 1 << 20)]));
    let request = read_request(b"a", &[]);
    for client in [key(2, 1), key(2, 2), key(3, 1)] {
        harness.exchange(client, &request);
    }
    harness.server.handle_unreachable(harness.now, key(2, 1).peer);
    assert_eq!(harness.server.transfers(), 2);
    assert!(harness.exchange(key(2, 1), &ack(1)).is_empty());
    assert_eq!(harness.exchange(key(3, 1), &ack(1)).len(), 1);
}

// 4,352 requests of 17 addresses, and no honest client was answered for eleven seconds.
#[test]
fn a_flood_of_requests_keeps_nobody_out() {
    for wait in [Duration::ZERO, Duration::from_millis(3), Duration::from_secs(2)] {
        let settings = Settings { transfers_max: 64, transfers_per_address_max: 16, ..Settings::default() };
        let mut harness = Harness::new(settings, files(&[("a", 2000)]));
        let request = read_request(b"a", &[]);
        // One that is under way is none of it.
        harness.exchange(key(2, 1), &request);
        assert_eq!(harness.exchange(key(2, 1), &ack(1)).len(), 1);
        for number in 0..500_u16 {
            harness.exchange(key(100 + (number % 17) as u8, 1000 + number), &request);
            harness.now += wait / 500;
        }
        assert!(harness.server.transfers() <= 64);
        let honest = key(3, 1);
        assert_eq!(harness.exchange(honest, &request).len(), 1, "{wait:?}");
        assert_eq!(harness.exchange(honest, &ack(1)).len(), 1);
        for number in 0..100 {
            harness.exchange(key(120, 5000 + number), &request);
        }
        assert_eq!(harness.exchange(honest, &ack(2)).len(), 1, "{wait:?}: who was heard keeps its place");
        assert_eq!(harness.exchange(key(2, 1), &ack(2)).len(), 1);
    }
}

#[test]
fn only_networks_that_are_named_are_answered() {
    let allow_from = vec!["10.0.0.0/26".parse().unwrap()];
    let mut harness = Harness::new(
        Settings { clients: tftp::Clients { allow_from, ..tftp::Clients::default() }, ..Settings::default() },
        files(&[("a", 10)]),
    );
    for (client, count) in [(2, 1), (63, 1), (64, 0), (200, 0)] {
        assert_eq!(harness.exchange(key(client, 1), &read_request(b"a", &[])).len(), count, "{client}");
        assert_eq!(harness.exchange(key(client, 2), &read_request(b"none", &[])).len(), count, "{client}");
    }
}

/// With real sockets: the client's port is closed while the server sends to it, and the kernel hears of that.
#[test]
fn a_client_whose_port_is_closed_is_sent_no_more() {
    use super::super::driver::bind;
    use super::context;
    for mode in [super::super::settings::Mode::SinglePort, super::super::settings::Mode::PortPerTransfer] {
        // Nothing but ICMP ends it before an hour has passed.
        let settings = Settings {
            listen: vec!["127.0.0.1:0".parse().unwrap()],
            clients: tftp::Clients { mode, ..tftp::Clients::default() },
            timeout: Duration::from_secs(3600),
            ..Settings::default()
        };
        let (context, event_log) = context(files(&[("a", 100_000)]));
        let running = bind(settings).unwrap().run(context).unwrap();
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(&read_request(b"a", &[]), running.addresses()[0]).unwrap();
        let mut buffer = [0; 1024];
        let (_, from) = client.recv_from(&mut buffer).unwrap();
        client.send_to(&ack(1), from).unwrap();
        client.recv_from(&mut buffer).unwrap();
        client.send_to(&ack(2), from).unwrap();
        drop(client);
        goldwire_stdx::testing::until("the end is told", || {
            event_log.lines().iter().any(|line| line.contains("transferred a"))
        });
        running.stop();
    }
}

/// Whoever sends in a client's name hears nothing of the answers. All that he can do is say again what clients say.
#[test]
fn a_blind_sender_moves_less_than_twenty_times_his_bytes() {
    use super::super::driver::bind;
    use super::super::wire::OptionName::{BlockSize, WindowSize};
    use super::context;
    const HEADERS: usize = 28;
    for (options, acks) in [(vec![], 300), (vec![(BlockSize, 1468), (WindowSize, 64)], 300)] {
        let settings = Settings { listen: vec!["127.0.0.1:0".parse().unwrap()], ..Settings::default() };
        let (context, _) = context(files(&[("a", 4_000_000)]));
        let running = bind(settings).unwrap().run(context).unwrap();
        let server = running.addresses()[0];
        let victim = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        victim.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        let request = read_request(b"a", &options);
        let mut sent = request.len() + HEADERS;
        victim.send_to(&request, server).unwrap();
        let (mut got, mut buffer) = (0, [0; 2048]);
        for block in 0..acks {
            sent += ack(block).len() + HEADERS;
            victim.send_to(&ack(block), server).unwrap();
            std::thread::sleep(Duration::from_micros(200));
        }
        while let Ok((length, from)) = victim.recv_from(&mut buffer) {
            assert_ne!(from, server, "{options:?}");
            got += length + HEADERS;
        }
        assert!(got > 0 && got < 20 * sent, "{options:?}: {got} bytes for {sent}");
        // One answer, and what is sent again while nobody is heard.
        assert!(got < 2000, "{options:?}: {got} bytes for {sent}");
        running.stop();
    }
}
