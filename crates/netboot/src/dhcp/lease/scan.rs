//! Reads a lease log, whatever state a crash or a bad disk left it in (`docs/lease-log.md`, "Reading").

use std::io::{self, Read};

use super::Time;
use super::record::{LENGTH_MAX, MemberId, Place, Record, array, digest};

/// Bytes of a file's header.
pub(super) const HEADER: usize = 64;
const MAGIC: [u8; 8] = *b"GWLEASE\0";
/// The layout that is written. Version 1 had no relay agent information, and is the same in all else.
pub(super) const VERSION: u32 = 2;
/// The oldest layout that is read.
const VERSION_MIN: u32 = 1;
/// How much is read at once.
const WINDOW: usize = 1 << 20;
/// Damaged places that are told apart; more are counted only.
const DAMAGE_MAX: usize = 64;

/// What a log's file says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The version of the file's layout.
    pub version: u32,
    /// How often the log has been rewritten.
    pub(crate) generation: u32,
    /// The member that writes it.
    pub member: MemberId,
    /// When the file was begun.
    pub(crate) created: Time,
    /// The member's next record number at that time.
    pub(crate) member_sequence: u64,
}

/// A stretch of bytes in a log that are not what was once durable there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where it begins.
    pub at: u64,
    /// How long it is.
    pub bytes: u64,
    /// How many records were in it; none for the header.
    pub records: u64,
}

/// What was found in a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The header, if it could be read.
    pub header: Option<Header>,
    /// The file's version, if we do not know it: then nothing else of it was read.
    pub other_version: Option<u32>,
    /// The file's generation, by its header or else by its first record.
    pub(crate) generation: Option<u32>,
    /// Records read.
    pub records: u64,
    /// The highest record number in the file.
    pub(crate) sequence: u64,
    /// Where the last valid record ends; at least the header's end.
    pub valid_until: u64,
    /// The file's length.
    pub length: u64,
    /// Zeros behind all else: room for the next records.
    pub(crate) room: u64,
    /// Bytes of a batch that was never synced and that a crash left in part.
    pub torn_bytes: u64,
    /// Whether valid records stand behind torn bytes: then cutting does not repair the file.
    pub(crate) has_survivors: bool,
    /// Where what was durable is damaged: the first 64 places.
    pub damage: Vec<Damage>,
    /// How many such places there are.
    pub damage_count: u64,
}

impl Header {
    /// Its bytes.
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.member.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.created.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.member_sequence.to_le_bytes());
        let checksum = digest(&bytes[..56]);
        bytes[56..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at| array(bytes, at).map(u64::from_le_bytes);
        let version = version(bytes).filter(is_known)?;
        Some(Self {
            version,
            generation: u32::from_le_bytes(array(bytes, 12)?),
            member: MemberId(number(16)?),
            created: Time(number(24)?),
            member_sequence: number(32)?,
        })
    }
}

/// Reads a log and hands every valid record to `visit`, in order. Needs 1 MiB of memory, whatever the log's length.
///
/// # Errors
/// What the reader answers.
pub fn scan(reader: &mut dyn Read, mut visit: impl FnMut(Record)) -> io::Result<Scan> {
    let mut found = Scan::default();
    let mut window = Window::new(reader);
    window.fill()?;
    found.header = Header::decode(window.rest());
    found.other_version = version(window.rest()).filter(|version| !is_known(version));
    if found.other_version.is_some() {
        return Ok(found);
    }
    found.generation = found.header.map(|header| header.generation);
    let mut stretches = Stretches::default();
    if found.header.is_none() {
        stretches.begin(0);
    }
    window.skip(HEADER);
    found.valid_until = window.at;
    loop {
        window.fill()?;
        if window.rest().is_empty() {
            break;
        }
        match Record::decode(window.rest()) {
            Some((record, place, length)) if is_next(&found, place) => {
                stretches.end(window.at, found.sequence, place);
                found.generation = Some(place.generation);
                found.sequence = place.sequence;
                found.records += 1;
                window.skip(length);
                found.valid_until = window.at;
                visit(record);
            }
            _ => {
                stretches.begin(window.at);
                let is_zero = window.rest().iter().take(8).all(|byte| *byte == 0);
                window.skip(8);
                if !is_zero {
                    stretches.content_until = window.at;
                }
            }
        }
    }
    found.length = window.at;
    stretches.judge(&mut found);
    Ok(found)
}

