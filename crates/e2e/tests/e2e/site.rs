//! A boot server, or a balancing front, on loopback, with ports that the system picks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use goldwire_stdx::testing;
use rustix::process::Signal;

use crate::lab::PATIENCE;
use crate::machine;
use crate::sync::text;
use crate::tool::{Finished, Scene, programs};
use crate::transcript::Transcript;

/// A member that keeps its files in a scene, without a server so far.
pub(crate) struct Site {
    pub(crate) scene: Scene,
    pub(crate) config: PathBuf,
}

impl Site {
    pub(crate) fn new() -> Self {
        let scene = Scene::new();
        // Whoever root becomes has to come in.
        fs::set_permissions(scene.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        let root = scene.folder("root");
        scene.folder("ipxe");
        let mut big: Vec<u8> =
            (0..300_000_u32).flat_map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        big.truncate(600_001);
        fs::write(root.join("big"), &big).unwrap();
        // More than sockets hold: whoever sends it is not done at once.
        fs::write(root.join("huge"), big.repeat(28)).unwrap();
        fs::write(root.join("linux"), "a kernel").unwrap();
        fs::write(root.join("closed"), "not for everybody").unwrap();
        scene.goldwire(["boot", "secret", "secret"]).expect(0);
        let site = Self { config: scene.path("boot.toml"), scene };
        fs::write(&site.config, site.file()).unwrap();
        site
    }

    /// A site and its server. None, visibly, where curl is missing.
    pub(crate) fn with_server() -> Option<(Self, Server)> {
        let site = Self::new();
        let server = site.serve()?;
        Some((site, server))
    }

    pub(crate) fn file(&self) -> String {
        let folder = self.scene.path("");
        let folder = folder.display();
        format!(
            "default-profile = 'lab'\n\
             [server]\nname = 'boot1'\nstate = '{folder}/state'\nroot = '{folder}/root'\nipxe = '{folder}/ipxe'\n\
             secret-file = '{folder}/secret'\n\
             [http]\nlisten = ['127.0.0.1:0']\n[tftp]\nlisten = ['127.0.0.1:0']\n[metrics]\nlisten = '127.0.0.1:0'\n\
             [[member]]\nname = 'boot1'\naddress = '127.0.0.1'\n\
             [[device]]\nmac = '52:54:00:00:00:66'\nprofile = 'no'\n\
             [profile.no]\nignore = true\n\
             [profile.lab]\nkernel = 'linux'\n\
             [profile.closed]\nkernel = 'closed'\ntoken = true\n"
        )
    }

    pub(crate) fn serve(&self) -> Option<Server> {
        Server::start(&self.scene, &["serve", "--config", text(&self.config)])
    }

    pub(crate) fn goldwire(&self, words: &[&str]) -> Finished {
        let config = ["--config", text(&self.config)];
        self.scene.goldwire(["boot"].iter().chain(words).chain(&config)).finish()
    }
}

/// A running `goldwire boot serve` or `balance`.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) log: Arc<Transcript>,
}

impl Server {
    pub(crate) fn start(scene: &Scene, words: &[&str]) -> Option<Self> {
        testing::program("curl")?;
        let mut command = Command::new(&programs().goldwire);
        command.arg("boot").args(words).current_dir(scene.path(""));
        let (output, input) = std::io::pipe().unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(input);
        let child = command.spawn().unwrap();
        drop(command);
        let log = Transcript::follow(words[0], Instant::now(), output, |_| {});
        let server = Self { child, log };
        server.wait_for("ready");
        Some(server)
    }

    #[track_caller]
    pub(crate) fn wait_for(&self, words: &str) {
        assert!(self.log.wait(words, PATIENCE), "it never said {words:?}\n{}", self.log.story());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        machine::signal(self.pid(), signal);
    }

    /// Its exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    pub(crate) fn http(&self) -> String {
        self.address_of("HTTP")
    }

    pub(crate) fn tftp(&self) -> String {
        self.address_of("TFTP")
    }

    #[track_caller]
    pub(crate) fn address_of(&self, name: &str) -> String {
        self.addresses_of(name).swap_remove(0)
    }

    /// Where it listens, as its log says.
    pub(crate) fn addresses_of(&self, name: &str) -> Vec<String> {
        let lines = self.log.lines_with(&format!(" {name} address="));
        lines.iter().map(|line| line.rsplit_once('=').unwrap().1.trim().to_owned()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{}", self.log.story());
        }
    }
}

/// curl's exit code, and what it got.
pub(crate) fn fetch(url: &str) -> (i32, Vec<u8>) {
    let mut curl = Command::new("curl");
    let output = curl.args(["-sSf", "--max-time", "60", url]).stdin(Stdio::null()).output().unwrap();
    (output.status.code().unwrap(), output.stdout)
}

/// The status of an HTTP answer; `000` where there was none.
pub(crate) fn status(url: &str) -> String {
    let mut curl = Command::new("curl");
    curl.args(["-s", "--max-time", "60", "-o", "/dev/null", "-w", "%{http_code}", url]);
    String::from_utf8(curl.stdin(Stdio::null()).output().unwrap().stdout).unwrap()
}

/// Whether bytes wait in a connection of this local address.
pub(crate) fn is_sending(address: &str) -> bool {
    let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
    let local = format!(":{port:04X}");
    fs::read_to_string("/proc/net/tcp").unwrap().lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1].ends_with(&local) && fields[3] == "01" && !fields[4].starts_with("00000000:")
    })
}
