//! Addresses that somebody uses without a lease, on a real link with real ARP.

use std::process::Command;
use std::time::Duration;

use super::lan::Lan;
use super::setup::*;
use crate::dhcp::lease::RecordState;
use crate::dhcp::server::Settings;

fn probing() -> Settings {
    Settings { probe: Some(Duration::from_secs(1)), ..settings() }
}

/// A machine on the client's wire that has the first address of the pool and answers no ping.
struct Squatter(String);

impl Squatter {
    /// None, and said so, where it cannot be made.
    fn new(lan: &Lan) -> Option<Self> {
        let squatter = Self(format!("{}q", lan.client));
        let (client, name) = (&lan.client, &squatter.0);
        super::lan::ip(&[
            format!("netns add {name}"),
            format!("-n {client} link add q0 link c0 type macvlan mode bridge"),
            format!("-n {client} link set q0 netns {name}"),
            format!("netns exec {name} sysctl -qw net.ipv4.icmp_echo_ignore_all=1"),
            format!("-n {name} link set q0 address 02:00:00:00:00:99 up"),
            format!("-n {name} addr add 10.0.0.100/24 dev q0"),
        ])?;
        Some(squatter)
    }
}

impl Drop for Squatter {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

#[test]
fn an_address_whose_user_answers_arp_and_no_ping_is_not_offered() {
    let Some(lan) = Lan::new("q", "udhcpc") else { return };
    let Some(_squatter) = Squatter::new(&lan) else { return };
    let running = lan.serve_with(probing());
    let script = lan.script("");
    let said = lan.run(&format!("udhcpc -i c0 -f -n -q -t 5 -s {script}"));
    assert!(said.contains("lease of 10.0.0.101 obtained"), "{said}");
    let known = running.leases(None, 2).unwrap();
    let states: Vec<_> = known.iter().map(|record| (record.address, record.state)).collect();
    assert_eq!(states, [(ip("10.0.0.100"), RecordState::Declined), (ip("10.0.0.101"), RecordState::Granted)]);
}

#[test]
fn a_client_that_has_its_address_still_keeps_it_when_the_server_has_forgotten() {
    let Some(lan) = Lan::new("k", "udhcpc") else { return };
    let _running = lan.serve_with(probing());
    lan.run("ip addr add 10.0.0.100/24 dev c0");
    let script = lan.script("");
    let said = lan.run(&format!("udhcpc -i c0 -f -n -q -t 5 -s {script}"));
    assert!(said.contains("lease of 10.0.0.100 obtained"), "{said}");
}