fn is_known(version: &u32) -> bool {
    (VERSION_MIN..=VERSION).contains(version)
}

/// The version of a header whose checksum is right.
fn version(bytes: &[u8]) -> Option<u32> {
    let is_right =
        bytes.starts_with(&MAGIC) && array(bytes, 56).map(u64::from_le_bytes)? == digest(&bytes[..56]);
    array(bytes, 8).map(u32::from_le_bytes).filter(|_| is_right)
}

fn is_next(found: &Scan, place: Place) -> bool {
    place.sequence > found.sequence
        && found.generation.is_none_or(|generation| generation == place.generation)
}

/// The stretches that could not be read.
#[derive(Default)]
struct Stretches {
    open: Option<u64>,
    /// With the number of the record behind each.
    closed: Vec<(Damage, u64)>,
    uncounted: u64,
    last_batch_start: u64,
    /// Behind what could not be read and is not zero.
    content_until: u64,
}

impl Stretches {
    fn begin(&mut self, at: u64) {
        self.open.get_or_insert(at);
    }

    /// A valid record stands at `at`.
    fn end(&mut self, at: u64, last_sequence: u64, place: Place) {
        self.last_batch_start = self.last_batch_start.max(place.batch_start());
        let Some(start) = self.open.take() else { return };
        let records = place.sequence.saturating_sub(last_sequence + 1);
        let damage = Damage { at: start, bytes: at - start, records };
        // The last ones are looked at more closely: they may be the tail of a batch that was never durable.
        if self.closed.len() >= 2 * DAMAGE_MAX {
            self.uncounted += 1;
            self.closed.remove(DAMAGE_MAX);
        }
        self.closed.push((damage, place.sequence));
    }

    /// Tells torn bytes from damage: what lies before a later batch was durable.
    fn judge(self, found: &mut Scan) {
        found.damage_count = self.uncounted;
        for (damage, next) in self.closed {
            if next <= self.last_batch_start || damage.at < HEADER as u64 {
                found.damage_count += 1;
                if found.damage.len() < DAMAGE_MAX {
                    found.damage.push(damage);
                }
            } else {
                found.torn_bytes += damage.bytes;
                found.has_survivors = true;
            }
        }
        if let Some(start) = self.open {
            // A record begins with its marker: behind the last bytes that are not zero, none was ever written. Without
            // a header there is no room either, whatever the file is.
            let is_headless = start < HEADER as u64;
            let until = if is_headless { found.length } else { self.content_until.max(start) };
            found.torn_bytes += until - start;
            found.room = found.length - until;
        }
    }
}

/// A piece of the file, with at least one whole record where the file has one.
struct Window<'a> {
    reader: &'a mut dyn Read,
    bytes: Vec<u8>,
    from: usize,
    at: u64,
    is_at_end: bool,
}

impl<'a> Window<'a> {
    fn new(reader: &'a mut dyn Read) -> Self {
        Self { reader, bytes: Vec::new(), from: 0, at: 0, is_at_end: false }
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.from..]
    }

    fn fill(&mut self) -> io::Result<()> {
        if self.rest().len() >= LENGTH_MAX || self.is_at_end {
            return Ok(());
        }
        self.bytes.drain(..self.from);
        self.from = 0;
        let wanted = (WINDOW - self.bytes.len()) as u64;
        let count = (&mut *self.reader).take(wanted).read_to_end(&mut self.bytes)?;
        self.is_at_end = (count as u64) < wanted;
        Ok(())
    }

    fn skip(&mut self, count: usize) {
        let count = count.min(self.rest().len());
        self.from += count;
        self.at += count as u64;
    }
}
