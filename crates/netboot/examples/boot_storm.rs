//! A boot storm: many simulated iPXE clients at once against one boot server on another host. Each asks DHCP, fetches the
//! script that DHCP names and then some files, from the address that it was leased. Used by `bench/netboot`.
//!
//! ```text
//! boot_storm --server 10.64.0.1 --relay 10.64.0.2 --clients 2000 --file /boot/kernel=/tmp/kernel …
//! ```
//!
//! The clients sit behind one relay agent, which is this program: `giaddr` is the relay's address, and the server has
//! a subnet that both belong to. Where this host takes the whole pool for its own (`ip route add local POOL dev lo`)
//! a lease can be used at once, so that the server sees as many addresses as clients. The result is one JSON object on standard output.

use std::collections::HashMap;
use std::error::Error;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use goldwire_netboot::Mac;
use goldwire_netboot::dhcp::{Message, MessageType, code};
use goldwire_netboot::fuzzing::dhcp::SIZE_MAX;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// iPXE's first and longest wait for an answer (src/net/udp/dhcp.c).
const DHCP_WAIT_MIN: Duration = Duration::from_secs(1);
const DHCP_WAIT_MAX: Duration = Duration::from_secs(10);
/// A connection without a byte for this long is given up, as scripts do with `--timeout`.
const HTTP_IDLE_MAX: Duration = Duration::from_secs(20);
/// What iPXE waits when Retry-After is a date (src/net/tcp/httpcore.c).
const RETRY_AFTER_OF_A_DATE: u64 = 5;
/// Response heads are shorter; what is longer is no answer to us.
const HEAD_MAX: usize = 16 << 10;

#[tokio::main]
async fn main() -> Outcome<()> {
    let wanted = Arc::new(Wanted::from_arguments()?);
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    let _ = socket.set_recv_buffer_size(8 << 20);
    socket.bind(&SocketAddrV4::new(wanted.relay, 67).into())?;
    let relay = Arc::new(Relay {
        socket: UdpSocket::from_std(socket.into())?,
        waiting: Mutex::default(),
        address: wanted.relay,
        server: SocketAddrV4::new(wanted.server, 67),
    });
    tokio::spawn(Arc::clone(&relay).receive());

    let counts = Arc::new(Counts::default());
    let start = Instant::now();
    let mut clients = Vec::new();
    for number in 0..wanted.clients {
        let (wanted, relay, counts) = (Arc::clone(&wanted), Arc::clone(&relay), Arc::clone(&counts));
        clients.push(tokio::spawn(async move {
            sleep(wanted.spread.mul_f64(f64::from(number) / f64::from(wanted.clients))).await;
            let begin = Instant::now();
            let boot = timeout(wanted.patience, boot(number, &wanted, &relay, &counts));
            boot.await.unwrap_or_else(|_| Err("not booted in time".into())).map(|()| begin.elapsed())
        }));
    }
    let mut times = Vec::new();
    let mut failures = Vec::new();
    for client in clients {
        match client.await? {
            Ok(time) => times.push(time.as_secs_f64()),
            Err(error) => failures.push(error.to_string()),
        }
    }
    let wall = start.elapsed().as_secs_f64();
    report(&mut times, &failures, wall, &counts)
}

/// What was asked for.
struct Wanted {
    server: Ipv4Addr,
    relay: Ipv4Addr,
    clients: u32,
    /// The clients start evenly over this time.
    spread: Duration,
    /// How long a client may take.
    patience: Duration,
    /// Path on the server of the script, and what has to come.
    files: Vec<(String, Vec<u8>)>,
}

