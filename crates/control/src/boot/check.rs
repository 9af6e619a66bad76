//! From what was written to what is true: servers, members, subnets. Every problem is found in one go.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use goldwire_netboot::dhcp::AddressRange;
use goldwire_netboot::member::{MEMBERS_MAX, NAME_MAX};
use goldwire_netboot::{Member, NetworkV4};
use goldwire_stdx::{is_host_name, shell_path};
use toml::Spanned;

use super::agreement::Agreement;
use super::file::{self, File};
use super::media;
use super::ports;
use super::serve;
use super::settings::{
    Dhcp, DhcpMode, Heartbeat, Http, MemberSettings, Reservation, Server, Settings, Subnet, Tftp, Tls,
};
use super::url::is_host;
use crate::config::{Collector, did_you_mean};
use crate::config::{Parsed, Secret, Several};

/// A key shorter than this can be guessed.
const SECRET_LENGTH_MIN: usize = 16;
/// A key of no more bits can be found offline by who heard one heartbeat or token.
const SECRET_BITS_MIN: u32 = 80;
/// `goldwire boot secret` writes 65 bytes. A larger file is another one, named by mistake.
const SECRET_FILE_MAX: u64 = 4 << 10;
/// No client asks for more, and IP carries no more (RFC 2348: 65464).
const BLOCK_SIZE_RANGE: std::ops::RangeInclusive<u64> = 512..=65464;
/// A frame of Ethernet less the headers of IPv4, UDP and TFTP.
const BLOCK_SIZE: u16 = 1468;
/// RFC 7440 allows 65535. What is in flight is lost together, and 64 is where measurements stop to gain.
const WINDOW_SIZE: u16 = 64;
const TRANSFERS_MAX: u32 = 512;
/// More seconds than this is for ever (RFC 2131, 3.3), and no lease is.
const LEASE_MAX: Duration = Duration::from_secs(u32::MAX as u64 - 1);
/// Linux' IFNAMSIZ less the NUL.
const INTERFACE_NAME_MAX: usize = 15;
const LEASE: Duration = Duration::from_secs(12 * 3600);
/// Long enough for firmware to load iPXE and iPXE its script; each asks anew.
const BOOT_LEASE: Duration = Duration::from_secs(600);
/// Three failures make a member dead, within the 2 s in which it has to leave the answers.
const PROBE_INTERVAL: Duration = Duration::from_millis(400);

/// Makes settings of a file. What is wrong goes into `problems`; the result is used only if that holds no error.
pub(super) fn settings(
    file: &File,
    path: &Path,
    known: Option<&Secret>,
    problems: &mut Collector<'_>,
) -> Settings {
    let folder = path.parent().unwrap_or(Path::new("."));
    let members = members(&file.members, problems);
    let secret = file.server.secret_file.as_ref().and_then(|file| secret(file, folder, known, problems));
    let server = server(file, folder, &members, secret, problems);
    let mut subnets = subnets(file, &server.name, &members, problems);
    reserve_for_devices(file, &mut subnets, problems);
    check_reservations(&subnets, &members, file, problems);
    let media = media::media(file, folder, &server, problems);
    let settings = Settings {
        server,
        http: http(&file.http, folder, problems),
        tftp: tftp(&file.tftp, problems),
        dhcp: dhcp(&file.dhcp, problems),
        dhcp6_interfaces: interfaces(&file.dhcp6.interfaces, problems),
        metrics_listen: value(&file.metrics.listen),
        heartbeat: Heartbeat {
            listen: value(&file.heartbeat.listen),
            announce_to: list(&file.heartbeat.announce_to),
            accepts_found: file.heartbeat.accept_found.unwrap_or(false),
            probe_interval: value(&file.heartbeat.probe_interval).map_or(PROBE_INTERVAL, |wait| wait.0),
        },
        media,
        subnets,
        members,
        agreement: Agreement::default(),
    };
    check_together(&settings, file, problems);
    warn_of_open_tftp(&settings, file, problems);
    media::check_media(&settings, file, problems);
    settings
}

fn value<T: Clone>(written: &Option<Spanned<Parsed<T>>>) -> Option<T> {
    written.as_ref().map(|value| value.get_ref().0.clone())
}

fn list<T: Clone>(written: &Option<Spanned<Several<T>>>) -> Vec<T> {
    written.as_ref().map(|list| list.get_ref().0.clone()).unwrap_or_default()
}

fn text(written: &Option<Spanned<String>>) -> Option<String> {
    written.as_ref().map(|text| text.get_ref().clone())
}

