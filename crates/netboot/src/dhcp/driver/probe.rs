//! Asks whether somebody uses an address before it is offered: by ARP where the client is on a link of ours, which every
//! machine answers that uses the address, and by ICMP behind a relay, which firewalls like to drop.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd as _, BorrowedFd};

use super::arp::ArpProber;
use super::icmp::IcmpProber;
use super::socket::interface_of;
use crate::device::Mac;
use crate::dhcp::server::Probe;

/// The sockets for it. Both need privileges to be opened, and none to be used.
#[derive(Debug)]
pub(super) struct Prober {
    arp: Option<ArpProber>,
    icmp: Option<IcmpProber>,
}

/// Somebody uses an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ArpReply {
    pub(super) address: Ipv4Addr,
    /// Whose it is; unknown behind a router.
    pub(super) mac: Option<Mac>,
}

impl Prober {
    /// Opens what can be opened.
    pub(super) fn open() -> Self {
        let arp = ArpProber::open().inspect_err(|error| {
            tracing::warn!(%error, "addresses cannot be probed by ARP before they are offered");
        });
        let icmp = IcmpProber::open().inspect_err(|error| {
            tracing::warn!(%error, "addresses behind relays cannot be probed before they are offered");
        });
        Self { arp: arp.ok(), icmp: icmp.ok() }
    }

    /// Asks. A link without ARP is asked by ICMP.
    pub(super) fn ask(&self, probe: &Probe) {
        let asked = match (probe.link, &self.arp) {
            (Some(link), Some(arp)) => arp.ask(interface_of(link), probe.address).is_ok(),
            _ => false,
        };
        if asked {
            return;
        }
        if let Some(Err(error)) = self.icmp.as_ref().map(|icmp| icmp.ask(probe.address)) {
            tracing::debug!(address = %probe.address, %error, "an address cannot be probed");
        }
    }

    /// Hands everything that has come and tells of somebody to `visit`, of at most `count` packets of each kind.
    pub(super) fn answers(&self, count: usize, mut visit: impl FnMut(ArpReply)) {
        for _ in 0..count {
            let Some(Ok(seen)) = self.arp.as_ref().map(ArpProber::answer) else { break };
            seen.into_iter().for_each(&mut visit);
        }
        for _ in 0..count {
            let Some(Ok(seen)) = self.icmp.as_ref().map(IcmpProber::answer) else { break };
            seen.map(|address| ArpReply { address, mac: None }).into_iter().for_each(&mut visit);
        }
    }

    /// What has to be waited for.
    pub(super) fn sockets(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let arp = self.arp.iter().map(|arp| arp.as_fd());
        arp.chain(self.icmp.iter().map(|icmp| icmp.as_fd()))
    }
}
