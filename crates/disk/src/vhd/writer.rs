//! Writing to a dynamic disk, in an order in which a crash at any moment leaves an image that opens.
//!
//! New blocks go to the end of the file, in the order in which they are asked for. The footer always lies exactly
//! where the next block's bitmap will start:
//!
//! ```text
//! … | block n |  gap  | footer |            the gap makes block data start at a multiple of 4096 bytes
//! … | block n |  gap  | bitmap | block n+1 |  gap  | footer |
//! ```
//!
//! so that the next block covers the old footer with its bitmap and no remains of it stay behind: the same blocks
//! in the same order give the same file, however often it was flushed or interrupted.
//!
//! **What a crash may leave.** Placing a block writes the new footer, then the bitmap over the old one; the table
//! is not touched. A flush makes data, bitmaps and the footer durable *before* it writes the table and the batmap,
//! and then those. So the table never names a block whose content is not durable. What lies in the file and is not
//! named by the table is cut off when the image is opened for writing again, and reads as zero when its place is
//! given out once more. A footer that was lost is restored from the copy at byte 0, which never changes.

use std::collections::BTreeSet;

use super::bat::{ENTRIES_PER_SECTOR, Region};
use super::batmap::{Batmap, VERSION_CURRENT};
use super::bitmap::Bitmap;
use super::dynamic::Dynamic;
use super::footer::{Footer, Footers};
use crate::host::HostFile;
use crate::sync::{read, write};
use crate::units::{BlockIndex, FileSector};
use crate::{Error, ErrorKind, Result};

/// What block data is aligned to, as tapdisk does it: a page, and the sector of every disk in use.
const DATA_ALIGNMENT: u64 = 4096;

/// What is not yet in the file.
pub(crate) struct Writer {
    footer: Footer,
    /// Where the next block's bitmap starts; the footer lies there until then.
    next: u64,
    /// Sectors of the table that changed.
    dirty_table: BTreeSet<u32>,
    batmap: Option<Batmap>,
    is_batmap_dirty: bool,
}

/// The first place from `end` on for a bitmap of `bitmap_size` bytes whose block data is aligned.
pub(crate) fn next_place(end: u64, bitmap_size: u64) -> u64 {
    (end + bitmap_size).next_multiple_of(DATA_ALIGNMENT) - bitmap_size
}

impl Writer {
    /// A writer for the disk that was just laid out, with the footer at `next`.
    pub(crate) fn new(footer: Footer, next: u64, batmap: Batmap) -> Self {
        Self { footer, next, dirty_table: BTreeSet::new(), batmap: Some(batmap), is_batmap_dirty: false }
    }

    /// Takes over a disk that somebody wrote, perhaps we before a crash.
    pub(crate) fn open(
        disk: &Dynamic,
        footers: &Footers,
        footer: &Footer,
        batmap: Option<Batmap>,
        regions: &[Region],
    ) -> Result<Self> {
        let host = &disk.host;
        let unsupported = |message: &str| Err(Error::new(ErrorKind::Unsupported, host.path(), message));
        if host.is_block_device()? {
            return unsupported("is a VHD inside a block device, which is read but not written");
        }
        if footer.is_tap() && batmap.as_ref().is_none_or(|batmap| batmap.version() != VERSION_CURRENT) {
            return unsupported(
                "was written by a XenServer without a batmap of version 1.2; it is only read",
            );
        }
        let end = read(&disk.bat).end_of_data(&disk.layout, regions);
        let mut writer = Self {
            footer: footer.clone(),
            next: next_place(end, disk.layout.bitmap_size),
            dirty_table: BTreeSet::new(),
            batmap,
            is_batmap_dirty: false,
        };
        writer.restore_footers(host, footers, end)?;
        writer.reconcile_batmap(disk)?;
        Ok(writer)
    }

    /// Brings the file into the state that this module's comment draws: both footers there, nothing between the
    /// last block and the footer.
    fn restore_footers(&mut self, host: &HostFile, footers: &Footers, end: u64) -> Result<()> {
        if footers.copy.as_ref() != Ok(&self.footer) {
            host.write(self.footer.bytes(), 0, "the footer's copy")?;
            host.sync()?;
        }
        if footers.trailing.as_ref() != Ok(&self.footer) || footers.trailing_offset != self.next {
            host.set_length(end)?;
            host.write(self.footer.bytes(), self.next, "the footer")?;
            host.sync()?;
        }
        Ok(())
    }

