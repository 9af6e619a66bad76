//! Real clients, and the ways of sending.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use goldwire_stdx::testing;

use super::super::settings::{Mode, Settings};
use super::super::{SendMethod, bind};
use super::complaints::{fetch_in, on_loopback, serve};
use super::{context, files, pattern};
use crate::tftp;
use crate::tftp::wire::OptionName;

const LENGTH: usize = 3_000_001;
/// For what is fetched many times.
const SHORT: usize = 300_001;

/// Runs a client in a new folder and compares what it has fetched; `arguments` from the port and where to put the file.
fn check(program: &str, arguments: impl Fn(u16, &Path) -> Vec<String>) {
    if testing::program(program).is_none() {
        return;
    }
    for mode in [Mode::SinglePort, Mode::PortPerTransfer] {
        let (running, event_log) = serve(
            Settings { clients: tftp::Clients { mode, ..tftp::Clients::default() }, ..on_loopback() },
            &[("dir/f", LENGTH)],
        );
        let folder = tempfile::tempdir().unwrap();
        let got = folder.path().join("got");
        let arguments = arguments(running.addresses()[0].port(), &got);
        let done = Command::new("timeout")
            .arg("60")
            .arg(program)
            .args(&arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = format!("{program} {arguments:?} {mode:?}: {done:?} {:?}", event_log.lines());
        let file = std::fs::read(&got).unwrap_or_else(|error| panic!("{error}: {said}"));
        assert!(file[..] == pattern(LENGTH)[..], "{} bytes, {said}", file.len());
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

#[test]
fn tftp_hpa() {
    check("tftp", |port, got| words(&format!("-m binary 127.0.0.1 {port} -c get dir/f {}", got.display())));
}

#[test]
fn atftp() {
    for options in ["", "blksize 1468", "blksize 1468,windowsize 16", "windowsize 64,tsize 0,timeout 3"] {
        check("atftp", |port, got| {
            let mut arguments = Vec::new();
            for option in options.split(',').filter(|option| !option.is_empty()) {
                arguments.extend(["--option".to_owned(), option.to_owned()]);
            }
            arguments.extend(words(&format!("-g -r dir/f -l {} 127.0.0.1 {port}", got.display())));
            arguments
        });
    }
}

#[test]
fn curl() {
    let has_tftp = Command::new("curl").arg("--version").output();
    if !has_tftp.is_ok_and(|version| String::from_utf8_lossy(&version.stdout).contains("tftp")) {
        return testing::absent("curl with TFTP");
    }
    for options in ["", "--tftp-blksize 1468 ", "--tftp-no-options "] {
        check("curl", |port, got| {
            words(&format!("-sS {options}-o {} tftp://127.0.0.1:{port}/dir/f", got.display()))
        });
    }
}

#[test]
fn busybox() {
    let applets = Command::new("busybox").arg("--list").output();
    if !applets.is_ok_and(|list| String::from_utf8_lossy(&list.stdout).lines().any(|line| line == "tftp")) {
        return testing::absent("busybox with tftp");
    }
    check("busybox", |port, got| {
        words(&format!("tftp -g -b 1468 -r dir/f -l {} 127.0.0.1 {port}", got.display()))
    });
}

#[test]
fn every_way_of_sending_sends_the_same() {
    for mode in [Mode::SinglePort, Mode::PortPerTransfer] {
        for method in [SendMethod::Segments, SendMethod::Batch, SendMethod::Single] {
            for listen in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
                let settings = Settings {
                    clients: tftp::Clients { mode, ..tftp::Clients::default() },
                    listen: vec![listen.parse().unwrap()],
                    block_size_max: 65464,
                    ..Settings::default()
                };
                let bound = bind(settings).unwrap().with_send_method(method);
                let mut server = bound.addresses()[0];
                if server.ip().is_unspecified() {
                    server.set_ip(if server.is_ipv4() {
                        "127.0.0.1".parse().unwrap()
                    } else {
                        "::1".parse().unwrap()
                    });
                }
                let running = bound.run(context(files(&[("f", SHORT)])).0).unwrap();
                for (block, window) in [(512, 64), (1468, 16), (40_000, 2)] {
                    let options = [(OptionName::BlockSize, block), (OptionName::WindowSize, window)];
                    let file = fetch_in(mode, server, "f", &options).unwrap();
                    assert!(file[..] == pattern(SHORT)[..], "{method:?} {listen} {block} {window}");
                }
                running.stop();
            }
        }
    }
}

/// What several clients get leaves in one call: everybody has his own file, from the address that he asked.
#[test]
fn many_clients_at_once_have_each_their_own_file() {
    let names: Vec<_> = (0..12).map(|number| (format!("f{number}"), SHORT + number)).collect();
    let named: Vec<_> = names.iter().map(|(name, length)| (name.as_str(), *length)).collect();
    let modes = [Mode::SinglePort, Mode::PortPerTransfer];
    for (mode, listen) in modes.into_iter().flat_map(|mode| [(mode, "0.0.0.0:0"), (mode, "[::]:0")]) {
        let settings = Settings {
            clients: tftp::Clients { mode, ..tftp::Clients::default() },
            listen: vec![listen.parse().unwrap()],
            ..Settings::default()
        };
        let running = bind(settings).unwrap().run(context(files(&named)).0).unwrap();
        let port = running.addresses()[0].port();
        std::thread::scope(|scope| {
            for (number, (name, length)) in names.iter().enumerate() {
                let server = match (listen, number % 2) {
                    ("[::]:0", _) => SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
                    (_, odd) => SocketAddr::from(([127, 0, 0, 1 + odd as u8], port)),
                };
                goldwire_stdx::spawn_scoped(scope, "test", move || {
                    let file = fetch_in(mode, server, name, &[]).unwrap();
                    assert!(file[..] == pattern(*length)[..], "{server} {name}");
                })
                .unwrap();
            }
        });
    }
}

#[test]
fn a_second_server_on_the_same_address_is_noticed() {
    let bound = bind(on_loopback()).unwrap();
    let settings = Settings { listen: bound.addresses().to_vec(), ..Settings::default() };
    let error = bind(settings.clone()).unwrap_err();
    assert!(error.to_string().starts_with("listen for TFTP on 127.0.0.1:"), "{error}");
    drop(bound);
    drop(bind(settings).unwrap());
}
