//! A disk that crashes: of what was not synced, any part may be there afterwards.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};

use crate::dhcp::lease::Volume;

/// Disks write whole sectors, in any order.
const SECTOR: usize = 512;

#[derive(Clone, Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    /// What the last sync left.
    durable: Vec<u8>,
}

/// What is on the disk, shared with the test that lets it crash.
#[derive(Clone, Debug, Default)]
pub(crate) struct CrashingVolume(Arc<Mutex<Disk>>);

#[derive(Debug, Default)]
struct Disk {
    next: usize,
    contents: BTreeMap<usize, Content>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// How many more operations succeed; then all fail.
    operations_left: Option<u64>,
}

impl CrashingVolume {
    /// Lets everything fail after so many more operations.
    pub(crate) fn fail_after(&self, operations: Option<u64>) {
        self.0.lock().unwrap().operations_left = operations;
    }

    /// What a crash now leaves. `random` gives numbers below its argument.
    pub(crate) fn crash(&self, mut random: impl FnMut(usize) -> usize) -> Self {
        let disk = self.0.lock().unwrap();
        let names = if random(2) == 0 { &disk.names } else { &disk.durable_names };
        let mut left = Disk { next: disk.next, ..Disk::default() };
        for (name, id) in names {
            let bytes = disk.contents[id].crash(&mut random);
            let durable = bytes.clone();
            left.contents.insert(*id, Content { bytes, durable });
            left.names.insert(name.clone(), *id);
        }
        left.durable_names = left.names.clone();
        Self(Arc::new(Mutex::new(left)))
    }

    /// A file's bytes, to look at or to damage.
    pub(crate) fn with_bytes<T>(&self, name: &str, change: impl FnOnce(&mut Vec<u8>) -> T) -> Option<T> {
        let mut disk = self.0.lock().unwrap();
        let id = *disk.names.get(name)?;
        let content = disk.contents.get_mut(&id)?;
        let result = change(&mut content.bytes);
        content.durable = content.bytes.clone();
        Some(result)
    }

    fn disk<T>(&self, act: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.0.lock().unwrap();
        if let Some(left) = &mut disk.operations_left {
            *left = left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        }
        act(&mut disk)
    }
}

impl Content {
    fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at <= self.bytes.len(), "a hole at {at}");
        let end = (at + bytes.len()).max(self.bytes.len());
        self.bytes.resize(end, 0);
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Any length between that of the last sync and the present one, and of every sector either what the last sync left or
    /// what was written since; zeros where there was nothing.
    fn crash(&self, mut random: impl FnMut(usize) -> usize) -> Vec<u8> {
        let (shorter, longer) =
            (self.bytes.len().min(self.durable.len()), self.bytes.len().max(self.durable.len()));
        let length = shorter + random(longer - shorter + 1);
        let sector = |content: &[u8], start: usize, end: usize| {
            let mut bytes = content.get(start..end.min(content.len())).unwrap_or_default().to_vec();
            bytes.resize(end - start, 0);
            bytes
        };
        let is_torn = random(2) == 0;
        let mut left = Vec::with_capacity(length);
        for start in (0..length).step_by(SECTOR) {
            let end = (start + SECTOR).min(length);
            let (old, new) = (sector(&self.durable, start, end), sector(&self.bytes, start, end));
            left.extend(if old != new && is_torn && random(3) == 0 { old } else { new });
        }
        left
    }
}

impl Disk {
    fn content(&mut self, name: &str) -> io::Result<&mut Content> {
        let id = self.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        self.contents.get_mut(id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Volume for CrashingVolume {
    fn read(&mut self, name: &str) -> io::Result<Option<Box<dyn Read + '_>>> {
        self.disk(|disk| {
            let bytes = disk.names.get(name).map(|id| disk.contents[id].bytes.clone());
            Ok(bytes.map(|bytes| Box::new(io::Cursor::new(bytes)) as Box<dyn Read>))
        })
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        self.disk(|disk| {
            disk.next += 1;
            disk.contents.insert(disk.next, Content::default());
            disk.names.insert(name.to_owned(), disk.next);
            Ok(())
        })
    }

    fn write_at(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        let at = at as usize;
        let done = self.disk(|disk| {
            disk.content(name)?.write(at, bytes);
            Ok(())
        });
        if done.is_err() {
            // A full disk takes a part.
            let mut disk = self.0.lock().unwrap();
            if let Ok(content) = disk.content(name) {
                content.write(at, &bytes[..bytes.len() / 3]);
            }
        }
        done
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.disk(|disk| {
            disk.content(name)?.bytes.truncate(length as usize);
            Ok(())
        })
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.disk(|disk| {
            let content = disk.content(name)?;
            content.durable.clone_from(&content.bytes);
            Ok(())
        })
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.disk(|disk| {
            let id = disk.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            disk.names.insert(to.to_owned(), id);
            Ok(())
        })
    }

    fn link(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.disk(|disk| {
            let id = *disk.names.get(from).ok_or(io::ErrorKind::NotFound)?;
            disk.names.insert(to.to_owned(), id);
            Ok(())
        })
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.disk(|disk| {
            disk.names.remove(name);
            Ok(())
        })
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.disk(|disk| {
            disk.durable_names = disk.names.clone();
            Ok(())
        })
    }
}
