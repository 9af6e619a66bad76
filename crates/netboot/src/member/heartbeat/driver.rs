//! The socket and the thread of the heartbeat.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use goldwire_stdx::Stop;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::super::{Member, MemberConfig, MemberState, Table};
use super::machine::{Change, Group, Machine, Note, Peer, Refusal};
use super::wire::{Announcement, Condition, DATAGRAM_MAX};
use crate::bind::BindError;

/// Datagrams that are read before time is looked at again; a flood must not keep the dead alive.
const BATCH_MAX: usize = 1024;

/// What a member's heartbeat needs.
pub struct HeartbeatSettings {
    /// Address and UDP port to hear on.
    pub listen: SocketAddr,
    /// The group. [`Heartbeats::bind`] sets the announced port to the one that was bound.
    pub group: Group,
    /// Where to report.
    pub table: Arc<Table>,
}

/// A bound heartbeat.
pub struct Heartbeats {
    socket: UdpSocket,
    address: SocketAddr,
    group: Group,
    table: Arc<Table>,
}

impl Heartbeats {
    /// Binds the socket and joins the multicast groups among the addresses to announce to.
    ///
    /// # Errors
    /// `Listen`, `Need`.
    pub fn bind(settings: HeartbeatSettings) -> Result<Self, BindError> {
        let HeartbeatSettings { listen, mut group, table } = settings;
        let told = group.own.check().map_err(io::Error::other);
        told.map_err(BindError::need("announce this member"))?;
        let wrong = BindError::listen("heartbeats", listen);
        let socket =
            Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP)).map_err(&wrong)?;
        socket.set_broadcast(true).map_err(&wrong)?;
        socket.set_nonblocking(true).map_err(&wrong)?;
        socket.bind(&listen.into()).map_err(&wrong)?;
        let socket = UdpSocket::from(socket);
        for address in group.announce_to.iter().map(SocketAddr::ip).filter(IpAddr::is_multicast) {
            let joined = match address {
                IpAddr::V4(address) => {
                    let interface = match listen.ip() {
                        IpAddr::V4(own) => own,
                        IpAddr::V6(_) => std::net::Ipv4Addr::UNSPECIFIED,
                    };
                    socket.join_multicast_v4(&address, &interface)
                }
                IpAddr::V6(address) => socket.join_multicast_v6(&address, 0),
            };
            joined.map_err(BindError::need(format!("join the multicast group {address}")))?;
        }
        let address = socket.local_addr().map_err(&wrong)?;
        group.own.heartbeat_port = address.port();
        Ok(Self { socket, address, group, table })
    }

    /// Where it hears.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// `Need`.
    pub fn run(self) -> Result<RunningHeartbeats, BindError> {
        let mut boot_id = [0; 8];
        let start = || BindError::need("start the heartbeat");
        getrandom::fill(&mut boot_id).map_err(|error| start()(io::Error::other(error.to_string())))?;
        let shared = Arc::new(Shared {
            stop: Stop::new(),
            digest: Mutex::new(self.group.own.digest),
            peers: Mutex::new(None),
        });
        let address = self.address;
        let beating = Arc::clone(&shared);
        let beat = move || self.beat(u64::from_le_bytes(boot_id), &beating);
        let thread = goldwire_stdx::spawn("heartbeat", beat).map_err(start())?;
        Ok(RunningHeartbeats { address, shared, thread: Some(thread) })
    }

    fn beat(self, boot_id: u64, shared: &Shared) {
        let started = Instant::now();
        let mut machine = Machine::new(self.group.clone(), boot_id, Duration::ZERO);
        while !shared.stop.is_requested() {
            let wait = machine.poll_timeout().saturating_sub(started.elapsed());
            self.wait(wait);
            let condition = match self.table.own().map(|own| self.table.state_of(own)) {
                None | Some(MemberState::Alive) => Condition::Serving,
                Some(MemberState::Draining) => Condition::Draining,
                Some(MemberState::Dead) => Condition::Leaving,
            };
            machine.set_own(condition, *shared.digest.lock().unwrap_or_else(PoisonError::into_inner));
            if let Some(peers) = shared.peers.lock().unwrap_or_else(PoisonError::into_inner).take() {
                machine.set_peers(started.elapsed(), peers);
            }
            self.read(&mut machine, started);
            machine.handle_timeout(started.elapsed(), wall());
            self.flush(&mut machine);
        }
        machine.leave(wall());
        self.flush(&mut machine);
    }

    fn wait(&self, wait: Duration) {
        let mut sockets = [PollFd::new(&self.socket, PollFlags::IN)];
        let wait = Timespec::try_from(wait).ok();
        // An interrupted wait is a short one.
        let _ = poll(&mut sockets, wait.as_ref());
    }

    fn read(&self, machine: &mut Machine, started: Instant) {
        // One byte more than a heartbeat has, so that a longer datagram does not pass for one.
        let mut bytes = [0; DATAGRAM_MAX + 1];
        for _ in 0..BATCH_MAX {
            let (length, from) = match self.socket.recv_from(&mut bytes) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What an earlier datagram met at a dead member (ECONNREFUSED), or an interruption.
                Err(_) => continue,
            };
            match machine.handle_input(started.elapsed(), wall(), &bytes[..length]) {
                Ok(()) | Err(Refusal::Reflected | Refusal::Unproven) => {}
                Err(error) => tracing::debug!(%from, %error, "a heartbeat counts for nothing"),
            }
        }
    }

    fn flush(&self, machine: &mut Machine) {
        while let Some(datagram) = machine.poll_transmit() {
            // The next heartbeat is on its way in an interval: one that cannot be sent is one that was lost.
            if let Err(error) = self.socket.send_to(&datagram.bytes, datagram.to) {
                tracing::debug!(to = %datagram.to, %error, "a heartbeat could not be sent");
            }
        }
        while let Some(change) = machine.poll_change() {
            apply(&self.table, change);
        }
        while let Some(note) = machine.poll_note() {
            warn(&note);
        }
    }
}

