//! A network of its own for boot tests: a switch, servers and guests, all in network namespaces without a link to the
//! machine, so that DHCP servers and dead hosts disturb nobody.
//!
//! ```text
//!  sw     bridge br0 ── tap1, tap2, …   one per guest; QEMU runs in here
//!          │    │
//!  srv1  eth0   │     10.77.0.1/24
//!  srv2        eth0   10.77.0.2/24
//! ```

use std::cell::RefCell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use goldwire_stdx::testing;

use crate::advertiser::Advertiser;
use crate::machine::{self, must, succeeds};
use crate::tool::{Scene, programs};
use crate::transcript::Transcript;

/// Long enough for anything that firmware does, on a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What every boot test needs.
const PROGRAMS: [&str; 7] = ["ip", "tc", "nft", "ethtool", "qemu-system-x86_64", "grub-mkimage", "tcpdump"];
/// The ROM of QEMU's network card; QEMU itself knows where it lies.
const ROM: [&str; 2] = ["/usr/lib/ipxe/qemu/pxe-virtio.rom", "/usr/share/qemu/pxe-virtio.rom"];

/// Which packets belong to the story of a failed test: who asks whom for what, not what is transferred.
const PACKETS: &str =
    "arp or icmp or port 67 or port 69 or port 4011 or tcp[tcpflags] & (tcp-syn|tcp-fin|tcp-rst) != 0";

/// The network.
pub(crate) struct Lab {
    prefix: String,
    spaces: Vec<String>,
    start: Instant,
    folder: PathBuf,
    transcripts: RefCell<Vec<Arc<Transcript>>>,
    taps: RefCell<u8>,
    advertiser: Option<Advertiser>,
    capture: Option<Child>,
}

