//! The control side against sources and targets that say what they like, on both routes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded};
use goldwire_stdx::testing::some;

use super::*;
use crate::install::{Agents, Program};
use crate::job::Route;
use crate::testing::{Script, memory_of, runs_alone};
use crate::wire::{Counters, Hello, Phase, WireFormat};

/// What one hostile peer may cost.
const COST_MAX: u64 = 100 << 20;

const IMAGE: &str = "/images/win11.raw";

fn version() -> Version {
    Version {
        root: goldwire_store::Root([7; 32]),
        size: 1 << 20,
        chunks_used: 1,
        created: 0,
        parent: None,
        name: "win11.raw".into(),
        note: String::new(),
        signer: None,
    }
}

fn event(stream: u16, event: &Event) -> Frame {
    Frame::of(Kind::Event, stream, 0, event)
}

fn images(path: &str) -> Frame {
    let image = Candidate {
        path: path.into(),
        format: "raw".into(),
        size: 1 << 20,
        file_length: 1 << 20,
        uuid: None,
        hidden: false,
        has_parent: false,
        modified: 0,
        created: None,
    };
    event(0, &Event::Images { is_folder: false, images: vec![image] })
}

fn ready() -> Frame {
    let ready = SourceReady {
        version: version().encode(None).unwrap(),
        other_descriptor: None,
        format: WireFormat::Raw,
        name: "payroll.raw".into(),
        mode: 0o600,
        tree_was_cached: true,
    };
    event(0, &Event::SourceReady(ready))
}

fn dialed(stream: u16) -> Frame {
    let hello = Hello {
        protocol: crate::wire::PROTOCOL_VERSION,
        version: "v".into(),
        host: "t".into(),
        program: [0; 32],
    };
    event(stream, &Event::Dialed(hello))
}

fn done(root: u8) -> Event {
    let counters = Counters::default();
    Event::Done(Outcome { path: "/sr/win11.raw".into(), root: [root; 32], counters, already_there: false })
}

/// What `ssh` does: a source on one host, a target on any other.
fn ssh(source: &Script, target: &Script) -> Vec<String> {
    let run = |script: &Script| -> Vec<String> {
        script.local().into_iter().map(|word: PathBuf| word.into_os_string().into_string().unwrap()).collect()
    };
    let text = format!(
        "case \" $* \" in *' -G '*) exit 1;; *' evilsource '*) exec {};; *) exec {};; esac",
        run(source).join(" "),
        run(target).join(" ")
    );
    ["/bin/sh", "-c", &text, "ssh"].map(str::to_owned).to_vec()
}

/// When somebody loses patience.
#[derive(Clone, Copy)]
struct Patience {
    /// The control side, with a host that comes no further.
    stall_max: Duration,
    /// A person, who stops the sync, and a second time if it does not end.
    person: Duration,
    /// The user, with a target that somebody else holds.
    wait: Duration,
}

/// For what ends by itself, on a busy machine too: with one processor for a dozen such tests, 20 seconds were too few.
const ENDS: Patience =
    Patience { stall_max: crate::job::STALL_MAX, person: Duration::from_secs(120), wait: Duration::ZERO };

/// For what does not.
const NEVER_ENDS: Patience = Patience { person: Duration::from_millis(800), ..ENDS };

/// For what the control side has to end.
const STALLS: Patience = Patience { stall_max: Duration::from_millis(150), ..ENDS };

/// Runs a sync from a scripted source to scripted targets. What it came to, and the bytes that it cost.
fn run(
    patience: Patience,
    from: &str,
    to: &[&str],
    route: Route,
    source: &Script,
    target: &Script,
) -> (Result<SyncReport>, u64) {
    let agents = Agents {
        local: source.local(),
        programs: vec![Program { machine: "x86_64".into(), bytes: Arc::default() }],
        echo_stderr: false,
    };
    let place = |text: &str| text.parse().unwrap();
    let mut job = SyncJob::new(place(from), to.iter().map(|to| place(to)).collect(), agents);
    job.reach.ssh = ssh(source, target);
    job.reach.route = route;
    job.reach.stall_max = patience.stall_max;
    job.write.wait = patience.wait;
    let (signal, signals) = unbounded();
    let (ended, is_ended) = bounded::<()>(1);
    let before = memory_of();
    thread::scope(|scope| {
        let watcher = goldwire_stdx::spawn_scoped(scope, "watcher", move || {
            let began = Instant::now();
            let (mut most, mut stops) = (0, 0);
            while is_ended.recv_timeout(Duration::from_millis(10)).is_err() {
                most = most.max(memory_of());
                if began.elapsed() > patience.person * (stops + 1) && stops < 2 {
                    stops += 1;
                    let _ = signal.send(Signal::Stop);
                }
            }
            most
        })
        .unwrap();
        let report = sync(&job, &signals, &|_| ());
        let _ = ended.send(());
        (report, watcher.join().unwrap().saturating_sub(before))
    })
}

