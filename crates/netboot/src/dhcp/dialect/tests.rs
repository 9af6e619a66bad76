use super::*;
use crate::device::{Architecture, Mac};
use crate::dhcp::client::classify;
use crate::dhcp::testing::{boot, discover, discover_of_ipxe, exchanges, file, member, script};
use crate::dhcp::wire::{MessageType, SIZE_MAX, SIZE_MIN};

const ROLES: [Role; 4] = [Role::Server, Role::Proxy, Role::ProxyWithoutBinl, Role::Binl];
const PROXY_ROLES: [Role; 3] = [Role::Proxy, Role::ProxyWithoutBinl, Role::Binl];
const BOTH: [&str; 2] = ["10.0.0.1", "10.0.0.2"];
const US: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

const BIOS: (&str, u16) = ("PXEClient:Arch:00000:UNDI:002001", 0);
const EFI: (&str, u16) = ("PXEClient:Arch:00007:UNDI:003000", 7);
const HTTP: (&str, u16) = ("HTTPClient:Arch:00016:UNDI:003000", 16);

fn answer(request: &Message, boot: &Boot, role: Role) -> (Message, BootReply) {
    let mut reply = Message::reply_to(request, MessageType::OFFER);
    reply.options.set(code::SERVER_ID, US.octets());
    let device = classify(request, US);
    let boot_reply = add_boot(&mut reply, request, &device, boot, &UrlBuilder::default(), role);
    (reply, boot_reply)
}

fn url(path: &str) -> BootReply {
    BootReply::Url(format!("http://10.0.0.1/{path}"))
}

fn tftp(name: &str) -> BootReply {
    BootReply::File { server: Ipv4Addr::new(10, 0, 0, 1), file: name.into() }
}

/// What a reply says about booting, in the order of option codes.
fn boot_part(reply: &Message) -> (Ipv4Addr, String, Vec<(u8, String)>) {
    let codes = [
        code::ROOT_PATH,
        code::VENDOR_SPECIFIC,
        code::VENDOR_CLASS,
        code::TFTP_SERVER,
        code::BOOT_FILE,
        code::CLIENT_UUID,
        code::IPXE,
    ];
    let shown = |code| {
        // What follows the NUL behind a URL is no difference to the firmware, and the NUL is none either.
        let value = reply.options.get(code)?;
        let value = if code == code::BOOT_FILE { value.strip_suffix(&[0]).unwrap_or(value) } else { value };
        Some((code, value.escape_ascii().to_string()))
    };
    let file = reply.file.escape_ascii().to_string();
    (reply.siaddr, file, codes.into_iter().filter_map(shown).collect())
}

/// Every answer of a capture, that real firmware booted by, is the answer that we give.
fn check_capture(
    name: &str,
    server: &str,
    role: Role,
    boot_reply: impl Fn(Firmware) -> What,
    firmware: &[Firmware],
) {
    let mut seen = Vec::new();
    for (request, golden) in exchanges(name, server) {
        let device = classify(&request.message, Ipv4Addr::new(10, 77, 0, 1));
        assert_eq!(device.mac, Some(Mac([0x52, 0x54, 0, 0x77, 0, 1])), "{name}");
        assert_eq!(device.uuid, "01234567-89ab-cdef-0123-456789000001".parse().ok(), "{name}");
        seen.push(device.firmware);
        let boot = boot(boot_reply(device.firmware), &["10.77.0.1"]);
        let mut reply = Message::reply_to(&request.message, golden.message.kind().unwrap());
        let boot_reply = add_boot(&mut reply, &request.message, &device, &boot, &UrlBuilder::default(), role);
        assert_eq!(boot_part(&reply), boot_part(&golden.message), "{name}: {boot_reply}");
    }
    seen.dedup();
    assert_eq!(seen, firmware, "{name}");
}