impl Lab {
    /// A network with this many servers, `srv1` at 10.77.0.1 and so on. None, visibly, where that cannot be done.
    pub(crate) fn up(scene: &Scene, servers: u8) -> Option<Self> {
        let is_whole = testing::root()
            && testing::programs(&PROGRAMS)
            && testing::file("/usr/lib/ipxe/snponly.efi")
            && testing::any_file(&ROM).is_some()
            && testing::uefi().is_some();
        if !is_whole {
            return None;
        }
        if !Path::new("/dev/net/tun").exists() {
            testing::excuse(testing::Excuse::NoTun);
            return None;
        }
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let mut lab = Self {
            prefix: format!("gwb{}x{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)),
            spaces: Vec::new(),
            start: Instant::now(),
            folder: scene.folder("lab"),
            transcripts: RefCell::default(),
            taps: RefCell::new(0),
            advertiser: None,
            capture: None,
        };
        if lab.add_space("sw").is_none() {
            testing::excuse(testing::Excuse::NoNamespaces);
            return None;
        }
        lab.ip("sw", "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0");
        lab.ip("sw", "link set br0 up");
        for number in 1..=servers {
            lab.add_server(number);
        }
        let space = Path::new("/run/netns").join(lab.name("sw"));
        lab.advertiser = Some(Advertiser::start(&space, "br0").unwrap());
        lab.listen();
        Some(lab)
    }

    fn add_server(&mut self, number: u8) {
        let space = format!("srv{number}");
        self.add_space(&space).unwrap();
        // Made inside the namespace of the switch: no name can clash with an interface of the machine.
        self.ip("sw", &format!("link add v{number} type veth peer name eth0 netns {}", self.name(&space)));
        self.ip("sw", &format!("link set v{number} master br0 up"));
        self.ip(&space, "link set eth0 up");
        self.ip(&space, &format!("addr add 10.77.0.{number}/24 brd + dev eth0"));
        // A veth leaves checksums to hardware that is not there, and firmware checks them.
        let off = ["-K", "eth0", "tx", "off", "rx", "off", "tso", "off", "gso", "off", "gro", "off"];
        let _ =
            self.command(&space, "ethtool").args(off).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }

    /// Keeps the heads of all packets, for the story of a test that fails.
    fn listen(&mut self) {
        let mut command = self.command("sw", "tcpdump");
        command.args(["--immediate-mode", "-U", "-Z", "root", "-n", "-s", "500", "-i", "br0", "-w"]);
        command.arg(self.folder.join("packets"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.capture = Some(command.spawn().unwrap());
    }

    /// A command that runs in a namespace. The process is the program itself: `ip netns exec` becomes it.
    pub(crate) fn command(&self, space: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(space)]).arg(program).current_dir(&self.folder);
        command
    }

    /// Starts a server in a namespace.
    pub(crate) fn start(&self, space: &str, command: Command) -> Service {
        self.start_and_react(space, command, |_| {})
    }

    /// Starts `goldwire` in a namespace.
    pub(crate) fn goldwire<S: AsRef<OsStr>>(
        &self,
        space: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Service {
        let mut command = self.command(space, &programs().goldwire);
        command.args(arguments).env("HOME", &self.folder);
        self.start(space, command)
    }

    /// Starts a program and calls `react` with each line of its standard output as far as it has come.
    pub(crate) fn start_and_react(
        &self,
        name: &str,
        mut command: Command,
        mut react: impl FnMut(&str) + Send + 'static,
    ) -> Service {
        let (output, input) = std::io::pipe().unwrap();
        command.stdin(Stdio::null()).stdout(input.try_clone().unwrap()).stderr(input);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // The command holds the pipe's other end, which has to close with the child.
        drop(command);
        let transcript = Transcript::follow(name, self.start, output, move |line| react(line));
        self.transcripts.borrow_mut().push(Arc::clone(&transcript));
        Service { child, transcript }
    }

    /// Another transcript that belongs to the story of this test.
    pub(crate) fn keep(&self, transcript: &Arc<Transcript>) {
        self.transcripts.borrow_mut().push(Arc::clone(transcript));
    }

    pub(crate) fn start_time(&self) -> Instant {
        self.start
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A new port of the switch; its number, of the interface `tapN`.
    pub(crate) fn add_tap(&self) -> u8 {
        let number = *self.taps.borrow() + 1;
        *self.taps.borrow_mut() = number;
        self.ip("sw", &format!("tuntap add tap{number} mode tap"));
        self.ip("sw", &format!("link set tap{number} master br0 up"));
        number
    }

    /// Limits what a server sends, so that something can happen while it does.
    pub(crate) fn slow(&self, space: &str, mbit: u32) {
        let rate = format!("{mbit}mbit");
        let words =
            ["qdisc", "add", "dev", "eth0", "root", "tbf", "rate", &rate, "burst", "16kb", "latency", "50ms"];
        let status = self.command(space, "tc").args(words).status().unwrap();
        assert!(status.success(), "tc in {space}");
    }

    /// Packets that fit `filter` (in nft's words) do not reach a server any more: it is there and cannot be spoken to.
    pub(crate) fn hold(&self, space: &str, filter: &str) {
        let rules = format!(
            "table inet lab {{ chain input {{ type filter hook input priority 0; {filter} counter drop; }}; }}"
        );
        let status = self.command(space, "nft").arg(rules).status().unwrap();
        assert!(status.success(), "nft in {space}");
    }

    /// Waits until such a packet has come.
    pub(crate) fn wait_for_held(&self, space: &str) {
        let table = ["list", "table", "inet", "lab"];
        goldwire_stdx::testing::until("a packet is held", || {
            let output = self.command(space, "nft").args(table).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            text.contains("counter packets") && !text.contains("counter packets 0 ")
        });
    }

    /// Lets all packets through again.
    pub(crate) fn release(&self, space: &str) {
        let status = self.command(space, "nft").args(["delete", "table", "inet", "lab"]).status().unwrap();
        assert!(status.success(), "nft in {space}");
    }

    /// Waits until something listens on a TCP port.
    pub(crate) fn wait_for_port(&self, space: &str, port: u16) {
        let line = format!(":{port:04X} 00000000:0000 0A");
        goldwire_stdx::testing::until("the server listens", || {
            let output = self.command(space, "cat").arg("/proc/net/tcp").output().unwrap();
            String::from_utf8(output.stdout).unwrap().contains(&line)
        });
    }

    /// Waits until a server has sent so many bytes.
    pub(crate) fn wait_for_sent(&self, space: &str, bytes: u64) {
        let before = self.sent(space);
        goldwire_stdx::testing::until("the server sends", || self.sent(space) >= before + bytes);
    }

    /// Bytes that a server has sent so far.
    fn sent(&self, space: &str) -> u64 {
        let text = must("ip", ["-n", &self.name(space), "-j", "-s", "link", "show", "eth0"]);
        let links: serde_json::Value = serde_json::from_str(&text).unwrap();
        links[0]["stats64"]["tx"]["bytes"].as_u64().unwrap()
    }

    fn name(&self, space: &str) -> String {
        format!("{}{space}", self.prefix)
    }

    #[track_caller]
    pub(crate) fn ip(&self, space: &str, words: &str) {
        let name = self.name(space);
        must("ip", ["-n", &name].into_iter().chain(words.split(' ')));
    }

    fn add_space(&mut self, space: &str) -> Option<()> {
        let name = self.name(space);
        succeeds("ip", &["netns", "add", &name]).then_some(())?;
        self.spaces.push(name.clone());
        // Without duplicate address detection an IPv6 address is there at once.
        let at_once = "cd /proc/sys/net/ipv6/conf && echo 0 >default/accept_dad && echo 0 >all/accept_dad";
        succeeds("ip", &["netns", "exec", &name, "sh", "-c", at_once]);
        self.ip(space, "link set lo up");
        Some(())
    }

    /// What everybody said and which packets there were.
    fn story(&self) -> String {
        let mut story: String =
            self.transcripts.borrow().iter().map(|transcript| transcript.story()).collect();
        let packets = self.folder.join("packets");
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-t", "-r"]).arg(packets).args([PACKETS]);
        if let Ok(output) = command.stdin(Stdio::null()).output() {
            story.push_str("--- packets\n");
            let text = String::from_utf8_lossy(&output.stdout);
            text.lines().take(200).for_each(|line| story.extend([line, "\n"]));
        }
        story
    }
}

/// The address that a client in a namespace, with this identifier, is given.
#[track_caller]
pub(crate) fn address_by_udhcpc(lab: &Lab, space: &str, client: &str) -> String {
    let mut command = lab.command(space, "udhcpc");
    command.args(["-i", "eth0", "-f", "-n", "-q", "-t", "20", "-T", "1", "-s", "/bin/true"]);
    let identifier = format!("0x3d:00{:02x}", client.as_bytes()[0]);
    let output = command.args(["-x", &identifier]).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let (_, after) = said.split_once("lease of ").unwrap_or_else(|| panic!("{said}"));
    after.split([' ', ',']).next().unwrap().to_owned()
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(mut capture) = self.capture.take() {
            let _ = capture.kill();
            let _ = capture.wait();
        }
        if thread::panicking() {
            eprintln!("{}", self.story());
        }
        self.advertiser = None;
        for name in self.spaces.drain(..) {
            succeeds("ip", &["netns", "del", &name]);
        }
    }
}

/// A running server.
pub(crate) struct Service {
    child: Child,
    transcript: Arc<Transcript>,
}

impl Service {
    /// Waits until it said these words.
    #[track_caller]
    pub(crate) fn wait_for(&self, words: &str) {
        assert!(self.transcript.wait(words, PATIENCE), "the server never said {words:?}");
    }

    /// Waits until it said these words so often.
    #[track_caller]
    pub(crate) fn wait_for_times(&self, words: &str, times: usize) {
        goldwire_stdx::testing::until(words, || self.count(words) >= times);
    }

    /// How often it has said these words.
    pub(crate) fn count(&self, words: &str) -> usize {
        self.transcript.lines_with(words).len()
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(&mut self) {
        machine::signal(self.child.id(), rustix::process::Signal::TERM);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    /// It is gone at once, as when the power fails.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.kill();
    }
}
