//! What the tests share: contents in memory and somebody who writes down what happened.

mod clients;
mod complaints;
mod flood;
mod link;
mod requests;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::admission::Admission;
use super::server::{Context, Key, Payload, Server};
use super::settings::Settings;
use super::wire::{Mode, OptionName, Options, Packet, Request};
use crate::content::{Body, Content, ContentError, Contents, Requester};
use crate::device::Mac;
use crate::event::{Event, EventKind, Observer, Stage};

/// Files in memory, and one name that is forbidden.
#[derive(Default)]
pub(super) struct Files(pub(super) BTreeMap<String, Arc<[u8]>>);

impl Contents for Files {
    fn open(&self, path: &str, requester: &Requester) -> Result<Content, ContentError> {
        if path == "forbidden" || path == "only-for-a" && requester.mac != Some(MAC) {
            return Err(ContentError::Forbidden("the policy says no"));
        }
        let bytes = self.0.get(path).ok_or(ContentError::NotFound)?;
        Ok(Content {
            body: Body::Memory(Arc::clone(bytes)),
            length: bytes.len() as u64,
            digest: None,
            media_type: "application/octet-stream",
            modified: None,
            stage: Stage::Bootstrap,
        })
    }
}

/// Writes down what happened, one line each.
#[derive(Default)]
pub(super) struct EventLog(Mutex<Vec<String>>);

impl EventLog {
    pub(super) fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for EventLog {
    fn observe(&self, event: &Event<'_>) {
        let mac = event.mac.map_or("-".to_owned(), |mac| mac.to_string());
        let text = match event.kind {
            EventKind::Reached { stage, detail, .. } => format!("reached {} {detail}", stage.name()),
            EventKind::Transferred { path, bytes, is_complete, .. } => {
                format!("transferred {path} {bytes} {is_complete}")
            }
            EventKind::Refused { path, reason, .. } => format!("refused {path}: {reason}"),
            EventKind::Dropped { reason, .. } => format!("dropped: {reason}"),
            EventKind::Member { .. } => "member".into(),
            EventKind::Leased => "leased".into(),
        };
        self.0.lock().unwrap().push(format!("{mac} {text}"));
    }
}

pub(super) const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

/// Bytes that are all over different, so that a block in the wrong place shows.
pub(super) fn pattern(length: usize) -> Arc<[u8]> {
    (0..length).map(|at| (at ^ (at >> 8).wrapping_mul(31) ^ (at >> 16).wrapping_mul(17)) as u8).collect()
}

pub(super) fn files(names: &[(&str, usize)]) -> Files {
    Files(names.iter().map(|(name, length)| ((*name).to_owned(), pattern(*length))).collect())
}

/// A server of these files, what it tells, and the hardware address of every client known.
pub(super) fn context(files: Files) -> (Context, Arc<EventLog>) {
    let event_log = Arc::new(EventLog::default());
    let observer: Arc<dyn Observer> = event_log.clone();
    (
        Context {
            contents: Arc::new(files),
            observer,
            fitness: Arc::default(),
            mac_of: Arc::new(|_| Some(MAC)),
        },
        event_log,
    )
}

/// A server without sockets.
pub(super) struct Harness {
    pub(super) server: Server,
    pub(super) event_log: Arc<EventLog>,
    pub(super) now: Instant,
}

impl Harness {
    pub(super) fn new(settings: Settings, files: Files) -> Self {
        let (context, event_log) = context(files);
        let admission = Admission::new(&settings);
        Self { server: Server::new(Arc::new(settings), context, admission), event_log, now: Instant::now() }
    }

    /// Everything that is sent after this packet, each packet for itself.
    pub(super) fn exchange(&mut self, key: Key, packet: &[u8]) -> Vec<Vec<u8>> {
        self.server.handle_datagram(self.now, key, packet);
        self.sent().into_iter().map(|(_, packet)| packet).collect()
    }

    pub(super) fn sent(&mut self) -> Vec<(Key, Vec<u8>)> {
        let mut packets = Vec::new();
        while let Some(transmit) = self.server.poll_transmit(self.now) {
            match transmit.payload {
                Payload::Packet(bytes) => packets.push((transmit.key, bytes.to_vec())),
                Payload::Blocks { first, count, block_size, bytes } => {
                    let size = usize::from(block_size);
                    for at in 0..usize::from(count) {
                        let block = first.wrapping_add(at as u16);
                        let bytes = &bytes[(at * size).min(bytes.len())..((at + 1) * size).min(bytes.len())];
                        packets.push((transmit.key, Packet::Data { block, bytes }.encode()));
                    }
                }
            }
        }
        packets
    }
}

pub(super) fn key(client: u8, port: u16) -> Key {
    let address = |last| IpAddr::V4(Ipv4Addr::new(10, 0, 0, last));
    Key { listener: 0, local: address(1), peer: (address(client), port).into() }
}

pub(super) fn read_request(file: &[u8], options: &[(OptionName, u64)]) -> Vec<u8> {
    let mut asked = Options::default();
    for (name, value) in options {
        asked.add(*name, *value);
    }
    Packet::Read(Request { file, mode: Mode::Octet, options: asked }).encode()
}

pub(super) fn ack(block: u16) -> Vec<u8> {
    Packet::Ack { block }.encode()
}
