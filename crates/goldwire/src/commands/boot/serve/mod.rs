//! `goldwire boot serve`: everything is bound, root is dropped, everything is started, and then signals decide.

mod convert;
mod holder;
mod media;

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use goldwire_control::boot::telemetry::Telemetry;
use goldwire_control::boot::timeline::Writer;
use goldwire_control::boot::{self, DhcpMode, Loaded, Policy, Reloader, Settings};
use goldwire_netboot::content::{Contents, Library, UrlBuilder};
use goldwire_netboot::dhcp::driver::{self, Clock, Service, open_leases};
use goldwire_netboot::dhcp::lease::{Folder, Time};
use goldwire_netboot::dhcp::proxy::ProxyResponder;
use goldwire_netboot::dhcp::server::Server;
use goldwire_netboot::member::heartbeat::{HeartbeatSettings, Heartbeats, RunningHeartbeats};
use goldwire_netboot::member::{ProbeSettings, Prober, Table};
use goldwire_netboot::{BootPolicy, LiveMembers, MemberState, Neighbours, Observer, dhcp6, http, tftp};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{error, info, warn};

pub(super) use self::convert::{library_settings, member_configs, table_of};
use super::{log, say, url_builder};
use crate::args::boot::ServeArgs;
use crate::exit::{Code, Hinted};
use crate::privileges;

/// Running transfers get so long to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// The others hear of the end and name this member no more, before it stops.
const FAREWELL: Duration = Duration::from_millis(500);

pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<Code> {
    log(&args.log, args.log_format)?;
    privileges::open_many_files();
    let loaded = boot::load(&args.config)?;
    if !loaded.warnings.is_empty() {
        say(&loaded.warnings.to_string());
    }
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).context("listen for signals")?;
    let _lock = lock_state(&loaded.settings)?;
    let bound = Bound::bind(loaded).map_err(with_hint)?;
    let settings = bound.settings.clone();
    if let Some(user) = &settings.server.user {
        privileges::drop_to(user, &[&settings.server.state, &leases_folder(&settings)])?;
        can_read_again(&args.config, user)?;
    }
    let running = bound.start(&args.config)?;
    if let Err(error) = running.http.reload_certificate() {
        warn!("a renewed certificate will need a restart: {}", error.line());
    }
    info!(name = settings.server.name, "ready");
    for signal in signals.forever() {
        if signal != SIGHUP {
            break;
        }
        // It logs what comes of it.
        running.reloader.reload();
        match running.http.reload_certificate() {
            Ok(true) => info!("the new certificate is in use"),
            Ok(false) => {}
            Err(error) => error!("the old certificate stays in use: {}", error.line()),
        }
    }
    info!("stopping");
    running.stop();
    Ok(Code::Well)
}

/// What the usual reasons for which a server cannot start call for.
fn with_hint(error: anyhow::Error) -> anyhow::Error {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    let port = error.chain().find_map(|cause| cause.downcast_ref::<driver::BindError>()?.port());
    if cause.and_then(std::io::Error::raw_os_error) == Some(Errno::NODEV.raw_os_error()) {
        let hint =
            "`ip -br link` shows this machine's interfaces; dhcp.interfaces and dhcp6.interfaces name some";
        return Hinted { message: format!("{error:#}"), hint: hint.into() }.into();
    }
    let hint = match cause.map(std::io::Error::kind) {
        Some(ErrorKind::PermissionDenied) => {
            "ports below 1024 and the state folder need root, or a unit such as examples/goldwire-boot.service"
        }
        Some(ErrorKind::AddrInUse) if let Some(port) = port => &dhcp_port_in_use(port),
        Some(ErrorKind::AddrInUse) => "another server has this port; `ss -tulpn` shows which",
        Some(ErrorKind::AddrNotAvailable) => "no interface of this machine has this address",
        _ => return error,
    };
    Hinted { message: format!("{error:#}"), hint: hint.into() }.into()
}

