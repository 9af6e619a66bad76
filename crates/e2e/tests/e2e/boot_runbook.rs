//! The steps of docs/boot-runbook.md that take two members, as a person does them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use goldwire_stdx::testing;

use crate::lab::{Lab, Service, address_by_udhcpc};
use crate::servers::{SCRIPT, Servers};
use crate::sync::text;
use crate::tool::Scene;

/// What a member says of another one.
fn sees(member: &str, state: &str) -> String {
    format!("member=\"{member}\" state=\"{state}\"")
}

/// Both, and each knows that the other lives.
fn start_both(lab: &Lab, servers: &Servers) -> (Service, Service) {
    let (boot1, boot2) = (servers.start_one(lab, 1), servers.start_one(lab, 2));
    boot1.wait_for(&sees("boot2", "alive"));
    boot2.wait_for(&sees("boot1", "alive"));
    (boot1, boot2)
}

#[test]
fn two_members_find_each_other_and_each_sees_the_other_end() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let servers = Servers::prepare(&scene, &SCRIPT);
    let (mut boot1, mut boot2) = start_both(&lab, &servers);
    boot1.kill();
    boot2.wait_for(&sees("boot1", "dead"));
    let boot1 = servers.start_one(&lab, 1);
    boot1.wait_for(&sees("boot2", "alive"));
    boot2.wait_for_times(&sees("boot1", "alive"), 2);
    // A planned stop is told, and ends well.
    boot2.stop();
    boot1.wait_for(&sees("boot2", "dead"));
}

/// The new machine knows nothing of the addresses that the dead one gave.
#[test]
fn a_replaced_member_gives_no_address_away_that_is_in_use() {
    if testing::program("udhcpc").is_none() {
        return;
    }
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 4) else { return };
    let servers = Servers::prepare(&scene, &SCRIPT);
    let mut boot1 = servers.start_one(&lab, 1);
    let first = address_by_udhcpc(&lab, "srv3", "a");
    assert_eq!(first, "10.77.0.110", "the first of boot1's pool");
    lab.ip("srv3", "addr flush dev eth0");
    lab.ip("srv3", &format!("addr add {first}/24 dev eth0"));
    let mut boot2 = servers.start_one(&lab, 2);
    boot2.wait_for(&sees("boot1", "alive"));
    boot1.kill();
    boot2.wait_for(&sees("boot1", "dead"));
    // The others go on.
    assert_eq!(address_by_udhcpc(&lab, "srv4", "b"), "10.77.0.120");

    fs::remove_dir_all(scene.path("boot/state1")).unwrap();
    let config = servers.config(1);
    let file = fs::read_to_string(&config).unwrap();
    fs::write(&config, file.replace("[dhcp]\n", "[dhcp]\nprobe = true\n")).unwrap();
    let boot1 = servers.start_one(&lab, 1);
    boot1.wait_for(&sees("boot2", "alive"));
    boot2.wait_for_times(&sees("boot1", "alive"), 2);
    boot2.stop();
    assert_eq!(address_by_udhcpc(&lab, "srv4", "c"), "10.77.0.111");
}

#[test]
fn a_new_secret_parts_the_members_until_all_have_it() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let servers = Servers::prepare(&scene, &SCRIPT);
    // Each machine has a copy of its own.
    let secrets = [1, 2].map(|number| {
        let secret = scene.path(&format!("boot/secret{number}"));
        fs::copy(scene.path("boot/secret"), &secret).unwrap();
        let config = servers.config(number);
        let file = fs::read_to_string(&config).unwrap();
        fs::write(&config, file.replace(text(&scene.path("boot/secret")), text(&secret))).unwrap();
        secret
    });
    let (mut boot1, mut boot2) = start_both(&lab, &servers);

    fs::remove_file(&secrets[0]).unwrap();
    scene.goldwire(["boot", "secret", text(&secrets[0])]).expect(0);
    fs::copy(&secrets[0], &secrets[1]).unwrap();
    assert_eq!(fs::metadata(&secrets[1]).unwrap().permissions().mode() & 0o777, 0o600);
    boot1.stop();
    boot2.wait_for(&sees("boot1", "dead"));
    let boot1 = servers.start_one(&lab, 1);
    // The other one still has the old secret in memory: neither believes the other.
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(boot1.count(&sees("boot2", "alive")) == 0 && boot2.count(&sees("boot1", "alive")) == 1);
    boot2.stop();
    let boot2 = servers.start_one(&lab, 2);
    boot1.wait_for(&sees("boot2", "alive"));
    boot2.wait_for(&sees("boot1", "alive"));
}
