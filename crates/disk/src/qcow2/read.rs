//! The reading device: any image that we understand.

use std::sync::Arc;

use super::cache::Cache;
use super::claims::Claims;
use super::header::{Header, be64};
use super::host::HostFileExt as _;
use super::tables::{InSpan, Mapping, Run};
use super::view::View;
use crate::host::HostFile;
use crate::units::{FileOffset, GuestOffset};
use crate::{BlockDevice, Error, ErrorKind, Extent, FilePlace, Result};

/// L2 tables in memory: with 64 KiB clusters these map 128 GiB.
const TABLE_BYTES_MAX: usize = 16 << 20;

const HINT_CUT: &str =
    "the file was cut short: copy it again from where it is whole, and compare the lengths";
const HINT_SHARED: &str =
    "if you trust the image, `qemu-img convert -O qcow2` makes one of it that shares nothing";

/// An image opened for reading.
pub(super) struct Reader {
    view: View,
    /// Where `l1` lies in the file.
    l1_offset: u64,
    /// The entries that map the disk; those behind them belong to snapshots of running machines.
    l1: Vec<u64>,
    /// Length of the file when it was opened. What an entry points at must begin before it.
    host_length: u64,
    tables: Cache,
    claims: Claims,
}

impl Reader {
    /// Loads the L1 table of the image in `host`.
    pub(super) fn open(
        host: HostFile,
        header: &Header,
        backing: Option<Arc<dyn BlockDevice>>,
    ) -> Result<Self> {
        let host_length = host.length()?;
        for place in header.places() {
            if let Some(why) = place.fault(host_length) {
                return Err(host.corrupt(place.field, place.at, why).with_hint(HINT_CUT));
            }
        }
        let l1 = read_l1(&host, header, host_length)?;
        refuse_shared_tables(&host, header, &l1)?;
        let claims = Claims::new(header.geometry, header.compression, host_length);
        let mut view = View::new(host, header, backing);
        view.tells_holes = true;
        let tables = Cache::new(TABLE_BYTES_MAX);
        Ok(Self { view, l1_offset: header.l1_offset, l1, host_length, tables, claims })
    }

    /// Where the guest bytes from `offset` on lie, at most `limit` of them. The range is inside the disk.
    fn lookup(&self, offset: GuestOffset, limit: u64) -> Result<Run> {
        let view = &self.view;
        let (index, within) = view.geometry.table_of(offset);
        let Some(host) = self.table_place(index)? else {
            return Ok(view.missing_tables(&self.l1, offset, limit));
        };
        let table = self.tables.get(host, || {
            let mut bytes = vec![0; view.geometry.cluster_size() as usize];
            view.host.read_whole(&mut bytes, host.0, "L2 table")?;
            let disk = view.size.saturating_sub(view.geometry.span_start(index).0);
            self.claims
                .count(view.geometry, index, &bytes, disk)
                .map_err(|why| self.bad_l1(index, why).with_hint(HINT_SHARED))?;
            Ok::<_, Error>(Arc::from(bytes))
        })?;
        self.run_in(&table, host, within, limit)
    }

    /// The same from memory alone; what is wrong is for [`lookup`](Self::lookup) to say.
    fn lookup_at_once(&self, offset: GuestOffset, limit: u64) -> Option<Run> {
        let (index, within) = self.view.geometry.table_of(offset);
        let Some(host) = self.table_place(index).ok()? else {
            return Some(self.view.missing_tables(&self.l1, offset, limit));
        };
        self.run_in(self.tables.peek(host)?.as_ref(), host, within, limit).ok()
    }

    /// Where the table of L1 entry `index` lies, if there is one.
    fn table_place(&self, index: usize) -> Result<Option<FileOffset>> {
        let geometry = self.view.geometry;
        let entry = self.l1.get(index).copied();
        let entry = entry.ok_or_else(|| self.bad_l1(index, "is outside of the table".into()))?;
        let place = geometry.l2_table(entry).map_err(|why| self.bad_l1(index, why.into()))?;
        match place {
            Some(host) if host.0 + geometry.cluster_size() > self.host_length => {
                Err(self.bad_l1(index, "the L2 table is not inside the file".into()))
            }
            place => Ok(place),
        }
    }

