//! The control side of a sync: reach the source, choose the image, reach every target by its route, and keep one
//! slow or dead target from holding up the others.
//!
//! ```text
//! direct:  control ──ssh──► source agent ──ssh──► target agent      requests and data: source ⇄ target
//!              └──────── stream n of the same connection ──┘        commands and events pass through
//! relay:   control ──ssh──► source agent
//!              └─────ssh──► target agent                            requests and data pass through control,
//!                                                                   each answer fetched once for all targets
//! ```

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use goldwire_store::{PublicKey, SecretKey, Version};

use crate::agent::lost_target;
use crate::dial::{Agents, Dialed, Process, dial, ssh_command};
use crate::failure::Result;
use crate::link::{Link, SILENCE_MAX, Throttle};
use crate::server::{RemoteServer, Server, SharedServer, serve_request};
use crate::target::uuid_of;
use crate::wire::{
    Candidate, Command, Counters, Event, Failure, FailureKind, Frame, Hello, Kind, Outcome, Phase, Plan,
    SourceJob, SourceReady, TargetJob, WireFormat,
};

/// Bytes that all targets together may have asked for and not yet dealt with.
const WINDOWS_TOTAL: u64 = 64 << 20;
const WINDOW_MAX: u64 = 24 << 20;
const WINDOW_MIN: u64 = 4 << 20;

/// Bytes of answers kept for targets that come a little later.
const KEEP_BYTES: u64 = 48 << 20;

/// How long a target may take to end after it was told to stop.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// A path on this machine or behind `ssh`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What `ssh` calls the host, such as `root@master`; none is this machine.
    pub host: Option<String>,
    /// The path there.
    pub path: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{host}:{}", self.path),
            None => f.write_str(&self.path),
        }
    }
}

impl std::str::FromStr for Place {
    type Err = std::convert::Infallible;

    /// As `scp` and `rsync` read it: a colon before any slash ends the host.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let host_end = text.find(':').filter(|colon| *colon > 0 && !text[..*colon].contains('/'));
        // An IPv6 literal stands in brackets.
        let host_end = match text.find("]:") {
            Some(bracket) if text[..bracket].contains('[') && !text[..bracket].contains('/') => {
                Some(bracket + 1)
            }
            _ => host_end,
        };
        Ok(match host_end {
            Some(colon) => {
                let host = text[..colon].replace(['[', ']'], "");
                let path = &text[colon + 1..];
                Self { host: Some(host), path: if path.is_empty() { "." } else { path }.to_owned() }
            }
            None => Self { host: None, path: text.to_owned() },
        })
    }
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// From source host to target host.
    Direct,
    /// Through this machine.
    Relay,
    /// Direct if the source reaches the target, else through this machine.
    Auto,
}

/// Which of several candidates to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// There must be exactly one.
    Only,
    /// The one modified last.
    Youngest,
    /// The one with this container uuid.
    Uuid([u8; 16]),
}

/// What to do.
pub struct SyncJob {
    /// The image, or the folder that has it.
    pub source: Place,
    /// Where it goes.
    pub targets: Vec<Place>,
    /// File name pattern for a source that is a folder.
    pub pattern: Option<String>,
    /// Which of several matching images.
    pub choice: Choice,
    /// The user's `ssh` with options.
    pub ssh: Vec<String>,
    /// The `ssh` that the source host uses to reach targets.
    pub remote_ssh: Vec<String>,
    /// Which way the data goes.
    pub route: Route,
    /// The container to write; none goes by the target's name.
    pub format: Option<WireFormat>,
    /// The file name at targets that are folders, `{uuid}` in it standing for a uuid made from the content, the same
    /// at every target and in every run; none keeps the source's.
    pub name: Option<String>,
    /// Seeds at the targets.
    pub seeds: Vec<String>,
    /// Whether targets look for seeds themselves.
    pub find_seeds: bool,
    /// Folders at the source in which parents may lie, beside the image's own.
    pub parent_folders: Vec<String>,
    /// Whether a file of other content is replaced.
    pub replace: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Permission bits at the target.
    pub mode: Option<u32>,
    /// Owner at the target.
    pub owner: Option<(u32, u32)>,
    /// zstd level; none adapts.
    pub level: Option<i32>,
    /// Threads per agent.
    pub threads: Option<u16>,
    /// Nice value for the agents.
    pub nice: Option<u8>,
    /// I/O class and level for the agents.
    pub io_priority: Option<(u8, u8)>,
    /// Bytes per second that each sending machine may send in the beginning; [`Signal::Limit`] changes it.
    pub limit: Option<u64>,
    /// Signs the descriptor.
    pub sign: Option<SecretKey>,
    /// The source's descriptor must bear a signature of this key.
    pub require_signature: Option<PublicKey>,
    /// Free text for the descriptor; none keeps the source's.
    pub note: Option<String>,
    /// How agents are started.
    pub agents: Agents,
}

