//! Finding an address for a client, and keeping it until the client comes for it.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::{Denied, Table};
use crate::dhcp::lease::Time;
use crate::dhcp::lease::identity::ClientId;
use crate::dhcp::lease::record::RelayAgent;
use crate::dhcp::lease::state::{Lease, State};
use crate::dhcp::lease::subnet::Requester;

/// An address that is held for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// The address.
    pub address: Ipv4Addr,
    /// Whether the client had it before, or it is reserved for it: then nobody else can be using it.
    pub(crate) is_known: bool,
}

/// Most holds that end in one call, so that no call takes long after a flood.
const PURGE_MAX: usize = 64;

/// A client takes an offer within this time, or not at all: iPXE and EDK2 wait four seconds for others.
const OFFER_AGE_MIN: Duration = Duration::from_secs(6);

impl Table {
    /// Finds an address for a client and holds it: its reservation, the one that it has or had, the one that it wants,
    /// one that nobody had, the one that has been unused for longest; each of the first subnet of the client's link that
    /// has one.
    ///
    /// # Errors
    /// `Exhausted`.
    pub(crate) fn hold(
        &mut self,
        link: &[usize],
        now: Time,
        requester: Requester<'_>,
        wanted: Option<Ipv4Addr>,
    ) -> Result<Held, Denied> {
        link.iter().for_each(|subnet| self.end_holds(*subnet, now));
        let client = self.with_uuid(link, requester.client);
        let requester = Requester { client: &client, ..requester };
        if let Some((subnet, address)) = self.known_address(link, now, requester) {
            self.hold_address(subnet, now, requester.client, address);
            return Ok(Held { address, is_known: true });
        }
        let has_room = |subnet: &usize| self.subnets[*subnet].has_room();
        let (roomy, full): (Vec<usize>, Vec<usize>) = link.iter().copied().partition(has_room);
        let found = self
            .free_address(&roomy, now, requester, wanted)
            .or_else(|| {
                // Where too many offers stand open, one more is made in the place of the oldest.
                let (subnet, _) = self.take_back(&full, now, Duration::ZERO)?;
                self.free_address(&[subnet], now, requester, wanted)
            })
            // Where all addresses are in use, the oldest offer's client has most likely gone elsewhere.
            .or_else(|| self.take_back(link, now, OFFER_AGE_MIN));
        let (subnet, address) = found.ok_or(Denied::Exhausted)?;
        self.hold_address(subnet, now, requester.client, address);
        Ok(Held { address, is_known: false })
    }

    /// Ends the oldest offer of these subnets that nobody came back for, if it is at least so old, and says of which
    /// address. It is one that any client on their link can have: it is put behind all others, because its client may
    /// still be on its way.
    fn take_back(&mut self, subnets: &[usize], now: Time, age_min: Duration) -> Option<(usize, Ipv4Addr)> {
        let oldest = subnets.iter().filter_map(|subnet| {
            self.subnets[*subnet].holds.first().map(|(until, address)| (*until, *subnet, *address))
        });
        let (until, subnet, address) = oldest.min()?;
        if self.terms.hold.saturating_sub(until.remaining(now)) < age_min {
            return None;
        }
        let from = self.leases.get(&address)?.key;
        self.forget(subnet, address);
        self.subnets[subnet].take_back(address, from);
        Some((subnet, address))
    }

    /// An address for a client that has none: the one that it wants, one that nobody had, the one that has been unused
    /// for longest.
    fn free_address(
        &mut self,
        roomy: &[usize],
        now: Time,
        requester: Requester<'_>,
        wanted: Option<Ipv4Addr>,
    ) -> Option<(usize, Ipv4Addr)> {
        let wanted = wanted.and_then(|address| {
            let subnet = roomy.iter().copied().find(|subnet| self.subnets[*subnet].has(address))?;
            self.usable(subnet, now, requester, address).ok().map(|()| (subnet, address))
        });
        wanted
            .or_else(|| {
                let Self { subnets, leases, .. } = self;
                roomy.iter().find_map(|subnet| Some((*subnet, subnets[*subnet].fresh(leases)?)))
            })
            .or_else(|| roomy.iter().find_map(|subnet| Some((*subnet, self.subnets[*subnet].reusable(now)?))))
    }

    /// The address that a client has a claim to, with its subnet: reserved for it, or its own from earlier.
    fn known_address(
        &self,
        link: &[usize],
        now: Time,
        requester: Requester<'_>,
    ) -> Option<(usize, Ipv4Addr)> {
        let client = requester.client;
        let reserved = link
            .iter()
            .filter_map(|subnet| Some((*subnet, self.subnets[*subnet].reservation_for(requester)?)));
        let key = client.key();
        let own = link.iter().flat_map(|subnet| {
            let by_key = self.by_key.get(&(*subnet, key));
            let by_hardware = client.hardware.and_then(|known| self.by_hardware.get(&(*subnet, known)));
            by_key.into_iter().chain(by_hardware).map(|address| (*subnet, *address))
        });
        let lease = |address: &Ipv4Addr| self.leases.get(address);
        let own = own.filter(|(_, address)| lease(address).is_some_and(|lease| lease.is_of(client)));
        // The address that the machine uses now comes first: a disk may hang on it.
        let is_active = |address: &Ipv4Addr| lease(address).is_some_and(|lease| lease.is_active(now));
        let active = own.clone().filter(|(_, address)| is_active(address));
        reserved
            .chain(active)
            .chain(own)
            .find(|(subnet, address)| self.usable(*subnet, now, requester, *address).is_ok())
    }

    fn hold_address(&mut self, subnet: usize, now: Time, client: &ClientId, address: Ipv4Addr) {
        let held_until = now.after(self.terms.hold);
        let lease = match self.leases.get(&address).filter(|lease| lease.is_of(client)) {
            Some(known) if known.state != State::Offered => Lease { held_until, ..known.clone() },
            _ => Lease {
                state: State::Offered,
                client: client.clone(),
                relay_agent: RelayAgent::default(),
                member: self.member,
                member_sequence: 0,
                changed: now,
                expires: Time(0),
                grace_until: Time(0),
                held_until,
                key: client.key(),
            },
        };
        self.put(subnet, address, lease);
    }

    fn end_holds(&mut self, subnet: usize, now: Time) {
        for _ in 0..PURGE_MAX {
            let entry = &self.subnets[subnet];
            let mut oldest = entry.holds.first().into_iter().chain(entry.reserved_holds.first());
            let Some(address) = oldest.find(|(until, _)| *until <= now).map(|(_, address)| *address) else {
                break;
            };
            self.forget(subnet, address);
        }
    }
}
