//! Shaking hands: hears the agent out behind what a login shell prints, and installs it on the way if it is missing.

use std::io::{self, BufRead, BufReader, Read, Write};

use goldwire_stdx::printable;

use super::invalid;
use crate::failure::Result;
use crate::install::{GOT_PIECE, INSTALL_FAILED, NEEDS_AGENT, PIECE, Program};
use crate::wire::{Failure, Frame, Hello, Kind, NOISE_MAX, PREAMBLE};

pub(super) enum Greeting {
    Failed(Failure),
    /// As `uname -m` says it, if it runs Linux.
    OtherMachine(String, Failure),
    /// The stream ended; what was printed until then.
    Ended(String),
}

/// Waits for the agent's preamble, installing it on the way if it is missing. Calls `step` whenever a piece of it is sent.
pub(super) fn shake_hands(
    reader: &mut BufReader<impl Read>,
    writer: &mut impl Write,
    program: Option<(&Program, &str)>,
    step: &mut dyn FnMut(),
) -> Result<Hello, Greeting> {
    let mut noise = Vec::new();
    let mut is_installed = false;
    let mut pieces: Pieces<'_> = [].chunks(PIECE);
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
            return Err(Greeting::Failed(install_failed(rest_of_line(reader).trim())));
        }
        if noise.ends_with(GOT_PIECE) && send_piece(writer, &mut pieces, step).is_err() {
            return Err(Greeting::Ended(BROKE.into()));
        }
        if noise.ends_with(NEEDS_AGENT) && !is_installed {
            is_installed = true;
            let line = rest_of_line(reader);
            let line = line.trim();
            let Some((program, _)) = program else { return Err(Greeting::Ended(String::new())) };
            if line != format!("Linux {}", program.machine) {
                let machine = line.strip_prefix("Linux ").unwrap_or_default().to_owned();
                let text = format!(
                    "the host is a {}; the agent at hand is for Linux {}",
                    printable(line),
                    program.machine
                );
                let failure = invalid(text).hint(
                    "build an agent for that machine, and give it to goldwire sync with --agent-program",
                );
                return Err(Greeting::OtherMachine(machine, failure));
            }
            pieces = program.bytes.chunks(PIECE);
            let sent = writeln!(writer, "{}", program.bytes.len());
            if sent.and_then(|()| send_piece(writer, &mut pieces, step)).is_err() {
                return Err(Greeting::Ended(BROKE.into()));
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

type Pieces<'a> = std::slice::Chunks<'a, u8>;

const BROKE: &str = "the connection broke while the agent was installed";

/// The next piece of the program, when the one before has arrived: a line that is slow and moves is none that hangs, and no
/// reader over there finds more than it should take. Only a piece that is sent is a step: a host has as many as the
/// program has pieces, whatever it says.
fn send_piece(writer: &mut impl Write, pieces: &mut Pieces<'_>, step: &mut dyn FnMut()) -> io::Result<()> {
    let Some(piece) = pieces.next() else { return Ok(()) };
    step();
    writer.write_all(piece).and_then(|()| writer.flush())
}

fn rest_of_line(reader: &mut impl BufRead) -> String {
    let mut line = String::new();
    // What cannot be read is missed by whoever looks into the line.
    let _ = reader.take(200).read_line(&mut line);
    line
}

/// What went wrong over there, by the step that the script names. The shell's own words come beside it.
fn install_failed(step: &str) -> Failure {
    let (what, hint) = match step {
        "folder" => (
            "no folder for the agent could be made there",
            "the user's cache ($XDG_CACHE_HOME or ~/.cache), or else the folder for temporary files, must be writable",
        ),
        "file" => (
            "the agent could not be written to the user's cache there",
            "the file system of $XDG_CACHE_HOME or ~/.cache must be writable and have room for it",
        ),
        "write" => (
            "the agent could not be written completely there",
            "the file system of $XDG_CACHE_HOME or ~/.cache has too little space, or the user's quota is used up",
        ),
        "run" => (
            "the agent was installed there and does not run",
            "its folder ($XDG_CACHE_HOME or ~/.cache) must be on a file system that is not mounted noexec, and the host \
             needs glibc; name another folder with SetEnv XDG_CACHE_HOME=FOLDER in the host's sshd_config, or another agent \
             with --agent-program",
        ),
        _ => (
            "the agent could not be installed in the user's cache there",
            "its folder ($XDG_CACHE_HOME or ~/.cache) must be writable and allow programs to run",
        ),
    };
    invalid(what).hint(hint)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::install::digest_of;
    use crate::testing::greeting;
    use crate::wire::PROTOCOL_VERSION;

    fn program() -> Program {
        Program { machine: "x86_64".into(), bytes: Arc::new(vec![9; 5000]) }
    }

    /// What the handshake makes of what a host prints, what it sends there, and in how many steps.
    fn hands_with(program: &Program, printed: &[u8]) -> (Result<Hello, String>, Vec<u8>, usize) {
        let (mut sent, mut steps) = (Vec::new(), 0);
        let digest = digest_of(&program.bytes);
        let mut reader = BufReader::new(printed);
        let shaken = shake_hands(&mut reader, &mut sent, Some((program, &digest)), &mut || steps += 1);
        let shaken = shaken.map_err(|end| match end {
            Greeting::Failed(failure) | Greeting::OtherMachine(_, failure) => failure.to_string(),
            Greeting::Ended(noise) => format!("ended: {noise}"),
        });
        (shaken, sent, steps)
    }

    fn hands(printed: &[u8]) -> (Result<Hello, String>, Vec<u8>) {
        let (shaken, sent, _) = hands_with(&program(), printed);
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

    /// Each piece waits until the one before has arrived. Each that is sent gives the host time, and nothing else does: one
    /// that says for days that it got something is given up as any other.
    #[test]
    fn a_program_goes_in_pieces() {
        let program = Program { machine: "x86_64".into(), bytes: Arc::new(vec![7; 2 * PIECE + 5]) };
        let (got, needs) = (b"GOLDWIRE-GOT\n".as_slice(), b"GOLDWIRE-NEEDS-AGENT Linux x86_64\n".as_slice());
        for arrived in [0, 1, 2, 3, 4, 100] {
            let (shaken, sent, steps) = hands_with(&program, &[needs, &got.repeat(arrived)].concat());
            assert!(shaken.unwrap_err().starts_with("ended"));
            let first = format!("{}\n", program.bytes.len()).len();
            assert_eq!(sent.len() - first, program.bytes.len().min((arrived + 1) * PIECE), "{arrived}");
            assert_eq!(steps, 3.min(arrived + 1), "{arrived}");
        }
        // Nobody who is sent nothing gets a piece, or time.
        let (ended, sent, steps) = hands_with(&program, &got.repeat(100));
        assert!(ended.is_err() && sent.is_empty());
        assert_eq!(steps, 0);
    }

    #[test]
    fn a_failed_installation_says_which_step_failed() {
        for (step, words) in [
            ("folder", "no folder"),
            ("file", "could not be written to"),
            ("write", "written completely"),
            ("run", "noexec"),
            ("", "could not be installed"),
            ("\x1b[2J", "could not be installed"),
        ] {
            let (refused, _) = hands(format!("GOLDWIRE-INSTALL-FAILED {step}\n").as_bytes());
            let refused = refused.unwrap_err();
            assert!(refused.contains(words) && refused.contains("XDG_CACHE_HOME"), "{refused}");
        }
    }
}
