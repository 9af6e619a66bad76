//! `goldwire`: arguments in, exit code out. Everything in between lives in the other rooms.

mod agents;
mod args;
mod authority;
mod commands;
mod errors;
mod exit;
mod privileges;
mod progress;
mod schedule;
mod time;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::args::{Args, Command, DiskCommand, KeyCommand};

fn main() -> ExitCode {
    let mut whole = Args::command();
    whole.build();
    let typed = whole.try_get_matches_from_mut(std::env::args_os());
    let typed = typed.unwrap_or_else(|error| errors::exit_wrong_usage(&error));
    errors::set_running(&whole, &typed);
    let args = Args::from_arg_matches(&typed);
    let args = args.unwrap_or_else(|error| errors::exit_wrong_usage(&error.format(&mut whole)));
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
            let is_stopped = report.kind == Some(commands::reading::STOPPED);
            errors::print_error(report);
            if is_stopped { exit::Code::Stopped.into() } else { exit::Code::Nothing.into() }
        }
    }
}
