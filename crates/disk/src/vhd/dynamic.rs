//! Dynamic and differencing disks: blocks that are placed in the file when they are first written.
//!
//! ```text
//! | footer copy | header | table | batmap | bitmap, block | bitmap, block | … | footer |
//! ```
//!
//! A read looks the block up in the table, its sectors in the bitmap, and then takes each run of present sectors
//! with one positioned read; absent ones come from the parent, run by run.

use std::sync::{Arc, Mutex, RwLock};

use super::bat::{Bat, Region, fixed_regions, overlap};
use super::batmap::{self, Batmap, Found};
use super::bitmap::{BitOrder, Bitmap, BitmapCache};
use super::footer::{DiskKind, Footer, Footers};
use super::header::{Header, Layout};
use super::parent;
use super::writer::Writer;
use crate::device::check_range;
use crate::host::HostFile;
use crate::image::Access;
use crate::parents::Parents;
use crate::sync::{lock, read, try_read};
use crate::units::{BlockIndex, FileOffset, FileSector, GuestOffset};
use crate::{BlockDevice, Error, ErrorKind, Extent, ExtentKind, FilePlace, Result};

/// The most pieces that one answer of `extent_at` joins: it bounds the bitmaps that a question costs.
const PIECES_MAX: usize = 64;

/// An opened dynamic or differencing disk.
pub(crate) struct Dynamic {
    pub(super) host: HostFile,
    pub(super) layout: Layout,
    pub(super) bat: RwLock<Bat>,
    pub(super) bitmaps: BitmapCache,
    bit_order: BitOrder,
    parent: Option<Arc<dyn BlockDevice>>,
    writer: Option<Mutex<Writer>>,
}

/// What a writer or a report needs to know beside the device.
pub(crate) struct Parts {
    pub(crate) layout: Layout,
    pub(crate) bat: Bat,
    pub(crate) batmap: Option<Batmap>,
    pub(crate) regions: Vec<Region>,
    pub(crate) header: Header,
}

impl Parts {
    /// Reads and validates all tables of the disk with this `footer`.
    pub(crate) fn read(host: &HostFile, footers: &Footers, footer: &Footer) -> Result<Self> {
        let header = Header::read(host, footer, footers)?;
        let layout = Layout::new(host, footers, footer, &header)?;
        let mut regions = fixed_regions(&layout);
        let batmap = match Batmap::find(host, footer, &layout, footers.file_length)? {
            Found::Batmap(batmap) => Some(*batmap),
            Found::None | Found::Broken(..) => None,
        };
        if let Some(batmap) = &batmap {
            if batmap.is_encrypted() {
                return Err(Error::new(ErrorKind::Unsupported, host.path(), "is encrypted by XenServer"));
            }
            regions.extend(batmap_regions(batmap));
        }
        if let Some((region, other)) = overlap(&regions) {
            let why = format!("lies over {} at bytes {} to {}", other.name, other.start, other.end);
            return Err(Error::corrupt(host.path(), region.name, region.start, why));
        }
        regions.extend(header.locators().filter_map(|locator| locator.region(footers.file_length)));
        let bat = Bat::read(host, &layout)?;
        if let Some(fault) = bat.faults(&layout, &regions, footers.data_end()).first() {
            return Err(fault.error(host, &layout));
        }
        Ok(Self { layout, bat, batmap, regions, header })
    }
}

/// The two parts of the file that a batmap takes.
pub(crate) fn batmap_regions(batmap: &Batmap) -> [Region; 2] {
    let (header, map) = (batmap.header_offset(), batmap.map_offset());
    [
        Region { name: "the batmap header", start: header, end: header + batmap::HEADER_SIZE },
        Region { name: "the batmap", start: map, end: map + batmap.map_size() },
    ]
}

impl Dynamic {
    /// Opens the disk in `host`, with its parent through `parents`.
    pub(crate) fn open(
        host: HostFile,
        footers: &Footers,
        footer: &Footer,
        parts: Parts,
        access: Access,
        parents: &mut dyn Parents,
    ) -> Result<Self> {
        let is_differencing = footer.kind() == Some(DiskKind::Differencing);
        if access == Access::Write && is_differencing {
            let message = "is a differencing disk, which is read but not written";
            return Err(Error::new(ErrorKind::Unsupported, host.path(), message)
                .with_hint("flatten the chain into a new image and write to that"));
        }
        let parent = match is_differencing {
            true => {
                let reference = parent::reference(&host, &parts.header, footers.file_length)?;
                Some(parent::open(&host, &reference, parents)?)
            }
            false => None,
        };
        let mut disk = Self {
            host,
            layout: parts.layout,
            bat: RwLock::new(parts.bat),
            bitmaps: BitmapCache::default(),
            bit_order: match footer.is_tap() && footer.creator_version() == 0x0000_0001 {
                true => BitOrder::LeastSignificantFirst,
                false => BitOrder::MostSignificantFirst,
            },
            parent,
            writer: None,
        };
        if access == Access::Write {
            let writer = Writer::open(&disk, footers, footer, parts.batmap, &parts.regions)?;
            disk.writer = Some(Mutex::new(writer));
        }
        Ok(disk)
    }

