//! Real firmware boots over the network. The serial console is the judge: a boot is good when the last program in the
//! chain says its words there.

use std::fs;
use std::process::Command;

use goldwire_stdx::testing;

use crate::guest::{Firmware, Guest};
use crate::lab::{Lab, Service};
use crate::machine;
use crate::marker::{bios_program, efi_program};
use crate::servers::{BIG_PROGRAM, BIG_SCRIPT, EFI_FILE, MEDIA, PLAIN_FILE, SCRIPT, Servers, TOKEN, Wish};
use crate::tool::Scene;

/// The lab itself works: foreign servers boot a machine of each kind in it.
#[test]
fn the_lab_boots_machines_from_foreign_servers() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 1) else { return };
    let root = scene.folder("www");
    fs::write(root.join("hello.ipxe"), "#!ipxe\necho MARKER ${net0/ip}\nsleep 3600\n").unwrap();
    fs::write(root.join("ARDBP32.BIN"), bios_program("NBP MARKER")).unwrap();
    efi_program(lab.folder(), &root.join("marker.efi"), "EFI MARKER");
    fs::copy("/usr/lib/ipxe/undionly.kpxe", root.join("undionly.kpxe")).unwrap();
    let mut http = lab.command("srv1", "python3");
    http.args(["-u", "-m", "http.server", "80"]).current_dir(&root);
    let http = lab.start("srv1", http);
    http.wait_for("Serving HTTP");
    let tftp_root = format!("--tftp-root={}", root.display());
    let options = [
        "--enable-tftp",
        &tftp_root,
        "--dhcp-match=set:ipxe,175",
        "--dhcp-match=set:bios,option:client-arch,0",
        "--dhcp-match=set:http,option:client-arch,16",
        "--dhcp-mac=set:second,52:54:00:77:00:02",
        "--dhcp-option-force=tag:ipxe,175,b0:01:01",
        "--dhcp-boot=tag:ipxe,tag:second,http://10.77.0.1/ARDBP32.BIN",
        "--dhcp-boot=tag:ipxe,tag:!second,http://10.77.0.1/hello.ipxe",
        "--dhcp-boot=tag:bios,tag:!ipxe,undionly.kpxe",
        "--dhcp-boot=tag:http,http://10.77.0.1/marker.efi",
        "--dhcp-option-force=tag:http,60,HTTPClient",
    ];
    let Some(dnsmasq) = foreign_dhcp(&lab, "srv1", &options) else { return };
    Guest::start(&lab, &Firmware::BiosIpxe).wait_for("MARKER 10.77.0.");
    Guest::start(&lab, &Firmware::BiosIpxe).wait_for("NBP MARKER");
    Guest::start(&lab, &Firmware::BiosPxe).wait_for("MARKER 10.77.0.");
    dnsmasq.wait_for("undionly.kpxe");
    Guest::start(&lab, &Firmware::UefiHttp).wait_for("EFI MARKER");
}

/// Recipe 2: DHCP names a URL and no server, and iPXE needs no more.
#[test]
fn an_ipxe_rom_boots_from_a_url_alone() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let _servers = Servers::start(&lab, &scene, &SCRIPT);
    let guest = Guest::start(&lab, &Firmware::BiosIpxe);
    guest.wait_for("SCRIPT MARKER 10.77.0.");
    assert!(!guest.has_said("Next server"), "option 66 or siaddr was there");
}

/// Recipe 2 with a bootstrap that is nothing but code, as Citrix PVS's is.
#[test]
fn an_ipxe_rom_boots_a_plain_file() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let _servers = Servers::start(&lab, &scene, &PLAIN_FILE);
    Guest::start(&lab, &Firmware::BiosIpxe).wait_for("NBP MARKER");
}

#[test]
fn two_machines_boot_at_once_while_the_first_member_is_dead() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let _servers = Servers::start_second(&lab, &scene, &SCRIPT);
    let guests = [Guest::start(&lab, &Firmware::BiosIpxe), Guest::start(&lab, &Firmware::BiosIpxe)];
    for guest in &guests {
        guest.wait_for("SCRIPT MARKER 10.77.0.12");
    }
}

