use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::sync::Mutex;

use super::*;
use crate::content::TokenKey;
use crate::device::{Architecture, Mac};
use crate::event::Protocol;
use crate::media::{MediaReport, Medium};
use crate::member::Member;
use crate::policy::{Decision, Proof};

const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

/// Says one thing about every device, denies what lies below `secret/`, and wants a token below `signed/`.
struct Fixed {
    action: Action,
    asked: Mutex<Vec<Device>>,
}

impl BootPolicy for Fixed {
    fn decide(&self, device: &Device) -> Decision {
        self.asked.lock().unwrap().push(device.clone());
        Decision { rule: "fixed".into(), action: self.action.clone() }
    }

    fn may_fetch(&self, path: &str, _address: IpAddr, _mac: Option<Mac>, proof: Proof) -> bool {
        !path.starts_with("secret/") && (proof == Proof::Token || !path.starts_with("signed/"))
    }
}

fn boot(what: What) -> Action {
    Action::Boot(Box::new(Boot {
        profile: "p".into(),
        what,
        members: vec![Member {
            name: "boot1".into(),
            address: "192.0.2.1".parse().unwrap(),
            http_port: 80,
            https_port: None,
            https_name: None,
        }],
        is_secure: false,
        has_token: true,
        root_path: None,
        host_name: None,
    }))
}

/// The path with the token that DHCP tells for it: a script that is full of tokens is given for one.
fn signed(path: &str, mac: Option<Mac>) -> String {
    let Action::Boot(boot) = boot(What::File("x.efi".into())) else { panic!() };
    urls().path_to(path, &boot, &Device::new(mac, crate::Firmware::Ipxe))
}

fn urls() -> UrlBuilder {
    UrlBuilder::new(TokenKey::from_secret(b"shared"), Duration::from_secs(600))
}

struct Harness {
    folder: tempfile::TempDir,
    policy: Arc<Fixed>,
    library: Library,
}

fn harness(action: Action) -> Harness {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("tree/pvs/ARDBP32.BIN", "bootstrap"),
        ("tree/x.efi", "efi"),
        ("tree/secret/key", "secret"),
        ("tree/signed/image.iso", "iso"),
        ("tree/own/autoexec.ipxe", "#!ipxe\n"),
        ("tree/.htpasswd", "hidden"),
        ("ipxe/undionly.kpxe", "kpxe"),
        ("outside", "outside"),
    ] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let policy = Arc::new(Fixed { action, asked: Mutex::default() });
    let settings = LibrarySettings {
        fitness: Arc::default(),
        root: folder.path().join("tree"),
        extra: vec![("ipxe".into(), folder.path().join("ipxe"))],
    };
    let shared: Arc<dyn BootPolicy> = policy.clone();
    let library = Library::open(&settings, shared, urls()).unwrap();
    Harness { folder, policy, library }
}

fn requester(protocol: Protocol) -> Requester {
    Requester { address: "192.0.2.7".parse().unwrap(), mac: Some(MAC), protocol }
}

impl Harness {
    fn get(&self, path: &str) -> Result<Content, ContentError> {
        let http = self.library.open(path, &requester(Protocol::Http));
        let tftp = self.library.open(path, &requester(Protocol::Tftp));
        // Nothing is allowed on one and denied on the other.
        match (&http, &tftp) {
            (Ok(a), Ok(b)) => assert_eq!((a.digest, a.length), (b.digest, b.length), "{path}"),
            (Err(a), Err(b)) => assert_eq!(a.to_string(), b.to_string(), "{path}"),
            (a, b) => panic!("{path}: {a:?} over HTTP and {b:?} over TFTP"),
        }
        http
    }

