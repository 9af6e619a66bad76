//! Real servers on a link of its own, and what the doctor finds of them.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use goldwire_stdx::testing;

use super::*;

/// A network of its own: a bridge with the doctor's address, and servers in namespaces behind it.
struct Lab {
    names: Vec<String>,
    servers: Vec<Child>,
    folder: tempfile::TempDir,
}

impl Lab {
    /// None, and a word about it, without root or a tool.
    fn new() -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        testing::program("dnsmasq")?;
        let base = format!("gwdoc{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let mut lab = Self { names: Vec::new(), servers: Vec::new(), folder: tempfile::tempdir().unwrap() };
        for part in ["c", "a", "b"] {
            let name = format!("{base}{part}");
            if !ip(&format!("netns add {name}")) {
                testing::excuse(testing::Excuse::NoNamespaces);
                return None;
            }
            lab.names.push(name);
        }
        let [client, a, b] = [0, 1, 2].map(|at| lab.names[at].clone());
        let mut lines = vec![
            format!("-n {client} link set lo up"),
            format!("-n {client} link add br0 type bridge"),
            format!("-n {client} addr add {OWN}/24 dev br0"),
            format!("-n {client} link set br0 up"),
        ];
        for (name, port, address) in [(a, "p1", SERVER), (b, "p2", OTHER)] {
            lines.push(format!("-n {client} link add {port} type veth peer name eth0 netns {name}"));
            lines.push(format!("-n {client} link set {port} master br0 up"));
            lines.push(format!("-n {name} addr add {address}/24 dev eth0"));
            lines.push(format!("-n {name} link set eth0 up"));
            lines.push(format!("-n {name} link set lo up"));
        }
        for line in lines {
            assert!(ip(&line), "ip {line}");
        }
        let root = lab.folder.path();
        std::fs::write(root.join("undionly.kpxe"), vec![1; 4000]).unwrap();
        std::fs::write(root.join("snponly.efi"), [b"MZ".to_vec(), vec![1; 4000]].concat()).unwrap();
        Some(lab)
    }

    /// dnsmasq in the first or second server's namespace. Each line is an option without its dashes.
    fn dnsmasq(&mut self, server: usize, lines: &str) {
        let root = self.folder.path().display().to_string();
        let lines = lines.replace("ROOT", &root);
        let ready = self.folder.path().join(format!("pid{server}"));
        let child = Command::new("ip")
            .args(["netns", "exec", &self.names[1 + server], "/usr/sbin/dnsmasq", "--keep-in-foreground"])
            .args(
                "--conf-file=/dev/null --port=0 --no-ping --leasefile-ro --user=root --interface=eth0"
                    .split(' '),
            )
            .args([format!("--pid-file={}", ready.display()), "--log-facility=/dev/null".into()])
            .args(lines.split_whitespace().map(|line| format!("--{line}")))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.servers.push(child);
        // It writes its number when its sockets are open.
        goldwire_stdx::testing::until("dnsmasq starts", || ready.exists());
    }

    /// An HTTP server on port 80 of the first (0) or second (1) server; gives `tag` as ETag.
    fn http(&self, server: usize, tag: &'static str) {
        let name = self.names[1 + server].clone();
        let (sender, ready) = std::sync::mpsc::channel();
        goldwire_stdx::spawn("test", move || {
            enter(&name);
            let listener = TcpListener::bind("0.0.0.0:80").unwrap();
            sender.send(()).unwrap();
            for stream in listener.incoming() {
                let _ = answer(stream.unwrap(), tag);
            }
        })
        .unwrap();
        ready.recv().unwrap();
    }

    fn examine(&self, reach: Reach, clients: &[Client], members: &[Member]) -> Vec<Diagnosis> {
        let settings = DoctorSettings {
            reach,
            mac: None,
            clients: clients.to_vec(),
            members: members.to_vec(),
            wait: Duration::from_secs(2),
        };
        let name = self.names[0].clone();
        goldwire_stdx::spawn("test", move || {
            enter(&name);
            examine(&settings).unwrap()
        })
        .unwrap()
        .join()
        .unwrap()
    }

