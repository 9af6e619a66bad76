//! Whether a machine can have a fixed address: with a wrong one it would boot nothing, far from who made its medium.

use std::net::Ipv4Addr;

use super::{Address, MediaError, MediaSettings};
use crate::network::NetworkV4;

/// In networks with a longer prefix no address is put aside for the network itself and for all of it (RFC 3021), and the
/// router of a single address is outside of it.
const PREFIX_MAX: u8 = 30;

/// The network of a fixed address; none if it comes by DHCP.
pub(super) fn network_of(settings: &MediaSettings) -> Result<Option<NetworkV4>, MediaError> {
    let Address::Fixed { address, prefix, gateway, dns } = settings.address else { return Ok(None) };
    let refused = |wrong: String, hint: String| Err(MediaError::Setting { wrong, hint });
    let Some(network) = NetworkV4::new(address, prefix).filter(|network| network.prefix() > 0) else {
        return refused(
            format!("/{prefix} is no prefix of an IPv4 network"),
            "write it as 10.0.0.7/24".into(),
        );
    };
    for (what, asked) in [("address", Some(address)), ("gateway", gateway), ("name server", dns)] {
        if let Some(asked) = asked.filter(|asked| !is_of_a_host(*asked)) {
            let hint = format!("name the {what} of one machine, such as 10.0.0.7");
            return refused(format!("no machine has the address {asked}"), hint);
        }
    }
    if network.prefix() <= PREFIX_MAX {
        let (first, last) = (network.address(), network.broadcast());
        for (what, asked) in [("machine", Some(address)), ("gateway", gateway)] {
            let Some(asked) = asked else { continue };
            let hint = format!("the {what} has an address between {first} and {last}");
            if asked == first {
                return refused(format!("{asked} is the network {network} itself"), hint);
            }
            if asked == last {
                return refused(format!("{asked} is the broadcast address of {network}"), hint);
            }
        }
    }
    if let Some(gateway) = gateway {
        if gateway == address {
            let hint = "the gateway is the router between the machine and other networks".into();
            return refused(format!("{address} is to be the machine's address and the gateway's"), hint);
        }
        if !network.contains(gateway) && network.prefix() < 32 {
            let hint =
                "look at the prefix of the address: the gateway is in the machine's own network".into();
            return refused(format!("the gateway {gateway} is outside {network}"), hint);
        }
    }
    if let Some(member) = settings.members.iter().find(|member| member.address == address) {
        let hint = "give the machine an address that nobody else has".into();
        return refused(format!("{address} is the address of the boot server {}", member.name), hint);
    }
    Ok(Some(network))
}

/// Whether a machine can have the address: 0/8 and 240/4 are none's (RFC 6890), nor are those of groups or of the machine
/// itself.
fn is_of_a_host(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first < 224 && !address.is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::Member;

    fn check(address: &str, prefix: u8, gateway: Option<&str>) -> Result<Option<NetworkV4>, MediaError> {
        let member = Member {
            name: "boot1".into(),
            address: "10.0.0.11".parse().unwrap(),
            http_port: 80,
            https_port: None,
            https_name: None,
        };
        let gateway = gateway.map(|gateway| gateway.parse().unwrap());
        let address = Address::Fixed { address: address.parse().unwrap(), prefix, gateway, dns: None };
        network_of(&MediaSettings { address, ..MediaSettings::new(vec![member]) })
    }

    #[test]
    fn what_no_machine_can_have_is_refused_with_a_hint() {
        for (address, prefix, gateway, reason) in [
            ("10.0.0.7", 0, None, "no prefix"),
            ("10.0.0.7", 33, None, "no prefix"),
            ("10.0.0.0", 24, Some("10.0.0.1"), "the network 10.0.0.0/24 itself"),
            ("10.0.0.255", 24, Some("10.0.0.1"), "the broadcast address of 10.0.0.0/24"),
            ("10.0.3.255", 22, Some("10.0.0.1"), "the broadcast address of 10.0.0.0/22"),
            ("10.0.0.7", 24, Some("10.0.1.1"), "the gateway 10.0.1.1 is outside 10.0.0.0/24"),
            ("10.0.0.7", 30, Some("10.0.0.1"), "10.0.0.7 is the broadcast address of 10.0.0.4/30"),
            ("10.0.0.7", 24, Some("10.0.0.255"), "the broadcast address"),
            ("10.0.0.7", 24, Some("10.0.0.0"), "itself"),
            ("10.0.0.7", 24, Some("10.0.0.7"), "the machine's address and the gateway's"),
            ("10.0.0.11", 24, Some("10.0.0.1"), "the boot server boot1"),
            ("0.0.0.0", 24, None, "no machine has"),
            ("127.0.0.1", 8, None, "no machine has"),
            ("224.0.0.5", 24, None, "no machine has"),
            ("255.255.255.255", 24, None, "no machine has"),
            ("10.0.0.7", 24, Some("0.0.0.0"), "no machine has"),
        ] {
            let refused = check(address, prefix, gateway).unwrap_err();
            let MediaError::Setting { wrong, hint } = &refused else { panic!("{refused:?}") };
            assert!(wrong.contains(reason) && !hint.is_empty(), "{address}/{prefix} {gateway:?}: {refused}");
        }
        for (address, prefix, gateway) in [
            ("10.0.0.7", 24, Some("10.0.0.1")),
            ("10.0.1.0", 22, Some("10.0.0.1")),
            ("10.0.1.255", 22, None),
            ("10.0.0.0", 31, Some("10.0.0.1")),
            ("10.0.0.7", 32, Some("10.9.9.9")),
        ] {
            assert!(check(address, prefix, gateway).unwrap().is_some(), "{address}/{prefix} {gateway:?}");
        }
        assert_eq!(network_of(&MediaSettings::new(Vec::new())).unwrap(), None);
    }
}
