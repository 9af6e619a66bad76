use super::judge::{Next, judge};
use super::*;
use crate::device::Mac;
use crate::dhcp::wire::{MessageType, code};
use crate::member::Member;

mod links;

const OWN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 250);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// An offer from `server`; `address` 0.0.0.0 makes it a proxy's.
fn offer(server: Ipv4Addr, address: Ipv4Addr, options: &[(u8, &[u8])]) -> Offer {
    let mut message = Message::request(MessageType::OFFER, Mac([2, 0, 0, 0, 0, 1]), 1);
    message.op = 2;
    message.yiaddr = address;
    message.siaddr = server;
    message.options.set(code::SERVER_ID, server.octets());
    for (code, value) in options {
        message.options.set(*code, *value);
    }
    Offer { from: SocketAddrV4::new(server, 67), message }
}

const LEASE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 100);
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn codes(findings: &[Finding]) -> Vec<&'static str> {
    findings.iter().filter(|finding| finding.level > Level::Ok).map(|finding| finding.code).collect()
}

#[track_caller]
fn check(client: Client, offers: &[Offer], expected: &[&str]) -> Option<Next> {
    let verdict = judge(client, offers, &[]);
    assert_eq!(codes(&verdict.findings), expected, "{client:?} {:?}", verdict.findings);
    verdict.next
}

fn tftp(server: Ipv4Addr, file: &str) -> Option<Next> {
    Some(Next::Fetch(Fetch::Tftp { server, file: file.into() }))
}

fn member(name: &str, address: Ipv4Addr) -> Member {
    Member { name: name.into(), address: address.into(), http_port: 80, https_port: None, https_name: None }
}

#[test]
fn firmware_takes_what_the_real_one_takes() {
    let file: (u8, &[u8]) = (code::BOOT_FILE, b"snponly.efi\0");
    let class: (u8, &[u8]) = (code::VENDOR_CLASS, b"PXEClient");
    let skip: (u8, &[u8]) = (code::VENDOR_SPECIFIC, &[6, 1, 8, 255]);
    let plain = offer(SERVER, LEASE, &[]);
    let proxy = offer(OTHER, NONE, &[file, class, skip]);
    // Seen of OVMF: plain DHCP with a file, and a proxy with 60, 43, server and file.
    assert_eq!(check(Client::EfiPxe, &[offer(SERVER, LEASE, &[file])], &[]), tftp(SERVER, "snponly.efi"));
    assert_eq!(check(Client::EfiPxe, &[plain.clone(), proxy.clone()], &[]), tftp(OTHER, "snponly.efi"));
    // Seen of OVMF: 60 without 43 sends it to port 4011 of the next server, whoever that is.
    let mut binl = offer(OTHER, NONE, &[file, class]);
    let ask = |server| Some(Next::Ask { servers: vec![server], item: None });
    assert_eq!(check(Client::EfiPxe, &[plain.clone(), binl.clone()], &[]), ask(OTHER));
    binl.message.siaddr = SERVER;
    assert_eq!(check(Client::EfiPxe, &[plain.clone(), binl.clone()], &["60-without-43"]), ask(SERVER));
    assert_eq!(check(Client::BiosPxe, &[plain.clone(), binl.clone()], &[]), ask(OTHER));
    binl.message.siaddr = NONE;
    let two = [plain.clone(), binl, offer(SERVER, NONE, &[file, class])];
    assert_eq!(
        check(Client::EfiPxe, &two, &[]),
        Some(Next::Ask { servers: vec![OTHER, SERVER], item: None })
    );
    // A menu: its first entry, at the boot server of that type.
    let menu = [
        9, 8, 0x80, 1, 5, b'f', b'i', b'r', b's', b't', 8, 14, 0x80, 0, 1, 1, 1, 1, 1, 0x80, 1, 1, 10, 99, 0,
        9,
    ];
    let proxy_menu = offer(OTHER, NONE, &[class, (code::VENDOR_SPECIFIC, &menu)]);
    assert_eq!(
        check(Client::BiosPxe, &[plain.clone(), proxy_menu], &[]),
        Some(Next::Ask { servers: vec![Ipv4Addr::new(10, 99, 0, 9)], item: Some(0x8001) })
    );
    // Seen of iPXE: a proxy without a next server is asked on 4011 in vain.
    let mut nowhere = proxy.clone();
    nowhere.message.siaddr = NONE;
    nowhere.message.options.set(code::BOOT_FILE, *b"http://10.99.0.1/x");
    check(Client::Ipxe, &[plain, nowhere], &["ipxe-2d03e13b"]);
}

