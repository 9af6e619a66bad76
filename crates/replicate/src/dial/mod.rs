//! Reaching a host: run the user's own `ssh`, find or install the agent there, shake hands.
//!
//! One connection does it all, so that a password or a touch is asked for once. The remote side runs a short
//! `sh` script: if the agent of exactly our build lies in the user's cache it becomes that; otherwise it says
//! what machine it is and waits; we send the program for that machine, piece by piece; it goes to a temporary file, proves its
//! own digest (which also proves that it runs there), is renamed into place, and takes over. Layout and words
//! are in `docs/protocol.md`.

mod hands;
mod process;
mod ssh;

use std::io::{self, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, unbounded};
use goldwire_stdx::{printable, spawn, to_hex};

use self::hands::{Greeting, shake_hands};
pub(crate) use self::process::Process;
use self::ssh::as_typed;
pub(crate) use self::ssh::ssh_command;
use crate::connection::{Connection, Throttle};
use crate::failure::Result;
use crate::install::{Agents, HAS_AGENT, Install, Program, digest_of, remote_script};
use crate::wire::{Failure, FailureKind, Frame, Hello, PROTOCOL_VERSION, WireError};

/// How long a host may take to answer, password prompts included, and how long each piece of an agent may take to get
/// there.
const DIAL_TIMEOUT: Duration = Duration::from_secs(120);

/// A reached agent: its process, its greeting, and its byte stream, not yet framed.
pub(crate) struct Dialed {
    /// What it said about itself.
    pub hello: Hello,
    /// The process that carries the connection.
    pub process: Process,
    reader: BufReader<ChildStdout>,
    writer: ChildStdin,
}

impl Dialed {
    /// Turns the byte stream into a connection of frames.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn into_connection(
        self,
        throttle: Arc<Throttle>,
        on_frame: impl FnMut(Result<Option<Frame>, WireError>) + Send + 'static,
    ) -> Result<(Connection, Process, Hello)> {
        let connection = Connection::start(self.reader, self.writer, throttle, on_frame)
            .map_err(|error| Failure::io("start a connection", &error))?;
        Ok((connection, self.process, self.hello))
    }
}

/// Reaches the agent behind `ssh` (the complete command up to and including the host; empty: this machine).
///
/// # Errors
/// What `ssh` or the remote side said.
pub(crate) fn dial(ssh: &[String], host: &str, agents: &Agents, note: &dyn Fn(&Process)) -> Result<Dialed> {
    if ssh.is_empty() {
        let (program, arguments) =
            agents.local.split_first().ok_or_else(|| invalid("no local agent is known"))?;
        // Ctrl-C at the terminal is for us alone, who stop it in order; but it stays in our process group, because the ssh
        // that it starts may have to ask something there, which a background job may not. The shell's `trap` makes
        // the signals ignored for it and everything below it.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "trap '' INT QUIT; exec \"$0\" \"$@\""]).arg(program).args(arguments);
        let asked = Asked { host, typed: host };
        return match connect(command, &asked, agents, note, None)? {
            Connected::Agent(dialed) => Ok(dialed),
            Connected::Damaged(_) | Connected::OtherMachine(..) => {
                Err(invalid("the local agent does not answer as one"))
            }
        };
    }
    // Which program the machine needs is not known at first; each has its own name in the cache.
    let mut machine: Option<String> = None;
    let mut last = None;
    for install in [Install::IfMissing, Install::Anew] {
        for program in &agents.programs {
            if machine.as_ref().is_some_and(|machine| *machine != program.machine) {
                continue;
            }
            let digest = digest_of(&program.bytes);
            let mut command = Command::new(&ssh[0]);
            command.args(&ssh[1..]).arg(remote_script(&digest, install));
            let asked = Asked { host, typed: &as_typed(ssh) };
            match connect(command, &asked, agents, note, Some((program, &digest)))? {
                Connected::Agent(dialed) => return Ok(dialed),
                Connected::Damaged(why) => last = Some(why),
                Connected::OtherMachine(its, why) => {
                    if agents.programs.iter().all(|program| program.machine != its) {
                        return Err(why);
                    }
                    machine = Some(its);
                    last = Some(why);
                }
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        invalid("this goldwire carries no agent for other machines")
            .hint("build it with `make build`; or name one with --agent-program")
    }))
}

