//! What is true after a boot file was read and found good.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use goldwire_netboot::dhcp::{self, AddressRange, Plan};
use goldwire_netboot::media::MediaSettings;
use goldwire_netboot::member::MemberConfig;
use goldwire_netboot::{Mac, Member, Network, NetworkV4};
use goldwire_stdx::Uuid;

use super::agreement::Agreement;
use crate::config::Secret;

/// Everything that a boot server is told, except what devices boot (that is the [`Policy`](super::Policy)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This process.
    pub server: Server,
    /// HTTP and HTTPS.
    pub http: Http,
    /// TFTP.
    pub tftp: Tftp,
    /// DHCP and proxyDHCP.
    pub dhcp: Dhcp,
    /// Interfaces on which DHCPv6 boot options are given; none means off.
    pub dhcp6_interfaces: Vec<String>,
    /// Where metrics are served; none means nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// How members find out whether others live.
    pub heartbeat: Heartbeat,
    /// Boot media.
    pub media: Media,
    /// Subnets with the addresses that are given out.
    pub subnets: Vec<Subnet>,
    /// Every member of the group, this one among them.
    pub members: Vec<MemberSettings>,
    /// What the members must agree on.
    pub(super) agreement: Agreement,
}

impl Settings {
    /// This process's own entry among the members.
    pub fn own_member(&self) -> Option<&MemberSettings> {
        self.members.iter().find(|member| member.member.name == self.server.name)
    }

    /// What a boot medium shall do: the same on each member, if their boot files and iPXE's programs are the same.
    pub fn medium(&self) -> MediaSettings {
        let members = self.members.iter().map(|member| member.member.clone()).collect();
        MediaSettings {
            programs: self.media.programs.clone(),
            is_secure: self.media.is_secure,
            vlan: self.media.vlan,
            ca: self.media.ca.clone(),
            ..MediaSettings::new(members)
        }
    }

    /// The tables that differ in a way which needs a restart: sockets are bound and pools are in use. Members and
    /// media are not among them: [`Table::configure`](goldwire_netboot::member::Table::configure) takes new members, and
    /// media are made anew.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        // Each table has its place here or below, so that a new one is thought of.
        let Self {
            server,
            http,
            tftp,
            dhcp,
            dhcp6_interfaces,
            metrics_listen,
            heartbeat,
            subnets,
            members: _,
            media: _,
            agreement: _,
        } = self;
        // Templates are read with the rules.
        let server = Server { templates: new.server.templates.clone(), ..server.clone() };
        let differs = [
            ("server", server != new.server),
            ("http", *http != new.http),
            ("tftp", *tftp != new.tftp),
            ("dhcp", *dhcp != new.dhcp),
            ("dhcp6", *dhcp6_interfaces != new.dhcp6_interfaces),
            ("metrics", *metrics_listen != new.metrics_listen),
            ("heartbeat", *heartbeat != new.heartbeat),
            ("subnet", *subnets != new.subnets),
        ];
        differs.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
    }
}

impl Settings {
    /// Networks whose TFTP requests are answered; empty: all. An answer goes to whoever the request says, so nobody but
    /// clients should be named. Where the file does not say it, that is who it knows: its subnets, its members and
    /// balancers, which ask for their clients, and this machine. Of a version of IP without a subnet nothing is known.
    pub fn tftp_networks(&self) -> Vec<Network> {
        let single = |address: IpAddr| Network::new(address, if address.is_ipv4() { 32 } else { 128 });
        if !self.tftp.allow_from.is_empty() || self.subnets.is_empty() {
            return self.tftp.allow_from.clone();
        }
        let mut known: Vec<Network> = self.subnets.iter().map(|subnet| subnet.network.into()).collect();
        for any in [IpAddr::from([0; 4]), IpAddr::from([0_u16; 8])] {
            if !known.iter().any(|network| network.address().is_ipv4() == any.is_ipv4()) {
                known.extend(Network::new(any, 0));
            }
        }
        known.extend(&self.http.proxy_protocol_from);
        known.extend(self.members.iter().filter_map(|member| single(member.member.address)));
        known.extend(Network::new([127, 0, 0, 1].into(), 8));
        known.extend(single(std::net::Ipv6Addr::LOCALHOST.into()));
        known
    }

    /// Whether TFTP answers everybody of a version of IP on which it listens. A balancing front's file need not listen
    /// itself; IPv4 is what firmware asks a front by.
    pub(super) fn answers_anybody(&self) -> bool {
        let networks = self.tftp_networks();
        let is_open = |is_ipv4: bool| {
            let mut open = networks.iter().filter(|network| network.prefix() == 0);
            networks.is_empty() || open.any(|network| network.address().is_ipv4() == is_ipv4)
        };
        let listen = &self.tftp.listen;
        listen.iter().any(|address| is_open(address.is_ipv4())) || listen.is_empty() && is_open(true)
    }
}

/// This process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Which member it is.
    pub name: String,
    /// Folder of the lease log and the timeline.
    pub state: PathBuf,
    /// The boot tree.
    pub root: PathBuf,
    /// Folder of iPXE's programs, which stand in the boot tree below `ipxe/`.
    pub ipxe: PathBuf,
    /// Whom root becomes once ports are bound.
    pub user: Option<String>,
    /// The key that all members share, for heartbeats and tokens.
    pub secret: Option<Secret>,
    /// Folder of script templates.
    pub templates: Option<PathBuf>,
}

/// HTTP and HTTPS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// Addresses of the plain server.
    pub listen: Vec<SocketAddr>,
    /// The TLS server, if there is one.
    pub tls: Option<Tls>,
    /// Large transfers at one time; iPXE is asked to wait when there are more.
    pub transfers_max: usize,
    /// From whom a PROXY header is believed.
    pub proxy_protocol_from: Vec<Network>,
}

