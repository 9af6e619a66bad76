//! `goldwire`: arguments in, exit code out. Everything in between lives in the other rooms.

mod agents;
mod args;
mod authority;
mod commands;
mod exit;
mod privileges;
mod progress;
mod schedule;
mod time;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use goldwire_stdx::Report;

use crate::args::{Args, Command, DiskCommand, KeyCommand};

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.command {
        Command::Sync(args) => commands::sync::run(*args),
        Command::Disk(DiskCommand::Info(args)) => commands::disk::info(&args),
        Command::Disk(DiskCommand::Check(args)) => commands::disk::check(&args),
        Command::Disk(DiskCommand::Convert(args)) => commands::disk::convert(*args),
        Command::Disk(DiskCommand::Compare(args)) => commands::disk::compare(&args),
        Command::Disk(DiskCommand::Tree(args)) => commands::disk::tree(&args),
        Command::Disk(DiskCommand::Tidy(args)) => commands::tidy::run(&args),
        Command::Image(args) => commands::image::run(&args),
        Command::Store(command) => commands::store::run(&command),
        Command::Boot(command) => commands::boot::run(command),
        Command::Key(KeyCommand::New(args)) => commands::key::new(&args),
        Command::Completions { shell } => commands::generate::completions(shell),
        Command::Man { folder } => commands::generate::man(&folder),
        Command::Agent { agent_program, .. } => agents::agents(&agent_program).map(|agents| {
            let (local, programs) = (agents.local, Some(agents.programs));
            std::process::exit(goldwire_replicate::agent::run(local, programs, env!("CARGO_PKG_VERSION")))
        }),
    };
    match outcome {
        Ok(code) => code.into(),
        Err(report) => {
            print_error(&report);
            exit::Code::Nothing.into()
        }
    }
}

/// One line that says what failed, the causes, then the hints.
fn print_error(report: &Report) {
    let mut stderr = std::io::stderr().lock();
    // A configuration's problems say themselves which is an error and which a warning.
    if report.is_diagnostics {
        let _ = writeln!(stderr, "{}", report.line());
        return;
    }
    let (bold, red, plain) =
        if stderr.is_terminal() { ("\x1b[1m", "\x1b[31m", "\x1b[0m") } else { ("", "", "") };
    let _ = writeln!(stderr, "{red}{bold}error{plain}: {}", report.line());
    for hint in report.shown_hints() {
        let _ = writeln!(stderr, "{bold}hint{plain}: {hint}");
    }
}
