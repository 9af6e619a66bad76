//! The 1024-byte header of dynamic and differencing disks, and what it says about the layout of the file.
//!
//! ```text
//!   0 cookie "cxsparse"   8 no further header   16 table offset     24 header version   28 table entries
//!  32 block size         36 checksum            40 parent uuid      56 parent time      60 reserved
//!  64 parent name, UTF-16BE [256]              576 eight locators of 24 bytes          768 reserved
//! ```

use goldwire_stdx::Uuid;

use super::footer::{Footer, Footers, checksum, u32_at, u64_at};
use super::locator::Locator;
use crate::host::HostFile;
use crate::units::{BlockIndex, FileOffset, FileSector, GuestOffset};
use crate::{Error, ErrorKind, Result};

/// Bytes of a header.
pub(crate) const HEADER_SIZE: u64 = 1024;
/// The block size of every writer that we know, and of every disk that we write.
pub(crate) const BLOCK_SIZE: u64 = 2 << 20;

const COOKIE: &[u8; 8] = b"cxsparse";
const CHECKSUM_AT: usize = 36;
const LOCATOR_COUNT: usize = 8;

/// The smallest block: one sector.
const BLOCK_SIZE_MIN: u64 = 512;
/// The largest block; its bitmap takes 64 KiB of memory. The specification knows 512 KiB and 2 MiB.
const BLOCK_SIZE_MAX: u64 = 256 << 20;
/// The most blocks, because their table is kept in memory (16 MiB). The largest VHD, 2040 GiB, has a quarter.
const BLOCKS_MAX: u64 = 1 << 22;

/// A header whose cookie and checksum are right.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    bytes: [u8; 1024],
}

/// Why some bytes are no header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    Cookie,
    Checksum { stored: u32, computed: u32 },
}

impl Header {
    pub(crate) fn parse(bytes: [u8; 1024]) -> Result<Self, HeaderFault> {
        if bytes[..8] != *COOKIE {
            return Err(HeaderFault::Cookie);
        }
        let (stored, computed) = (u32_at(&bytes, CHECKSUM_AT), checksum(&bytes, CHECKSUM_AT));
        if stored != computed {
            return Err(HeaderFault::Checksum { stored, computed });
        }
        Ok(Self { bytes })
    }

    /// A header without a parent, for a table of `entries` at `table_offset`.
    pub(crate) fn new(table_offset: u64, entries: u32) -> Self {
        let mut bytes = [0; 1024];
        bytes[..8].copy_from_slice(COOKIE);
        bytes[8..16].copy_from_slice(&u64::MAX.to_be_bytes());
        bytes[16..24].copy_from_slice(&table_offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
        bytes[28..32].copy_from_slice(&entries.to_be_bytes());
        bytes[32..36].copy_from_slice(&(BLOCK_SIZE as u32).to_be_bytes());
        let sum = checksum(&bytes, CHECKSUM_AT);
        bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_be_bytes());
        Self { bytes }
    }

    /// Reads the header that `footer` points to.
    pub(crate) fn read(host: &HostFile, footer: &Footer, footers: &Footers) -> Result<Self> {
        let offset = footer.data_offset();
        let fits = offset.checked_add(HEADER_SIZE).is_some_and(|end| end <= footers.data_end());
        if offset < 512 || !fits {
            let why = format!("{offset} is no place for the dynamic header");
            return Err(Error::corrupt(host.path(), "footer data offset", 16, why));
        }
        let mut bytes = [0; 1024];
        host.read(&mut bytes, offset, "the dynamic header")?;
        Self::parse(bytes).map_err(|fault| fault.error(host, offset))
    }

    pub(crate) fn bytes(&self) -> &[u8; 1024] {
        &self.bytes
    }

    pub(crate) fn data_offset(&self) -> u64 {
        u64_at(&self.bytes, 8)
    }

    pub(crate) fn table_offset(&self) -> u64 {
        u64_at(&self.bytes, 16)
    }

    pub(crate) fn version(&self) -> u32 {
        u32_at(&self.bytes, 24)
    }

    pub(crate) fn table_entries(&self) -> u32 {
        u32_at(&self.bytes, 28)
    }

    pub(crate) fn block_size(&self) -> u32 {
        u32_at(&self.bytes, 32)
    }

    pub(crate) fn parent_uuid(&self) -> Uuid {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.bytes[40..56]);
        Uuid(uuid)
    }

    /// Seconds since 2000.
    pub(crate) fn parent_timestamp(&self) -> u32 {
        u32_at(&self.bytes, 56)
    }

    /// The parent's name as 512 bytes of UTF-16BE.
    pub(crate) fn parent_name(&self) -> &[u8] {
        &self.bytes[64..576]
    }

    pub(crate) fn locators(&self) -> impl Iterator<Item = Locator> {
        (0..LOCATOR_COUNT).map(|index| Locator::parse(&self.bytes, index))
    }

    pub(crate) fn has_dirty_reserved_bytes(&self) -> bool {
        self.bytes[60..64].iter().chain(&self.bytes[768..]).any(|&byte| byte != 0)
    }
}