#[test]
fn answers_are_those_that_real_firmware_took() {
    let what = |firmware| match firmware {
        Firmware::EfiPxe => file("snponly.efi"),
        Firmware::HttpClient => file("marker.efi"),
        _ => file("hello.ipxe"),
    };
    check_capture("ipxe-bios-server", "10.77.0.1", Role::Server, what, &[Firmware::Ipxe]);
    check_capture("ovmf-http-server", "10.77.0.1", Role::Server, what, &[Firmware::HttpClient]);
    check_capture("ovmf-http-proxy", "10.77.0.2", Role::Proxy, what, &[Firmware::HttpClient]);
    check_capture("ovmf-pxe-server", "10.77.0.1", Role::Server, what, &[Firmware::EfiPxe, Firmware::Ipxe]);
    check_capture("ovmf-pxe-proxy-43", "10.77.0.2", Role::ProxyWithoutBinl, what, &[Firmware::EfiPxe]);
}

#[test]
fn bios_pxe_is_named_its_file_and_told_to_ask_nobody_else() {
    for role in ROLES {
        let (reply, boot_reply) =
            answer(&discover(BIOS.0, BIOS.1), &boot(file("undionly.kpxe"), &BOTH), role);
        assert_eq!(boot_reply, tftp("undionly.kpxe"));
        assert_eq!((reply.siaddr, &*reply.file), (Ipv4Addr::new(10, 0, 0, 1), &b"undionly.kpxe"[..]));
        assert_eq!(reply.options.get(code::VENDOR_CLASS), Some(&b"PXEClient"[..]));
        assert_eq!(reply.options.get(code::VENDOR_SPECIFIC), Some(&[6, 1, 8, 255][..]));
        // OVMF of a machine without a UUID sends zeros, and wants them back.
        assert_eq!(reply.options.get(code::CLIENT_UUID), Some(&[0; 17][..]));
    }
}

/// Row 1: PXE menu and proxy settings shadow the script, and iPXE loads itself for ever.
#[test]
fn row_01_ipxe_never_loads_itself_again() {
    for role in ROLES {
        for name in ["undionly.kpxe", "ipxe.efi", "x86_64/snponly.efi", "ipxe-shimx64.efi", "ipxe.pxe"] {
            for what in [file(name), What::Literal(format!("http://10.0.0.7/{name}"))] {
                let (reply, boot_reply) = answer(&discover_of_ipxe(), &boot(what, &BOTH), role);
                assert_eq!(boot_reply, BootReply::Nothing(Reason::OwnLoader), "{name}");
                assert_eq!(boot_part(&reply).2, [], "{name}");
            }
        }
        // Its scripts, and programs with other names, are none of its own.
        for name in ["autoexec.ipxe", "pvs/ARDBP32.BIN", "wimboot", "grubx64.efi"] {
            assert_eq!(answer(&discover_of_ipxe(), &boot(file(name), &BOTH), role).1, url(name));
        }
        let (reply, boot_reply) = answer(&discover_of_ipxe(), &boot(script(), &BOTH), role);
        assert_eq!(boot_reply, url("s/52-54-00-77-00-01/efi-x64/-/boot.ipxe"));
        assert!(
            !reply.options.has(code::VENDOR_SPECIFIC) && reply.file.is_empty(),
            "no menu and no TFTP file"
        );
    }
}

/// Row 2: UEFI firmware ignores proxy offers with 43.6 = 8.
/// Row 3: old EDK2 keeps no such offer.
#[test]
fn row_02_and_03_uefi_beside_another_server_is_asked_to_port_4011() {
    let (offer, boot_reply) = answer(&discover(EFI.0, EFI.1), &boot(file("snponly.efi"), &BOTH), Role::Proxy);
    assert_eq!(boot_reply, BootReply::AskBinl);
    assert_eq!(offer.options.get(code::VENDOR_CLASS), Some(&b"PXEClient"[..]));
    assert!(
        !offer.options.has(code::VENDOR_SPECIFIC)
            && offer.file.is_empty()
            && !offer.options.has(code::BOOT_FILE)
    );
    // EDK2 asks at siaddr: our own port 4011, not the TFTP server's.
    assert_eq!(offer.siaddr, US);
    let (ack, boot_reply) = answer(&discover(EFI.0, EFI.1), &boot(file("snponly.efi"), &BOTH), Role::Binl);
    assert_eq!(boot_reply, tftp("snponly.efi"));
    assert_eq!((ack.siaddr, &*ack.file), (Ipv4Addr::new(10, 0, 0, 1), &b"snponly.efi"[..]));
    // Without a member no offer is made, so that nobody asks in vain.
    let none = boot(file("snponly.efi"), &[]);
    assert_eq!(answer(&discover(EFI.0, EFI.1), &none, Role::Proxy).1, BootReply::Nothing(Reason::NoMember));
}

