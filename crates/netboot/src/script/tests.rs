use super::*;
use crate::device::{Architecture, Firmware, Mac};
use crate::member::Member;
use crate::policy::{MenuEntry, What};

fn member(name: &str, address: &str, http_port: u16) -> Member {
    Member {
        name: name.into(),
        address: address.parse().unwrap(),
        http_port,
        https_port: None,
        https_name: None,
    }
}

fn script(name: &str, template: impl Into<Template>) -> Script {
    Script { name: name.into(), template: template.into(), variables: BTreeMap::new() }
}

fn device() -> Device {
    let mut device = Device::new(Some(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56])), Firmware::Ipxe);
    device.arch = Some(Architecture::EFI_X64);
    device
}

fn boot() -> Boot {
    Boot {
        profile: "lab".into(),
        what: What::File(String::new()),
        members: vec![member("boot1", "10.0.0.1", 80), member("boot2", "10.0.0.2", 8080)],
        is_secure: false,
        has_token: false,
        root_path: None,
        host_name: Some("seat-17".into()),
    }
}

fn context() -> Context {
    Context {
        path_of: Arc::new(|path| {
            if path.starts_with("lab/") {
                format!("c/00112233445566778899aabbccddeeff/{path}")
            } else {
                path.into()
            }
        }),
        script_path: "s/52-54-00-12-34-56/efi-x64/-/boot.ipxe".into(),
    }
}

fn rendered(script: &Script) -> String {
    render(script, &device(), &boot(), &context()).unwrap()
}

fn reason(script: &Script) -> String {
    render(script, &device(), &boot(), &context()).unwrap_err().to_string()
}

fn kernel() -> Script {
    let template = Template::Kernel {
        kernel: "lab/vmlinuz".into(),
        initrds: vec!["lab/initrd.img".into(), "extra files/site.img".into()],
        arguments: "root=/dev/nfs  nfsroot={{ vars.nfs }} hostname={{ name }}".into(),
    };
    Script { variables: [("nfs".into(), "10.0.0.9:/lab".into())].into(), ..script("lab", template) }
}

fn chain() -> Script {
    script("winpe", Template::Chain { program: "lab/wimboot {{ processor }}.efi".into() })
}

fn san(disks: &[&str]) -> Script {
    let disks = disks.iter().map(|disk| (*disk).into()).collect();
    script("disk", Template::San { disks, initiator: Some("iqn.2024-01.example:{{ name }}".into()) })
}

fn menu() -> Script {
    let entry = |title: &str, script| MenuEntry {
        profile: "p".into(),
        title: title.into(),
        script: Arc::new(script),
    };
    let inner = Template::Menu {
        title: "More".into(),
        entries: vec![entry("Own disk", script("local", Template::Local))],
        timeout_seconds: 0,
    };
    let entries = vec![
        entry("Lab Linux", kernel()),
        entry("More choices", script("more", inner)),
        entry("From the SAN", san(&["iscsi:10.0.0.5::::iqn.2024-01.example:a"])),
    ];
    script("menu", Template::Menu { title: "What shall it be?".into(), entries, timeout_seconds: 20 })
}

/// `UPDATE_GOLDEN=1 cargo test` writes the files anew; the difference is then for a reviewer to read.
fn check_golden(name: &str, script: &Script) {
    let text = rendered(script);
    let path = format!("{}/src/script/golden/{name}.ipxe", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}");
    assert_eq!(syntax::unguarded(&text), Vec::<String>::new(), "{name}");
}

#[test]
fn built_in_scripts_are_these() {
    check_golden("kernel", &kernel());
    check_golden("chain", &chain());
    check_golden(
        "san",
        &san(&["iscsi:10.0.0.5::::iqn.2024-01.example:a", "iscsi:10.0.0.6::::iqn.2024-01.example:a"]),
    );
    check_golden("san-http", &san(&["lab/disk.img"]));
    check_golden("menu", &menu());
    check_golden("local", &script("local", Template::Local));
}

