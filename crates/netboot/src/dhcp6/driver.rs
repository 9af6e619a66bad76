//! The sockets: one thread for all interfaces, as little is asked.

use std::fmt;
use std::io::{self, PipeReader};
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::Arc;
use std::thread::JoinHandle;

use goldwire_stdx::Stop;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::if_nametoindex;
use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::responder::{BINL_PORT, Responder, SERVER_PORT, server_id};
use super::wire::{Packet, RECEIVE_MAX};
use crate::bind::BindError;
use crate::content::UrlBuilder;
use crate::device::Mac;
use crate::event::{self, Event, EventKind, Observer};
use crate::policy::BootPolicy;

/// All servers and relays of a link, and all servers of a site (RFC 8415 §7.1).
const GROUPS: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2), Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 1, 3)];
/// Datagrams that are taken from one socket before the others are looked at.
const BATCH: usize = 32;

/// What the server needs.
pub struct Settings {
    /// Names of the interfaces to listen on.
    pub interfaces: Vec<String>,
    /// Ports to listen on: 547 and 4011. Tests bind others; 0 is a free one.
    pub ports: [u16; 2],
    /// What devices boot.
    pub policy: Arc<dyn BootPolicy>,
    /// The paths of what they boot.
    pub urls: UrlBuilder,
    /// Who hears of it.
    pub observer: Arc<dyn Observer>,
}

impl Settings {
    /// The ports of the RFC and of PXE.
    pub const PORTS: [u16; 2] = [SERVER_PORT, BINL_PORT];
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("interfaces", &self.interfaces)
            .field("ports", &self.ports)
            .finish_non_exhaustive()
    }
}

/// A server that listens and does not answer yet: time to drop privileges.
#[derive(Debug)]
pub struct Bound {
    listeners: Vec<Listener>,
    responder: Responder,
    observer: Observers,
    stop: Stop,
    waker: PipeReader,
}

/// A server that answers. It stops when this is dropped.
#[derive(Debug)]
pub struct Running {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Listener {
    socket: UdpSocket,
    /// The address that we are known by on this interface.
    address: Ipv6Addr,
    /// What the port means, whatever number a test gave it.
    port: u16,
}

struct Observers(Arc<dyn Observer>);

impl fmt::Debug for Observers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

impl Bound {
    /// Listens on all interfaces of the settings.
    ///
    /// # Errors
    /// `Listen`, `Need`.
    pub fn bind(settings: Settings) -> Result<Self, BindError> {
        let mut listeners = Vec::new();
        let mut own_mac = None;
        for interface in &settings.interfaces {
            let unknown = |error: nix::Error| {
                BindError::need(format!("look up the interface {interface}"))(error.into())
            };
            let index = if_nametoindex(interface.as_str()).map_err(unknown)?;
            let (address, mac) = addresses(interface).map_err(unknown)?;
            own_mac = own_mac.or(mac);
            for (port, meaning) in settings.ports.into_iter().zip(Settings::PORTS) {
                let failed = |source| {
                    let for_what = format!("for DHCPv6 on port {port} of {interface}");
                    BindError::Listen { for_what, port, source }
                };
                let socket = listen(interface, index, port).map_err(failed)?;
                listeners.push(Listener { socket, address, port: meaning });
            }
        }
        let stop = Stop::new();
        let waker = stop.waker().map_err(BindError::need("start the DHCPv6 server"))?;
        let server_id = server_id(own_mac.unwrap_or(Mac([0; 6])));
        let Settings { policy, urls, observer, .. } = settings;
        let responder = Responder::new(policy, urls, Arc::clone(&observer), server_id);
        Ok(Self { listeners, responder, observer: Observers(observer), stop, waker })
    }

    /// The ports that are listened on, two for each interface.
    pub fn ports(&self) -> Vec<u16> {
        let port = |listener: &Listener| listener.socket.local_addr().map_or(0, |address| address.port());
        self.listeners.iter().map(port).collect()
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// `Need`.
    pub fn run(self) -> Result<Running, BindError> {
        let stop = self.stop.clone();
        let thread = goldwire_stdx::spawn("dhcp6", move || self.serve())
            .map_err(BindError::need("start the DHCPv6 server"))?;
        Ok(Running { stop, thread: Some(thread) })
    }

    fn serve(&self) {
        let mut buffer = vec![0; RECEIVE_MAX + 1];
        loop {
            let mut waited: Vec<PollFd<'_>> = vec![PollFd::new(&self.waker, PollFlags::IN)];
            waited.extend(self.listeners.iter().map(|listener| PollFd::new(&listener.socket, PollFlags::IN)));
            match poll(&mut waited, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "the DHCPv6 server cannot wait for packets and ends");
                    return;
                }
            }
            if !waited[0].revents().is_empty() {
                return;
            }
            for listener in &self.listeners {
                for _ in 0..BATCH {
                    let Ok((length, SocketAddr::V6(from))) = listener.socket.recv_from(&mut buffer) else {
                        break;
                    };
                    self.answer(listener, &buffer[..length], from);
                }
            }
        }
    }

