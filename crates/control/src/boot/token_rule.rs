//! The rule of tokens, over generated boot files, spellings of paths, links and hard links, by HTTP and TFTP alike:
//!
//! *A script is given without a token exactly when the decision that it is rendered from needs none. A file is given
//! without a token exactly when no profile protects that inode.*

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;
use std::time::Duration;

use goldwire_netboot::content::{
    Body, ContentError, Contents, Library, LibrarySettings, Requester, TokenKey, UrlBuilder,
};
use goldwire_netboot::{
    Action, Architecture, BootPolicy, Device, Firmware, LiveMembers, Mac, Member, Protocol,
};

use super::{Policy, parse};

struct One;

impl LiveMembers for One {
    fn ordered_for(&self, _key: &[u8], _subnet: Option<std::net::IpAddr>) -> Vec<Member> {
        let (name, address) = ("m".into(), "10.0.0.1".parse().unwrap());
        vec![Member { name, address, http_port: 80, https_port: None, https_name: None }]
    }
}

const MACS: [Option<&str>; 3] = [None, Some("52:54:00:00:00:01"), Some("52:54:00:00:00:99")];
const ARCHS: [&str; 3] = ["-", "bios", "efi-x64"];
const UUIDS: [Option<&str>; 3] =
    [None, Some("11111111-1111-4111-8111-111111111111"), Some("22222222-2222-4222-8222-222222222222")];

/// Which profile the default, a group by architecture, a device by MAC and one by UUID have; some have none.
fn boot_files() -> Vec<String> {
    let profiles = ["open", "closed", "menu"];
    let mut files = Vec::new();
    for default in [None, Some("open"), Some("closed"), Some("menu")] {
        for group in [None, Some("open"), Some("closed")] {
            for by_mac in [None, Some("open")] {
                for by_uuid in [None, Some("closed")] {
                    let mut text = String::new();
                    if let Some(name) = default {
                        text += &format!("default-profile = \"{name}\"\n");
                    }
                    text += "[server]\nsecret-file = \"secret\"\nroot = \"root\"\n[[member]]\nname = \"m\"\naddress = \"10.0.0.1\"\n\
                             [profile.open]\nkernel = \"open/vmlinuz\"\n\
                             [profile.closed]\nkernel = \"closed/vmlinuz\"\ninitrd = [\"closed/{{ arch }}.img\", \"linked/initrd\"]\ntoken = true\n\
                             [profile.menu]\nmenu = [\"open\", \"closed\"]\n";
                    if let Some(name) = group {
                        text += &format!("[[group]]\narch = \"efi-x64\"\nprofile = \"{name}\"\n");
                    }
                    if let Some(name) = by_mac {
                        text +=
                            &format!("[[device]]\nmac = \"{}\"\nprofile = \"{name}\"\n", MACS[1].unwrap());
                    }
                    if let Some(name) = by_uuid {
                        text +=
                            &format!("[[device]]\nuuid = \"{}\"\nprofile = \"{name}\"\n", UUIDS[1].unwrap());
                    }
                    assert!(profiles.iter().all(|name| text.contains(&format!("[profile.{name}]"))));
                    files.push(text);
                }
            }
        }
    }
    files
}

struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    /// A boot tree with protected files under open names and the other way round.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        for name in [
            "open/vmlinuz",
            "closed/vmlinuz",
            "closed/bios.img",
            "closed/deep/efi.img",
            "other/initrd",
            "other/free",
        ] {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), name).unwrap();
        }
        fs::create_dir_all(root.join("linked")).unwrap();
        symlink("../closed/vmlinuz", root.join("open/link")).unwrap();
        symlink("closed", root.join("also-closed")).unwrap();
        fs::hard_link(root.join("closed/vmlinuz"), root.join("open/hard")).unwrap();
        fs::hard_link(root.join("closed/bios.img"), root.join("open/hard.img")).unwrap();
        // A protected name that is a link to a file with an open one.
        symlink("../other/initrd", root.join("linked/initrd")).unwrap();
        fs::write(folder.path().join("secret"), "0123456789abcdef0123456789abcdef").unwrap();
        fs::set_permissions(folder.path().join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        Self { folder }
    }

    fn library(&self, text: &str) -> (Library, Arc<Policy>) {
        let loaded = parse(text, &self.folder.path().join("boot.toml"))
            .unwrap_or_else(|problems| panic!("{text}\n{problems}"));
        let policy = Arc::new(Policy::new(loaded.rules, Arc::new(One)));
        let key = TokenKey::from_secret(b"0123456789abcdef0123456789abcdef");
        let urls = UrlBuilder::new(key, Duration::from_secs(900));
        let settings = LibrarySettings {
            root: self.folder.path().join("root"),
            extra: Vec::new(),
            fitness: Arc::default(),
        };
        (Library::open(&settings, policy.clone(), urls).unwrap(), policy)
    }
}

fn requester(protocol: Protocol) -> Requester {
    Requester { address: "10.0.0.7".parse().unwrap(), mac: None, protocol }
}

