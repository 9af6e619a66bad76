//! Sockets, clock and threads for the DHCP server and the proxy.
//!
//! ```text
//!            ┌── sockets ──► queue ──► Server, ProxyResponder ──► offers, NAKs ──────────► sockets
//!  one thread┤                               │
//!            └── timers, probes              └─ records + ACKs ─► log thread: append, sync ─► sockets
//! ```
//!
//! Binding and running are two calls: the first needs privileges for ports below 1024, the second does not.

mod arp;
mod clock;
mod commit;
mod icmp;
mod probe;
mod raw;
mod serve;
mod socket;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use goldwire_stdx::{Stop, is_out_of_space};
use rustix::event::{EventfdFlags, eventfd};

pub(crate) use clock::Clock;

use self::commit::LogState;
use self::probe::Prober;
use self::serve::ServeLoop;
use self::socket::{Datagram, SocketSet};
use super::lease::{Folder, Log, LogError, Opened, Record, Table, Time, Volume};
use super::proxy::ProxyResponder;
use super::server::Server;
use crate::bind::BindError;
use crate::member::Fitness;

/// Batches that wait for the log's thread.
const WORK_MAX: usize = 64;
/// Addresses that are written at once when the log is rewritten before the start.
const PIECE: usize = 4096;
/// How long a caller waits for the serving thread to look into its table.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);

/// The ports. Others than the usual ones are for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Where we listen on interfaces: 67.
    pub server: u16,
    /// Where clients listen: 68.
    pub client: u16,
    /// Where relays listen: 67.
    pub relay: u16,
    /// Where clients ask for their boot file: 4011, if we answer there.
    pub binl: Option<u16>,
}

impl Default for Ports {
    fn default() -> Self {
        Self { server: 67, client: 68, relay: 67, binl: Some(4011) }
    }
}

/// Where to listen.
#[derive(Clone, Debug)]
pub struct DriverSettings {
    /// Interfaces, by name: for clients on their links.
    pub interfaces: Vec<String>,
    /// Addresses: for relays, and for clients that renew.
    pub addresses: Vec<SocketAddrV4>,
    /// The ports.
    pub ports: Ports,
    /// Whether the DHCP server beside which a proxy answers may have its port on the same interfaces of this machine. It
    /// has to allow that, too. Port 4011 is ours alone in any case, so two of our own never answer side by side.
    pub is_port_shared: bool,
    /// Whether the server will probe addresses.
    pub is_probing: bool,
    /// How long a batch may be on its way to the lease log's disk before the member is stuck. A client whose answer waits
    /// longer would wait for this member while another could serve it.
    pub log_patience: Duration,
}

impl Default for DriverSettings {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            addresses: Vec::new(),
            ports: Ports::default(),
            is_port_shared: false,
            is_probing: false,
            log_patience: Duration::from_millis(500),
        }
    }
}

/// Bound sockets, not yet served.
#[derive(Debug)]
pub struct Sockets {
    set: SocketSet,
    prober: Option<Prober>,
    log_patience: Duration,
}

/// What answers on the sockets.
pub struct Service {
    /// The server with its log, as [`open_leases`] left them.
    pub(crate) server: Option<(Server, Log)>,
    /// The proxy: for port 4011, and for port 67 where there is no server.
    pub(crate) proxy: Option<ProxyResponder>,
    /// Hears when the log's disk is stuck. Nobody is offered or given an address meanwhile.
    pub(crate) fitness: Arc<Fitness>,
    pub(crate) clock: Clock,
}

impl Service {
    /// A proxy alone, which gives no addresses.
    pub fn of_proxy(proxy: ProxyResponder) -> Self {
        Self { server: None, proxy: Some(proxy), fitness: Arc::default(), clock: Clock::start(Time(0)) }
    }

