//! Real clients, in a network namespace of the test's own, against the driver with its real sockets and a real log.
//!
//! These need root and `ip`; each also needs its client. What is missing is said on stderr and skipped.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use goldwire_stdx::testing;

use super::lan::{Lan, start};
use super::setup::*;
use crate::dhcp::driver::{DriverSettings, Ports, Running, bind};
use crate::dhcp::lease::AddressRange;
use crate::dhcp::server::{Settings, Subnet};
use crate::dhcp::wire::{Message, MessageType, code};
use crate::network::NetworkV4;

/// A server on a loopback port, for relays; answers go to `relay_port`.
fn on_loopback(relay_port: u16, folder: &Path) -> Running {
    let mut subnet = Subnet::new(NetworkV4::new(ip("127.0.0.0"), 8).unwrap());
    subnet.pools = vec![AddressRange { first: ip("127.16.0.0"), last: ip("127.31.255.255") }];
    let settings = DriverSettings {
        addresses: vec!["127.0.0.1:0".parse().unwrap()],
        ports: Ports { relay: relay_port, binl: None, ..Ports::default() },
        ..DriverSettings::default()
    };
    start(bind(&settings).unwrap(), Settings::new("loopback", vec![subnet]), folder)
}

#[test]
fn dhclient_gets_a_lease_keeps_it_after_a_restart_and_leaves_a_wrong_one() {
    let Some(lan) = Lan::new("d", "dhclient") else { return };
    let script = lan.script("");
    let line = format!("dhclient -4 -1 -v -sf {script} -lf leases -pf pid -cf /dev/null c0");
    let running = lan.serve();
    File::create(lan.folder.path().join("leases")).unwrap();
    let said = lan.run(&line);
    assert!(said.contains("DHCPOFFER of 10.0.0.100") && said.contains("bound to 10.0.0.100"), "{said}");
    lan.run("dhclient -x -pf pid -lf leases c0");
    // Both are restarted: INIT-REBOOT, answered from the log.
    running.stop();
    let _running = lan.serve();
    let said = lan.run(&line);
    assert!(!said.contains("DHCPDISCOVER") && said.contains("bound to 10.0.0.100"), "{said}");
    lan.run("dhclient -x -pf pid -lf leases c0");
    // It comes from another network.
    let path = lan.folder.path().join("leases-of-elsewhere");
    let leases = fs::read_to_string(lan.folder.path().join("leases")).unwrap();
    fs::write(&path, leases.replace("10.0.0.100", "192.168.7.9")).unwrap();
    let said = lan.run(&line.replace("-lf leases", "-lf leases-of-elsewhere"));
    assert!(said.contains("DHCPNAK") && said.contains("bound to 10.0.0.100"), "{said}");
    lan.run("dhclient -x -pf pid -lf leases-of-elsewhere c0");
}

#[test]
fn udhcpc_gets_a_lease_and_renews_it_by_unicast() {
    let Some(lan) = Lan::new("u", "udhcpc") else { return };
    let _running = lan.serve();
    let script = lan.script("[ \"$1\" = bound ] && ip addr add $ip/24 dev $interface");
    let mut client = lan
        .command(&format!("udhcpc -i c0 -f -n -R -s {script}"))
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (sender, lines) = mpsc::channel();
    let stderr = client.stderr.take().unwrap();
    goldwire_stdx::spawn("test", move || {
        BufReader::new(stderr).lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
    })
    .unwrap();
    let wait_for = |text: &str| {
        let mut seen = Vec::new();
        while let Ok(line) = lines.recv_timeout(Duration::from_secs(60)) {
            seen.push(line.clone());
            if line.contains(text) {
                return true;
            }
        }
        eprintln!("{seen:?}");
        false
    };
    let is_bound = wait_for("lease of 10.0.0.100 obtained");
    // `ip netns exec` becomes the client, so this is its process.
    let pid = rustix::process::Pid::from_child(&client);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    let is_renewed = wait_for("sending renew to server 10.0.0.1") && wait_for("lease of 10.0.0.100 obtained");
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(is_bound && is_renewed);
}

