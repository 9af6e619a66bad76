//! A set of chunk indices that several threads fill.

use std::sync::atomic::{AtomicU64, Ordering};

/// One bit per chunk; 4 MiB for a disk of 2 TiB.
#[derive(Debug)]
pub(crate) struct Bitmap {
    words: Vec<AtomicU64>,
    bits: u64,
}

impl Bitmap {
    /// An empty set of indices below `bits`.
    pub(crate) fn new(bits: u64) -> Self {
        Self { words: (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), bits }
    }

    /// Adds `index`; says whether it was new. An index past the end is never added.
    pub(crate) fn set(&self, index: u64) -> bool {
        if index >= self.bits {
            return false;
        }
        let bit = 1 << (index % 64);
        self.words[(index / 64) as usize].fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    /// Whether `index` is in the set.
    pub(crate) fn get(&self, index: u64) -> bool {
        index < self.bits
            && self.words[(index / 64) as usize].load(Ordering::Relaxed) & (1 << (index % 64)) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_set() {
        let set = Bitmap::new(130);
        assert!(set.set(129) && set.set(0) && !set.set(129) && !set.set(130));
        let held: Vec<u64> = (0..200).filter(|index| set.get(*index)).collect();
        assert_eq!(held, [0, 129]);
    }
}