fn span_of<T>(written: &Option<Spanned<T>>) -> Range<usize> {
    written.as_ref().map_or(0..0, Spanned::span)
}

/// The header of a table, or what stands in its place.
fn header<T>(table: &Spanned<T>) -> Range<usize> {
    table.span()
}

/// Names of interfaces, which are looked up in a folder of the system's.
fn interfaces(written: &Option<Spanned<Several<String>>>, problems: &mut Collector<'_>) -> Vec<String> {
    let names = list(written);
    let is_strange = |c: char| c == '/' || c.is_whitespace() || c.is_control();
    let is_name = |name: &str| {
        (1..=INTERFACE_NAME_MAX).contains(&name.len())
            && ![".", ".."].contains(&name)
            && !name.contains(is_strange)
    };
    for name in names.iter().filter(|name| !is_name(name)) {
        let hint = "`ip -br link` shows this machine's interfaces";
        problems.error_with_hint(
            span_of(written),
            format!("no interface is called {name:?}"),
            Some(hint.into()),
        );
    }
    names
}

/// A name that DHCP tells as a host's (option 12).
pub(super) fn check_host_name(written: &Option<Spanned<String>>, problems: &mut Collector<'_>) {
    let Some(name) = written.as_ref().filter(|name| !is_host_name(name.get_ref())) else { return };
    let hint = "a host name has letters, digits and -, such as seat-17";
    problems.error_with_hint(name.span(), format!("{:?} is no host name", name.get_ref()), Some(hint.into()));
}

/// A domain that DHCP tells (options 15 and 119).
fn domains<'a>(
    span: Range<usize>,
    names: impl IntoIterator<Item = &'a String>,
    problems: &mut Collector<'_>,
) {
    for name in names.into_iter().filter(|name| !is_host_name(name)) {
        let hint = "write for example lab.example";
        problems.error_with_hint(span.clone(), format!("{name:?} is no domain name"), Some(hint.into()));
    }
}

fn listen(written: &Option<Spanned<Several<SocketAddr>>>, port: u16) -> Vec<SocketAddr> {
    let usual = || vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))];
    written.as_ref().map_or_else(usual, |list| list.get_ref().0.clone())
}

fn server(
    file: &File,
    folder: &Path,
    members: &[MemberSettings],
    secret: Option<Secret>,
    problems: &mut Collector<'_>,
) -> Server {
    let written = &file.server;
    let names = || members.iter().map(|member| member.member.name.as_str());
    let name = match &written.name {
        Some(name) => {
            let may_be_there = members.is_empty() || file.unread.members;
            if !may_be_there && !names().any(|known| known == name.get_ref()) {
                let hint = did_you_mean(name.get_ref(), names());
                problems.error_with_hint(
                    name.span(),
                    format!("no [[member]] is called {:?}", name.get_ref()),
                    hint,
                );
            }
            name.get_ref().clone()
        }
        None => {
            let host = host_name();
            match members {
                [only] => only.member.name.clone(),
                [] => host,
                _ => {
                    let may_be_there = file.unread.server || file.unread.members;
                    if !may_be_there && !names().any(|known| known == host) {
                        problems.error_of_file(
                            format!("no [[member]] is called {host:?}, as this host is"),
                            "write the name of this server's member as server.name",
                        );
                    }
                    host
                }
            }
        }
    };
    let place = |written: &Option<Spanned<PathBuf>>, usual: &str| {
        written.as_ref().map_or_else(|| PathBuf::from(usual), |path| folder.join(path.get_ref()))
    };
    let root = place(&written.root, "/srv/boot");
    if !root.is_dir() && !file.unread.server {
        problems.warning(
            written.root.as_ref().map(Spanned::span),
            format!("server.root is no folder: {}", root.display()),
        );
    }
    let ipxe = place(&written.ipxe, "/usr/lib/ipxe");
    let user = text(&written.user);
    Server {
        name,
        state: written
            .state
            .as_ref()
            .map_or_else(|| "/var/lib/goldwire/boot".into(), |state| folder.join(state)),
        root,
        ipxe,
        user,
        secret,
        templates: written.templates.as_ref().map(|templates| folder.join(templates.get_ref())),
    }
}

fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Reads the secret. A server that was root then and is not now stays with the one it has: a new one needs a restart
/// anyway.
fn secret(
    file: &Spanned<PathBuf>,
    folder: &Path,
    known: Option<&Secret>,
    problems: &mut Collector<'_>,
) -> Option<Secret> {
    let path = folder.join(file.get_ref());
    let fault = |error: std::io::Error| format!("read {}: {error}", path.display());
    let read = || goldwire_stdx::read_bounded(&path, SECRET_FILE_MAX);
    let bytes = match fs::metadata(&path).and_then(|about| Ok((about, read()?))) {
        Ok((about, _)) if about.permissions().mode() & 0o007 != 0 => {
            problems.error_with_hint(
                file.span(),
                format!("{} can be read by everybody", path.display()),
                Some(format!("chmod o= {}", shell_path(&path))),
            );
            return None;
        }
        Ok((_, bytes)) => bytes.trim_ascii().to_vec(),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied && known.is_some() => {
            return known.cloned();
        }
        Err(error) => {
            let hint = "goldwire boot secret FILE makes one; copy it to every member";
            problems.error_with_hint(file.span(), fault(error), Some(hint.into()));
            return None;
        }
    };
    if bytes.len() < SECRET_LENGTH_MIN {
        problems.error_with_hint(
            file.span(),
            format!(
                "the key in {} has {} bytes; {SECRET_LENGTH_MIN} is the least",
                path.display(),
                bytes.len()
            ),
            Some(format!("(umask 077 && openssl rand -hex 32 > {})", path.display())),
        );
        return None;
    }
    let bits = bits_at_most(&bytes);
    if bits <= SECRET_BITS_MIN {
        problems.warning_with_hint(
            Some(file.span()),
            format!("the key in {} can be guessed: it has {bits} bits at most", path.display()),
            "one heartbeat is enough to try keys offline; goldwire boot secret FILE makes a good one",
        );
    }
    Some(Secret::new(bytes))
}

/// What a key of so many characters, of so many different ones, can be worth if each was drawn for itself. One that is no
/// text was not typed, and each of its bytes counts in full.
fn bits_at_most(key: &[u8]) -> u32 {
    let (length, different) = match std::str::from_utf8(key) {
        Ok(text) => (text.chars().count(), text.chars().collect::<std::collections::HashSet<_>>().len()),
        Err(_) => (key.len(), 256),
    };
    // The logarithm of the eighth power is in eighths of bits: rounded to whole ones, three characters were worth two.
    let eighths = (different.max(1) as u128).saturating_pow(8).ilog2();
    u32::try_from(length).unwrap_or(u32::MAX).saturating_mul(eighths) / 8
}

fn http(written: &file::Http, folder: &Path, problems: &mut Collector<'_>) -> Http {
    let tls = match (&written.certificate, &written.key) {
        (Some(certificate), Some(key)) => {
            for path in [certificate, key] {
                if !folder.join(path.get_ref()).is_file() {
                    problems
                        .warning(Some(path.span()), format!("no such file: {}", path.get_ref().display()));
                }
            }
            Some(Tls {
                listen: listen(&written.tls_listen, 443),
                certificate: folder.join(certificate.get_ref()),
                key: folder.join(key.get_ref()),
            })
        }
        (None, None) => {
            if let Some(listen) = &written.tls_listen {
                problems.error(listen.span(), "http.tls-listen needs http.certificate and http.key");
            }
            None
        }
        (Some(one), None) | (None, Some(one)) => {
            problems.error(one.span(), "http.certificate and http.key are needed together");
            None
        }
    };
    if let Some(zero) = written.transfers_max.as_ref().filter(|max| *max.get_ref() == 0) {
        problems.error(zero.span(), "http.transfers-max has to be at least 1");
    }
    Http {
        listen: listen(&written.listen, 80),
        tls,
        transfers_max: written.transfers_max.as_ref().map_or(TRANSFERS_MAX, |max| *max.get_ref()) as usize,
        proxy_protocol_from: list(&written.proxy_protocol_from),
    }
}

fn tftp(written: &file::Tftp, problems: &mut Collector<'_>) -> Tftp {
    if let Some(zero) = written.window_size_max.as_ref().filter(|max| *max.get_ref() == 0) {
        problems.error(zero.span(), "tftp.window-size-max has to be at least 1");
    }
    Tftp {
        listen: listen(&written.listen, 69),
        is_single_port: written.single_port.as_ref().is_some_and(|single| *single.get_ref()),
        block_size_max: block_size(&written.block_size_max, problems).unwrap_or(BLOCK_SIZE),
        window_size_max: written.window_size_max.as_ref().map_or(WINDOW_SIZE, |max| *max.get_ref()),
        allow_from: list(&written.allow_from),
    }
}

