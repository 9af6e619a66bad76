//! Which addresses of a subnet may be given to whom, and what of that is free.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use goldwire_stdx::Uuid;

use super::Time;
use super::identity::{ClientId, Key};
use super::pool::{AddressRange, Pool};
use super::state::{Lease, State};
use crate::device::Mac;

/// For whom an address is reserved.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reservation {
    /// For a MAC address.
    Mac(Mac),
    /// For an SMBIOS UUID.
    Uuid(Uuid),
    /// For a client identifier (option 61).
    ClientId(Vec<u8>),
    /// For whoever is behind a relay's port (option 82, sub-option 1).
    CircuitId(Vec<u8>),
}

/// Which addresses of a subnet may be given to whom.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The ranges from which this server gives addresses.
    pub pools: Vec<AddressRange>,
    /// The ranges of the subnet's other servers.
    pub peer_pools: Vec<AddressRange>,
    /// Addresses for certain clients; in a pool or not.
    pub reservations: Vec<(Reservation, Ipv4Addr)>,
}

/// For how long things are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// An offered address waits so long for its request. iPXE and EDK2 take four seconds from offer to request.
    pub(crate) hold: Duration,
    /// A declined address is put aside for so long.
    pub(crate) decline: Duration,
    /// By so much may a member extend a lease of another one's range beyond the end that the owner knows.
    pub(crate) grace: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            hold: Duration::from_secs(30),
            decline: Duration::from_secs(15 * 60),
            grace: Duration::from_secs(60 * 60),
        }
    }
}

/// Who asks for an address, and where from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requester<'a> {
    /// The client.
    pub client: &'a ClientId,
    /// The relay's port behind which it is (option 82, sub-option 1); empty if unknown.
    pub circuit_id: &'a [u8],
    /// All that the relay told (option 82), which is nothing where the client was heard without a relay. None if the
    /// client wrote to us past its relay, as it does to renew: then what the relay told last is still true.
    pub(crate) relay_agent: Option<&'a [u8]>,
}

#[derive(Debug)]
pub(super) struct Subnet {
    pub(super) pools: Vec<Pool>,
    pub(super) peer_pools: Vec<AddressRange>,
    pub(super) reservations: HashMap<Reservation, Ipv4Addr>,
    pub(super) reserved: HashSet<Ipv4Addr>,
    /// Whether any of them is by UUID.
    pub(super) has_uuids: bool,
    /// Addresses of the pools that were given away once, by when they may be given to somebody else.
    pub(super) reusable: BTreeSet<(Time, Ipv4Addr)>,
    /// Offers of addresses that anybody can have, by when they end.
    pub(super) holds: BTreeSet<(Time, Ipv4Addr)>,
    /// Offers of reserved addresses, by when they end: they are not more than those, and ending one helps nobody else.
    pub(super) reserved_holds: BTreeSet<(Time, Ipv4Addr)>,
    /// Addresses whose offers were taken back before their time, the oldest first. They are given away after all that
    /// nobody was offered: their clients may still be on their way.
    pub(super) taken_back: VecDeque<Ipv4Addr>,
    /// The same, to be found.
    pub(super) is_taken_back: HashSet<Ipv4Addr>,
    /// From whom an address was taken back last, until somebody is given it.
    pub(super) taken_from: HashMap<Ipv4Addr, Key>,
    /// So many offers may stand open to clients without a lease.
    pub(super) holds_max: usize,
}

impl Subnet {
    pub(super) fn new(plan: Plan) -> Self {
        let mut pools: Vec<Pool> = plan.pools.into_iter().map(Pool::new).collect();
        let reserved: HashSet<Ipv4Addr> = plan.reservations.iter().map(|(_, address)| *address).collect();
        for pool in &mut pools {
            reserved.iter().for_each(|address| pool.take(*address));
        }
        let free: u64 = pools.iter().map(Pool::free).sum();
        Self {
            pools,
            peer_pools: plan.peer_pools,
            has_uuids: plan.reservations.iter().any(|(who, _)| matches!(who, Reservation::Uuid(_))),
            reservations: plan.reservations.into_iter().collect(),
            reserved,
            reusable: BTreeSet::new(),
            holds: BTreeSet::new(),
            reserved_holds: BTreeSet::new(),
            taken_back: VecDeque::new(),
            is_taken_back: HashSet::new(),
            taken_from: HashMap::new(),
            holds_max: usize::try_from((free / 4 * 3).max(4).min(free.max(1))).unwrap_or(usize::MAX),
        }
    }

