//! Who is heard, and what is sent when. Time and randomness are arguments.
//!
//! For each peer we draw a nonce and send it along; the peer echoes it. A datagram is *proven* when it echoes the nonce
//! that we have drawn for its sender, and only proven ones count. An unproven one (its sender started just now, or we
//! did, or it is a replay) is answered once with its own nonce echoed, and changes nothing. When another life of a
//! peer proves itself, a new nonce is drawn, so that nothing that the former life signed can be proof again.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::super::health::Health;
use super::super::{MEMBERS_MAX, MemberState};
use super::wire::{Announcement, Beat, Condition, DecodeError, Key};

/// Time between two heartbeats to one member.
pub(crate) const INTERVAL: Duration = Duration::from_millis(100);

/// Silence that is death.
pub(crate) const DEAD_AFTER: Duration = Duration::from_millis(1500);

/// How long a found member is remembered after its last sign, and one that announced itself without proof.
pub(crate) const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// Clocks that differ by more than this are worth a warning: tokens live for minutes.
pub(crate) const CLOCK_SKEW_MAX: Duration = Duration::from_secs(10);

/// Heartbeats in a row that bring a dead member back: half a second of them.
const SIGNS_TO_RETURN: u32 = 5;

/// Intervals between two announcements to everybody.
const ANNOUNCE_EVERY: u32 = 10;

/// Unproven datagrams of one peer that are answered in an interval. Whoever replays more than that only keeps a member
/// that starts just now waiting.
const ANSWERS_MAX: u32 = 8;

/// Heartbeats that say goodbye; one could be lost.
const FAREWELLS: usize = 3;

/// A configured member other than this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Where it hears heartbeats.
    pub address: SocketAddr,
}

/// The group as it is configured.
#[derive(Clone, Debug)]
pub struct Group {
    /// The shared secret.
    pub key: Key,
    /// What this member says of itself.
    pub own: Announcement,
    /// The other members.
    pub peers: Vec<Peer>,
    /// Multicast or broadcast addresses on which this member announces itself.
    pub announce_to: Vec<SocketAddr>,
    /// Whether members that are not configured may join.
    pub accepts_found: bool,
}

/// A datagram to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Whereto.
    pub to: SocketAddr,
    /// What.
    pub bytes: Vec<u8>,
}

/// A member changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name.
    pub name: String,
    /// What it is now; none when it is forgotten.
    pub state: Option<MemberState>,
    /// Why, as a sentence.
    pub why: String,
    /// What it announced, if it is not configured.
    pub found: Option<Announcement>,
}

/// Something that an operator wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A member serves another boot tree or configuration than this one.
    Differs {
        /// Its name.
        name: String,
    },
    /// A member's clock differs by this many seconds from ours.
    Clock {
        /// Its name.
        name: String,
        /// Positive when its clock is ahead.
        seconds: i64,
    },
    /// Another process of the group uses this member's name.
    NameTaken,
}

/// Why a datagram counted for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It is no heartbeat of this group.
    #[error("decode a heartbeat")]
    Decode(#[source] DecodeError),
    /// It is our own.
    #[error("the heartbeat is this member's own")]
    Reflected,
    /// Another process has our name.
    #[error("another process uses this member's name")]
    NameTaken,
    /// Nobody of this name is configured, and no others may join, or no more.
    #[error("the sender is not of this group")]
    Unknown,
    /// It was heard before, or a later one was.
    #[error("the heartbeat is old")]
    Old,
    /// It does not echo what we drew for its sender.
    #[error("the sender has not proven that it lives now")]
    Unproven,
}

/// One member's view of its group.
#[derive(Debug)]
pub struct Machine {
    group: Group,
    /// Drawn at the start of this process.
    boot_id: u64,
    sequence: u64,
    /// Nonces drawn.
    nonces: u64,
    next_beat: Duration,
    beats: u32,
    peers: BTreeMap<String, Heard>,
    transmits: VecDeque<Transmit>,
    changes: VecDeque<Change>,
    notes: VecDeque<Note>,
    is_name_taken: bool,
}

