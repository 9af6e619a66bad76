//! The agent in both roles, over a connection in memory to a control side or a source that behaves or does not.

use std::time::Duration;

use goldwire_store::Version;

use super::*;
use crate::testing::{Disk, PipeReader, PipeWriter, Script, content, memory_of, pipe, runs_alone, until};
use crate::wire::{Outcome, Request, SourceReady, WireFormat};

/// What one hostile peer may cost.
const COST_MAX: u64 = 100 << 20;

/// An agent, and the control side that a test plays.
struct Control {
    to_agent: PipeWriter,
    from_agent: PipeReader,
    agent: JoinHandle<i32>,
}

impl Control {
    fn of(local: Vec<PathBuf>) -> Self {
        let (to_agent, reader) = pipe(1, 1 << 16, u64::MAX);
        let (writer, from_agent) = pipe(2, 1 << 16, u64::MAX);
        let agents = Agents { local, programs: Vec::new(), echo_stderr: false };
        let agent = spawn("agent", move || work(reader, writer, agents)).unwrap();
        Self { to_agent, from_agent, agent }
    }

    fn say(&mut self, frame: &Frame) -> io::Result<()> {
        frame.write(&mut self.to_agent)
    }

    fn command(&mut self, command: &Command) {
        self.say(&Frame::of(Kind::Command, 0, 0, command)).unwrap();
    }

    fn ask(&mut self, id: u64, request: &Request) -> io::Result<()> {
        self.say(&Frame::of(Kind::Request, 0, id, request))
    }

    fn next(&mut self) -> Frame {
        loop {
            let frame = Frame::read(&mut self.from_agent).unwrap().unwrap();
            if frame.kind != Kind::Ping {
                return frame;
            }
        }
    }

    /// The next event that is no progress.
    fn event(&mut self) -> Event {
        loop {
            let frame = self.next();
            let event: Event = frame.message("event").unwrap();
            if !matches!(event, Event::Hashing { .. } | Event::Progress(_)) {
                return event;
            }
        }
    }

    fn open(&mut self, disk: &Disk) -> SourceReady {
        self.command(&Command::OpenSource(source_job(disk)));
        match self.event() {
            Event::SourceReady(ready) => ready,
            other => panic!("{other:?}"),
        }
    }

    /// Closes the connection; the agent's exit code.
    fn end(self) -> i32 {
        drop((self.to_agent, self.from_agent));
        self.agent.join().unwrap()
    }

    /// Waits until the agent ends by itself.
    fn code(self) -> i32 {
        until("the agent ends", || self.agent.is_finished());
        self.agent.join().unwrap()
    }
}

fn source_job(disk: &Disk) -> SourceJob {
    SourceJob {
        path: disk.path.to_str().unwrap().to_owned(),
        format: None,
        parent_folders: Vec::new(),
        level: Some(1),
        keep_bytes: 0,
        threads: Some(1),
        read_all: false,
    }
}

fn target_job(disk: &Disk, path: &Path) -> TargetJob {
    TargetJob {
        path: path.to_str().unwrap().to_owned(),
        name: "a.raw".into(),
        is_name_given: false,
        must_be_store: false,
        version: disk.version.encode(None).unwrap(),
        required: None,
        format: None,
        source_format: WireFormat::Raw,
        seeds: Vec::new(),
        find_seeds: false,
        replace: false,
        dry_run: false,
        mode: None,
        source_mode: 0o600,
        owner: None,
        wait_seconds: 0,
        window_bytes: 8 << 20,
        threads: Some(1),
    }
}