    fn bad_l1(&self, index: usize, why: String) -> Error {
        self.view.host.corrupt("L1 entry", self.l1_offset + index as u64 * 8, why)
    }

    /// The run at `within` of the span of `table`, which lies at byte `table_host` of the file.
    fn run_in(&self, table: &[u8], table_host: FileOffset, within: InSpan, limit: u64) -> Result<Run> {
        let geometry = self.view.geometry;
        let bad_l2 = |at, why| self.view.host.corrupt("L2 entry", table_host.0 + at, why);
        let run = geometry.run(table, within, limit).map_err(|bad| bad_l2(bad.at, bad.why))?;
        // What lies behind the end of the guest's disk may be missing, and the compressed bytes of the last cluster end
        // where they like. Everything else that is missing was cut off, and nobody knows what it was.
        let end = match run.mapping {
            Mapping::Data { host } => host.0 + run.length,
            Mapping::Compressed { host, .. } => host.0 + 1,
            Mapping::Zero | Mapping::Unallocated => 0,
        };
        if end > self.host_length {
            let why = "it or a neighbour names data past the end of the file";
            return Err(bad_l2(geometry.entry_at(within), why).with_hint(HINT_CUT));
        }
        Ok(run)
    }

    fn read_only(&self) -> Error {
        Error::new(ErrorKind::ReadOnly, self.view.host.path(), "was opened for reading")
    }
}

impl BlockDevice for Reader {
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

    fn write_at(&self, _buf: &[u8], _offset: u64) -> Result<()> {
        Err(self.read_only())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.view.extent(offset, |offset, limit| self.lookup(offset, limit))
    }

    fn allocate(&self, _offset: u64, _length: u64) -> Result<()> {
        Err(self.read_only())
    }

    fn discard(&self, _offset: u64, _length: u64) -> Result<()> {
        Err(self.read_only())
    }

    fn write_zeroes(&self, _offset: u64, _length: u64) -> Result<()> {
        Err(self.read_only())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }
}

/// Refuses an L1 table of which two entries name one L2 table. No writer shares them, and a file of some kilobytes could
/// claim a terabyte of data with one table.
fn refuse_shared_tables(host: &HostFile, header: &Header, l1: &[u64]) -> Result<()> {
    let mut named: Vec<(FileOffset, usize)> = l1
        .iter()
        .enumerate()
        .filter_map(|(index, entry)| Some((header.geometry.l2_table(*entry).ok()??, index)))
        .collect();
    named.sort_unstable();
    match named.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(&[(_, first), (_, second)]) => {
            let why = format!("names the L2 table that entry {first} names");
            Err(host.corrupt("L1 entry", header.l1_offset + second as u64 * 8, why))
        }
        _ => Ok(()),
    }
}

/// The entries of the L1 table that map the disk.
pub(super) fn read_l1(host: &HostFile, header: &Header, host_length: u64) -> Result<Vec<u64>> {
    if header.l1_offset + header.l1_bytes() > host_length {
        return Err(host.corrupt("l1_table_offset", 40, "the L1 table is not inside the file"));
    }
    let needed = header.size.div_ceil(header.geometry.table_span());
    read_u64s(host, header.l1_offset, needed, "L1 table")
}

/// `count` big-endian numbers at byte `offset`; the caller bounds `count`.
pub(super) fn read_u64s(host: &HostFile, offset: u64, count: u64, field: &str) -> Result<Vec<u64>> {
    let mut bytes = vec![0; count as usize * 8];
    host.read_whole(&mut bytes, offset, field)?;
    Ok(bytes.chunks_exact(8).filter_map(|entry| be64(entry, 0)).collect())
}
