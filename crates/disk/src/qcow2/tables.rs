//! L1 and L2 entries: where a guest byte lies.
//!
//! ```text
//! guest offset ─► L1 entry ─► L2 table (one cluster) ─► L2 entry ─► host cluster
//!
//! L2 entry      63 copied · 62 compressed · 55..9 host cluster · 0 reads as zero (version 3)
//! compressed    61..x sectors after the first · x-1..0 host byte        x = 62 - (cluster_bits - 8)
//! extended L2   a second word: 63..32 subcluster reads as zero · 31..0 subcluster is allocated
//! ```
//!
//! Reserved bits must be zero: an entry that sets one was written by somebody who knows more than we do, or by
//! nobody, and a golden image must not be guessed.

use super::header::be64;
use crate::units::{FileOffset, GuestOffset};

/// An entry points to a table or cluster that nobody else refers to.
pub(super) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Bits 9 to 55 of an entry.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// An entry whose cluster reads as zero, whatever is in its place (version 3).
pub(super) const READS_AS_ZERO: u64 = 1;
/// Sector of the compressed-cluster descriptor, in bytes; fixed by the format.
const SECTOR: u64 = 512;
/// Subclusters of a cluster with extended L2 entries; fixed by the format.
const SUBCLUSTERS: u64 = 32;
/// The most entries or subclusters that one lookup merges, so that a caller that walks in small steps over a
/// large table does not walk the table for every step. An ordinary table of 64 KiB clusters is merged whole.
const MERGED_UNITS_MAX: u32 = 8192;

/// How an image cuts guest and file into clusters and tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    cluster_bits: u32,
    is_extended: bool,
    version: u32,
}

/// What a guest byte is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mapping {
    /// Nothing here; the backing file answers.
    Unallocated,
    /// Reads as zero whatever the backing file holds.
    Zero,
    /// Stored at this byte of the file.
    Data {
        /// Where.
        host: FileOffset,
    },
    /// The whole cluster around the byte is compressed.
    Compressed {
        /// Where the compressed bytes begin.
        host: FileOffset,
        /// Upper bound of the compressed bytes; it ends at a sector, the stream may end earlier.
        length: u64,
    },
}

/// A run of guest bytes that are mapped alike; `Data` is contiguous in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// The mapping of the first byte.
    pub(super) mapping: Mapping,
    /// Guest bytes; at least 1.
    pub(super) length: u64,
}

/// A guest byte, counted from the first one that its L2 table maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InSpan(pub(super) u64);

/// An L2 entry that breaks the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadEntry {
    /// Byte of the entry inside its table.
    pub(super) at: u64,
    /// What is wrong with it.
    pub(super) why: &'static str,
}

impl Geometry {
    /// Whether clusters may have `1 << bits` bytes.
    pub(super) fn check_cluster_bits(bits: u32) -> Result<(), String> {
        if (9..=21).contains(&bits) { Ok(()) } else { Err(format!("is {bits}, not between 9 and 21")) }
    }

    /// Clusters of `1 << cluster_bits` bytes, with extended L2 entries or without.
    pub(super) fn new(cluster_bits: u32, is_extended: bool, version: u32) -> Result<Self, String> {
        Self::check_cluster_bits(cluster_bits)?;
        if is_extended && cluster_bits < 14 {
            return Err(format!("is {cluster_bits}, but extended L2 entries need at least 14"));
        }
        Ok(Self { cluster_bits, is_extended, version })
    }

    /// Binary logarithm of the cluster size.
    pub(super) fn cluster_bits(self) -> u32 {
        self.cluster_bits
    }

    /// Bytes of a cluster, of an L2 table and of a refcount block.
    pub(super) fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether L2 entries have subcluster bitmaps.
    pub(super) fn is_extended(self) -> bool {
        self.is_extended
    }

    /// Bytes of an L2 entry.
    pub(super) fn entry_size(self) -> u64 {
        if self.is_extended { 16 } else { 8 }
    }

    /// Guest bytes that one L2 table maps.
    pub(super) fn table_span(self) -> u64 {
        (self.cluster_size() / self.entry_size()) << self.cluster_bits
    }

    /// The L1 entry whose table maps `guest`, and where in that table's span it lies.
    pub(super) fn table_of(self, guest: GuestOffset) -> (usize, InSpan) {
        let span = self.table_span();
        ((guest.0 / span) as usize, InSpan(guest.0 % span))
    }

    /// The first guest byte that the table of L1 entry `index` maps.
    pub(super) fn span_start(self, index: usize) -> GuestOffset {
        GuestOffset(index as u64 * self.table_span())
    }

    /// Byte of the L2 entry for `within` inside its table.
    pub(super) fn entry_at(self, within: InSpan) -> u64 {
        (within.0 >> self.cluster_bits) * self.entry_size()
    }