#[test]
fn what_is_wrong_has_the_code_that_is_seen() {
    let url: (u8, &[u8]) = (code::BOOT_FILE, b"http://boot.example/x.efi");
    let plain = offer(SERVER, LEASE, &[]);
    for (client, nobody, only_proxy, no_file) in [
        (Client::BiosPxe, "PXE-E51", "PXE-E52", "PXE-E53"),
        (Client::EfiPxe, "PXE-E16", "PXE-E16", "PXE-E16"),
        (Client::HttpBoot, "http-boot-timeout", "http-boot-timeout", "http-boot-timeout"),
        (Client::Ipxe, "ipxe-040ee119", "ipxe-040ee119", "ipxe-2d03e13b"),
    ] {
        check(client, &[], &[nobody]);
        check(client, &[offer(SERVER, NONE, &[])], &[only_proxy]);
        let quiet = offer(SERVER, LEASE, &[(code::IPXE, &[0xb0, 1, 1])]);
        check(client, &[quiet], &[no_file]);
    }
    let two = [plain.clone(), offer(OTHER, LEASE, &[(code::BOOT_FILE, b"a")])];
    assert_eq!(check(Client::BiosPxe, &two, &["two-dhcp-servers"]), tftp(OTHER, "a"));
    // Members of one group share a network by pools of their own; whoever is none of them is a stranger.
    let members = [member("a", SERVER), member("b", OTHER)];
    assert_eq!(codes(&judge(Client::BiosPxe, &two, &members).findings), [""; 0]);
    assert_eq!(codes(&judge(Client::BiosPxe, &two, &members[..1]).findings), ["two-dhcp-servers"]);
    check(Client::EfiPxe, &[offer(SERVER, LEASE, &[url])], &["PXE-E23"]);
    check(Client::BiosPxe, &[offer(SERVER, LEASE, &[url])], &["PXE-E3B"]);
    // HTTP Boot: not without 60, no name without DNS, an address before a name.
    let class: (u8, &[u8]) = (code::VENDOR_CLASS, b"HTTPClient");
    check(Client::HttpBoot, &[offer(SERVER, LEASE, &[url])], &["http-boot-timeout"]);
    check(Client::HttpBoot, &[offer(SERVER, LEASE, &[url, class])], &["http-boot-nbp-size"]);
    let literal = offer(OTHER, NONE, &[(code::BOOT_FILE, b"http://10.0.0.9/y.efi"), class]);
    let next = check(Client::HttpBoot, &[offer(SERVER, LEASE, &[url, class]), literal], &[]);
    assert_eq!(next, Some(Next::Fetch(Fetch::Url("http://10.0.0.9/y.efi".into()))));
    let long = format!("http://10.0.0.9/{}.efi", "x".repeat(300));
    check(
        Client::HttpBoot,
        &[offer(SERVER, LEASE, &[(code::BOOT_FILE, long.as_bytes()), class])],
        &["url-length"],
    );
    let own: (u8, &[u8]) = (code::BOOT_FILE, b"boot/undionly.kpxe");
    check(Client::Ipxe, &[offer(SERVER, LEASE, &[own])], &["ipxe-proxy-wait", "ipxe-loop"]);
    let mut nowhere = offer(SERVER, LEASE, &[(code::BOOT_FILE, b"a")]);
    nowhere.message.siaddr = NONE;
    check(Client::BiosPxe, &[nowhere], &["PXE-E32"]);
    let mut refusal = offer(OTHER, NONE, &[]);
    refusal.message.options.set(code::MESSAGE_TYPE, [MessageType::NAK.0]);
    check(Client::BiosPxe, &[refusal, offer(SERVER, LEASE, &[(code::BOOT_FILE, b"a")])], &["PXE-E51"]);
}

/// What servers say reaches a person's terminal.
#[test]
fn nothing_that_a_server_says_is_obeyed_by_a_terminal() {
    let evil = "http://10.0.0.1/\u{1b}[2J\r\n\u{9b}31m\u{202e}";
    let findings = [
        Finding::ok("ok", evil),
        Finding::warning("odd", evil, evil, evil),
        Finding::error(Problem::NoDns, Client::Ipxe, evil),
    ];
    for finding in &findings {
        for line in finding.to_string().split('\n') {
            assert_eq!(printable(line), line);
        }
        assert!(finding.what.contains("\\u{1b}[2J"), "{finding}");
    }
    assert_eq!(findings[1].to_string().lines().count(), 3, "no line but ours");
}

#[test]
fn a_router_as_next_server_is_odd() {
    let lease = offer(SERVER, LEASE, &[(code::ROUTER, &OTHER.octets())]);
    let fetch = |server| Fetch::Tftp { server, file: "a".into() };
    assert!(super::judge::next_server_is_router(&fetch(OTHER), &lease).is_some());
    assert!(super::judge::next_server_is_router(&fetch(SERVER), &lease).is_none());
}

#[test]
fn every_problem_has_words_for_every_client() {
    use Problem::*;
    let problems = [
        NoOffer,
        NoAddress,
        Refused,
        NoAck,
        NoBootFile,
        ProxySilent,
        UrlForTftp,
        FileForHttp,
        NoServer,
        TftpTimeout,
        TftpNotFound,
        TftpError,
        TftpOptions,
        HttpUnreachable,
        HttpNotFound,
        HttpStatus,
        NoDns,
        NotBootable,
        Loop,
    ];
    for problem in problems {
        for client in Client::ALL {
            let finding = Finding::error(problem, client, "what");
            let code = finding.code;
            assert!(!finding.why.is_empty() && !finding.hint.is_empty() && !code.is_empty());
            // A code that a person sees is in what the person sees.
            assert!(!code.starts_with("PXE-E") || finding.why.starts_with(code), "{finding}");
        }
    }
}
