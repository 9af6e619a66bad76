//! Rules of the workspace: what holds for the code base itself and no compiler checks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use goldwire_stdx::testing;
use serde_json::Value;

use crate::tool::workspace;

/// Which of our crates each one may lean on. Arrows point down only; edges never know each other.
const ARROWS: [(&str, &[&str]); 11] = [
    ("goldwire-stdx", &[]),
    ("goldwire-disk", &["goldwire-stdx"]),
    ("goldwire-store", &["goldwire-disk", "goldwire-stdx"]),
    ("goldwire-replicate", &["goldwire-disk", "goldwire-stdx", "goldwire-store"]),
    ("goldwire-netboot", &["goldwire-stdx"]),
    // To come: hypervisors and catalogs, and blocks over the network. They know neither each other nor a plan.
    ("goldwire-platform", &["goldwire-disk", "goldwire-stdx"]),
    ("goldwire-blockserver", &["goldwire-disk", "goldwire-stdx"]),
    (
        "goldwire-control",
        &[
            "goldwire-blockserver",
            "goldwire-disk",
            "goldwire-netboot",
            "goldwire-platform",
            "goldwire-replicate",
            "goldwire-stdx",
            "goldwire-store",
        ],
    ),
    // The agent is what `replicate` is on another host, and nothing more: it has to stay small.
    ("goldwire-agent", &["goldwire-replicate"]),
    (
        "goldwire",
        &[
            "goldwire-control",
            "goldwire-disk",
            "goldwire-netboot",
            "goldwire-replicate",
            "goldwire-stdx",
            "goldwire-store",
        ],
    ),
    // It runs the programs and knows nothing of what is inside; of stdx it uses what tests need of the machine.
    ("goldwire-e2e", &["goldwire-stdx"]),
];

/// What has no place in a program that hosts are asked to run: TLS, HTTP, databases, runtimes, command lines.
const NOT_IN_THE_AGENT: [&str; 24] = [
    "rustls",
    "native-tls",
    "openssl",
    "openssl-sys",
    "ring",
    "aws-lc-rs",
    "aws-lc-sys",
    "hyper",
    "http",
    "h2",
    "reqwest",
    "ureq",
    "axum",
    "tower",
    "tokio",
    "async-std",
    "rusqlite",
    "libsqlite3-sys",
    "sqlx",
    "postgres",
    "redb",
    "clap",
    "jiff",
    "indicatif",
];

/// Names that the room of network boot shows to the rooms above.
const NETBOOT_NAMES_MAX: usize = 135;

/// Names of its parsers and machines that only fuzz targets and load generators use.
const NETBOOT_FUZZED_NAMES_MAX: usize = 80;

/// Lines in a file, from which on nobody reads it to the end.
const LINES_MAX: usize = 900;

#[test]
fn arrows_point_down_only() {
    let all = Workspace::look();
    for name in &all.members {
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| known == name) else {
            panic!("{name} is new: say in ARCHITECTURE.md and here what it may lean on");
        };
        let found = all.dependencies_of(name).filter(|below| all.members.contains(*below));
        let upward: Vec<_> = found.filter(|below| !allowed.contains(below)).collect();
        assert!(upward.is_empty(), "{name} must not lean on {upward:?}");
    }
}

#[test]
fn the_agent_carries_no_tls_no_http_and_no_database() {
    let all = Workspace::look();
    let tree = all.tree_of("goldwire-agent");
    assert!(tree.contains("zstd"), "the tree was not found: {tree:?}");
    let heavy: Vec<_> = NOT_IN_THE_AGENT.iter().filter(|name| tree.contains(**name)).collect();
    assert!(heavy.is_empty(), "{heavy:?}");
}

/// Two providers of cryptography in one program make rustls refuse to choose, at run time. Asked of `cargo tree`, since
/// cargo's metadata also names what an unused feature would bring.
#[test]
fn there_is_one_provider_of_cryptography() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let words = ["tree", "-p", "goldwire", "-e", "normal", "--prefix", "none", "--locked", "--offline"];
    let output = Command::new(cargo).args(words).current_dir(workspace()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let tree: BTreeSet<&str> = text.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(tree.contains("aws-lc-rs"), "the tree was not found: {tree:?}");
    assert!(!tree.contains("ring") && !tree.contains("openssl"), "{tree:?}");
}

