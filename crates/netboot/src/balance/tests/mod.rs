//! The front between real clients and members that misbehave.

mod balancers;
mod http;
mod member;
mod ours;
mod tftp;

use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, Mutex};

use goldwire_stdx::testing;

use self::member::{Mode, TestMember};
use super::*;
use crate::event::{Event, EventKind, Observer};
use crate::member::{Member, MemberConfig, MemberState};

/// What was observed, as lines.
#[derive(Default)]
struct Seen(Mutex<Vec<String>>);

impl Observer for Seen {
    fn observe(&self, event: &Event<'_>) {
        let line = match &event.kind {
            EventKind::Transferred { path, bytes, is_complete, .. } => {
                format!("{path} {bytes} {}", if *is_complete { "complete" } else { "broken" })
            }
            EventKind::Refused { path, reason, .. } => format!("{path} refused: {reason}"),
            EventKind::Dropped { reason, .. } => format!("dropped: {reason}"),
            _ => return,
        };
        self.0.lock().unwrap().push(line);
    }
}

impl Seen {
    /// The lines, once there are so many.
    fn lines(&self, count: usize) -> Vec<String> {
        goldwire_stdx::testing::until(&format!("{count} lines"), || self.0.lock().unwrap().len() >= count);
        self.0.lock().unwrap().clone()
    }
}

struct Front {
    running: RunningBalance,
    seen: Arc<Seen>,
}

impl Front {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.running.http_addresses()[0])
    }

    fn tftp(&self) -> SocketAddr {
        self.running.tftp_addresses()[0]
    }
}

/// A front for these addresses of HTTP and TFTP servers, the first one the best for the client 127.0.0.1: the tests
/// name members so that the hash agrees.
fn front_of(members: &[(SocketAddr, u16)], change: impl FnOnce(&mut BalanceSettings)) -> Front {
    let seen = Arc::new(Seen::default());
    let configs = members.iter().zip(ranked_names(members.len())).map(|((http, tftp_port), name)| {
        let member =
            Member { name, address: http.ip(), http_port: http.port(), https_port: None, https_name: None };
        MemberConfig { tftp_port: *tftp_port, ..MemberConfig::new(member) }
    });
    let table = Table::new(configs.collect(), None, Arc::new(crate::event::NoopObserver)).unwrap();
    for known in table.all().iter() {
        table.report(&known.config.member.name, MemberState::Alive, "the test says so");
    }
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let mut settings = BalanceSettings {
        http: vec![local],
        tftp: vec![local],
        table: Arc::new(table),
        observer: Arc::clone(&seen) as _,
        tftp_clients: crate::tftp::Clients::default(),
        proxies: Vec::new(),
        sends_proxy_header: false,
    };
    change(&mut settings);
    Front { running: Balance::bind(settings).unwrap().run().unwrap(), seen }
}

fn front(members: &[&TestMember]) -> Front {
    let members: Vec<_> = members.iter().map(|member| (member.address, 0)).collect();
    front_of(&members, |_| {})
}

/// `a`, `b`, …, the best for the client 127.0.0.1 first.
fn ranked_names(count: usize) -> Vec<String> {
    let configs = (b'a'..).take(count).map(|letter| {
        let name = char::from(letter).to_string();
        let address = "127.0.0.1".parse().unwrap();
        MemberConfig::new(Member { name, address, http_port: 0, https_port: None, https_name: None })
    });
    let table = Table::new(configs.collect(), None, Arc::new(crate::event::NoopObserver)).unwrap();
    for known in table.all().iter() {
        table.report(&known.config.member.name, MemberState::Alive, "");
    }
    table.ranked_for(&[127, 0, 0, 1], None).into_iter().map(|config| config.member.name).collect()
}

/// Whether a program is there; says that a test is skipped if not.
fn has(program: &str, version: &str) -> bool {
    testing::program(program).is_some_and(|path| Command::new(path).arg(version).output().is_ok())
}

/// `curl` with a deadline; its exit code and what it got.
fn curl(arguments: &[&str]) -> (i32, Vec<u8>) {
    let output = Command::new("curl").args(["-sS", "--max-time", "60"]).args(arguments).output().unwrap();
    (output.status.code().unwrap(), output.stdout)
}
