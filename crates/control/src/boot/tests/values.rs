//! Values that a script, a reply or an option would carry to a device are looked at when the file is read.

use super::*;

/// The errors of a file, each with its line and its hint.
fn told(text: &str) -> Vec<(String, Option<String>)> {
    let list = match parse(text, Path::new("boot.toml")) {
        Ok(_) => Vec::new(),
        Err(problems) => problems.list,
    };
    let errors = list.into_iter().filter(|problem| problem.severity == Severity::Error);
    errors.map(|problem| (problem.message, problem.hint)).collect()
}

#[test]
fn what_no_device_could_use_is_refused_with_a_hint() {
    for (table, expected) in [
        ("[profile.a]\nurl = \"not a url\"", "\"not a url\" is no URL"),
        ("[profile.a]\nurl = \"\"", "\"\" is no URL"),
        ("[profile.a]\nurl = \"iscsi:10.0.0.1::::iqn.a\"", "is no URL"),
        ("[profile.a]\nurl = \"http://10.0.0.256/x\"", "has no host in \"10.0.0.256\""),
        ("[profile.a]\nfile = \"http://h/x\"", "has to be a path below server.root, as it is"),
        ("[profile.a]\nfile = \"{{ arch }}/x\"", "has to be a path below server.root, as it is"),
        ("[profile.a]\nfiles = { bios = \"\" }", "\"\" names no file"),
        ("[ipxe]\nbios = \"http://h/x\"", "has to be a path below server.root, as it is"),
        ("[profile.a]\nkernel = \"\"", "\"\" names no file"),
        ("[profile.a]\nkernel = \"a\\nb\"", "names no file"),
        ("[profile.a]\nkernel = \"http://h:0/x\"", "has no host in \"h:0\""),
        ("[profile.a]\nkernel = \"k\"\ninitrd = [\"htp://h/x\"]", "the unknown scheme \"htp\""),
        ("[profile.a]\nsan = \"iscsi:10.0.0.1\"", "names no server"),
        (
            "[profile.a]\nmenu = [\"b\"]\ntimeout = \"500ms\"\n[profile.b]\nlocal = true",
            "a menu waits for 1s to 24h",
        ),
        // It overflowed, and ended the program.
        (
            "[profile.a]\nmenu = [\"b\"]\ntimeout = \"60d\"\n[profile.b]\nlocal = true",
            "a menu waits for 1s to 24h",
        ),
        ("[dhcp]\nmode = \"proxy\"\ninterfaces = [\"eth0\", \"..\"]", "no interface is called \"..\""),
        ("[dhcp6]\ninterfaces = \"\"", "no interface is called \"\""),
        ("[[subnet]]\nnetwork = \"10.9.0.0/24\"\ndomain = \"a b\"", "\"a b\" is no domain name"),
        ("[[subnet]]\nnetwork = \"10.9.0.0/24\"\nsearch = [\"a\", \"b..c\"]", "\"b..c\" is no domain name"),
        ("[[device]]\nmac = \"52:54:00:00:00:01\"\nname = \"seat 17\"", "\"seat 17\" is no host name"),
        (
            "[[subnet]]\nnetwork = \"10.9.0.0/24\"\nreservation = [{ mac = \"52:54:00:00:00:01\", address = \"10.9.0.9\", name = \"\" }]",
            "\"\" is no host name",
        ),
        (
            "[[member]]\nname = \"b\"\naddress = \"10.0.0.2\"\nhttps-name = \"https://b\"",
            "is no name or address of a host",
        ),
        // The server refused to start with it.
        (
            "[[member]]\nname = \"b b\"\naddress = \"10.0.0.2\"\n[heartbeat]\nlisten = \"0.0.0.0:7007\"",
            "announce the member \"b b\": ",
        ),
        (
            "[server]\nsecret-file = \"/dev/null\"\n[heartbeat]\nlisten = \"0.0.0.0:7007\"\nannounce-to = \"239.255.0.7:0\"",
            "nobody hears what is sent to 239.255.0.7:0",
        ),
    ] {
        let told = told(&format!("{MEMBER}{table}\n"));
        let found = told.iter().find(|(message, _)| message.contains(expected));
        assert!(found.is_some_and(|(_, hint)| hint.is_some()), "{table}: {told:?}");
    }
    for good in [
        "[profile.a]\nurl = \"http://10.0.0.1/${net0/mac}.ipxe\"",
        "[profile.a]\nurl = \"\"\nroot-path = \"iscsi:10.0.0.1::::iqn.a\"",
        "[profile.a]\nsan = [\"iscsi:10.0.0.1::::iqn.a:{{ mac_hyphenated }}\", \"http://h/disk.img\"]",
        "[[member]]\nname = \"b\"\naddress = \"10.0.0.2\"\nhttps-name = \"10.0.0.2\"\n[server]\nname = \"a\"",
    ] {
        assert_eq!(told(&format!("{MEMBER}{good}\n")), [], "{good}");
    }
}