    /// The disk that was just laid out in `host`.
    pub(super) fn created(host: HostFile, layout: Layout, bat: Bat, writer: Writer) -> Self {
        Self {
            host,
            layout,
            bat: RwLock::new(bat),
            bitmaps: BitmapCache::default(),
            bit_order: BitOrder::MostSignificantFirst,
            parent: None,
            writer: Some(Mutex::new(writer)),
        }
    }

    /// The bitmap of an allocated block.
    pub(super) fn bitmap(&self, block: BlockIndex, sector: FileSector) -> Result<Arc<Bitmap>> {
        self.bitmaps.get(block, || {
            let mut bytes = vec![0; self.layout.bitmap_size as usize];
            self.host.read(&mut bytes, sector.offset().0, "a sector bitmap")?;
            Ok(Bitmap::new(bytes, self.layout.block_size / 512, self.bit_order))
        })
    }

    /// Where the bytes from `offset` on come from, and for how many that holds. Never crosses from one allocated
    /// block into another.
    fn piece(&self, offset: GuestOffset) -> Result<(Source, u64)> {
        let place = self.place(&read(&self.bat), offset);
        match place {
            Err(unallocated) => Ok(unallocated),
            Ok((block, sector)) => {
                Ok(self.piece_in(&*self.bitmap(block, sector)?, self.layout.data_offset(sector), offset))
            }
        }
    }

    /// The same from memory alone.
    fn piece_at_once(&self, offset: GuestOffset) -> Option<(Source, u64)> {
        // Whoever flushes holds the table for reading, and whoever waits to write to it keeps others out.
        let place = self.place(&*try_read(&self.bat)?, offset);
        match place {
            Err(unallocated) => Some(unallocated),
            Ok((block, sector)) => {
                Some(self.piece_in(&*self.bitmaps.peek(block)?, self.layout.data_offset(sector), offset))
            }
        }
    }

    /// The block at `offset` and the sector where it starts, or the piece of blocks without a place there.
    fn place(&self, bat: &Bat, offset: GuestOffset) -> Result<(BlockIndex, FileSector), (Source, u64)> {
        let (block, within) = self.layout.block_of(offset);
        bat.sector(block).map(|sector| (block, sector)).ok_or_else(|| {
            let run = u64::from(bat.unused_run(block, u32::MAX)) * self.layout.block_size;
            let source = if self.parent.is_some() { Source::Parent } else { Source::Hole };
            (source, (run - within).min(self.layout.size - offset.0))
        })
    }

    /// The piece at `offset` of a block with this bitmap whose data starts at `data`.
    fn piece_in(&self, bitmap: &Bitmap, data: FileOffset, offset: GuestOffset) -> (Source, u64) {
        let (_, within) = self.layout.block_of(offset);
        let end = self.layout.block_size.min(self.layout.size - (offset.0 - within));
        let (is_present, sectors) = bitmap.run(within / 512, end / 512);
        let source = match (is_present, &self.parent) {
            (true, _) => Source::File(data + within),
            (false, Some(_)) => Source::Parent,
            (false, None) => Source::Absent,
        };
        (source, sectors * 512 - within % 512)
    }

    /// What is known about a piece without reading its data.
    fn extent_of(&self, source: Source, offset: GuestOffset, length: u64) -> Result<Extent> {
        let extent = |kind, length| Extent { length, kind };
        Ok(match (source, &self.parent) {
            (Source::File(at), _) => {
                let (has_data, length) = self.host.data_run(at.0, length)?;
                extent(if has_data { ExtentKind::Data } else { ExtentKind::Zero }, length)
            }
            (Source::Absent, _) => extent(ExtentKind::Zero, length),
            (Source::Parent, Some(parent)) if offset.0 < parent.size() => {
                let found = parent.extent_at(offset.0)?;
                extent(found.kind, found.length.min(length))
            }
            (Source::Parent | Source::Hole, _) => extent(ExtentKind::Hole, length),
        })
    }

    fn writer(&self) -> Result<&Mutex<Writer>> {
        self.writer
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::ReadOnly, self.host.path(), "was opened for reading only"))
    }

    fn check_range(&self, offset: u64, length: u64) -> Result<()> {
        check_range(self.host.path(), self.layout.size, offset, length)
    }
}

/// Where a run of guest bytes comes from.
#[derive(Clone, Copy)]
enum Source {
    /// The file, from this byte on.
    File(FileOffset),
    /// The parent, which may end before.
    Parent,
    /// An absent sector of an allocated block without a parent.
    Absent,
    /// A block without a place, without a parent.
    Hole,
}

