//! Answers DHCPv6 messages of programs that boot. Keeps no state: any member can answer any message.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use goldwire_stdx::Uuid;

use super::wire::{Message, MessageType, Options, Packet, code, strings};
use crate::content::UrlBuilder;
use crate::device::{Architecture, Device, Firmware, Mac};
use crate::dhcp::client::firmware_of;
use crate::dhcp::dialect::{BootReply, Reason, Target, target};
use crate::event::{Event, EventKind, Observer, Protocol, Stage};
use crate::policy::{Action, Boot, BootPolicy};

/// The port on which servers and relays listen.
pub(crate) const SERVER_PORT: u16 = 547;
/// The port on which UEFI PXE asks for its boot file, as over IPv4.
pub(crate) const BINL_PORT: u16 = 4011;

/// IANA's number for Intel, under which PXE and UEFI HTTP Boot name their class (UEFI 2.10 §24.3.6).
const ENTERPRISE_INTEL: [u8; 4] = 343_u32.to_be_bytes();
/// Status "no addresses available" (RFC 8415 §21.13).
const NO_ADDRESSES: [u8; 2] = 2_u16.to_be_bytes();

/// Answers with boot options and nothing else.
pub struct Responder {
    policy: Arc<dyn BootPolicy>,
    urls: UrlBuilder,
    observer: Arc<dyn Observer>,
    server_id: Vec<u8>,
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").field("server_id", &self.server_id).finish_non_exhaustive()
    }
}

/// A server identifier made from a hardware address (DUID-LL, RFC 8415 §11.4): each member's own, and the same after a
/// restart. In offers the client's address stands behind it; to clients an identifier has no parts (§11).
pub fn server_id(mac: Mac) -> Vec<u8> {
    let mut id = vec![0, 3, 0, 1];
    id.extend_from_slice(&mac.0);
    id
}

impl Responder {
    /// `server_id` names this member, see [`server_id`].
    pub fn new(
        policy: Arc<dyn BootPolicy>,
        urls: UrlBuilder,
        observer: Arc<dyn Observer>,
        server_id: Vec<u8>,
    ) -> Self {
        Self { policy, urls, observer, server_id }
    }

    /// Answers a packet that came from `from` to `port` (547 or 4011) of the interface that has our address
    /// `received_on`. The answer goes to where the packet came from, address and port: a client's own or the relay's
    /// (RFC 8415 §18.3.10 and §19.3; RFC 8357 for relays with another port).
    pub fn handle(
        &self,
        packet: &Packet,
        from: Ipv6Addr,
        received_on: Ipv6Addr,
        port: u16,
    ) -> Option<Packet> {
        let message = &packet.message;
        let device = classify(packet, from, received_on);
        let is_ours = message.options.get(code::SERVER_ID).is_none_or(|id| id.starts_with(&self.server_id));
        let (kind, stages) = match (message.kind, device.firmware) {
            (_, Firmware::Other) => return None,
            (MessageType::SOLICIT, Firmware::EfiPxe | Firmware::HttpClient) if port == SERVER_PORT => {
                (MessageType::ADVERTISE, [Stage::Discover, Stage::Offer])
            }
            (MessageType::INFORMATION_REQUEST, _) if is_ours => {
                (MessageType::REPLY, [Stage::Request, Stage::Ack])
            }
            // EDK2 asks the host in the URL that it was offered: another member than the one that offered, maybe.
            (MessageType::REQUEST, _) if is_ours || port == BINL_PORT => {
                (MessageType::REPLY, [Stage::Request, Stage::Ack])
            }
            _ => return None,
        };
        self.reached(&device, from, stages[0], &String::from_utf8_lossy(&device.vendor_class));
        let decision = self.policy.decide(&device);
        let Action::Boot(boot) = decision.action else { return None };
        let url = match self.url(&boot, &device, kind, received_on) {
            Ok(url) => url,
            Err(reason) => {
                let reason = format!("{}: {}", decision.rule, BootReply::Nothing(reason));
                let kind =
                    EventKind::Refused { protocol: Protocol::Dhcp6, path: &boot.profile, reason: &reason };
                self.tell(&device, from, kind);
                return None;
            }
        };
        self.reached(&device, from, stages[1], &format!("{url} by {}", decision.rule));
        let options = self.options(message, &device, &url, port);
        let message = Message { kind, transaction: message.transaction, options };
        Some(Packet { relays: packet.relays.clone(), message })
    }

