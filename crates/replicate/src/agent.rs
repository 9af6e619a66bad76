//! The agent: one process on a host, spoken to over standard input and output. It can open an image and serve it,
//! reach target hosts from where it is, and receive a version. `docs/protocol.md` draws who talks to whom.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use goldwire_disk::{Folders, Format, OpenOptions};
use goldwire_store::{BuildOptions, Progress, TreeCache, Version};

use crate::dial::{Agents, Process, Program, dial};
use crate::failure::Result;
use crate::link::{Link, SILENCE_MAX, Throttle};
use crate::list;
use crate::server::{LocalServer, Pace, Server, SharedServer, serve_request};
use crate::target::{self, Input};
use crate::wire::{
    Command, Event, Failure, FailureKind, Frame, Hello, Kind, PREAMBLE, PROTOCOL_VERSION, SourceJob,
    SourceReady, TargetJob, WireError, WireFormat,
};

/// Exit code when the peer was lost; the work can be continued.
const EXIT_LOST: i32 = 75;

/// Runs an agent on standard input and output until the other side closes them.
///
/// `local` is the command that starts another agent on this machine, `programs` what is installed on hosts that
/// are reached from here; none is this very program, which must then be a `goldwire-agent`. Returns the exit code.
pub fn run(local: Vec<PathBuf>, programs: Option<Vec<Program>>, version: &str) -> i32 {
    let own_program = fs::read("/proc/self/exe").unwrap_or_default();
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        version: version.to_owned(),
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        program: *blake3::hash(&own_program).as_bytes(),
    };
    let programs = programs.unwrap_or_else(|| Program::from_elf(own_program).into_iter().collect());
    let agents = Agents { local, programs, echo_stderr: false };

    let mut stdout = io::stdout();
    let greeted = stdout
        .write_all(PREAMBLE)
        .and_then(|()| Frame::of(Kind::Hello, 0, 0, &hello).write(&mut stdout))
        .and_then(|()| stdout.flush());
    if greeted.is_err() {
        return EXIT_LOST;
    }
    let _ = rustix::pipe::fcntl_setpipe_size(io::stdin(), 1 << 20);
    let (inputs, frames) = unbounded();
    let throttle = Arc::new(Throttle::default());
    // Not `io::stdout()` behind its line buffer: frames are written whole.
    let (Ok(stdin), Ok(stdout)) = (duplicate(io::stdin()), duplicate(io::stdout())) else { return EXIT_LOST };
    let link = Link::start(stdin, stdout, Arc::clone(&throttle), move |frame| {
        let _ = inputs.send(frame);
    });
    watch_for_silence(link.clone(), Arc::clone(&throttle));
    let pace = Arc::new(Pace::default());
    pace.watch(Arc::clone(&link.stats));
    let agent = Agent {
        link,
        throttle,
        pace,
        agents,
        stop: Arc::default(),
        served: Arc::default(),
        direct: Arc::default(),
        target: None,
        threads: Vec::new(),
    };
    agent.run(&frames)
}

fn duplicate(stream: impl std::os::fd::AsFd) -> io::Result<fs::File> {
    stream.as_fd().try_clone_to_owned().map(fs::File::from)
}

/// A peer that says nothing for long, not even a ping, is gone, whatever the connection claims.
fn watch_for_silence(link: Link, throttle: Arc<Throttle>) {
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_secs(5));
            if link.silent_for() > SILENCE_MAX && !throttle.is_paused() {
                // Everything durable is journaled; whatever is in flight is lost with the peer anyway.
                std::process::exit(EXIT_LOST);
            }
        }
    });
}

struct Agent {
    link: Link,
    throttle: Arc<Throttle>,
    pace: Arc<Pace>,
    agents: Agents,
    stop: Arc<AtomicBool>,
    /// Serves the opened image.
    served: Arc<Mutex<Option<Arc<dyn Server>>>>,
    /// The targets reached from here, by stream.
    direct: Arc<Mutex<HashMap<u16, Direct>>>,
    /// Where a running reception takes its inputs.
    target: Option<Sender<Input>>,
    threads: Vec<JoinHandle<()>>,
}