/// Row 4: the next server is taken from the router and not from the proxy.
#[test]
fn row_04_what_a_proxy_says_needs_no_next_server_of_others() {
    for role in PROXY_ROLES {
        let (reply, boot_reply) = answer(&discover_of_ipxe(), &boot(script(), &BOTH), role);
        assert!(
            matches!(boot_reply, BootReply::Url(ref url) if url.starts_with("http://10.0.0.1/")),
            "a whole URL: {boot_reply}"
        );
        assert_eq!(reply.siaddr, Ipv4Addr::new(10, 0, 0, 1), "and our own siaddr beside it");
    }
    // Where the URL is somebody else's and no member lives, siaddr is still not zero: iPXE would find nothing to boot.
    let elsewhere = boot(What::Literal("http://boot.example/x.ipxe".into()), &[]);
    assert_eq!(answer(&discover_of_ipxe(), &elsewhere, Role::Proxy).0.siaddr, US);
}

/// Row 5: firmware ignores option 66.
#[test]
fn row_05_the_tftp_server_is_in_siaddr() {
    for (class, arch) in [BIOS, EFI] {
        for role in [Role::Server, Role::ProxyWithoutBinl, Role::Binl] {
            let (reply, _) = answer(&discover(class, arch), &boot(file("boot.bin"), &BOTH), role);
            assert_eq!(reply.siaddr, Ipv4Addr::new(10, 0, 0, 1), "{class} {role:?}");
            assert!(!reply.options.has(code::TFTP_SERVER), "{class} {role:?}");
        }
    }
}

/// Row 8: iPXE misses the proxy's offer and gives up. Where we are the only server there is nothing to miss.
#[test]
fn row_08_ipxe_waits_for_no_proxy_where_the_server_is_ours() {
    let (reply, boot_reply) = answer(&discover_of_ipxe(), &boot(script(), &BOTH), Role::Server);
    assert_eq!(reply.options.get(code::IPXE), Some(&[176, 1, 1][..]));
    assert!(matches!(boot_reply, BootReply::Url(_)) && !reply.options.has(code::VENDOR_CLASS));
    let (reply, _) = answer(&discover_of_ipxe(), &boot(script(), &BOTH), Role::Proxy);
    assert!(!reply.options.has(code::IPXE), "a proxy does not tell it to ignore proxies");
}

/// Row 14: UEFI HTTP Boot is missing or half done.
#[test]
fn row_14_uefi_http_boot_gets_its_class_and_a_url() {
    for role in ROLES {
        let (reply, boot_reply) =
            answer(&discover(HTTP.0, HTTP.1), &boot(file("EFI/my disk.efi"), &BOTH), role);
        assert_eq!(boot_reply, url("EFI/my%20disk.efi"));
        assert_eq!(reply.options.get(code::VENDOR_CLASS), Some(&b"HTTPClient"[..]));
        assert_eq!(reply.options.get(code::BOOT_FILE), Some(&b"http://10.0.0.1/EFI/my%20disk.efi\0"[..]));
        assert!(reply.file.is_empty() && reply.siaddr.is_unspecified());
        let script = answer(&discover(HTTP.0, HTTP.1), &boot(script(), &BOTH), role).1;
        assert_eq!(script, BootReply::Nothing(Reason::ScriptForFirmware));
        let name = answer(&discover(HTTP.0, HTTP.1), &boot(What::Literal("grub.efi".into()), &BOTH), role).1;
        assert_eq!(name, BootReply::Nothing(Reason::FileForHttp));
    }
}

