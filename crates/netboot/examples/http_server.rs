//! Serves a folder by HTTP as the boot server does: `http_server FOLDER [ADDRESS:PORT]`. For measurements and for
//! trying a client; prints the address it listens on and runs until its standard input ends.

use std::error::Error;
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use goldwire_netboot::content::{Library, LibrarySettings, Links};
use goldwire_netboot::http::{self, Limits, Listener, Settings};
use goldwire_netboot::{Action, BootPolicy, Decision, Device, Mac, Neighbours, Silent};

struct Open;

impl BootPolicy for Open {
    fn decide(&self, _device: &Device) -> Decision {
        Decision { rule: "everybody".into(), action: Action::Local }
    }

    fn may_fetch(&self, _path: &str, _address: IpAddr, _mac: Option<Mac>, _has_token: bool) -> bool {
        true
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: http_server FOLDER [ADDRESS:PORT]")?;
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into()).parse()?;
    let library = Library::open(
        &LibrarySettings { root: folder.into(), extra: Vec::new() },
        Arc::new(Open),
        Links::default(),
    )?;
    library.warm();
    let settings = Settings {
        listeners: vec![Listener::plain(address)],
        // All of a benchmark's connections come from one address.
        limits: Limits { connections_per_address: usize::MAX, ..Limits::default() },
        ..Settings::default()
    };
    let running =
        http::bind(settings, Arc::new(library), Arc::new(Silent), Arc::new(Neighbours::new()))?.run()?;
    writeln!(io::stdout(), "{}", running.addresses()[0])?;
    io::stdin().read_to_end(&mut Vec::new())?;
    running.stop(Duration::from_secs(5));
    Ok(())
}
