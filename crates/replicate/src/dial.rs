//! Reaching a host: run the user's own `ssh`, find or install the agent there, shake hands.
//!
//! One connection does it all, so that a password or a touch is asked for once. The remote side runs a short
//! `sh` script: if the agent of exactly our build lies in the user's cache it becomes that; otherwise it says
//! what machine it is and waits; we send the program for that machine; it goes to a temporary file, proves its
//! own digest (which also proves that it runs there), is renamed into place, and takes over. Layout and words
//! are in `docs/protocol.md`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use goldwire_stdx::{printable, printable_bytes, spawn, to_hex};

use crate::connection::{Connection, Throttle};
use crate::failure::Result;
use crate::install::{
    Agents, HAS_AGENT, INSTALL_FAILED, Install, NEEDS_AGENT, Program, digest_of, remote_script,
};
use crate::wire::{
    Failure, FailureKind, Frame, Hello, Kind, NOISE_MAX, PREAMBLE, PROTOCOL_VERSION, WireError,
};

/// How long a host may take to answer, password prompts included.
const DIAL_TIMEOUT: Duration = Duration::from_secs(120);

/// How much of what `ssh` says is kept for an error message.
const STDERR_KEPT: usize = 2048;

/// The longest piece of a line that is passed on at once.
const STDERR_LINE_MAX: usize = 4096;

/// A reached agent: its process, its greeting, and its byte stream, not yet framed.
pub(crate) struct Dialed {
    /// What it said about itself.
    pub hello: Hello,
    /// The process that carries the connection.
    pub process: Process,
    reader: BufReader<ChildStdout>,
    writer: ChildStdin,
}

/// The local end of a connection. Dropping it kills `ssh`, and with it the remote agent.
#[derive(Clone)]
pub(crate) struct Process {
    child: Arc<Mutex<Child>>,
    stderr: Arc<Mutex<Vec<u8>>>,
}

impl Process {
    /// A process that has ended already, for tests.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        let child = Command::new("true").spawn().unwrap();
        Self { child: Arc::new(Mutex::new(child)), stderr: Arc::default() }
    }

    /// A process that waits to be ended, for tests.
    #[cfg(test)]
    pub(crate) fn waiting() -> Self {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        Self { child: Arc::new(Mutex::new(child)), stderr: Arc::default() }
    }

    /// Whether it has ended.
    #[cfg(test)]
    pub(crate) fn has_ended(&self) -> bool {
        self.child.lock().unwrap().try_wait().unwrap().is_some()
    }

    /// Whether both are the same process.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.child, &other.child)
    }

    /// Ends the connection at once.
    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        // An error means that it is gone already.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// The last that the process wrote to standard error.
    pub(crate) fn last_words(&self) -> String {
        let bytes = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        // Line ends stay: what ssh says has several lines at times.
        let lines = bytes.trim_ascii().split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
        lines.map(printable_bytes).collect::<Vec<_>>().join("\n")
    }

    /// Waits a moment for the process to end by itself; its exit code if it did.
    fn exit_code(&self) -> Option<i32> {
        for _ in 0..50 {
            let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
            match child.try_wait() {
                Ok(Some(status)) => return status.code(),
                Ok(None) => {}
                Err(_) => return None,
            }
            drop(child);
            thread::sleep(Duration::from_millis(20));
        }
        None
    }
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
        return match connect(command, host, agents, note, None)? {
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
            match connect(command, host, agents, note, Some((program, &digest)))? {
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
            .hint("build it with `make build`, or name one with --agent-program")
    }))
}

enum Connected {
    Agent(Dialed),
    /// Something answered, but not as our agent: worth a fresh installation.
    Damaged(Failure),
    /// It is a machine of this kind, for which the program is not.
    OtherMachine(String, Failure),
}

