//! The writing device: images of one simple shape, which is the shape that we create.
//!
//! Version 3, 64 KiB clusters, 16-bit refcounts, no backing file, no snapshots, every cluster used at most once:
//!
//! ```text
//! cluster 0   1 ..                2 ..             ...              then, in the order of allocation
//! header      refcount table      refcount block   L1 table         L2 tables and data
//! ```
//!
//! The refcount table and the L1 table have their final size from the beginning, so that nothing ever moves. Data
//! is written in place at once; tables stay in memory until [`State::publish`] writes them in this order:
//!
//! 1. the file's length and refcounts, then a barrier (which also makes the data durable);
//! 2. entries of the refcount table for new blocks, then a barrier, when there are any;
//! 3. L2 tables, then L1 entries, then a barrier.
//!
//! What refers never becomes durable before what is referred to and counted. After a crash at any moment the image
//! holds a subset of the new references, all of them counted: some clusters may be counted and unused, none is
//! used and uncounted. What is zeroed or discarded becomes a hole of the file and keeps its cluster; where the file
//! system punches no holes, the entry of a zeroed cluster says that it reads as zero. Inside step 3 no order is needed: an L1 entry whose table did not arrive points at zeros,
//! which is an empty table. Opening for writing again finds out from the tables what is used, puts the refcounts
//! right with the next flush, and clears leftovers before it hands them out.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};

use super::header::{Compression, Header, be64};
use super::host::HostFileExt as _;
use super::space::Space;
use super::tables::{COPIED, Geometry, InSpan, Mapping, READS_AS_ZERO, Run};
use super::view::View;
use crate::host::HostFile;
use crate::units::GuestOffset;
use crate::{BlockDevice, Error, ErrorKind, Extent, FilePlace, Result};

/// Cluster size of the images that we write: 64 KiB, QEMU's default and our chunk size.
pub(super) const CLUSTER_BITS: u32 = 16;
/// Refcounts of 16 bits.
pub(super) const REFCOUNT_ORDER: u32 = 4;
/// The largest guest that we write: 16 TiB.
pub(super) const SIZE_MAX: u64 = 16 << 40;
/// L2 tables in memory, 64 KiB each.
const TABLES_MAX: usize = 256;
/// Tables that wait for being written; more are published without being asked.
const DIRTY_TABLES_MAX: usize = 128;

/// An image opened for writing.
pub(super) struct Writer {
    view: View,
    state: Mutex<State>,
}

/// What the file does not hold yet, and a cache of what it holds.
pub(super) struct State {
    l1_offset: u64,
    l1: Vec<u64>,
    dirty_l1: Vec<usize>,
    refcount_table_offset: u64,
    tables: HashMap<usize, Table>,
    dirty_tables: usize,
    clock: u64,
    space: Space,
    /// A publication failed. The kernel may have forgotten writes that it could not finish, so that publishing
    /// references to them later would expose something else.
    is_broken: bool,
}

struct Table {
    bytes: Vec<u8>,
    is_dirty: bool,
    used_at: u64,
}

impl Writer {
    /// Makes the empty `host` an empty image of `size` guest bytes. The header comes last: until then the file is
    /// no image.
    pub(super) fn create(host: HostFile, size: u64) -> Result<Self> {
        if size > SIZE_MAX || !size.is_multiple_of(512) {
            let message = format!("a QCOW2 image of {size} bytes cannot be written");
            return Err(Error::new(ErrorKind::Invalid, host.path(), message)
                .with_hint("take a multiple of 512 bytes, at most 16 TiB"));
        }
        if host.length()? != 0 {
            return Err(Error::new(ErrorKind::Invalid, host.path(), "is not empty"));
        }
        let geometry =
            Geometry::new(CLUSTER_BITS, false, 3).map_err(|why| host.corrupt("geometry", 0, why))?;
        let plan = Plan::new(geometry, size);
        let mut space = Space::new(geometry, vec![0; plan.refcount_table_clusters as usize * 8192]);
        for cluster in 0..plan.end {
            space.mark(cluster);
        }
        let cluster_size = geometry.cluster_size();
        let first_block = (1 + plan.refcount_table_clusters) * cluster_size;
        space.table[0] = first_block;
        let header = Header {
            version: 3,
            backing_name: None,
            backing_format: None,
            geometry,
            size,
            l1_entries: plan.l1_entries as u32,
            l1_offset: first_block + cluster_size,
            refcount_table_offset: cluster_size,
            refcount_table_clusters: plan.refcount_table_clusters as u32,
            snapshot_count: 0,
            incompatible: 0,
            autoclear: 0,
            refcount_order: REFCOUNT_ORDER,
            compression: Compression::Deflate,
            has_bitmaps: false,
            unread: Vec::new(),
        };
        host.set_length(space.end_offset())?;
        host.write(&space.block(0), first_block, "refcount block")?;
        host.write(&first_block.to_be_bytes(), cluster_size, "refcount table")?;
        host.sync()?;
        host.write(&header.encode_plain(), 0, "header")?;
        host.sync()?;
        Ok(Self::new(host, &header, vec![0; plan.l1_entries as usize], space))
    }