impl BlockDevice for Dynamic {
    fn size(&self) -> u64 {
        self.layout.size
    }

    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        self.check_range(offset, buf.len() as u64)?;
        while !buf.is_empty() {
            let (source, length) = self.piece(GuestOffset(offset))?;
            let (now, later) = buf.split_at_mut((buf.len() as u64).min(length) as usize);
            match source {
                Source::File(at) => self.host.read(now, at.0, "block data")?,
                Source::Parent => {
                    if let Some((parent, held)) = self.above_parent(now, offset) {
                        parent.read_at(held, offset)?;
                    }
                }
                Source::Absent | Source::Hole => now.fill(0),
            }
            offset += now.len() as u64;
            buf = later;
        }
        Ok(())
    }

    fn read_at_once(&self, mut buf: &mut [u8], mut offset: u64) -> Result<bool> {
        self.check_range(offset, buf.len() as u64)?;
        while !buf.is_empty() {
            let Some((source, length)) = self.piece_at_once(GuestOffset(offset)) else { return Ok(false) };
            let (now, later) = buf.split_at_mut((buf.len() as u64).min(length) as usize);
            let length = now.len() as u64;
            let is_here = match source {
                Source::File(at) => self.host.read_at_once(now, at.0),
                Source::Parent => match self.above_parent(now, offset) {
                    Some((parent, held)) => parent.read_at_once(held, offset)?,
                    None => true,
                },
                Source::Absent | Source::Hole => {
                    now.fill(0);
                    true
                }
            };
            if !is_here {
                return Ok(false);
            }
            offset += length;
            buf = later;
        }
        Ok(true)
    }

    /// None: an image file is anybody's who may write to it.
    fn place_of(&self, offset: u64) -> Result<Option<FilePlace>> {
        self.check_range(offset, 1)?;
        Ok(None)
    }

    fn write_at(&self, mut buf: &[u8], mut offset: u64) -> Result<()> {
        let writer = self.writer()?;
        self.check_range(offset, buf.len() as u64)?;
        while !buf.is_empty() {
            let (block, within) = self.layout.block_of(GuestOffset(offset));
            let length = (buf.len() as u64).min(self.layout.block_size - within);
            let sector = self.ready_sector(writer, block)?;
            let (now, later) = buf.split_at(length as usize);
            self.host.write(now, (self.layout.data_offset(sector) + within).0, "block data")?;
            offset += length;
            buf = later;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.check_range(offset, 1)?;
        let offset = GuestOffset(offset);
        let (source, length) = self.piece(offset)?;
        let mut joined = self.extent_of(source, offset, length)?;
        let mut is_whole = joined.length == length;
        for _ in 1..PIECES_MAX {
            let next = offset + joined.length;
            if !is_whole || next.0 >= self.layout.size {
                break;
            }
            let (source, length) = self.piece(next)?;
            let extent = self.extent_of(source, next, length)?;
            if extent.kind != joined.kind {
                break;
            }
            joined.length += extent.length;
            is_whole = extent.length == length;
        }
        Ok(joined)
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        let writer = self.writer()?;
        self.check_range(offset, length)?;
        if length == 0 {
            return Ok(());
        }
        let (first, _) = self.layout.block_of(GuestOffset(offset));
        let (last, _) = self.layout.block_of(GuestOffset(offset + length - 1));
        lock(writer).allocate(self, first, last)
    }

    fn discard(&self, offset: u64, length: u64) -> Result<()> {
        self.writer()?;
        self.check_range(offset, length)?;
        self.for_each_stored(offset, length, |at, length| self.host.discard(at.0, length))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.writer()?;
        self.check_range(offset, length)?;
        // What is absent reads as zero, for a disk with a parent is not written.
        self.for_each_stored(offset, length, |at, length| self.host.zero(at.0, length))
    }

    fn flush(&self) -> Result<()> {
        match &self.writer {
            Some(writer) => lock(writer).flush(self),
            None => Ok(()),
        }
    }
}

impl Dynamic {
    /// The part of `buf`, which is the parent's at `offset`, that the parent has. What lies behind its end is made zero.
    fn above_parent<'a>(&self, buf: &'a mut [u8], offset: u64) -> Option<(&dyn BlockDevice, &'a mut [u8])> {
        let size = self.parent.as_ref().map_or(0, |parent| parent.size());
        let held = size.saturating_sub(offset).min(buf.len() as u64);
        let (held, beyond) = buf.split_at_mut(held as usize);
        beyond.fill(0);
        let parent = self.parent.as_deref().filter(|_| !held.is_empty())?;
        Some((parent, held))
    }

    /// Calls `each` with every run of the range that lies in this file.
    fn for_each_stored(
        &self,
        mut offset: u64,
        length: u64,
        each: impl Fn(FileOffset, u64) -> Result<()>,
    ) -> Result<()> {
        let end = offset + length;
        while offset < end {
            let (source, length) = self.piece(GuestOffset(offset))?;
            let length = length.min(end - offset);
            if let Source::File(at) = source {
                each(at, length)?;
            }
            offset += length;
        }
        Ok(())
    }

    /// The sector where `block` starts, after making sure that it has a place and that all of its sectors are
    /// present, so that the data can be written without the lock.
    fn ready_sector(&self, writer: &Mutex<Writer>, block: BlockIndex) -> Result<FileSector> {
        let placed = read(&self.bat).sector(block);
        if let Some(sector) = placed
            && *self.bitmap(block, sector)? == Bitmap::Full
        {
            return Ok(sector);
        }
        lock(writer).make_ready(self, block)
    }
}
