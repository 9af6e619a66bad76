//! Is the image consistent? Header, tables, overlaps, and refcounts against real use.
//!
//! Uses are counted with 16 bits for each cluster of the file, which bounds the memory to 64 MiB for files up to
//! 2 TiB with 64 KiB clusters; of a larger file only the structure is checked. What internal snapshots and
//! bitmaps use is not walked: with them, a refcount that is too large proves nothing and is not reported.

use std::fs::File;
use std::path::Path;

use super::backing_reference;
use super::claims::Claims;
use super::header::{CORRUPT, DIRTY, Header, be64};
use super::host::HostFileExt as _;
use super::read::read_u64s;
use super::refcounts::Refcounts;
use super::tables::{COPIED, InSpan, Mapping};
use crate::error::shown;
use crate::finding::Finding;
use crate::host::HostFile;
use crate::parents::Parents;
use crate::units::FileOffset;
use crate::{ErrorKind, Result};

/// The most memory for counting uses.
const COUNT_BYTES_MAX: u64 = 64 << 20;
/// The most bytes of L2 tables and refcount blocks that are read. No image that is in use has as many: with 64 KiB
/// clusters they map 32 TiB. A sparse file can claim more for free.
const METADATA_BYTES_MAX: u64 = 4 << 30;
/// Findings that are reported one by one.
const FINDINGS_MAX: usize = 100;

/// Everything that is wrong with the QCOW2 image `file`, named `path`. Of its backing files only what keeps them from
/// being read.
///
/// # Errors
/// `Io`; `Unsupported` when the image uses something that we cannot read. Contradictions are findings.
pub(crate) fn check(file: File, path: &Path, parents: &mut dyn Parents) -> Result<Vec<Finding>> {
    let host = HostFile::new(file, path);
    match Header::read(&host) {
        Ok(header) => {
            let mut findings = Checker::new(&host, &header)?.run()?;
            if let Some(name) = &header.backing_name {
                let opened = backing_reference(path, name, &header)
                    .and_then(|reference| parents.open_parent(path, &reference));
                if let Err(error) = opened {
                    let whose = if error.path() == path {
                        String::new()
                    } else {
                        format!("{}: ", shown(error.path()))
                    };
                    findings.push(Finding::error("backing file", 8, whose + error.message()));
                }
            }
            Ok(findings)
        }
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(vec![Finding::from_error(&error)]),
        Err(error) => Err(error),
    }
}

struct Checker<'a> {
    host: &'a HostFile,
    header: &'a Header,
    host_length: u64,
    /// Uses of each cluster of the file, when they are counted.
    uses: Option<Vec<u16>>,
    /// Tables of the image: offset, length and name.
    metadata: Vec<(u64, u64, &'static str)>,
    metadata_bytes_read: u64,
    claims: Claims,
    is_overclaimed: bool,
    /// Data clusters that an entry names after something else did: how many, and the first.
    shared: Option<(u64, FileOffset)>,
    findings: Vec<Finding>,
    unreported: usize,
}

impl<'a> Checker<'a> {
    fn new(host: &'a HostFile, header: &'a Header) -> Result<Self> {
        let host_length = host.length()?;
        let clusters = host_length.div_ceil(header.geometry.cluster_size());
        let uses = (clusters * 2 <= COUNT_BYTES_MAX).then(|| vec![0; clusters as usize]);
        Ok(Self {
            host,
            header,
            host_length,
            uses,
            metadata: Vec::new(),
            metadata_bytes_read: 0,
            claims: Claims::new(header.geometry, header.compression, host_length),
            is_overclaimed: false,
            shared: None,
            findings: Vec::new(),
            unreported: 0,
        })
    }

    fn run(mut self) -> Result<Vec<Finding>> {
        self.flags();
        for place in self.header.places() {
            if let Some(why) = place.fault(self.host_length) {
                self.report(Finding::error(place.field, place.at, why));
            }
        }
        let cluster_size = self.header.geometry.cluster_size();
        self.table("header", None, 0, cluster_size.min(self.host_length));
        let refcounts = self.refcount_table()?;
        self.l1(&refcounts)?;
        self.overlaps();
        self.compare(&refcounts)?;
        if self.unreported != 0 {
            let message = format!("{} more findings of this kind and others", self.unreported);
            self.findings.push(Finding::warning("findings", None, message));
        }
        Ok(self.findings)
    }