struct Direct {
    link: Link,
    process: Process,
}

impl Agent {
    fn run(mut self, frames: &Receiver<Result<Option<Frame>, WireError>>) -> i32 {
        let mut code = 0;
        for frame in frames {
            match frame {
                Ok(Some(frame)) => self.take(frame),
                Ok(None) => break,
                Err(_) => {
                    code = EXIT_LOST;
                    break;
                }
            }
        }
        self.stop.store(true, Ordering::Relaxed);
        if let Some(target) = &self.target {
            let _ = target.send(Input::Ended(None));
        }
        for direct in lock(&self.direct).values() {
            direct.process.kill();
        }
        // A reception journals what it has before it ends.
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        code
    }

    fn take(&mut self, frame: Frame) {
        if frame.stream != 0 {
            if let Some(direct) = lock(&self.direct).get(&frame.stream) {
                direct.link.send(Frame { stream: 0, ..frame });
            }
            return;
        }
        match frame.kind {
            Kind::Command => match frame.message("command") {
                Ok(command) => self.command(command),
                Err(error) => self.event(&Event::Failed(error.into())),
            },
            Kind::Request => {
                let served = lock(&self.served).clone();
                match served {
                    Some(server) => serve_request(server.as_ref(), &self.link, &frame),
                    None => {
                        let refusal = Failure::new(FailureKind::Invalid, "no image is open");
                        self.link.send(Frame::of(Kind::Refusal, 0, frame.id, &refusal));
                    }
                }
            }
            Kind::Answer | Kind::Refusal => {
                if let Some(target) = &self.target {
                    let _ = target.send(Input::Frame(frame));
                }
            }
            Kind::Hello | Kind::Event | Kind::Ping => {}
        }
    }

