//! The DHCP server (RFC 2131), without sockets and without a clock.
//!
//! ```text
//! DISCOVER ──► hold an address ─► [probe it] ─► OFFER
//! REQUEST  ──► which of four is it (RFC 2131 §4.3.2)?
//!                SELECTING    our identifier in 54   ─► ACK, or NAK: it is us who are asked
//!                             another's              ─► silence, and the hold ends
//!                INIT-REBOOT  an address in 50       ┐
//!                RENEWING     ciaddr, unicast        ├► ACK, NAK, or silence
//!                REBINDING    ciaddr, broadcast      ┘
//! ```
//!
//! NAK makes a client drop its address at once, so it is said only about what is surely wrong: an address that does not
//! belong to the client's network, or that is another client's. Beyond that, an address that another member or a foreign
//! server may have given is none of our business.
//!
//! An ACK must not leave before the record of its lease is durable: [`Outputs`] keeps the two apart.

mod answer;
mod outputs;
mod query;
mod request;
mod settings;

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

pub use outputs::{Outputs, Probe, Reply};
pub use request::Arrival;
pub use settings::{Settings, Subnet};

use request::{Request, is_asked_of};

use super::client::{classify, sub_option};
use super::destination::Destination;
use super::dialect::{Role, add_boot};
use super::lease::{ClientId, Denied, Hardware, MemberId, Table, Time};
use super::wire::{BROADCAST, Message, MessageType, code};
use crate::content::UrlBuilder;
use crate::device::{Firmware, Mac};
use crate::event::{Event, EventKind, Observer, Protocol, Stage};
use crate::policy::{Action, BootPolicy, Decision};

/// No lease is shorter, whatever a client asks for: else one client alone keeps the server busy.
pub(crate) const LEASE_MIN: Duration = Duration::from_secs(30);
/// More probes than this do not run at once; offers beyond it go out unprobed.
const PROBES_MAX: usize = 256;
/// So many addresses are probed for one client until one is free.
const PROBES_EACH_MAX: u32 = 4;
/// The relay's link, a sub-option of option 82 (RFC 3527).
const LINK_SELECTION: u8 = 5;

/// Gives addresses to clients and tells them what to boot.
pub struct Server {
    settings: Settings,
    table: Table,
    policy: Arc<dyn BootPolicy>,
    urls: UrlBuilder,
    observer: Arc<dyn Observer>,
    probes: HashMap<Ipv4Addr, Probing>,
    /// For each subnet, those on its link.
    shared: Vec<Arc<[usize]>>,
}