fn block_size(
    written: &Option<Spanned<Parsed<goldwire_stdx::ByteSize>>>,
    problems: &mut Collector<'_>,
) -> Option<u16> {
    let written = written.as_ref()?;
    let size = written.get_ref().0.0;
    if !BLOCK_SIZE_RANGE.contains(&size) {
        problems.error(written.span(), format!("a TFTP block has 512 to 65464 bytes, not {size}"));
    }
    u16::try_from(size).ok()
}

fn dhcp(written: &file::Dhcp, problems: &mut Collector<'_>) -> Dhcp {
    const MODES: [(&str, DhcpMode); 3] =
        [("server", DhcpMode::Server), ("proxy", DhcpMode::Proxy), ("off", DhcpMode::Off)];
    let mode = match &written.mode {
        None => DhcpMode::Off,
        Some(mode) => {
            let known = MODES.iter().find(|(name, _)| name == mode.get_ref());
            if known.is_none() {
                problems.error(mode.span(), "dhcp.mode is \"server\", \"proxy\" or \"off\"");
            }
            known.map_or(DhcpMode::Off, |(_, mode)| *mode)
        }
    };
    Dhcp {
        mode,
        interfaces: interfaces(&written.interfaces, problems),
        is_authoritative: written.authoritative.unwrap_or(false),
        is_probing: written.probe.unwrap_or(false),
        lease_query_from: list(&written.lease_query_from),
        relays: list(&written.relays),
    }
}

fn members(written: &[Spanned<file::Member>], problems: &mut Collector<'_>) -> Vec<MemberSettings> {
    let mut members: Vec<MemberSettings> = Vec::new();
    if let Some(surplus) = written.get(MEMBERS_MAX) {
        problems.error(header(surplus), format!("a group has at most {MEMBERS_MAX} members"));
    }
    if written.is_empty() && !problems.has_error() {
        problems.error_of_file(
            "no [[member]]: devices have to be told where to load from",
            "add [[member]] with a name and the address at which devices reach this server",
        );
    }
    for table in written {
        let member = table.get_ref();
        let (Some(name), Some(address)) = (text(&member.name), value(&member.address)) else {
            problems.error(header(table), "a member needs a name and an address");
            continue;
        };
        if address.is_unspecified() || address.is_multicast() {
            problems.error(span_of(&member.address), format!("devices cannot reach a member at {address}"));
        }
        for other in &members {
            if other.member.name == name {
                problems.error(span_of(&member.name), format!("another member is called {name:?}"));
            }
        }
        if name.is_empty() || name.len() > NAME_MAX {
            problems.error(span_of(&member.name), format!("a member's name has 1 to {NAME_MAX} bytes"));
        }
        if let Some(name) = member.https_name.as_ref().filter(|name| !is_host_or_v6(name.get_ref())) {
            let hint = "write the name in its certificate, such as boot1.example";
            let message = format!("{:?} is no name or address of a host", name.get_ref());
            problems.error_with_hint(name.span(), message, Some(hint.into()));
        }
        let heard = value(&member.heartbeat).map(|address| address.port());
        let ports = [
            ("http-port", member.http_port),
            ("https-port", member.https_port),
            ("tftp-port", member.tftp_port),
            ("the port of heartbeat", heard),
        ];
        for (key, _) in ports.iter().filter(|(_, port)| *port == Some(0)) {
            problems
                .error(header(table), format!("{key} cannot be 0: devices and members have to be told one"));
        }
        members.push(MemberSettings {
            member: Member {
                name,
                address,
                http_port: member.http_port.unwrap_or(80),
                https_port: member.https_port,
                https_name: text(&member.https_name),
            },
            tftp_port: member.tftp_port.unwrap_or(69),
            heartbeat: value(&member.heartbeat),
            weight: member.weight.as_ref().map_or(1, |weight| *weight.get_ref()),
            is_draining: member.drain.unwrap_or(false),
            subnets: list(&member.subnets),
        });
        if let Some(weight) = member.weight.as_ref().filter(|weight| *weight.get_ref() == 0) {
            problems.error_with_hint(
                weight.span(),
                "a weight is at least 1",
                Some("drain = true gives a member no devices".into()),
            );
        }
    }
    members
}

/// URLs put an IPv6 address into brackets only where the member has no name.
fn is_host_or_v6(name: &str) -> bool {
    let in_brackets = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    is_host(name) || in_brackets.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok())
}