#[test]
fn licences_and_duplicates_are_those_that_deny_toml_explains() {
    let all = Workspace::look();
    let text = fs::read_to_string(workspace().join("deny.toml")).unwrap();
    let deny: toml::Table = text.parse().unwrap();
    let allowed: Vec<&str> =
        deny["licenses"]["allow"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &all.packages {
        let (name, version) = (text_of(package, "name"), text_of(package, "version"));
        versions.entry(name).or_default().insert(version);
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} has no licence"));
        assert!(Licence::allows(licence, &allowed), "{name} {version}: {licence}");
    }
    let mut skipped = BTreeSet::new();
    for skip in deny["bans"]["skip"].as_array().unwrap() {
        let (name, version) = skip["crate"].as_str().unwrap().split_once('@').unwrap();
        assert!(skip["reason"].as_str().is_some_and(|reason| reason.len() > 20), "{name}: why?");
        let found = versions.get_mut(name).unwrap_or_else(|| panic!("{name} is not in the tree any more"));
        let before = found.len();
        found.retain(|found| !(*found == version || found.starts_with(&format!("{version}."))));
        assert!(found.len() + 1 == before && before > 1, "{name} {version} is not there twice any more");
        skipped.insert(name);
    }
    let twice: Vec<_> = versions.iter().filter(|(_, versions)| versions.len() > 1).collect();
    assert!(twice.is_empty(), "{twice:?}: upgrade, or explain in deny.toml");
}

#[test]
fn every_crate_says_what_it_is() {
    let all = Workspace::look();
    for package in all.packages.iter().filter(|package| all.members.contains(text_of(package, "name"))) {
        let name = text_of(package, "name");
        assert!(
            package["description"].as_str().is_some_and(|text| text.len() > 20),
            "{name}: no description"
        );
        for target in package["targets"].as_array().unwrap() {
            let path = Path::new(text_of(target, "src_path"));
            if target["kind"][0] != "custom-build" {
                let source = fs::read_to_string(path).unwrap();
                assert!(source.starts_with("//! "), "{} does not say what it is for", path.display());
            }
        }
    }
}

#[test]
fn sources_are_short_finished_and_skip_nothing_in_silence() {
    // Put together here, so that this file does not find itself.
    let unfinished = [["to", "do!("].concat(), ["unimple", "mented!("].concat(), ["#[ig", "nore"].concat()];
    // A skip that is not counted is a judge that nobody misses.
    let skipped = ["SKIP", "PED:"].concat();
    for (name, text) in tracked() {
        if name.ends_with(".lock") {
            continue;
        }
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{name} has {lines} lines");
        for word in &unfinished {
            assert!(!text.contains(word), "{name} has {word}");
        }
        let may_skip = name == "crates/stdx/src/testing.rs";
        assert!(may_skip || !text.contains(&skipped), "{name} skips by itself");
    }
}

/// A reader of a facade learns what a room is for, unless the room shows all that it has. The compiler refuses a type
/// that is reachable without a name, so the names are all that there is.
#[test]
fn the_facade_of_netboot_is_small() {
    let root = workspace().join("crates/netboot/src");
    let facade = fs::read_to_string(root.join("lib.rs")).unwrap();
    assert!(facade.contains("#![deny(unnameable_types)]"), "a type without a name would not be counted");
    let names = public_names(&facade, &root);
    for expected in ["BootPolicy", "dhcp::Server", "member::heartbeat::Peer", "fuzzing::tftp::Packet"] {
        assert!(names.iter().any(|name| name == expected), "{expected} was not found: {names:?}");
    }
    let (fuzzed, shown): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.starts_with("fuzzing::"));
    assert!(shown.len() <= NETBOOT_NAMES_MAX, "{} names: {shown:?}", shown.len());
    assert!(fuzzed.len() <= NETBOOT_FUZZED_NAMES_MAX, "{} names: {fuzzed:?}", fuzzed.len());
}

