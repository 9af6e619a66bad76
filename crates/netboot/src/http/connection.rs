//! One connection from its first byte to its last: reads heads, asks for contents, writes answers, and keeps the
//! deadlines.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::block_in_place;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use super::admission::{Gate, retry_after};
use super::range::Part;
use super::request::{BadHead, Method, Request};
use super::respond::{self, Answer, Piece};
use super::wire::{DISK_PATIENCE, Wire};
use super::{Health, Limits, Listener, Phase, request};
use goldwire_stdx::printable;

use crate::content::{Body, Content, ContentError, Contents, Requester};
use crate::device::Mac;
use crate::event::{Event, EventKind, Observer, Protocol};
use crate::http1::HEAD_MAX;
use crate::member::{self, Fitness};
use crate::neighbours::Neighbours;
use crate::proxy_header::{self, Origin};

/// An answer up to this size is copied and sent in one write: iPXE's disk reads are 2 to 64 KiB. Above it, `sendfile`
/// saves more than the second call costs.
const ONE_WRITE_MAX: u64 = 64 << 10;
/// Bytes read at once from a file that cannot go by `sendfile`.
const COPY: usize = 64 << 10;
/// Reads of one path on one connection are told of once in so long: of a disk's thousand reads, nobody wants a line each.
const READS_REPORTED: Duration = Duration::from_secs(1);
/// After an answer that ends a connection, what the client still sends is read for so long and so much: closing with
/// unread bytes would reset the connection and take the answer with it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_MAX: usize = 256 << 10;
/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all connections share.
pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) fitness: Arc<Fitness>,
    pub(super) health: Option<Arc<dyn Fn() -> Health + Send + Sync>>,
    pub(super) metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
    pub(super) gate: Arc<Gate>,
    pub(super) contents: Arc<dyn Contents>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) neighbours: Arc<Neighbours>,
}

/// Accepts until the server stops.
pub(super) async fn accept(
    shared: Arc<Shared>,
    socket: TcpListener,
    listener: Arc<Listener>,
    tls: Option<TlsAcceptor>,
    mut phase: watch::Receiver<Phase>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            () = stopping(&mut phase) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(counted) = shared.gate.connect(shared.limits.connections) else {
            shared.dropped(peer.ip(), "too many connections");
            continue;
        };
        let (shared, listener, tls) = (Arc::clone(&shared), Arc::clone(&listener), tls.clone());
        let phase = phase.clone();
        tokio::spawn(async move {
            serve(shared, stream, peer.ip().to_canonical(), &listener, tls, phase).await;
            drop(counted);
        });
        // Of many connections that come at once, the other threads take their share.
        tokio::task::yield_now().await;
    }
}

/// Waits until the server stops.
async fn stopping(phase: &mut watch::Receiver<Phase>) {
    // An error is a server that was dropped, which stops too.
    let _ = phase.wait_for(|phase| *phase == Phase::Stopping).await;
}

async fn serve(
    shared: Arc<Shared>,
    mut stream: TcpStream,
    peer: IpAddr,
    listener: &Listener,
    tls: Option<TlsAcceptor>,
    phase: watch::Receiver<Phase>,
) {
    let mut buffer = Vec::new();
    let mut address = peer;
    if listener.balancers.iter().any(|balancers| balancers.contains(peer)) {
        match timeout(shared.limits.head, proxied(&mut stream, &mut buffer)).await {
            Ok(Ok(Origin::Local)) => {}
            Ok(Ok(Origin::Client { source, .. })) => address = source.ip(),
            Ok(Err(_)) | Err(_) => return shared.dropped(peer, "no PROXY header from a balancer"),
        }
    }
    let Some(_counted) = shared.gate.connect_from(address, shared.limits.connections_per_address) else {
        return shared.dropped(address, "too many connections of one address");
    };
    let wire = match tls {
        None => Wire::Plain(stream),
        // What a balancer's client sent right behind the PROXY header was read exactly up to the header's end.
        Some(tls) => match timeout(shared.limits.handshake, tls.accept(stream)).await {
            Ok(Ok(stream)) => Wire::Secure(Box::new(stream)),
            Ok(Err(_)) => return shared.dropped(address, "the TLS handshake failed"),
            Err(_) => return shared.dropped(address, "the TLS handshake took too long"),
        },
    };
    let mac = shared.neighbours.mac_of(address);
    let requester = Requester { address, mac, protocol: Protocol::Http };
    let mut connection =
        Connection { shared, wire, buffer, phase, requester, reached: String::new(), reads: Reads::new() };
    connection.run().await;
    connection.tell_reads();
}

