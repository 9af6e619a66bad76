//! The lease log (`docs/lease-log.md`): batches written and synced, now and then rewritten.
//!
//! Records go into space that holds zeros and was synced before, so that the sync of a batch writes its blocks and
//! nothing else: a file that grows would make each sync wait for the file system's journal, and there for others' data.
//!
//! The log knows nothing of leases. Who rewrites it hands over, piece by piece, what is true now, and goes on committing
//! meanwhile; every batch then goes to both files.

use std::io;

use super::Time;
use super::record::{MemberId, Place, Record};
use super::scan::{HEADER, Header, Scan, VERSION, scan};
use super::volume::Volume;

const NAME: &str = "leases.log";
const NEW: &str = "leases.log.new";
const DAMAGED: &str = "leases.log.damaged";
/// A log is not rewritten for less than this many bytes that nobody needs. Small in tests, so that they get there.
const WASTE_MIN: u64 = if cfg!(test) { 16 << 10 } else { 4 << 20 };
/// So many zeros are written at once when the room for records gets short.
const ROOM: u64 = if cfg!(test) { 2 << 10 } else { 1 << 20 };
/// With less room than this it is short; a batch of several thousand records fits.
const ROOM_MIN: u64 = ROOM / 2;
/// While rewriting, this much is synced at once: some tens of milliseconds on a slow disk.
const SYNC_PIECE: u64 = 4 << 20;

