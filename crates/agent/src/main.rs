//! `goldwire-agent`: what runs at the other end of `ssh`.
//!
//! It is put there by `goldwire` itself, named after its own digest, and knows three words: `--stdio` to work,
//! `--self-check DIGEST` to prove that it arrived whole and runs on this machine, `--version`.

use std::io::Write;
use std::process::ExitCode;

use goldwire_replicate::{agent, digest_of, own_agent};

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["--stdio"] => ExitCode::from(agent::run(own_agent(&["--stdio"]), None, VERSION) as u8),
        ["--self-check", digest] => {
            let own = std::fs::read("/proc/self/exe").map(|program| digest_of(&program));
            if own.is_ok_and(|own| own == *digest) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        ["--version"] => {
            let _ = writeln!(std::io::stdout(), "goldwire-agent {VERSION}");
            ExitCode::SUCCESS
        }
        _ => {
            let _ = writeln!(
                std::io::stderr(),
                "usage: goldwire-agent --stdio | --self-check DIGEST | --version\n\nStarted by goldwire over ssh; there is nothing to do by hand."
            );
            ExitCode::from(2)
        }
    }
}