impl Wanted {
    fn from_arguments() -> Outcome<Self> {
        let mut wanted = Self {
            server: Ipv4Addr::LOCALHOST,
            relay: Ipv4Addr::new(127, 0, 0, 2),
            clients: 100,
            spread: Duration::ZERO,
            patience: Duration::from_secs(300),
            files: Vec::new(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--server" => wanted.server = value.parse()?,
                "--relay" => wanted.relay = value.parse()?,
                "--clients" => wanted.clients = value.parse()?,
                "--spread-s" => wanted.spread = Duration::try_from_secs_f64(value.parse()?)?,
                "--patience-s" => wanted.patience = Duration::try_from_secs_f64(value.parse()?)?,
                "--file" => {
                    let (path, local) = value.split_once('=').ok_or("--file PATH=LOCAL-FILE")?;
                    wanted.files.push((path.to_owned(), std::fs::read(local)?));
                }
                _ => return Err(format!("{name} is unknown").into()),
            }
        }
        Ok(wanted)
    }
}

#[derive(Default)]
struct Counts {
    dhcp_resent: AtomicU64,
    dhcp_refused: AtomicU64,
    put_off: AtomicU64,
    http_failures: AtomicU64,
    bytes: AtomicU64,
}

/// The relay agent: one socket, answers sorted by transaction.
struct Relay {
    socket: UdpSocket,
    waiting: Mutex<HashMap<u32, mpsc::UnboundedSender<Message>>>,
    address: Ipv4Addr,
    server: SocketAddrV4,
}

impl Relay {
    async fn receive(self: Arc<Self>) {
        let mut bytes = [0; 4096];
        while let Ok(count) = self.socket.recv(&mut bytes).await {
            if let Ok(message) = Message::decode(&bytes[..count]) {
                let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(client) = waiting.get(&message.xid) {
                    let _ = client.send(message);
                }
            }
        }
    }

    /// Sends until an answer of the kind comes, or a refusal, less and less often.
    async fn ask(
        &self,
        question: &Message,
        kind: MessageType,
        answers: &mut mpsc::UnboundedReceiver<Message>,
        counts: &Counts,
    ) -> Outcome<Message> {
        let bytes = question.encode(SIZE_MAX);
        let mut wait = DHCP_WAIT_MIN;
        loop {
            self.socket.send_to(&bytes, SocketAddr::V4(self.server)).await?;
            let until = tokio::time::Instant::now() + wait;
            while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.recv()).await {
                match answer.kind() {
                    Some(found) if found == kind => return Ok(answer),
                    Some(MessageType::NAK) => return Ok(answer),
                    _ => {}
                }
            }
            counts.dhcp_resent.fetch_add(1, Ordering::Relaxed);
            wait = (wait * 2).min(DHCP_WAIT_MAX);
        }
    }
}

async fn boot(number: u32, wanted: &Wanted, relay: &Relay, counts: &Counts) -> Outcome<()> {
    let (address, script) = loop {
        if let Some(found) = configure(number, relay, counts).await? {
            break found;
        }
        // RFC 2131 §3.1: a client that was refused begins again.
        counts.dhcp_refused.fetch_add(1, Ordering::Relaxed);
        sleep(DHCP_WAIT_MIN).await;
    };
    let mut browser = Browser { address, connection: None, counts };
    let (host, path) = split_url(&script)?;
    let text = browser.fetch(host, path, None).await?;
    if !text.starts_with(b"#!ipxe") {
        return Err(format!("{script} is no script").into());
    }
    for (path, content) in &wanted.files {
        browser.fetch(host, path, Some(content)).await?;
    }
    Ok(())
}

