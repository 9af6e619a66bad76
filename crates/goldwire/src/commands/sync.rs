//! `goldwire sync`: typed settings in, a running sync, its progress, its exit code.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use goldwire_replicate::wire::FailureKind;
use goldwire_replicate::{
    Choice, Effort, Older, Questions, Reach, STALL_MAX, Seeds, Select, Signal, SyncJob, SyncReport, Trust,
    WriteRules, sync,
};
use goldwire_stdx::{Report, spawn};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::agents::agents;
use crate::args::SyncArgs;
use crate::commands::key;
use crate::errors::wrong_usage;
use crate::exit::Code;
use crate::progress::{Mode, Show};
use crate::schedule::Schedule;
use crate::time::format_time;

/// Most targets of one sync: each has a stream number.
const TARGETS_MAX: usize = 1000;

pub(crate) fn run(args: SyncArgs) -> Result<Code, Report> {
    if args.targets.len() > TARGETS_MAX {
        return Ok(wrong_usage(&format!("{} targets; at most {TARGETS_MAX} at a time", args.targets.len())));
    }
    if let Some((first, second)) = same_twice(&args) {
        return Ok(wrong_usage(&format!("{first} and {second} are the same place")));
    }
    let choice = match args.uuid {
        Some(uuid) => Choice::Uuid(uuid),
        None if args.youngest => Choice::Youngest,
        None => Choice::Only,
    };
    let job = SyncJob {
        select: Select {
            pattern: args.pattern,
            choice,
            format: args.source_format.map(Into::into),
            parent_folders: args.parents,
            show_time: format_time,
        },
        reach: Reach {
            ssh: split(&args.ssh_command, "--ssh-command")?,
            remote_ssh: split(&args.remote_ssh_command, "--remote-ssh-command")?,
            route: args.route.into(),
            agents: agents(&args.agent_program)?,
            questions: questions(),
            stall_max: args.stall_time.unwrap_or(STALL_MAX),
        },
        write: WriteRules {
            format: args.format.map(Into::into),
            name: args.name,
            usual_name: None,
            must_be_store: false,
            replace: args.replace,
            mode: args.mode,
            owner: args.owner,
            wait: args.wait.unwrap_or_default(),
            note: args.note,
        },
        seeds: match (args.no_seed, args.seed.is_empty()) {
            (true, _) => Seeds::Without,
            (false, true) => Seeds::Find,
            (false, false) => Seeds::Named(args.seed),
        },
        effort: Effort {
            level: args.compress_level,
            threads: args.threads,
            nice: args.nice,
            io_priority: args.ionice,
            limit: args.bwlimit.limit_now(),
        },
        trust: Trust {
            sign: args.sign.as_deref().map(key::secret).transpose()?,
            require_signature: args.require_signature.as_deref().map(key::public).transpose()?,
            require_name: args.require_name,
            older: if args.allow_older { Older::Allow } else { Older::Refuse },
        },
        source: args.source,
        targets: args.targets,
        dry_run: args.dry_run,
    };
    let mode = match (args.json, args.quiet) {
        (true, _) => Mode::Json,
        (_, true) => Mode::Quiet,
        _ => Mode::People,
    };
    run_job(&job, mode, &args.bwlimit, args.max_time)
}

/// Runs the job to its exit code.
pub(crate) fn run_job(
    job: &SyncJob,
    mode: Mode,
    limits: &Schedule,
    max_time: Option<Duration>,
) -> Result<Code, Report> {
    let (control_tx, signals) = unbounded();
    listen(control_tx.clone())?;
    keep_time(control_tx, limits.clone(), max_time)?;
    let show = Show::new(job, mode);
    let outcome = sync(job, &signals, &|event| show.event(event));
    let report = match outcome {
        Ok(report) => report,
        Err(failure) => {
            show.clear();
            let code = if failure.kind == FailureKind::Stopped { Code::Stopped } else { Code::Nothing };
            show.failed_to_begin(&failure, code);
            return Ok(code);
        }
    };
    let code = exit_code(&report);
    show.summary(&report, code);
    Ok(code)
}

fn exit_code(report: &SyncReport) -> Code {
    let well = report.targets.iter().filter(|target| target.is_ok()).count();
    let was_stopped = report
        .targets
        .iter()
        .any(|target| target.as_ref().is_err_and(|failure| failure.kind == FailureKind::Stopped));
    match well {
        _ if was_stopped => Code::Stopped,
        all if all == report.targets.len() => Code::Success,
        0 => Code::Nothing,
        _ => Code::Some,
    }
}

/// Turns signals of the system into those of the sync.
fn listen(control_tx: Sender<Signal>) -> Result<(), Report> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGUSR2])?;
    spawn("signals", move || {
        for signal in &mut signals {
            let _ = control_tx.send(match signal {
                SIGUSR1 => Signal::Pause,
                SIGUSR2 => Signal::Resume,
                _ => Signal::Stop,
            });
        }
    })?;
    Ok(())
}

/// Changes the limit with the time of day, and stops when the time is up.
fn keep_time(
    control_tx: Sender<Signal>,
    limits: Schedule,
    max_time: Option<Duration>,
) -> std::io::Result<()> {
    if !limits.changes() && max_time.is_none() {
        return Ok(());
    }
    let started = Instant::now();
    spawn("clock", move || {
        let mut limit = limits.limit_now();
        let mut deadline = max_time;
        loop {
            let left = deadline.map_or(Duration::MAX, |max| max.saturating_sub(started.elapsed()));
            thread::sleep(left.min(Duration::from_secs(1)));
            if left.is_zero() {
                deadline = None;
                let _ = control_tx.send(Signal::Stop);
            }
            let now = limits.limit_now();
            if now != limit {
                limit = now;
                let _ = control_tx.send(Signal::Limit(now));
            }
        }
    })?;
    Ok(())
}

/// `ssh` asks at the terminal of its session, wherever its standard input comes from.
pub(super) fn questions() -> Questions {
    match std::fs::File::open("/dev/tty") {
        Ok(_) => Questions::OneByOne,
        Err(_) => Questions::Nobody,
    }
}

pub(super) fn split(command: &str, option: &str) -> Result<Vec<String>, Report> {
    match shlex::split(command) {
        Some(words) if !words.is_empty() => Ok(words),
        _ => Err(Report::new(format!("{option}: {command:?} cannot be split into words; check its quotes"))),
    }
}

fn same_twice(args: &SyncArgs) -> Option<(String, String)> {
    let all: Vec<_> = std::iter::once(&args.source).chain(&args.targets).collect();
    all.iter().enumerate().find_map(|(at, place)| {
        all[..at]
            .iter()
            .find(|earlier| **earlier == *place)
            .map(|earlier| (earlier.to_string(), place.to_string()))
    })
}
