//! The one question that every dialect asks, and its answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::content::one_spelling;
use crate::device::{Device, Mac};
use crate::member::Member;

/// Decides what a device boots. Implemented above this room; asked on every DHCP packet, TFTP request and HTTP request,
/// so an answer has to come from memory, without waiting for anybody.
pub trait BootPolicy: Send + Sync {
    /// What this device boots now, and from which live members.
    fn decide(&self, device: &Device) -> Decision;

    /// Whether somebody at `address` (known to be `mac`, if it is known) may have the file at `path` of the boot tree.
    /// Asked by HTTP and TFTP alike, so that nothing is allowed on one and denied on the other. Whether a *script* needs a token says the decision that it is
    /// rendered from, and nothing else.
    fn may_fetch(&self, path: &str, address: IpAddr, mac: Option<Mac>, proof: Proof) -> bool;

    /// The files that only a token opens, under whatever name they are asked for.
    fn protected_files(&self) -> Arc<ProtectedFiles> {
        Arc::default()
    }
}

/// What came with a request to show that it may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Nothing that is good.
    Nothing,
    /// A token for this path that is good now.
    Token,
}

/// Files of the boot tree that only a token opens, by the names that profiles give them. Names are compared as the server
/// finds files: ASCII case, backslashes, `.` and doubled or leading slashes make no other name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProtectedFiles {
    /// Of files, folded.
    names: BTreeSet<String>,
    /// The beginnings of names that depend on the device, folded.
    prefixes: Vec<String>,
}

impl ProtectedFiles {
    /// The files of these names, and all whose names begin with one of these prefixes. A prefix can end within a part of
    /// a path; an empty one covers everything.
    pub fn new(
        names: impl IntoIterator<Item = impl AsRef<str>>,
        prefixes: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Self {
        let folded_prefix = |prefix: &str| {
            let (folder, rest) = prefix.rsplit_once(['/', '\\']).unwrap_or(("", prefix));
            // `x/.` goes on as `x/./y` at best: what begins with a point is hidden.
            let rest = if rest == "." { String::new() } else { rest.to_ascii_lowercase() };
            below(&folded(folder)) + &rest
        };
        Self {
            names: names.into_iter().map(|name| folded(name.as_ref())).collect(),
            prefixes: prefixes.into_iter().map(|prefix| folded_prefix(prefix.as_ref())).collect(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.prefixes.is_empty()
    }

    /// Whether the file of this name is one of them.
    pub fn covers(&self, name: &str) -> bool {
        let name = folded(name);
        self.begin(&name) || self.names.contains(&name)
    }

    /// Whether a file somewhere below this folder can be one of them; the root is the empty name.
    pub fn are_below(&self, folder: &str) -> bool {
        let folder = below(&folded(folder));
        self.begin(&folder)
            || self.prefixes.iter().any(|prefix| prefix.starts_with(&folder))
            || self.names.range(folder.clone()..).next().is_some_and(|name| name.starts_with(&folder))
    }

    /// Whether every file below this folder is one of them.
    pub fn cover_all_of(&self, folder: &str) -> bool {
        self.begin(&below(&folded(folder)))
    }

    fn begin(&self, folded: &str) -> bool {
        self.prefixes.iter().any(|prefix| folded.starts_with(prefix.as_str()))
    }
}

/// One spelling for all that name the same.
fn folded(name: &str) -> String {
    one_spelling(name).to_ascii_lowercase()
}

/// How the names of what is below a folder begin.
fn below(folder: &str) -> String {
    if folder.is_empty() { String::new() } else { format!("{folder}/") }
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
    LocalDisk,
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
    Literal(String),
}

/// A script template with what it is rendered from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// Its name, for errors.
    pub name: String,
    /// What it is made from.
    pub template: Template,
    /// The profile's and the device's variables, the device's over the profile's.
    pub variables: BTreeMap<String, String>,
}

/// What a script does. Places of files are paths of the boot tree or whole URLs. Texts may hold `{{ … }}` expressions,
/// so that one profile serves many devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Template {
    /// Loads a kernel.
    Kernel {
        /// Where it is.
        kernel: String,
        /// Where its initial RAM disks are, in their order.
        initrds: Vec<String>,
        /// Its command line.
        arguments: String,
    },
    /// Loads a program and runs it.
    Chain {
        /// Where it is.
        program: String,
    },
    /// Boots from a disk over the network: several places are paths to the same disk.
    San {
        /// iSCSI and HTTP URIs, or images of the boot tree.
        disks: Vec<String>,
        /// The name by which the device logs in to iSCSI.
        initiator: Option<String>,
    },
    /// Lets somebody choose.
    Menu {
        /// Its heading.
        title: String,
        /// What there is.
        entries: Vec<MenuEntry>,
        /// After so many seconds the first is taken; 0 waits for ever.
        timeout_seconds: u32,
    },
    /// Boots from the device's own disk.
    Local,
    /// The administrator's own text.
    Text(Arc<str>),
}

impl From<&str> for Template {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Template {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

/// A line of a menu.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MenuEntry {
    /// The profile's name.
    pub profile: String,
    /// What the menu shows.
    pub title: String,
    /// What it does.
    pub script: Arc<Script>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_as_files_are_found() {
        let files = ProtectedFiles::new(["/Closed//./Vmlinuz", "a\\b"], ["Lab/./img-", "deep/x/", "odd/."]);
        for name in [
            "closed/vmlinuz",
            "CLOSED/VMLINUZ",
            "./closed/vmlinuz",
            "A/B",
            "lab/IMG-1/x",
            "deep/X/y",
            "odd/a",
        ] {
            assert!(files.covers(name), "{name}");
        }
        for name in
            ["closed/vmlinuz2", "closed", "x/closed/vmlinuz", "lab/im", "deep/x", "deep/xy", "odd", ""]
        {
            assert!(!files.covers(name), "{name}");
        }
        assert!(ProtectedFiles::new([""; 0], ["./"]).covers("anything"), "an empty prefix");
    }

    #[test]
    fn folders_that_hold_some_and_those_that_hold_nothing_else() {
        let files = ProtectedFiles::new(["a/b/c"], ["lab/img-", "deep/x/"]);
        let folders = |holds: &dyn Fn(&str) -> bool| {
            let all = [
                "",
                "A",
                "a/b",
                "a/b/c",
                "a/bc",
                "lab",
                "lab/img",
                "lab/img-1",
                "deep",
                "deep//X",
                "deep/x/y",
            ];
            all.into_iter().filter(|folder| holds(folder)).collect::<Vec<_>>()
        };
        assert_eq!(
            folders(&|folder| files.are_below(folder)),
            ["", "A", "a/b", "lab", "lab/img-1", "deep", "deep//X", "deep/x/y"]
        );
        assert_eq!(folders(&|folder| files.cover_all_of(folder)), ["lab/img-1", "deep//X", "deep/x/y"]);
    }
}
