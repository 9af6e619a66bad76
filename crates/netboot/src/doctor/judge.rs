//! Which of the offers a firmware takes, and what is wrong with them.
//!
//! The rules are those of the firmware, not of the RFCs: EDK2's `PxeBcDhcp4.c` and `HttpBootDhcp4.c`, iPXE's `dhcp.c`,
//! and what was seen of the real ones.

use std::net::Ipv4Addr;

use super::{Client, Fetch, Finding, Offer, Problem};
use crate::dhcp::wire::{MessageType, code};
use crate::member::Member;
use crate::place::Place;

/// BOOTP's field holds 128 bytes with its final NUL; longer names have to be in option 67.
const FILE_FIELD: usize = 128;
/// Some firmware takes no longer URL (Dell: 255 bytes).
const URL_MAX: usize = 255;
/// Names of iPXE's own programs, which iPXE must not be given again.
const IPXE_PROGRAMS: [&str; 6] = ["undionly.", "ipxe.efi", "snponly.efi", "ipxe.pxe", "ipxe.lkrn", "snp.efi"];

/// What a firmware makes of the offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) findings: Vec<Finding>,
    /// The address it asks for: server and address.
    pub(super) lease: Option<(Ipv4Addr, Ipv4Addr)>,
    pub(super) next: Option<Next>,
}

/// What follows the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It fetches this.
    Fetch(Fetch),
    /// It asks these servers in turn, on port 4011, what to fetch; for an entry of the menu if there is one.
    Ask { servers: Vec<Ipv4Addr>, item: Option<u16> },
}

impl Offer {
    /// EDK2 and iPXE tell a proxy by this.
    fn is_proxy(&self) -> bool {
        self.message.yiaddr.is_unspecified()
    }

    pub(super) fn server(&self) -> Ipv4Addr {
        self.message.options.address(code::SERVER_ID).unwrap_or(*self.from.ip())
    }

    fn has_class(&self, class: &str) -> bool {
        self.message.options.get(code::VENDOR_CLASS).is_some_and(|value| value.starts_with(class.as_bytes()))
    }

    /// Option 67, or the field.
    pub(super) fn file(&self) -> Option<String> {
        let option = self.message.options.get(code::BOOT_FILE).map(|value| {
            let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
            &value[..end]
        });
        let file = option.filter(|value| !value.is_empty()).unwrap_or(&self.message.file);
        (!file.is_empty()).then(|| String::from_utf8_lossy(file).into_owned())
    }

    /// `siaddr`, or an address in option 66.
    fn next_server(&self) -> Option<Ipv4Addr> {
        let named = || {
            let value = self.message.options.get(code::TFTP_SERVER)?;
            String::from_utf8_lossy(value).trim_end_matches('\0').parse().ok()
        };
        Some(self.message.siaddr).filter(|address| !address.is_unspecified()).or_else(named)
    }

    /// A sub-option of option 43 (PXE 2.1 §2.3, table 2-4).
    fn boot_option(&self, wanted: u8) -> Option<&[u8]> {
        sub_option(self.message.options.get(code::VENDOR_SPECIFIC)?, wanted)
    }

    /// Whether option 43 says how to find the boot server: discovery control, servers or a menu.
    fn has_discovery(&self) -> bool {
        [6, 7, 8, 9, 10].into_iter().any(|wanted| self.boot_option(wanted).is_some())
    }

    /// The type of the menu's first entry, which is taken when nobody chooses (43.9: type u16, length u8, text).
    fn first_item(&self) -> Option<u16> {
        let menu = self.boot_option(9)?;
        Some(u16::from_be_bytes([*menu.first()?, *menu.get(1)?]))
    }

    /// The first boot server of this type, or of the first type (43.8: lists of type u16, count u8, addresses).
    fn boot_server(&self, item: Option<u16>) -> Option<Ipv4Addr> {
        let mut list = self.boot_option(8)?;
        while let [high, low, count, rest @ ..] = list {
            let (here, after) = rest.split_at_checked(4 * usize::from(*count))?;
            if item.is_none_or(|item| item == u16::from_be_bytes([*high, *low]))
                && let [a, b, c, d, ..] = *here
            {
                return Some(Ipv4Addr::new(a, b, c, d));
            }
            list = after;
        }
        None
    }

    /// Discovery control, bit 3: do not discover, take the file that is named here.
    fn skips_discovery(&self) -> bool {
        self.boot_option(6).is_some_and(|value| value.first().is_some_and(|bits| bits & 8 != 0))
    }
}

