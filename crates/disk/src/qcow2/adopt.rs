//! Opening an existing image for writing: the proof that it has the simple shape of [`write`](super::write).
//!
//! Every table is read and every cluster is marked. An image that passes has each cluster referenced at most once
//! and nothing that we would have to preserve, so that whatever is not marked is free, whatever its refcount says:
//! a killed writer leaves clusters that are counted and unused.

use super::header::{CORRUPT, DIRTY, Header, be64};
use super::host::HostFileExt as _;
use super::read::read_u64s;
use super::space::{CLUSTERS_MAX, Space};
use super::tables::{COPIED, InSpan, Mapping, Run};
use super::write::{CLUSTER_BITS, REFCOUNT_ORDER, SIZE_MAX, Writer};
use crate::host::HostFile;
use crate::{Error, ErrorKind, Result};

const HINT_CONVERT: &str = "write into a new image, or make a plain one with `qemu-img convert -O qcow2`";
const HINT_REPAIR: &str = "look at it with `qemu-img check`, and repair a copy with `qemu-img check -r all`";

/// Opens the image in `host` for writing.
pub(super) fn adopt(host: HostFile, header: &Header) -> Result<Writer> {
    check_header(&host, header)?;
    let host_length = host.length()?;
    if host_length >> CLUSTER_BITS > CLUSTERS_MAX {
        return Err(unsupported(&host, "a file of more than 32 TiB"));
    }
    let mut scan = Scan { host: &host, header, host_length, space: Space::new(header.geometry, Vec::new()) };
    let l1 = scan.run()?;
    let mut space = scan.space;
    space.adopt(host_length);
    compare_refcounts(&host, &mut space)?;
    Ok(Writer::new(host, header, l1, space))
}

fn check_header(host: &HostFile, header: &Header) -> Result<()> {
    if header.incompatible & CORRUPT != 0 {
        let error = host.corrupt("incompatible_features", 72, "the image is marked as corrupt");
        return Err(error.with_hint(HINT_REPAIR));
    }
    if header.incompatible & DIRTY != 0 {
        return Err(Error::new(ErrorKind::Unsupported, host.path(), "writing to an image marked as dirty")
            .with_hint(HINT_REPAIR));
    }
    let obstacles = [
        (header.version != 3, "version 2"),
        (header.geometry.cluster_bits() != CLUSTER_BITS, "clusters of another size than 64 KiB"),
        (header.geometry.is_extended(), "extended L2 entries"),
        (header.refcount_order != REFCOUNT_ORDER, "refcounts of another width than 16 bits"),
        (header.backing_name.is_some(), "a backing file"),
        (header.snapshot_count != 0, "internal snapshots"),
        (header.has_bitmaps || header.autoclear != 0, "persistent bitmaps or other autoclear features"),
        (header.size > SIZE_MAX, "a disk of more than 16 TiB"),
    ];
    match obstacles.iter().find(|(is_there, _)| *is_there) {
        Some((_, what)) => Err(unsupported(host, what)),
        None => Ok(()),
    }
}

fn unsupported(host: &HostFile, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, host.path(), format!("writing to an image with {what}"))
        .with_hint(HINT_CONVERT)
}

struct Scan<'a> {
    host: &'a HostFile,
    header: &'a Header,
    host_length: u64,
    space: Space,
}