    /// Sets each block's bit to what its bitmap says where the two may differ: after a crash between the table
    /// and the batmap.
    fn reconcile_batmap(&mut self, disk: &Dynamic) -> Result<()> {
        let Some(batmap) = &mut self.batmap else { return Ok(()) };
        let is_trusted = batmap.stored_checksum() == batmap.computed_checksum();
        if !is_trusted {
            batmap.clear();
        }
        for block in (0..disk.layout.blocks).map(BlockIndex) {
            let sector = read(&disk.bat).sector(block);
            let is_full = match sector {
                None => false,
                Some(_) if is_trusted && batmap.is_full(block) => true,
                Some(sector) => *disk.bitmap(block, sector)? == Bitmap::Full,
            };
            self.is_batmap_dirty |= batmap.set_full(block, is_full);
        }
        self.is_batmap_dirty |= !is_trusted;
        Ok(())
    }

    /// Gives every block from `first` to `last` a place, in ascending order.
    pub(crate) fn allocate(&mut self, disk: &Dynamic, first: BlockIndex, last: BlockIndex) -> Result<()> {
        let bat = read(&disk.bat);
        let missing: Vec<BlockIndex> =
            (first.0..=last.0).map(BlockIndex).filter(|&block| bat.sector(block).is_none()).collect();
        drop(bat);
        if missing.is_empty() {
            return Ok(());
        }
        let stride = disk.layout.block_file_size().next_multiple_of(DATA_ALIGNMENT);
        let new_next = self.next + stride * missing.len() as u64;
        if new_next / 512 >= u64::from(u32::MAX) {
            let message = "has no room for another block: its table counts sectors in 32 bits";
            return Err(Error::new(ErrorKind::Invalid, disk.host.path(), message));
        }
        // The new footer first, so that the file always ends in one.
        disk.host.write(self.footer.bytes(), new_next, "the footer")?;
        let ones = vec![0xff; disk.layout.bitmap_size as usize];
        for block in missing {
            disk.host.write(&ones, self.next, "a sector bitmap")?;
            disk.bitmaps.set_full(block);
            write(&disk.bat).set_sector(block, FileSector((self.next / 512) as u32));
            self.dirty_table.insert(block.0 / ENTRIES_PER_SECTOR);
            self.mark_full(block);
            self.next += stride;
        }
        Ok(())
    }

    /// Makes sure that `block` has a place and that all of its sectors are present; the sector where it starts.
    pub(crate) fn make_ready(&mut self, disk: &Dynamic, block: BlockIndex) -> Result<FileSector> {
        self.allocate(disk, block, block)?;
        let Some(sector) = read(&disk.bat).sector(block) else {
            return Err(Error::new(ErrorKind::OutOfRange, disk.host.path(), "has no such block"));
        };
        if *disk.bitmap(block, sector)? != Bitmap::Full {
            self.complete(disk, block, sector)?;
        }
        Ok(sector)
    }

    /// Writes the zeros that the absent sectors of a foreign block stand for, and then marks them present. Both
    /// are durable in this order before the block is written to, since its bitmap is live.
    fn complete(&mut self, disk: &Dynamic, block: BlockIndex, sector: FileSector) -> Result<()> {
        let sectors = disk.layout.block_size / 512;
        let bitmap = disk.bitmap(block, sector)?;
        let mut at = 0;
        while at < sectors {
            let (is_present, run) = bitmap.run(at, sectors);
            if !is_present {
                disk.host.zero(disk.layout.data_offset(sector).0 + at * 512, run * 512)?;
            }
            at += run;
        }
        disk.host.sync()?;
        let ones = vec![0xff; disk.layout.bitmap_size as usize];
        disk.host.write(&ones, sector.offset().0, "a sector bitmap")?;
        disk.bitmaps.set_full(block);
        self.mark_full(block);
        Ok(())
    }

    fn mark_full(&mut self, block: BlockIndex) {
        if let Some(batmap) = &mut self.batmap {
            self.is_batmap_dirty |= batmap.set_full(block, true);
        }
    }

    /// Makes everything durable: data, bitmaps and footer first, then the tables that name them.
    pub(crate) fn flush(&mut self, disk: &Dynamic) -> Result<()> {
        disk.host.sync()?;
        if self.dirty_table.is_empty() && !self.is_batmap_dirty {
            return Ok(());
        }
        let bat = read(&disk.bat);
        for &index in &self.dirty_table {
            let at = disk.layout.table_offset + u64::from(index) * 512;
            disk.host.write(&bat.sector_bytes(index), at, "the block allocation table")?;
        }
        drop(bat);
        if let (true, Some(batmap)) = (self.is_batmap_dirty, &mut self.batmap) {
            batmap.write(&disk.host)?;
        }
        disk.host.sync()?;
        self.dirty_table.clear();
        self.is_batmap_dirty = false;
        Ok(())
    }
}