/// A heartbeat's thread.
pub struct RunningHeartbeats {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stop: Stop,
    digest: Mutex<[u8; 16]>,
    /// Those who are configured now, until the thread has taken notice.
    peers: Mutex<Option<Vec<Peer>>>,
}

impl RunningHeartbeats {
    /// Where it hears.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the digest of boot tree and configuration that is compared with the others'.
    pub fn set_digest(&self, digest: [u8; 16]) {
        *self.shared.digest.lock().unwrap_or_else(PoisonError::into_inner) = digest;
    }

    /// Changes who is configured, within an interval. The table has to be told as well.
    pub fn set_peers(&self, peers: Vec<Peer>) {
        *self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner) = Some(peers);
    }

    /// Says goodbye to the others and ends.
    pub fn stop(self) {}
}

impl Drop for RunningHeartbeats {
    fn drop(&mut self) {
        self.shared.stop.request();
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported by its own thread.
            let _ = thread.join();
        }
    }
}

fn apply(table: &Table, change: Change) {
    let Some(state) = change.state else { return table.forget(&change.name) };
    if let Some(found) = change.found
        && !table.found(config(found))
    {
        tracing::warn!(member = change.name, "a member announced itself and there is no room for it");
    }
    table.report(&change.name, state, &change.why);
}

fn config(said: Announcement) -> MemberConfig {
    let member = Member {
        name: said.name,
        address: said.address,
        http_port: said.http_port,
        https_port: said.https_port,
        https_name: said.https_name,
    };
    MemberConfig {
        tftp_port: said.tftp_port,
        weight: said.weight.into(),
        is_found: true,
        ..MemberConfig::new(member)
    }
}