/// What the answer is by any way in: at once, or by the disk.
fn open(library: &Library, path: &str, protocol: Protocol) -> Result<String, String> {
    let requester = requester(protocol);
    let slow = library.open(path, &requester);
    if let Some(fast) = library.open_at_once(path, &requester) {
        assert_eq!(fast.is_ok(), slow.is_ok(), "{path}");
    }
    match slow {
        Ok(content) => Ok(match content.body {
            Body::Memory(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            Body::File(_) => String::new(),
        }),
        Err(ContentError::Forbidden(why)) => Err(format!("forbidden: {why}")),
        Err(error) => Err(format!("other: {error}")),
    }
}

/// Spellings of one path, all of which clients send.
fn spellings(path: &str) -> Vec<String> {
    vec![
        path.to_owned(),
        format!("/{path}"),
        format!("//./{path}"),
        path.replace('/', "\\"),
        path.replacen('/', "//", 1),
        path.replacen('s', "S", 1),
        path.to_uppercase(),
    ]
}

#[test]
fn a_script_needs_a_token_exactly_when_its_decision_does() {
    let scene = Scene::new();
    let (mut given, mut refused) = (0, 0);
    for text in boot_files() {
        let (library, policy) = scene.library(&text);
        for (mac, arch, uuid) in MACS.iter().flat_map(|mac| {
            ARCHS.iter().flat_map(move |arch| UUIDS.iter().map(move |uuid| (mac, arch, uuid)))
        }) {
            let mut device = Device::new(mac.map(|mac| mac.parse::<Mac>().unwrap()), Firmware::Ipxe);
            device.arch = Architecture::from_name(arch);
            device.uuid = uuid.map(|uuid| uuid.parse().unwrap());
            device.subnet = Some(requester(Protocol::Http).address);
            let action = policy.decide(&device).action;
            let path = format!(
                "s/{}/{arch}/{}/boot.ipxe",
                mac.map_or("-".to_owned(), |mac| mac.replace(':', "-")),
                uuid.unwrap_or("-")
            );
            let below = format!("ipxe/autoexec.ipxe/{path}");
            for protocol in [Protocol::Http, Protocol::Tftp] {
                // Each spelling comes by one of the two.
                let is_mine = |number: &usize| number.is_multiple_of(2) == (protocol == Protocol::Http);
                let spellings = spellings(&path).into_iter().take(6).chain([below.clone()]).enumerate();
                for (_, spelt) in spellings.filter(|(number, _)| is_mine(number)) {
                    let answer = open(&library, &spelt, protocol);
                    let needs_token = matches!(&action, Action::Boot(boot) if boot.has_token);
                    let is_forbidden = answer.as_ref().is_err_and(|why| why.starts_with("forbidden"));
                    assert_eq!(is_forbidden, needs_token, "{spelt} {protocol:?}: {answer:?}\n{text}");
                    match &answer {
                        Ok(script) => {
                            // Nor is there a way to a token, or to what only one opens, in a script without.
                            assert!(!script.contains("/t/"), "{spelt}: {script}");
                            let digest = goldwire_netboot::content::Digest::of(b"closed/vmlinuz").to_string();
                            assert!(!script.contains(&digest), "{spelt}: {script}");
                            given += 1;
                        }
                        Err(_) => refused += 1,
                    }
                }
            }
        }
    }
    assert!(given > 1000 && refused > 1000, "{given} given, {refused} refused");
}

#[test]
fn a_file_needs_a_token_exactly_when_a_profile_protects_its_inode() {
    let scene = Scene::new();
    let root = scene.folder.path().join("root");
    let (library, _) = scene.library(&boot_files()[0]);
    let inode = |name: &str| fs::metadata(root.join(name)).unwrap().ino();
    // What the boot file protects: a kernel, whatever begins like the initrd that depends on the machine, and a link.
    let protected: HashSet<u64> =
        ["closed/vmlinuz", "closed/bios.img", "closed/deep/efi.img", "linked/initrd"].map(inode).into();
    let names = [
        "open/vmlinuz",
        "open/link",
        "open/hard",
        "open/hard.img",
        "closed/vmlinuz",
        "closed/bios.img",
        "closed/deep/efi.img",
        "also-closed/vmlinuz",
        "also-closed/bios.img",
        "other/initrd",
        "other/free",
        "linked/initrd",
    ];
    for name in names {
        let needs_token = protected.contains(&inode(name));
        let digest = goldwire_netboot::content::Digest::of(&fs::read(root.join(name)).unwrap());
        for protocol in [Protocol::Http, Protocol::Tftp] {
            for spelt in spellings(name).into_iter().chain([format!("c/{digest}/{name}")]) {
                for _ in 0..2 {
                    let answer = open(&library, &spelt, protocol);
                    let is_forbidden = answer.as_ref().is_err_and(|why| why.starts_with("forbidden"));
                    assert_eq!(is_forbidden, needs_token, "{spelt} {protocol:?}: {answer:?}");
                }
            }
        }
    }
    // A name that is made while the server runs.
    fs::hard_link(root.join("closed/vmlinuz"), root.join("other/new")).unwrap();
    assert!(open(&library, "other/new", Protocol::Http).is_err());
    fs::remove_file(root.join("closed/vmlinuz")).unwrap();
    fs::write(root.join("closed/vmlinuz"), "another").unwrap();
    assert!(open(&library, "closed/vmlinuz", Protocol::Http).is_err());
}
