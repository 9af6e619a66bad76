//! Asks by ICMP echo (RFC 2131 §4.4.1) whether somebody uses an address: where a router is in between, it is all there is.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::sys::socket::{SockaddrIn, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// A socket for pings.
#[derive(Debug)]
pub(super) struct IcmpProber(Socket);

impl IcmpProber {
    /// Opens it: without privileges where the system lets us (`net.ipv4.ping_group_range`).
    pub(super) fn open() -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))
            .or_else(|_| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)))?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Asks.
    pub(super) fn ask(&self, address: Ipv4Addr) -> io::Result<()> {
        let mut packet = [0; 16];
        packet[0] = ECHO_REQUEST;
        packet[8..].copy_from_slice(b"goldwire");
        let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        let checksum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        packet[2..4].copy_from_slice(&checksum.to_be_bytes());
        self.0.send_to(&packet, &SocketAddrV4::new(address, 0).into())?;
        Ok(())
    }

    /// Who has answered: `WouldBlock` when nobody has, none when it was something else.
    pub(super) fn answer(&self) -> io::Result<Option<Ipv4Addr>> {
        let mut buffer = [0; 256];
        let (length, from) = recvfrom::<SockaddrIn>(self.0.as_raw_fd(), &mut buffer)?;
        let packet = &buffer[..length.min(buffer.len())];
        // With privileges only, the IP header comes first; then other things than answers come, too.
        let header =
            packet.first().filter(|first| **first >> 4 == 4).map_or(0, |first| usize::from(first & 15) * 4);
        let is_answer = packet.get(header) == Some(&ECHO_REPLY);
        Ok(from.filter(|_| is_answer).map(|from| from.ip()))
    }
}

impl AsFd for IcmpProber {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