#[test]
fn public_names_are_those_that_lead_out() {
    let source = "use a::B;\nmod c;\npub(crate) mod d;\npub use e::{F, g as H};\npub use i::J;\npub struct K(pub u8);\n\
        impl K {\n    pub fn l() {}\n}\npub mod m {\n    pub use n::{\n        O,\n        P,\n    };\n    const Q: u8 = 0;\n}\n\
        pub const R: u8 = 0;\npub const fn s() {}\n/// pub enum T\npub trait U<V> {}\n";
    let names = public_names(source, Path::new("."));
    assert_eq!(names, ["F", "H", "J", "K", "m::O", "m::P", "R", "s", "U"]);
}

/// What a module makes public, itself and in its public modules, whose files are in `folder`. Sources are formatted, so
/// what belongs to a module stands at its margin.
fn public_names(source: &str, folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        let Some(item) = line.strip_prefix("pub ") else { continue };
        if let Some(first) = item.strip_prefix("use ") {
            let mut text = first.to_owned();
            while !text.contains(';') {
                text.extend(lines.next());
            }
            let text = text.split(';').next().unwrap();
            assert!(!text.contains('*'), "{text}: whoever reads this does not learn the names");
            let listed = text.rsplit_once('{').map_or(text, |(_, listed)| listed.trim_end_matches('}'));
            let last = |name: &str| name.rsplit([' ', ':']).next().unwrap().to_owned();
            names.extend(listed.split(',').map(str::trim).filter(|name| !name.is_empty()).map(last));
            continue;
        }
        let mut words = item.split([' ', ';', '(', '<', ':', '{', '!']);
        let kinds = ["struct", "enum", "union", "trait", "fn", "const", "static", "type", "mod", "async"];
        let kind = words.next().filter(|word| kinds.contains(word)).unwrap_or_else(|| panic!("{line}"));
        let name = words.find(|word| !matches!(*word, "fn" | "unsafe" | "mut" | "")).unwrap().to_owned();
        if kind == "mod" {
            let inner: String = if item.ends_with(';') {
                let files = [folder.join(format!("{name}.rs")), folder.join(&name).join("mod.rs")];
                files.iter().find_map(|file| fs::read_to_string(file).ok()).unwrap()
            } else {
                let body = lines.by_ref().take_while(|line| *line != "}");
                body.map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line))).collect()
            };
            let below = public_names(&inner, &folder.join(&name));
            names.extend(below.into_iter().map(|below| format!("{name}::{below}")));
        } else {
            names.push(name);
        }
    }
    names
}

/// Paths of one machine: a home, a workplace, a job's folder.
#[test]
fn no_tracked_file_knows_one_machine() {
    let unwanted =
        [["/wo", "rk/"], ["/fa", "rm/"], ["/ro", "ot/"], ["/ho", "me/"]].map(|parts| parts.concat());
    for (name, text) in tracked() {
        for path in &unwanted {
            let is_start = |at: usize| {
                let before = text[..at].chars().next_back();
                !before.is_some_and(|c| {
                    c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | '}' | '>' | '"')
                })
            };
            let found = text.match_indices(path.as_str()).find(|(at, _)| is_start(*at));
            assert!(found.is_none(), "{name} names {path}…");
        }
    }
}

/// What a property found is a test with its story, and no seed (`.cargo/config.toml`).
#[test]
fn no_property_writes_seeds() {
    let disabled = std::env::var_os("PROPTEST_DISABLE_FAILURE_PERSISTENCE");
    assert!(disabled.is_some(), ".cargo/config.toml is not read");
    let own = ["proptest-reg", "ressions"].concat();
    for (name, text) in tracked() {
        assert!(!name.contains(&own) && !text.contains(&own), "{name}: {own}");
    }
}

#[test]
fn the_documents_are_there_and_their_links_lead_somewhere() {
    let root = workspace();
    for name in
        ["README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md", "LICENSE", "deny.toml", "Makefile"]
    {
        assert!(root.join(name).is_file(), "{name} is missing");
    }
    let mut documents = files(&root.join("docs"), "md");
    documents
        .extend(["README.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"].map(|name| root.join(name)));
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = link.split('#').next().unwrap_or("");
            if path.is_empty() || path.contains("://") {
                continue;
            }
            let target = document.parent().unwrap().join(path);
            assert!(target.exists(), "{}: {link} leads nowhere", document.display());
        }
    }
}