    fn text(&self, path: &str) -> String {
        let content = self.get(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let mut bytes = vec![0; content.length as usize];
        assert_eq!(content.read_at(&mut bytes, 0).unwrap(), bytes.len());
        assert_eq!(content.digest, Some(Digest::of(&bytes)));
        String::from_utf8(bytes).unwrap()
    }
}

#[test]
fn files_of_the_tree_and_of_other_folders() {
    let harness = harness(Action::LocalDisk);
    assert_eq!(harness.text("pvs/ARDBP32.BIN"), "bootstrap");
    assert_eq!(harness.text("\\PVS\\ardbp32.bin"), "bootstrap");
    assert_eq!(harness.text("/ipxe/undionly.kpxe"), "kpxe");
    assert_eq!(harness.text("IPXE/UNDIONLY.KPXE"), "kpxe");
    fs::create_dir(harness.folder.path().join("tree/ipxe")).unwrap();
    fs::write(harness.folder.path().join("tree/ipxe/undionly.kpxe"), "own").unwrap();
    assert_eq!(harness.text("ipxe/undionly.kpxe"), "own", "the boot tree's own comes first");
    let types = [("x.efi", "application/efi", Stage::Bootstrap), ("own/autoexec.ipxe", TEXT, Stage::Script)];
    for (path, media_type, stage) in types {
        let content = harness.get(path).unwrap();
        assert_eq!((content.media_type, content.stage), (media_type, stage), "{path}");
        assert!(content.modified.is_some());
    }
    assert_eq!([stage("lab/initrd.img"), stage("vmlinuz")], [Stage::Kernel; 2], "no disk, whatever its name");
    assert_eq!(stage("lab/disk.vhdx"), Stage::San);
    harness.library.warm();
}

#[test]
fn media_are_served_while_there_are_some() {
    let harness = harness(Action::LocalDisk);
    let own = harness.folder.path().join("tree/m");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("goldwire.iso"), "of the boot tree").unwrap();
    let paths = ["m/goldwire.iso", "m/goldwire.img"];
    let is_absent = |path| matches!(harness.get(path), Err(ContentError::NotFound));
    assert!(paths.into_iter().all(is_absent));
    let medium = |bytes: &[u8], media_type| Medium {
        bytes: bytes.to_vec(),
        media_type,
        report: MediaReport {
            programs: Vec::new(),
            size: bytes.len() as u64,
            digest: blake3::hash(bytes),
            notes: Vec::new(),
        },
    };
    let (iso, disk) = (medium(b"an iso", "an iso's type"), medium(b"a disk", "a disk's type"));
    harness.library.set_media(Some(Media { iso: iso.clone(), disk }));
    assert_eq!(paths.map(|path| harness.text(path)), ["an iso", "a disk"]);
    assert_eq!(paths.map(|path| harness.get(path).unwrap().media_type), ["an iso's type", "a disk's type"]);
    let before = harness.get("m/goldwire.iso").unwrap();
    harness.library.set_media(Some(Media { iso: medium(b"another", ""), disk: iso }));
    assert_eq!(harness.text("m/goldwire.iso"), "another");
    let mut rest = [0; 6];
    assert_eq!(before.read_at(&mut rest, 3).unwrap(), 3, "who has begun goes on with the same bytes");
    assert_eq!(&rest[..3], b"iso");
    harness.library.set_media(None);
    assert!(paths.into_iter().all(is_absent));
}

#[test]
fn nothing_outside_by_any_spelling() {
    let harness = harness(Action::LocalDisk);
    std::os::unix::fs::symlink("../outside", harness.folder.path().join("tree/link")).unwrap();
    for path in [
        "../outside",
        "..\\outside",
        "pvs/../../outside",
        "/../outside",
        "link",
        "LINK",
        ".htpasswd",
        "ipxe/../../outside",
        "ipxe/..",
        "",
        "/",
        "pvs",
        "ipxe",
        "t/x/../outside",
        "c/00000000000000000000000000000000/../../outside",
        "x.efi\0",
    ] {
        assert!(matches!(harness.get(path), Err(ContentError::NotFound)), "{path}");
    }
}

// allowPXE=false still served the binary over another protocol (https://github.com/tinkerbell/tinkerbell/issues/223).
#[test]
fn row_22_one_policy_for_every_protocol_and_spelling() {
    let harness = harness(Action::Ignore);
    let digest = Digest::of(b"secret");
    for path in
        ["secret/key", "SECRET/KEY", "\\secret\\key", "x/../secret/key", &format!("c/{digest}/secret/key")]
    {
        assert!(harness.get(path).is_err(), "{path}");
    }
    let script = "s/52-54-00-12-34-56/efi-x64/-/boot.ipxe";
    assert!(
        matches!(harness.get(script), Err(ContentError::Forbidden(_))),
        "a device that is ignored gets no script"
    );
}

#[test]
fn pinned_content_is_this_content_or_none() {
    let harness = harness(Action::LocalDisk);
    let pinned = format!("c/{}/x.efi", Digest::of(b"efi"));
    assert_eq!(harness.text(&pinned), "efi");
    fs::write(harness.folder.path().join("tree/x.efi"), "EFI").unwrap();
    assert!(matches!(harness.get(&pinned), Err(ContentError::NotFound)));
}

