//! `goldwire boot watch`: what the timeline says, then what comes.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use goldwire_control::boot::timeline::{Boots, DeviceBoot, Follower, Record};
use goldwire_stdx::{Context, Report, printable};
use serde_json::json;

use crate::args::boot::WatchArgs;
use crate::commands::json_line;
use crate::exit::Code;

/// How often a followed timeline is looked at.
const LOOK: Duration = Duration::from_millis(200);

pub(crate) fn run(args: &WatchArgs) -> Result<Code, Report> {
    let state = state_of(args)?;
    let mut follower = Follower::new(&state);
    let mut boots = Boots::default();
    let mut out = io::stdout().lock();
    let next = |follower: &mut Follower| {
        follower.next_record().with_context(|| format!("read the boot timeline below {}", state.display()))
    };
    let concerns = |record: &Record, boots: &Boots| match &args.device {
        None => true,
        Some(device) => {
            record.address.as_ref() == Some(device) || boots.device_of(record).as_ref() == Some(device)
        }
    };
    // What is there already is folded into one line a device; what comes is shown as it comes.
    while let Some(record) = next(&mut follower)? {
        if concerns(&record, &boots) {
            if args.file.json && !args.once {
                writeln!(out, "{}", json_of(&record)?)?;
            }
            boots.take(&record);
        }
    }
    if !follower.has_timeline() {
        let missing = no_timeline(&state);
        if args.once {
            return Err(missing);
        }
        // Whoever watches may be there before the server.
        super::say(&format!("{}; waiting for one", missing.log_line()));
    }
    if args.once && args.file.json {
        writeln!(out, "{}", json_line(&json!({ "boots": boots.all() })))?;
        return Ok(Code::Success);
    }
    if !args.file.json {
        for boot in boots.all().into_iter().rev() {
            writeln!(out, "{}", summary(boot))?;
        }
    }
    out.flush()?;
    if args.once {
        return Ok(Code::Success);
    }
    loop {
        while let Some(record) = next(&mut follower)? {
            if !concerns(&record, &boots) {
                continue;
            }
            let boot = boots.take(&record);
            let line = match args.file.json {
                true => json_of(&record)?,
                false => step(&record, boot),
            };
            match writeln!(out, "{line}").and_then(|()| out.flush()) {
                // Whoever read has gone; that is how one stops watching.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Code::Success),
                written => written?,
            }
        }
        thread::sleep(LOOK);
    }
}

/// An empty answer would say that nothing boots, where nothing was looked at.
fn no_timeline(state: &Path) -> Report {
    Report::new(format!("there is no boot timeline in {}", state.display())).hint(
        "a boot server on this machine makes it when it starts; --state FOLDER, or server.state in the boot file, \
         names its folder",
    )
}

fn json_of(record: &Record) -> Result<String, Report> {
    Ok(json_line(&serde_json::to_string(record).map_err(Report::plain)?))
}

fn state_of(args: &WatchArgs) -> Result<PathBuf, Report> {
    match &args.state {
        Some(state) => Ok(state.clone()),
        None => Ok(super::load(&args.file.config)?.settings.server.state),
    }
}

/// A device's latest boot on one line.
fn summary(boot: &DeviceBoot) -> String {
    let zone = jiff::tz::TimeZone::system();
    let began = boot.began.to_zoned(zone).strftime("%F %T");
    let last = boot.steps.last();
    let so_far = last.map_or_else(String::new, |step| {
        format!("{} after {:.1} s at {} ({})", step.stage, step.seconds, step.member, step.detail)
    });
    let good = format!("{began}  {:<17}  {so_far}", boot.device);
    let trouble = boot.trouble.as_ref().map(|trouble| paint(&printable(&format!("; then {trouble}")), "31"));
    format!("{}{}", printable(&good), trouble.unwrap_or_default())
}

/// One record as it comes.
fn step(record: &Record, boot: Option<&DeviceBoot>) -> String {
    let time = record.at.to_zoned(jiff::tz::TimeZone::system()).strftime("%T%.3f");
    let device = boot.map_or("-", |boot| &boot.device);
    let after = boot.map_or_else(String::new, |boot| {
        format!("+{:.1}s", record.at.duration_since(boot.began).as_secs_f64())
    });
    let line = format!(
        "{time}  {device:<17}  {after:>8}  {:<9} {:<11} {}  {}",
        record.protocol, record.what, record.member, record.detail
    );
    // Devices, and whoever can write to the timeline, have said most of it.
    let line = printable(&line);
    if record.is_trouble() { paint(&line, "31") } else { line.into_owned() }
}

fn paint(text: &str, colour: &str) -> String {
    if io::stdout().is_terminal() { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_timeline_that_is_not_there_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let watch = |state: &Path, more: &[&str]| {
            let words = ["watch", "--once", "--state", state.to_str().unwrap()];
            run(&WatchArgs::parse_from(words.iter().chain(more)))
        };
        for state in [folder.path().join("typo"), folder.path().to_owned()] {
            for more in [&[][..], &["--json"], &["52:54:00:00:00:01"]] {
                let refused = watch(&state, more).unwrap_err();
                assert!(refused.line().contains(state.to_str().unwrap()), "{refused}");
                assert!(refused.hints.iter().any(|hint| hint.contains("--state")), "{refused}");
            }
        }
        std::fs::write(folder.path().join("timeline.jsonl"), "").unwrap();
        assert_eq!(
            watch(folder.path(), &[]).unwrap(),
            Code::Success,
            "a server has started, and nothing boots"
        );
    }

    /// A timeline is a file, and every string in it can be somebody's.
    #[test]
    fn nothing_of_a_timeline_reaches_the_terminal_that_it_obeys() {
        let evil = "\u{1b}[2J\u{9b}31m\r\n\u{202e}";
        for what in ["refused", "script", evil] {
            let record = Record {
                at: jiff::Timestamp::UNIX_EPOCH,
                mac: Some(evil.into()),
                address: Some(evil.into()),
                member: evil.into(),
                protocol: evil.into(),
                what: what.into(),
                detail: evil.into(),
                bytes: None,
                seconds: None,
            };
            let mut boots = Boots::default();
            let boot = boots.take(&record).unwrap();
            let json = json_of(&record).unwrap();
            for line in [step(&record, Some(boot)), step(&record, None), summary(boot), json.clone()] {
                assert_eq!(printable(&line), line);
            }
            assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record, "scripts get it as it is");
        }
    }
}
