//! The agents at hand: the embedded one, or the one beside the program, and those that the user names.

use std::path::{Path, PathBuf};

use goldwire_replicate::{Agents, Program, own_agent};
use goldwire_stdx::{Context, Report};

/// Empty in a plain `cargo build`; see `build.rs`.
static EMBEDDED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent"));

/// How to start agents here and elsewhere.
pub(crate) fn agents(named: &[PathBuf]) -> Result<Agents, Report> {
    let mut programs = Vec::new();
    for path in named {
        let bytes = std::fs::read(path).with_context(|| format!("read the agent {}", path.display()))?;
        match Program::from_elf(bytes) {
            Some(program) => programs.push(program),
            None => {
                return Err(Report::new(format!(
                    "{} is no Linux program for x86_64 or aarch64",
                    path.display()
                )));
            }
        }
    }
    if !EMBEDDED.is_empty() {
        programs.extend(Program::from_elf(EMBEDDED.to_vec()));
    } else if let Some(bytes) = beside() {
        programs.extend(Program::from_elf(bytes));
    }
    let mut local = own_agent(&["agent", "--stdio"]);
    for path in named {
        local.extend(["--agent-program".into(), path.clone()]);
    }
    Ok(Agents { local, programs, echo_stderr: true })
}

fn beside() -> Option<Vec<u8>> {
    let program = std::env::current_exe().ok()?;
    let folder = program.parent().unwrap_or(Path::new("."));
    std::fs::read(folder.join("goldwire-agent")).ok()
}