fn subnets(file: &File, own: &str, members: &[MemberSettings], problems: &mut Collector<'_>) -> Vec<Subnet> {
    let mut subnets: Vec<Subnet> = Vec::new();
    for table in &file.subnets {
        let subnet = table.get_ref();
        let Some(network) = value(&subnet.network) else {
            problems.error(header(table), "a subnet needs a network");
            continue;
        };
        let span = span_of(&subnet.network);
        let Some(network) = network.v4() else {
            problems
                .error(span, "addresses are given out by DHCPv4 only; leave IPv6 to router advertisements");
            continue;
        };
        if let Some(other) = subnets.iter().find(|other| other.network.overlaps(network)) {
            problems.error(span, format!("overlaps the subnet {}", other.network));
        }
        let (pools, peer_pools) = pools(subnet, own, members, file.unread.members, problems);
        let routers: Vec<Ipv4Addr> = list(&subnet.router);
        let all: Vec<AddressRange> = pools.iter().chain(&peer_pools).copied().collect();
        check_pools(subnet, network, &all, &routers, &subnets, problems);
        if let Some((pool, member)) =
            all.iter().find_map(|pool| Some((pool, member_at(members, |own| pool.contains(own))?)))
        {
            let message = format!("the pool {pool} holds the address of the member {}", member.member.name);
            problems.error(pools_span(subnet), message);
        }
        for router in &routers {
            if !network.contains(*router) {
                problems.error(span_of(&subnet.router), format!("the router {router} is outside {network}"));
            } else if is_of_nobody(network, *router) {
                let message = format!("the router {router} is the network's own or its broadcast address");
                problems.error(span_of(&subnet.router), message);
            }
        }
        domains(span_of(&subnet.domain), text(&subnet.domain).iter(), problems);
        domains(span_of(&subnet.search), &list(&subnet.search), problems);
        if let Some(mtu) = subnet.mtu.as_ref().filter(|mtu| *mtu.get_ref() < 576) {
            problems.error(mtu.span(), "an MTU is at least 576 (RFC 791)");
        }
        let lease = value(&subnet.lease).map_or(LEASE, |wait| wait.0);
        let boot_lease = value(&subnet.boot_lease).map_or(BOOT_LEASE, |wait| wait.0);
        for (written, wait) in [(&subnet.lease, lease), (&subnet.boot_lease, boot_lease)] {
            if wait < Duration::from_secs(30) {
                problems.error(span_of(written), "a lease shorter than 30s ends while firmware still loads");
            } else if wait > LEASE_MAX {
                problems
                    .error(span_of(written), "a lease ends within 136 years: DHCP counts 32 bits of seconds");
            }
        }
        let reservations =
            subnet.reservation.iter().filter_map(|table| reservation(table, problems)).collect();
        if let Some(name) = subnet.shared_network.as_ref().filter(|name| name.get_ref().is_empty()) {
            problems.error(name.span(), "a shared network needs a name");
        }
        subnets.push(Subnet {
            network,
            shared_network: text(&subnet.shared_network),
            pools,
            peer_pools,
            routers,
            dns: list(&subnet.dns),
            ntp: list(&subnet.ntp),
            domain: text(&subnet.domain),
            search: list(&subnet.search),
            mtu: subnet.mtu.as_ref().map(|mtu| *mtu.get_ref()),
            routes: subnet.routes.iter().filter_map(|table| route(table, problems)).collect(),
            lease,
            boot_lease,
            tftp_block_size_max: block_size(&subnet.tftp_block_size_max, problems),
            reservations,
        });
    }
    subnets
}

/// The ranges of this member, and those of the others. `has_others` says that there are members who could not be read.
fn pools(
    subnet: &file::Subnet,
    own: &str,
    members: &[MemberSettings],
    has_others: bool,
    problems: &mut Collector<'_>,
) -> (Vec<AddressRange>, Vec<AddressRange>) {
    if let Some(pools) = &subnet.pools {
        if !subnet.pools_of.is_empty() {
            problems.error(pools.span(), "pools and pools-of exclude each other");
        } else if members.len() > 1 {
            problems.warning(
                Some(pools.span()),
                "if several members give addresses here, each needs ranges of its own: pools-of",
            );
        }
        return (pools.get_ref().0.clone(), Vec::new());
    }
    let (mut pools, mut peer_pools) = (Vec::new(), Vec::new());
    for (name, ranges) in &subnet.pools_of {
        let names = || members.iter().map(|member| member.member.name.as_str());
        if !has_others && !names().any(|known| known == name.get_ref()) {
            let hint = did_you_mean(name.get_ref(), names());
            problems.error_with_hint(
                name.span(),
                format!("no [[member]] is called {:?}", name.get_ref()),
                hint,
            );
        }
        let owned = if name.get_ref() == own { &mut pools } else { &mut peer_pools };
        owned.extend(&ranges.get_ref().0);
    }
    (pools, peer_pools)
}