    fn answer(&self, listener: &Listener, bytes: &[u8], from: SocketAddrV6) {
        let packet = match Packet::decode(bytes) {
            Ok(packet) => packet,
            Err(error) => {
                let reason = error.to_string();
                let kind = EventKind::Dropped { protocol: event::Protocol::Dhcp6, reason: &reason };
                self.observer.0.observe(&Event { mac: None, address: Some((*from.ip()).into()), kind });
                return;
            }
        };
        if let Some(reply) = self.responder.handle(&packet, *from.ip(), listener.address, listener.port)
            && let Err(error) = listener.socket.send_to(&reply.encode(), from)
        {
            tracing::warn!(%from, %error, "a DHCPv6 answer could not be sent");
        }
    }
}

impl Running {
    /// Answers no more, and waits for the thread.
    pub fn stop(self) {}
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A socket for one interface: an answer leaves where the question came from, and another server may have the port on
/// other interfaces.
fn listen(interface: &str, index: u32, port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_only_v6(true)?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    for group in GROUPS {
        socket.join_multicast_v6(&group, index)?;
    }
    Ok(socket.into())
}

/// The address that others reach us by on an interface (a global one if there is any), and its hardware address.
fn addresses(interface: &str) -> nix::Result<(Ipv6Addr, Option<Mac>)> {
    let mut address = Ipv6Addr::UNSPECIFIED;
    let mut mac = None;
    for found in getifaddrs()?.filter(|found| found.interface_name == interface) {
        let Some(storage) = found.address else { continue };
        if let Some(found) = storage.as_sockaddr_in6() {
            if address.is_unspecified() || address.is_unicast_link_local() {
                address = found.ip();
            }
        } else if let Some(link) = storage.as_link_addr() {
            mac = link.addr().map(Mac);
        }
    }
    Ok((address, mac))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dhcp::testing::{Always, Notes, boot, file};
    use crate::dhcp6::wire::{Message, MessageType, Options, code};
    use crate::policy::Action;

    #[test]
    fn a_question_on_the_loopback_is_answered_and_noise_is_not() {
        let notes = Arc::new(Notes::default());
        let action = Action::Boot(Box::new(boot(file("desktop.ipxe"), &["2001:db8::1"])));
        let bound = Bound::bind(Settings {
            interfaces: vec!["lo".into()],
            ports: [0, 0],
            policy: Arc::new(Always(action)),
            urls: UrlBuilder::default(),
            observer: notes.clone(),
        });
        let bound = match bound {
            Ok(bound) => bound,
            Err(error) => {
                let is_without = std::path::Path::new("/proc/net/if_inet6").metadata().is_err();
                assert!(is_without, "{error}: {:?}", std::error::Error::source(&error));
                return goldwire_stdx::testing::excuse(goldwire_stdx::testing::Excuse::NoIpv6);
            }
        };
        let port = bound.ports()[0];
        let running = bound.run().unwrap();
        let client = UdpSocket::bind("[::1]:0").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client.send_to(b"noise", ("::1", port)).unwrap();
        let mut options = Options::default();
        options.push(code::CLIENT_ID, [0, 3, 0, 1, 2, 0, 0, 0, 0, 1]);
        options.push(code::USER_CLASS, *b"\0\x04iPXE");
        let message = Message { kind: MessageType::INFORMATION_REQUEST, transaction: [1, 2, 3], options };
        let question = Packet { relays: Vec::new(), message }.encode();
        client.send_to(&question, ("::1", port)).unwrap();
        let mut buffer = [0; 2048];
        let (length, _) = client.recv_from(&mut buffer).unwrap();
        let answer = Packet::decode(&buffer[..length]).unwrap().message;
        assert_eq!((answer.kind, answer.transaction), (MessageType::REPLY, [1, 2, 3]));
        drop(running);
        assert!(notes.0.lock().unwrap()[0].contains("begins no option"), "the noise was heard first");
    }
}
