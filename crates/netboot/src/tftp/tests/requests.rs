//! Who is answered what.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::admission::Admission;
use super::super::server::{Context, Server};
use super::super::settings::{BlockSizeCap, Settings};
use super::super::wire::{ErrorCode, OptionName, Packet};
use super::{Harness, ack, context, files, key, pattern, read_request};
use crate::content::{Body, Content, ContentError, Contents, Requester};
use crate::event::Stage;
use crate::member::Fitness;

fn error_of(sent: &[Vec<u8>]) -> Option<ErrorCode> {
    match sent {
        [one] => match Packet::decode(one).unwrap() {
            Packet::Error { code, .. } => Some(code),
            _ => None,
        },
        _ => None,
    }
}

#[test]
fn edk2_asks_for_the_size_breaks_off_and_comes_again() {
    let packets: Vec<(bool, Vec<u8>)> = include_str!("../testdata/edk2.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (who, hex) = line.split_once(' ').unwrap();
            let bytes = hex.as_bytes().chunks(2).map(|two| {
                let [byte] = goldwire_stdx::from_hex(std::str::from_utf8(two).unwrap()).unwrap();
                byte
            });
            (who == "client", bytes.collect())
        })
        .collect();
    let client: Vec<&[u8]> =
        packets.iter().filter(|(is_client, _)| *is_client).map(|(_, bytes)| &bytes[..]).collect();
    let mut harness = Harness::new(Settings::default(), files(&[("snponly.efi", 173_792)]));
    let (question, transfer) = (key(100, 1285), key(100, 1286));

    let sent = harness.exchange(question, client[0]);
    assert_eq!(sent, [b"\0\x06tsize\x00173792\0blksize\x001468\0windowsize\x004\0".to_vec()]);
    assert_eq!(harness.exchange(question, client[1]), Vec::<Vec<u8>>::new());
    assert_eq!(harness.server.transfers(), 0);

    let sent = harness.exchange(transfer, client[2]);
    assert_eq!(sent, [b"\0\x06blksize\x001468\0windowsize\x004\0".to_vec()]);
    assert_eq!(harness.exchange(transfer, client[3]).len(), 4);
    for block in (4..119).step_by(4) {
        assert_eq!(harness.exchange(transfer, &ack(block)).len(), if block == 116 { 3 } else { 4 });
    }
    assert_eq!(harness.exchange(transfer, &ack(119)), Vec::<Vec<u8>>::new());
    let mac = super::MAC;
    assert_eq!(
        harness.event_log.lines(),
        [
            format!("{mac} transferred snponly.efi 0 true"),
            format!("{mac} transferred snponly.efi 173792 true"),
            format!("{mac} reached bootstrap snponly.efi"),
        ]
    );
}

#[test]
fn names_in_the_spelling_of_any_firmware() {
    let mut harness = Harness::new(Settings::default(), files(&[("pxe/boot.0", 10)]));
    for (port, name) in [
        &b"pxe/boot.0"[..],
        b"/pxe/boot.0",
        b"//pxe///boot.0",
        b"\\pxe\\boot.0",
        b"./pxe/./boot.0",
        b"pxe/boot.0\xff",
    ]
    .iter()
    .enumerate()
    {
        let sent = harness.exchange(key(2, 1000 + port as u16), &read_request(name, &[]));
        assert_eq!(sent.len(), 1, "{name:?}");
        assert!(matches!(Packet::decode(&sent[0]), Ok(Packet::Data { block: 1, .. })), "{name:?}");
    }
}

