//! What people complain about in TFTP servers, one test for each row of the list.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::receive::{Receiver, Step};
use super::super::settings::{BlockSizeCap, Settings};
use super::super::wire::{OptionName, Options, Packet};
use super::super::{Mode, Running, bind};
use super::link::{NetworkFaults, fetch};
use super::{Harness, context, files, key, pattern, read_request};
use crate::tftp;

/// A server on loopback.
pub(super) fn serve(settings: Settings, names: &[(&str, usize)]) -> (Running, Arc<super::EventLog>) {
    let (context, event_log) = context(files(names));
    (bind(settings).unwrap().run(context).unwrap(), event_log)
}

/// Fetches a file as a client that accepts packets only from where it asked, as one behind NAT does.
pub(super) fn fetch_from(
    server: SocketAddr,
    file: &str,
    options: &[(OptionName, u64)],
) -> Result<Vec<u8>, String> {
    fetch_in(Mode::default(), server, file, options)
}

/// Fetches a file, in the classic mode from whatever port of the server answers first, and only from that.
pub(super) fn fetch_in(
    mode: Mode,
    server: SocketAddr,
    file: &str,
    options: &[(OptionName, u64)],
) -> Result<Vec<u8>, String> {
    let socket = UdpSocket::bind(if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }).unwrap();
    let mut is_connected = mode == Mode::SinglePort;
    if is_connected {
        socket.connect(server).unwrap();
    }
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut asked = Options::default();
    for (name, value) in options {
        asked.add(*name, *value);
    }
    let mut receiver = Receiver::new(asked);
    let request = receiver.request(file);
    if is_connected { socket.send(&request) } else { socket.send_to(&request, server) }.unwrap();
    let (mut got, mut buffer, mut silence) = (Vec::new(), [0; 65536], 0);
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            silence += 1;
            if silence > 10 {
                return Err("silence".into());
            }
            let packet = receiver.reminder().map_or_else(|| request.clone(), |ack| ack.to_vec());
            if is_connected { socket.send(&packet) } else { socket.send_to(&packet, server) }.unwrap();
            continue;
        };
        if !is_connected {
            assert!(from.ip() == server.ip() && from.port() != server.port(), "{from} answers for {server}");
            socket.connect(from).unwrap();
            is_connected = true;
        }
        let packet = Packet::decode(&buffer[..length]).unwrap();
        match receiver.handle_packet(&packet, &mut |_, bytes| got.extend_from_slice(bytes)) {
            Step::Wait => {}
            Step::Acknowledge(packet) => drop(socket.send(&packet).unwrap()),
            Step::Done(packet) => {
                socket.send(&packet).unwrap();
                return Ok(got);
            }
            Step::Failed(code, message) => return Err(format!("{}: {message}", code.0)),
            Step::Refuse(_) => return Err("changed options".into()),
        }
    }
}

/// Row 9: TFTP over a WAN, 60 KB/s at 25 ms. What one round trip carries decides, so windows are the cure.
#[test]
fn row_9_a_wan_of_25_ms() {
    let faults = NetworkFaults { latency_us: 12_500, ..NetworkFaults::default() };
    let rate = |window: u64| {
        let asked = [(OptionName::BlockSize, 1468), (OptionName::WindowSize, window)];
        let journey = fetch(1, faults, 2_000_000, &asked[..if window == 1 { 1 } else { 2 }]);
        assert!(journey.file.unwrap()[..] == pattern(2_000_000)[..]);
        2_000_000.0 / journey.elapsed.as_secs_f64()
    };
    let (plain, windowed) = (rate(1), rate(64));
    assert!((50e3..60e3).contains(&plain), "{plain}");
    assert!(windowed > 3e6, "{windowed}");
}

/// Row 10: a block as large as the path lets through, which is smaller in an overlay and larger where frames are.
#[test]
fn row_10_the_block_size_follows_the_network() {
    let overlay = BlockSizeCap { network: "10.0.0.0/30".parse().unwrap(), block_size_max: 1350 };
    let settings = Settings { block_size_max: 8192, block_size_caps: vec![overlay], ..Settings::default() };
    let mut harness = Harness::new(settings, files(&[("f", 10)]));
    for (client, asked, agreed) in [(2, 1468, 1350), (2, 1024, 1024), (9, 8192, 8192), (9, 65464, 8192)] {
        let request = read_request(b"f", &[(OptionName::BlockSize, asked)]);
        let sent = harness.exchange(key(client, asked as u16), &request);
        let Packet::OptionAck(options) = Packet::decode(&sent[0]).unwrap() else { panic!() };
        assert_eq!(options.get(OptionName::BlockSize), Some(agreed));
    }
}

