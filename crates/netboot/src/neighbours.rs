//! Which hardware address an address has: what DHCP gave out, and else what the kernel's neighbour table knows.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::device::Mac;

/// The kernel's table for IPv4.
const TABLE: &str = "/proc/self/net/arp";
/// How old a copy of the kernel's table may be.
const AGE_MAX: Duration = Duration::from_secs(1);
/// Most addresses that are learned: a /16 full of devices. Past it, all that was learned is forgotten; the kernel and
/// the next DHCP exchange know it again.
const LEARNED_MAX: usize = 65_536;
/// Entries of the kernel's table that are read; its own limit is 1024 unless raised.
const TABLE_MAX: usize = 65_536;

/// The two tables.
#[derive(Debug, Default)]
pub struct Neighbours {
    learned: Mutex<HashMap<IpAddr, Mac>>,
    kernel: Mutex<Option<Copied>>,
}

#[derive(Debug)]
struct Copied {
    at: Instant,
    table: HashMap<Ipv4Addr, Mac>,
}

impl Neighbours {
    /// Nobody known.
    pub fn new() -> Self {
        Self::default()
    }

    /// DHCP gave this address to this device just now.
    pub fn learn(&self, address: IpAddr, mac: Mac) {
        let mut learned = self.learned.lock().unwrap_or_else(PoisonError::into_inner);
        if learned.len() >= LEARNED_MAX && !learned.contains_key(&address) {
            learned.clear();
        }
        learned.insert(address, mac);
    }

    /// The device behind an address. IPv6 addresses are known only if learned.
    pub fn mac_of(&self, address: IpAddr) -> Option<Mac> {
        let address = address.to_canonical();
        if let Some(mac) = self.learned.lock().unwrap_or_else(PoisonError::into_inner).get(&address) {
            return Some(*mac);
        }
        let IpAddr::V4(address) = address else { return None };
        if address.is_loopback() {
            return None;
        }
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        if kernel.as_ref().is_none_or(|copied| copied.at.elapsed() > AGE_MAX) {
            let text = std::fs::read_to_string(TABLE).unwrap_or_default();
            *kernel = Some(Copied { at: Instant::now(), table: parse(&text) });
        }
        kernel.as_ref().and_then(|copied| copied.table.get(&address).copied())
    }
}

/// Reads `/proc/net/arp` (proc(5)): a heading, then per line address, hardware type, flags, hardware address, mask and
/// interface. Flag 2 says that the entry is complete.
fn parse(text: &str) -> HashMap<Ipv4Addr, Mac> {
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        let flags = u32::from_str_radix(words.nth(1)?.strip_prefix("0x")?, 16).ok()?;
        let mac: Mac = words.next()?.parse().ok()?;
        (flags & 2 != 0 && mac.0 != [0; 6]).then_some((address, mac))
    };
    text.lines().skip(1).filter_map(entry).take(TABLE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
IP address       HW type     Flags       HW address            Mask     Device
10.0.0.7         0x1         0x2         52:54:00:12:34:56     *        br0
10.0.0.8         0x1         0x0         00:00:00:00:00:00     *        br0
10.0.0.9         0x1         0x6         52:54:00:12:34:57     *        br0
broken line
10.0.0.10        0x20        0x2         80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:10:20:30     *        ib0
";

    #[test]
    fn complete_ethernet_entries_of_the_kernels_table() {
        let table = parse(TEXT);
        assert_eq!(table.len(), 2);
        assert_eq!(table[&Ipv4Addr::new(10, 0, 0, 7)], Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
    }

    #[test]
    fn what_was_learned_comes_first_and_is_bounded() {
        let neighbours = Neighbours::new();
        let address: IpAddr = "10.0.0.7".parse().unwrap();
        neighbours.learn(address, Mac([1; 6]));
        assert_eq!(neighbours.mac_of(address), Some(Mac([1; 6])));
        assert_eq!(neighbours.mac_of("::ffff:10.0.0.7".parse().unwrap()), Some(Mac([1; 6])));
        assert_eq!(neighbours.mac_of("127.0.0.1".parse().unwrap()), None);
        assert_eq!(neighbours.mac_of("2001:db8::1".parse().unwrap()), None);
        for number in 0..=LEARNED_MAX as u32 {
            neighbours.learn(IpAddr::V4(Ipv4Addr::from(number)), Mac([2; 6]));
        }
        assert!(neighbours.learned.lock().unwrap().len() <= LEARNED_MAX);
    }
}
