//! The boot timeline: how far each device has come, kept across restarts.
//!
//! Every event that says something about a device's boot becomes a [`Record`], one line of JSON in
//! `STATE/timeline.jsonl`. When that file reaches its limit it becomes `timeline.1.jsonl`, in the place of the one
//! before, so that what is kept is bounded. Whoever looks ([`Follower`]) reads both and then follows the first; the
//! server is not asked, and is not disturbed.
//!
//! Writing happens on a thread of its own behind a bounded channel: a full disk or a slow one never holds up an answer.
//! What does not fit the channel is counted and said in a later record.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use goldwire_netboot::{Event, EventKind, Stage};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::telemetry::shown;

/// Records that may wait for the disk.
const WAITING_MAX: usize = 4096;
/// The size at which a file is put aside: about 60,000 records, a hundred boots of six hundred devices.
const FILE_SIZE_MAX: u64 = 16 * 1024 * 1024;
/// Longest line that is read. Ours are shorter: a longer one was written by somebody else.
const LINE_MAX: usize = 16 << 10;
/// Longer details are cut: a URL is never longer than that, and a hostile path might be.
const DETAIL_LENGTH_MAX: usize = 300;
/// A step that comes longer after the one before belongs to another boot.
const BOOT_GAP: jiff::SignedDuration = jiff::SignedDuration::from_mins(10);

/// One step of a device's boot, or something that went wrong on the way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// When, in UTC.
    pub at: Timestamp,
    /// The device's hardware address; absent where only its network address is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// The device's network address, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The boot server that saw it.
    pub member: String,
    /// By which protocol.
    pub protocol: String,
    /// What happened: a stage's name, or `transferred`, `broken-off`, `refused`, `lost`.
    pub what: String,
    /// A file, a URL, a rule, a reason.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Bytes of content, of a transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Seconds that it took, of a transfer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
}

impl Record {
    /// The record of an event; none for those that say nothing about a device.
    pub fn of(event: &Event<'_>, member: &str, at: Timestamp) -> Option<Self> {
        let (protocol, what, detail, bytes, seconds) = match &event.kind {
            EventKind::Reached { protocol, stage, detail, .. } => {
                (protocol, stage.name(), *detail, None, None)
            }
            EventKind::Transferred { protocol, path, bytes, seconds, is_complete } => {
                let what = if *is_complete { "transferred" } else { "broken-off" };
                (protocol, what, *path, Some(*bytes), Some((seconds * 1e6).round() / 1e6))
            }
            EventKind::Refused { protocol, path, reason } => {
                let detail = if path.is_empty() { (*reason).to_owned() } else { format!("{path}: {reason}") };
                return Some(Self::new(event, member, at, protocol.name(), "refused", &detail));
            }
            // Packets of strangers come by the thousand; the metrics count them.
            EventKind::Dropped { .. } | EventKind::Member { .. } | EventKind::Leased => return None,
        };
        Some(Self { bytes, seconds, ..Self::new(event, member, at, protocol.name(), what, detail) })
    }

    fn new(event: &Event<'_>, member: &str, at: Timestamp, protocol: &str, what: &str, detail: &str) -> Self {
        let detail = shown(detail);
        let end = detail.char_indices().map(|(at, _)| at).nth(DETAIL_LENGTH_MAX).unwrap_or(detail.len());
        Self {
            at,
            mac: event.mac.map(|mac| mac.to_string()),
            address: event.address.map(|address| address.to_string()),
            member: member.to_owned(),
            protocol: protocol.to_owned(),
            what: what.to_owned(),
            detail: detail[..end].to_owned(),
            bytes: None,
            seconds: None,
        }
    }

    /// The stage that was reached, if this says so.
    pub fn stage(&self) -> Option<Stage> {
        const STAGES: [Stage; 8] = [
            Stage::Discover,
            Stage::Offer,
            Stage::Request,
            Stage::Ack,
            Stage::Bootstrap,
            Stage::Script,
            Stage::Kernel,
            Stage::San,
        ];
        STAGES.into_iter().find(|stage| stage.name() == self.what)
    }

