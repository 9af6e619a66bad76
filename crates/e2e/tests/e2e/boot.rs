//! Real firmware boots over the network. The serial console is the judge: a boot is good when the last program in the
//! chain says its words there.

use std::fs;
use std::process::Command;

use crate::guest::{Firmware, Guest};
use crate::lab::Lab;
use crate::machine::{self, program};
use crate::tool::Scene;

/// The lab itself works: foreign servers boot a machine in it.
#[test]
fn the_lab_boots_a_machine_from_foreign_servers() {
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 1) else { return };
    if program("dnsmasq").is_none() {
        return machine::skip("needs dnsmasq");
    }
    fs::write(scene.folder("www").join("hello.ipxe"), "#!ipxe\necho MARKER ${net0/ip}\nsleep 3600\n")
        .unwrap();
    let mut http = lab.command("srv1", "python3");
    http.args(["-u", "-m", "http.server", "80"]).current_dir(scene.path("www"));
    let http = lab.start("srv1", http);
    http.wait_for("Serving HTTP");
    let dnsmasq = foreign_dhcp(&lab, "srv1", &["--dhcp-option-force=67,http://10.77.0.1/hello.ipxe"]);
    let dnsmasq = lab.start("srv1", dnsmasq);
    dnsmasq.wait_for("DHCP, IP range");
    let guest = Guest::start(&lab, &Firmware::BiosIpxe);
    guest.wait_for("MARKER 10.77.0.");
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
