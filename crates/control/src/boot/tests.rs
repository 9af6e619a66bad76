use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use goldwire_netboot::content::UrlBuilder;
use goldwire_netboot::script::{self, Context};
use goldwire_netboot::{
    Action, Architecture, BootPolicy, Decision, Device, Firmware, LiveMembers, Mac, Member, Proof, What,
};

use super::*;

/// Two members that always live, in the same order.
struct Two;

impl LiveMembers for Two {
    fn ordered_for(&self, _key: &[u8], _subnet: Option<IpAddr>) -> Vec<Member> {
        let member = |name: &str, address: &str| Member {
            name: name.into(),
            address: address.parse().unwrap(),
            http_port: 80,
            https_port: None,
            https_name: None,
        };
        vec![member("boot1", "10.0.0.11"), member("boot2", "10.0.0.12")]
    }
}

const MEMBER: &str = "[[member]]\nname = \"a\"\naddress = \"10.0.0.1\"\n";

fn policy(text: &str) -> Policy {
    let loaded = parse(text, Path::new("boot.toml")).unwrap_or_else(|problems| panic!("{problems}"));
    Policy::new(loaded.rules, Arc::new(Two))
}

fn problems(text: &str) -> Problems {
    parse(text, Path::new("boot.toml")).unwrap_err()
}

/// The messages of errors only: the folders that tests name are not there.
fn errors(text: &str) -> Vec<String> {
    let is_error = |problem: &Problem| problem.severity == Severity::Error;
    problems(text).list.into_iter().filter(is_error).map(|problem| problem.message).collect()
}

fn device(mac: &str, firmware: Firmware, arch: u16) -> Device {
    let mut device = Device::new(Some(mac.parse().unwrap()), firmware);
    device.arch = Some(Architecture(arch));
    device
}

fn what(decision: &Decision) -> &What {
    match &decision.action {
        Action::Boot(boot) => &boot.what,
        other => panic!("{other:?} by {}", decision.rule),
    }
}

#[test]
fn examples_are_good() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("boot.key"), "0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(folder.path().join("boot.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let mut count = 0;
    for entry in fs::read_dir(examples).unwrap().map(Result::unwrap) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("boot") || !name.ends_with(".toml") {
            continue;
        }
        fs::copy(entry.path(), folder.path().join(&name)).unwrap();
        let loaded = load(&folder.path().join(&name)).unwrap_or_else(|error| panic!("{error}"));
        // The files that examples name are on nobody's machine; that may be all that is odd.
        for problem in &loaded.warnings.list {
            let is_expected = ["no such file", "server.root is no folder", "no undionly", "no snponly"]
                .iter()
                .any(|known| problem.message.starts_with(known));
            assert!(is_expected, "{name}: {}", problem.message);
        }
        count += 1;
    }
    assert!(count >= 3);
}

/// Every fenced block of the guides is a good file, alone or with a member.
#[test]
fn the_guides_snippets_are_good() {
    for (name, count_min) in [("boot.md", 5), ("boot-media.md", 2)] {
        let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
        let text = fs::read_to_string(guide).unwrap();
        let mut count = 0;
        for block in text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            let has_member = block.contains("[[member]]");
            let file = if has_member { block.to_owned() } else { format!("{block}\n{MEMBER}") };
            if let Err(problems) = parse(&file, Path::new(name)) {
                panic!("{block}\n{problems}");
            }
            count += 1;
        }
        assert!(count >= count_min, "{name}: {count}");
    }
}