/// A target that never says how it ended, whatever else it says, is given up by nobody's hand.
#[test]
fn a_target_that_comes_no_further_is_given_up_on_both_routes() {
    let counters = Counters { chunks_done: 1, chunks_total: 9, wire_in: 1 << 40, ..Counters::default() };
    for said in [
        None,
        Some(Event::Progress(counters)),
        Some(Event::Notice("soon".into())),
        Some(Event::Phase(Phase::Publishing)),
        Some(Event::Waiting),
    ] {
        let said = |stream| said.as_ref().map_or_else(nothing, |said| event(stream, said));
        let source = Script::repeating(&[images(IMAGE), ready()], &[dialed(1), said(1)]);
        let (report, _) = run(STALLS, IMAGE, &["host:/sr/"], Route::Direct, &source, &quiet(&[]));
        let direct = report.unwrap().targets.remove(0);
        let source = quiet(&[images(IMAGE), ready()]);
        let target = Script::repeating(&[], &[said(0)]);
        let from = format!("evilsource:{IMAGE}");
        let (report, _) = run(STALLS, &from, &["eviltarget:/sr/"], Route::Relay, &source, &target);
        let relay = report.unwrap().targets.remove(0);
        for (outcome, target) in [(direct, "host:/sr/"), (relay, "eviltarget:/sr/")] {
            let failure = outcome.unwrap_err().to_string();
            assert!(failure.contains(&format!("{target} has come no further for 0.15 s")), "{failure}");
        }
    }
}

/// So is a source that answers and neither offers an image nor opens it.
#[test]
fn a_source_that_comes_no_further_is_given_up() {
    for once in [vec![], vec![images(IMAGE)]] {
        let again = [dialed(1), event(0, &Event::Hashing { done: 1, total: 2 })];
        let source = Script::repeating(&once, &again);
        let (report, _) = run(STALLS, IMAGE, &["host:/sr/"], Route::Direct, &source, &quiet(&[]));
        let failure = report.unwrap_err().to_string();
        assert!(failure.contains("the source /images/win11.raw has come no further"), "{failure}");
    }
}

/// `--wait 2h` was given up after the hour of `--stall-time`, as if something hung.
#[test]
fn a_target_that_waits_for_its_lock_is_not_given_up_before_the_time_that_the_user_said() {
    // A second without a word is much, also where everybody else wants the machine.
    let patience = Patience { wait: Duration::from_secs(3), stall_max: Duration::from_secs(1), ..STALLS };
    let source = Script::repeating(&[images(IMAGE), ready()], &[dialed(1), event(1, &Event::Waiting)]);
    let began = Instant::now();
    let (report, _) = run(patience, IMAGE, &["host:/sr/"], Route::Direct, &source, &quiet(&[]));
    let failure = report.unwrap().targets.remove(0).unwrap_err().to_string();
    assert!(failure.contains("has come no further"), "{failure}");
    assert!(began.elapsed() > patience.wait, "{:?}", began.elapsed());
}

fn nothing() -> Frame {
    Frame { kind: Kind::Ping, stream: 0, id: 0, payload: Arc::default() }
}

fn quiet(once: &[Frame]) -> Script {
    Script::new(once, &nothing(), Some(0))
}

