//! Attacks that once succeeded, each with what somebody plants or says and what must come of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use goldwire_stdx::testing;

use crate::disks::Guest;
use crate::site::{Site, fetch, status};
use crate::sync::text;
use crate::tool::Scene;

/// Debian's `nobody`.
pub(crate) const NOBODY: u32 = 65534;

/// Gives everything below `folder` to a lesser user.
fn give_away(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            give_away(&entry.path());
        }
        std::os::unix::fs::lchown(entry.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
}

/// The tree kept of one image with the key of another, which is made of what `stat` says (bytes 64 to 95 of the header),
/// and the checksum over the first 96 bytes made anew.
pub(crate) fn forged_tree(trees: &Path, of: &str, from: &str) -> Vec<u8> {
    let read = |name: &str| fs::read(trees.join(format!("{name}.tree"))).unwrap();
    let mut forged = read(from);
    forged[64..96].copy_from_slice(&read(of)[64..96]);
    let checksum = *blake3::hash(&forged[..96]).as_bytes();
    forged[96..128].copy_from_slice(&checksum);
    forged
}

/// Root syncs into the folder of a lesser user, who has planted links wherever we once wrote by path.
#[test]
fn root_writes_nothing_outside_of_a_lesser_users_folder() {
    if !testing::root() {
        return;
    }
    let scene = Scene::new();
    let source = scene.path("src.raw");
    Guest::random(9, 4, 1).write_raw(&source);
    let secret = scene.path("key");
    scene.goldwire(["key", "new", text(&secret)]).expect(0);
    scene.goldwire(["disk", "tree", "--sign", text(&secret), text(&source)]).expect(0);
    let victims = scene.folder("victims");
    fs::set_permissions(&victims, fs::Permissions::from_mode(0o700)).unwrap();
    let links = [
        ".goldwire/work/new.raw/state.new",
        ".goldwire/work/new.raw/state",
        ".goldwire/work/new.raw/disk",
        ".goldwire/work/new.raw/tree",
        ".goldwire/work/new.raw/journal",
        ".goldwire/work/new.raw/readback",
        ".goldwire/work/new.raw/laid-out",
        ".goldwire/work/new.raw/version",
        ".goldwire/work/new.raw/previous",
        ".new.raw.goldwire-lock",
        ".goldwire/work/new.raw",
        ".goldwire/work",
        ".goldwire/versions/new.raw.gwv",
        ".goldwire/versions/new.raw.gwv.new",
        ".goldwire/versions",
        ".goldwire/trees/new.raw.tree",
        ".goldwire/trees",
        ".goldwire",
        ".goldwire-0/work/new.raw",
        ".goldwire-0/work",
        ".goldwire-0",
    ];
    for (number, link) in links.into_iter().enumerate() {
        for kind in ["file", "folder", "missing"] {
            let bob = scene.folder(&format!("bob-{number}-{kind}"));
            let victim = victims.join(format!("{number}-{kind}"));
            match kind {
                "file" => fs::write(&victim, "precious").unwrap(),
                "folder" => fs::create_dir(&victim).unwrap(),
                _ => {}
            }
            let place = bob.join(link);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            symlink(&victim, &place).unwrap();
            give_away(&bob);
            let run = scene.goldwire(["sync", text(&source), text(&bob.join("new.raw"))]).finish();
            let what = format!("{link} to a {kind}: {run}");
            match kind {
                "file" => assert_eq!(fs::read(&victim).unwrap(), b"precious", "{what}"),
                "folder" => assert_eq!(fs::read_dir(&victim).unwrap().count(), 0, "{what}"),
                _ => assert!(!victim.exists(), "{what}"),
            }
            if victim.exists() {
                assert_eq!(fs::metadata(&victim).unwrap().uid(), 0, "{what}");
            }
            // Either it worked in a folder of our own, or it was refused in words that name the place.
            match run.status.code() {
                Some(0) => {
                    scene.goldwire(["disk", "compare", text(&source), text(&bob.join("new.raw"))]).expect(0)
                }
                _ => {
                    let place = link.split('/').next().unwrap();
                    assert!(place == ".goldwire-0" || place.ends_with("-lock"), "{what}");
                    assert!(run.stderr.contains(place), "{what}");
                    run
                }
            };
        }
    }
}

/// In a folder that others may write to, another user keeps a tree of his own for our image: the same key (it is made of
/// what `stat` says), a root of his choice, the checksum made anew.
#[test]
fn a_tree_that_somebody_else_kept_is_not_believed() {
    if !testing::root() {
        return;
    }
    let scene = Scene::new();
    let shared = scene.folder("shared");
    let (ours, theirs) = (shared.join("a.raw"), shared.join("b.raw"));
    Guest::random(10, 4, 1).write_raw(&ours);
    Guest::random(11, 4, 1).write_raw(&theirs);
    let trees = shared.join(".goldwire/trees");
    testing::until("the files have settled, and their trees are kept", || {
        scene.goldwire(["disk", "tree", text(&ours), text(&theirs)]).expect(0);
        ["a.raw.tree", "b.raw.tree"].iter().all(|name| trees.join(name).exists())
    });
    fs::write(trees.join("a.raw.tree"), forged_tree(&trees, "a.raw", "b.raw")).unwrap();
    // As our own it is believed, which shows that the forgery is one.
    scene.goldwire(["disk", "compare", text(&ours), text(&theirs)]).expect(0);
    give_away(&shared.join(".goldwire"));
    scene.goldwire(["disk", "compare", text(&ours), text(&theirs)]).expect(5);
    scene.goldwire(["sync", text(&ours), text(&scene.path("copy.raw"))]).expect(0);
    assert_eq!(fs::read(scene.path("copy.raw")).unwrap(), fs::read(&ours).unwrap());
}

