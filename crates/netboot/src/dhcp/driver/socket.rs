//! The sockets: one for each interface or address and port, with the address and interface of every datagram.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime};

use nix::libc;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg};
use nix::sys::time::TimeSpec;
use socket2::{Domain, Protocol, Socket, Type};

use super::raw::FrameSocket;
use super::{DriverSettings, Ports};
use crate::bind::BindError;
use crate::dhcp::destination::Destination;
use crate::dhcp::server::Arrival;
use crate::dhcp::wire::RECEIVE_MAX;

/// What the kernel keeps for us while we are busy: some thousand requests.
const KERNEL_BUFFER: usize = 4 << 20;

/// All sockets of a driver.
#[derive(Debug)]
pub(super) struct SocketSet {
    pub(super) sockets: Vec<Bound>,
    /// None without the right to send frames; then such answers are broadcast.
    frames: Option<FrameSocket>,
    ports: Ports,
}

/// A socket that is bound.
#[derive(Debug)]
pub(super) struct Bound {
    fd: OwnedFd,
    /// Whether it is for clients that have an address and ask for their boot file only.
    pub(super) is_binl: bool,
    /// Where it is bound.
    pub(super) address: SocketAddrV4,
}

/// A datagram that came.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    pub(super) arrival: Arrival,
    /// When it came, by the kernel's word: it may have waited long for us.
    pub(super) came: SystemTime,
}

/// A datagram to be sent.
#[derive(Debug)]
pub(super) struct Datagram {
    pub(super) bytes: Vec<u8>,
    pub(super) destination: Destination,
    pub(super) arrival: Arrival,
}

