//! Over TFTP: tftp-hpa, curl and hand-made datagrams as clients.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::member::content;
use super::*;
use crate::tftp::{Mode, NOT_ALLOWED};

/// What a TFTP member does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Answers from the port that was asked.
    SinglePort,
    /// Answers from a port of its own (RFC 1350).
    Classic,
    /// Never answers.
    Silent,
    /// Agrees on options, then is silent.
    AgreesOnly,
}

struct TftpMember {
    port: u16,
    was_asked: Arc<AtomicBool>,
}

impl TftpMember {
    /// Serves the content under every name, one client after the other, with the block size that is wanted.
    fn new(manner: Manner, content: Vec<u8>) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let was_asked = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&was_asked);
        goldwire_stdx::spawn("test", move || {
            let mut bytes = [0; 2048];
            loop {
                let (length, client) = socket.recv_from(&mut bytes).unwrap();
                if bytes[..length].starts_with(&[0, 1]) {
                    asked.store(true, Ordering::Relaxed);
                    let from = match manner {
                        Manner::Silent => continue,
                        Manner::Classic => UdpSocket::bind("127.0.0.1:0").unwrap(),
                        Manner::SinglePort | Manner::AgreesOnly => socket.try_clone().unwrap(),
                    };
                    serve(&from, client, &bytes[..length], &content, manner == Manner::AgreesOnly);
                }
            }
        })
        .unwrap();
        Self { port, was_asked }
    }
}

/// Lock-step, with a resend of whatever is not acknowledged.
fn serve(socket: &UdpSocket, client: SocketAddr, request: &[u8], content: &[u8], agrees_only: bool) {
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let words: Vec<&[u8]> = request[2..].split(|byte| *byte == 0).collect();
    let wanted = words.windows(2).find(|pair| pair[0] == b"blksize");
    let block_size = wanted.map_or(512, |pair| std::str::from_utf8(pair[1]).unwrap().parse().unwrap());
    let send = |datagram: &[u8], block: u16| {
        let mut bytes = [0; 2048];
        for _ in 0..100 {
            socket.send_to(datagram, client).unwrap();
            let until = Instant::now() + Duration::from_millis(300);
            while Instant::now() < until {
                match socket.recv_from(&mut bytes) {
                    Ok((_, from)) if from == client && bytes[..2] == [0, 5] => return false,
                    Ok((_, from))
                        if from == client && bytes[..4] == [&[0, 4], &block.to_be_bytes()[..]].concat() =>
                    {
                        return true;
                    }
                    _ => {}
                }
            }
        }
        false
    };
    if wanted.is_some() {
        let oack = format!("\0\x06blksize\0{block_size}\0");
        if !send(oack.as_bytes(), 0) || agrees_only {
            return;
        }
    }
    for block in 0..=content.len() / block_size {
        let data = &content[block * block_size..content.len().min((block + 1) * block_size)];
        let number = (block + 1) as u16;
        if !send(&[&[0, 3], &number.to_be_bytes()[..], data].concat(), number) {
            return;
        }
    }
    socket.set_read_timeout(None).unwrap();
}

fn front_for(members: &[&TftpMember]) -> Front {
    let http: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let members: Vec<_> = members.iter().map(|member| (http, member.port)).collect();
    front_of(&members, |_| {})
}

#[test]
fn real_clients_fetch_from_members_of_both_kinds() {
    if !has("tftp", "-V") || !has("curl", "--version") {
        return;
    }
    let body = content(40_000);
    for manner in [Manner::SinglePort, Manner::Classic] {
        let member = TftpMember::new(manner, body.clone());
        let front = front_for(&[&member]);
        assert_eq!(tftp_get(&front), body);
        let url = format!("tftp://{}/f", front.tftp());
        assert_eq!(curl(&[&url]), (0, body.clone()));
        assert_eq!(curl(&["--tftp-blksize", "1400", &url]), (0, body.clone()));
        let lines = front.seen.lines(3);
        assert!(lines.iter().all(|line| line.ends_with("f 40000 complete")), "{lines:?}");
    }
}

