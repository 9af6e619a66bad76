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

mod decisions;
mod explanations;
mod media;
mod values;

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
/// Values of the file stand in what is said about it, and the file may be somebody else's.
#[test]
fn nothing_in_a_boot_file_is_obeyed_by_a_terminal() {
    for value in ["kernel = \"a\\u001b[31mb\\nc\"", "file = \"a\\u009b1m\"", "script = \"\\u202e\""] {
        let text = format!("{MEMBER}[profile.\"\\u001bx\"]\n{value}\n[profile.p]\n{value}\n");
        let told = match parse(&text, Path::new("boot\u{1b}.toml")) {
            Ok(loaded) => loaded.warnings.to_string(),
            Err(problems) => problems.to_string(),
        };
        assert!(!told.is_empty());
        assert!(told.lines().all(|line| goldwire_stdx::printable(line) == line), "{told:?}");
        assert!(!told.lines().any(|line| line == "c"), "{told:?}");
    }
}

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
        ("[profile.a]\nurl = \"http://x/\"\nvariables = { a-b = \"x\" }", ""),
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