/// Judges what came within the waiting time. `router` addresses are not told apart from servers by the firmware, but a
/// next server that is the router is nearly always a mistake. `members` give addresses as one service.
pub(super) fn judge(client: Client, offers: &[Offer], members: &[Member]) -> Verdict {
    let mut verdict = Verdict::default();
    let of_kind = |kind| offers.iter().filter(move |offer| offer.message.kind() == Some(kind));
    for refusal in of_kind(MessageType::NAK) {
        verdict.findings.push(Finding::error(
            Problem::Refused,
            client,
            format!("{} refuses a machine that has asked for nothing yet", refusal.server()),
        ));
    }
    let full: Vec<&Offer> = of_kind(MessageType::OFFER).filter(|offer| !offer.is_proxy()).collect();
    let proxies: Vec<&Offer> = of_kind(MessageType::OFFER).filter(|offer| offer.is_proxy()).collect();
    let Some(first) = full.first() else {
        let (problem, what) = match proxies.first() {
            None => (Problem::NoOffer, "nobody offered anything".to_owned()),
            Some(proxy) => {
                (Problem::NoAddress, format!("only {} answered, and offers no address", proxy.server()))
            }
        };
        verdict.findings.push(Finding::error(problem, client, what));
        return verdict;
    };
    let mut servers: Vec<Ipv4Addr> = full.iter().map(|offer| offer.server()).collect();
    servers.sort_unstable();
    servers.dedup();
    if servers.len() > 1 {
        let names: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let names = names.join(", ");
        let is_member = |server: &Ipv4Addr| members.iter().any(|member| member.address == *server);
        verdict.findings.push(if servers.iter().all(is_member) {
            Finding::ok("member-offers", format!("members of the boot file offer addresses: {names}"))
        } else {
            Finding::warning(
                "two-dhcp-servers",
                format!("{} servers offer addresses: {names}", servers.len()),
                "which one a machine takes depends on who is faster",
                "make sure that they are one service (split pools, failover; with --config the boot file's members \
                 count as one), or stop the foreign one",
            )
        });
    }
    for proxy in &proxies {
        verdict
            .findings
            .push(Finding::ok("proxy-offer", format!("{} is a proxyDHCP server", proxy.server())));
    }
    let taken = match client {
        Client::BiosPxe | Client::EfiPxe => pxe(client, &full, &proxies, &mut verdict),
        Client::HttpBoot => http_boot(&full, &proxies, &mut verdict),
        Client::Ipxe => ipxe(&full, &proxies, &mut verdict),
    };
    let lease = taken.unwrap_or(first);
    verdict
        .findings
        .insert(0, Finding::ok("offer", format!("{} offers {}", lease.server(), lease.message.yiaddr)));
    verdict.lease = Some((lease.server(), lease.message.yiaddr));
    verdict
}

/// What an answer on port 4011 says to fetch.
pub(super) fn judge_boot_reply(client: Client, reply: &Offer) -> Result<Fetch, Finding> {
    let Some(file) = reply.file() else {
        return Err(Finding::error(
            Problem::ProxySilent,
            client,
            format!("{} answers on port 4011 without naming a boot file", reply.server()),
        ));
    };
    fetch_of(client, reply, file, reply.server())
}

/// PXE: of offers with the class `PXEClient`, those with discovery options come first, then those that send to port
/// 4011, then plain DHCP with a boot file (EDK2; PXE 2.1 §2.4.2 leaves the order to the client). Gives the offer whose
/// address is taken.
fn pxe<'a>(
    client: Client,
    full: &[&'a Offer],
    proxies: &[&'a Offer],
    verdict: &mut Verdict,
) -> Option<&'a Offer> {
    let is_pxe = |offer: &&&Offer| offer.has_class("PXEClient");
    let all = || full.iter().chain(proxies.iter());
    let with_discovery = all().filter(is_pxe).find(|offer| offer.has_discovery());
    let with_class = all().filter(is_pxe).find(|offer| !offer.has_discovery());
    let plain = full.iter().find(|offer| !offer.has_class("PXEClient") && offer.file().is_some());
    let own = |offer: &'a Offer| Some(if offer.is_proxy() { full[0] } else { offer });

    if let Some(offer) = with_discovery {
        verdict.next = match offer.file() {
            Some(file) if offer.skips_discovery() => {
                keep(fetch_of(client, offer, file, offer.server()), verdict)
            }
            _ => {
                let item = offer.first_item();
                Some(Next::Ask { servers: vec![offer.boot_server(item).unwrap_or(offer.server())], item })
            }
        };
        return own(offer);
    }
    // A BIOS that is told a file by plain DHCP takes it rather than ask around.
    if let Some(offer) = plain.filter(|_| client == Client::BiosPxe || with_class.is_none()) {
        let file = offer.file().unwrap_or_default();
        verdict.next = keep(fetch_of(client, offer, file, offer.server()), verdict);
        return Some(offer);
    }
    if let Some(offer) = with_class {
        // EDK2 keeps one BINL offer of a DHCP server, or all of proxies, and asks the next server of each, or where
        // that is 0 the sender (PxeBcRetryBinlOffer). A BIOS asks the sender.
        let asked: Vec<&Offer> = match offer.is_proxy() {
            true => proxies.iter().filter(is_pxe).copied().collect(),
            false => vec![offer],
        };
        let mut servers = Vec::new();
        for offer in asked {
            let next =
                Some(offer.message.siaddr).filter(|at| client == Client::EfiPxe && !at.is_unspecified());
            let server = next.unwrap_or(offer.server());
            if server != offer.server() {
                verdict.findings.push(Finding::warning(
                    "60-without-43",
                    format!("{} sends option 60 \"PXEClient\" without boot options in 43", offer.server()),
                    &format!("UEFI firmware then asks port 4011 of the next server, {server}"),
                    "add 43 = 06 01 08 ff beside server and file, or leave siaddr 0 and answer on port 4011",
                ));
            }
            servers.push(server);
        }
        servers.dedup();
        verdict.next = Some(Next::Ask { servers, item: None });
        return own(offer);
    }
    let what = match full.iter().find(|offer| offer.has_class("HTTPClient")) {
        Some(offer) => format!("{} answers as if to HTTP Boot (option 60)", offer.server()),
        None => "no offer names a boot file".into(),
    };
    verdict.findings.push(Finding::error(Problem::NoBootFile, client, what));
    None
}