    /// Whether it tells of something that went wrong.
    pub fn is_trouble(&self) -> bool {
        matches!(self.what.as_str(), "refused" | "broken-off" | "lost")
    }
}

/// Writes records. Dropping it writes what waits, and ends.
#[derive(Debug)]
pub struct Writer {
    sender: Option<SyncSender<Record>>,
    lost: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts writing below `state`, an existing folder.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn start(state: &Path) -> io::Result<Self> {
        let mut files = Files::open(state, FILE_SIZE_MAX)?;
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        let thread = goldwire_stdx::spawn("timeline", move || files.write_all_of(&receiver, &counter))?;
        Ok(Self { sender: Some(sender), lost, thread: Some(thread) })
    }

    /// Hands a record to the writing thread; never waits.
    pub fn write(&self, record: Record) {
        let Some(sender) = &self.sender else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = sender.try_send(record) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed already.
            let _ = thread.join();
        }
    }
}

/// Where the records are.
pub fn file(state: &Path) -> PathBuf {
    state.join("timeline.jsonl")
}

/// Where the records before them are.
fn older_file(state: &Path) -> PathBuf {
    state.join("timeline.1.jsonl")
}

struct Files {
    state: PathBuf,
    file: File,
    size: u64,
    size_max: u64,
    has_failed: bool,
}

impl Files {
    fn open(state: &Path, size_max: u64) -> io::Result<Self> {
        let file = open_for_appending(state)?;
        let size = file.metadata()?.len();
        Ok(Self { state: state.to_owned(), file, size, size_max, has_failed: false })
    }

    fn write_all_of(&mut self, records: &Receiver<Record>, lost: &AtomicU64) {
        while let Ok(record) = records.recv() {
            let lost = lost.swap(0, Ordering::Relaxed);
            let note = (lost > 0).then(|| Record {
                at: record.at,
                mac: None,
                address: None,
                member: record.member.clone(),
                protocol: String::new(),
                what: "lost".into(),
                detail: format!("{lost} records before this one: the disk was too slow"),
                bytes: None,
                seconds: None,
            });
            let written = note.iter().chain([&record]).try_for_each(|record| self.append(record));
            match written {
                Ok(()) => self.has_failed = false,
                // Said once, not for each of a storm's records.
                Err(error) if !self.has_failed => {
                    self.has_failed = true;
                    tracing::error!(state = %self.state.display(), %error, "the boot timeline cannot be written");
                }
                Err(_) => {}
            }
        }
    }

    fn append(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_string(record)?;
        line.push('\n');
        if self.size + line.len() as u64 > self.size_max && self.size > 0 {
            fs::rename(file(&self.state), older_file(&self.state))?;
            self.file = open_for_appending(&self.state)?;
            self.size = 0;
        }
        self.file.write_all(line.as_bytes())?;
        self.size += line.len() as u64;
        Ok(())
    }
}

fn open_for_appending(state: &Path) -> io::Result<File> {
    fs::OpenOptions::new().create(true).append(true).mode(0o640).open(file(state))
}

/// Reads the records that are there, and those that come.
#[derive(Debug)]
pub struct Follower {
    state: PathBuf,
    reader: Option<(BufReader<File>, u64)>,
    older_was_read: bool,
    /// The line so far, or what came of it last if it is too long.
    partial: Vec<u8>,
    is_too_long: bool,
}

impl Follower {
    /// Looks below `state`; the files need not be there yet.
    pub fn new(state: &Path) -> Self {
        Self {
            state: state.to_owned(),
            reader: None,
            older_was_read: false,
            partial: Vec::new(),
            is_too_long: false,
        }
    }