    /// Broadcast, each client; what is wrong with each.
    #[track_caller]
    fn expect(&self, expected: &[(Client, &[&str])]) {
        let clients: Vec<Client> = expected.iter().map(|(client, _)| *client).collect();
        for (diagnosis, (client, codes)) in
            self.examine(Reach::Interface("br0".into()), &clients, &[]).iter().zip(expected)
        {
            let said: Vec<String> = diagnosis.findings.iter().map(ToString::to_string).collect();
            assert_eq!(self::codes(&diagnosis.findings), *codes, "{client:?}\n{}", said.join("\n"));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.servers {
            let _ = child.kill();
            let _ = child.wait();
        }
        for name in &self.names {
            ip(&format!("netns del {name}"));
        }
    }
}

fn ip(line: &str) -> bool {
    let status = Command::new("ip").args(line.split_whitespace()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Moves this thread, and no other, into a namespace.
fn enter(name: &str) {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    let kind = rustix::thread::LinkNameSpaceType::Network;
    rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(kind)).unwrap();
}

/// `boot.efi`, and a script that names it and a file that is not there.
fn answer(stream: std::net::TcpStream, tag: &str) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    stream.read_line(&mut request)?;
    let (mut line, mut is_part) = (String::new(), false);
    while stream.read_line(&mut line)? > 2 {
        is_part |= line.to_ascii_lowercase().starts_with("range:");
        line.clear();
    }
    let body: &[u8] = match request.split(' ').nth(1) {
        Some("/boot.efi") => b"MZ and so on",
        Some("/boot.ipxe") => b"#!ipxe\nkernel http://10.99.0.1/boot.efi\n",
        Some("/broken.ipxe") => {
            b"#!ipxe\nimgfetch http://10.99.0.1/gone || imgfetch http://10.99.0.1/boot.efi || goto failed\n\
              kernel http://10.99.0.1/missing\nboot\n"
        }
        Some("/page.ipxe") => b"<html>Welcome</html>",
        _ => return stream.get_mut().write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    };
    let length = body.len();
    let status = if is_part {
        format!("206 Partial\r\nContent-Range: bytes 0-{}/{length}", length - 1)
    } else {
        "200 OK".into()
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: \"{tag}\"\r\n\r\n");
    let body = if request.starts_with("HEAD") { b"" } else { body };
    stream.get_mut().write_all(&[head.as_bytes(), body].concat())
}

const POOL: &str = "dhcp-range=10.99.0.100,10.99.0.150,60 dhcp-authoritative";
const MATCHES: &str = "dhcp-match=set:ipxe,175 dhcp-match=set:bios,option:client-arch,0 \
     dhcp-match=set:efi,option:client-arch,7 dhcp-match=set:http,option:client-arch,16";
const TFTP: &str = "enable-tftp tftp-root=ROOT";
const GOOD: &str = "dhcp-boot=tag:bios,undionly.kpxe dhcp-boot=tag:efi,tag:!ipxe,snponly.efi \
     dhcp-boot=tag:ipxe,http://10.99.0.1/boot.ipxe dhcp-boot=tag:http,http://10.99.0.1/boot.efi \
     dhcp-option-force=tag:http,60,HTTPClient dhcp-option-force=tag:ipxe,175,b0:01:01";

#[test]
fn a_good_set_up_is_good() {
    let Some(mut lab) = Lab::new() else { return };
    lab.dnsmasq(0, &[POOL, MATCHES, TFTP, GOOD].join(" "));
    lab.http(0, "same");
    lab.http(1, "same");
    let members = [member("a", SERVER), member("b", OTHER)];
    for diagnosis in lab.examine(Reach::Interface("br0".into()), &Client::ALL, &members) {
        let said: Vec<String> = diagnosis.findings.iter().map(ToString::to_string).collect();
        assert_eq!(diagnosis.level(), Level::Ok, "{:?}\n{}", diagnosis.client, said.join("\n"));
        let is_url = matches!(diagnosis.client, Client::HttpBoot | Client::Ipxe);
        let last = if is_url { "member" } else { "tftp" };
        assert_eq!(diagnosis.findings.last().unwrap().code, last, "{}", said.join("\n"));
    }
    // The same in the place of a relay.
    let relay = Reach::Relay { own: OWN, server: SERVER };
    for diagnosis in lab.examine(relay, &[Client::EfiPxe, Client::Ipxe], &[]) {
        assert_eq!(diagnosis.level(), Level::Ok, "{diagnosis:?}");
    }
}

#[test]
fn silence_has_four_names() {
    let Some(lab) = Lab::new() else { return };
    lab.expect(&[
        (Client::BiosPxe, &["PXE-E51"]),
        (Client::EfiPxe, &["PXE-E16"]),
        (Client::HttpBoot, &["http-boot-timeout"]),
        (Client::Ipxe, &["ipxe-040ee119"]),
    ]);
}

#[test]
fn an_address_without_a_boot_file() {
    let Some(mut lab) = Lab::new() else { return };
    lab.dnsmasq(0, POOL);
    lab.expect(&[
        (Client::BiosPxe, &["PXE-E53"]),
        (Client::EfiPxe, &["PXE-E16"]),
        (Client::HttpBoot, &["http-boot-timeout"]),
        (Client::Ipxe, &["ipxe-proxy-wait", "ipxe-2d03e13b"]),
    ]);
}

#[test]
fn files_that_are_not_there() {
    let Some(mut lab) = Lab::new() else { return };
    let boot = "dhcp-boot=tag:bios,missing.kpxe dhcp-boot=tag:efi,tag:!ipxe,missing.efi \
         dhcp-boot=tag:ipxe,http://10.99.0.1/missing.ipxe dhcp-boot=tag:http,http://10.99.0.1/missing.efi \
         dhcp-option-force=tag:http,60,HTTPClient dhcp-option-force=tag:ipxe,175,b0:01:01";
    lab.dnsmasq(0, &[POOL, MATCHES, TFTP, boot].join(" "));
    lab.http(0, "x");
    lab.expect(&[
        (Client::BiosPxe, &["PXE-E3B"]),
        (Client::EfiPxe, &["PXE-E23"]),
        (Client::HttpBoot, &["http-boot-nbp-size"]),
        (Client::Ipxe, &["ipxe-2d"]),
    ]);
}

#[test]
fn servers_that_are_not_there() {
    let Some(mut lab) = Lab::new() else { return };
    lab.dnsmasq(0, &[POOL, MATCHES, GOOD].join(" "));
    lab.expect(&[
        // dnsmasq names itself as router.
        (Client::BiosPxe, &["PXE-E32", "next-server-is-router"]),
        (Client::EfiPxe, &["PXE-E18", "next-server-is-router"]),
        (Client::HttpBoot, &["http-boot-nbp-size"]),
        (Client::Ipxe, &["ipxe-4c"]),
    ]);
}

#[test]
fn answers_in_the_wrong_dialect() {
    let Some(mut lab) = Lab::new() else { return };
    // The URL for PXE, option 60 missing for HTTP Boot and present without 43 for EFI PXE, iPXE for iPXE.
    let boot = "dhcp-boot=tag:bios,http://10.99.0.1/boot.ipxe dhcp-boot=tag:efi,snponly.efi \
         dhcp-boot=tag:http,http://10.99.0.1/boot.efi dhcp-option-force=tag:efi,60,PXEClient \
         dhcp-option-force=tag:ipxe,175,b0:01:01";
    lab.dnsmasq(0, &[POOL, MATCHES, TFTP, boot].join(" "));
    lab.expect(&[
        (Client::BiosPxe, &["PXE-E3B"]),
        (Client::EfiPxe, &["PXE-E16"]),
        (Client::HttpBoot, &["http-boot-timeout"]),
        (Client::Ipxe, &["ipxe-loop"]),
    ]);
}

#[test]
fn two_servers_and_a_broken_script() {
    let Some(mut lab) = Lab::new() else { return };
    let boot = "dhcp-boot=tag:bios,undionly.kpxe dhcp-boot=tag:ipxe,http://10.99.0.1/broken.ipxe \
         dhcp-option-force=tag:ipxe,175,b0:01:01";
    for server in 0..2 {
        lab.dnsmasq(server, &[POOL, MATCHES, TFTP, boot].join(" "));
    }
    lab.http(0, "one");
    // Both are authoritative: whose address is asked for is refused by the other.
    let diagnoses = lab.examine(Reach::Interface("br0".into()), &[Client::BiosPxe, Client::Ipxe], &[]);
    for diagnosis in &diagnoses {
        assert!(codes(&diagnosis.findings).contains(&"two-dhcp-servers"), "{diagnosis:?}");
    }
    // One of two places is a warning; the only place of a file is an error.
    let [.., one_of_two, only] = &diagnoses[1].findings[..] else { panic!("{diagnoses:?}") };
    assert_eq!((one_of_two.level, one_of_two.code), (Level::Warning, "script-link"), "{one_of_two}");
    assert!(one_of_two.what.contains("/gone"), "{one_of_two}");
    assert_eq!((only.level, only.code), (Level::Error, "ipxe-2d"), "{only}");
    assert!(only.what.contains("http://10.99.0.1/missing: status 404"), "{only}");
}

#[test]
fn a_proxy_beside_a_dhcp_server() {
    let Some(mut lab) = Lab::new() else { return };
    lab.dnsmasq(0, POOL);
    let proxy = "dhcp-range=10.99.0.0,proxy pxe-service=x86PC,boot,undionly.kpxe,10.99.0.2 \
         pxe-service=X86-64_EFI,boot,snponly.efi,10.99.0.2";
    lab.dnsmasq(1, &[TFTP, proxy].join(" "));
    lab.expect(&[(Client::BiosPxe, &[]), (Client::EfiPxe, &[])]);
}

#[test]
fn members_that_differ_and_a_page_for_a_script() {
    let Some(mut lab) = Lab::new() else { return };
    let boot = "dhcp-boot=tag:ipxe,http://10.99.0.1/page.ipxe dhcp-boot=tag:http,http://10.99.0.1/boot.efi \
         dhcp-option-force=tag:http,60,HTTPClient dhcp-option-force=tag:ipxe,175,b0:01:01";
    lab.dnsmasq(0, &[POOL, MATCHES, boot].join(" "));
    lab.http(0, "one");
    lab.http(1, "two");
    let members = [member("a", SERVER), member("b", OTHER), member("c", Ipv4Addr::new(10, 99, 0, 3))];
    let clients = [Client::HttpBoot, Client::Ipxe];
    let diagnoses = lab.examine(Reach::Interface("br0".into()), &clients, &members[..2]);
    assert_eq!(codes(&diagnoses[0].findings), ["member"], "{diagnoses:?}");
    assert!(diagnoses[0].findings.last().unwrap().what.contains("another ETag"));
    assert_eq!(codes(&diagnoses[1].findings), ["ipxe-2e008081", "member"], "{diagnoses:?}");
    let dead =
        lab.examine(Reach::Interface("br0".into()), &clients[..1], &[members[0].clone(), members[2].clone()]);
    assert!(dead[0].findings.last().unwrap().what.contains("member c does not answer"), "{dead:?}");
}

/// A TFTP server that breaks the rules: answers from another address, or with options that nobody asked for.
#[test]
fn tftp_servers_that_break_the_rules() {
    let Some(mut lab) = Lab::new() else { return };
    let boot = "dhcp-boot=tag:bios,odd-options dhcp-boot=tag:efi,other-address";
    lab.dnsmasq(0, &[POOL, MATCHES, boot].join(" "));
    let name = lab.names[1].clone();
    assert!(ip(&format!("-n {name} addr add 10.99.0.11/24 dev eth0")));
    let (sender, ready) = std::sync::mpsc::channel();
    goldwire_stdx::spawn("test", move || {
        enter(&name);
        let socket = UdpSocket::bind((SERVER, 69)).unwrap();
        let other = UdpSocket::bind("10.99.0.11:0").unwrap();
        sender.send(()).unwrap();
        let mut packet = [0; 600];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let is_odd = packet[..length].windows(3).any(|part| part == b"odd");
            let _ = if is_odd {
                socket.send_to(b"\0\x06tsize\x0010\0windowsize\x008\0", from)
            } else {
                other.send_to(b"\0\x06tsize\x0010\0", from)
            };
        }
    })
    .unwrap();
    ready.recv().unwrap();
    lab.expect(&[(Client::BiosPxe, &["PXE-E36"]), (Client::EfiPxe, &["PXE-E18", "next-server-is-router"])]);
}