    /// A server whose lease log lies in `folder`, with a proxy for port 4011. `fitness` hears when the log's disk is stuck.
    /// What is wrong with the log, and does not stand in the way, is logged.
    ///
    /// # Errors
    /// The log cannot be read, is of a later version, or cannot be repaired.
    pub fn of_server(
        mut server: Server,
        folder: &Path,
        proxy: ProxyResponder,
        fitness: Arc<Fitness>,
    ) -> Result<Self, LogError> {
        let volume = Folder::open(folder).map_err(LogError::Folder)?;
        let (log, opened, clock) = open_leases(&mut server, Box::new(volume))?;
        let leases = server.table().leases(None).count();
        if log.is_suspect() {
            tracing::error!(
                folder = %folder.display(), bytes = log.bytes_for(leases),
                "the disk is full: the lease log cannot be written, and no addresses are given away until it has so much room"
            );
        }
        if opened.scan.torn_bytes > 0 {
            tracing::warn!(
                bytes = opened.scan.torn_bytes,
                "the lease log ended in the middle of a record, which was never acknowledged; it was cut off"
            );
        }
        for damage in &opened.scan.damage {
            let (at, bytes, records) = (damage.at, damage.bytes, damage.records);
            tracing::error!(at, bytes, records, "the lease log is damaged there; what could be read is kept");
        }
        tracing::info!(leases, "the lease log was read");
        Ok(Self { server: Some((server, log)), proxy: Some(proxy), fitness, clock })
    }
}

/// What has been counted since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Datagrams that came.
    pub received: AtomicU64,
    /// Datagrams that were no DHCP message.
    pub malformed: AtomicU64,
    /// Requests that were dropped because there were too many.
    pub congestion_drops: AtomicU64,
    /// Requests that were dropped because the lease log's disk is stuck.
    pub unfit_drops: AtomicU64,
    /// Requests that had waited so long that their client has asked again since.
    pub stale_drops: AtomicU64,
}

/// A server that runs. It stops when this is dropped.
#[derive(Debug)]
pub struct Running {
    addresses: Vec<SocketAddrV4>,
    counters: Arc<Counters>,
    commands: Sender<Command>,
    stop: Stop,
    wake: Arc<Wake>,
    threads: Vec<JoinHandle<()>>,
}

/// What the serving thread is asked for by others.
enum Command {
    Snapshot(Option<Ipv4Addr>, usize, SyncSender<Vec<Record>>),
}

/// Wakes the serving thread.
#[derive(Debug)]
struct Wake(OwnedFd);

/// Fills a server's table from its lease log, repairs the log if it has to be, and says what was found. Also returns the
/// clock to run with.
///
/// # Errors
/// The log cannot be read, is of a later version, or cannot be repaired. A full disk is none: the log is then suspect.
pub(crate) fn open_leases(
    server: &mut Server,
    volume: Box<dyn Volume>,
) -> Result<(Log, Opened, Clock), LogError> {
    let member = super::lease::MemberId::of(&server.settings().member);
    let mut last = Time(0);
    let table = server.table_mut();
    let (mut log, opened) = Log::open(volume, member, |record| {
        if record.member == member {
            last = last.max(record.changed);
        }
        table.restore(record);
    })?;
    table.number_from(opened.member_sequence);
    let clock = Clock::start(last);
    if opened.needs_rewrite {
        match rewrite_all(&mut log, table, clock.now()) {
            // The rest of the member serves, nobody is given an address, and the log's thread tries again until there is
            // room: see [`crate::member::Fitness`].
            Err(LogError::Rewrite(error)) if is_out_of_space(error.kind()) => {}
            done => done?,
        }
    }
    Ok((log, opened, clock))
}

/// Writes the log anew from the table, at once.
fn rewrite_all(log: &mut Log, table: &Table, now: Time) -> Result<(), LogError> {
    log.begin_rewrite(now, table.member_sequence())?;
    let mut after = None;
    loop {
        let (records, last) = table.snapshot(after, PIECE);
        log.rewrite(&records)?;
        match last {
            Some(_) => after = last,
            None => break,
        }
    }
    log.finish_rewrite().map(drop)
}

