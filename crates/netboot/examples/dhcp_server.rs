//! A DHCP server alone, for benches: `dhcp_server LISTEN RELAY_PORT NETWORK/PREFIX FIRST LAST LOG_FOLDER`, for example
//! `dhcp_server 127.0.0.1:10067 10068 10.0.0.0/8 10.0.0.1 10.50.0.0 /tmp/leases`. Says `ready` when it serves, and runs
//! until its input ends.

use std::error::Error;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use goldwire_netboot::dhcp::driver::{DriverSettings, Ports, Service, bind, open_leases};
use goldwire_netboot::dhcp::lease::{Folder, Range};
use goldwire_netboot::dhcp::server::{Network, Server, Settings, Subnet};
use goldwire_netboot::{Action, BootPolicy, Decision, Device, Mac, Silent};

/// Everybody gets an address and boots from its own disk.
struct Addresses;

impl BootPolicy for Addresses {
    fn decide(&self, _device: &Device) -> Decision {
        Decision { rule: "everybody".into(), action: Action::Local }
    }

    fn may_fetch(
        &self,
        _path: &str,
        _address: std::net::IpAddr,
        _mac: Option<Mac>,
        _has_token: bool,
    ) -> bool {
        false
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, relay_port, network, first, last, folder] = &arguments[..] else {
        return Err("usage: dhcp_server LISTEN RELAY_PORT NETWORK/PREFIX FIRST LAST LOG_FOLDER".into());
    };
    let (address, prefix) = network.split_once('/').ok_or("NETWORK/PREFIX, such as 10.0.0.0/8")?;
    let network = Network::new(address.parse()?, prefix.parse()?).ok_or("a prefix is at most 32")?;
    let mut subnet = Subnet::new(network);
    subnet.pools = vec![Range { first: first.parse()?, last: last.parse()? }];
    subnet.lease = Duration::from_secs(4000);
    let settings = Settings::new("bench", vec![subnet]);
    if let Some(problem) = settings.problems().first() {
        return Err(problem.clone().into());
    }
    let ports = Ports { relay: relay_port.parse()?, binl: None, ..Ports::default() };
    let sockets = bind(&DriverSettings { interfaces: Vec::new(), addresses: vec![listen.parse()?], ports })?;
    let mut server = Server::new(settings, Arc::new(Addresses), Default::default(), Arc::new(Silent));
    let (log, _, clock) = open_leases(&mut server, Box::new(Folder::open(Path::new(folder))?))?;
    let service = Service { server: Some((server, log)), proxy: None };
    let running = sockets.start(service, clock)?;
    writeln!(std::io::stdout(), "ready")?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    running.stop();
    Ok(())
}
