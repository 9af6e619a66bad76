//! What a sync shows: bars on a terminal, plain lines elsewhere, JSON events for programs.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use goldwire_replicate::wire::{Counters, Failure, Phase, Plan};
use goldwire_replicate::{Route, SyncEvent, SyncJob, SyncReport, TargetEvent};
use goldwire_stdx::{ByteSize, printable};
use goldwire_store::CHUNK_SIZE;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use crate::commands::json_line;
use crate::errors::{failed_json, for_running};
use crate::exit::Code;

/// Plain progress lines come this often per target.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The window over which the rate is averaged.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// For whom to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Bars or lines on standard error, a summary on standard output.
    People,
    /// Errors and the summary.
    Quiet,
    /// One JSON object a line on standard output.
    Json,
}

/// Shows one sync.
pub(crate) struct Show {
    mode: Mode,
    names: Vec<String>,
    source: String,
    dry_run: bool,
    limit: Option<u64>,
    started: Instant,
    state: Mutex<State>,
}

struct State {
    bars: Option<MultiProgress>,
    /// Whether the bars are on the screen: not before every host was reached, since `ssh` may ask something until then.
    is_drawing: bool,
    source_bar: Option<ProgressBar>,
    source_line: Option<Instant>,
    targets: Vec<Target>,
}

struct Target {
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
    phase: Option<Phase>,
    plan: Option<Plan>,
    counters: Counters,
    /// Time and chunks done, over the last seconds.
    history: Vec<(Instant, u64, u64)>,
}

