//! Real firmware boots over the network. The serial console is the judge: a boot is good when the last program in the
//! chain says its words there.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::guest::{Firmware, Guest};
use crate::lab::Lab;
use crate::machine::{self, program};
use crate::marker::{bios_program, efi_program};
use crate::tool::Scene;

/// The lab itself works: foreign servers boot a machine of each kind in it.
#[test]
fn the_lab_boots_machines_from_foreign_servers() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 1) else { return };
    if program("dnsmasq").is_none() {
        return machine::skip("needs dnsmasq");
    }
    let root = scene.folder("www");
    fs::write(root.join("hello.ipxe"), "#!ipxe\necho MARKER ${net0/ip}\nsleep 3600\n").unwrap();
    fs::write(root.join("ARDBP32.BIN"), bios_program("NBP MARKER")).unwrap();
    efi_program(lab.folder(), &root.join("marker.efi"), "EFI MARKER");
    for name in ["undionly.kpxe", "snponly.efi"] {
        fs::copy(Path::new("/usr/lib/ipxe").join(name), root.join(name)).unwrap();
    }
    let mut http = lab.command("srv1", "python3");
    http.args(["-u", "-m", "http.server", "80"]).current_dir(scene.path("www"));
    let http = lab.start("srv1", http);
    http.wait_for("Serving HTTP");
    let root = root.display();
    let dnsmasq = foreign_dhcp(
        &lab,
        "srv1",
        &[
            "--enable-tftp",
            &format!("--tftp-root={root}"),
            "--dhcp-match=set:ipxe,175",
            "--dhcp-match=set:bios,option:client-arch,0",
            "--dhcp-match=set:efi,option:client-arch,7",
            "--dhcp-match=set:http,option:client-arch,16",
            "--dhcp-mac=set:second,52:54:00:77:00:02",
            "--dhcp-option-force=tag:ipxe,175,b0:01:01",
            "--dhcp-boot=tag:ipxe,tag:second,http://10.77.0.1/ARDBP32.BIN",
            "--dhcp-boot=tag:ipxe,tag:!second,http://10.77.0.1/hello.ipxe",
            "--dhcp-boot=tag:bios,tag:!ipxe,undionly.kpxe",
            "--dhcp-boot=tag:efi,tag:!ipxe,snponly.efi",
            "--dhcp-boot=tag:http,http://10.77.0.1/marker.efi",
            "--dhcp-option-force=tag:http,60,HTTPClient",
        ],
    );
    let dnsmasq = lab.start("srv1", dnsmasq);
    dnsmasq.wait_for("DHCP, IP range");
    Guest::start(&lab, &Firmware::BiosIpxe).wait_for("MARKER 10.77.0.");
    Guest::start(&lab, &Firmware::BiosIpxe).wait_for("NBP MARKER");
    Guest::start(&lab, &Firmware::BiosPxe).wait_for("MARKER 10.77.0.");
    dnsmasq.wait_for("undionly.kpxe");
    Guest::start(&lab, &Firmware::UefiHttp).wait_for("EFI MARKER");
}

/// dnsmasq as a DHCP server that belongs to somebody else.
fn foreign_dhcp(lab: &Lab, space: &str, options: &[&str]) -> Command {
    let mut command = lab.command(space, "dnsmasq");
    command
        .args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=eth0", "--bind-interfaces"])
        .args([
            "--user=root",
            "--log-dhcp",
            "--no-ping",
            "--dhcp-range=10.77.0.200,10.77.0.249,255.255.255.0,1h",
        ])
        .arg(format!("--dhcp-leasefile={}", lab.folder().join(format!("leases-{space}")).display()))
        .args(options);
    command
}
