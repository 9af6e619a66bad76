//! Which clusters of a file that we write are in use, and the refcounts that follow from it.
//!
//! In the images that we write every cluster is used once or not at all, so that one bit stands for a refcount and
//! a refcount block is computed when it is written. Clusters are handed out in ascending order and never given
//! back. A refcount block takes the first cluster of the range that it counts; its place, like everything else,
//! then follows from the order of allocations alone.

use std::collections::BTreeSet;

use super::tables::Geometry;
use crate::host::HostFile;
use crate::{Error, ErrorKind, Result};

/// Files up to 32 TiB: as many clusters as fit into a bitmap of 64 MiB.
pub(super) const CLUSTERS_MAX: u64 = 1 << 29;

/// Clusters in use and their refcount blocks. Clusters are numbered by their place in the file.
pub(super) struct Space {
    geometry: Geometry,
    /// One bit per cluster; clusters behind the end are free.
    used: Vec<u64>,
    /// One more than the last used cluster.
    end: u64,
    /// No cluster before this one is free.
    next: u64,
    /// Free clusters before this one may hold what a killed writer left, and are cleared when they are taken.
    stale_end: u64,
    /// The file goes on behind `stale_end` with what a killed writer left.
    has_stale_tail: bool,
    /// Offsets of the refcount blocks; 0 for none.
    pub(super) table: Vec<u64>,
    /// Blocks whose bytes in the file are out of date.
    pub(super) dirty_blocks: BTreeSet<usize>,
    /// Entries of `table` that are not yet in the file.
    pub(super) dirty_entries: BTreeSet<usize>,
}

impl Space {
    /// An empty file with a refcount table of `table`.
    pub(super) fn new(geometry: Geometry, table: Vec<u64>) -> Self {
        Self {
            geometry,
            used: Vec::new(),
            end: 0,
            next: 0,
            stale_end: 0,
            has_stale_tail: false,
            table,
            dirty_blocks: BTreeSet::new(),
            dirty_entries: BTreeSet::new(),
        }
    }

    /// Clusters that one refcount block counts, with 16 bits each.
    pub(super) fn block_span(&self) -> u64 {
        self.geometry.cluster_size() / 2
    }

    /// Says that `cluster` is used; `false` when it was used already.
    pub(super) fn mark(&mut self, cluster: u64) -> bool {
        let (word, bit) = ((cluster / 64) as usize, 1 << (cluster % 64));
        if word >= self.used.len() {
            self.used.resize(word + 1, 0);
        }
        let is_new = self.used[word] & bit == 0;
        self.used[word] |= bit;
        self.end = self.end.max(cluster + 1);
        is_new
    }

    /// Says that the file, whose used clusters are all marked, has `host_length` bytes.
    pub(super) fn adopt(&mut self, host_length: u64) {
        self.stale_end = self.end;
        self.has_stale_tail = host_length > self.end_offset();
    }

    /// The length that the file should have.
    pub(super) fn end_offset(&self) -> u64 {
        self.end << self.geometry.cluster_bits()
    }

    /// Cuts off what lies behind the last used cluster.
    pub(super) fn trim(&mut self, host: &HostFile) -> Result<()> {
        if self.has_stale_tail {
            host.set_length(self.end_offset())?;
            self.has_stale_tail = false;
        }
        Ok(())
    }

    /// Takes a cluster that reads as zero and returns its offset in the file.
    pub(super) fn allocate(&mut self, host: &HostFile) -> Result<u64> {
        self.trim(host)?;
        loop {
            let cluster = self.next_free();
            let block = (cluster / self.block_span()) as usize;
            let offset = cluster << self.geometry.cluster_bits();
            let is_block_missing = match self.table.get(block) {
                Some(entry) => *entry == 0,
                None => return Err(self.full(host)),
            };
            if cluster < self.stale_end {
                host.zero(offset, self.geometry.cluster_size())?;
            }
            self.mark(cluster);
            self.next = cluster + 1;
            self.dirty_blocks.insert(block);
            if !is_block_missing {
                return Ok(offset);
            }
            self.table[block] = offset;
            self.dirty_entries.insert(block);
        }
    }

    /// The bytes of refcount block `index`.
    pub(super) fn block(&self, index: usize) -> Vec<u8> {
        let first = index as u64 * self.block_span();
        let mut bytes = Vec::with_capacity(self.geometry.cluster_size() as usize);
        for cluster in first..first + self.block_span() {
            bytes.extend_from_slice(&u16::from(self.is_used(cluster)).to_be_bytes());
        }
        bytes
    }

    /// Whether any cluster that block `index` counts is in use.
    pub(super) fn is_block_needed(&self, index: u64) -> bool {
        let words = self.block_span().div_ceil(64) as usize;
        let first = (index as usize).saturating_mul(words);
        self.used.iter().skip(first).take(words).any(|word| *word != 0)
    }

    /// Blocks that the used clusters reach into.
    pub(super) fn blocks(&self) -> u64 {
        self.end.div_ceil(self.block_span())
    }

    fn is_used(&self, cluster: u64) -> bool {
        self.used.get((cluster / 64) as usize).is_some_and(|word| word >> (cluster % 64) & 1 != 0)
    }

    fn next_free(&self) -> u64 {
        let mut word = (self.next / 64) as usize;
        // Clusters before `next` count as used.
        let mut taken = (1u64 << (self.next % 64)) - 1;
        while let Some(bits) = self.used.get(word) {
            let free = !(bits | taken);
            if free != 0 {
                return word as u64 * 64 + u64::from(free.trailing_zeros());
            }
            taken = 0;
            word += 1;
        }
        self.next.max(word as u64 * 64)
    }

    fn full(&self, host: &HostFile) -> Error {
        let entries = self.table.len();
        let message = format!("its refcount table of {entries} entries is full");
        Error::new(ErrorKind::Unsupported, host.path(), message).with_hint(
            "write into a new image; the table is made for the whole disk when an image is created",
        )
    }
}
