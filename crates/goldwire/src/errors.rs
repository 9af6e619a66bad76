//! Showing what failed: to people on standard error, with `--json` as an object on standard output too; and only what the
//! running command can do about it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use clap::{ArgMatches, Command};
use goldwire_stdx::Report;
use serde_json::{Value, json};

use crate::commands::json_line;
use crate::exit::Code;

/// The kind of an error in the arguments.
const WRONG_USAGE: &str = "usage";

static RUNNING: OnceLock<Running> = OnceLock::new();

/// What clap knows of the command that was typed.
#[derive(Debug)]
struct Running {
    is_json: bool,
    /// Its options, as `--option`.
    options: BTreeSet<String>,
    /// Those of all commands.
    all_options: BTreeSet<String>,
}

/// Tells this room which command of `whole` runs, before anything can fail.
pub(crate) fn set_running(whole: &Command, typed: &ArgMatches) {
    let _ = RUNNING.set(Running::new(whole, typed));
}

impl Running {
    fn new(whole: &Command, typed: &ArgMatches) -> Self {
        let (mut command, mut typed) = (whole, typed);
        while let Some((name, inner)) = typed.subcommand()
            && let Some(found) = command.find_subcommand(name)
        {
            (command, typed) = (found, inner);
        }
        let is_json = typed.try_get_one::<bool>("json").ok().flatten() == Some(&true);
        let mut all_options = BTreeSet::new();
        collect_options(whole, &mut all_options);
        Self { is_json, options: options_of(command).collect(), all_options }
    }

    /// What of `hint` can be followed here. Rooms below do not know which command they work for, so that a clause of their
    /// hints, which a semicolon ends, may name an option that only other commands have.
    fn followable(&self, hint: &str) -> Option<String> {
        let clauses: Vec<_> = hint.split("; ").collect();
        let kept: Vec<_> = clauses.iter().copied().filter(|clause| self.can_follow(clause)).collect();
        match kept.first() {
            _ if kept.len() == clauses.len() => Some(hint.to_owned()),
            Some(_) => {
                let kept = kept.join("; ");
                Some(kept.strip_prefix("or ").unwrap_or(&kept).to_owned())
            }
            None => None,
        }
    }

    fn can_follow(&self, clause: &str) -> bool {
        // Options behind a command that is spelled out are that one's.
        let own = clause.find("goldwire ").map_or(clause, |at| &clause[..at]);
        own.split_whitespace().filter(|word| word.contains("--")).all(|word| {
            let option =
                word.trim_matches(|character: char| !character.is_alphanumeric() && character != '-');
            let option = option.split_once('=').map_or(option, |(option, _)| option);
            !self.all_options.contains(option) || self.options.contains(option)
        })
    }
}

fn options_of(command: &Command) -> impl Iterator<Item = String> {
    command.get_arguments().filter_map(|argument| Some(format!("--{}", argument.get_long()?)))
}

fn collect_options(command: &Command, options: &mut BTreeSet<String>) {
    options.extend(options_of(command));
    for inner in command.get_subcommands() {
        collect_options(inner, options);
    }
}

/// The same error, with the hints that can be followed here.
pub(crate) fn for_running(mut report: Report) -> Report {
    if let Some(running) = RUNNING.get() {
        report.hints = report.hints.iter().filter_map(|hint| running.followable(hint)).collect();
    }
    report
}

/// One line that says what failed, the causes, then the hints.
pub(crate) fn print_error(report: Report) {
    let report = for_running(report);
    if RUNNING.get().is_some_and(|running| running.is_json) {
        // A reader that went away is told on standard error.
        let _ = writeln!(io::stdout(), "{}", json_line(&failed_json(&report)));
    }
    let mut stderr = io::stderr().lock();
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

/// Says that the arguments make no sense, and ends the program. Help is no error.
pub(crate) fn exit_wrong_usage(error: &clap::Error) -> ! {
    if error.use_stderr() && asks_for_json(std::env::args_os().skip(1)) {
        let text = error.render().to_string();
        // The first paragraph says what is wrong, the others how it is right.
        let words: Vec<_> = text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
        let message = words.join(" ");
        let message = message.strip_prefix("error: ").unwrap_or(&message);
        let _ = writeln!(io::stdout(), "{}", json_line(&failed_json(&of_wrong_usage(message))));
    }
    error.exit()
}

/// Whether `--json` was typed: arguments that cannot be understood have no command that could say so.
fn asks_for_json(words: impl Iterator<Item = OsString>) -> bool {
    words.take_while(|word| word != "--").any(|word| word == "--json")
}

/// Says that arguments make no sense together.
pub(crate) fn wrong_usage(message: &str) -> Code {
    print_error(of_wrong_usage(message));
    Code::Usage
}

fn of_wrong_usage(message: &str) -> Report {
    Report { kind: Some(WRONG_USAGE), ..Report::new(message) }
}

/// An error as an event of JSON, in every command.
pub(crate) fn failed_json(report: &Report) -> Value {
    let (message, causes) =
        report.chain.split_first().map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    json!({
        "event": "failed", "kind": report.kind.unwrap_or("other"), "message": message, "causes": causes,
        "hints": report.hints,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Args;

    fn running(words: &[&str]) -> Running {
        let mut whole = Args::command();
        whole.build();
        let typed = whole.clone().try_get_matches_from([&["goldwire"], words].concat()).unwrap();
        Running::new(&whole, &typed)
    }

    #[test]
    fn a_hint_names_only_options_of_the_command_that_prints_it() {
        let convert = running(&["disk", "convert", "a", "b"]);
        let sync = running(&["sync", "a", "b"]);
        let stores = running(&["store", "check", "s"]);
        let image = running(&["image", "list", "--store", "s"]);
        for (hint, of_convert) in [
            ("stop it; --wait 2m waits for it", Some("stop it")),
            ("--wait 2m waits for it; or stop it", Some("stop it")),
            ("narrow --match", None),
            ("or choose by a rule: --youngest, --uuid=UUID", None),
            ("leave `--name` away", None),
            (
                "--replace puts it there; leave --format away",
                Some("--replace puts it there; leave --format away"),
            ),
            (
                "sign it: goldwire disk tree --sign KEY IMAGE",
                Some("sign it: goldwire disk tree --sign KEY IMAGE"),
            ),
            (
                "sync from a snapshot (lvcreate --snapshot)",
                Some("sync from a snapshot (lvcreate --snapshot)"),
            ),
        ] {
            assert_eq!(convert.followable(hint).as_deref(), of_convert, "{hint}");
            assert_eq!(sync.followable(hint).as_deref(), Some(hint));
        }
        let hint = "set X; or say --store FOLDER";
        assert_eq!(image.followable(hint).as_deref(), Some(hint));
        assert_eq!(stores.followable(hint).as_deref(), Some("set X"));
    }

    #[test]
    fn json_is_asked_for_by_the_running_command() {
        assert!(running(&["disk", "info", "--json", "a"]).is_json);
        assert!(running(&["store", "stat", "--json"]).is_json);
        assert!(running(&["image", "list", "--json"]).is_json);
        assert!(running(&["boot", "check", "--json"]).is_json);
        assert!(!running(&["disk", "info", "a"]).is_json);
        assert!(!running(&["key", "new", "a"]).is_json);
        let report = Report::new("a").context("b").hint("c");
        let value = failed_json(&report);
        assert_eq!(
            value,
            json!({"event": "failed", "kind": "other", "message": "b", "causes": ["a"], "hints": ["c"]})
        );
    }
}