/// Row 15: HTTP Boot loses the name server on the way, so URLs by name fail later.
#[test]
fn row_15_urls_name_addresses_unless_a_certificate_needs_a_name() {
    let mut secure = boot(file("snponly.efi"), &BOTH);
    secure.members[1].https_port = Some(443);
    secure.members[1].https_name = Some("boot2.example".into());
    for request in [discover(HTTP.0, HTTP.1), discover_of_ipxe()] {
        secure.what = file("grubx64.efi");
        assert_eq!(answer(&request, &secure, Role::Server).1, url("grubx64.efi"));
        // What shall be https is never http: the first member has none, so it is the second's.
        let boot = Boot { is_secure: true, ..secure.clone() };
        let boot_reply = answer(&request, &boot, Role::Server).1;
        assert_eq!(boot_reply, BootReply::Url("https://boot2.example/grubx64.efi".into()));
        let none = Boot { is_secure: true, ..self::boot(file("grubx64.efi"), &BOTH) };
        assert_eq!(answer(&request, &none, Role::Server).1, BootReply::Nothing(Reason::NoMember));
    }
}

/// Row 16: no option tells whether Secure Boot is on, so everybody is given the shim, by every way.
#[test]
fn row_16_the_shim_goes_to_every_uefi() {
    let shim = boot(file("shimx64.efi"), &BOTH);
    assert_eq!(answer(&discover(EFI.0, EFI.1), &shim, Role::Server).1, tftp("shimx64.efi"));
    assert_eq!(answer(&discover(EFI.0, 9), &shim, Role::Server).1, tftp("shimx64.efi"));
    assert_eq!(answer(&discover(HTTP.0, HTTP.1), &shim, Role::Server).1, url("shimx64.efi"));
    assert_eq!(answer(&discover_of_ipxe(), &shim, Role::Server).1, url("shimx64.efi"));
}

/// Row 23: management controllers reject URLs with `?` and `&`.
#[test]
fn row_23_urls_have_no_question_mark_and_no_ampersand() {
    let odd = boot(file("a?b&c#d%e${mac}/f.efi"), &BOTH);
    let boot_reply = answer(&discover_of_ipxe(), &odd, Role::Server).1;
    assert_eq!(boot_reply, url("a%3Fb%26c%23d%25e%24%7Bmac%7D/f.efi"));
}

#[test]
fn long_urls_go_into_option_67_only() {
    let path = "d/".repeat(80) + "boot.ipxe";
    let (reply, boot_reply) = answer(&discover_of_ipxe(), &boot(file(&path), &BOTH), Role::Server);
    assert_eq!(boot_reply, url(&path));
    let read = Message::decode(&reply.encode(SIZE_MIN)).unwrap();
    assert_eq!(read.options.get(code::BOOT_FILE), Some(format!("http://10.0.0.1/{path}").as_bytes()));
    assert!(read.file.is_empty());
    // More than one option holds is told to nobody.
    let (reply, boot_reply) =
        answer(&discover_of_ipxe(), &boot(file(&"d/".repeat(200)), &BOTH), Role::Server);
    assert_eq!((boot_reply, boot_part(&reply).2), (BootReply::Nothing(Reason::LongUrl), Vec::new()));
    // A TFTP name that the header cannot hold stands in option 67, where UEFI reads it.
    let (reply, _) = answer(&discover(EFI.0, EFI.1), &boot(file(&path), &BOTH), Role::Server);
    assert_eq!((reply.file.len(), reply.options.get(code::BOOT_FILE)), (0, Some(path.as_bytes())));
}

#[test]
fn firmware_without_urls_is_told_none() {
    let elsewhere = |text: &str| boot(What::Literal(text.into()), &BOTH);
    for (class, arch) in [BIOS, EFI] {
        let boot_reply = |boot| answer(&discover(class, arch), &boot, Role::Server).1;
        assert_eq!(boot_reply(elsewhere("http://10.0.0.7/x.efi")), BootReply::Nothing(Reason::UrlForTftp));
        assert_eq!(
            boot_reply(elsewhere("tftp://boot.example/x.efi")),
            BootReply::Nothing(Reason::UrlForTftp)
        );
        assert_eq!(boot_reply(boot(script(), &BOTH)), BootReply::Nothing(Reason::ScriptForFirmware));
        let server = Ipv4Addr::new(10, 0, 0, 7);
        assert_eq!(
            boot_reply(elsewhere("tftp://10.0.0.7/x.efi")),
            BootReply::File { server, file: "x.efi".into() }
        );
        assert_eq!(boot_reply(elsewhere("pxelinux.0")), tftp("pxelinux.0"));
    }
    // iPXE takes either, and a bare name by TFTP.
    let boot_reply = |boot| answer(&discover_of_ipxe(), &boot, Role::Server).1;
    assert_eq!(boot_reply(elsewhere("nfs://10.0.0.7/x")), BootReply::Url("nfs://10.0.0.7/x".into()));
    assert_eq!(boot_reply(elsewhere("pxelinux.0")), tftp("pxelinux.0"));
}

