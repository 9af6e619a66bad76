//! Asks a link by ARP whether somebody uses an address: the probe of RFC 5227 §2.1.1, which names no sender's address and
//! so disturbs nobody's table.
//!
//! Once, and not three times: a client waits for its offer, and probes the address itself before it uses it
//! (RFC 2131 §4.4.1).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};

use super::probe::ArpReply;
use super::raw::FrameSocket;
use crate::device::Mac;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERNET_HEADER: usize = 14;
/// What each packet about IPv4 on Ethernet begins with (RFC 826): the two kinds of address and their lengths.
const ETHERNET_AND_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: [u8; 2] = [0, 1];
const PACKET: usize = 28;

/// A socket for ARP on all links.
#[derive(Debug)]
pub(super) struct ArpProber(FrameSocket);

impl ArpProber {
    pub(super) fn open() -> io::Result<Self> {
        FrameSocket::open(ETHERTYPE_ARP).map(Self)
    }

    /// Asks on the interface of this index.
    pub(super) fn ask(&self, interface: u32, address: Ipv4Addr) -> io::Result<()> {
        let own = self.0.mac_of(interface).ok_or(io::ErrorKind::NotFound)?;
        self.0.send_frame(interface, &probe(own, address))
    }

    /// What the next packet tells: `WouldBlock` when there is none, none when it is of no use.
    pub(super) fn answer(&self) -> io::Result<Option<ArpReply>> {
        let mut frame = [0; ETHERNET_HEADER + PACKET];
        let length = self.0.receive(&mut frame)?;
        let seen = frame[..length].get(ETHERNET_HEADER..).and_then(arp_reply);
        // A loop in the network brings our own probes back.
        Ok(seen.filter(|seen| seen.mac.is_some_and(|mac| !self.0.is_own(mac))))
    }
}

impl AsFd for ArpProber {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A frame to everybody.
fn probe(own: Mac, address: Ipv4Addr) -> [u8; ETHERNET_HEADER + PACKET] {
    let mut frame = [0; ETHERNET_HEADER + PACKET];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&own.0);
    frame[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
    frame[14..20].copy_from_slice(&ETHERNET_AND_IPV4);
    frame[20..22].copy_from_slice(&REQUEST);
    frame[22..28].copy_from_slice(&own.0);
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

/// Whose address an ARP packet tells of: the sender's, or the one that another machine probes because it is about to use
/// it (RFC 5227 §2.1.1 takes both for a conflict).
fn arp_reply(packet: &[u8]) -> Option<ArpReply> {
    let packet = packet.get(..PACKET)?;
    if !packet.starts_with(&ETHERNET_AND_IPV4) {
        return None;
    }
    let mac = Mac(packet[8..14].try_into().ok()?);
    let address = |at: usize| packet[at..at + 4].try_into().ok().map(<Ipv4Addr as From<[u8; 4]>>::from);
    let (sender, target) = (address(14)?, address(24)?);
    let is_probe = sender.is_unspecified() && packet[6..8] == REQUEST;
    let address = if is_probe { target } else { sender };
    (!address.is_unspecified()).then_some(ArpReply { address, mac: Some(mac) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

    #[test]
    fn a_probe_is_what_rfc_5227_says() {
        let frame = probe(OWN, Ipv4Addr::new(10, 0, 0, 100));
        let expected = [
            &[0xff; 6][..],            // to everybody
            &OWN.0,                    // from us
            &[0x08, 0x06],             // ARP
            &[0, 1, 8, 0, 6, 4, 0, 1], // Ethernet, IPv4, a request
            &OWN.0,                    // sender hardware address: ours
            &[0, 0, 0, 0],             // sender IP address: all zero
            &[0, 0, 0, 0, 0, 0],       // target hardware address: ignored, so zero
            &[10, 0, 0, 100],          // target IP address: the one that is probed
        ]
        .concat();
        assert_eq!(frame[..], expected);
    }

    #[test]
    fn who_uses_an_address_or_is_about_to_is_seen_and_nothing_else() {
        let packet = |operation: u8, sender: [u8; 4], target: [u8; 4]| {
            [&[0, 1, 8, 0, 6, 4, 0, operation][..], &OTHER, &sender, &[0; 6], &target].concat()
        };
        let (free, used) = ([0; 4], [10, 0, 0, 100]);
        let seen = Some(ArpReply { address: used.into(), mac: Some(Mac(OTHER)) });
        assert_eq!(arp_reply(&packet(2, used, free)), seen, "a reply to our probe");
        assert_eq!(arp_reply(&packet(1, used, [10, 0, 0, 1])), seen, "it asks for somebody else");
        assert_eq!(arp_reply(&packet(1, free, used)), seen, "it probes the address itself");
        assert_eq!(arp_reply(&packet(2, free, used)), None, "a reply from nobody");
        assert_eq!(arp_reply(&packet(1, used, free)[..27]), None);
        let mut other = packet(2, used, free);
        other[1] = 32;
        assert_eq!(arp_reply(&other), None, "no Ethernet");
    }
}
