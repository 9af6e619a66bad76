//! Sockets of one server that would be in each other's way: the second one that is bound would be refused.

use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;

use toml::Spanned;

use super::file::File;
use super::settings::{DhcpMode, Settings};
use crate::config::{Collector, Several};

/// Where DHCP is heard (RFC 2131; PXE 2.1) and DHCPv6 (RFC 8415).
const DHCP: [u16; 2] = [67, 4011];
const DHCP6: u16 = 547;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transport {
    Tcp,
    Udp,
}

/// A socket that the file asks for.
struct Wanted {
    key: &'static str,
    transport: Transport,
    address: SocketAddr,
    /// None where it is the default.
    span: Option<Range<usize>>,
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.key, self.address)
    }
}

impl Wanted {
    /// Whether the system would refuse one of the two. With port 0 it picks one that is free.
    fn excludes(&self, other: &Self) -> bool {
        let (own, others) = (self.address, other.address);
        let is_one = own.ip() == others.ip() || own.ip().is_unspecified() || others.ip().is_unspecified();
        self.transport == other.transport
            && own.port() == others.port()
            && own.port() != 0
            && own.is_ipv4() == others.is_ipv4()
            && is_one
    }
}

pub(super) fn check(settings: &Settings, file: &File, problems: &mut Collector<'_>) {
    let wanted = wanted(settings, file);
    for (at, later) in wanted.iter().enumerate() {
        let Some(earlier) = wanted[..at].iter().find(|earlier| earlier.excludes(later)) else { continue };
        // Of two defaults none is in the other's way.
        let Some(span) = later.span.clone().or_else(|| earlier.span.clone()) else { continue };
        problems.error_with_hint(
            span,
            format!("{later} and {earlier} cannot both be listened on"),
            Some("give one of them another port, or other addresses".into()),
        );
    }
    let udp = wanted.iter().filter(|wanted| wanted.transport == Transport::Udp);
    for (wanted, span) in udp.filter_map(|wanted| Some((wanted, wanted.span.clone()?))) {
        let port = wanted.address.port();
        let is_dhcp = settings.dhcp.mode != DhcpMode::Off && wanted.address.is_ipv4() && DHCP.contains(&port);
        let is_dhcp6 = !settings.dhcp6_interfaces.is_empty() && wanted.address.is_ipv6() && port == DHCP6;
        if is_dhcp || is_dhcp6 {
            let hint = "give it another port";
            problems.error_with_hint(span, format!("{wanted} has a port of DHCP"), Some(hint.into()));
        }
    }
}

fn wanted(settings: &Settings, file: &File) -> Vec<Wanted> {
    let of_list = |written: &Option<Spanned<Several<SocketAddr>>>| written.as_ref().map(Spanned::span);
    let tls = settings.http.tls.as_ref().map(|tls| &tls.listen[..]).unwrap_or_default();
    let one = |address: &Option<SocketAddr>| address.iter().copied().collect::<Vec<_>>();
    let span_of_metrics = file.metrics.listen.as_ref().map(Spanned::span);
    let span_of_heartbeat = file.heartbeat.listen.as_ref().map(Spanned::span);
    let lists = [
        ("http.listen", Transport::Tcp, settings.http.listen.clone(), of_list(&file.http.listen)),
        ("http.tls-listen", Transport::Tcp, tls.to_vec(), of_list(&file.http.tls_listen)),
        ("metrics.listen", Transport::Tcp, one(&settings.metrics_listen), span_of_metrics),
        ("tftp.listen", Transport::Udp, settings.tftp.listen.clone(), of_list(&file.tftp.listen)),
        ("heartbeat.listen", Transport::Udp, one(&settings.heartbeat.listen), span_of_heartbeat),
    ];
    lists
        .into_iter()
        .flat_map(|(key, transport, addresses, span)| {
            addresses.into_iter().map(move |address| Wanted { key, transport, address, span: span.clone() })
        })
        .collect()
}
