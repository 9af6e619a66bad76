//! Who has a session: at most so many in all and of one address. Who has never answered may be forged, and gives way.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{self, error::TrySendError};

use crate::tftp::admission::gives_way;

/// Sessions at once. One costs two sockets, and a buffer of which only as much is touched as a block is long.
const SESSIONS_MAX: usize = 4096;

/// Sessions of one client address at once: a machine fetches one file at a time, but a NAT may hide a room of them.
const SESSIONS_PER_CLIENT_MAX: usize = 256;

/// Whoever is there has answered after this long.
const ANSWERED_AFTER: Duration = Duration::from_secs(1);

/// Whether a session's client has shown that it is there.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard(Arc<AtomicBool>);

impl Heard {
    /// A datagram of the client came. A request alone proves nothing: anybody can write one.
    pub(super) fn note(&self, datagram: &[u8]) {
        if !matches!(datagram, [0, 1, ..]) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// All sessions of one front.
#[derive(Debug, Default)]
pub(super) struct Places {
    sessions: HashMap<SocketAddr, Place>,
}

#[derive(Debug)]
struct Place {
    /// To the session. It ends when this is dropped.
    queue: mpsc::Sender<Vec<u8>>,
    heard: Heard,
    since: Instant,
}

impl Places {
    /// Hands a datagram to its session. Whether there is one; a full queue loses it, as the network does.
    pub(super) fn pass(&self, client: SocketAddr, datagram: &[u8]) -> bool {
        let passed = self.sessions.get(&client).map(|place| place.queue.try_send(datagram.to_vec()));
        matches!(passed, Some(Ok(()) | Err(TrySendError::Full(_))))
    }

    /// A place for a new session. `None`, if all are taken by clients that have answered.
    pub(super) fn enter(
        &mut self,
        client: SocketAddr,
        queue: mpsc::Sender<Vec<u8>>,
        now: Instant,
    ) -> Option<Heard> {
        let address = client.ip();
        let mates = self.sessions.keys().filter(|other| other.ip() == address).count();
        if mates >= SESSIONS_PER_CLIENT_MAX {
            self.make_room(now, Some(address))?;
        } else if self.sessions.len() >= SESSIONS_MAX {
            self.make_room(now, None)?;
        }
        let heard = Heard::default();
        self.sessions.insert(client, Place { queue, heard: heard.clone(), since: now });
        Some(heard)
    }

    /// The session of this client is over; another one of it may have taken the place meanwhile.
    pub(super) fn leave(&mut self, client: SocketAddr) {
        if self.sessions.get(&client).is_some_and(|place| place.queue.is_closed()) {
            self.sessions.remove(&client);
        }
    }

    /// Ends a session that was never answered, of this address if one is named.
    fn make_room(&mut self, now: Instant, of: Option<IpAddr>) -> Option<()> {
        let unheard = self.sessions.iter().filter(|(client, place)| {
            !place.heard.0.load(Ordering::Relaxed) && of.is_none_or(|address| client.ip() == address)
        });
        let begun = unheard.map(|(client, place)| (place.since, *client));
        let client = gives_way(begun, now, ANSWERED_AFTER)?;
        self.sessions.remove(&client).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(address: u32, port: u16) -> SocketAddr {
        (IpAddr::from(std::net::Ipv4Addr::from_bits(address)), port).into()
    }

    /// A front that is full of requests which nobody stands behind takes an honest client at any moment, and keeps those
    /// who have answered.
    #[test]
    fn a_flood_of_requests_keeps_nobody_out() {
        let began = Instant::now();
        let mut places = Places::default();
        let (queue, mut session) = mpsc::channel(1);
        let honest = places.enter(client(1, 1), queue, began).unwrap();
        honest.note(&[0, 1, b'f', 0]);
        assert!(!honest.0.load(Ordering::Relaxed), "a repeated request shows nothing");
        honest.note(&[0, 4, 0, 0]);
        for (number, gap) in (0..20_000_u32).zip([0, 3].into_iter().cycle()) {
            let now = began + Duration::from_millis(u64::from(number) * gap);
            assert!(
                places.enter(client(100 + number % 40, number as u16), mpsc::channel(1).0, now).is_some()
            );
            assert!(places.sessions.len() <= SESSIONS_MAX);
        }
        assert!(places.pass(client(1, 1), &[0, 4, 0, 1]));
        assert_eq!(session.try_recv().unwrap(), [0, 4, 0, 1]);
    }

    #[test]
    fn who_has_answered_gives_way_to_nobody() {
        let began = Instant::now();
        let mut places = Places::default();
        let mut queues = Vec::new();
        for port in 1..=SESSIONS_PER_CLIENT_MAX as u16 {
            let (queue, session) = mpsc::channel(1);
            queues.push(session);
            places.enter(client(1, port), queue, began).unwrap().note(&[0, 4, 0, 0]);
        }
        let later = began + Duration::from_secs(60);
        assert!(places.enter(client(1, 9999), mpsc::channel(1).0, later).is_none());
        assert!(places.enter(client(2, 9999), mpsc::channel(1).0, later).is_some(), "another address");
        queues.pop();
        places.leave(client(1, SESSIONS_PER_CLIENT_MAX as u16));
        assert!(places.enter(client(1, 9999), mpsc::channel(1).0, later).is_some());
    }
}
