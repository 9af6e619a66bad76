//! The server as clients meet it: over real sockets, by curl, Python and bytes written by hand.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Mutex, OnceLock};

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256};

use super::testing::TestAuthority;
use super::*;
use crate::content::{Body, Content, ContentError, Digest, Library, LibrarySettings, Requester, UrlBuilder};
use crate::device::{Device, Mac};
use crate::event::{Event, EventKind, Stage};
use crate::policy::{Action, BootPolicy, Decision, Proof};

mod large;
mod rows;

/// Nothing here should ever take so long; only a hang is ended by it.
const PATIENCE: Duration = Duration::from_secs(60);

struct Policy;

impl BootPolicy for Policy {
    fn decide(&self, _device: &Device) -> Decision {
        Decision { rule: "test".into(), action: Action::LocalDisk }
    }

    fn may_fetch(&self, path: &str, _address: IpAddr, _mac: Option<Mac>, _proof: Proof) -> bool {
        !path.starts_with("secret/")
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Observer for Heard {
    fn observe(&self, event: &Event<'_>) {
        let text = match event.kind {
            EventKind::Reached { stage, detail, .. } => format!("reached {} {detail}", stage.name()),
            EventKind::Transferred { path, bytes, is_complete, .. } => {
                format!("sent {path} {bytes} {is_complete}")
            }
            EventKind::Refused { path, reason, .. } => format!("refused {path}: {reason}"),
            EventKind::Dropped { reason, .. } => format!("dropped: {reason}"),
            EventKind::Member { .. } | EventKind::Leased => return,
        };
        let mac = event.mac.map(|mac| format!(" {mac}")).unwrap_or_default();
        self.0.lock().unwrap().push(format!("{text}{mac}"));
    }
}

struct Server {
    folder: tempfile::TempDir,
    heard: Arc<Heard>,
    running: Option<Running>,
}

/// A megabyte and a bit in which every place differs from every other.
fn large() -> &'static [u8] {
    static LARGE: OnceLock<Vec<u8>> = OnceLock::new();
    LARGE.get_or_init(|| (0..300_000_u32).flat_map(u32::to_le_bytes).collect())
}

fn tree() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("tree");
    fs::create_dir_all(root.join("secret")).unwrap();
    fs::write(folder.path().join("outside"), "outside").unwrap();
    fs::write(root.join("secret/key"), "secret").unwrap();
    fs::write(root.join("small.efi"), "0123456789").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join("large.iso"), large()).unwrap();
    folder
}

fn start(change: impl FnOnce(&mut Settings)) -> Server {
    let folder = tree();
    let settings =
        LibrarySettings { root: folder.path().join("tree"), extra: Vec::new(), fitness: Arc::default() };
    let library = Library::open(&settings, Arc::new(Policy), UrlBuilder::default()).unwrap();
    start_with(folder, Arc::new(library), change)
}

fn start_with(
    folder: tempfile::TempDir,
    contents: Arc<dyn Contents>,
    change: impl FnOnce(&mut Settings),
) -> Server {
    let heard = Arc::new(Heard::default());
    let neighbours = Arc::new(Neighbours::new());
    neighbours.learn("127.0.0.1".parse().unwrap(), Mac([2; 6]));
    let listener = Listener::plain("127.0.0.1:0".parse().unwrap());
    let mut settings = Settings { listeners: vec![listener], ..Settings::default() };
    change(&mut settings);
    let bound = bind(settings, contents, heard.clone(), neighbours).unwrap();
    assert!(bound.addresses().iter().all(|address| address.port() != 0));
    Server { folder, heard, running: Some(bound.run().unwrap()) }
}

