//! Sockets of TFTP: how they are opened, and what is read from them.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use socket2::{Domain, Socket, Type};

use super::server::Key;

/// No request and no ACK is longer; what is cut off was no packet of a client.
pub(super) const DATAGRAM_MAX: usize = 1024;

/// Requests of a boot storm wait here.
const RECEIVE_BUFFER: usize = 1 << 20;

/// Several windows of large blocks.
const SEND_BUFFER: usize = 4 << 20;

/// How long a full socket is waited for before a packet counts as lost.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// A datagram socket for a server.
pub(super) fn listen(address: SocketAddr, is_shared: bool) -> io::Result<Socket> {
    let socket = open(address)?;
    socket.set_reuse_port(is_shared)?;
    match address {
        SocketAddr::V4(_) => {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4PacketInfo, &true)?
        }
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6RecvPacketInfo, &true)?;
        }
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    // More than the kernel's limit becomes the limit.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    // What ICMP says of a client is heard on a socket for many clients only with this.
    match address {
        SocketAddr::V4(_) => {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv4RecvErr, &true)?
        }
        SocketAddr::V6(_) => {
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Ipv6RecvErr, &true)?
        }
    }
    // Without the bit that forbids fragments: ROMs do not take part in finding a path's MTU.
    match address {
        SocketAddr::V4(_) => sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DONT)?,
        SocketAddr::V6(_) => sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::DONT)?,
    }
    Ok(socket)
}

/// A transfer's own socket, in [`Mode::PortPerTransfer`].
pub(super) fn connect(key: Key) -> io::Result<Socket> {
    let local = match (key.local, key.peer) {
        // A link-local address is one only together with its interface.
        (IpAddr::V6(address), SocketAddr::V6(peer)) => {
            SocketAddrV6::new(address, 0, 0, peer.scope_id()).into()
        }
        (address, _) => SocketAddr::new(address, 0),
    };
    let socket = open(local)?;
    socket.bind(&local.into())?;
    socket.connect(&key.peer.into())?;
    Ok(socket)
}

/// A datagram on a listening socket.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    listener: usize,
    bound: IpAddr,
    buffer: &mut [u8],
) -> io::Result<Option<(Key, usize)>> {
    // Room for one of the two; the one of IPv6 is the larger.
    let mut control = [0; nix::sys::socket::cmsg_space::<nix::libc::in6_pktinfo>()];
    let mut slices = [IoSliceMut::new(buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT,
    )?;
    let mut local = bound;
    for control in message.cmsgs()? {
        match control {
            // What the packet was sent to, or for a broadcast the address of the interface.
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                local = Ipv4Addr::from_bits(u32::from_be(info.ipi_spec_dst.s_addr)).into();
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                local = Ipv6Addr::from(info.ipi6_addr.s6_addr).into()
            }
            _ => {}
        }
    }
    let peer = message.address.and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|peer| SocketAddr::V4((*peer).into()));
        v4.or_else(|| address.as_sockaddr_in6().map(|peer| SocketAddr::V6((*peer).into())))
    });
    let key = peer.filter(|_| !local.is_multicast()).map(|peer| Key { listener, local, peer });
    Ok(key.map(|key| (key, message.bytes)))
}

/// The next entry of a socket's error queue (ip(7), IP_RECVERR): whom an earlier packet did not reach, if his host or a
/// router says so (RFC 792, RFC 4443: destination unreachable).
pub(super) fn unreachable(socket: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
    let mut buffer = [0; DATAGRAM_MAX];
    let mut control = nix::cmsg_space!([u8; 128]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_ERRQUEUE,
    )?;
    let is_unreachable = message.cmsgs()?.any(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, _) => {
            error.ee_origin == nix::libc::SO_EE_ORIGIN_ICMP && error.ee_type == 3 && error.ee_code != 4
        }
        ControlMessageOwned::Ipv6RecvErr(error, _) => {
            error.ee_origin == nix::libc::SO_EE_ORIGIN_ICMP6 && error.ee_type == 1
        }
        _ => false,
    });
    let peer = message.address.and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|peer| SocketAddr::V4((*peer).into()));
        v4.or_else(|| address.as_sockaddr_in6().map(|peer| SocketAddr::V6((*peer).into())))
    });
    Ok(peer.filter(|_| is_unreachable))
}

/// A datagram on a transfer's own socket: from its client, or the kernel would not have put it there.
pub(super) fn receive_connected(socket: &Socket, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(nix::sys::socket::recv(socket.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?)
}