fn dhcp_port_in_use(port: u16) -> String {
    let holders = match &holder::holders_of(port)[..] {
        [] => "another program; `ss -ulpn` shows which".into(),
        found => found.join(", "),
    };
    format!(
        "the port is held by {holders}. Two servers cannot answer on one interface: stop that one, or name other \
         interfaces in dhcp.interfaces"
    )
}

/// Makes the state folder and keeps other servers out of it, whatever they serve: the timeline is there in any case.
fn lock_state(settings: &Settings) -> anyhow::Result<File> {
    let state = &settings.server.state;
    for folder in [state.clone(), leases_folder(settings)] {
        std::fs::create_dir_all(&folder).map_err(|error| Hinted {
            message: format!("make the state folder {}: {error}", folder.display()),
            hint: "server.state has to be a folder that this user can write in".into(),
        })?;
    }
    let folder = File::open(state).with_context(|| format!("open the state folder {}", state.display()))?;
    match folder.try_lock() {
        Ok(()) => Ok(folder),
        Err(TryLockError::WouldBlock) => bail!(Hinted {
            message: format!("another server uses the state folder {}", state.display()),
            hint: "stop it, or give this one a server.state of its own".into(),
        }),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("lock the state folder {}", state.display()))
        }
    }
}

/// The boot file and the secret are read again while the server runs, and only the user does that.
fn can_read_again(config: &Path, user: &str) -> anyhow::Result<()> {
    match boot::load(config) {
        Ok(_) => Ok(()),
        Err(error) => bail!(Hinted {
            message: format!("{user} could not read the boot file again when it changes: {error}"),
            hint: format!(
                "let the group of {user} read what it names: chgrp GROUP FILE && chmod g+r FILE; or leave server.user out"
            ),
        }),
    }
}

/// Where the lease log is: a folder of its own, which it locks.
fn leases_folder(settings: &Settings) -> std::path::PathBuf {
    settings.server.state.join("leases")
}

/// What everybody shares.
struct Shared {
    telemetry: Arc<Telemetry>,
    neighbours: Arc<Neighbours>,
    table: Arc<Table>,
    policy: Arc<Policy>,
    library: Arc<Library>,
    is_draining: Arc<AtomicBool>,
}

/// Everything is bound and nothing answers.
struct Bound {
    settings: Settings,
    shared: Shared,
    urls: UrlBuilder,
    http: http::Bound,
    metrics: Option<http::Bound>,
    tftp: Option<tftp::Bound>,
    dhcp: Option<driver::Sockets>,
    dhcp6: Option<dhcp6::driver::Bound>,
    heartbeats: Option<Heartbeats>,
}

