//! The 512-byte footer at the end of every VHD, and its copy at the start of dynamic and differencing ones.
//!
//! ```text
//!   0 cookie "conectix"       8 features (bit 1 always)   12 format version   16 offset of the dynamic header
//!  24 seconds since 2000     28 creator application       32 creator version  36 creator OS
//!  40 original size          48 current size              56 geometry         60 disk type
//!  64 checksum               68 uuid                      84 saved state      85 hidden (XenServer)
//!  86 reserved, zero
//! ```
//!
//! Everything is big endian. The bytes are kept as they are and read through methods, so that a footer that we
//! write again keeps what we do not know.

use goldwire_stdx::Uuid;

use super::geometry::Geometry;
use crate::host::HostFile;
use crate::image::Format;
use crate::{Error, Result};

/// Bytes of a footer.
pub(crate) const FOOTER_SIZE: u64 = 512;
/// 2000-01-01T00:00:00Z in seconds since 1970; time stamps count from here.
pub(crate) const EPOCH: i64 = 946_684_800;
/// What `data_offset` holds when there is no further header.
pub(crate) const NO_OFFSET: u64 = u64::MAX;

const COOKIE: &[u8; 8] = b"conectix";
/// libvhd writes this cookie into disks that must not be opened any more.
const COOKIE_DISABLED: &[u8; 8] = b"v_poison";
const CHECKSUM_AT: usize = 64;
const HIDDEN_AT: usize = 85;

/// What the disk type field says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskKind {
    Fixed,
    Dynamic,
    Differencing,
}

impl DiskKind {
    pub(crate) fn format(self) -> Format {
        match self {
            Self::Fixed => Format::VhdFixed,
            Self::Dynamic => Format::VhdDynamic,
            Self::Differencing => Format::VhdDifferencing,
        }
    }
}

/// A footer whose cookie and checksum are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    bytes: [u8; 512],
}

/// Why some bytes are no footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FooterFault {
    /// The file ends before.
    Absent,
    /// Another cookie.
    Cookie,
    /// The cookie is right and the checksum is not.
    Checksum { stored: u32, computed: u32 },
}

impl Footer {
    pub(crate) fn parse(bytes: [u8; 512]) -> Result<Self, FooterFault> {
        if bytes[..8] != *COOKIE && bytes[..8] != *COOKIE_DISABLED {
            return Err(FooterFault::Cookie);
        }
        let footer = Self { bytes };
        let (stored, computed) = (footer.u32_at(CHECKSUM_AT), checksum(&bytes, CHECKSUM_AT));
        if stored == computed {
            return Ok(footer);
        }
        // The first tapdisk set `hidden` without a new checksum.
        let mut shown = bytes;
        shown[HIDDEN_AT] = 0;
        if footer.hidden_is_outside_checksum() && stored == checksum(&shown, CHECKSUM_AT) {
            return Ok(footer);
        }
        Err(FooterFault::Checksum { stored, computed })
    }

    /// A new footer as XenServer's libvhd writes it. `data_offset` is where the dynamic header lies.
    pub(crate) fn new(kind: DiskKind, size: u64, data_offset: u64, uuid: Uuid, timestamp: u32) -> Self {
        let mut bytes = [0; 512];
        bytes[..8].copy_from_slice(COOKIE);
        bytes[8..12].copy_from_slice(&2_u32.to_be_bytes());
        bytes[12..16].copy_from_slice(&0x0001_0000_u32.to_be_bytes());
        bytes[16..24].copy_from_slice(&data_offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&timestamp.to_be_bytes());
        bytes[28..32].copy_from_slice(b"tap\0");
        bytes[32..36].copy_from_slice(&TAP_VERSION_CURRENT.to_be_bytes());
        bytes[40..48].copy_from_slice(&size.to_be_bytes());
        bytes[48..56].copy_from_slice(&size.to_be_bytes());
        bytes[56..60].copy_from_slice(&Geometry::of_size(size).0.to_be_bytes());
        let kind: u32 = match kind {
            DiskKind::Fixed => 2,
            DiskKind::Dynamic => 3,
            DiskKind::Differencing => 4,
        };
        bytes[60..64].copy_from_slice(&kind.to_be_bytes());
        bytes[68..84].copy_from_slice(&uuid.0);
        let mut footer = Self { bytes };
        footer.update_checksum();
        footer
    }

    pub(crate) fn bytes(&self) -> &[u8; 512] {
        &self.bytes
    }

    pub(crate) fn is_disabled(&self) -> bool {
        self.bytes[..8] == *COOKIE_DISABLED
    }

    pub(crate) fn features(&self) -> u32 {
        self.u32_at(8)
    }

    pub(crate) fn format_version(&self) -> u32 {
        self.u32_at(12)
    }

    pub(crate) fn data_offset(&self) -> u64 {
        self.u64_at(16)
    }

    /// Seconds since [`EPOCH`].
    pub(crate) fn timestamp(&self) -> u32 {
        self.u32_at(24)
    }

    pub(crate) fn creator(&self) -> [u8; 4] {
        [self.bytes[28], self.bytes[29], self.bytes[30], self.bytes[31]]
    }

