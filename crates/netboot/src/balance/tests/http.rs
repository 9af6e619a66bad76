//! Over HTTP: what a client sees while members fail in every way.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::member::content;
use super::*;
use crate::proxy_header::{Origin, decode, encode};

#[test]
fn a_request_is_answered_by_another_member_whatever_the_first_one_does() {
    if !has("curl", "--version") {
        return;
    }
    let body = content(300_000);
    let (first, second) = (TestMember::new(Mode::Well, &body), TestMember::new(Mode::Well, &body));
    let front = front(&[&first, &second]);
    for mode in [Mode::Well, Mode::Reset, Mode::Hang, Mode::Status(503), Mode::Status(500), Mode::Slow(3000)]
    {
        first.set(mode);
        assert_eq!(curl(&[&front.url("/f")]), (0, body.clone()), "{mode:?}");
        let head = String::from_utf8(curl(&["-I", &front.url("/f")]).1).unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("Content-Length: 300000"), "{head}");
    }
    // The first one had all of them first, and answered two itself.
    assert_eq!((first.asked().len(), second.asked().len()), (12, 10));
    assert_eq!(front.seen.lines(12), ["/f 300000 complete", "/f 0 complete"].repeat(6));
    front.running.stop(Duration::ZERO);
}

#[test]
fn refused_connections_cost_no_time() {
    let body = content(1000);
    let alive = TestMember::new(Mode::Well, &body);
    let front = front_of(&[(TestMember::dead(), 0), (alive.address, 0)], |_| {});
    let answer = exchange(&front, "GET /f HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n") && answer.ends_with(&body));
}

#[test]
fn a_transfer_that_breaks_goes_on_at_another_member_and_the_client_does_not_notice() {
    if !has("curl", "--version") {
        return;
    }
    let body = content(1_000_000);
    let (first, second) = (TestMember::new(Mode::Well, &body), TestMember::new(Mode::Well, &body));
    let front = front(&[&first, &second]);
    let cuts = [0, 1, 65_536, 999_999];
    for mode in cuts.into_iter().flat_map(|at| [Mode::Cut(at), Mode::CutHard(at)]).chain([Mode::Stall(5)]) {
        first.set(mode);
        assert_eq!(curl(&[&front.url("/f")]), (0, body.clone()), "{mode:?}");
        let part = curl(&["-r", "100000-899999", &front.url("/f")]);
        assert_eq!(part, (0, body[100_000..900_000].to_vec()), "{mode:?}");
    }
    let asked = second.asked().join("");
    assert!(asked.contains("If-Match: \"same-everywhere\""), "{asked}");
    assert!(asked.contains("Range: bytes=5-999999\r\n") && asked.contains("Range: bytes=100005-899999\r\n"));
    // Both break off again and again, each after some bytes: it goes on from one to the other.
    first.set(Mode::Cut(100_000));
    second.set(Mode::Cut(150_000));
    assert_eq!(curl(&[&front.url("/f")]), (0, body));
    assert!(front.seen.lines(19).iter().all(|line| line.ends_with("complete")));
}

#[test]
fn what_cannot_be_continued_is_seen_to_be_broken() {
    if !has("curl", "--version") {
        return;
    }
    let body = content(100_000);
    let (first, second) = (TestMember::new(Mode::Well, &body), TestMember::new(Mode::Well, &body));
    let front = front(&[&first, &second]);
    for mode in [Mode::CutWithoutTag(5000), Mode::ChunkedCut] {
        first.set(mode);
        assert_ne!(curl(&[&front.url("/f")]).0, 0, "{mode:?}");
        // Where a body ends with its connection, only a reset tells.
        let mut stream = TcpStream::connect(front.running.http_addresses()[0]).unwrap();
        stream.write_all(b"GET /f HTTP/1.0\r\n\r\n").unwrap();
        assert!(stream.read_to_end(&mut Vec::new()).is_err(), "{mode:?} 1.0");
    }
    assert!(front.seen.lines(4).iter().all(|line| line.ends_with("broken")));
    // A member that has other bytes says 412 to the ETag, and does not go on with the first one's.
    let other = TestMember::new(Mode::Status(412), &body);
    let front = super::front(&[&first, &other]);
    first.set(Mode::Cut(0));
    assert_ne!(curl(&[&front.url("/f")]).0, 0);
    assert!(other.asked()[0].contains("If-Match"));
}

