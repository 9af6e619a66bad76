//! Who may have the DHCP ports of an interface beside whom.

use std::io;
use std::net::Ipv4Addr;
use std::process::Command;

use socket2::{Domain, Socket, Type};

use super::lan::Lan;
use crate::bind::BindError;
use crate::dhcp::driver::{DriverSettings, Ports, Sockets, bind};

fn listen(interface: &str, is_port_shared: bool) -> Result<Sockets, BindError> {
    bind(&DriverSettings {
        interfaces: vec![interface.into()],
        ports: Ports::default(),
        is_port_shared,
        ..DriverSettings::default()
    })
}

/// The port at which a second server fails.
#[track_caller]
fn assert_in_use(bound: Result<Sockets, BindError>, expected: u16) {
    match bound {
        Err(BindError::Listen { for_what, port, source }) => {
            assert!(for_what.contains("interface s0,"), "{for_what}");
            assert_eq!((port, source.kind()), (expected, io::ErrorKind::AddrInUse));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn two_servers_of_ours_never_share_an_interface_and_share_a_machine() {
    let Some(lan) = Lan::new("p", "ip") else { return };
    let added = ["-n", &lan.server, "link", "add", "s1", "type", "veth", "peer", "name", "s2"];
    assert!(Command::new("ip").args(added).status().unwrap().success());
    lan.at_server(|| {
        let server = listen("s0", false).unwrap();
        assert_in_use(listen("s0", false), 67);
        assert_in_use(listen("s0", true), 67);
        let _other = listen("s1", false).unwrap();
        drop(server);
        let _proxy = listen("s0", true).unwrap();
        assert_in_use(listen("s0", false), 67);
        assert_in_use(listen("s0", true), 4011);
    });
}

#[test]
fn a_proxy_has_its_port_beside_a_server_that_allows_it() {
    let Some(lan) = Lan::new("b", "ip") else { return };
    lan.at_server(|| {
        let foreign = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        foreign.set_reuse_address(true).unwrap();
        foreign.bind(&std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, 67)).into()).unwrap();
        listen("s0", true).unwrap();
        assert_in_use(listen("s0", false), 67);
    });
}
