//! What a test needs beside the code: judges (foreign programs and files), and what only some machines allow.
//!
//! A test that judges nothing passes for the wrong reason. So an absent judge is a *failure* wherever set-up promised it
//! (`GOLDWIRE_REQUIRE=all`, which `make test` sets), and a visible skip elsewhere. What may be skipped everywhere is in
//! one list, [`Excuse`]. Skips are written to the file that `GOLDWIRE_SKIPS` names, so that the last line of a run can
//! say them.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Why a test may do nothing, also where every judge is required. Each is a fact of the machine or the user that set-up
/// cannot change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excuse {
    /// Giving files away, mounting, dropping privileges: only root can.
    NotRoot,
    /// Root reads every file, so that one that cannot be read cannot be had.
    Root,
    /// Network namespaces cannot be made (a container without `CAP_SYS_ADMIN`, an ordinary user).
    NoNamespaces,
    /// The kernel gives no virtual network cards, on which guests are plugged in (a container).
    NoTun,
    /// The kernel gives no loop device (a container).
    NoLoopDevices,
    /// There is no `/dev/fuse` (a container).
    NoFuse,
    /// There is no IPv6 here.
    NoIpv6,
    /// The file system of the temporary folder does not tell about holes.
    NoHoles,
    /// The file system of the temporary folder cannot tell whether a read would wait (`RWF_NOWAIT`).
    NoReadAtOnce,
    /// The file system of the temporary folder keeps every page (tmpfs).
    NoMedium,
    /// The file system of the temporary folder keeps no extended attributes or access lists.
    NoAttributes,
    /// The judge's machine code is for another processor.
    OtherProcessor,
    /// Nobody named a chain of VHDs that `vhd-util` made: Debian has no such program, and the files are large.
    NoForeignChain,
}

impl Excuse {
    fn reason(self) -> &'static str {
        match self {
            Self::NotRoot => "not root",
            Self::Root => "root reads every file",
            Self::NoNamespaces => "no network namespaces",
            Self::NoTun => "no /dev/net/tun",
            Self::NoLoopDevices => "no loop devices",
            Self::NoFuse => "no /dev/fuse",
            Self::NoIpv6 => "no IPv6",
            Self::NoHoles => "the temporary folder's file system does not tell about holes",
            Self::NoReadAtOnce => "the temporary folder's file system cannot tell whether a read would wait",
            Self::NoMedium => "the temporary folder's file system keeps every page (tmpfs)",
            Self::NoAttributes => {
                "the temporary folder's file system keeps no extended attributes or access lists"
            }
            Self::OtherProcessor => "another processor",
            Self::NoForeignChain => {
                "no chain of vhd-util's at hand (GOLDWIRE_VHD_CHAIN=FOLDER/CHILD.vhd:SHA256)"
            }
        }
    }
}

/// Says that the running test does nothing, or not all, for this reason.
pub fn excuse(excuse: Excuse) {
    skip(excuse.reason());
}

/// Whether files below `folder` tell at once what is in memory; says that the rest of the test is skipped if not.
pub fn tells_at_once(folder: &Path) -> bool {
    let path = folder.join("tells-at-once");
    let made = std::fs::write(&path, [7; 4096]).and_then(|()| std::fs::File::open(&path));
    let _ = std::fs::remove_file(&path);
    let is_told = made.is_ok_and(|file| crate::read_at_once(&file, &mut [0; 4096], 0));
    if !is_told {
        excuse(Excuse::NoReadAtOnce);
    }
    is_told
}

/// Whether the user is root; says that the test is skipped if not.
pub fn root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        excuse(Excuse::NotRoot);
    }
    is_root
}

/// What set-up installs. A judge that it does not name would be absent on every new machine.
const SETUP: &str = include_str!("../../../tools/setup");

/// A line of set-up's lists begins with what is looked for.
fn assert_promised(judge: &str) {
    let is_promised = SETUP.lines().any(|line| line.split(' ').next() == Some(judge));
    assert!(is_promised, "tools/setup does not name the judge {judge}: add it there, with its package");
}

/// Where the program `name` is, also in the folders that only root has in its path. `None`, with a word, if it is absent
/// and need not be here.
///
/// # Panics
/// If it is absent and every judge is required, and if set-up does not name it.
pub fn program(name: &str) -> Option<PathBuf> {
    assert_promised(name);
    let found = find(name);
    if found.is_none() {
        absent(name);
    }
    found
}

/// Whether all these programs are here; as [`program`].
///
/// # Panics
/// As [`program`].
pub fn programs(names: &[&str]) -> bool {
    names.iter().all(|name| program(name).is_some())
}

/// Whether the file or folder `path` of a package is here; as [`program`].
///
/// # Panics
/// As [`program`].
pub fn file(path: impl AsRef<Path>) -> bool {
    let path = path.as_ref();
    assert_promised(&path.display().to_string());
    if !path.exists() {
        absent(&path.display().to_string());
    }
    path.exists()
}

/// The first of these files that is here; as [`program`]. Releases of one system keep the same file at different places.
///
/// # Panics
/// As [`program`].
pub fn any_file(paths: &[&str]) -> Option<PathBuf> {
    let judge = format!("any:{}", paths.join(","));
    assert_promised(&judge);
    let found = paths.iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        absent(&judge);
    }
    found
}

/// UEFI firmware for QEMU on x86-64: its code, and the variables of a new machine.
///
/// # Panics
/// As [`program`].
pub fn uefi() -> Option<(PathBuf, PathBuf)> {
    let code = any_file(&["/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_CODE_4M.fd"])?;
    let variables = any_file(&["/usr/share/OVMF/OVMF_VARS.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"])?;
    Some((code, variables))
}

/// Says that a judge is absent that was looked for in another way, such as a module of a program.
///
/// # Panics
/// If every judge is required.
pub fn absent(judge: &str) {
    let is_required = std::env::var_os("GOLDWIRE_REQUIRE").is_some_and(|required| required == "all");
    assert!(
        !is_required,
        "the judge {judge} is absent: `make setup` installs what tests need, or says why it cannot"
    );
    skip(&format!("{judge} is absent"));
}

/// Where the program `name` is, without a word if it is nowhere: for what is no judge.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// How many of `full` generated cases this run tries: all of them, or one of `GOLDWIRE_THIN` (for while one works), but
/// one at least. Proptest's own `PROPTEST_CASES` replaces every count instead, also those that a test chose because its
/// cases are costly.
pub fn cases(full: u32) -> u32 {
    let thin = std::env::var("GOLDWIRE_THIN").ok().and_then(|thin| thin.parse().ok()).unwrap_or(1);
    (full / u32::max(thin, 1)).max(1)
}

/// Those of a list of costly cases that this run tries: all, or every so many-th as [`cases`] has it.
pub fn some<T>(all: &[T]) -> impl Iterator<Item = &T> {
    let full = all.len().max(1);
    all.iter().step_by(full.div_ceil(cases(full as u32) as usize))
}

/// Longer than anything takes on a busy machine, and shorter than anybody's patience.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until something holds that a thread, a program or a machine has to bring about. It is the one way to wait for
/// what sends no word of its own: a fixed time is too short on a busy machine and too long on every other.
///
/// # Panics
/// If it never holds.
#[track_caller]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn skip(why: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED: {test}: {why}");
    if let Some(path) = std::env::var_os("GOLDWIRE_SKIPS") {
        let record = OpenOptions::new().append(true).create(true).open(path);
        let _ = record.and_then(|mut file| file.write_all(format!("{why}\t{test}\n").as_bytes()));
    }
}