/// Row 11: more blocks than 16 bits count, the OACK's order, and the last block.
#[test]
fn row_11_big_files_roll_over() {
    let length = 65_535 * 512 + 512 * 3;
    let (running, _) = serve(on_loopback(), &[("big", length), ("empty", 0), ("one", 1), ("block", 512)]);
    let server = running.addresses()[0];
    for options in [&[][..], &[(OptionName::WindowSize, 16)]] {
        assert!(fetch_from(server, "big", options).unwrap()[..] == pattern(length)[..], "{options:?}");
    }
    for (name, length) in [("empty", 0), ("one", 1), ("block", 512)] {
        assert_eq!(fetch_from(server, name, &[]).unwrap()[..], pattern(length)[..], "{name}");
        assert_eq!(
            fetch_from(server, name, &[(OptionName::WindowSize, 4)]).unwrap()[..],
            pattern(length)[..]
        );
    }
    running.stop();
    let mut harness = Harness::new(Settings::default(), files(&[("f", 10)]));
    let sent = harness.exchange(key(2, 1), b"\0\x01f\0octet\0windowsize\x008\0tsize\x000\0blksize\x00600\0");
    assert_eq!(sent, [b"\0\x06windowsize\x008\0tsize\x0010\0blksize\x00600\0".to_vec()]);
}

/// Row 12: NAT, Kubernetes and load balancers let only packets from the port through that was asked.
#[test]
fn row_12_behind_nat_or_a_load_balancer() {
    let settings = Settings {
        clients: tftp::Clients { mode: Mode::SinglePort, ..tftp::Clients::default() },
        ..on_loopback()
    };
    let (running, event_log) = serve(settings, &[("f", 300_000)]);
    let relay = Relay::start(running.addresses()[0]);
    let asked = [(OptionName::BlockSize, 1400), (OptionName::WindowSize, 8)];
    assert!(fetch_in(Mode::SinglePort, relay.address, "f", &asked).unwrap()[..] == pattern(300_000)[..]);
    let transferred = format!("{} transferred f 300000 true", super::MAC);
    goldwire_stdx::testing::until("the end is told", || event_log.lines().contains(&transferred));
    running.stop();

    // With a port for each transfer, the same client gets nothing: the relay does its work.
    let settings = Settings {
        clients: tftp::Clients { mode: Mode::PortPerTransfer, ..tftp::Clients::default() },
        ..on_loopback()
    };
    let (running, _) = serve(settings, &[("f", 300_000)]);
    let relay = Relay::start(running.addresses()[0]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.send_to(&read_request(b"f", &[]), relay.address).unwrap();
    assert!(socket.recv(&mut [0; 600]).is_err());
}

/// Row 22: what one protocol denies, the other may not serve. The contents decide for both, with who asks.
#[test]
fn row_22_the_policy_is_the_contents() {
    let mut harness = Harness::new(Settings::default(), files(&[("only-for-a", 10), ("forbidden", 10)]));
    let sent = harness.exchange(key(2, 1), &read_request(b"/only-for-a", &[]));
    assert!(matches!(Packet::decode(&sent[0]), Ok(Packet::Data { .. })));
    let sent = harness.exchange(key(2, 2), &read_request(b"\\forbidden", &[]));
    // The reason is for the log and not for who asks.
    assert_eq!(sent, [b"\0\x05\0\x02access violation\0".to_vec()]);
    let line = harness.event_log.lines().pop().unwrap();
    assert_eq!(line, format!("{} refused forbidden: not allowed: the policy says no", super::MAC));
}

/// Row 13, as far as it is TFTP's: the answer comes from the address that was asked, not from the primary one.
#[test]
fn row_13_the_reply_comes_from_the_address_that_was_asked() {
    for (listen, asked) in [("0.0.0.0:0", "127.0.0.1"), ("0.0.0.0:0", "127.0.0.2"), ("[::]:0", "::1")] {
        let settings = Settings { listen: vec![listen.parse().unwrap()], ..Settings::default() };
        let (running, _) = serve(settings, &[("f", 100_000)]);
        let server = SocketAddr::new(asked.parse().unwrap(), running.addresses()[0].port());
        // The client's socket is connected and takes packets from nowhere else.
        let options = [(OptionName::WindowSize, 16)];
        assert!(fetch_from(server, "f", &options).unwrap()[..] == pattern(100_000)[..], "{asked}");
        assert!(fetch_from(server, "f", &[]).unwrap()[..] == pattern(100_000)[..], "{asked}");
    }
}

pub(super) fn on_loopback() -> Settings {
    Settings { listen: vec!["127.0.0.1:0".parse().unwrap()], ..Settings::default() }
}

/// A UDP load balancer in small: passes on what one client sends from one port of its own, and lets through only what
/// comes from the server's address and port.
struct Relay {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    fn start(server: SocketAddr) -> Self {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = front.local_addr().unwrap();
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&is_over);
        let thread = goldwire_stdx::spawn("test", move || {
            let (mut client, mut buffer) = (None, [0; 65536]);
            while !flag.load(Ordering::Relaxed) {
                while let Ok((length, from)) = front.recv_from(&mut buffer) {
                    client = Some(from);
                    back.send_to(&buffer[..length], server).unwrap();
                }
                while let Ok((length, from)) = back.recv_from(&mut buffer) {
                    if let Some(client) = client.filter(|_| from == server) {
                        front.send_to(&buffer[..length], client).unwrap();
                    }
                }
            }
        })
        .unwrap();
        Self { address, is_over, thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
    }
}
