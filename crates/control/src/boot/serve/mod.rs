//! A boot server put together from its boot file: everything is bound, then everything is started.
//!
//! ```text
//! StateFolder::prepare ─► Bound::bind ─► (root is dropped) ─► Bound::start ─► Running::stop
//!   makes the folder         ports only                         locks and opens what is in the folder
//! ```

mod convert;
mod media;
mod state;
#[cfg(test)]
mod tests;
mod udp_port;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use goldwire_netboot::BindError;
use goldwire_netboot::content::{Contents, Library, TokenKey, UrlBuilder};
use goldwire_netboot::dhcp::{self, ProxyResponder, Server, Service};
use goldwire_netboot::member::heartbeat::{HeartbeatSettings, Heartbeats, RunningHeartbeats};
use goldwire_netboot::member::{ProbeSettings, Prober, Table};
use goldwire_netboot::{BootPolicy, LiveMembers, MemberState, Neighbours, Observer, dhcp6, http, tftp};
use goldwire_stdx::{Context, Hints, Report, Stop, spawn};
use tracing::{error, info};

pub use self::convert::{library_settings, member_configs, table_of, tftp_clients};
pub use self::state::{Ids, StateFolder};
use super::agreement::Agreement;
use super::telemetry::Telemetry;
use super::timeline::Writer;
use super::{DhcpMode, Loaded, MemberSettings, Policy, Reloader, Settings, Watch};

/// Running transfers get so long to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// The others hear of the end and name this member no more, before it stops.
const FAREWELL: Duration = Duration::from_millis(500);

/// How often the files that profiles name are looked at for what the group must agree on.
const AGREEMENT_EVERY: Duration = Duration::from_secs(60);

/// How long a token in a path is good for at least. A slow boot loads its last file minutes after DHCP.
const TOKEN_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// What a DHCP server would refuse of these settings.
pub(super) fn dhcp_problems(settings: &Settings) -> Vec<String> {
    convert::server_of(settings).problems()
}

/// Why heartbeats of a member would not be sent or believed; none if they would, or there are none.
pub(super) fn heartbeat_problem(settings: &Settings, member: &MemberSettings) -> Option<String> {
    let announced = convert::announcement_of(member, settings.heartbeat.listen?).check();
    announced.err().map(|error| format!("announce the member {:?}: {error}", member.member.name))
}