impl Show {
    pub(crate) fn new(job: &SyncJob, mode: Mode) -> Self {
        let bars = (mode == Mode::People && io::stderr().is_terminal())
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::hidden()));
        // Whoever types a name may have it from a stranger. Programs get it as it is, escaped as JSON.
        let shown = |place: &dyn std::fmt::Display| match mode {
            Mode::Json => place.to_string(),
            Mode::People | Mode::Quiet => printable(&place.to_string()).into_owned(),
        };
        let names: Vec<String> = job.targets.iter().map(|target| shown(target)).collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0).min(40);
        let style = ProgressStyle::with_template(&format!(
            "{{prefix:{width}}} {{bar:24.cyan/dim}} {{percent:>3}}% {{msg}}"
        ))
        .unwrap_or_else(|_| ProgressStyle::default_bar());
        let targets = names
            .iter()
            .map(|name| {
                let bar = bars.as_ref().map(|bars| {
                    let bar =
                        bars.add(ProgressBar::new(1)).with_style(style.clone()).with_prefix(name.clone());
                    bar.set_message("waiting for the source");
                    bar
                });
                let (counters, history) = (Counters::default(), Vec::new());
                Target { bar, last_line: None, phase: None, plan: None, counters, history }
            })
            .collect();
        let state = State { bars, is_drawing: false, source_bar: None, source_line: None, targets };
        Self {
            mode,
            names,
            source: shown(&job.source),
            dry_run: job.dry_run,
            limit: job.effort.limit,
            started: Instant::now(),
            state: Mutex::new(state),
        }
    }

    /// Shows one event.
    pub(crate) fn event(&self, event: SyncEvent) {
        if self.mode == Mode::Json {
            return self.json_event(&event);
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.is_drawing && matches!(event, SyncEvent::Hashing { .. } | SyncEvent::Source { .. }) {
            state.is_drawing = true;
            if let Some(bars) = &state.bars {
                bars.set_draw_target(ProgressDrawTarget::stderr());
            }
        }
        match event {
            SyncEvent::Hashing { done, total } => self.source_hashing(&mut state, done, total),
            SyncEvent::Notice(text) => {
                self.say(&state, &format!("{}: {}", self.source, goldwire_stdx::printable(&text)));
            }
            SyncEvent::Source { path, version, ready } => {
                let path = printable(&path);
                if let Some(bar) = state.source_bar.take() {
                    bar.finish_and_clear();
                }
                let name = printable(&version.name);
                let signed = version.signer.map(|signer| format!("\nsigned by {signer} as {name:?}"));
                let signed = signed.unwrap_or_default();
                let cached = if ready.tree_was_cached { ", digests at hand" } else { "" };
                self.say(
                    &state,
                    &format!(
                        "{path}: {} disk, {} used{cached}\nroot {}{signed}",
                        ByteSize(version.size),
                        ByteSize(version.chunks_used * CHUNK_SIZE as u64),
                        version.root
                    ),
                );
            }
            SyncEvent::Target { target, event } => self.target_event(&mut state, target, event),
        }
    }

    fn source_hashing(&self, state: &mut State, done: u64, total: u64) {
        if let Some(bars) = &state.bars {
            let bar = state.source_bar.get_or_insert_with(|| {
                let style =
                    ProgressStyle::with_template("{prefix} {bar:24.yellow/dim} {percent:>3}% reading")
                        .unwrap_or_else(|_| ProgressStyle::default_bar());
                bars.insert(0, ProgressBar::new(total)).with_style(style).with_prefix(self.source.clone())
            });
            bar.set_length(total);
            bar.set_position(done);
        } else if state.source_line.is_none_or(|shown| shown.elapsed() >= LINE_EVERY) {
            state.source_line = Some(Instant::now());
            self.say(state, &format!("{}: reading, {}", self.source, percent(done, total)));
        }
    }

    fn target_event(&self, state: &mut State, number: usize, event: TargetEvent) {
        let name = self.names[number].clone();
        let target = &mut state.targets[number];
        match event {
            TargetEvent::Reached { route, hello } => {
                let text = format!("reached {} ({})", hello.host, route_name(route));
                match &target.bar {
                    Some(bar) => bar.set_message(text),
                    None => self.say(state, &format!("{name}: {text}")),
                }
            }
            TargetEvent::Hashing { done, total } => {
                let text = format!("reading what is there, {}", percent(done, total));
                match &target.bar {
                    Some(bar) => bar.set_message(text),
                    None => self.line(state, number, &text),
                }
            }
            TargetEvent::Planned(plan) => {
                let text = describe_plan(&plan);
                target.plan = Some(plan);
                if target.bar.is_none() {
                    self.say(state, &format!("{name}: {text}"));
                }
            }
            TargetEvent::Phase(phase) => {
                target.phase = Some(phase);
                match &target.bar {
                    Some(bar) => bar.set_message(phase_name(phase)),
                    None => self.say(state, &format!("{name}: {}", phase_name(phase))),
                }
            }
            TargetEvent::Progress(counters) => {
                target.note(counters);
                let text = target.describe_progress();
                match &target.bar {
                    Some(bar) => {
                        let (done, total) = target.position();
                        bar.set_length(total.max(1));
                        bar.set_position(done);
                        bar.set_message(text);
                    }
                    None => self.line(state, number, &text),
                }
            }
            TargetEvent::Notice(text) => self.say(state, &format!("{name}: {text}")),
            TargetEvent::Done(outcome) => {
                target.counters = outcome.counters;
                if let Some(bar) = target.bar.take() {
                    bar.set_length(1);
                    bar.set_position(1);
                    bar.finish_with_message(if outcome.already_there { "already there" } else { "done" });
                }
            }
            TargetEvent::Failed(_) => {
                if let Some(bar) = target.bar.take() {
                    bar.abandon_with_message("failed");
                }
            }
        }
    }

    /// A line that does not disturb the bars.
    fn say(&self, state: &State, text: &str) {
        if self.mode != Mode::People {
            return;
        }
        match &state.bars {
            Some(bars) if state.is_drawing => {
                let _ = bars.println(text);
            }
            _ => {
                let _ = writeln!(io::stderr(), "{text}");
            }
        }
    }

    /// A plain progress line, now and then.
    fn line(&self, state: &mut State, number: usize, text: &str) {
        let target = &mut state.targets[number];
        if target.last_line.is_none_or(|last| last.elapsed() >= LINE_EVERY) {
            let is_first = target.last_line.replace(Instant::now()).is_none();
            if !is_first {
                self.say(state, &format!("{}: {text}", self.names[number]));
            }
        }
    }

    /// Takes the bars away.
    pub(crate) fn clear(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bars) = &state.bars {
            let _ = bars.clear();
        }
    }

    /// Says why nothing was begun.
    pub(crate) fn failed_to_begin(&self, failure: &Failure, code: Code) {
        if self.mode == Mode::Json {
            let seconds = self.started.elapsed().as_secs_f64();
            let mut event = failed_json(&for_running(failure.report()));
            event["seconds"] = json!(seconds);
            print_line(&json_line(&event));
            print_line(
                &json!({"event": "summary", "done": 0, "failed": self.names.len(), "seconds": seconds,
                        "exit_code": code as u8})
                .to_string(),
            );
        }
        print_failure("error", failure);
    }

    /// The end of it: a block per target on standard output, failures on standard error.
    pub(crate) fn summary(&self, report: &SyncReport, code: Code) {
        let seconds = self.started.elapsed().as_secs_f64();
        if self.mode == Mode::Json {
            let done = report.targets.iter().filter(|target| target.is_ok()).count();
            let failed = report.targets.len() - done;
            print_line(
                &json!({"event": "summary", "root": report.version.as_ref().map(|version| version.root.to_string()), "done": done,
                        "failed": failed, "seconds": seconds, "exit_code": code as u8})
                .to_string(),
            );
            return;
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, outcome) in report.targets.iter().enumerate() {
            let name = &self.names[number];
            match outcome {
                Ok(_) if self.dry_run => {
                    if let Some(plan) = &state.targets[number].plan {
                        print_line(&format!("{name}: {}", self.describe_dry_run(plan)));
                    } else {
                        print_line(&format!("{name}: already there, nothing would move"));
                    }
                }
                Ok(outcome) if outcome.already_there => {
                    print_line(&format!("{name}: already there: {}", printable(&outcome.path)));
                }
                Ok(outcome) => {
                    let counters = &outcome.counters;
                    let wire = counters.wire_in + counters.wire_out;
                    let whole = counters.chunks_total * CHUNK_SIZE as u64;
                    print_line(&format!(
                        "{name}: {} verified; moved {} of {} ({})",
                        printable(&outcome.path),
                        ByteSize(wire),
                        ByteSize(whole),
                        percent(wire, whole),
                    ));
                }
                Err(failure) => print_failure(name, failure),
            }
        }
        // A root is a promise; where no target keeps it, there is nothing to promise.
        if report.targets.iter().any(Result::is_ok)
            && let Some(version) = &report.version
        {
            print_line(&format!("root {}  in {seconds:.1} s", version.root));
        }
    }

    fn describe_dry_run(&self, plan: &Plan) -> String {
        let missing = plan.chunks_missing * CHUNK_SIZE as u64;
        let rate = match (plan.link_rate, self.limit) {
            (Some(rate), Some(limit)) => Some(rate.min(limit)),
            (rate, limit) => rate.or(limit),
        };
        let time = rate.map_or("?".into(), |rate| seconds_text(missing as f64 / rate.max(1) as f64));
        let kept = match plan.chunks_resumed {
            0 => String::new(),
            kept => format!(", {kept} kept from an earlier run"),
        };
        let seeds = if plan.seeds.is_empty() { "none".to_owned() } else { plan.seeds.join(", ") };
        format!(
            "would write {}\n  chunks  {} in use{kept}, {} from seeds, {} changed or new\n  wire    at most {} before compression, \
             about {time} at {}/s or less\n  space   about {} needed, {} free\n  seeds   {seeds}",
            printable(&plan.path),
            plan.chunks_used,
            plan.chunks_seeded,
            plan.chunks_missing,
            ByteSize(missing),
            rate.map_or("?".into(), |rate| ByteSize(rate).to_string()),
            ByteSize(plan.bytes_needed),
            ByteSize(plan.bytes_free),
        )
    }

    fn json_event(&self, event: &SyncEvent) {
        let mut value = match event {
            SyncEvent::Hashing { done, total } => {
                json!({"event": "hashing", "at": self.source, "done": done, "total": total})
            }
            SyncEvent::Notice(text) => json!({"event": "notice", "at": self.source, "text": text}),
            SyncEvent::Source { path, version, ready } => json!({
                "event": "source", "path": path, "root": version.root.to_string(), "size": version.size,
                "bytes_used": version.chunks_used * CHUNK_SIZE as u64, "created": version.created,
                "name": version.name, "note": version.note, "signer": version.signer.map(|signer| signer.to_string()),
                "tree_was_cached": ready.tree_was_cached,
            }),
            SyncEvent::Target { target, event } => {
                let mut value = target_json(event);
                value["target"] = json!(self.names[*target]);
                value
            }
        };
        value["seconds"] = json!((self.started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0);
        print_line(&json_line(&value));
    }
}

