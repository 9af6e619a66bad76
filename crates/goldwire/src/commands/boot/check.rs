//! `goldwire boot check`: what is wrong with a boot file.

use std::io::Write;

use goldwire_control::boot::{LoadError, Problem, Severity, load};
use goldwire_stdx::Report;
use serde_json::{Value, json};

use crate::args::boot::FileArgs;
use crate::exit::Code;

pub(crate) fn run(args: &FileArgs) -> Result<Code, Report> {
    let (problems, summary) = match load(&args.config) {
        Ok(loaded) => {
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
    let mut out = std::io::stdout().lock();
    if args.json {
        let list: Vec<Value> = problems.list.iter().map(as_json).collect();
        writeln!(out, "{}", json!({ "is_good": summary.is_some(), "problems": list, "summary": summary }))?;
    } else {
        if !problems.is_empty() {
            writeln!(out, "{problems}")?;
        }
        if let Some(summary) = &summary {
            let count = |name: &str| summary[name].as_u64().unwrap_or(0);
            let profiles = summary["profiles"].as_array().map_or(0, Vec::len);
            writeln!(
                out,
                "{}: good: {} members, {} subnets, {} devices, {profiles} profiles",
                args.config.display(),
                count("members"),
                count("subnets"),
                count("devices"),
            )?;
        }
    }
    Ok(if summary.is_some() { Code::Success } else { Code::Findings })
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