#[test]
fn no_spelling_leads_out_of_the_tree() {
    let mut harness =
        Harness::new(Settings::default(), files(&[("etc/passwd", 10), ("..", 1), ("a/../b", 1)]));
    let long = vec![b'a'; 450];
    let names = [
        &b"../etc/passwd"[..],
        b"..",
        b"/../etc/passwd",
        b"a/../../etc/passwd",
        b"a/../b",
        b"..\\etc\\passwd",
        b"a\\..\\..\\etc/passwd",
        b"./../etc/passwd",
        b"a/..",
        b"//..//etc/passwd",
        b"etc/passwd\n",
        b"etc\x7f/passwd",
        b"\xc0\xae\xc0\xae/etc/passwd",
        b"..\xff",
        b"",
        b"/",
        b"\\",
        b".",
        &long,
    ];
    for (port, name) in names.iter().enumerate() {
        let sent = harness.exchange(key(2, 1000 + port as u16), &read_request(name, &[]));
        assert_eq!(error_of(&sent), Some(ErrorCode::ACCESS_VIOLATION), "{name:?}");
    }
    // These are names like any other, for who knows the tree, and one of something hidden.
    for (port, name) in
        [&b"%2e%2e/etc/passwd"[..], b".../passwd", b"C:\\etc\\passwd", b"~root"].iter().enumerate()
    {
        let sent = harness.exchange(key(2, 2000 + port as u16), &read_request(name, &[]));
        assert_eq!(error_of(&sent), Some(ErrorCode::FILE_NOT_FOUND), "{name:?}");
    }
    assert_eq!(harness.server.transfers(), 0);
}

#[test]
fn refusals_have_the_code_that_fits() {
    let mut harness = Harness::new(Settings::default(), files(&[("a", 10)]));
    let mode = |mode: &[u8]| [&b"\0\x01a\0"[..], mode, b"\0"].concat();
    for (port, request, code) in [
        (1, read_request(b"nothing", &[]), ErrorCode::FILE_NOT_FOUND),
        (2, read_request(b"forbidden", &[]), ErrorCode::ACCESS_VIOLATION),
        (3, b"\0\x02a\0octet\0".to_vec(), ErrorCode::ACCESS_VIOLATION),
        (4, mode(b"netascii"), ErrorCode::ILLEGAL_OPERATION),
        (5, mode(b"mail"), ErrorCode::ILLEGAL_OPERATION),
    ] {
        assert_eq!(error_of(&harness.exchange(key(2, port), &request)), Some(code), "{port}");
    }
    // To these, nobody answers.
    for packet in
        [&b""[..], b"\0\x05\0\0x\0", b"\0\x04\0\x01", b"\0\x03\0\x01x", b"\0\x06\0", b"\0\x09ab", b"\0\x01a"]
    {
        assert!(harness.exchange(key(2, 9), packet).is_empty(), "{packet:?}");
    }
    assert!(harness.exchange(key(2, 0), &read_request(b"a", &[])).is_empty());
}

#[test]
fn a_packet_from_another_port_or_to_another_address_changes_nothing() {
    let mut harness = Harness::new(Settings::default(), files(&[("a", 2000)]));
    let client = key(2, 1000);
    assert_eq!(harness.exchange(client, &read_request(b"a", &[])).len(), 1);
    let mut elsewhere = client;
    elsewhere.local = key(7, 0).peer.ip();
    for stranger in [key(2, 1001), key(3, 1000), elsewhere] {
        assert!(harness.exchange(stranger, &ack(1)).is_empty());
        assert!(harness.exchange(stranger, b"\0\x05\0\0stop\0").is_empty());
    }
    assert_eq!(harness.exchange(client, &ack(1)).len(), 1);
}