    fn options(&self, request: &Message, device: &Device, url: &str, port: u16) -> Options {
        let mut options = Options::default();
        if let Some(client) = request.options.get(code::CLIENT_ID) {
            options.push(code::CLIENT_ID, client);
        }
        // On port 4011 the client goes on with the identifier of the offer that it took.
        let offered = request.options.get(code::SERVER_ID).filter(|_| port == BINL_PORT);
        let mut server_id = offered.unwrap_or(&self.server_id).to_vec();
        if let Some(mac) = device.mac.filter(|_| request.kind == MessageType::SOLICIT) {
            server_id.extend_from_slice(&mac.0);
        }
        options.push(code::SERVER_ID, server_id);
        // Asked for an address nevertheless: there is none here (RFC 8415 §18.3.2).
        if let Some([a, b, c, d, ..]) =
            request.options.get(code::IA_NA).filter(|_| request.kind == MessageType::REQUEST)
        {
            let mut none = vec![*a, *b, *c, *d, 0, 0, 0, 0, 0, 0, 0, 0];
            none.extend_from_slice(&code::STATUS.to_be_bytes());
            none.extend_from_slice(&[0, 2]);
            none.extend_from_slice(&NO_ADDRESSES);
            options.push(code::IA_NA, none);
        }
        let class: Option<&[u8]> = match device.firmware {
            Firmware::HttpClient => Some(b"HTTPClient"),
            Firmware::EfiPxe | Firmware::BiosPxe => Some(b"PXEClient"),
            _ => None,
        };
        if let Some(class) = class {
            let mut value = ENTERPRISE_INTEL.to_vec();
            value.extend_from_slice(&(class.len() as u16).to_be_bytes());
            value.extend_from_slice(class);
            options.push(code::VENDOR_CLASS, value);
        }
        // Last, and without a NUL: RFC 5970 §3.1 forbids one, and EDK2 copies by length here.
        options.push(code::BOOT_FILE_URL, url);
        options
    }

    /// Over IPv6 all firmware is told a URL; `tftp:` for who knows nothing else.
    fn url(
        &self,
        boot: &Boot,
        device: &Device,
        kind: MessageType,
        received_on: Ipv6Addr,
    ) -> Result<String, Reason> {
        match target(boot, device, &self.urls, IpAddr::is_ipv6)? {
            Target::Url(url) => Ok(url),
            Target::RootPath(_) => Err(Reason::NothingNamed),
            Target::File { server, file } => {
                let IpAddr::V6(server) = server else { return Err(Reason::NoMember) };
                // EDK2 asks the host in an offer's URL on port 4011, which a plain TFTP server does not have: ours.
                // It takes only a global address from a URL.
                let is_link_local = received_on.is_unicast_link_local() || received_on.is_unspecified();
                let server =
                    if kind == MessageType::ADVERTISE && !is_link_local { received_on } else { server };
                // EDK2 takes the path as it stands, percent signs and all.
                Ok(format!("tftp://[{server}]/{file}"))
            }
        }
    }

    fn reached(&self, device: &Device, from: Ipv6Addr, stage: Stage, detail: &str) {
        let kind = EventKind::Reached { protocol: Protocol::Dhcp6, stage, device: Some(device), detail };
        self.tell(device, from, kind);
    }

    fn tell(&self, device: &Device, from: Ipv6Addr, kind: EventKind<'_>) {
        let address = device.relay.is_none().then_some(IpAddr::V6(from));
        self.observer.observe(&Event { mac: device.mac, address, kind });
    }
}