/// An offer that waits for a probe.
struct Probing {
    request: Message,
    arrival: Arrival,
    until: Time,
    attempt: u32,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Server {
    /// A server with an empty table; fill it from the log with [`Self::table_mut`].
    pub fn new(
        settings: Settings,
        policy: Arc<dyn BootPolicy>,
        urls: UrlBuilder,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let table = Table::new(MemberId::of(&settings.member), settings.plans(), settings.terms);
        let shared = (0..settings.subnets.len()).map(|subnet| settings.link_of(subnet).into()).collect();
        Self { settings, table, policy, urls, observer, probes: HashMap::new(), shared }
    }

    /// Its settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Its leases.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Its leases, to be restored from the log.
    pub(crate) fn table_mut(&mut self) -> &mut Table {
        &mut self.table
    }

    /// The clock was wrong by so much (milliseconds) since `since`; see [`Table::shift_times`].
    pub(crate) fn shift_times(&mut self, since: Time, by_ms: i64) {
        self.table.shift_times(since, by_ms);
        self.probes.values_mut().for_each(|probing| probing.until = probing.until.shifted(by_ms));
    }

    /// Handles a message from a client or a relay.
    pub fn handle(&mut self, now: Time, message: &Message, arrival: Arrival, outputs: &mut Outputs) {
        let Some(kind) = message.kind().filter(|_| message.op == 1) else { return };
        if kind == MessageType::LEASE_QUERY {
            self.query(now, message, arrival, outputs);
            return;
        }
        let admitted = self.settings.relays.admit(message, arrival.from);
        let message = match &admitted {
            Ok(message) => message.as_ref(),
            Err(reason) => return self.dropped(message, reason),
        };
        let device = classify(message, arrival.received_on);
        let is_boot = device.firmware != Firmware::Other;
        let hardware = Hardware::new(message.htype, message.hlen, message.chaddr);
        let client_id = message.options.get(code::CLIENT_ID).unwrap_or_default();
        let Some(client) = ClientId::new(hardware, device.uuid, client_id, is_boot) else {
            self.dropped(message, "nothing in the request tells who sends it");
            return;
        };
        let Some(subnet) = self.subnet_of(message, arrival) else {
            self.dropped(message, "no subnet is configured where the request comes from");
            return;
        };
        let link = Arc::clone(&self.shared[subnet]);
        let request = Request { message, arrival, device, client, subnet, link };
        match kind {
            MessageType::DISCOVER => self.discover(now, request, 1, outputs),
            MessageType::REQUEST => self.request(now, request, outputs),
            MessageType::DECLINE => self.decline(now, &request, outputs),
            MessageType::RELEASE => self.release(now, &request, outputs),
            MessageType::INFORM => self.inform(request, outputs),
            _ => {}
        }
    }

    /// When [`Self::handle_timeout`] has to be called; again after every other call.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.probes.values().map(|probing| probing.until).min()
    }

    /// Offers the addresses whose probes nobody has answered.
    pub fn handle_timeout(&mut self, now: Time, outputs: &mut Outputs) {
        let over: Vec<Ipv4Addr> = self
            .probes
            .iter()
            .filter(|(_, probing)| probing.until <= now)
            .map(|(address, _)| *address)
            .collect();
        for address in over {
            if let Some(probing) = self.probes.remove(&address) {
                self.probed(now, &probing, None, outputs);
            }
        }
    }

    /// Somebody was seen to use an address, with this MAC address if it is known. Of no consequence unless the address
    /// is being probed.
    pub fn handle_probe_answer(
        &mut self,
        now: Time,
        address: Ipv4Addr,
        by: Option<Mac>,
        outputs: &mut Outputs,
    ) {
        if let Some(probing) = self.probes.remove(&address) {
            // The client itself may have it still, from a server that has forgotten it.
            let is_client = by.is_some() && by == probing.request.mac();
            self.probed(now, &probing, (!is_client).then_some(address), outputs);
        }
    }

    fn probed(&mut self, now: Time, probing: &Probing, in_use: Option<Ipv4Addr>, outputs: &mut Outputs) {
        let message = &probing.request;
        let device = classify(message, probing.arrival.received_on);
        let hardware = Hardware::new(message.htype, message.hlen, message.chaddr);
        let client_id = message.options.get(code::CLIENT_ID).unwrap_or_default();
        let is_boot = device.firmware != Firmware::Other;
        let Some(client) = ClientId::new(hardware, device.uuid, client_id, is_boot) else { return };
        let Some(subnet) = self.subnet_of(message, probing.arrival) else { return };
        if let Some(address) = in_use {
            let own = self.on_link(&self.shared[subnet], address).unwrap_or(subnet);
            outputs.records.extend(self.table.quarantine(own, now, address));
            self.refused(message, Some(address), "somebody answers at an address that is free by our books");
        }
        let link = Arc::clone(&self.shared[subnet]);
        let request = Request { message, arrival: probing.arrival, device, client, subnet, link };
        let attempt = if in_use.is_some() { probing.attempt + 1 } else { 0 };
        self.discover(now, request, attempt, outputs);
    }