#[test]
fn limits_hold_and_who_waits_is_served_later() {
    let settings = Settings { transfers_max: 3, transfers_per_address_max: 2, ..Settings::default() };
    let mut harness = Harness::new(settings, files(&[("a", 600)]));
    let request = read_request(b"a", &[]);
    let begin = |harness: &mut Harness, key| {
        let is_answered = harness.exchange(key, &request).len() == 1;
        // It shows that it is there.
        is_answered && harness.exchange(key, &ack(1)).len() == 1
    };
    assert!(begin(&mut harness, key(2, 1)));
    assert!(begin(&mut harness, key(2, 2)));
    assert!(!begin(&mut harness, key(2, 3)));
    assert!(begin(&mut harness, key(3, 1)));
    assert!(!begin(&mut harness, key(4, 1)));
    harness.exchange(key(2, 1), &ack(2));
    assert_eq!(harness.exchange(key(4, 1), &request).len(), 1);
    // Clients that fell silent give their places back.
    while let Some(deadline) = harness.server.poll_timeout() {
        harness.now = deadline;
        harness.server.handle_timeout(harness.now);
        harness.sent();
    }
    assert_eq!(harness.server.transfers(), 0);
    for client in 10..13 {
        assert_eq!(harness.exchange(key(client, 1), &request).len(), 1);
    }
}

#[test]
fn a_request_that_comes_twice_is_one_transfer() {
    let mut harness = Harness::new(Settings::default(), files(&[("a", 2000), ("b", 5)]));
    let (client, request) = (key(2, 1000), read_request(b"a", &[]));
    assert_eq!(harness.exchange(client, &request).len(), 1);
    assert_eq!(harness.exchange(client, &request).len(), 1, "its answer was lost");
    assert_eq!(harness.server.transfers(), 1);
    assert_eq!(harness.exchange(client, &ack(1)).len(), 1);
    assert!(harness.exchange(client, &request).is_empty(), "a copy that was late");
    // The machine was reset and uses the same port again.
    harness.now += Duration::from_secs(5);
    let sent = harness.exchange(client, &request);
    assert!(matches!(Packet::decode(&sent[0]), Ok(Packet::Data { block: 1, .. })));
    let sent = harness.exchange(client, &read_request(b"b", &[]));
    assert_eq!(sent, [b"\0\x03\0\x01\x00\x01\x02\x03\x04".to_vec()]);
    assert_eq!(harness.server.transfers(), 1);
}

#[test]
fn a_network_with_less_room_gets_smaller_blocks() {
    let cap =
        |network: &str, block_size_max| BlockSizeCap { network: network.parse().unwrap(), block_size_max };
    let caps = vec![cap("10.0.0.0/8", 1400), cap("10.0.0.128/25", 1200), cap("10.0.0.64/26", 9000)];
    let mut harness =
        Harness::new(Settings { block_size_caps: caps, ..Settings::default() }, files(&[("a", 10)]));
    for (client, block_size) in [(2, 1400), (127, 1468), (128, 1200), (255, 1200)] {
        let sent = harness.exchange(key(client, 1), &read_request(b"a", &[(OptionName::BlockSize, 8192)]));
        let Packet::OptionAck(options) = Packet::decode(&sent[0]).unwrap() else { panic!() };
        assert_eq!(options.get(OptionName::BlockSize), Some(block_size), "{client}");
    }
    let mut client = key(2, 1);
    client.peer = "[2001:db8::2]:1".parse().unwrap();
    let sent = harness.exchange(client, &read_request(b"a", &[(OptionName::BlockSize, 8192)]));
    assert_eq!(sent, [b"\0\x06blksize\x001448\0".to_vec()]);
}

