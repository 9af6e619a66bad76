//! What is started as an agent, here and elsewhere: the programs at hand, and the `sh` script that finds or installs the
//! right one in the remote user's cache.

use std::path::PathBuf;
use std::sync::Arc;

use goldwire_stdx::to_hex;

/// The agent's program for one kind of machine.
#[derive(Clone)]
pub struct Program {
    /// As `uname -m` says it, such as `x86_64`.
    pub machine: String,
    /// The executable.
    pub bytes: Arc<Vec<u8>>,
}

impl Program {
    /// The program in `bytes`, if they are an ELF executable for a machine that we can name (ELF header:
    /// `e_machine` at byte 18).
    pub fn from_elf(bytes: Vec<u8>) -> Option<Self> {
        let machine = match (bytes.get(..6)?, bytes.get(18..20)?) {
            (b"\x7fELF\x02\x01", [62, 0]) => "x86_64",
            (b"\x7fELF\x02\x01", [183, 0]) => "aarch64",
            _ => return None,
        };
        Some(Self { machine: machine.to_owned(), bytes: Arc::new(bytes) })
    }
}

/// How to start an agent on this machine, and what to install on others.
#[derive(Clone)]
pub struct Agents {
    /// The command of a local agent.
    pub local: Vec<PathBuf>,
    /// The programs at hand.
    pub programs: Vec<Program>,
    /// Prefix lines from `ssh`'s standard error with the host and pass them on to ours.
    pub echo_stderr: bool,
}

/// The command that starts an agent on this machine from this very program.
pub fn own_agent(arguments: &[&str]) -> Vec<PathBuf> {
    let program = std::env::current_exe().unwrap_or_else(|_| "goldwire".into());
    std::iter::once(program).chain(arguments.iter().map(PathBuf::from)).collect()
}

pub(crate) const HAS_AGENT: &str = "GOLDWIRE-HAS-AGENT";
pub(crate) const NEEDS_AGENT: &[u8] = b"GOLDWIRE-NEEDS-AGENT ";
pub(crate) const INSTALL_FAILED: &[u8] = b"GOLDWIRE-INSTALL-FAILED";

/// What the remote login shell is told. One line without single quotes, so that any shell passes it on whole.
/// `read` takes its line byte by byte and `head -c` stops where it should, so the program's bytes go nowhere else.
pub(crate) fn remote_script(digest: &str, force: bool) -> String {
    let remove = if force { "rm -f \"$a\"; " } else { "" };
    format!(
        "exec sh -c 'd=\"${{XDG_CACHE_HOME:-$HOME/.cache}}/goldwire\"; a=\"$d/agent-{digest}\"; {remove}\
         if [ -x \"$a\" ]; then echo; echo {HAS_AGENT}; exec \"$a\" --stdio; fi; \
         echo; echo GOLDWIRE-NEEDS-AGENT $(uname -s) $(uname -m); read -r n || exit 3; umask 077; \
         mkdir -p \"$d\" && t=$(mktemp \"$d/.agent.XXXXXXXX\") && head -c \"$n\" >\"$t\" && chmod 700 \"$t\" && \
         \"$t\" --self-check {digest} && mv -f \"$t\" \"$a\" && exec \"$a\" --stdio; \
         rm -f \"$t\"; echo; echo GOLDWIRE-INSTALL-FAILED; exit 4'"
    )
}

/// The name of a program in the cache: enough of its BLAKE3 to be unique and unforgeable.
pub fn digest_of(program: &[u8]) -> String {
    to_hex(&blake3::hash(program).as_bytes()[..16])
}