/// Binds all sockets.
///
/// # Errors
/// A port is in use, an interface is missing, or the privilege is.
pub fn bind(settings: &DriverSettings) -> Result<Sockets, BindError> {
    Ok(Sockets {
        set: SocketSet::bind(settings)?,
        prober: settings.is_probing.then(Prober::open),
        log_patience: settings.log_patience,
    })
}

impl Sockets {
    /// Where they are bound, in the order of the settings: each interface or address with the server's port, then with
    /// port 4011.
    pub fn addresses(&self) -> Vec<SocketAddrV4> {
        self.set.sockets.iter().map(|socket| socket.address).collect()
    }

    /// Begins to serve, on threads of its own.
    ///
    /// # Errors
    /// The threads cannot be made.
    pub fn run(self, service: Service) -> Result<Running, BindError> {
        let addresses = self.addresses();
        let sockets = Arc::new(self.set);
        let start = || BindError::need("start the DHCP server's threads");
        let wake = Arc::new(Wake::new().map_err(start())?);
        let stop = Stop::new();
        let counters = Arc::new(Counters::default());
        let log_state = Arc::new(LogState::default());
        let (work, work_receiver) = sync_channel(WORK_MAX);
        let (commands, command_receiver) = channel();
        let (server, log) = service.server.unzip();
        let serving = ServeLoop {
            sockets: Arc::clone(&sockets),
            server,
            proxy: service.proxy,
            prober: self.prober,
            work,
            log: Arc::clone(&log_state),
            wake: Arc::clone(&wake),
            stop: stop.clone(),
            commands: command_receiver,
            counters: Arc::clone(&counters),
            clock: service.clock,
            fitness: Arc::clone(&service.fitness),
            queue: VecDeque::new(),
            backlog: VecDeque::new(),
            rewriting: None,
        };
        let mut threads = Vec::new();
        let mut spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = goldwire_stdx::spawn(name, run);
            thread.map(|thread| threads.push(thread)).map_err(start())
        };
        if let Some(log) = log {
            let (wake, reports) = (Arc::clone(&wake), Arc::clone(&service.fitness));
            let patience = self.log_patience;
            let run = move || {
                let state = commit::Reporting { fitness: reports, patience };
                commit::run(log, &work_receiver, &sockets, &log_state, &wake, &state);
            };
            spawn("dhcp-log", Box::new(run))?;
        }
        spawn("dhcp", Box::new(move || serving.run()))?;
        Ok(Running { addresses, counters, commands, stop, wake, threads })
    }
}

impl Running {
    /// Where it listens; see [`Sockets::addresses`].
    pub fn addresses(&self) -> &[SocketAddrV4] {
        &self.addresses
    }

    /// What has been counted since the start.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// What is known of at most `count` addresses behind `after`; none if the server has stopped.
    pub fn leases(&self, after: Option<Ipv4Addr>, count: usize) -> Option<Vec<Record>> {
        let (sender, receiver) = sync_channel(1);
        self.commands.send(Command::Snapshot(after, count, sender)).ok()?;
        self.wake.wake();
        receiver.recv_timeout(SNAPSHOT_TIMEOUT).ok()
    }

    /// Stops it, and waits until what was acknowledged is in the log.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.request();
        self.wake.wake();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the DHCP server panicked");
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

impl Wake {
    fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?))
    }

    fn wake(&self) {
        // It can only fail when it is full, and then the thread is about to wake anyway.
        let _ = rustix::io::write(&self.0, &1_u64.to_le_bytes());
    }

    fn clear(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.0, &mut count);
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn send(sockets: &SocketSet, datagram: &Datagram) {
    if let Err(error) = sockets.send(datagram) {
        tracing::debug!(destination = ?datagram.destination, %error, "an answer cannot be sent");
    }
}
