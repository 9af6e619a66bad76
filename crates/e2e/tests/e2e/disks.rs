//! Disks made from a seed: what the guest sees, and a VHD writer that shares no line with the product's.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub(crate) const MIB: usize = 1 << 20;
const SECTOR: usize = 512;
const BLOCK: usize = 2 * MIB;

/// Numbers that follow from a seed alone (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            let number = self.next().to_le_bytes();
            part.copy_from_slice(&number[..part.len()]);
        }
    }
}

/// What a guest sees of its disk.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Guest(pub(crate) Vec<u8>);

impl Guest {
    /// An empty disk.
    pub(crate) fn empty(mib: usize) -> Self {
        Self(vec![0; mib * MIB])
    }

    /// A disk of `mib` MiB of which about `used` are data that does not compress, in extents of up to 1 MiB.
    pub(crate) fn random(seed: u64, mib: usize, used: usize) -> Self {
        let mut guest = Self::empty(mib);
        let mut random = Random(seed);
        // A first extent at 0, as every disk has a boot sector.
        random.fill(&mut guest.0[..64 * 1024]);
        let mut left = (used * MIB).saturating_sub(64 * 1024);
        while left > 0 {
            let length = (4096 * (1 + random.below(256))).min(left);
            let at = 4096 * random.below((guest.0.len() - length) / 4096);
            random.fill(&mut guest.0[at..at + length]);
            left -= length;
        }
        guest
    }

    /// The same disk after its guest wrote: about `writes` extents of 4 to 64 KiB.
    pub(crate) fn rewritten(&self, seed: u64, writes: usize) -> Self {
        let mut guest = self.clone();
        let mut random = Random(seed);
        for _ in 0..writes {
            let length = 4096 * (1 + random.below(16));
            let at = 4096 * random.below((guest.0.len() - length) / 4096);
            random.fill(&mut guest.0[at..at + length]);
        }
        guest
    }

    /// Chunks of 64 KiB that are not zero.
    pub(crate) fn chunks_used(&self) -> usize {
        self.0.chunks(64 * 1024).filter(|chunk| chunk.iter().any(|byte| *byte != 0)).count()
    }

    /// A raw image with holes where there are zeros.
    pub(crate) fn write_raw(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(self.0.len() as u64).unwrap();
        for (number, block) in self.0.chunks(64 * 1024).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, (number * 64 * 1024) as u64).unwrap();
            }
        }
    }

    /// A dynamic VHD.
    pub(crate) fn write_vhd(&self, path: &Path, uuid: u8) {
        self.write(path, &Vhd { uuid, ..Vhd::default() });
    }

    /// A dynamic VHD; a differencing one if it has a parent.
    pub(crate) fn write(&self, path: &Path, vhd: &Vhd<'_>) {
        assert!(self.0.len().is_multiple_of(SECTOR), "a VHD has whole sectors");
        let below = vhd.parent.map(|parent| parent.guest.0.as_slice());
        let is_own = |sector: usize| -> bool {
            let at = sector * SECTOR;
            let own = &self.0[at..at + SECTOR];
            match below {
                Some(below) => below.get(at..at + SECTOR).unwrap_or(&[0; SECTOR]) != own,
                None => own.iter().any(|byte| *byte != 0),
            }
        };
        let entries = self.0.len().div_ceil(BLOCK);
        let table_at = 1536;
        let table_length = (entries * 4).next_multiple_of(SECTOR);
        let locator_at = table_at + table_length;
        let mut table = vec![0xff; table_length];
        let mut file = vec![0; locator_at];
        if let Some(parent) = &vhd.parent {
            let path: Vec<u8> =
                format!(".\\{}", parent.name).encode_utf16().flat_map(u16::to_le_bytes).collect();
            file.extend(path);
            file.resize(locator_at + SECTOR, 0);
        }
        for entry in 0..entries {
            let sectors = (entry * BLOCK / SECTOR)..((entry + 1) * BLOCK).min(self.0.len()) / SECTOR;
            if !sectors.clone().any(is_own) {
                continue;
            }
            let number = (file.len() / SECTOR) as u32;
            table[entry * 4..][..4].copy_from_slice(&number.to_be_bytes());
            let mut bitmap = [0_u8; SECTOR];
            let mut data = vec![0; BLOCK];
            for (nth, sector) in sectors.enumerate() {
                if is_own(sector) {
                    bitmap[nth / 8] |= 0x80 >> (nth % 8);
                    data[nth * SECTOR..][..SECTOR].copy_from_slice(&self.0[sector * SECTOR..][..SECTOR]);
                }
            }
            file.extend_from_slice(&bitmap);
            file.extend_from_slice(&data);
        }
        let footer = self.footer(vhd);
        file[..SECTOR].copy_from_slice(&footer);
        file[SECTOR..table_at].copy_from_slice(&header(vhd, entries as u32, locator_at as u64));
        file[table_at..locator_at].copy_from_slice(&table);
        file.extend_from_slice(&footer);
        std::fs::write(path, file).unwrap();
    }

    fn footer(&self, vhd: &Vhd<'_>) -> [u8; 512] {
        let mut bytes = [0; 512];
        let size = (self.0.len() as u64).to_be_bytes();
        put(&mut bytes, 0, b"conectix");
        put(&mut bytes, 8, &[0, 0, 0, 2, 0, 1, 0, 0]);
        put(&mut bytes, 16, &512_u64.to_be_bytes());
        put(&mut bytes, 24, &WRITTEN.to_be_bytes());
        // Hyper-V's name: its readers and qemu's take the size from the size field.
        put(&mut bytes, 28, b"win \x00\x0a\x00\x00Wi2k");
        put(&mut bytes, 40, &size);
        put(&mut bytes, 48, &size);
        put(&mut bytes, 56, &geometry(self.0.len() as u64 / 512));
        put(&mut bytes, 60, &[0, 0, 0, if vhd.parent.is_some() { 4 } else { 3 }]);
        put(&mut bytes, 68, &[vhd.uuid; 16]);
        bytes[85] = u8::from(vhd.hidden);
        let sum = checksum(&bytes);
        put(&mut bytes, 64, &sum);
        bytes
    }
}

