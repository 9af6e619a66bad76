//! What an answer says about addresses and the network (RFC 2131 §4.3.1, table 3).

use std::net::Ipv4Addr;
use std::time::Duration;

use super::settings::Subnet;
use crate::dhcp::client::sub_option;
use crate::dhcp::wire::{Message, code};

/// Microsoft's number for option 121, from before it had one.
const MICROSOFT_ROUTES: u8 = 249;
/// Server identifier override, a sub-option of option 82 (RFC 5107).
const SERVER_ID_OVERRIDE: u8 = 11;
/// A client that asks for nothing gets what every one needs.
const USUAL: [u8; 3] = [code::ROUTER, code::DNS, code::DOMAIN_NAME];

/// By which address the client shall know us: the one at which its request arrived, unless its relay wants to stand in
/// between (RFC 5107).
pub(super) fn server_id(request: &Message, received_on: Ipv4Addr) -> Ipv4Addr {
    let relay_agent = request.options.get(code::RELAY_AGENT).unwrap_or_default();
    let override_address =
        sub_option(relay_agent, SERVER_ID_OVERRIDE).and_then(|value| <[u8; 4]>::try_from(value).ok());
    override_address.map_or(received_on, Ipv4Addr::from)
}

/// Says for how long a client has its address; it renews at half of that, and asks anybody at seven eighths.
pub(super) fn set_lease(reply: &mut Message, lease: Duration) {
    let seconds = |part: Duration| u32::try_from(part.as_secs()).unwrap_or(u32::MAX).to_be_bytes();
    reply.options.set(code::LEASE_TIME, seconds(lease));
    reply.options.set(code::RENEWAL_TIME, seconds(lease / 2));
    reply.options.set(code::REBINDING_TIME, seconds(lease / 8 * 7));
}

/// Adds what the client asks for about its network, and last what has to be given back as it came.
pub(super) fn add_network(reply: &mut Message, request: &Message, subnet: &Subnet) {
    reply.options.set(code::SUBNET_MASK, subnet.network.mask().octets());
    let asked = request.options.get(code::PARAMETER_LIST).unwrap_or(&USUAL);
    let has_routes = asked.contains(&code::CLASSLESS_ROUTES) && !subnet.routes.is_empty();
    let mut added = Vec::new();
    for code in asked {
        // RFC 3442: who takes classless routes ignores the router, so the default route is among them.
        let is_double = *code == code::ROUTER && has_routes;
        if reply.options.has(*code) || is_double {
            continue;
        }
        if let Some(value) = value_of(*code, subnet) {
            reply.options.set(*code, value);
            added.push(*code);
        }
    }
    echo_options(reply, request, &mut added);
}

/// RFC 6842: the client identifier; RFC 3011: the subnet selection; RFC 3046 §2.2: the relay's option, last of all.
fn echo_options(reply: &mut Message, request: &Message, optional: &mut Vec<u8>) {
    for code in [code::SUBNET_SELECTION, code::CLIENT_ID, code::RELAY_AGENT] {
        if let Some(value) = request.options.get(code) {
            reply.options.remove(code);
            reply.options.set(code, value);
        }
    }
    if !reply.options.has(code::RELAY_AGENT) {
        return;
    }
    // Relays drop an answer without their option. Where space is short, what is least needed gives way to it.
    let room = request.reply_size_max() - 245;
    let length = |reply: &Message| -> usize { reply.options.iter().map(|(_, value)| 2 + value.len()).sum() };
    while length(reply) > room
        && let Some(code) = optional.pop()
    {
        reply.options.remove(code);
    }
}

/// Gives back what has to be, in an answer that says nothing about the network.
pub(super) fn finish(reply: &mut Message, request: &Message) {
    echo_options(reply, request, &mut Vec::new());
}

fn value_of(code: u8, subnet: &Subnet) -> Option<Vec<u8>> {
    let addresses = |list: &[Ipv4Addr]| -> Option<Vec<u8>> {
        (!list.is_empty()).then(|| list.iter().flat_map(Ipv4Addr::octets).collect())
    };
    match code {
        code::ROUTER => addresses(&subnet.routers),
        code::DNS => addresses(&subnet.dns),
        code::NTP => addresses(&subnet.ntp),
        code::DOMAIN_NAME => subnet.domain.as_ref().map(|domain| domain.as_bytes().to_vec()),
        code::MTU => subnet.mtu.map(|mtu| mtu.to_be_bytes().to_vec()),
        code::BROADCAST => Some(subnet.network.broadcast().octets().to_vec()),
        code::DOMAIN_SEARCH if !subnet.search.is_empty() => {
            Some(subnet.search.iter().filter_map(|name| encode_name(name)).flatten().collect())
        }
        code::CLASSLESS_ROUTES | MICROSOFT_ROUTES if !subnet.routes.is_empty() => Some(encode_routes(subnet)),
        _ => None,
    }
}

/// RFC 3442: each route as the length of its prefix, the bytes of the prefix that count, the router.
fn encode_routes(subnet: &Subnet) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (network, router) in &subnet.routes {
        let count = usize::from(network.prefix()).div_ceil(8);
        bytes.push(network.prefix());
        bytes.extend_from_slice(&network.address().octets()[..count]);
        bytes.extend_from_slice(&router.octets());
    }
    if let Some(router) = subnet.routers.first()
        && subnet.routes.iter().all(|(network, _)| network.prefix() > 0)
    {
        bytes.push(0);
        bytes.extend_from_slice(&router.octets());
    }
    bytes
}

/// RFC 3397, with RFC 1035's names, uncompressed. None if it is no name.
pub(super) fn encode_name(name: &str) -> Option<Vec<u8>> {
    if !goldwire_stdx::is_host_name(name) {
        return None;
    }
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.strip_suffix('.').unwrap_or(name).split('.') {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    Some(bytes)
}
