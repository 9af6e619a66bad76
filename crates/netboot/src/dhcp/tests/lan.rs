//! A link in network namespaces of a test's own, and a server on it with its real sockets and a real log. It needs root
//! and `ip`; what is missing is said on stderr.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use goldwire_stdx::testing;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::setup::server_of;
use crate::dhcp::driver::{DriverSettings, Ports, Running, Service, bind, open_leases};
use crate::dhcp::lease::Folder;
use crate::dhcp::server::Settings;
use crate::policy::Action;

/// A link between a server and a client, each in its own network namespace.
pub(super) struct Lan {
    pub(super) server: String,
    pub(super) client: String,
    pub(super) folder: tempfile::TempDir,
}

impl Lan {
    /// None, and said so, where it cannot be made or the client's program is missing.
    pub(super) fn new(name: &str, program: &str) -> Option<Self> {
        if !testing::root() || !testing::programs(&["ip", program]) {
            return None;
        }
        let id = std::process::id();
        let lan = Self {
            server: format!("gwl{id}{name}s"),
            client: format!("gwl{id}{name}c"),
            folder: tempfile::tempdir().unwrap(),
        };
        let (server, client) = (&lan.server, &lan.client);
        ip(&[
            format!("netns add {server}"),
            format!("netns add {client}"),
            format!("-n {server} link add s0 type veth peer name c0 netns {client}"),
            format!("-n {server} addr add 10.0.0.1/24 dev s0"),
            format!("-n {server} link set s0 up"),
            format!("-n {client} link set c0 address 02:00:00:00:00:01 up"),
            format!("-n {client} link set lo up"),
        ])?;
        Some(lan)
    }

    /// A server on the link, bound by a thread that has gone into the namespace.
    pub(super) fn serve(&self) -> Running {
        self.serve_with(super::setup::settings())
    }

    /// The same with other settings.
    pub(super) fn serve_with(&self, settings: Settings) -> Running {
        let folder = self.folder.path().join("log");
        self.at_server(move || {
            let driver = DriverSettings {
                interfaces: vec!["s0".into()],
                ports: Ports { binl: None, ..Ports::default() },
                is_probing: settings.probe.is_some(),
                ..DriverSettings::default()
            };
            start(bind(&driver).unwrap(), settings, &folder)
        })
    }

    /// Does something on a thread that has gone into the server's namespace.
    pub(super) fn at_server<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> T {
        let path = format!("/run/netns/{}", self.server);
        let thread = goldwire_stdx::spawn("test", move || {
            let namespace = File::open(path).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            act()
        })
        .unwrap();
        thread.join().unwrap()
    }

    /// A command in the client's namespace.
    pub(super) fn command(&self, line: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.client]).args(line.split(' ')).current_dir(self.folder.path());
        command
    }

    /// What a command says, on both outputs.
    pub(super) fn run(&self, line: &str) -> String {
        // A file, since what a client leaves in the background would keep a pipe open.
        let path = self.folder.path().join("said");
        let said = File::create(&path).unwrap();
        let mut command = self.command(&format!("timeout -k 5 60 {line}"));
        command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said).status().unwrap();
        String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
    }

    /// A script for clients that configures the address.
    pub(super) fn script(&self, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = self.folder.path().join("script");
        fs::write(&path, format!("#!/bin/sh\n{text}\nexit 0\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for name in [&self.server, &self.client] {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

/// Runs `ip` with each of these lines. None, and said so, at the first that fails.
pub(super) fn ip(lines: &[String]) -> Option<()> {
    for line in lines {
        let output = Command::new("ip").args(line.split(' ')).output().unwrap();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            // Whoever may not make a namespace sees it at the first line; whatever fails later is a fault.
            assert!(line.starts_with("netns add"), "ip {line}: {said}");
            testing::excuse(testing::Excuse::NoNamespaces);
            return None;
        }
    }
    Some(())
}

pub(super) fn start(sockets: crate::dhcp::driver::Sockets, settings: Settings, folder: &Path) -> Running {
    let mut server = server_of(settings, Action::LocalDisk);
    let (log, _, clock) = open_leases(&mut server, Box::new(Folder::open(folder).unwrap())).unwrap();
    let service = Service { server: Some((server, log)), proxy: None, fitness: Arc::default(), clock };
    sockets.run(service).unwrap()
}
