//! From what the boot file says to the settings of each server.

use std::net::SocketAddr;
use std::sync::Arc;

use goldwire_netboot::content::LibrarySettings;
use goldwire_netboot::dhcp::{self, DriverSettings, Relays};
use goldwire_netboot::member::heartbeat::{Announcement, Condition, Group, Key, Peer};
use goldwire_netboot::member::{Fitness, MemberConfig, Table};
use goldwire_netboot::{Observer, http, tftp};
use goldwire_stdx::Report;
use nix::ifaddrs::getifaddrs;

use crate::boot::{self, Settings};

/// Probes before an address is offered last so long; a machine on the link answers within a millisecond.
const PROBE: std::time::Duration = std::time::Duration::from_millis(500);

/// Domain separation: nothing that is signed with this key passes for a token.
const HEARTBEAT_CONTEXT: &str = "goldwire 2026-11-24 boot group heartbeat";

/// The folders that are served.
pub fn library_settings(settings: &Settings, fitness: Arc<Fitness>) -> LibrarySettings {
    let server = &settings.server;
    LibrarySettings { root: server.root.clone(), extra: vec![("ipxe".into(), server.ipxe.clone())], fitness }
}

/// The members, all of them dead but this one.
pub fn table_of(settings: &Settings, observer: Arc<dyn Observer>) -> Result<Table, Report> {
    let own = Some(settings.server.name.clone());
    Ok(Table::new(member_configs(settings), own, observer)?)
}

/// The members with their parts.
pub fn member_configs(settings: &Settings) -> Vec<MemberConfig> {
    settings.members.iter().map(boot::MemberSettings::config).collect()
}

/// The group for heartbeats; none without a secret or where to hear.
pub(super) fn group_of(settings: &Settings) -> Option<(SocketAddr, Group)> {
    let listen = settings.heartbeat.listen?;
    let secret = settings.server.secret.as_ref()?;
    let own = settings.own_member()?;
    let key = Key::new(&blake3::derive_key(HEARTBEAT_CONTEXT, secret.expose()));
    let digest = settings.agreement.digest(&settings.server.root);
    let announcement = Announcement { digest, ..announcement_of(own, listen) };
    let group = Group {
        key,
        own: announcement,
        peers: peers_of(settings, listen),
        announce_to: settings.heartbeat.announce_to.clone(),
        accepts_found: settings.heartbeat.accepts_found,
    };
    Some((listen, group))
}

/// What a member says of itself where it hears heartbeats; without the digest of what it serves.
pub(super) fn announcement_of(member: &boot::MemberSettings, listen: SocketAddr) -> Announcement {
    Announcement {
        name: member.member.name.clone(),
        address: member.member.address,
        http_port: member.member.http_port,
        https_port: member.member.https_port,
        https_name: member.member.https_name.clone(),
        tftp_port: member.tftp_port,
        heartbeat_port: listen.port(),
        weight: u16::try_from(member.weight).unwrap_or(u16::MAX),
        condition: Condition::Serving,
        digest: [0; 16],
    }
}

/// The other members, as this one hears them.
pub(super) fn peers_of(settings: &Settings, listen: SocketAddr) -> Vec<Peer> {
    let others = settings.members.iter().filter(|member| member.member.name != settings.server.name);
    let peer = |member: &boot::MemberSettings| Peer {
        name: member.member.name.clone(),
        address: member.heartbeat.unwrap_or(SocketAddr::new(member.member.address, listen.port())),
    };
    others.map(peer).collect()
}

/// HTTP and HTTPS, without health and metrics.
pub(super) fn http_of(settings: &Settings) -> http::Settings {
    let balancers = &settings.http.proxy_protocol_from;
    let listener = |is_secure| {
        let balancers = balancers.clone();
        move |address: &SocketAddr| http::Listener {
            is_secure,
            balancers: balancers.clone(),
            ..http::Listener::plain(*address)
        }
    };
    let mut listeners: Vec<http::Listener> = settings.http.listen.iter().map(listener(false)).collect();
    if let Some(tls) = &settings.http.tls {
        listeners.extend(tls.listen.iter().map(listener(true)));
    }
    let tls = settings.http.tls.as_ref();
    http::Settings {
        listeners,
        tls: tls.map(|tls| http::TlsSettings { certificate: tls.certificate.clone(), key: tls.key.clone() }),
        limits: http::Limits { large_transfers: settings.http.transfers_max, ..http::Limits::default() },
        ..http::Settings::default()
    }
}

/// TFTP.
pub(super) fn tftp_of(settings: &Settings) -> tftp::Settings {
    let caps = settings.subnets.iter().filter_map(|subnet| {
        Some(tftp::BlockSizeCap {
            network: subnet.network.into(),
            block_size_max: subnet.tftp_block_size_max?,
        })
    });
    tftp::Settings {
        listen: settings.tftp.listen.clone(),
        clients: tftp_clients(settings),
        block_size_max: settings.tftp.block_size_max,
        window_size_max: settings.tftp.window_size_max,
        block_size_caps: caps.collect(),
        ..tftp::Settings::default()
    }
}

