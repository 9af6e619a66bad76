//! All transfers of one worker: who is admitted, which packet belongs to which transfer, what is sent next. Without
//! sockets; a driver hands in packets and time and sends what it is given. Only how long a disk takes is seen by a clock of
//! its own, [`Fitness`].
//!
//! A transfer is known by the address that was asked and the client's address and port, its transfer identifier
//! (RFC 1350 §4). An ACK that belongs to none is dropped without an answer: its sender may be forged, and a ROM that uses
//! one port for all its requests would take the ERROR for the end of its next transfer.
//!
//! Who is not admitted gets no answer either, but does not lose: every firmware asks again after a while, whereas an
//! ERROR ends its boot.
//!
//! Only `octet` is served. Boot programs are not text, no firmware asks for `netascii`, and a client that does so by
//! mistake (`tftp` of tftp-hpa without `-m binary`) would be given a broken file; it is told what to do instead.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use goldwire_stdx::Report;

use super::admission::{Admission, Full, gives_way};
use super::session::Session;
use super::settings::{NOT_ALLOWED, Settings};
use super::transfer::{self, Outcome, Transfer};
use super::wire::{self, ErrorCode, FILE_NAME_MAX, Packet, Request};
use crate::content::{BadPath, ContentError, Contents, Requester, clean};
use crate::device::Mac;
use crate::event::{Event, EventKind, Observer, Protocol};
use crate::member::Fitness;

/// Most blocks that are sent at once: what the kernel takes in one call (UDP_MAX_SEGMENTS).
const BURST_BLOCKS_MAX: usize = 64;
/// Most bytes that are sent at once: an IP datagram's length is a 16-bit number, also that of many segments together.
const BURST_BYTES_MAX: usize = 65_000;

/// Whom the server asks and tells.
#[derive(Clone)]
pub struct Context {
    /// Has the files.
    pub contents: Arc<dyn Contents>,
    /// Hears what happens.
    pub observer: Arc<dyn Observer>,
    /// Hears when the boot tree's disk does not answer.
    pub fitness: Arc<Fitness>,
    /// Tells the hardware address behind a network address, if somebody knows it.
    pub mac_of: Arc<dyn Fn(IpAddr) -> Option<Mac> + Send + Sync>,
}

/// What tells one transfer from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The number of the listening socket that was asked.
    pub listener: usize,
    /// The server's address that was asked, from which it answers.
    pub local: IpAddr,
    /// The client's address and port.
    pub peer: SocketAddr,
}

/// Something to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// From where to whom.
    pub key: Key,
    /// What.
    pub payload: Payload<'a>,
}

/// What is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// One packet.
    Packet(&'a [u8]),
    /// One packet for each of several consecutive blocks, each behind its header.
    Blocks {
        /// The number of the first one; after 65535 comes 0.
        first: u16,
        /// How many there are.
        count: u16,
        /// Bytes in each but the last.
        block_size: u16,
        /// The bytes of all of them. The last may have fewer than the others, or none.
        bytes: &'a [u8],
    },
}

/// The transfers of one worker.
pub struct Server {
    settings: Arc<Settings>,
    context: Context,
    admission: Arc<Admission>,
    sessions: HashMap<Key, Session>,
    /// Transfers that may have something to send, in turn.
    ready: VecDeque<Key>,
    /// Packets that belong to no transfer.
    packets: VecDeque<(Key, Vec<u8>)>,
    /// Transfers that are over, for who keeps something for each.
    ended: Vec<Key>,
    /// Not later than the earliest deadline of all transfers.
    deadline: Option<Instant>,
    buffer: Vec<u8>,
}

impl Server {
    /// No transfers yet.
    pub fn new(settings: Arc<Settings>, context: Context, admission: Arc<Admission>) -> Self {
        Self {
            settings,
            context,
            admission,
            sessions: HashMap::new(),
            ready: VecDeque::new(),
            packets: VecDeque::new(),
            ended: Vec::new(),
            deadline: None,
            buffer: vec![0; BURST_BYTES_MAX + wire::DATA_HEADER],
        }
    }

