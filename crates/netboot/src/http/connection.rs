//! One connection from its first byte to its last: reads heads, asks for contents, writes answers, and keeps the
//! deadlines.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use super::admission::{Gate, retry_after};
use super::disk::Disk;
use super::request::{BadHead, Request};
use super::respond::{self, Answer};
use super::wire::Wire;
use super::{Health, Limits, Listener, Phase, request};
use goldwire_stdx::printable;

use crate::content::{ContentError, Contents, Requester};
use crate::device::Mac;
use crate::event::{Event, EventKind, Observer, Protocol};
use crate::http1::{HEAD_MAX, Method, Persistence};
use crate::neighbours::Neighbours;
use crate::proxy_header::{self, Origin};
use crate::room::Room;

/// Reads of one path on one connection are told of once in so long: of a disk's thousand reads, nobody wants a line each.
const READS_REPORTED: Duration = Duration::from_secs(1);
/// After an answer that ends a connection, what the client still sends is read for so long and so much: closing with
/// unread bytes would reset the connection and take the answer with it.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_MAX: usize = 256 << 10;
/// A request's head has rarely more. What is longer takes of the room that all connections share.
const SHORT_HEAD: usize = 2048;
/// A connection with TLS needs so many times the memory of one without.
const TLS_WEIGHT: usize = 4;
/// Bytes that TLS keeps for a client that does not take them: one record.
const TLS_WAITING_MAX: usize = 16 << 10;
/// Pause after `accept` failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What all connections share.
pub(super) struct Shared {
    pub(super) limits: Limits,
    pub(super) disk: Disk,
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
        let weight = if tls.is_some() { TLS_WEIGHT } else { 1 };
        let Some(counted) = shared.gate.connect(weight, shared.limits.connections) else {
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
            Ok(Ok(mut stream)) => {
                stream.get_mut().1.set_buffer_limit(Some(TLS_WAITING_MAX));
                Wire::Secure(Box::new(stream))
            }
            Ok(Err(_)) => return shared.dropped(address, "the TLS handshake failed"),
            Err(_) => return shared.dropped(address, "the TLS handshake took too long"),
        },
    };
    let mac = shared.neighbours.mac_of(address);
    let requester = Requester { address, mac, protocol: Protocol::Http };
    let mut connection = Connection {
        shared,
        wire,
        buffer,
        room: None,
        phase,
        requester,
        reached: String::new(),
        reads: Reads::new(),
    };
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

pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) wire: Wire,
    /// What came and has not been read as a head yet: at most one head and what was sent behind it.
    buffer: Vec<u8>,
    /// The room that a long head takes.
    room: Option<Room>,
    phase: watch::Receiver<Phase>,
    pub(super) requester: Requester,
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
            let persistence = match self.next(is_first).await {
                Next::Request(request) => self.answer(&request).await,
                Next::Bad(error) => {
                    self.refused("", &error.to_string());
                    let answer = respond::bad_head(error, SystemTime::now());
                    let _ = self.send(&answer, None).await;
                    Ok(Persistence::Close)
                }
                Next::End => return,
            };
            match persistence {
                Ok(Persistence::Keep) => is_first = false,
                Ok(Persistence::Close) => return self.linger().await,
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
                        // A long head's memory goes with its room; a short one's is there for the next request.
                        if self.buffer.is_empty() && self.room.take().is_some() {
                            self.buffer = Vec::new();
                        }
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
            if before >= SHORT_HEAD && self.room.is_none() {
                self.room = self.shared.gate.rooms.take(self.requester.address, HEAD_MAX);
                if self.room.is_none() {
                    self.shared.dropped(self.requester.address, "too many long heads at a time");
                    return Next::End;
                }
            }
            self.buffer.reserve_exact(SHORT_HEAD.min(HEAD_MAX.saturating_sub(before).max(1)));
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
    async fn answer(&mut self, request: &Request) -> io::Result<Persistence> {
        let begin = Instant::now();
        let now = SystemTime::now();
        let persistence =
            request.persistence.and(|| !request.has_body && *self.phase.borrow() == Phase::Serving);
        if request.method == Method::Other {
            self.refused(&request.path, "the method is not GET or HEAD");
            let answer = respond::text(request, 405, persistence, now);
            return self.send(&answer, None).await.map(|()| persistence);
        }
        if request.has_body {
            self.refused(&request.path, "the request has a body");
            let answer = respond::text(request, 413, Persistence::Close, now);
            return self.send(&answer, None).await.map(|()| Persistence::Close);
        }
        if let Some(answer) = self.own_page(request, persistence, now) {
            return self.send(&answer, None).await.map(|()| persistence);
        }
        let contents = &self.shared.contents;
        let opened = match contents.open_at_once(&request.path, &self.requester) {
            Some(opened) => opened,
            None => {
                let (contents, path, requester) =
                    (Arc::clone(contents), request.path.clone(), self.requester);
                self.shared.disk.read_apart(move || contents.open(&path, &requester)).await?
            }
        };
        let content = match opened {
            Ok(content) => content,
            Err(error) => {
                self.refused(&request.path, &reason(&error));
                let answer = respond::failure(request, &error, persistence, now);
                return self.send(&answer, None).await.map(|()| persistence);
            }
        };
        let answer = respond::content(request, &content, persistence, now);
        let length = answer.content_length();
        let mut large = None;
        if length >= self.shared.limits.large {
            let (counted, is_room) =
                self.shared.gate.transfer(self.requester.address, self.shared.limits.large_transfers);
            if !is_room && request.is_ipxe() {
                self.refused(&request.path, "too many large transfers, asked to come back");
                let answer = respond::busy(request, retry_after(), persistence, now);
                return self.send(&answer, None).await.map(|()| persistence);
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
        sent.map(|()| answer.persistence)
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
    fn own_page(&self, request: &Request, persistence: Persistence, now: SystemTime) -> Option<Answer> {
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
                Some(respond::page(request, status, media_type, body, persistence, now))
            }
            "metrics" => {
                let metrics = self.shared.metrics.as_ref()?;
                let media_type = "text/plain; version=0.0.4";
                Some(respond::page(request, 200, media_type, metrics(), persistence, now))
            }
            _ => None,
        }
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

fn reason(error: &ContentError) -> String {
    goldwire_stdx::Report::of(error).line()
}
