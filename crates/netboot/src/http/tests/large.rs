//! Large files: storms of clients, and disks.

use super::*;

/// More than the kernel buffers on both sides, every place different.
const HUGE: usize = 24 << 20;

fn huge() -> Vec<u8> {
    (0..HUGE as u32 / 4).flat_map(u32::to_le_bytes).collect()
}

/// A client that takes no more than its head, until it is told otherwise.
fn ask_and_stall(server: &Server, path: &str, agent: &str) -> (u16, String, TcpStream) {
    let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // Set before connecting, it stays small.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&server.address().into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET /{path} HTTP/1.1\r\nHost: a\r\nUser-Agent: {agent}\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let (status, head, _) = split(&head);
    (status, head, stream)
}

fn read_body(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    body
}

/// As many as there is room for are served, all other iPXE clients are put off on a connection that stays good, and
/// each of them is served when it comes back.
#[test]
fn a_storm_of_many_sockets_boots_in_the_end() {
    const ROOM: usize = 5;
    let server = start(|settings| {
        settings.limits.large = 1 << 20;
        settings.limits.large_transfers = ROOM;
    });
    let huge = huge();
    fs::write(server.folder.path().join("tree/huge"), &huge).unwrap();
    let ask = || ask_and_stall(&server, "huge", "iPXE/1.21.1");
    let mut served: Vec<_> = (0..ROOM).map(|_| ask()).collect();
    assert!(served.iter().all(|(status, ..)| *status == 200));
    let mut put_off: Vec<_> = (0..60).map(|_| ask()).collect();
    for (status, head, stream) in &mut put_off {
        let seconds: u32 = header(head, "Retry-After").unwrap().parse().expect("whole seconds");
        assert!(*status == 503 && (1..=4).contains(&seconds), "{head}");
        read_body(stream, header(head, "Content-Length").unwrap().parse().unwrap());
        write!(stream, "GET /small.efi HTTP/1.1\r\nHost: a\r\nUser-Agent: iPXE/1.21.1\r\n\r\n").unwrap();
        read_body(stream, "HTTP/1.1 200".len());
    }
    // Firmware does not come back, so it is not put off.
    let firmware = ask_and_stall(&server, "huge", "UefiHttpBoot/1.0");
    assert_eq!(firmware.0, 200);
    drop(firmware);
    let output =
        server.heard.0.lock().unwrap().iter().filter(|line| line.contains("asked to come back")).count();
    assert_eq!(output, put_off.len());
    for (_, _, stream) in &mut served {
        assert!(read_body(stream, HUGE) == huge);
    }
    drop((served, put_off));
    std::thread::scope(|scope| {
        for _ in 0..3 * ROOM {
            goldwire_stdx::spawn_scoped(scope, "test", || {
                goldwire_stdx::testing::until("there is room", || {
                    let (status, _, mut stream) = ask();
                    assert!(status == 503 || status == 200 && read_body(&mut stream, HUGE) == huge);
                    status == 200
                });
            })
            .unwrap();
        }
    });
}

/// What the page cache has lost comes from the disk, by each way that bytes take.
#[test]
fn a_file_that_is_not_in_memory_is_served_as_it_is() {
    let server = start(|settings| settings.threads = 1);
    let path = server.folder.path().join("tree/large.iso");
    let cold = || testing::evict(&fs::File::open(&path).unwrap());
    for _ in 0..2 {
        if !cold() {
            return;
        }
        assert!(server.get("large.iso", "").2 == large(), "by sendfile");
        cold();
        assert!(server.get("large.iso", "Range: bytes=700000-709999\r\n").2 == large()[700_000..710_000]);
        cold();
        let (status, _, body) = server.get("large.iso", "Range: bytes=5-9,1100000-1100009\r\n");
        let has = |wanted: &[u8]| body.windows(wanted.len()).any(|window| window == wanted);
        assert!(status == 206 && has(&large()[5..10]) && has(&large()[1_100_000..1_100_010]));
        // From now on its digest is known, and it may be opened without asking a disk.
        goldwire_stdx::testing::until("the digest is known", || {
            header(&server.get("large.iso", "Range: bytes=0-0\r\n").1, "ETag").is_some()
        });
    }
}

/// Somebody cuts a file short while it is sent: the client sees that bytes are missing, and nobody else sees anything.
#[test]
fn a_file_that_is_cut_while_it_is_sent_ends_its_connection_only() {
    let server = start(|settings| settings.threads = 1);
    let path = server.folder.path().join("tree/huge");
    fs::write(&path, huge()).unwrap();
    let (status, head, mut stream) = ask_and_stall(&server, "huge", "iPXE/1.21.1");
    assert_eq!((status, header(&head, "Content-Length")), (200, Some(HUGE.to_string().as_str())));
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let mut body = Vec::new();
    let _ = stream.read_to_end(&mut body);
    assert!(body.len() < HUGE, "as many bytes as were promised");
    // What waits in a socket after `sendfile` is the file's own memory, which the cut fills with zeros.
    assert!(body.iter().zip(huge()).all(|(got, is)| *got == is || *got == 0));
    assert_eq!(server.get("small.efi", "").2, b"0123456789");
    goldwire_stdx::testing::until("it is told of", || {
        server.heard.0.lock().unwrap().iter().any(|line| line.starts_with("sent huge 0 false"))
    });
}