#[test]
fn bodies_in_every_framing_for_both_versions() {
    if !has("curl", "--version") {
        return;
    }
    let body = content(150_000);
    let member = TestMember::new(Mode::Well, &body);
    let front = front(&[&member]);
    for mode in [Mode::Well, Mode::Chunked, Mode::UntilClose, Mode::Forgetful] {
        member.set(mode);
        let url = front.url("/f");
        assert_eq!(curl(&[&url]), (0, body.clone()), "{mode:?}");
        assert_eq!(curl(&["--http1.0", &url]), (0, body.clone()), "{mode:?} 1.0");
        // Two on one connection.
        let two = curl(&[&url, &url]);
        assert_eq!(two, (0, [body.clone(), body.clone()].concat()), "{mode:?} twice");
    }
}

#[test]
fn connections_are_kept_on_both_sides() {
    let member = TestMember::new(Mode::Echo, b"");
    let front = front_of(&[(member.address, 0)], |settings| settings.sends_proxy_header = false);
    let mut stream = TcpStream::connect(front.running.http_addresses()[0]).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    for round in 0..3 {
        // Two requests in one write: pipelined.
        let request = "GET /x HTTP/1.1\r\nHost: boot\r\n\r\n".repeat(2);
        stream.write_all(request.as_bytes()).unwrap();
        for _ in 0..2 {
            let answer = read_answer(&mut stream);
            assert!(
                answer.contains("X-Kept: yes") && answer.contains("GET /x HTTP/1.1"),
                "{round}: {answer}"
            );
            assert!(answer.contains("X-Forwarded-For: 127.0.0.1\r\n") && !answer.contains("Connection:"));
        }
    }
}

#[test]
fn nobody_alive_is_said_so_that_ipxe_asks_again() {
    let front = front_of(&[], |_| {});
    let answer =
        String::from_utf8(exchange(&front, "GET /f HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"));
    let answer = answer.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("Retry-After: 2\r\n"), "{answer}");
    assert!(exchange(&front, "GET /health HTTP/1.0\r\n\r\n").starts_with(b"HTTP/1.1 503 "));
    assert_eq!(front.seen.lines(1), ["/f refused: no member of the group is alive"]);
    // All are busy: their own words, with their own delay, reach the client.
    let members = [Mode::Status(503), Mode::Status(503)].map(|mode| TestMember::new(mode, b""));
    let front = super::front(&[&members[0], &members[1]]);
    let answer = String::from_utf8(exchange(&front, "GET /f HTTP/1.0\r\n\r\n")).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 X\r\nRetry-After: 7\r\n") && answer.ends_with("no"), "{answer}");
}

