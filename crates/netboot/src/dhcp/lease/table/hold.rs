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
        let roomy = self.with_room(link);
        let found = self.free_address(&roomy, now, requester, wanted);
        // Taken back only if it has to be, and put behind all others: its client may still be on its way.
        let (subnet, address) = match found {
            Some(found) => found,
            None if self.has_old_offer(link, now) => self.take_back(link).ok_or(Denied::Exhausted)?,
            None => return Err(Denied::Exhausted),
        };
        self.hold_address(subnet, now, requester.client, address);
        Ok(Held { address, is_known: false })
    }

    /// The subnets of a link in which one more offer may stand open. Where there is none, the oldest offer of the link
    /// ends.
    fn with_room(&mut self, link: &[usize]) -> Vec<usize> {
        let roomy = |table: &Self| -> Vec<usize> {
            let has_room = |subnet: &usize| {
                let entry = &table.subnets[*subnet];
                entry.holds.len() < entry.holds_max
            };
            link.iter().copied().filter(has_room).collect()
        };
        let found = roomy(self);
        if !found.is_empty() {
            return found;
        }
        self.take_back(link);
        roomy(self)
    }

    /// Whether the oldest offer of a link is so old that its client has most likely gone elsewhere.
    fn has_old_offer(&self, link: &[usize], now: Time) -> bool {
        let until = link.iter().filter_map(|subnet| self.subnets[*subnet].holds.first()).min();
        until.is_some_and(|(until, _)| until.remaining(now) + OFFER_AGE_MIN <= self.terms.hold)
    }

    /// Ends the oldest offer of a link that nobody came back for, and says of which address.
    fn take_back(&mut self, link: &[usize]) -> Option<(usize, Ipv4Addr)> {
        let oldest = link.iter().filter_map(|subnet| {
            self.subnets[*subnet].holds.first().map(|(until, address)| (*until, *subnet, *address))
        });
        let (_, subnet, address) = oldest.min()?;
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
            match self.subnets[subnet].holds.first() {
                Some((until, address)) if *until <= now => {
                    let address = *address;
                    self.forget(subnet, address);
                }
                _ => break,
            }
        }
    }
}
