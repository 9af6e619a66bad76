//! Memory that connections share: what each may hold for a slow peer is little, what all may hold together has a bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that all connections of one server together may hold for peers that are slow: long heads, copies of answers. A
/// connection alone costs about 6 KiB.
pub(crate) const ROOM: usize = 24 << 20;

/// Counts what is taken.
#[derive(Debug, Default)]
pub(crate) struct Rooms {
    taken: AtomicUsize,
}

/// A part of the room, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Room(Arc<Rooms>, usize);

impl Rooms {
    /// Takes so many bytes, if there are as many.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<Room> {
        let before = self.taken.fetch_add(bytes, Ordering::Relaxed);
        let taken = Room(Arc::clone(self), bytes);
        (before.saturating_add(bytes) <= ROOM).then_some(taken)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(self.1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back() {
        let rooms = Arc::new(Rooms::default());
        let all = rooms.take(ROOM).unwrap();
        assert!(rooms.take(1).is_none() && rooms.take(usize::MAX).is_none() && rooms.take(1).is_none());
        drop(all);
        assert!(rooms.take(ROOM + 1).is_none() && rooms.take(ROOM).is_some());
    }
}