#[test]
fn only_the_root_that_was_asked_for_is_success_on_both_routes() {
    for (root, is_right) in [(7, true), (0, false), (8, false)] {
        let source = Script::repeating(&[images(IMAGE), ready()], &[dialed(1), event(1, &done(root))]);
        let (report, _) = run(ENDS, IMAGE, &["host:/sr/"], Route::Direct, &source, &quiet(&[]));
        let direct = report.unwrap().targets.remove(0);
        let source = quiet(&[images(IMAGE), ready()]);
        let target = quiet(&[event(0, &done(root))]);
        let from = format!("evilsource:{IMAGE}");
        let (report, _) = run(ENDS, &from, &["eviltarget:/sr/"], Route::Relay, &source, &target);
        let relay = report.unwrap().targets.remove(0);
        for outcome in [direct, relay] {
            match outcome {
                Ok(outcome) => assert!(is_right && outcome.root == [7; 32]),
                Err(failure) => {
                    assert!(!is_right && failure.to_string().contains("instead of 0707"), "{failure}");
                }
            }
        }
    }
}

/// What an observer hears, in order, of a sync that goes well.
#[test]
fn everything_that_happens_is_told_in_order() {
    let source = Script::repeating(
        &[images(IMAGE), event(0, &Event::Hashing { done: 1, total: 2 }), ready()],
        &[
            dialed(1),
            event(1, &Event::Planned(Default::default())),
            event(1, &Event::Progress(Counters::default())),
            event(1, &Event::Hashing { done: 3, total: 4 }),
            event(1, &Event::Phase(Phase::Verifying)),
            event(1, &Event::Notice("n".into())),
            event(1, &done(7)),
        ],
    );
    let agents = Agents { local: source.local(), programs: Vec::new(), echo_stderr: false };
    let place = |text: &str| text.parse().unwrap();
    let mut job = SyncJob::new(place(IMAGE), vec![place("host:/sr/")], agents);
    job.reach.route = Route::Direct;
    let heard: Mutex<Vec<String>> = Mutex::default();
    let observe = |event: SyncEvent| {
        let text = match event {
            SyncEvent::Hashing { done, total } => format!("hashing {done} of {total}"),
            SyncEvent::Notice(text) => format!("notice {text}"),
            SyncEvent::Source { path, ready, .. } => format!("source {path} {}", ready.tree_was_cached),
            SyncEvent::Target { target, event } => {
                format!("{target} {}", format!("{event:?}").split(['(', ' ']).next().unwrap_or_default())
            }
        };
        heard.lock().unwrap().push(text);
    };
    let report = sync(&job, &unbounded().1, &observe).unwrap();
    assert_eq!(report.version, Some(version()));
    assert_eq!(
        *heard.lock().unwrap(),
        [
            "0 Reached",
            "hashing 1 of 2",
            "source /images/win11.raw true",
            "0 Planned",
            "0 Progress",
            "0 Hashing",
            "0 Phase",
            "0 Notice",
            "0 Done",
        ]
    );
}

#[test]
fn a_source_that_offers_another_file_is_refused() {
    for path in ["/images/payroll.raw", "/images/win11.raw\n", "win11.raw", "/images/../win11.raw"] {
        let source = quiet(&[images(path), dialed(1), ready(), event(1, &done(7))]);
        let (report, _) = run(ENDS, IMAGE, &["host:/sr/"], Route::Direct, &source, &quiet(&[]));
        let refused = report.unwrap_err();
        assert!(refused.to_string().contains("not what it was asked for"), "{refused}");
    }
}

/// What a peer may repeat without end that nobody waits for.
fn floods(stream: u16) -> Vec<Frame> {
    use crate::wire::Request;
    let words = "x".repeat(60_000);
    vec![
        event(stream, &Event::Notice(words)),
        event(stream, &Event::Phase(Phase::Comparing)),
        event(stream, &Event::Hashing { done: 1, total: 2 }),
        Frame::of(Kind::Command, stream, 0, &Command::Stop),
        Frame { kind: Kind::Ping, stream, id: 0, payload: Arc::new(vec![0; 60_000].into()) },
        // Of a source; a target that asks for everything is ended.
        Frame::of(Kind::Request, stream, 1, &Request::Probe { bytes: 2 << 20 }),
    ]
}

#[test]
fn a_source_that_floods_the_session_costs_little_and_ends_with_the_sync() {
    let answer = Frame { kind: Kind::Answer, stream: 0, id: 0, payload: Arc::new(vec![0; 1 << 20].into()) };
    costs_little_and_ends(&[floods(0), vec![event(1, &done(9)), answer]].concat());
}