enum Connected {
    Agent(Dialed),
    /// Something answered, but not as our agent: worth a fresh installation.
    Damaged(Failure),
    /// It is a machine of this kind, for which the program is not.
    OtherMachine(String, Failure),
}

/// Who is reached, for messages.
struct Asked<'a> {
    host: &'a str,
    /// The command as the user may type it.
    typed: &'a str,
}

fn connect(
    mut command: Command,
    asked: &Asked<'_>,
    agents: &Agents,
    note: &dyn Fn(&Process),
    program: Option<(&Program, &str)>,
) -> Result<Connected> {
    let &Asked { host, typed } = asked;
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|error| Failure::io(format!("start {shown}"), &error))?;
    let (Some(mut writer), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(invalid("a child process without pipes"));
    };
    widen(&writer, &stdout);
    let process = Process::of(child);
    note(&process);
    let echo = agents.echo_stderr.then(|| host.to_owned());
    let no_thread = |error| Failure::io("start a thread", &error);
    let pass_on = move |line: &str| {
        if let Some(host) = &echo {
            let _ = writeln!(io::stderr(), "{host}: {line}");
        }
    };
    let listener = process.listen(stderr, pass_on).map_err(no_thread)?;

    let (stepped, steps) = unbounded::<()>();
    let (too_late, is_late) = bounded::<()>(1);
    let watched = process.clone();
    spawn("dial timeout", move || {
        if is_too_late(&steps, DIAL_TIMEOUT) {
            let _ = too_late.send(());
            watched.kill();
        }
    })
    .map_err(no_thread)?;
    let mut reader = BufReader::with_capacity(256 * 1024, stdout);
    let mut step = || {
        let _ = stepped.send(());
    };
    let outcome = shake_hands(&mut reader, &mut writer, program, &mut step);
    drop(stepped);
    // Its last words may still be in the pipe, which a ControlMaster that stays behind can hold open.
    let last_words = || {
        for _ in 0..50 {
            if listener.is_finished() {
                break;
            }
            thread::sleep(Duration::from_millis(10));
        }
        process.last_words()
    };
    match outcome {
        Ok(hello) => {
            let is_ours = hello.protocol == PROTOCOL_VERSION
                && program.is_none_or(|(_, digest)| to_hex(&hello.program).starts_with(digest));
            if is_ours {
                // Nothing of it is used but to be shown.
                let [version, host] = [&hello.version, &hello.host].map(|text| printable(text).into_owned());
                let hello = Hello { version, host, ..hello };
                return Ok(Connected::Agent(Dialed { hello, process, reader, writer }));
            }
            process.kill();
            Ok(Connected::Damaged(invalid(format!("the agent on {host} is damaged or of another build"))))
        }
        Err(Greeting::Failed(mut failure)) => {
            // What the shell over there says of it comes on the other stream.
            process.exit_code();
            process.kill();
            failure.chain.extend(Some(last_words()).filter(|said| !said.is_empty()));
            Err(failure.context(format!("reach {host}")))
        }
        Err(Greeting::OtherMachine(machine, failure)) => {
            process.kill();
            Ok(Connected::OtherMachine(machine, failure.context(format!("reach {host}"))))
        }
        Err(Greeting::Ended(noise)) => {
            // It was started and did not speak: an empty file, a torn one, anything that is no agent.
            let was_started = program.is_some() && noise.contains(HAS_AGENT);
            if is_late.try_recv().is_ok() {
                let failure =
                    invalid(format!("reach {host}: no answer within {} seconds", DIAL_TIMEOUT.as_secs()));
                return Err(failure.hint(format!("check that `{typed} true` ends without questions")));
            }
            let code = process.exit_code();
            process.kill();
            let said = last_words();
            let mut failure = Failure::new(FailureKind::Disconnected, format!("reach {host}: {shown} ended"));
            if let Some(code) = code {
                failure.chain[0] += &format!(" with exit code {code}");
            }
            if !said.is_empty() {
                failure.chain.push(said);
            } else if !noise.is_empty() {
                failure.chain.push(format!("it printed {noise:?}"));
            }
            // 126 and 127 are the shell's words for a program that cannot be run or found.
            if was_started || matches!(code, Some(126 | 127)) {
                return Ok(Connected::Damaged(failure));
            }
            Err(failure
                .hint(format!("try `{typed} true` by hand; goldwire uses your own ssh and its settings")))
        }
    }
}