/// Reads a PROXY header and not a byte more, for TLS may begin behind it.
async fn proxied(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Origin> {
    loop {
        stream.readable().await?;
        let mut window = [0; proxy_header::HEADER_MAX];
        let peeked = match stream.peek(&mut window).await {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) => return Err(error),
        };
        if let Some((origin, length)) = proxy_header::decode(&window[..peeked]).map_err(io::Error::other)? {
            buffer.resize(length, 0);
            tokio::io::AsyncReadExt::read_exact(stream, buffer).await?;
            buffer.clear();
            return Ok(origin);
        }
        // A peek does not consume: without a pause, half a header would be peeked at over and over.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

impl Shared {
    fn dropped(&self, address: IpAddr, reason: &str) {
        self.event(address, None, EventKind::Dropped { protocol: Protocol::Http, reason });
    }

    fn event(&self, address: IpAddr, mac: Option<Mac>, kind: EventKind<'_>) {
        self.observer.observe(&Event { mac, address: Some(address), kind });
    }
}

struct Connection {
    shared: Arc<Shared>,
    wire: Wire,
    /// What came and has not been read as a head yet: at most one head and what was sent behind it.
    buffer: Vec<u8>,
    phase: watch::Receiver<Phase>,
    requester: Requester,
    /// The path of the last event of a stage: a disk's thousand reads reach it once.
    reached: String,
    reads: Reads,
}

/// Answers of the path that was reached last, of which was not told yet.
struct Reads {
    count: u64,
    bytes: u64,
    seconds: f64,
    reported: Instant,
}

impl Reads {
    fn new() -> Self {
        Self { count: 0, bytes: 0, seconds: 0.0, reported: Instant::now() }
    }
}

/// What came next on a connection.
enum Next {
    Request(Box<Request>),
    Bad(BadHead),
    End,
}

impl Connection {
    async fn run(&mut self) {
        let mut is_first = true;
        loop {
            let is_kept = match self.next(is_first).await {
                Next::Request(request) => self.answer(&request).await,
                Next::Bad(error) => {
                    self.refused("", &error.to_string());
                    let answer = respond::bad_head(error, SystemTime::now());
                    let _ = self.send(&answer, None).await;
                    Ok(false)
                }
                Next::End => return,
            };
            match is_kept {
                Ok(true) => is_first = false,
                Ok(false) => return self.linger().await,
                Err(_) => return,
            }
        }
    }

    /// Waits for a head. Requests that were sent ahead wait in the buffer, which holds no more than one head's limit;
    /// the rest waits in the kernel.
    async fn next(&mut self, is_first: bool) -> Next {
        let begin = Instant::now();
        let limits = &self.shared.limits;
        let mut deadline = begin + if is_first { limits.head } else { limits.idle };
        let mut is_begun = is_first;
        let mut is_new = !self.buffer.is_empty();
        loop {
            if is_new {
                match request::parse(&self.buffer) {
                    Ok(Some((request, length))) => {
                        self.buffer.drain(..length);
                        return Next::Request(Box::new(request));
                    }
                    Ok(None) if !is_begun => {
                        is_begun = true;
                        deadline = Instant::now() + limits.head;
                    }
                    Ok(None) => {}
                    Err(error) => return Next::Bad(error),
                }
            }
            let before = self.buffer.len();
            self.buffer.reserve(2048.min(HEAD_MAX.saturating_sub(before).max(1)));
            let read = timeout_at(deadline, self.wire.read(&mut self.buffer));
            let read = if before == 0 {
                tokio::select! {
                    read = read => read,
                    () = stopping(&mut self.phase) => return Next::End,
                }
            } else {
                read.await
            };
            match read {
                Ok(Ok(count)) if count > 0 => {}
                _ => return Next::End,
            }
            // A head ends with a line, so a byte at a time costs one look each and not one parse each.
            let is_line = self.buffer[before..].contains(&b'\n');
            is_new = is_line || before == 0 || self.buffer.len() >= HEAD_MAX;
        }
    }

    /// Answers a request; whether the connection stays.
    async fn answer(&mut self, request: &Request) -> io::Result<bool> {
        let begin = Instant::now();
        let now = SystemTime::now();
        let is_kept = request.is_kept && !request.has_body && *self.phase.borrow() == Phase::Serving;
        if request.method == Method::Other {
            self.refused(&request.path, "the method is not GET or HEAD");
            let answer = respond::text(request, 405, is_kept, now);
            return self.send(&answer, None).await.map(|()| is_kept);
        }
        if request.has_body {
            self.refused(&request.path, "the request has a body");
            let answer = respond::text(request, 413, false, now);
            return self.send(&answer, None).await.map(|()| false);
        }
        if let Some(answer) = self.own_page(request, is_kept, now) {
            return self.send(&answer, None).await.map(|()| is_kept);
        }
        let contents = &self.shared.contents;
        let opened = contents.open_at_once(&request.path, &self.requester).unwrap_or_else(|| {
            let _working = self.shared.fitness.begin(member::Part::BootTree, DISK_PATIENCE);
            block_in_place(|| contents.open(&request.path, &self.requester))
        });
        let content = match opened {
            Ok(content) => content,
            Err(error) => {
                self.refused(&request.path, &reason(&error));
                let answer = respond::failure(request, &error, is_kept, now);
                return self.send(&answer, None).await.map(|()| is_kept);
            }
        };
        let answer = respond::content(request, &content, is_kept, now);
        let length = answer.content_length();
        let mut large = None;
        if length >= self.shared.limits.large {
            let (counted, is_room) =
                self.shared.gate.transfer(self.requester.address, self.shared.limits.large_transfers);
            if !is_room && request.is_ipxe() {
                self.refused(&request.path, "too many large transfers, asked to come back");
                let answer = respond::busy(request, retry_after(), is_kept, now);
                return self.send(&answer, None).await.map(|()| is_kept);
            }
            large = Some(counted);
        }
        if answer.status >= 400 {
            let reason = if answer.status == 416 { "no such range" } else { "its conditions do not hold" };
            self.refused(&request.path, reason);
        }
        let is_new = length > 0 && self.reached != request.path;
        if is_new {
            self.tell_reads();
            self.reached.clone_from(&request.path);
            let detail = printable(&request.path);
            let kind = EventKind::Reached {
                protocol: Protocol::Http,
                stage: content.stage,
                device: None,
                detail: &detail,
            };
            self.event(kind);
        }
        let sent = self.send(&answer, Some(&content)).await;
        drop(large);
        if length > 0 {
            let bytes = if sent.is_ok() { length } else { 0 };
            self.transferred(bytes, begin.elapsed().as_secs_f64(), is_new, sent.is_ok());
        }
        sent.map(|()| answer.is_kept)
    }

    /// Tells of an answer that was sent, or broken off: of the first of a path at once, of the next ones together.
    fn transferred(&mut self, bytes: u64, seconds: f64, is_first: bool, is_complete: bool) {
        if !is_complete {
            self.tell_reads();
        }
        self.reads.bytes += bytes;
        self.reads.seconds += seconds;
        self.reads.count += 1;
        if is_first || !is_complete || self.reads.reported.elapsed() >= READS_REPORTED {
            self.tell(is_complete);
        }
    }

    /// Tells of answers that were not told of yet.
    fn tell_reads(&mut self) {
        if self.reads.count > 0 {
            self.tell(true);
        }
    }

    fn tell(&mut self, is_complete: bool) {
        let reads = std::mem::replace(&mut self.reads, Reads::new());
        self.event(EventKind::Transferred {
            protocol: Protocol::Http,
            path: &printable(&self.reached),
            bytes: reads.bytes,
            seconds: reads.seconds,
            is_complete,
        });
    }

    /// The pages that are no content: for balancers and for Prometheus.
    fn own_page(&self, request: &Request, is_kept: bool, now: SystemTime) -> Option<Answer> {
        match request.path.as_str() {
            "health" | "health.json" => {
                let mut health = match &self.shared.health {
                    Some(health) => health(),
                    None => Health { is_healthy: true, reason: "alive".into() },
                };
                if *self.phase.borrow() >= Phase::Draining {
                    health = Health { is_healthy: false, reason: "draining".into() };
                }
                let status = if health.is_healthy { 200 } else { 503 };
                let is_json = request.takes_json || request.path.ends_with(".json");
                let (media_type, body) = if is_json {
                    let reason: String = health
                        .reason
                        .chars()
                        .filter(|c| !c.is_control() && !matches!(c, '"' | '\\'))
                        .collect();
                    (
                        "application/json",
                        format!("{{\"well\":{},\"reason\":\"{reason}\"}}\n", health.is_healthy),
                    )
                } else {
                    ("text/plain", format!("{}\n", health.reason))
                };
                Some(respond::page(request, status, media_type, body, is_kept, now))
            }
            "metrics" => {
                let metrics = self.shared.metrics.as_ref()?;
                let media_type = "text/plain; version=0.0.4";
                Some(respond::page(request, 200, media_type, metrics(), is_kept, now))
            }
            _ => None,
        }
    }

    /// Sends an answer: in one write where it is small, else the head and each piece after the other.
    async fn send(&mut self, answer: &Answer, content: Option<&Content>) -> io::Result<()> {
        let mut pace = Pace::new(&self.shared.limits);
        if let ([Piece::Part(part)], Some(Content { body: Body::Memory(bytes), .. })) =
            (&answer.pieces[..], content)
        {
            self.write_both(&answer.head, slice(bytes, part)?, &mut pace).await?;
        } else if answer.body_length() <= ONE_WRITE_MAX {
            let mut bytes = Vec::with_capacity(answer.head.len() + answer.body_length() as usize);
            bytes.extend_from_slice(&answer.head);
            for piece in &answer.pieces {
                match piece {
                    Piece::Bytes(piece) => bytes.extend_from_slice(piece),
                    Piece::Part(part) => append(&mut bytes, content, part)?,
                }
            }
            self.write(&bytes, false, &mut pace).await?;
        } else {
            self.write(&answer.head, true, &mut pace).await?;
            for piece in &answer.pieces {
                match piece {
                    Piece::Bytes(piece) => self.write(piece, false, &mut pace).await?,
                    Piece::Part(part) => self.send_part(content, part, &mut pace).await?,
                }
            }
        }
        timeout(self.shared.limits.stall, self.wire.flush()).await.map_err(|_| too_slow())?
    }

    async fn send_part(&mut self, content: Option<&Content>, part: &Part, pace: &mut Pace) -> io::Result<()> {
        let Some(content) = content else { return Err(io::ErrorKind::NotFound.into()) };
        let end = part.offset + part.length;
        let mut offset = part.offset;
        match &content.body {
            Body::Memory(bytes) => self.write(slice(bytes, part)?, false, pace).await,
            Body::File(file) if self.wire.has_sendfile() => {
                while offset < end {
                    let sent = self.wire.send_file(file, offset, end - offset, &self.shared.fitness);
                    let sent = timeout(pace.stall, sent).await.map_err(|_| too_slow())?? as u64;
                    if sent == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into()); // Someone cut the file short.
                    }
                    offset += sent;
                    pace.sent(sent)?;
                }
                Ok(())
            }
            Body::File(_) => {
                let mut bytes = Vec::with_capacity(COPY);
                while offset < end {
                    let length = (end - offset).min(COPY as u64);
                    bytes.clear();
                    append(&mut bytes, Some(content), &Part { offset, length })?;
                    self.write(&bytes, false, pace).await?;
                    offset += length;
                }
                Ok(())
            }
        }
    }

    /// Writes a head and a body, in one write as far as the socket takes it.
    async fn write_both(&mut self, head: &[u8], body: &[u8], pace: &mut Pace) -> io::Result<()> {
        let mut done = 0;
        while done < head.len() {
            let written = self.wire.write_both(&head[done..], body);
            let count = timeout(pace.stall, written).await.map_err(|_| too_slow())??;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            done += count;
            pace.sent(count as u64)?;
        }
        self.write(&body[done - head.len()..], false, pace).await
    }

    async fn write(&mut self, mut bytes: &[u8], is_more_to_come: bool, pace: &mut Pace) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = async {
                if is_more_to_come { self.wire.write_more(bytes).await } else { self.wire.write(bytes).await }
            };
            let count = timeout(pace.stall, written).await.map_err(|_| too_slow())??;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[count..];
            pace.sent(count as u64)?;
        }
        Ok(())
    }

    async fn linger(&mut self) {
        let until = Instant::now() + LINGER;
        let _ = timeout_at(until, self.wire.shutdown()).await;
        let mut rest = LINGER_MAX;
        while rest > 0 {
            self.buffer.clear();
            match timeout_at(until, self.wire.read(&mut self.buffer)).await {
                Ok(Ok(count)) if count > 0 => rest = rest.saturating_sub(count),
                _ => return,
            }
        }
    }

    fn event(&self, kind: EventKind<'_>) {
        self.shared.event(self.requester.address, self.requester.mac, kind);
    }

    fn refused(&self, path: &str, reason: &str) {
        self.event(EventKind::Refused { protocol: Protocol::Http, path: &printable(path), reason });
    }
}