fn check_pools(
    subnet: &file::Subnet,
    network: NetworkV4,
    pools: &[AddressRange],
    routers: &[Ipv4Addr],
    others: &[Subnet],
    problems: &mut Collector<'_>,
) {
    let span = pools_span(subnet);
    for (at, pool) in pools.iter().enumerate() {
        if !network.contains(pool.first) || !network.contains(pool.last) {
            problems.error(span.clone(), format!("the pool {pool} is outside {network}"));
        }
        let earlier = pools[..at]
            .iter()
            .chain(others.iter().flat_map(|other| other.pools.iter().chain(&other.peer_pools)));
        for other in earlier.filter(|other| other.contains(pool.first) || pool.contains(other.first)) {
            problems.error(span.clone(), format!("the pool {pool} overlaps {other}"));
        }
        for router in routers.iter().filter(|router| pool.contains(**router)) {
            problems.error(span.clone(), format!("the pool {pool} holds the router {router}"));
        }
    }
}

fn pools_span(subnet: &file::Subnet) -> Range<usize> {
    let of_member = subnet.pools_of.keys().next().map(Spanned::span);
    subnet.pools.as_ref().map(Spanned::span).or(of_member).unwrap_or(0..0)
}

fn route(table: &Spanned<file::Route>, problems: &mut Collector<'_>) -> Option<(NetworkV4, Ipv4Addr)> {
    let route = table.get_ref();
    let found = value(&route.to).and_then(|to| to.v4()).zip(value(&route.via));
    if found.is_none() {
        problems.error(table.span(), "a route is { to = \"10.9.0.0/16\", via = \"10.0.0.1\" }");
    }
    found
}

fn reservation(table: &Spanned<file::Reservation>, problems: &mut Collector<'_>) -> Option<Reservation> {
    let written = table.get_ref();
    let (mac, uuid) = (value(&written.mac), value(&written.uuid));
    let client_id = value(&written.client_id).map(|bytes| bytes.0);
    let address = value(&written.address);
    if mac.is_none() && uuid.is_none() && client_id.is_none() {
        problems.error(table.span(), "a reservation needs mac, uuid or client-id");
        return None;
    }
    if address.is_none() {
        problems.error(table.span(), "a reservation needs an address");
    }
    check_host_name(&written.name, problems);
    Some(Reservation { mac, uuid, client_id, address: address?, name: text(&written.name) })
}

/// A device with an address has a reservation in the subnet of the address.
fn reserve_for_devices(file: &File, subnets: &mut [Subnet], problems: &mut Collector<'_>) {
    for device in file.devices.iter().map(Spanned::get_ref) {
        let Some(address) = value(&device.address) else { continue };
        match subnets.iter_mut().find(|subnet| subnet.network.contains(address)) {
            Some(subnet) => subnet.reservations.push(Reservation {
                mac: value(&device.mac),
                uuid: value(&device.uuid),
                client_id: None,
                address,
                name: text(&device.name),
            }),
            None if file.unread.subnets => {}
            None => {
                problems.error(span_of(&device.address), format!("no [[subnet]] has the address {address}"))
            }
        }
    }
}

/// The member whose IPv4 address is meant.
fn member_at(members: &[MemberSettings], is_it: impl Fn(Ipv4Addr) -> bool) -> Option<&MemberSettings> {
    members.iter().find(|member| member.address_v4().is_some_and(&is_it))
}

/// Whether no machine can have an address of the network (RFC 3021 for the smallest ones).
fn is_of_nobody(network: NetworkV4, address: Ipv4Addr) -> bool {
    network.prefix() < 31 && [network.address(), network.broadcast()].contains(&address)
}

/// Reserved addresses lie in their subnet, and nobody shares one.
fn check_reservations(
    subnets: &[Subnet],
    members: &[MemberSettings],
    file: &File,
    problems: &mut Collector<'_>,
) {
    let mut spans: HashMap<Ipv4Addr, Vec<Range<usize>>> = HashMap::new();
    let tables = file.subnets.iter().flat_map(|subnet| &subnet.get_ref().reservation);
    let reserved = tables.map(|table| &table.get_ref().address);
    for written in reserved.chain(file.devices.iter().map(|device| &device.get_ref().address)).flatten() {
        spans.entry(written.get_ref().0).or_default().push(written.span());
    }
    for (address, places) in &spans {
        for again in places.iter().skip(1) {
            problems.error(again.clone(), format!("{address} is reserved already"));
        }
    }
    for subnet in subnets {
        for reservation in &subnet.reservations {
            let address = reservation.address;
            let span = || spans.get(&address).and_then(|places| places.first()).cloned().unwrap_or(0..0);
            if !subnet.network.contains(address) {
                problems.error(span(), format!("{address} is outside the subnet {}", subnet.network));
            } else if subnet.routers.contains(&address) {
                problems.error(span(), format!("{address} is the router's"));
            } else if let Some(member) = member_at(members, |own| own == address) {
                problems.error(span(), format!("{address} is the member {}'s", member.member.name));
            } else if is_of_nobody(subnet.network, address) {
                let what = "is the network's own or its broadcast address";
                problems.error(span(), format!("{address} {what}"));
            }
        }
    }
}

