//! `goldwire boot …` as a person meets it: on loopback, with ports that the system picks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use goldwire_stdx::testing;
use rustix::process::Signal;

use crate::machine;
use crate::site::{Server, Site, fetch, is_sending, status};
use crate::sync::text;
use crate::tool::Scene;

const MAC: &str = "52:54:00:00:00:01";

#[test]
fn help_and_wrong_usage_are_as_everywhere() {
    let scene = Scene::new();
    let all = [
        "serve",
        "check",
        "explain",
        "script",
        "watch",
        "doctor",
        "balance",
        "media",
        "secret",
        "certificate",
    ];
    for name in all {
        let help = scene.goldwire(["boot", name, "--help"]).expect(0);
        assert!(help.stdout.contains(&format!("Usage: goldwire boot {name}")), "{help}");
    }
    let folder = scene.folder("man");
    scene.goldwire(["man", text(&folder)]).expect(0);
    for name in all {
        let page = fs::read_to_string(folder.join(format!("goldwire-boot-{name}.1"))).unwrap();
        assert!(page.contains(".TH "), "{name}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = scene.goldwire(["completions", shell]).expect(0);
        assert!(
            script.stdout.contains("certificate") && script.stdout.contains("proxy-protocol-from"),
            "{shell}"
        );
    }
    for words in [
        &["boot"][..],
        &["boot", "sevre"],
        &["boot", "explain"],
        &["boot", "explain", "52:54"],
        &["boot", "watch", "seat-17"],
        &["boot", "script", "--arch", "z80", MAC],
        &["boot", "doctor"],
        &["boot", "doctor", "--server", "10.0.0.1"],
        &["boot", "media"],
        &["boot", "media", "--iso", "a", "--usb", "b"],
        &["boot", "media", "--iso", "a", "--vlan", "4095"],
        &["boot", "secret"],
        &["boot", "balance", "--http", "80"],
        &["boot", "serve", "--log-format", "xml"],
    ] {
        let run = scene.goldwire(words).expect(2);
        assert!(run.stderr.contains("Usage") || run.stderr.contains("error:"), "{run}");
    }
}

#[test]
fn check_shows_every_problem_with_its_place() {
    let site = Site::new();
    let good = site.goldwire(&["check"]).expect(0);
    assert!(good.stdout.contains("good: 1 members, 0 subnets, 1 devices, 3 profiles"), "{good}");
    let wrong =
        site.file().replace("kernel = 'linux'", "kernl = 'linux'").replace("52:54:00:00:00:66", "52:54");
    fs::write(&site.config, wrong).unwrap();
    let found = site.goldwire(&["check"]).expect(5);
    for part in
        ["boot.toml:", "kernl = 'linux'", "^^^^^", "hint: did you mean \"kernel\"?", "twelve hexadecimal"]
    {
        assert!(found.stdout.contains(part), "{part}: {found}");
    }
    // Who wants something else of the file is told the same, each problem once by its name.
    for words in [&["serve"][..], &["explain", MAC], &["watch", "--once"]] {
        let refused = site.goldwire(words).expect(1);
        assert_eq!(refused.stderr, found.stdout, "{refused}");
    }
    let told = site.goldwire(&["check", "--json"]).expect(5).events().remove(0);
    assert_eq!(told["is_good"], false);
    let problems = told["problems"].as_array().unwrap();
    let typo = problems.iter().find(|problem| problem["hint"] == "did you mean \"kernel\"?").unwrap();
    assert_eq!((&typo["severity"], &typo["column"]), (&"error".into(), &1.into()));
    fs::remove_file(&site.config).unwrap();
    let missing = site.goldwire(&["check"]).expect(1);
    assert!(missing.stderr.contains("boot.toml: No such file"), "{missing}");
    assert!(missing.stderr.contains("hint: --config FILE"), "{missing}");
}

/// All of it where one asks for it, and for the log of a server.
#[test]
fn warnings_are_counted_and_told_where_one_asks() {
    let site = Site::new();
    let odd = site.file().replace("kernel = 'linux'", "kernel = 'no-such'");
    fs::write(&site.config, odd).unwrap();
    let all = site.goldwire(&["check"]).expect(0);
    let count = all.stdout.matches("warning: ").count();
    assert!(count > 1 && all.stdout.contains("no such file in the boot tree: no-such"), "{all}");
    let line = format!("boot.toml: {count} warnings; hint: goldwire boot check --config ");
    for words in [&["explain", MAC][..], &["script", MAC]] {
        let run = site.goldwire(words).expect(0);
        assert!(run.stderr.contains(&line) && run.stderr.lines().count() == 1, "{run}");
        assert!(!run.stdout.contains("warning"), "{run}");
    }
    let Some(server) = site.serve() else { return };
    server.wait_for("no such file in the boot tree: no-such");
}

#[test]
fn explain_and_script_say_what_a_server_serves() {
    let Some((site, server)) = Site::with_server() else { return };
    let said = site.goldwire(&["explain", MAC]).expect(0);
    assert!(said.stdout.contains("default-profile") && said.stdout.contains("bios-pxe"), "{said}");
    let told = site.goldwire(&["explain", "--json", MAC]).expect(0).events().remove(0).to_string();
    let path = format!("/s/{}/efi-x64/-/boot.ipxe", MAC.replace(':', "-"));
    assert!(said.stdout.contains(&path) && told.contains(&path), "{said}");
    let script = site.goldwire(&["script", "--arch", "efi-x64", MAC]).expect(0);
    assert_eq!(fetch(&format!("http://{}{path}", server.http())), (0, script.stdout.clone().into_bytes()));
    // The script's own links lead to the file.
    let link = script.stdout.split(' ').find(|word| word.starts_with("http://")).unwrap();
    let (_, below) = link.trim_start_matches("http://").split_once('/').unwrap();
    assert_eq!(fetch(&format!("http://{}/{below}", server.http())), (0, b"a kernel".to_vec()));
}

#[test]
fn http_and_tftp_give_the_same_bytes_and_the_same_denial() {
    let Some((site, server)) = Site::with_server() else { return };
    let (http, tftp) = (server.http(), server.tftp());
    let big = fs::read(site.scene.path("root/big")).unwrap();
    for base in [format!("http://{http}"), format!("tftp://{tftp}")] {
        assert_eq!(fetch(&format!("{base}/big")), (0, big.clone()), "{base}");
        assert_eq!(fetch(&format!("{base}/linux")).1, b"a kernel");
        // curl: 22 is a refusal by HTTP; 68 no such file, 69 no permission by TFTP.
        let is_http = base.starts_with("http");
        assert_eq!(fetch(&format!("{base}/none")).0, if is_http { 22 } else { 68 }, "{base}");
        assert_eq!(fetch(&format!("{base}/closed")).0, if is_http { 22 } else { 69 }, "{base}");
    }
    assert_eq!(status(&format!("http://{http}/closed")), "403");
    assert_eq!(status(&format!("http://{http}/none")), "404");
    assert_eq!(fetch(&format!("http://{http}/health")), (0, b"alive\n".to_vec()));
    let metrics = fetch(&format!("http://{}/metrics", server.address_of("metrics"))).1;
    assert!(String::from_utf8(metrics).unwrap().contains("# TYPE "));
    let secret = fs::read_to_string(site.scene.path("secret")).unwrap();
    let arguments = machine::arguments(server.pid()).join(" ");
    assert!(!server.log.has(secret.trim()) && !arguments.contains(secret.trim()));
}

#[test]
fn an_edited_file_takes_effect_and_a_broken_one_does_not() {
    let Some((site, server)) = Site::with_server() else { return };
    let url = format!("http://{}/s/52-54-00-00-00-02/bios/-/boot.ipxe", server.http());
    assert!(String::from_utf8(fetch(&url).1).unwrap().contains("linux"));
    let more = "[[device]]\nmac = '52:54:00:00:00:02'\nprofile = 'other'\n\
                [profile.other]\nscript-text = \"#!ipxe\\necho another\\n\"\n";
    let edited = site.file() + more;
    fs::write(&site.config, &edited).unwrap();
    testing::until("the edited file is in force", || {
        String::from_utf8(fetch(&url).1).unwrap().contains("echo another")
    });
    fs::write(&site.config, edited.replace("profile = 'other'", "profile = 'othre'")).unwrap();
    server.signal(Signal::HUP);
    server.wait_for("the old boot file stays in force");
    server.wait_for("boot.toml:");
    server.wait_for("^^^^^^^");
    assert!(
        String::from_utf8(fetch(&url).1).unwrap().contains("echo another"),
        "the broken file took effect"
    );
}

#[test]
fn on_request_running_transfers_end_and_then_the_server_does() {
    let Some((site, mut server)) = Site::with_server() else { return };
    let big = fs::read(site.scene.path("root/huge")).unwrap();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--limit-rate", "5M", &format!("http://{}/huge", server.http())]);
    let target = site.scene.path("fetched");
    let mut slow = curl.arg("-o").arg(&target).stdin(Stdio::null()).spawn().unwrap();
    testing::until("the transfer runs", || fs::metadata(&target).is_ok_and(|about| about.len() > 0));
    let health = format!("http://{}/health", server.http());
    server.signal(Signal::TERM);
    testing::until("it drains", || matches!(status(&health).as_str(), "503" | "000"));
    assert!(slow.try_wait().unwrap().is_none(), "the transfer was over before");
    assert!(slow.wait().unwrap().success());
    assert!(fs::read(&target).unwrap() == big, "the transfer was cut off");
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn what_keeps_a_server_from_starting_is_said() {
    let Some((site, server)) = Site::with_server() else { return };
    let second = site.goldwire(&["serve"]).expect(1);
    assert!(second.stderr.contains("another server uses the state folder"), "{second}");
    assert!(second.stderr.contains("hint: "), "{second}");
    let elsewhere = site.file().replace("/state'", "/state2'");
    let taken = elsewhere.replacen("127.0.0.1:0", &server.http(), 1);
    fs::write(&site.config, taken).unwrap();
    let second = site.goldwire(&["serve"]).expect(1);
    assert!(
        second.stderr.contains(&server.http()) && second.stderr.contains("Address already in use"),
        "{second}"
    );
    fs::write(site.scene.path("file"), "").unwrap();
    fs::write(&site.config, site.file().replace("/state'", "/file/state'")).unwrap();
    let nowhere = site.goldwire(&["serve"]).expect(1);
    assert!(nowhere.stderr.contains("file/state") && nowhere.stderr.contains("hint: "), "{nowhere}");
    fs::write(&site.config, elsewhere.replace("/root'", "/no-root'")).unwrap();
    for words in [&["serve"][..], &["script", MAC]] {
        let treeless = site.goldwire(words).expect(1);
        assert!(treeless.stderr.contains("no-root: No such file"), "{treeless}");
        assert!(treeless.stderr.contains("hint: ") && treeless.stderr.contains("server.root"), "{treeless}");
    }
    fs::write(&site.config, format!("{elsewhere}[dhcp]\nmode = 'proxy'\ninterfaces = ['no-such0']\n"))
        .unwrap();
    let portless = site.goldwire(&["serve"]).expect(1);
    assert!(portless.stderr.contains("no-such0"), "{portless}");
    assert!(portless.stderr.contains("hint: `ip -br link`"), "{portless}");
}

#[test]
fn the_user_of_the_boot_file_has_nothing_left_of_root() {
    if !testing::root() {
        return;
    }
    let site = Site::new();
    let with_user = site.file().replacen("[server]\n", "[server]\nuser = 'nobody'\n", 1);
    fs::write(&site.config, &with_user).unwrap();
    // The secret is root's alone: a later reload would fail, so the start does.
    let run = site.goldwire(&["serve"]).expect(1);
    assert!(run.stderr.contains("nobody could not read") && run.stderr.contains("chgrp"), "{run}");
    let group =
        fs::metadata(site.scene.path("state")).map(|about| std::os::unix::fs::MetadataExt::gid(&about));
    std::os::unix::fs::chown(site.scene.path("secret"), None, Some(group.unwrap())).unwrap();
    fs::set_permissions(site.scene.path("secret"), fs::Permissions::from_mode(0o640)).unwrap();
    let Some(server) = site.serve() else { return };
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    for name in ["Uid:", "Gid:", "Groups:"] {
        assert!(!field(name).is_empty() && !field(name).contains(&"0".to_owned()), "{status}");
    }
    for name in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
        assert_eq!(field(name), ["0000000000000000"], "{status}");
    }
    assert_eq!(fetch(&format!("http://{}/linux", server.http())).0, 0);
    server.signal(Signal::HUP);
    server.wait_for("the boot file is in force");
}

#[test]
fn watch_tells_what_was_and_what_comes() {
    let Some((site, server)) = Site::with_server() else { return };
    // Without DHCP a device is known by its script's path, and then by its address. It ends in the same number here.
    let boot_from = |server: &Server, own: &str| {
        let number = own.rsplit_once('.').unwrap().1;
        let url = format!("http://{}/s/52-54-00-00-00-0{number}/bios/-/boot.ipxe", server.http());
        machine::must("curl", ["-sSf", "--interface", own, &url]);
        machine::must("curl", ["-sSf", "--interface", own, &format!("http://{}/linux", server.http())]);
    };
    let mut boots = Vec::new();
    let mut wait_for_boots = |count: usize| {
        testing::until("every boot is in the timeline with both of its steps", || {
            let told = site.goldwire(&["watch", "--once", "--json"]).expect(0).events().remove(0);
            boots = told["boots"].as_array().unwrap().clone();
            boots.len() == count && boots.iter().all(|boot| boot["steps"].as_array().unwrap().len() == 2)
        });
    };
    boot_from(&server, "127.0.0.2");
    // The timeline is written beside the answers; what a killed server had not yet written is lost.
    wait_for_boots(1);
    drop(server);
    let Some(server) = site.serve() else { return };
    boot_from(&server, "127.0.0.3");
    wait_for_boots(2);
    let devices: Vec<&str> = boots.iter().map(|boot| boot["device"].as_str().unwrap()).collect();
    assert_eq!(devices, ["52:54:00:00:00:03", "52:54:00:00:00:02"]);
    for device in ["127.0.0.2", "52:54:00:00:00:02", "52-54-00-00-00-02"] {
        let said = site.goldwire(&["watch", "--once", device]).expect(0);
        assert_eq!(said.stdout.lines().count(), 1, "{said}");
        assert!(said.stdout.contains("52:54:00:00:00:02") && said.stdout.contains("kernel"), "{said}");
    }
    let words = ["boot", "watch", "--json", "127.0.0.4", "--config", text(&site.config)];
    let mut live = site.scene.goldwire(words).start();
    boot_from(&server, "127.0.0.5");
    boot_from(&server, "127.0.0.4");
    let record = live.wait_for(|record| record["what"] == "script");
    assert_eq!(record["address"], "127.0.0.4");
}

#[test]
fn a_member_dies_behind_the_balancer_and_the_download_goes_on() {
    let Some((site, first)) = Site::with_server() else { return };
    // The second member is another site that serves the same tree.
    let other = site.file().replace("/state'", "/state2'");
    let config = site.scene.path("second.toml");
    fs::write(&config, other).unwrap();
    let Some(second) = Server::start(&site.scene, &["serve", "--config", text(&config)]) else { return };
    let members: String = [&first, &second]
        .iter()
        .enumerate()
        .map(|(at, server)| {
            let port = |address: String| address.rsplit_once(':').unwrap().1.to_owned();
            format!(
                "[[member]]\nname = 'm{at}'\naddress = '127.0.0.1'\nhttp-port = {}\ntftp-port = {}\n",
                port(server.http()),
                port(server.tftp())
            )
        })
        .collect();
    let front = site.scene.path("front.toml");
    fs::write(
        &front,
        format!("default-profile = 'a'\n[server]\nname = 'm0'\n[profile.a]\nlocal = true\n{members}"),
    )
    .unwrap();
    let words = ["balance", "--config", text(&front), "--http", "127.0.0.1:0", "--tftp", "127.0.0.1:0"];
    let Some(balance) = Server::start(&site.scene, &words) else { return };
    let big = fs::read(site.scene.path("root/big")).unwrap();
    let http = format!("http://{}/big", balance.http());
    testing::until("a member lives", || fetch(&http).0 == 0);
    assert_eq!(fetch(&format!("tftp://{}/big", balance.tftp())), (0, big.clone()));
    let huge = fs::read(site.scene.path("root/huge")).unwrap();
    let url = http.replace("/big", "/huge");
    // Members are known to give the same bytes by the digest, which they compute in the background.
    for member in [&first, &second] {
        let url = format!("http://{}/huge", member.http());
        testing::until("the file has a strong ETag", || {
            machine::must("curl", ["-sI", &url]).contains("ETag: \"")
        });
    }
    let target = site.scene.path("fetched");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--limit-rate", "5M", &url, "-o"]).arg(&target).stdin(Stdio::null());
    let mut slow = curl.spawn().unwrap();
    testing::until("the transfer runs", || fs::metadata(&target).is_ok_and(|about| about.len() > 0));
    // The one whose socket is full is the one that serves it.
    let mut members = vec![first, second];
    let mut serving = None;
    testing::until("a member sends", || {
        serving = members.iter().position(|member| is_sending(&member.http()));
        serving.is_some()
    });
    drop(members.remove(serving.unwrap()));
    assert!(slow.try_wait().unwrap().is_none(), "the transfer was over before");
    assert!(slow.wait().unwrap().success());
    assert!(fs::read(&target).unwrap() == huge);
    assert_eq!(fetch(&http), (0, big));
}

#[test]
fn secrets_and_certificates_are_made_once_and_work() {
    let site = Site::new();
    let secret = site.scene.path("secret");
    let before = fs::read(&secret).unwrap();
    let again = site.scene.goldwire(["boot", "secret", text(&secret)]).expect(1);
    assert!(again.stderr.contains("secret: File exists"), "{again}");
    assert!(again.stderr.contains("hint: what is there is not overwritten"), "{again}");
    assert_eq!(fs::read(&secret).unwrap(), before);
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o7777, 0o600);
    let folder = site.scene.path("tls");
    let made = site.scene.goldwire(["boot", "certificate", text(&folder), "--server", "127.0.0.1"]).expect(0);
    assert!(made.stdout.contains("ca.pem") && made.stdout.contains("127.0.0.1.key"), "{made}");
    for key in ["ca.key", "127.0.0.1.key"] {
        assert_eq!(fs::metadata(folder.join(key)).unwrap().permissions().mode() & 0o7777, 0o600, "{key}");
    }
    let again =
        site.scene.goldwire(["boot", "certificate", text(&folder), "--server", "127.0.0.1"]).expect(1);
    assert!(
        again.stderr.contains("127.0.0.1.key: File exists") && again.stderr.contains("hint: "),
        "{again}"
    );
    // A key that is missing is not made up for by another one.
    fs::rename(folder.join("ca.key"), folder.join("away.key")).unwrap();
    let alone = site.scene.goldwire(["boot", "certificate", text(&folder), "--server", "b"]).expect(1);
    assert!(alone.stderr.contains("its key") && alone.stderr.contains("bring the key back"), "{alone}");
    assert!(!folder.join("ca.key").exists() && !folder.join("b.key").exists(), "{alone}");
    let tls = format!(
        "[http]\ntls-listen = ['127.0.0.1:0']\ncertificate = '{0}/127.0.0.1.pem'\nkey = '{0}/127.0.0.1.key'\n",
        folder.display()
    );
    fs::write(&site.config, site.file().replacen("[http]\n", &tls, 1)).unwrap();
    let Some(server) = site.serve() else { return };
    // Plain first, then TLS.
    let addresses = server.addresses_of("HTTP");
    let url = format!("https://{}/linux", addresses[1]);
    let trusted = machine::must("curl", ["-sS", "--cacert", text(&folder.join("ca.pem")), &url]);
    assert_eq!(trusted, "a kernel");
    assert_eq!(fetch(&url).0, 60, "a stranger's authority is not trusted");

    // Another authority's: who trusted the first one sees at once that the server has renewed.
    let other = site.scene.path("other");
    site.scene.goldwire(["boot", "certificate", text(&other), "--server", "127.0.0.1"]).expect(0);
    for name in ["127.0.0.1.key", "127.0.0.1.pem"] {
        fs::copy(other.join(name), folder.join(name)).unwrap();
    }
    server.signal(Signal::HUP);
    server.wait_for("the new certificate is in use");
    let renewed = machine::must("curl", ["-sS", "--cacert", text(&other.join("ca.pem")), &url]);
    assert_eq!(renewed, "a kernel");
    fs::write(folder.join("127.0.0.1.key"), "half").unwrap();
    server.signal(Signal::HUP);
    server.wait_for("the old certificate stays in use: ");
    let kept = machine::must("curl", ["-sS", "--cacert", text(&other.join("ca.pem")), &url]);
    assert_eq!(kept, "a kernel");
}