/// DISCOVER, OFFER, REQUEST, ACK as iPXE does it: the address, and the URL in option 67 or `file`; none when it was
/// refused.
async fn configure(number: u32, relay: &Relay, counts: &Counts) -> Outcome<Option<(Ipv4Addr, String)>> {
    let [_, b, c, d] = number.to_be_bytes();
    let mac = Mac([0x52, 0x54, 0, b, c, d]);
    // Not consecutive, as those of real clients are not.
    let xid = number.wrapping_mul(0x9e37_79b1);
    let (sender, mut answers) = mpsc::unbounded_channel();
    relay.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(xid, sender);
    let mut message = Message::request(MessageType::DISCOVER, mac, xid);
    (message.giaddr, message.hops) = (relay.address, 1);
    let mut uuid = [0; 17];
    uuid[11..].copy_from_slice(&mac.0);
    let options = &mut message.options;
    options.set(code::MESSAGE_SIZE_MAX, 1472_u16.to_be_bytes());
    options.set(code::CLIENT_ARCH, [0, 0]);
    options.set(code::CLIENT_NDI, [1, 2, 1]);
    options.set(code::VENDOR_CLASS, "PXEClient:Arch:00000:UNDI:002001");
    options.set(code::USER_CLASS, "iPXE");
    options.set(code::PARAMETER_LIST, [1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 119, 128, 175, 203]);
    options.set(code::IPXE, [0xb1, 5, 1, 0x1a, 0xf4, 0x10, 0, 0x13, 1, 1, 0xeb, 3, 1, 0, 0]);
    options.set(code::CLIENT_ID, [&[1][..], &mac.0].concat());
    options.set(code::CLIENT_UUID, uuid);
    let offer = relay.ask(&message, MessageType::OFFER, &mut answers, counts).await?;
    let server = offer.options.address(code::SERVER_ID).ok_or("an offer without a server")?;
    message.options.set(code::MESSAGE_TYPE, [MessageType::REQUEST.0]);
    message.options.set(code::SERVER_ID, server.octets());
    message.options.set(code::REQUESTED_ADDRESS, offer.yiaddr.octets());
    let ack = relay.ask(&message, MessageType::ACK, &mut answers, counts).await?;
    relay.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&xid);
    if ack.kind() == Some(MessageType::NAK) {
        return Ok(None);
    }
    let name = ack.options.get(code::BOOT_FILE).unwrap_or(&ack.file);
    let name = name.strip_suffix(&[0]).unwrap_or(name);
    Ok(Some((ack.yiaddr, String::from_utf8(name.to_vec())?)))
}

fn split_url(url: &str) -> Outcome<(SocketAddr, &str)> {
    let rest = url.strip_prefix("http://").ok_or_else(|| format!("{url:?} is no http URL"))?;
    let slash = rest.find('/').ok_or("a URL without a path")?;
    let (host, path) = rest.split_at(slash);
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    Ok((host.parse()?, path))
}

/// Fetches as iPXE does: one connection for everything, and patience where the server asks for it.
struct Browser<'a> {
    address: Ipv4Addr,
    connection: Option<TcpStream>,
    counts: &'a Counts,
}