    /// A datagram came. [`Self::poll_transmit`] has the answer.
    pub fn handle_datagram(&mut self, now: Instant, key: Key, bytes: &[u8]) {
        if key.peer.port() == 0 {
            return self.dropped(key, "a client's port is not 0");
        }
        if !self.settings.clients.answers(key.peer.ip()) {
            return self.dropped(key, NOT_ALLOWED);
        }
        match Packet::decode(bytes) {
            Ok(Packet::Ack { block }) => {
                let Some(session) = self.sessions.get_mut(&key) else { return };
                session.heard = now;
                session.transfer.handle_ack(block);
                self.drive(now, key);
            }
            Ok(Packet::Error { code, message }) => {
                let Some(session) = self.sessions.get_mut(&key) else { return };
                session.transfer.handle_error(code, message);
                self.drive(now, key);
            }
            Ok(Packet::Read(request)) => self.handle_request(now, key, &request, bytes),
            Ok(Packet::Write(request)) => {
                let path = String::from_utf8_lossy(request.file).into_owned();
                self.refuse(
                    key,
                    &path,
                    ErrorCode::ACCESS_VIOLATION,
                    "read-only server",
                    "it wanted to write",
                );
            }
            Ok(Packet::Data { .. } | Packet::OptionAck(_)) => {
                self.dropped(key, "a server's packet, not a client's")
            }
            Err(error) => self.dropped(key, &error.to_string()),
        }
    }

