//! Lease queries (RFC 4388): a relay that has forgotten which client is where asks.

use std::net::Ipv4Addr;

use super::answer;
use super::request::is_asked_of;
use super::settings::Settings;
use crate::dhcp::lease::{Hardware, Lease, Table, Time};
use crate::dhcp::wire::{Message, MessageType, code};

/// Most other addresses of a client that one answer names.
const ASSOCIATED_MAX: usize = 32;

/// The answer to a query, unless whoever would get it may not have it.
pub(super) fn answer(
    settings: &Settings,
    table: &Table,
    now: Time,
    request: &Message,
    received_on: Ipv4Addr,
) -> Option<Message> {
    // RFC 4388 §6.3: the answer goes to giaddr, so that is who has to be allowed, whoever has sent the packet.
    if !settings.query_from.iter().any(|network| network.contains(request.giaddr.into())) {
        return None;
    }
    if request.options.has(code::SERVER_ID) && !is_asked_of(settings, request, received_on) {
        return None;
    }
    let found = find(settings, table, now, request)?;
    let kind = match &found {
        Found::Active(..) => MessageType::LEASE_ACTIVE,
        Found::Unassigned => MessageType::LEASE_UNASSIGNED,
        Found::Unknown => MessageType::LEASE_UNKNOWN,
    };
    let mut reply = Message::reply_to(request, kind);
    reply.options.set(code::SERVER_ID, answer::server_id(request, received_on).octets());
    match &found {
        Found::Active(address, lease, others) => describe(&mut reply, now, *address, lease, others),
        Found::Unassigned | Found::Unknown => reply.ciaddr = request.ciaddr,
    }
    let own = request.options.get(code::RELAY_AGENT);
    let relay_agent = match &found {
        // RFC 4388 §6.4.2. It is told of whoever has the lease, or not at all: what relayed the query is somebody else.
        Found::Active(_, lease, _) if wants_relay_agent(request) => {
            Some(lease.relay_agent.value()).filter(|value| !value.is_empty())
        }
        _ => own,
    };
    if let Some(relay_agent) = relay_agent {
        reply.options.set(code::RELAY_AGENT, relay_agent);
    }
    Some(reply)
}

/// Whether the relay agent information is among the options that are asked for.
fn wants_relay_agent(request: &Message) -> bool {
    request.options.get(code::PARAMETER_LIST).is_some_and(|list| list.contains(&code::RELAY_AGENT))
}

enum Found<'a> {
    Active(Ipv4Addr, &'a Lease, Vec<Ipv4Addr>),
    Unassigned,
    Unknown,
}

/// RFC 4388 §6.4: by address, else by hardware address, else by client identifier.
fn find<'a>(settings: &Settings, table: &'a Table, now: Time, request: &Message) -> Option<Found<'a>> {
    if !request.ciaddr.is_unspecified() {
        let is_ours = settings.subnets.iter().any(|subnet| subnet.network.contains(request.ciaddr));
        return Some(match table.lease(request.ciaddr).filter(|lease| lease.is_active(now)) {
            Some(lease) => Found::Active(request.ciaddr, lease, Vec::new()),
            None if is_ours => Found::Unassigned,
            None => Found::Unknown,
        });
    }
    let mut leases: Vec<(Ipv4Addr, &Lease)> = match (
        Hardware::new(request.htype, request.hlen, request.chaddr),
        request.options.get(code::CLIENT_ID),
    ) {
        (Some(hardware), _) => table.of_hardware(hardware).collect(),
        (None, Some(client_id)) => table.of_client_id(client_id).collect(),
        (None, None) => return None,
    };
    leases.retain(|(_, lease)| lease.is_active(now));
    leases.sort_by_key(|(_, lease)| std::cmp::Reverse(lease.changed));
    Some(match leases.split_first() {
        Some(((address, lease), others)) => {
            let others = others.iter().take(ASSOCIATED_MAX).map(|(address, _)| *address).collect();
            Found::Active(*address, lease, others)
        }
        None => Found::Unknown,
    })
}

fn describe(reply: &mut Message, now: Time, address: Ipv4Addr, lease: &Lease, others: &[Ipv4Addr]) {
    reply.ciaddr = address;
    if let Some(hardware) = lease.client.hardware {
        (reply.htype, reply.hlen, reply.chaddr) = (hardware.kind, hardware.length, hardware.address);
    }
    answer::set_lease(reply, lease.expires.remaining(now));
    let since = now.remaining(lease.changed).as_secs();
    reply.options.set(code::LEASE_QUERY_LAST, u32::try_from(since).unwrap_or(u32::MAX).to_be_bytes());
    if !lease.client.client_id.is_empty() {
        reply.options.set(code::CLIENT_ID, &*lease.client.client_id);
    }
    if !others.is_empty() {
        reply.options.set(code::ASSOCIATED_IP, others.iter().flat_map(Ipv4Addr::octets).collect::<Vec<_>>());
    }
}
