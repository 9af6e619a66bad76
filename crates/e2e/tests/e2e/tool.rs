//! Running the built programs: found or built once per test run, every child with a time limit, JSON events as
//! they come.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::machine;

/// Longer than any child takes on a busy machine, and shorter than anybody's patience.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The programs under test.
pub(crate) struct Programs {
    pub(crate) goldwire: PathBuf,
    pub(crate) agent: PathBuf,
}

/// The programs, built from the sources as they are now.
pub(crate) fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(prepare_programs)
}

/// Builds the programs and copies them, once per test run.
///
/// `CARGO_BIN_EXE_…` exists only for a package's own binaries. A copy, so that a build that somebody starts while
/// the tests run does not change what they test half-way.
fn prepare_programs() -> Programs {
    // Each test of nextest is a process of its own; its run id tells them that they belong together.
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| format!("pid-{}", std::process::id()));
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("e2e-programs");
    fs::create_dir_all(&all).unwrap();
    let lock = File::create(all.join("lock")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    let folder = all.join(run);
    let programs = Programs { goldwire: folder.join("goldwire"), agent: folder.join("goldwire-agent") };
    if programs.agent.exists() {
        return programs;
    }
    remove_old_copies(&all);
    let built = build();
    fs::create_dir_all(&folder).unwrap();
    fs::copy(built.join("goldwire"), &programs.goldwire).unwrap();
    fs::copy(built.join("goldwire-agent"), &programs.agent).unwrap();
    programs
}

fn remove_old_copies(all: &Path) {
    for entry in fs::read_dir(all).unwrap().flatten() {
        let age = entry.metadata().ok().and_then(|data| data.modified().ok()?.elapsed().ok());
        if entry.path().is_dir() && age.is_some_and(|age| age > Duration::from_secs(3600)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Builds into the folder and profile that this test binary came from; returns that folder.
fn build() -> PathBuf {
    let folder = build_folder();
    run_cargo(&folder, &["-p", "goldwire", "-p", "goldwire-agent"]);
    folder
}

/// A program that only tests need, built from the examples of a crate.
pub(crate) fn build_example(package: &str, name: &str) -> PathBuf {
    let folder = build_folder();
    run_cargo(&folder, &["-p", package, "--example", name]);
    folder.join("examples").join(name)
}

fn run_cargo(folder: &Path, what: &[&str]) {
    let profile = folder.file_name().unwrap().to_str().unwrap();
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--locked"])
        .args(what)
        .args(["--profile", if profile == "debug" { "dev" } else { profile }])
        .arg("--target-dir")
        .arg(folder.parent().unwrap())
        .current_dir(workspace())
        .output()
        .expect("run cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The folder of the profile that this test binary came from.
fn build_folder() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().and_then(Path::parent).expect("target/PROFILE/deps/e2e").to_owned()
}

/// The root of the sources.
pub(crate) fn workspace() -> PathBuf {
    fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")).unwrap()
}

/// A folder for one test, with its own home and caches. Gone with it.
pub(crate) struct Scene {
    folder: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::Builder::new().prefix("goldwire-e2e-").tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The path of a folder, made if it is not there.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A run of `goldwire` from this scene's folder.
    pub(crate) fn goldwire<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Run {
        let mut command = Command::new(&programs().goldwire);
        command.args(arguments);
        self.run(command)
    }

    /// A run of `goldwire sync … --json`.
    pub(crate) fn sync<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Run {
        let mut run = self.goldwire(["sync", "--json"]);
        run.command.args(arguments);
        run
    }

    /// A run of any command in this scene's surroundings.
    pub(crate) fn run(&self, mut command: Command) -> Run {
        command
            .current_dir(self.folder.path())
            .env("HOME", self.folder("home"))
            .env("XDG_CACHE_HOME", self.folder("home/cache"))
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Run { command }
    }
}

/// A command about to run.
pub(crate) struct Run {
    pub(crate) command: Command,
}

impl Run {
    pub(crate) fn arguments<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn start(mut self) -> Running {
        let mut child = self.command.spawn().unwrap_or_else(|error| panic!("{:?}: {error}", self.command));
        let (line_in, lines) = mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        goldwire_stdx::spawn("tool", move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = line_in.send(line);
            }
        })
        .unwrap();
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let mut pipe = child.stderr.take().unwrap();
        let kept = Arc::clone(&stderr);
        let listener = goldwire_stdx::spawn("tool", move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                kept.lock().unwrap().extend_from_slice(&buffer[..count]);
            }
        })
        .unwrap();
        Running {
            shown: format!("{:?}", self.command),
            child,
            lines,
            seen: Vec::new(),
            stderr,
            listener: Some(listener),
            deadline: Instant::now() + TIMEOUT,
            is_over: false,
        }
    }

    /// Runs to the end.
    pub(crate) fn finish(self) -> Finished {
        self.start().finish()
    }

    /// Runs to the end, which must be this exit code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Finished {
        self.finish().expect(code)
    }
}

