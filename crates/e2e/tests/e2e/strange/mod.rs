//! A file system of strange manners: in memory, spoken to by the kernel over `/dev/fuse`, one thread, no library. What a
//! test wants to be missing or wrong is in [`Manners`].
//!
//! Layouts are those of Linux' `include/uapi/linux/fuse.h`, version 7.31.

pub(crate) mod foreign;
mod store;

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use goldwire_stdx::testing;
use rustix::io::Errno;

use self::store::Store;
use crate::disks::Random;

/// The largest write that the kernel may send.
const WRITE_MAX: u32 = 128 << 10;

/// What the file system does otherwise than Linux' own.
#[derive(Clone, Debug)]
pub(crate) struct Manners {
    /// Bytes of a file at most.
    pub(crate) file_max: u64,
    /// Bytes in all.
    pub(crate) capacity: u64,
    /// Bytes of a name at most.
    pub(crate) name_max: usize,
    /// Whether what was never written takes no space, and `SEEK_HOLE` tells of it.
    pub(crate) has_holes: bool,
    /// Whether modes, owners and times are kept; otherwise setting them is refused, and everything is 0777.
    pub(crate) keeps_modes: bool,
    /// The user that everything is shown to belong to, as a share does that maps root to nobody.
    pub(crate) squashes_to: Option<u32>,
    pub(crate) has_links: bool,
    /// Whether a rename can be told to replace nothing.
    pub(crate) knows_noreplace: bool,
    /// Whether a rename may lead from one folder into another.
    pub(crate) renames_across: bool,
    pub(crate) fsync: Result<(), Errno>,
    /// How long a write takes.
    pub(crate) write_takes: Duration,
    /// Whether holes can be punched.
    pub(crate) punches: bool,
    /// Whole pages that are said to be written and are not, are torn or are changed.
    pub(crate) lies: Option<Lies>,
}

/// Which writes a medium lies about, from a seed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lies {
    pub(crate) seed: u64,
    /// About one of so many.
    pub(crate) one_in: usize,
    /// And about so many at most.
    pub(crate) most: u64,
}

impl Manners {
    /// Those of a good file system.
    pub(crate) fn good() -> Self {
        Self {
            file_max: 1 << 43,
            capacity: 1 << 43,
            name_max: 255,
            has_holes: true,
            keeps_modes: true,
            squashes_to: None,
            has_links: true,
            knows_noreplace: true,
            renames_across: true,
            fsync: Ok(()),
            write_takes: Duration::ZERO,
            punches: false,
            lies: None,
        }
    }

    /// Those of FAT, but for the sizes.
    pub(crate) fn poor() -> Self {
        Self {
            has_holes: false,
            keeps_modes: false,
            has_links: false,
            knows_noreplace: false,
            ..Self::good()
        }
    }
}

/// A mounted one. Gone with it.
pub(crate) struct Strange {
    pub(crate) folder: PathBuf,
    store: Arc<Mutex<Store>>,
    thread: Option<JoinHandle<()>>,
}

impl Strange {
    /// `None`, visibly, where this user may not mount or there is no FUSE.
    pub(crate) fn mount(folder: PathBuf, manners: Manners) -> Option<Self> {
        if !testing::root() {
            return None;
        }
        let Some(device) = Self::open() else {
            testing::excuse(testing::Excuse::NoFuse);
            return None;
        };
        let store = Arc::new(Mutex::new(Store::new(manners)));
        Some(Self::serve(folder, device, store))
    }

    fn open() -> Option<File> {
        File::options().read(true).write(true).open("/dev/fuse").ok()
    }

    fn serve(folder: PathBuf, device: File, store: Arc<Mutex<Store>>) -> Self {
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("goldwire-e2e", &folder, "fuse.strange", flags, Some(options.as_c_str()))
            .unwrap();
        let served = Arc::clone(&store);
        let thread = goldwire_stdx::spawn("strange", move || serve(device, &served)).unwrap();
        Self { folder, store, thread: Some(thread) }
    }

    /// What it holds, durable or not.
    pub(crate) fn state(&self) -> Store {
        self.store.lock().unwrap().clone()
    }

    /// Mounts what another one held at a time, all of it durable.
    pub(crate) fn again(folder: PathBuf, mut state: Store) -> Self {
        state.keep_all();
        Self::serve(folder, Self::open().unwrap(), Arc::new(Mutex::new(state)))
    }

    /// Changes and syncs that it was asked for so far.
    pub(crate) fn changes(&self) -> u64 {
        self.store.lock().unwrap().changes()
    }

    /// After so many more changes and syncs nothing comes through any more.
    pub(crate) fn cut_after(&self, changes: u64) {
        self.store.lock().unwrap().cut_after(changes);
    }

    /// The power fails: of what was not synced some is there, some is not and some is torn, as `random` says. What comes back
    /// is mounted anew, so that the kernel remembers nothing.
    pub(crate) fn power_fails(self, random: &mut Random) -> Self {
        let (folder, mut state) = (self.folder.clone(), self.state());
        drop(self);
        state.lose_power(random);
        Self::again(folder, state)
    }

    /// Bytes that its files take.
    pub(crate) fn occupied(&self) -> u64 {
        self.store.lock().unwrap().occupied()
    }

    /// Writes that were lied about so far.
    pub(crate) fn lies(&self) -> u64 {
        self.store.lock().unwrap().lies
    }

    /// From now on.
    pub(crate) fn behave(&self, manners: Manners) {
        self.store.lock().unwrap().manners = manners;
    }
}

impl Drop for Strange {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut device: File, store: &Mutex<Store>) {
    let mut buffer = vec![0; (WRITE_MAX + 4096) as usize];
    loop {
        let length = match device.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => return,
            // An operation was interrupted before we saw it.
            Err(_) => continue,
        };
        let request = Request { bytes: &buffer[..length] };
        let slow = store.lock().unwrap().manners.write_takes;
        if request.opcode() == 16 && !slow.is_zero() {
            std::thread::sleep(slow);
        }
        let Some(answer) = store.lock().unwrap().answer(&request) else { continue };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (-errno.raw_os_error(), Vec::new()),
        };
        let mut bytes = Vec::with_capacity(16 + body.len());
        bytes.extend((16 + body.len() as u32).to_le_bytes());
        bytes.extend(error.to_le_bytes());
        bytes.extend(request.unique().to_le_bytes());
        bytes.extend(body);
        let _ = device.write(&bytes);
    }
}

/// `struct fuse_in_header` and what follows it.
struct Request<'a> {
    bytes: &'a [u8],
}

impl Request<'_> {
    fn opcode(&self) -> u32 {
        u32::from_le_bytes(*self.bytes[4..].first_chunk().unwrap())
    }

    fn unique(&self) -> u64 {
        u64::from_le_bytes(*self.bytes[8..].first_chunk().unwrap())
    }

    fn node(&self) -> u64 {
        u64::from_le_bytes(*self.bytes[16..].first_chunk().unwrap())
    }

    /// What stands `at` bytes behind the header.
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(*self.bytes[40 + at..].first_chunk().unwrap())
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(*self.bytes[40 + at..].first_chunk().unwrap())
    }

    /// The names behind `at`.
    fn names(&self, at: usize) -> Vec<String> {
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        self.bytes[40 + at..].split(|byte| *byte == 0).map(text).collect()
    }
}
