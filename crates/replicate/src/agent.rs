//! The agent: one process on a host, spoken to over standard input and output. It can open an image and serve it,
//! reach target hosts from where it is, and receive a version. `docs/protocol.md` draws who talks to whom.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use goldwire_stdx::{Stop, spawn};

use crate::connection::{Connection, SILENCE_MAX, Throttle, lost};
use crate::dial::{Process, dial, ssh_command};
use crate::failure::Result;
use crate::install::{Agents, Program};
use crate::list;
use crate::receive::{self, Input};
use crate::source::{Pace, Server, Serving, open_source};
use crate::wire::{
    Command, Event, Failure, FailureKind, Frame, Hello, Kind, PREAMBLE, PROTOCOL_VERSION, SourceJob,
    TargetJob, WireError,
};

/// Exit code when the peer was lost; the work can be continued.
const EXIT_LOST: i32 = 75;

/// How often the agent looks whether its peer is still there.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Frames that wait for the agent; more wait in the pipe, and with them whoever sends.
const FRAMES_MAX: usize = 64;

/// Targets that are reached from here: as many as a sync has at most.
const DIRECT_MAX: usize = 1024;

/// Threads that work for commands: one sync needs two at most.
const THREADS_MAX: usize = 8;

/// Bytes that a target has said and the control side has not read; then it is not listened to.
const FORWARD_MAX: u64 = 1 << 20;

/// How long work may take to end after the peer is gone. Everything durable is journaled by then, and a disk that does
/// not answer must not keep the process.
const END_GRACE: Duration = Duration::from_secs(60);

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
    // Not `io::stdout()` behind its line buffer: frames are written whole.
    let (Ok(stdin), Ok(stdout)) = (duplicate(io::stdin()), duplicate(io::stdout())) else { return EXIT_LOST };
    work(stdin, stdout, agents)
}

/// Works for whoever is at the other end until that closes. The exit code.
fn work(reader: impl Read + Send + 'static, writer: impl Write + Send + 'static, agents: Agents) -> i32 {
    let (inputs, frames) = bounded(FRAMES_MAX);
    let throttle = Arc::new(Throttle::default());
    let started = Connection::start(reader, writer, Arc::clone(&throttle), move |frame| {
        let _ = inputs.send(frame);
    });
    let Ok(connection) = started else { return EXIT_LOST };
    let pace = Arc::new(Pace::default());
    pace.watch(Arc::clone(&connection.stats));
    let agent = Agent {
        connection,
        throttle,
        pace,
        agents,
        stop: Stop::new(),
        served: Arc::default(),
        serving: None,
        direct: Arc::default(),
        dialing: Arc::default(),
        target: None,
        threads: Vec::new(),
    };
    agent.run(&frames)
}

fn duplicate(stream: impl std::os::fd::AsFd) -> io::Result<fs::File> {
    stream.as_fd().try_clone_to_owned().map(fs::File::from)
}

struct Agent {
    connection: Connection,
    throttle: Arc<Throttle>,
    pace: Arc<Pace>,
    agents: Agents,
    stop: Stop,
    /// Serves the opened image.
    served: Arc<Mutex<Option<Arc<dyn Server>>>>,
    /// Serves it to the control side.
    serving: Option<Serving>,
    /// The targets reached from here, by stream.
    direct: Arc<Mutex<HashMap<u16, Direct>>>,
    /// How many are being reached.
    dialing: Arc<AtomicUsize>,
    /// Where a running reception takes its inputs.
    target: Option<Sender<Input>>,
    threads: Vec<JoinHandle<()>>,
}

struct Direct {
    connection: Connection,
    process: Process,
}

impl Agent {
    fn run(mut self, frames: &Receiver<Result<Option<Frame>, WireError>>) -> i32 {
        let mut code = 0;
        loop {
            match frames.recv_timeout(LOOK_EVERY) {
                // Whoever talks on and reads nothing is lost, too.
                Ok(Ok(Some(_))) if self.connection.is_lost() => {
                    code = EXIT_LOST;
                    break;
                }
                Ok(Ok(Some(frame))) => {
                    if let Err(failure) = self.take(frame) {
                        self.event(&Event::Failed(failure));
                        code = EXIT_LOST;
                        break;
                    }
                }
                Ok(Ok(None)) => break,
                // A peer that says nothing for long, not even a ping, is gone, whatever the connection claims.
                Err(RecvTimeoutError::Timeout)
                    if !self.connection.is_lost()
                        && (self.connection.silent_for() <= SILENCE_MAX || self.throttle.is_paused()) => {}
                Ok(Err(_)) | Err(_) => {
                    code = EXIT_LOST;
                    break;
                }
            }
        }
        self.end();
        code
    }

