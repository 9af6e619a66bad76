//! The HTTP(S) boot server: HTTP/1.0 and 1.1, GET and HEAD, of what [`Contents`] has.
//!
//! Written for what boots rather than for browsers. A small answer is one write: with the head and the body in two,
//! Nagle's algorithm and delayed acknowledgements cost iPXE's HTTP SAN 40 ms per read. A large one goes from the page
//! cache to the socket by `sendfile`.
//!
//! A connection stays on the thread that accepted it: each has a runtime of its own, and nothing is handed to another
//! thread while a request is answered. So that a disk holds nobody up all the same, the kernel is asked first whether
//! it would have to wait for one (`RESOLVE_CACHED`, `RWF_NOWAIT`); if so, the other connections of the thread go on
//! elsewhere meanwhile. That memory has what is asked for is the usual case for files that a whole site boots from.
//!
//! In a boot storm, iPXE is sent away with 503 and `Retry-After` once too many large transfers run, and comes back by
//! itself. Nobody else is: UEFI gives up on 503, and small files and scripts always pass.
//!
//! ```text
//! request.rs      bytes → Request                   pure
//! range.rs        Range → parts                     pure
//! conditional.rs  If-… → verdict                    pure
//! respond.rs      Request, Content → head, pieces   pure
//! admission.rs    what is counted
//! connection.rs   one connection: read, ask, write; the deadlines
//! wire.rs         TCP or TLS
//! ```

mod admission;
mod conditional;
mod connection;
mod date;
mod disk;
pub(crate) mod range;
pub(crate) mod request;
mod respond;
mod sending;
#[cfg(test)]
mod testing;
mod tls;
mod wire;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::Runtime;
use tokio::sync::watch;

pub use tls::{TlsError, TlsSettings};

use crate::bind::BindError;
use crate::content::Contents;
use crate::event::Observer;
use crate::member::Fitness;
use crate::neighbours::Neighbours;
use crate::network::Network;
use admission::Gate;
use connection::Shared;

/// Connections that wait to be accepted; the kernel's own limit (net.core.somaxconn) may be lower.
const BACKLOG: i32 = 4096;

/// What the server is told.
#[derive(Clone, Default)]
pub struct Settings {
    /// Where it listens.
    pub listeners: Vec<Listener>,
    /// The certificate, for listeners that are secure.
    pub tls: Option<TlsSettings>,
    /// Worker threads; 0 is one per processor.
    pub threads: usize,
    /// How much it takes on, and how long it waits for whom.
    pub limits: Limits,
    /// Hears when the boot tree's disk does not answer.
    pub fitness: Arc<Fitness>,
    /// Asked for `/health`; without it the server is well while it runs. It must not wait.
    pub health: Option<Arc<dyn Fn() -> Health + Send + Sync>>,
    /// Asked for `/metrics`, in Prometheus' text form; without it there is no such page. It must not wait.
    pub metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Settings");
        debug.field("listeners", &self.listeners).field("tls", &self.tls).field("threads", &self.threads);
        debug.field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// One address that is listened on.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Address and port; port 0 takes any. An IPv6 address takes IPv6 only.
    pub address: SocketAddr,
    /// Only what comes in through this interface, by name.
    pub interface: Option<String>,
    /// Whether it speaks HTTPS.
    pub is_secure: bool,
    /// Balancers whose connections begin with a PROXY header. Connections from elsewhere are served as they are.
    pub balancers: Vec<Network>,
}

impl Listener {
    /// Plain HTTP on this address.
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, interface: None, is_secure: false, balancers: Vec::new() }
    }
}

/// Limits, each with the reason for its default.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections in all; one with TLS counts as four. Each costs about 6 KiB and a descriptor; raise `LimitNOFILE` with
    /// it.
    pub connections: usize,
    /// Connections of one address. A device opens one or two, a site behind NAT as many for each device.
    pub connections_per_address: usize,
    /// From a request's first byte, or the connection's beginning, to the end of its head.
    pub head: Duration,
    /// Without a request on a kept connection. iPXE holds one for as long as it has a disk open.
    pub idle: Duration,
    /// The TLS handshake. Firmware needs seconds for RSA.
    pub handshake: Duration,
    /// A client that takes nothing for so long is gone: a device that was switched off while it loaded.
    pub stall: Duration,
    /// Slowest pace, in bytes per second over each [`stall`](Self::stall): below it a client only holds the connection.
    pub pace: u64,
    /// A transfer of at least so many bytes is large: bootstraps are below it, kernels and initrds above.
    pub large: u64,
    /// Large transfers at once, from which on iPXE is asked to come back later. 64 of them share 10 Gbit/s at 20 MB/s
    /// each. One address may take all of them while nobody else wants any, and keeps an eighth from others.
    pub large_transfers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            connections_per_address: 512,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            handshake: Duration::from_secs(15),
            stall: Duration::from_secs(30),
            pace: 256,
            large: 4 << 20,
            large_transfers: 64,
        }
    }
}

/// Whether the server is fit to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether balancers and members shall send devices here.
    pub is_healthy: bool,
    /// Why, in a few words: `alive`, `draining`, `boot tree not readable`.
    pub reason: String,
}