/// Who sent this packet, that came from `from` to our address `received_on`.
///
/// The MAC comes from the relay (RFC 6939), from the client's identifier, or from its link-local address (EUI-64);
/// firmware that identifies itself by UUID tells it there only. On port 4011 it comes from a global address, and its MAC is
/// nowhere but in the server identifier that we offered it by, behind our own: it is sent back as it came.
pub fn classify(packet: &Packet, from: Ipv6Addr, received_on: Ipv6Addr) -> Device {
    let options = &packet.message.options;
    let nearest = packet.relays.last();
    let client = nearest.map_or(from, |relay| relay.peer);
    let duid = options.get(code::CLIENT_ID).unwrap_or_default();
    let arch = match options.get(code::CLIENT_ARCH) {
        Some([high, low, ..]) => Some(Architecture(u16::from_be_bytes([*high, *low]))),
        _ => None,
    };
    let vendor_class = options.get(code::VENDOR_CLASS).and_then(|value| strings(value.get(4..)?).next());
    let classes = options.get(code::USER_CLASS).unwrap_or_default();
    let user_class = strings(classes).find(|class| [&b"iPXE"[..], b"gPXE"].contains(class));
    let user_class = user_class.or_else(|| strings(classes).next()).unwrap_or_default();
    let mac = nearest
        .and_then(|relay| relay.options.get(code::CLIENT_LINK_LAYER))
        .and_then(|value| value.strip_prefix(&[0, 1])?.try_into().ok().map(Mac))
        .or_else(|| mac_of_duid(duid))
        .or_else(|| mac_of_address(client))
        .or_else(|| mac_of_offer(options.get(code::SERVER_ID)?));
    let vendor_class = vendor_class.unwrap_or_default();
    let firmware = firmware_of(mac, arch, vendor_class, user_class, false);
    Device {
        mac,
        uuid: uuid_of_duid(duid, firmware),
        arch,
        firmware,
        vendor_class: vendor_class.to_vec(),
        user_class: user_class.to_vec(),
        relay: nearest.map(|_| from.into()),
        subnet: nearest
            .map(|relay| relay.link)
            .filter(|link| !link.is_unspecified())
            .or(Some(received_on))
            .map(IpAddr::V6),
        circuit_id: nearest
            .and_then(|relay| relay.options.get(code::INTERFACE_ID))
            .unwrap_or_default()
            .to_vec(),
        remote_id: nearest.and_then(|relay| relay.options.get(code::REMOTE_ID)).unwrap_or_default().to_vec(),
    }
}

/// The hardware address in a DUID-LLT or DUID-LL of Ethernet (RFC 8415 §11.2, §11.4).
fn mac_of_duid(duid: &[u8]) -> Option<Mac> {
    match duid {
        [0, 1, 0, 1, _, _, _, _, mac @ ..] | [0, 3, 0, 1, mac @ ..] => mac.try_into().ok().map(Mac),
        _ => None,
    }
}

/// The client's hardware address in the identifier of an offer of ours or of another member.
fn mac_of_offer(server_id: &[u8]) -> Option<Mac> {
    match server_id {
        [0, 3, 0, 1, _, _, _, _, _, _, mac @ ..] => mac.try_into().ok().map(Mac),
        _ => None,
    }
}

/// The hardware address in the second half of a link-local address (RFC 4291, appendix A).
fn mac_of_address(address: Ipv6Addr) -> Option<Mac> {
    match address.octets() {
        [0xfe, 0x80, .., a, b, c, 0xff, 0xfe, d, e, f] => Some(Mac([a ^ 2, b, c, d, e, f])),
        _ => None,
    }
}

/// The UUID in a DUID-UUID (RFC 6355). iPXE writes it in the order of its text; EDK2 copies SMBIOS's bytes.
fn uuid_of_duid(duid: &[u8], firmware: Firmware) -> Option<Uuid> {
    let bytes = duid.strip_prefix(&[0, 4])?.try_into().ok()?;
    match firmware {
        Firmware::EfiPxe | Firmware::HttpClient => crate::device::uuid_from_smbios(bytes),
        _ => Some(Uuid(bytes)).filter(|uuid| !uuid.is_nil_or_max()),
    }
}

#[cfg(test)]
mod tests;
