//! The rule of protected files over generated folders: *a file is given without a token exactly when no protected name
//! leads to it*, whatever name it is asked for by.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use crate::content::{
    Body, ContentError, Contents, Library, LibrarySettings, Requester, TokenKey, UrlBuilder,
};
use crate::device::{Device, Mac};
use crate::event::Protocol;
use crate::policy::{Action, Boot, BootPolicy, Decision, Proof, What};

/// Opens protected names with a token, and everything else without.
struct ByName(Arc<ProtectedFiles>);

impl BootPolicy for ByName {
    fn decide(&self, _device: &Device) -> Decision {
        Decision { rule: "any".into(), action: Action::LocalDisk }
    }

    fn may_fetch(&self, path: &str, _address: IpAddr, _mac: Option<Mac>, proof: Proof) -> bool {
        proof == Proof::Token || !self.0.covers(path)
    }

    fn protected_files(&self) -> Arc<ProtectedFiles> {
        Arc::clone(&self.0)
    }
}

fn urls() -> UrlBuilder {
    UrlBuilder::new(TokenKey::from_secret(b"shared"), Duration::from_secs(600))
}

fn with_token(path: &str) -> String {
    let boot = Boot {
        profile: String::new(),
        what: What::File(String::new()),
        members: Vec::new(),
        is_secure: false,
        has_token: true,
        root_path: None,
        host_name: None,
    };
    urls().path_to(path, &boot, &Device::new(None, crate::Firmware::Ipxe))
}

