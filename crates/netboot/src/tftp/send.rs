//! Puts packets on a socket: a burst of blocks in one system call where the kernel can.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, sendmsg};

use super::server::Payload;
use super::wire::{DATA_HEADER, data_header};

/// How a burst of blocks is handed to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendMethod {
    /// As one large datagram that the kernel or the card cuts (UDP_SEGMENT, Linux 4.18). By far the cheapest. Where a
    /// route cannot (a block that does not fit the interface's frame, IPsec), [`Self::Batch`] is used instead.
    Segments,
    /// As several datagrams in one call (`sendmmsg`).
    Batch,
    /// One call for each.
    Single,
}

/// From which address to whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Route {
    /// The address to send from; none where the socket is bound to it.
    pub(super) from: Option<IpAddr>,
    /// The client; none where the socket is connected to it.
    pub(super) to: Option<SocketAddr>,
}

impl SendMethod {
    /// The best that this kernel has for the socket.
    pub(super) fn of(socket: BorrowedFd<'_>) -> Self {
        match nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::UdpGsoSegment) {
            Ok(_) => Self::Segments,
            Err(_) => Self::Batch,
        }
    }
}

/// Sends, waiting for room in the socket's buffer. What the network does not take is lost like what it loses later: the
/// transfer's timer finds it.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    route: Route,
    payload: Payload<'_>,
    method: SendMethod,
) -> io::Result<()> {
    let (first, count, block_size, bytes) = match payload {
        Payload::Packet(packet) => return send_one(socket, route, &[IoSlice::new(packet)], None),
        Payload::Blocks { first, count: 1, bytes, .. } => {
            let header = data_header(first);
            let slices = [IoSlice::new(&header), IoSlice::new(bytes)];
            return send_one(socket, route, &slices, None);
        }
        Payload::Blocks { first, count, block_size, bytes } => (first, count, block_size, bytes),
    };
    let headers: Vec<_> = (0..count).map(|at| data_header(first.wrapping_add(at))).collect();
    let size = usize::from(block_size);
    let slices: Vec<[IoSlice<'_>; 2]> = headers
        .iter()
        .enumerate()
        .map(|(at, header)| {
            let from = (at * size).min(bytes.len());
            [IoSlice::new(header), IoSlice::new(&bytes[from..(from + size).min(bytes.len())])]
        })
        .collect();
    if method == SendMethod::Segments {
        let segment = block_size + DATA_HEADER as u16;
        match send_one(socket, route, slices.as_flattened(), Some(segment)) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIO | libc::EMSGSIZE)) => {
            }
            done => return done,
        }
    }
    if method != SendMethod::Single {
        return send_batch(socket, route, &slices);
    }
    slices.iter().try_for_each(|slices| send_one(socket, route, slices, None))
}

fn send_one(
    socket: BorrowedFd<'_>,
    route: Route,
    slices: &[IoSlice<'_>],
    segment: Option<u16>,
) -> io::Result<()> {
    let to = route.to.map(SockaddrStorage::from);
    with_controls(route.from, segment, |controls| {
        retry(|| sendmsg(socket.as_raw_fd(), slices, controls, MsgFlags::empty(), to.as_ref()).map(drop))
    })
}

fn send_batch(socket: BorrowedFd<'_>, route: Route, slices: &[[IoSlice<'_>; 2]]) -> io::Result<()> {
    let to = route.to.map(SockaddrStorage::from);
    with_controls(route.from, None, |controls| {
        let mut rest = slices;
        while !rest.is_empty() {
            let room: usize = controls.iter().map(control_space).sum();
            let control_buffer = (room > 0).then(|| vec![0; room]);
            let addresses = vec![to; rest.len()];
            let sent = retry(|| {
                let mut headers = MultiHeaders::preallocate(rest.len(), control_buffer.clone());
                let sent = sendmmsg(
                    socket.as_raw_fd(),
                    &mut headers,
                    rest,
                    &addresses,
                    controls,
                    MsgFlags::empty(),
                )?;
                Ok(sent.count())
            })?;
            rest = rest.get(sent.max(1)..).unwrap_or(&[]);
        }
        Ok(())
    })
}

/// Bytes that a control message takes.
fn control_space(control: &ControlMessage<'_>) -> usize {
    match control {
        ControlMessage::Ipv4PacketInfo(_) => nix::cmsg_space!(libc::in_pktinfo).len(),
        ControlMessage::Ipv6PacketInfo(_) => nix::cmsg_space!(libc::in6_pktinfo).len(),
        _ => 0,
    }
}

/// Makes the control messages that choose the source address and the segments' size.
fn with_controls<T>(
    from: Option<IpAddr>,
    segment: Option<u16>,
    send: impl FnOnce(&[ControlMessage<'_>]) -> T,
) -> T {
    let size = segment.unwrap_or(0);
    let mut controls = Vec::with_capacity(2);
    if segment.is_some() {
        controls.push(ControlMessage::UdpGsoSegments(&size));
    }
    // The interface is left to the routes.
    match from {
        Some(IpAddr::V4(address)) => {
            let address = libc::in_addr { s_addr: address.to_bits().to_be() };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: address, ipi_addr: address };
            controls.push(ControlMessage::Ipv4PacketInfo(&info));
            send(&controls)
        }
        Some(IpAddr::V6(address)) => {
            let ipi6_addr = libc::in6_addr { s6_addr: address.octets() };
            let info = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 };
            controls.push(ControlMessage::Ipv6PacketInfo(&info));
            send(&controls)
        }
        None => send(&controls),
    }
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            done => return done.map_err(io::Error::from),
        }
    }
}