impl Scan<'_> {
    /// Marks every cluster and returns the L1 table.
    fn run(&mut self) -> Result<Vec<u64>> {
        let Header { l1_offset, refcount_table_offset, .. } = *self.header;
        self.mark("header", 0, 0, 1)?;
        self.mark("refcount_table_offset", 48, refcount_table_offset, self.header.refcount_table_bytes())?;
        self.mark("l1_table_offset", 40, l1_offset, self.header.l1_bytes())?;
        let entries = self.header.refcount_table_bytes() / 8;
        self.space.table = read_u64s(self.host, refcount_table_offset, entries, "refcount table")?;
        for index in 0..self.space.table.len() {
            let (block, at) = (self.space.table[index], refcount_table_offset + index as u64 * 8);
            if block != 0 {
                self.mark("refcount table entry", at, block, 1)?;
            }
        }
        let l1 = read_u64s(self.host, l1_offset, u64::from(self.header.l1_entries), "L1 table")?;
        let needed = self.header.size.div_ceil(self.header.geometry.table_span()) as usize;
        for (index, entry) in l1.iter().enumerate().filter(|(_, entry)| **entry != 0) {
            let at = l1_offset + index as u64 * 8;
            if index >= needed {
                return Err(unsupported(self.host, "tables behind the end of the disk"));
            }
            self.table(*entry, at)?;
        }
        Ok(l1)
    }

    fn table(&mut self, l1_entry: u64, l1_at: u64) -> Result<()> {
        let geometry = self.header.geometry;
        let table_host =
            geometry.l2_table(l1_entry).map_err(|why| self.host.corrupt("L1 entry", l1_at, why))?;
        let Some(table_host) = table_host.filter(|_| l1_entry & COPIED != 0) else {
            return Err(self
                .host
                .corrupt("L1 entry", l1_at, "the copied flag is not set alone")
                .with_hint(HINT_REPAIR));
        };
        self.mark("L1 entry", l1_at, table_host.0, geometry.cluster_size())?;
        let mut bytes = vec![0; geometry.cluster_size() as usize];
        self.host.read_whole(&mut bytes, table_host.0, "L2 table")?;
        for at in (0..geometry.cluster_size()).step_by(8) {
            let entry = be64(&bytes, at as usize).unwrap_or(0);
            if entry == 0 {
                continue;
            }
            let within = InSpan(at / 8 * geometry.cluster_size());
            let Run { mapping, .. } = geometry
                .mapping(&bytes, within)
                .map_err(|bad| self.host.corrupt("L2 entry", table_host.0 + at, bad.why))?;
            let is_alone = entry & COPIED != 0;
            match (mapping, geometry.held_cluster(entry)) {
                (Mapping::Compressed { .. }, _) => {
                    return Err(unsupported(self.host, "compressed clusters"));
                }
                (_, Some(held)) if is_alone => self.mark("L2 entry", table_host.0 + at, held.0, 1)?,
                (_, Some(_)) => return Err(unsupported(self.host, "clusters that need copying")),
                (Mapping::Zero, None) if !is_alone => {}
                (_, None) => {
                    return Err(self.host.corrupt("L2 entry", table_host.0 + at, "has flags but no cluster"));
                }
            }
        }
        Ok(())
    }

    /// Marks the clusters of `length` bytes at `offset`, to which the `field` at byte `at` points.
    fn mark(&mut self, field: &str, at: u64, offset: u64, length: u64) -> Result<()> {
        let cluster_size = self.header.geometry.cluster_size();
        let end = offset.checked_add(length).filter(|end| *end <= self.host_length);
        let (Some(end), true) = (end, offset.is_multiple_of(cluster_size)) else {
            let why = format!("{offset:#x} is no cluster inside the file");
            return Err(self.host.corrupt(field, at, why));
        };
        for cluster in offset / cluster_size..end.div_ceil(cluster_size) {
            if !self.space.mark(cluster) {
                let why = format!("the cluster at {:#x} is used twice", cluster * cluster_size);
                return Err(self.host.corrupt(field, at, why).with_hint(HINT_REPAIR));
            }
        }
        Ok(())
    }
}

/// Finds the refcount blocks that a killed writer left out of date.
fn compare_refcounts(host: &HostFile, space: &mut Space) -> Result<()> {
    let mut bytes = vec![0; 1 << CLUSTER_BITS];
    for index in 0..space.table.len().max(space.blocks() as usize) {
        match space.table.get(index).copied().unwrap_or(0) {
            0 if space.is_block_needed(index as u64) => {
                let why = format!("refcount block {index} is missing");
                return Err(host.corrupt("refcount table", index as u64 * 8, why).with_hint(HINT_REPAIR));
            }
            0 => {}
            offset => {
                // A block that is cut off by the end of the file counts nothing there.
                host.read_padded(&mut bytes, offset, "refcount block")?;
                if bytes != space.block(index) {
                    space.dirty_blocks.insert(index);
                }
            }
        }
    }
    Ok(())
}
