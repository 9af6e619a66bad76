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

mod advance;
mod heard;
mod inbox;
mod peers;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};
use goldwire_stdx::{Stop, printable, spawn_scoped};
use goldwire_store::Version;

use self::advance::Advance;
use self::inbox::{Inbox, Next, inbox};
use self::peers::Peers;
use crate::choose::{choose, offered};
use crate::connection::{Connection, Throttle, lost};
use crate::dial::{Dialed, Process, dial, ssh_command};
use crate::endpoint::Endpoint;
use crate::failure::Result;
use crate::job::{Older, Questions, Route, Seeds, Signal, SyncEvent, SyncJob, SyncReport, TargetEvent};
use crate::source::{RemoteServer, Server, Serving, SharedServer};
use crate::wire::{
    Candidate, Command, Event, Failure, FailureKind, Frame, Hello, Kind, Outcome, RequiredSignature,
    SourceJob, SourceReady, TargetJob,
};

/// Bytes that all targets together may have asked for and not yet dealt with.
const WINDOWS_TOTAL: u64 = 64 << 20;
const WINDOW_MAX: u64 = 24 << 20;
const WINDOW_MIN: u64 = 4 << 20;

/// Bytes of answers kept for targets that come a little later.
const KEEP_BYTES: u64 = 48 << 20;

/// Targets that are dialed at a time: sshd drops connections from ten that have not yet authenticated on
/// (`MaxStartups`), and all may come through one bastion.
const DIALS_MAX: usize = 8;

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
    let peers = Peers::new(Arc::clone(&throttle));
    let over = Stop::new();
    thread::scope(|scope| {
        spawn_scoped(scope, "signals", || peers.watch_signals(signals, &over))
            .map_err(|error| no_thread(&error))?;
        let session = Session { job, peers: &peers, throttle, observe };
        let outcome = session.run();
        over.request();
        peers.kill_all();
        outcome
    })
}

struct Session<'a> {
    job: &'a SyncJob,
    peers: &'a Peers,
    throttle: Arc<Throttle>,
    observe: &'a (dyn Fn(SyncEvent) + Sync),
}

/// Where events of the source's connection go, by stream.
#[derive(Default)]
struct Streams {
    inboxes: Vec<Option<Inbox>>,
    /// Why nothing comes any more.
    ended: Option<Failure>,
}

struct Source {
    connection: Connection,
    process: Process,
    server: Arc<RemoteServer>,
    events: Receiver<Event>,
    streams: Arc<Mutex<Streams>>,
}

/// A target that answered.
struct Reached {
    /// Where commands for it go.
    connection: Connection,
    /// On that connection; 0 is the target itself, others are targets behind the source.
    stream: u16,
    events: Receiver<Event>,
}