/// Wishes while a sync runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Stop at the next safe place; a second one stops without waiting.
    Stop,
    /// Send nothing until [`Signal::Resume`].
    Pause,
    /// Go on.
    Resume,
    /// Send at most this many bytes per second.
    Limit(Option<u64>),
}

/// What happens, in order, as the observer hears it.
#[derive(Clone, Debug, PartialEq)]
pub enum SyncEvent {
    /// The source host is hashing the image.
    Hashing {
        /// Guest bytes done.
        done: u64,
        /// Guest bytes in all.
        total: u64,
    },
    /// The image is chosen and its version known.
    Source {
        /// The image's path at the source.
        path: String,
        /// Its version.
        version: Box<Version>,
        /// What the source says about it.
        ready: Box<SourceReady>,
    },
    /// Something about target number `target`.
    Target {
        /// Index into [`SyncJob::targets`].
        target: usize,
        /// What.
        event: TargetEvent,
    },
}

/// What happens at a target.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetEvent {
    /// It was reached: the way its data goes, and what it said about itself.
    Reached {
        /// Never `Auto`.
        route: Route,
        /// Its greeting.
        hello: Hello,
    },
    /// It is hashing a seed.
    Hashing {
        /// Guest bytes done.
        done: u64,
        /// Guest bytes in all.
        total: u64,
    },
    /// It knows what it needs.
    Planned(Plan),
    /// It entered a phase.
    Phase(Phase),
    /// It got further.
    Progress(Counters),
    /// It has something to say.
    Notice(String),
    /// It is finished.
    Done(Outcome),
    /// It failed.
    Failed(Failure),
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncReport {
    /// One per target, in order.
    pub targets: Vec<Result<Outcome>>,
    /// The version.
    pub version: Version,
}

/// Runs a sync. `observe` is called from several threads.
///
/// # Errors
/// What kept the sync from beginning: the source, the choice, the signature. What happens to single targets is
/// in the report.
pub fn sync(
    job: &SyncJob,
    signals: &Receiver<Signal>,
    observe: &(dyn Fn(SyncEvent) + Sync),
) -> Result<SyncReport> {
    let throttle = Arc::new(Throttle::default());
    throttle.set_rate(job.limit);
    let peers = Peers {
        links: Mutex::default(),
        dialing: Mutex::default(),
        throttle: Arc::clone(&throttle),
        stopping: AtomicBool::new(false),
    };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| peers.attend(signals, &over));
        let session = Session { job, peers: &peers, throttle, observe };
        let outcome = session.run();
        over.store(true, Ordering::Relaxed);
        peers.kill_all();
        outcome
    })
}

/// Everybody we talk to, for signals that concern all and for noticing silence.
struct Peers {
    links: Mutex<Vec<(Link, Process)>>,
    /// Connections that have not answered yet.
    dialing: Mutex<Vec<Process>>,
    throttle: Arc<Throttle>,
    stopping: AtomicBool,
}