/// What is known of a peer.
#[derive(Debug)]
struct Heard {
    address: SocketAddr,
    /// What it announced, if it is not configured.
    found: Option<Announcement>,
    /// When it last proved itself, or was first heard.
    heard_at: Duration,
    /// Its life; 0 before it proved itself.
    boot_id: u64,
    sequence: u64,
    /// What we drew for it.
    nonce: u64,
    /// What it drew for us; 0 before it proved itself.
    echo: u64,
    answers: u32,
    health: Health,
    condition: Condition,
    /// What was told last.
    reported: MemberState,
    is_different: bool,
    is_clock_off: bool,
}

impl Machine {
    /// A member that starts at `now`, on a monotonic clock of the caller's choice. `boot_id` is a random number.
    pub fn new(group: Group, boot_id: u64, now: Duration) -> Self {
        let mut machine = Self {
            group,
            boot_id: boot_id.max(1),
            sequence: 0,
            nonces: 0,
            next_beat: now,
            beats: 0,
            peers: BTreeMap::new(),
            transmits: VecDeque::new(),
            changes: VecDeque::new(),
            notes: VecDeque::new(),
            is_name_taken: false,
        };
        let peers = std::mem::take(&mut machine.group.peers);
        machine.set_peers(now, peers);
        machine
    }

    /// Changes who is configured. Who was and is stays as it was heard; who moved or is new begins as a stranger; who
    /// is configured no more is not listened to, unless others may join: then it joins anew.
    pub fn set_peers(&mut self, now: Duration, peers: Vec<Peer>) {
        let is_kept = |name: &str, heard: &Heard| {
            heard.found.is_none()
                && peers.iter().any(|peer| peer.name == name && peer.address == heard.address)
        };
        let is_named = |name: &str| peers.iter().any(|peer| peer.name == name);
        let changes = &mut self.changes;
        self.peers.retain(|name, heard| {
            let stays = is_kept(name, heard) || (heard.found.is_some() && !is_named(name));
            if !stays {
                // Whoever has this name now has to be heard first.
                let (state, why) = (Some(MemberState::Dead), "it was configured anew".into());
                changes.push_back(Change { name: name.clone(), state, why, found: None });
            }
            stays
        });
        for Peer { name, address } in peers {
            if name != self.group.own.name && !self.peers.contains_key(&name) {
                let heard = self.stranger(&name, address, None, now);
                self.peers.insert(name, heard);
            }
        }
    }

    /// Changes what this member says of itself, from the next heartbeat on.
    pub(crate) fn set_own(&mut self, condition: Condition, digest: [u8; 16]) {
        self.group.own.condition = condition;
        self.group.own.digest = digest;
    }

    /// Takes a datagram. `wall` is the time since 1970.
    ///
    /// # Errors
    /// Why it counts for nothing.
    pub fn handle_input(&mut self, now: Duration, wall: Duration, bytes: &[u8]) -> Result<(), Refusal> {
        let beat = Beat::decode(bytes, &self.group.key).map_err(Refusal::Decode)?;
        if beat.announcement.name == self.group.own.name {
            return Err(self.own_name(&beat));
        }
        let name = beat.announcement.name.clone();
        if !self.peers.contains_key(&name) {
            if !self.group.accepts_found || self.peers.len() + 1 >= MEMBERS_MAX {
                return Err(Refusal::Unknown);
            }
            let address = SocketAddr::new(beat.announcement.address, beat.announcement.heartbeat_port);
            let heard = self.stranger(&name, address, Some(beat.announcement.clone()), now);
            self.peers.insert(name.clone(), heard);
        }
        let Some(peer) = self.peers.get_mut(&name) else { return Err(Refusal::Unknown) };
        if beat.echo != peer.nonce {
            if beat.nonce == 0 || peer.answers >= ANSWERS_MAX {
                return Err(Refusal::Unproven);
            }
            peer.answers += 1;
            let (to, nonce) = (peer.address, peer.nonce);
            self.send(to, nonce, beat.nonce, wall);
            return Err(Refusal::Unproven);
        }
        if beat.boot_id == peer.boot_id && beat.sequence <= peer.sequence {
            return Err(Refusal::Old);
        }
        self.count(&name, beat, now, wall);
        Ok(())
    }