    fn event(&self, event: &Event) {
        self.link.send(Frame::of(Kind::Event, 0, 0, event));
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Priority { nice, io } => {
                if let Err(why) = set_priority(nice, io) {
                    self.event(&Event::Notice(why));
                }
            }
            Command::List { path, pattern } => {
                let link = self.link.clone();
                self.threads.push(thread::spawn(move || {
                    let event = match list::list(Path::new(&path), pattern.as_deref()) {
                        Ok((is_folder, images)) => Event::Images { is_folder, images },
                        Err(failure) => Event::Failed(failure),
                    };
                    link.send(Frame::of(Kind::Event, 0, 0, &event));
                }));
            }
            Command::OpenSource(job) => self.open_source(job),
            Command::Dial { stream, ssh } => self.dial(stream, ssh),
            Command::Receive(job) => self.receive(*job),
            Command::Limit(rate) => self.throttle.set_rate(rate),
            Command::Pause => self.throttle.set_paused(true),
            Command::Resume => self.throttle.set_paused(false),
            Command::Stop => {
                self.stop.store(true, Ordering::Relaxed);
                for direct in lock(&self.direct).values() {
                    direct.link.send(Frame::of(Kind::Command, 0, 0, &Command::Stop));
                }
                if let Some(target) = &self.target {
                    let _ = target.send(Input::Stop);
                }
            }
        }
    }

    fn open_source(&mut self, job: SourceJob) {
        let link = self.link.clone();
        let stop = Arc::clone(&self.stop);
        let served = Arc::clone(&self.served);
        let pace = Arc::clone(&self.pace);
        self.threads.push(thread::spawn(move || {
            let event = match open_source(&job, &link, &stop, pace) {
                Ok((ready, server)) => {
                    *lock(&served) = Some(server);
                    Event::SourceReady(ready)
                }
                Err(failure) => Event::Failed(failure),
            };
            link.send(Frame::of(Kind::Event, 0, 0, &event));
        }));
    }

    /// Reaches a target from here. Its requests are answered here; everything else it says goes to the control
    /// side, and what the control side says to its stream goes to it.
    fn dial(&mut self, stream: u16, ssh: Vec<String>) {
        let agents = self.agents.clone();
        let link = self.link.clone();
        let throttle = Arc::clone(&self.throttle);
        let served = Arc::clone(&self.served);
        let all_direct = Arc::clone(&self.direct);
        let pace = Arc::clone(&self.pace);
        thread::spawn(move || {
            let host = ssh.last().cloned().unwrap_or_else(|| "this host".into());
            let fail =
                |failure: Failure| link.send(Frame::of(Kind::Event, stream, 0, &Event::Failed(failure)));
            let (command, destination) = match ssh.split_last() {
                Some((destination, command)) => {
                    (crate::dial::ssh_command(command, destination), host.clone())
                }
                None => (Vec::new(), host.clone()),
            };
            let dialed = match dial(&command, &destination, &agents, &|_| ()) {
                Ok(dialed) => dialed,
                Err(failure) => return fail(failure),
            };
            let (started, own_link) = unbounded::<Link>();
            let up = link.clone();
            let mut target_link = None;
            let ended = Arc::clone(&all_direct);
            let (target, process, hello) = dialed.into_link(throttle, move |frame| {
                // The link exists before its first frame can be read, but this closure is made before it.
                let target = target_link.get_or_insert_with(|| own_link.recv().ok());
                match frame {
                    Ok(Some(frame)) if frame.kind == Kind::Request => {
                        let server = lock(&served).clone();
                        if let (Some(server), Some(target)) = (server, target) {
                            serve_request(server.as_ref(), target, &frame);
                        }
                    }
                    Ok(Some(frame)) => up.send(Frame { stream, ..frame }),
                    end => {
                        let words = lock(&ended).remove(&stream).map(|direct| {
                            direct.process.kill();
                            direct.process.last_words()
                        });
                        let mut failure = lost_target(end.err().as_ref());
                        failure.chain.extend(words.filter(|words| !words.is_empty()));
                        up.send(Frame::of(Kind::Event, stream, 0, &Event::Failed(failure)));
                    }
                }
            });
            pace.watch(Arc::clone(&target.stats));
            lock(&all_direct).insert(stream, Direct { link: target.clone(), process });
            let _ = started.send(target);
            link.send(Frame::of(Kind::Event, stream, 0, &Event::Dialed(hello)));
        });
    }

    fn receive(&mut self, job: TargetJob) {
        let (inputs, queue) = unbounded();
        self.target = Some(inputs.clone());
        let link = self.link.clone();
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || {
            let tell = |event: Event| link.send(Frame::of(Kind::Event, 0, 0, &event));
            match target::receive(&job, link.clone(), &queue, &inputs, &tell, &stop) {
                Ok(outcome) => tell(Event::Done(outcome)),
                Err(failure) => tell(Event::Failed(failure)),
            }
        }));
    }
}

