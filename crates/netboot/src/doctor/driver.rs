//! Sockets of the doctor: on an interface like a machine, or in the place of a relay. Either needs the right to bind a
//! port below 1024.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::judge::{self, Next, Verdict};
use super::{Client, Diagnosis, Fetch, Finding, Level, Offer, Problem, firmware, http, tftp};
use crate::device::Mac;
use crate::dhcp::wire::{Message, MessageType, RECEIVE_MAX};
use crate::member::Member;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
const PROXY_PORT: u16 = 4011;
/// Offers that are looked at; more is an attack or a loop.
const OFFERS_MAX: usize = 64;
/// How long a fetch may take in all.
const FETCH_TIMEOUT: Duration = Duration::from_secs(6);

/// How the DHCP servers are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// By broadcast on an interface. It needs an address of its own, by which is fetched.
    Interface(String),
    /// As a relay: one server is asked, by unicast, for the subnet in which `own` is.
    Relay {
        /// An address of this machine.
        own: Ipv4Addr,
        /// The DHCP server.
        server: Ipv4Addr,
    },
}

/// What the doctor examines.
#[derive(Clone, Debug)]
pub struct DoctorSettings {
    /// How the DHCP servers are reached.
    pub reach: Reach,
    /// As which machine; none for a random address that no machine has (locally administered).
    pub mac: Option<Mac>,
    /// Which firmware to play.
    pub clients: Vec<Client>,
    /// The boot servers: what they give is compared, and they count as one DHCP service. May be empty.
    pub members: Vec<Member>,
    /// How long offers are waited for: servers that probe an address first need three seconds.
    pub wait: Duration,
}