#[test]
fn examples_parse() {
    for path in files(&workspace().join("examples"), "") {
        let text = fs::read_to_string(&path).unwrap();
        match path.extension().and_then(|ending| ending.to_str()) {
            Some("toml") => drop(text.parse::<toml::Table>().unwrap_or_else(|error| panic!("{error}"))),
            Some("json") => {
                drop(serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{error}")))
            }
            Some("sh") => {
                let checked = Command::new("sh").arg("-n").arg(&path).status().unwrap();
                assert!(checked.success(), "{}", path.display());
            }
            Some("service") => assert_unit_holds(&path),
            Some("md") => {}
            _ => panic!("{}: say here how such an example is checked", path.display()),
        }
    }
}

/// systemd finds nothing wrong with a unit but that the program is not installed here, and rates its exposure as low.
fn assert_unit_holds(path: &Path) {
    if testing::program("systemd-analyze").is_none() {
        return;
    }
    // It makes /run/systemd, which only root can where systemd does not run: `verify` always, `security` since version 257.
    if !Path::new("/run/systemd").exists() && !testing::root() {
        return;
    }
    let words = ["security", "--offline=true", "--threshold=15"];
    let rated = Command::new("systemd-analyze").args(words).arg(path).output().unwrap();
    assert!(rated.status.success(), "{rated:?}");
    let complaints_about = |unit: &Path| -> Vec<String> {
        let mut verify = Command::new("systemd-analyze");
        let verified = verify.args(["verify", "--man=no"]).arg(unit).output().unwrap();
        let said = String::from_utf8(verified.stderr).unwrap();
        said.lines().filter(|line| !line.contains("is not executable")).map(str::to_owned).collect()
    };
    assert_eq!(complaints_about(path), [] as [String; 0]);
    let folder = tempfile::tempdir().unwrap();
    let misspelt = folder.path().join("misspelt.service");
    let text = fs::read_to_string(path).unwrap();
    fs::write(&misspelt, text.replace("NoNewPrivileges=", "NoNewPrivilege=")).unwrap();
    assert_eq!(complaints_about(&misspelt).len(), 1, "the judge judges");
}

#[test]
fn licence_expressions_are_understood() {
    let allowed = ["MIT", "Apache-2.0"];
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("MIT AND GPL-3.0", false),
        ("MIT/GPL-3.0", true),
        ("(MIT OR GPL-3.0) AND Apache-2.0", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", false),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", false),
    ] {
        assert_eq!(Licence::allows(expression, &allowed), expected, "{expression}");
    }
}

/// What cargo knows about the workspace, for the platform that it is built for.
struct Workspace {
    packages: Vec<Value>,
    members: BTreeSet<String>,
    /// Package id to the ids that it needs when it is built as a dependency.
    needs: BTreeMap<String, Vec<String>>,
}

impl Workspace {
    fn look() -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--locked", "--offline", "--all-features"])
            .args(["--filter-platform", &platform])
            .current_dir(workspace())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut data: Value = serde_json::from_slice(&output.stdout).unwrap();
        let Value::Array(packages) = data["packages"].take() else { panic!("no packages") };
        let is_member =
            |package: &&Value| data["workspace_members"].as_array().unwrap().contains(&package["id"]);
        let members = packages.iter().filter(is_member).map(|package| text_of(package, "name").to_owned());
        let members = members.collect();
        let is_built = |dependency: &&Value| {
            dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] != "dev")
        };
        let needs = data["resolve"]["nodes"].as_array().unwrap().iter().map(|node| {
            let dependencies = node["deps"].as_array().unwrap().iter().filter(is_built);
            let below = dependencies.map(|dependency| text_of(dependency, "pkg").to_owned()).collect();
            (text_of(node, "id").to_owned(), below)
        });
        let needs = needs.collect();
        Self { packages, members, needs }
    }

    /// Names that a crate of ours asks for in its own manifest, in whatever way: a test that leans upward would pull
    /// the rooms together as well.
    fn dependencies_of(&self, name: &str) -> impl Iterator<Item = &str> {
        let package = self.packages.iter().find(|package| text_of(package, "name") == name).unwrap();
        package["dependencies"].as_array().unwrap().iter().map(|dependency| text_of(dependency, "name"))
    }

    /// The names of everything that is built into a crate.
    fn tree_of(&self, name: &str) -> BTreeSet<&str> {
        let id_of = |package: &Value| text_of(package, "id").to_owned();
        let root = self.packages.iter().find(|package| text_of(package, "name") == name).map(id_of).unwrap();
        let mut ids = vec![root];
        let mut at = 0;
        while at < ids.len() {
            for below in &self.needs[&ids[at]] {
                if !ids.contains(below) {
                    ids.push(below.clone());
                }
            }
            at += 1;
        }
        let is_inside = |package: &&Value| ids.contains(&id_of(package));
        self.packages.iter().filter(is_inside).map(|package| text_of(package, "name")).collect()
    }
}

