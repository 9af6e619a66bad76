//! `goldwire boot explain` and `goldwire boot script`: what a device would get, without asking a server.
//!
//! Every configured member counts as alive here: the answer says what the boot file means, not how the group is.

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use goldwire_control::boot::{Loaded, Policy, Question, explain as play};
use goldwire_netboot::content::{Library, LibrarySettings};
use goldwire_netboot::{Device, Firmware, LiveMembers, MemberState, NoopObserver};
use goldwire_stdx::{Report, printable};

use goldwire_control::boot::serve::{library_settings, table_of, url_builder};

use super::load;
use crate::args::boot::{DeviceArgs, ExplainArgs, ScriptArgs};
use crate::commands::json_line;
use crate::exit::Code;

pub(crate) fn explain(args: &ExplainArgs) -> Result<Code, Report> {
    let loaded = load(&args.file.config)?;
    let urls = url_builder(&loaded.settings);
    let question = Question {
        mac: args.device.mac,
        uuid: args.device.uuid,
        arch: args.device.arch,
        subnet: subnet_of(&args.device, &loaded).and_then(v4),
        circuit_id: None,
        server: loaded
            .settings
            .own_member()
            .and_then(|member| member.address_v4())
            .unwrap_or(Ipv4Addr::UNSPECIFIED),
    };
    let policy = policy_of(loaded)?;
    let explanation = play(&policy, &question, &urls);
    let mut out = std::io::stdout().lock();
    if args.file.json {
        writeln!(out, "{}", json_line(&serde_json::to_string(&explanation).map_err(Report::plain)?))?;
    } else {
        for line in explanation.to_string().lines() {
            writeln!(out, "{}", printable(line))?;
        }
    }
    Ok(Code::Success)
}

pub(crate) fn script(args: &ScriptArgs) -> Result<Code, Report> {
    let loaded = load(&args.config)?;
    let settings: LibrarySettings = library_settings(&loaded.settings, Arc::default());
    let urls = url_builder(&loaded.settings);
    let device = Device {
        uuid: args.device.uuid,
        arch: args.device.arch,
        subnet: subnet_of(&args.device, &loaded),
        ..Device::new(Some(args.device.mac), Firmware::Ipxe)
    };
    let policy = Arc::new(policy_of(loaded)?);
    let text = Library::open(&settings, policy, urls)?.script_of(&device)?;
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        for line in text.lines() {
            writeln!(out, "{}", printable(line))?;
        }
    } else {
        // Byte by byte what a machine would get.
        write!(out, "{text}")?;
    }
    Ok(Code::Success)
}

fn subnet_of(device: &DeviceArgs, loaded: &Loaded) -> Option<IpAddr> {
    device.subnet.or_else(|| loaded.settings.subnets.first().map(|subnet| subnet.network.address().into()))
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn policy_of(loaded: Loaded) -> Result<Policy, Report> {
    let table = table_of(&loaded.settings, Arc::new(NoopObserver))?;
    for member in &loaded.settings.members {
        table.report(&member.member.name, MemberState::Alive, "it is assumed");
    }
    let members: Arc<dyn LiveMembers> = Arc::new(table);
    Ok(Policy::new(loaded.rules, members))
}
