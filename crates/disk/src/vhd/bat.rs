//! The block allocation table: for each block of the disk the sector of the file where its bitmap starts, or
//! `0xFFFFFFFF`. Kept whole in memory; the layout bounds it to 16 MiB.

use super::footer::FOOTER_SIZE;
use super::header::{HEADER_SIZE, Layout};
use crate::host::HostFile;
use crate::units::{BlockIndex, FileSector};
use crate::{Error, Result};

/// A block without a place in the file.
const UNUSED: u32 = u32::MAX;
/// Table entries per sector of the file.
pub(crate) const ENTRIES_PER_SECTOR: u32 = 128;

/// The table's entries that the disk's size needs, and those behind them up to a whole sector.
pub(crate) struct Bat {
    entries: Vec<u32>,
    blocks: u32,
}

/// A part of the file that belongs to the format and not to a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) name: &'static str,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Something that is wrong with an entry.
#[derive(Debug)]
pub(crate) struct EntryFault {
    block: BlockIndex,
    sector: FileSector,
    why: String,
}

impl Bat {
    /// Reads the table. Its entries are not trusted before [`faults`](Self::faults) was asked.
    pub(crate) fn read(host: &HostFile, layout: &Layout) -> Result<Self> {
        let size = (u64::from(layout.blocks) * 4).next_multiple_of(512).min(layout.table_size);
        let mut bytes = vec![0; size as usize];
        host.read(&mut bytes, layout.table_offset, "the block allocation table")?;
        let entries = bytes.chunks_exact(4).map(|e| u32::from_be_bytes([e[0], e[1], e[2], e[3]])).collect();
        Ok(Self { entries, blocks: layout.blocks })
    }

    /// A table of unused entries for `blocks` blocks in `size` bytes.
    pub(crate) fn new(blocks: u32, size: u64) -> Self {
        Self { entries: vec![UNUSED; (size / 4) as usize], blocks }
    }

    /// The file sector where `block` starts.
    pub(crate) fn sector(&self, block: BlockIndex) -> Option<FileSector> {
        self.entries.get(block.0 as usize).copied().filter(|&sector| sector != UNUSED).map(FileSector)
    }

    pub(crate) fn set_sector(&mut self, block: BlockIndex, sector: FileSector) {
        if let Some(entry) = self.entries.get_mut(block.0 as usize) {
            *entry = sector.0;
        }
    }

    /// How many blocks from `block` on have no place, at most `limit`.
    pub(crate) fn unused_run(&self, block: BlockIndex, limit: u32) -> u32 {
        let end = block.0.saturating_add(limit).min(self.blocks) as usize;
        let run = self.entries.get(block.0 as usize..end).unwrap_or_default();
        run.iter().take_while(|&&sector| sector == UNUSED).count() as u32
    }

    /// Blocks with a place, and the sector where each starts.
    pub(crate) fn allocated(&self) -> impl Iterator<Item = (BlockIndex, FileSector)> {
        (0..self.blocks).map(BlockIndex).filter_map(|block| Some((block, self.sector(block)?)))
    }

    /// The bytes of the table's sector `index`.
    pub(crate) fn sector_bytes(&self, index: u32) -> Vec<u8> {
        let start = (index * ENTRIES_PER_SECTOR) as usize;
        let end = (start + ENTRIES_PER_SECTOR as usize).min(self.entries.len());
        self.entries
            .get(start..end)
            .unwrap_or_default()
            .iter()
            .flat_map(|entry| entry.to_be_bytes())
            .collect()
    }

    /// The first byte that belongs neither to a region nor to a block.
    pub(crate) fn end_of_data(&self, layout: &Layout, regions: &[Region]) -> u64 {
        let blocks = self.allocated().map(|(_, sector)| (sector.offset() + layout.block_file_size()).0);
        regions.iter().map(|region| region.end).chain(blocks).max().unwrap_or(0)
    }

