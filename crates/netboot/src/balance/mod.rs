//! A front for firmware that is given one address: HTTP and TFTP, passed on to whichever member is alive.
//!
//! A client is given to the same member again and again (rendezvous hash over its address). Until the first byte of an
//! answer was passed on, another member is tried: after a refused connection, a connection that is accepted and never
//! answered, and a 5xx. After the first byte too, if the answer has a length and a strong ETag: members give the same
//! bytes under the same ETag, so the rest is asked of another with `Range` and `If-Match`, and the client notices
//! nothing.
//!
//! Firmware gives up after 5 s without a byte (UEFI), scripts here after 2 s; the times below are made for that.

pub(crate) mod http;
#[cfg(test)]
mod tests;
pub(crate) mod tftp;

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::bind::BindError;
use crate::event::Observer;
use crate::member::Table;
use crate::network::Network;
use crate::room::Rooms;
use crate::tftp::Clients;

/// How long a connection to a member may take; members are near.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long a member may take to its answer's first byte, as long as there is another one to try.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(1);

/// The same for the last one.
const LAST_FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a member may stall within a body before the rest is asked of another.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// Members tried for one request.
const ATTEMPTS_MAX: usize = 4;

/// How long somebody is sought who can go on with a broken transfer. Firmware waits for 5 s in all.
const RESUME_WITHIN: Duration = Duration::from_secs(4);

/// Breaks of one transfer that are mended.
const RESUMES_MAX: u32 = 16;

/// How long a client may take for its request's head, and a PROXY header.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may be idle between two requests.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a client may take nothing of an answer.
const CLIENT_STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// HTTP connections at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;

/// HTTP connections of one client address at once: a room full of machines behind one NAT, but not all there are.
const CONNECTIONS_PER_CLIENT_MAX: usize = 512;

/// What the front needs.
pub struct BalanceSettings {
    /// Where it takes HTTP.
    pub http: Vec<SocketAddr>,
    /// Where it takes TFTP. A single address each: answers come from the socket that was asked, and one that is bound
    /// to all addresses could answer from another one.
    pub tftp: Vec<SocketAddr>,
    /// The members. The front is no member itself; probes or heartbeats fill the table.
    pub table: Arc<Table>,
    /// Who hears of transfers and refusals.
    pub observer: Arc<dyn Observer>,
    /// How TFTP clients are answered.
    pub tftp_clients: Clients,
    /// Balancers in front of this one. Their HTTP connections have to start with a PROXY header, of version 1 or 2; a
    /// connection of theirs without one is refused, because its client could write one itself.
    pub proxies: Vec<Network>,
    /// Whether connections to members start with a PROXY header of version 2.
    pub sends_proxy_header: bool,
}

/// A front with its sockets bound. Privileges can be dropped now.
pub struct Balance {
    http: Vec<TcpListener>,
    tftp: Vec<UdpSocket>,
    shared: Shared,
}

/// What all connections and sessions share.
struct Shared {
    table: Arc<Table>,
    observer: Arc<dyn Observer>,
    tftp: Clients,
    proxies: Vec<Network>,
    sends_proxy_header: bool,
    rooms: Arc<Rooms>,
    phase: watch::Receiver<Phase>,
    change: watch::Sender<Phase>,
}

/// How far the front's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// It serves, says that it will not for long, and keeps no connection for another request.
    Draining,
    /// It takes nothing new.
    Stopping,
}

impl Balance {
    /// Binds the sockets.
    ///
    /// # Errors
    /// `Listen`.
    pub fn bind(settings: BalanceSettings) -> Result<Self, BindError> {
        let mut http = Vec::new();
        for address in settings.http {
            let wrong = BindError::listen("HTTP", address);
            let listener = TcpListener::bind(address).map_err(&wrong)?;
            listener.set_nonblocking(true).map_err(&wrong)?;
            http.push(listener);
        }
        let mut tftp = Vec::new();
        for address in settings.tftp {
            let wrong = BindError::listen("TFTP", address);
            let socket = UdpSocket::bind(address).map_err(&wrong)?;
            socket.set_nonblocking(true).map_err(&wrong)?;
            tftp.push(socket);
        }
        let (change, phase) = watch::channel(Phase::Serving);
        let shared = Shared {
            table: settings.table,
            observer: settings.observer,
            tftp: settings.tftp_clients,
            proxies: settings.proxies,
            sends_proxy_header: settings.sends_proxy_header,
            rooms: Arc::default(),
            phase,
            change,
        };
        Ok(Self { http, tftp, shared })
    }

    /// Where it takes HTTP.
    pub fn http_addresses(&self) -> Vec<SocketAddr> {
        self.http.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Where it takes TFTP.
    pub fn tftp_addresses(&self) -> Vec<SocketAddr> {
        self.tftp.iter().filter_map(|socket| socket.local_addr().ok()).collect()
    }

    /// Starts serving, on threads of its own.
    ///
    /// # Errors
    /// `Need`.
    pub fn run(self) -> Result<RunningBalance, BindError> {
        let start = || BindError::need("start the balancing front");
        let addresses = (self.http_addresses(), self.tftp_addresses());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("balance")
            .enable_all()
            .build()
            .map_err(start())?;
        let shared = Arc::new(self.shared);
        let guard = runtime.enter();
        let mut tasks = JoinSet::new();
        for listener in self.http {
            let listener = tokio::net::TcpListener::from_std(listener).map_err(start())?;
            tasks.spawn_on(http::serve(listener, Arc::clone(&shared)), runtime.handle());
        }
        for socket in self.tftp {
            let socket = tokio::net::UdpSocket::from_std(socket).map_err(start())?;
            tasks.spawn_on(tftp::serve(socket, Arc::clone(&shared)), runtime.handle());
        }
        drop(guard);
        Ok(RunningBalance { addresses, shared, tasks, runtime })
    }
}

/// A front that serves. Dropping it breaks off what is under way.
pub struct RunningBalance {
    addresses: (Vec<SocketAddr>, Vec<SocketAddr>),
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    runtime: tokio::runtime::Runtime,
}

impl RunningBalance {
    /// Where it takes HTTP.
    pub fn http_addresses(&self) -> &[SocketAddr] {
        &self.addresses.0
    }

    /// Where it takes TFTP.
    pub fn tftp_addresses(&self) -> &[SocketAddr] {
        &self.addresses.1
    }

    /// From now on `/health` answers 503 and connections end with their current request; everything is still served, so
    /// that a balancer in front has time to look.
    pub fn drain(&self) {
        self.shared.advance(Phase::Draining);
    }

    /// Takes nothing new, lets what is under way finish within `grace`, and ends.
    pub fn stop(mut self, grace: Duration) {
        self.shared.advance(Phase::Stopping);
        self.runtime.block_on(async {
            let finished = async { while self.tasks.join_next().await.is_some() {} };
            // Whoever needs longer is broken off.
            let _ = tokio::time::timeout(grace, finished).await;
        });
        self.runtime.shutdown_background();
    }
}

impl Shared {
    /// Life goes forward only.
    fn advance(&self, phase: Phase) {
        self.change.send_if_modified(|now| {
            let is_later = phase > *now;
            *now = phase.max(*now);
            is_later
        });
    }

    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until the front is in this phase, or past it.
    async fn reached(&self, phase: Phase) {
        // The sender is in here too: it is never gone.
        let _ = self.phase.clone().wait_for(|now| *now >= phase).await;
    }
}
