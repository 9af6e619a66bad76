//! A boot server on a network of its own, asked by DHCP clients that are not ours and by `goldwire boot doctor`.

use std::fs;

use goldwire_stdx::testing;
use serde_json::Value;

use crate::boot::foreign_dhcp;
use crate::lab::{Lab, Service, address_by_udhcpc};
use crate::servers::{SCRIPT, Servers, Wish};
use crate::sync::text;
use crate::tool::{Scene, programs};

/// What is acknowledged is on the disk, however the server ends.
#[test]
fn an_address_survives_a_server_that_is_killed() {
    if testing::program("udhcpc").is_none() {
        return;
    }
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let servers = Servers::prepare(&scene, &SCRIPT);
    let mut server = serve(&lab, &servers);
    let first = address_by_udhcpc(&lab, "srv2", "a");
    let second = address_by_udhcpc(&lab, "srv2", "b");
    assert_ne!(first, second);
    server.kill();
    let _server = serve(&lab, &servers);
    // In the other order: whoever forgot would give them the other way round.
    assert_eq!(address_by_udhcpc(&lab, "srv2", "b"), second);
    assert_eq!(address_by_udhcpc(&lab, "srv2", "a"), first);
}

#[test]
fn the_doctor_finds_nothing_until_something_is_broken() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let servers = Servers::prepare(&scene, &SCRIPT);
    let server = serve(&lab, &servers);
    let (code, diagnoses) = examine(&lab, &scene, &[]);
    assert_eq!(code, 0, "{diagnoses:#}");
    let families: Vec<&str> =
        diagnoses.iter().map(|diagnosis| diagnosis["firmware"].as_str().unwrap()).collect();
    assert_eq!(families, ["bios-pxe", "efi-pxe", "http-boot", "ipxe"]);
    // The only file of a script, on the only member that lives.
    fs::remove_file(scene.path("boot/root/marker.ipxe")).unwrap();
    let (code, diagnoses) = examine(&lab, &scene, &["ipxe"]);
    assert_eq!(code, 5, "{diagnoses:#}");
    let last = diagnoses[0]["findings"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["level"], &last["code"]), (&"error".into(), &"ipxe-2d".into()), "{diagnoses:#}");
    assert!(last["what"].as_str().unwrap().contains("/marker.ipxe: status 404"), "{diagnoses:#}");
    // The only file of firmware.
    let config = servers.config(1);
    let file = fs::read_to_string(&config).unwrap();
    fs::write(&config, file.replace("kernel = 'marker.ipxe'", "file = 'gone.bin'")).unwrap();
    server.wait_for("the boot file is in force");
    let (code, diagnoses) = examine(&lab, &scene, &["bios", "efi"]);
    assert_eq!(code, 5, "{diagnoses:#}");
    let told = diagnoses.to_string();
    assert!(told.contains("\"PXE-E3B\"") && told.contains("\"PXE-E23\""), "{told}");
}

/// Addresses come from somebody else's server; goldwire says what to boot, and then that there is nobody to boot from.
#[test]
fn the_doctor_sees_a_proxy_and_that_no_member_lives() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 3) else { return };
    let Some(_dnsmasq) = foreign_dhcp(&lab, "srv3", &[]) else { return };
    let servers = Servers::prepare(&scene, &Wish { mode: "proxy", ..SCRIPT });
    let server = serve(&lab, &servers);
    let (code, diagnoses) = examine(&lab, &scene, &[]);
    assert_eq!(code, 0, "{diagnoses:#}");
    for diagnosis in &*diagnoses {
        assert!(!has(diagnosis, "error"), "{diagnosis:#}");
        assert!(diagnosis.to_string().contains("10.77.0.1 is a proxyDHCP server"), "{diagnosis:#}");
    }
    let config = servers.config(1);
    let file = fs::read_to_string(&config).unwrap();
    fs::write(&config, file.replace("[[member]]\n", "[[member]]\ndrain = true\n")).unwrap();
    server.wait_for("the boot file is in force");
    let (code, diagnoses) = examine(&lab, &scene, &[]);
    assert_eq!(code, 5, "{diagnoses:#}");
    let codes: Vec<&str> = diagnoses.iter().map(error_of).collect();
    assert_eq!(codes, ["PXE-E53", "PXE-E16", "http-boot-timeout", "ipxe-2d03e13b"], "{diagnoses:#}");
    assert!(diagnoses.to_string().contains("none of its members lives"), "{diagnoses:#}");
}