impl Peers {
    fn add(&self, link: &Link, process: &Process) {
        self.lock().push((link.clone(), process.clone()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Link, Process)>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command_all(&self, command: &Command) {
        for (link, _) in self.lock().iter() {
            link.send(Frame::of(Kind::Command, 0, 0, command));
        }
    }

    fn kill_all(&self) {
        self.lock().drain(..).for_each(|(_, process)| process.kill());
    }

    /// Passes signals on until the sync is over.
    fn attend(&self, signals: &Receiver<Signal>, over: &AtomicBool) {
        let mut stopped_at: Option<Instant> = None;
        let mut is_deaf = false;
        while !over.load(Ordering::Relaxed) {
            let next = if is_deaf {
                thread::sleep(Duration::from_millis(100));
                Err(RecvTimeoutError::Timeout)
            } else {
                signals.recv_timeout(Duration::from_millis(100))
            };
            match next {
                Ok(Signal::Stop) if stopped_at.is_some() => self.kill_all(),
                Ok(Signal::Stop) => {
                    stopped_at = Some(Instant::now());
                    self.stopping.store(true, Ordering::Relaxed);
                    self.throttle.set_paused(false);
                    self.command_all(&Command::Stop);
                    // Whoever has not answered yet has nothing to finish.
                    lock(&self.dialing).drain(..).for_each(|process| process.kill());
                }
                Ok(Signal::Pause) => {
                    self.throttle.set_paused(true);
                    self.command_all(&Command::Pause);
                }
                Ok(Signal::Resume) => {
                    self.throttle.set_paused(false);
                    self.command_all(&Command::Resume);
                }
                Ok(Signal::Limit(rate)) => {
                    self.throttle.set_rate(rate);
                    self.command_all(&Command::Limit(rate));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => is_deaf = true,
            }
            if stopped_at.is_some_and(|at| at.elapsed() > STOP_GRACE) {
                self.kill_all();
            }
            if !self.throttle.is_paused() {
                let silent = |(link, _): &(Link, Process)| link.silent_for() > SILENCE_MAX;
                self.lock().iter().filter(|peer| silent(peer)).for_each(|(_, process)| process.kill());
            }
        }
    }
}

struct Session<'a> {
    job: &'a SyncJob,
    peers: &'a Peers,
    throttle: Arc<Throttle>,
    observe: &'a (dyn Fn(SyncEvent) + Sync),
}

/// Events of the source's connection, sorted by stream.
type Streams = Arc<Mutex<Vec<Option<Sender<Event>>>>>;

struct Source {
    link: Link,
    process: Process,
    server: Arc<RemoteServer>,
    events: Receiver<Event>,
    streams: Streams,
}

impl Session<'_> {
    fn run(&self) -> Result<SyncReport> {
        let source = self.reach_source()?;
        let image = self.choose(&source)?;
        let ready = self.open(&source, &image)?;
        let (version, bytes) = self.describe(&ready)?;
        (self.observe)(SyncEvent::Source {
            path: image.path.clone(),
            version: Box::new(version.clone()),
            ready: Box::new(ready.clone()),
        });
        // One answer for all relayed targets; a single one needs nothing kept.
        let keep = if self.job.targets.len() > 1 { KEEP_BYTES } else { 0 };
        let shared: Arc<dyn Server> =
            Arc::new(SharedServer::new(Arc::clone(&source.server) as Arc<dyn Server>, keep));
        let targets = thread::scope(|scope| {
            let threads: Vec<_> = (0..self.job.targets.len())
                .map(|target| {
                    let (source, shared, job) = (&source, &shared, self.target_job(target, &ready, &bytes));
                    scope.spawn(move || {
                        let outcome = self.one_target(target, source, shared, job).map_err(|failure| {
                            // Ctrl-C at a terminal reaches ssh too, which then ends before it can say why.
                            let is_cut = failure.kind == FailureKind::Disconnected;
                            if is_cut && self.peers.stopping.load(Ordering::Relaxed) {
                                Failure::stopped()
                            } else {
                                failure
                            }
                        });
                        let event = match outcome.clone() {
                            Ok(outcome) => TargetEvent::Done(outcome),
                            Err(failure) => TargetEvent::Failed(failure),
                        };
                        self.tell(target, event);
                        outcome
                    })
                })
                .collect();
            let lost = || Err(Failure::new(FailureKind::Other, "a thread failed"));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| lost())).collect()
        });
        Ok(SyncReport { targets, version })
    }

    fn tell(&self, target: usize, event: TargetEvent) {
        (self.observe)(SyncEvent::Target { target, event });
    }

    fn dial(&self, place: &Place) -> Result<Dialed> {
        let ssh = self.ssh_to(place.host.as_deref());
        let note = |process: &Process| {
            lock(&self.peers.dialing).push(process.clone());
            if self.peers.stopping.load(Ordering::Relaxed) {
                process.kill();
            }
        };
        let dialed = dial(&ssh, host_name(place), &self.job.agents, &note);
        if let Ok(dialed) = &dialed {
            // From here on it is told to stop instead.
            lock(&self.peers.dialing).retain(|process| !process.is(&dialed.process));
        }
        dialed.map_err(|failure| match self.peers.stopping.load(Ordering::Relaxed) {
            true => Failure::stopped(),
            false => failure,
        })
    }

    fn reach_source(&self) -> Result<Source> {
        let place = &self.job.source;
        let dialed = self.dial(place).map_err(|failure| failure.context("the source"))?;
        let (events_in, events) = unbounded();
        let streams: Streams = Arc::default();
        lock(&streams).resize_with(self.job.targets.len() + 1, || None);
        lock(&streams)[0] = Some(events_in);
        let (server_in, server_out) = crossbeam_channel::bounded::<Arc<RemoteServer>>(1);
        let mut server = None;
        let sorted = Arc::clone(&streams);
        let (link, process, _) = dialed.into_link(Arc::clone(&self.throttle), move |frame| {
            // The server needs the link, and the link this closure.
            let server: &mut Option<Arc<RemoteServer>> = &mut server;
            if server.is_none() {
                *server = server_out.recv().ok();
            }
            let Some(server) = server else { return };
            match frame {
                Ok(Some(frame)) => match frame.kind {
                    Kind::Answer | Kind::Refusal if frame.stream == 0 => server.deliver(&frame),
                    Kind::Event => {
                        let event =
                            frame.message("event").unwrap_or_else(|error| Event::Failed(error.into()));
                        if let Some(Some(events)) = lock(&sorted).get(usize::from(frame.stream)) {
                            let _ = events.send(event);
                        }
                    }
                    _ => {}
                },
                end => {
                    let mut failure = lost_target(end.err().as_ref());
                    failure.chain[0] = "the connection to the source was lost".into();
                    server.end(&failure);
                    for events in lock(&sorted).drain(..).flatten() {
                        let _ = events.send(Event::Failed(failure.clone()));
                    }
                }
            }
        });
        let server = Arc::new(RemoteServer::new(link.clone()));
        let _ = server_in.send(Arc::clone(&server));
        self.greet(&link, &process);
        Ok(Source { link, process, server, events, streams })
    }

    /// The first words to every peer.
    fn greet(&self, link: &Link, process: &Process) {
        self.peers.add(link, process);
        let (nice, io) = (self.job.nice, self.job.io_priority);
        if nice.is_some() || io.is_some() {
            link.send(Frame::of(Kind::Command, 0, 0, &Command::Priority { nice, io }));
        }
        if self.job.limit.is_some() {
            link.send(Frame::of(Kind::Command, 0, 0, &Command::Limit(self.job.limit)));
        }
        if self.peers.stopping.load(Ordering::Relaxed) {
            link.send(Frame::of(Kind::Command, 0, 0, &Command::Stop));
        }
    }

    fn ssh_to(&self, host: Option<&str>) -> Vec<String> {
        host.map(|host| ssh_command(&self.job.ssh, host)).unwrap_or_default()
    }

    /// The next event of the source itself, after the last words of `ssh` if it ended.
    fn source_event(&self, source: &Source) -> Result<Event> {
        match source.events.recv() {
            Ok(Event::Failed(failure)) => {
                let failure =
                    if self.peers.stopping.load(Ordering::Relaxed) { Failure::stopped() } else { failure };
                let words = source.process.last_words();
                let failure = failure.context(format!("the source {}", self.job.source));
                Err(if words.is_empty() { failure } else { failure.hint(format!("ssh said: {words}")) })
            }
            Ok(event) => Ok(event),
            Err(_) => Err(lost_target(None)),
        }
    }

    fn choose(&self, source: &Source) -> Result<Candidate> {
        let (path, pattern) = (self.job.source.path.clone(), self.job.pattern.clone());
        source.link.send(Frame::of(Kind::Command, 0, 0, &Command::List { path, pattern }));
        loop {
            if let Event::Images { is_folder, images } = self.source_event(source)? {
                if !is_folder && self.job.pattern.is_some() {
                    let text = format!("{} is a file, and a pattern needs a folder", self.job.source);
                    return Err(Failure::new(FailureKind::Invalid, text));
                }
                return choose(&self.job.source, images, self.job.choice);
            }
        }
    }

    fn open(&self, source: &Source, image: &Candidate) -> Result<SourceReady> {
        let job = SourceJob {
            path: image.path.clone(),
            parent_folders: self.job.parent_folders.clone(),
            level: self.job.level,
            keep_bytes: if self.job.targets.len() > 1 { KEEP_BYTES } else { 0 },
            threads: self.job.threads,
        };
        source.link.send(Frame::of(Kind::Command, 0, 0, &Command::OpenSource(job)));
        loop {
            match self.source_event(source)? {
                Event::SourceReady(ready) => return Ok(ready),
                Event::Hashing { done, total } => (self.observe)(SyncEvent::Hashing { done, total }),
                _ => {}
            }
        }
    }

    /// The descriptor that goes to the targets, with its bytes.
    fn describe(&self, ready: &SourceReady) -> Result<(Version, Vec<u8>)> {
        let invalid = |error: goldwire_store::VersionError| Failure::of(FailureKind::Invalid, &error);
        let found = Version::decode(&ready.version).map_err(invalid)?;
        if let Some(required) = self.job.require_signature
            && found.signer != Some(required)
        {
            let who = found.signer.map_or("nobody".to_owned(), |signer| signer.to_string());
            let text =
                format!("{}: the content is signed by {who}, not by the required key", self.job.source);
            return Err(Failure::new(FailureKind::Invalid, text)
                .hint("sign it where it was made: goldwire disk tree --sign KEY IMAGE"));
        }
        if self.job.sign.is_none() && self.job.note.is_none() {
            return Ok((found, ready.version.clone()));
        }
        if self.job.sign.is_none() && found.signer.is_some() {
            return Err(Failure::new(
                FailureKind::Invalid,
                "a note would undo the signature that the version has",
            )
            .hint("sign the changed descriptor with --sign KEY, or leave the note as it is"));
        }
        let note = self.job.note.clone().unwrap_or_else(|| found.note.clone());
        let version = Version { note, signer: None, ..found };
        let bytes = version.encode(self.job.sign.as_ref()).map_err(invalid)?;
        Ok((Version::decode(&bytes).map_err(invalid)?, bytes))
    }

    fn target_job(&self, target: usize, ready: &SourceReady, version: &[u8]) -> TargetJob {
        let job = self.job;
        let uuid =
            Version::decode(version).map_or(String::new(), |version| format_uuid(&uuid_of(&version.root)));
        TargetJob {
            path: job.targets[target].path.clone(),
            name: job.name.as_ref().map_or_else(|| ready.name.clone(), |name| name.replace("{uuid}", &uuid)),
            version: version.to_vec(),
            format: job.format,
            source_format: ready.format,
            seeds: job.seeds.clone(),
            find_seeds: job.find_seeds,
            replace: job.replace,
            dry_run: job.dry_run,
            mode: job.mode,
            source_mode: ready.mode,
            owner: job.owner,
            window_bytes: (WINDOWS_TOTAL / job.targets.len().max(1) as u64).clamp(WINDOW_MIN, WINDOW_MAX),
            threads: job.threads,
        }
    }

    fn one_target(
        &self,
        target: usize,
        source: &Source,
        shared: &Arc<dyn Server>,
        job: TargetJob,
    ) -> Result<Outcome> {
        let place = &self.job.targets[target];
        let from = self.job.source.host.as_deref();
        // From a local source, this machine *is* the source host; a target on it needs no way at all.
        let can_be_direct = from.is_none() || place.host.is_some();
        if self.job.route == Route::Direct && !can_be_direct {
            let text = format!("{place} is on this machine, which the source host cannot be asked to reach");
            return Err(Failure::new(FailureKind::Invalid, text).hint("use --route relay or auto"));
        }
        if can_be_direct && (self.job.route != Route::Relay || from.is_none()) {
            match self.direct(target, source) {
                Ok((hello, events)) => {
                    let route = Route::Direct;
                    self.tell(target, TargetEvent::Reached { route, hello });
                    let stream = target as u16 + 1;
                    source.link.send(Frame::of(Kind::Command, stream, 0, &Command::Receive(Box::new(job))));
                    return self.follow(target, &events);
                }
                Err(failure) if self.job.route == Route::Direct || from.is_none() => return Err(failure),
                Err(_) if self.peers.stopping.load(Ordering::Relaxed) => return Err(Failure::stopped()),
                Err(failure) => {
                    let text = format!("the source cannot reach it ({}); relaying", failure.report().line());
                    self.tell(target, TargetEvent::Notice(text));
                }
            }
        }
        self.relay(target, shared, job)
    }

    /// Has the source reach the target.
    fn direct(&self, target: usize, source: &Source) -> Result<(Hello, Receiver<Event>)> {
        let place = &self.job.targets[target];
        let stream = target as u16 + 1;
        let (events_in, events) = unbounded();
        match lock(&source.streams).get_mut(usize::from(stream)) {
            Some(slot) => *slot = Some(events_in),
            None => return Err(lost_target(None)),
        }
        let ssh = match (&self.job.source.host, &place.host) {
            (from, to) if from == to => Vec::new(),
            (from, Some(host)) => {
                let command = if from.is_none() { &self.job.ssh } else { &self.job.remote_ssh };
                command.iter().chain([host]).cloned().collect()
            }
            (_, None) => Vec::new(),
        };
        source.link.send(Frame::of(Kind::Command, 0, 0, &Command::Dial { stream, ssh }));
        loop {
            match events.recv().map_err(|_| lost_target(None))? {
                Event::Dialed(hello) => {
                    // It answered too late to hear of a stop.
                    if self.peers.stopping.load(Ordering::Relaxed) {
                        return Err(Failure::stopped());
                    }
                    let (nice, io) = (self.job.nice, self.job.io_priority);
                    if nice.is_some() || io.is_some() {
                        source.link.send(Frame::of(
                            Kind::Command,
                            stream,
                            0,
                            &Command::Priority { nice, io },
                        ));
                    }
                    return Ok((hello, events));
                }
                Event::Failed(failure) => return Err(failure),
                _ => {}
            }
        }
    }

    /// Reaches the target from here and passes its requests on.
    fn relay(&self, target: usize, shared: &Arc<dyn Server>, job: TargetJob) -> Result<Outcome> {
        let place = &self.job.targets[target];
        let dialed = self.dial(place)?;
        let (events_in, events) = unbounded();
        let (link_in, link_out) = crossbeam_channel::bounded::<(Link, Process)>(1);
        let mut own = None;
        let server = Arc::clone(shared);
        let (link, process, hello) = dialed.into_link(Arc::clone(&self.throttle), move |frame| {
            let own: &mut Option<(Link, Process)> = &mut own;
            if own.is_none() {
                *own = link_out.recv().ok();
            }
            let Some((link, process)) = own else { return };
            let _ = match frame {
                Ok(Some(frame)) if frame.kind == Kind::Request => {
                    serve_request(server.as_ref(), link, &frame);
                    Ok(())
                }
                Ok(Some(frame)) if frame.kind == Kind::Event => {
                    events_in.send(frame.message("event").unwrap_or_else(|error| Event::Failed(error.into())))
                }
                Ok(Some(_)) => Ok(()),
                end => {
                    let mut failure = lost_target(end.err().as_ref());
                    failure.chain.extend(Some(process.last_words()).filter(|words| !words.is_empty()));
                    events_in.send(Event::Failed(failure))
                }
            };
        });
        let _ = link_in.send((link.clone(), process.clone()));
        self.greet(&link, &process);
        self.tell(target, TargetEvent::Reached { route: Route::Relay, hello });
        link.send(Frame::of(Kind::Command, 0, 0, &Command::Receive(Box::new(job))));
        self.follow(target, &events)
    }

    fn follow(&self, target: usize, events: &Receiver<Event>) -> Result<Outcome> {
        loop {
            let event = events.recv().map_err(|_| lost_target(None))?;
            self.tell(
                target,
                match event {
                    Event::Done(outcome) => return Ok(outcome),
                    Event::Failed(failure) => return Err(failure),
                    Event::Hashing { done, total } => TargetEvent::Hashing { done, total },
                    Event::Planned(plan) => TargetEvent::Planned(plan),
                    Event::Progress(counters) => TargetEvent::Progress(counters),
                    Event::Phase(phase) => TargetEvent::Phase(phase),
                    Event::Notice(text) => TargetEvent::Notice(text),
                    Event::Images { .. } | Event::SourceReady(_) | Event::Dialed(_) => continue,
                },
            );
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn host_name(place: &Place) -> &str {
    place.host.as_deref().unwrap_or("this machine")
}

/// Picks one candidate, or says what there is to pick from.
fn choose(place: &Place, mut images: Vec<Candidate>, choice: Choice) -> Result<Candidate> {
    if let Choice::Uuid(uuid) = choice {
        images.retain(|image| image.uuid == Some(uuid));
    }
    if choice == Choice::Youngest {
        // Two of the same second cannot be told apart by age.
        let youngest = images.iter().map(|image| image.modified).max();
        images.retain(|image| Some(image.modified) == youngest);
    }
    if images.len() > 1 {
        let mut text = format!("{place}: {} images fit", images.len());
        for image in images.iter().take(20) {
            text += "\n  ";
            text += &describe(image);
        }
        if images.len() > 20 {
            text += "\n  …";
        }
        return Err(Failure::new(FailureKind::Invalid, text)
            .hint("name one, narrow --match, or choose by a rule: --youngest, --uuid UUID"));
    }
    images.pop().ok_or_else(|| {
        Failure::new(FailureKind::Invalid, format!("{place}: no image fits"))
            .hint("look at what is there with `goldwire disk info`; --match takes *, ? and [a-z]")
    })
}

fn describe(image: &Candidate) -> String {
    let uuid = image.uuid.map_or("no uuid".to_owned(), |uuid| format_uuid(&uuid));
    let hidden = if image.hidden { ", hidden" } else { "" };
    let parent = if image.has_parent { ", has a parent" } else { "" };
    format!(
        "{}  {uuid}  {} ({} in the file)  modified {}{hidden}{parent}",
        image.path,
        goldwire_stdx::ByteSize(image.size),
        goldwire_stdx::ByteSize(image.file_length),
        format_time(image.modified),
    )
}

/// A uuid in its usual form (RFC 9562, section 4).
pub fn format_uuid(uuid: &[u8; 16]) -> String {
    let digits = goldwire_stdx::to_hex(uuid);
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// Seconds since 1970 as UTC, such as `2026-11-22 06:34:00Z` (days to civil date after the proleptic Gregorian
/// calendar, counted from 0000-03-01 so that a leap day ends its year).
pub fn format_time(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400) + 719_468, seconds.rem_euclid(86_400));
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year_of_era + era * 400 + carry;
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

/// The command that starts an agent on this machine from this very program.
pub fn own_agent(arguments: &[&str]) -> Vec<PathBuf> {
    let program = std::env::current_exe().unwrap_or_else(|_| "goldwire".into());
    std::iter::once(program).chain(arguments.iter().map(PathBuf::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_as_scp_reads_them() {
        for (text, host, path) in [
            ("/a/b", None, "/a/b"),
            ("a.vhd", None, "a.vhd"),
            ("./a:b", None, "./a:b"),
            ("h:/a", Some("h"), "/a"),
            ("root@h:a b", Some("root@h"), "a b"),
            ("h:", Some("h"), "."),
            ("[::1]:/a", Some("::1"), "/a"),
            ("root@[fe80::1]:/a", Some("root@fe80::1"), "/a"),
            ("/a:b", None, "/a:b"),
        ] {
            let place: Place = text.parse().unwrap();
            assert_eq!((place.host.as_deref(), place.path.as_str()), (host, path), "{text}");
        }
    }

    #[test]
    fn times_print_as_utc() {
        assert_eq!(format_time(0), "1970-01-01 00:00:00Z");
        assert_eq!(format_time(946_684_800), "2000-01-01 00:00:00Z");
        assert_eq!(format_time(1_709_208_000), "2024-02-29 12:00:00Z");
        assert_eq!(format_time(-1), "1969-12-31 23:59:59Z");
    }

    #[test]
    fn several_candidates_are_listed_and_a_rule_picks_one() {
        let image = |path: &str, modified, uuid| Candidate {
            path: path.into(),
            format: "VhdDynamic".into(),
            size: 1 << 30,
            file_length: 1 << 20,
            uuid: Some([uuid; 16]),
            hidden: false,
            has_parent: false,
            modified,
            created: None,
        };
        let place: Place = "h:/sr".parse().unwrap();
        let images = vec![image("/sr/a.vhd", 5, 1), image("/sr/b.vhd", 9, 2)];
        let refused = choose(&place, images.clone(), Choice::Only).unwrap_err().to_string();
        assert!(refused.contains("/sr/a.vhd") && refused.contains("02020202-0202"), "{refused}");
        assert_eq!(choose(&place, images.clone(), Choice::Youngest).unwrap().path, "/sr/b.vhd");
        assert_eq!(choose(&place, images.clone(), Choice::Uuid([1; 16])).unwrap().path, "/sr/a.vhd");
        assert!(choose(&place, images, Choice::Uuid([3; 16])).is_err());
        let twins = vec![image("/sr/a.vhd", 5, 1), image("/sr/b.vhd", 5, 2)];
        assert!(choose(&place, twins, Choice::Youngest).is_err(), "the same age decides nothing");
    }
}