    /// When [`Self::handle_timeout`] is to be called at the latest. Changes with every call of the others.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    /// Time has passed. Looks at all transfers, but only when one of them may be late.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        self.deadline = None;
        let mut late = Vec::new();
        for (key, session) in &self.sessions {
            let deadline = session.transfer.deadline();
            if deadline <= now {
                late.push(*key);
            } else {
                self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
            }
        }
        for key in late {
            if let Some(session) = self.sessions.get_mut(&key) {
                session.transfer.handle_timeout(now);
            }
            self.drive(now, key);
        }
    }

    /// The next thing to be sent. To be asked until there is none.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit<'_>> {
        if let Some((key, packet)) = self.packets.pop_front() {
            self.buffer[..packet.len()].copy_from_slice(&packet);
            return Some(Transmit { key, payload: Payload::Packet(&self.buffer[..packet.len()]) });
        }
        let (key, step) = loop {
            let key = self.ready.pop_front()?;
            let Some(session) = self.sessions.get_mut(&key) else { continue };
            session.is_ready = false;
            let packet = usize::from(session.transfer.block_size()) + wire::DATA_HEADER;
            let count_max = (BURST_BYTES_MAX / packet).clamp(1, BURST_BLOCKS_MAX) as u16;
            let Some(step) = session.transfer.poll_transmit(now, count_max) else { continue };
            let deadline = session.transfer.deadline();
            self.note(deadline);
            break (key, step);
        };
        self.payload(now, key, step)
    }

    /// The next transfer that is over.
    pub(crate) fn poll_ended(&mut self) -> Option<Key> {
        self.ended.pop()
    }

    /// How many transfers there are.
    pub fn transfers(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is this transfer.
    pub fn has(&self, key: &Key) -> bool {
        self.sessions.contains_key(key)
    }

    fn payload(&mut self, now: Instant, key: Key, step: transfer::Transmit) -> Option<Transmit<'_>> {
        let session = self.sessions.get_mut(&key)?;
        match step {
            transfer::Transmit::OptionAck => {
                let packet = Packet::OptionAck(session.transfer.accepted().clone()).encode();
                self.buffer[..packet.len()].copy_from_slice(&packet);
                Some(Transmit { key, payload: Payload::Packet(&self.buffer[..packet.len()]) })
            }
            transfer::Transmit::Blocks { first, count } => {
                let (offset, length) = session.transfer.extent(first, count);
                let read = session.read_at(&mut self.buffer[..length], offset, &self.context.fitness);
                let reason = match read {
                    Ok(read) if read == length => {
                        let block_size = session.transfer.block_size();
                        if !session.is_ready {
                            session.is_ready = true;
                            self.ready.push_back(key);
                        }
                        let bytes = &self.buffer[..length];
                        let payload = Payload::Blocks { first: first as u16, count, block_size, bytes };
                        return Some(Transmit { key, payload });
                    }
                    Ok(_) => "the file has become shorter while it was sent".to_owned(),
                    Err(error) => format!("the file cannot be read: {error}"),
                };
                let session = self.sessions.remove(&key)?;
                self.ended.push(key);
                self.refuse_as(
                    key,
                    session.mac,
                    &session.path,
                    ErrorCode::NOT_DEFINED,
                    "read error",
                    &reason,
                );
                self.transferred(now, key, &session, false);
                self.poll_transmit(now)
            }
        }
    }

    fn handle_request(&mut self, now: Instant, key: Key, request: &Request<'_>, bytes: &[u8]) {
        if let Some(session) = self.sessions.get(&key) {
            // The same request again: a copy, or a client that is impatient. Its transfer goes on and its timer repeats
            // what is lost. After a silence as long as a timeout, though, it is a client that starts anew from the same
            // port, after a reset.
            let is_copy = *session.request == *bytes
                && (!session.transfer.is_confirmed() || now < session.heard + self.settings.timeout);
            if is_copy {
                if let Some(session) = self.sessions.get_mut(&key) {
                    session.transfer.handle_repetition();
                }
                return self.drive(now, key);
            }
            self.end(now, key);
        }
        let path = match path_of(request.file) {
            Ok(path) => path,
            Err(bad) => {
                let path = String::from_utf8_lossy(request.file).into_owned();
                let (code, message) = match bad {
                    BadPath::Hidden => (ErrorCode::FILE_NOT_FOUND, "file not found"),
                    _ => (ErrorCode::ACCESS_VIOLATION, "no such name"),
                };
                return self.refuse(key, &path, code, message, &bad.to_string());
            }
        };
        if request.mode != wire::Mode::Octet {
            let message = "only binary (octet) mode";
            return self.refuse(
                key,
                &path,
                ErrorCode::ILLEGAL_OPERATION,
                message,
                "it asked for another mode than octet",
            );
        }
        let address = key.peer.ip();
        let permit = match self.admission.enter(address) {
            Ok(permit) => permit,
            // Who has never been heard again may be forged, and gives way: a flood of requests holds nobody up.
            Err(full) => {
                let gave_way = self.drop_unconfirmed(now, address, full);
                match gave_way.then(|| self.admission.enter(address)) {
                    Some(Ok(permit)) => permit,
                    _ => return self.dropped(key, full.reason()),
                }
            }
        };
        let mac = (self.context.mac_of)(address);
        let requester = Requester { address, mac, protocol: Protocol::Tftp };
        let opened = self.context.contents.open_at_once(&path, &requester).unwrap_or_else(|| {
            let _working = self.context.fitness.begin_read();
            self.context.contents.open(&path, &requester)
        });
        let content = match opened {
            Ok(content) => content,
            Err(error) => {
                let (code, message) = match &error {
                    ContentError::NotFound => (ErrorCode::FILE_NOT_FOUND, "file not found"),
                    ContentError::Forbidden(_) => (ErrorCode::ACCESS_VIOLATION, "access violation"),
                    ContentError::NotReady => (ErrorCode::NOT_DEFINED, "not read yet; ask again"),
                    ContentError::Failed { .. } => (ErrorCode::NOT_DEFINED, "the server cannot read it"),
                    ContentError::Script { .. } => {
                        (ErrorCode::NOT_DEFINED, "the server cannot make the script")
                    }
                };
                return self.refuse_as(key, mac, &path, code, message, &Report::of(&error).line());
            }
        };
        let limits = self.settings.limits(address);
        let transfer = Transfer::new(&request.options, limits, content.length, now);
        let session = Session {
            transfer,
            content,
            path,
            mac,
            request: bytes.into(),
            started: now,
            heard: now,
            is_ready: false,
            ahead: (0, Vec::new()),
            _permit: permit,
        };
        self.sessions.insert(key, session);
        self.drive(now, key);
    }

    /// Drops a transfer of this worker whose client has shown nothing yet; of this address, if that has too many. Whether
    /// there was one.
    fn drop_unconfirmed(&mut self, now: Instant, address: IpAddr, full: Full) -> bool {
        let unconfirmed = self.sessions.iter().filter(|(key, session)| {
            !session.transfer.is_confirmed() && (full == Full::All || key.peer.ip() == address)
        });
        let begun = unconfirmed.map(|(key, session)| (session.started, *key));
        let Some(key) = gives_way(begun, now, self.settings.timeout) else { return false };
        self.end(now, key);
        true
    }

    /// A transfer has no port of its own, though it needs one. Its client repeats its request.
    pub fn give_up(&mut self, now: Instant, key: Key) {
        self.end(now, key);
    }

    /// The network says that nothing reaches this client's port: its transfers end.
    pub(crate) fn handle_unreachable(&mut self, now: Instant, peer: SocketAddr) {
        let keys: Vec<Key> = self.sessions.keys().filter(|key| key.peer == peer).copied().collect();
        for key in keys {
            if let Some(session) = self.sessions.get_mut(&key) {
                session.transfer.handle_unreachable();
            }
            self.drive(now, key);
        }
    }

    /// Something happened to a transfer: it may have something to send, or be over.
    fn drive(&mut self, now: Instant, key: Key) {
        let Some(session) = self.sessions.get_mut(&key) else { return };
        if session.transfer.outcome().is_some() {
            return self.end(now, key);
        }
        if !session.is_ready {
            session.is_ready = true;
            self.ready.push_back(key);
        }
        let deadline = session.transfer.deadline();
        self.note(deadline);
    }

    fn note(&mut self, deadline: Instant) {
        self.deadline = Some(self.deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }

    /// Forgets a transfer and tells how it went.
    fn end(&mut self, now: Instant, key: Key) {
        let Some(session) = self.sessions.remove(&key) else { return };
        self.ended.push(key);
        let is_complete = matches!(session.transfer.outcome(), Some(Outcome::Complete | Outcome::SizeQuery));
        self.transferred(now, key, &session, is_complete);
        if session.transfer.outcome() == Some(&Outcome::Complete) {
            let kind = EventKind::Reached {
                protocol: Protocol::Tftp,
                stage: session.content.stage,
                device: None,
                detail: &session.path,
            };
            self.tell(key, session.mac, kind);
        }
    }

    fn transferred(&self, now: Instant, key: Key, session: &Session, is_complete: bool) {
        let kind = EventKind::Transferred {
            protocol: Protocol::Tftp,
            path: &session.path,
            bytes: session.transfer.bytes_acknowledged(),
            seconds: now.saturating_duration_since(session.started).as_secs_f64(),
            is_complete,
        };
        self.tell(key, session.mac, kind);
    }

    fn refuse(&mut self, key: Key, path: &str, code: ErrorCode, message: &str, reason: &str) {
        let mac = (self.context.mac_of)(key.peer.ip());
        self.refuse_as(key, mac, path, code, message, reason);
    }

    /// Answers with an ERROR: `message` for the client, `reason` for the log.
    fn refuse_as(
        &mut self,
        key: Key,
        mac: Option<Mac>,
        path: &str,
        code: ErrorCode,
        message: &str,
        reason: &str,
    ) {
        self.packets.push_back((key, Packet::Error { code, message: message.into() }.encode()));
        self.tell(key, mac, EventKind::Refused { protocol: Protocol::Tftp, path, reason });
    }

    fn dropped(&self, key: Key, reason: &str) {
        self.tell(key, None, EventKind::Dropped { protocol: Protocol::Tftp, reason });
    }

    fn tell(&self, key: Key, mac: Option<Mac>, kind: EventKind<'_>) {
        self.context.observer.observe(&Event { mac, address: Some(key.peer.ip()), kind });
    }
}

/// The path that a request names, as [`Contents`] wants it.
fn path_of(file: &[u8]) -> Result<String, BadPath> {
    if file.len() > FILE_NAME_MAX {
        return Err(BadPath::Long);
    }
    // Some ROMs take the end mark of the DHCP options (255) for the last character of the boot file's name.
    let file = file.strip_suffix(&[0xff]).unwrap_or(file);
    let name = std::str::from_utf8(file).map_err(|_| BadPath::NotText)?;
    clean(name)
}
