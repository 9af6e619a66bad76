//! The guest's view over any mapping: what the reading and the writing device share.
//!
//! A device answers *where* a guest byte lies ([`Run`]); this module reads from there, asks the backing file for
//! what is unallocated, and turns mappings into extents.

use std::sync::Arc;

use super::cache::Cache;
use super::compressed::inflate;
use super::header::{Compression, Header};
use super::host::HostFileExt as _;
use super::tables::{Geometry, InSpan, Mapping, Run};
use crate::device::check_range;
use crate::host::HostFile;
use crate::units::{FileOffset, GuestOffset};
use crate::{BlockDevice, Extent, ExtentKind, Result};

/// Inflated clusters are kept, since callers read less than a large cluster at a time.
const INFLATED_BYTES_MAX: usize = 8 << 20;
/// The most entries of the L1 table that one lookup merges: 2 TiB of hole with 64 KiB clusters.
const MERGED_TABLES_MAX: usize = 4096;

/// The file, its geometry, and what lies below it.
pub(super) struct View {
    /// The image file.
    pub(super) host: HostFile,
    /// How it is cut.
    pub(super) geometry: Geometry,
    /// Guest size in bytes.
    pub(super) size: u64,
    compression: Compression,
    backing: Option<Arc<dyn BlockDevice>>,
    inflated: Cache,
    /// Whether clusters that have a place and were never written, which are holes of the file, are told as zero: no work
    /// for whoever reads. Who writes wants to know what has a place.
    pub(super) tells_holes: bool,
}

impl View {
    /// The view of the image in `host` over `backing`.
    pub(super) fn new(host: HostFile, header: &Header, backing: Option<Arc<dyn BlockDevice>>) -> Self {
        Self {
            host,
            geometry: header.geometry,
            size: header.size,
            compression: header.compression,
            backing,
            inflated: Cache::new(INFLATED_BYTES_MAX),
            tells_holes: false,
        }
    }

