//! `goldwire boot watch`: what the timeline says, then what comes.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use goldwire_control::boot::timeline::{Boots, DeviceBoot, Follower, Record};
use goldwire_stdx::{Context, Report};
use serde_json::json;

use crate::args::boot::WatchArgs;
use crate::exit::Code;

/// How often a followed timeline is looked at.
const LOOK: Duration = Duration::from_millis(200);

pub(crate) fn run(args: &WatchArgs) -> Result<Code, Report> {
    let state = state_of(args)?;
    let mut follower = Follower::new(&state);
    let mut boots = Boots::default();
    let mut out = io::stdout().lock();
    let mut next = || {
        follower.next_record().with_context(|| format!("read the boot timeline below {}", state.display()))
    };
    let concerns = |record: &Record, boots: &Boots| match &args.device {
        None => true,
        Some(device) => {
            record.address.as_ref() == Some(device) || boots.device_of(record).as_ref() == Some(device)
        }
    };
    // What is there already is folded into one line a device; what comes is shown as it comes.
    while let Some(record) = next()? {
        if concerns(&record, &boots) {
            if args.file.json && !args.once {
                writeln!(out, "{}", serde_json::to_string(&record).map_err(Report::plain)?)?;
            }
            boots.take(&record);
        }
    }
    if args.once && args.file.json {
        writeln!(out, "{}", json!({ "boots": boots.all() }))?;
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
        while let Some(record) = next()? {
            if !concerns(&record, &boots) {
                continue;
            }
            let boot = boots.take(&record);
            let line = match args.file.json {
                true => serde_json::to_string(&record).map_err(Report::plain)?,
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
    let trouble = boot.trouble.as_ref().map(|trouble| paint(&format!("; then {trouble}"), "31"));
    format!("{began}  {:<17}  {so_far}{}", boot.device, trouble.unwrap_or_default())
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
    if record.is_trouble() { paint(&line, "31") } else { line }
}

fn paint(text: &str, colour: &str) -> String {
    if io::stdout().is_terminal() { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}