fn warn(note: &Note) {
    match note {
        Note::Differs { name } => {
            tracing::warn!(member = name, "the member serves another boot tree or configuration");
        }
        Note::Clock { name, seconds } => {
            tracing::warn!(member = name, seconds, "the member's clock differs: its tokens may be refused");
        }
        Note::NameTaken => tracing::warn!("another boot server uses this member's name"),
    }
}

fn wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::Key;
    use super::*;
    use crate::event::NoopObserver;

    fn announcement(name: &str) -> Announcement {
        Announcement {
            name: name.into(),
            address: "127.0.0.1".parse().unwrap(),
            http_port: 80,
            https_port: None,
            https_name: None,
            tftp_port: 69,
            heartbeat_port: 0,
            weight: 2,
            condition: Condition::Serving,
            digest: [0; 16],
        }
    }

    fn member(name: &str, peers: Vec<Peer>, secret: u8) -> (Heartbeats, Arc<Table>) {
        let configs = peers.iter().map(|peer| peer.name.as_str()).chain([name]);
        let configs = configs.map(|name| MemberConfig::new(config(announcement(name)).member)).collect();
        let table = Arc::new(Table::new(configs, Some(name.into()), Arc::new(NoopObserver)).unwrap());
        let group = Group {
            key: Key::new(&[secret; 32]),
            own: announcement(name),
            peers,
            announce_to: Vec::new(),
            accepts_found: true,
        };
        let settings =
            HeartbeatSettings { listen: "127.0.0.1:0".parse().unwrap(), group, table: Arc::clone(&table) };
        (Heartbeats::bind(settings).unwrap(), table)
    }

    #[test]
    fn members_find_each_other_over_real_sockets_and_miss_who_leaves() {
        let (a, a_table) = member("a", Vec::new(), 1);
        let peer = |to: &Heartbeats| vec![Peer { name: "a".into(), address: to.address() }];
        let (b, b_table) = member("b", peer(&a), 1);
        let (stranger, stranger_table) = member("stranger", peer(&a), 2);
        let [a, b, stranger] = [a, b, stranger].map(|member| member.run().unwrap());
        // Nobody told `a` of `b`; `b` has the key.
        goldwire_stdx::testing::until("a hears b", || a_table.state_of("b") == MemberState::Alive);
        goldwire_stdx::testing::until("b hears a", || b_table.state_of("a") == MemberState::Alive);
        assert!(a_table.all()[1].config.is_found && a_table.all()[1].config.weight == 2);
        a_table.report("a", MemberState::Draining, "the administrator wants it");
        goldwire_stdx::testing::until("b hears that a drains", || {
            b_table.state_of("a") == MemberState::Draining
        });
        b.stop();
        goldwire_stdx::testing::until("a misses b", || a_table.state_of("b") == MemberState::Dead);
        assert_eq!(a_table.all()[1].why, "it said goodbye");
        assert_eq!(stranger_table.state_of("a"), MemberState::Dead);
        assert_eq!(a_table.state_of("stranger"), MemberState::Dead);
        assert_eq!(a_table.all().len(), 2);
        drop((a, stranger));
    }

    #[test]
    fn who_is_configured_later_is_heard_and_who_is_no_more_is_not() {
        let configured = |name: &str| MemberConfig::new(config(announcement(name)).member);
        let (mut a, a_table) = member("a", Vec::new(), 1);
        a.group.accepts_found = false;
        let (b, _) = member("b", vec![Peer { name: "a".into(), address: a.address() }], 1);
        let (to_b, a) = (Peer { name: "b".into(), address: b.address() }, a.run().unwrap());
        let _b = b.run().unwrap();
        a_table.configure(vec![configured("a"), configured("b")]).unwrap();
        a.set_peers(vec![to_b]);
        goldwire_stdx::testing::until("a hears b", || a_table.state_of("b") == MemberState::Alive);
        a_table.configure(vec![configured("a")]).unwrap();
        a.set_peers(Vec::new());
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(a_table.all().len(), 1);
        assert_eq!(a_table.state_of("b"), MemberState::Dead);
    }
}
