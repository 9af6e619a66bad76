//! Rows of the table of what boot firmware asks of a server.

use super::*;

#[test]
fn row_17_plain_http_is_never_redirected() {
    let server = start(|_| {});
    for path in ["", "small.efi", "secret", "secret/", "nothing", "autoexec.ipxe", "health"] {
        let (status, head, _) = server.get(path, "Upgrade-Insecure-Requests: 1\r\n");
        assert!(
            !(300..400).contains(&status) && !head.contains("Location") && !head.contains("Strict-"),
            "{path}"
        );
    }
}

// iPXE crawls through large files where its receive buffers are few (https://github.com/ipxe/ipxe/issues/1023): a
// client with a small window gets every byte in order, and a disk read is not held up by Nagle's algorithm.
#[test]
fn row_18_a_small_window_gets_everything_and_reads_are_quick() {
    let server = start(|_| {});
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    socket.connect(&server.address().into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /large.iso HTTP/1.0\r\nRange: bytes=7-200006\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(split(&answer).2 == large()[7..200_007]);

    let mut stream = server.connect();
    let begin = std::time::Instant::now();
    for read in 0..100_usize {
        let (first, last) = (read * 2048, read * 2048 + 2047);
        write!(
            stream,
            "GET /large.iso HTTP/1.1\r\nHost: a\r\nUser-Agent: iPXE/1.0.0\r\nRange: bytes={first}-{last}\r\n\r\n"
        )
        .unwrap();
        let mut answer = Vec::new();
        while answer.len() < 2048 || !answer.ends_with(&large()[first..=last][2040..]) {
            let mut some = [0; 4096];
            let count = stream.read(&mut some).unwrap();
            assert!(count > 0);
            answer.extend(&some[..count]);
        }
        assert!(split(&answer).2 == large()[first..=last]);
    }
    // With a delayed acknowledgement for each it would be at least 4 s; on a busy machine it is less than 2.
    eprintln!("100 reads of 2 KiB in {:?}", begin.elapsed());
    drop(stream);
    let is_told = |heard: &[String]| {
        let sent = heard.iter().filter_map(|line| line.strip_prefix("sent large.iso ")?.split(' ').next());
        sent.map(|bytes| bytes.parse::<u64>().unwrap()).sum::<u64>() == 200_000 + 100 * 2048
    };
    goldwire_stdx::testing::until("every byte is told of", || is_told(&server.heard.0.lock().unwrap()));
    let heard = server.heard.0.lock().unwrap();
    assert_eq!(
        heard.iter().filter(|line| line.starts_with("reached san large.iso")).count(),
        2,
        "once a connection"
    );
    let sent = heard.iter().filter(|line| line.starts_with("sent large.iso")).count();
    assert!(sent < 50, "told of together, not {sent} times");
}

/// Serves one large content, slowly, and small ones at once.
struct Slow(Mutex<std::sync::mpsc::Receiver<()>>);

impl Contents for Slow {
    fn open(&self, path: &str, _asker: &Requester) -> Result<Content, ContentError> {
        if path == "slow" {
            let _ = self.0.lock().unwrap().recv_timeout(PATIENCE);
        }
        let bytes: Arc<[u8]> =
            if path == "large" { vec![0; 8 << 20].into() } else { b"small".as_slice().into() };
        Ok(Content {
            length: bytes.len() as u64,
            body: Body::Memory(bytes),
            digest: (path != "unread").then_some(Digest([0; 16])),
            media_type: "",
            modified: None,
            stage: Stage::Kernel,
        })
    }
}

// Boot storms: 48 machines at once, three of them boot (https://github.com/raspberrypi/firmware/issues/1120). iPXE is
// told to come back and does; firmware that would give up is served; small files and scripts pass.
#[test]
fn row_19_a_storm_is_spread_over_time_for_who_comes_back_by_itself() {
    let (_release, waiting) = channel();
    let server = start_with(tempfile::tempdir().unwrap(), Arc::new(Slow(Mutex::new(waiting))), |settings| {
        settings.limits.large_transfers = 1;
    });
    let ask = |agent: &str, method: &str, path: &str| {
        let mut stream = server.connect();
        write!(
            stream,
            "{method} /{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUser-Agent: {agent}\r\n\r\n"
        )
        .unwrap();
        stream
    };
    let status = |mut stream: TcpStream| {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        split(&answer)
    };
    // Takes the one place and keeps it: more than the kernel buffers, and not read yet.
    let mut first = ask("iPXE/1.21.1", "GET", "large");
    first.read_exact(&mut [0; 1]).unwrap();
    let (refused, head, _) = status(ask("iPXE/1.0.0+git", "GET", "large"));
    let seconds: u32 = header(&head, "Retry-After").unwrap().parse().expect("whole seconds");
    assert!(refused == 503 && (1..=4).contains(&seconds));
    assert_eq!(status(ask("iPXE/1.0.0", "GET", "small")).0, 200);
    assert_eq!(status(ask("iPXE/1.0.0", "HEAD", "large")).0, 200);
    for agent in ["UefiHttpBoot/1.0", "curl/7", "", "Mozilla iPXE/1"] {
        assert_eq!(status(ask(agent, "GET", "large")).0, 200, "{agent}");
    }
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).unwrap();
    drop(first);
    let deadline = std::time::Instant::now() + PATIENCE;
    while status(ask("iPXE/1.0.0", "GET", "large")).0 != 200 {
        assert!(std::time::Instant::now() < deadline, "the place comes free");
    }
}

// A slow backend made boots fail (https://github.com/danderson/netboot/issues/32): one answer that takes its time
// holds nobody else up, and a digest that is not known yet is "later", not "no".
#[test]
fn row_20_one_slow_answer_holds_nobody_up() {
    let (release, waiting) = channel();
    let server = start_with(tempfile::tempdir().unwrap(), Arc::new(Slow(Mutex::new(waiting))), |_| {});
    let mut slow = server.connect();
    slow.write_all(b"GET /slow HTTP/1.0\r\n\r\n").unwrap();
    for _ in 0..50 {
        assert_eq!(server.get("small", "").0, 200);
    }
    release.send(()).unwrap();
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).unwrap();
    assert_eq!(split(&answer).0, 200);
    let (status, head, _) = server.get("unread", "If-Match: \"x\"\r\n");
    assert_eq!((status, header(&head, "Retry-After")), (503, Some("2")));
}

// Management controllers reject URLs with & or ? (ironic's redfish driver says so); who sends one all the same, as
// some do for cache busting, gets the file.
#[test]
fn row_23_a_query_is_not_needed_and_does_no_harm() {
    let server = start(|_| {});
    assert_eq!(server.get("small.efi?mac=52:54:00:12:34:56&x", "").2, b"0123456789");
}