/// Watches that a client takes bytes at least at the pace that is asked of it.
struct Pace {
    stall: Duration,
    /// Bytes that each period of `stall` must see.
    least: u64,
    period: Instant,
    in_period: u64,
}

impl Pace {
    fn new(limits: &Limits) -> Self {
        let least = limits.pace.saturating_mul(limits.stall.as_secs());
        Self { stall: limits.stall, least, period: Instant::now(), in_period: 0 }
    }

    fn sent(&mut self, bytes: u64) -> io::Result<()> {
        self.in_period += bytes;
        if self.period.elapsed() < self.stall {
            return Ok(());
        }
        if self.in_period < self.least {
            return Err(too_slow());
        }
        (self.period, self.in_period) = (Instant::now(), 0);
        Ok(())
    }
}

fn too_slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client takes its bytes too slowly")
}

/// A part of a content in memory.
fn slice<'a>(bytes: &'a [u8], part: &Part) -> io::Result<&'a [u8]> {
    let begin = usize::try_from(part.offset).unwrap_or(usize::MAX);
    let rest = bytes.get(begin..).ok_or(io::ErrorKind::UnexpectedEof)?;
    rest.get(..part.length as usize).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Appends a part of a content, all of it.
fn append(bytes: &mut Vec<u8>, content: Option<&Content>, part: &Part) -> io::Result<()> {
    let content = content.ok_or(io::ErrorKind::NotFound)?;
    let before = bytes.len();
    bytes.resize(before + part.length as usize, 0);
    let rest = &mut bytes[before..];
    if content.read_at_once(rest, part.offset) {
        return Ok(());
    }
    if block_in_place(|| content.read_at(rest, part.offset))? as u64 != part.length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn reason(error: &ContentError) -> String {
    goldwire_stdx::Report::of(error).line()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Stage;
    use crate::http::testing::evicted;

    /// As of `sendfile`: a runtime of one thread panics where other connections are to go on.
    #[test]
    fn a_cold_part_is_not_read_on_the_thread_of_other_connections() {
        let bytes: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).collect();
        let Some(file) = evicted(&bytes) else { return };
        let content = Content {
            body: Body::File(Arc::new(file)),
            length: bytes.len() as u64,
            digest: None,
            media_type: "application/octet-stream",
            modified: None,
            stage: Stage::Kernel,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let part = Part { offset: 5, length: 100_000 };
        let read = |content: &Content| {
            let content = content.clone();
            let task = async move {
                let mut read = b"head".to_vec();
                append(&mut read, Some(&content), &part).map(|()| read)
            };
            runtime.block_on(async { tokio::spawn(task).await })
        };
        assert!(read(&content).unwrap_err().is_panic(), "it was read at once");
        assert_eq!(content.read_at(&mut vec![0; bytes.len()], 0).unwrap(), bytes.len());
        assert!(read(&content).unwrap().unwrap() == [b"head", &bytes[5..100_005]].concat());
    }
}