    /// `attempt` counts the addresses that were found for this request; none is probed for 0.
    fn discover(&mut self, now: Time, mut request: Request<'_>, attempt: u32, outputs: &mut Outputs) {
        let Some(decision) = self.decide(&request, Stage::Discover) else { return };
        let wanted = request.message.options.address(code::REQUESTED_ADDRESS);
        let held = match self.table.hold(&request.link, now, request.requester(), wanted) {
            Ok(held) => held,
            Err(denied) => {
                let network = self.settings.subnets[request.subnet].network;
                self.refused(request.message, None, &format!("subnet {network}: {denied}"));
                return;
            }
        };
        if let Some(probing) = self.probes.get(&held.address) {
            if probing.request.chaddr == request.message.chaddr {
                // It asks again while we are still looking.
                return;
            }
            // The address was taken back from another client, for which we need not look any more.
            self.probes.remove(&held.address);
        }
        if let Some(time) = self.settings.probe.filter(|_| attempt > 0)
            && !held.is_known
            && attempt <= PROBES_EACH_MAX
            && self.probes.len() < PROBES_MAX
        {
            let (request, arrival) = (request.message.clone(), request.arrival);
            let link = request.giaddr.is_unspecified().then_some(arrival.link);
            self.probes.insert(held.address, Probing { request, arrival, until: now.after(time), attempt });
            outputs.probes.push(Probe { address: held.address, link });
            return;
        }
        request.subnet = self.on_link(&request.link, held.address).unwrap_or(request.subnet);
        let reply =
            self.assign(&request, &decision, MessageType::OFFER, held.address, self.duration(&request));
        outputs.replies.push(reply);
    }

    fn request(&mut self, now: Time, mut request: Request<'_>, outputs: &mut Outputs) {
        let message = request.message;
        let specified = |address: Ipv4Addr| Some(address).filter(|address| !address.is_unspecified());
        let wanted = message.options.address(code::REQUESTED_ADDRESS).and_then(specified);
        let is_selecting = message.options.has(code::SERVER_ID);
        if is_selecting && !is_asked_of(&self.settings, message, request.arrival.received_on) {
            // It has taken another server's offer.
            self.table.release_offer(&request.link, &request.client);
            return;
        }
        let Some(address) = wanted.or(specified(message.ciaddr)) else {
            self.dropped(message, "the request names no address");
            return;
        };
        let Some(decision) = self.decide(&request, Stage::Request) else { return };
        let may_refuse = is_selecting || self.settings.is_authoritative;
        let Some(subnet) = self.on_link(&request.link, address) else {
            if may_refuse {
                let network = self.settings.subnets[request.subnet].network;
                let reason = format!("it is not an address of the client's network {network}");
                self.refuse(&request, address, &reason, outputs);
            }
            return;
        };
        request.subnet = subnet;
        // RFC 2131 §4.3.2: a server that has no record of the client stays silent, unless it is the only one that could
        // have any.
        if !may_refuse && !self.table.is_of(address, &request.client) {
            return;
        }
        match self.table.grant(&request.link, now, request.requester(), address, self.duration(&request)) {
            Ok((expires, records)) => {
                outputs.records.extend(records);
                let lease = expires.remaining(now);
                let reply = self.assign(&request, &decision, MessageType::ACK, address, lease);
                outputs.durable_replies.push(reply);
                // Here alone is it known whose an address is: a client's own word (ciaddr) may be anybody's.
                self.tell(message, Some(address), EventKind::Leased);
            }
            // Another member's, or somebody's static one: only a client that asks us in person gets an answer.
            Err(Denied::Unproven | Denied::Unmanaged) if !is_selecting => {}
            Err(denied) if may_refuse => self.refuse(&request, address, &denied.to_string(), outputs),
            Err(_) => {}
        }
    }