/// TFTP, then iPXE as a PXE program, then HTTP.
#[test]
fn a_plain_pxe_rom_boots_by_way_of_undionly() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let _servers = Servers::start(&lab, &scene, &SCRIPT);
    Guest::start(&lab, &Firmware::BiosPxe).wait_for("SCRIPT MARKER 10.77.0.");
}

/// TFTP, then iPXE as an EFI program, then HTTP; beside it a card whose driver is iPXE.
#[test]
fn uefi_pxe_boots_by_way_of_ipxe() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let _servers = Servers::start(&lab, &scene, &SCRIPT);
    let guest = Guest::start(&lab, &Firmware::UefiPxe);
    Guest::start(&lab, &Firmware::UefiIpxe).wait_for("SCRIPT MARKER 10.77.0.");
    guest.wait_for("SCRIPT MARKER 10.77.0.");
}

#[test]
fn uefi_http_boot_runs_a_program_and_ipxe() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let servers = Servers::start(&lab, &scene, &EFI_FILE);
    Guest::start(&lab, &Firmware::UefiHttp).wait_for("EFI MARKER");
    drop(servers);
    let _servers = Servers::start(&lab, &scene, &SCRIPT);
    Guest::start(&lab, &Firmware::UefiHttp).wait_for("SCRIPT MARKER 10.77.0.");
}

/// Addresses come from somebody else's server, which knows nothing of booting.
#[test]
fn beside_a_foreign_dhcp_server_every_firmware_boots() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 3) else { return };
    let Some(dnsmasq) = foreign_dhcp(&lab, "srv3", &[]) else { return };
    let _servers = Servers::start(&lab, &scene, &Wish { mode: "proxy", ..SCRIPT });
    for (at_first, then) in [(Firmware::UefiPxe, Firmware::BiosIpxe), (Firmware::UefiHttp, Firmware::BiosPxe)]
    {
        let guest = Guest::start(&lab, &at_first);
        Guest::start(&lab, &then).wait_for("SCRIPT MARKER 10.77.0.13");
        guest.wait_for("SCRIPT MARKER 10.77.0.13");
    }
    dnsmasq.wait_for("DHCPACK");
}

/// The very medium that a server serves, with the first boot server dead.
#[test]
fn a_boot_medium_boots_bios_and_uefi() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let servers = Servers::start_second(&lab, &scene, &MEDIA);
    let (written, iso) = (scene.path("written.iso"), scene.path("boot.iso"));
    let config = servers.config(1);
    let words = ["boot", "media", "--config", config.to_str().unwrap(), "--iso", written.to_str().unwrap()];
    scene.goldwire(words).expect(0);
    let mut curl = lab.command("srv2", "curl");
    curl.args(["-sSf", "http://10.77.0.2/m/goldwire.iso", "-o"]).arg(&iso);
    scene.run(curl).finish().expect(0);
    assert_eq!(machine::digest(&iso), machine::digest(&written));
    let guest = Guest::start(&lab, &Firmware::UefiMedium(iso.clone()));
    Guest::start(&lab, &Firmware::BiosMedium(iso)).wait_for("SCRIPT MARKER 10.77.0.12");
    guest.wait_for("SCRIPT MARKER 10.77.0.12");
}

/// iPXE 2.0 runs `autoexec.ipxe` from where it came from, and no firmware here has it. An older one that runs the same
/// file, and is told the one setting that it lacks, meets the same: beside another DHCP server too, the script is asked
/// for where the file came from; and where that is refused, what DHCP names has the token.
#[test]
fn autoexec_leads_to_the_machines_script() {
    for (mode, profile) in [("server", TOKEN.profile), ("proxy", TOKEN.profile), ("proxy", SCRIPT.profile)] {
        let scene = Scene::new();
        let Some(lab) = Lab::up(&scene, 3) else { return };
        let dnsmasq = (mode == "proxy").then(|| foreign_dhcp(&lab, "srv3", &[]));
        if matches!(dnsmasq, Some(None)) {
            return;
        }
        let _servers = Servers::start_second(&lab, &scene, &Wish { mode, profile });
        let script = scene.path("first.ipxe");
        let text =
            "#!ipxe\ndhcp\nset cwuri http://10.77.0.2/ipxe/autoexec.ipxe\nchain ${cwuri}\nsleep 3600\n";
        fs::write(&script, text).unwrap();
        let guest = Guest::start(&lab, &Firmware::BiosScript(script));
        guest.wait_for("SCRIPT MARKER 10.77.0.1");
        let was_refused = guest.has_said("Operation not permitted");
        assert_eq!(was_refused, profile == TOKEN.profile, "{mode}: a script is open to whom it should be");
        assert!(!guest.has_said("Connection timed out"), "{mode}: somebody else was asked");
    }
}