    /// The device over tables that are known to have the simple shape.
    pub(super) fn new(host: HostFile, header: &Header, l1: Vec<u64>, space: Space) -> Self {
        let state = State {
            l1_offset: header.l1_offset,
            l1,
            dirty_l1: Vec::new(),
            refcount_table_offset: header.refcount_table_offset,
            tables: HashMap::new(),
            dirty_tables: 0,
            clock: 0,
            space,
            is_broken: false,
        };
        Self { view: View::new(host, header, None), state: Mutex::new(state) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        crate::sync::lock(&self.state)
    }

    fn lookup(&self, offset: GuestOffset, limit: u64) -> Result<Run> {
        let mut state = self.state();
        let (index, within) = self.view.geometry.table_of(offset);
        if state.l1.get(index).is_none_or(|entry| *entry == 0) {
            return Ok(self.view.missing_tables(&state.l1, offset, limit));
        }
        let table_host = state.l1[index] & !COPIED;
        let table = state.table(&self.view, index)?;
        self.view
            .geometry
            .run(&table.bytes, within, limit)
            .map_err(|bad| self.view.host.corrupt("L2 entry", table_host + bad.at, bad.why))
    }
}

impl Writer {
    /// [`lookup`](Self::lookup) from memory alone. Whoever flushes holds the lock and waits for the medium.
    fn lookup_at_once(&self, offset: GuestOffset, limit: u64) -> Option<Run> {
        let state = crate::sync::try_lock(&self.state)?;
        let (index, within) = self.view.geometry.table_of(offset);
        if state.l1.get(index).is_none_or(|entry| *entry == 0) {
            return Some(self.view.missing_tables(&state.l1, offset, limit));
        }
        self.view.geometry.run(&state.tables.get(&index)?.bytes, within, limit).ok()
    }

    /// Writes to clusters that were allocated by now, and may have been made zero since.
    pub(super) fn write_allocated(&self, mut buf: &[u8], mut offset: u64) -> Result<()> {
        // Clusters never move and are never freed, so that data is written without holding the lock.
        while !buf.is_empty() {
            let run = self.lookup(GuestOffset(offset), buf.len() as u64)?;
            let (part, rest) = buf.split_at(run.length as usize);
            match run.mapping {
                Mapping::Data { host } => self.view.host.write(part, host.0, "data")?,
                // Another thread made it zero since it was allocated. Which of the two is later is for us to say.
                Mapping::Zero => {
                    self.allocate(offset, run.length)?;
                    continue;
                }
                Mapping::Unallocated | Mapping::Compressed { .. } => {
                    let why = "lost a cluster that was allocated";
                    return Err(self.view.host.corrupt("L2 table", offset, why));
                }
            }
            offset += run.length;
            buf = rest;
        }
        Ok(())
    }

    /// Calls `each` with the L1 index, and the part of its span, of every table that the range touches.
    fn for_each_table(
        &self,
        offset: u64,
        length: u64,
        each: impl Fn(usize, u64, u64) -> Result<()>,
    ) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        let (span, end) = (self.view.geometry.table_span(), offset + length);
        (offset / span..end.div_ceil(span)).try_for_each(|index| {
            let start = offset.max(index * span) - index * span;
            let stop = end.min((index + 1) * span) - index * span;
            each(index as usize, start, stop)
        })
    }

    /// Calls `each` with the guest byte, the byte of the file and the length of every run of the range that is stored.
    fn for_each_stored(
        &self,
        mut offset: u64,
        length: u64,
        each: impl Fn(u64, u64, u64) -> Result<()>,
    ) -> Result<()> {
        self.state().check_usable(&self.view)?;
        let end = offset + length;
        while offset < end {
            let run = self.lookup(GuestOffset(offset), end - offset)?;
            if let Mapping::Data { host } = run.mapping {
                each(offset, host.0, run.length)?;
            }
            offset += run.length;
        }
        Ok(())
    }
}

impl BlockDevice for Writer {
    fn size(&self) -> u64 {
        self.view.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.view.read(buf, offset, |offset, limit| self.lookup(offset, limit))
    }

    fn read_at_once(&self, buf: &mut [u8], offset: u64) -> Result<bool> {
        self.view.read_at_once(buf, offset, |offset, limit| self.lookup_at_once(offset, limit))
    }

