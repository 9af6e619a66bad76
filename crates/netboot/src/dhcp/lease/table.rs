//! Who holds which address now.
//!
//! ```text
//!          offer             grant             release, or the lease ends
//!   free ────────► Offered ────────► Granted ──────────────────────────► reusable, oldest first,
//!     ▲               │ hold ends       │ decline                        but the same client's until then
//!     └───────────────┘                 ▼
//!                                    Declined ── put aside for a while ─► reusable
//! ```
//!
//! An address that was never given away goes out before one that was, so that clients that come back after their lease
//! has ended find their old address as long as there is room. A hold is not logged and is forgotten when it ends: a flood
//! of DISCOVERs leaves nothing behind, and can take only a part of a pool. Past that part, the oldest hold that nobody came
//! back for is taken back: who invents clients takes from his own inventions, and the next client is served. What is taken
//! back is always given to who asks: an offer of a reserved address, which nobody else can have, stands.
//!
//! Memory is bounded by the pools, the other members' ranges and the reservations: one entry and at most four index
//! entries for each address, of at most 255 bytes of client identifier and as many of what a relay told.

mod hold;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::ops::Bound;
use std::time::Duration;

#[cfg(test)]
pub(crate) use hold::Held;

use super::Time;
use super::identity::{ClientId, Hardware, Key};
use super::record::{MemberId, Record, RelayAgent};
use super::state::{Lease, State};
use super::subnet::{Plan, Requester, Subnet, Terms};

/// Why a client does not get an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum Denied {
    /// It is another client's: leased, offered or reserved.
    #[error("the address is another client's")]
    Taken,
    /// It is put aside.
    #[error("the address was found in use by somebody else")]
    Declined,
    /// It is in another member's range, and we have no record that proves the client's lease.
    #[error("the address is another server's, and nothing proves the lease")]
    Unproven,
    /// It is in nobody's range.
    #[error("the address is in no pool")]
    Unmanaged,
    /// All addresses are in use.
    #[error("no address is free")]
    Exhausted,
}

/// All leases of a server.
#[derive(Debug)]
pub struct Table {
    member: MemberId,
    member_sequence: u64,
    terms: Terms,
    subnets: Vec<Subnet>,
    leases: BTreeMap<Ipv4Addr, Lease>,
    by_key: HashMap<(usize, Key), Ipv4Addr>,
    /// The latest lease of a hardware address in a subnet.
    by_hardware: HashMap<(usize, Hardware), Ipv4Addr>,
    /// The latest lease of a client identifier in a subnet.
    by_client_id: HashMap<(usize, Key), Ipv4Addr>,
}

impl Table {
    /// An empty table for these subnets, which are known by their number from here on.
    pub fn new(member: MemberId, plans: Vec<Plan>, terms: Terms) -> Self {
        Self {
            member,
            member_sequence: 1,
            terms,
            subnets: plans.into_iter().map(Subnet::new).collect(),
            leases: BTreeMap::new(),
            by_key: HashMap::new(),
            by_hardware: HashMap::new(),
            by_client_id: HashMap::new(),
        }
    }

    /// Takes in what the log says, in its order. Says whether the address is still in any subnet's plan.
    pub fn restore(&mut self, record: Record) -> bool {
        if record.member == self.member {
            self.member_sequence = self.member_sequence.max(record.member_sequence.saturating_add(1));
        }
        let Some(subnet) = self.subnet_of(record.address) else { return false };
        let address = record.address;
        self.put(subnet, address, Lease::from(record));
        true
    }

    /// The number of this member's next record.
    pub(crate) fn member_sequence(&self) -> u64 {
        self.member_sequence
    }

    /// Begins numbering at least here: with what [`super::Opened::member_sequence`] says.
    pub(crate) fn number_from(&mut self, member_sequence: u64) {
        self.member_sequence = self.member_sequence.max(member_sequence);
    }

    /// What is known of an address.
    pub fn lease(&self, address: Ipv4Addr) -> Option<&Lease> {
        self.leases.get(&address)
    }

    /// Whether an address is known to be this client's, now or until its lease ended.
    pub(crate) fn is_of(&self, address: Ipv4Addr, client: &ClientId) -> bool {
        self.leases.get(&address).is_some_and(|lease| lease.is_of(client) && lease.state == State::Granted)
    }