fn failure(event: Event) -> Failure {
    match event {
        Event::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_source_lists_opens_serves_and_ends_with_its_peer() {
    let disk = Disk::new(content(1, 3, 0));
    let mut control = Control::of(Vec::new());
    let path = disk.path.to_str().unwrap().to_owned();
    control.command(&Command::List { path: path.clone(), pattern: None, format: None });
    match control.event() {
        Event::Images { is_folder: false, images } => assert_eq!(images[0].path, path),
        other => panic!("{other:?}"),
    }
    let ready = control.open(&disk);
    assert_eq!(Version::decode(&ready.version).unwrap().root, disk.version.root);
    control.ask(9, &Request::Probe { bytes: 1000 }).unwrap();
    let answer = control.next();
    assert_eq!((answer.kind, answer.id, answer.payload.len()), (Kind::Answer, 9, 1008));
    control.ask(10, &Request::Nodes { level: 99, indices: vec![0] }).unwrap();
    let refusal = control.next();
    assert_eq!((refusal.kind, refusal.id), (Kind::Refusal, 10));
    for request in [
        Request::Nodes { level: 1, indices: vec![u64::MAX] },
        Request::Blocks { wants: vec![(u64::MAX, u16::MAX), (0, u16::MAX)], is_delta: false },
        Request::Blocks { wants: vec![(u64::MAX - 1, u16::MAX), (u64::MAX, 1)], is_delta: true },
        Request::Blocks { wants: vec![(3, 1)], is_delta: true },
        Request::Blocks { wants: vec![(0, 0)], is_delta: true },
        Request::BlockHashes { chunks: vec![1 << 63] },
        Request::Probe { bytes: u32::MAX },
    ] {
        control.ask(11, &request).unwrap();
        assert_eq!(control.next().kind, Kind::Refusal, "{request:?}");
    }
    control.ask(12, &Request::Unchanged).unwrap();
    assert_eq!(control.next().kind, Kind::Answer, "no worker was lost");
    assert_eq!(control.end(), 0);
}

#[test]
fn a_peer_that_asks_for_everything_and_reads_nothing_is_cut_off() {
    if !runs_alone() {
        return;
    }
    let disk = Disk::new(content(2, 3, 0));
    let mut control = Control::of(Vec::new());
    control.open(&disk);
    let before = memory_of();
    let mut most = 0;
    for id in 0.. {
        if control.ask(id, &Request::Probe { bytes: 2 << 20 }).is_err() || control.agent.is_finished() {
            break;
        }
        most = most.max(memory_of());
    }
    assert!(most.saturating_sub(before) < COST_MAX, "{} MiB", (most - before) >> 20);
    assert_eq!(control.code(), EXIT_LOST);
}

#[test]
fn a_peer_that_commands_without_end_starts_no_thread_without_end() {
    if !runs_alone() {
        return;
    }
    let disk = Disk::new(content(3, 3, 0));
    let mut control = Control::of(Vec::new());
    let before = memory_of();
    let path = disk.path.to_str().unwrap().to_owned();
    let list = Command::List { path, pattern: None, format: None };
    for _ in 0..50_000 {
        if control.say(&Frame::of(Kind::Command, 0, 0, &list)).is_err() {
            break;
        }
    }
    assert!(memory_of().saturating_sub(before) < COST_MAX);
    let threads = fs::read_dir("/proc/self/task").unwrap().count();
    assert!(threads < 200, "{threads} threads");
    drop(control);
}

/// A control side that reads nothing is lost once it has left enough unread, and the agent ends.
#[test]
fn a_peer_that_commands_without_end_and_reads_nothing_is_lost() {
    if !runs_alone() {
        return;
    }
    let disk = Disk::new(content(9, 3, 0));
    let folder = tempfile::tempdir().unwrap();
    let receive = Command::Receive(Box::new(target_job(&disk, &folder.path().join("a.raw"))));
    let path = "x".repeat(60_000);
    let list = Command::List { path, pattern: None, format: None };
    let open = Command::OpenSource(SourceJob { path: "y".repeat(60_000), ..source_job(&disk) });
    for command in [receive, list, open] {
        let mut control = Control::of(Vec::new());
        let before = memory_of();
        let mut most = 0;
        let frame = Frame::of(Kind::Command, 0, 0, &command);
        while control.say(&frame).is_ok() && !control.agent.is_finished() {
            most = most.max(memory_of());
        }
        assert!(most.saturating_sub(before) < COST_MAX, "{} MiB", (most - before) >> 20);
        assert_eq!(control.code(), EXIT_LOST);
    }
}

/// An unfinished disk has the size of a whole one. Links to it are no way around, either.
#[test]
fn unfinished_work_is_no_source() {
    let disk = Disk::new(content(9, 3, 0));
    let folder = tempfile::tempdir().unwrap();
    let work = folder.path().join(".goldwire/work/a.raw");
    std::fs::create_dir_all(&work).unwrap();
    std::fs::copy(&disk.path, work.join("disk")).unwrap();
    std::os::unix::fs::symlink(work.join("disk"), folder.path().join("a.raw")).unwrap();
    for path in [work.join("disk"), folder.path().join("a.raw")] {
        let mut control = Control::of(Vec::new());
        let path = path.to_str().unwrap().to_owned();
        control.command(&Command::OpenSource(SourceJob { path, ..source_job(&disk) }));
        let refused = failure(control.event()).to_string();
        assert!(
            refused.contains("no image to copy") && refused.contains("hint: name the image"),
            "{refused}"
        );
        control.end();
    }
    assert!(!work.join(".goldwire").exists());
}

#[test]
fn a_request_before_an_image_is_open_ends_the_connection() {
    let mut control = Control::of(Vec::new());
    control.ask(1, &Request::Unchanged).unwrap();
    assert!(failure(control.event()).to_string().contains("no image is open"));
    assert_eq!(control.code(), EXIT_LOST);
}

#[test]
fn a_target_takes_one_reception_and_stops_when_it_is_told() {
    let disk = Disk::new(content(4, 300, 0));
    let folder = tempfile::tempdir().unwrap();
    let mut control = Control::of(Vec::new());
    let job = target_job(&disk, &folder.path().join("a.raw"));
    control.command(&Command::Receive(Box::new(job.clone())));
    assert!(matches!(control.event(), Event::Phase(_)));
    assert_eq!(control.next().kind, Kind::Request);
    control.command(&Command::Receive(Box::new(job)));
    assert!(failure(control.event()).to_string().contains("too many receptions"));
    for _ in 0..3 {
        control.command(&Command::Stop);
    }
    assert_eq!(failure(control.event()).kind, FailureKind::Stopped);
    assert_eq!(control.end(), 0);
    assert!(!folder.path().join("a.raw").exists());
}

/// A source that answers what nobody asked, or more than was asked, is not listened to any longer.
#[test]
fn a_target_takes_no_answer_that_it_did_not_ask_for() {
    if !runs_alone() {
        return;
    }
    for (what, length, id) in [("unasked", 0, 77), ("too long", 1 << 20, 1), ("a flood", 8, 1)] {
        let disk = Disk::new(content(5, 300, 0));
        let folder = tempfile::tempdir().unwrap();
        let mut control = Control::of(Vec::new());
        control.command(&Command::Receive(Box::new(target_job(&disk, &folder.path().join("a.raw")))));
        while control.next().kind != Kind::Request {}
        let payload = Arc::new(vec![0; length].into());
        let answer = Frame { kind: Kind::Answer, stream: 0, id, payload };
        let before = memory_of();
        for _ in 0..10_000 {
            if control.say(&answer).is_err() {
                break;
            }
        }
        assert!(memory_of().saturating_sub(before) < COST_MAX, "{what}");
        assert_eq!(control.code(), EXIT_LOST, "{what}");
        assert!(!folder.path().join("a.raw").exists());
    }
}

/// A target that the source reached says more than the control side reads. The source stops listening to it, and goes on
/// answering everybody else.
#[test]
fn a_target_that_floods_its_source_waits_for_the_control_side() {
    if !runs_alone() {
        return;
    }
    let disk = Disk::new(content(6, 3, 0));
    let flood = Frame::of(Kind::Event, 0, 0, &Event::Notice("x".repeat(60_000)));
    let script = Script::new(&[], &flood, None);
    let mut control = Control::of(script.local());
    control.open(&disk);
    control.command(&Command::Dial { stream: 3, ssh: Vec::new() });
    let before = memory_of();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(memory_of().saturating_sub(before) < COST_MAX);
    control.ask(1, &Request::Unchanged).unwrap();
    let mut said = 0;
    loop {
        let frame = control.next();
        if frame.kind == Kind::Answer {
            break;
        }
        assert_eq!(frame.stream, 3);
        said += 1;
        assert!(said < 5000, "the answer waits behind the flood");
    }
    drop(control);
}

/// A target that asks its source for everything and reads nothing is ended, and the control side hears why.
#[test]
fn a_direct_target_that_never_reads_is_ended() {
    if !runs_alone() {
        return;
    }
    let disk = Disk::new(content(7, 3, 0));
    let ask = Frame::of(Kind::Request, 0, 1, &Request::Probe { bytes: 2 << 20 });
    let script = Script::new(&[], &ask, None);
    let mut control = Control::of(script.local());
    control.open(&disk);
    let before = memory_of();
    control.command(&Command::Dial { stream: 1, ssh: Vec::new() });
    assert!(matches!(control.event(), Event::Dialed(_)));
    assert!(failure(control.event()).to_string().contains("asks for more than it takes"));
    assert!(memory_of().saturating_sub(before) < COST_MAX);
    assert_eq!(control.end(), 0);
}

/// What a target says to its source as a control side would is not obeyed, and answers that it makes up end it.
#[test]
fn a_direct_target_is_no_control_side() {
    let disk = Disk::new(content(8, 3, 0));
    let stop = Frame::of(Kind::Command, 0, 0, &Command::Stop);
    let done = Event::Done(Outcome {
        path: String::new(),
        root: [0; 32],
        counters: Default::default(),
        already_there: true,
    });
    let answer = Frame { kind: Kind::Answer, stream: 0, id: 1, payload: Arc::default() };
    let script = Script::new(&[stop, Frame::of(Kind::Event, 9, 0, &done)], &answer, Some(1));
    let mut control = Control::of(script.local());
    control.open(&disk);
    control.command(&Command::Dial { stream: 2, ssh: Vec::new() });
    assert!(matches!(control.event(), Event::Dialed(_)));
    let passed = control.next();
    assert_eq!(passed.stream, 2, "whatever stream the target claims");
    assert!(matches!(passed.message("event"), Ok(Event::Done(_))));
    let lost = control.next();
    assert_eq!(lost.stream, 2);
    let lost = failure(lost.message("event").unwrap());
    assert!(lost.to_string().contains("nobody asked for"), "{lost}");
    control.ask(1, &Request::Unchanged).unwrap();
    assert_eq!(control.next().kind, Kind::Answer, "it was not stopped");
    assert_eq!(control.end(), 0);
}