/// Sockets that listen and do not answer yet: between binding and running, privileges are dropped.
pub struct Bound {
    sockets: Vec<(TcpListener, Listener)>,
    tls: Option<Arc<ServerConfig>>,
    certificate: Option<Arc<tls::Reloading>>,
    shared: Arc<Shared>,
    threads: usize,
}

/// Binds the sockets and reads the certificate.
pub fn bind(
    settings: Settings,
    contents: Arc<dyn Contents>,
    observer: Arc<dyn Observer>,
    neighbours: Arc<Neighbours>,
) -> Result<Bound, BindError> {
    let tls = settings.tls.as_ref().map(tls::config).transpose().map_err(BindError::Tls)?;
    let (tls, certificate) = tls.unzip();
    let mut sockets = Vec::new();
    for listener in &settings.listeners {
        if listener.is_secure && tls.is_none() {
            return Err(BindError::NoCertificate(listener.address));
        }
        let protocol = if listener.is_secure { "HTTPS" } else { "HTTP" };
        let socket = listen(listener).map_err(BindError::listen(protocol, listener.address))?;
        sockets.push((socket, listener.clone()));
    }
    let threads = match settings.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let Settings { limits, fitness, health, metrics, .. } = settings;
    let gate = Arc::new(Gate::default());
    let shared = Arc::new(Shared {
        limits,
        disk: disk::Disk::new(fitness),
        health,
        metrics,
        gate,
        contents,
        observer,
        neighbours,
    });
    Ok(Bound { sockets, tls, certificate, shared, threads })
}

fn listen(listener: &Listener) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(listener.address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if listener.address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if let Some(interface) = &listener.interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    // Inherited by what is accepted, which saves a system call per connection.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&listener.address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Bound {
    /// The addresses, with the ports that were taken, in the order of the settings.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let address =
            |(socket, listener): &(TcpListener, Listener)| socket.local_addr().unwrap_or(listener.address);
        self.sockets.iter().map(address).collect()
    }

    /// Starts to answer, on threads of its own.
    pub fn run(self) -> Result<Running, BindError> {
        let addresses = self.addresses();
        let (phase, _) = watch::channel(Phase::Serving);
        let runtimes = (0..self.threads).map(|_| self.start_thread(&phase)).collect::<io::Result<_>>();
        let runtimes = runtimes.map_err(BindError::need("start the HTTP server's threads"))?;
        Ok(Running { addresses, certificate: self.certificate, runtimes, phase })
    }

    /// A runtime that accepts from every socket, beside the others: the thread that has time takes the connection.
    fn start_thread(&self, phase: &watch::Sender<Phase>) -> io::Result<Runtime> {
        // Only this kind of runtime can set a thread's other work free while one connection waits.
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder
            .worker_threads(1)
            .max_blocking_threads(disk::THREADS_MAX)
            .thread_name("http")
            .enable_all()
            .build()?;
        let inside = runtime.enter();
        for (socket, listener) in &self.sockets {
            let socket = tokio::net::TcpListener::from_std(socket.try_clone()?)?;
            let tls = if listener.is_secure { self.tls.clone() } else { None };
            runtime.spawn(connection::accept(
                Arc::clone(&self.shared),
                socket,
                Arc::new(listener.clone()),
                tls.map(tokio_rustls::TlsAcceptor::from),
                phase.subscribe(),
            ));
        }
        drop(inside);
        Ok(runtime)
    }
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

/// How far the server is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    Draining,
    Stopping,
}

/// A server that answers, until it is stopped or dropped; dropped, it breaks off what it is sending.
#[derive(Debug)]
pub struct Running {
    addresses: Vec<SocketAddr>,
    certificate: Option<Arc<tls::Reloading>>,
    runtimes: Vec<Runtime>,
    /// Every connection holds a receiver, so the channel is closed when the last has ended.
    phase: watch::Sender<Phase>,
}

impl Running {
    /// The addresses, with the ports that were taken, in the order of the settings.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Reads the certificate and its key again, at once; whether there is a new one, which connections get from now on.
    ///
    /// # Errors
    /// Why the old one stays in use.
    pub fn reload_certificate(&self) -> Result<bool, TlsError> {
        self.certificate.as_ref().map_or(Ok(false), |certificate| certificate.reload())
    }

    /// Says that no new device shall be sent here, and goes on answering: `/health` is 503 from now on, and kept
    /// connections end with their next answer.
    pub fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Takes no new connection, waits at most `patience` for those that are being answered, then breaks them off.
    /// Must not be called from within an asynchronous task.
    pub fn stop(self, patience: Duration) {
        self.phase.send_replace(Phase::Stopping);
        let finished = async { tokio::time::timeout(patience, self.phase.closed()).await.is_ok() };
        let is_finished = self.runtimes.first().is_none_or(|runtime| runtime.block_on(finished));
        if !is_finished {
            tracing::info!("broke off HTTP transfers that did not end in time");
        }
        for runtime in self.runtimes {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

#[cfg(test)]
mod tests;
