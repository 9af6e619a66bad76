//! Where the log lies: a folder of few files, behind a trait so that tests can let it crash.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// A folder, as the log uses it. What is written is safe from a crash after [`Volume::sync`]; a name that came or went,
/// after [`Volume::sync_names`].
pub(crate) trait Volume: Send {
    /// Opens a file for reading from its start; none if there is none.
    fn read(&mut self, name: &str) -> io::Result<Option<Box<dyn Read + '_>>>;
    /// Makes an empty file; one of this name is emptied.
    fn create(&mut self, name: &str) -> io::Result<()>;
    /// Writes at a place of a file, at most at its end; what stands there is replaced, and the file grows as needed.
    fn write_at(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts a file to a length.
    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()>;
    /// Waits until a file's content is on the disk.
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// Gives a file another name, taking it from whatever had it.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Gives a file one more name, taking it from whatever had it.
    fn link(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file, if there is one.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Waits until the names are on the disk.
    fn sync_names(&mut self) -> io::Result<()>;
}

/// A folder of the file system. One server at a time: it holds a lock.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    handle: File,
    open: HashMap<String, File>,
}

impl Folder {
    /// Opens the folder, makes it if it is missing, and locks it.
    ///
    /// # Errors
    /// `WouldBlock` when another server has it; else what the file system answers.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let handle = File::open(path)?;
        rustix::fs::flock(&handle, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { path: path.to_owned(), handle, open: HashMap::new() })
    }

    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        if !self.open.contains_key(name) {
            let file = OpenOptions::new().write(true).open(self.path.join(name))?;
            self.open.insert(name.to_owned(), file);
        }
        self.open.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Volume for Folder {
    fn read(&mut self, name: &str) -> io::Result<Option<Box<dyn Read + '_>>> {
        match File::open(self.path.join(name)) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        self.open.remove(name);
        // Leases tell who was where and when: not for everybody's eyes.
        let path = self.path.join(name);
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(path)?;
        self.open.insert(name.to_owned(), file);
        Ok(())
    }

    fn write_at(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all_at(bytes, at)
    }

    fn truncate(&mut self, name: &str, length: u64) -> io::Result<()> {
        self.file(name)?.set_len(length)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))?;
        self.open.remove(to);
        if let Some(file) = self.open.remove(from) {
            self.open.insert(to.to_owned(), file);
        }
        Ok(())
    }

    fn link(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.remove(to)?;
        fs::hard_link(self.path.join(from), self.path.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.open.remove(name);
        match fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.handle.sync_all()
    }
}