    /// The latest lease of a hardware address in each subnet.
    pub(crate) fn of_hardware(&self, hardware: Hardware) -> impl Iterator<Item = (Ipv4Addr, &Lease)> {
        (0..self.subnets.len())
            .filter_map(move |subnet| self.by_hardware.get(&(subnet, hardware)))
            .filter_map(|address| Some((*address, self.leases.get(address)?)))
    }

    /// The latest lease of a client identifier in each subnet.
    pub(crate) fn of_client_id(&self, client_id: &[u8]) -> impl Iterator<Item = (Ipv4Addr, &Lease)> {
        let key = Key::of_client_id(client_id);
        (0..self.subnets.len())
            .filter_map(move |subnet| self.by_client_id.get(&(subnet, key)))
            .filter_map(|address| Some((*address, self.leases.get(address)?)))
    }

    /// Every lease after an address, in the order of addresses.
    pub fn leases(&self, after: Option<Ipv4Addr>) -> impl Iterator<Item = (Ipv4Addr, &Lease)> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.leases.range((start, Bound::Unbounded)).map(|(address, lease)| (*address, lease))
    }

    /// What a rewritten log has to say of the next `count` addresses behind `after`, and the last of them; none at the
    /// end.
    pub fn snapshot(&self, after: Option<Ipv4Addr>, count: usize) -> (Vec<Record>, Option<Ipv4Addr>) {
        let mut last = None;
        let mut records = Vec::new();
        for (address, lease) in self.leases(after).take(count) {
            last = Some(address);
            records.extend(lease.record(address));
        }
        (records, last)
    }

    /// The clock was wrong by so much (milliseconds) since `since`: what this member decided in that time moves with it, so
    /// that every lease ends when its client believes that it does. Offers move too.
    pub(crate) fn shift_times(&mut self, since: Time, by_ms: i64) {
        let is_moved = |lease: &Lease| {
            lease.state == State::Offered || lease.member == self.member && lease.changed >= since
        };
        let mut moved: Vec<(Ipv4Addr, Lease)> = self
            .leases
            .iter()
            .filter(|(_, lease)| is_moved(lease))
            .map(|(address, lease)| (*address, lease.clone()))
            .collect();
        // The indices name a client's latest lease, so the latest is put last.
        moved.sort_by_key(|(_, lease)| lease.changed);
        for (address, _) in &moved {
            if let Some(subnet) = self.subnet_of(*address) {
                self.forget(subnet, *address);
            }
        }
        for (address, mut lease) in moved {
            let Some(subnet) = self.subnet_of(address) else { continue };
            let times =
                [&mut lease.changed, &mut lease.expires, &mut lease.grace_until, &mut lease.held_until];
            // 0 is no time, but the mark of there being none.
            times.into_iter().filter(|time| **time != Time(0)).for_each(|time| *time = time.shifted(by_ms));
            self.put(subnet, address, lease);
        }
    }

    /// Gives a client an address, or more time for it. Returns when the lease ends, and what has to be logged before the
    /// client may be told: the lease itself, and the ends of others that the client had on this link.
    ///
    /// # Errors
    /// Why it cannot have it.
    pub(crate) fn grant(
        &mut self,
        link: &[usize],
        now: Time,
        requester: Requester<'_>,
        address: Ipv4Addr,
        duration: Duration,
    ) -> Result<(Time, Vec<Record>), Denied> {
        let client = self.with_uuid(link, requester.client);
        let requester = Requester { client: &client, ..requester };
        let subnet = link.iter().copied().find(|subnet| self.subnets[*subnet].manages(address));
        let subnet = subnet.ok_or(Denied::Unmanaged)?;
        match self.usable(subnet, now, requester, address) {
            // An offer that was taken back is still on its way: whoever comes first of the two is given the address.
            Err(Denied::Taken) if self.was_offered(subnet, requester.client, address) => {}
            usable => usable?,
        }
        let mut expires = now.after(duration);
        let mut grace_until = expires;
        if self.is_of_peer(subnet, address) {
            grace_until = self.leases.get(&address).map_or(now, |lease| lease.grace_until);
            expires = expires.min(grace_until.after(self.terms.grace));
        }
        let key = requester.client.key();
        let mut records = Vec::with_capacity(1);
        for subnet in link {
            if let Some(other) = self.by_key.get(&(*subnet, key)).copied().filter(|other| *other != address) {
                records.extend(self.end(*subnet, now, other, State::Released, now));
            }
        }
        let relay_agent = match requester.relay_agent {
            Some(value) => RelayAgent::new(value),
            None => {
                let known = self.leases.get(&address).filter(|lease| lease.is_of(requester.client));
                known.map(|lease| lease.relay_agent.clone()).unwrap_or_default()
            }
        };
        let lease = Lease {
            state: State::Granted,
            client: requester.client.clone(),
            relay_agent,
            member: self.member,
            member_sequence: self.next_number(),
            changed: now,
            expires,
            grace_until,
            held_until: Time(0),
            key,
        };
        records.extend(lease.record(address));
        self.put(subnet, address, lease);
        Ok((expires, records))
    }

    /// A client gives its address back. Returns what has to be logged; nothing if it is not its address.
    pub(crate) fn release(
        &mut self,
        subnet: usize,
        now: Time,
        requester: Requester<'_>,
        address: Ipv4Addr,
    ) -> Option<Record> {
        let lease = self.leases.get(&address).filter(|lease| lease.is_of(requester.client))?;
        match lease.state {
            State::Granted => self.end(subnet, now, address, State::Released, now),
            State::Offered => {
                self.forget(subnet, address);
                None
            }
            State::Released | State::Declined => None,
        }
    }

    /// A client has found that somebody else uses the address it was given. Returns what has to be logged; nothing if it
    /// is not its address.
    pub(crate) fn decline(
        &mut self,
        subnet: usize,
        now: Time,
        requester: Requester<'_>,
        address: Ipv4Addr,
    ) -> Option<Record> {
        self.leases
            .get(&address)
            .filter(|lease| lease.is_of(requester.client) && lease.state != State::Declined)?;
        self.quarantine(subnet, now, address)
    }

    /// Our own probe has found that somebody uses an address that is held. Returns what has to be logged.
    pub(crate) fn quarantine(&mut self, subnet: usize, now: Time, address: Ipv4Addr) -> Option<Record> {
        self.end(subnet, now, address, State::Declined, now.after(self.terms.decline))
    }

    /// Ends a hold before its time: the client has chosen another server.
    pub(crate) fn release_offer(&mut self, link: &[usize], client: &ClientId) {
        for subnet in link {
            if let Some(address) = self.by_key.get(&(*subnet, client.key())).copied()
                && self.leases.get(&address).is_some_and(|lease| lease.state == State::Offered)
            {
                self.forget(*subnet, address);
            }
        }
    }

    /// Takes in what another member has logged. Says whether that was news; then it has to be logged here, too.
    ///
    /// The owner of an address does not believe that another client has it while its own lease runs.
    #[cfg_attr(not(test), expect(dead_code, reason = "no member sends its records yet; docs/lease-log.md"))]
    pub(crate) fn apply_foreign(&mut self, now: Time, record: &Record) -> bool {
        let Some(subnet) = self.subnet_of(record.address) else { return false };
        let mut lease = Lease::from(record.clone());
        if let Some(known) = self.leases.get(&record.address).filter(|known| known.state != State::Offered) {
            if (known.changed, known.member) >= (record.changed, record.member) {
                return false;
            }
            if self.subnets[subnet].has(record.address) {
                if known.is_active(now) && !lease.is_of(&known.client) {
                    return false;
                }
                lease.grace_until = lease.grace_until.max(known.grace_until);
            }
        }
        self.put(subnet, record.address, lease);
        true
    }

    /// The client with the UUID that its firmware told: an operating system does not tell it, and may have an address
    /// that is reserved by UUID.
    fn with_uuid<'a>(&self, link: &[usize], client: &'a ClientId) -> Cow<'a, ClientId> {
        let has_uuids = link.iter().any(|subnet| self.subnets[*subnet].has_uuids);
        if let (None, Some(hardware), true) = (client.uuid, client.hardware, has_uuids) {
            let known = link.iter().filter_map(|subnet| self.by_hardware.get(&(*subnet, hardware)));
            if let Some(uuid) = known.filter_map(|address| self.leases.get(address)?.client.uuid).next() {
                return Cow::Owned(ClientId { uuid: Some(uuid), ..client.clone() });
            }
        }
        Cow::Borrowed(client)
    }

    /// The subnet in whose plan an address is.
    fn subnet_of(&self, address: Ipv4Addr) -> Option<usize> {
        self.subnets.iter().position(|subnet| subnet.manages(address))
    }

    fn is_of_peer(&self, subnet: usize, address: Ipv4Addr) -> bool {
        let subnet = &self.subnets[subnet];
        subnet.is_of_peer(address) && !subnet.reserved.contains(&address)
    }

    /// Whether a client can have an address now.
    fn usable(
        &self,
        subnet: usize,
        now: Time,
        requester: Requester<'_>,
        address: Ipv4Addr,
    ) -> Result<(), Denied> {
        let entry = &self.subnets[subnet];
        let is_reserved = entry.reserved.contains(&address);
        if is_reserved && entry.reservation_for(requester) != Some(address) {
            return Err(Denied::Taken);
        }
        let lease = self.leases.get(&address);
        if let Some(lease) = lease
            && entry.free_from(address, lease, self.terms.grace) > now
        {
            if lease.state == State::Declined {
                return Err(Denied::Declined);
            }
            if !lease.is_of(requester.client) {
                return Err(Denied::Taken);
            }
        }
        if is_reserved || entry.has(address) {
            return Ok(());
        }
        if !entry.is_of_peer(address) {
            return Err(Denied::Unmanaged);
        }
        let is_proven = lease.is_some_and(|lease| {
            lease.is_active(now)
                && lease.is_of(requester.client)
                && lease.grace_until.after(self.terms.grace) > now
        });
        if is_proven { Ok(()) } else { Err(Denied::Unproven) }
    }

    /// Whether a client was offered this address, and the offer was taken back for another one that has not come yet.
    fn was_offered(&self, subnet: usize, client: &ClientId, address: Ipv4Addr) -> bool {
        let is_offered = self.leases.get(&address).is_some_and(|lease| lease.state == State::Offered);
        is_offered && self.subnets[subnet].taken_from.get(&address) == Some(&client.key())
    }

    /// Ends what an address is now.
    fn end(
        &mut self,
        subnet: usize,
        now: Time,
        address: Ipv4Addr,
        state: State,
        expires: Time,
    ) -> Option<Record> {
        let known = self.leases.get(&address)?;
        if state == State::Released && known.state != State::Granted {
            if known.state == State::Offered {
                self.forget(subnet, address);
            }
            return None;
        }
        let mut lease = known.clone();
        lease.state = state;
        lease.member = self.member;
        lease.member_sequence = self.next_number();
        lease.changed = now;
        lease.expires = expires;
        lease.held_until = Time(0);
        let record = lease.record(address);
        self.put(subnet, address, lease);
        record
    }

    fn next_number(&mut self) -> u64 {
        let number = self.member_sequence;
        self.member_sequence = number.saturating_add(1);
        number
    }

    fn put(&mut self, subnet: usize, address: Ipv4Addr, lease: Lease) {
        self.forget(subnet, address);
        let entry = &mut self.subnets[subnet];
        let free_from = entry.free_from(address, &lease, self.terms.grace);
        if entry.has(address) && !entry.reserved.contains(&address) {
            entry.pools.iter_mut().for_each(|pool| pool.take(address));
            if lease.state != State::Offered {
                entry.reusable.insert((free_from, address));
            }
        }
        if lease.state != State::Offered {
            entry.taken_from.remove(&address);
        }
        if lease.state == State::Offered {
            entry.holds_with(address).insert((lease.held_until, address));
        }
        self.by_key.insert((subnet, lease.key), address);
        if let Some(hardware) = lease.client.hardware {
            self.by_hardware.insert((subnet, hardware), address);
        }
        if !lease.client.client_id.is_empty() {
            self.by_client_id.insert((subnet, Key::of_client_id(&lease.client.client_id)), address);
        }
        self.leases.insert(address, lease);
    }

    fn forget(&mut self, subnet: usize, address: Ipv4Addr) {
        let Some(lease) = self.leases.remove(&address) else { return };
        let entry = &mut self.subnets[subnet];
        entry.reusable.remove(&(entry.free_from(address, &lease, self.terms.grace), address));
        entry.holds_with(address).remove(&(lease.held_until, address));
        if !entry.reserved.contains(&address) {
            entry.pools.iter_mut().for_each(|pool| pool.refund(address));
        }
        remove_if(&mut self.by_key, &(subnet, lease.key), address);
        if let Some(hardware) = lease.client.hardware {
            remove_if(&mut self.by_hardware, &(subnet, hardware), address);
        }
        if !lease.client.client_id.is_empty() {
            let key = Key::of_client_id(&lease.client.client_id);
            remove_if(&mut self.by_client_id, &(subnet, key), address);
        }
    }
}

/// An index names the latest lease of a client; an older one that goes must not take that away.
fn remove_if<K: std::hash::Hash + Eq>(index: &mut HashMap<K, Ipv4Addr>, key: &K, address: Ipv4Addr) {
    if index.get(key) == Some(&address) {
        index.remove(key);
    }
}