/// Ports are bound by root, and the key is read again by who root becomes.
#[test]
fn a_certificate_is_renewed_after_root_was_dropped() {
    if !testing::root() {
        return;
    }
    let site = Site::new();
    let (folder, other) = (site.scene.path("tls"), site.scene.path("other"));
    for folder in [&folder, &other] {
        site.scene.goldwire(["boot", "certificate", text(folder), "--server", "127.0.0.1"]).expect(0);
    }
    let key = folder.join("127.0.0.1.key");
    let may_read = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    let tls = format!(
        "[http]\ntls-listen = ['127.0.0.1:0']\ncertificate = '{0}/127.0.0.1.pem'\nkey = '{0}/127.0.0.1.key'\n",
        folder.display()
    );
    let file =
        site.file().replacen("[http]\n", &tls, 1).replacen("[server]\n", "[server]\nuser = 'nobody'\n", 1);
    fs::write(&site.config, file).unwrap();
    for folder in [&folder, &other] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(folder.join("127.0.0.1.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    rustix::fs::chown(site.scene.path("secret"), Some(rustix::fs::Uid::from_raw(65534)), None).unwrap();
    let Some(server) = site.serve() else { return };
    // Root alone may read it: told at the start, with what to do.
    server.wait_for("a renewed certificate will need a restart: ");
    let url = format!("https://{}/linux", server.addresses_of("HTTP")[1]);
    let fetch_with = |ca: &Path| machine::must("curl", ["-sS", "--cacert", text(&ca.join("ca.pem")), &url]);
    assert_eq!(fetch_with(&folder), "a kernel");
    for name in ["127.0.0.1.key", "127.0.0.1.pem"] {
        fs::copy(other.join(name), folder.join(name)).unwrap();
    }
    may_read(0o600);
    server.signal(Signal::HUP);
    server.wait_for("chmod g+r");
    assert_eq!(fetch_with(&folder), "a kernel", "the old one is kept");
    may_read(0o644);
    server.signal(Signal::HUP);
    server.wait_for("the new certificate is in use");
    assert_eq!(fetch_with(&other), "a kernel");
}

#[test]
fn a_medium_is_described_for_programs() {
    if !testing::file("/usr/lib/ipxe/ipxe.efi") {
        return;
    }
    let site = Site::new();
    let iso = site.scene.path("boot.iso");
    let words = ["media", "--json", "--programs", "/usr/lib/ipxe", "--iso", text(&iso)];
    let told = site.goldwire(&words).expect(0).events().remove(0);
    let bytes = fs::read(&iso).unwrap();
    assert_eq!((&told["path"], &told["size"]), (&text(&iso).into(), &bytes.len().into()));
    assert_eq!(told["blake3"], blake3::hash(&bytes).to_hex().as_str());
    assert!(!told["programs"].as_array().unwrap().is_empty(), "{told}");
    assert_eq!(&bytes[0x8001..0x8006], b"CD001", "no ISO 9660");
    let again = site.goldwire(&words).expect(1);
    assert!(again.stderr.contains("boot.iso") && fs::read(&iso).unwrap() == bytes, "{again}");
}

#[test]
fn media_are_served_as_they_are_written() {
    if !testing::file("/usr/lib/ipxe/ipxe.efi") {
        return;
    }
    let site = Site::new();
    let second = "[[member]]\nname = 'boot2'\naddress = '192.0.2.2'\n";
    let media = "[media]\nprograms = '/usr/lib/ipxe'\n";
    let file = site.file() + second + media;
    fs::write(&site.config, &file).unwrap();
    let other = site.scene.path("second.toml");
    fs::write(&other, file.replacen("name = 'boot1'", "name = 'boot2'", 1).replace("/state'", "/state2'"))
        .unwrap();
    let write = |kind: &str, name: &str| {
        let path = site.scene.path(name);
        site.goldwire(&["media", kind, text(&path)]).expect(0);
        fs::read(path).unwrap()
    };
    let (iso, disk) = (write("--iso", "a.iso"), write("--usb", "a.img"));
    let Some(first) = site.serve() else { return };
    let Some(second) = Server::start(&site.scene, &["serve", "--config", text(&other)]) else { return };
    let heads = [("goldwire.iso", &iso, "iso"), ("goldwire.img", &disk, "img")].map(|(name, bytes, kind)| {
        [&first, &second].map(|server| {
            let url = format!("http://{}/m/{name}", server.http());
            assert!(fetch(&url) == (0, bytes.clone()), "{url}");
            let head = machine::must("curl", ["-sSfI", &url]).to_lowercase();
            assert!(head.contains(&format!("content-length: {}\r\n", bytes.len())), "{head}");
            assert!(head.contains(&format!("content-type: application/vnd.efi-{kind}\r\n")), "{head}");
            let part = |range: &str| {
                let output = Command::new("curl").args(["-sSf", "-r", range, &url]).output().unwrap();
                output.stdout
            };
            assert_eq!(part("32768-34815"), bytes[32768..34816]);
            assert_eq!(part("-512"), bytes[bytes.len() - 512..]);
            let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
            assert!(tag.starts_with('"'), "a weak ETag: {tag}");
            let known = format!("If-None-Match: {tag}");
            let words = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "-H", &known, &url];
            assert_eq!(machine::must("curl", words), "304");
            tag
        })
    });
    assert!(heads.iter().all(|[first, second]| first == second), "{heads:?}");
    assert_ne!(heads[0][0], heads[1][0]);
    assert_eq!(fetch(&format!("tftp://{}/m/goldwire.iso", first.tftp())), (0, iso.clone()));
    first.wait_for("boot medium path=\"m/goldwire.iso\" size=");

    // A third member, then no media.
    let third = "[[member]]\nname = 'boot3'\naddress = '192.0.2.3'\n";
    fs::write(&site.config, format!("{file}{third}")).unwrap();
    let url = format!("http://{}/m/goldwire.iso", first.http());
    testing::until("the media are made anew", || fetch(&url).1 != iso);
    let anew = write("--iso", "b.iso");
    assert!(fetch(&url).1 == anew);
    let names_the_third = |image: &[u8]| image.windows(17).any(|bytes| bytes == b"http://192.0.2.3/");
    assert!(names_the_third(&anew) && !names_the_third(&iso));
    fs::write(&site.config, file.replace(media, "")).unwrap();
    testing::until("the media are gone", || status(&url) == "404");
}