impl Target {
    fn note(&mut self, counters: Counters) {
        let now = Instant::now();
        self.counters = counters;
        self.history.push((now, counters.chunks_done, counters.wire_in));
        let keep_from = self.history.iter().position(|(time, ..)| now - *time <= RATE_WINDOW).unwrap_or(0);
        self.history.drain(..keep_from);
    }

    /// Bytes done and in all, of the current phase.
    fn position(&self) -> (u64, u64) {
        let total = self.counters.chunks_total * CHUNK_SIZE as u64;
        (self.counters.chunks_done * CHUNK_SIZE as u64, total)
    }

    fn describe_progress(&self) -> String {
        let counters = &self.counters;
        match self.phase {
            Some(Phase::Verifying) => {
                return format!("reading back, {}", ByteSize(counters.bytes_verified));
            }
            None | Some(Phase::Comparing) if counters.bytes_laid_out > 0 => {
                return format!("making room, {}", ByteSize(counters.bytes_laid_out));
            }
            Some(Phase::Comparing) => {
                return format!("comparing, {} received", ByteSize(counters.wire_in));
            }
            _ => {}
        }
        let (done, total) = self.position();
        let saved = done.saturating_sub(counters.wire_in);
        let (mut rate, mut left) = (String::from("-"), String::from("-"));
        if let (Some(first), Some(last)) = (self.history.first(), self.history.last())
            && last.0 > first.0
        {
            let seconds = (last.0 - first.0).as_secs_f64();
            rate = ByteSize(((last.2 - first.2) as f64 / seconds) as u64).to_string();
            let chunks = (last.1 - first.1) as f64 / seconds;
            if chunks > 0.0 {
                left = seconds_text((counters.chunks_total - counters.chunks_done) as f64 / chunks);
            }
        }
        format!(
            "{} of {}  wire {rate}/s  {left} left  saved {}",
            ByteSize(done),
            ByteSize(total),
            ByteSize(saved)
        )
    }
}