impl Server {
    fn address(&self) -> SocketAddr {
        self.running.as_ref().unwrap().addresses()[0]
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address())
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// What comes back for these bytes until the server closes.
    fn raw(&self, bytes: impl AsRef<[u8]>) -> Vec<u8> {
        let mut stream = self.connect();
        // A server that refuses early may close before all is written.
        let _ = stream.write_all(bytes.as_ref());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    fn text(&self, bytes: &str) -> String {
        String::from_utf8_lossy(&self.raw(bytes)).into_owned()
    }

    fn get(&self, path: &str, headers: &str) -> (u16, String, Vec<u8>) {
        split(&self.raw(format!("GET /{path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n")))
    }
}

fn split(answer: &[u8]) -> (u16, String, Vec<u8>) {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    (head[9..12].parse().unwrap(), head, answer[end..].to_vec())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")))
}

/// Runs a program; nothing, and a word on stderr, where it is not installed.
fn run(program: &str, arguments: &[&str]) -> Option<std::process::Output> {
    let program = goldwire_stdx::testing::program(program)?;
    Some(Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap())
}

fn curl(arguments: &[&str]) -> Option<Vec<u8>> {
    let all = [&["-sS", "--noproxy", "*", "--max-time", "60"], arguments].concat();
    let output = run("curl", &all)?;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(output.stdout)
}

#[test]
fn a_bootstrap_by_plain_http() {
    let server = start(|_| {});
    let (status, head, body) = server.get("small.efi", "");
    assert_eq!((status, body.as_slice()), (200, b"0123456789".as_slice()));
    assert_eq!(header(&head, "Content-Type"), Some("application/efi"));
    assert_eq!(header(&head, "ETag"), Some(format!("\"{}\"", Digest::of(b"0123456789")).as_str()));
    assert!(header(&head, "Last-Modified").is_some());
    let (status, head, body) = server.get("large.iso", "");
    assert_eq!((status, header(&head, "Content-Type")), (200, Some("application/vnd.efi-iso")));
    assert!(body == *large());
    assert_eq!(server.get("empty", "").0, 200);
    assert_eq!(server.get("nothing", "").0, 404);
    assert_eq!(server.get("secret/key", "").0, 403);
    let heard = server.heard.0.lock().unwrap();
    let expected =
        ["reached bootstrap small.efi 02:02:02:02:02:02", "sent large.iso 1200000 true 02:02:02:02:02:02"];
    for line in expected {
        assert!(heard.iter().any(|heard| heard == line), "{line}: {heard:?}");
    }
}

#[test]
fn curl_gets_ranges_resumes_and_speaks_http_1_0() {
    let server = start(|_| {});
    let url = server.url("large.iso");
    let whole = large();
    let Some(part) = curl(&["-r", "1000-1999", &url]) else { return };
    assert!(part == whole[1000..2000]);
    assert!(curl(&["-r", "-7", &url]).unwrap() == whole[whole.len() - 7..]);
    assert!(curl(&["--http1.0", &url]).unwrap() == *whole);
    let head = String::from_utf8(curl(&["-I", &url]).unwrap()).unwrap();
    assert_eq!(header(&head, "Content-Length"), Some("1200000"));
    let file = server.folder.path().join("tree/resumed");
    fs::write(&file, &whole[..500_000]).unwrap();
    curl(&["-C", "-", "-o", file.to_str().unwrap(), &url]).unwrap();
    assert!(fs::read(&file).unwrap() == *whole);
    let multi = curl(&["-r", "0-1,100000-100001", &url]).unwrap();
    assert!(String::from_utf8_lossy(&multi).contains("Content-Range: bytes 100000-100001/1200000"));
    // Two on one connection.
    let both = curl(&[&server.url("small.efi"), &server.url("small.efi")]).unwrap();
    assert_eq!(both, b"01234567890123456789");
}

#[test]
fn pythons_http_client_agrees() {
    let server = start(|_| {});
    let script = r#"
import http.client, sys
c = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=60)
for _ in range(3):
    c.request("GET", "/small.efi"); r = c.getresponse(); assert (r.status, r.read()) == (200, b"0123456789")
    c.request("HEAD", "/large.iso"); r = c.getresponse(); assert (r.length, r.read()) == (0, b""), r.length
    c.request("GET", "/large.iso", headers={"Range": "bytes=4-7"}); r = c.getresponse(); assert (r.status, r.read()) == (206, b"\1\0\0\0")
    c.request("GET", "/nothing"); r = c.getresponse(); assert r.status == 404; r.read()
    etag = (c.request("GET", "/large.iso"), c.getresponse())[1]; tag = etag.headers["ETag"]; assert len(etag.read()) == 1200000
    c.request("GET", "/large.iso", headers={"If-None-Match": tag}); r = c.getresponse(); assert (r.status, r.read()) == (304, b"")
"#;
    let Some(output) = run("python3", &["-c", script, &server.address().port().to_string()]) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The first server is killed in the middle of a transfer; the second goes on, because its ETag is the same.
#[test]
fn a_transfer_goes_on_at_another_member() {
    let (mut first, second) = (start(|_| {}), start(|_| {}));
    let whole = large();
    let mut stream = first.connect();
    stream.write_all(b"GET /large.iso HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut got = vec![0; 100_000];
    stream.read_exact(&mut got).unwrap();
    drop(first.running.take());
    let (_, head, mut body) = split(&got);
    let etag = header(&head, "ETag").unwrap();
    for condition in ["If-Match", "If-Range"] {
        let headers = format!("{condition}: {etag}\r\nRange: bytes={}-\r\n", body.len());
        let (status, head, rest) = second.get("large.iso", &headers);
        let range = format!("bytes {}-1199999/1200000", body.len());
        assert_eq!((status, header(&head, "Content-Range")), (206, Some(range.as_str())));
        let start = body.len();
        body.extend(rest);
        assert!(body == *whole);
        body.truncate(start);
    }
    fs::write(second.folder.path().join("tree/large.iso"), "other").unwrap();
    assert_eq!(second.get("large.iso", &format!("If-Match: {etag}\r\nRange: bytes=9-\r\n")).0, 412);
    assert_eq!(second.get("large.iso", &format!("If-Range: {etag}\r\nRange: bytes=1-\r\n")).2, b"other");
}

#[test]
fn https_with_our_own_authority() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let authority = TestAuthority::new(&PKCS_RSA_SHA256);
    let issued = authority.issue("127.0.0.1");
    fs::write(path("ca.pem"), &authority.certificate_pem).unwrap();
    fs::write(path("chain.pem"), &issued.chain_pem).unwrap();
    fs::write(path("key.pem"), &issued.key_pem).unwrap();
    let server = start(|settings| {
        settings.tls = Some(TlsSettings { certificate: path("chain.pem"), key: path("key.pem") });
        let address = settings.listeners[0].address;
        settings.listeners.push(Listener { is_secure: true, ..Listener::plain(address) });
    });
    let secure = server.running.as_ref().unwrap().addresses()[1];
    let url = format!("https://{secure}/large.iso");
    let ca = path("ca.pem").display().to_string();
    let Some(body) = curl(&["--cacert", &ca, &url]) else { return };
    assert!(body == *large());
    assert!(
        curl(&["--cacert", &ca, "-r", "5-9", "--tlsv1.2", "--tls-max", "1.2", &url]).unwrap()
            == large()[5..10]
    );
    let refused = run("curl", &["-sS", "--noproxy", "*", "--max-time", "60", &url]).unwrap();
    assert!(!refused.status.success(), "without the authority it is not trusted");
    // Plain text to the secure port ends, and does not hang.
    let mut stream = TcpStream::connect(secure).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"));
}

/// A renewed certificate, as a real TLS client sees it; and a half-written one, which changes nothing.
#[test]
fn a_renewed_certificate_is_shown_to_the_next_client() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let authority = TestAuthority::new(&PKCS_ECDSA_P256_SHA256);
    fs::write(path("ca.pem"), &authority.certificate_pem).unwrap();
    let write = || {
        let issued = authority.issue("127.0.0.1");
        fs::write(path("chain.pem"), &issued.chain_pem).unwrap();
        fs::write(path("key.pem"), &issued.key_pem).unwrap();
        let chain = path("chain.pem").display().to_string();
        let output = run("openssl", &["x509", "-noout", "-fingerprint", "-sha256", "-in", &chain])?;
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let Some(first) = write() else { return };
    let server = start(|settings| {
        settings.tls = Some(TlsSettings { certificate: path("chain.pem"), key: path("key.pem") });
        settings.listeners[0].is_secure = true;
    });
    let address = server.address().to_string();
    let ca = path("ca.pem").display().to_string();
    let shown = || {
        let client = ["s_client", "-verify_return_error", "-CAfile", &ca, "-connect", &address];
        let client = run("openssl", &client).unwrap();
        assert!(client.status.success(), "{}", String::from_utf8_lossy(&client.stderr));
        fs::write(path("shown"), &client.stdout).unwrap();
        let shown = path("shown").display().to_string();
        let output = run("openssl", &["x509", "-noout", "-fingerprint", "-sha256", "-in", &shown]).unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let running = server.running.as_ref().unwrap();
    assert_eq!(shown(), first);
    assert!(!running.reload_certificate().unwrap());
    let second = write().unwrap();
    assert_ne!(second, first);
    assert!(running.reload_certificate().unwrap());
    assert_eq!(shown(), second);
    fs::write(path("key.pem"), "half").unwrap();
    assert!(matches!(running.reload_certificate(), Err(TlsError::Pem { .. })));
    assert_eq!(shown(), second);
}

#[test]
fn hostile_heads_get_a_status_and_nothing_of_their_own_back() {
    let server = start(|_| {});
    let long = "x".repeat(20_000);
    let many = "A: b\r\n".repeat(100);
    for (head, status) in [
        ("GET /marker HTTP/1.1\r\nHost: a\r\nmarker marker\r\n\r\n".to_owned(), 400),
        ("GET /marker%zz HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("GET marker HTTP/1.1\r\nHost: a\r\n\r\n".into(), 400),
        ("\x16\x03\x01marker\r\n\r\n".into(), 400),
        (format!("GET /marker{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 414),
        (format!("GET /marker HTTP/1.1\r\nHost: a\r\nmarker: {long}\r\n\r\n"), 431),
        (format!("GET /marker HTTP/1.1\r\nHost: a\r\n{many}\r\n"), 431),
        ("GET /marker HTTP/3.0\r\n\r\n".into(), 505),
        ("POST /marker HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nmarker".into(), 405),
        ("GET /small.efi HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nmarker".into(), 413),
        ("DELETE /marker HTTP/1.0\r\n\r\n".into(), 405),
        ("GET /marker%0d%0amarker: HTTP/1.0\r\n\r\n".into(), 404),
    ] {
        let answer = server.text(&head);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head:.60}: {answer}");
        assert!(!answer.contains("marker"), "{answer}");
        assert_eq!(answer.contains("Allow: GET, HEAD"), status == 405);
    }
    let heard = server.heard.0.lock().unwrap();
    assert!(heard.iter().all(|line| !line.contains(['\r', '\n'])), "{heard:?}");
}

#[test]
fn no_path_leads_out() {
    let server = start(|_| {});
    for path in [
        "../outside",
        "%2e%2e/outside",
        "..%2foutside",
        "x/../../outside",
        "..%5coutside",
        "..\\outside",
        "%2e%2e%5c%2e%2e%5cetc%5cpasswd",
        "secret/..%2f..%2foutside",
        "//../outside",
        "%c0%ae%c0%ae/outside",
        "http://x/../outside",
        ".%2e/outside",
        "SECRET/key",
        "%73ecret/key",
        "secret%2fkey",
        "secret\\key",
    ] {
        let (status, _, body) = server.get(path, "");
        assert!(matches!(status, 400 | 403 | 404), "{path}: {status}");
        assert!(!String::from_utf8_lossy(&body).contains("outside"), "{path}");
    }
    assert_eq!(
        server.text("GET http://any.example/small.efi HTTP/1.0\r\n\r\n").lines().last(),
        Some("0123456789")
    );
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = start(|_| {});
    let one = "GET /small.efi HTTP/1.1\r\nHost: a\r\n\r\n";
    let last = "GET /empty HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let answer = server.text(&format!("\r\n{}{last}", one.repeat(2000)));
    assert_eq!(answer.matches("HTTP/1.1 200 OK\r\n").count(), 2001);
    assert_eq!(answer.matches("0123456789").count(), 2000);
}

#[test]
fn slow_heads_end_and_slow_readers_too() {
    let server = start(|settings| {
        settings.limits.head = Duration::from_millis(300);
        settings.limits.idle = Duration::from_millis(300);
        settings.limits.stall = Duration::from_millis(300);
    });
    // Never a head, half a head, and a kept connection without a next request.
    assert!(server.raw("").is_empty());
    assert!(server.raw("GET / HT").is_empty());
    assert!(server.text("GET /small.efi HTTP/1.1\r\nHost: a\r\n\r\n").ends_with("0123456789"));
    // Reads nothing: what the kernel's buffers do not take is never sent, and the server does not wait for ever.
    fs::write(server.folder.path().join("tree/huge"), vec![0; 64 << 20]).unwrap();
    let mut stream = server.connect();
    stream.write_all(b"GET /huge HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    goldwire_stdx::testing::until("a client that reads nothing is given up", || {
        server.heard.0.lock().unwrap().iter().any(|line| line.starts_with("sent huge 0 false"))
    });
}

#[test]
fn one_address_cannot_take_all_connections() {
    let server = start(|settings| settings.limits.connections_per_address = 2);
    let mut held = [server.connect(), server.connect()];
    for stream in &mut held {
        stream.write_all(b"GET /small.efi HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        stream.read_exact(&mut [0; 20]).unwrap();
    }
    assert!(server.raw("GET /small.efi HTTP/1.1\r\nHost: a\r\n\r\n").is_empty());
    drop(held);
    let deadline = std::time::Instant::now() + PATIENCE;
    while server.raw("GET /small.efi HTTP/1.0\r\n\r\n").is_empty() {
        assert!(std::time::Instant::now() < deadline);
    }
}

#[test]
fn a_balancers_word_counts_only_where_it_is_named() {
    let client = "PROXY TCP4 192.0.2.7 10.0.0.1 40000 80\r\nGET /nothing HTTP/1.0\r\n\r\n";
    let server = start(|settings| settings.listeners[0].balancers = vec!["127.0.0.0/31".parse().unwrap()]);
    assert!(server.text(client).starts_with("HTTP/1.1 404 "));
    // The client's hardware address is not the balancer's.
    assert!(server.heard.0.lock().unwrap().contains(&"refused nothing: no such file".to_owned()));
    assert!(server.raw("GET /small.efi HTTP/1.0\r\n\r\n").is_empty(), "without a header");
    let server = start(|settings| settings.listeners[0].balancers = vec!["127.0.0.2".parse().unwrap()]);
    assert!(server.text(client).starts_with("HTTP/1.1 505 "), "from elsewhere it is no request");
    assert!(server.text("GET /small.efi HTTP/1.0\r\n\r\n").ends_with("0123456789"));
}

#[test]
fn health_and_metrics() {
    let server = start(|settings| settings.metrics = Some(Arc::new(|| "up 1\n".into())));
    let (status, _, body) = server.get("health", "");
    assert_eq!((status, body.as_slice()), (200, b"alive\n".as_slice()));
    let (_, head, body) = server.get("health", "Accept: application/json\r\n");
    assert_eq!(header(&head, "Content-Type"), Some("application/json"));
    assert_eq!(body, b"{\"well\":true,\"reason\":\"alive\"}\n");
    assert_eq!(server.get("metrics", "").2, b"up 1\n");
    server.running.as_ref().unwrap().drain();
    let (status, head, body) = split(&server.raw("GET /health HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert_eq!(
        (status, body.as_slice(), header(&head, "Connection")),
        (503, b"draining\n".as_slice(), Some("close"))
    );
    assert_eq!(server.get("small.efi", "").0, 200, "it still serves");
    assert_eq!(start(|_| {}).get("metrics", "").0, 404);
}

#[test]
fn stopping_lets_transfers_end_and_takes_nothing_new() {
    let mut server = start(|_| {});
    let address = server.address();
    let mut idle = server.connect();
    idle.write_all(b"GET /small.efi HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut busy = server.connect();
    fs::write(server.folder.path().join("tree/huge"), vec![1; 32 << 20]).unwrap();
    busy.write_all(b"GET /huge HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    busy.read_exact(&mut [0; 1000]).unwrap();
    let running = server.running.take().unwrap();
    let stopping = goldwire_stdx::spawn("test", move || running.stop(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    busy.read_to_end(&mut rest).unwrap();
    assert!(rest.len() > (32 << 20) - 1000);
    idle.read_to_end(&mut Vec::new()).unwrap();
    stopping.join().unwrap();
    assert!(TcpStream::connect(address).is_err());
}

// Old iPXE cannot follow a redirect to HTTPS (https://github.com/FOGProject/fogproject/issues/978): nothing here is
// ever a redirect, and what is served by HTTPS is served by HTTP, with the same ETag (see the test of HTTPS).