impl Session<'_> {
    /// Every host is reached before anything is read: a typing mistake in one target costs no hours, and what `ssh` asks
    /// is asked before there are progress bars.
    fn run(&self) -> Result<SyncReport> {
        let source = self.reach_source()?;
        let image = self.choose(&source)?;
        // One answer for all relayed targets; a single one needs nothing kept.
        let keep = if self.job.targets.len() > 1 { KEEP_BYTES } else { 0 };
        let shared: Arc<dyn Server> =
            Arc::new(SharedServer::new(Arc::clone(&source.server) as Arc<dyn Server>, keep));
        let reached = self.reach_targets(&source, &shared);
        if reached.iter().all(Result::is_err) {
            let targets = reached.into_iter().map(|reached| reached.and(Err(Failure::stopped()))).collect();
            return Ok(SyncReport { targets, version: None });
        }
        let ready = self.open(&source, &image)?;
        let (version, bytes) = self.describe(&ready)?;
        (self.observe)(SyncEvent::Source {
            path: image.path.clone(),
            version: Box::new(version.clone()),
            ready: Box::new(ready.clone()),
        });
        let targets = self.for_each_target(reached, usize::MAX, |target, reached| {
            let reached = reached?;
            let job = self.target_job(target, &image, &ready, &bytes);
            let command = Command::Receive(Box::new(job));
            reached.connection.send(Frame::of(Kind::Command, reached.stream, 0, &command));
            let outcome = self.finished(target, &reached.events, &version).inspect_err(|_| {
                // Whatever it still does, nobody waits for it any more.
                reached.connection.send(Frame::of(Kind::Command, reached.stream, 0, &Command::Stop));
            })?;
            self.emit(target, TargetEvent::Done(outcome.clone()));
            Ok(outcome)
        });
        Ok(SyncReport { targets, version: Some(version) })
    }

    /// Dials every target. Who cannot be reached is reported at once and holds nobody up.
    fn reach_targets(&self, source: &Source, shared: &Arc<dyn Server>) -> Vec<Result<Reached>> {
        let at_once = match self.job.reach.questions {
            Questions::OneByOne => 1,
            Questions::Nobody => DIALS_MAX,
        };
        let all = (0..self.job.targets.len()).map(Ok).collect();
        self.for_each_target(all, at_once, |target, _: Result<usize>| {
            self.reach_target(target, source, shared)
        })
    }

    /// Runs `work` for every target, `at_once` of them at a time, and reports what fails. A target whose input is an error
    /// has been reported already.
    fn for_each_target<I: Send, O: Send>(
        &self,
        inputs: Vec<Result<I>>,
        at_once: usize,
        work: impl Fn(usize, Result<I>) -> Result<O> + Sync,
    ) -> Vec<Result<O>> {
        let count = inputs.len();
        let inputs: Vec<Mutex<Option<Result<I>>>> =
            inputs.into_iter().map(|input| Mutex::new(Some(input))).collect();
        let outputs: Vec<Mutex<Option<Result<O>>>> = (0..count).map(|_| Mutex::default()).collect();
        let next = AtomicUsize::new(0);
        let worker = || {
            loop {
                let target = next.fetch_add(1, Ordering::Relaxed);
                let Some(input) = inputs.get(target).and_then(|input| lock(input).take()) else { return };
                let was_reported = input.is_err();
                // Ctrl-C at a terminal reaches ssh too, which then ends before it can say why.
                let is_cut = |failure: &Failure| {
                    failure.kind == FailureKind::Disconnected && self.peers.stopping.is_requested()
                };
                let output = work(target, input)
                    .map_err(|failure| if is_cut(&failure) { Failure::stopped() } else { failure });
                if let Err(failure) = &output
                    && !was_reported
                {
                    self.emit(target, TargetEvent::Failed(failure.clone()));
                }
                *lock(&outputs[target]) = Some(output);
            }
        };
        let started = thread::scope(|scope| {
            (0..count.min(at_once)).try_for_each(|_| spawn_scoped(scope, "target", worker).map(drop))
        });
        // Threads that could be had did everything; without any, nothing was done.
        let missing = || started.as_ref().err().map_or_else(|| thread_failed("a thread failed"), no_thread);
        outputs.into_iter().map(|output| unlock(output).unwrap_or_else(|| Err(missing()))).collect()
    }

    fn emit(&self, target: usize, event: TargetEvent) {
        (self.observe)(SyncEvent::Target { target, event });
    }

    fn dial(&self, place: &Endpoint) -> Result<Dialed> {
        let ssh = self.ssh_to(place.host.as_deref());
        let note = |process: &Process| {
            lock(&self.peers.dialing).push(process.clone());
            if self.peers.stopping.is_requested() {
                process.kill();
            }
        };
        let dialed = dial(&ssh, host_name(place), &self.job.reach.agents, &note);
        if let Ok(dialed) = &dialed {
            // From here on it is asked to stop instead.
            lock(&self.peers.dialing).retain(|process| !process.is(&dialed.process));
        }
        dialed.map_err(|failure| match self.peers.stopping.is_requested() {
            true => Failure::stopped(),
            false => failure,
        })
    }

    fn reach_source(&self) -> Result<Source> {
        let place = &self.job.source;
        let dialed = self.dial(place).map_err(|failure| failure.context("the source"))?;
        let (events_in, events) = inbox();
        let mut inboxes = vec![Some(events_in)];
        inboxes.resize_with(self.job.targets.len() + 1, || None);
        let streams = Arc::new(Mutex::new(Streams { inboxes, ended: None }));
        let (server_in, server_out) = bounded::<Arc<RemoteServer>>(1);
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
                        let stream = usize::from(frame.stream);
                        let mut streams = lock(&sorted);
                        if let Some(slot) = streams.inboxes.get_mut(stream)
                            && let Some(inbox) = slot
                            && inbox.put(heard::event(&frame)) == Next::Nothing
                        {
                            *slot = None;
                        }
                    }
                    _ => {}
                },
                end => {
                    let failure = lost("source", end.err().as_ref());
                    server.end(&failure);
                    let mut streams = lock(&sorted);
                    for inbox in streams.inboxes.drain(..).flatten() {
                        inbox.put(Event::Failed(failure.clone()));
                    }
                    streams.ended = Some(failure);
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
        if self.peers.stopping.is_requested() {
            connection.send(Frame::of(Kind::Command, 0, 0, &Command::Stop));
        }
    }

    fn ssh_to(&self, host: Option<&str>) -> Vec<String> {
        host.map(|host| ssh_command(&self.job.reach.ssh, host)).unwrap_or_default()
    }

    /// The next event of the source itself, after the last words of `ssh` if it ended.
    fn source_event(&self, source: &Source, advance: &mut Advance) -> Result<Event> {
        let who = format!("the source {}", self.job.source);
        match self.next_event(&who, &source.events, advance)? {
            Event::Failed(failure) => {
                let failure = if self.peers.stopping.is_requested() { Failure::stopped() } else { failure };
                let words = source.process.last_words();
                let failure = failure.context(who);
                Err(if words.is_empty() { failure } else { failure.hint(format!("ssh said: {words}")) })
            }
            event => Ok(event),
        }
    }

    fn next_event(&self, who: &str, events: &Receiver<Event>, advance: &mut Advance) -> Result<Event> {
        advance.next(who, events, self.job.reach.stall_max, &self.throttle)
    }

    fn choose(&self, source: &Source) -> Result<Candidate> {
        let (path, pattern) = (self.job.source.path.clone(), self.job.select.pattern.clone());
        let list = Command::List { path, pattern, format: self.job.select.format };
        source.connection.send(Frame::of(Kind::Command, 0, 0, &list));
        let mut advance = Advance::new(Instant::now());
        loop {
            if let Event::Images { is_folder, images } = self.source_event(source, &mut advance)? {
                if !is_folder && self.job.select.pattern.is_some() {
                    let text = format!("{} is a file, and a pattern needs a folder", self.job.source);
                    return Err(Failure::new(FailureKind::Invalid, text));
                }
                let images =
                    offered(&self.job.source, is_folder, images, self.job.select.pattern.as_deref())?;
                return choose(&self.job.source, images, &self.job.select);
            }
        }
    }

    fn open(&self, source: &Source, image: &Candidate) -> Result<SourceReady> {
        let job = SourceJob {
            path: image.path.clone(),
            format: self.job.select.format,
            parent_folders: self.job.select.parent_folders.clone(),
            level: self.job.effort.level,
            keep_bytes: if self.job.targets.len() > 1 { KEEP_BYTES } else { 0 },
            threads: self.job.effort.threads,
            // A signature vouches for bytes, not for digests that somebody kept.
            read_all: self.job.trust.sign.is_some(),
        };
        source.connection.send(Frame::of(Kind::Command, 0, 0, &Command::OpenSource(job)));
        let mut advance = Advance::new(Instant::now());
        loop {
            match self.source_event(source, &mut advance)? {
                Event::SourceReady(ready) => {
                    // Nobody listens to it from here on; what concerns a target comes on its stream.
                    if let Some(events) = lock(&source.streams).inboxes.first_mut() {
                        *events = None;
                    }
                    return Ok(ready);
                }
                Event::Hashing { done, total } => (self.observe)(SyncEvent::Hashing { done, total }),
                Event::Notice(text) => (self.observe)(SyncEvent::Notice(text)),
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
        if let Some(name) = &self.job.trust.require_name
            && *name != found.name
        {
            let text = format!(
                "{}: the version is named {:?}, not {name:?}",
                self.job.source,
                printable(&found.name)
            );
            return Err(Failure::new(FailureKind::Invalid, text)
                .hint("--require-name asks for the name in the signed descriptor; `goldwire disk tree --json IMAGE` shows it"));
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

    /// What a target is asked to do. All names come from what the user wrote or chose, never from what the source says of
    /// itself (CVE-2019-6111).
    fn target_job(&self, target: usize, image: &Candidate, ready: &SourceReady, bytes: &[u8]) -> TargetJob {
        let job = self.job;
        let name = match &job.write.name {
            Some(name) => name.clone(),
            None => image.path.rsplit('/').next().unwrap_or_default().to_owned(),
        };
        TargetJob {
            path: job.targets[target].path.clone(),
            name,
            is_name_given: job.write.name.is_some(),
            version: bytes.to_vec(),
            required: job.trust.require_signature.as_ref().map(|key| RequiredSignature {
                signer: *key.as_bytes(),
                may_be_older: job.trust.older == Older::Allow,
            }),
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
            source_mode: ready.mode & 0o777,
            owner: job.write.owner,
            wait_seconds: u32::try_from(job.write.wait.as_secs()).unwrap_or(u32::MAX),
            window_bytes: (WINDOWS_TOTAL / job.targets.len().max(1) as u64).clamp(WINDOW_MIN, WINDOW_MAX),
            threads: job.effort.threads,
        }
    }

    fn reach_target(&self, target: usize, source: &Source, shared: &Arc<dyn Server>) -> Result<Reached> {
        let place = &self.job.targets[target];
        if let Some(meant) = place.with_forgotten_colon() {
            let text =
                format!("{place} is a place on this machine; with a colon it is one on a host: {meant}");
            self.emit(target, TargetEvent::Notice(text));
        }
        let from = self.job.source.host.as_deref();
        // From a local source, this machine *is* the source host; a target on it needs no way at all.
        let can_be_direct = from.is_none() || place.host.is_some();
        if self.job.reach.route == Route::Direct && !can_be_direct {
            let text = format!("{place} is on this machine, which the source host cannot be asked to reach");
            return Err(Failure::new(FailureKind::Invalid, text).hint("use --route relay or auto"));
        }
        // On the direct route all that the target hears passes through the source host, which could show us one version
        // and the target another. Who asks for a signature does not trust that host.
        let must_relay = self.job.trust.require_signature.is_some() && from.is_some();
        if must_relay && self.job.reach.route == Route::Direct {
            let text =
                "with --require-signature the source host must not pass on what the target is asked for";
            return Err(Failure::new(FailureKind::Invalid, text).hint("use --route relay or auto"));
        }
        if can_be_direct && !must_relay && (self.job.reach.route != Route::Relay || from.is_none()) {
            match self.direct(target, source) {
                Ok((hello, events)) => {
                    self.emit(target, TargetEvent::Reached { route: Route::Direct, hello });
                    return Ok(Reached {
                        connection: source.connection.clone(),
                        stream: target as u16 + 1,
                        events,
                    });
                }
                Err(failure) if self.job.reach.route == Route::Direct || from.is_none() => {
                    return Err(failure);
                }
                Err(_) if self.peers.stopping.is_requested() => return Err(Failure::stopped()),
                Err(failure) => {
                    let text = format!("the source cannot reach it ({}); relaying", failure.report().line());
                    self.emit(target, TargetEvent::Notice(text));
                }
            }
        }
        self.relay(target, shared)
    }

    /// Has the source reach the target.
    fn direct(&self, target: usize, source: &Source) -> Result<(Hello, Receiver<Event>)> {
        let place = &self.job.targets[target];
        let stream = target as u16 + 1;
        let (events_in, events) = inbox();
        {
            let mut streams = lock(&source.streams);
            match streams.inboxes.get_mut(usize::from(stream)) {
                Some(slot) => *slot = Some(events_in),
                None => return Err(streams.ended.clone().unwrap_or_else(|| lost("source", None))),
            }
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
        let (who, mut advance) = (place.to_string(), Advance::new(Instant::now()));
        loop {
            match self.next_event(&who, &events, &mut advance)? {
                Event::Dialed(hello) => {
                    // It answered too late to hear of a stop.
                    if self.peers.stopping.is_requested() {
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
    fn relay(&self, target: usize, shared: &Arc<dyn Server>) -> Result<Reached> {
        let place = &self.job.targets[target];
        let dialed = self.dial(place)?;
        let (events_in, events) = inbox();
        let mut events_in = Some(events_in);
        let (connection_in, connection_out) = bounded::<(Connection, Process)>(1);
        let mut own = None;
        let server = Arc::clone(shared);
        let (connection, process, hello) =
            dialed.into_connection(Arc::clone(&self.throttle), move |frame| {
                let own: &mut Option<(Serving, Process)> = &mut own;
                if own.is_none() {
                    *own = connection_out.recv().ok().map(|(connection, process)| {
                        (Serving::new(Arc::clone(&server), connection), process)
                    });
                }
                let Some((serving, process)) = own else { return };
                let event = match frame {
                    Ok(Some(frame)) if frame.kind == Kind::Request => match serving.take(&frame) {
                        Ok(()) => return,
                        Err(failure) => {
                            process.kill();
                            Event::Failed(failure)
                        }
                    },
                    Ok(Some(frame)) if frame.kind == Kind::Event => heard::event(&frame),
                    Ok(Some(_)) => return,
                    end => {
                        let mut failure = lost("target", end.err().as_ref());
                        failure.chain.extend(Some(process.last_words()).filter(|words| !words.is_empty()));
                        Event::Failed(failure)
                    }
                };
                if let Some(inbox) = &events_in
                    && inbox.put(event) == Next::Nothing
                {
                    events_in = None;
                }
            })?;
        let _ = connection_in.send((connection.clone(), process.clone()));
        self.greet(&connection, &process);
        self.emit(target, TargetEvent::Reached { route: Route::Relay, hello });
        Ok(Reached { connection, stream: 0, events })
    }

    /// Passes on what the target says until it has come to its end. What it published is what was asked for, or the
    /// target is at fault, or whoever stands between us.
    fn finished(&self, target: usize, events: &Receiver<Event>, version: &Version) -> Result<Outcome> {
        let (who, mut advance) = (self.job.targets[target].to_string(), Advance::new(Instant::now()));
        loop {
            let event = match self.next_event(&who, events, &mut advance)? {
                Event::Done(outcome) if outcome.root == version.root.0 => return Ok(outcome),
                Event::Done(outcome) => {
                    let text = format!(
                        "{} says that it holds the root {} instead of {}",
                        self.job.targets[target],
                        goldwire_stdx::to_hex(&outcome.root),
                        version.root
                    );
                    return Err(Failure::new(FailureKind::Other, text).hint(
                        "do not use what is there: the source host, or the target, does not do what it is asked for",
                    ));
                }
                Event::Failed(failure) => return Err(failure),
                Event::Hashing { done, total } => TargetEvent::Hashing { done, total },
                Event::Planned(plan) => TargetEvent::Planned(plan),
                Event::Progress(counters) => TargetEvent::Progress(counters),
                Event::Phase(phase) => TargetEvent::Phase(phase),
                Event::Notice(text) => TargetEvent::Notice(text),
                Event::Images { .. } | Event::SourceReady(_) | Event::Dialed(_) => continue,
            };
            self.emit(target, event);
        }
    }
}

fn no_thread(error: &std::io::Error) -> Failure {
    Failure::io("start a thread", error)
}

fn thread_failed(message: &str) -> Failure {
    Failure::new(FailureKind::Other, message)
}

fn unlock<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn host_name(place: &Endpoint) -> &str {
    place.host.as_deref().unwrap_or("this machine")
}

#[cfg(test)]
mod hostile;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::Agents;
    use crate::wire::Counters;
    use goldwire_store::Root;

    fn version() -> Version {
        Version {
            root: Root([7; 32]),
            size: 1 << 20,
            chunks_used: 1,
            created: 0,
            parent: None,
            name: "win11.raw".into(),
            note: String::new(),
            signer: None,
        }
    }

    fn with_session<T>(job: &SyncJob, work: impl FnOnce(&Session<'_>) -> T) -> T {
        let throttle = Arc::new(Throttle::default());
        let peers = Peers::new(Arc::clone(&throttle));
        work(&Session { job, peers: &peers, throttle, observe: &|_| () })
    }

    fn job() -> SyncJob {
        let agents = Agents { local: Vec::new(), programs: Vec::new(), echo_stderr: false };
        let place = |text: &str| text.parse().unwrap_or_else(|never| match never {});
        SyncJob::new(place("evil:/images/win11.raw"), vec![place("sr/"), place("host:/sr/")], agents)
    }

    /// Whatever root a target claims, only the one that was asked for is success.
    #[test]
    fn a_target_that_holds_something_else_has_not_done_it() {
        for (root, is_right) in [([7; 32], true), ([0; 32], false), ([8; 32], false)] {
            let (said, events) = inbox();
            let outcome =
                Outcome { path: "p".into(), root, counters: Counters::default(), already_there: true };
            said.put(Event::Phase(crate::wire::Phase::Comparing));
            said.put(Event::Done(outcome));
            let finished = with_session(&job(), |session| session.finished(0, &events, &version()));
            assert_eq!(finished.is_ok(), is_right, "{finished:?}");
        }
    }

    /// The file name, and the bits beyond permissions, are never the source's choice.
    #[test]
    fn a_target_is_asked_for_what_the_user_wrote() {
        let image = Candidate {
            path: "/images/win11.raw".into(),
            format: "raw".into(),
            size: 0,
            file_length: 0,
            uuid: None,
            hidden: false,
            has_parent: false,
            modified: 0,
            created: None,
        };
        let ready = SourceReady {
            version: Vec::new(),
            format: crate::wire::WireFormat::Raw,
            name: "payroll.raw".into(),
            mode: 0o6777,
            tree_was_cached: false,
        };
        let asked = |job: &SyncJob| with_session(job, |session| session.target_job(0, &image, &ready, b"d"));
        let plain = TargetJob {
            path: "sr/".into(),
            name: "win11.raw".into(),
            is_name_given: false,
            version: b"d".to_vec(),
            required: None,
            format: None,
            source_format: crate::wire::WireFormat::Raw,
            seeds: Vec::new(),
            find_seeds: true,
            replace: false,
            dry_run: false,
            mode: None,
            source_mode: 0o777,
            owner: None,
            wait_seconds: 0,
            // 64 MiB for two are more than one may have.
            window_bytes: 24 << 20,
            threads: None,
        };
        assert_eq!(asked(&job()), plain);
        let mut named = job();
        named.write.name = Some("{uuid}.vhd".into());
        let expected = TargetJob { name: "{uuid}.vhd".into(), is_name_given: true, ..plain.clone() };
        assert_eq!(asked(&named), expected, "the target knows its folder");
        let mut many = job();
        many.targets = vec![many.targets[0].clone(); 8];
        assert_eq!(asked(&many).window_bytes, 8 << 20);
        many.targets = vec![many.targets[0].clone(); 800];
        assert_eq!(asked(&many).window_bytes, 4 << 20);
        let mut signed = job();
        let key = goldwire_store::SecretKey::from_random([1; 32]).public();
        signed.trust.require_signature = Some(key);
        for (older, may_be_older) in [(Older::Refuse, false), (Older::Allow, true)] {
            signed.trust.older = older;
            let required = RequiredSignature { signer: *key.as_bytes(), may_be_older };
            assert_eq!(asked(&signed).required, Some(required));
        }
        let mut seeded = job();
        for (seeds, named, find_seeds) in [
            (Seeds::Named(vec!["/old".into()]), vec!["/old".to_owned()], false),
            (Seeds::Without, Vec::new(), false),
        ] {
            seeded.seeds = seeds;
            assert_eq!((asked(&seeded).seeds, asked(&seeded).find_seeds), (named, find_seeds));
        }
    }

    /// What goes to the targets is the source's descriptor, byte for byte, or one that we made and may make.
    #[test]
    fn a_descriptor_is_passed_on_signed_anew_or_refused() {
        use goldwire_store::SecretKey;
        let [ours, theirs] = [1, 2].map(|seed| SecretKey::from_random([seed; 32]));
        let ready = |key: Option<&SecretKey>| SourceReady {
            version: Version { note: "old".into(), ..version() }.encode(key).unwrap(),
            format: crate::wire::WireFormat::Raw,
            name: "payroll.raw".into(),
            mode: 0,
            tree_was_cached: false,
        };
        let described = |job: &SyncJob, key: Option<&SecretKey>| {
            let ready = ready(key);
            with_session(job, |session| session.describe(&ready)).map(|(version, bytes)| {
                assert_eq!(Version::decode(&bytes).unwrap(), version);
                let is_as_it_came = bytes == ready.version;
                (version.note, version.signer, is_as_it_came)
            })
        };
        let old = || "old".to_owned();
        assert_eq!(described(&job(), None), Ok((old(), None, true)));
        assert_eq!(described(&job(), Some(&theirs)), Ok((old(), Some(theirs.public()), true)));

        let mut requiring = job();
        requiring.trust.require_signature = Some(theirs.public());
        assert!(described(&requiring, Some(&theirs)).is_ok());
        for (key, who) in [(None, "nobody".to_owned()), (Some(&ours), ours.public().to_string())] {
            let refused = described(&requiring, key).unwrap_err().to_string();
            assert!(refused.contains(&format!("signed by {who}")), "{refused}");
        }
        requiring.trust.require_name = Some("win11.raw".into());
        assert!(described(&requiring, Some(&theirs)).is_ok());
        requiring.trust.require_name = Some("win10.raw".into());
        assert!(described(&requiring, Some(&theirs)).unwrap_err().to_string().contains("not \"win10.raw\""));

        let mut noting = job();
        noting.write.note = Some("new".into());
        assert_eq!(described(&noting, None), Ok(("new".into(), None, false)));
        assert!(described(&noting, Some(&theirs)).unwrap_err().to_string().contains("would undo"));
        noting.trust.sign = Some(SecretKey::from_random([1; 32]));
        assert_eq!(described(&noting, Some(&theirs)), Ok(("new".into(), Some(ours.public()), false)));
        noting.write.note = None;
        assert_eq!(described(&noting, None), Ok((old(), Some(ours.public()), false)));
        noting.write.note = Some("x".repeat(5000));
        assert!(described(&noting, None).is_err());

        let damaged = SourceReady { version: b"GWVERS".to_vec(), ..ready(None) };
        assert!(with_session(&job(), |session| session.describe(&damaged)).is_err());
    }

    #[test]
    fn with_a_required_signature_nothing_goes_by_way_of_the_source() {
        let mut job = job();
        job.trust.require_signature = Some(goldwire_store::SecretKey::from_random([1; 32]).public());
        job.reach.route = Route::Direct;
        let (sent, received) = std::io::pipe().unwrap();
        let connection = Connection::start(sent, received, Arc::new(Throttle::default()), |_| ()).unwrap();
        let server = Arc::new(RemoteServer::new(connection.clone()));
        let shared: Arc<dyn Server> = server.clone();
        let source = Source {
            connection,
            process: Process::none(),
            server,
            events: inbox().1,
            streams: Arc::default(),
        };
        let refused = with_session(&job, |session| session.reach_target(1, &source, &shared).err());
        assert!(refused.unwrap().to_string().contains("--route relay"));
    }
}