    /// Where the L2 table of an L1 entry lies, if there is one.
    pub(super) fn l2_table(self, entry: u64) -> Result<Option<FileOffset>, &'static str> {
        if entry & !(OFFSET_MASK | COPIED) != 0 {
            return Err("a reserved bit is set");
        }
        match entry & OFFSET_MASK {
            0 => Ok(None),
            host if host.is_multiple_of(self.cluster_size()) => Ok(Some(FileOffset(host))),
            _ => Err("the L2 table's offset is not a cluster's"),
        }
    }

    /// The run of equally mapped bytes that begins at `within` of the span that `table` maps, at most `limit` bytes.
    pub(super) fn run(self, table: &[u8], within: InSpan, limit: u64) -> Result<Run, BadEntry> {
        let Run { mapping, mut length } = self.mapping(table, within)?;
        let limit = limit.min(self.table_span() - within.0);
        for _ in 0..MERGED_UNITS_MAX {
            if length >= limit {
                break;
            }
            // A bad neighbour ends the run; whoever reads on gets the error.
            let Ok(next) = self.mapping(table, InSpan(within.0 + length)) else { break };
            if !mapping.continues_with(next.mapping, length) {
                break;
            }
            length += next.length;
        }
        Ok(Run { mapping, length: length.min(limit) })
    }

    /// What the byte `within` maps to, and how far that cluster or subcluster reaches.
    pub(super) fn mapping(self, table: &[u8], within: InSpan) -> Result<Run, BadEntry> {
        let at = self.entry_at(within);
        let in_cluster = within.0 & (self.cluster_size() - 1);
        let bad = |why| BadEntry { at, why };
        let entry = be64(table, at as usize).ok_or(bad("is outside of its table"))?;
        let bitmap = if self.is_extended {
            Some(be64(table, at as usize + 8).ok_or(bad("is outside of its table"))?)
        } else {
            None
        };
        if entry & COMPRESSED != 0 {
            let mapping = self.compressed(entry, bitmap).map_err(bad)?;
            return Ok(Run { mapping, length: self.cluster_size() - in_cluster });
        }
        if entry & !(OFFSET_MASK | COPIED | READS_AS_ZERO) != 0 {
            return Err(bad("a reserved bit is set"));
        }
        if entry & READS_AS_ZERO != 0 && (self.is_extended || self.version < 3) {
            return Err(bad("the zero flag is set where the format has none"));
        }
        let cluster = entry & OFFSET_MASK;
        if !cluster.is_multiple_of(self.cluster_size()) {
            return Err(bad("the host offset is not a cluster's"));
        }
        let data = Mapping::Data { host: FileOffset(cluster) + in_cluster };
        let Some(bitmap) = bitmap else {
            let mapping = match (entry & READS_AS_ZERO != 0, cluster) {
                (true, _) => Mapping::Zero,
                (false, 0) => Mapping::Unallocated,
                (false, _) => data,
            };
            return Ok(Run { mapping, length: self.cluster_size() - in_cluster });
        };
        let subcluster_size = self.cluster_size() / SUBCLUSTERS;
        let index = in_cluster / subcluster_size;
        let mapping = match (bitmap >> index & 1 != 0, bitmap >> (index + 32) & 1 != 0) {
            (true, true) => return Err(bad("a subcluster is both allocated and zero")),
            (true, false) if cluster == 0 => return Err(bad("a subcluster is allocated nowhere")),
            (true, false) => data,
            (false, true) => Mapping::Zero,
            (false, false) => Mapping::Unallocated,
        };
        Ok(Run { mapping, length: subcluster_size - in_cluster % subcluster_size })
    }

    /// The host cluster that an entry holds on to, also where it is only a preallocation under zeros.
    pub(super) fn held_cluster(self, entry: u64) -> Option<FileOffset> {
        let cluster = entry & OFFSET_MASK;
        (entry & COMPRESSED == 0 && cluster != 0).then_some(FileOffset(cluster))
    }

    fn compressed(self, entry: u64, bitmap: Option<u64>) -> Result<Mapping, &'static str> {
        if entry & COPIED != 0 {
            return Err("a compressed cluster has the copied flag");
        }
        if bitmap.is_some_and(|bitmap| bitmap != 0) {
            return Err("a compressed cluster has subclusters");
        }
        let sector_bits = self.cluster_bits - 8;
        let offset_bits = 62 - sector_bits;
        let host = entry & ((1 << offset_bits) - 1);
        if host >> 56 != 0 {
            return Err("a reserved bit is set");
        }
        let sectors = (entry >> offset_bits & ((1 << sector_bits) - 1)) + 1;
        Ok(Mapping::Compressed { host: FileOffset(host), length: sectors * SECTOR - host % SECTOR })
    }
}

impl Mapping {
    /// Whether `next`, which begins `length` bytes after `self`, is more of the same.
    fn continues_with(self, next: Mapping, length: u64) -> bool {
        match (self, next) {
            (Self::Unallocated, Self::Unallocated) | (Self::Zero, Self::Zero) => true,
            (Self::Data { host }, Self::Data { host: next }) => host + length == next,
            _ => false,
        }
    }
}