#[test]
fn all_problems_are_told_at_once_with_their_lines() {
    let text = "\
default-profile = \"lnux\"
[http]
listn = [\"0.0.0.0:80\"]
[[member]]
name = \"a\"
address = \"10.0.0.256\"
[[device]]
mac = \"52:54:00:12:34\"
[[device]]
mac = \"52:54:00:12:34:56\"
profile = \"linux\"
[[device]]
mac = \"52-54-00-12-34-56\"
profile = \"linux\"
[profile.linux]
kernel = \"k\"
url = \"http://x\"
[profle.x]
";
    let problems = problems(text);
    let found: Vec<(usize, &str)> = problems
        .list
        .iter()
        .filter(|problem| problem.severity == Severity::Error && problem.place.is_some())
        .map(|problem| (problem.place.as_ref().unwrap().line, problem.message.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (1, "no profile is called \"lnux\""),
            (3, "unknown key \"listn\""),
            (6, "\"10.0.0.256\" is not an address; write for example 10.0.0.1 or fd00::1"),
            (8, "\"52:54:00:12:34\": a MAC address is twelve hexadecimal digits, such as 52:54:00:12:34:56"),
            (13, "52:54:00:12:34:56 has a [[device]] already, in line 9"),
            (15, "the profile \"linux\" says kernel and url at once"),
            (18, "unknown key \"profle\""),
        ],
        "{problems}"
    );
    let text = problems.to_string();
    assert!(
        text.contains(
            "boot.toml:3:1\n  |\n3 | listn = [\"0.0.0.0:80\"]\n  | ^^^^^\nhint: did you mean \"listen\"?"
        ),
        "{text}"
    );
    assert!(text.contains("did you mean \"linux\"?") && text.contains("did you mean \"profile\"?"));
}

/// A table with a mistake is there, and who names it is not wrong.
#[test]
fn a_mistake_is_told_alone() {
    let member = "name = \"a\"\naddress = \"10.0.0.1\"\n";
    for (text, expected) in [
        (
            format!(
                "default-profile = \"a\"\n[[member]]\n{member}[profile.a]\nkernl = \"k\"\n[profile.m]\nmenu = [\"a\"]\n\
                 [[group]]\nprofile = \"a\"\nfirmware = \"ipxe\"\n[[device]]\nmac = \"52:54:00:00:00:01\"\nprofile = \"a\"\n"
            ),
            "unknown key \"kernl\"",
        ),
        (
            format!(
                "[server]\nname = \"a\"\n[[member]]\n{member}wieght = 2\n[[member]]\nname = \"b\"\naddress = \"10.0.0.2\"\n\
                 [[subnet]]\nnetwork = \"10.0.0.0/24\"\npools-of = {{ a = \"10.0.0.10-10.0.0.19\" }}\n"
            ),
            "unknown key \"wieght\"",
        ),
        (
            format!(
                "[[member]]\n{member}[[subnet]]\nnetwrk = \"10.0.0.0/24\"\n\
                 [[device]]\nmac = \"52:54:00:00:00:01\"\naddress = \"10.0.0.9\"\n"
            ),
            "unknown key \"netwrk\"",
        ),
        (
            format!(
                "[server]\nsecret = \"key\"\n[heartbeat]\nlisten = \"0.0.0.0:7007\"\n[[member]]\n{member}\
                 [[member]]\nname = \"b\"\naddress = \"10.0.0.2\"\n\
                 [profile.a]\nscript = \"own\"\n[profile.b]\nkernel = \"k\"\ntoken = true\n"
            ),
            "unknown key \"secret\"",
        ),
        (
            format!("[media]\niso = true\n[[member]]\n{member}[profile.a]\nfile = \"m/goldwire.iso\"\n"),
            "unknown key \"iso\"",
        ),
    ] {
        assert_eq!(errors(&text), [expected], "{text}");
        let is_about_files = |problem: &Problem| problem.message.contains("no such file");
        assert!(expected != "unknown key \"secret\"" || !problems(&text).list.iter().any(is_about_files));
        assert!(!problems(&text).to_string().contains("none is served"));
    }
    let folder = tempfile::tempdir().unwrap();
    let text =
        format!("[server]\nsecret-file = \"none\"\n{MEMBER}[profile.a]\nkernel = \"k\"\ntoken = true\n");
    let problems = parse(&text, &folder.path().join("boot.toml")).unwrap_err();
    assert_eq!(
        problems.list.iter().filter(|problem| problem.severity == Severity::Error).count(),
        1,
        "{problems}"
    );
}

#[test]
fn syntax_errors_have_a_line() {
    let wrong = problems("[server]\nname = \n");
    assert_eq!(wrong.list[0].place.as_ref().unwrap().line, 2, "{wrong}");
    // Nothing is said of tables that could not be read, and quotation marks are what is forgotten most.
    for (line, is_bare) in
        [("router = 10.0.0.1", true), ("mode = proxy", true), ("mode = \"proxy", false), ("pools = [", false)]
    {
        let wrong = problems(&format!("[server]\nroot = \"/no/such\"\n[dhcp]\n{line}\n"));
        assert!(wrong.list.iter().all(|problem| problem.severity == Severity::Error), "{wrong}");
        let hint = wrong.list[0].hint.as_deref().unwrap_or_default();
        assert_eq!(hint.contains("quotation marks"), is_bare, "{wrong}");
    }
}

/// Debian's `ipxe.efi` is a link to `/boot`, and the servers do not follow it.
#[test]
fn a_file_that_a_link_leads_out_to_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display();
    fs::create_dir(folder.path().join("ipxe")).unwrap();
    fs::write(folder.path().join("outside.efi"), "x").unwrap();
    fs::write(folder.path().join("ipxe/own.efi"), "x").unwrap();
    std::os::unix::fs::symlink("../outside.efi", folder.path().join("ipxe/link.efi")).unwrap();
    let told = |program: &str| {
        let text = format!(
            "{MEMBER}[server]\nname = \"a\"\nipxe = \"{here}/ipxe\"\n[ipxe]\nefi-x64 = \"ipxe/{program}\"\n"
        );
        parse(&text, Path::new("boot.toml")).unwrap().warnings.to_string()
    };
    assert!(told("link.efi").contains("no such file in the boot tree: ipxe/link.efi"));
    assert!(!told("own.efi").contains("own.efi"));
}

#[test]
fn an_address_without_its_port_is_told_how_to_be_written() {
    let text = format!("{MEMBER}default-profile = \"a\"\n[http]\nlisten = \"80\"\n");
    assert!(
        errors(&text).contains(
            &"\"80\" is not an address with a port; write for example 0.0.0.0:80 or [::]:80".into()
        )
    );
}

