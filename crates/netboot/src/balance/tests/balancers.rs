//! The set-ups of `docs/boot-balancing.md` in the real HAProxy and nginx, and the PROXY protocol between them and us.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Instant;

use goldwire_stdx::testing;

use super::member::content;
use super::*;

const DOCUMENT: &str = include_str!("../../../../../docs/boot-balancing.md");

/// A balancer's process.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The one code block in this language, with the document's addresses replaced.
fn block(language: &str, addresses: &[(&str, SocketAddr)]) -> String {
    let (_, rest) = DOCUMENT.split_once(&format!("```{language}\n")).unwrap();
    let mut text = rest.split_once("\n```").unwrap().0.to_owned() + "\n";
    for (documented, address) in addresses {
        assert!(text.contains(documented), "{documented}");
        text = text.replace(documented, &address.to_string());
    }
    text
}

/// A port that nobody has just now.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn wait_for(address: SocketAddr) {
    goldwire_stdx::testing::until("it listens", || std::net::TcpStream::connect(address).is_ok());
}

/// Asserts that a program's check of a file passes.
fn check(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn start_haproxy(folder: &Path, text: &str, address: SocketAddr) -> Process {
    let file = folder.join("haproxy.cfg");
    std::fs::write(&file, text).unwrap();
    check(Command::new("haproxy").arg("-c").arg("-f").arg(&file));
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let process = Process(command.spawn().unwrap());
    wait_for(address);
    process
}

fn start_nginx(folder: &Path, text: &str, address: SocketAddr) -> Process {
    let file = folder.join("nginx.conf");
    // Nothing of this may land in the system's folders, and it has to stay our child.
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {}/{name};", folder.display()))
        .join("\n");
    let http = format!("http {{\naccess_log off;\n{paths}");
    let head = format!("daemon off;\nmaster_process off;\npid {}/pid;\n", folder.display());
    std::fs::write(&file, head + &text.replace("http {", &http)).unwrap();
    let log = folder.join("error.log");
    let nginx = || {
        let mut command = Command::new("nginx");
        command.arg("-e").arg(&log).arg("-c").arg(&file);
        command
    };
    check(nginx().arg("-t"));
    let process = Process(nginx().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    wait_for(address);
    process
}

/// Fetches through a balancer while the members fail, each in each way. `grudge` is how long the balancer avoids a
/// member after a failure.
fn fetches_whoever_fails(
    url: &str,
    members: [&TestMember; 2],
    body: &[u8],
    modes: &[Mode],
    grudge: Duration,
) {
    for mode in modes {
        let deadline = Instant::now() + Duration::from_secs(120);
        // A request meets a failure only while the balancer does not know of it yet.
        while !fetches_past(*mode, url, members, body) {
            assert!(Instant::now() < deadline, "no request met {mode:?}");
            std::thread::sleep(grudge);
        }
        members.iter().for_each(|member| member.set(Mode::Well));
        std::thread::sleep(grudge);
    }
}

/// Whether a request was made to a member that behaves like this; whatever it was, the client got its file.
fn fetches_past(mode: Mode, url: &str, members: [&TestMember; 2], body: &[u8]) -> bool {
    let mut has_met = false;
    for (one, other) in [(0, 1), (1, 0)] {
        members[other].set(Mode::Well);
        members[one].set(mode);
        let before = asked_for_files(members[one]);
        // It may still avoid the other one.
        goldwire_stdx::testing::until("the file comes from the other one", || {
            let (code, got) = curl(&["-f", url]);
            assert!(code != 0 || got == body, "{mode:?} of {one}: {} bytes", got.len());
            code == 0
        });
        has_met |= asked_for_files(members[one]) > before;
    }
    has_met
}

fn asked_for_files(member: &TestMember) -> usize {
    member.asked().iter().filter(|head| !head.starts_with("GET /health")).count()
}

#[test]
fn the_documented_haproxy_fetches_from_whoever_is_alive() {
    if !has("haproxy", "-v") || !has("curl", "--version") {
        return;
    }
    let body = content(200_000);
    let members = [TestMember::new(Mode::Well, &body), TestMember::new(Mode::Well, &body)];
    let folder = tempfile::tempdir().unwrap();
    let front = free_port();
    let addresses =
        [("10.0.0.10:80", front), ("10.0.0.11:80", members[0].address), ("10.0.0.12:80", members[1].address)];
    let _haproxy = start_haproxy(folder.path(), &block("haproxy", &addresses), front);
    let modes = [Mode::Hang, Mode::Status(503)];
    let url = format!("http://{front}/f");
    fetches_whoever_fails(&url, [&members[0], &members[1]], &body, &modes, Duration::from_secs(3));
    assert!(members[0].asked().iter().any(|head| head.starts_with("GET /health HTTP/1.1")));
    let asked = members.iter().flat_map(TestMember::asked).find(|head| head.starts_with("GET /f"));
    assert!(asked.unwrap().to_lowercase().contains("x-forwarded-for: 127.0.0.1"));
}

#[test]
fn the_documented_nginx_fetches_from_whoever_is_alive() {
    if !has("nginx", "-v") || !has("curl", "--version") {
        return;
    }
    let body = content(200_000);
    let members = [TestMember::new(Mode::Well, &body), TestMember::new(Mode::Well, &body)];
    let folder = tempfile::tempdir().unwrap();
    let front = free_port();
    let addresses =
        [("10.0.0.10:80", front), ("10.0.0.11:80", members[0].address), ("10.0.0.12:80", members[1].address)];
    let _nginx = start_nginx(folder.path(), &block("nginx", &addresses), front);
    let modes = [Mode::Hang, Mode::Reset];
    let url = format!("http://{front}/f");
    fetches_whoever_fails(&url, [&members[0], &members[1]], &body, &modes, Duration::from_millis(2100));
}

#[test]
fn the_documented_nginx_for_tftp_is_one() {
    let paths = ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules"];
    let module =
        paths.map(|path| Path::new(path).join("ngx_stream_module.so")).into_iter().find(|path| path.exists());
    let Some(module) = module.filter(|_| has("nginx", "-v")) else {
        return testing::absent("nginx's stream module");
    };
    let folder = tempfile::tempdir().unwrap();
    let text = block("nginx-stream", &[("10.0.0.10:69", free_port())]);
    let text = text.replace("modules/ngx_stream_module.so", &module.display().to_string());
    let file = folder.path().join("nginx.conf");
    std::fs::write(&file, format!("{text}pid {}/pid;\n", folder.path().display())).unwrap();
    check(Command::new("nginx").arg("-t").arg("-e").arg(folder.path().join("log")).arg("-c").arg(&file));
}

#[test]
fn haproxy_understands_our_proxy_header_and_we_its() {
    if !has("haproxy", "-v") || !has("curl", "--version") {
        return;
    }
    let member = TestMember::new(Mode::Echo, b"");
    let local: Network = "127.0.0.0/8".parse().unwrap();
    // The last front believes HAProxy, which believes the first front: curl's address has to come through both.
    let last = front_of(&[(member.address, 0)], |settings| settings.proxies = vec![local]);
    for version in ["send-proxy", "send-proxy-v2"] {
        let (entry, exit) = (free_port(), last.running.http_addresses()[0]);
        let text = format!(
            "defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             listen l\n bind {entry} accept-proxy\n server s {exit} {version}\n"
        );
        let folder = tempfile::tempdir().unwrap();
        let _haproxy = start_haproxy(folder.path(), &text, entry);
        let first = front_of(&[(entry, 0)], |settings| settings.sends_proxy_header = true);
        // An address that only curl has, so that it cannot be anybody else's.
        let (code, head) = curl(&["--interface", "127.0.0.77", &first.url("/x")]);
        let head = String::from_utf8(head).unwrap();
        assert_eq!(code, 0);
        assert!(head.contains("X-Forwarded-For: 127.0.0.77, 127.0.0.77\r\n"), "{version}: {head}");
    }
}

#[test]
fn the_documented_netscaler_names_what_the_text_does() {
    let text = block("netscaler", &[]);
    let monitors: Vec<_> = text.lines().filter(|line| line.starts_with("add lb monitor")).collect();
    assert_eq!(monitors.len(), 2);
    assert!(monitors.iter().all(|line| line.contains("-httpRequest \"GET /health\" ")));
    // Whatever is bound was added.
    for line in text.lines().filter(|line| line.starts_with("bind")) {
        let name = line.split(' ').find(|word| word.starts_with("sg-") || word.starts_with("vs-")).unwrap();
        assert!(text.lines().any(|other| other.starts_with("add") && other.contains(name)), "{line}");
    }
}