    /// Whether this server gives the address to clients.
    pub(super) fn has(&self, address: Ipv4Addr) -> bool {
        self.pools.iter().any(|pool| pool.range().contains(address))
    }

    /// The lowest address that nobody has had, or the one whose offer was taken back first.
    pub(super) fn fresh(&mut self, leases: &BTreeMap<Ipv4Addr, Lease>) -> Option<Ipv4Addr> {
        self.pools.iter_mut().find_map(Pool::lowest_free).or_else(|| {
            loop {
                let address = self.taken_back.pop_front()?;
                self.is_taken_back.remove(&address);
                // Somebody may have come back for it, or asked for it by its number.
                if !leases.contains_key(&address) {
                    return Some(address);
                }
            }
        })
    }

    /// Whether one more offer may stand open to a client without a lease.
    pub(super) fn has_room(&self) -> bool {
        self.holds.len() < self.holds_max
    }

    /// The offers among which one of this address is.
    pub(super) fn holds_with(&mut self, address: Ipv4Addr) -> &mut BTreeSet<(Time, Ipv4Addr)> {
        if self.reserved.contains(&address) { &mut self.reserved_holds } else { &mut self.holds }
    }

    /// An offer of an address that anybody can have was taken back from a client, and nobody has the address.
    pub(super) fn take_back(&mut self, address: Ipv4Addr, from: Key) {
        self.taken_from.insert(address, from);
        self.pools.iter_mut().for_each(|pool| pool.take(address));
        if self.is_taken_back.insert(address) {
            self.taken_back.push_back(address);
        }
    }

    /// Of the addresses that somebody had and that may be given again, the one that has been unused for longest.
    pub(super) fn reusable(&self, now: Time) -> Option<Ipv4Addr> {
        self.reusable.first().filter(|(from, _)| *from <= now).map(|(_, address)| *address)
    }

    /// Whether the address is in this plan at all.
    pub(super) fn manages(&self, address: Ipv4Addr) -> bool {
        self.has(address) || self.is_of_peer(address) || self.reserved.contains(&address)
    }

    pub(super) fn is_of_peer(&self, address: Ipv4Addr) -> bool {
        self.peer_pools.iter().any(|range| range.contains(address)) && !self.has(address)
    }

    pub(super) fn reservation_for(&self, requester: Requester<'_>) -> Option<Ipv4Addr> {
        if self.reservations.is_empty() {
            return None;
        }
        let client = requester.client;
        let names = [
            client.hardware.and_then(|hardware| hardware.mac()).map(Reservation::Mac),
            client.uuid.map(Reservation::Uuid),
            (!client.client_id.is_empty()).then(|| Reservation::ClientId(client.client_id.to_vec())),
            (!requester.circuit_id.is_empty()).then(|| Reservation::CircuitId(requester.circuit_id.to_vec())),
        ];
        names.iter().flatten().find_map(|name| self.reservations.get(name)).copied()
    }

    /// From when an address may be given to another client than the one that has or had it.
    pub(super) fn free_from(&self, address: Ipv4Addr, lease: &Lease, grace: Duration) -> Time {
        let is_shared = !self.peer_pools.is_empty() && self.has(address);
        let end = match lease.state {
            State::Offered => lease.held_until,
            // Another member may have extended it as far as this without telling us.
            State::Granted if is_shared => lease.expires.max(lease.grace_until.after(grace)),
            State::Granted | State::Released | State::Declined => lease.expires,
        };
        end.max(lease.held_until)
    }
}