    /// None: an image file is anybody's who may write to it.
    fn place_of(&self, offset: u64) -> Result<Option<FilePlace>> {
        self.view.check_range(offset, 1)?;
        Ok(None)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.allocate(offset, buf.len() as u64)?;
        self.write_allocated(buf, offset)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.view.extent(offset, |offset, limit| self.lookup(offset, limit))
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.view.check_range(offset, length)?;
        self.for_each_table(offset, length, |index, start, stop| {
            self.state().allocate(&self.view, index, start, stop)
        })
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.view.check_range(offset, length)?;
        self.for_each_stored(offset, length, |_, host, length| self.view.host.discard(host, length))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.view.check_range(offset, length)?;
        let (host, cluster_size) = (&self.view.host, self.view.geometry.cluster_size());
        self.for_each_stored(offset, length, |guest, at, length| {
            if host.punch(at, length)? {
                return Ok(());
            }
            // Whole clusters are told to be zero. What is left at either end is written.
            let end = guest + length;
            let first = guest.next_multiple_of(cluster_size).min(end);
            let last = (end / cluster_size * cluster_size).max(first);
            self.for_each_table(first, last - first, |index, start, stop| {
                self.state().set_zero(&self.view, index, start, stop)
            })?;
            host.zero(at, first - guest)?;
            host.zero(at + (last - guest), end - last)
        })
    }

    fn flush(&self) -> Result<()> {
        self.state().publish(&self.view)
    }
}

impl State {
    /// Gives the clusters of the guest bytes `start..stop` under table `index` a place.
    fn allocate(&mut self, view: &View, index: usize, start: u64, stop: u64) -> Result<()> {
        self.check_usable(view)?;
        if self.dirty_tables >= DIRTY_TABLES_MAX {
            self.publish(view)?;
        }
        if self.l1.get(index).is_none_or(|entry| *entry == 0) {
            self.create_table(view, index)?;
        }
        self.table(view, index)?;
        let Self { space, tables, dirty_tables, .. } = self;
        let Some(table) = tables.get_mut(&index) else { return Ok(()) };
        let geometry = view.geometry;
        for cluster in start >> geometry.cluster_bits()..stop.div_ceil(geometry.cluster_size()) {
            let at = cluster as usize * 8;
            let entry = be64(&table.bytes, at).unwrap_or(0);
            let host = match geometry.held_cluster(entry) {
                // What lies there was zero only because its entry said so. The next flush makes the zeros durable before
                // the entry.
                Some(held) if entry & READS_AS_ZERO != 0 => {
                    view.host.zero(held.0, geometry.cluster_size())?;
                    held.0
                }
                Some(_) => continue,
                None => space.allocate(&view.host)?,
            };
            table.bytes[at..at + 8].copy_from_slice(&(host | COPIED).to_be_bytes());
            *dirty_tables += usize::from(!table.is_dirty);
            table.is_dirty = true;
        }
        Ok(())
    }

    /// Says that the clusters of the guest bytes `start..stop` under table `index` read as zero, where they have a place.
    /// They keep it, so that whoever is writing there meanwhile disturbs nobody.
    fn set_zero(&mut self, view: &View, index: usize, start: u64, stop: u64) -> Result<()> {
        self.check_usable(view)?;
        if self.dirty_tables >= DIRTY_TABLES_MAX {
            self.publish(view)?;
        }
        if self.l1.get(index).is_none_or(|entry| *entry == 0) {
            return Ok(());
        }
        self.table(view, index)?;
        let Self { tables, dirty_tables, .. } = self;
        let Some(table) = tables.get_mut(&index) else { return Ok(()) };
        let geometry = view.geometry;
        for within in (start..stop).step_by(geometry.cluster_size() as usize) {
            let at = geometry.entry_at(InSpan(within)) as usize;
            let entry = be64(&table.bytes, at).unwrap_or(0);
            if geometry.held_cluster(entry).is_some() && entry & READS_AS_ZERO == 0 {
                table.bytes[at..at + 8].copy_from_slice(&(entry | READS_AS_ZERO).to_be_bytes());
                *dirty_tables += usize::from(!table.is_dirty);
                table.is_dirty = true;
            }
        }
        Ok(())
    }

    /// Makes an empty L2 table for L1 entry `index`.
    fn create_table(&mut self, view: &View, index: usize) -> Result<()> {
        self.make_room();
        let host = self.space.allocate(&view.host)?;
        // Fresh clusters read as zero, which is an empty table; it becomes dirty with its first entry.
        let bytes = vec![0; view.geometry.cluster_size() as usize];
        self.clock += 1;
        self.tables.insert(index, Table { bytes, is_dirty: false, used_at: self.clock });
        self.l1[index] = host | COPIED;
        self.dirty_l1.push(index);
        Ok(())
    }