    fn decline(&mut self, now: Time, request: &Request<'_>, outputs: &mut Outputs) {
        let Some(address) = request.message.options.address(code::REQUESTED_ADDRESS) else { return };
        if !is_asked_of(&self.settings, request.message, request.arrival.received_on) {
            return;
        }
        let subnet = self.on_link(&request.link, address).unwrap_or(request.subnet);
        if let Some(record) = self.table.decline(subnet, now, request.requester(), address) {
            outputs.records.push(record);
            self.refused(
                request.message,
                Some(address),
                "the client found its address in use by somebody else",
            );
        }
    }

    fn release(&mut self, now: Time, request: &Request<'_>, outputs: &mut Outputs) {
        if !is_asked_of(&self.settings, request.message, request.arrival.received_on) {
            return;
        }
        // It may have moved since: the address tells the subnet.
        let address = request.message.ciaddr;
        if let Some(subnet) = self.subnet_with(address) {
            outputs.records.extend(self.table.release(subnet, now, request.requester(), address));
        }
    }

    /// RFC 2131 §4.3.5: a client that has its address from elsewhere wants to know the rest.
    fn inform(&mut self, mut request: Request<'_>, outputs: &mut Outputs) {
        if request.message.ciaddr.is_unspecified() {
            return;
        }
        let Some(decision) = self.decide(&request, Stage::Request) else { return };
        request.subnet = self.on_link(&request.link, request.message.ciaddr).unwrap_or(request.subnet);
        let mut reply = self.reply(&request, MessageType::ACK);
        reply.ciaddr = request.message.ciaddr;
        let boot_reply = self.describe(&request, &decision, &mut reply);
        self.reached(&request, Stage::Ack, Some(reply.ciaddr), &boot_reply);
        outputs.replies.push(request.answer(reply));
    }

    fn query(&mut self, now: Time, message: &Message, arrival: Arrival, outputs: &mut Outputs) {
        match query::answer(&self.settings, &self.table, now, message, arrival.received_on) {
            Some(reply) => outputs.replies.push(Reply {
                size_max: message.reply_size_max(),
                destination: Destination::Relay(message.giaddr),
                message: reply,
                arrival,
            }),
            None => self.dropped(message, "a lease query from who may not ask, or about nobody"),
        }
    }

    /// The subnet where the client is: by the relay's link selection (RFC 3527), the subnet selection (RFC 3011), the
    /// relay, the address that it already uses, or the interface.
    fn subnet_of(&self, message: &Message, arrival: Arrival) -> Option<usize> {
        let is_specified = |address: &Ipv4Addr| !address.is_unspecified();
        let relay_agent = message.options.get(code::RELAY_AGENT).unwrap_or_default();
        let link = sub_option(relay_agent, LINK_SELECTION).and_then(|value| <[u8; 4]>::try_from(value).ok());
        let address = link
            .map(Ipv4Addr::from)
            .filter(is_specified)
            .or_else(|| message.options.address(code::SUBNET_SELECTION).filter(is_specified))
            .or_else(|| Some(message.giaddr).filter(is_specified))
            .or_else(|| Some(message.ciaddr).filter(is_specified).filter(|_| !arrival.is_broadcast))
            .unwrap_or(arrival.received_on);
        self.subnet_with(address)
    }

    /// The subnet of a link in which an address is.
    fn on_link(&self, link: &[usize], address: Ipv4Addr) -> Option<usize> {
        link.iter().copied().find(|subnet| self.settings.subnets[*subnet].network.contains(address))
    }

    fn subnet_with(&self, address: Ipv4Addr) -> Option<usize> {
        self.settings.subnets.iter().position(|subnet| subnet.network.contains(address))
    }

    /// What the policy says; none if the device is to be ignored.
    fn decide(&self, request: &Request<'_>, stage: Stage) -> Option<Decision> {
        let decision = self.policy.decide(&request.device);
        if decision.action == Action::Ignore {
            self.dropped(request.message, &format!("{} says to ignore it", decision.rule));
            return None;
        }
        self.reached(request, stage, None, &String::from_utf8_lossy(&request.device.vendor_class));
        Some(decision)
    }

