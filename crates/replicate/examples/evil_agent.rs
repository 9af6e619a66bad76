//! An agent that lies, for tests over a real `ssh`. It starts the honest agent, passes on what both sides say, and changes
//! one thing: `evil_agent HONEST_AGENT LIE [FILE [SHOWN [ASKED]]]`.
//!
//! ```text
//! name                     offers another file than the one that was asked for
//! content FILE             serves the file, and shows the descriptor that it has
//! content FILE SHOWN       serves the file, and shows another descriptor
//! job FILE SHOWN ASKED     the same, and asks targets that are reached from here for what ASKED says
//! root                     shows a descriptor with another root, signed by nobody
//! done-root                says of each target that it holds another root
//! never-done               keeps to itself how it ended: neither answers nor the targets' last word pass
//! flood                    the same, and talks without end
//! ```

use std::io::{self, Read, Write};
use std::process::{Command as Process, ExitCode, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use goldwire_replicate::wire::{Command, Event, Frame, Kind, PREAMBLE};
use goldwire_stdx::{spawn, spawn_scoped};
use goldwire_store::{Root, Version};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "evil_agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let mut words = std::env::args().skip(1);
    let (Some(honest), Some(lie)) = (words.next(), words.next()) else {
        return Err(io::Error::other("say the honest agent and the lie"));
    };
    let file = words.next();
    let mut descriptor = || words.next().map(std::fs::read).transpose();
    let liar = Liar { lie, file, shown: descriptor()?, asked: descriptor()? };
    let mut child =
        Process::new(honest).arg("--stdio").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let (Some(mut to_honest), Some(mut from_honest)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("no pipes"));
    };
    // Detached: it waits in a read that nothing ends but the other side.
    let commands = liar.clone();
    spawn("commands", move || {
        let mut reader = io::stdin();
        while let Ok(Some(frame)) = Frame::read(&mut reader) {
            let Some(frame) = commands.command(frame) else { continue };
            if frame.write(&mut to_honest).and_then(|()| to_honest.flush()).is_err() {
                break;
            }
        }
    })?;
    let mut preamble = [0; PREAMBLE.len()];
    from_honest.read_exact(&mut preamble)?;
    let out = Mutex::new(io::stdout());
    let say = |frame: &Frame| {
        let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&mut *out).and_then(|()| out.flush())
    };
    io::stdout().write_all(&preamble)?;
    thread::scope(|scope| -> io::Result<()> {
        let mut is_flooding = false;
        while let Ok(Some(frame)) = Frame::read(&mut from_honest) {
            if liar.lie == "flood" && frame.kind == Kind::Event && !is_flooding && !is_greeting(&frame) {
                is_flooding = true;
                for stream in [0, 1] {
                    spawn_scoped(scope, "flood", move || {
                        let words = Event::Notice("x".repeat(1 << 16));
                        while say(&Frame::of(Kind::Event, stream, 0, &words)).is_ok() {}
                    })?;
                }
            }
            if let Some(frame) = liar.heard(frame) {
                say(&frame)?;
            }
        }
        Ok(())
    })?;
    let _ = child.kill();
    child.wait().map(drop)
}

/// Before the sync has begun a flood would only hide that there is an image.
fn is_greeting(frame: &Frame) -> bool {
    matches!(frame.message("event"), Ok(Event::Images { .. } | Event::Dialed(_) | Event::Hashing { .. }))
}

#[derive(Clone)]
struct Liar {
    lie: String,
    file: Option<String>,
    /// Descriptors.
    shown: Option<Vec<u8>>,
    asked: Option<Vec<u8>>,
}

impl Liar {
    /// What the honest agent is told.
    fn command(&self, frame: Frame) -> Option<Frame> {
        let Ok(command) = frame.message("command") else { return Some(frame) };
        if frame.kind != Kind::Command {
            return Some(frame);
        }
        let told = match (command, self.lie.as_str()) {
            (Command::OpenSource(mut job), "content" | "job") => {
                job.path = self.file.clone()?;
                Command::OpenSource(job)
            }
            (Command::Receive(mut job), "job") => {
                job.version = self.asked.clone()?;
                Command::Receive(job)
            }
            _ => return Some(frame),
        };
        Some(Frame::of(Kind::Command, frame.stream, frame.id, &told))
    }

    /// What the control side hears.
    fn heard(&self, frame: Frame) -> Option<Frame> {
        let is_silent = matches!(self.lie.as_str(), "never-done" | "flood");
        if frame.kind == Kind::Answer && is_silent {
            return None;
        }
        if frame.kind != Kind::Event {
            return Some(frame);
        }
        let Ok(event) = frame.message("event") else { return Some(frame) };
        let heard = match (event, self.lie.as_str()) {
            (Event::Images { is_folder, mut images }, "name") => {
                images.iter_mut().for_each(|image| image.path = image.path.replace("golden", "payroll"));
                Event::Images { is_folder, images }
            }
            (Event::SourceReady(mut ready), "content" | "job") => {
                ready.version = self.shown.clone().unwrap_or(ready.version);
                Event::SourceReady(ready)
            }
            (Event::SourceReady(mut ready), "root") => {
                let version = Version::decode(&ready.version).ok()?;
                ready.version = Version { root: Root([7; 32]), signer: None, ..version }.encode(None).ok()?;
                Event::SourceReady(ready)
            }
            (Event::Done(mut outcome), "done-root") => {
                outcome.root = [7; 32];
                Event::Done(outcome)
            }
            (Event::Done(_), "never-done" | "flood") => return None,
            _ => return Some(frame),
        };
        Some(Frame::of(Kind::Event, frame.stream, frame.id, &heard))
    }
}