    /// Lets everything end that runs: a reception journals what it has.
    fn end(&mut self) {
        self.stop.request();
        if let Some(target) = &self.target {
            let _ = target.send(Input::Ended(None));
        }
        for direct in lock(&self.direct).values() {
            direct.process.kill();
        }
        let began = Instant::now();
        while self.threads.iter().any(|thread| !thread.is_finished()) && began.elapsed() < END_GRACE {
            std::thread::sleep(Duration::from_millis(20));
        }
        for thread in self.threads.drain(..).filter(JoinHandle::is_finished) {
            let _ = thread.join();
        }
    }

    /// Starts a thread that the end waits for; the control side hears if there can be none.
    fn start(&mut self, name: &str, work: impl FnOnce() + Send + 'static) {
        self.threads.retain(|thread| !thread.is_finished());
        if self.threads.len() >= THREADS_MAX {
            return self.event(&Event::Failed(too_many("things at once")));
        }
        match spawn(name, work) {
            Ok(thread) => self.threads.push(thread),
            Err(error) => self.event(&Event::Failed(Failure::io("start a thread", &error))),
        }
    }

    /// # Errors
    /// The peer asks for what no honest one does; nothing more is taken from it.
    fn take(&mut self, frame: Frame) -> Result<()> {
        if frame.stream != 0 {
            if let Some(direct) = lock(&self.direct).get(&frame.stream) {
                direct.connection.send(Frame { stream: 0, ..frame });
            }
            return Ok(());
        }
        match frame.kind {
            Kind::Command => match frame.message("command") {
                Ok(command) => self.command(command),
                Err(error) => self.event(&Event::Failed(error.into())),
            },
            Kind::Request => {
                if self.serving.is_none()
                    && let Some(server) = lock(&self.served).clone()
                {
                    self.serving = Some(Serving::new(server, self.connection.clone()));
                }
                let nothing = || Failure::new(FailureKind::Invalid, "no image is open");
                self.serving.as_ref().ok_or_else(nothing)?.take(&frame)?;
            }
            Kind::Answer | Kind::Refusal => {
                if let Some(target) = &self.target {
                    let _ = target.send(Input::Frame(frame));
                }
            }
            Kind::Hello | Kind::Event | Kind::Ping => {}
        }
        Ok(())
    }