#[test]
fn raspberry_pi_finds_its_words_in_the_menu() {
    let mut request = discover(BIOS.0, BIOS.1);
    request.chaddr[..3].copy_from_slice(&[0xdc, 0xa6, 0x32]);
    for role in ROLES {
        let (reply, boot_reply) = answer(&request, &boot(file("bootcode.bin"), &BOTH), role);
        assert_eq!(boot_reply, tftp("bootcode.bin"));
        assert_eq!(reply.options.get(code::VENDOR_CLASS), Some(&b"PXEClient"[..]));
        assert_eq!(reply.options.get(code::TFTP_SERVER), Some(&b"10.0.0.1"[..]));
        // Walk the sub-options as the ROM does, to see that the lengths are right.
        let mut rest = reply.options.get(code::VENDOR_SPECIFIC).unwrap();
        let mut menu = None;
        while let [code, length, behind @ ..] = rest {
            let (value, next) = behind.split_at(usize::from(*length));
            if *code == 9 {
                menu = Some(value);
            }
            rest = next;
        }
        assert_eq!(rest, [255]);
        assert_eq!(menu, Some(&b"\0\0\x11Raspberry Pi Boot"[..]));
    }
}

#[test]
fn gpxe_takes_urls_too() {
    let mut request = discover(BIOS.0, BIOS.1);
    request.options.set(code::USER_CLASS, *b"gPXE");
    request.options.set(code::IPXE, [0xb1, 1, 1]);
    for role in ROLES {
        let (reply, boot_reply) = answer(&request, &boot(file("pvs/ARDBP32.BIN"), &BOTH), role);
        assert_eq!(boot_reply, url("pvs/ARDBP32.BIN"));
        assert!(!reply.siaddr.is_unspecified() && reply.options.has(code::VENDOR_CLASS));
        // It may move on to iPXE.
        assert_eq!(answer(&request, &boot(file("undionly.kpxe"), &BOTH), role).1, url("undionly.kpxe"));
    }
}

#[test]
fn nobody_is_told_anything_without_a_live_member_that_speaks_ipv4() {
    for request in
        [discover(BIOS.0, BIOS.1), discover(EFI.0, EFI.1), discover(HTTP.0, HTTP.1), discover_of_ipxe()]
    {
        for role in ROLES {
            for members in [&[][..], &["2001:db8::1"]] {
                let (reply, boot_reply) = answer(&request, &boot(file("grubx64.efi"), members), role);
                assert_eq!(boot_reply, BootReply::Nothing(Reason::NoMember), "{role:?}");
                assert_eq!(boot_part(&reply), (Ipv4Addr::UNSPECIFIED, String::new(), Vec::new()));
            }
            let mixed = boot(file("grubx64.efi"), &["2001:db8::1", "10.0.0.1"]);
            assert!(!matches!(answer(&request, &mixed, role).1, BootReply::Nothing(_)));
        }
    }
}

#[test]
fn an_operating_system_gets_its_name_and_nothing_to_boot() {
    let mut named = boot(file("grubx64.efi"), &BOTH);
    named.host_name = Some("seat-17".into());
    let mut request = discover("dhcpcd-9.4", 7);
    request.options.remove(code::CLIENT_ARCH);
    let (reply, boot_reply) = answer(&request, &named, Role::Server);
    assert_eq!(boot_reply, BootReply::Nothing(Reason::NoBootClient));
    assert_eq!(reply.options.get(code::HOST_NAME), Some(&b"seat-17"[..]));
    assert_eq!(boot_part(&reply), (Ipv4Addr::UNSPECIFIED, String::new(), Vec::new()));
    assert!(!answer(&request, &named, Role::Proxy).0.options.has(code::HOST_NAME));
}

