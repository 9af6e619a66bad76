//! How much is taken on at once: connections, in all and per address, and transfers of large files.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::room::Rooms;

/// Counts what is going on.
#[derive(Debug, Default)]
pub(super) struct Gate {
    connections: AtomicUsize,
    /// What connections hold for slow clients.
    pub(super) rooms: Arc<Rooms>,
    per_address: Mutex<HashMap<IpAddr, usize>>,
    large: Mutex<LargeCounts>,
}

#[derive(Debug, Default)]
struct LargeCounts {
    all: usize,
    of_address: HashMap<IpAddr, usize>,
}

/// An address's part of the large transfers, as a divisor: with more than that it keeps nobody else out.
const SHARE: usize = 8;

/// A connection that counts until it is dropped.
#[derive(Debug)]
pub(super) struct Connected(Arc<Gate>, usize);

/// An address's connection that counts until it is dropped.
#[derive(Debug)]
pub(super) struct FromAddress(Arc<Gate>, IpAddr);

/// A large transfer that counts until it is dropped.
#[derive(Debug)]
pub(super) struct Large(Arc<Gate>, IpAddr);

impl Gate {
    /// Counts a connection as `weight` of them, unless that is more than `most` in all.
    pub(super) fn connect(self: &Arc<Self>, weight: usize, most: usize) -> Option<Connected> {
        let before = self.connections.fetch_add(weight, Ordering::Relaxed);
        let counted = Connected(Arc::clone(self), weight);
        (before.saturating_add(weight) <= most).then_some(counted)
    }

    /// Counts a connection of this address, unless it has `most` already.
    pub(super) fn connect_from(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<FromAddress> {
        let mut counts = self.per_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(FromAddress(Arc::clone(self), address))
    }

    /// Counts a large transfer of this address whatever their number, and says whether there is room for it: it is one of
    /// the first `most`, or its address has less than its share and what others have beyond theirs is in its way. So one
    /// address, which may be a whole site, can use all that is free, and 512 slow downloads of one keep nobody else out.
    pub(super) fn transfer(self: &Arc<Self>, address: IpAddr, most: usize) -> (Large, bool) {
        let mut counts = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        let share = (most / SHARE).max(1);
        let own = counts.of_address.get(&address).copied().unwrap_or(0);
        let is_room = counts.all < most
            || own < share
                && counts.of_address.values().map(|count| (*count).min(share)).sum::<usize>() < most;
        counts.all += 1;
        counts.of_address.insert(address, own + 1);
        (Large(Arc::clone(self), address), is_room)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl Drop for FromAddress {
    fn drop(&mut self) {
        let mut counts = self.0.per_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        let mut counts = self.0.large.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all -= 1;
        if let Some(count) = counts.of_address.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.of_address.remove(&self.1);
            }
        }
    }
}

/// When a client that was turned away shall come back, in seconds: spread over 1 to 4, so that those who were turned
/// away together do not come back together. A long wait would leave the server idle once the storm is over.
pub(super) fn retry_after() -> u32 {
    1 + getrandom::u32().unwrap_or(0) % 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_come_back() {
        let gate = Arc::new(Gate::default());
        let address = IpAddr::from([10, 0, 0, 1]);
        let first = gate.connect(1, 4).unwrap();
        assert!(gate.connect(4, 4).is_none() && gate.connect(4, 4).is_none());
        assert!(gate.connect(3, 4).is_some());
        drop(first);
        assert!(gate.connect(4, 4).is_some());
        let first = gate.connect_from(address, 1).unwrap();
        assert!(gate.connect_from(address, 1).is_none());
        assert!(gate.connect_from(IpAddr::from([10, 0, 0, 2]), 1).is_some());
        drop(first);
        assert!(gate.per_address.lock().unwrap().is_empty(), "nobody is remembered");
        let (first, is_room) = gate.transfer(address, 1);
        assert!(is_room && !gate.transfer(address, 1).1);
        drop(first);
        assert!(gate.transfer(address, 1).1);
        assert!(gate.large.lock().unwrap().of_address.is_empty(), "nobody is remembered");
        assert!((0..100).all(|_| (1..=4).contains(&retry_after())));
    }

    // 512 slow downloads of one address took all places; everybody else got 503.
    #[test]
    fn one_address_keeps_no_other_out() {
        let gate = Arc::new(Gate::default());
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let greedy: Vec<_> = (0..512).map(|_| gate.transfer(address(1), 64)).collect();
        assert_eq!(greedy.iter().filter(|(_, is_room)| *is_room).count(), 64, "what nobody wants is his");
        let others: Vec<_> =
            (2..9).map(|last| (0..8).map(|_| gate.transfer(address(last), 64)).collect::<Vec<_>>()).collect();
        assert!(others.iter().flatten().all(|(_, is_room)| *is_room), "everybody has his share");
        assert!(!gate.transfer(address(2), 64).1, "and no more");
        assert!(!gate.transfer(address(99), 64).1, "when all shares are taken");
    }
}