    /// Everything that contradicts itself: blocks past `data_end`, over each other and over `regions`.
    ///
    /// The file is foreign: each block must lie between the others, or a write to one changes another, and an
    /// image of a few kilobytes could claim terabytes.
    pub(crate) fn faults(&self, layout: &Layout, regions: &[Region], data_end: u64) -> Vec<EntryFault> {
        let size = layout.block_file_size();
        let mut faults = Vec::new();
        let mut fault = |block, sector, why| {
            if faults.len() < FAULTS_MAX {
                faults.push(EntryFault { block, sector, why });
            }
        };
        let mut by_place: Vec<(FileSector, BlockIndex)> =
            self.allocated().map(|(block, sector)| (sector, block)).collect();
        by_place.sort_unstable();
        for &(sector, block) in &by_place {
            let start = sector.offset().0;
            let end = start + size;
            // Some writers end the file with the disk, inside its last block.
            let guest = layout.size.saturating_sub(u64::from(block.0) * layout.block_size);
            let needed = start + layout.bitmap_size + guest.min(layout.block_size).next_multiple_of(512);
            if needed > data_end {
                fault(block, sector, format!("the block ends at byte {needed}, but data ends at {data_end}"));
            }
            if let Some(region) = regions.iter().find(|region| start < region.end && end > region.start) {
                let Region { name, start, end } = region;
                fault(block, sector, format!("the block lies over {name} at bytes {start} to {end}"));
            }
        }
        for pair in by_place.windows(2) {
            let [(first_sector, first), (sector, block)] = *pair else { continue };
            if sector.offset().0 - first_sector.offset().0 < size {
                fault(block, sector, format!("the block lies over block {}", first.0));
            }
        }
        faults
    }
}

/// The most entries that are reported; a table of nonsense has as many as it has entries.
const FAULTS_MAX: usize = 16;

impl EntryFault {
    pub(crate) fn field(&self) -> String {
        format!("table entry {}", self.block.0)
    }

    pub(crate) fn offset(&self, layout: &Layout) -> u64 {
        layout.table_offset + u64::from(self.block.0) * 4
    }

    pub(crate) fn message(&self) -> String {
        format!("sector {}: {}", self.sector.0, self.why)
    }

    pub(crate) fn error(&self, host: &HostFile, layout: &Layout) -> Error {
        Error::corrupt(host.path(), &self.field(), self.offset(layout), self.message())
    }
}

/// The regions that every dynamic disk has.
pub(crate) fn fixed_regions(layout: &Layout) -> Vec<Region> {
    let region = |name, start, size| Region { name, start, end: start + size };
    vec![
        region("the footer's copy", 0, FOOTER_SIZE),
        region("the dynamic header", layout.header_offset, HEADER_SIZE),
        region("the block allocation table", layout.table_offset, layout.table_size),
    ]
}

/// Two regions that lie over each other, the later one first.
pub(crate) fn overlap(regions: &[Region]) -> Option<(Region, Region)> {
    let mut sorted = regions.to_vec();
    sorted.sort_unstable_by_key(|region| region.start);
    let pair = sorted.windows(2).find(|pair| pair[1].start < pair[0].end)?;
    Some((pair[1], pair[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout {
        size: 8 << 20,
        block_size: 2 << 20,
        bitmap_size: 512,
        blocks: 4,
        header_offset: 512,
        table_offset: 1536,
        table_size: 512,
    };

    fn faults(sectors: [u32; 4]) -> Vec<(u32, String)> {
        let mut bat = Bat::new(4, 512);
        for (block, sector) in sectors.into_iter().enumerate() {
            bat.set_sector(BlockIndex(block as u32), FileSector(sector));
        }
        let table = Region { name: "the table", start: 1536, end: 2048 };
        let faults = bat.faults(&LAYOUT, &[table], 20_000 * 512);
        faults.into_iter().map(|fault| (fault.block.0, fault.why)).collect()
    }

    #[test]
    fn blocks_between_each_other_are_fine() {
        assert!(faults([4, 4 + 4097, UNUSED, 4 + 2 * 4097]).is_empty());
    }

    #[test]
    fn overlaps_are_found_in_any_order() {
        assert_eq!(faults([5000, UNUSED, UNUSED, 904])[0], (0, "the block lies over block 3".to_owned()));
        assert_eq!(faults([7, 7, UNUSED, UNUSED])[0].0, 1);
        assert_eq!(faults([3, UNUSED, UNUSED, UNUSED])[0].0, 0);
        assert_eq!(faults([UNUSED, 20_000 - 4096, UNUSED, UNUSED])[0].0, 1);
        assert_eq!(faults([UNUSED, UNUSED, UNUSED - 1, UNUSED])[0].0, 2);
    }
}