/// How TFTP clients are answered, by servers and by a balancing front.
pub fn tftp_clients(settings: &Settings) -> tftp::Clients {
    let mode =
        if settings.tftp.is_single_port { tftp::Mode::SinglePort } else { tftp::Mode::PortPerTransfer };
    tftp::Clients { mode, allow_from: settings.tftp_networks() }
}

/// Where DHCP listens: on the interfaces, which also hear relays and clients that renew, whatever address they ask.
pub(super) fn driver_of(settings: &Settings) -> DriverSettings {
    let interfaces = match &settings.dhcp.interfaces[..] {
        [] => interfaces_with_ipv4(),
        named => named.to_vec(),
    };
    DriverSettings {
        interfaces,
        is_port_shared: settings.dhcp.mode == boot::DhcpMode::Proxy,
        is_probing: settings.dhcp.is_probing,
        ..DriverSettings::default()
    }
}

fn interfaces_with_ipv4() -> Vec<String> {
    let mut names: Vec<String> = getifaddrs()
        .into_iter()
        .flatten()
        .filter(|found| {
            let address = found.address.as_ref().and_then(|address| address.as_sockaddr_in().map(|a| a.ip()));
            address.is_some_and(|address| !address.is_loopback())
        })
        .map(|found| found.interface_name)
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The relays that DHCP believes.
pub(super) fn relays_of(settings: &Settings) -> Relays {
    Relays::new(settings.dhcp.relays.clone())
}

/// The DHCP server.
pub(super) fn server_of(settings: &Settings) -> dhcp::Settings {
    let subnets = settings.subnets.iter().map(subnet_of).collect();
    let mut server = dhcp::Settings::new(settings.server.name.clone(), subnets);
    server.is_authoritative = settings.dhcp.is_authoritative;
    server.addresses = settings.own_member().and_then(boot::MemberSettings::address_v4).into_iter().collect();
    server.query_from.clone_from(&settings.dhcp.lease_query_from);
    server.relays = relays_of(settings);
    server.probe = settings.dhcp.is_probing.then_some(PROBE);
    server
}

fn subnet_of(subnet: &boot::Subnet) -> dhcp::Subnet {
    let plan = subnet.plan();
    dhcp::Subnet {
        shared_network: subnet.shared_network.clone(),
        pools: plan.pools,
        peer_pools: plan.peer_pools,
        reservations: plan.reservations,
        routers: subnet.routers.clone(),
        dns: subnet.dns.clone(),
        ntp: subnet.ntp.clone(),
        domain: subnet.domain.clone(),
        search: subnet.search.clone(),
        mtu: subnet.mtu,
        routes: subnet.routes.clone(),
        lease: subnet.lease,
        boot_lease: subnet.boot_lease,
        ..dhcp::Subnet::new(subnet.network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_balancers_is_believed_as_a_whole() {
        let text = "[http]\nproxy-protocol-from = [\"10.0.0.0/24\", \"10.0.9.9\"]\n\
                    [[member]]\nname = \"m\"\naddress = \"10.0.0.1\"\n";
        let loaded = boot::parse(text, std::path::Path::new("boot.toml")).unwrap();
        let http = http_of(&loaded.settings);
        let is_believed = |address: &str| {
            let address = address.parse().unwrap();
            http.listeners[0].balancers.iter().any(|balancers| balancers.contains(address))
        };
        assert!(is_believed("10.0.0.0") && is_believed("10.0.0.255") && is_believed("10.0.9.9"));
        assert!(!is_believed("10.0.1.0") && !is_believed("10.0.9.8"));
    }

    fn settings(text: &str) -> Settings {
        let text = format!("{text}[[member]]\nname = \"m\"\naddress = \"192.0.2.1\"\n");
        boot::parse(&text, std::path::Path::new("boot.toml")).unwrap().settings
    }

    /// With a subnet the clients of its version of IP are known, and of the other one nothing is.
    #[test]
    fn tftp_answers_whom_the_file_knows() {
        let of = |text: &str| {
            let networks = settings(text).tftp_networks();
            move |address: &str| networks.iter().any(|network| network.contains(address.parse().unwrap()))
        };
        let known =
            of("[http]\nproxy-protocol-from = [\"10.9.0.0/24\"]\n[[subnet]]\nnetwork = \"10.0.0.0/24\"\n");
        for address in ["10.0.0.7", "10.9.0.7", "192.0.2.1", "127.0.0.1", "::1", "2001:db8::1"] {
            assert!(known(address), "{address}");
        }
        assert!(!known("10.0.1.7") && !known("192.0.2.2") && !known("8.8.8.8"));
        let said = of("[tftp]\nallow-from = [\"10.0.1.0/24\"]\n[[subnet]]\nnetwork = \"10.0.0.0/24\"\n");
        assert!(said("10.0.1.7") && !said("10.0.0.7") && !said("::1"));
    }

    #[test]
    fn each_stage_has_the_lease_that_its_subnet_says() {
        let text = "[[subnet]]\nnetwork = \"10.0.0.0/24\"\nlease = \"2h\"\nboot-lease = \"7m\"\n";
        let subnet = subnet_of(&settings(text).subnets[0]);
        assert_eq!((subnet.lease.as_secs(), subnet.boot_lease.as_secs()), (7200, 420));
    }
}