/// HTTPS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Its addresses.
    pub listen: Vec<SocketAddr>,
    /// PEM file with the certificate and its chain.
    pub certificate: PathBuf,
    /// PEM file with its key.
    pub key: PathBuf,
}

/// TFTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tftp {
    /// Its addresses; none means off.
    pub listen: Vec<SocketAddr>,
    /// Whether data comes from the port that was asked, which passes NAT and balancers.
    pub is_single_port: bool,
    /// Largest block in bytes.
    pub block_size_max: u16,
    /// Largest window in blocks.
    pub window_size_max: u16,
    /// Networks whose clients are answered; empty: those of the subnets, if there are any.
    pub allow_from: Vec<Network>,
}

/// How DHCP is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DhcpMode {
    /// Addresses and boot options.
    Server,
    /// Boot options beside somebody else's DHCP server.
    Proxy,
    /// Not at all.
    Off,
}

/// DHCP and proxyDHCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dhcp {
    /// How it is answered.
    pub mode: DhcpMode,
    /// On which interfaces; none means all.
    pub interfaces: Vec<String>,
    /// Whether clients that ask for a foreign address are refused (NAK).
    pub is_authoritative: bool,
    /// Whether an address is probed before it is offered.
    pub is_probing: bool,
    /// Who may ask about leases (RFC 4388).
    pub lease_query_from: Vec<Network>,
    /// Which relays are believed; empty: every one.
    pub relays: Vec<Network>,
}

/// How members find out whether others live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// Where heartbeats are heard; none means that members are only asked for their health.
    pub listen: Option<SocketAddr>,
    /// Multicast or broadcast addresses on which this member announces itself.
    pub announce_to: Vec<SocketAddr>,
    /// Whether members that stand in no file may join with the shared secret.
    pub accepts_found: bool,
    /// Time between two questions to a member without a heartbeat.
    pub probe_interval: Duration,
}

/// Boot media.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Media {
    /// Whether they are served.
    pub is_served: bool,
    /// Folder of iPXE's programs that are put on them.
    pub programs: PathBuf,
    /// Whether they ask the members by `https`.
    pub is_secure: bool,
    /// The VLAN's tag.
    pub vlan: Option<u16>,
    /// A CA certificate that is put on them.
    pub ca: Option<Vec<u8>>,
}

/// A subnet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    /// Its network.
    pub network: NetworkV4,
    /// The name of the link that it shares with other subnets.
    pub shared_network: Option<String>,
    /// Addresses that this server gives to anybody.
    pub pools: Vec<AddressRange>,
    /// Those that other members give.
    pub peer_pools: Vec<AddressRange>,
    /// Option 3.
    pub routers: Vec<Ipv4Addr>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// Option 42.
    pub ntp: Vec<Ipv4Addr>,
    /// Option 15.
    pub domain: Option<String>,
    /// Option 119.
    pub search: Vec<String>,
    /// Option 26.
    pub mtu: Option<u16>,
    /// Option 121.
    pub routes: Vec<(NetworkV4, Ipv4Addr)>,
    /// Of an operating system.
    pub lease: Duration,
    /// Of a boot program, which soon gives way to another.
    pub boot_lease: Duration,
    /// The largest TFTP block that passes this subnet, in bytes.
    pub tftp_block_size_max: Option<u16>,
    /// Addresses kept for somebody: `[[subnet.reservation]]`, and `[[device]]` with an address.
    pub reservations: Vec<Reservation>,
}

impl Subnet {
    /// What the lease table has to know.
    pub fn plan(&self) -> Plan {
        let mut reservations = Vec::new();
        for reservation in &self.reservations {
            let keys = [
                reservation.mac.map(dhcp::Reservation::Mac),
                reservation.uuid.map(dhcp::Reservation::Uuid),
                reservation.client_id.clone().map(dhcp::Reservation::ClientId),
            ];
            reservations.extend(keys.into_iter().flatten().map(|key| (key, reservation.address)));
        }
        Plan { pools: self.pools.clone(), peer_pools: self.peer_pools.clone(), reservations }
    }
}

/// An address kept for somebody. At least one of `mac`, `uuid` and `client_id` is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// By hardware address.
    pub mac: Option<Mac>,
    /// By SMBIOS UUID.
    pub uuid: Option<Uuid>,
    /// By client identifier (option 61), which iPXE and systems send; with its type byte.
    pub client_id: Option<Vec<u8>>,
    /// The address.
    pub address: Ipv4Addr,
    /// The host name (option 12).
    pub name: Option<String>,
}

/// A member with what decides about its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberSettings {
    /// As devices reach it.
    pub member: Member,
    /// Port of its TFTP server.
    pub tftp_port: u16,
    /// Where it hears heartbeats.
    pub heartbeat: Option<SocketAddr>,
    /// Its share of the devices, against the other members' weights.
    pub weight: u32,
    /// Whether it is given to no new device.
    pub is_draining: bool,
    /// Subnets whose devices it serves before others; none means no preference.
    pub subnets: Vec<Network>,
}

impl MemberSettings {
    /// Its config in the table of members.
    pub fn config(&self) -> MemberConfig {
        MemberConfig {
            tftp_port: self.tftp_port,
            weight: self.weight,
            is_draining: self.is_draining,
            subnets: self.subnets.clone(),
            ..MemberConfig::new(self.member.clone())
        }
    }

    /// Its address, where it is an IPv4 one: only that can stand in DHCPv4's fields.
    pub fn address_v4(&self) -> Option<Ipv4Addr> {
        match self.member.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        }
    }
}