/// Why the log does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Its folder cannot be made or opened, or another server has it.
    #[error("open its folder")]
    Folder(#[source] io::Error),
    /// The log cannot be read.
    #[error("read the lease log")]
    Read(#[source] io::Error),
    /// The log is of a version that we do not know.
    #[error("the lease log is of version {0}, which this program does not know")]
    Version(u32),
    /// The log's end cannot be repaired.
    #[error("repair the lease log")]
    Repair(#[source] io::Error),
    /// A batch could not be written; none of its leases may be acknowledged.
    #[error("write to the lease log")]
    Append(#[source] io::Error),
    /// A batch could not be made durable; none of its leases may be acknowledged.
    #[error("sync the lease log")]
    Sync(#[source] io::Error),
    /// No room could be made for later batches; they are written nevertheless, and take longer.
    #[error("make room in the lease log")]
    Room(#[source] io::Error),
    /// The log could not be rewritten; the old one goes on.
    #[error("rewrite the lease log")]
    Rewrite(#[source] io::Error),
    /// The numbers of the file's records are used up, as only a forged or damaged one can bring about; the log has to be
    /// rewritten first.
    #[error("the lease log has no number left for a record; it has to be rewritten")]
    Exhausted,
    /// An earlier write failed; the log has to be rewritten first.
    #[error("the lease log is not trusted since a write failed; it has to be rewritten")]
    Suspect,
}

impl goldwire_stdx::Hints for LogError {}

/// What was found when the log was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// The state of the file; all zero if there was none.
    pub scan: Scan,
    /// The least number for this member's next record.
    pub(crate) member_sequence: u64,
    /// Whether the file has to be rewritten before the first batch.
    pub(crate) needs_rewrite: bool,
}

/// An open lease log.
pub(crate) struct Log {
    volume: Box<dyn Volume>,
    member: MemberId,
    file: Written,
    /// Bytes that the file had when it was fresh.
    fresh: u64,
    /// Set while nothing may be acknowledged.
    is_suspect: bool,
    /// Whether the old file shall be kept when it is rewritten.
    is_damaged: bool,
    rewriting: Option<Written>,
    buffer: Vec<u8>,
}

/// A file that takes records.
#[derive(Clone, Copy, Debug)]
struct Written {
    name: &'static str,
    generation: u32,
    /// The last record's number.
    sequence: u64,
    /// Where the next record goes.
    length: u64,
    synced: u64,
    /// Where the file ends; behind its records it holds zeros.
    end: u64,
}

impl Written {
    /// How many records may follow: each has a number of its own.
    fn numbers_left(&self) -> u64 {
        u64::MAX - self.sequence
    }
}

impl Log {
    /// Opens the log, makes one if there is none, cuts a torn tail off, and hands every record to `visit` in order.
    ///
    /// # Errors
    /// `Read`, `Version`, `Repair`.
    pub(crate) fn open(
        mut volume: Box<dyn Volume>,
        member: MemberId,
        visit: impl FnMut(Record),
    ) -> Result<(Self, Opened), LogError> {
        volume.remove(NEW).map_err(LogError::Repair)?;
        let found = match volume.read(NAME).map_err(LogError::Read)? {
            Some(mut reader) => Some(scan(&mut *reader, visit).map_err(LogError::Read)?),
            None => None,
        };
        if let Some(version) = found.as_ref().and_then(|scan| scan.other_version) {
            return Err(LogError::Version(version));
        }
        let is_new = found.is_none();
        let scan = found.unwrap_or_default();
        let is_damaged = scan.damage_count > 0 || (!is_new && scan.header.is_none());
        let needs_rewrite = is_new
            || is_damaged
            || scan.has_survivors
            || scan.header.is_none_or(|header| header.member != member || header.version != VERSION);
        if !needs_rewrite && scan.torn_bytes > 0 {
            volume.truncate(NAME, scan.valid_until).map_err(LogError::Repair)?;
            volume.sync(NAME).map_err(LogError::Repair)?;
        }
        // After the cut, nothing is left behind the records.
        let room = if scan.torn_bytes == 0 { scan.room } else { 0 };
        let file = Written {
            name: NAME,
            generation: scan.generation.unwrap_or(0),
            sequence: scan.sequence,
            length: scan.valid_until,
            synced: scan.valid_until,
            end: scan.valid_until + room,
        };
        let member_sequence =
            scan.header.filter(|header| header.member == member).map_or(1, |header| header.member_sequence);
        let log = Self {
            volume,
            member,
            file,
            fresh: HEADER as u64,
            is_suspect: needs_rewrite,
            is_damaged,
            rewriting: None,
            buffer: Vec::new(),
        };
        Ok((log, Opened { scan, member_sequence, needs_rewrite }))
    }

    /// Makes a batch durable: one write, one sync. When this has succeeded, its leases may be acknowledged, and so may be
    /// those of the batches before it: an empty batch only asks for that.
    ///
    /// # Errors
    /// `Append`, `Sync`, `Exhausted`, `Suspect`: nothing of the batch may be acknowledged.
    pub(crate) fn commit(&mut self, batch: &[Record]) -> Result<(), LogError> {
        if batch.is_empty() {
            return if self.is_suspect { Err(LogError::Suspect) } else { Ok(()) };
        }
        if let Some(new) = &mut self.rewriting {
            let is_written = append(&mut *self.volume, new, batch, &mut self.buffer)
                .and_then(|()| sync_piece(&mut *self.volume, new));
            if is_written.is_err() {
                // The old file goes on alone.
                self.rewriting = None;
            }
        }
        if self.is_suspect {
            return Err(LogError::Suspect);
        }
        if self.file.numbers_left() < batch.len() as u64 {
            self.is_suspect = true;
            return Err(LogError::Exhausted);
        }
        let before = self.file;
        if let Err(error) = append(&mut *self.volume, &mut self.file, batch, &mut self.buffer) {
            // What was written of it must not be read some day: its numbers are given again.
            self.file = Written { end: before.length, ..before };
            self.is_suspect = self.volume.truncate(NAME, before.length).is_err();
            return Err(LogError::Append(error));
        }
        if let Err(error) = self.volume.sync(NAME) {
            // The kernel may have dropped what it could not write and would report success the next time.
            self.is_suspect = true;
            return Err(LogError::Sync(error));
        }
        self.file.synced = self.file.length;
        Ok(())
    }

    /// Bytes that a log of so many leases takes at most.
    pub(crate) fn bytes_for(&self, leases: usize) -> u64 {
        (HEADER + leases * super::record::LENGTH_MAX) as u64
    }

    /// Whether there is little room for the next batches.
    pub(crate) fn wants_room(&self) -> bool {
        !self.is_suspect && self.file.end - self.file.length < ROOM_MIN
    }

    /// Writes zeros behind the file's end, for the next batches, and syncs them.
    ///
    /// # Errors
    /// `Room`: the log goes on without.
    pub(crate) fn make_room(&mut self) -> Result<(), LogError> {
        add_room(&mut *self.volume, &mut self.file, ROOM)
            .and_then(|()| self.volume.sync(NAME))
            .map_err(LogError::Room)
    }

    /// Whether the log should be rewritten.
    pub(crate) fn wants_rewrite(&self) -> bool {
        let waste = self.file.length.saturating_sub(self.fresh);
        self.rewriting.is_none() && (self.is_suspect || (waste >= WASTE_MIN && waste >= self.fresh))
    }

    /// Whether a new file is being written.
    pub(crate) fn is_rewriting(&self) -> bool {
        self.rewriting.is_some()
    }

    /// Whether nothing can be acknowledged before the log has been rewritten.
    pub(crate) fn is_suspect(&self) -> bool {
        self.is_suspect
    }

    /// Bytes of the file that hold records, its header included.
    pub(crate) fn length(&self) -> u64 {
        self.file.length
    }

    /// Begins a new file. From here on, what is committed goes to both; hand over the state of every address with
    /// [`Self::rewrite`], then call [`Self::finish_rewrite`].
    ///
    /// # Errors
    /// `Rewrite`: the old file goes on.
    pub(crate) fn begin_rewrite(&mut self, now: Time, member_sequence: u64) -> Result<(), LogError> {
        let header = Header {
            version: VERSION,
            generation: self.file.generation.wrapping_add(1),
            member: self.member,
            created: now,
            member_sequence,
        };
        let start = |volume: &mut dyn Volume| {
            volume.create(NEW)?;
            volume.write_at(NEW, 0, &header.encode())
        };
        start(&mut *self.volume).map_err(LogError::Rewrite)?;
        self.rewriting = Some(Written {
            name: NEW,
            generation: header.generation,
            sequence: 0,
            length: HEADER as u64,
            synced: 0,
            end: HEADER as u64,
        });
        Ok(())
    }

    /// Writes a piece of what is true now to the new file. Does nothing if none was begun or it failed meanwhile.
    ///
    /// # Errors
    /// `Rewrite`: the new file is given up, the old one goes on.
    pub(crate) fn rewrite(&mut self, piece: &[Record]) -> Result<(), LogError> {
        let Some(new) = &mut self.rewriting else { return Ok(()) };
        let done = append(&mut *self.volume, new, piece, &mut self.buffer)
            .and_then(|()| sync_piece(&mut *self.volume, new));
        done.map_err(|error| {
            self.rewriting = None;
            LogError::Rewrite(error)
        })
    }

    /// Puts the new file in the old one's place. Says whether it did: not if it was given up meanwhile.
    ///
    /// # Errors
    /// `Rewrite`: the old file goes on, if it was trusted.
    pub(crate) fn finish_rewrite(&mut self) -> Result<bool, LogError> {
        let Some(mut new) = self.rewriting.take() else { return Ok(false) };
        // Enough until the next rewriting, and for what comes while it runs. On a full disk the log goes on without, batch
        // by batch: what leases need is room for their records, not for those of later.
        let room = add_room(&mut *self.volume, &mut new, WASTE_MIN + ROOM);
        self.volume.sync(NEW).map_err(LogError::Rewrite)?;
        if let Err(error) = room {
            tracing::warn!(%error, bytes = WASTE_MIN + ROOM, "no room for later leases; batches take longer");
        }
        if self.is_damaged {
            self.volume.link(NAME, DAMAGED).map_err(LogError::Rewrite)?;
            self.is_damaged = false;
        }
        self.volume.rename(NEW, NAME).map_err(LogError::Rewrite)?;
        new.name = NAME;
        new.synced = new.length;
        self.file = new;
        self.fresh = new.length;
        // Until the names are durable, a crash may bring the old file back, without what comes next.
        self.is_suspect = true;
        self.volume.sync_names().map_err(LogError::Rewrite)?;
        self.is_suspect = false;
        Ok(true)
    }
}

fn append(
    volume: &mut dyn Volume,
    file: &mut Written,
    batch: &[Record],
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    buffer.clear();
    for (position, record) in batch.iter().enumerate() {
        let sequence = file.sequence + 1 + position as u64;
        record.encode(Place { generation: file.generation, sequence, position: position as u32 }, buffer);
    }
    volume.write_at(file.name, file.length, buffer)?;
    file.sequence += batch.len() as u64;
    file.length += buffer.len() as u64;
    file.end = file.end.max(file.length);
    Ok(())
}

/// Lets the file end in so many zeros more. Real ones: space that is only reserved is entered into the file system's
/// books when it is written.
fn add_room(volume: &mut dyn Volume, file: &mut Written, bytes: u64) -> io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    let end = file.end + bytes;
    while file.end < end {
        let count = (end - file.end).min(ZEROS.len() as u64);
        volume.write_at(file.name, file.end, &ZEROS[..count as usize])?;
        file.end += count;
    }
    Ok(())
}

/// Syncs the new file when enough has come together, so that no sync at its end takes long.
fn sync_piece(volume: &mut dyn Volume, file: &mut Written) -> io::Result<()> {
    if file.length - file.synced >= SYNC_PIECE {
        volume.sync(file.name)?;
        file.synced = file.length;
    }
    Ok(())
}