    /// The next record, if one is there by now. Lines that are no records (a torn one after a crash,
    /// one that is longer than [`LINE_MAX`]) are passed over.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        loop {
            if self.reader.is_none() && !self.open_next()? {
                return Ok(None);
            }
            let Some((reader, inode)) = &mut self.reader else { return Ok(None) };
            let room = (LINE_MAX - self.partial.len()) as u64;
            let count = reader.by_ref().take(room).read_until(b'\n', &mut self.partial)?;
            if self.partial.ends_with(b"\n") {
                // The end of a line that is too long is no line.
                let is_whole = !std::mem::take(&mut self.is_too_long);
                let record = is_whole.then(|| serde_json::from_slice(&self.partial).ok()).flatten();
                self.partial.clear();
                if record.is_some() {
                    return Ok(record);
                }
                continue;
            }
            if self.partial.len() == LINE_MAX {
                self.is_too_long = true;
                self.partial.clear();
            }
            if count > 0 {
                continue;
            }
            // The end. If the name belongs to another file by now, that one goes on from here.
            let current = fs::metadata(file(&self.state)).map(|data| data.ino()).ok();
            if current.is_none_or(|current| current == *inode) {
                return Ok(None);
            }
            self.reader = None;
            self.partial.clear();
            self.is_too_long = false;
        }
    }

    /// Whether there was a timeline when it was looked for last. A server makes it at its start.
    pub fn has_timeline(&self) -> bool {
        self.reader.is_some()
    }

    fn open_next(&mut self) -> io::Result<bool> {
        let path = if self.older_was_read { file(&self.state) } else { older_file(&self.state) };
        let is_older = !self.older_was_read;
        self.older_was_read = true;
        match File::open(&path) {
            Ok(mut file) => {
                file.seek(SeekFrom::Start(0))?;
                let inode = if is_older { 0 } else { file.metadata()?.ino() };
                self.reader = Some((BufReader::new(file), inode));
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_older => self.open_next(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// One boot of one device, as its records tell.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceBoot {
    /// The device: its hardware address, or its network address where that is all that is known.
    pub device: String,
    /// When its first step was seen.
    pub began: Timestamp,
    /// The steps: stage, seconds since the first, the member that served it, and what it was.
    pub steps: Vec<Step>,
    /// The last thing that went wrong after the last good step, if there is one.
    pub trouble: Option<String>,
}

/// One good step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Step {
    /// The stage's name.
    pub stage: String,
    /// Seconds since the boot began.
    pub seconds: f64,
    /// The member that served it.
    pub member: String,
    /// A file, a URL, a rule.
    pub detail: String,
}

/// The latest boot of each device, folded from records in order.
///
/// A record without a hardware address belongs to the device that was last known to have its network address: a server
/// without DHCP knows a machine by the path of its script, and then sees its address alone.
#[derive(Debug, Default)]
pub struct Boots {
    /// Hardware addresses by network address, and when each was heard of last.
    devices: HashMap<String, (String, Timestamp)>,
    boots: HashMap<String, (DeviceBoot, Timestamp, Stage)>,
}

/// Devices that are remembered; the one that was quiet for longest is forgotten.
const DEVICES_MAX: usize = 20_000;
/// Steps that are kept of one boot; a device in a loop has more.
const STEPS_MAX: usize = 64;

impl Boots {
    /// Takes in a record; the boot that it belongs to, if it belongs to one.
    pub fn take(&mut self, record: &Record) -> Option<&DeviceBoot> {
        let device = self.device_of(record)?;
        if let Some(address) = record.address.as_ref().filter(|address| **address != device) {
            if self.devices.len() >= DEVICES_MAX {
                self.devices.clear();
            }
            self.devices.insert(address.clone(), (device.clone(), record.at));
        }
        if self.boots.len() >= DEVICES_MAX && !self.boots.contains_key(&device) {
            let quiet = self.boots.iter().min_by_key(|(_, (_, at, _))| *at).map(|(device, _)| device.clone());
            quiet.and_then(|device| self.boots.remove(&device));
        }
        let stage = record.stage();
        let fresh =
            || DeviceBoot { device: device.clone(), began: record.at, steps: Vec::new(), trouble: None };
        let (boot, last, furthest) =
            self.boots.entry(device.clone()).or_insert_with(|| (fresh(), record.at, Stage::Discover));
        // A chain of boot programs asks DHCP again, seconds later; a machine that was switched on again does so after
        // it had come further, or much later.
        let gap = record.at.duration_since(*last);
        if gap > BOOT_GAP || (stage == Some(Stage::Discover) && *furthest > Stage::Script) {
            *boot = fresh();
            *furthest = Stage::Discover;
        }
        *last = record.at;
        if let Some(stage) = stage {
            *furthest = (*furthest).max(stage);
            boot.trouble = None;
            if boot.steps.len() < STEPS_MAX {
                boot.steps.push(Step {
                    stage: record.what.clone(),
                    seconds: (record.at.duration_since(boot.began).as_secs_f64() * 1e3).round() / 1e3,
                    member: record.member.clone(),
                    detail: record.detail.clone(),
                });
            }
        } else if record.is_trouble() {
            boot.trouble = Some(format!("{} {}: {}", record.protocol, record.what, record.detail));
        }
        Some(boot)
    }

    /// The device that a record is about, as [`DeviceBoot::device`] has it; none if it is about none.
    pub fn device_of(&self, record: &Record) -> Option<String> {
        if record.mac.is_some() {
            return record.mac.clone();
        }
        let address = record.address.as_ref()?;
        let known = self.devices.get(address);
        let known = known.filter(|(_, last)| record.at.duration_since(*last) <= BOOT_GAP);
        Some(known.map_or(address, |(mac, _)| mac).clone())
    }

    /// Every device's latest boot, the latest first.
    pub fn all(&self) -> Vec<&DeviceBoot> {
        let mut all: Vec<_> = self.boots.values().collect();
        all.sort_by_key(|(boot, at, _)| (std::cmp::Reverse(*at), boot.device.clone()));
        all.into_iter().map(|(boot, _, _)| boot).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use goldwire_netboot::{Mac, Protocol};

    fn reached<'a>(mac: u8, stage: Stage, detail: &'a str) -> Event<'a> {
        Event {
            mac: Some(Mac([2, 0, 0, 0, 0, mac])),
            address: None,
            kind: EventKind::Reached { protocol: Protocol::Http, stage, device: None, detail },
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn all_of(follower: &mut Follower) -> Vec<Record> {
        std::iter::from_fn(|| follower.next_record().unwrap()).collect()
    }

    #[test]
    fn what_was_written_is_read_after_a_restart_and_the_rest_followed() {
        let folder = tempfile::tempdir().unwrap();
        let first = Record::of(&reached(1, Stage::Script, "a"), "boot1", at(0)).unwrap();
        let second = Record::of(&reached(1, Stage::Kernel, "b"), "boot1", at(1)).unwrap();
        let mut early = Follower::new(folder.path());
        assert_eq!(all_of(&mut early), []);
        let writer = Writer::start(folder.path()).unwrap();
        writer.write(first.clone());
        drop(writer);
        let mut follower = Follower::new(folder.path());
        assert_eq!(all_of(&mut follower), std::slice::from_ref(&first));
        // A crash in the middle of a line, and a server that goes on behind it.
        open_for_appending(folder.path()).unwrap().write_all(b"{\"at\":\"20\n").unwrap();
        let writer = Writer::start(folder.path()).unwrap();
        writer.write(second.clone());
        drop(writer);
        assert_eq!(all_of(&mut follower), std::slice::from_ref(&second));
        assert_eq!(all_of(&mut early), [first, second]);
    }

    #[test]
    fn a_line_that_is_too_long_takes_no_memory_and_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::of(&reached(1, Stage::Script, "a"), "boot1", at(0)).unwrap();
        let json = serde_json::to_string(&record).unwrap();
        let mut file = open_for_appending(folder.path()).unwrap();
        let mut follower = Follower::new(folder.path());
        for padding in [LINE_MAX - json.len() - 1, LINE_MAX - json.len(), LINE_MAX, LINE_MAX + 1, 8 << 20] {
            // What is left of such a line behind any number of pieces would be a record.
            file.write_all(format!("{}{json}\n{json}\n", " ".repeat(padding)).as_bytes()).unwrap();
            let is_read = padding + json.len() < LINE_MAX;
            assert_eq!(all_of(&mut follower).len(), 1 + usize::from(is_read), "{padding}");
            assert!(follower.partial.capacity() <= 2 * LINE_MAX, "{padding}");
        }
        file.write_all(b"\xff\xfe\n").unwrap();
        file.write_all(format!("{json}\n").as_bytes()).unwrap();
        assert_eq!(all_of(&mut follower), [record], "bytes that are no text are passed over too");
    }

    #[test]
    fn the_files_are_bounded_and_a_follower_sees_the_change() {
        let folder = tempfile::tempdir().unwrap();
        let mut files = Files::open(folder.path(), 1000).unwrap();
        let mut follower = Follower::new(folder.path());
        let mut seen = 0;
        for number in 0..100 {
            let event = reached(1, Stage::Script, "some/file");
            files.append(&Record::of(&event, "boot1", at(number)).unwrap()).unwrap();
            seen += all_of(&mut follower).len();
        }
        assert_eq!(seen, 100);
        for path in [file(folder.path()), older_file(folder.path())] {
            assert!(fs::metadata(path).unwrap().len() <= 1000);
        }
    }

    #[test]
    fn a_boot_ends_where_the_next_begins() {
        let mut boots = Boots::default();
        let mut take = |seconds, stage| {
            let record = Record::of(&reached(1, stage, "x"), "boot1", at(seconds)).unwrap();
            boots.take(&record).unwrap().clone()
        };
        take(0, Stage::Discover);
        take(1, Stage::Bootstrap);
        // iPXE asks again.
        assert_eq!(take(2, Stage::Discover).steps.len(), 3);
        take(3, Stage::Script);
        assert_eq!(take(4, Stage::Kernel).steps.last().unwrap().seconds, 4.0);
        // Switched off and on.
        let again = take(30, Stage::Discover);
        assert_eq!((again.steps.len(), again.began), (1, at(30)));
        // And left there, until the next day.
        assert_eq!(take(90_000, Stage::Discover).began, at(90_000));
    }

    #[test]
    fn what_an_address_fetches_belongs_to_the_device_that_has_it() {
        let mut boots = Boots::default();
        let mut take = |seconds, mac, address: &str, stage| {
            let event = Event { mac, address: Some(address.parse().unwrap()), ..reached(1, stage, "x") };
            boots.take(&Record::of(&event, "boot1", at(seconds)).unwrap()).unwrap().clone()
        };
        let (first, second) = (Some(Mac([2, 0, 0, 0, 0, 1])), Some(Mac([2, 0, 0, 0, 0, 2])));
        take(0, first, "10.0.0.1", Stage::Script);
        let boot = take(1, None, "10.0.0.1", Stage::Kernel);
        assert_eq!((boot.device.as_str(), boot.steps.len()), ("02:00:00:00:00:01", 2));
        assert_eq!(take(2, None, "10.0.0.2", Stage::Kernel).device, "10.0.0.2");
        // Another has the address now; and after a while nobody knows who has it.
        take(3, second, "10.0.0.1", Stage::Script);
        assert_eq!(take(4, None, "10.0.0.1", Stage::Kernel).device, "02:00:00:00:00:02");
        assert_eq!(take(500, None, "10.0.0.1", Stage::San).device, "02:00:00:00:00:02");
        assert_eq!(take(1000, None, "10.0.0.1", Stage::San).device, "02:00:00:00:00:02");
        assert_eq!(take(4000, None, "10.0.0.1", Stage::Kernel).device, "10.0.0.1");
    }

    #[test]
    fn trouble_is_told_until_the_next_good_step() {
        let mut boots = Boots::default();
        let refused = Event {
            kind: EventKind::Refused { protocol: Protocol::Tftp, path: "x.efi", reason: "no such file" },
            ..reached(7, Stage::Ack, "")
        };
        boots.take(&Record::of(&reached(7, Stage::Ack, "10.0.0.7"), "boot1", at(0)).unwrap());
        let boot = boots.take(&Record::of(&refused, "boot1", at(1)).unwrap()).unwrap();
        assert_eq!(boot.trouble.as_deref(), Some("tftp refused: x.efi: no such file"));
        let boot =
            boots.take(&Record::of(&reached(7, Stage::Bootstrap, "y.efi"), "boot2", at(2)).unwrap()).unwrap();
        assert_eq!((boot.trouble.as_deref(), boot.steps[1].member.as_str()), (None, "boot2"));
        assert_eq!(boots.all().len(), 1);
    }
}
