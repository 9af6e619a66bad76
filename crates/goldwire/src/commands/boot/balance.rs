//! `goldwire boot balance`: one address for firmware that takes only one.

use std::sync::Arc;
use std::time::Duration;

use goldwire_control::boot::Settings;
use goldwire_control::boot::serve::{explained, member_configs, tftp_clients};
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
    let balance = bind(args, &settings, Arc::clone(&table), observer)?;
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
    let prober =
        Prober::run(&table, &probes).map_err(explained).context("start to ask members for their health")?;
    let running = balance.run().map_err(explained)?;
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

/// The front with its ports, refused in a server's words.
fn bind(
    args: &BalanceArgs,
    settings: &Settings,
    table: Arc<Table>,
    observer: Arc<dyn Observer>,
) -> Result<Balance, Report> {
    let front = BalanceSettings {
        http: args.http.clone(),
        tftp: args.tftp.clone(),
        table,
        observer,
        tftp_clients: tftp_clients(settings),
        proxies: args.proxy_protocol_from.clone(),
        sends_proxy_header: args.send_proxy_protocol,
    };
    Balance::bind(front).map_err(explained)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};
    use std::path::Path;

    use clap::Parser;
    use goldwire_control::boot::parse;
    use goldwire_netboot::NoopObserver;

    use super::*;

    #[test]
    fn a_port_that_is_taken_is_told_as_a_server_tells_it() {
        let text = "[[member]]\nname = \"m\"\naddress = \"127.0.0.1\"\n";
        let settings = parse(text, Path::new("boot.toml")).unwrap().settings;
        let http = TcpListener::bind("127.0.0.1:0").unwrap();
        let tftp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (http, tftp) = (http.local_addr().unwrap().to_string(), tftp.local_addr().unwrap().to_string());
        // Without a port that is free the other one would be the usual one, which only root gets.
        let any = "127.0.0.1:0".to_owned();
        for (http, tftp, address) in [(&http, &any, &http), (&any, &tftp, &tftp)] {
            let args = BalanceArgs::parse_from(["balance", "--http", http, "--tftp", tftp]);
            let observer: Arc<dyn Observer> = Arc::new(NoopObserver);
            let table = Arc::new(Table::new(member_configs(&settings), None, Arc::clone(&observer)).unwrap());
            let refused = bind(&args, &settings, table, observer).err().unwrap();
            let source = || std::io::Error::from(std::io::ErrorKind::AddrInUse);
            let of_server = explained(goldwire_netboot::BindError::Listen {
                for_what: String::new(),
                port: 0,
                source: source(),
            });
            assert!(refused.line().contains(address), "{refused}");
            assert!(!refused.hints.is_empty() && refused.hints == of_server.hints, "{refused}");
        }
    }
}