/// Why nothing could be examined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DoctorError {
    /// A socket could not be had.
    #[error("open a DHCP socket on {place}")]
    Open {
        /// Interface or address.
        place: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A message could not be sent.
    #[error("send to {to}")]
    Send {
        /// Whom to.
        to: SocketAddrV4,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Receiving failed.
    #[error("receive")]
    Receive(#[source] io::Error),
    /// No random numbers.
    #[error("get random numbers")]
    Random(#[source] getrandom::Error),
}

impl goldwire_stdx::Hints for DoctorError {}

/// Plays each client in turn. Takes a few seconds for each; every address that is taken is given back.
pub fn examine(settings: &DoctorSettings) -> Result<Vec<Diagnosis>, DoctorError> {
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(DoctorError::Random)?;
    let [a, b, c, d, e, f, xid @ ..] = random;
    // Bit 1: locally administered; bit 0 clear: one machine.
    let mac = settings.mac.unwrap_or(Mac([(a & 0xfc) | 2, b, c, d, e, f]));
    let wire = Wire::open(&settings.reach)?;
    let mut xid = u32::from_be_bytes(xid);
    let mut diagnoses = Vec::new();
    for client in &settings.clients {
        xid = xid.wrapping_add(1);
        let mut examination =
            Examination { wire: &wire, settings, client: *client, mac, findings: Vec::new() };
        examination.run(xid)?;
        diagnoses.push(Diagnosis { client: *client, findings: examination.findings });
    }
    Ok(diagnoses)
}

struct Examination<'a> {
    wire: &'a Wire,
    settings: &'a DoctorSettings,
    client: Client,
    mac: Mac,
    findings: Vec<Finding>,
}

impl Examination<'_> {
    fn run(&mut self, xid: u32) -> Result<(), DoctorError> {
        let mut uuid = [0x47; 16];
        uuid[10..].copy_from_slice(&self.mac.0);
        let discover = firmware::discover(self.client, self.mac, xid, uuid);
        // Twice, as firmware does: a lost packet is not a diagnosis.
        self.wire.send(&discover, self.wire.server)?;
        let mut offers = self.wire.gather(&discover, self.settings.wait / 2, |_| false)?;
        if offers.is_empty() {
            self.wire.send(&discover, self.wire.server)?;
        }
        offers.extend(self.wire.gather(&discover, self.settings.wait / 2, |_| false)?);
        let Verdict { findings, lease, next } = judge::judge(self.client, &offers, &self.settings.members);
        self.findings = findings;
        let Some((server, address)) = lease else { return Ok(()) };
        let is_confirmed = self.take(&discover, server, address)?;
        if is_confirmed {
            if let Some(fetch) = self.what_to_fetch(&discover, server, next)? {
                let lease =
                    offers.iter().find(|offer| offer.server() == server && offer.message.yiaddr == address);
                self.fetch(&fetch)?;
                // Only where nothing answers: in a small network one machine may well be everything.
                let silence = Problem::TftpTimeout.code(self.client);
                if self.findings.last().is_some_and(|last| last.level == Level::Error && last.code == silence)
                {
                    self.findings.extend(lease.and_then(|lease| judge::next_server_is_router(&fetch, lease)));
                }
            }
            let to = SocketAddrV4::new(server, SERVER_PORT);
            // Nobody confirms this, and a lease that stays runs out.
            let _ = self.wire.send(&firmware::release(&discover, server, address), to);
        }
        Ok(())
    }

    /// Asks for the address; a refusal from anybody is what a machine would hear too.
    fn take(&mut self, discover: &Message, server: Ipv4Addr, address: Ipv4Addr) -> Result<bool, DoctorError> {
        let request = firmware::request(discover, server, address);
        self.wire.send(&request, self.wire.server)?;
        let is_end = |offer: &Offer| offer.message.kind() == Some(MessageType::ACK);
        let answers = self.wire.gather(&request, self.settings.wait, is_end)?;
        let refusal = answers.iter().find(|answer| answer.message.kind() == Some(MessageType::NAK));
        if let Some(refusal) = refusal {
            let what = format!("{} refuses {address}, which {server} had offered", refusal.server());
            self.findings.push(Finding::error(Problem::Refused, self.client, what));
        }
        let is_confirmed = answers.iter().any(is_end);
        if is_confirmed {
            self.findings.push(Finding::ok("lease", format!("{server} confirms {address}")));
        } else if refusal.is_none() {
            let what = format!("{server} offers {address} and does not confirm it");
            self.findings.push(Finding::error(Problem::NoAck, self.client, what));
        }
        Ok(is_confirmed)
    }

    fn what_to_fetch(
        &mut self,
        discover: &Message,
        dhcp_server: Ipv4Addr,
        next: Option<Next>,
    ) -> Result<Option<Fetch>, DoctorError> {
        let (servers, item) = match next {
            None => return Ok(None),
            Some(Next::Fetch(fetch)) => return Ok(Some(fetch)),
            Some(Next::Ask { servers, item }) => (servers, item),
        };
        let mut silent = Vec::new();
        for server in servers {
            let to = SocketAddrV4::new(server, PROXY_PORT);
            // Answers go to this address, which has to be one that we have.
            let own = local_address(to).unwrap_or(Ipv4Addr::UNSPECIFIED);
            let question = firmware::boot_request(discover, own, item);
            let answers = match self.wire.send(&question, to) {
                Ok(()) => self.wire.gather(&question, self.settings.wait, |_| true)?,
                Err(_) => Vec::new(),
            };
            let Some(answer) = answers.first() else {
                let who = if server == dhcp_server { "the DHCP server" } else { "the boot server" };
                silent.push(format!("{who} {server} does not answer on port {PROXY_PORT}"));
                continue;
            };
            self.findings.push(Finding::ok("port-4011", format!("{server} answers on port {PROXY_PORT}")));
            for what in silent {
                let (why, hint) =
                    ("the machine waits for it before it asks the next", Problem::ProxySilent.hint());
                self.findings.push(Finding::warning("port-4011", what, why, hint));
            }
            return match judge::judge_boot_reply(self.client, answer) {
                Ok(fetch) => Ok(Some(fetch)),
                Err(finding) => {
                    self.findings.push(finding);
                    Ok(None)
                }
            };
        }
        self.findings.push(Finding::error(Problem::ProxySilent, self.client, silent.join("; ")));
        Ok(None)
    }

    fn fetch(&mut self, fetch: &Fetch) -> Result<(), DoctorError> {
        match fetch {
            Fetch::Url(url) => {
                let url = expand(url, self.mac);
                self.findings.extend(http::check(self.client, &url, &self.settings.members, FETCH_TIMEOUT));
            }
            Fetch::Tftp { server, file } => {
                let (findings, start) =
                    tftp::probe(self.client, *server, file, FETCH_TIMEOUT).map_err(DoctorError::Receive)?;
                self.findings.extend(findings);
                // A UEFI program begins with MZ; a BIOS starts anything.
                if self.client == Client::EfiPxe && start.is_some_and(|start| !start.starts_with(b"MZ")) {
                    let what = format!("{file} is no UEFI program");
                    self.findings.push(Finding::error(Problem::NotBootable, self.client, what));
                }
            }
        }
        Ok(())
    }
}

/// iPXE's variables in a URL, as far as the doctor has them.
fn expand(url: &str, mac: Mac) -> String {
    let mut url = url.to_owned();
    for card in ["net0/", "netX/", ""] {
        url = url.replace(&format!("${{{card}mac}}"), &mac.to_string().replace(':', "%3A"));
        url = url.replace(&format!("${{{card}mac:hexhyp}}"), &mac.hyphenated());
    }
    url.replace("${platform}", "efi").replace("${buildarch}", "x86_64")
}

/// Which of our addresses a packet to `to` would have.
fn local_address(to: SocketAddrV4) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(to).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

struct Wire {
    socket: UdpSocket,
    /// Where DISCOVER and REQUEST go.
    server: SocketAddrV4,
    relay: Option<Ipv4Addr>,
}

impl Wire {
    fn open(reach: &Reach) -> Result<Self, DoctorError> {
        let place = match reach {
            Reach::Interface(name) => name.clone(),
            Reach::Relay { own, .. } => own.to_string(),
        };
        let open = || -> io::Result<Self> {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            socket.set_reuse_address(true)?;
            match reach {
                Reach::Interface(name) => {
                    socket.set_broadcast(true)?;
                    socket.bind_device(Some(name.as_bytes()))?;
                    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, CLIENT_PORT).into())?;
                    let server = SocketAddrV4::new(Ipv4Addr::BROADCAST, SERVER_PORT);
                    Ok(Self { socket: socket.into(), server, relay: None })
                }
                Reach::Relay { own, server } => {
                    // Servers answer relays on the server port (RFC 2131 §4.1).
                    socket.bind(&SocketAddrV4::new(*own, SERVER_PORT).into())?;
                    let server = SocketAddrV4::new(*server, SERVER_PORT);
                    Ok(Self { socket: socket.into(), server, relay: Some(*own) })
                }
            }
        };
        open().map_err(|source| DoctorError::Open { place, source })
    }

    fn send(&self, message: &Message, to: SocketAddrV4) -> Result<(), DoctorError> {
        let mut message = message.clone();
        if let Some(own) = self.relay.filter(|_| to.port() == SERVER_PORT) {
            message.giaddr = own;
            message.hops = 1;
        }
        let bytes = message.encode(crate::dhcp::wire::SIZE_MAX);
        self.socket.send_to(&bytes, to).map(drop).map_err(|source| DoctorError::Send { to, source })
    }

    /// Collects answers to `request` for this long, or until one that is `enough`.
    fn gather(
        &self,
        request: &Message,
        time: Duration,
        enough: impl Fn(&Offer) -> bool,
    ) -> Result<Vec<Offer>, DoctorError> {
        let end = Instant::now() + time;
        let mut offers = Vec::new();
        let mut buffer = [0; RECEIVE_MAX];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || offers.len() >= OFFERS_MAX {
                return Ok(offers);
            }
            self.socket.set_read_timeout(Some(left)).map_err(DoctorError::Receive)?;
            let (length, from) = match self.socket.recv_from(&mut buffer) {
                Ok(received) => received,
                Err(error) if is_transient(&error) => continue,
                Err(error) => return Err(DoctorError::Receive(error)),
            };
            let SocketAddr::V4(from) = from else { continue };
            let Ok(message) = Message::decode(&buffer[..length]) else { continue };
            if message.op != 2 || message.xid != request.xid || message.chaddr != request.chaddr {
                continue;
            }
            let offer = Offer { from, message };
            let is_last = enough(&offer);
            offers.push(offer);
            if is_last {
                return Ok(offers);
            }
        }
    }
}

/// A port that nobody listens on answers by ICMP, which is silence to a firmware.
fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), ConnectionRefused | Interrupted | TimedOut | WouldBlock)
}