#[test]
fn the_doctor_says_that_nobody_answers() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let (code, diagnoses) = examine(&lab, &scene, &[]);
    assert_eq!(code, 5, "{diagnoses:#}");
    let codes: Vec<&str> =
        diagnoses.iter().map(|diagnosis| diagnosis["findings"][0]["code"].as_str().unwrap()).collect();
    assert_eq!(codes[..2], ["PXE-E51", "PXE-E16"], "{diagnoses:#}");
}

/// Two that answer on one interface would give addresses away twice.
#[test]
fn a_second_server_on_an_interface_does_not_start_and_says_who_is_there() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 1) else { return };
    let servers = Servers::prepare(&scene, &SCRIPT);
    let file = fs::read_to_string(servers.config(1)).unwrap();
    let second = scene.path("boot/second.toml");
    let elsewhere = "[http]\nlisten = ['127.0.0.1:0']\n[tftp]\nlisten = []\n[dhcp]\n";
    let state = scene.path("boot/other");
    let elsewhere =
        file.replace("[dhcp]\n", elsewhere).replace(text(&scene.path("boot/state1")), text(&state));
    for (first, mode, port) in
        [("server", "server", 67), ("server", "proxy", 67), ("proxy", "server", 67), ("proxy", "proxy", 4011)]
    {
        let with = |file: &str, mode| file.replace("mode = 'server'", &format!("mode = '{mode}'"));
        fs::write(servers.config(1), with(&file, first)).unwrap();
        fs::write(&second, with(&elsewhere, mode)).unwrap();
        let _running = serve(&lab, &servers);
        let mut command = lab.command("srv1", &programs().goldwire);
        command.args(["boot", "serve", "--config", text(&second)]);
        let run = scene.run(command).expect(1);
        let what = format!("listen for DHCP on interface eth0, UDP port {port}: Address already in use");
        assert!(run.stderr.contains(&what), "{first}, {mode}: {run}");
        assert!(
            run.stderr.contains("hint: the port is held by goldwire (process "),
            "{first}, {mode}: {run}"
        );
    }
}

/// Only the first member: the other namespace is the client's.
fn serve(lab: &Lab, servers: &Servers) -> Service {
    let service = lab.goldwire("srv1", ["boot", "serve", "--config", text(&servers.config(1))]);
    service.wait_for("ready");
    service
}

/// The doctor's exit code and what it found, as a machine at srv2 with this firmware, or with each.
fn examine(lab: &Lab, scene: &Scene, firmware: &[&str]) -> (i32, List) {
    let mut command = lab.command("srv2", &programs().goldwire);
    command.args(["boot", "doctor", "--interface", "eth0", "--json"]);
    command.args(firmware.iter().flat_map(|name| ["--firmware", name]));
    let finished = scene.run(command).finish();
    let told = finished.events().remove(0);
    (finished.status.code().unwrap(), List(told["diagnoses"].as_array().unwrap().clone()))
}

fn has(diagnosis: &Value, level: &str) -> bool {
    diagnosis["findings"].as_array().unwrap().iter().any(|finding| finding["level"] == level)
}

/// The code of the first error.
#[track_caller]
fn error_of(diagnosis: &Value) -> &str {
    let findings = diagnosis["findings"].as_array().unwrap();
    findings.iter().find(|finding| finding["level"] == "error").unwrap()["code"].as_str().unwrap()
}

/// Diagnoses, readable when a test fails.
struct List(Vec<Value>);

impl std::ops::Deref for List {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.0
    }
}

impl std::fmt::Display for List {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", Value::Array(self.0.clone()))
    }
}
