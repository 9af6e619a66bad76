//! The TFTP front: datagrams passed on between a client and its member.
//!
//! A session answers its client from a port of its own, which only the client hears of, or, in single-port mode, from the
//! front's one port, so that NAT and other balancers on the way are no obstacle. Another socket of its own is for its
//! member, which may answer from port 69 or, as RFC 1350 has it, from another one. To members every client has the
//! front's address: rules by address cannot hold here.

mod places;
pub(crate) mod session;

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant as Clock;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::places::{Heard, Places};
use self::session::{Action, Session};
use super::{ATTEMPTS_MAX, Phase, Shared};
use crate::event::{Event, EventKind, Protocol};
use crate::member::MemberConfig;
use crate::tftp::{Mode, NOT_ALLOWED};

/// Datagrams of a client that wait for its session: more than a client sends without an answer.
const QUEUE_MAX: usize = 32;

/// Longest datagram from a client that means anything: a request with long options. ACKs have 4 bytes.
const CLIENT_DATAGRAM_MAX: usize = 2048;

/// Longest datagram from a member: RFC 2348's largest block and its header.
const MEMBER_DATAGRAM_MAX: usize = 65_464 + 4;

/// Why a write request is refused: error 2, access violation.
const READ_ONLY: &[u8] = b"\0\x05\0\x02this server is read-only\0";

/// Takes requests until the front stops, then waits for the sessions that are under way.
pub(super) async fn serve(socket: UdpSocket, shared: Arc<Shared>) {
    let socket = Arc::new(socket);
    let mut places = Places::default();
    let mut tasks = JoinSet::new();
    let mut bytes = vec![0; CLIENT_DATAGRAM_MAX];
    loop {
        let is_stopping = shared.phase() == Phase::Stopping;
        if is_stopping && tasks.is_empty() {
            return;
        }
        let (length, client) = tokio::select! {
            () = shared.reached(Phase::Stopping), if !is_stopping => continue,
            Some(ended) = tasks.join_next() => {
                if let Ok(client) = ended {
                    places.leave(client);
                }
                continue;
            }
            received = socket.recv_from(&mut bytes) => match received {
                Ok(received) => received,
                // What an earlier datagram met at a client that is gone.
                Err(_) => continue,
            },
        };
        if !shared.tftp.answers(client.ip()) {
            let kind = EventKind::Dropped { protocol: Protocol::Balance, reason: NOT_ALLOWED };
            shared.observer.observe(&Event { mac: None, address: Some(client.ip()), kind });
            continue;
        }
        let datagram = &bytes[..length];
        match datagram {
            [0, 2, ..] => {
                tell_refused(&shared, client.ip(), "", "a write request");
                let _ = socket.send_to(READ_ONLY, client).await;
            }
            [0, 1, ..] => {
                // A repeated request goes to its session, which knows whether it is one.
                if places.pass(client, datagram) || is_stopping {
                    continue;
                }
                let (queue, from_client) = mpsc::channel(QUEUE_MAX);
                let Some(heard) = places.enter(client, queue, Clock::now()) else { continue };
                let relay = Relay {
                    socket: Arc::clone(&socket),
                    own: None,
                    client,
                    heard,
                    shared: Arc::clone(&shared),
                    started: Clock::now(),
                    tried: Vec::new(),
                };
                let request = datagram.to_vec();
                tasks.spawn(async move {
                    relay.run(request, from_client).await;
                    client
                });
            }
            // Only who has heard of a session's own port speaks to it.
            _ if shared.tftp.mode == Mode::PortPerTransfer => {}
            _ => {
                places.pass(client, datagram);
            }
        }
    }
}

/// One session.
struct Relay {
    /// The front's.
    socket: Arc<UdpSocket>,
    /// The session's own one towards the client, unless there is one port for all.
    own: Option<UdpSocket>,
    client: SocketAddr,
    heard: Heard,
    shared: Arc<Shared>,
    started: Clock,
    /// Names of members that were asked.
    tried: Vec<String>,
}

/// The way to a member.
struct Upstream {
    socket: UdpSocket,
    member: IpAddr,
    /// Where to send: the TFTP port, or the port from which the member answered.
    to: SocketAddr,
    has_answered: bool,
}