/// What is said when a target's connection ends before its work.
pub(crate) fn lost_target(error: Option<&WireError>) -> Failure {
    let mut failure = Failure::new(FailureKind::Disconnected, "the connection to the target was lost");
    if let Some(error) = error {
        failure.chain.push(error.to_string());
    }
    failure.hint("run the same command again: it continues where this one stopped")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens the image, gets its tree and starts serving it.
fn open_source(
    job: &SourceJob,
    link: &Link,
    stop: &AtomicBool,
    pace: Arc<Pace>,
) -> Result<(SourceReady, Arc<dyn Server>)> {
    let path =
        fs::canonicalize(&job.path).map_err(|error| Failure::io(format!("find {}", job.path), &error))?;
    let mut folders: Vec<PathBuf> = path.parent().map(Path::to_owned).into_iter().collect();
    folders.extend(job.parent_folders.iter().map(PathBuf::from));
    let options = OpenOptions { gate: Arc::new(Folders(folders)), ..OpenOptions::default() };
    let opened = goldwire_disk::open(&path, &options)?;
    let image = &opened;
    let progress = Progress::default();
    let cached = thread::scope(|scope| {
        let threads = job.threads.and_then(|threads| NonZeroUsize::new(threads.into()));
        let options = BuildOptions { threads, stop, progress: &progress };
        let worker = scope.spawn(move || TreeCache::of(image, &options));
        let mut naps = 0;
        while !worker.is_finished() {
            thread::sleep(Duration::from_millis(2));
            naps += 1;
            if naps % 100 == 0 {
                let done = progress.bytes_done.load(Ordering::Relaxed);
                let total = progress.bytes_total.load(Ordering::Relaxed);
                link.send(Frame::of(Kind::Event, 0, 0, &Event::Hashing { done, total }));
            }
        }
        worker.join().unwrap_or(Err(goldwire_store::Error::Stopped))
    })?;
    let data =
        fs::metadata(&path).map_err(|error| Failure::io(format!("look at {}", path.display()), &error))?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let ready = SourceReady {
        version: kept_version(&path, &cached).unwrap_or_else(|| new_version(&name, image, &cached)),
        format: wire_format(image.info.format),
        name,
        mode: std::os::unix::fs::MetadataExt::mode(&data) & 0o777,
        tree_was_cached: cached.was_cached,
    };
    let local = LocalServer::start(opened, cached.tree, job.level, pace);
    Ok((ready, Arc::new(SharedServer::new(Arc::new(local), job.keep_bytes))))
}

/// The descriptor beside the image, if it describes the content that is there.
fn kept_version(path: &Path, cached: &TreeCache) -> Option<Vec<u8>> {
    let bytes = fs::read(target::version_path(path)?).ok()?;
    (Version::decode(&bytes).ok()?.root == cached.root).then_some(bytes)
}

fn new_version(name: &str, image: &goldwire_disk::Image, cached: &TreeCache) -> Vec<u8> {
    let modified_ns = image.chain.first().map_or(0, |link| link.identity.modified_ns);
    let version = Version {
        root: cached.root,
        size: image.device.size(),
        chunks_used: cached.chunks_used,
        created: modified_ns.div_euclid(1_000_000_000) as i64,
        parent: None,
        name: name.chars().take(200).collect(),
        note: String::new(),
        signer: None,
    };
    // Name and note are within their limits.
    version.encode(None).unwrap_or_default()
}

fn wire_format(format: Format) -> WireFormat {
    match format {
        Format::Raw => WireFormat::Raw,
        Format::VhdFixed => WireFormat::VhdFixed,
        Format::VhdDynamic | Format::VhdDifferencing => WireFormat::VhdDynamic,
        Format::Qcow2 => WireFormat::Qcow2,
    }
}

/// Makes this thread, and with it every thread it starts from now on, lighter on its host.
fn set_priority(nice: Option<u8>, io: Option<(u8, u8)>) -> Result<(), String> {
    if let Some(nice) = nice {
        rustix::process::setpriority_process(None, nice.min(19).into())
            .map_err(|error| format!("the nice value could not be set: {error}"))?;
    }
    if let Some((class, level)) = io {
        // The system call has no safe wrapper; util-linux is on every host that runs disks.
        let done = std::process::Command::new("ionice")
            .args(["-c", &class.to_string()])
            .args((class == 2).then(|| ["-n".to_owned(), level.to_string()]).into_iter().flatten())
            .args(["-p", &std::process::id().to_string()])
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .output();
        match done {
            Ok(output) if output.status.success() => {}
            Ok(output) => return Err(format!("ionice: {}", String::from_utf8_lossy(&output.stderr).trim())),
            Err(error) => return Err(format!("ionice could not be run: {error}")),
        }
    }
    Ok(())
}
