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
mod reach;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use crossbeam_channel::Receiver;
use goldwire_stdx::{Stop, printable, spawn_scoped};
use goldwire_store::{Version, wrong_signer};

use self::advance::Advance;
use self::inbox::Inbox;
use self::peers::Peers;
use crate::choose::{choose, offered};
use crate::connection::{Connection, Throttle};
use crate::dial::Process;
use crate::endpoint::Endpoint;
use crate::failure::Result;
use crate::job::{Older, Seeds, Signal, SyncEvent, SyncJob, SyncReport, TargetEvent};
use crate::source::{RemoteServer, Server, SharedServer, place_of_version};
use crate::wire::{
    Candidate, Command, Event, Failure, FailureKind, Frame, Kind, Outcome, RequiredSignature, SourceJob,
    SourceReady, TargetJob,
};

/// Bytes that all targets together may have asked for and not yet dealt with.
const WINDOWS_TOTAL: u64 = 64 << 20;
const WINDOW_MAX: u64 = 24 << 20;
const WINDOW_MIN: u64 = 4 << 20;

/// Bytes of answers kept for targets that come a little later.
const KEEP_BYTES: u64 = 48 << 20;

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
            let other = ready.other_descriptor.as_deref().map(printable);
            let why = wrong_signer(&found.root, found.signer, other.as_deref());
            let hint = match (found.signer, &other) {
                (None, Some(_)) => {
                    "bring the signed image back, or sign what is there now: goldwire disk tree --sign KEY IMAGE"
                }
                _ => "sign it where it was made: goldwire disk tree --sign KEY IMAGE",
            };
            return Err(Failure::new(FailureKind::Invalid, format!("{}: {why}", self.job.source)).hint(hint));
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
        let name = match job.write.name.as_ref().or(job.write.usual_name.as_ref()) {
            Some(name) => name.clone(),
            None => image.path.rsplit('/').next().unwrap_or_default().to_owned(),
        };
        TargetJob {
            path: job.targets[target].path.clone(),
            name,
            is_name_given: job.write.name.is_some(),
            must_be_store: job.write.must_be_store,
            version: bytes.to_vec(),
            required: job.trust.require_signature.as_ref().map(|key| RequiredSignature {
                signer: *key.as_bytes(),
                may_be_older: job.trust.older == Older::Allow,
            }),
            format: job.write.format,
            source_format: ready.format,
            seeds: match &job.seeds {
                Seeds::Named(seeds) => {
                    self.at_hand(target, image, bytes).into_iter().chain(seeds.clone()).collect()
                }
                Seeds::Find => self.at_hand(target, image, bytes).into_iter().collect(),
                Seeds::Without => Vec::new(),
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

    /// The version itself as a seed, where source and target are both on this machine and the source is a store: what is at
    /// hand needs to go through no connection. Everything is read back, as what comes from any seed.
    fn at_hand(&self, target: usize, image: &Candidate, descriptor: &[u8]) -> Option<String> {
        let is_here = self.job.source.host.is_none() && self.job.targets[target].host.is_none();
        let root = Version::decode(descriptor).ok()?.root;
        is_here.then(|| place_of_version(&image.path, &root))?
    }

    /// Passes on what the target says until it has come to its end. What it published is what was asked for, or the
    /// target is at fault, or whoever stands between us.
    fn finished(&self, target: usize, events: &Receiver<Event>, version: &Version) -> Result<Outcome> {
        let who = self.job.targets[target].to_string();
        let mut advance = Advance::waiting(Instant::now(), self.job.write.wait);
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
                // Whom it waits for, it has said in a notice.
                Event::Waiting | Event::Images { .. } | Event::SourceReady(_) | Event::Dialed(_) => continue,
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
mod tests;