#[test]
fn tokens_open_what_wants_them() {
    let harness = harness(Action::LocalDisk);
    let Action::Boot(boot) = boot(What::File("signed/image.iso".into())) else { unreachable!() };
    let path = urls().path_of(&boot, &Device::new(Some(MAC), crate::Firmware::Ipxe)).unwrap();
    assert_eq!(harness.text(&path), "iso");
    assert!(matches!(harness.get("signed/image.iso"), Err(ContentError::Forbidden(_))));
    let other = urls().path_of(&boot, &Device::new(Some(Mac([2; 6])), crate::Firmware::Ipxe)).unwrap();
    assert!(matches!(harness.get(&other), Err(ContentError::Forbidden(_))), "another device's");
    assert!(matches!(harness.get(&path.replace("image", "img")), Err(ContentError::NotFound)));
}

#[test]
fn a_device_gets_the_script_that_the_policy_says() {
    let path = "s/52-54-00-12-34-56/efi-x86_64/01234567-89ab-cdef-0123-456789000001/boot.ipxe";
    let text = "#!ipxe\necho {{ mac }}\nchain {{ url('x.efi') }}\n";
    let template = Script { name: "T".into(), template: text.into(), variables: BTreeMap::new() };
    let rendered = harness(boot(What::Script(Arc::new(template))));
    assert!(matches!(rendered.get(path), Err(ContentError::Forbidden(_))), "it holds tokens");
    rendered.policy.asked.lock().unwrap().clear();
    let path = &signed(path, Some(MAC))[..];
    let script = rendered.text(path);
    let link =
        script.strip_prefix("#!ipxe\necho 52:54:00:12:34:56\nchain http://192.0.2.1/").unwrap().trim_end();
    // By its content, behind a token; and another content is not found there.
    assert!(link.starts_with("t/") && link.contains(&format!("/c/{}/x.efi", Digest::of(b"efi"))), "{script}");
    assert_eq!(rendered.text(link), "efi");
    fs::write(rendered.folder.path().join("tree/x.efi"), "another").unwrap();
    assert!(matches!(rendered.get(link), Err(ContentError::NotFound)));
    let device = rendered.policy.asked.lock().unwrap()[0].clone();
    assert_eq!((device.mac, device.arch), (Some(MAC), Some(Architecture::EFI_X64)));
    assert_eq!(device.uuid.unwrap().to_string(), "01234567-89ab-cdef-0123-456789000001");
    assert_eq!(device.subnet, Some("192.0.2.7".parse().unwrap()));

    assert_eq!(harness(Action::LocalDisk).text(path), "#!ipxe\nexit 0\n");
    let elsewhere = harness(boot(What::Literal("http://192.0.2.1/x".into())));
    assert_eq!(elsewhere.text(path), "#!ipxe\nchain --autofree http://192.0.2.1/x\n");
    for bad in ["", "a b", "a\nshell"] {
        assert!(matches!(
            harness(boot(What::Literal(bad.into()))).get(path),
            Err(ContentError::Script { .. })
        ));
    }
    let file = harness(boot(What::File("signed/image.iso".into())));
    let text = file.text(path);
    let link = text.strip_prefix("#!ipxe\nchain --autofree --timeout 8000 /").unwrap().trim_end();
    assert_eq!(file.text(link), "iso");
}

#[test]
fn autoexec_is_made_where_there_is_none() {
    let harness = harness(Action::LocalDisk);
    assert_eq!(harness.text("own/autoexec.ipxe"), "#!ipxe\n");
    for path in ["autoexec.ipxe", "ipxe/autoexec.ipxe", "/a/b/autoexec.ipxe", "t/x/ipxe/AUTOEXEC.IPXE"] {
        let text = harness.text(path);
        assert!(text.starts_with("#!ipxe\n"), "{path}");
        assert!(text.contains(
            "chain --timeout 5000 ${here}/s/${card}/${platform}-${buildarch}/${machine}/boot.ipxe"
        ));
        assert!(!text.contains("/t/"), "whoever asks for it would have a token: {text}");
    }
    assert!(matches!(harness.get("secret/../autoexec.ipxe"), Err(ContentError::NotFound)));
}

// Some firmware loses its DNS server on the way to iPXE (https://github.com/ipxe/ipxe/issues/1200): what we make up
// ourselves names no host at all, so no name can fail.
#[test]
fn row_15_our_scripts_need_no_name_server() {
    let harness = harness(boot(What::File("x.efi".into())));
    for path in ["autoexec.ipxe", &signed("s/-/-/-/boot.ipxe", None)] {
        assert!(!harness.text(path).contains("://"), "{path}");
    }
}