#[test]
fn dhcpcd_and_nmap_understand_the_answers() {
    let Some(lan) = Lan::new("n", "nmap") else { return };
    let _running = lan.serve();
    // Its script looks only at interfaces that have an address.
    lan.run("ip addr add 10.0.0.77/24 dev c0");
    let said = lan.run("nmap --script broadcast-dhcp-discover -e c0");
    assert!(said.contains("IP Offered: 10.0.0.1") && said.contains("Server Identifier: 10.0.0.1"), "{said}");
    assert!(said.contains("Domain Name: lab.example"), "{said}");
    if testing::program("dhcpcd").is_none() {
        return;
    }
    let said = lan.run("unshare -pf --kill-child dhcpcd -B -T -4 -t 20 -f /dev/null c0");
    assert!(said.contains("new_ip_address=10.0.0.1") || said.contains("offered 10.0.0.1"), "{said}");
}

#[test]
fn perfdhcp_gets_a_thousand_leases_over_a_relay_and_they_outlive_the_server() {
    if testing::program("perfdhcp").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Its port is given before it runs, so it is one that is free now.
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let running = on_loopback(port, folder.path());
    let server = running.addresses()[0].port();
    let line = format!("-4 -l 127.0.0.1 -L {port} -N {server} -r 200 -R 100000 -n 1000 -W 3000000 127.0.0.1");
    let output = Command::new("perfdhcp").args(line.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let received: Vec<u64> = said
        .lines()
        .filter_map(|line| line.strip_prefix("received packets: ")?.trim().parse().ok())
        .collect();
    // A loaded machine may lose some on the way; the client has them or has not.
    assert!(received.len() == 2 && received[1] >= 900, "{said}");
    let leases = |running: &Running| running.leases(None, usize::MAX).unwrap();
    let before = leases(&running);
    assert!(before.len() as u64 >= received[1]);
    running.stop();
    let running = on_loopback(port, folder.path());
    assert_eq!(leases(&running), before);
}

#[test]
fn malformed_packets_from_scapy_do_not_disturb_it() {
    let python = "/usr/bin/python3";
    let has_scapy = Command::new(python).args(["-c", "import scapy"]).stderr(Stdio::null()).status();
    if !has_scapy.is_ok_and(|status| status.success()) {
        return testing::absent("scapy, a module of /usr/bin/python3");
    }
    let folder = tempfile::tempdir().unwrap();
    let relay = UdpSocket::bind("127.0.0.3:0").unwrap();
    relay.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let running = on_loopback(relay.local_addr().unwrap().port(), folder.path());
    let server: SocketAddrV4 = running.addresses()[0];
    let script = format!(
        "import random, socket
from scapy.all import BOOTP, DHCP, fuzz, raw
random.seed(3)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(300):
    p = raw(fuzz(BOOTP(op=1)) / fuzz(DHCP()) if n % 2 else BOOTP(op=1, chaddr=b'\\2' * 6) / DHCP(options=[('message-type', n % 20), ('server_id', '1.2.3.4'), 'end']))
    p = bytearray(p)
    for _ in range(n % 5):
        p[random.randrange(len(p))] = random.randrange(256)
    s.sendto(bytes(p[:random.randrange(1, len(p) + 1)] if n % 3 == 0 else p), ('127.0.0.1', {}))
",
        server.port()
    );
    assert!(Command::new(python).args(["-c", &script]).status().unwrap().success());
    let mut request = discover(mac(1));
    request.giaddr = Ipv4Addr::new(127, 0, 0, 3);
    request.xid = 0x0badcafe;
    let mut buffer = [0; 2048];
    // What the malformed ones led to comes first.
    for _ in 0..20 {
        relay.send_to(&request.encode(548), server).unwrap();
        while let Ok((length, _)) = relay.recv_from(&mut buffer) {
            let reply = Message::decode(&buffer[..length]).unwrap();
            if reply.xid == request.xid && reply.kind() == Some(MessageType::OFFER) {
                assert!(reply.options.has(code::LEASE_TIME));
                return;
            }
        }
    }
    panic!("no answer after malformed packets");
}
