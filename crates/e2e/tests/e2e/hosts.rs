//! Hosts: real OpenSSH servers on this machine, each with its own host key, home, cache and disks. Where root may
//! make network namespaces also hosts that really cannot reach each other.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use goldwire_stdx::testing;

use crate::machine::{self, must, succeeds};
use crate::tool::{Run, Scene};

/// Some hosts, and the ssh settings of who talks to them.
pub(crate) struct Hosts {
    /// For the machine that runs goldwire.
    pub(crate) config: PathBuf,
    /// For the hosts among each other.
    pub(crate) inner_config: PathBuf,
    pub(crate) all: Vec<Host>,
    network: Option<Network>,
}

/// One host.
pub(crate) struct Host {
    pub(crate) name: String,
    /// Where its disks are.
    pub(crate) sr: PathBuf,
    /// Where agents are installed.
    pub(crate) cache: PathBuf,
    server: Child,
}

/// What is special about a host.
#[derive(Clone, Default)]
pub(crate) struct Wish {
    pub(crate) name: &'static str,
    /// A script that every session runs instead of the login shell.
    pub(crate) force_command: Option<String>,
    /// What the hosts' own settings say about it, instead of how to reach it.
    pub(crate) inner_settings: Option<&'static str>,
}

impl From<&'static str> for Wish {
    fn from(name: &'static str) -> Self {
        Self { name, ..Self::default() }
    }
}

impl Hosts {
    /// Starts hosts on the loopback address. None, visibly, where there is no sshd.
    pub(crate) fn start(scene: &Scene, wishes: &[Wish]) -> Option<Self> {
        Self::start_in(scene, wishes, None)
    }

    /// Starts hosts in network namespaces. None, visibly, where that cannot be done.
    pub(crate) fn start_apart(scene: &Scene, wishes: &[Wish]) -> Option<Self> {
        let Some(network) = Network::make(wishes) else {
            testing::excuse(testing::Excuse::NoNamespaces);
            return None;
        };
        Self::start_in(scene, wishes, Some(network))
    }

    fn start_in(scene: &Scene, wishes: &[Wish], network: Option<Network>) -> Option<Self> {
        let (sshd, _) = (testing::program("sshd")?, testing::program("ssh-keygen")?);
        if rustix::process::geteuid().is_root() {
            // Debian's sshd, built with privilege separation, wants it; its service file makes it otherwise.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let keys = scene.folder("keys");
        must("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", keys.join("user").to_str().unwrap()]);
        fs::copy(keys.join("user.pub"), keys.join("authorized")).unwrap();
        let mut hosts = Self {
            config: keys.join("config"),
            inner_config: keys.join("inner-config"),
            all: Vec::new(),
            network,
        };
        let common = format!(
            "Host *\n  IdentityFile {keys}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {keys}/known\n  \
             GlobalKnownHostsFile none\n  StrictHostKeyChecking yes\n  LogLevel ERROR\n  ConnectTimeout 10\n",
            keys = keys.display()
        );
        let (mut config, mut inner, mut known) = (String::new(), String::new(), String::new());
        for (number, wish) in wishes.iter().enumerate() {
            let (host, address, port) = hosts.start_one(scene, &sshd, &keys, number, wish);
            let settings = format!("  HostName {address}\n  Port {port}\n  HostKeyAlias {}\n", wish.name);
            let _ = write!(config, "Host {}\n{settings}", wish.name);
            let inner_address = hosts.network.as_ref().map_or(address, |_| Network::inner_address(number));
            let inner_settings =
                format!("  HostName {inner_address}\n  Port {port}\n  HostKeyAlias {}\n", wish.name);
            let _ = write!(inner, "Host {}\n{}\n", wish.name, wish.inner_settings.unwrap_or(&inner_settings));
            let key = fs::read_to_string(keys.join(format!("{}.pub", wish.name))).unwrap();
            let _ = write!(known, "{} {key}", wish.name);
            hosts.all.push(host);
        }
        fs::write(&hosts.config, config + &common).unwrap();
        fs::write(&hosts.inner_config, inner + &common).unwrap();
        fs::write(keys.join("known"), known).unwrap();
        Some(hosts)
    }

