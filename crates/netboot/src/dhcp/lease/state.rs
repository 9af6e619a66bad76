//! What is known of one address, and what the log says of it.

use std::net::Ipv4Addr;

use super::Time;
use super::identity::{ClientId, Key};
use super::record::{MemberId, Record, RecordState, RelayAgent};

/// The state of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Held for a client that has not asked for it yet. Not logged.
    Offered,
    /// A client has it, or had it.
    Granted,
    /// A client gave it back.
    Released,
    /// A client, or our probe, found it in use.
    Declined,
}

/// What is known of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its state.
    pub state: State,
    /// Whose it is, or was.
    pub client: ClientId,
    /// What the relay told when the client asked last.
    pub(crate) relay_agent: RelayAgent,
    /// The member that decided this.
    pub member: MemberId,
    /// The number that this member gave it.
    pub(crate) member_sequence: u64,
    /// The client's last transaction.
    pub changed: Time,
    /// When the lease ends.
    pub(crate) expires: Time,
    /// Until when the address's owner keeps it for the client.
    pub(crate) grace_until: Time,
    /// Until when an offer of it stands.
    pub(crate) held_until: Time,
    pub(super) key: Key,
}

impl Lease {
    /// Whether a client has the address now.
    pub(crate) fn is_active(&self, now: Time) -> bool {
        self.state == State::Granted && self.expires > now
    }
}

impl Lease {
    /// Whether it is this client's: by its key, or because one of a machine's boot stages has it. An operating system
    /// takes over what its firmware has, and firmware what the machine had before it was restarted.
    pub(super) fn is_of(&self, client: &ClientId) -> bool {
        let is_same_hardware = client.hardware.is_some() && client.hardware == self.client.hardware;
        self.key == client.key() || (is_same_hardware && (client.is_boot || self.client.is_boot))
    }

    /// What the log says of it; nothing of an offer.
    pub(super) fn record(&self, address: Ipv4Addr) -> Option<Record> {
        let state = match self.state {
            State::Offered => return None,
            State::Granted => RecordState::Granted,
            State::Released => RecordState::Released,
            State::Declined => RecordState::Declined,
        };
        Some(Record {
            address,
            state,
            client: self.client.clone(),
            relay_agent: self.relay_agent.clone(),
            member: self.member,
            member_sequence: self.member_sequence,
            changed: self.changed,
            expires: self.expires,
            grace_until: self.grace_until,
        })
    }
}

impl From<Record> for Lease {
    fn from(record: Record) -> Self {
        let state = match record.state {
            RecordState::Granted => State::Granted,
            RecordState::Released => State::Released,
            RecordState::Declined => State::Declined,
        };
        Self {
            state,
            key: record.client.key(),
            client: record.client,
            relay_agent: record.relay_agent,
            member: record.member,
            member_sequence: record.member_sequence,
            changed: record.changed,
            expires: record.expires,
            grace_until: record.grace_until,
            held_until: Time(0),
        }
    }
}
