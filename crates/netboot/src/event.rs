//! What happened, told by every server to whoever listens: the boot timeline, the metrics and the log.

use std::net::IpAddr;

use crate::content::mac_in;
use crate::device::{Device, Mac};

/// Hears of events. Called on the servers' own threads: it must not wait.
pub trait Observer: Send + Sync {
    /// Something happened just now.
    fn observe(&self, event: &Event<'_>);
}

/// Nobody listens.
#[derive(Clone, Copy, Debug)]
pub struct NoopObserver;

impl Observer for NoopObserver {
    fn observe(&self, _event: &Event<'_>) {}
}

/// One thing that happened, with who it concerns as far as that is known. Its texts are as devices sent them: who shows
/// them makes them [`printable`](goldwire_stdx::printable).
#[derive(Clone, Debug)]
pub struct Event<'a> {
    /// The device's hardware address, where the protocol tells it.
    pub mac: Option<Mac>,
    /// The device's network address, if it has one by then.
    pub address: Option<IpAddr>,
    /// What happened.
    pub kind: EventKind<'a>,
}

impl Event<'_> {
    /// The device's hardware address, or that which the fetched path names: without DHCP of ours nobody tells another.
    pub fn device(&self) -> Option<Mac> {
        self.mac.or_else(|| match &self.kind {
            EventKind::Reached { protocol: Protocol::Http | Protocol::Tftp, detail: path, .. }
            | EventKind::Transferred { path, .. }
            | EventKind::Refused {
                protocol: Protocol::Http | Protocol::Tftp | Protocol::Balance,
                path,
                ..
            } => mac_in(path),
            _ => None,
        })
    }
}

/// A protocol by which a device is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// DHCP with addresses (port 67).
    Dhcp,
    /// proxyDHCP, on port 67 and 4011.
    ProxyDhcp,
    /// DHCPv6.
    Dhcp6,
    /// TFTP.
    Tftp,
    /// HTTP and HTTPS.
    Http,
    /// HTTP and TFTP passed on to another member.
    Balance,
}

impl Protocol {
    /// The name in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dhcp => "dhcp",
            Self::ProxyDhcp => "proxydhcp",
            Self::Dhcp6 => "dhcp6",
            Self::Tftp => "tftp",
            Self::Http => "http",
            Self::Balance => "balance",
        }
    }
}

/// How far a device has come. The order is the order of a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// It asked for an address or a boot server.
    Discover,
    /// It was offered something.
    Offer,
    /// It asked for what was offered.
    Request,
    /// It has its address or its boot server.
    Ack,
    /// It fetched a boot program: firmware's own loader.
    Bootstrap,
    /// It fetched its iPXE script.
    Script,
    /// It fetched a kernel or another large file.
    Kernel,
    /// It reads from a disk over the network.
    San,
}

impl Stage {
    /// The name in the timeline and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Discover => "discover",
            Self::Offer => "offer",
            Self::Request => "request",
            Self::Ack => "ack",
            Self::Bootstrap => "bootstrap",
            Self::Script => "script",
            Self::Kernel => "kernel",
            Self::San => "san",
        }
    }
}

/// What happened.
#[derive(Clone, Debug)]
pub enum EventKind<'a> {
    /// A device reached a stage of its boot.
    Reached {
        /// By which protocol.
        protocol: Protocol,
        /// Which one.
        stage: Stage,
        /// The device, where DHCP told about it.
        device: Option<&'a Device>,
        /// What it was given or fetched: a file, a URL, the rule.
        detail: &'a str,
    },
    /// A transfer ended; or several of one path on one connection, which are told of once a second.
    Transferred {
        /// By which protocol.
        protocol: Protocol,
        /// The path that was asked for.
        path: &'a str,
        /// Bytes of content sent.
        bytes: u64,
        /// From the request to the last byte, in seconds.
        seconds: f64,
        /// Whether all that was asked for was sent. A firmware that breaks off a TFTP transfer after the OACK only
        /// wanted to know the size, and is complete.
        is_complete: bool,
    },
    /// A request was refused or could not be answered.
    Refused {
        /// By which protocol.
        protocol: Protocol,
        /// What was asked for.
        path: &'a str,
        /// Why, as a sentence.
        reason: &'a str,
    },
    /// A packet was dropped without an answer.
    Dropped {
        /// By which protocol.
        protocol: Protocol,
        /// Why, as a sentence.
        reason: &'a str,
    },
    /// The device has been given the address of the event, or more time for it: DHCP acknowledged its request.
    Leased,
    /// A member of the boot group came to life, died or drains.
    Member {
        /// Its name.
        name: &'a str,
        /// What it is now.
        state: crate::member::MemberState,
    },
}