    /// Major version in the upper half, minor in the lower.
    pub(crate) fn creator_version(&self) -> u32 {
        self.u32_at(32)
    }

    /// Whether XenServer's own code wrote the disk; it gives some fields a meaning of their own.
    pub(crate) fn is_tap(&self) -> bool {
        self.creator().starts_with(b"tap")
    }

    /// The disk's size in bytes, for every creator.
    ///
    /// Virtual PC and early QEMU show their guest only what the geometry describes, which may be less, and QEMU
    /// still reads their disks so. XenServer and Hyper-V show `current_size`. We follow the two systems whose
    /// disks we replicate.
    pub(crate) fn size(&self) -> u64 {
        self.u64_at(48)
    }

    pub(crate) fn geometry(&self) -> Geometry {
        Geometry(self.u32_at(56))
    }

    pub(crate) fn kind_code(&self) -> u32 {
        self.u32_at(60)
    }

    pub(crate) fn kind(&self) -> Option<DiskKind> {
        match self.kind_code() {
            2 => Some(DiskKind::Fixed),
            3 => Some(DiskKind::Dynamic),
            4 => Some(DiskKind::Differencing),
            _ => None,
        }
    }

    pub(crate) fn uuid(&self) -> Uuid {
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.bytes[68..84]);
        Uuid(uuid)
    }

    pub(crate) fn saved(&self) -> u8 {
        self.bytes[84]
    }

    pub(crate) fn hidden(&self) -> u8 {
        self.bytes[HIDDEN_AT]
    }

    pub(crate) fn set_hidden(&mut self, hidden: bool) {
        self.bytes[HIDDEN_AT] = u8::from(hidden);
        self.update_checksum();
    }

    pub(crate) fn has_dirty_reserved_bytes(&self) -> bool {
        self.bytes[HIDDEN_AT + 1..].iter().any(|&byte| byte != 0)
    }

    /// Creator versions 0.1 and 1.1 of tapdisk kept `hidden` only in the copy at 0 and out of the checksum.
    pub(crate) fn hidden_is_outside_checksum(&self) -> bool {
        self.is_tap() && [0x0000_0001, 0x0001_0001].contains(&self.creator_version())
    }

    fn update_checksum(&mut self) {
        let checksum = checksum(&self.bytes, CHECKSUM_AT);
        self.bytes[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_be_bytes());
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32_at(&self.bytes, at)
    }

    fn u64_at(&self, at: usize) -> u64 {
        u64_at(&self.bytes, at)
    }
}

/// The newest version of XenServer's creator that we know, 1.3, and the one that we write.
pub(crate) const TAP_VERSION_CURRENT: u32 = 0x0001_0003;

/// The two places of a footer and what was found there.
#[derive(Debug)]
pub(crate) struct Footers {
    /// The one at the end of the file, which is the one that counts.
    pub(crate) trailing: Result<Footer, FooterFault>,
    /// Where it lies or should lie.
    pub(crate) trailing_offset: u64,
    /// The copy at byte 0, which only dynamic and differencing disks have.
    pub(crate) copy: Result<Footer, FooterFault>,
    /// Length of the file in bytes.
    pub(crate) file_length: u64,
}

impl Footers {
    pub(crate) fn read(host: &HostFile) -> Result<Self> {
        let file_length = host.length()?;
        let mut copy = Err(FooterFault::Absent);
        let mut trailing = Err(FooterFault::Absent);
        let mut trailing_offset = file_length;
        let mut bytes = [0; 512];
        if file_length >= FOOTER_SIZE {
            host.read(&mut bytes, 0, "the footer's copy")?;
            copy = Footer::parse(bytes);
            trailing_offset = file_length - FOOTER_SIZE;
            host.read(&mut bytes, trailing_offset, "the footer")?;
            trailing = Footer::parse(bytes);
        }
        // Virtual PC before 2004 wrote 511 bytes, without the last reserved one.
        if trailing.is_err() && file_length >= FOOTER_SIZE {
            bytes[511] = 0;
            host.read(&mut bytes[..511], file_length - 511, "the short footer")?;
            match Footer::parse(bytes) {
                Err(FooterFault::Cookie) => {}
                short => (trailing, trailing_offset) = (short, file_length - 511),
            }
        }
        Ok(Self { trailing, trailing_offset, copy, file_length })
    }

    /// The footer to go by: the one at the end, else the copy at 0 of a disk that has one.
    pub(crate) fn effective(&self) -> Option<&Footer> {
        match (&self.trailing, &self.copy) {
            (Ok(footer), _) => Some(footer),
            (Err(_), Ok(copy)) if copy.kind() != Some(DiskKind::Fixed) => Some(copy),
            _ => None,
        }
    }

