//! `goldwire boot check`: what is wrong with a boot file.

use std::io::Write;
use std::time::SystemTime;

use goldwire_control::boot::{Here, LoadError, Problem, Severity, check_here, load};
use goldwire_stdx::{Report, printable_bytes};
use serde_json::{Value, json};

use crate::args::boot::CheckArgs;
use crate::commands::json_line;
use crate::exit::Code;

pub(crate) fn run(args: &CheckArgs) -> Result<Code, Report> {
    let mut here = Here::default();
    let (problems, summary) = match load(&args.file.config) {
        Ok(loaded) => {
            if args.here {
                here = check_here(&loaded.settings, SystemTime::now());
            }
            let (settings, rules) = (&loaded.settings, &loaded.rules);
            let summary = json!({
                "members": settings.members.len(),
                "subnets": settings.subnets.len(),
                "devices": rules.device_count(),
                "profiles": rules.profile_names().collect::<Vec<_>>(),
            });
            (loaded.warnings, Some(summary))
        }
        Err(LoadError::Wrong(problems)) => (problems, None),
        Err(error) => return Err(error.into()),
    };
    let is_good = summary.is_some() && here.faults.is_empty();
    let warnings = here.warnings.iter().map(|warning| (warning, Severity::Warning));
    let of_machine: Vec<_> =
        here.faults.iter().map(|fault| (fault, Severity::Error)).chain(warnings).collect();
    let mut out = std::io::stdout().lock();
    if args.file.json {
        let of_machine = of_machine.iter().map(|(fault, severity)| json!({
            "severity": word(*severity), "message": fault.line(), "hint": fault.hints.first(), "line": null,
            "column": null,
        }));
        let list: Vec<Value> = problems.list.iter().map(as_json).chain(of_machine).collect();
        writeln!(out, "{}", json_line(&json!({ "is_good": is_good, "problems": list, "summary": summary })))?;
    } else {
        if !problems.is_empty() {
            writeln!(out, "{problems}")?;
        }
        for (fault, severity) in of_machine {
            writeln!(out, "{}: {}", word(severity), fault.line())?;
            for hint in fault.shown_hints() {
                writeln!(out, "hint: {hint}")?;
            }
        }
        if let Some(summary) = summary.as_ref().filter(|_| is_good) {
            let count = |name: &str| summary[name].as_u64().unwrap_or(0);
            let profiles = summary["profiles"].as_array().map_or(0, Vec::len);
            writeln!(
                out,
                "{}: good: {} members, {} subnets, {} devices, {profiles} profiles",
                printable_bytes(args.file.config.as_os_str().as_encoded_bytes()),
                count("members"),
                count("subnets"),
                count("devices"),
            )?;
        }
    }
    Ok(if is_good { Code::Success } else { Code::Findings })
}

fn as_json(problem: &Problem) -> Value {
    json!({
        "severity": word(problem.severity),
        "message": problem.message,
        "hint": problem.hint,
        "line": problem.place.as_ref().map(|place| place.line),
        "column": problem.place.as_ref().map(|place| place.column),
    })
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    }
}