/// A DHCP server that offers and then refuses, as one does that has just been told of another network.
#[test]
fn a_server_that_offers_and_refuses() {
    let Some(lab) = Lab::new() else { return };
    let name = lab.names[1].clone();
    let (sender, ready) = std::sync::mpsc::channel();
    goldwire_stdx::spawn("test", move || {
        enter(&name);
        let socket = UdpSocket::bind("0.0.0.0:67").unwrap();
        socket.set_broadcast(true).unwrap();
        // Without a route to everywhere, a broadcast needs to be told its interface.
        socket2::SockRef::from(&socket).bind_device(Some(b"eth0")).unwrap();
        sender.send(()).unwrap();
        let mut packet = [0; 2000];
        while let Ok((length, _)) = socket.recv_from(&mut packet) {
            let request = Message::decode(&packet[..length]).unwrap();
            let is_discover = request.kind() == Some(MessageType::DISCOVER);
            let kind = if is_discover { MessageType::OFFER } else { MessageType::NAK };
            let mut reply = Message::reply_to(&request, kind);
            reply.options.set(code::SERVER_ID, SERVER.octets());
            if is_discover {
                reply.yiaddr = LEASE;
                reply.siaddr = SERVER;
                reply.file = b"undionly.kpxe".to_vec();
            }
            let _ = socket.send_to(&reply.encode(548), "255.255.255.255:68");
        }
    })
    .unwrap();
    ready.recv().unwrap();
    lab.expect(&[(Client::BiosPxe, &["PXE-E51"]), (Client::EfiPxe, &["PXE-E18"])]);
}