    fn flags(&mut self) {
        if self.header.incompatible & CORRUPT != 0 {
            self.report(Finding::error("incompatible_features", 72, "the image is marked as corrupt"));
        }
        if self.header.incompatible & DIRTY != 0 {
            let message = "the image is marked as dirty; its refcounts may be wrong";
            self.report(Finding::warning("incompatible_features", 72, message));
        }
        if !self.is_walk_complete() {
            let message = "what internal snapshots and bitmaps use is not walked; leaks are not looked for";
            self.report(Finding::warning("nb_snapshots", 60, message));
        }
        if self.uses.is_none() {
            let message = "the file has too many clusters to count their uses; only the structure is checked";
            self.report(Finding::warning("refcounts", None, message));
        }
    }

    /// Whether everything that uses clusters is walked.
    fn is_walk_complete(&self) -> bool {
        self.header.snapshot_count == 0 && !self.header.has_bitmaps
    }

    /// The refcount blocks that can be read.
    fn refcount_table(&mut self) -> Result<Refcounts<'a>> {
        let Header { refcount_table_offset: offset, geometry, .. } = *self.header;
        let mut blocks = Vec::new();
        if self.table("refcount table", Some(48), offset, self.header.refcount_table_bytes()) {
            let count = self.header.refcount_table_bytes() / 8;
            blocks = read_u64s(self.host, offset, count, "refcount table")?;
        }
        for (index, block) in blocks.iter_mut().enumerate().filter(|(_, block)| **block != 0) {
            let at = offset + index as u64 * 8;
            // The last block may be cut off by the end of the file.
            let length = geometry.cluster_size().min(self.host_length.saturating_sub(*block)).max(1);
            if !self.table("refcount block", Some(at), *block, length) {
                *block = 0;
            }
        }
        Ok(Refcounts::new(self.host, self.header, blocks))
    }

    fn l1(&mut self, refcounts: &Refcounts<'_>) -> Result<()> {
        let Header { l1_offset, l1_entries, geometry, .. } = *self.header;
        if l1_entries == 0 || !self.table("L1 table", Some(40), l1_offset, self.header.l1_bytes()) {
            return Ok(());
        }
        let l1 = read_u64s(self.host, l1_offset, u64::from(l1_entries), "L1 table")?;
        // Each with the L1 entry that names it.
        let mut tables = Vec::new();
        for (index, entry) in l1.into_iter().enumerate() {
            let at = l1_offset + index as u64 * 8;
            match geometry.l2_table(entry) {
                Ok(None) => {}
                Ok(Some(host)) => {
                    if self.table("L2 table", Some(at), host.0, geometry.cluster_size()) {
                        self.copied("L1 entry", at, entry, host, refcounts)?;
                        tables.push((index, host));
                    }
                }
                Err(why) => self.report(Finding::error("L1 entry", at, why)),
            }
        }
        // A table that several entries name is walked once; that they overlap is found later.
        tables.sort_unstable_by_key(|(index, host)| (*host, *index));
        tables.dedup_by_key(|(_, host)| *host);
        for (index, host) in tables {
            if !self.may_read("L2 tables") {
                break;
            }
            self.l2(index, host, refcounts)?;
        }
        if let Some((clusters, first)) = self.shared {
            let message = format!(
                "{clusters} times an entry names a cluster that something else names too; QEMU counts that, and no writer makes it"
            );
            self.report(Finding::warning("L2 entry", first.0, message));
        }
        Ok(())
    }

    fn l2(&mut self, l1_index: usize, table_host: FileOffset, refcounts: &Refcounts<'_>) -> Result<()> {
        let geometry = self.header.geometry;
        let mut bytes = vec![0; geometry.cluster_size() as usize];
        self.host.read_whole(&mut bytes, table_host.0, "L2 table")?;
        let table_guest = geometry.span_start(l1_index);
        let disk = self.header.size.saturating_sub(table_guest.0);
        if let Err(why) = self.claims.count(geometry, l1_index, &bytes, disk)
            && !self.is_overclaimed
        {
            // Once, and whatever else there is to say: it is why the image is not read.
            self.is_overclaimed = true;
            let at = self.header.l1_offset + l1_index as u64 * 8;
            self.findings.insert(0, Finding::error("L1 entry", at, why));
        }
        for index in 0..geometry.cluster_size() / geometry.entry_size() {
            let (in_table, guest) = (index * geometry.entry_size(), index << geometry.cluster_bits());
            let at = table_host.0 + in_table;
            let entry = be64(&bytes, in_table as usize).unwrap_or(0);
            let mut within = guest;
            while within < guest + geometry.cluster_size() {
                match geometry.mapping(&bytes, InSpan(within)) {
                    Ok(run) => {
                        within += run.length;
                        match run.mapping {
                            Mapping::Compressed { host, length } => {
                                self.used("compressed cluster", at, host.0, length);
                            }
                            // What lies behind the end of the guest's disk may be missing.
                            Mapping::Data { host } => {
                                let start = within - run.length;
                                let disk = self.header.size.saturating_sub((table_guest + start).0);
                                self.whole("L2 entry", at, host.0, run.length.min(disk));
                            }
                            Mapping::Zero | Mapping::Unallocated => {}
                        }
                    }
                    Err(bad) => {
                        self.report(Finding::error("L2 entry", at, bad.why));
                        break;
                    }
                }
            }
            if let Some(host) = geometry.held_cluster(entry)
                && host.0.is_multiple_of(geometry.cluster_size())
            {
                self.note_shared(host);
                if !self.used("L2 entry", at, host.0, 1) {
                    continue;
                }
                self.copied("L2 entry", at, entry, host, refcounts)?;
            }
        }
        Ok(())
    }

    /// Notes a cluster of data that is in use already. Of the second use of a cluster the refcounts say whether it is an
    /// error.
    fn note_shared(&mut self, host: FileOffset) {
        let cluster = (host.0 >> self.header.geometry.cluster_bits()) as usize;
        if self.uses.as_ref().and_then(|uses| uses.get(cluster)).is_some_and(|uses| *uses > 0) {
            let (times, first) = self.shared.unwrap_or((0, host));
            self.shared = Some((times + 1, first));
        }
    }

    /// The copied flag of an entry says that the refcount of what it points at is exactly 1.
    fn copied(
        &mut self,
        field: &str,
        at: u64,
        entry: u64,
        host: FileOffset,
        refcounts: &Refcounts<'_>,
    ) -> Result<()> {
        let refcount = refcounts.get(host.0 >> self.header.geometry.cluster_bits())?;
        if (entry & COPIED != 0) != (refcount == 1) {
            let state = if entry & COPIED != 0 { "set" } else { "clear" };
            let message = format!("the copied flag is {state}, but the refcount is {refcount}");
            self.report(Finding::error(field, at, message));
        }
        Ok(())
    }

    /// Notes a table of `length` bytes at `offset`, to which the field at byte `at` points, when it lies inside
    /// the file.
    fn table(&mut self, name: &'static str, at: Option<u64>, offset: u64, length: u64) -> bool {
        let is_inside = offset.is_multiple_of(self.header.geometry.cluster_size())
            && offset.checked_add(length).is_some_and(|end| end <= self.host_length);
        if !is_inside {
            self.report(Finding::error(name, at, format!("{offset:#x} is no place inside the file")));
            return false;
        }
        self.metadata.push((offset, length, name));
        self.count(offset, length);
        true
    }

    /// Notes that the entry at byte `at` uses the clusters of `length` bytes at `host`, when they begin inside the
    /// file.
    fn used(&mut self, field: &str, at: u64, host: u64, length: u64) -> bool {
        if host >= self.host_length {
            let message = format!("points to {host:#x}, behind the end of the file");
            self.report(Finding::error(field, at, message));
            return false;
        }
        self.count(host, length);
        true
    }

    /// Reports data of `length` bytes at `host` that begins inside the file and ends behind it.
    fn whole(&mut self, field: &str, at: u64, host: u64, length: u64) {
        let end = host.saturating_add(length);
        if length > 0 && host < self.host_length && end > self.host_length {
            let message =
                format!("its data ends at {end:#x}, but the file at {:#x}: it was cut", self.host_length);
            self.report(Finding::error(field, at, message));
        }
    }

    fn count(&mut self, offset: u64, length: u64) {
        let Some(uses) = &mut self.uses else { return };
        let bits = self.header.geometry.cluster_bits();
        let last = offset.saturating_add(length.saturating_sub(1)) >> bits;
        for cluster in offset >> bits..=last {
            if let Some(count) = uses.get_mut(cluster as usize) {
                *count = count.saturating_add(1);
            }
        }
    }

    /// Tables that overlap each other or data.
    fn overlaps(&mut self) {
        let mut metadata = std::mem::take(&mut self.metadata);
        metadata.sort_unstable();
        let bits = self.header.geometry.cluster_bits();
        let mut previous: Option<(u64, u64, &str)> = None;
        for (offset, length, name) in metadata {
            let overlap = previous.filter(|(start, length, _)| start + length > offset);
            if let Some((_, _, other)) = overlap {
                self.report(Finding::error(name, offset, format!("it overlaps the {other}")));
            } else if let Some(uses) = &self.uses {
                let last = (offset + length.max(1) - 1) >> bits;
                if (offset >> bits..=last).any(|cluster| uses.get(cluster as usize) > Some(&1)) {
                    let message = "its clusters are also used for something else";
                    self.report(Finding::error(name, offset, message));
                }
            }
            // Of two that overlap the longer one may reach into the next.
            if previous.is_none_or(|(start, before, _)| start + before < offset + length) {
                previous = Some((offset, length, name));
            }
        }
    }

    fn compare(&mut self, refcounts: &Refcounts<'_>) -> Result<()> {
        let Some(uses) = self.uses.take() else { return Ok(()) };
        let mut runs = Runs::default();
        for (cluster, used) in uses.iter().enumerate() {
            // Clusters without a block are looked at only when they are used; a file may be mostly hole.
            if *used != 0 || refcounts.has_block(cluster as u64) {
                let refcount = refcounts.get(cluster as u64)?;
                self.compare_one(&mut runs, cluster as u64, u64::from(*used), refcount);
            }
        }
        for block in refcounts.present() {
            let span = refcounts.block_span();
            let first = (block * span).max(uses.len() as u64);
            if first < (block + 1) * span && !self.may_read("refcount blocks") {
                break;
            }
            for cluster in first..(block + 1) * span {
                let refcount = refcounts.get(cluster)?;
                self.compare_one(&mut runs, cluster, 0, refcount);
            }
        }
        self.report_run(runs.current);
        Ok(())
    }

    fn compare_one(&mut self, runs: &mut Runs, cluster: u64, used: u64, refcount: u64) {
        let is_saturated = used == u64::from(u16::MAX);
        let is_leak = refcount > used && !is_saturated && self.is_walk_complete();
        if refcount < used || is_leak {
            let finished = runs.extend(Mismatch { first: cluster, clusters: 1, used, refcount });
            self.report_run(finished);
        }
    }

    fn report_run(&mut self, run: Option<Mismatch>) {
        let Some(Mismatch { first, clusters, used, refcount }) = run else { return };
        let offset = first << self.header.geometry.cluster_bits();
        let message = format!("{clusters} clusters from here: refcount {refcount}, used {used} times");
        self.report(if refcount < used {
            Finding::error("refcount", offset, message)
        } else {
            Finding::warning("refcount", offset, format!("leak: {message}"))
        });
    }

    /// Whether one more table or block may be read.
    fn may_read(&mut self, what: &str) -> bool {
        self.metadata_bytes_read += self.header.geometry.cluster_size();
        let is_allowed = self.metadata_bytes_read <= METADATA_BYTES_MAX;
        if !is_allowed {
            let message = format!("there are more than 4 GiB of {what}; the rest is not checked");
            self.report(Finding::warning(what, None, message));
        }
        is_allowed
    }

    fn report(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.unreported += 1;
        }
    }
}

/// Neighbouring clusters whose refcount is wrong in the same way.
#[derive(Clone, Copy)]
struct Mismatch {
    first: u64,
    clusters: u64,
    used: u64,
    refcount: u64,
}

/// Collects mismatches of neighbours into one.
#[derive(Default)]
struct Runs {
    current: Option<Mismatch>,
}

impl Runs {
    /// Adds `next`, and returns the run that ended before it.
    fn extend(&mut self, next: Mismatch) -> Option<Mismatch> {
        match &mut self.current {
            Some(run)
                if run.first + run.clusters == next.first
                    && (run.used, run.refcount) == (next.used, next.refcount) =>
            {
                run.clusters += 1;
                None
            }
            current => current.replace(next),
        }
    }
}