#[test]
fn addresses_are_checked() {
    let file = |subnets: &str| format!("{MEMBER}[dhcp]\nmode = \"server\"\n{subnets}");
    for (subnets, expected) in [
        ("", "a DHCP server needs a [[subnet]]"),
        (
            "[[subnet]]\nnetwork = \"10.0.0.1/24\"",
            "\"10.0.0.1/24\" has bits behind its prefix; the network is 10.0.0.0/24",
        ),
        (
            "[[subnet]]\nnetwork = \"10.0.0.0/24\"\n[[subnet]]\nnetwork = \"10.0.0.128/25\"",
            "overlaps the subnet 10.0.0.0/24",
        ),
        (
            "[[subnet]]\nnetwork = \"10.0.0.0/24\"\npools = [\"10.0.1.1-10.0.1.9\"]",
            "the pool 10.0.1.1-10.0.1.9 is outside 10.0.0.0/24",
        ),
        (
            "[[subnet]]\nnetwork = \"10.0.0.0/24\"\npools = [\"10.0.0.1-10.0.0.9\", \"10.0.0.9-10.0.0.10\"]",
            "the pool 10.0.0.9-10.0.0.10 overlaps 10.0.0.1-10.0.0.9",
        ),
        (
            "[[subnet]]\nnetwork = \"10.0.0.0/24\"\nrouter = \"10.0.0.1\"\npools = \"10.0.0.1-10.0.0.9\"",
            "the pool 10.0.0.1-10.0.0.9 holds the router 10.0.0.1",
        ),
        (
            "[[subnet]]\nnetwork = \"10.0.0.0/24\"\nreservation = [{ mac = \"52:54:00:00:00:01\", address = \"10.0.9.9\" }]",
            "10.0.9.9 is outside the subnet 10.0.0.0/24",
        ),
        (
            "[[subnet]]\nnetwork = \"10.0.0.0/24\"\nreservation = [{ mac = \"52:54:00:00:00:01\", address = \"10.0.0.9\" }]\n\
             [[device]]\nmac = \"52:54:00:00:00:02\"\naddress = \"10.0.0.9\"",
            "10.0.0.9 is reserved already",
        ),
        (
            "[[subnet]]\nnetwork = \"10.0.0.0/24\"\n[[device]]\nmac = \"52:54:00:00:00:02\"\naddress = \"10.0.9.9\"",
            "no [[subnet]] has the address 10.0.9.9",
        ),
        (
            "[[subnet]]\nnetwork = \"2001:db8::/64\"",
            "addresses are given out by DHCPv4 only; leave IPv6 to router advertisements",
        ),
    ] {
        assert_eq!(errors(&file(subnets)).first().map(String::as_str), Some(expected), "{subnets}");
    }
}

#[test]
fn subnets_share_a_network_by_name() {
    let file = |name: &str| {
        format!(
            "[dhcp]\nmode = \"server\"\n{MEMBER}\
             [[subnet]]\nnetwork = \"10.0.0.0/24\"\nshared-network = \"{name}\"\npools = \"10.0.0.10-10.0.0.19\"\n\
             [[subnet]]\nnetwork = \"10.0.1.0/24\"\npools = \"10.0.1.10-10.0.1.19\"\n"
        )
    };
    let loaded = parse(&file("hall"), Path::new("boot.toml")).unwrap();
    let shared: Vec<_> =
        loaded.settings.subnets.iter().map(|subnet| subnet.shared_network.as_deref()).collect();
    assert_eq!(shared, [Some("hall"), None]);
    assert!(problems(&file("")).to_string().contains("a shared network needs a name"));
}

#[test]
fn members_split_a_subnet() {
    let file = |name: &str| {
        let subnet = "[[subnet]]\nnetwork = \"10.0.0.0/24\"\npools-of = { a = \"10.0.0.10-10.0.0.19\", b = [\"10.0.0.20-10.0.0.29\"] }\n";
        let reservation = "[[subnet.reservation]]\nmac = \"52:54:00:00:00:01\"\nclient-id = \"0x01525400000001\"\naddress = \"10.0.0.9\"\n";
        format!(
            "[server]\nname = {name:?}\n{MEMBER}[[member]]\nname = \"b\"\naddress = \"10.0.0.2\"\nweight = 3\ndrain = true\n{subnet}{reservation}"
        )
    };
    let loaded = parse(&file("b"), Path::new("boot.toml")).unwrap();
    let plan = loaded.settings.subnets[0].plan();
    assert_eq!(
        (plan.pools[0].first.to_string(), plan.peer_pools[0].first.to_string()),
        ("10.0.0.20".into(), "10.0.0.10".into())
    );
    assert_eq!(plan.reservations.len(), 2, "by MAC address and by client identifier");
    let config = loaded.settings.own_member().unwrap().config();
    assert_eq!((config.member.name.as_str(), config.weight, config.is_draining), ("b", 3, true));
    assert_eq!(errors(&file("c")), ["no [[member]] is called \"c\""]);
}