/// The links of a group; with tokens, if it has a secret.
pub fn url_builder(settings: &Settings) -> UrlBuilder {
    match &settings.server.secret {
        Some(secret) => UrlBuilder::new(TokenKey::from_secret(secret.expose()), TOKEN_LIFETIME),
        None => UrlBuilder::default(),
    }
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

/// Everything is bound and nothing answers, and nothing in the state folder is open.
pub struct Bound {
    settings: Settings,
    shared: Shared,
    urls: UrlBuilder,
    http: http::Bound,
    metrics: Option<http::Bound>,
    tftp: Option<tftp::Bound>,
    dhcp: Option<dhcp::Sockets>,
    dhcp6: Option<dhcp6::Bound>,
    heartbeats: Option<Heartbeats>,
}

impl Bound {
    /// Binds the ports, for which it may take root, and reads the boot tree's folder.
    ///
    /// # Errors
    /// What cannot be bound or opened, with what the usual reasons call for.
    pub fn bind(loaded: Loaded) -> Result<Self, Report> {
        let urls = url_builder(&loaded.settings);
        let Loaded { settings, rules, .. } = loaded;
        let neighbours = Arc::new(Neighbours::new());
        let telemetry = Arc::new(Telemetry::new(settings.server.name.clone(), Arc::clone(&neighbours)));
        let observer: Arc<dyn Observer> = telemetry.clone();
        let table = Arc::new(table_of(&settings, Arc::clone(&observer))?);
        let members: Arc<dyn LiveMembers> = table.clone();
        let policy = Arc::new(Policy::new(rules, members));
        let asked: Arc<dyn BootPolicy> = policy.clone();
        let library = Library::open(
            &library_settings(&settings, Arc::clone(table.fitness())),
            Arc::clone(&asked),
            urls.clone(),
        )?;
        let library = Arc::new(library);
        let contents: Arc<dyn Contents> = library.clone();
        let is_draining = Arc::new(AtomicBool::new(false));

        let web = http::Settings {
            health: Some(health_of(&table, &is_draining)),
            fitness: Arc::clone(table.fitness()),
            ..convert::http_of(&settings)
        };
        let http =
            http::bind(web, contents, Arc::clone(&observer), Arc::clone(&neighbours)).map_err(explained)?;
        let metrics = settings.metrics_listen.map(|address| {
            let counted = Arc::clone(&telemetry);
            let page = http::Settings {
                listeners: vec![http::Listener::plain(address)],
                threads: 1,
                metrics: Some(Arc::new(move || counted.metrics().text())),
                health: Some(health_of(&table, &is_draining)),
                limits: http::Limits {
                    connections: METRICS_CONNECTIONS,
                    connections_per_address: METRICS_CONNECTIONS / 4,
                    ..http::Limits::default()
                },
                ..http::Settings::default()
            };
            http::bind(page, Arc::new(Nothing), Arc::clone(&observer), Arc::clone(&neighbours))
        });
        let tftp = match settings.tftp.listen.is_empty() {
            true => None,
            false => Some(tftp::bind(convert::tftp_of(&settings)).map_err(explained)?),
        };
        let dhcp = match settings.dhcp.mode {
            DhcpMode::Off => None,
            DhcpMode::Server | DhcpMode::Proxy => {
                Some(dhcp::bind(&convert::driver_of(&settings)).map_err(explained_dhcp)?)
            }
        };
        let dhcp6 = match settings.dhcp6_interfaces.is_empty() {
            true => None,
            false => Some(
                dhcp6::Bound::bind(dhcp6::Settings {
                    interfaces: settings.dhcp6_interfaces.clone(),
                    ports: dhcp6::Settings::PORTS,
                    policy: asked,
                    urls: urls.clone(),
                    observer,
                })
                .map_err(explained)?,
            ),
        };
        let heartbeats = match convert::group_of(&settings) {
            None => None,
            Some((listen, group)) => {
                let settings = HeartbeatSettings { listen, group, table: Arc::clone(&table) };
                Some(Heartbeats::bind(settings).map_err(explained)?)
            }
        };
        let metrics = metrics.transpose().map_err(explained)?;
        let shared = Shared { telemetry, neighbours, table, policy, library, is_draining };
        Ok(Self { settings, shared, urls, http, metrics, tftp, dhcp, dhcp6, heartbeats })
    }

    /// Opens what is in the state folder, and answers from now on. `config` is read again when it changes.
    ///
    /// # Errors
    /// The state folder is another server's, the lease log cannot be read, or the system gives no thread.
    pub fn start(self, config: &Path) -> Result<Running, Report> {
        let Self { settings, shared, urls, http, metrics, tftp, dhcp, dhcp6, heartbeats } = self;
        let state = StateFolder::lock(&settings)?;
        let timeline = Writer::start(state.path()).map_err(|error| {
            Report::from(error)
                .context(format!("open the boot timeline in {}", state.path().display()))
                .hint("server.state has to be a folder that this user can write in")
        })?;
        shared.telemetry.keep(timeline);
        shared.library.warm();
        media::serve(&settings, &shared.library);
        for address in http.addresses() {
            info!(%address, "HTTP");
        }
        let http = http.run().map_err(explained)?;
        for address in metrics.iter().flat_map(http::Bound::addresses) {
            info!(%address, "metrics");
        }
        let metrics = metrics.map(http::Bound::run).transpose().map_err(explained)?;
        let tftp = tftp.map(|tftp| {
            for address in tftp.addresses() {
                info!(%address, "TFTP");
            }
            let neighbours = Arc::clone(&shared.neighbours);
            let observer: Arc<dyn Observer> = shared.telemetry.clone();
            tftp.run(tftp::Context {
                fitness: Arc::clone(shared.table.fitness()),
                contents: shared.library.clone(),
                observer,
                mac_of: Arc::new(move |address| neighbours.mac_of(address)),
            })
        });
        let tftp = tftp.transpose().map_err(explained)?;
        let dhcp = dhcp.map(|sockets| start_dhcp(&settings, &state, &shared, &urls, sockets)).transpose()?;
        if let Some(dhcp) = &dhcp {
            shared.telemetry.metrics().show_dhcp(Arc::clone(dhcp.counters()));
        }
        let dhcp6 = dhcp6.map(dhcp6::Bound::run).transpose().map_err(explained)?;
        let (heartbeats, prober) = match heartbeats {
            Some(heartbeats) => (Some(heartbeats.run().map_err(explained)?), None),
            None => {
                let probes =
                    ProbeSettings { interval: settings.heartbeat.probe_interval, ..ProbeSettings::default() };
                (None, Some(Prober::run(&shared.table, &probes).map_err(explained)?))
            }
        };
        let name = settings.server.name.clone();
        let (table, library) = (Arc::clone(&shared.table), Arc::clone(&shared.library));
        let heartbeats = heartbeats.map(Arc::new);
        let (beating, listen) = (heartbeats.clone(), settings.heartbeat.listen);
        let agreed = Arc::new(Mutex::new(settings.agreement.clone()));
        // Another boot tree needs a restart: what is served is what members agree on.
        let served = settings.server.root.clone();
        let stop = Stop::new();
        if let Some(heartbeats) = heartbeats.clone() {
            keep_agreement(heartbeats, Arc::clone(&agreed), served.clone(), stop.clone())
                .context("start a thread")?;
        }
        let reloader = Arc::new(Reloader::new(config, settings, Arc::clone(&shared.policy), move |new| {
            if let Err(error) = table.configure(member_configs(new)) {
                error!(%error, "the members stay as they were");
                return;
            }
            media::serve(new, &library);
            if let (Some(heartbeats), Some(listen)) = (&beating, listen) {
                heartbeats.set_peers(convert::peers_of(new, listen));
                heartbeats.set_digest(new.agreement.digest(&served));
                *agreed.lock().unwrap_or_else(PoisonError::into_inner) = new.agreement.clone();
            }
        }));
        let watch = reloader.watch().context("watch the boot file")?;
        Ok(Running {
            name,
            _state: state,
            shared,
            http,
            metrics,
            tftp,
            dhcp,
            dhcp6,
            heartbeats,
            prober,
            reloader,
            watch,
            stop,
        })
    }
}

/// Tells the group when files that profiles name have changed, though no boot file did.
fn keep_agreement(
    heartbeats: Arc<RunningHeartbeats>,
    agreed: Arc<Mutex<Agreement>>,
    root: PathBuf,
    stop: Stop,
) -> std::io::Result<()> {
    spawn("agreement", move || {
        while !stop.wait(AGREEMENT_EVERY) {
            let agreement = agreed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            heartbeats.set_digest(agreement.digest(&root));
        }
    })
    .map(drop)
}

fn start_dhcp(
    settings: &Settings,
    state: &StateFolder,
    shared: &Shared,
    urls: &UrlBuilder,
    sockets: dhcp::Sockets,
) -> Result<dhcp::Running, Report> {
    for address in sockets.addresses() {
        info!(%address, mode = ?settings.dhcp.mode, "DHCP");
    }
    let policy: Arc<dyn BootPolicy> = shared.policy.clone();
    let observer: Arc<dyn Observer> = shared.telemetry.clone();
    let proxy = ProxyResponder::new(Arc::clone(&policy), urls.clone(), Arc::clone(&observer), true)
        .with_relays(convert::relays_of(settings));
    if settings.dhcp.mode != DhcpMode::Server {
        return sockets.run(Service::of_proxy(proxy)).map_err(explained);
    }
    let server_settings = convert::server_of(settings);
    if let Some(problem) = server_settings.problems().first() {
        return Err(Report::new(problem.to_string()));
    }
    let server = Server::new(server_settings, policy, urls.clone(), observer);
    let folder = state.leases();
    let service = Service::of_server(server, &folder, proxy, Arc::clone(shared.table.fitness()))
        .map_err(|error| explained(error).context(format!("open the lease log in {}", folder.display())))?;
    sockets.run(service).map_err(explained)
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
        match table.fitness().trouble() {
            Some(trouble) => http::Health { is_healthy: false, reason: trouble },
            None => http::Health { is_healthy: state == MemberState::Alive, reason: state.name().into() },
        }
    })
}