    /// Takes the time: sends what is due and buries who is silent. To be called at [`Self::poll_timeout`] or later,
    /// after all datagrams that have arrived were handled: whoever slept must not take its own sleep for others' death.
    pub fn handle_timeout(&mut self, now: Duration, wall: Duration) {
        let names: Vec<String> = self.peers.keys().cloned().collect();
        for name in &names {
            if let Some(peer) = self.peers.get_mut(name) {
                peer.health.expire(now, DEAD_AFTER);
            }
            self.tell(name, now);
        }
        if now < self.next_beat {
            return;
        }
        // Who was late does not make up for it: two at once tell no more than one.
        let next = self.next_beat + INTERVAL;
        self.next_beat = if next > now { next } else { now + INTERVAL };
        self.beat(wall);
        if self.beats.is_multiple_of(ANNOUNCE_EVERY) {
            for to in self.group.announce_to.clone() {
                self.send(to, 0, 0, wall);
            }
        }
        self.beats = self.beats.wrapping_add(1);
    }

    /// Says goodbye: the others need not wait for our silence.
    pub fn leave(&mut self, wall: Duration) {
        self.group.own.condition = Condition::Leaving;
        for _ in 0..FAREWELLS {
            self.beat(wall);
        }
    }

    /// The next datagram to send. To be asked until there is none after each call of the others.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next change of a member.
    pub fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// The next thing to warn of.
    pub fn poll_note(&mut self) -> Option<Note> {
        self.notes.pop_front()
    }

    /// When to call [`Self::handle_timeout`] next.
    pub fn poll_timeout(&self) -> Duration {
        let silent = self.peers.values().filter_map(|peer| peer.health.last_sign()).min();
        silent.map_or(self.next_beat, |at| self.next_beat.min(at + DEAD_AFTER))
    }

    fn own_name(&mut self, beat: &Beat) -> Refusal {
        if beat.boot_id == self.boot_id {
            return Refusal::Reflected;
        }
        if !self.is_name_taken {
            self.is_name_taken = true;
            self.notes.push_back(Note::NameTaken);
        }
        Refusal::NameTaken
    }

    /// A proven heartbeat.
    fn count(&mut self, name: &str, beat: Beat, now: Duration, wall: Duration) {
        let is_other_life =
            self.peers.get(name).is_some_and(|peer| peer.boot_id != 0 && peer.boot_id != beat.boot_id);
        let nonce = is_other_life.then(|| self.draw(name));
        let Some(peer) = self.peers.get_mut(name) else { return };
        peer.boot_id = beat.boot_id;
        peer.nonce = nonce.unwrap_or(peer.nonce);
        peer.sequence = beat.sequence;
        // An announcement to everybody carries no nonce, and an echo of 0 proves nothing: this is no such one.
        peer.echo = beat.nonce;
        peer.heard_at = now;
        let said = beat.announcement;
        if said.condition == Condition::Leaving {
            peer.health.fail(now);
        } else {
            peer.health.sign(now);
        }
        peer.condition = said.condition;
        let ahead = i128::from(beat.sent_at) - wall.as_millis() as i128;
        let is_clock_off = ahead.unsigned_abs() > CLOCK_SKEW_MAX.as_millis();
        if is_clock_off && !peer.is_clock_off {
            let seconds = i64::try_from(ahead / 1000).unwrap_or(i64::MAX);
            self.notes.push_back(Note::Clock { name: name.to_owned(), seconds });
        }
        peer.is_clock_off = is_clock_off;
        let is_different = said.digest != self.group.own.digest;
        if is_different && !peer.is_different {
            self.notes.push_back(Note::Differs { name: name.to_owned() });
        }
        peer.is_different = is_different;
        let mut is_news = false;
        if let Some(found) = &mut peer.found {
            peer.address = SocketAddr::new(said.address, said.heartbeat_port);
            is_news = has_moved(found, &said);
            *found = said;
        }
        if is_news {
            // Told as a change although its state may be the same: its address or a port is another one.
            let (state, found) = (Some(peer.reported), peer.found.clone());
            let why = "it announces itself anew".into();
            self.changes.push_back(Change { name: name.to_owned(), state, why, found });
        }
        self.tell(name, now);
    }

