//! Answers IPv6 router solicitations with "I am no router" (RFC 4861 §4.2, lifetime 0).
//!
//! iPXE waits for IPv6 before it goes on: up to 16 seconds when nobody answers, no time at all when anybody does.

use std::fs::File;
use std::io;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::netdevice::name_to_index;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const SOLICITATION: u8 = 133;
/// Type, code, checksum (the kernel's), hop limit, flags, lifetime, reachable time, retransmission timer.
const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Runs until it is dropped.
pub(crate) struct Advertiser {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Advertiser {
    /// Starts on an interface of a network namespace.
    pub(crate) fn start(space: &Path, interface: &'static str) -> io::Result<Self> {
        let space = File::open(space)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let seen_over = Arc::clone(&is_over);
        // A namespace belongs to a thread; this one ends with its socket.
        let thread = goldwire_stdx::spawn("advertiser", move || {
            if let Err(error) = answer(&space, interface, &seen_over) {
                eprintln!("router advertisements: {error}");
            }
        })
        .unwrap();
        Ok(Self { is_over, thread: Some(thread) })
    }
}

impl Drop for Advertiser {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(space: &File, interface: &str, is_over: &AtomicBool) -> io::Result<()> {
    move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))?;
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    let index = name_to_index(&socket, interface)?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.join_multicast_v6(&ALL_ROUTERS, index)?;
    // RFC 4861 §6.1.2: anything but 255 has passed a router and is ignored.
    socket.set_multicast_hops_v6(255)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let everybody = SocketAddrV6::new(ALL_NODES, 0, 0, index).into();
    let mut packet = [0; 1500];
    while !is_over.load(Ordering::Relaxed) {
        match io::Read::read(&mut &socket, &mut packet) {
            // An error means that our own address is not ready yet; the guest asks again.
            Ok(1..) if packet[0] == SOLICITATION => drop(socket.send_to(&ADVERTISEMENT, &everybody)),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