/// What another one sends in the client's name reaches no session: he has not heard from which port that answers.
#[test]
fn a_blind_sender_of_acks_gets_one_answer_for_all_of_them() {
    for mode in [Mode::PortPerTransfer, Mode::SinglePort] {
        let member = TftpMember::new(Manner::SinglePort, content(40_000));
        let http: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let front = front_of(&[(http, member.port)], |settings| settings.tftp_clients.mode = mode);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.send_to(b"\0\x01f\0octet\0", front.tftp()).unwrap();
        let mut bytes = [0; 600];
        let (_, from) = client.recv_from(&mut bytes).unwrap();
        assert_eq!((from == front.tftp(), &bytes[..4]), (mode == Mode::SinglePort, &b"\0\x03\0\x01"[..]));
        client.send_to(b"\0\x04\0\x01", front.tftp()).unwrap();
        // The member repeats its first block: an honest client would have the second one.
        client.recv_from(&mut bytes).unwrap();
        assert_eq!(bytes[3], if mode == Mode::SinglePort { 2 } else { 1 }, "{mode:?}");
        client.send_to(b"\0\x04\0\x01", from).unwrap();
        while bytes[3] != 2 {
            client.recv_from(&mut bytes).unwrap();
        }
    }
}

#[test]
fn only_networks_that_are_named_are_answered() {
    let member = TftpMember::new(Manner::Classic, content(100));
    let http: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let front = front_of(&[(http, member.port)], |settings| {
        settings.tftp_clients.allow_from = vec!["127.0.0.1/32".parse().unwrap()];
    });
    for (from, is_answered) in [("127.0.0.2:0", false), ("127.0.0.1:0", true)] {
        let client = UdpSocket::bind(from).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(if is_answered { 10_000 } else { 500 }))).unwrap();
        client.send_to(b"\0\x01f\0octet\0", front.tftp()).unwrap();
        assert_eq!(client.recv_from(&mut [0; 600]).is_ok(), is_answered, "{from}");
        assert!(front.seen.lines(1)[0].contains(NOT_ALLOWED), "and it is said");
    }
}

#[test]
fn a_member_that_dies_before_its_first_block_is_replaced() {
    if !has("curl", "--version") {
        return;
    }
    let body = content(9_000);
    for manner in [Manner::Silent, Manner::AgreesOnly] {
        let (first, second) =
            (TftpMember::new(manner, Vec::new()), TftpMember::new(Manner::Classic, body.clone()));
        let front = front_for(&[&first, &second]);
        let url = format!("tftp://{}/f", front.tftp());
        assert_eq!(curl(&["--tftp-blksize", "1400", &url]), (0, body.clone()));
        assert!(first.was_asked.load(Ordering::Relaxed));
        assert_eq!(front.seen.lines(1), ["f 9000 complete"]);
    }
}

#[test]
fn nobody_alive_writes_and_strangers() {
    let front = front_for(&[]);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    for datagram in [&b"\0\x04\0\x01"[..], b"", b"\0", b"\0\x07x", b"\0\x01f\0octet\0"] {
        client.send_to(datagram, front.tftp()).unwrap();
    }
    assert_eq!(front.seen.lines(1), ["f refused: no member is alive"]);
    client.send_to(b"\0\x02f\0octet\0", front.tftp()).unwrap();
    let mut answer = [0; 100];
    let (length, from) = client.recv_from(&mut answer).unwrap();
    assert_eq!((&answer[..4], from), (&b"\0\x05\0\x02"[..], front.tftp()));
    assert!(length > 4);
    front.running.stop(Duration::from_secs(30));
}

/// tftp-hpa.
fn tftp_get(front: &Front) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (address, target) = (front.tftp(), folder.path().join("got"));
    let output = Command::new("tftp")
        .args(["-m", "binary", &address.ip().to_string(), &address.port().to_string(), "-c", "get", "f"])
        .arg(&target)
        .output()
        .unwrap();
    std::fs::read(&target).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}