impl HeaderFault {
    pub(crate) fn error(&self, host: &HostFile, header_offset: u64) -> Error {
        let (field, at) = match self {
            Self::Cookie => ("dynamic header cookie", 0),
            Self::Checksum { .. } => ("dynamic header checksum", CHECKSUM_AT as u64),
        };
        Error::corrupt(host.path(), field, header_offset + at, self)
    }
}

impl std::fmt::Display for HeaderFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cookie => f.write_str("is not \"cxsparse\""),
            Self::Checksum { stored, computed } => {
                write!(f, "is {stored:#010x}, but the bytes give {computed:#010x}")
            }
        }
    }
}

/// Numbers of the file's layout that were checked against each other and the file's length.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Guest size in bytes; whole sectors.
    pub(crate) size: u64,
    /// Bytes of guest data in a block; a power of two.
    pub(crate) block_size: u64,
    /// Bytes of the sector bitmap before each block's data; whole sectors.
    pub(crate) bitmap_size: u64,
    /// Blocks that the guest's size needs.
    pub(crate) blocks: u32,
    /// Where the dynamic header starts.
    pub(crate) header_offset: u64,
    /// Where the table starts.
    pub(crate) table_offset: u64,
    /// The table's whole sectors in bytes, preallocated entries included.
    pub(crate) table_size: u64,
}

impl Layout {
    pub(crate) fn new(host: &HostFile, footers: &Footers, footer: &Footer, header: &Header) -> Result<Self> {
        let path = host.path();
        let at = |field: u64| footer.data_offset().saturating_add(field);
        let size = footer.size();
        if !size.is_multiple_of(512) {
            let why = format!("{size} bytes are not whole sectors");
            return Err(Error::corrupt(path, "footer current size", 48, why));
        }
        if header.version() != 0x0001_0000 {
            let message = format!("has a dynamic header of version {:#x}", header.version());
            return Err(Error::new(ErrorKind::Unsupported, path, message));
        }
        let block_size = u64::from(header.block_size());
        if !block_size.is_power_of_two() || !(BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&block_size) {
            let why = format!("{block_size} is not a power of two from {BLOCK_SIZE_MIN} to {BLOCK_SIZE_MAX}");
            return Err(Error::corrupt(path, "block size", at(32), why));
        }
        let blocks = size.div_ceil(block_size);
        let entries = u64::from(header.table_entries());
        if blocks > entries {
            let why = format!("{entries} are too few for the {blocks} blocks of {size} bytes");
            return Err(Error::corrupt(path, "table entries", at(28), why));
        }
        if blocks > BLOCKS_MAX {
            let message = format!("has {blocks} blocks; at most {BLOCKS_MAX} are read");
            return Err(Error::new(ErrorKind::Unsupported, path, message));
        }
        let table_offset = header.table_offset();
        let table_size = (entries * 4).next_multiple_of(512);
        let table_end = table_offset.checked_add(table_size).filter(|&end| end <= footers.data_end());
        if table_offset < 512 || !table_offset.is_multiple_of(512) || table_end.is_none() {
            let why = format!("{entries} entries at {table_offset} do not fit {} bytes", footers.data_end());
            return Err(Error::corrupt(path, "table offset", at(16), why));
        }
        Ok(Self {
            size,
            block_size,
            bitmap_size: (block_size / 512).div_ceil(8).next_multiple_of(512),
            blocks: blocks as u32,
            header_offset: footer.data_offset(),
            table_offset,
            table_size,
        })
    }

    /// The header of the batmap follows the table.
    pub(crate) fn batmap_header_offset(&self) -> u64 {
        self.table_offset + self.table_size
    }

    /// The block that holds `guest`, and where in the block's data it lies.
    pub(crate) fn block_of(&self, guest: GuestOffset) -> (BlockIndex, u64) {
        // The layout bounds the blocks to 22 bits, and a guest offset to the disk's size.
        (BlockIndex((guest.0 / self.block_size) as u32), guest.0 % self.block_size)
    }

    /// Where the data of a block that starts at `sector` begins: behind its bitmap.
    pub(crate) fn data_offset(&self, sector: FileSector) -> FileOffset {
        sector.offset() + self.bitmap_size
    }

    /// Bytes of a block in the file.
    pub(crate) fn block_file_size(&self) -> u64 {
        self.bitmap_size + self.block_size
    }
}
