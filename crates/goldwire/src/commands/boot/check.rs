//! `goldwire boot check`: what is wrong with a boot file.

use std::io::Write;

use goldwire_control::boot::{LoadError, Problem, Severity, check_here, load};
use goldwire_stdx::{Report, printable_bytes};
use serde_json::{Value, json};

use crate::args::boot::CheckArgs;
use crate::commands::json_line;
use crate::exit::Code;

pub(crate) fn run(args: &CheckArgs) -> Result<Code, Report> {
    let mut faults = Vec::new();
    let (problems, summary) = match load(&args.file.config) {
        Ok(loaded) => {
            if args.here {
                faults = check_here(&loaded.settings);
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
    let is_good = summary.is_some() && faults.is_empty();
    let mut out = std::io::stdout().lock();
    if args.file.json {
        let of_machine = faults.iter().map(|fault| json!({
            "severity": "error", "message": fault.line(), "hint": fault.hints.first(), "line": null, "column": null,
        }));
        let list: Vec<Value> = problems.list.iter().map(as_json).chain(of_machine).collect();
        writeln!(out, "{}", json_line(&json!({ "is_good": is_good, "problems": list, "summary": summary })))?;
    } else {
        if !problems.is_empty() {
            writeln!(out, "{problems}")?;
        }
        for fault in &faults {
            writeln!(out, "error: {}", fault.line())?;
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
    let severity = match problem.severity {
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    json!({
        "severity": severity,
        "message": problem.message,
        "hint": problem.hint,
        "line": problem.place.as_ref().map(|place| place.line),
        "column": problem.place.as_ref().map(|place| place.column),
    })
}