impl Relay {
    async fn run(mut self, request: Vec<u8>, mut from_client: mpsc::Receiver<Vec<u8>>) {
        let epoch = Instant::now();
        let path = session::path_of(&request);
        let mut session = Session::new(request.clone());
        let mut upstream = None;
        if self.shared.tftp.mode == Mode::PortPerTransfer {
            match self.open_own().await {
                Ok(own) => self.own = Some(own),
                // The client asks again.
                Err(error) => {
                    return tracing::warn!(client = %self.client, %error, "open a port for a TFTP session");
                }
            }
        }
        let mut actions = session.start(epoch.elapsed());
        loop {
            for action in actions.drain(..) {
                match action {
                    Action::ToClient(datagram) => {
                        let _ = match &self.own {
                            Some(own) => own.send(&datagram).await,
                            None => self.socket.send_to(&datagram, self.client).await,
                        };
                    }
                    Action::ToMember(datagram) => {
                        if let Some(Upstream { socket, to, .. }) = &upstream {
                            let _ = socket.send_to(&datagram, to).await;
                        }
                    }
                    Action::NextMember => match self.next_member().await {
                        Some(next) => upstream = Some(next),
                        None => {
                            let why = if self.tried.is_empty() {
                                "no member is alive"
                            } else {
                                "no member answers"
                            };
                            tell_refused(&self.shared, self.client.ip(), &path, why);
                            return;
                        }
                    },
                    Action::End => {
                        self.tell(&path, &session);
                        return;
                    }
                }
            }
            let deadline = epoch + session.poll_timeout();
            actions = tokio::select! {
                datagram = from_client.recv() => match datagram {
                    Some(datagram) if datagram.starts_with(&[0, 1]) && datagram != request => {
                        // Another file from the same port: this session is over, and the client's repetition starts
                        // the next one.
                        self.tell(&path, &session);
                        return;
                    }
                    Some(datagram) => {
                        self.heard.note(&datagram);
                        session.handle_client(epoch.elapsed(), &datagram)
                    }
                    // Its place was taken.
                    None => return,
                },
                received = receive_own(self.own.as_ref()) => match received {
                    Ok(datagram) => {
                        self.heard.note(&datagram);
                        session.handle_client(epoch.elapsed(), &datagram)
                    }
                    // Nobody is there: the client's host says so.
                    Err(_) => return self.tell(&path, &session),
                },
                received = receive(upstream.as_mut()) => match received {
                    Some(datagram) => session.handle_member(epoch.elapsed(), &datagram),
                    None => Vec::new(),
                },
                () = sleep_until(deadline) => session.handle_timeout(epoch.elapsed()),
            };
        }
    }

    /// A socket on the address that was asked, with a port that the kernel draws at random.
    async fn open_own(&self) -> io::Result<UdpSocket> {
        let mut local = self.socket.local_addr()?;
        local.set_port(0);
        let own = UdpSocket::bind(local).await?;
        own.connect(self.client).await?;
        Ok(own)
    }

    /// The next member that was not asked yet.
    async fn next_member(&mut self) -> Option<Upstream> {
        let key = match self.client.ip().to_canonical() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        if self.tried.len() >= ATTEMPTS_MAX {
            return None;
        }
        let configs = self.shared.table.ranked_for(&key, Some(self.client.ip()));
        let config: MemberConfig =
            configs.into_iter().find(|config| !self.tried.contains(&config.member.name))?;
        if let Some(last) = self.tried.last() {
            tracing::warn!(client = %self.client, member = last, "a TFTP server is silent; another one is tried");
        }
        self.tried.push(config.member.name);
        let member = config.member.address;
        let any =
            if member.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
        let socket = UdpSocket::bind((any, 0)).await;
        let socket =
            socket.inspect_err(|error| tracing::warn!(%error, "no socket for a TFTP session")).ok()?;
        Some(Upstream { socket, member, to: (member, config.tftp_port).into(), has_answered: false })
    }

    fn tell(&self, path: &str, session: &Session) {
        self.shared.observer.observe(&Event {
            mac: None,
            address: Some(self.client.ip()),
            kind: EventKind::Transferred {
                protocol: Protocol::Balance,
                path,
                bytes: session.bytes(),
                seconds: self.started.elapsed().as_secs_f64(),
                is_complete: session.is_complete(),
            },
        });
    }
}

/// The next datagram of the member; none if what came was not from it.
async fn receive(upstream: Option<&mut Upstream>) -> Option<Vec<u8>> {
    let Some(upstream) = upstream else { return std::future::pending().await };
    let (datagram, from) = datagram_of(&upstream.socket).await.ok()?;
    // The first answer tells the member's transfer identifier (RFC 1350, 4); later ones have to come from there.
    let is_member = if upstream.has_answered { from == upstream.to } else { from.ip() == upstream.member };
    if !is_member {
        return None;
    }
    upstream.to = from;
    upstream.has_answered = true;
    Some(datagram)
}

/// The next datagram of the client to the session's own port. Where there is none, nothing ever comes.
async fn receive_own(own: Option<&UdpSocket>) -> io::Result<Vec<u8>> {
    let Some(own) = own else { return std::future::pending().await };
    let (mut datagram, _) = datagram_of(own).await?;
    datagram.truncate(CLIENT_DATAGRAM_MAX);
    Ok(datagram)
}

/// The next datagram of a socket. Whoever waits for one holds no room for it: thousands of sessions wait, and a member may
/// send 64 KiB to each.
async fn datagram_of(socket: &UdpSocket) -> io::Result<(Vec<u8>, SocketAddr)> {
    thread_local! {
        static ROOM: RefCell<Vec<u8>> = RefCell::new(vec![0; MEMBER_DATAGRAM_MAX]);
    }
    loop {
        socket.readable().await?;
        let received: io::Result<_> = ROOM.with_borrow_mut(|room| {
            let (length, from) = socket.try_recv_from(room)?;
            Ok((room[..length].to_vec(), from))
        });
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            received => return received,
        }
    }
}

fn tell_refused(shared: &Shared, client: IpAddr, path: &str, reason: &str) {
    let kind = EventKind::Refused { protocol: Protocol::Balance, path, reason };
    shared.observer.observe(&Event { mac: None, address: Some(client), kind });
}