fn print_line(text: &str) {
    let mut stdout = io::stdout().lock();
    // A reader that went away is no reason to stop a sync.
    let _ = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
}

fn print_failure(name: &str, failure: &Failure) {
    let text = for_running(failure.report()).to_string();
    let lines: Vec<_> = text.lines().map(printable).collect();
    let _ = writeln!(io::stderr(), "{name}: {}", lines.join("\n"));
}

fn target_json(event: &TargetEvent) -> Value {
    match event {
        TargetEvent::Reached { route, hello } => json!({
            "event": "reached", "route": route_name(*route), "host": hello.host, "agent": hello.version,
        }),
        TargetEvent::Hashing { done, total } => json!({"event": "hashing", "done": done, "total": total}),
        TargetEvent::Planned(plan) => json!({
            "event": "planned", "path": plan.path, "chunks_used": plan.chunks_used,
            "chunks_resumed": plan.chunks_resumed, "chunks_seeded": plan.chunks_seeded,
            "chunks_missing": plan.chunks_missing, "bytes_needed": plan.bytes_needed,
            "bytes_free": plan.bytes_free, "seeds": plan.seeds, "link_rate": plan.link_rate,
        }),
        TargetEvent::Phase(phase) => json!({"event": "phase", "phase": phase_name(*phase)}),
        TargetEvent::Progress(counters) => counters_json("progress", counters),
        TargetEvent::Notice(text) => json!({"event": "notice", "text": text}),
        TargetEvent::Done(outcome) => {
            let mut value = counters_json("done", &outcome.counters);
            value["path"] = json!(outcome.path);
            value["root"] = json!(goldwire_stdx::to_hex(&outcome.root));
            value["already_there"] = json!(outcome.already_there);
            value
        }
        TargetEvent::Failed(failure) => failed_json(&for_running(failure.report())),
    }
}

fn counters_json(event: &str, counters: &Counters) -> Value {
    json!({
        "event": event, "nodes_received": counters.nodes_received, "bytes_laid_out": counters.bytes_laid_out,
        "chunks_total": counters.chunks_total, "chunks_done": counters.chunks_done,
        "chunks_resumed": counters.chunks_resumed, "chunks_seeded": counters.chunks_seeded,
        "chunks_received": counters.chunks_received, "blocks_found": counters.blocks_found,
        "blocks_received": counters.blocks_received, "wire_in": counters.wire_in, "wire_out": counters.wire_out,
        "bytes_verified": counters.bytes_verified,
    })
}

fn describe_plan(plan: &Plan) -> String {
    let bytes = |chunks: u64| ByteSize(chunks * CHUNK_SIZE as u64);
    let mut text = format!("{} in use", bytes(plan.chunks_used));
    if plan.chunks_resumed > 0 {
        text += &format!(", {} there already", bytes(plan.chunks_resumed));
    }
    if plan.chunks_seeded > 0 {
        text += &format!(", {} from {}", bytes(plan.chunks_seeded), plan.seeds.join(" and "));
    }
    text + &format!(", {} changed or new", bytes(plan.chunks_missing))
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Comparing => "comparing",
        Phase::Transferring => "transferring",
        Phase::Verifying => "reading back",
        Phase::Publishing => "publishing",
    }
}

fn route_name(route: Route) -> &'static str {
    match route {
        Route::Direct => "direct",
        Route::Relay => "relay",
        Route::Auto => "auto",
    }
}

fn percent(done: u64, total: u64) -> String {
    if total == 0 { "0%".into() } else { format!("{:.1}%", done as f64 * 100.0 / total as f64) }
}

fn seconds_text(seconds: f64) -> String {
    let whole = seconds.ceil().min(1e9) as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}