#[test]
fn requests_that_are_none_of_ours_are_refused() {
    let member = TestMember::new(Mode::Well, b"x");
    let front = front(&[&member]);
    for (request, status) in [
        ("POST / HTTP/1.1\r\nHost: b\r\n\r\n", "405"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        ("\x16\x03\x01 TLS\r\n\r\n", "400"),
    ] {
        let answer = exchange(&front, request);
        assert_eq!(String::from_utf8_lossy(&answer[9..12]), status, "{request:?}");
    }
    let long = format!("GET / HTTP/1.1\r\nHost: b\r\nX: {}\r\n\r\n", "x".repeat(20_000));
    let mut stream = TcpStream::connect(front.running.http_addresses()[0]).unwrap();
    // The front may close before all of it is written.
    let _ = stream.write_all(long.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "));
    assert_eq!(member.asked().len(), 0);
}

#[test]
fn a_trusted_balancer_says_who_its_client_is_and_others_cannot() {
    let member = TestMember::new(Mode::Echo, b"");
    let local = "127.0.0.0/8".parse().unwrap();
    let front = front_of(&[(member.address, 0)], |settings| settings.proxies = vec![local]);
    let request = "GET /x HTTP/1.0\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n";
    let binary = encode("10.1.2.3:1000".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
    for header in [b"PROXY TCP4 10.1.2.3 10.0.0.1 1000 80\r\n".to_vec(), binary] {
        let answer = exchange_bytes(&front, &[&header, request.as_bytes()].concat());
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.contains("X-Forwarded-For: 9.9.9.9, 10.1.2.3\r\n"), "{answer}");
    }
    // Without a header its client could write one: refused.
    assert_eq!(exchange(&front, request), b"");
    let health = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET /health HTTP/1.0\r\n\r\n";
    assert!(exchange_bytes(&front, health).starts_with(b"HTTP/1.1 200 "));
    // Nobody else is believed.
    let front = front_of(&[(member.address, 0)], |_| {});
    let answer = String::from_utf8(exchange(&front, request)).unwrap();
    assert!(answer.contains("X-Forwarded-For: 127.0.0.1\r\n") && !answer.contains("9.9.9.9"), "{answer}");
    let header = "PROXY TCP4 10.1.2.3 10.0.0.1 1000 80\r\n";
    assert!(exchange(&front, &format!("{header}{request}")).starts_with(b"HTTP/1.1 400 "));
}

#[test]
fn a_member_is_told_the_client_in_a_proxy_header() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let member = goldwire_stdx::spawn("test", move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; 1024];
        let mut length = 0;
        while !bytes[..length].ends_with(b"\r\n\r\n") {
            length += stream.read(&mut bytes[length..]).unwrap();
        }
        stream.write_all(b"HTTP/1.1 204 X\r\n\r\n").unwrap();
        bytes.truncate(length);
        bytes
    })
    .unwrap();
    let front = front_of(&[(address, 0)], |settings| settings.sends_proxy_header = true);
    assert!(exchange(&front, "GET / HTTP/1.0\r\n\r\n").starts_with(b"HTTP/1.1 204 "));
    let bytes = member.join().unwrap();
    let (origin, length) = decode(&bytes).unwrap().unwrap();
    let Origin::Client { source, destination } = origin else { panic!("{origin:?}") };
    assert!(source.ip().is_loopback());
    assert_eq!(destination, front.running.http_addresses()[0]);
    assert!(bytes[length..].starts_with(b"GET / HTTP/1.1\r\n"));
}

#[test]
fn draining_is_said_and_what_is_under_way_finishes() {
    let body = content(50_000);
    let member = TestMember::new(Mode::Slow(300), &body);
    let front = front(&[&member]);
    assert!(exchange(&front, "GET /health HTTP/1.0\r\n\r\n").starts_with(b"HTTP/1.1 200 "));
    front.running.drain();
    assert!(exchange(&front, "GET /health HTTP/1.0\r\n\r\n").starts_with(b"HTTP/1.1 503 "));
    let address = front.running.http_addresses()[0];
    let mut idle = TcpStream::connect(address).unwrap();
    let mut busy = TcpStream::connect(address).unwrap();
    busy.write_all(b"GET /f HTTP/1.1\r\nHost: b\r\n\r\n").unwrap();
    goldwire_stdx::testing::until("the member is asked", || !member.asked().is_empty());
    let started = Instant::now();
    front.running.stop(Duration::from_secs(60));
    assert!(started.elapsed() < Duration::from_secs(50), "nobody waits for an idle connection");
    let mut answer = Vec::new();
    busy.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(&body));
    assert!(String::from_utf8_lossy(&answer[..300]).contains("Connection: close\r\n"));
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0);
    assert!(TcpStream::connect(address).is_err());
}

/// One request, and everything up to the end of the connection.
fn exchange(front: &Front, request: &str) -> Vec<u8> {
    exchange_bytes(front, request.as_bytes())
}

fn exchange_bytes(front: &Front, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(front.running.http_addresses()[0]).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    // A connection that is refused may be reset.
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// One answer with a length, as text.
fn read_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let mut byte = [0];
    while !answer.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    let head = String::from_utf8(answer.clone()).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}