    /// Refuses a range that passes the end of the disk.
    pub(super) fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        check_range(self.host.path(), self.size, offset, length)
    }

    /// Fills `buf` from `offset`. `lookup` says where the bytes from an offset on lie, at most so many.
    pub(super) fn read(
        &self,
        mut buf: &mut [u8],
        offset: u64,
        lookup: impl Fn(GuestOffset, u64) -> Result<Run>,
    ) -> Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        let mut offset = GuestOffset(offset);
        while !buf.is_empty() {
            let run = lookup(offset, buf.len() as u64)?;
            let (part, rest) = buf.split_at_mut(run.length as usize);
            match run.mapping {
                Mapping::Data { host } => self.host.read_padded(part, host.0, "data")?,
                Mapping::Zero => part.fill(0),
                Mapping::Unallocated => self.read_backing(part, offset)?,
                Mapping::Compressed { host, length } => {
                    let cluster = self.inflated.get(host, || self.inflate(host, length))?;
                    let in_cluster = (offset.0 % self.geometry.cluster_size()) as usize;
                    part.copy_from_slice(&cluster[in_cluster..in_cluster + part.len()]);
                }
            }
            offset += run.length;
            buf = rest;
        }
        Ok(())
    }

    /// Fills `buf` from `offset` if nothing has to be waited for, with a `lookup` that waits for nothing either.
    pub(super) fn read_at_once(
        &self,
        mut buf: &mut [u8],
        offset: u64,
        lookup: impl Fn(GuestOffset, u64) -> Option<Run>,
    ) -> Result<bool> {
        self.check_range(offset, buf.len() as u64)?;
        let mut offset = GuestOffset(offset);
        while !buf.is_empty() {
            let Some(run) = lookup(offset, buf.len() as u64) else { return Ok(false) };
            let (part, rest) = buf.split_at_mut(run.length as usize);
            let is_here = match run.mapping {
                Mapping::Data { host } => self.host.read_at_once(part, host.0),
                Mapping::Zero => {
                    part.fill(0);
                    true
                }
                Mapping::Unallocated => match self.above_backing(part, offset) {
                    Some((backing, below)) => backing.read_at_once(below, offset.0)?,
                    None => true,
                },
                Mapping::Compressed { host, .. } => match self.inflated.peek(host) {
                    Some(cluster) => {
                        let in_cluster = (offset.0 % self.geometry.cluster_size()) as usize;
                        part.copy_from_slice(&cluster[in_cluster..in_cluster + part.len()]);
                        true
                    }
                    None => false,
                },
            };
            if !is_here {
                return Ok(false);
            }
            offset += run.length;
            buf = rest;
        }
        Ok(true)
    }

    /// The extent at guest byte `offset`.
    pub(super) fn extent(
        &self,
        offset: u64,
        lookup: impl FnOnce(GuestOffset, u64) -> Result<Run>,
    ) -> Result<Extent> {
        self.check_range(offset, 1)?;
        let Run { mapping, length } = lookup(GuestOffset(offset), self.size - offset)?;
        match mapping {
            Mapping::Data { host } if self.tells_holes => {
                let (is_data, length) = self.host.data_run(host.0, length)?;
                Ok(Extent { length, kind: if is_data { ExtentKind::Data } else { ExtentKind::Zero } })
            }
            Mapping::Data { .. } | Mapping::Compressed { .. } => {
                Ok(Extent { length, kind: ExtentKind::Data })
            }
            Mapping::Zero => Ok(Extent { length, kind: ExtentKind::Zero }),
            Mapping::Unallocated => match &self.backing {
                Some(backing) if offset < backing.size() => {
                    let below = backing.extent_at(offset)?;
                    Ok(Extent { length: length.min(below.length), kind: below.kind })
                }
                _ => Ok(Extent { length, kind: ExtentKind::Hole }),
            },
        }
    }

    /// The unallocated run at `offset`, under an L1 entry that has no table, together with its neighbours.
    pub(super) fn missing_tables(&self, l1: &[u64], offset: GuestOffset, limit: u64) -> Run {
        let span = self.geometry.table_span();
        let (first, InSpan(within)) = self.geometry.table_of(offset);
        let following = l1.get(first + 1..).unwrap_or(&[]);
        let merged = following.iter().take(MERGED_TABLES_MAX).take_while(|entry| **entry == 0).count() as u64;
        // The run may reach past the address space in theory, never past the limit.
        let length = (span - within).saturating_add(merged.saturating_mul(span));
        Run { mapping: Mapping::Unallocated, length: length.min(limit) }
    }

    fn read_backing(&self, buf: &mut [u8], offset: GuestOffset) -> Result<()> {
        match self.above_backing(buf, offset) {
            Some((backing, below)) => backing.read_at(below, offset.0),
            None => Ok(()),
        }
    }

    /// The part of `buf`, which is unallocated at `offset`, that the backing file answers. The rest is made zero: a backing
    /// file that is shorter than its overlay reads as zero behind its end.
    fn above_backing<'a>(
        &self,
        buf: &'a mut [u8],
        offset: GuestOffset,
    ) -> Option<(&dyn BlockDevice, &'a mut [u8])> {
        let size = self.backing.as_ref().map_or(0, |backing| backing.size());
        let there = size.saturating_sub(offset.0).min(buf.len() as u64) as usize;
        let (below, beyond) = buf.split_at_mut(there);
        beyond.fill(0);
        let backing = self.backing.as_deref().filter(|_| !below.is_empty())?;
        Some((backing, below))
    }

    fn inflate(&self, host: FileOffset, length: u64) -> Result<Arc<[u8]>> {
        // The last sector may be cut off by the end of the file; the stream ends before.
        let mut input = vec![0; length as usize];
        let available = self.host.read_available(&mut input, host.0, "compressed cluster")?;
        inflate(self.compression, &input[..available], self.geometry.cluster_size() as usize)
            .map(Arc::from)
            .map_err(|why| self.host.corrupt("compressed cluster", host.0, why))
    }
}