/// HTTP Boot: only offers of class `HTTPClient` with a URI count; addresses before names (EDK2, `HttpBootDhcp4.c`).
fn http_boot<'a>(full: &[&'a Offer], proxies: &[&'a Offer], verdict: &mut Verdict) -> Option<&'a Offer> {
    let client = Client::HttpBoot;
    let candidates: Vec<(&Offer, String)> = full
        .iter()
        .chain(proxies.iter())
        .filter(|offer| offer.has_class("HTTPClient"))
        .filter_map(|offer| Some((*offer, offer.file()?)))
        .collect();
    let is_address = |url: &str| host_of(url).is_some_and(|host| host.parse::<Ipv4Addr>().is_ok());
    let has_dns = |offer: &Offer| offer.message.options.has(code::DNS);
    let chosen = candidates
        .iter()
        .find(|(_, url)| is_address(url))
        .or_else(|| candidates.iter().find(|(_, url)| is_url(url)))
        .or(candidates.first());
    let Some((offer, url)) = chosen else {
        let named = full.iter().chain(proxies.iter()).find(|offer| offer.file().is_some());
        let what = match named {
            Some(offer) => format!(
                "{} names {} without option 60 \"HTTPClient\", so HTTP Boot ignores the offer",
                offer.server(),
                offer.file().unwrap_or_default()
            ),
            None => "no offer with option 60 \"HTTPClient\" names a URL".into(),
        };
        verdict.findings.push(Finding::error(Problem::NoBootFile, client, what));
        return None;
    };
    let lease = if offer.is_proxy() { full[0] } else { offer };
    if !is_url(url) {
        let what = format!("{} names {url}, which is no URL", offer.server());
        verdict.findings.push(Finding::error(Problem::FileForHttp, client, what));
        return Some(lease);
    }
    if !is_address(url) && !has_dns(offer) && !has_dns(lease) {
        let what = format!("{url} has a name, and no DNS server is offered (option 6)");
        verdict.findings.push(Finding::error(Problem::NoDns, client, what));
        return Some(lease);
    }
    long_url(url, verdict);
    if url.contains(['?', '&']) {
        verdict.findings.push(Finding::warning(
            "url-query",
            format!("{url} has a query"),
            "firmware and management controllers stumble over ? and &",
            "put everything into the path",
        ));
    }
    verdict.next = Some(Next::Fetch(Fetch::Url(url.clone())));
    Some(lease)
}

/// iPXE: the file of the DHCP offer or of a proxy, a URL or a name; the proxy's wins.
fn ipxe<'a>(full: &[&'a Offer], proxies: &[&'a Offer], verdict: &mut Verdict) -> Option<&'a Offer> {
    let client = Client::Ipxe;
    // 175.1 ranks offers, as a signed byte (iPXE's dhcp.c).
    let rank = |offer: &Offer| {
        let value =
            offer.message.options.get(code::IPXE).and_then(|inner| sub_option(inner, 1)?.first().copied());
        value.map_or(0, u8::cast_signed)
    };
    let mut lease = full[0];
    for offer in full {
        if rank(offer) > rank(lease) {
            lease = offer;
        }
    }
    let skips_proxies = lease
        .message
        .options
        .get(code::IPXE)
        .and_then(|inner| sub_option(inner, 0xb0)?.first().copied())
        .is_some_and(|value| value != 0);
    let proxy = proxies.iter().find(|offer| offer.has_class("PXEClient")).filter(|_| !skips_proxies);
    if !skips_proxies && proxy.is_none() {
        verdict.findings.push(Finding::warning(
            "ipxe-proxy-wait",
            format!("{} does not say that there is no proxyDHCP server", lease.server()),
            "iPXE waits two seconds more for one",
            "send option 175 with b0 01 01 (no-pxedhcp)",
        ));
    }
    if let Some(proxy) = proxy
        && !proxy.message.siaddr.is_unspecified()
        && let Some(file) = proxy.file()
    {
        verdict.next = keep(fetch_of(client, proxy, file, proxy.server()), verdict);
        return Some(lease);
    }
    match (lease.file(), proxy) {
        (Some(file), _) => verdict.next = keep(fetch_of(client, lease, file, lease.server()), verdict),
        (None, Some(proxy)) if proxy.boot_option(9).is_none() => {
            let what = format!(
                "{} is a proxy that names {}: iPXE then asks its port 4011 and ignores the answer",
                proxy.server(),
                if proxy.file().is_some() { "no next server (siaddr is 0)" } else { "no boot file" }
            );
            verdict.findings.push(Finding::error(Problem::ProxySilent, client, what));
        }
        _ => verdict.findings.push(Finding::error(Problem::NoBootFile, client, "no offer names a boot file")),
    }
    Some(lease)
}

/// Where a file is fetched from, by the firmware's own rules.
fn fetch_of(client: Client, offer: &Offer, file: String, sender: Ipv4Addr) -> Result<Fetch, Finding> {
    let is_url = is_url(&file);
    if client == Client::Ipxe {
        let name = file.rsplit('/').next().unwrap_or(&file);
        if IPXE_PROGRAMS.iter().any(|program| name.starts_with(program)) {
            return Err(Finding::error(
                Problem::Loop,
                client,
                format!("{sender} gives iPXE {file}, which is iPXE"),
            ));
        }
        if is_url {
            return Ok(Fetch::Url(file));
        }
    } else if is_url {
        return Err(Finding::error(
            Problem::UrlForTftp,
            client,
            format!("{sender} gives PXE firmware {file}"),
        ));
    }
    match offer.next_server() {
        Some(server) => Ok(Fetch::Tftp { server, file }),
        None if client == Client::EfiPxe => Ok(Fetch::Tftp { server: sender, file }),
        None => Err(Finding::error(
            Problem::NoServer,
            client,
            format!("{sender} names {file} and no server: siaddr is 0 and option 66 holds no address"),
        )),
    }
}

/// Takes the fetch, or writes down why there is none; and what is odd about it.
fn keep(fetch: Result<Fetch, Finding>, verdict: &mut Verdict) -> Option<Next> {
    match fetch {
        Ok(fetch) => {
            if let Fetch::Url(url) = &fetch {
                long_url(url, verdict);
            }
            Some(Next::Fetch(fetch))
        }
        Err(finding) => {
            verdict.findings.push(finding);
            None
        }
    }
}

fn long_url(url: &str, verdict: &mut Verdict) {
    if url.len() > URL_MAX {
        verdict.findings.push(Finding::warning(
            "url-length",
            format!("the URL has {} bytes", url.len()),
            "some firmware takes 255 at most",
            "make it shorter",
        ));
    } else if url.len() >= FILE_FIELD {
        verdict.findings.push(Finding::ok(
            "url-length",
            format!("the URL has {} bytes, more than BOOTP's field", url.len()),
        ));
    }
}

/// What follows from an odd next server.
pub(super) fn next_server_is_router(fetch: &Fetch, lease: &Offer) -> Option<Finding> {
    let Fetch::Tftp { server, .. } = fetch else { return None };
    let routers = lease.message.options.get(code::ROUTER).unwrap_or(&[]);
    routers.chunks_exact(4).any(|router| router == server.octets()).then(|| {
        Finding::warning(
            "next-server-is-router",
            format!("the next server, {server}, is the router"),
            "a DHCP server that is not told a next server often puts itself there",
            "set next-server (siaddr) to the TFTP server",
        )
    })
}

fn is_url(file: &str) -> bool {
    matches!(Place::of(file), Place::Url(_))
}

pub(super) fn host_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?']).next()?;
    Some(host.rsplit_once(':').map_or(host, |(host, _)| host))
}

/// A sub-option of an encapsulated list: code, length, value.
fn sub_option(mut bytes: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [code, rest @ ..] = bytes {
        match code {
            0 => bytes = rest,
            255 => return None,
            _ => {
                let length = usize::from(*rest.first()?);
                let value = rest.get(1..1 + length)?;
                if *code == wanted {
                    return Some(value);
                }
                bytes = &rest[1 + length..];
            }
        }
    }
    None
}
