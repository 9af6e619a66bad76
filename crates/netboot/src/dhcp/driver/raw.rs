//! Frames: answers to clients that have no address yet go to their hardware address (RFC 2131 §4.1), which a UDP socket
//! cannot do, because such a client does not answer ARP; and ARP itself.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, MsgFlags, SockaddrLike as _, recv, sendto};
use socket2::{Domain, Protocol, Socket, Type};

use crate::device::Mac;

const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const PROTOCOL_UDP: u8 = 17;
const IPV4_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// A socket for frames of every Ethernet interface.
#[derive(Debug)]
pub(super) struct FrameSocket {
    socket: OwnedFd,
    urls: HashMap<u32, (LinkAddr, Mac)>,
}

impl FrameSocket {
    /// Opens the socket. It hears what is sent with this type of frame; with 0, nothing.
    pub(super) fn open(ethertype: u16) -> io::Result<Self> {
        let protocol = Protocol::from(i32::from(ethertype.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol))?;
        socket.set_nonblocking(true)?;
        let mut urls = HashMap::new();
        for interface in getifaddrs()? {
            let link = interface.address.as_ref().and_then(|address| address.as_link_addr().copied());
            if let Some(link) = link
                && let (Ok(index), Some(mac)) = (u32::try_from(link.ifindex()), link.addr())
            {
                urls.insert(index, (link, Mac(mac)));
            }
        }
        Ok(Self { socket: socket.into(), urls })
    }

    /// Sends a datagram to a hardware address on the interface of this index.
    pub(super) fn send(
        &self,
        interface: u32,
        to_mac: Mac,
        from: SocketAddrV4,
        to: SocketAddrV4,
        payload: &[u8],
    ) -> io::Result<()> {
        let own = self.mac_of(interface).ok_or(io::ErrorKind::NotFound)?;
        self.send_frame(interface, &frame(own, to_mac, from, to, payload))
    }

    /// Sends a frame as it is on the interface of this index.
    pub(super) fn send_frame(&self, interface: u32, frame: &[u8]) -> io::Result<()> {
        let (link, _) = self.urls.get(&interface).ok_or(io::ErrorKind::NotFound)?;
        debug_assert!(link.family() == Some(nix::sys::socket::AddressFamily::Packet));
        sendto(self.socket.as_raw_fd(), frame, link, MsgFlags::empty())?;
        Ok(())
    }

    /// Takes the next frame that was heard, as much of it as there is room for; `WouldBlock` when there is none.
    pub(super) fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.socket.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT)?)
    }

    /// The hardware address of an interface.
    pub(super) fn mac_of(&self, interface: u32) -> Option<Mac> {
        self.urls.get(&interface).map(|(_, own)| *own)
    }

    /// Whether a hardware address is one of ours.
    pub(super) fn is_own(&self, mac: Mac) -> bool {
        self.urls.values().any(|(_, own)| *own == mac)
    }
}

impl AsFd for FrameSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// An Ethernet frame with a UDP datagram (RFC 791, RFC 768). Without the don't-fragment bit: some boot ROMs drop datagrams
/// that carry it.
fn frame(from_mac: Mac, to_mac: Mac, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let udp_length = (UDP_HEADER + payload.len()) as u16;
    let total_length = IPV4_HEADER as u16 + udp_length;
    let mut header = [0; IPV4_HEADER];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&total_length.to_be_bytes());
    header[8] = 64;
    header[9] = PROTOCOL_UDP;
    header[12..16].copy_from_slice(&from.ip().octets());
    header[16..20].copy_from_slice(&to.ip().octets());
    let checksum = !sum(0, &header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());

    let mut udp = Vec::with_capacity(UDP_HEADER + payload.len());
    udp.extend_from_slice(&from.port().to_be_bytes());
    udp.extend_from_slice(&to.port().to_be_bytes());
    udp.extend_from_slice(&udp_length.to_be_bytes());
    udp.extend_from_slice(&[0; 2]);
    udp.extend_from_slice(payload);
    // The pseudo header: both addresses, the protocol, the length.
    let pseudo = sum(sum(0, &header[12..20]), &[0, PROTOCOL_UDP]);
    let checksum = !sum(sum(pseudo, &udp_length.to_be_bytes()), &udp);
    // A checksum of zero would say that there is none.
    let checksum = if checksum == 0 { 0xffff } else { checksum };
    udp[6..8].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = Vec::with_capacity(14 + IPV4_HEADER + udp.len());
    frame.extend_from_slice(&to_mac.0);
    frame.extend_from_slice(&from_mac.0);
    frame.extend_from_slice(&ETHERTYPE_IPV4);
    frame.extend_from_slice(&header);
    frame.extend_from_slice(&udp);
    frame
}

/// The one's complement sum of 16-bit words (RFC 1071).
fn sum(start: u16, bytes: &[u8]) -> u16 {
    let mut sum = u32::from(start);
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_right_checksums() {
        for length in [0, 1, 300, 301] {
            let from = "10.0.0.1:67".parse().unwrap();
            let to = "10.0.0.9:68".parse().unwrap();
            let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let frame = frame(Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 9]), from, to, &payload);
            assert_eq!(frame.len(), 42 + length);
            let (header, udp) = frame[14..].split_at(IPV4_HEADER);
            assert_eq!(sum(0, header), 0xffff);
            assert_eq!(header[6] & 0x40, 0, "don't fragment is not set");
            let pseudo = sum(sum(0, &header[12..20]), &[0, PROTOCOL_UDP]);
            assert_eq!(sum(sum(pseudo, &(udp.len() as u16).to_be_bytes()), udp), 0xffff);
        }
    }
}
