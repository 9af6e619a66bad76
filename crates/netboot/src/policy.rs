//! The one question that every dialect asks, and its answer.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::device::{Device, Mac};
use crate::member::Member;

/// Decides what a device boots. Implemented above this room; asked on every DHCP packet, TFTP request and HTTP request,
/// so an answer has to come from memory, without waiting for anybody.
pub trait BootPolicy: Send + Sync {
    /// What this device boots now, and from which live members.
    fn decide(&self, device: &Device) -> Decision;

    /// Whether somebody at `address` (known to be `mac`, if it is known) may have the file at `path` of the boot tree.
    /// Asked by HTTP and TFTP alike, so that nothing is allowed on one and denied on the other. `has_token` says that
    /// the request carried a valid token for the path.
    fn may_fetch(&self, path: &str, address: IpAddr, mac: Option<Mac>, has_token: bool) -> bool;
}

/// The answer for one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Which rule won, as the administrator knows it: `device seat-17 (boot.toml:40)`.
    pub rule: String,
    /// What follows from it.
    pub action: Action,
}

/// What is done about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It boots this.
    Boot(Box<Boot>),
    /// It gets an address and no boot file, and boots from its own disk.
    Local,
    /// It gets no answer.
    Ignore,
}

/// What a device boots, and who can serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// The profile's name.
    pub profile: String,
    /// What the program that asks shall load next.
    pub what: What,
    /// Live members that can serve it, the device's own first. Empty when all are dead or drained: then nobody is named
    /// in an answer, and DHCP stays silent about booting rather than send a device to a dead server.
    pub members: Vec<Member>,
    /// Whether URLs are `https`.
    pub is_secure: bool,
    /// Whether paths carry a signed short-lived token.
    pub has_token: bool,
    /// The root path (option 17), for SAN boot without a script.
    pub root_path: Option<String>,
    /// The device's host name (option 12), where the rule gives it one.
    pub host_name: Option<String>,
}

/// What to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A file of the boot tree, by its path below the root: `undionly.kpxe`, `pvs/ARDBP32.BIN`.
    File(String),
    /// The iPXE script that is rendered for the device; only for programs that run one.
    Script(Arc<Script>),
    /// A URL or a file name, handed out as it stands.
    Elsewhere(String),
}

/// A script template with what it is rendered from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Its name, for errors.
    pub name: String,
    /// The template's text.
    pub template: String,
    /// The profile's and the device's variables, the device's over the profile's.
    pub variables: BTreeMap<String, String>,
}
