//! `goldwire boot media`: a boot medium for machines that cannot boot from the network by themselves.

use std::io::Write;
use std::net::Ipv4Addr;

use goldwire_netboot::media::{
    Address, CA_MAX, MediaError, MediaReport, MediaSettings, ScriptDelivery, write_esp, write_iso, write_usb,
};
use goldwire_stdx::{ByteSize, Context, Report, printable, read_bounded};
use serde_json::json;

use super::load;
use crate::args::boot::MediaArgs;
use crate::commands::json_line;
use crate::exit::Code;

pub(crate) fn run(args: MediaArgs) -> Result<Code, Report> {
    let loaded = load(&args.config)?;
    let of_file = loaded.settings.medium();
    let ca = args
        .trust
        .as_ref()
        .map(|path| {
            read_bounded(path, CA_MAX).with_context(|| format!("read the certificate {}", path.display()))
        })
        .transpose()?;
    let settings = MediaSettings {
        programs: args.programs.clone().unwrap_or(of_file.programs),
        is_secure: args.secure || of_file.is_secure,
        address: address_of(&args)?,
        vlan: args.vlan.or(of_file.vlan),
        ca: ca.or(of_file.ca),
        replaces: args.replace,
        ..MediaSettings::new(of_file.members)
    };
    let (path, written) = match (&args.iso, &args.usb, &args.esp) {
        (Some(path), _, _) => (path, write_iso(&settings, path)),
        (None, Some(path), _) => (path, write_usb(&settings, path)),
        (None, None, Some(path)) => (path, write_esp(&settings, path)),
        // clap asks for one of the three.
        (None, None, None) => return Ok(Code::Usage),
    };
    let report = written.map_err(|error| {
        let is_about = matches!(error, MediaError::Ca { .. }).then_some(args.trust.as_ref()).flatten();
        let report = Report::from(error);
        is_about.map_or(report.clone(), |trust| report.context(format!("--trust {}", trust.display())))
    })?;
    show(&report, &path.display().to_string(), args.json)?;
    Ok(Code::Success)
}

fn address_of(args: &MediaArgs) -> Result<Address, Report> {
    let Some(text) = &args.address else { return Ok(Address::Dhcp) };
    let parsed = text.split_once('/').and_then(|(address, prefix)| {
        let prefix: u8 = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix))?;
        Some((address.parse::<Ipv4Addr>().ok()?, prefix))
    });
    let Some((address, prefix)) = parsed else {
        return Err(Report::new(format!("--address {text} is no address with its prefix"))
            .hint("write it as 10.0.0.7/24"));
    };
    Ok(Address::Fixed { address, prefix, gateway: args.gateway, dns: args.dns })
}

fn show(report: &MediaReport, path: &str, is_json: bool) -> Result<(), Report> {
    let mut out = std::io::stdout().lock();
    if is_json {
        let programs: Vec<_> = report
            .programs
            .iter()
            .map(|(name, delivery)| json!({ "name": name, "delivery": delivery_name(*delivery) }))
            .collect();
        let (size, digest) = (report.size, report.digest.to_hex().to_string());
        writeln!(
            out,
            "{}",
            json_line(
                &json!({ "path": path, "size": size, "blake3": digest, "programs": programs, "notes": report.notes })
            )
        )?;
        return Ok(());
    }
    writeln!(out, "{}: {}, blake3 {}", printable(path), ByteSize(report.size), report.digest.to_hex())?;
    for (name, delivery) in &report.programs {
        writeln!(out, "  {:<24} {}", printable(name), delivery_name(*delivery))?;
    }
    for note in &report.notes {
        writeln!(out, "note: {}", printable(note))?;
    }
    Ok(())
}

fn delivery_name(delivery: ScriptDelivery) -> &'static str {
    match delivery {
        ScriptDelivery::Loader => "gets its script from our loader",
        ScriptDelivery::Autoexec => "reads autoexec.ipxe",
        ScriptDelivery::Shim => "reads autoexec.ipxe, behind a signed shim",
        ScriptDelivery::Keystrokes => "gets its command typed at its prompt",
    }
}