/// The first member's offer is taken, and it dies before it hears that.
#[test]
fn the_first_member_dies_during_dhcp() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let mut servers = Servers::start(&lab, &scene, &SCRIPT);
    // Option 53 is the first one: REQUEST.
    lab.hold("srv1", "udp dport 67 @th,1984,24 0x350103");
    let guest = Guest::start(&lab, &Firmware::BiosIpxe);
    lab.wait_for_held("srv1");
    servers.kill_first();
    guest.wait_for("SCRIPT MARKER 10.77.0.");
}

/// Firmware itself knows one address only; what it does when that is gone is to begin again, HTTP Boot only when the
/// machine is turned on again. PXE of UEFI does so within milliseconds and then never more, so its next question is kept
/// from the second server until that one has noticed.
#[test]
fn the_first_member_dies_during_the_bootstrap() {
    for firmware in [Firmware::BiosPxe, Firmware::UefiPxe, Firmware::UefiHttp] {
        let scene = Scene::new();
        let Some(lab) = Lab::up(&scene, 2) else { return };
        let is_http = matches!(firmware, Firmware::UefiHttp);
        let mut servers = Servers::start(&lab, &scene, if is_http { &BIG_PROGRAM } else { &SCRIPT });
        lab.slow("srv1", 1);
        let mut guest = Guest::start(&lab, &firmware);
        lab.wait_for_sent("srv1", 64 << 10);
        lab.hold("srv2", "udp dport 67");
        servers.kill_first();
        servers.wait_for_the_second_to_notice();
        lab.release("srv2");
        if is_http {
            // EDK2 looks at what else it could boot from, and then does nothing more.
            guest.wait_for("BdsDxe: failed to load");
            guest.power_cycle(&lab);
        }
        guest.wait_for("SCRIPT MARKER 10.77.0.12");
    }
}

/// The address is given and the script is asked for, and nobody is there any more.
#[test]
fn the_first_member_dies_before_the_script() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let mut servers = Servers::start(&lab, &scene, &SCRIPT);
    lab.hold("srv1", "ip saddr 10.77.0.110-10.77.0.139 tcp dport 80");
    let guest = Guest::start(&lab, &Firmware::BiosIpxe);
    lab.wait_for_held("srv1");
    servers.kill_first();
    lab.release("srv1");
    guest.wait_for("SCRIPT MARKER 10.77.0.");
}

#[test]
fn the_first_member_dies_during_a_big_file() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let mut servers = Servers::start(&lab, &scene, &BIG_SCRIPT);
    lab.slow("srv1", 8);
    let guests = [Guest::start(&lab, &Firmware::BiosIpxe), Guest::start(&lab, &Firmware::UefiIpxe)];
    lab.wait_for_sent("srv1", 1 << 20);
    servers.kill_first();
    for guest in &guests {
        guest.wait_for("SCRIPT MARKER 10.77.0.");
    }
}

/// dnsmasq as a DHCP server that belongs to somebody else. None, visibly, where there is none.
pub(crate) fn foreign_dhcp(lab: &Lab, space: &str, options: &[&str]) -> Option<Service> {
    testing::program("dnsmasq")?;
    let mut command: Command = lab.command(space, "dnsmasq");
    command
        .args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=eth0", "--bind-interfaces"])
        .args(["--user=root", "--log-dhcp", "--no-ping"])
        .arg("--dhcp-range=10.77.0.130,10.77.0.139,255.255.255.0,1h")
        .arg(format!("--dhcp-leasefile={}", lab.folder().join(format!("leases-{space}")).display()))
        .args(options);
    let service = lab.start(space, command);
    service.wait_for("DHCP, IP range");
    Some(service)
}
