//! `goldwire boot doctor`: plays machines against a running set-up.

use std::io::{IsTerminal, Write};

use goldwire_netboot::doctor::{Client, Diagnosis, DoctorSettings, Level, Reach, examine};
use goldwire_stdx::Report;
use serde_json::json;

use crate::args::boot::{DoctorArgs, FirmwareArg};
use crate::commands::json_line;
use crate::exit::Code;

pub(crate) fn run(args: &DoctorArgs) -> Result<Code, Report> {
    let reach = match (&args.interface, args.server, args.from) {
        (Some(interface), _, _) => Reach::Interface(interface.clone()),
        (None, Some(server), Some(own)) => Reach::Relay { own, server },
        // clap asks for one or the other.
        _ => return Ok(Code::Usage),
    };
    let clients = match &args.firmware[..] {
        [] => Client::ALL.to_vec(),
        named => named.iter().copied().map(Client::from).collect(),
    };
    let members = match &args.config {
        Some(path) => super::load(path)?.settings.members.into_iter().map(|member| member.member).collect(),
        None => Vec::new(),
    };
    let settings = DoctorSettings { reach, mac: args.mac, clients, members, wait: args.wait };
    let diagnoses = examine(&settings)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let list: Vec<_> = diagnoses.iter().map(as_json).collect();
        writeln!(out, "{}", json_line(&json!({ "diagnoses": list })))?;
    } else {
        for diagnosis in &diagnoses {
            write_one(&mut out, diagnosis)?;
        }
    }
    let worst = diagnoses.iter().map(Diagnosis::level).max().unwrap_or(Level::Ok);
    Ok(if worst == Level::Error { Code::Findings } else { Code::Success })
}

fn write_one(out: &mut impl Write, diagnosis: &Diagnosis) -> Result<(), Report> {
    let colour = match diagnosis.level() {
        Level::Ok => "32",
        Level::Warning => "33",
        Level::Error => "31",
    };
    let verdict = match diagnosis.level() {
        Level::Ok => "boots",
        Level::Warning => "boots, with a warning",
        Level::Error => "does not boot",
    };
    let name = diagnosis.client.name();
    if std::io::stdout().is_terminal() {
        writeln!(out, "{name}: \x1b[{colour}m{verdict}\x1b[0m")?;
    } else {
        writeln!(out, "{name}: {verdict}")?;
    }
    for finding in &diagnosis.findings {
        writeln!(out, "  {}", finding.to_string().replace('\n', "\n  "))?;
    }
    Ok(())
}

fn as_json(diagnosis: &Diagnosis) -> serde_json::Value {
    let findings: Vec<_> = diagnosis
        .findings
        .iter()
        .map(|finding| {
            json!({
                "level": finding.level.name(),
                "code": finding.code,
                "what": finding.what,
                "why": finding.why,
                "hint": finding.hint,
            })
        })
        .collect();
    json!({ "firmware": diagnosis.client.name(), "level": diagnosis.level().name(), "findings": findings })
}

impl From<FirmwareArg> for Client {
    fn from(firmware: FirmwareArg) -> Self {
        match firmware {
            FirmwareArg::Bios => Self::BiosPxe,
            FirmwareArg::Efi => Self::EfiPxe,
            FirmwareArg::Http => Self::HttpBoot,
            FirmwareArg::Ipxe => Self::Ipxe,
        }
    }
}
