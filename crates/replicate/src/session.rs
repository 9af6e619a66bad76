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

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use goldwire_stdx::spawn_scoped;
use goldwire_store::Version;

use crate::choose::choose;
use crate::connection::{Connection, SILENCE_MAX, Throttle, lost};
use crate::dial::{Dialed, Process, dial, ssh_command};
use crate::endpoint::Endpoint;
use crate::failure::Result;
use crate::job::{Route, Seeds, Signal, SyncEvent, SyncJob, SyncReport, TargetEvent};
use crate::receive::uuid_of;
use crate::source::{RemoteServer, Server, SharedServer, serve_request};
use crate::wire::{
    Candidate, Command, Event, Failure, FailureKind, Frame, Hello, Kind, Outcome, SourceJob, SourceReady,
    TargetJob,
};

/// Bytes that all targets together may have asked for and not yet dealt with.
const WINDOWS_TOTAL: u64 = 64 << 20;
const WINDOW_MAX: u64 = 24 << 20;
const WINDOW_MIN: u64 = 4 << 20;

/// Bytes of answers kept for targets that come a little later.
const KEEP_BYTES: u64 = 48 << 20;

/// How long a target may take to end after it was asked to stop.
const STOP_GRACE: Duration = Duration::from_secs(20);

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
    throttle.set_rate(job.effort.limit);
    let peers = Peers {
        connections: Mutex::default(),
        dialing: Mutex::default(),
        throttle: Arc::clone(&throttle),
        stopping: AtomicBool::new(false),
    };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        spawn_scoped(scope, "signals", || peers.watch_signals(signals, &over)).map_err(no_thread)?;
        let session = Session { job, peers: &peers, throttle, observe };
        let outcome = session.run();
        over.store(true, Ordering::Relaxed);
        peers.kill_all();
        outcome
    })
}

/// Everybody we talk to, for signals that concern all and for noticing silence.
struct Peers {
    connections: Mutex<Vec<(Connection, Process)>>,
    /// Connections that have not answered yet.
    dialing: Mutex<Vec<Process>>,
    throttle: Arc<Throttle>,
    stopping: AtomicBool,
}

impl Peers {
    fn add(&self, connection: &Connection, process: &Process) {
        self.lock().push((connection.clone(), process.clone()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Connection, Process)>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn command_all(&self, command: &Command) {
        for (connection, _) in self.lock().iter() {
            connection.send(Frame::of(Kind::Command, 0, 0, command));
        }
    }

    fn kill_all(&self) {
        self.lock().drain(..).for_each(|(_, process)| process.kill());
    }

    /// Passes signals on until the sync is over.
    fn watch_signals(&self, signals: &Receiver<Signal>, over: &AtomicBool) {
        let mut stopped_at: Option<Instant> = None;
        let mut is_disconnected = false;
        while !over.load(Ordering::Relaxed) {
            let next = if is_disconnected {
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
                Err(RecvTimeoutError::Disconnected) => is_disconnected = true,
            }
            if stopped_at.is_some_and(|at| at.elapsed() > STOP_GRACE) {
                self.kill_all();
            }
            if !self.throttle.is_paused() {
                let silent = |(connection, _): &(Connection, Process)| connection.silent_for() > SILENCE_MAX;
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
    connection: Connection,
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
                    spawn_scoped(scope, "target", move || {
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
                        self.emit(target, event);
                        outcome
                    })
                })
                .collect();
            let lost = || Err(Failure::new(FailureKind::Other, "a thread failed"));
            threads
                .into_iter()
                .enumerate()
                .map(|(target, thread)| match thread {
                    Ok(thread) => thread.join().unwrap_or_else(|_| lost()),
                    Err(error) => {
                        let failure = no_thread(error);
                        self.emit(target, TargetEvent::Failed(failure.clone()));
                        Err(failure)
                    }
                })
                .collect()
        });
        Ok(SyncReport { targets, version })
    }

    fn emit(&self, target: usize, event: TargetEvent) {
        (self.observe)(SyncEvent::Target { target, event });
    }