/// Connections to the metrics' page at a time: of collectors and balancers, not of devices.
const METRICS_CONNECTIONS: usize = 128;

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
pub struct Running {
    shared: Shared,
    http: http::Running,
    metrics: Option<http::Running>,
    tftp: Option<tftp::Running>,
    dhcp: Option<dhcp::Running>,
    dhcp6: Option<dhcp6::Running>,
    heartbeats: Option<Arc<RunningHeartbeats>>,
    prober: Option<Prober>,
    reloader: Arc<Reloader>,
    watch: Watch,
    stop: Stop,
    name: String,
    /// Keeps other servers out.
    _state: StateFolder,
}

impl Running {
    /// The member's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the boot file again now; it logs what comes of it.
    pub fn reload(&self) {
        self.reloader.reload();
    }

    /// Takes a renewed certificate; whether there was one.
    ///
    /// # Errors
    /// It cannot be read or does not fit its key; the old one stays in use.
    pub fn reload_certificate(&self) -> Result<bool, Report> {
        Ok(self.http.reload_certificate()?)
    }

    /// DHCP first, so that nobody is sent here any more; then the group is told; then transfers end.
    pub fn stop(self) {
        self.stop.request();
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

/// What the usual reasons for which a server, or a balancing front, cannot start call for.
pub fn explained(error: impl Hints + 'static) -> Report {
    let mut causes =
        std::iter::successors(Some(&error as &(dyn std::error::Error + 'static)), |error| error.source());
    let system = causes.find_map(|cause| cause.downcast_ref::<std::io::Error>());
    let (code, kind) = (system.and_then(std::io::Error::raw_os_error), system.map(std::io::Error::kind));
    let report = Report::from(error);
    // The error knows better than its cause what it calls for.
    if !report.hints.is_empty() {
        return report;
    }
    if code == Some(rustix::io::Errno::NODEV.raw_os_error()) {
        let hint =
            "`ip -br link` shows this machine's interfaces; dhcp.interfaces and dhcp6.interfaces name some";
        return report.hint(hint);
    }
    match kind {
        Some(ErrorKind::PermissionDenied) => report.hint(
            "ports below 1024 and the state folder need root, or a unit such as examples/goldwire-boot.service",
        ),
        Some(ErrorKind::AddrInUse) => report.hint("another server has this port; `ss -tulpn` shows which"),
        Some(ErrorKind::AddrNotAvailable) => report.hint("no interface of this machine has this address"),
        _ => report,
    }
}

/// The same for DHCP's sockets, of which a port in use is told by its holder.
fn explained_dhcp(error: BindError) -> Report {
    match &error {
        BindError::Listen { port, source, .. } if source.kind() == ErrorKind::AddrInUse => {
            let hint = dhcp_port_in_use(*port);
            Report::from(error).hint(hint)
        }
        _ => explained(error),
    }
}

fn dhcp_port_in_use(port: u16) -> String {
    let holders = match &udp_port::holders_of(port)[..] {
        [] => "another program; `ss -ulpn` shows which".into(),
        found => found.join(", "),
    };
    format!(
        "the port is held by {holders}. Two servers cannot answer on one interface: stop that one, or name other \
         interfaces in dhcp.interfaces"
    )
}