/// A certificate's name in URLs has to be looked up, and where we give out addresses, the name server is ours to tell.
fn warn_of_names(settings: &Settings, file: &File, problems: &mut Collector<'_>) {
    let is_secure = |profile: &file::Profile| profile.secure.as_ref().is_some_and(|secure| *secure.get_ref());
    let name = settings.members.iter().find_map(|member| {
        member.member.https_port?;
        member.member.https_name.as_ref().filter(|name| name.parse::<IpAddr>().is_err())
    });
    let Some(name) = name.filter(|_| file.profiles.iter().any(|(_, profile)| is_secure(profile))) else {
        return;
    };
    if settings.dhcp.mode != DhcpMode::Server {
        return;
    }
    for table in file.subnets.iter().filter(|table| list(&table.get_ref().dns).is_empty()) {
        problems.warning(
            Some(span_of(&table.get_ref().network)),
            format!("https URLs name {name:?}, and this subnet tells no dns that could look it up"),
        );
    }
}

/// Tokens stand in what DHCP answers and in scripts, and nowhere else.
fn warn_of_tokens(settings: &Settings, file: &File, problems: &mut Collector<'_>) {
    let token =
        |profile: &file::Profile| profile.token.as_ref().filter(|token| *token.get_ref()).map(Spanned::span);
    let Some(span) = file.profiles.iter().find_map(|(_, profile)| token(profile)) else { return };
    if settings.dhcp.mode == DhcpMode::Off && settings.dhcp6_interfaces.is_empty() {
        problems.warning_with_hint(
            Some(span.clone()),
            "no device is told a token: dhcp.mode is \"off\", and a fixed boot file or autoexec.ipxe holds none",
            "dhcp.mode = \"proxy\" tells tokens beside another DHCP server; relays have to ask this server too",
        );
    }
    if settings.media.is_served {
        problems.warning_with_hint(
            Some(span),
            "who boots from a boot medium has no token, and gets no script of a profile with token",
            "give these devices a profile without token, or have them boot by DHCP",
        );
    }
}

/// With one port for all, whoever can write a client's address into a packet can have whole files sent to it.
fn warn_of_open_tftp(settings: &Settings, file: &File, problems: &mut Collector<'_>) {
    if settings.tftp.is_single_port && settings.answers_anybody() {
        problems.warning_with_hint(
            file.tftp.single_port.as_ref().map(Spanned::span),
            "in single-port mode, who can forge addresses can have files sent to anybody",
            "tftp.allow-from names the networks whose clients are answered",
        );
    }
}

/// Any host can call itself a relay, and say behind which port it is.
fn warn_of_relays(settings: &Settings, file: &File, problems: &mut Collector<'_>) {
    if settings.dhcp.mode == DhcpMode::Off || !settings.dhcp.relays.is_empty() {
        return;
    }
    for table in &file.groups {
        let group = table.get_ref();
        let circuit = group.circuit_id.as_ref().map(|ids| ("circuit-id", ids.span()));
        let remote = group.remote_id.as_ref().map(|ids| ("remote-id", ids.span()));
        for (key, span) in circuit.into_iter().chain(remote) {
            problems.warning_with_hint(
                Some(span),
                format!("any host can say that it has this {key}: every relay is believed"),
                "name the networks of the relays in dhcp.relays",
            );
        }
    }
}

