//! One request on a connection of its own, for who asks seldom and may wait: health checks and the doctor.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::{Framing, Method, ResponseHead};
use crate::proxy_header;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchange<'a> {
    /// Whom.
    pub(crate) address: SocketAddr,
    /// The server's name, with its port if that is not 80.
    pub(crate) host: &'a str,
    /// GET or HEAD.
    pub(crate) method: &'a str,
    /// The path.
    pub(crate) target: &'a str,
    /// The value of `Range`.
    pub(crate) range: Option<&'a str>,
    /// Who asks.
    pub(crate) agent: &'a str,
    /// Whether a PROXY header goes first, as a balancer's connections have to begin.
    pub(crate) is_proxied: bool,
    /// Bytes of the body that are read at most; 0 reads the head only.
    pub(crate) body_max: usize,
}

/// Asks, and reads the answer's head and the beginning of its body. One deadline is for all of it: a byte now and then is
/// no answer.
///
/// # Errors
/// `TimedOut`, `InvalidData` for what is not HTTP, `UnexpectedEof` for half a head, and what sockets meet.
pub(crate) fn exchange(ask: &Exchange<'_>, deadline: Instant) -> io::Result<(ResponseHead, Vec<u8>)> {
    let mut stream = TcpStream::connect_timeout(&ask.address, left(deadline)?)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    let Exchange { method, target, host, agent, .. } = ask;
    let range = ask.range.map_or(String::new(), |range| format!("Range: {range}\r\n"));
    if ask.is_proxied {
        let header = proxy_header::encode(stream.local_addr()?, ask.address);
        stream.write_all(&header).map_err(as_timeout)?;
    }
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}\r\n{range}User-Agent: {agent}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(as_timeout)?;
    let mut bytes = Vec::new();
    let head = loop {
        let read = ResponseHead::decode(&bytes, Method::of(method));
        match read.map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))? {
            // RFC 9110 §15.2: the answer comes behind those of 1xx.
            Some((head, length)) if head.status < 200 => drop(bytes.drain(..length)),
            Some((head, length)) => {
                bytes.drain(..length);
                break head;
            }
            None if fill(&mut stream, &mut bytes, deadline)? == 0 => {
                let what = "it closed the connection within its answer";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
            }
            None => {}
        }
    };
    let whole = match head.framing {
        Framing::Empty => 0,
        Framing::Length(length) => usize::try_from(length).unwrap_or(usize::MAX).min(ask.body_max),
        Framing::Chunked | Framing::UntilClose => ask.body_max,
    };
    while bytes.len() < whole && fill(&mut stream, &mut bytes, deadline)? > 0 {}
    bytes.truncate(whole);
    Ok((head, bytes))
}

fn fill(stream: &mut TcpStream, bytes: &mut Vec<u8>, deadline: Instant) -> io::Result<usize> {
    let mut buffer = [0; 8192];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut buffer) {
            Ok(count) => {
                bytes.extend_from_slice(&buffer[..count]);
                return Ok(count);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(as_timeout(error)),
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")) } else { Ok(left) }
}

/// A socket's own timeout is `WouldBlock`, which reads as nonsense.
fn as_timeout(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "it does not answer"),
        _ => error,
    }
}
