//! XenServer's `tdbatmap`: one bit per block, set when all of the block's sectors are present, so that tapdisk
//! need not read the block's own bitmap. It follows the block allocation table of disks by creator `tap`.
//!
//! ```text
//!   0 cookie "tdbatmap"   8 offset of the map   16 its sectors   20 version   24 checksum   28 marker
//!  29 key hash: 1 when the disk is encrypted, nonce [32], hash [32]
//! ```
//!
//! We read sector bitmaps only, which hold the same facts; the batmap is written for XenServer and checked.

use super::footer::{Footer, u32_at, u64_at};
use super::header::Layout;
use crate::host::HostFile;
use crate::units::BlockIndex;
use crate::{Error, Result};

/// Bytes of the header with its padding.
pub(crate) const HEADER_SIZE: u64 = 512;
/// The newest version of the header, 1.2.
pub(crate) const VERSION_CURRENT: u32 = 0x0001_0002;

const COOKIE: &[u8; 8] = b"tdbatmap";
const VERSION_SIGNED: u32 = 0x0001_0001;
const ENCRYPTED_AT: usize = 29;

/// The most bytes of map that are read: a bit for each entry of the largest table, in whole sectors.
const MAP_SIZE_MAX: u64 = 512 << 10;

/// A batmap with its place in the file.
#[derive(Clone, Debug)]
pub(crate) struct Batmap {
    header: [u8; 512],
    header_offset: u64,
    map: Vec<u8>,
    checksummed: usize,
}

/// What is found where a batmap belongs.
#[derive(Debug)]
pub(crate) enum Found {
    /// Its creator writes none.
    None,
    /// One that can be used; its checksum may still be wrong.
    Batmap(Box<Batmap>),
    /// Something else: field, offset and what is wrong with it.
    Broken(&'static str, u64, String),
}

impl Batmap {
    /// Bytes of map that libvhd covers by the checksum for a disk of `size` bytes: it rounds the blocks down to
    /// whole bytes before it rounds up to sectors, and always takes 2 MiB blocks.
    fn checksummed(size: u64) -> u64 {
        (size >> 24).div_ceil(512).max(1) * 512
    }

    /// An empty map for `entries` blocks of a new disk of `size` bytes.
    pub(crate) fn new(header_offset: u64, size: u64, entries: u32) -> Self {
        let sectors = u64::from(entries).div_ceil(8 * 512).max(1);
        let mut header = [0; 512];
        header[..8].copy_from_slice(COOKIE);
        header[8..16].copy_from_slice(&(header_offset + HEADER_SIZE).to_be_bytes());
        header[16..20].copy_from_slice(&(sectors as u32).to_be_bytes());
        header[20..24].copy_from_slice(&VERSION_CURRENT.to_be_bytes());
        let map = vec![0; (sectors * 512) as usize];
        let checksummed = Self::checksummed(size).min(sectors * 512) as usize;
        Self { header, header_offset, map, checksummed }
    }

    /// Looks for the batmap of a disk with this `footer` and `layout`.
    pub(crate) fn find(host: &HostFile, footer: &Footer, layout: &Layout, file_length: u64) -> Result<Found> {
        // Version 0.1 had none, 1.1 may have one.
        if !footer.is_tap() || footer.creator_version() <= 0x0000_0001 {
            return Ok(Found::None);
        }
        let at = layout.batmap_header_offset();
        if at.checked_add(HEADER_SIZE).is_none_or(|end| end > file_length) {
            return Ok(Found::Broken("batmap header", at, "lies past the end of the file".to_owned()));
        }
        let mut header = [0; 512];
        host.read(&mut header, at, "the batmap header")?;
        if header[..8] != *COOKIE {
            if footer.creator_version() < 0x0001_0002 {
                return Ok(Found::None);
            }
            return Ok(Found::Broken("batmap cookie", at, "is not \"tdbatmap\"".to_owned()));
        }
        let (offset, sectors, version) = (u64_at(&header, 8), u32_at(&header, 16), u32_at(&header, 20));
        if version > VERSION_CURRENT {
            return Ok(Found::Broken("batmap version", at + 20, format!("{version:#x} is unknown")));
        }
        let size = u64::from(sectors) * 512;
        if size > MAP_SIZE_MAX || size * 8 < u64::from(layout.blocks) || size == 0 {
            let why = format!("{sectors} sectors do not fit {} blocks", layout.blocks);
            return Ok(Found::Broken("batmap size", at + 16, why));
        }
        let end = offset.checked_add(size).filter(|&end| end <= file_length);
        if offset < 512 || !offset.is_multiple_of(512) || end.is_none() {
            let why = format!("{size} bytes of map at {offset} do not fit the file");
            return Ok(Found::Broken("batmap offset", at + 8, why));
        }
        let mut map = vec![0; size as usize];
        host.read(&mut map, offset, "the batmap")?;
        let checksummed = Self::checksummed(footer.size()).min(size) as usize;
        Ok(Found::Batmap(Box::new(Self { header, header_offset: at, map, checksummed })))
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.header[ENCRYPTED_AT] != 0
    }