    fn start_one(
        &self,
        scene: &Scene,
        sshd: &Path,
        keys: &Path,
        number: usize,
        wish: &Wish,
    ) -> (Host, String, u16) {
        let name = wish.name;
        let home = scene.folder(&format!("hosts/{name}/home"));
        let cache = scene.folder(&format!("hosts/{name}/cache"));
        let sr = scene.folder(&format!("hosts/{name}/sr"));
        let key = keys.join(name);
        must("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", key.to_str().unwrap()]);
        let force = match &wish.force_command {
            Some(script) => {
                let path = home.join("forced.sh");
                machine::put_program(&path, script.as_bytes());
                format!("ForceCommand {}\n", path.display())
            }
            None => String::new(),
        };
        let address = match &self.network {
            Some(_) => Network::outer_address(number),
            None => "127.0.0.1".to_owned(),
        };
        // A free port may be taken before sshd binds it; then another one is tried.
        for _ in 0..20 {
            let port = match &self.network {
                Some(_) => 2222,
                None => TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
            };
            let listen = if self.network.is_some() { "0.0.0.0" } else { "127.0.0.1" };
            let config = format!(
                "Port {port}\nListenAddress {listen}\nHostKey {key}\nPidFile none\nUsePAM no\nStrictModes no\n\
                 AuthorizedKeysFile {keys}/authorized\nPasswordAuthentication no\n\
                 KbdInteractiveAuthentication no\nPermitRootLogin yes\nMaxStartups 200\nPrintMotd no\n\
                 LogLevel INFO\nSetEnv HOME={home} XDG_CACHE_HOME={cache}\n{force}",
                key = key.display(),
                keys = keys.display(),
                home = home.display(),
                cache = cache.display(),
            );
            let path = keys.join(format!("{name}.sshd"));
            fs::write(&path, config).unwrap();
            let mut command = match &self.network {
                Some(network) => network.command_at(number, sshd),
                None => Command::new(sshd),
            };
            command.args(["-D", "-e", "-f"]).arg(&path);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
            let mut server = command.spawn().unwrap();
            let mut log = BufReader::new(server.stderr.take().unwrap());
            let mut line = String::new();
            while log.read_line(&mut line).unwrap_or(0) > 0 && !line.contains("Server listening") {}
            if line.contains("Server listening") {
                // Somebody must go on reading, or the server blocks on a full pipe one day.
                goldwire_stdx::spawn("hosts", move || log.lines().for_each(drop)).unwrap();
                return (Host { name: name.to_owned(), sr, cache, server }, address, port);
            }
            let _ = server.kill();
            let _ = server.wait();
            assert!(line.contains("in use"), "sshd: {line}");
        }
        panic!("no free port");
    }

    /// A `goldwire sync --json` that reaches these hosts.
    pub(crate) fn sync<const N: usize>(&self, scene: &Scene, arguments: [&str; N]) -> Run {
        let mut run = scene.sync([
            "--ssh-command".to_owned(),
            format!("ssh -F {}", self.config.display()),
            "--remote-ssh-command".to_owned(),
            format!("ssh -F {} -o BatchMode=yes", self.inner_config.display()),
        ]);
        if let Some(network) = &self.network {
            let inside = network.command("ctl", run.command.get_program());
            let arguments: Vec<_> = run.command.get_args().map(ToOwned::to_owned).collect();
            run = scene.run(inside).arguments(arguments);
        }
        run.arguments(arguments)
    }

    /// `HOST:FOLDER` as a user writes it.
    pub(crate) fn place(&self, number: usize, file: &str) -> String {
        let host = &self.all[number];
        format!("{}:{}", host.name, host.sr.join(file).display())
    }
}

impl Host {
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.sr.join(name)
    }

    /// The agents that run here.
    pub(crate) fn agents(&self) -> Vec<u32> {
        machine::running_from(&self.cache)
    }

    /// The installed agents.
    pub(crate) fn installed(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.cache.join("goldwire")).into_iter().flatten().flatten();
        let is_agent = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("agent-");
        entries.map(|entry| entry.path()).filter(is_agent).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let mut all = machine::descendants(self.server.id());
        all.extend(self.agents());
        let _ = self.server.kill();
        let _ = self.server.wait();
        all.into_iter().for_each(machine::kill);
    }
}

/// Network namespaces: one for goldwire itself (`ctl`), one per host. A cable from `ctl` to each host, and a switch
/// between those hosts that the hosts' own settings do not say otherwise about. `ctl` forwards nothing.
struct Network {
    prefix: String,
    spaces: Vec<String>,
}

impl Network {
    fn make(wishes: &[Wish]) -> Option<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        if !testing::root() || testing::program("ip").is_none() {
            return None;
        }
        let prefix = format!("gwe{}x{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let mut network = Self { prefix, spaces: Vec::new() };
        network.add("ctl")?;
        network.add("sw")?;
        network.ip("sw", "link add br0 type bridge")?;
        network.ip("sw", "link set br0 up")?;
        for (number, wish) in wishes.iter().enumerate() {
            let space = format!("h{number}");
            network.add(&space)?;
            let peer = network.name(&space);
            network.ip("ctl", &format!("link add c{number} type veth peer name outer netns {peer}"))?;
            network.ip("ctl", &format!("addr add 10.77.{number}.1/24 dev c{number}"))?;
            network.ip("ctl", &format!("link set c{number} up"))?;
            network.ip(&space, &format!("addr add {}/24 dev outer", Self::outer_address(number)))?;
            network.ip(&space, "link set outer up")?;
            if wish.inner_settings.is_none() {
                network.ip("sw", &format!("link add p{number} type veth peer name inner netns {peer}"))?;
                network.ip("sw", &format!("link set p{number} master br0 up"))?;
                network.ip(&space, &format!("addr add {}/24 dev inner", Self::inner_address(number)))?;
                network.ip(&space, "link set inner up")?;
            }
        }
        Some(network)
    }

    fn outer_address(number: usize) -> String {
        format!("10.77.{number}.2")
    }

    fn inner_address(number: usize) -> String {
        format!("10.78.0.{}", number + 1)
    }

    fn name(&self, space: &str) -> String {
        format!("{}{space}", self.prefix)
    }

    fn add(&mut self, space: &str) -> Option<()> {
        let name = self.name(space);
        succeeds("ip", &["netns", "add", &name]).then_some(())?;
        self.spaces.push(name.clone());
        self.ip(space, "link set lo up")?;
        let no_forwarding = "echo 0 >/proc/sys/net/ipv4/ip_forward";
        succeeds("ip", &["netns", "exec", &name, "sh", "-c", no_forwarding]).then_some(())
    }

    fn ip(&self, space: &str, words: &str) -> Option<()> {
        let name = self.name(space);
        let words: Vec<&str> = ["-n", &name].into_iter().chain(words.split(' ')).collect();
        succeeds("ip", &words).then_some(())
    }

    fn command(&self, space: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(space)]).arg(program);
        command
    }

    fn command_at(&self, number: usize, program: &Path) -> Command {
        self.command(&format!("h{number}"), program)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.spaces.drain(..) {
            succeeds("ip", &["netns", "del", &name]);
        }
    }
}