#[test]
fn a_root_path_goes_to_who_asks_for_it() {
    let mut san = boot(What::Literal(String::new()), &BOTH);
    assert_eq!(answer(&discover_of_ipxe(), &san, Role::Server).1, BootReply::Nothing(Reason::NothingNamed));
    let path = "iscsi:10.0.0.1::3260:1:iqn.2026-11.example:disk1";
    san.root_path = Some(path.into());
    let (reply, boot_reply) = answer(&discover_of_ipxe(), &san, Role::Server);
    assert_eq!(boot_reply, BootReply::RootPath(path.into()));
    assert_eq!(reply.options.get(code::ROOT_PATH), Some(path.as_bytes()));
    assert!(!reply.options.has(code::BOOT_FILE));
    san.what = script();
    let (reply, boot_reply) = answer(&discover_of_ipxe(), &san, Role::Server);
    assert!(matches!(boot_reply, BootReply::Url(_)) && reply.options.has(code::ROOT_PATH));
    let mut quiet = discover_of_ipxe();
    quiet.options.set(code::PARAMETER_LIST, [1, 3]);
    assert!(!answer(&quiet, &san, Role::Server).0.options.has(code::ROOT_PATH));
}

#[test]
fn every_shape_is_found_and_has_a_story() {
    use Firmware::*;
    for firmware in [BiosPxe, EfiPxe, HttpClient, Ipxe, Gpxe, RaspberryPi] {
        for role in ROLES {
            let profile = ReplyProfile::of(firmware, role).unwrap();
            assert!(profile.rationale.len() > 40 && profile.roles.contains(&role), "{firmware:?} {role:?}");
        }
    }
    assert_eq!(ReplyProfile::of(Other, Role::Server), None);
    assert_eq!(Architecture::BIOS.0, 0);
    assert!(member("10.0.0.1").address.is_ipv4());
}

/// tcpdump reads what we write: the judge that is not ours.
#[test]
fn tcpdump_understands_every_answer() {
    let directory = tempfile::tempdir().unwrap();
    for (request, text) in [
        (discover(BIOS.0, BIOS.1), "file \"grubx64.efi\""),
        (discover(EFI.0, EFI.1), "Vendor-Class (60), length 9: \"PXEClient\""),
        (discover(HTTP.0, HTTP.1), "BF (67), length 28: \"http://10.0.0.1/grubx64.efi^@\""),
        (discover_of_ipxe(), "BF (67), length 27: \"http://10.0.0.1/grubx64.efi\""),
    ] {
        let (reply, _) = answer(&request, &boot(file("grubx64.efi"), &BOTH), Role::Proxy);
        let path = directory.path().join("reply.pcap");
        std::fs::write(&path, pcap(&reply.encode(SIZE_MAX))).unwrap();
        let Some(tcpdump) = goldwire_stdx::testing::program("tcpdump") else { return };
        let output = std::process::Command::new(tcpdump).args(["-nvvr"]).arg(&path).output().unwrap();
        let output = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.contains(text), "{text} is not in: {output}");
        assert!(output.contains("DHCP-Message (53), length 1: Offer"), "{output}");
        assert!(output.contains("Server-ID (54), length 4: 10.0.0.9"), "{output}");
        assert!(!output.contains("invalid") && !output.contains("[|"), "{output}");
    }
}

/// A capture file with one UDP datagram from port 67 to 68 (link type 101: bare IP).
fn pcap(payload: &[u8]) -> Vec<u8> {
    let udp = u16::try_from(payload.len() + 8).unwrap();
    let packet_length = u32::from(udp) + 20;
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4, 0x0002_0004, 0, 0, 65535, 101, 0, 0, packet_length, packet_length] {
        bytes.extend_from_slice(&u32::to_be_bytes(word));
    }
    bytes.extend_from_slice(&[0x45, 0]);
    bytes.extend_from_slice(&(udp + 20).to_be_bytes());
    bytes.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 9, 255, 255, 255, 255, 0, 67, 0, 68]);
    bytes.extend_from_slice(&udp.to_be_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(payload);
    bytes
}