/// iPXE loaded itself for ever where the firmware's boot file shadowed the script, and row 4: it took `next-server` from
/// the router instead of the proxyDHCP server. Scripts use neither, and do not boot by DHCP's word.
#[test]
fn row_1_and_4_scripts_do_not_depend_on_dhcp_settings() {
    for script in [kernel(), chain(), san(&["lab/a"]), menu(), script("local", Template::Local)] {
        let text = rendered(&script);
        for word in [
            "next-server",
            "${filename}",
            "root-path",
            "proxydhcp",
            "autoboot",
            "pxebs",
            "undionly",
            "snponly",
        ] {
            assert!(!text.contains(word), "{word}");
        }
    }
}

/// A port that waits for STP or LACP drops packets for a minute, and again whenever the link goes down. Scripts leave the
/// link up, and come back until long after that.
#[test]
fn row_7_a_slow_port_is_waited_for_with_the_link_up() {
    for script in [kernel(), chain(), san(&["lab/a"]), menu(), script("local", Template::Local)] {
        let text = rendered(&script);
        assert!(!text.contains("ifclose") && !text.contains("ifopen"), "{text}");
        let number = |before: &str| -> u32 {
            let digits = text.split(before).nth(1).unwrap().split(|c: char| !c.is_ascii_digit()).next();
            digits.unwrap().parse().unwrap()
        };
        let first = number("set goldwire-pause:int32 ");
        let (rounds, step) = (number("iseq ${goldwire-round} "), number("inc goldwire-pause "));
        let waited: u32 = (0..rounds).map(|round| first + round * step).sum();
        assert!(waited > 120, "{waited} s, and it goes on after that");
        assert!(text.trim_end().ends_with("failed"), "{text}");
    }
}

/// iPXE missed an offer and gave up. A script that failed asks DHCP again, then for a new script.
#[test]
fn row_8_a_failed_boot_asks_dhcp_again() {
    for script in [kernel(), chain(), san(&["lab/a"]), script("local", Template::Local)] {
        let text = rendered(&script);
        let (dhcp, again) = (text.find("&& dhcp ||").unwrap(), text.find("chain --replace").unwrap());
        assert!(dhcp < again);
        assert!(text.trim_end().ends_with("goto failed"), "{text}");
    }
}

/// HTTP Boot left iPXE without DNS. URLs hold addresses.
#[test]
fn row_15_urls_need_no_dns() {
    let text = rendered(&menu());
    let hosts = text.split_whitespace().filter_map(|word| word.strip_prefix("http://"));
    for host in hosts.map(|rest| rest.split(['/', ':']).next().unwrap()).filter(|host| *host != "ipxe.org") {
        assert!(host.parse::<std::net::IpAddr>().is_ok(), "{host}");
    }
}

/// A slow server failed a boot that had no `|| goto`. Every fetch has a limit, another member and a place to go.
#[test]
fn row_20_no_fetch_is_without_limit_and_fallback() {
    for script in [kernel(), chain(), san(&["lab/a"]), menu(), script("local", Template::Local)] {
        let text = rendered(&script);
        assert_eq!(syntax::unguarded(&text), Vec::<String>::new());
        for line in
            text.lines().filter(|line| line.contains("http://10.0.0.1") && !line.starts_with("sanboot"))
        {
            let (first, second) = (line.find("10.0.0.1/").unwrap(), line.find("10.0.0.2:8080/").unwrap());
            assert!(first < second && line.matches("--timeout 8000").count() == 2, "{line}");
        }
    }
}

/// iBFT has room for two targets; iPXE refused to boot from three.
#[test]
fn row_21_more_than_two_iscsi_paths_are_not_described() {
    let paths: Vec<String> =
        (1..4).map(|host| format!("iscsi:10.0.0.{host}::::iqn.2024-01.example:a")).collect();
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    assert!(!rendered(&san(&paths[..2])).contains("--no-describe"));
    assert!(rendered(&san(&paths)).contains("sanboot --no-describe iscsi:10.0.0.1"));
    assert!(
        rendered(&san(&["http://10.0.0.1/a.iso"])).contains("sanboot --no-describe http://10.0.0.1/a.iso")
    );
}

#[test]
fn a_variable_begins_no_command() {
    for evil in ["a\nshell", "a || shell", "${net0/mac}", "||", "a b"] {
        let mut script = kernel();
        script.variables.insert("nfs".into(), evil.into());
        assert!(reason(&script).contains("lab"), "{evil:?}");
        let mut text = self::script("own", "#!ipxe\necho {{ vars.x|words }}\n");
        text.variables.insert("x".into(), evil.into());
        // Words are allowed here; nothing that ends the command is.
        let is_harmless = evil == "a b";
        match render(&text, &device(), &boot(), &context()) {
            Ok(text) => assert!(is_harmless || text == "#!ipxe\necho a shell\n", "{text}"),
            Err(_) => assert!(!is_harmless),
        }
    }
}

