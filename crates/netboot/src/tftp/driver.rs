//! The sockets: as many workers as cores, each with a socket of its own on every address. The kernel gives a client's
//! packets to one of them by a hash of the addresses and ports (SO_REUSEPORT), always the same one, so a worker knows all
//! about its transfers and nothing of the others'.

use std::collections::HashMap;
use std::io::{self, PipeReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use goldwire_stdx::Stop;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use socket2::Socket;

use super::admission::Admission;
use super::send::{Batch, Route, SendMethod, send};
use super::server::{Context, Key, Server, Transmit};
use super::settings::{Mode, Settings};
use super::socket::{DATAGRAM_MAX, connect, listen, receive, receive_connected, unreachable};
use crate::bind::BindError;

/// Datagrams that are taken from one socket before the others are looked at.
const BATCH: usize = 32;
/// How long a worker looks for the next packet of a transfer before it goes to sleep. A client on the same network
/// answers sooner than a sleeping thread wakes up, and without a window it does so for every block.
const LOOK_FOR: Duration = Duration::from_micros(50);
/// A worker that found nothing so often in a row does not look any more until it finds something without looking.
const LOOKS_MAX: u32 = 16;
/// The waker's event, beside the numbers of sockets.
const STOP: u64 = u64::MAX;

/// A server that listens and does not answer yet: time to drop privileges.
#[derive(Debug)]
pub struct Bound {
    settings: Arc<Settings>,
    addresses: Vec<SocketAddr>,
    /// For each worker, a socket for each address.
    sockets: Vec<Vec<Socket>>,
    method: SendMethod,
}

/// A server that answers. It stops when this is dropped.
#[derive(Debug)]
pub struct Running {
    addresses: Vec<SocketAddr>,
    stop: Stop,
    workers: Vec<JoinHandle<()>>,
}

/// Listens on all addresses of the settings. An address with port 0 gets a free port.
///
/// # Errors
/// `Listen`.
pub fn bind(settings: Settings) -> Result<Bound, BindError> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let mut addresses = Vec::new();
    let mut sockets: Vec<Vec<Socket>> = (0..workers).map(|_| Vec::new()).collect();
    for address in &settings.listen {
        let failed = BindError::listen("TFTP", *address);
        // Workers share the address by SO_REUSEPORT, and so would a second server with other settings, unnoticed, that
        // runs as the same user. This socket does not share, so it notices.
        let probe = listen(*address, false).map_err(&failed)?;
        let address = probe.local_addr().map_err(&failed)?.as_socket().unwrap_or(*address);
        drop(probe);
        for sockets in &mut sockets {
            sockets.push(listen(address, true).map_err(&failed)?);
        }
        addresses.push(address);
    }
    let method =
        sockets.iter().flatten().next().map_or(SendMethod::Batch, |socket| SendMethod::of(socket.as_fd()));
    Ok(Bound { settings: Arc::new(settings), addresses, sockets, method })
}

impl Bound {
    /// Where it listens, in the order of the settings.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Sends in another way than the kernel's best one, to compare them.
    #[cfg(test)]
    pub(crate) fn with_send_method(mut self, method: SendMethod) -> Self {
        self.method = method;
        self
    }

    /// Answers from now on, in threads of its own.
    ///
    /// # Errors
    /// `Need`.
    pub fn run(self, context: Context) -> Result<Running, BindError> {
        let admission = Admission::new(&self.settings);
        let mut running = Running { addresses: self.addresses, stop: Stop::new(), workers: Vec::new() };
        for (number, sockets) in self.sockets.into_iter().enumerate() {
            let server = Server::new(Arc::clone(&self.settings), context.clone(), Arc::clone(&admission));
            let mut worker = running
                .stop
                .waker()
                .and_then(|waker| {
                    Worker::new(waker, self.settings.clients.mode, sockets, self.method, server)
                })
                .map_err(BindError::need("start the TFTP server"))?;
            let thread = goldwire_stdx::spawn(&format!("tftp-{number}"), move || worker.run())
                .map_err(BindError::need("start the TFTP server"))?;
            running.workers.push(thread);
        }
        Ok(running)
    }
}

