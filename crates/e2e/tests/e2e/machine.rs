//! What the tests ask of and do to the machine below them: processes, programs, mounts.

use std::collections::HashMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use goldwire_stdx::testing;
use rustix::process::{Pid, Signal, kill_process};

/// Runs a command of the machine; whether it succeeded.
pub(crate) fn succeeds(program: &str, arguments: &[&str]) -> bool {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a command of the machine that must succeed; its standard output.
#[track_caller]
pub(crate) fn must<S: AsRef<std::ffi::OsStr>>(
    program: &str,
    arguments: impl IntoIterator<Item = S>,
) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Puts a program in its place, by another process: nobody can run a file that somebody writes, and what this process has
/// open for writing its children have for a moment, too. One that runs in that place goes on with what it was.
pub(crate) fn put_program(path: &Path, bytes: &[u8]) {
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped());
    let mut install = install.spawn().unwrap();
    install.stdin.take().unwrap().write_all(bytes).unwrap();
    assert!(install.wait().unwrap().success(), "{}", path.display());
}

pub(crate) fn kill(pid: u32) {
    // An error means that it is gone already.
    let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL);
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid as i32).unwrap(), signal);
}

/// The processes there are, with their parents. Zombies are not among them: they do nothing any more.
fn processes() -> HashMap<u32, u32> {
    let numbers = fs::read_dir("/proc").unwrap().flatten();
    numbers
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // The name in parentheses may hold anything; what follows the last one is plain.
            let (_, rest) = stat.rsplit_once(") ")?;
            let mut fields = rest.split(' ');
            let is_zombie = fields.next()? == "Z";
            let parent = fields.next()?.parse().ok()?;
            (!is_zombie).then_some((pid, parent))
        })
        .collect()
}

/// Children, grandchildren and so on, nearest first.
pub(crate) fn descendants(pid: u32) -> Vec<u32> {
    let all = processes();
    let mut found = vec![pid];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(all.iter().filter(|entry| *entry.1 == parent).map(|entry| *entry.0));
        at += 1;
    }
    found.remove(0);
    found
}

pub(crate) fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// The agents among the descendants of `pid`, nearest first: with a local source that is the source's agent, then
/// those of the local targets.
pub(crate) fn local_agents(pid: u32) -> Vec<u32> {
    let is_agent = |pid: &u32| arguments(*pid).get(1..3).is_some_and(|words| words == ["agent", "--stdio"]);
    descendants(pid).into_iter().filter(is_agent).collect()
}

/// Running programs whose file lies below `folder`: the agents that were installed there.
pub(crate) fn running_from(folder: &Path) -> Vec<u32> {
    let is_below = |pid: &u32| {
        fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|program| program.starts_with(folder))
    };
    processes().into_keys().filter(is_below).collect()
}

/// Running processes whose working folder lies below `folder`: all that a scene started, but for what `sshd` did.
pub(crate) fn living_in(folder: &Path) -> Vec<u32> {
    let is_below = |pid: &u32| {
        fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|working| working.starts_with(folder))
    };
    processes().into_keys().filter(is_below).collect()
}

/// Bytes that a file occupies.
pub(crate) fn occupied(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// What the target folders of two moments must agree in: every file below, with its content.
pub(crate) fn listing(folder: &Path) -> Vec<(PathBuf, blake3::Hash)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                found.push((entry.path(), digest(&entry.path())));
            }
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The digest of a file's bytes.
#[track_caller]
pub(crate) fn digest(path: &Path) -> blake3::Hash {
    blake3::hash(&fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// The names in a folder that a scan for disks sees.
pub(crate) fn visible(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    names
}

/// A small file system in memory. Gone with it.
pub(crate) struct Tmpfs {
    pub(crate) folder: PathBuf,
}

impl Tmpfs {
    /// `None`, visibly, if this user may not mount.
    pub(crate) fn mount(folder: PathBuf, mib: u64) -> Option<Self> {
        let size = format!("size={mib}m");
        let place = folder.to_str().unwrap();
        if !testing::root() {
            return None;
        }
        must("mount", ["-t", "tmpfs", "-o", &size, "goldwire-e2e", place]);
        Some(Self { folder })
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        succeeds("umount", &["-l", self.folder.to_str().unwrap()]);
    }
}
