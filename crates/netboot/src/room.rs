//! Memory that connections share: what each may hold for a slow peer is little, what all may hold together has a bound.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that all connections of one server together may hold for peers that are slow: long heads, copies of answers. A
/// connection alone costs about 6 KiB.
const ROOM: usize = 24 << 20;

/// The part of it that one address may take, so that it keeps nobody else out.
const SHARE: usize = ROOM / 4;

/// Counts what is taken.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    of_address: HashMap<IpAddr, usize>,
}

/// A part of the room, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    rooms: Arc<Rooms>,
    address: IpAddr,
    bytes: usize,
}

impl Rooms {
    /// Takes so many bytes for a peer, if there are as many and it has not taken its share.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr, bytes: usize) -> Option<Room> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.of_address.get(&address).copied().unwrap_or(0);
        if own.saturating_add(bytes) > SHARE || taken.all.saturating_add(bytes) > ROOM {
            return None;
        }
        taken.all += bytes;
        taken.of_address.insert(address, own + bytes);
        Some(Room { rooms: Arc::clone(self), address, bytes })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut taken = self.rooms.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= self.bytes;
        if let Some(own) = taken.of_address.get_mut(&self.address) {
            *own -= self.bytes;
            if *own == 0 {
                taken.of_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_and_one_address_takes_no_more_than_its_share() {
        let rooms = Arc::new(Rooms::default());
        let take = |last: u8, bytes| rooms.take(IpAddr::from([10, 0, 0, last]), bytes);
        let own = take(1, SHARE).unwrap();
        assert!(take(1, 1).is_none() && take(2, SHARE + 1).is_none() && take(2, usize::MAX).is_none());
        let others: Vec<_> = (2..5).map(|last| take(last, SHARE).unwrap()).collect();
        assert!(take(5, 1).is_none(), "all is taken");
        drop(own);
        assert!(take(5, SHARE).is_some());
        drop(others);
        assert!(take(1, SHARE).is_some());
        assert!(rooms.taken.lock().unwrap().of_address.is_empty(), "nobody is remembered");
    }
}