#[test]
fn profiles_are_checked() {
    let file = |profiles: &str| format!("{MEMBER}{profiles}");
    for (profiles, expected) in [
        ("[profile.a]\n", "the profile \"a\" says nothing to boot"),
        ("[profile.a]\nfile = \"../etc/shadow\"", "\"../etc/shadow\" has to be a path below server.root"),
        (
            "[profile.a]\nfile = \"ipxe/undionly.kpxe\"",
            "iPXE would load itself for ever: ipxe/undionly.kpxe is iPXE",
        ),
        ("[profile.a]\nmenu = [\"b\"]\n[profile.b]\nmenu = [\"a\"]", "the menu \"b\" leads back to \"a\""),
        ("[profile.a]\nmenu = [\"a\"]", "the menu \"a\" leads back to \"a\""),
        ("[profile.a]\nmenu = [\"x\"]", "no profile is called \"x\""),
        (
            "[profile.a]\nmenu = [\"b\"]\n[profile.b]\nignore = true",
            "the profile \"b\" ignores devices; a menu cannot offer that",
        ),
        ("[profile.a]\nlocal = true\ninitrd = \"x\"", "initrd belongs to a profile with kernel"),
        ("[profile.a]\nfiles = { efi-x86 = \"x\" }", "no architecture is called \"efi-x86\""),
        ("[profile.a]\nscript = \"x\"", "script names a template, and server.templates is not set"),
        (
            "[profile.a]\nfile = \"x\"\ntoken = true",
            "token needs server.secret-file, with which tokens are signed",
        ),
        (
            "[profile.a]\nkernel = \"x\"\narguments = \"a={{ vars.nobody }}\"",
            "render the script a: line 1: vars.nobody is not defined",
        ),
        (
            "[profile.a]\nscript-text = \"#!ipxe\\n{% if %}\"",
            "the script script-text: line 2: syntax error: unexpected end of block",
        ),
        ("[profile.a]\nurl = \"x\"\nvariables = { a-b = \"x\" }", ""),
        (
            "[[group]]\nprofile = \"a\"\n[profile.a]\nlocal = true",
            "a group without a key matches every device",
        ),
        (
            "[[group]]\nprofile = \"a\"\nfirmware = \"ipx\"\n[profile.a]\nlocal = true",
            "no firmware is called \"ipx\"",
        ),
        ("[[device]]\nname = \"x\"", "a device needs mac or uuid"),
    ] {
        match parse(&file(profiles), Path::new("boot.toml")) {
            Ok(_) => assert_eq!(expected, "", "{profiles}"),
            Err(_) => assert_eq!(errors(&file(profiles)), [expected], "{profiles}"),
        }
    }
}

#[test]
fn a_secret_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("boot.key");
    let text = format!("[server]\nsecret-file = \"boot.key\"\n{MEMBER}");
    let parsed = || parse(&text, &folder.path().join("boot.toml"));
    fs::write(&key, "0123456789abcdef\n").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(parsed().unwrap_err().to_string().contains("can be read by everybody"));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let settings = parsed().unwrap().settings;
    assert_eq!(settings.server.secret.as_ref().unwrap().expose(), b"0123456789abcdef");
    assert!(!format!("{settings:?}").contains("0123456789"));
    fs::write(&key, "short\n").unwrap();
    assert!(parsed().unwrap_err().to_string().contains("has 5 bytes"));
    fs::write(&key, vec![b'k'; 4 << 10]).unwrap();
    assert!(parsed().is_ok());
    fs::write(&key, vec![b'k'; (4 << 10) + 1]).unwrap();
    assert!(parsed().unwrap_err().to_string().contains("boot.key: it has more than 4.0 KiB"));
    fs::remove_file(&key).unwrap();
    let missing = parsed().unwrap_err().to_string();
    assert!(
        missing.contains("No such file") && missing.contains("hint: goldwire boot secret FILE"),
        "{missing}"
    );
}

#[test]
fn a_secret_that_can_be_guessed_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("boot.key");
    let text = format!("[server]\nsecret-file = \"boot.key\"\n{MEMBER}");
    let random = "3c1f9be2d0784a65";
    let binary: Vec<u8> = (0..16_u8).map(|at| at.wrapping_mul(83) | 0x80).collect();
    let cases: [(&[u8], bool); 8] = [
        (&[b'k'; 4000], true),
        (b"0123456789abcdef", true),
        (b"passwordpassword", true),
        (b"0101010101010101010101010101010101010101", true),
        (random.as_bytes(), true),
        (&random.repeat(2).into_bytes(), false),
        (b"wP2/7vQxK0mZt9Yb4LrEhA==", false),
        (&binary, false),
    ];
    for (bytes, is_weak) in cases {
        fs::write(&key, bytes).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
        let loaded = parse(&text, &folder.path().join("boot.toml")).unwrap();
        let is_told = loaded.warnings.list.iter().any(|problem| problem.message.contains("can be guessed"));
        assert_eq!(is_told, is_weak, "{}", String::from_utf8_lossy(bytes));
    }
}