fn connect(
    mut command: Command,
    host: &str,
    agents: &Agents,
    note: &dyn Fn(&Process),
    program: Option<(&Program, &str)>,
) -> Result<Connected> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let shown = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().map_err(|error| Failure::io(format!("start {shown}"), &error))?;
    let (Some(mut writer), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(invalid("a child process without pipes"));
    };
    widen(&writer, &stdout);
    let process = Process { child: Arc::new(Mutex::new(child)), stderr: Arc::default() };
    note(&process);
    let echo = agents.echo_stderr.then(|| host.to_owned());
    let kept = Arc::clone(&process.stderr);
    let no_thread = |error| Failure::io("start a thread", &error);
    let pass_on = move |line: &str| {
        if let Some(host) = &echo {
            let _ = writeln!(io::stderr(), "{host}: {line}");
        }
    };
    let listener = spawn("ssh stderr", move || keep_stderr(stderr, &kept, pass_on)).map_err(no_thread)?;

    let (answered, is_answered) = crossbeam_channel::bounded::<()>(1);
    let watched = process.clone();
    spawn("dial timeout", move || {
        if is_answered.recv_timeout(DIAL_TIMEOUT) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
            watched.kill();
        }
    })
    .map_err(no_thread)?;
    let started = Instant::now();
    let mut reader = BufReader::with_capacity(256 * 1024, stdout);
    let outcome = shake_hands(&mut reader, &mut writer, program);
    let _ = answered.send(());
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
        Err(Greeting::Failed(failure)) => {
            process.kill();
            Err(failure.context(format!("reach {host}")))
        }
        Err(Greeting::OtherMachine(machine, failure)) => {
            process.kill();
            Ok(Connected::OtherMachine(machine, failure.context(format!("reach {host}"))))
        }
        Err(Greeting::Ended(noise)) => {
            // It was started and did not speak: an empty file, a torn one, anything that is no agent.
            let was_started = program.is_some() && noise.contains(HAS_AGENT);
            if started.elapsed() >= DIAL_TIMEOUT {
                let failure =
                    invalid(format!("reach {host}: no answer within {} seconds", DIAL_TIMEOUT.as_secs()));
                return Err(failure.hint(format!("check that `{shown}` reaches it without questions")));
            }
            let code = process.exit_code();
            process.kill();
            // Its last words may still be in the pipe, which a ControlMaster that stays behind can hold open.
            for _ in 0..50 {
                if listener.is_finished() {
                    break;
                }
                thread::sleep(Duration::from_millis(10));
            }
            let said = process.last_words();
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
            Err(failure.hint(format!(
                "try `{shown} {host} true` by hand; goldwire uses your own ssh and its settings"
            )))
        }
    }
}

enum Greeting {
    Failed(Failure),
    /// As `uname -m` says it, if it runs Linux.
    OtherMachine(String, Failure),
    /// The stream ended; what was printed until then.
    Ended(String),
}

/// Waits for the agent's preamble, installing it on the way if it is missing.
fn shake_hands(
    reader: &mut BufReader<impl Read>,
    writer: &mut impl Write,
    program: Option<(&Program, &str)>,
) -> Result<Hello, Greeting> {
    let mut noise = Vec::new();
    let mut is_installed = false;
    loop {
        let mut byte = [0];
        match reader.read(&mut byte) {
            Ok(1) => noise.push(byte[0]),
            _ => {
                return Err(Greeting::Ended(
                    String::from_utf8_lossy(&noise[noise.len().saturating_sub(500)..]).trim().to_owned(),
                ));
            }
        }
        if noise.len() > NOISE_MAX {
            return Err(Greeting::Failed(
                invalid("the login shell prints so much that no agent can be heard")
                    .hint("let the shell's start-up files print nothing when they are not interactive"),
            ));
        }
        if noise.ends_with(PREAMBLE) {
            break;
        }
        if noise.ends_with(INSTALL_FAILED) {
            return Err(Greeting::Failed(
                invalid("the agent could not be installed in the user's cache there").hint(
                    "its folder ($XDG_CACHE_HOME or ~/.cache) must be writable and allow programs to run",
                ),
            ));
        }
        if noise.ends_with(NEEDS_AGENT) && !is_installed {
            is_installed = true;
            let mut line = String::new();
            let read = reader.by_ref().take(200).read_line(&mut line);
            let (Ok(_), Some((program, _))) = (read, program) else {
                return Err(Greeting::Ended(String::new()));
            };
            let line = line.trim();
            if line != format!("Linux {}", program.machine) {
                let machine = line.strip_prefix("Linux ").unwrap_or_default().to_owned();
                let text = format!(
                    "the host is a {}; the agent at hand is for Linux {}",
                    printable(line),
                    program.machine
                );
                let failure =
                    invalid(text).hint("build an agent for that machine and name it with --agent-program");
                return Err(Greeting::OtherMachine(machine, failure));
            }
            let sent = writeln!(writer, "{}", program.bytes.len())
                .and_then(|()| writer.write_all(&program.bytes))
                .and_then(|()| writer.flush());
            if sent.is_err() {
                return Err(Greeting::Ended("the connection broke while the agent was installed".into()));
            }
        }
    }
    match Frame::read(reader) {
        Ok(Some(frame)) if frame.kind == Kind::Hello => {
            frame.message("greeting").map_err(|error| Greeting::Failed(error.into()))
        }
        _ => Err(Greeting::Ended("a greeting that is none".into())),
    }
}