    /// Tells of a peer's change, if there is one.
    fn tell(&mut self, name: &str, now: Duration) {
        let Some(peer) = self.peers.get_mut(name) else { return };
        let state = match peer.condition {
            _ if !peer.health.is_up() => MemberState::Dead,
            Condition::Serving => MemberState::Alive,
            Condition::Draining => MemberState::Draining,
            Condition::Leaving => MemberState::Dead,
        };
        if state != peer.reported {
            peer.reported = state;
            let why = match state {
                MemberState::Alive => "its heartbeats are heard".into(),
                MemberState::Draining => "it says that it drains".into(),
                MemberState::Dead if peer.condition == Condition::Leaving => "it said goodbye".into(),
                MemberState::Dead => format!("no heartbeat for {:.1} s", DEAD_AFTER.as_secs_f32()),
            };
            let found = peer.found.clone();
            self.changes.push_back(Change { name: name.to_owned(), state: Some(state), why, found });
        }
        let is_forgotten = peer.found.is_some() && now.saturating_sub(peer.heard_at) >= FORGOTTEN_AFTER;
        if is_forgotten && state == MemberState::Dead {
            let was_told = peer.boot_id != 0;
            self.peers.remove(name);
            if was_told {
                let why = format!("not heard for {} s", FORGOTTEN_AFTER.as_secs());
                self.changes.push_back(Change { name: name.to_owned(), state: None, why, found: None });
            }
        }
    }

    /// A heartbeat to each peer.
    fn beat(&mut self, wall: Duration) {
        let all: Vec<_> = self
            .peers
            .values_mut()
            .map(|peer| {
                peer.answers = 0;
                (peer.address, peer.nonce, peer.echo)
            })
            .collect();
        for (to, nonce, echo) in all {
            self.send(to, nonce, echo, wall);
        }
    }

    fn send(&mut self, to: SocketAddr, nonce: u64, echo: u64, wall: Duration) {
        self.sequence += 1;
        let beat = Beat {
            boot_id: self.boot_id,
            sequence: self.sequence,
            nonce,
            echo,
            sent_at: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX),
            announcement: self.group.own.clone(),
        };
        self.transmits.push_back(Transmit { to, bytes: beat.encode(&self.group.key) });
    }

    fn stranger(
        &mut self,
        name: &str,
        address: SocketAddr,
        found: Option<Announcement>,
        now: Duration,
    ) -> Heard {
        Heard {
            address,
            found,
            heard_at: now,
            boot_id: 0,
            sequence: 0,
            nonce: self.draw(name),
            echo: 0,
            answers: 0,
            health: Health::new(SIGNS_TO_RETURN),
            condition: Condition::Serving,
            reported: MemberState::Dead,
            is_different: false,
            is_clock_off: false,
        }
    }

    /// A number that was never drawn before in this life.
    fn draw(&mut self, name: &str) -> u64 {
        self.nonces += 1;
        self.group.key.number(self.boot_id, name, self.nonces)
    }
}

/// Whether a found member moved since it was told.
fn has_moved(before: &Announcement, now: &Announcement) -> bool {
    let with =
        |said: &Announcement| Announcement { condition: Condition::Serving, digest: [0; 16], ..said.clone() };
    with(before) != with(now)
}