/// A file on a disk is read ahead of a client without windows. What is repeated, skipped back to or shortened meanwhile
/// is told apart all the same.
#[test]
fn a_file_that_is_read_ahead_is_sent_as_it_is() {
    struct OnDisk(Arc<File>, u64);
    impl Contents for OnDisk {
        fn open(&self, _: &str, _: &Requester) -> Result<Content, ContentError> {
            Ok(Content {
                body: Body::File(Arc::clone(&self.0)),
                length: self.1,
                digest: None,
                media_type: "application/octet-stream",
                modified: None,
                stage: Stage::Bootstrap,
            })
        }
    }
    const LENGTH: usize = 100_000;
    for block in [512_usize, 1468, 9000] {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&pattern(LENGTH)).unwrap();
        let file = Arc::new(file);
        let event_log = Arc::new(super::EventLog::default());
        let context = Context {
            fitness: Arc::default(),
            contents: Arc::new(OnDisk(Arc::clone(&file), LENGTH as u64)),
            observer: event_log.clone(),
            mac_of: Arc::new(|_| None),
        };
        let settings = Settings { block_size_max: 9000, ..Settings::default() };
        let admission = Admission::new(&settings);
        let server = Server::new(Arc::new(settings), context, admission);
        let mut harness = Harness { server, event_log, now: Instant::now() };
        let data = |number: usize| {
            let bytes = &pattern(LENGTH)[((number - 1) * block).min(LENGTH)..(number * block).min(LENGTH)];
            vec![Packet::Data { block: number as u16, bytes }.encode()]
        };
        harness.exchange(key(9, 1000), &read_request(b"f", &[(OptionName::BlockSize, block as u64)]));
        let half = LENGTH / block / 2;
        for number in 0..half {
            assert_eq!(
                harness.exchange(key(9, 1000), &ack(number as u16)),
                data(number + 1),
                "{block} {number}"
            );
        }
        harness.now += Duration::from_secs(1);
        harness.server.handle_timeout(harness.now);
        let again: Vec<_> = harness.sent().into_iter().map(|(_, packet)| packet).collect();
        assert_eq!(again, data(half), "{block}");
        for number in half..=LENGTH / block {
            assert_eq!(
                harness.exchange(key(9, 1000), &ack(number as u16)),
                data(number + 1),
                "{block} {number}"
            );
        }

        // Another one, whose file is cut: right bytes as far as there are some, then an ERROR, and no block twice.
        harness.exchange(key(9, 2000), &read_request(b"f", &[(OptionName::BlockSize, block as u64)]));
        assert_eq!(harness.exchange(key(9, 2000), &ack(0)), data(1));
        file.set_len(1000).unwrap();
        let mut number = 1;
        loop {
            let sent = harness.exchange(key(9, 2000), &ack(number as u16));
            number += 1;
            if sent != data(number) {
                assert_eq!(error_of(&sent), Some(ErrorCode::NOT_DEFINED), "{block} {number}");
                break;
            }
            assert!(number <= LENGTH / block, "the end was never noticed");
        }
        let line = harness.event_log.lines().into_iter().find(|line| line.contains("shorter"));
        assert_eq!(line.as_deref(), Some("- refused f: the file has become shorter while it was sent"));
    }
}

/// Answers when it is let go: a disk that hangs.
struct Hanging(std::sync::mpsc::Receiver<()>);

impl Contents for std::sync::Mutex<Hanging> {
    fn open(&self, _path: &str, _requester: &Requester) -> Result<Content, ContentError> {
        let _ = self.lock().unwrap().0.recv();
        Err(ContentError::NotFound)
    }
}

/// A member whose boot tree does not answer knows it while TFTP waits, and is well again afterwards.
#[test]
fn a_disk_that_hangs_is_known_to_health() {
    let (go, hanging) = std::sync::mpsc::channel();
    let fitness = Arc::new(Fitness::with_patience(Duration::from_millis(1)));
    let (context, _) = context(files(&[]));
    let context = Context {
        contents: Arc::new(std::sync::Mutex::new(Hanging(hanging))),
        fitness: Arc::clone(&fitness),
        ..context
    };
    let settings = Arc::new(Settings::default());
    let mut server = Server::new(Arc::clone(&settings), context, Admission::new(&settings));
    let waiting = goldwire_stdx::spawn("asked", move || {
        server.handle_datagram(Instant::now(), key(2, 1), &read_request(b"a", &[]));
        server.poll_transmit(Instant::now()).is_some()
    })
    .unwrap();
    while fitness.trouble().is_none() {
        std::thread::yield_now();
    }
    assert!(fitness.trouble().unwrap().starts_with("the boot tree: its disk has not answered for"));
    go.send(()).unwrap();
    assert!(waiting.join().unwrap(), "the client is told");
    assert_eq!(fitness.trouble(), None);
}