/// Settings of the user's that are meant for his own sessions and would come between us and the agent, as `scp` sets
/// them. Each is set only if this `ssh` says that it knows it.
const OURS: [(&str, &str); 4] = [
    ("remotecommand", "RemoteCommand=none"),
    ("clearallforwardings", "ClearAllForwardings=yes"),
    ("permitlocalcommand", "PermitLocalCommand=no"),
    ("stdinnull", "StdinNull=no"),
];

/// The command that reaches `destination`: the user's, then what suits a bulk transfer. Ciphers are only put in
/// another order, the fast ones of this machine first: what the user's settings do not allow stays forbidden.
pub(crate) fn ssh_command(user_command: &[String], destination: &str) -> Vec<String> {
    let mut command = user_command.to_vec();
    if let Some(settings) = settings_for(user_command, destination) {
        command.extend(options_for(&settings, has_aes_instructions()));
    }
    command.extend(["-T".into(), "--".into(), destination.into()]);
    command
}

/// What `ssh -G` says of `destination`: a keyword and its value on each line (OpenSSH 6.8 and later).
fn settings_for(user_command: &[String], destination: &str) -> Option<String> {
    let (program, arguments) = user_command.split_first()?;
    let output = Command::new(program)
        .args(arguments)
        .args(["-G", "--", destination])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

fn options_for(settings: &str, has_aes: bool) -> Vec<String> {
    let value = |keyword: &str| {
        settings
            .lines()
            .find_map(|line| line.split_once(' ').filter(|(known, _)| *known == keyword).map(|(_, v)| v))
    };
    let mut options: Vec<String> = OURS
        .iter()
        .filter(|(keyword, _)| value(keyword).is_some())
        .flat_map(|(_, option)| ["-o".to_owned(), (*option).to_owned()])
        .collect();
    if let Some(allowed) = value("ciphers").filter(|_| has_aes) {
        let (mut fast, slow): (Vec<&str>, Vec<&str>) =
            allowed.trim().split(',').partition(|cipher| cipher.contains("-gcm@openssh.com"));
        fast.extend(slow);
        let ciphers = format!("Ciphers={}", fast.join(","));
        options.extend(["-o".into(), ciphers, "-o".into(), "Compression=no".into()]);
    }
    options
}

fn has_aes_instructions() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Larger pipes save context switches; a kernel that refuses costs only speed.
fn widen(writer: &ChildStdin, stdout: &ChildStdout) {
    let _ = rustix::pipe::fcntl_setpipe_size(writer, 1 << 20);
    let _ = rustix::pipe::fcntl_setpipe_size(stdout, 1 << 20);
}

/// Keeps the end of what `stderr` says, and passes it on line by line to `echo`. A line without end comes in pieces.
fn keep_stderr(stderr: impl Read, kept: &Mutex<Vec<u8>>, mut echo: impl FnMut(&str)) {
    let mut reader = BufReader::with_capacity(STDERR_LINE_MAX, stderr);
    let mut line = Vec::with_capacity(STDERR_LINE_MAX);
    loop {
        line.clear();
        match reader.by_ref().take(STDERR_LINE_MAX as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        echo(&printable_bytes(line.trim_ascii_end()));
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(&line);
        let surplus = kept.len().saturating_sub(STDERR_KEPT);
        kept.drain(..surplus);
    }
}

fn invalid(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Script, greeting, memory_of};

    #[test]
    fn only_settings_that_this_ssh_knows_are_set_and_no_cipher_is_added() {
        let old = "user root\nciphers aes128-ctr,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com\n";
        let options = options_for(old, true);
        assert_eq!(options[1], "Ciphers=aes256-gcm@openssh.com,aes128-ctr,chacha20-poly1305@openssh.com");
        assert_eq!(options.len(), 4);
        assert_eq!(options_for(old, false), [""; 0]);
        let new =
            "clearallforwardings no\npermitlocalcommand yes\nremotecommand tmux attach\nstdinnull yes\n";
        let options = options_for(new, true).join(" ");
        for option in
            ["RemoteCommand=none", "ClearAllForwardings=yes", "PermitLocalCommand=no", "StdinNull=no"]
        {
            assert!(options.contains(option), "{options}");
        }
    }

    fn program() -> Program {
        Program { machine: "x86_64".into(), bytes: Arc::new(vec![9; 5000]) }
    }

    /// What the handshake makes of what a host prints, and what it sends there.
    fn hands(printed: &[u8]) -> (Result<Hello, String>, Vec<u8>) {
        let (program, mut sent) = (program(), Vec::new());
        let digest = digest_of(&program.bytes);
        let mut reader = BufReader::new(printed);
        let shaken = shake_hands(&mut reader, &mut sent, Some((&program, &digest)));
        let shaken = shaken.map_err(|end| match end {
            Greeting::Failed(failure) | Greeting::OtherMachine(_, failure) => failure.to_string(),
            Greeting::Ended(noise) => format!("ended: {noise}"),
        });
        (shaken, sent)
    }

    #[test]
    fn an_agent_is_heard_behind_what_a_login_shell_prints() {
        let greeting = greeting(&program().bytes);
        for noise in ["", "Welcome\n", "GOLDWIRE-HAS-AGENT\n", "\0GOLDWIRE-AGENT", "\0GOLDWIRE\0GOLDWIRE-A"] {
            let (hello, sent) = hands(&[noise.as_bytes(), &greeting].concat());
            let hello = hello.unwrap();
            assert_eq!((hello.host.as_str(), hello.protocol), ("evil", PROTOCOL_VERSION), "{noise:?}");
            assert!(sent.is_empty());
        }
        let (ended, _) = hands(b"Permission denied.\n");
        assert_eq!(ended.unwrap_err(), "ended: Permission denied.");
        for cut in 0..greeting.len() {
            assert!(hands(&greeting[..cut]).0.is_err(), "{cut}");
        }
    }

    #[test]
    fn noise_has_an_end() {
        let (refused, _) = hands(&vec![b'x'; NOISE_MAX + 1]);
        assert!(refused.unwrap_err().contains("prints so much"));
        let quiet = [vec![b'x'; NOISE_MAX - PREAMBLE.len()], greeting(&program().bytes)].concat();
        assert!(hands(&quiet).0.is_ok());
    }

    #[test]
    fn the_program_is_sent_once_to_a_machine_that_it_is_for() {
        let greeting = greeting(&program().bytes);
        let needs = b"\nGOLDWIRE-NEEDS-AGENT Linux x86_64\n".as_slice();
        let (hello, sent) = hands(&[needs, &greeting].concat());
        hello.unwrap();
        assert_eq!(sent, [b"5000\n".as_slice(), &program().bytes].concat());
        let (ended, sent) = hands(&[needs, needs, needs].concat());
        assert!(ended.unwrap_err().starts_with("ended") && sent.len() == 5005, "not twice");
        for machine in ["Linux riscv64", "Darwin x86_64", "", "Linux x86_64 and more"] {
            let (refused, sent) = hands(format!("GOLDWIRE-NEEDS-AGENT {machine}\n").as_bytes());
            let refused = refused.unwrap_err();
            assert!(refused.contains(&format!("the host is a {machine};")), "{refused}");
            assert!(sent.is_empty());
        }
        let (refused, _) = hands(b"GOLDWIRE-INSTALL-FAILED\n");
        assert!(refused.unwrap_err().contains("could not be installed"));
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

    /// A host that never ends its line costs no more than a piece of it.
    #[test]
    fn a_line_without_end_is_kept_in_pieces_of_which_the_last_remain() {
        let before = memory_of();
        let kept = Mutex::default();
        let (mut pieces, mut longest) = (0, 0);
        keep_stderr(io::repeat(b'x').take(60 << 20), &kept, |piece| {
            pieces += 1;
            longest = longest.max(piece.len());
        });
        assert_eq!((pieces, longest), ((60 << 20) / STDERR_LINE_MAX, STDERR_LINE_MAX));
        assert_eq!(kept.lock().unwrap().len(), STDERR_KEPT);
        assert!(memory_of().saturating_sub(before) < 16 << 20);
    }

    #[test]
    fn lines_are_passed_on_as_they_are_but_for_what_a_terminal_obeys() {
        let kept = Mutex::default();
        let mut lines = Vec::new();
        keep_stderr(b"one\r\ntwo \x1b[2J\nlast".as_slice(), &kept, |line| lines.push(line.to_owned()));
        assert_eq!(lines, ["one", "two \\u{1b}[2J", "last"]);
        assert_eq!(*kept.lock().unwrap(), b"one\r\ntwo \x1b[2J\nlast");
    }
}