#[test]
fn a_source_that_floods_a_targets_stream_costs_little_and_ends_with_the_sync() {
    costs_little_and_ends(&floods(1));
}

#[test]
fn a_source_that_floods_a_stream_of_nobody_costs_little_and_ends_with_the_sync() {
    costs_little_and_ends(&floods(9));
}

/// What a source says without end, by one route and the other in turn.
fn costs_little_and_ends(said: &[Frame]) {
    if !runs_alone() {
        return;
    }
    for (number, said) in some(said).enumerate() {
        let source = Script::new(&[images(IMAGE), dialed(1), ready()], said, None);
        let (from, to, route) = match number % 2 {
            0 => (IMAGE.to_owned(), "host:/sr/", Route::Direct),
            _ => (format!("evilsource:{IMAGE}"), "eviltarget:/sr/", Route::Relay),
        };
        let (report, cost) = run(NEVER_ENDS, &from, &[to], route, &source, &quiet(&[]));
        let is_ended = report.map_or(true, |report| report.targets[0].is_err());
        assert!(is_ended, "{:?} on stream {} by {route:?}", said.kind, said.stream);
        assert!(
            cost < COST_MAX,
            "{} MiB for {:?} on stream {} by {route:?}",
            cost >> 20,
            said.kind,
            said.stream
        );
    }
}

#[test]
fn a_relayed_target_that_floods_costs_little() {
    if !runs_alone() {
        return;
    }
    let source = quiet(&[images(IMAGE), ready()]);
    let floods = floods(0);
    let floods: Vec<_> = floods.iter().filter(|said| said.kind != Kind::Request).collect();
    for said in some(&floods) {
        let target = Script::new(&[], said, None);
        let from = format!("evilsource:{IMAGE}");
        let (report, cost) = run(NEVER_ENDS, &from, &["eviltarget:/sr/"], Route::Relay, &source, &target);
        assert!(report.unwrap().targets[0].is_err());
        assert!(cost < COST_MAX, "{} MiB for {:?}", cost >> 20, said.kind);
    }
}

#[test]
fn a_relayed_target_that_asks_for_everything_and_reads_nothing_is_ended() {
    use crate::wire::Request;
    let source = quiet(&[images(IMAGE), ready()]);
    for request in [
        Request::Probe { bytes: 2 << 20 },
        Request::Unchanged,
        Request::Nodes { level: 1, indices: vec![1; 4096] },
    ] {
        let ask = Frame::of(Kind::Request, 0, 1, &request);
        let target = Script::new(&[], &ask, None);
        let from = format!("evilsource:{IMAGE}");
        let (report, cost) = run(ENDS, &from, &["eviltarget:/sr/"], Route::Relay, &source, &target);
        let failure = report.unwrap().targets.remove(0).unwrap_err();
        assert!(failure.to_string().contains("asks for more than it takes"), "{failure}");
        assert!(cost < COST_MAX, "{} MiB", cost >> 20);
    }
}

/// Answers that nobody asked for end whoever gives them, the source or a target. A source that is lost is told to relayed
/// targets when they ask, and that flood is among the ones above.
#[test]
fn who_answers_what_nobody_asked_is_lost() {
    let answer = Frame { kind: Kind::Answer, stream: 0, id: 0, payload: Arc::new(vec![0; 1 << 20].into()) };
    let evil = Script::new(&[images(IMAGE), dialed(1), ready()], &answer, None);
    let (source, target) = (quiet(&[images(IMAGE), ready()]), Script::new(&[], &answer, None));
    let (nobody, from) = (quiet(&[]), format!("evilsource:{IMAGE}"));
    for (from, to, route, source, target) in [
        (IMAGE, "host:/sr/", Route::Direct, &evil, &nobody),
        (from.as_str(), "eviltarget:/sr/", Route::Relay, &source, &target),
    ] {
        let (report, cost) = run(ENDS, from, &[to], route, source, target);
        let failure =
            report.map_or_else(|failure| failure, |mut report| report.targets.remove(0).unwrap_err());
        assert_eq!(failure.kind, FailureKind::Disconnected, "{failure}");
        assert!(failure.to_string().contains("nobody asked for"), "{failure}");
        assert!(cost < COST_MAX);
    }
}
