//! Strangers who ask for everything and take nothing, against a boot server and a balancing front: what they cost, and
//! whether anybody else is served meanwhile.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::site::{Server, Site, fetch};
use crate::sync::text;

/// Most that all strangers together may cost, in bytes.
const COST_MAX: u64 = 100 << 20;
/// What a boot server takes; a front takes half of it.
const CONNECTIONS: usize = 8100;
/// What one address may have.
const OF_ADDRESS: usize = 500;

/// Whoever does not end his request, and whoever reads no answer.
#[test]
fn a_boot_server_is_paid_for_by_nobody_but_itself() {
    let Some((site, server)) = Site::with_server() else { return };
    fs::write(site.scene.path("root/small"), vec![7; 60_000]).unwrap();
    let idle = peak_of(&server);
    let address: SocketAddr = server.http().parse().unwrap();
    let honest = || assert_eq!(fetch(&format!("http://{address}/linux")), (0, b"a kernel".to_vec()));
    for (what, request) in requests() {
        let strangers = flood(address, CONNECTIONS, &request);
        honest();
        drop(strangers);
        assert_cheap(what, &server, idle);
    }
    let page: SocketAddr = server.address_of("metrics").parse().unwrap();
    let strangers =
        flood(page, CONNECTIONS, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50).as_slice());
    honest();
    drop(strangers);
    assert_cheap("metrics", &server, idle);
    let tftp: SocketAddr = server.tftp().parse().unwrap();
    let strangers = ask_by_tftp(tftp, 4500);
    assert_eq!(fetch(&format!("tftp://{tftp}/linux")), (0, b"a kernel".to_vec()));
    drop(strangers);
    assert_cheap("TFTP", &server, idle);
}

/// Members know the front's clients by the PROXY protocol, so that one client's limits are not everybody's.
#[test]
fn a_balancing_front_is_paid_for_by_nobody_but_itself() {
    let site = Site::new();
    let believing = site.file().replace("[http]\n", "[http]\nproxy-protocol-from = ['127.0.0.1']\n");
    fs::write(&site.config, believing).unwrap();
    let Some(server) = site.serve() else { return };
    fs::write(site.scene.path("root/small"), vec![7; 60_000]).unwrap();
    let port = |address: String| address.rsplit_once(':').unwrap().1.to_owned();
    let front = site.scene.path("front.toml");
    let file = format!(
        "default-profile = 'a'\n[server]\nname = 'm'\n[profile.a]\nlocal = true\n\
         [[member]]\nname = 'm'\naddress = '127.0.0.1'\nhttp-port = {}\ntftp-port = {}\n",
        port(server.http()),
        port(server.tftp())
    );
    fs::write(&front, file).unwrap();
    let words = ["balance", "--config", text(&front), "--send-proxy-protocol", "--http", "127.0.0.1:0"];
    let words = [&words[..], &["--tftp", "127.0.0.1:0"]].concat();
    let Some(balance) = Server::start(&site.scene, &words) else { return };
    let address: SocketAddr = balance.http().parse().unwrap();
    let honest = || fetch(&format!("http://{address}/linux"));
    goldwire_stdx::testing::until("a member lives", || honest().0 == 0);
    let idle = peak_of(&balance);
    for (what, request) in requests() {
        let strangers = flood(address, CONNECTIONS / 2, &request);
        // Firmware asks again; so does this.
        goldwire_stdx::testing::until(&format!("an honest client is served beside {what}"), || {
            honest() == (0, b"a kernel".to_vec())
        });
        drop(strangers);
        assert_cheap(what, &balance, idle);
    }
    let tftp: SocketAddr = balance.tftp().parse().unwrap();
    let strangers = ask_by_tftp(tftp, 4500);
    drop(strangers);
    assert_cheap("TFTP", &balance, idle);
}

fn requests() -> Vec<(&'static str, Vec<u8>)> {
    let ask = |path: &str, times: usize| {
        format!("GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(times).into_bytes()
    };
    let half = format!("GET /linux HTTP/1.1\r\nHost: x\r\nX: {}", "a".repeat(16_200));
    vec![
        ("a head without an end", half.into_bytes()),
        ("small answers", ask("small", 3)),
        ("a large answer", ask("huge", 1)),
        ("scripts", ask("s/-/bios/-/boot.ipxe", 50)),
    ]
}

/// Connections from many addresses of this machine that say this and read nothing. As many as descriptors allow.
fn flood(server: SocketAddr, count: usize, request: &[u8]) -> Vec<TcpStream> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut streams = Vec::new();
    for number in 0..count {
        let Some(stream) = connection_from(number / OF_ADDRESS, server) else { break };
        streams.push(stream);
    }
    assert!(streams.len() > count / 2, "only {} connections", streams.len());
    for mut stream in &streams {
        stream.set_nonblocking(true).unwrap();
        // Whoever was not taken on is told so by a reset.
        let _ = stream.write(request);
    }
    streams
}

fn connection_from(address: usize, server: SocketAddr) -> Option<TcpStream> {
    let local = SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, 1 + address as u8), 0);
    let socket: OwnedFd = socket(AddressFamily::INET, SocketType::STREAM, None).ok()?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 2048).ok()?;
    bind(&socket, &local).ok()?;
    connect(&socket, &server).ok()?;
    Some(socket.into())
}

/// Requests from many ports of many addresses, never followed up.
fn ask_by_tftp(server: SocketAddr, count: usize) -> Vec<UdpSocket> {
    let mut request = b"\0\x01huge\0octet\0blksize\x001468\0windowsize\x0064\0".to_vec();
    let sockets: Vec<UdpSocket> = (0..count)
        .map_while(|number| UdpSocket::bind((Ipv4Addr::new(127, 0, 2, 1 + (number / 200) as u8), 0)).ok())
        .collect();
    for socket in &sockets {
        socket.send_to(&request, server).unwrap();
    }
    // The next one of each asks for another file.
    request[2] = b'x';
    for socket in &sockets {
        socket.send_to(&request, server).unwrap();
    }
    sockets
}

/// The most memory that a server has had so far, in bytes.
fn peak_of(server: &Server) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[track_caller]
fn assert_cheap(what: &str, server: &Server, idle: u64) {
    // Long enough for what was asked to be begun.
    std::thread::sleep(Duration::from_millis(500));
    let cost = peak_of(server).saturating_sub(idle);
    eprintln!("{what}: {} MiB", cost >> 20);
    assert!(cost <= COST_MAX, "{what}: {} MiB", cost >> 20);
}