fn text_of<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap()
}

/// The text files that belong to the sources, with their paths from the root.
///
/// Those that git lists, however the user and the owner of the folder differ. In sources without a history nothing is
/// tracked; there all files count but those in the folders that git ignores.
pub(crate) fn tracked() -> Vec<(String, String)> {
    let root = workspace();
    let names: Vec<String> = if root.join(".git").exists() {
        let words = ["-c", "safe.directory=*", "ls-files", "-z"];
        let output = Command::new("git").args(words).current_dir(&root).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let listed = String::from_utf8(output.stdout).unwrap();
        listed.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    } else {
        let ignored = fs::read_to_string(root.join(".gitignore")).unwrap();
        let ignored: Vec<PathBuf> =
            ignored.lines().map(|line| root.join(line.trim_start_matches('/'))).collect();
        let is_ours = |path: &PathBuf| !ignored.iter().any(|folder| path.starts_with(folder));
        let tops = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).filter(is_ours);
        let all = tops.flat_map(|path| if path.is_dir() { files(&path, "") } else { vec![path] });
        let name = |path: PathBuf| path.strip_prefix(&root).unwrap().display().to_string();
        all.filter(is_ours).map(name).collect()
    };
    let texts = names.into_iter().filter_map(|name| {
        let text = fs::read_to_string(root.join(&name)).ok()?;
        Some((name, text))
    });
    let texts: Vec<_> = texts.collect();
    for folder in ["crates", "tools", "bench", "fuzz", "docs", "examples"] {
        assert!(texts.iter().any(|(name, _)| Path::new(name).starts_with(folder)), "{folder} was not found");
    }
    texts
}

/// Files below a folder with this ending; with an empty ending all.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if ending.is_empty() || path.extension().is_some_and(|found| found == ending) {
                found.push(path);
            }
        }
    }
    found
}

/// An SPDX expression, read as far as crates write them.
struct Licence<'a> {
    words: Vec<&'a str>,
    at: usize,
    allowed: &'a [&'a str],
}

impl<'a> Licence<'a> {
    fn allows(expression: &'a str, allowed: &'a [&'a str]) -> bool {
        let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let words = spaced.split_whitespace().collect();
        Licence { words, at: 0, allowed }.any()
    }

    fn any(&mut self) -> bool {
        let mut is_allowed = self.all();
        while self.take("OR") {
            is_allowed |= self.all();
        }
        is_allowed
    }

    fn all(&mut self) -> bool {
        let mut is_allowed = self.one();
        while self.take("AND") {
            is_allowed &= self.one();
        }
        is_allowed
    }

    fn one(&mut self) -> bool {
        if self.take("(") {
            let is_allowed = self.any();
            assert!(self.take(")"), "{:?}", self.words);
            return is_allowed;
        }
        let name = self.words[self.at];
        self.at += 1;
        if self.take("WITH") {
            // An exception is a licence of its own; none of ours is needed so far.
            self.at += 1;
            return false;
        }
        self.allowed.contains(&name)
    }

    fn take(&mut self, word: &str) -> bool {
        let is_next = self.words.get(self.at) == Some(&word);
        self.at += usize::from(is_next);
        is_next
    }
}