impl Bound {
    fn bind(loaded: Loaded) -> anyhow::Result<Self> {
        let urls = url_builder(&loaded);
        let Loaded { settings, rules, .. } = loaded;
        let state = &settings.server.state;
        let timeline = Writer::start(state).map_err(|error| Hinted {
            message: format!("open the boot timeline in {}: {error}", state.display()),
            hint: "server.state has to be a folder that this user can write in".into(),
        })?;
        let neighbours = Arc::new(Neighbours::new());
        let telemetry =
            Arc::new(Telemetry::new(settings.server.name.clone(), Some(timeline), Arc::clone(&neighbours)));
        let observer: Arc<dyn Observer> = telemetry.clone();
        let table = Arc::new(table_of(&settings, Arc::clone(&observer))?);
        let members: Arc<dyn LiveMembers> = table.clone();
        let policy = Arc::new(Policy::new(rules, members));
        let asked: Arc<dyn BootPolicy> = policy.clone();
        let library = Library::open(&library_settings(&settings), Arc::clone(&asked), urls.clone())?;
        library.warm();
        media::serve(&settings, &library);
        let library = Arc::new(library);
        let contents: Arc<dyn Contents> = library.clone();
        let is_draining = Arc::new(AtomicBool::new(false));

        let web =
            http::Settings { health: Some(health_of(&table, &is_draining)), ..convert::http_of(&settings) };
        let http = http::bind(web, contents, Arc::clone(&observer), Arc::clone(&neighbours))?;
        let metrics = settings.metrics_listen.map(|address| {
            let counted = Arc::clone(&telemetry);
            let page = http::Settings {
                listeners: vec![http::Listener::plain(address)],
                threads: 1,
                metrics: Some(Arc::new(move || counted.metrics().text())),
                health: Some(health_of(&table, &is_draining)),
                ..http::Settings::default()
            };
            http::bind(page, Arc::new(Nothing), Arc::clone(&observer), Arc::clone(&neighbours))
        });
        let tftp = match settings.tftp.listen.is_empty() {
            true => None,
            false => Some(tftp::bind(convert::tftp_of(&settings))?),
        };
        let dhcp = match settings.dhcp.mode {
            DhcpMode::Off => None,
            DhcpMode::Server | DhcpMode::Proxy => Some(driver::bind(&convert::driver_of(&settings))?),
        };
        let dhcp6 = match settings.dhcp6_interfaces.is_empty() {
            true => None,
            false => Some(dhcp6::driver::Bound::bind(dhcp6::driver::Settings {
                interfaces: settings.dhcp6_interfaces.clone(),
                ports: dhcp6::driver::Settings::PORTS,
                policy: asked,
                urls: urls.clone(),
                observer,
            })?),
        };
        let heartbeats = match convert::group_of(&settings) {
            None => None,
            Some((listen, group)) => {
                Some(Heartbeats::bind(HeartbeatSettings { listen, group, table: Arc::clone(&table) })?)
            }
        };
        let metrics = metrics.transpose()?;
        let shared = Shared { telemetry, neighbours, table, policy, library, is_draining };
        Ok(Self { settings, shared, urls, http, metrics, tftp, dhcp, dhcp6, heartbeats })
    }

    fn start(self, config: &Path) -> anyhow::Result<Running> {
        let Self { settings, shared, urls, http, metrics, tftp, dhcp, dhcp6, heartbeats } = self;
        for address in http.addresses() {
            info!(%address, "HTTP");
        }
        let http = http.run()?;
        for address in metrics.iter().flat_map(http::Bound::addresses) {
            info!(%address, "metrics");
        }
        let metrics = metrics.map(http::Bound::run).transpose()?;
        let tftp = tftp.map(|tftp| {
            for address in tftp.addresses() {
                info!(%address, "TFTP");
            }
            let neighbours = Arc::clone(&shared.neighbours);
            let observer: Arc<dyn Observer> = shared.telemetry.clone();
            tftp.run(tftp::Context {
                contents: shared.library.clone(),
                observer,
                mac_of: Arc::new(move |address| neighbours.mac_of(address)),
            })
        });
        let tftp = tftp.transpose()?;
        let dhcp = dhcp.map(|sockets| start_dhcp(&settings, &shared, &urls, sockets)).transpose()?;
        let dhcp6 = dhcp6.map(dhcp6::driver::Bound::run).transpose()?;
        let (heartbeats, prober) = match heartbeats {
            Some(heartbeats) => (Some(heartbeats.run()?), None),
            None => {
                let probes =
                    ProbeSettings { interval: settings.heartbeat.probe_interval, ..ProbeSettings::default() };
                (None, Some(Prober::start(&shared.table, &probes)?))
            }
        };
        let (table, library) = (Arc::clone(&shared.table), Arc::clone(&shared.library));
        let heartbeats = heartbeats.map(Arc::new);
        let (beating, listen) = (heartbeats.clone(), settings.heartbeat.listen);
        let reloader = Arc::new(Reloader::new(config, settings, Arc::clone(&shared.policy), move |new| {
            if let Err(error) = table.configure(member_configs(new)) {
                error!(%error, "the members stay as they were");
                return;
            }
            media::serve(new, &library);
            if let (Some(heartbeats), Some(listen)) = (&beating, listen) {
                heartbeats.set_peers(convert::peers_of(new, listen));
                heartbeats.set_digest(convert::rules_digest(new));
            }
        }));
        let watch = reloader.watch().context("watch the boot file")?;
        Ok(Running { shared, http, metrics, tftp, dhcp, dhcp6, heartbeats, prober, reloader, watch })
    }
}