/// Waits until nobody takes steps any more; whether one did not come in time.
fn is_too_late(steps: &Receiver<()>, most: Duration) -> bool {
    loop {
        match steps.recv_timeout(most) {
            Ok(()) => {}
            Err(end) => return end == RecvTimeoutError::Timeout,
        }
    }
}

/// Larger pipes save context switches; a kernel that refuses costs only speed.
fn widen(writer: &ChildStdin, stdout: &ChildStdout) {
    let _ = rustix::pipe::fcntl_setpipe_size(writer, 1 << 20);
    let _ = rustix::pipe::fcntl_setpipe_size(stdout, 1 << 20);
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Script, greeting};
    use crate::wire::Kind;

    /// A step in time gives time for the next one; none is the end.
    #[test]
    fn each_step_has_its_time() {
        let (stepped, steps) = unbounded();
        let most = Duration::from_millis(60);
        let stepping = spawn("steps", move || {
            for _ in 0..8 {
                thread::sleep(Duration::from_millis(15));
                stepped.send(()).unwrap();
            }
        });
        assert!(!is_too_late(&steps, Duration::from_secs(60)));
        stepping.unwrap().join().unwrap();
        let (_stepped, steps) = unbounded::<()>();
        assert!(is_too_late(&steps, most));
    }

    /// With programs for several kinds of machines, each host gets the one that it is for.
    #[test]
    fn a_program_for_another_machine_is_not_the_last_one_tried() {
        let folder = tempfile::tempdir().unwrap();
        let program = |machine: &str| Program { machine: machine.into(), bytes: Arc::new(machine.into()) };
        let right = program("x86_64");
        std::fs::write(folder.path().join("greeting"), greeting(&right.bytes)).unwrap();
        // As the script on an x86_64 host: it has the right agent, and would need any other.
        let host = format!(
            "case \"$*\" in *{}*) cat {}/greeting; exec sleep 600;; *) echo GOLDWIRE-NEEDS-AGENT Linux x86_64; read -r n;; esac",
            digest_of(&right.bytes),
            folder.path().display()
        );
        let ssh = ["/bin/sh", "-c", &host, "host"].map(str::to_owned);
        let agents = |programs| Agents { local: Vec::new(), programs, echo_stderr: false };
        for programs in [
            vec![program("aarch64"), right.clone()],
            vec![right.clone(), program("aarch64")],
            vec![program("aarch64"), program("riscv64"), right.clone()],
        ] {
            let dialed = dial(&ssh, "host", &agents(programs), &|_| ());
            dialed.unwrap_or_else(|failure| panic!("{failure}")).process.kill();
        }
        let refused = dial(&ssh, "host", &agents(vec![program("aarch64")]), &|_| ()).map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("the host is a Linux x86_64"), "{refused}");
    }

    #[test]
    fn who_greets_as_another_build_is_no_agent_of_ours() {
        let agents =
            |local: Vec<std::path::PathBuf>| Agents { local, programs: Vec::new(), echo_stderr: false };
        let script = Script::new(&[], &Frame::of(Kind::Ping, 0, 0, &()), Some(0));
        let dialed =
            dial(&[], "here", &agents(script.local()), &|_| ()).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(dialed.hello.version, "test");
        dialed.process.kill();
        assert!(dial(&[], "here", &agents(Vec::new()), &|_| ()).is_err());
        let refused = dial(&[], "here", &agents(vec!["/bin/echo".into(), "no agent".into()]), &|_| ());
        let refused = refused.map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("ended with exit code 0") && refused.contains("no agent"), "{refused}");
    }
}
