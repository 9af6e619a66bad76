//! `goldwire boot …`: one file per command.

pub(crate) mod balance;
pub(crate) mod certificate;
pub(crate) mod check;
pub(crate) mod doctor;
pub(crate) mod explain;
mod log;
pub(crate) mod media;
pub(crate) mod secret;
pub(crate) mod serve;
pub(crate) mod watch;

use std::path::Path;

use goldwire_control::boot::{Loaded, load as load_file};
use goldwire_stdx::{Context, Report, printable_bytes, shell_path};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::BootCommand;
use crate::args::boot::LogFormat;
use crate::exit::Code;

pub(crate) fn run(command: BootCommand) -> Result<Code, Report> {
    match command {
        BootCommand::Serve(args) => serve::run(&args),
        BootCommand::Check(args) => check::run(&args),
        BootCommand::Explain(args) => explain::explain(&args),
        BootCommand::Script(args) => explain::script(&args),
        BootCommand::Watch(args) => watch::run(&args),
        BootCommand::Doctor(args) => doctor::run(&args),
        BootCommand::Balance(args) => balance::run(&args),
        BootCommand::Media(args) => media::run(*args),
        BootCommand::Secret(args) => secret::run(&args),
        BootCommand::Certificate(args) => certificate::run(&args),
    }
}

/// Reads a boot file. How much is odd about it goes to standard error on one line: whoever asks something else is not
/// told all of it each time.
fn load(path: &Path) -> Result<Loaded, Report> {
    let loaded = load_file(path)?;
    let (path, typed) = (printable_bytes(path.as_os_str().as_encoded_bytes()), shell_path(path));
    match loaded.warnings.list.len() {
        0 => {}
        1 => say(&format!("{path}: 1 warning; hint: goldwire boot check --config {typed} shows it")),
        count => {
            say(&format!("{path}: {count} warnings; hint: goldwire boot check --config {typed} shows them"))
        }
    }
    Ok(loaded)
}

/// Standard error is talk; nobody is helped if it cannot be written.
fn say(text: &str) {
    let _ = std::io::Write::write_all(&mut std::io::stderr().lock(), format!("{text}\n").as_bytes());
}

/// Log lines go to standard error from now on.
fn log(filter: &str, format: LogFormat) -> Result<(), Report> {
    let filter = EnvFilter::try_new(filter)
        .map_err(Report::plain)
        .with_context(|| format!("understand --log {filter}"))?;
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let is_set = tracing::Dispatch::new(log::to(std::io::stderr, filter, format, is_terminal)).try_init();
    is_set.map_err(|error| Report::new(format!("set up the log: {error}")))
}