impl Browser<'_> {
    async fn fetch(&mut self, host: SocketAddr, path: &str, content: Option<&[u8]>) -> Outcome<Vec<u8>> {
        loop {
            match self.try_fetch(host, path, content).await {
                Ok(Fetched::Body(body)) => return Ok(body),
                Ok(Fetched::Later(seconds)) => {
                    self.counts.put_off.fetch_add(1, Ordering::Relaxed);
                    self.connection = None;
                    sleep(Duration::from_secs(seconds)).await;
                }
                Ok(Fetched::Wrong(why)) => return Err(format!("{path}: {why}").into()),
                Err(_) => {
                    // As a script that tries again.
                    self.counts.http_failures.fetch_add(1, Ordering::Relaxed);
                    self.connection = None;
                    sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    async fn try_fetch(&mut self, host: SocketAddr, path: &str, content: Option<&[u8]>) -> Outcome<Fetched> {
        let mut stream = match self.connection.take() {
            Some(stream) => stream,
            None => {
                let socket = TcpSocket::new_v4()?;
                socket.bind(SocketAddrV4::new(self.address, 0).into())?;
                timeout(HTTP_IDLE_MAX, socket.connect(host)).await??
            }
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nConnection: keep-alive\r\nUser-Agent: iPXE/1.0.0+git-20190125.36a4c85-5.1\r\n\
             Host: {host}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        let mut buffer = vec![0; 64 << 10];
        let mut head = Vec::new();
        let end = loop {
            let count = timeout(HTTP_IDLE_MAX, stream.read(&mut buffer)).await??;
            head.extend_from_slice(&buffer[..count]);
            if let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            if count == 0 || head.len() > HEAD_MAX {
                return Err("no response head".into());
            }
        };
        let mut rest = head.split_off(end);
        let head = Head::parse(&head)?;
        match (head.status, head.retry_after) {
            (503, Some(seconds)) => return Ok(Fetched::Later(seconds)),
            (500..600, _) => return Err(format!("status {}", head.status).into()),
            _ => {}
        }
        if head.status != 200 {
            return Ok(Fetched::Wrong(format!("status {}", head.status)));
        }
        let mut body = Vec::new();
        let mut length = 0;
        loop {
            let is_right = content.is_none_or(|content| content[length..].starts_with(&rest));
            if !is_right {
                return Ok(Fetched::Wrong(format!("wrong bytes after {length}")));
            }
            length += rest.len();
            self.counts.bytes.fetch_add(rest.len() as u64, Ordering::Relaxed);
            if content.is_none() {
                body.extend_from_slice(&rest);
            }
            if length >= head.length {
                break;
            }
            let count = timeout(HTTP_IDLE_MAX, stream.read(&mut buffer)).await??;
            if count == 0 {
                return Err("the connection ended".into());
            }
            rest.clear();
            rest.extend_from_slice(&buffer[..count]);
        }
        if content.is_some_and(|content| content.len() != length) {
            return Ok(Fetched::Wrong(format!("{length} bytes")));
        }
        if head.is_kept {
            self.connection = Some(stream);
        }
        Ok(Fetched::Body(body))
    }
}

enum Fetched {
    /// The content; empty where it was compared as it came.
    Body(Vec<u8>),
    /// The server asks to come again after these seconds.
    Later(u64),
    /// Trying again does not help.
    Wrong(String),
}

struct Head {
    status: u16,
    length: usize,
    retry_after: Option<u64>,
    is_kept: bool,
}

impl Head {
    fn parse(bytes: &[u8]) -> Outcome<Self> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        response.parse(bytes)?;
        let mut head =
            Self { status: response.code.unwrap_or(0), length: 0, retry_after: None, is_kept: true };
        for header in response.headers.iter() {
            let value = std::str::from_utf8(header.value)?;
            match header.name.to_ascii_lowercase().as_str() {
                "content-length" => head.length = value.parse()?,
                "retry-after" => head.retry_after = Some(value.parse().unwrap_or(RETRY_AFTER_OF_A_DATE)),
                "connection" => head.is_kept = !value.eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        Ok(head)
    }
}

fn report(times: &mut [f64], failures: &[String], wall: f64, counts: &Counts) -> Outcome<()> {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| {
        times.get((times.len() as f64 * share) as usize).or(times.last()).copied().unwrap_or(0.0)
    };
    let (sum, squares) =
        times.iter().fold((0.0, 0.0), |(sum, squares), time| (sum + time, squares + time * time));
    // Jain's index: 1 when all take the same time, 1/n when one takes it all.
    let fairness = if squares > 0.0 { sum * sum / (times.len() as f64 * squares) } else { 0.0 };
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{{\"booted\": {}, \"failed\": {}, \"wall_s\": {wall:.3}, \"first_s\": {:.3}, \"median_s\": {:.3}, \
         \"p99_s\": {:.3}, \"last_s\": {:.3}, \"jain\": {fairness:.4}, \"dhcp_resent\": {}, \"dhcp_refused\": {}, \"put_off\": {}, \
         \"http_failures\": {}, \"mib\": {:.1}, \"reason\": {:?}}}",
        times.len(),
        failures.len(),
        at(0.0),
        at(0.5),
        at(0.99),
        at(1.0),
        counts.dhcp_resent.load(Ordering::Relaxed),
        counts.dhcp_refused.load(Ordering::Relaxed),
        counts.put_off.load(Ordering::Relaxed),
        counts.http_failures.load(Ordering::Relaxed),
        counts.bytes.load(Ordering::Relaxed) as f64 / f64::from(1 << 20),
        failures.first().map_or("", String::as_str),
    )?;
    Ok(())
}
