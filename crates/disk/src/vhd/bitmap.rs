//! The bitmap before each block: one bit per sector, the most significant bit first, set when the sector is
//! present. Absent sectors come from the parent, or are zero without one.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use crate::Result;
use crate::sync::lock;
use crate::units::BlockIndex;

/// What the bitmaps that are kept may take: enough for 256 GiB of full blocks of 2 MiB, or 28 GiB of partial ones.
const CACHE_BYTES_MAX: usize = 8 << 20;
/// What an entry costs beside its bits.
const ENTRY_BYTES: usize = 64;

/// From which end of a byte its bits are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BitOrder {
    /// As the specification has it.
    MostSignificantFirst,
    /// As the first tapdisk wrote.
    LeastSignificantFirst,
}

/// One block's bitmap.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Bitmap {
    /// All sectors are present.
    Full,
    /// A bit per sector.
    Partial(Box<[u8]>),
}

impl Bitmap {
    /// From the bytes in the file for `sectors` sectors. The bits behind the last sector mean nothing.
    pub(crate) fn new(mut bytes: Vec<u8>, sectors: u64, order: BitOrder) -> Self {
        if order == BitOrder::LeastSignificantFirst {
            bytes.iter_mut().for_each(|byte| *byte = byte.reverse_bits());
        }
        bytes.truncate(sectors.div_ceil(8) as usize);
        if run(&bytes, true, 0, sectors) == sectors {
            return Self::Full;
        }
        Self::Partial(bytes.into())
    }

    /// Whether `sector` is present, and for how many sectors up to `end` that holds; at least 1.
    pub(crate) fn run(&self, sector: u64, end: u64) -> (bool, u64) {
        match self {
            Self::Full => (true, end - sector),
            Self::Partial(bits) => {
                let is_present = bit(bits, sector);
                (is_present, run(bits, is_present, sector, end))
            }
        }
    }

    fn cost(&self) -> usize {
        match self {
            Self::Full => ENTRY_BYTES,
            Self::Partial(bits) => ENTRY_BYTES + bits.len(),
        }
    }
}

fn bit(bits: &[u8], at: u64) -> bool {
    bits.get(at as usize / 8).is_some_and(|byte| byte & (0x80 >> (at % 8)) != 0)
}

/// How many bits from `start` on, before `end`, are `wanted`.
fn run(bits: &[u8], wanted: bool, start: u64, end: u64) -> u64 {
    let whole = if wanted { 0xff } else { 0 };
    let mut at = start;
    while at < end {
        if at.is_multiple_of(8) && bits.get(at as usize / 8) == Some(&whole) {
            at += 8;
        } else if bit(bits, at) == wanted {
            at += 1;
        } else {
            break;
        }
    }
    at.min(end) - start
}

/// The bitmaps that were read lately, first in first out.
#[derive(Default)]
pub(crate) struct BitmapCache {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    bitmaps: HashMap<BlockIndex, Arc<Bitmap>>,
    order: VecDeque<BlockIndex>,
    bytes: usize,
    /// Counts the bitmaps that were changed, so that one read before a change is not kept after it.
    changes: u64,
}

impl BitmapCache {
    /// The bitmap of `block`, from memory or by `load`.
    pub(crate) fn get(
        &self,
        block: BlockIndex,
        load: impl FnOnce() -> Result<Bitmap>,
    ) -> Result<Arc<Bitmap>> {
        let changes = {
            let inner = lock(&self.inner);
            if let Some(bitmap) = inner.bitmaps.get(&block) {
                return Ok(Arc::clone(bitmap));
            }
            inner.changes
        };
        let bitmap = Arc::new(load()?);
        let mut inner = lock(&self.inner);
        if inner.changes == changes {
            inner.insert(block, Arc::clone(&bitmap));
        }
        Ok(bitmap)
    }

    /// The bitmap of `block` if it is in memory.
    pub(crate) fn peek(&self, block: BlockIndex) -> Option<Arc<Bitmap>> {
        lock(&self.inner).bitmaps.get(&block).cloned()
    }

    /// All sectors of `block` are present from now on.
    pub(crate) fn set_full(&self, block: BlockIndex) {
        let mut inner = lock(&self.inner);
        inner.changes += 1;
        inner.insert(block, Arc::new(Bitmap::Full));
    }
}

impl Inner {
    fn insert(&mut self, block: BlockIndex, bitmap: Arc<Bitmap>) {
        self.bytes += bitmap.cost();
        match self.bitmaps.insert(block, bitmap) {
            Some(old) => self.bytes -= old.cost(),
            None => self.order.push_back(block),
        }
        while self.bytes > CACHE_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(bitmap) = self.bitmaps.remove(&oldest) {
                self.bytes -= bitmap.cost();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_stop_inside_bytes() {
        let bitmap = Bitmap::new(vec![0xff, 0xf0, 0x00, 0x01], 32, BitOrder::MostSignificantFirst);
        assert_eq!(bitmap.run(0, 32), (true, 12));
        assert_eq!(bitmap.run(3, 10), (true, 7));
        assert_eq!(bitmap.run(12, 32), (false, 19));
        assert_eq!(bitmap.run(31, 32), (true, 1));
    }

    #[test]
    fn the_bits_behind_the_last_sector_mean_nothing() {
        assert_eq!(Bitmap::new(vec![0xf0; 512], 4, BitOrder::MostSignificantFirst), Bitmap::Full);
        assert_eq!(Bitmap::new(vec![0x0f; 512], 4, BitOrder::LeastSignificantFirst), Bitmap::Full);
        assert_ne!(Bitmap::new(vec![0xe0; 512], 4, BitOrder::MostSignificantFirst), Bitmap::Full);
    }

    #[test]
    fn the_cache_is_bounded() {
        let cache = BitmapCache::default();
        for block in 0..1000 {
            cache.get(BlockIndex(block), || Ok(Bitmap::Partial(vec![0; 64 << 10].into()))).unwrap();
        }
        let inner = lock(&cache.inner);
        assert!(inner.bytes <= CACHE_BYTES_MAX && inner.bitmaps.len() == inner.order.len());
        assert!(inner.bitmaps.contains_key(&BlockIndex(999)) && !inner.bitmaps.contains_key(&BlockIndex(0)));
    }

    #[test]
    fn a_bitmap_read_before_a_change_is_not_kept() {
        let cache = BitmapCache::default();
        let stale = cache.get(BlockIndex(1), || {
            cache.set_full(BlockIndex(1));
            Ok(Bitmap::Partial(vec![0; 512].into()))
        });
        assert_ne!(*stale.unwrap(), Bitmap::Full);
        assert_eq!(*cache.get(BlockIndex(1), || panic!("it is in memory")).unwrap(), Bitmap::Full);
    }
}