/// What one table needs of another.
fn check_together(settings: &Settings, file: &File, problems: &mut Collector<'_>) {
    if settings.dhcp.mode == DhcpMode::Server && settings.subnets.is_empty() && !problems.has_error() {
        problems.error_with_hint(
            span_of(&file.dhcp.mode),
            "a DHCP server needs a [[subnet]]",
            Some("mode = \"proxy\" leaves addresses to another server".into()),
        );
    }
    if settings.dhcp.mode != DhcpMode::Off
        && !settings.members.is_empty()
        && settings.members.iter().all(|member| member.address_v4().is_none())
    {
        problems.error(span_of(&file.dhcp.mode), "DHCPv4 can name no member: none has an IPv4 address");
    }
    for (member, table) in settings.members.iter().zip(&file.members) {
        if settings.dhcp.mode != DhcpMode::Off && member.address_v4().is_none() {
            let span = span_of(&table.get_ref().address);
            problems.warning(Some(span), "DHCPv4 never names this member: its address is an IPv6 one");
        }
    }
    if settings.heartbeat.listen.is_some() && file.server.secret_file.is_none() && !file.unread.server {
        problems.error(span_of(&file.heartbeat.listen), "heartbeats need server.secret-file");
    }
    if let (None, Some(announce_to)) = (settings.heartbeat.listen, &file.heartbeat.announce_to) {
        problems.error(announce_to.span(), "heartbeat.announce-to needs heartbeat.listen");
    }
    for (at, (member, table)) in settings.members.iter().zip(&file.members).enumerate() {
        let place = |member: &MemberSettings| (member.member.address, member.member.http_port);
        if let Some(other) = settings.members[..at].iter().find(|other| place(other) == place(member)) {
            let span = span_of(&table.get_ref().address);
            let message =
                format!("the members {} and {} are in one place", other.member.name, member.member.name);
            let hint = "each member has an address, or at least an http-port, of its own";
            problems.error_with_hint(span, message, Some(hint.into()));
        }
    }
    let can_be_secure = settings.members.iter().any(|member| member.member.https_port.is_some());
    for (name, profile) in &file.profiles {
        if profile.secure.as_ref().is_some_and(|secure| *secure.get_ref())
            && !can_be_secure
            && !file.unread.members
        {
            let span = profile.secure.as_ref().map_or(name.span(), Spanned::span);
            let hint = "give the members that serve HTTPS an https-port";
            problems.error_with_hint(span, "secure, but no member has an https-port", Some(hint.into()));
        }
    }
    if settings.dhcp.mode == DhcpMode::Server {
        for (subnet, table) in settings.subnets.iter().zip(&file.subnets) {
            let plan = subnet.plan();
            if plan.pools.is_empty() && plan.peer_pools.is_empty() && plan.reservations.is_empty() {
                let hint = "give it pools, or reserve addresses for devices";
                let message =
                    format!("nobody gets an address in {}: no pool, no reservation", subnet.network);
                problems.warning_with_hint(Some(table.span()), message, hint);
            }
        }
    }
    for address in
        settings.heartbeat.announce_to.iter().filter(|to| to.port() == 0 || to.ip().is_unspecified())
    {
        let hint = "write for example 239.255.0.7:7007, or the network's broadcast address";
        let span = span_of(&file.heartbeat.announce_to);
        problems.error_with_hint(span, format!("nobody hears what is sent to {address}"), Some(hint.into()));
    }
    for (member, table) in settings.members.iter().zip(&file.members) {
        if let Some(problem) = serve::heartbeat_problem(settings, member) {
            let hint = "a name in heartbeats has letters, digits, '-', '_' and '.' alone";
            problems.error_with_hint(span_of(&table.get_ref().name), problem, Some(hint.into()));
        }
    }
    ports::check(settings, file, problems);
    warn_of_names(settings, file, problems);
    warn_of_tokens(settings, file, problems);
    warn_of_relays(settings, file, problems);
    let interval = settings.heartbeat.probe_interval;
    if interval.is_zero() || interval > Duration::from_secs(60) {
        problems.error(span_of(&file.heartbeat.probe_interval), "probe-interval is between 1ms and 60s");
    } else if interval > Duration::from_millis(600) {
        let span = Some(span_of(&file.heartbeat.probe_interval));
        problems.warning(span, "with this interval, a dead member is named for longer than 2 s");
    }
    if let (Some(own), None) = (settings.own_member(), &settings.http.tls)
        && own.member.https_port.is_some()
    {
        problems.warning(None, "this member has an https-port, and no http.certificate");
    }
    let unspecified = |address: &SocketAddr| matches!(address.ip(), IpAddr::V4(ip) if ip.is_unspecified());
    if settings.http.listen.iter().all(|address| !unspecified(address))
        && let Some(own) = settings.own_member()
        && !settings.http.listen.is_empty()
        && !settings.http.listen.iter().any(|address| address.port() == own.member.http_port)
    {
        problems.warning(
            Some(span_of(&file.http.listen)),
            format!("devices are sent to port {}, which is not listened on", own.member.http_port),
        );
    }
}
