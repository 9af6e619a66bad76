//! proxyDHCP (PXE 2.1 §2.2): boot options beside another DHCP server, which gives the address.
//!
//! ```text
//! client → 67     DISCOVER               → OFFER without an address (yiaddr 0), where its answers go
//! client → 67     REQUEST                → nothing: it takes the other server's offer
//! client → 4011   REQUEST, with ciaddr   → ACK to the sender
//! client → either INFORM, with ciaddr    → ACK to ciaddr, port 68, or to the sender
//! ```
//!
//! Silent towards whoever does not boot, and where no member lives: then another member's offer, or the local disk, is
//! the better answer. It never sends a NAK: a proxy has no say about addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use super::client::classify;
use super::destination::{Destination, SERVER_PORT};
use super::dialect::{BootReply, Role, add_boot};
use super::relay::Relays;
use super::wire::{Message, MessageType, code};
use crate::content::UrlBuilder;
use crate::device::{Device, Firmware};
use crate::event::{Event, EventKind, Observer, Protocol, Stage};
use crate::policy::{Action, BootPolicy};

/// The port on which clients ask for their boot file once they have an address (PXE 2.1 §2.2.2).
pub(crate) const BINL_PORT: u16 = 4011;

/// Answers as a proxyDHCP server. Keeps no state: any member can answer any packet of an exchange.
pub struct ProxyResponder {
    policy: Arc<dyn BootPolicy>,
    urls: UrlBuilder,
    observer: Arc<dyn Observer>,
    has_binl: bool,
    relays: Relays,
}

impl fmt::Debug for ProxyResponder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyResponder").field("has_binl", &self.has_binl).finish_non_exhaustive()
    }
}

impl ProxyResponder {
    /// `has_binl` says that port 4011 is ours on every interface; where somebody else has it, UEFI gets offers that need
    /// no second question.
    pub fn new(
        policy: Arc<dyn BootPolicy>,
        urls: UrlBuilder,
        observer: Arc<dyn Observer>,
        has_binl: bool,
    ) -> Self {
        Self { policy, urls, observer, has_binl, relays: Relays::default() }
    }

    /// Believes these relays.
    #[must_use]
    pub fn with_relays(self, relays: Relays) -> Self {
        Self { relays, ..self }
    }

    /// Answers a message that came from `from` to our address `received_on` (of the interface, where it was broadcast)
    /// and to `port`, 67 or 4011. The answer has to leave from `received_on`: it is what option 54 says.
    pub fn handle(
        &self,
        message: &Message,
        from: SocketAddrV4,
        received_on: Ipv4Addr,
        port: u16,
    ) -> Option<(Message, Destination)> {
        let kind = message.kind().filter(|_| message.op == 1)?;
        let (role, answer, stages) = match (port, kind) {
            (SERVER_PORT, MessageType::DISCOVER) => {
                let role = if self.has_binl { Role::Proxy } else { Role::ProxyWithoutBinl };
                (role, MessageType::OFFER, [Stage::Discover, Stage::Offer])
            }
            (BINL_PORT, MessageType::REQUEST) | (SERVER_PORT | BINL_PORT, MessageType::INFORM) => {
                (Role::Binl, MessageType::ACK, [Stage::Request, Stage::Ack])
            }
            _ => return None,
        };
        let admitted = self.relays.admit(message, from);
        let message = match &admitted {
            Ok(message) => message.as_ref(),
            Err(reason) => {
                self.tell(message, EventKind::Dropped { protocol: Protocol::ProxyDhcp, reason });
                return None;
            }
        };
        let device = classify(message, received_on);
        if device.firmware == Firmware::Other {
            return None;
        }
        self.reached(message, &device, stages[0], &String::from_utf8_lossy(&device.vendor_class));

        let decision = self.policy.decide(&device);
        let Action::Boot(boot) = decision.action else { return None };
        let mut reply = Message::reply_to(message, answer);
        reply.options.set(code::SERVER_ID, received_on.octets());
        if role == Role::Binl {
            reply.ciaddr = message.ciaddr;
        }
        let boot_reply = add_boot(&mut reply, message, &device, &boot, &self.urls, role);
        if let BootReply::Nothing(reason) = boot_reply {
            let reason = format!("{}: {reason}", decision.rule);
            self.tell(
                message,
                EventKind::Refused { protocol: Protocol::ProxyDhcp, path: &boot.profile, reason: &reason },
            );
            return None;
        }
        if let Some(relay_agent) = message.options.get(code::RELAY_AGENT) {
            reply.options.set(code::RELAY_AGENT, relay_agent);
        }
        self.reached(message, &device, stages[1], &format!("{boot_reply} by {}", decision.rule));
        let destination = match port {
            // From whichever port it asked: EDK2 from 4011, iPXE and ROMs from 68.
            BINL_PORT => Destination::Unicast(from),
            _ => Destination::of(message, &reply),
        };
        Some((reply, destination))
    }

    fn reached(&self, message: &Message, device: &Device, stage: Stage, detail: &str) {
        let device = Some(device);
        self.tell(message, EventKind::Reached { protocol: Protocol::ProxyDhcp, stage, device, detail });
    }

    fn tell(&self, message: &Message, kind: EventKind<'_>) {
        let address = Some(message.ciaddr).filter(|address| !address.is_unspecified()).map(IpAddr::V4);
        self.observer.observe(&Event { mac: message.mac(), address, kind });
    }
}

#[cfg(test)]
mod tests;