const RULES: &str = "
default-profile = \"menu\"
[[device]]
mac = \"52:54:00:00:00:01\"
name = \"seat-1\"
profile = \"linux\"
variables = { disk = \"/dev/vda\" }
[[device]]
uuid = \"01234567-89ab-cdef-0123-456789000001\"
profile = \"local\"
[[device]]
mac = \"52:54:00:00:00:03\"
profile = \"nothing\"
[[group]]
name = \"racks\"
circuit-id = \"rack-*\"
profile = \"pvs\"
[[group]]
name = \"vms\"
oui = \"00:16:3e\"
arch = [\"bios\", \"efi-x64\"]
profile = \"url\"
[profile.linux]
kernel = \"k\"
arguments = \"disk={{ vars.disk }}\"
variables = { disk = \"/dev/sda\", other = \"x\" }
[profile.local]
local = true
[profile.nothing]
ignore = true
[profile.pvs]
files = { bios = \"pvs/ARDBP32.BIN\", efi-x64 = \"pvs/pvsnbpx64.efi\" }
[profile.url]
url = \"http://10.9.9.9/boot.ipxe\"
[profile.menu]
menu = [\"local\", \"linux\", \"pvs\"]
";

fn rules() -> Policy {
    policy(&format!("{RULES}{MEMBER}"))
}

#[test]
fn device_then_group_then_default() {
    let policy = rules();
    let decision = policy.decide(&device("52:54:00:00:00:01", Firmware::Ipxe, 0));
    assert_eq!(decision.rule, "device seat-1 (boot.toml:3)");
    let What::Script(script) = what(&decision) else { panic!("{decision:?}") };
    assert_eq!(script.variables["disk"], "/dev/vda", "the device's over the profile's");
    assert_eq!(script.variables["other"], "x");

    let mut by_uuid = device("52:54:00:00:00:77", Firmware::Ipxe, 0);
    by_uuid.uuid = Some("01234567-89ab-cdef-0123-456789000001".parse().unwrap());
    assert_eq!(policy.decide(&by_uuid).action, Action::LocalDisk);
    // The MAC address goes before the UUID.
    by_uuid.mac = Some("52:54:00:00:00:01".parse().unwrap());
    assert_eq!(policy.decide(&by_uuid).rule, "device seat-1 (boot.toml:3)");

    let vm = policy.decide(&device("00:16:3e:00:00:01", Firmware::Ipxe, 7));
    assert_eq!(
        (vm.rule.as_str(), what(&vm)),
        ("group vms (boot.toml:18)", &What::Literal("http://10.9.9.9/boot.ipxe".into()))
    );
    // Every key of a group has to match.
    let arm = policy.decide(&device("00:16:3e:00:00:01", Firmware::Ipxe, 11));
    assert_eq!(arm.rule, "default-profile (boot.toml:2)");
    assert_eq!(policy.decide(&device("52:54:00:00:00:03", Firmware::Ipxe, 0)).action, Action::Ignore);
    let none = self::policy(MEMBER).decide(&device("52:54:00:00:00:03", Firmware::BiosPxe, 0));
    assert_eq!((none.rule.as_str(), none.action), ("no rule", Action::LocalDisk));
}

#[test]
fn row_1_each_firmware_gets_what_it_can_load_and_ipxe_never_itself() {
    let policy = rules();
    let next = |firmware, arch| {
        let decision = policy.decide(&device("52:54:00:00:00:01", firmware, arch));
        match decision.action {
            Action::Boot(boot) => match boot.what {
                What::Script(_) => "script".to_owned(),
                What::File(path) | What::Literal(path) => path,
            },
            _ => decision.rule,
        }
    };
    assert_eq!(next(Firmware::BiosPxe, 0), "ipxe/undionly.kpxe");
    assert_eq!(next(Firmware::EfiPxe, 7), "ipxe/snponly.efi");
    assert_eq!(next(Firmware::EfiPxe, 9), "ipxe/snponly.efi");
    assert_eq!(next(Firmware::HttpClient, 16), "ipxe/snponly.efi");
    assert_eq!(next(Firmware::Gpxe, 0), "ipxe/undionly.kpxe");
    assert_eq!(next(Firmware::Ipxe, 0), "script");
    assert_eq!(next(Firmware::EfiPxe, 11), "device seat-1 (boot.toml:3): no iPXE for efi-arm64");
    // An operating system loads nothing; it hears its host name.
    assert_eq!(next(Firmware::Other, 0), "");

    let file = |firmware, arch| {
        let mut device = device("52:54:00:00:00:99", firmware, arch);
        device.circuit_id = b"rack-7".to_vec();
        device.vendor_class = b"PXEClient".to_vec();
        what(&policy.decide(&device)).clone()
    };
    // A file profile needs no iPXE: the firmware's own loader takes it, and so does iPXE.
    for firmware in [Firmware::BiosPxe, Firmware::Ipxe, Firmware::Gpxe] {
        assert_eq!(file(firmware, 0), What::File("pvs/ARDBP32.BIN".into()));
    }
    assert_eq!(file(Firmware::HttpClient, 16), What::File("pvs/pvsnbpx64.efi".into()));
}

/// Option 82 is in DHCP only; the script that is fetched by HTTP afterwards has to be the same group's.
#[test]
fn what_dhcp_told_is_remembered_for_http() {
    let policy = rules();
    let mut dhcp = device("52:54:00:00:00:99", Firmware::Ipxe, 0);
    dhcp.circuit_id = b"rack-7".to_vec();
    dhcp.vendor_class = b"PXEClient:Arch:00000:UNDI:002001".to_vec();
    assert_eq!(policy.decide(&dhcp).rule, "group racks (boot.toml:14)");
    let http = device("52:54:00:00:00:99", Firmware::Ipxe, 0);
    assert_eq!(policy.decide(&http).rule, "group racks (boot.toml:14)");
}

#[test]
fn what_is_remembered_is_bounded() {
    let policy = rules();
    for number in 0..100_000_u32 {
        let [_, a, b, c] = number.to_be_bytes();
        let mut dhcp = Device::new(Some(Mac([2, 0, 0, a, b, c])), Firmware::Ipxe);
        dhcp.vendor_class = b"PXEClient".to_vec();
        policy.decide(&dhcp);
    }
    assert!(policy.remembered() <= 65_536);
}

#[test]
fn row_22_ignored_devices_get_nothing_and_tokens_open_their_files() {
    let address = "10.0.0.7".parse().unwrap();
    let mac = |text: &str| Some(text.parse::<Mac>().unwrap());
    let policy = rules();
    assert!(!policy.may_fetch("ipxe/undionly.kpxe", address, mac("52:54:00:00:00:03"), Proof::Token));
    assert!(policy.may_fetch("ipxe/undionly.kpxe", address, mac("52:54:00:00:00:01"), Proof::Nothing));
    assert!(policy.may_fetch("k", address, None, Proof::Nothing));

    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("key"), "0123456789abcdef").unwrap();
    fs::set_permissions(folder.path().join("key"), fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!(
        "[server]\nsecret-file = \"key\"\n{MEMBER}[profile.a]\nkernel = \"a/k\"\ninitrd = [\"a/{{{{ arch }}}}.img\"]\ntoken = true\n\
         [profile.b]\nkernel = \"b/k\"\n[[device]]\nmac = \"02:00:00:00:00:0a\"\nprofile = \"a\"\n"
    );
    let loaded = parse(&text, &folder.path().join("boot.toml")).unwrap();
    let policy = Policy::new(loaded.rules, Arc::new(Two));
    for (path, is_open) in [("a/k", false), ("a/bios.img", false), ("b/k", true), ("ipxe/snponly.efi", true)]
    {
        assert_eq!(policy.may_fetch(path, address, None, Proof::Nothing), is_open, "{path}");
        assert!(policy.may_fetch(path, address, None, Proof::Token), "{path}");
    }
    // A script is as closed as the files that it names: the decision says so, whatever else could be asked of its path
    // (`token_rule` asks a whole library).
    let has_token = |mac: &str| match policy.decide(&device(mac, Firmware::Ipxe, 7)).action {
        Action::Boot(boot) => boot.has_token,
        other => panic!("{other:?}"),
    };
    assert!(has_token("02:00:00:00:00:0a"));
    let shared = text.replace("\"b/k\"", "\"a/k\"");
    let problems = parse(&shared, &folder.path().join("boot.toml")).unwrap_err().to_string();
    assert!(
        problems.contains("a/k needs a token in another profile, so \"b\" needs token = true too"),
        "{problems}"
    );
}

#[test]
fn a_place_is_protected_however_the_boot_file_spells_it() {
    let profile = |place: &str| {
        format!("[server]\nsecret-file = \"secret\"\n{MEMBER}[profile.p]\nfile = '{place}'\ntoken = true\n")
    };
    for spelt in ["closed/vmlinuz", "/Closed//./VMLINUZ", "closed\\vmlinuz"] {
        let problems = errors(&format!("{}[profile.open]\nfile = 'Closed/vmlinuz'\n", profile(spelt)));
        assert!(
            problems.iter().any(|problem| problem.contains("needs a token in another profile")),
            "{problems:?}"
        );
    }
    for any in ["{{ mac }}/x", "/{{ mac }}", ".//{{ mac }}"] {
        let problems = errors(&profile(any));
        assert!(problems.iter().any(|problem| problem.contains("could be any file")), "{problems:?}");
    }
}

#[test]
fn a_menu_holds_its_entries_with_the_devices_variables() {
    let policy = rules();
    let menu = policy.decide(&device("52:54:00:00:00:88", Firmware::Ipxe, 7));
    let (Action::Boot(boot), What::Script(script)) = (&menu.action, what(&menu)) else { panic!("{menu:?}") };
    let context = Context { path_of: Arc::new(str::to_owned), script_path: "s/x".into() };
    let text =
        script::render(script, &device("52:54:00:00:00:88", Firmware::Ipxe, 7), boot, &context).unwrap();
    assert!(text.contains("disk=/dev/sda") && text.contains("http://10.0.0.11/pvs/pvsnbpx64.efi"), "{text}");
}

/// A hundred thousand devices are found as fast as one.
#[test]
fn many_devices_are_found_at_once() {
    let mut text = format!("{MEMBER}[profile.a]\nlocal = true\n");
    for number in 0..100_000_u32 {
        let [_, a, b, c] = number.to_be_bytes();
        text.push_str(&format!(
            "[[device]]\nmac = \"02:00:00:{a:02x}:{b:02x}:{c:02x}\"\nprofile = \"a\"\nname = \"n{number}\"\n"
        ));
    }
    let began = std::time::Instant::now();
    let policy = policy(&text);
    eprintln!("100,000 devices read in {:?}", began.elapsed());
    let began = std::time::Instant::now();
    for number in 0..10_000_u32 {
        let [_, a, b, c] = (number * 10).to_be_bytes();
        let decision = policy.decide(&Device::new(Some(Mac([2, 0, 0, a, b, c])), Firmware::Ipxe));
        assert!(decision.rule.starts_with("device n"), "{}", decision.rule);
    }
    eprintln!("10,000 decisions in {:?}", began.elapsed());
}

fn question(mac: &str) -> Question {
    Question {
        mac: mac.parse().unwrap(),
        uuid: None,
        arch: None,
        subnet: Some("10.0.0.0".parse().unwrap()),
        circuit_id: None,
        server: "10.0.0.11".parse().unwrap(),
    }
}

/// `UPDATE_GOLDEN=1 cargo test` writes the file anew.
#[test]
fn explain_shows_every_answer() {
    let text = explain(&rules(), &question("52:54:00:00:00:01"), &UrlBuilder::default()).to_string();
    let path = format!("{}/src/boot/golden/explain.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(&path).unwrap());
}

#[test]
fn explain_says_why_other_rules_lost() {
    let mut question = question("00:16:3e:00:00:05");
    question.arch = Some(Architecture::EFI_ARM64);
    let explanation = explain(&rules(), &question, &UrlBuilder::default());
    let outcomes: Vec<&str> = explanation.rules.iter().map(|rule| rule.outcome.as_str()).collect();
    assert_eq!(
        outcomes,
        [
            "none has this MAC address or UUID",
            "circuit-id does not match: it is not known",
            "arch does not match: it is efi-arm64",
            "nothing else matched: profile menu",
        ]
    );
    assert_eq!(explanation.rules.iter().filter(|rule| rule.is_winner).count(), 1);
    question.circuit_id = Some(b"rack-9".to_vec());
    question.arch = Some(Architecture::BIOS);
    let explanation = explain(&rules(), &question, &UrlBuilder::default());
    assert!(
        explanation.answers.iter().all(|answer| answer.profile.as_deref() == Some("pvs")),
        "{explanation}"
    );
    let json = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["answers"][0]["told"], "tftp://10.0.0.11/pvs/ARDBP32.BIN");
    assert_eq!(json["rules"][1]["is-winner"], true);
}

#[test]
fn a_name_in_urls_needs_a_name_server() {
    let warnings = |mode: &str, dns: &str, name: &str| {
        let text = format!(
            "default-profile = \"p\"\n[dhcp]\nmode = \"{mode}\"\n[[member]]\nname = \"a\"\naddress = \"10.0.0.1\"\n\
             https-port = 443\n{name}[[subnet]]\nnetwork = \"10.0.0.0/24\"\n{dns}[profile.p]\nfile = \"x\"\nsecure = true\n"
        );
        let loaded = parse(&text, Path::new("boot.toml")).unwrap_or_else(|problems| panic!("{problems}"));
        loaded.warnings.to_string()
    };
    let (name, dns, said) = ("https-name = \"boot.example\"\n", "dns = \"10.0.0.2\"\n", "tells no dns");
    assert!(warnings("server", "", name).contains(said), "{}", warnings("server", "", name));
    assert!(!warnings("server", dns, name).contains(said));
    assert!(!warnings("server", "", "").contains(said), "an address needs none");
    assert!(!warnings("proxy", "", name).contains(said), "it is the other server's to tell");
}

/// A folder with as much of iPXE's programs as can be told apart: a PE file for x86-64 that knows `autoexec.ipxe`.
fn programs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut program = vec![0; 0x50];
    program[0x3c] = 0x40;
    program[0x40..0x46].copy_from_slice(b"PE\0\0\x64\x86");
    program.extend_from_slice(b"\0autoexec.ipxe\0");
    fs::write(folder.path().join("ipxe.efi"), program).unwrap();
    folder
}

#[test]
fn media_are_served_if_the_table_is_there() {
    let folder = programs();
    let read = |table: &str| {
        let text = format!("{MEMBER}[server]\nipxe = \"{}\"\n{table}", folder.path().display());
        parse(&text, &folder.path().join("boot.toml")).unwrap_or_else(|problems| panic!("{problems}"))
    };
    let without = read("");
    assert!(!without.settings.media.is_served);
    assert_eq!(without.settings.medium().programs, folder.path());
    assert!(!without.warnings.to_string().contains("media"), "{}", without.warnings);
    fs::write(folder.path().join("ca.pem"), "a certificate").unwrap();
    let with = read("[media]\nvlan = 7\ntrust = \"ca.pem\"\nprograms = \"none\"\n");
    let medium = with.settings.medium();
    assert!(with.settings.media.is_served);
    assert_eq!((medium.vlan, medium.ca.as_deref()), (Some(7), Some(&b"a certificate"[..])));
    assert_eq!(medium.programs, folder.path().join("none"));
    assert_eq!(medium.members.len(), 1);
}

#[test]
fn missing_programs_of_media_are_told() {
    let folder = programs();
    let warnings = |place: &str| {
        let text = format!("{MEMBER}[media]\nprograms = \"{place}\"\n");
        let loaded = parse(&text, &folder.path().join("boot.toml")).unwrap();
        let about = loaded.warnings.list.into_iter().filter(|problem| problem.message.contains("boot media"));
        about
            .map(|problem| (problem.message, problem.hint.unwrap(), problem.place.unwrap().line))
            .collect::<Vec<_>>()
    };
    let hint = "install the package ipxe, or name the folder with its programs as media.programs";
    let here = folder.path().display();
    let none = format!(
        "boot media cannot be made and are not served: no iPXE in {here}/none: neither ipxe.lkrn (BIOS) nor ipxe.efi (UEFI)"
    );
    assert_eq!(warnings("none"), [(none, hint.into(), 4)]);
    let half = format!("no ipxe.lkrn in {here}/.: boot media do not boot on a BIOS");
    assert_eq!(warnings("."), [(half, hint.into(), 4)]);
}

#[test]
fn media_that_cannot_be_are_errors() {
    let folder = programs();
    fs::write(folder.path().join("large"), vec![b'x'; (64 << 10) + 1]).unwrap();
    for (table, error) in [
        ("vlan = 4095", "a VLAN has a tag from 1 to 4094"),
        ("secure = true", "boot media: a has no https-port and shall be asked by https"),
        ("trust = \"large\"", "it has more than 64.0 KiB"),
        ("iso = true", "unknown key \"iso\""),
    ] {
        let text = format!("{MEMBER}[server]\nipxe = \".\"\n[media]\n{table}\n");
        let problems = parse(&text, &folder.path().join("boot.toml")).unwrap_err();
        let errors: Vec<_> =
            problems.list.iter().filter(|problem| problem.severity == Severity::Error).collect();
        assert!(errors.len() == 1 && errors[0].message.ends_with(error), "{problems}");
    }
}

#[test]
fn a_medium_can_be_a_profiles_file() {
    let profile = "[profile.p]\nfiles = { http-x64 = \"m/goldwire.iso\" }\n";
    let warnings = |text: &str| {
        let loaded = parse(text, Path::new("boot.toml")).unwrap();
        loaded.warnings.list.into_iter().map(|problem| problem.message).collect::<Vec<_>>()
    };
    let complaint = "m/goldwire.iso is a boot medium, and none is served";
    assert!(warnings(&format!("{MEMBER}{profile}")).contains(&complaint.to_owned()));
    let served = warnings(&format!("{MEMBER}{profile}[media]\n"));
    assert!(!served.iter().any(|message| message.contains("m/goldwire.iso")), "{served:?}");
}

#[test]
fn tftp_answers_anybody_from_one_port_only_with_a_warning() {
    let said = "in single-port mode, who can forge addresses can have files sent to anybody";
    let subnet = "[[subnet]]\nnetwork = \"10.0.0.0/24\"\n";
    for (tftp, subnet, is_told) in [
        ("single-port = true", "", true),
        ("single-port = true", subnet, false),
        ("single-port = true\nallow-from = [\"10.1.0.0/16\"]", "", false),
        ("single-port = true\nlisten = []", "", true),
        ("single-port = true\nlisten = []", subnet, false),
        ("single-port = true\nlisten = [\"[::]:69\"]", subnet, true),
        ("single-port = true\nallow-from = [\"0.0.0.0/0\"]", subnet, true),
        ("single-port = false", "", false),
        ("", "", false),
    ] {
        let loaded = parse(&format!("[tftp]\n{tftp}\n{MEMBER}{subnet}"), Path::new("boot.toml")).unwrap();
        assert_eq!(
            loaded.warnings.to_string().contains(said),
            is_told,
            "{tftp} {subnet}: {}",
            loaded.warnings
        );
    }
}

#[test]
fn who_is_told_no_token_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    fs::write(&key, "0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let warnings = |tables: &str, token: bool| {
        let text = format!(
            "[server]\nsecret-file = \"key\"\n{MEMBER}{tables}[profile.a]\nkernel = \"k\"\ntoken = {token}\n"
        );
        let loaded = parse(&text, &folder.path().join("boot.toml")).unwrap();
        let about = loaded.warnings.list.into_iter().filter(|problem| problem.message.contains("token"));
        about.map(|problem| (problem.message, problem.place.unwrap().text)).collect::<Vec<_>>()
    };
    let proxy = "[dhcp]\nmode = \"proxy\"\n";
    let off =
        "no device is told a token: dhcp.mode is \"off\", and a fixed boot file or autoexec.ipxe holds none";
    let medium = "who boots from a boot medium has no token, and gets no script of a profile with token";
    let at = |message: &str| (message.to_owned(), "token = true".to_owned());
    assert_eq!(warnings("", true), [at(off)]);
    assert_eq!(warnings("[dhcp6]\ninterfaces = [\"eth0\"]\n", true), []);
    assert_eq!(warnings(proxy, true), []);
    assert_eq!(warnings(&format!("{proxy}[media]\n"), true), [at(medium)]);
    assert_eq!(warnings("[media]\n", false), []);
}

#[test]
fn rules_by_relay_want_the_relays_named() {
    let told = |dhcp: &str, keys: &str| {
        let group = format!("[[group]]\nname = \"g\"\n{keys}\nprofile = \"p\"\n");
        let text = format!("{MEMBER}[profile.p]\nlocal = true\n{group}[dhcp]\n{dhcp}\n");
        let loaded = parse(&text, Path::new("boot.toml")).unwrap_or_else(|problems| panic!("{problems}"));
        let messages = loaded.warnings.list.into_iter().map(|problem| problem.message);
        messages.filter(|message| message.contains("every relay is believed")).collect::<Vec<_>>()
    };
    let (circuit, remote) = ("circuit-id = \"rack-*\"", "remote-id = \"switch-1\"");
    let of = |key: &str| format!("any host can say that it has this {key}: every relay is believed");
    for mode in ["proxy", "off"].map(|mode| format!("mode = \"{mode}\"")) {
        let is_asked = mode.contains("proxy");
        let expected =
            |keys: &[&str]| if is_asked { keys.iter().map(|key| of(key)).collect() } else { Vec::new() };
        assert_eq!(told(&mode, circuit), expected(&["circuit-id"]));
        assert_eq!(told(&mode, &format!("{circuit}\n{remote}")), expected(&["circuit-id", "remote-id"]));
        assert_eq!(told(&mode, "arch = \"bios\""), expected(&[]));
        assert_eq!(told(&format!("{mode}\nrelays = [\"10.0.0.0/24\"]"), circuit), expected(&[]));
    }
}

#[test]
fn a_lease_is_no_shorter_than_a_boot() {
    for key in ["lease", "boot-lease"] {
        for (seconds, is_enough) in [(1, false), (29, false), (30, true), (31, true), (3600, true)] {
            let text = format!(
                "[[subnet]]\nnetwork = \"10.0.0.0/24\"\n{key} = \"{seconds}s\"\n\
                 [[member]]\nname = \"m\"\naddress = \"10.0.0.1\"\n"
            );
            let parsed = parse(&text, Path::new("boot.toml"));
            let is_refused = parsed.is_err_and(|problems| {
                problems.list.iter().any(|problem| problem.message.contains("shorter than 30s"))
            });
            assert_eq!(is_refused, !is_enough, "{key} of {seconds} s");
        }
    }
}