    pub(crate) fn header_offset(&self) -> u64 {
        self.header_offset
    }

    pub(crate) fn version(&self) -> u32 {
        u32_at(&self.header, 20)
    }

    pub(crate) fn map_offset(&self) -> u64 {
        u64_at(&self.header, 8)
    }

    pub(crate) fn map_size(&self) -> u64 {
        self.map.len() as u64
    }

    pub(crate) fn stored_checksum(&self) -> u32 {
        u32_at(&self.header, 24)
    }

    /// The checksum that libvhd expects over the map.
    pub(crate) fn computed_checksum(&self) -> u32 {
        let covered = &self.map[..self.checksummed];
        let byte = |&byte: &u8| {
            // Version 1.1 summed signed characters.
            if self.version() == VERSION_SIGNED { i32::from(byte as i8) as u32 } else { u32::from(byte) }
        };
        !covered.iter().map(byte).fold(0, u32::wrapping_add)
    }

    pub(crate) fn is_full(&self, block: BlockIndex) -> bool {
        self.map.get(block.0 as usize / 8).is_some_and(|byte| byte & mask(block) != 0)
    }

    /// Sets or clears the bit of `block`; whether that changed it.
    pub(crate) fn set_full(&mut self, block: BlockIndex, full: bool) -> bool {
        let Some(byte) = self.map.get_mut(block.0 as usize / 8) else { return false };
        let before = *byte;
        *byte = if full { before | mask(block) } else { before & !mask(block) };
        *byte != before
    }

    /// Calls no block full.
    pub(crate) fn clear(&mut self) {
        self.map.fill(0);
    }

    /// Writes the map and then the header with a fresh checksum.
    pub(crate) fn write(&mut self, host: &HostFile) -> Result<(), Error> {
        let checksum = self.computed_checksum();
        self.header[24..28].copy_from_slice(&checksum.to_be_bytes());
        host.write(&self.map, self.map_offset(), "the batmap")?;
        host.write(&self.header, self.header_offset, "the batmap header")
    }
}

fn mask(block: BlockIndex) -> u8 {
    0x80 >> (block.0 % 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_covers_what_libvhd_sums() {
        // 4097 blocks need two sectors of map; libvhd sums only the first.
        let size = 4097 * (2 << 20);
        let mut batmap = Batmap::new(1536 + 4097_u64.next_multiple_of(512), size, 4097);
        assert_eq!(batmap.map_size(), 1024);
        assert_eq!(batmap.computed_checksum(), u32::MAX);
        assert!(batmap.set_full(BlockIndex(4096), true));
        assert_eq!(batmap.computed_checksum(), u32::MAX);
        assert!(batmap.set_full(BlockIndex(0), true));
        assert!(!batmap.set_full(BlockIndex(0), true));
        assert_eq!(batmap.computed_checksum(), u32::MAX - 0x80);
        assert!(
            batmap.is_full(BlockIndex(4096))
                && batmap.is_full(BlockIndex(0))
                && !batmap.is_full(BlockIndex(1))
        );
    }
}