    /// The L2 table that L1 entry `index`, which is not empty, points at.
    fn table(&mut self, view: &View, index: usize) -> Result<&Table> {
        if !self.tables.contains_key(&index) {
            self.make_room();
            let mut bytes = vec![0; view.geometry.cluster_size() as usize];
            view.host.read_padded(&mut bytes, self.l1[index] & !COPIED, "L2 table")?;
            self.tables.insert(index, Table { bytes, is_dirty: false, used_at: 0 });
        }
        self.clock += 1;
        let clock = self.clock;
        let lost = || view.host.corrupt("L2 table", index as u64, "was lost from memory");
        let table = self.tables.get_mut(&index).ok_or_else(lost)?;
        table.used_at = clock;
        Ok(table)
    }

    /// Drops the least recently used clean table when memory is full. There is one, since few may be dirty.
    fn make_room(&mut self) {
        if self.tables.len() >= TABLES_MAX {
            let clean = self.tables.iter().filter(|(_, table)| !table.is_dirty);
            if let Some(oldest) = clean.min_by_key(|(_, table)| table.used_at).map(|(index, _)| *index) {
                self.tables.remove(&oldest);
            }
        }
    }

    /// Makes data and tables durable, in the order that the module's comment gives reasons for.
    fn publish(&mut self, view: &View) -> Result<()> {
        self.check_usable(view)?;
        self.is_broken = true;
        let host = &view.host;
        self.publish_space(host)?;
        let mut dirty: Vec<usize> =
            self.tables.iter().filter(|(_, table)| table.is_dirty).map(|(index, _)| *index).collect();
        dirty.sort_unstable_by_key(|index| self.l1[*index]);
        self.dirty_l1.sort_unstable();
        for index in &dirty {
            if let Some(table) = self.tables.get(index) {
                host.write(&table.bytes, self.l1[*index] & !COPIED, "L2 table")?;
            }
        }
        for index in &self.dirty_l1 {
            host.write(&self.l1[*index].to_be_bytes(), self.l1_offset + *index as u64 * 8, "L1 entry")?;
        }
        if !dirty.is_empty() || !self.dirty_l1.is_empty() {
            host.sync()?;
        }
        for table in self.tables.values_mut() {
            table.is_dirty = false;
        }
        self.dirty_tables = 0;
        self.dirty_l1.clear();
        self.is_broken = false;
        Ok(())
    }

    /// Steps 1 and 2: everything that new references will need.
    fn publish_space(&mut self, host: &HostFile) -> Result<()> {
        let Self { space, refcount_table_offset, .. } = self;
        space.trim(host)?;
        if !space.dirty_blocks.is_empty() {
            host.set_length(space.end_offset())?;
        }
        for index in &space.dirty_blocks {
            host.write(&space.block(*index), space.table[*index], "refcount block")?;
        }
        host.sync()?;
        if !space.dirty_entries.is_empty() {
            for index in &space.dirty_entries {
                let entry = space.table[*index].to_be_bytes();
                host.write(&entry, *refcount_table_offset + *index as u64 * 8, "refcount table")?;
            }
            host.sync()?;
        }
        space.dirty_blocks.clear();
        space.dirty_entries.clear();
        Ok(())
    }

    fn check_usable(&self, view: &View) -> Result<()> {
        if self.is_broken {
            let message = "an earlier flush failed, so nothing more can be written safely";
            return Err(Error::new(ErrorKind::Io, view.host.path(), message)
                .with_hint("open the image again; what was flushed before is intact"));
        }
        Ok(())
    }
}

/// How large the tables of a new image are.
struct Plan {
    l1_entries: u64,
    refcount_table_clusters: u64,
    /// Clusters before the first L2 table.
    end: u64,
}

impl Plan {
    fn new(geometry: Geometry, size: u64) -> Self {
        let cluster_size = geometry.cluster_size();
        // QEMU makes no empty L1 table, so neither do we.
        let l1_entries = size.div_ceil(geometry.table_span()).max(1);
        let l1_clusters = (l1_entries * 8).div_ceil(cluster_size);
        let mapped = l1_clusters + l1_entries + size.div_ceil(cluster_size);
        let mut refcount_table_clusters = 1;
        loop {
            let others = 1 + refcount_table_clusters + mapped;
            // Of the clusters that a block counts, one is the block itself.
            let blocks = others.div_ceil(cluster_size / 2 - 1);
            let needed = (blocks * 8).div_ceil(cluster_size);
            if needed <= refcount_table_clusters {
                break;
            }
            refcount_table_clusters = needed;
        }
        Self { l1_entries, refcount_table_clusters, end: 1 + refcount_table_clusters + 1 + l1_clusters }
    }
}