/// What a VHD is beside its content.
#[derive(Clone, Copy, Default)]
pub(crate) struct Vhd<'a> {
    /// All sixteen bytes of its uuid.
    pub(crate) uuid: u8,
    pub(crate) hidden: bool,
    pub(crate) parent: Option<Parent<'a>>,
}

/// What a differencing VHD knows of its parent.
#[derive(Clone, Copy)]
pub(crate) struct Parent<'a> {
    /// File name, in the same folder.
    pub(crate) name: &'a str,
    pub(crate) uuid: u8,
    pub(crate) guest: &'a Guest,
}

/// Seconds from 2000 to some day of 2025.
const WRITTEN: u32 = 800_000_000;

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

fn header(vhd: &Vhd<'_>, entries: u32, locator_at: u64) -> [u8; 1024] {
    let mut bytes = [0; 1024];
    put(&mut bytes, 0, b"cxsparse");
    put(&mut bytes, 8, &[0xff; 8]);
    put(&mut bytes, 16, &1536_u64.to_be_bytes());
    put(&mut bytes, 24, &[0, 1, 0, 0]);
    put(&mut bytes, 28, &entries.to_be_bytes());
    put(&mut bytes, 32, &(BLOCK as u32).to_be_bytes());
    if let Some(parent) = &vhd.parent {
        put(&mut bytes, 40, &[parent.uuid; 16]);
        put(&mut bytes, 56, &WRITTEN.to_be_bytes());
        let name: Vec<u8> = parent.name.encode_utf16().flat_map(u16::to_be_bytes).collect();
        put(&mut bytes, 64, &name);
        put(&mut bytes, 576, b"W2ru");
        put(&mut bytes, 580, &512_u32.to_be_bytes());
        put(&mut bytes, 584, &((parent.name.len() as u32 + 2) * 2).to_be_bytes());
        put(&mut bytes, 592, &locator_at.to_be_bytes());
    }
    let sum = checksum(&bytes);
    put(&mut bytes, 36, &sum);
    bytes
}

/// The one's complement of the sum of all bytes, of which the checksum's own are still zero.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let sum = bytes.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    (!sum).to_be_bytes()
}

/// Cylinders, heads and sectors by the specification's appendix, for the small disks of tests.
fn geometry(sectors: u64) -> [u8; 4] {
    let mut per_track = 17;
    let mut cylinders_heads = sectors / per_track;
    let mut heads = cylinders_heads.div_ceil(1024).max(4);
    if cylinders_heads >= heads * 1024 || heads > 16 {
        (per_track, heads) = (31, 16);
        cylinders_heads = sectors / per_track;
    }
    if cylinders_heads >= heads * 1024 {
        (per_track, heads) = (63, 16);
        cylinders_heads = sectors / per_track;
    }
    let [high, low] = ((cylinders_heads / heads) as u16).to_be_bytes();
    [high, low, heads as u8, per_track as u8]
}

pub(crate) fn has_qemu_img() -> bool {
    goldwire_stdx::testing::program("qemu-img").is_some()
}

/// Whether qemu-img sees the same guest in two images. The formats are named, because qemu would have to guess a
/// VHD from its footer and a raw disk from nothing.
#[track_caller]
pub(crate) fn assert_same_guest(a: (&Path, &str), b: (&Path, &str)) {
    let output = std::process::Command::new("qemu-img")
        .args(["compare", "-U", "-f", a.1, "-F", b.1])
        .args([a.0, b.0])
        .output()
        .unwrap();
    // Sizes that differ are a warning and no more, unless the surplus holds data.
    let is_longer = String::from_utf8_lossy(&output.stdout).contains("size mismatch");
    assert!(
        output.status.success() && !is_longer,
        "{} and {}: {}{}",
        a.0.display(),
        b.0.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
}