/// What is safe in HTML is not safe here.
#[test]
fn no_filter_makes_a_variable_more_than_a_word() {
    for expression in [
        "vars.x|e",
        "vars.x|escape",
        "vars.x|safe",
        "'a'|words ~ vars.x",
        "'a'|safe ~ vars.x",
        "vars.x|e|lines|first ~ vars.x",
        "['a'|safe, vars.x]|join('')",
        "'ab'|safe|replace('b', vars.x)",
    ] {
        for escape in ["", "{% autoescape true %}"] {
            let end = if escape.is_empty() { "" } else { "{% endautoescape %}" };
            let text = format!("#!ipxe\n{escape}echo {{{{ {expression} }}}}{end}\n");
            let mut script = script("own", text);
            script.variables.insert("x".into(), "a\nshell".into());
            let result = render(&script, &device(), &boot(), &context());
            assert!(result.is_err(), "{expression}: {result:?}");
        }
    }
}

#[test]
fn own_templates_reach_what_built_in_ones_do() {
    let text = "#!ipxe\n{{ fetch('lab/vmlinuz', 'kernel') }}\nboot kernel root={{ url('lab/root.img') }} ||\n\
                {% include \"failed.ipxe\" %}\n";
    let rendered = rendered(&script("own", text));
    assert!(
        rendered.contains("root=http://10.0.0.1/c/00112233445566778899aabbccddeeff/lab/root.img"),
        "{rendered}"
    );
    assert!(rendered.contains("|| goto failed"));
}

#[test]
fn mistakes_name_the_line() {
    assert_eq!(
        reason(&script("own", "#!ipxe\necho {{ vars.hots }}\n")),
        "render the script own: line 2: vars.hots is not defined"
    );
    assert!(reason(&script("own", "#!ipxe\n{% for %}")).contains("line 2"), "syntax");
    assert!(reason(&script("own", "#!ipxe\ngoto nowhere\n")).contains("goto nowhere"));
    assert!(check_template("own", "#!ipxe\n{{ x").is_err() && check_template("own", "#!ipxe\n").is_ok());
    let mut dead = boot();
    dead.members.clear();
    assert!(render(&kernel(), &device(), &dead, &context()).is_err());
}

#[test]
fn templates_end() {
    let endless = "#!ipxe\n{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    assert!(reason(&script("own", endless)).contains("fuel"), "{}", reason(&script("own", endless)));
    let long = "#!ipxe\n{% for a in range(9000) %}# {{ 'x' * 100 }}\n{% endfor %}";
    assert!(
        reason(&script("own", long)).contains("256 KiB") || reason(&script("own", long)).contains("long")
    );
}

#[test]
fn a_secure_profile_names_only_members_with_https() {
    let mut boot = boot();
    boot.is_secure = true;
    assert!(render(&kernel(), &device(), &boot, &context()).is_err());
    boot.members[1].https_port = Some(443);
    let text = render(&kernel(), &device(), &boot, &context()).unwrap();
    assert!(text.contains("https://10.0.0.2/") && !text.contains("10.0.0.1"), "{text}");
}

#[test]
fn menus_that_multiply_are_refused() {
    let mut menu = Arc::new(script("local", Template::Local));
    for _ in 0..6 {
        let entry = MenuEntry { profile: "p".into(), title: "t".into(), script: menu };
        let entries = vec![entry; 8];
        menu = Arc::new(script("menu", Template::Menu { title: "t".into(), entries, timeout_seconds: 0 }));
    }
    assert!(reason(&menu).contains("256"), "{}", reason(&menu));
}

#[test]
fn pauses_differ_between_devices() {
    let pauses: std::collections::BTreeSet<u32> = (0..64)
        .map(|last| first_pause(&Device::new(Some(Mac([2, 0, 0, 0, 0, last])), Firmware::Ipxe)))
        .collect();
    assert_eq!(pauses.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7, 8, 9]);
}
