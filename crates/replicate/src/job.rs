//! What a sync is asked to do, what it says while it runs, and how it ended.

use std::time::Duration;

use goldwire_stdx::Uuid;
use goldwire_store::{PublicKey, SecretKey, Version};

use crate::endpoint::Endpoint;
use crate::failure::Result;
use crate::install::Agents;
use crate::wire::{Counters, Failure, Hello, Outcome, Phase, Plan, SourceFormat, SourceReady, WireFormat};

/// [`Reach::stall_max`], unless the user says something else: longer than flushing a full cache to a slow disk, or
/// receiving 2 MiB on a slow line that many share.
pub const STALL_MAX: Duration = Duration::from_secs(3600);

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
    Uuid(Uuid),
}

/// What to do. [`SyncJob::new`] has what holds where the user says nothing.
pub struct SyncJob {
    /// The image, or the folder that has it.
    pub source: Endpoint,
    /// Where it goes.
    pub targets: Vec<Endpoint>,
    /// Which image.
    pub select: Select,
    /// How hosts are reached.
    pub reach: Reach,
    /// What is written at the targets.
    pub write: WriteRules,
    /// Where targets take chunks from.
    pub seeds: Seeds,
    /// How much of the machines and the line is used.
    pub effort: Effort,
    /// Who vouches for the content.
    pub trust: Trust,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// Which image of the source.
#[derive(Clone, Debug)]
pub struct Select {
    /// File name pattern for a source that is a folder.
    pub pattern: Option<String>,
    /// Which of several matching images.
    pub choice: Choice,
    /// What the source is; `None` goes by its content.
    pub format: Option<SourceFormat>,
    /// Folders at the source in which parents may lie, beside the image's own.
    pub parent_folders: Vec<String>,
    /// How the times of candidates are written, in seconds since 1970.
    pub show_time: fn(i64) -> String,
}

impl Default for Select {
    fn default() -> Self {
        let show_time = |seconds| format!("{seconds} s after 1970");
        Self { pattern: None, choice: Choice::Only, format: None, parent_folders: Vec::new(), show_time }
    }
}

/// How hosts are reached.
pub struct Reach {
    /// The user's `ssh` with options; empty where no host is ever reached.
    pub ssh: Vec<String>,
    /// The `ssh` that the source host uses to reach targets.
    pub remote_ssh: Vec<String>,
    /// Which way the data goes.
    pub route: Route,
    /// How agents are started.
    pub agents: Agents,
    /// Whether somebody can answer what `ssh` asks.
    pub questions: Questions,
    /// How long a host that answers may come no further before it is given up.
    pub stall_max: Duration,
}

/// Whether somebody can answer what `ssh` asks: an unknown host key, a password, a touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Questions {
    /// There is a terminal: hosts are dialed one after another, before anything is drawn.
    OneByOne,
    /// There is none, and `ssh` says so itself.
    Nobody,
}

/// What is written at the targets.
#[derive(Default)]
pub struct WriteRules {
    /// The container to write; `None` goes by the target's name.
    pub format: Option<WireFormat>,
    /// The file name at targets that are folders, `{uuid}` in it standing for a uuid made from the content and the
    /// folder's path, the same in every run; `None` keeps the source's.
    pub name: Option<String>,
    /// What target folders call it where nobody named it; its ending follows the format. By default the name of the
    /// source's file.
    pub usual_name: Option<String>,
    /// Whether targets that lead into no store are refused, instead of becoming files.
    pub must_be_store: bool,
    /// Whether a file of other content is replaced.
    pub replace: bool,
    /// Permission bits at the target.
    pub mode: Option<u32>,
    /// Owner at the target: user and group.
    pub owner: Option<(u32, u32)>,
    /// How long a target waits for another sync to it to end.
    pub wait: Duration,
    /// Free text for the descriptor; `None` keeps the source's.
    pub note: Option<String>,
}

/// Where targets take chunks from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seeds {
    /// From images in the target's folder that look like a previous version.
    #[default]
    Find,
    /// From these images at each target.
    Named(Vec<String>),
    /// From nowhere: everything is fetched.
    Without,
}

/// How much of the machines and the line is used.
#[derive(Default)]
pub struct Effort {
    /// zstd level; `None` adapts.
    pub level: Option<i32>,
    /// Threads per agent.
    pub threads: Option<u16>,
    /// Nice value for the agents.
    pub nice: Option<u8>,
    /// I/O class and level for the agents.
    pub io_priority: Option<(u8, u8)>,
    /// Bytes per second that each sending machine may send in the beginning; [`Signal::Limit`] changes it.
    pub limit: Option<u64>,
}

/// Who vouches for the content.
#[derive(Default)]
pub struct Trust {
    /// Signs the descriptor.
    pub sign: Option<SecretKey>,
    /// The source's descriptor must bear a signature of this key. What the target is asked for then goes to it over a
    /// connection of this machine, because the source host could change it.
    pub require_signature: Option<PublicKey>,
    /// The version must have this name.
    pub require_name: Option<String>,
    /// Whether a version may replace one that the required key signed and that was created later.
    pub older: Older,
}

/// What becomes of a version that is older than the one it would replace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Older {
    /// It is refused: somebody may have put an old one in the place of the new one.
    #[default]
    Refuse,
    /// It is taken, as when a version is rolled back.
    Allow,
}

impl SyncJob {
    /// From `source` to `targets`, every choice left to goldwire.
    pub fn new(source: Endpoint, targets: Vec<Endpoint>, agents: Agents) -> Self {
        Self {
            source,
            targets,
            select: Select::default(),
            reach: Reach {
                ssh: vec!["ssh".into()],
                remote_ssh: vec!["ssh".into(), "-o".into(), "BatchMode=yes".into()],
                route: Route::Auto,
                agents,
                questions: Questions::Nobody,
                stall_max: STALL_MAX,
            },
            write: WriteRules::default(),
            seeds: Seeds::default(),
            effort: Effort::default(),
            trust: Trust::default(),
            dry_run: false,
        }
    }
}

/// Requests while a sync runs.
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
    /// The source has something to say.
    Notice(String),
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
    /// The version; `None` if no target was reached, and so nothing was read.
    pub version: Option<Version>,
}