fn start_dhcp(
    settings: &Settings,
    shared: &Shared,
    urls: &UrlBuilder,
    sockets: driver::Sockets,
) -> anyhow::Result<driver::Running> {
    for address in sockets.addresses() {
        info!(%address, mode = ?settings.dhcp.mode, "DHCP");
    }
    let policy: Arc<dyn BootPolicy> = shared.policy.clone();
    let observer: Arc<dyn Observer> = shared.telemetry.clone();
    let proxy = ProxyResponder::new(Arc::clone(&policy), urls.clone(), Arc::clone(&observer), true);
    if settings.dhcp.mode != DhcpMode::Server {
        return Ok(sockets.start(Service { server: None, proxy: Some(proxy) }, Clock::start(Time(0)))?);
    }
    let server_settings = convert::server_of(settings);
    if let Some(problem) = server_settings.problems().first() {
        bail!("{problem}");
    }
    let mut server = Server::new(server_settings, policy, urls.clone(), observer);
    let folder = leases_folder(settings);
    let volume =
        Folder::open(&folder).with_context(|| format!("open the lease log in {}", folder.display()))?;
    let (log, opened, clock) = open_leases(&mut server, Box::new(volume))?;
    if opened.scan.torn_bytes > 0 {
        warn!(
            bytes = opened.scan.torn_bytes,
            "the lease log ended in the middle of a record, which was never acknowledged; it was cut off"
        );
    }
    for damage in &opened.scan.damage {
        let (at, bytes, records) = (damage.at, damage.bytes, damage.records);
        error!(at, bytes, records, "the lease log is damaged there; what could be read is kept");
    }
    info!(leases = server.table().leases(None).count(), "the lease log was read");
    Ok(sockets.start(Service { server: Some((server, log)), proxy: Some(proxy) }, clock)?)
}

/// A member is well while it serves: for balancers, and for members without a heartbeat.
fn health_of(
    table: &Arc<Table>,
    is_draining: &Arc<AtomicBool>,
) -> Arc<dyn Fn() -> http::Health + Send + Sync> {
    let (table, is_draining) = (Arc::clone(table), Arc::clone(is_draining));
    Arc::new(move || {
        let wished = table.own().map_or(MemberState::Alive, |own| table.state_of(own));
        let state = if is_draining.load(Ordering::Relaxed) { MemberState::Draining } else { wished };
        http::Health { is_healthy: state == MemberState::Alive, reason: state.name().into() }
    })
}

/// There is nothing beside the metrics.
struct Nothing;

impl Contents for Nothing {
    fn open(
        &self,
        _path: &str,
        _asker: &goldwire_netboot::content::Requester,
    ) -> Result<goldwire_netboot::content::Content, goldwire_netboot::content::ContentError> {
        Err(goldwire_netboot::content::ContentError::NotFound)
    }
}

/// Everything answers.
struct Running {
    shared: Shared,
    http: http::Running,
    metrics: Option<http::Running>,
    tftp: Option<tftp::Running>,
    dhcp: Option<driver::Running>,
    dhcp6: Option<dhcp6::driver::Running>,
    heartbeats: Option<Arc<RunningHeartbeats>>,
    prober: Option<Prober>,
    reloader: Arc<Reloader>,
    watch: goldwire_control::boot::Watch,
}

impl Running {
    /// DHCP first, so that nobody is sent here any more; then the group is told; then transfers end.
    fn stop(self) {
        drop(self.watch);
        drop(self.reloader);
        if let Some(dhcp) = self.dhcp {
            dhcp.stop();
        }
        drop(self.dhcp6);
        self.shared.is_draining.store(true, Ordering::Relaxed);
        self.http.drain();
        // The last one who knows them, since the boot file is watched no more: they say goodbye.
        drop(self.heartbeats);
        if let Some(prober) = self.prober {
            prober.stop();
            std::thread::sleep(FAREWELL);
        }
        self.http.stop(PATIENCE);
        drop(self.metrics);
        if let Some(tftp) = self.tftp {
            tftp.stop();
        }
    }
}