/// A running command.
pub(crate) struct Running {
    shown: String,
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    stderr: Arc<Mutex<Vec<u8>>>,
    listener: Option<thread::JoinHandle<()>>,
    deadline: Instant,
    is_over: bool,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id() as i32).unwrap(), signal).unwrap();
    }

    /// The next event that fits; fails the test if the command ends without one.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, fits: impl Fn(&Value) -> bool) -> Value {
        self.wait_or_end(self.deadline.saturating_duration_since(Instant::now()), fits)
            .unwrap_or_else(|| panic!("the event never came\n{}", self.story()))
    }

    /// The next event that fits; none when the command ended first, or `patience` did.
    pub(crate) fn wait_or_end(&mut self, patience: Duration, fits: impl Fn(&Value) -> bool) -> Option<Value> {
        let deadline = Instant::now() + patience;
        loop {
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
            self.seen.push(line);
            let event = self.seen.last().and_then(|line| serde_json::from_str(line).ok());
            if let Some(event) = event.filter(&fits) {
                return Some(event);
            }
        }
    }

    /// Waits until it has said this on standard error.
    #[track_caller]
    pub(crate) fn wait_to_say(&self, text: &str) {
        goldwire_stdx::testing::until(text, || {
            String::from_utf8_lossy(&self.stderr.lock().unwrap()).contains(text)
        });
    }

    /// Waits for the end.
    pub(crate) fn finish(mut self) -> Finished {
        let status = self.wait();
        self.seen.extend(self.lines.iter());
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        Finished {
            status,
            shown: std::mem::take(&mut self.shown),
            stdout: self.seen.iter().map(|line| format!("{line}\n")).collect(),
            stderr: String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned(),
        }
    }

    fn wait(&mut self) -> ExitStatus {
        // There is no wait with a time limit in std; the poll is short beside anything that a child does.
        while Instant::now() < self.deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.is_over = true;
                return status;
            }
            thread::sleep(Duration::from_millis(3));
        }
        panic!("no end within {TIMEOUT:?}\n{}", self.story())
    }

    fn story(&self) -> String {
        let stderr = String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned();
        format!("{}\n--- stdout\n{}\n--- stderr\n{stderr}", self.shown, self.seen.join("\n"))
    }
}

impl Drop for Running {
    /// A test that failed leaves nothing running.
    fn drop(&mut self) {
        if !self.is_over {
            let all = machine::descendants(self.child.id());
            let _ = self.child.kill();
            all.into_iter().for_each(machine::kill);
            let _ = self.child.wait();
        }
    }
}

/// What a command said.
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    shown: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// The events; every line of standard output must be one.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}\n{self}")))
            .collect()
    }

    /// The events of one kind.
    #[track_caller]
    pub(crate) fn events_of(&self, kind: &str) -> Vec<Value> {
        self.events().into_iter().filter(|event| event["event"] == kind).collect()
    }

    /// The one event of this kind.
    #[track_caller]
    pub(crate) fn event(&self, kind: &str) -> Value {
        let mut events = self.events_of(kind);
        assert_eq!(events.len(), 1, "{kind}\n{self}");
        events.remove(0)
    }

    /// The one event of this kind about a target.
    #[track_caller]
    pub(crate) fn event_at(&self, kind: &str, target: &str) -> Value {
        let mut events = self.events_of(kind);
        events.retain(|event| event["target"] == target);
        assert_eq!(events.len(), 1, "{kind} at {target}\n{self}");
        events.remove(0)
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { status, shown, stdout, stderr } = self;
        write!(f, "{shown}\n{status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}