/// Tokens protected nothing: a script full of them was given to anybody whose path named a device by its architecture or
/// its UUID, and a file under any name but its own.
#[test]
fn what_a_token_opens_is_given_for_a_token_alone() {
    const SECRET: &str = "for kiosks alone";
    let site = Site::new();
    let root = site.scene.path("root");
    for folder in ["kiosk", "open"] {
        site.scene.folder(&format!("root/{folder}"));
    }
    fs::write(root.join("kiosk/vmlinuz"), SECRET).unwrap();
    symlink("../kiosk/vmlinuz", root.join("open/link")).unwrap();
    symlink("kiosk", root.join("also")).unwrap();
    fs::hard_link(root.join("kiosk/vmlinuz"), root.join("open/hard")).unwrap();
    fs::hard_link(root.join("kiosk/vmlinuz"), site.scene.path("ipxe/hard")).unwrap();
    let uuid = "11111111-1111-4111-8111-111111111111";
    // The boot file's spelling is not the tree's.
    let more = format!(
        "[[device]]\nuuid = '{uuid}'\nprofile = 'kiosk'\n\
         [[device]]\nmac = '52:54:00:00:00:10'\nprofile = 'menu'\n\
         [[group]]\nname = 'efi'\narch = 'efi-x64'\nprofile = 'kiosk'\n\
         [profile.kiosk]\nkernel = 'Kiosk/VMLINUZ'\ntoken = true\n\
         [profile.menu]\nmenu = ['lab', 'kiosk']\n"
    );
    let closed = site.file().replace("default-profile = 'lab'", "default-profile = 'kiosk'");
    fs::write(&site.config, closed + &more).unwrap();
    let Some(server) = site.serve() else { return };
    let bases = [format!("http://{}", server.http()), format!("tftp://{}", server.tftp())];
    let is_refused = |path: &str| {
        // curl: 69 is TFTP's word for no permission.
        (status(&format!("{}/{path}", bases[0])), fetch(&format!("{}/{path}", bases[1])).0)
            == ("403".into(), 69)
    };
    let digest = blake3::hash(SECRET.as_bytes()).to_hex()[..32].to_owned();
    let by_uuid = format!("s/-/bios/{uuid}/boot.ipxe");
    let pinned = ["kiosk/vmlinuz", "open/hard"].map(|name| format!("c/{digest}/{name}"));
    let paths = [
        "kiosk/vmlinuz",
        "KIOSK/Vmlinuz",
        "kiosk//vmlinuz",
        "open/link",
        "open/hard",
        "Open/HARD",
        "also/vmlinuz",
        "ipxe/hard",
        &pinned[0],
        &pinned[1],
        "s/-/bios/-/boot.ipxe",
        "s/52-54-00-00-00-01/efi-x64/-/boot.ipxe",
        &by_uuid,
        "own/autoexec.ipxe/s/-/bios/-/boot.ipxe",
    ];
    for path in paths {
        assert!(is_refused(path), "{path}");
    }
    for base in &bases {
        assert_eq!(fetch(&format!("{base}/linux")), (0, b"a kernel".to_vec()), "{base}");
        let (code, menu) = fetch(&format!("{base}/s/52-54-00-00-00-10/bios/-/boot.ipxe"));
        let menu = String::from_utf8(menu).unwrap();
        assert!(code == 0 && menu.contains("/linux") && !menu.contains("/t/"), "{base}: {menu}");
        assert!(!menu.contains(&digest), "not even what the file holds is told: {menu}");
    }
    // As the script of the device itself has them: the file, and the script once more.
    let script = site.goldwire(&["script", "--arch", "efi-x64", "52:54:00:00:00:01"]).expect(0).stdout;
    let links: Vec<_> =
        script.split_whitespace().filter_map(|word| word.strip_prefix("http://127.0.0.1/")).collect();
    assert_eq!(links.len(), 2, "{script}");
    for (link, begin) in links.iter().zip([SECRET, "#!ipxe\n"]) {
        for base in &bases {
            let (code, given) = fetch(&format!("{base}/{link}"));
            assert!(code == 0 && given.starts_with(begin.as_bytes()), "{base}/{link}: {code}");
        }
        // A token for one path is none for another, nor is one that somebody wrote himself.
        let (token, below) = link.strip_prefix("t/").and_then(|link| link.split_once('/')).unwrap();
        let forged = format!("{}{}", &token[..51], if token.ends_with('0') { '1' } else { '0' });
        assert!(is_refused(&format!("t/{forged}/{below}")), "{link}");
        assert!(is_refused(&format!("t/{token}/open/hard")), "{link}");
    }
}