    fn dial(&self, place: &Endpoint) -> Result<Dialed> {
        let ssh = self.ssh_to(place.host.as_deref());
        let note = |process: &Process| {
            lock(&self.peers.dialing).push(process.clone());
            if self.peers.stopping.load(Ordering::Relaxed) {
                process.kill();
            }
        };
        let dialed = dial(&ssh, host_name(place), &self.job.reach.agents, &note);
        if let Ok(dialed) = &dialed {
            // From here on it is asked to stop instead.
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
        let (connection, process, _) = dialed.into_connection(Arc::clone(&self.throttle), move |frame| {
            // The server needs the connection, which needs this closure.
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
                    let failure = lost("source", end.err().as_ref());
                    server.end(&failure);
                    for events in lock(&sorted).drain(..).flatten() {
                        let _ = events.send(Event::Failed(failure.clone()));
                    }
                }
            }
        })?;
        let server = Arc::new(RemoteServer::new(connection.clone()));
        let _ = server_in.send(Arc::clone(&server));
        self.greet(&connection, &process);
        Ok(Source { connection, process, server, events, streams })
    }

    /// The first words to every peer.
    fn greet(&self, connection: &Connection, process: &Process) {
        self.peers.add(connection, process);
        let (nice, io) = (self.job.effort.nice, self.job.effort.io_priority);
        if nice.is_some() || io.is_some() {
            connection.send(Frame::of(Kind::Command, 0, 0, &Command::Priority { nice, io }));
        }
        if self.job.effort.limit.is_some() {
            connection.send(Frame::of(Kind::Command, 0, 0, &Command::Limit(self.job.effort.limit)));
        }
        if self.peers.stopping.load(Ordering::Relaxed) {
            connection.send(Frame::of(Kind::Command, 0, 0, &Command::Stop));
        }
    }

    fn ssh_to(&self, host: Option<&str>) -> Vec<String> {
        host.map(|host| ssh_command(&self.job.reach.ssh, host)).unwrap_or_default()
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
            Err(_) => Err(lost("target", None)),
        }
    }

    fn choose(&self, source: &Source) -> Result<Candidate> {
        let (path, pattern) = (self.job.source.path.clone(), self.job.select.pattern.clone());
        source.connection.send(Frame::of(Kind::Command, 0, 0, &Command::List { path, pattern }));
        loop {
            if let Event::Images { is_folder, images } = self.source_event(source)? {
                if !is_folder && self.job.select.pattern.is_some() {
                    let text = format!("{} is a file, and a pattern needs a folder", self.job.source);
                    return Err(Failure::new(FailureKind::Invalid, text));
                }
                return choose(&self.job.source, images, &self.job.select);
            }
        }
    }

    fn open(&self, source: &Source, image: &Candidate) -> Result<SourceReady> {
        let job = SourceJob {
            path: image.path.clone(),
            parent_folders: self.job.select.parent_folders.clone(),
            level: self.job.effort.level,
            keep_bytes: if self.job.targets.len() > 1 { KEEP_BYTES } else { 0 },
            threads: self.job.effort.threads,
        };
        source.connection.send(Frame::of(Kind::Command, 0, 0, &Command::OpenSource(job)));
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
        if let Some(required) = self.job.trust.require_signature
            && found.signer != Some(required)
        {
            let who = found.signer.map_or("nobody".to_owned(), |signer| signer.to_string());
            let text =
                format!("{}: the content is signed by {who}, not by the required key", self.job.source);
            return Err(Failure::new(FailureKind::Invalid, text)
                .hint("sign it where it was made: goldwire disk tree --sign KEY IMAGE"));
        }
        if self.job.trust.sign.is_none() && self.job.write.note.is_none() {
            return Ok((found, ready.version.clone()));
        }
        if self.job.trust.sign.is_none() && found.signer.is_some() {
            return Err(Failure::new(
                FailureKind::Invalid,
                "a note would undo the signature that the version has",
            )
            .hint("sign the changed descriptor with --sign KEY, or leave the note as it is"));
        }
        let note = self.job.write.note.clone().unwrap_or_else(|| found.note.clone());
        let version = Version { note, signer: None, ..found };
        let bytes = version.encode(self.job.trust.sign.as_ref()).map_err(invalid)?;
        Ok((Version::decode(&bytes).map_err(invalid)?, bytes))
    }

    fn target_job(&self, target: usize, ready: &SourceReady, version: &[u8]) -> TargetJob {
        let job = self.job;
        let uuid =
            Version::decode(version).map_or(String::new(), |version| uuid_of(&version.root).to_string());
        TargetJob {
            path: job.targets[target].path.clone(),
            name: job
                .write
                .name
                .as_ref()
                .map_or_else(|| ready.name.clone(), |name| name.replace("{uuid}", &uuid)),
            version: version.to_vec(),
            format: job.write.format,
            source_format: ready.format,
            seeds: match &job.seeds {
                Seeds::Named(seeds) => seeds.clone(),
                Seeds::Find | Seeds::Without => Vec::new(),
            },
            find_seeds: job.seeds == Seeds::Find,
            replace: job.write.replace,
            dry_run: job.dry_run,
            mode: job.write.mode,
            source_mode: ready.mode,
            owner: job.write.owner,
            window_bytes: (WINDOWS_TOTAL / job.targets.len().max(1) as u64).clamp(WINDOW_MIN, WINDOW_MAX),
            threads: job.effort.threads,
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
        if self.job.reach.route == Route::Direct && !can_be_direct {
            let text = format!("{place} is on this machine, which the source host cannot be asked to reach");
            return Err(Failure::new(FailureKind::Invalid, text).hint("use --route relay or auto"));
        }
        if can_be_direct && (self.job.reach.route != Route::Relay || from.is_none()) {
            match self.direct(target, source) {
                Ok((hello, events)) => {
                    let route = Route::Direct;
                    self.emit(target, TargetEvent::Reached { route, hello });
                    let stream = target as u16 + 1;
                    source.connection.send(Frame::of(
                        Kind::Command,
                        stream,
                        0,
                        &Command::Receive(Box::new(job)),
                    ));
                    return self.follow(target, &events);
                }
                Err(failure) if self.job.reach.route == Route::Direct || from.is_none() => {
                    return Err(failure);
                }
                Err(_) if self.peers.stopping.load(Ordering::Relaxed) => return Err(Failure::stopped()),
                Err(failure) => {
                    let text = format!("the source cannot reach it ({}); relaying", failure.report().line());
                    self.emit(target, TargetEvent::Notice(text));
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
            None => return Err(lost("target", None)),
        }
        let ssh = match (&self.job.source.host, &place.host) {
            (from, to) if from == to => Vec::new(),
            (from, Some(host)) => {
                let command = if from.is_none() { &self.job.reach.ssh } else { &self.job.reach.remote_ssh };
                command.iter().chain([host]).cloned().collect()
            }
            (_, None) => Vec::new(),
        };
        source.connection.send(Frame::of(Kind::Command, 0, 0, &Command::Dial { stream, ssh }));
        loop {
            match events.recv().map_err(|_| lost("target", None))? {
                Event::Dialed(hello) => {
                    // It answered too late to hear of a stop.
                    if self.peers.stopping.load(Ordering::Relaxed) {
                        return Err(Failure::stopped());
                    }
                    let (nice, io) = (self.job.effort.nice, self.job.effort.io_priority);
                    if nice.is_some() || io.is_some() {
                        source.connection.send(Frame::of(
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
        let (connection_in, connection_out) = crossbeam_channel::bounded::<(Connection, Process)>(1);
        let mut own = None;
        let server = Arc::clone(shared);
        let (connection, process, hello) =
            dialed.into_connection(Arc::clone(&self.throttle), move |frame| {
                let own: &mut Option<(Connection, Process)> = &mut own;
                if own.is_none() {
                    *own = connection_out.recv().ok();
                }
                let Some((connection, process)) = own else { return };
                let _ = match frame {
                    Ok(Some(frame)) if frame.kind == Kind::Request => {
                        serve_request(server.as_ref(), connection, &frame);
                        Ok(())
                    }
                    Ok(Some(frame)) if frame.kind == Kind::Event => events_in
                        .send(frame.message("event").unwrap_or_else(|error| Event::Failed(error.into()))),
                    Ok(Some(_)) => Ok(()),
                    end => {
                        let mut failure = lost("target", end.err().as_ref());
                        failure.chain.extend(Some(process.last_words()).filter(|words| !words.is_empty()));
                        events_in.send(Event::Failed(failure))
                    }
                };
            })?;
        let _ = connection_in.send((connection.clone(), process.clone()));
        self.greet(&connection, &process);
        self.emit(target, TargetEvent::Reached { route: Route::Relay, hello });
        connection.send(Frame::of(Kind::Command, 0, 0, &Command::Receive(Box::new(job))));
        self.follow(target, &events)
    }

    fn follow(&self, target: usize, events: &Receiver<Event>) -> Result<Outcome> {
        loop {
            let event = events.recv().map_err(|_| lost("target", None))?;
            self.emit(
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

fn no_thread(error: std::io::Error) -> Failure {
    Failure::io("start a thread", &error)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn host_name(place: &Endpoint) -> &str {
    place.host.as_deref().unwrap_or("this machine")
}
