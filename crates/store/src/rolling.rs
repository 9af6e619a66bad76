//! A checksum that rolls: cheap to move on by one byte, good enough to rule most places out.
//!
//! Two sums over a window of one block, as in Tridgell and Mackerras, *The rsync algorithm* (1996), section 3:
//! `a` of the bytes, `b` of the bytes weighted by their distance from the window's end, both modulo 2^16.

use crate::chunk::BLOCK_SIZE;

/// The checksum of one window of [`BLOCK_SIZE`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rolling {
    a: u32,
    b: u32,
}

impl Rolling {
    /// Over `block`, which has [`BLOCK_SIZE`] bytes.
    pub fn of(block: &[u8]) -> Self {
        let (mut a, mut b) = (0_u32, 0_u32);
        for byte in block {
            a = a.wrapping_add(u32::from(*byte));
            b = b.wrapping_add(a);
        }
        Self { a, b }
    }

    /// Moves the window on by one byte: `out` leaves, `come` enters.
    #[inline]
    pub fn roll(&mut self, out: u8, come: u8) {
        self.a = self.a.wrapping_sub(u32::from(out)).wrapping_add(u32::from(come));
        self.b = self.b.wrapping_sub(u32::from(out).wrapping_mul(BLOCK_SIZE as u32)).wrapping_add(self.a);
    }

    /// The checksum.
    #[inline]
    pub fn value(self) -> u32 {
        (self.b << 16) | (self.a & 0xffff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rolling_on_gives_what_computing_anew_gives() {
        let bytes: Vec<u8> =
            (0..3 * BLOCK_SIZE as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let mut rolling = Rolling::of(&bytes[..BLOCK_SIZE]);
        for start in 1..2 * BLOCK_SIZE {
            rolling.roll(bytes[start - 1], bytes[start + BLOCK_SIZE - 1]);
            assert_eq!(rolling.value(), Rolling::of(&bytes[start..start + BLOCK_SIZE]).value(), "{start}");
        }
    }
}
