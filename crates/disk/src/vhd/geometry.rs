//! Cylinders, heads and sectors, as the specification's appendix computes them from a size.

/// The largest disk that a geometry can say, in sectors: 65535 cylinders, 16 heads, 255 sectors per track.
const SECTORS_MAX: u64 = 65535 * 16 * 255;

/// A geometry as the footer stores it: cylinders in the upper half, then heads, then sectors per track.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Geometry(pub(crate) u32);

impl Geometry {
    /// The geometry for a disk of `size` bytes; it may describe less than the disk holds.
    pub(crate) fn of_size(size: u64) -> Self {
        let sectors = size.div_ceil(512).clamp(1, SECTORS_MAX);
        let (per_track, heads, tracks);
        if sectors >= 65535 * 16 * 63 {
            (per_track, heads, tracks) = (255, 16, sectors / 255);
        } else {
            let small = (sectors / 17).div_ceil(1024).max(4);
            if sectors / 17 < small * 1024 && small <= 16 {
                (per_track, heads, tracks) = (17, small, sectors / 17);
            } else if sectors / 31 < 16 * 1024 {
                (per_track, heads, tracks) = (31, 16, sectors / 31);
            } else {
                (per_track, heads, tracks) = (63, 16, sectors / 63);
            }
        }
        Self(((tracks / heads) << 16 | heads << 8 | per_track) as u32)
    }

    /// The bytes that it describes.
    pub(crate) fn size(self) -> u64 {
        u64::from(self.cylinders()) * u64::from(self.heads()) * u64::from(self.sectors_per_track()) * 512
    }

    pub(crate) fn cylinders(self) -> u16 {
        (self.0 >> 16) as u16
    }

    pub(crate) fn heads(self) -> u8 {
        (self.0 >> 8) as u8
    }

    pub(crate) fn sectors_per_track(self) -> u8 {
        self.0 as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_appendix() {
        // Size in MiB and what libvhd writes for it.
        for (mib, cylinders, heads, per_track) in [
            (0, 0, 4, 17),
            (1, 30, 4, 17),
            (64, 963, 8, 17),
            (504, 1024, 16, 63),
            (1024, 2080, 16, 63),
            // 136,363,130,880 bytes, the size that QEMU shows of a 127 GiB disk by Virtual PC.
            (130_048, 65278, 16, 255),
            (2_088_960, 65535, 16, 255),
        ] {
            let geometry = Geometry::of_size(mib << 20);
            let got = (geometry.cylinders(), geometry.heads(), geometry.sectors_per_track());
            assert_eq!(got, (cylinders, heads, per_track), "{mib} MiB");
            assert!(geometry.size() <= (mib << 20).max(512));
        }
    }
}
