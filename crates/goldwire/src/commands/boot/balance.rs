//! `goldwire boot balance`: one address for firmware that takes only one.

use std::sync::Arc;
use std::time::Duration;

use goldwire_control::boot::telemetry::Telemetry;
use goldwire_netboot::member::{ProbeSettings, Prober, Table};
use goldwire_netboot::{Balance, BalanceSettings};
use goldwire_netboot::{Neighbours, Observer};
use goldwire_stdx::{Context, Report};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::info;

use super::{load, log};
use crate::args::boot::BalanceArgs;
use crate::exit::Code;
use crate::privileges;
use goldwire_control::boot::serve::{member_configs, tftp_clients};

/// Running transfers get so long to end.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn run(args: &BalanceArgs) -> Result<Code, Report> {
    log(&args.log, args.log_format)?;
    privileges::open_many_files();
    let loaded = load(&args.config)?;
    let settings = loaded.settings;
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("listen for signals")?;
    let observer: Arc<dyn Observer> = Arc::new(Telemetry::new("balance".into(), Arc::new(Neighbours::new())));
    let table = Arc::new(Table::new(member_configs(&settings), None, Arc::clone(&observer))?);
    let balance = Balance::bind(BalanceSettings {
        http: args.http.clone(),
        tftp: args.tftp.clone(),
        table: Arc::clone(&table),
        observer,
        tftp_clients: tftp_clients(&settings),
        proxies: args.proxy_protocol_from.clone(),
        sends_proxy_header: args.send_proxy_protocol,
    })?;
    if let Some(user) = &settings.server.user
        && let Some(account) = privileges::account(user)?
    {
        privileges::drop_to(&account)?;
    }
    let probes = ProbeSettings {
        interval: settings.heartbeat.probe_interval,
        sends_proxy_header: args.send_proxy_protocol,
        ..ProbeSettings::default()
    };
    let prober = Prober::run(&table, &probes).context("start to ask members for their health")?;
    let running = balance.run()?;
    for address in running.http_addresses() {
        info!(%address, "HTTP");
    }
    for address in running.tftp_addresses() {
        info!(%address, "TFTP");
    }
    info!("ready");
    signals.forever().next();
    info!("stopping");
    running.drain();
    running.stop(PATIENCE);
    prober.stop();
    Ok(Code::Success)
}