/// A boot tree, and another folder that is served under a name.
struct Scene {
    _folder: tempfile::TempDir,
    /// Each with the name under which it is served.
    roots: Vec<(&'static str, PathBuf)>,
    library: Library,
}

impl Scene {
    fn new(protected: ProtectedFiles, fill: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["root", "more", "outside"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fill(folder.path());
        let roots: Vec<_> =
            [("", "root"), ("x", "more")].map(|(name, at)| (name, folder.path().join(at))).into();
        let settings = LibrarySettings {
            fitness: Arc::default(),
            root: roots[0].1.clone(),
            extra: vec![(roots[1].0.to_owned(), roots[1].1.clone())],
        };
        let library = Library::open(&settings, Arc::new(ByName(Arc::new(protected))), urls()).unwrap();
        Self { _folder: folder, roots, library }
    }

    /// Which file is given, or why none.
    fn get(&self, path: &str, protocol: Protocol) -> Result<u64, String> {
        let requester = Requester { address: "192.0.2.7".parse().unwrap(), mac: None, protocol };
        if let Some(Ok(_)) = self.library.open_at_once(path, &requester) {
            assert!(self.library.open(path, &requester).is_ok(), "{path}: given at once and not else");
        }
        match self.library.open(path, &requester) {
            Ok(content) => match content.body {
                Body::File(file) => Ok(file.metadata().unwrap().ino()),
                Body::Memory(_) => panic!("{path}: no file"),
            },
            Err(ContentError::Forbidden(_)) => Err("forbidden".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}

// The naive model: every name is followed to its end, by std alone.

fn normal(name: &str) -> String {
    let parts: Vec<_> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    parts.join("/").to_lowercase()
}

/// Every name up to four parts that leads to something inside, with where it leads.
fn all_names(served: &str, root: &Path) -> Vec<(String, PathBuf)> {
    let mut all = Vec::new();
    let mut level = vec![(served.to_owned(), root.to_owned())];
    for _ in 0..4 {
        level = level.iter().flat_map(|(name, folder)| children(root, name, folder)).collect();
        all.extend(level.iter().cloned());
    }
    all
}

fn children(root: &Path, name: &str, folder: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let entries = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries
        .filter_map(|entry| {
            let real = folder.join(&entry).canonicalize().ok()?;
            let name = if name.is_empty() { entry } else { format!("{name}/{entry}") };
            real.starts_with(root).then_some((name, real))
        })
        .collect()
}

fn everything_below(root: &Path, folder: &Path, seen: &mut BTreeSet<PathBuf>, found: &mut BTreeSet<u64>) {
    if folder.is_file() {
        found.insert(fs::metadata(folder).unwrap().ino());
    } else if seen.insert(folder.to_owned()) {
        for (_, real) in children(root, "", folder) {
            everything_below(root, &real, seen, found);
        }
    }
}

fn protected_inodes(scene: &Scene, names: &[String], prefixes: &[String]) -> BTreeSet<u64> {
    let names: Vec<_> = names.iter().map(|name| normal(name)).collect();
    let prefixes: Vec<_> = prefixes.iter().map(|prefix| normal(&format!("{prefix}|"))).collect();
    let begins = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix.trim_end_matches('|')));
    let (mut found, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for (served, root) in &scene.roots {
        let root = root.canonicalize().unwrap();
        let itself = (served.to_string(), root.clone());
        for (name, real) in all_names(served, &root).into_iter().chain([itself]) {
            let name = name.to_lowercase();
            let is_one = real.is_file() && (names.contains(&name) || begins(&name));
            if is_one || real.is_dir() && begins(&format!("{name}/")) {
                everything_below(&root, &real, &mut seen, &mut found);
            }
        }
    }
    found
}

#[derive(Clone, Debug)]
enum Made {
    File,
    Folder,
    Link(String),
    HardLink(String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[abAx]", 1..4).prop_map(|parts| parts.join("/"))
}

fn made() -> impl Strategy<Value = Made> {
    let link = prop_oneof![
        4 => (0..3_usize, path()).prop_map(|(up, path)| format!("{}{path}", "../".repeat(up))),
        1 => Just(".".to_owned()),
        1 => Just("..".to_owned()),
        1 => Just("../outside/a".to_owned()),
    ];
    prop_oneof![
        3 => Just(Made::File),
        1 => Just(Made::Folder),
        3 => link.prop_map(Made::Link),
        2 => ("(root|more)", path()).prop_map(|(root, path)| Made::HardLink(format!("{root}/{path}"))),
    ]
}

/// Another spelling of the same.
fn spell(path: &str, how: usize) -> String {
    match how % 5 {
        0 => path.to_owned(),
        1 => format!("/{path}"),
        2 => format!(".//{}", path.replace('/', "/./")),
        3 => path.to_uppercase(),
        _ => path.replacen('/', "//", 1).replacen('a', "A", 1),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_file_is_given_without_a_token_exactly_when_no_protected_name_leads_to_it(
        entries in prop::collection::vec(("(root|more)", path(), made()), 4..18),
        names in prop::collection::vec((path(), 0..5_usize), 0..3),
        prefixes in prop::collection::vec((path(), "(/|/|)", 0..5_usize), 0..3),
        how in 0..5_usize,
    ) {
        let names: Vec<String> = names.iter().map(|(path, how)| spell(path, *how)).collect();
        let prefixes: Vec<String> =
            prefixes.iter().map(|(path, end, how)| format!("{}{end}", spell(path, *how))).collect();
        let scene = Scene::new(ProtectedFiles::new(&names, &prefixes), |folder| {
            fs::write(folder.join("outside/a"), "outside").unwrap();
            for (root, path, made) in &entries {
                let path = folder.join(root).join(path);
                // What cannot be made, because something else has the name, is not made.
                let _ = fs::create_dir_all(path.parent().unwrap());
                if path.parent().unwrap().canonicalize().is_ok_and(|parent| parent.ends_with("outside")) {
                    continue;
                }
                let _ = match made {
                    Made::File => fs::File::create_new(&path).map(drop),
                    Made::Folder => fs::create_dir(&path),
                    Made::Link(to) => symlink(to, &path),
                    Made::HardLink(to) => fs::hard_link(folder.join(to), &path),
                };
            }
        });
        let protected = protected_inodes(&scene, &names, &prefixes);
        let asked = scene.roots.iter().flat_map(|(served, root)| all_names(served, &root.canonicalize().unwrap()));
        for (number, (name, _)) in asked.enumerate().take(60) {
            let name = spell(&name, how + number);
            let protocol = if number % 2 == 0 { Protocol::Http } else { Protocol::Tftp };
            let given = scene.get(&with_token(&name), protocol);
            let wanted = match &given {
                Ok(inode) if protected.contains(inode) => Err("forbidden".to_owned()),
                other => other.clone(),
            };
            prop_assert_eq!(scene.get(&name, protocol), wanted, "{} of {:?} {:?}", name, names, prefixes);
        }
    }
}

fn closed() -> ProtectedFiles {
    ProtectedFiles::new(["one/file"], ["closed/"])
}

fn write(path: PathBuf) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "").unwrap();
}

/// What `fill` leaves behind makes an open file forbidden, and a token opens it as before.
fn is_unknown(fill: impl FnOnce(&Path)) -> bool {
    let scene = Scene::new(closed(), |folder| {
        write(folder.join("root/open"));
        fill(&folder.join("root"));
    });
    assert!(scene.get(&with_token("open"), Protocol::Http).is_ok(), "a token opens it anyway");
    scene.get("open", Protocol::Http) == Err("forbidden".into())
}

fn deep(levels: usize) -> String {
    format!("closed/{}file", "d/".repeat(levels))
}

#[test]
fn what_cannot_be_told_is_not_given() {
    assert!(!is_unknown(|root| write(root.join("closed/file"))));
    // `closed` is one of the folders that count.
    assert!(!is_unknown(|root| write(root.join(deep(DEPTH_MAX - 1)))));
    assert!(is_unknown(|root| write(root.join(deep(DEPTH_MAX)))), "too deep");
    assert!(
        !is_unknown(|root| write(root.join(deep(DEPTH_MAX).replacen("closed", "other", 1)))),
        "nobody's affair"
    );
    assert!(!is_unknown(|root| {
        write(root.join("closed/a/file"));
        symlink("..", root.join("closed/a/up")).unwrap();
    }));
}

#[test]
fn more_entries_than_a_walk_looks_at_are_not_told() {
    let walk = |left: usize| {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path().join("open"));
        write(folder.path().join("closed/file"));
        let (tree, protected) = (Tree::open(folder.path()).unwrap(), closed());
        let mut walk = Walk {
            protected: &protected,
            trees: &[("", &tree)],
            left,
            waiting: VecDeque::new(),
            entered: HashSet::new(),
            folders: Vec::new(),
            files: HashSet::new(),
        };
        walk.run()
    };
    // Two in the root, one below `closed`.
    assert!(matches!((walk(3), walk(2)), (Ok(()), Err(Unknown::Large))));
}

#[test]
fn a_change_is_seen_at_once() {
    let scene = Scene::new(closed(), |folder| {
        write(folder.join("root/closed/first"));
        write(folder.join("root/open/first"));
        symlink("../closed/new", folder.join("root/open/link")).unwrap();
        symlink("../other", folder.join("root/closed/later")).unwrap();
        write(folder.join("outside/new"));
        write(folder.join("outside/other/file"));
    });
    let root = &scene.roots[0].1;
    let outside = root.parent().unwrap().join("outside");
    let forbidden = Err("forbidden".to_owned());
    assert!(scene.get("open/first", Protocol::Http).is_ok());
    fs::rename(outside.join("new"), root.join("closed/new")).unwrap();
    assert_eq!(scene.get("open/link", Protocol::Http), forbidden, "a file that came by another name");
    fs::rename(outside.join("other"), root.join("closed/deep")).unwrap();
    symlink("../closed/deep/file", root.join("open/deep")).unwrap();
    assert_eq!(scene.get("open/deep", Protocol::Tftp), forbidden, "a folder that came with old files");
    fs::hard_link(root.join("open/first"), root.join("closed/hard")).unwrap();
    assert_eq!(scene.get("open/first", Protocol::Http), forbidden, "a file that got a protected name");
    fs::remove_file(root.join("closed/hard")).unwrap();
    assert!(scene.get("open/first", Protocol::Http).is_ok(), "and lost it");
}