#[test]
fn addresses_that_no_device_can_have_are_not_given() {
    let file = |subnet: &str| {
        format!("{MEMBER}[dhcp]\nmode = \"server\"\n[[subnet]]\nnetwork = \"10.0.0.0/24\"\n{subnet}\n")
    };
    let kept =
        |address: &str| format!("reservation = [{{ mac = \"52:54:00:00:00:01\", address = \"{address}\" }}]");
    for (subnet, expected) in [
        (kept("10.0.0.0"), "10.0.0.0 is the network's own or its broadcast address"),
        (kept("10.0.0.255"), "10.0.0.255 is the network's own or its broadcast address"),
        (kept("10.0.0.1"), "10.0.0.1 is the member a's"),
        (
            "pools = \"10.0.0.1-10.0.0.9\"".into(),
            "the pool 10.0.0.1-10.0.0.9 holds the address of the member a",
        ),
        (
            "router = \"10.0.0.255\"".into(),
            "the router 10.0.0.255 is the network's own or its broadcast address",
        ),
        ("lease = \"99999d\"".into(), "a lease ends within 136 years: DHCP counts 32 bits of seconds"),
    ] {
        assert_eq!(errors(&file(&subnet)), [expected], "{subnet}");
    }
    // Those of other members too: they answer, and are given away no less.
    let other = file("pools = \"10.0.0.10-10.0.0.19\"")
        + "[[member]]\nname = \"b\"\naddress = \"10.0.0.11\"\n[server]\nname = \"a\"\n";
    assert_eq!(errors(&other), ["the pool 10.0.0.10-10.0.0.19 holds the address of the member b"]);
    for key in ["http-port", "https-port", "tftp-port"] {
        assert_eq!(
            errors(&format!("{MEMBER}{key} = 0\n")),
            [format!("{key} cannot be 0: devices and members have to be told one")]
        );
    }
}

/// `check` called these good, and the server did not start.
#[test]
fn sockets_in_each_others_way_are_told() {
    for (tables, expected) in [
        (
            "[http]\nlisten = [\"0.0.0.0:80\", \"10.0.0.1:80\"]",
            Some("http.listen (10.0.0.1:80) and http.listen (0.0.0.0:80)"),
        ),
        (
            "[metrics]\nlisten = \"127.0.0.1:80\"",
            Some("metrics.listen (127.0.0.1:80) and http.listen (0.0.0.0:80)"),
        ),
        (
            "[http]\nlisten = \"0.0.0.0:443\"\ncertificate = \"c\"\nkey = \"k\"",
            Some("http.tls-listen (0.0.0.0:443) and http.listen (0.0.0.0:443)"),
        ),
        (
            "[dhcp]\nmode = \"proxy\"\n[tftp]\nlisten = \"0.0.0.0:4011\"",
            Some("tftp.listen (0.0.0.0:4011) has a port of DHCP"),
        ),
        ("[http]\nlisten = [\"127.0.0.1:0\", \"127.0.0.1:0\"]", None),
        ("[http]\nlisten = [\"0.0.0.0:80\", \"[::]:80\"]", None),
        ("[http]\nlisten = [\"10.0.0.1:80\", \"10.0.0.2:80\"]\n[tftp]\nlisten = \"0.0.0.0:80\"", None),
        ("[tftp]\nlisten = \"0.0.0.0:4011\"", None),
    ] {
        let told = told(&format!("{MEMBER}{tables}\n"));
        match expected {
            Some(expected) => {
                assert!(told.len() == 1 && told[0].0.starts_with(expected), "{tables}: {told:?}")
            }
            None => assert_eq!(told, [], "{tables}"),
        }
    }
}