impl SocketSet {
    pub(super) fn bind(settings: &DriverSettings) -> Result<Self, BindError> {
        let mut sockets = Vec::new();
        let roles: Vec<(u16, bool)> = std::iter::once((settings.ports.server, false))
            .chain(settings.ports.binl.map(|port| (port, true)))
            .collect();
        for name in &settings.interfaces {
            for (port, is_binl) in &roles {
                let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, *port);
                let bound = bind_one(address, Some(name), *is_binl, settings.is_port_shared);
                sockets.push(bound.map_err(|source| BindError::Listen {
                    for_what: format!("for DHCP on interface {name}, UDP port {port}"),
                    port: *port,
                    source,
                })?);
            }
        }
        for address in &settings.addresses {
            let ports =
                std::iter::once((address.port(), false)).chain(settings.ports.binl.map(|port| (port, true)));
            for (port, is_binl) in ports {
                let address = SocketAddrV4::new(*address.ip(), port);
                let bound = bind_one(address, None, is_binl, settings.is_port_shared);
                sockets.push(bound.map_err(BindError::listen("DHCP", address.into()))?);
            }
        }
        let frames = match FrameSocket::open(0) {
            Ok(frames) => Some(frames),
            Err(error) => {
                tracing::info!(%error, "no right to send frames: answers to clients without an address are broadcast");
                None
            }
        };
        Ok(Self { sockets, frames, ports: settings.ports })
    }

    /// The next datagram of a socket; `WouldBlock` when there is none.
    pub(super) fn receive(&self, socket: usize) -> io::Result<Option<Received>> {
        let bound = self.sockets.get(socket).ok_or(io::ErrorKind::NotFound)?;
        // One byte more than any client sends, so that a longer one is seen to be longer.
        let mut buffer = [0; RECEIVE_MAX + 1];
        let mut control = nix::cmsg_space!(libc::in_pktinfo, TimeSpec);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<SockaddrIn>(
            bound.fd.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        let length = message.bytes;
        let from = message.address.map(SocketAddrV4::from);
        let (mut info, mut came) = (None, SystemTime::now());
        for control in message.cmsgs()? {
            match control {
                ControlMessageOwned::Ipv4PacketInfo(found) => info = Some(found),
                ControlMessageOwned::ScmTimestampns(time) => {
                    came = SystemTime::UNIX_EPOCH + Duration::from(time);
                }
                _ => {}
            }
        }
        let (Some(from), Some(info)) = (from, info) else { return Ok(None) };
        let address = |address: libc::in_addr| Ipv4Addr::from(u32::from_be(address.s_addr));
        let own = address(info.ipi_spec_dst);
        let arrival = Arrival {
            received_on: own,
            is_broadcast: address(info.ipi_addr) != own,
            from,
            link: link(socket, info.ipi_ifindex.unsigned_abs()),
        };
        Ok(Some(Received { bytes: buffer[..length].to_vec(), arrival, came }))
    }

    /// Sends an answer from the address to which its request came, on the interface where it came.
    pub(super) fn send(&self, datagram: &Datagram) -> io::Result<()> {
        let (socket, interface) = unlink(datagram.arrival.link);
        let bound = self.sockets.get(socket).ok_or(io::ErrorKind::NotFound)?;
        let from = datagram.arrival.received_on;
        let broadcast = SocketAddrV4::new(Ipv4Addr::BROADCAST, self.ports.client);
        let to = match datagram.destination {
            Destination::Relay(relay) => SocketAddrV4::new(relay, self.ports.relay),
            Destination::Unicast(to) if to.port() == crate::dhcp::destination::CLIENT_PORT => {
                SocketAddrV4::new(*to.ip(), self.ports.client)
            }
            Destination::Unicast(to) => to,
            Destination::Broadcast => broadcast,
            Destination::ToHardware { mac, address } => {
                let from = SocketAddrV4::new(from, bound.address.port());
                let to = SocketAddrV4::new(address, self.ports.client);
                let sent =
                    self.frames.as_ref().map(|frames| frames.send(interface, mac, from, to, &datagram.bytes));
                match sent {
                    Some(Ok(())) => return Ok(()),
                    // No Ethernet, or no right: RFC 2131 §4.1 allows a broadcast instead.
                    _ => broadcast,
                }
            }
        };
        // What is broadcast has to leave where the client is; all else finds its way.
        let interface = if to == broadcast { i32::try_from(interface).unwrap_or(0) } else { 0 };
        let info = libc::in_pktinfo {
            ipi_ifindex: interface,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from(from).to_be() },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        sendmsg(
            bound.fd.as_raw_fd(),
            &[IoSlice::new(&datagram.bytes)],
            &[ControlMessage::Ipv4PacketInfo(&info)],
            MsgFlags::MSG_DONTWAIT,
            Some(&SockaddrIn::from(to)),
        )?;
        Ok(())
    }

    /// Whether a datagram with this arrival came to the port for boot files.
    pub(super) fn is_binl(&self, arrival: &Arrival) -> bool {
        self.sockets.get(unlink(arrival.link).0).is_some_and(|bound| bound.is_binl)
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Socket and interface in one number.
fn link(socket: usize, interface: u32) -> usize {
    socket << 32 | interface as usize
}

/// The index of the interface in an arrival's link.
pub(super) fn interface_of(link: usize) -> u32 {
    unlink(link).1
}

fn unlink(link: usize) -> (usize, u32) {
    (link >> 32, link as u32)
}

fn bind_one(
    address: SocketAddrV4,
    interface: Option<&str>,
    is_binl: bool,
    is_port_shared: bool,
) -> io::Result<Bound> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_broadcast(true)?;
    if let Some(name) = interface {
        // First of all: sockets of different interfaces may have one port, and of one interface only if both allow it.
        socket.bind_device(Some(name.as_bytes()))?;
    }
    socket.set_reuse_address(is_port_shared && !is_binl)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4PacketInfo, &true)?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::ReceiveTimestampns, &true)?;
    // No don't-fragment bit: some boot ROMs drop datagrams that carry it.
    rustix::net::sockopt::set_ip_mtu_discover(&socket, rustix::net::sockopt::Ipv4PathMtuDiscovery::DONT)?;
    // As much as the system allows.
    if socket.set_recv_buffer_size(KERNEL_BUFFER).is_err() {
        tracing::debug!("the receive buffer stays as it is");
    }
    socket.bind(&address.into())?;
    let address = socket.local_addr()?.as_socket_ipv4().unwrap_or(address);
    Ok(Bound { fd: socket.into(), is_binl, address })
}
