//! What rules decide, and who may fetch what.

use super::*;

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

pub(super) fn rules() -> Policy {
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