    /// For how long a client gets its address: not longer than it asks for.
    fn duration(&self, request: &Request<'_>) -> Duration {
        let subnet = &self.settings.subnets[request.subnet];
        let ours = if request.client.is_boot { subnet.boot_lease } else { subnet.lease };
        let asked = request.message.options.array::<4>(code::LEASE_TIME).map(u32::from_be_bytes);
        asked.map_or(ours, |seconds| ours.min(Duration::from_secs(seconds.into()).max(LEASE_MIN)))
    }

    /// An answer that gives an address.
    fn assign(
        &self,
        request: &Request<'_>,
        decision: &Decision,
        kind: MessageType,
        address: Ipv4Addr,
        lease: Duration,
    ) -> Reply {
        let mut reply = self.reply(request, kind);
        reply.yiaddr = address;
        if kind == MessageType::ACK {
            reply.ciaddr = request.message.ciaddr;
        }
        answer::set_lease(&mut reply, lease);
        let boot_reply = self.describe(request, decision, &mut reply);
        let stage = if kind == MessageType::ACK { Stage::Ack } else { Stage::Offer };
        self.reached(request, stage, Some(address), &boot_reply);
        request.answer(reply)
    }

    fn reply(&self, request: &Request<'_>, kind: MessageType) -> Message {
        let mut reply = Message::reply_to(request.message, kind);
        let server_id = answer::server_id(request.message, request.arrival.received_on);
        reply.options.set(code::SERVER_ID, server_id.octets());
        reply
    }

    /// Adds what to boot and what the network is like; says what was told about booting.
    fn describe(&self, request: &Request<'_>, decision: &Decision, reply: &mut Message) -> String {
        let boot_reply = match &decision.action {
            Action::Boot(boot) => {
                let boot_reply =
                    add_boot(reply, request.message, &request.device, boot, &self.urls, Role::Server);
                format!("{boot_reply} by {}", decision.rule)
            }
            Action::LocalDisk | Action::Ignore => format!("no boot by {}", decision.rule),
        };
        answer::add_network(reply, request.message, &self.settings.subnets[request.subnet]);
        boot_reply
    }

    fn refuse(&self, request: &Request<'_>, address: Ipv4Addr, reason: &str, outputs: &mut Outputs) {
        let mut reply = self.reply(request, MessageType::NAK);
        if !reply.giaddr.is_unspecified() {
            // RFC 2131 §4.3.2: so that the relay broadcasts it; the client cannot have this address.
            reply.flags |= BROADCAST;
        }
        reply.options.set(code::MESSAGE, reason.as_bytes());
        answer::finish(&mut reply, request.message);
        self.refused(request.message, Some(address), reason);
        outputs.replies.push(request.answer(reply));
    }

    fn reached(&self, request: &Request<'_>, stage: Stage, address: Option<Ipv4Addr>, detail: &str) {
        let device = Some(&request.device);
        let kind = EventKind::Reached { protocol: Protocol::Dhcp, stage, device, detail };
        self.tell(request.message, address, kind);
    }

    fn refused(&self, message: &Message, address: Option<Ipv4Addr>, reason: &str) {
        let path = address.map(|address| address.to_string()).unwrap_or_default();
        self.tell(message, address, EventKind::Refused { protocol: Protocol::Dhcp, path: &path, reason });
    }

    fn dropped(&self, message: &Message, reason: &str) {
        self.tell(message, None, EventKind::Dropped { protocol: Protocol::Dhcp, reason });
    }

    fn tell(&self, message: &Message, address: Option<Ipv4Addr>, kind: EventKind<'_>) {
        let own = Some(message.ciaddr).filter(|address| !address.is_unspecified());
        self.observer.observe(&Event { mac: message.mac(), address: address.or(own).map(IpAddr::V4), kind });
    }
}
