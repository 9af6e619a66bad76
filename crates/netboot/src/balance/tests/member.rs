//! A boot server that can be told to misbehave.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a member does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Answers well.
    Well,
    /// Resets the connection.
    Reset,
    /// Accepts and never answers.
    Hang,
    /// Answers well, after some milliseconds.
    Slow(u64),
    /// This status, with `Retry-After`.
    Status(u16),
    /// Sends so many bytes of the body, then closes.
    Cut(usize),
    /// Sends so many bytes of the body, then resets.
    CutHard(usize),
    /// Sends so many bytes of the body, then nothing.
    Stall(usize),
    /// Has no ETag, and cuts.
    CutWithoutTag(usize),
    /// Sends the body in chunks.
    Chunked,
    /// Sends the body in chunks, without the last ones.
    ChunkedCut,
    /// Sends the body without a length and closes.
    UntilClose,
    /// Answers well once on each connection, then closes it without saying so.
    Forgetful,
    /// Answers with what it was asked.
    Echo,
}

/// The content: as many bytes as wanted, never the same at two places.
pub(super) fn content(length: usize) -> Vec<u8> {
    (0..length as u32).flat_map(|at| (at.wrapping_mul(0x9e37_79b9) >> 7).to_le_bytes()).take(length).collect()
}

pub(super) struct TestMember {
    pub(super) address: SocketAddr,
    mode: Arc<Mutex<Mode>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl TestMember {
    pub(super) fn new(mode: Mode, content: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let member = Self {
            address: listener.local_addr().unwrap(),
            mode: Arc::new(Mutex::new(mode)),
            asked: Arc::default(),
        };
        let (mode, asked) = (Arc::clone(&member.mode), Arc::clone(&member.asked));
        let content: Arc<[u8]> = content.into();
        goldwire_stdx::spawn("test", move || {
            for stream in listener.incoming().flatten() {
                let (mode, asked, content) = (Arc::clone(&mode), Arc::clone(&asked), Arc::clone(&content));
                goldwire_stdx::spawn("test", move || serve(stream, &mode, &asked, &content)).unwrap();
            }
        })
        .unwrap();
        member
    }

    /// An address where nobody listens.
    pub(super) fn dead() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    pub(super) fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    /// The heads of the requests so far.
    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, mode: &Mutex<Mode>, asked: &Mutex<Vec<String>>, content: &[u8]) {
    let mut rest = Vec::new();
    loop {
        let mut part = [0; 4096];
        let end = loop {
            if let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            match stream.read(&mut part) {
                Ok(0) | Err(_) => return,
                Ok(count) => rest.extend_from_slice(&part[..count]),
            }
        };
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest.drain(..end);
        let now = *mode.lock().unwrap();
        asked.lock().unwrap().push(head.clone());
        if answer(&mut stream, now, &head, content).is_none() {
            return;
        }
    }
}

/// None: the connection is over.
fn answer(stream: &mut TcpStream, mode: Mode, head: &str, content: &[u8]) -> Option<()> {
    let field = |name: &str| {
        head.lines().find_map(|line| {
            let (known, value) = line.split_once(": ")?;
            known.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let tag = "ETag: \"same-everywhere\"\r\n";
    let range = field("range").and_then(|value| {
        let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
        let last = last.parse().unwrap_or(content.len() - 1);
        Some((first.parse::<usize>().ok()?, last))
    });
    let total = content.len();
    let (status, body, extra) = match range {
        Some((first, last)) => {
            let range = format!("Content-Range: bytes {first}-{last}/{total}\r\n");
            ("206 Partial Content", &content[first..=last], range)
        }
        None => ("200 OK", content, String::new()),
    };
    let ok = format!("HTTP/1.1 {status}\r\n{tag}{extra}Content-Length: {}\r\n\r\n", body.len());
    let is_head = head.starts_with("HEAD");
    let well = |stream: &mut TcpStream| {
        stream.write_all(ok.as_bytes()).ok()?;
        if is_head { Some(()) } else { stream.write_all(body).ok() }
    };
    let forever = || std::thread::sleep(Duration::from_secs(600));
    match mode {
        Mode::Well => well(stream),
        Mode::Reset => {
            socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO)).ok()?;
            None
        }
        Mode::Hang => {
            forever();
            None
        }
        Mode::Slow(millis) => {
            std::thread::sleep(Duration::from_millis(millis));
            well(stream)
        }
        Mode::Status(status) => {
            write!(stream, "HTTP/1.1 {status} X\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nno").ok()
        }
        Mode::Cut(at) | Mode::CutHard(at) | Mode::Stall(at) => {
            stream.write_all(ok.as_bytes()).ok()?;
            stream.write_all(&body[..at.min(body.len())]).ok()?;
            match mode {
                Mode::Stall(_) => forever(),
                Mode::CutHard(_) => {
                    socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO)).ok()?;
                }
                _ => {}
            }
            None
        }
        Mode::CutWithoutTag(at) => {
            let plain = format!("HTTP/1.1 200 OK\r\nContent-Length: {total}\r\n\r\n");
            stream.write_all(plain.as_bytes()).ok()?;
            stream.write_all(&body[..at]).ok()?;
            None
        }
        Mode::Chunked | Mode::ChunkedCut => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
            for chunk in body.chunks(1000) {
                write!(stream, "{:x}\r\n", chunk.len()).ok()?;
                stream.write_all(chunk).ok()?;
                stream.write_all(b"\r\n").ok()?;
            }
            if mode == Mode::ChunkedCut {
                return None;
            }
            stream.write_all(b"0\r\nX-Trailer: 1\r\n\r\n").ok()
        }
        Mode::UntilClose => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
            stream.write_all(body).ok()?;
            None
        }
        Mode::Forgetful => {
            well(stream)?;
            stream.shutdown(Shutdown::Both).ok()?;
            None
        }
        Mode::Echo => {
            write!(stream, "HTTP/1.1 200 OK\r\nX-Kept: yes\r\nContent-Length: {}\r\n\r\n{head}", head.len())
                .ok()
        }
    }
}
