//! Puts packets on a socket: a burst of blocks to one client, and what several clients get at the same time, each in one
//! system call where the kernel can.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, sendmsg};

use super::server::Payload;
use super::wire::{DATA_HEADER, data_header};

/// How a burst of blocks is handed to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendMethod {
    /// As one large datagram that the kernel or the card cuts (UDP_SEGMENT, Linux 4.18). By far the cheapest. Where a
    /// route cannot (a block that does not fit the interface's frame, IPsec), [`Self::Batch`] is used instead.
    Segments,
    /// As several datagrams in one call (`sendmmsg`).
    Batch,
    /// One call for each.
    Single,
}

/// From which address to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Packets that leave one socket together. Without a window that is one block for each client, and a client that wakes up
/// at every packet of another one takes the core from the server.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    packets: Vec<(Route, Range<usize>)>,
}

impl Batch {
    /// Most packets that wait for each other.
    const PACKETS_MAX: usize = 32;

    /// Takes a payload of one packet, or says that it is a burst, which needs no company.
    pub(super) fn push(&mut self, route: Route, payload: Payload<'_>) -> bool {
        let start = self.bytes.len();
        match payload {
            Payload::Packet(packet) => self.bytes.extend_from_slice(packet),
            Payload::Blocks { first, count: 1, bytes, .. } => {
                self.bytes.extend_from_slice(&data_header(first));
                self.bytes.extend_from_slice(bytes);
            }
            Payload::Blocks { .. } => return false,
        }
        self.packets.push((route, start..self.bytes.len()));
        true
    }

    /// Whether it is time to send.
    pub(super) fn is_full(&self) -> bool {
        self.packets.len() >= Self::PACKETS_MAX
    }

    /// Sends all and tells of each that the network did not take.
    pub(super) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        method: SendMethod,
        mut failed: impl FnMut(Route, io::Error),
    ) {
        // What goes to all packets of a call is the same: the address that they come from.
        for group in self.packets.chunk_by(|(a, _), (b, _)| a.from == b.from) {
            let mut rest = group;
            while let Some((route, range)) = rest.first() {
                let sent = if rest.len() == 1 || method == SendMethod::Single {
                    let slices = [IoSlice::new(&self.bytes[range.clone()])];
                    send_one(socket, *route, &slices, None).map(|()| 1)
                } else {
                    let slices: Vec<_> =
                        rest.iter().map(|(_, range)| [IoSlice::new(&self.bytes[range.clone()])]).collect();
                    let to: Vec<_> =
                        rest.iter().map(|(route, _)| route.to.map(SockaddrStorage::from)).collect();
                    send_batch(socket, route.from, &slices, &to)
                };
                let done = sent.unwrap_or_else(|error| {
                    failed(*route, error);
                    1
                });
                rest = rest.get(done..).unwrap_or(&[]);
            }
        }
        self.bytes.clear();
        self.packets.clear();
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
    if method == SendMethod::Single {
        return slices.iter().try_for_each(|slices| send_one(socket, route, slices, None));
    }
    let to = vec![route.to.map(SockaddrStorage::from); slices.len()];
    let mut done = 0;
    while done < slices.len() {
        done += send_batch(socket, route.from, &slices[done..], &to[done..])?;
    }
    Ok(())
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

/// Sends the first of these packets, each to its address, and tells how many; at least one.
fn send_batch<const N: usize>(
    socket: BorrowedFd<'_>,
    from: Option<IpAddr>,
    packets: &[[IoSlice<'_>; N]],
    to: &[Option<SockaddrStorage>],
) -> io::Result<usize> {
    with_controls(from, None, |controls| {
        let room: usize = controls.iter().map(control_space).sum();
        let control_buffer = (room > 0).then(|| vec![0; room]);
        let sent = retry(|| {
            let mut headers = MultiHeaders::preallocate(packets.len(), control_buffer.clone());
            let sent = sendmmsg(socket.as_raw_fd(), &mut headers, packets, to, controls, MsgFlags::empty())?;
            Ok(sent.count())
        })?;
        Ok(sent.max(1))
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

/// So many errors of earlier packets may be met before one packet is given up.
const PENDING_ERRORS_MAX: u32 = 8;

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> io::Result<T> {
    let mut others = 0;
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            // With IP_RECVERR, a send meets what ICMP said of a packet before, which may have been somebody else's; the packet
            // itself has not been sent.
            Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::EACCES)
                if others < PENDING_ERRORS_MAX =>
            {
                others += 1;
            }
            done => return done.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    fn packet_for(number: u8) -> Vec<u8> {
        [&data_header(number.into())[..], &[number; 3]].concat()
    }

    /// Two server addresses, a client that cannot be sent to between the others: every other client has its packet,
    /// from the address that it asked, and who failed is told of once.
    #[test]
    fn who_cannot_be_sent_to_costs_nobody_else_a_packet() {
        for method in [SendMethod::Segments, SendMethod::Single] {
            let server = UdpSocket::bind("0.0.0.0:0").unwrap();
            let port = server.local_addr().unwrap().port();
            let clients: Vec<_> = (0..6).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
            // Nothing can be sent to port 0.
            let nobody: SocketAddr = "127.0.0.1:0".parse().unwrap();
            let mut batch = Batch::default();
            for (number, client) in (0..).zip(&clients) {
                let from = Some(IpAddr::from([127, 0, 0, 1 + number / 3]));
                let bytes = [number; 3];
                let payload =
                    Payload::Blocks { first: number.into(), count: 1, block_size: 512, bytes: &bytes };
                assert!(batch.push(Route { from, to: Some(client.local_addr().unwrap()) }, payload));
                if number == 1 || number == 5 {
                    assert!(batch.push(Route { from, to: Some(nobody) }, Payload::Packet(b"lost")));
                }
            }
            let mut failed = Vec::new();
            batch.send(server.as_fd(), method, |route, error| failed.push((route.to, error.raw_os_error())));
            assert_eq!(failed, [(Some(nobody), Some(libc::EINVAL)); 2], "{method:?}");
            for (number, client) in (0..).zip(&clients) {
                client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                let mut buffer = [0; 100];
                let (length, from) = client.recv_from(&mut buffer).unwrap();
                assert_eq!(buffer[..length], packet_for(number), "{method:?}");
                assert_eq!(from, SocketAddr::from(([127, 0, 0, 1 + number / 3], port)), "{method:?}");
                // Once only.
                client.set_nonblocking(true).unwrap();
                assert!(client.recv(&mut buffer).is_err(), "{method:?} {number}");
            }
            assert!(batch.packets.is_empty() && batch.bytes.is_empty());
        }
    }

    #[test]
    fn a_burst_is_not_for_a_batch() {
        let mut batch = Batch::default();
        let burst = Payload::Blocks { first: 1, count: 2, block_size: 512, bytes: &[0; 700] };
        assert!(!batch.push(Route { from: None, to: None }, burst));
        assert!(batch.packets.is_empty());
    }
}