impl Running {
    /// Where it listens, in the order of the settings.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Breaks off all transfers and waits for the threads.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.request();
        for worker in self.workers.drain(..) {
            // A panic was printed by its own thread.
            let _ = worker.join();
        }
    }
}

/// One thread's part.
struct Worker {
    epoll: OwnedFd,
    /// Readable once the server is to stop; the epoll set knows it for as long as it is open.
    _waker: PipeReader,
    mode: Mode,
    /// Listening sockets; the number of one is the number of its events.
    listening: Vec<Listening>,
    /// In [`Mode::PortPerTransfer`], each transfer's socket with the number of its events.
    own: HashMap<Key, (u64, Socket)>,
    /// Whose events have this number.
    keys: HashMap<u64, Key>,
    next_number: u64,
    method: SendMethod,
    server: Server,
    /// How often in a row it was looked for a packet in vain.
    vain_looks: u32,
}

struct Listening {
    socket: Socket,
    address: IpAddr,
    /// What is sent from it next.
    batch: Batch,
}

impl Worker {
    fn new(
        waker: PipeReader,
        mode: Mode,
        sockets: Vec<Socket>,
        method: SendMethod,
        server: Server,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &waker, epoll::EventData::new_u64(STOP), epoll::EventFlags::IN)?;
        let mut listening = Vec::new();
        for (number, socket) in sockets.into_iter().enumerate() {
            epoll::add(&epoll, &socket, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN)?;
            let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            let address = socket.local_addr()?.as_socket().map_or(unspecified, |address| address.ip());
            listening.push(Listening { socket, address, batch: Batch::default() });
        }
        let next_number = listening.len() as u64;
        let (own, keys) = (HashMap::new(), HashMap::new());
        Ok(Self {
            epoll,
            _waker: waker,
            mode,
            listening,
            own,
            keys,
            next_number,
            method,
            server,
            vain_looks: 0,
        })
    }

    fn run(&mut self) {
        let mut events = Vec::with_capacity(BATCH);
        loop {
            events.clear();
            match self.wait(&mut events) {
                Ok(()) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "a TFTP worker cannot wait for packets and ends");
                    return;
                }
            }
            for event in &events {
                match event.data.u64() {
                    STOP => return,
                    number => self.receive(number),
                }
            }
            self.server.handle_timeout(Instant::now());
            self.flush();
        }
    }

    /// Waits for packets: a moment awake, then asleep.
    fn wait(&mut self, events: &mut Vec<epoll::Event>) -> Result<(), Errno> {
        if self.server.transfers() > 0 {
            let start = Instant::now();
            let patience = if self.vain_looks < LOOKS_MAX { LOOK_FOR } else { Duration::ZERO };
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            loop {
                if epoll::wait(&self.epoll, spare_capacity(events), Some(&now))? > 0 {
                    self.vain_looks = 0;
                    return Ok(());
                }
                if start.elapsed() >= patience {
                    break;
                }
                // A client on this very machine may need the core.
                std::thread::yield_now();
            }
            self.vain_looks += u32::from(!patience.is_zero());
        }
        let timeout = self.server.poll_timeout().map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = timeout
            .map(|time| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() });
        epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref())?;
        Ok(())
    }

    /// Reads which clients cannot be reached, and ends their transfers: whoever is sent to without having asked says so.
    fn take_errors(&mut self, number: u64) {
        for _ in 0..BATCH {
            let own = self.keys.get(&number).copied();
            let unreachable = match own {
                Some(key) => match self.own.get(&key) {
                    Some((_, socket)) => unreachable(socket.as_fd()).map(|found| found.map(|_| key.peer)),
                    None => return,
                },
                None => match self.listening.get(number as usize) {
                    Some(listening) => unreachable(listening.socket.as_fd()),
                    None => return,
                },
            };
            match unreachable {
                Ok(Some(peer)) => {
                    self.server.handle_unreachable(Instant::now(), peer);
                    self.close_ended();
                }
                Ok(None) => {}
                Err(_) => return,
            }
        }
    }

    /// Takes what has come on one socket.
    fn receive(&mut self, number: u64) {
        self.take_errors(number);
        let is_shared = self.mode == Mode::PortPerTransfer && !self.keys.contains_key(&number);
        for _ in 0..BATCH {
            let mut buffer = [0; DATAGRAM_MAX];
            let received = match self.keys.get(&number).copied() {
                Some(key) => {
                    let Some((_, socket)) = self.own.get(&key) else { return };
                    receive_connected(socket, &mut buffer).map(|length| Some((key, length)))
                }
                None => {
                    let Some(listening) = self.listening.get(number as usize) else { return };
                    receive(listening.socket.as_fd(), number as usize, listening.address, &mut buffer)
                }
            };
            match received {
                // Only who has heard of a transfer's own port speaks to it.
                Ok(Some((_, length))) if is_shared && !starts_transfer(&buffer[..length]) => {}
                Ok(Some((key, length))) => {
                    self.server.handle_datagram(Instant::now(), key, &buffer[..length]);
                    self.close_ended();
                    if self.mode == Mode::PortPerTransfer {
                        self.open_own(key);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A router's word that an earlier packet did not arrive.
                Err(_) => self.take_errors(number),
                // Not for us.
                Ok(None) => {}
            }
        }
    }

    /// Sends all that is to be sent.
    fn flush(&mut self) {
        let now = Instant::now();
        while let Some(Transmit { key, payload }) = self.server.poll_transmit(now) {
            // A packet of no transfer, an ERROR, goes out where the request came in.
            if let Some((_, socket)) = self.own.get(&key) {
                let sent = send(socket.as_fd(), Route { from: None, to: None }, payload, self.method);
                sent.unwrap_or_else(|error| report(Some(key.peer), &error));
            } else if let Some(listening) = self.listening.get_mut(key.listener) {
                let from = listening.address.is_unspecified().then_some(key.local);
                let route = Route { from, to: Some(key.peer) };
                if !listening.batch.push(route, payload) {
                    let sent = send(listening.socket.as_fd(), route, payload, self.method);
                    sent.unwrap_or_else(|error| report(route.to, &error));
                } else if listening.batch.is_full() {
                    listening.send(self.method);
                }
            }
        }
        for listening in &mut self.listening {
            listening.send(self.method);
        }
        self.close_ended();
    }

    /// Gives a new transfer its socket. Without one there is no transfer.
    fn open_own(&mut self, key: Key) {
        if !self.server.has(&key) || self.own.contains_key(&key) {
            return;
        }
        let number = self.next_number;
        let opened = connect(key).and_then(|socket| {
            epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => {
                self.next_number += 1;
                self.own.insert(key, (number, socket));
                self.keys.insert(number, key);
            }
            Err(error) => {
                tracing::warn!(peer = %key.peer, %error, "open a port for a TFTP transfer");
                self.server.give_up(Instant::now(), key);
                self.close_ended();
            }
        }
    }

    fn close_ended(&mut self) {
        while let Some(key) = self.server.poll_ended() {
            if let Some((number, _)) = self.own.remove(&key) {
                self.keys.remove(&number);
            }
        }
    }
}

impl Listening {
    fn send(&mut self, method: SendMethod) {
        self.batch.send(self.socket.as_fd(), method, |route, error| report(route.to, &error));
    }
}

/// Whether a datagram is a request (RFC 1350 §5), and not part of a transfer.
fn starts_transfer(datagram: &[u8]) -> bool {
    matches!(datagram, [0, 1 | 2, ..])
}

fn report(peer: Option<SocketAddr>, error: &io::Error) {
    tracing::debug!(?peer, %error, "send by TFTP");
}
