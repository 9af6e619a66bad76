//! Everything that `vhd-util check` of blktap refuses, and what it overlooks.
//!
//! `vhd-util` stops at its first finding and calls a truncated file healthy when asked to scan; this goes on as
//! long as there is something left to look at. An error says that the format is broken, and that bytes may be wrong; a
//! warning, that one named reader refuses a sound disk or shows it otherwise.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use goldwire_stdx::Uuid;

use super::bat::{Bat, fixed_regions, overlap};
use super::batmap::{Batmap, Found, VERSION_CURRENT};
use super::bitmap::{BitOrder, Bitmap};
use super::dynamic::batmap_regions;
use super::footer::{DiskKind, EPOCH, Footer, Footers, NO_OFFSET, TAP_VERSION_CURRENT};
use super::geometry::Geometry;
use super::header::{BLOCK_SIZE, Header, Layout};
use super::locator::{Locator, PLATFORMS_READ, header_name};
use super::parent;
use crate::Result;
use crate::finding::Finding;
use crate::host::HostFile;
use crate::parents::Parents;
use crate::units::{BlockIndex, FileSector};

/// The creators of whose disks QEMU shows what the geometry describes (its `block/vpc.c`; a test asks it).
const GEOMETRY_CREATORS: [&[u8; 4]; 2] = [b"vpc ", b"qemu"];
/// The creators whose disks QEMU before 10.0 showed by their current size; all others it showed by their geometry.
const SIZED_CREATORS: [&[u8; 4]; 5] = [b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS"];

/// How far in the future a time stamp may lie: `vhd-util` grants half an hour of clock skew.
const TIMESTAMP_SLACK_S: i64 = 1800;
/// The most blocks whose bit in the batmap is reported as wrong.
const BATMAP_FINDINGS_MAX: usize = 16;
/// The features that the specification knows: temporary disk, and the reserved bit that is always set.
const FEATURE_TEMPORARY: u32 = 1;
const FEATURE_RESERVED: u32 = 2;

/// All findings about the VHD in `file`.
pub(crate) fn check(file: File, path: &Path, parents: &mut dyn Parents) -> Result<Vec<Finding>> {
    let host = HostFile::new(file, path);
    let footers = Footers::read(&host)?;
    let mut check = Check { host, footers, findings: Vec::new() };
    if let Err(error) = check.run(parents) {
        check.findings.push(Finding::from_error(&error));
    }
    Ok(check.findings)
}

struct Check {
    host: HostFile,
    footers: Footers,
    findings: Vec<Finding>,
}

impl Check {
    fn error(&mut self, field: &str, offset: u64, message: impl Into<String>) {
        self.findings.push(Finding::error(field, offset, message));
    }

    fn warning(&mut self, field: &str, offset: u64, message: impl Into<String>) {
        self.findings.push(Finding::warning(field, offset, message));
    }

    /// Looks at everything; an error is what keeps us from going on.
    fn run(&mut self, parents: &mut dyn Parents) -> Result<()> {
        let Some(footer) = self.footers.effective().cloned() else {
            return self.footers.effective_or_error(&self.host).map(drop);
        };
        self.footer_places(&footer);
        match self.footers.trailing.clone() {
            Ok(trailing) => self.footer_fields(&trailing, self.footers.trailing_offset),
            Err(_) => self.footer_fields(&footer, 0),
        }
        if footer.kind() == Some(DiskKind::Fixed) {
            return super::check_fixed_length(&self.host, &self.footers, &footer);
        }
        let header = Header::read(&self.host, &footer, &self.footers)?;
        self.header_fields(&header, &footer);
        let layout = Layout::new(&self.host, &self.footers, &footer, &header)?;
        self.tables(&layout, &footer, &header)?;
        if footer.kind() == Some(DiskKind::Differencing) {
            self.parent(&header, parents)?;
        }
        Ok(())
    }

    /// Whether each footer is where it belongs and both say the same.
    fn footer_places(&mut self, footer: &Footer) {
        let at = self.footers.trailing_offset;
        if let Err(fault) = self.footers.trailing.clone() {
            let field = format!("{} at the end", fault.field());
            self.error(&field, at.saturating_add(fault.offset()), fault.to_string());
        } else if self.footers.file_length - at == 511 {
            self.warning("footer", at, "has 511 bytes, as Virtual PC before 2004 wrote it");
        }
        if !self.footers.data_end().is_multiple_of(512) {
            self.warning("footer", at, "does not start at a sector");
        }
        if footer.kind() == Some(DiskKind::Fixed) {
            return;
        }
        match (self.footers.copy.clone(), self.footers.trailing.clone()) {
            (Err(fault), _) => {
                let field = format!("{} of the copy", fault.field());
                self.error(&field, fault.offset(), fault.to_string());
            }
            (Ok(mut copy), Ok(mut trailing)) if copy != trailing => {
                // Two versions of tapdisk kept `hidden` in the copy only.
                let is_old = copy.hidden_is_outside_checksum();
                copy.set_hidden(false);
                trailing.set_hidden(false);
                if !is_old || copy != trailing {
                    self.error("footer copy", 0, "differs from the footer at the end");
                }
            }
            _ => {}
        }
    }

    /// The fields of the footer that lies at `base`.
    fn footer_fields(&mut self, footer: &Footer, base: u64) {
        let at = |field: u64| base + field;
        if footer.is_disabled() {
            self.error("footer cookie", at(0), "the disk was disabled by XenServer");
        }
        let features = footer.features();
        if features & FEATURE_RESERVED == 0 {
            self.error("features", at(8), "the bit that is always set is not");
        }
        if features & !(FEATURE_RESERVED | FEATURE_TEMPORARY) != 0 {
            self.error("features", at(8), format!("{features:#x} has unknown bits"));
        }
        if footer.format_version() != 0x0001_0000 {
            self.error("format version", at(12), format!("{:#x} is unknown", footer.format_version()));
        }
        if footer.kind().is_none_or(|kind| kind == DiskKind::Fixed) && footer.data_offset() != NO_OFFSET {
            self.error("footer data offset", at(16), "a fixed disk has no dynamic header to point to");
        }
        self.timestamp("footer time", at(24), footer.timestamp());
        if footer.is_tap() && footer.creator_version() > TAP_VERSION_CURRENT {
            let message = format!("{:#x} is newer than what XenServer reads", footer.creator_version());
            self.error("creator version", at(32), message);
        }
        self.sizes(footer, base);
        if footer.kind().is_none() {
            self.error("disk type", at(60), format!("{} is unknown", footer.kind_code()));
        }
        if footer.uuid() == Uuid([0; 16]) {
            self.error("uuid", at(68), "is nil");
        }
        if footer.saved() > 1 {
            self.error("saved state", at(84), format!("{} is neither 0 nor 1", footer.saved()));
        }
        if footer.hidden() > 1 {
            self.error("hidden", at(85), format!("{} is neither 0 nor 1", footer.hidden()));
        }
        if footer.has_dirty_reserved_bytes() {
            self.error("reserved bytes", at(86), "are not zero");
        }
    }

    fn sizes(&mut self, footer: &Footer, base: u64) {
        let (size, geometry) = (footer.size(), footer.geometry());
        if !size.is_multiple_of(512) {
            self.error("current size", base + 48, format!("{size} bytes are not whole sectors"));
        }
        // `vhd-util` compares the packed numbers, so we do.
        if geometry > Geometry::of_size(size) {
            let message = format!(
                "describes more than the current size of {size} bytes; XenServer (vhd-util) refuses that, and nobody else"
            );
            self.warning("geometry", base + 56, message);
        } else if geometry.size() < size && !SIZED_CREATORS.contains(&&footer.creator()) {
            let creator = String::from_utf8_lossy(&footer.creator()).into_owned();
            let qemu =
                if GEOMETRY_CREATORS.contains(&&footer.creator()) { "QEMU" } else { "QEMU before 10.0" };
            let message = format!(
                "{qemu} shows only {} of {size} bytes of a disk by {creator:?}; XenServer, Hyper-V and we show all",
                geometry.size()
            );
            self.warning("geometry", base + 56, message);
        }
        if footer.is_tap() && footer.kind() != Some(DiskKind::Fixed) && !size.is_multiple_of(BLOCK_SIZE) {
            let message = format!(
                "blktap before 3.18 (XenServer) does not read the last {} bytes of {size}",
                size % BLOCK_SIZE
            );
            self.warning("current size", base + 48, message);
        }
    }

    fn timestamp(&mut self, field: &str, at: u64, timestamp: u32) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let latest = i64::try_from(now).unwrap_or(i64::MAX).saturating_add(TIMESTAMP_SLACK_S);
        let seconds = EPOCH + i64::from(timestamp);
        if seconds > latest {
            let message = format!(
                "lies {} seconds in the future; XenServer (vhd-util) refuses that, and nobody else",
                seconds - latest + TIMESTAMP_SLACK_S
            );
            self.warning(field, at, message);
        }
    }

    fn header_fields(&mut self, header: &Header, footer: &Footer) {
        let base = footer.data_offset();
        if header.data_offset() != NO_OFFSET {
            self.error("dynamic header data offset", base + 8, "points to a header that does not exist");
        }
        if header.has_dirty_reserved_bytes() {
            self.error("dynamic header reserved bytes", base + 60, "are not zero");
        }
        if footer.kind() == Some(DiskKind::Differencing) {
            self.timestamp("parent time", base + 56, header.parent_timestamp());
            return;
        }
        if header.parent_name().iter().any(|&byte| byte != 0) {
            self.error("parent name", base + 64, "a disk without a parent names one");
        }
        if header.locators().any(|locator| !locator.is_blank()) {
            self.error("parent locators", base + 576, "a disk without a parent has some");
        }
        if header.parent_uuid() != Uuid([0; 16]) {
            self.error("parent uuid", base + 40, "a disk without a parent names one");
        }
        if header.parent_timestamp() != 0 {
            self.error("parent time", base + 56, "a disk without a parent has one");
        }
    }

    /// The block allocation table, the batmap, and where everything lies.
    fn tables(&mut self, layout: &Layout, footer: &Footer, header: &Header) -> Result<()> {
        let mut regions = fixed_regions(layout);
        let batmap = match Batmap::find(&self.host, footer, layout, self.footers.file_length)? {
            Found::Batmap(batmap) => Some(batmap),
            Found::None => None,
            Found::Broken(field, at, why) => {
                self.error(field, at, why);
                None
            }
        };
        if let Some(batmap) = &batmap {
            regions.extend(batmap_regions(batmap));
        }
        if let Some((region, other)) = overlap(&regions) {
            self.error(region.name, region.start, format!("lies over {}", other.name));
        }
        regions.extend(header.locators().filter_map(|locator| locator.region(self.footers.file_length)));
        let bat = Bat::read(&self.host, layout)?;
        let faults = bat.faults(layout, &regions, self.footers.data_end());
        for fault in &faults {
            self.error(&fault.field(), fault.offset(layout), fault.message());
        }
        if let Some(batmap) = &batmap {
            self.batmap(batmap, &bat, layout, faults.is_empty())?;
        }
        Ok(())
    }

    fn batmap(&mut self, batmap: &Batmap, bat: &Bat, layout: &Layout, bat_is_sound: bool) -> Result<()> {
        let at = batmap.header_offset();
        let (stored, computed) = (batmap.stored_checksum(), batmap.computed_checksum());
        if stored != computed {
            let message = format!("is {stored:#010x}, but the map gives {computed:#010x}");
            self.error("batmap checksum", at + 24, message);
        }
        if batmap.version() < VERSION_CURRENT {
            self.warning("batmap version", at + 20, format!("{:#x} is old", batmap.version()));
        }
        if batmap.is_encrypted() {
            self.warning(
                "batmap key hash",
                at + 29,
                "the disk is encrypted by XenServer; it is not read here",
            );
        }
        let mut wrong = 0;
        for block in (0..layout.blocks).map(BlockIndex).filter(|&block| batmap.is_full(block)) {
            if wrong == BATMAP_FINDINGS_MAX {
                break;
            }
            let bit = batmap.map_offset() + u64::from(block.0 / 8);
            match bat.sector(block) {
                None => {
                    self.error("batmap", bit, format!("calls block {} full, which has no place", block.0))
                }
                Some(sector) if bat_is_sound && !self.is_full(sector, layout)? => {
                    self.error(
                        "batmap",
                        bit,
                        format!("calls block {} full, but sectors are absent", block.0),
                    );
                }
                Some(_) => continue,
            }
            wrong += 1;
        }
        Ok(())
    }

    fn is_full(&self, sector: FileSector, layout: &Layout) -> Result<bool> {
        let mut bytes = vec![0; layout.bitmap_size as usize];
        self.host.read(&mut bytes, sector.offset().0, "a sector bitmap")?;
        Ok(Bitmap::new(bytes, layout.block_size / 512, BitOrder::MostSignificantFirst) == Bitmap::Full)
    }

    /// The locators one by one, then whether they lead to the parent.
    fn parent(&mut self, header: &Header, parents: &mut dyn Parents) -> Result<()> {
        let base = self.footers.effective().map_or(0, Footer::data_offset);
        let name = header_name(header.parent_name());
        match &name {
            Err(why) => self.error("parent name", base + 64, *why),
            Ok(name) if name.is_empty() => self.warning("parent name", base + 64, "is empty"),
            Ok(_) => {}
        }
        let mut platforms = BTreeSet::new();
        for locator in header.locators() {
            let field = format!("parent locator {}", locator.index);
            let at = base + Locator::header_offset(locator.index);
            if let Some(why) = locator.contradiction(self.footers.data_end()) {
                self.error(&field, at, why);
            }
            if !locator.is_empty() && !platforms.insert(locator.code) {
                self.error(&field, at, "names its platform a second time");
            }
            if !PLATFORMS_READ.contains(&&locator.code) {
                continue;
            }
            match locator.paths(&self.host, self.footers.file_length)? {
                Err(why) => self.error(&field, at, why),
                Ok(paths) => {
                    let names: Vec<_> = paths.iter().filter_map(|path| path.file_name()?.to_str()).collect();
                    // Windows puts the whole path into the header.
                    let last = |name: &str| name.rsplit(['\\', '/']).next().unwrap_or_default().to_owned();
                    if let Ok(name) = &name
                        && !names.contains(&last(name).as_str())
                    {
                        let message = format!("leads to {names:?}, but the header names {name:?}");
                        self.error(&field, at, message);
                    }
                }
            }
        }
        let reference = parent::reference(&self.host, header, self.footers.file_length)?;
        parent::open(&self.host, &reference, parents).map(drop)
    }
}
