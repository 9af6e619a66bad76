//! What a DHCP server is told about its subnets.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::dhcp::lease::{AddressRange, Plan, Reservation, Terms};
use crate::dhcp::relay::Relays;
use crate::network::{Network, NetworkV4};

/// One subnet.
#[derive(Clone, Debug)]
pub struct Subnet {
    /// Its addresses.
    pub network: NetworkV4,
    /// The link that it shares with other subnets of this name: a client there gets an address of any of them.
    pub shared_network: Option<String>,
    /// What of them this server gives away.
    pub pools: Vec<AddressRange>,
    /// What of them other members give away.
    pub peer_pools: Vec<AddressRange>,
    /// Addresses for certain clients.
    pub reservations: Vec<(Reservation, Ipv4Addr)>,
    /// Routers (option 3), the best first.
    pub routers: Vec<Ipv4Addr>,
    /// Name servers (6).
    pub dns: Vec<Ipv4Addr>,
    /// Time servers (42).
    pub ntp: Vec<Ipv4Addr>,
    /// Domain (15).
    pub domain: Option<String>,
    /// Domains in which names are looked up (119).
    pub search: Vec<String>,
    /// Largest datagram of the link in bytes (26).
    pub mtu: Option<u16>,
    /// Routes besides the default one (121): where to, and by which router.
    pub routes: Vec<(NetworkV4, Ipv4Addr)>,
    /// For how long an operating system has an address.
    pub lease: Duration,
    /// For how long firmware and boot loaders have one. Most never renew, so it should outlast a boot.
    pub boot_lease: Duration,
}

impl Subnet {
    /// A subnet that says nothing but addresses: a day for systems, ten minutes for boot stages.
    pub fn new(network: NetworkV4) -> Self {
        Self {
            network,
            shared_network: None,
            pools: Vec::new(),
            peer_pools: Vec::new(),
            reservations: Vec::new(),
            routers: Vec::new(),
            dns: Vec::new(),
            ntp: Vec::new(),
            domain: None,
            search: Vec::new(),
            mtu: None,
            routes: Vec::new(),
            lease: Duration::from_secs(24 * 60 * 60),
            boot_lease: Duration::from_secs(10 * 60),
        }
    }
}

/// What a server is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of this member, as lease records carry it.
    pub member: String,
    /// Its subnets.
    pub subnets: Vec<Subnet>,
    /// Whether no other server but the members named by `peer_pools` gives addresses in these subnets. Only then are
    /// clients with a wrong address sent away (NAK), and unknown ones with a free address taken in.
    pub is_authoritative: bool,
    /// All addresses by which clients know this server, besides the one at which a request arrives.
    pub addresses: Vec<Ipv4Addr>,
    /// Which relays are believed.
    pub relays: Relays,
    /// Which relays may ask about leases (RFC 4388).
    pub query_from: Vec<Network>,
    /// For how long an address that nobody is known to have is probed before it is offered; none to trust the table.
    pub probe: Option<Duration>,
    /// For how long things are kept.
    pub terms: Terms,
}

impl Settings {
    /// A server of these subnets that is authoritative, probes nothing and answers no lease query.
    pub fn new(member: impl Into<String>, subnets: Vec<Subnet>) -> Self {
        Self {
            member: member.into(),
            subnets,
            is_authoritative: true,
            addresses: Vec::new(),
            relays: Relays::default(),
            query_from: Vec::new(),
            probe: None,
            terms: Terms::default(),
        }
    }

    /// Everything that is wrong with it, as sentences.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for (index, subnet) in self.subnets.iter().enumerate() {
            let network = subnet.network;
            let mut problem = |text: String| problems.push(format!("subnet {network}: {text}"));
            let others = &self.subnets[..index];
            if let Some(other) = others.iter().find(|other| other.network.overlaps(network)) {
                problem(format!("it overlaps {}", other.network));
            }
            let ranges: Vec<AddressRange> = subnet.pools.iter().chain(&subnet.peer_pools).copied().collect();
            for (at, range) in ranges.iter().enumerate() {
                let name = range;
                if range.first > range.last {
                    problem(format!("the range {name} ends before it starts"));
                }
                if !network.contains(range.first) || !network.contains(range.last) {
                    problem(format!("the range {name} is not inside it"));
                }
                let is_ambiguous = |address| network.prefix() < 31 && range.contains(address);
                if is_ambiguous(network.address()) || is_ambiguous(network.broadcast()) {
                    problem(format!("the range {name} has the network's own or its broadcast address in it"));
                }
                if let Some(own) =
                    self.addresses.iter().chain(&subnet.routers).find(|own| range.contains(**own))
                {
                    problem(format!("the range {name} has {own} in it, a server's or a router's address"));
                }
                for other in &ranges[..at] {
                    if range.first <= other.last && other.first <= range.last {
                        problem(format!("the ranges {name} and {other} overlap"));
                    }
                }
            }
            let mut seen = std::collections::HashMap::new();
            for (who, address) in &subnet.reservations {
                if !network.contains(*address) {
                    problem(format!("the reserved address {address} is not inside it"));
                }
                if seen.insert(who, address).is_some() {
                    problem(format!("{who:?} has two reserved addresses"));
                }
            }
            for name in subnet.domain.iter().chain(&subnet.search) {
                if super::answer::encode_name(name).is_none() {
                    problem(format!("{name:?} is no domain name"));
                }
            }
            if subnet.lease < super::LEASE_MIN || subnet.boot_lease < super::LEASE_MIN {
                problem(format!("a lease is shorter than {} seconds", super::LEASE_MIN.as_secs()));
            }
            if subnet.mtu.is_some_and(|mtu| mtu < 68) {
                problem("no link has an MTU below 68 (RFC 791)".into());
            }
        }
        problems
    }

    /// The subnets on a subnet's link: itself, then the others in their order.
    pub(crate) fn link_of(&self, subnet: usize) -> Vec<usize> {
        let name = self.subnets.get(subnet).and_then(|subnet| subnet.shared_network.as_ref());
        let others = self.subnets.iter().enumerate().filter(|(other, about)| {
            *other != subnet && name.is_some() && about.shared_network.as_ref() == name
        });
        std::iter::once(subnet).chain(others.map(|(other, _)| other)).collect()
    }

    /// What the lease table has to know.
    pub fn plans(&self) -> Vec<Plan> {
        let plan = |subnet: &Subnet| Plan {
            pools: subnet.pools.clone(),
            peer_pools: subnet.peer_pools.clone(),
            reservations: subnet.reservations.clone(),
        };
        self.subnets.iter().map(plan).collect()
    }
}