    fn event(&self, event: &Event) {
        self.connection.send(Frame::of(Kind::Event, 0, 0, event));
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Priority { nice, io } => {
                if let Err(why) = set_priority(nice, io) {
                    self.event(&Event::Notice(why));
                }
            }
            Command::List { path, pattern, format } => {
                let connection = self.connection.clone();
                self.start("list", move || {
                    let event = match list::list(Path::new(&path), pattern.as_deref(), format.map(Into::into))
                    {
                        Ok((is_folder, images)) => Event::Images { is_folder, images },
                        Err(failure) => Event::Failed(failure),
                    };
                    connection.send(Frame::of(Kind::Event, 0, 0, &event));
                });
            }
            Command::OpenSource(job) => self.open_source(job),
            Command::Dial { stream, ssh } => self.dial(stream, ssh),
            Command::Receive(job) => self.receive(*job),
            Command::Limit(rate) => self.throttle.set_rate(rate),
            Command::Pause => self.throttle.pause(),
            Command::Resume => self.throttle.resume(),
            // Asked once is asked for good.
            Command::Stop if self.stop.is_requested() => {}
            Command::Stop => {
                self.stop.request();
                for direct in lock(&self.direct).values() {
                    direct.connection.send(Frame::of(Kind::Command, 0, 0, &Command::Stop));
                }
                if let Some(target) = &self.target {
                    let _ = target.send(Input::Stop);
                }
            }
        }
    }

    fn open_source(&mut self, job: SourceJob) {
        let connection = self.connection.clone();
        let stop = self.stop.clone();
        let served = Arc::clone(&self.served);
        let pace = Arc::clone(&self.pace);
        self.start("source", move || {
            let event = match open_source(&job, &connection, &stop, pace) {
                Ok((ready, server)) => {
                    *lock(&served) = Some(server);
                    Event::SourceReady(ready)
                }
                Err(failure) => Event::Failed(failure),
            };
            connection.send(Frame::of(Kind::Event, 0, 0, &event));
        });
    }

    /// Reaches a target from here. Its requests are answered here; everything else it says goes to the control
    /// side, and what the control side says to its stream goes to it.
    fn dial(&mut self, stream: u16, ssh: Vec<String>) {
        let agents = self.agents.clone();
        let connection = self.connection.clone();
        let throttle = Arc::clone(&self.throttle);
        let served = Arc::clone(&self.served);
        let all_direct = Arc::clone(&self.direct);
        let pace = Arc::clone(&self.pace);
        if lock(&self.direct).len() + self.dialing.load(Ordering::Relaxed) >= DIRECT_MAX {
            let failure = too_many("targets");
            return self.connection.send(Frame::of(Kind::Event, stream, 0, &Event::Failed(failure)));
        }
        self.dialing.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(Arc::clone(&self.dialing));
        let started = spawn("dial", move || {
            let _counted = counted;
            let host = ssh.last().cloned().unwrap_or_else(|| "this host".into());
            let fail = |failure: Failure| {
                connection.send(Frame::of(Kind::Event, stream, 0, &Event::Failed(failure)))
            };
            let (command, destination) = match ssh.split_last() {
                Some((destination, command)) => (ssh_command(command, destination), host.clone()),
                None => (Vec::new(), host.clone()),
            };
            let dialed = match dial(&command, &destination, &agents, &|_| ()) {
                Ok(dialed) => dialed,
                Err(failure) => return fail(failure),
            };
            let (started, own_connection) = bounded::<(Connection, Process)>(1);
            let up = Forward::new(connection.clone(), stream);
            let mut serving = None;
            let mut own = None;
            let ended = Arc::clone(&all_direct);
            let started_target = dialed.into_connection(throttle, move |frame| {
                // The connection exists before its first frame can be read, but this closure is made before it.
                let Some((target, process)) = own.get_or_insert_with(|| own_connection.recv().ok()) else {
                    return;
                };
                match frame {
                    Ok(Some(frame)) if frame.kind == Kind::Request => {
                        if serving.is_none() {
                            serving =
                                lock(&served).clone().map(|server| Serving::new(server, target.clone()));
                        }
                        if let Some(Err(failure)) = serving.as_ref().map(|serving| serving.take(&frame)) {
                            up.event(&Event::Failed(failure));
                            process.kill();
                        }
                    }
                    Ok(Some(frame)) if frame.kind == Kind::Event => up.pass_on(frame),
                    Ok(Some(_)) => {}
                    end => {
                        let words = lock(&ended).remove(&stream).map(|direct| {
                            direct.process.kill();
                            direct.process.last_words()
                        });
                        let mut failure = lost("the target", end.err().as_ref());
                        failure.chain.extend(words.filter(|words| !words.is_empty()));
                        up.event(&Event::Failed(failure));
                    }
                }
            });
            let (target, process, hello) = match started_target {
                Ok(started) => started,
                Err(failure) => return fail(failure),
            };
            pace.watch(Arc::clone(&target.stats));
            lock(&all_direct).insert(stream, Direct { connection: target.clone(), process: process.clone() });
            connection.send(Frame::of(Kind::Event, stream, 0, &Event::Dialed(hello)));
            // From here on it is heard; whatever it says comes after that it was reached.
            let _ = started.send((target, process));
        });
        if let Err(error) = started {
            let failure = Failure::io("start a thread", &error);
            self.connection.send(Frame::of(Kind::Event, stream, 0, &Event::Failed(failure)));
        }
    }

    fn receive(&mut self, job: TargetJob) {
        if self.target.is_some() {
            return self.event(&Event::Failed(too_many("receptions")));
        }
        // Answers come only to requests that are out, so that what waits here is bounded by the window.
        let (inputs, queue) = unbounded();
        self.target = Some(inputs.clone());
        let connection = self.connection.clone();
        let stop = self.stop.clone();
        self.start("receive", move || {
            let emit = |event: Event| connection.send(Frame::of(Kind::Event, 0, 0, &event));
            match receive::receive(&job, connection.clone(), &queue, &inputs, &emit, &stop) {
                Ok(outcome) => emit(Event::Done(outcome)),
                Err(failure) => emit(Event::Failed(failure)),
            }
        });
    }
}

/// What one target says, on its way to the control side.
struct Forward {
    up: Connection,
    stream: u16,
    /// Bytes that the control side has not taken yet.
    unread: Arc<(Mutex<u64>, Condvar)>,
}

impl Forward {
    fn new(up: Connection, stream: u16) -> Self {
        Self { up, stream, unread: Arc::default() }
    }

    /// Passes a frame on once there is room for it: a target that floods waits for whoever reads, and with it nobody else.
    fn pass_on(&self, frame: Frame) {
        let length = frame.length();
        let (unread, changed) = &*self.unread;
        let full = |unread: &mut u64| *unread > FORWARD_MAX && !self.up.is_lost();
        let mut waiting = lock(unread);
        while full(&mut waiting) {
            let waited = changed.wait_timeout(waiting, LOOK_EVERY);
            waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *waiting += length;
        drop(waiting);
        let credit = Unread { unread: Arc::clone(&self.unread), length };
        self.up.forward(Frame { stream: self.stream, ..frame }, Box::new(credit));
    }

    fn event(&self, event: &Event) {
        self.up.send(Frame::of(Kind::Event, self.stream, 0, event));
    }
}

struct Unread {
    unread: Arc<(Mutex<u64>, Condvar)>,
    length: u64,
}

impl Drop for Unread {
    fn drop(&mut self) {
        *lock(&self.unread.0) -= self.length;
        self.unread.1.notify_all();
    }
}

/// Counts itself off when it goes.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn too_many(what: &str) -> Failure {
    Failure::new(FailureKind::Invalid, format!("an agent was asked for too many {what}"))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests;