    /// As [`effective`](Self::effective), or an error that says what is broken.
    pub(crate) fn effective_or_error(&self, host: &HostFile) -> Result<&Footer> {
        if let Some(footer) = self.effective() {
            return Ok(footer);
        }
        let (fault, at) = match (&self.trailing, &self.copy) {
            (Err(fault @ FooterFault::Checksum { .. }), _) => (fault, self.trailing_offset),
            (_, Err(fault @ FooterFault::Checksum { .. })) => (fault, 0),
            (Err(fault), _) => (fault, self.trailing_offset),
            // A copy at 0 that says fixed is the guest's data.
            (Ok(_), _) => (&FooterFault::Absent, self.trailing_offset),
        };
        Err(Error::corrupt(host.path(), fault.field(), at.saturating_add(fault.offset()), fault)
            .with_hint("a plain disk that is no VHD is read by --source-format raw"))
    }

    /// Where block data must end: before the footer, or at the end of a file that lost it.
    pub(crate) fn data_end(&self) -> u64 {
        if self.trailing.is_ok() { self.trailing_offset } else { self.file_length }
    }

    /// Whether somebody claims that this is a VHD, broken or not, and of which kind.
    pub(crate) fn claimed_kind(&self) -> Option<DiskKind> {
        let is_claimed = |footer: &Result<Footer, FooterFault>| {
            matches!(footer, Ok(_) | Err(FooterFault::Checksum { .. }))
        };
        match (self.effective(), is_claimed(&self.trailing), is_claimed(&self.copy)) {
            (Some(footer), _, _) => Some(footer.kind().unwrap_or(DiskKind::Dynamic)),
            (None, _, true) if self.copy.is_err() => Some(DiskKind::Dynamic),
            (None, true, _) => Some(DiskKind::Fixed),
            _ => None,
        }
    }

    /// Whether XenServer hides the disk.
    pub(crate) fn hidden(&self, footer: &Footer) -> bool {
        let asks_copy = footer.hidden_is_outside_checksum() && footer.kind() != Some(DiskKind::Fixed);
        match &self.copy {
            Ok(copy) if asks_copy => copy.hidden() != 0,
            _ => footer.hidden() != 0,
        }
    }
}

impl FooterFault {
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Self::Absent => "footer",
            Self::Cookie => "footer cookie",
            Self::Checksum { .. } => "footer checksum",
        }
    }

    /// Where in the footer the fault lies.
    pub(crate) fn offset(&self) -> u64 {
        match self {
            Self::Absent | Self::Cookie => 0,
            Self::Checksum { .. } => CHECKSUM_AT as u64,
        }
    }
}

impl std::fmt::Display for FooterFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent => f.write_str("the file holds no footer"),
            Self::Cookie => f.write_str("is not \"conectix\""),
            Self::Checksum { stored, computed } => {
                write!(f, "is {stored:#010x}, but the bytes give {computed:#010x}")
            }
        }
    }
}

/// The one's complement of the sum of all bytes but the checksum's own four at `at`.
pub(crate) fn checksum(bytes: &[u8], at: usize) -> u32 {
    let own = at..at + 4;
    let sum = bytes.iter().enumerate().filter(|(i, _)| !own.contains(i)).map(|(_, &byte)| u32::from(byte));
    !sum.fold(0, u32::wrapping_add)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The footer that `vhd-util create` of blktap 4.0.8 wrote for a 64 MiB disk, and its checksum.
    fn foreign() -> [u8; 512] {
        let mut bytes = [0; 512];
        bytes[..8].copy_from_slice(b"conectix");
        let fields: [u8; 77] = [
            0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0x32, 0x95, 0x27, 0x40, b't', b'a', b'p', 0, 0,
            1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 3, 0xc3, 8, 0x11, 0, 0, 0,
            3, 0xff, 0xff, 0xf0, 0x71, 0x3c, 0x61, 0xab, 0x31, 0xf1, 0x5f, 0x4e, 0xac, 0xb1, 0xeb, 0x8b,
            0xfb, 0xf1, 0x91, 0x08, 0x5b, 0,
        ];
        bytes[8..85].copy_from_slice(&fields);
        bytes[85] = 1;
        bytes
    }

    #[test]
    fn reads_what_vhd_util_wrote() {
        let footer = Footer::parse(foreign()).unwrap();
        assert_eq!(footer.size(), 64 << 20);
        assert_eq!(footer.kind(), Some(DiskKind::Dynamic));
        assert_eq!(footer.hidden(), 1);
        assert_eq!(footer.creator(), *b"tap\0");
        assert!(!footer.has_dirty_reserved_bytes());
    }

    #[test]
    fn writes_what_vhd_util_wrote() {
        let foreign = Footer::parse(foreign()).unwrap();
        let mut ours = Footer::new(DiskKind::Dynamic, 64 << 20, 512, foreign.uuid(), foreign.timestamp());
        ours.set_hidden(true);
        assert_eq!(ours, foreign);
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        for at in 0..512 {
            let mut bytes = foreign();
            bytes[at] ^= 0x40;
            assert!(Footer::parse(bytes).is_err(), "byte {at}");
        }
    }

    #[test]
    fn old_tapdisk_hid_without_a_new_checksum() {
        let mut bytes = foreign();
        bytes[85] = 0;
        bytes[35] = 1;
        let sum = checksum(&bytes, 64);
        bytes[64..68].copy_from_slice(&sum.to_be_bytes());
        bytes[85] = 1;
        assert_eq!(Footer::parse(bytes).unwrap().hidden(), 1);
    }
}
