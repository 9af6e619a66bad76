//! A disk that is carried from site to site: a store on it, or images.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use crate::disks::Guest;
use crate::sync::text;
use crate::tool::{Finished, Scene};

fn lines(run: &Finished) -> Vec<Value> {
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// All versions in their order, from a store; again, and nothing is stored; what is damaged keeps no other from coming.
#[test]
fn a_store_is_carried_to_another_site() {
    let scene = Scene::new();
    let [here, carried] = ["here", "carried"].map(|name| text(&scene.path(name)).to_owned());
    for store in [&here, &carried] {
        scene.goldwire(["store", "init", store]).expect(0);
    }
    let file = scene.path("a.raw");
    let guest = Guest::random(1, 16, 8);
    let mut roots = Vec::new();
    for (image, seed) in [("a", 0), ("a", 1), ("b", 2)] {
        fs::write(&file, guest.rewritten(seed, 3).0).unwrap();
        let words =
            ["image", "publish", image, text(&file), "--store", &carried, "--channel", "theirs", "--json"];
        roots.push(lines(&scene.goldwire(words).expect(0))[0]["root"].as_str().unwrap().to_owned());
    }
    let import = |more: &[&str], code| {
        let words = ["image", "import", &carried, "--store", &here, "--json"];
        scene.goldwire([&words, more].concat()).expect(code)
    };
    let dry = lines(&import(&["--dry-run"], 0));
    assert!(dry.len() == 3 && dry.iter().all(|line| line["is_here"] == false), "{dry:?}");
    let stat = || lines(&scene.goldwire(["store", "stat", &here, "--json"]).expect(0))[0].clone();
    assert_eq!(stat()["versions"], 0);
    let one = lines(&import(&["a:theirs", "--name", "office", "--channel", "test"], 0));
    assert_eq!(
        (one.len(), &one[0]["root"], &one[0]["image"]),
        (1, &roots[1].as_str().into(), &"office".into())
    );
    let came = lines(&import(&["--channel", "test"], 0));
    let told: Vec<_> =
        came.iter().map(|line| (line["root"].as_str().unwrap(), line["channel"].as_str())).collect();
    assert_eq!(told, [(&*roots[0], None), (&*roots[1], Some("test")), (&*roots[2], Some("test"))]);
    assert_eq!(came[1]["was_here"], true);
    // Shared chunks came once: the third version shares with the first.
    let stored = came.iter().map(|line| line["bytes_stored"].as_u64().unwrap()).sum::<u64>();
    assert!(stored < guest.chunks_used() as u64 * (64 << 10) * 2, "{came:?}");
    let again = lines(&import(&[], 0));
    assert!(again.iter().all(|line| line["was_here"] == true && line["bytes_stored"] == 0), "{again:?}");
    for (which, root) in [("a:test", &roots[1]), ("b:test", &roots[2]), ("a", &roots[1])] {
        let shown = scene.goldwire(["image", "show", which, "--json", "--store", &here]).expect(0);
        assert_eq!(lines(&shown)[0]["root"], root.as_str());
    }
    assert!(
        scene.goldwire(["image", "show", "a:theirs", "--store", &here]).expect(1).stderr.contains("a:theirs")
    );
    scene.goldwire(["store", "check", &here]).expect(0);

    // One of three is damaged on the way: a flipped bit in what only the last one has.
    let fresh = text(&scene.path("fresh")).to_owned();
    scene.goldwire(["store", "init", &fresh]).expect(0);
    let pack = Path::new(&carried).join("packs/00000003.pack");
    let mut bytes = fs::read(&pack).unwrap();
    bytes[1000] ^= 1;
    fs::write(&pack, bytes).unwrap();
    let run = scene.goldwire(["image", "import", &carried, "--store", &fresh]).expect(3);
    assert!(run.stderr.contains(&format!("version {} of b", roots[2])), "{run}");
    let run = scene.goldwire(["image", "import", &carried, "b", "--store", &fresh]).expect(1);
    assert!(run.stderr.contains("of b"), "{run}");
    let list = scene.goldwire(["image", "list", "--json", "--store", &fresh]).expect(0);
    assert_eq!(list.stdout.lines().count(), 2, "{list}");
    scene.goldwire(["store", "check", &fresh]).expect(0);

    for (words, says) in [
        (&["image", "import", &here, "--store", &here][..], "is the store itself"),
        (&["image", "import", &carried, "nothing", "--store", &here], "nothing here is named nothing"),
        (&["image", "import", &carried, &roots[0][..12], "--store", &here], "--name"),
        (&["image", "import", text(&scene.folder("empty")), "--store", &here], "no disk images"),
        (&["image", "import", text(&scene.path("missing")), "--store", &here], "missing"),
        (&["image", "import", &carried, "--store", &here, "--channel", "latest"], "came last"),
    ] {
        let run = scene.goldwire(words).expect(1);
        assert!(run.stderr.contains(says), "{words:?}: {run}");
    }
}

/// Images with what lies beside them: signatures come along, what is no disk and every link is passed over.
#[test]
fn a_folder_of_images_is_imported() {
    let scene = Scene::new();
    let store = text(&scene.path("store")).to_owned();
    scene.goldwire(["key", "new", text(&scene.path("key"))]).expect(0);
    scene.goldwire(["store", "init", &store]).expect(0);
    let folder = scene.folder("disk");
    let guest = Guest::random(5, 16, 8);
    guest.write_vhd(&folder.join("win11.vhd"), 7);
    fs::write(folder.join("linux.raw"), Guest::random(6, 8, 4).0).unwrap();
    fs::write(folder.join("README.txt"), "A text.\n").unwrap();
    let outside = scene.path("outside.raw");
    fs::write(&outside, Guest::random(9, 8, 4).0).unwrap();
    symlink(&outside, folder.join("link.raw")).unwrap();
    let (image, key) = (folder.join("win11.vhd"), scene.path("key"));
    scene.goldwire(["disk", "tree", text(&image), "--sign", text(&key)]).expect(0);
    let import = |more: &[&str], code| {
        let words = ["image", "import", text(&folder), "--store", &store, "--json"];
        scene.goldwire([&words, more].concat()).expect(code)
    };
    let came = lines(&import(&[], 0));
    let mut images: Vec<_> = came.iter().map(|line| line["image"].as_str().unwrap()).collect();
    images.sort_unstable();
    assert_eq!(images, ["linux", "win11"]);
    let list = lines(&scene.goldwire(["image", "list", "win11", "--json", "--store", &store]).expect(0));
    assert_eq!(list[0]["signer"], fs::read_to_string(scene.path("key.pub")).unwrap().trim());
    let out = scene.path("out.vhd");
    scene.goldwire(["image", "export", "win11", text(&out), "--store", &store]).expect(0);
    scene.goldwire(["disk", "compare", text(&out), text(&folder.join("win11.vhd"))]).expect(0);
    let named = lines(&import(&["linux.raw", "--name", "debian", "--channel", "test"], 0));
    assert_eq!((named.len(), &named[0]["was_here"], &named[0]["channel"]), (1, &true.into(), &"test".into()));
    for (what, says) in
        [("link.raw", "link.raw"), ("README.txt", "README.txt"), ("none.raw", "no file none.raw")]
    {
        let run = import(&[what], 1);
        assert!(run.stderr.contains(says), "{run}");
    }
    // A store that requires the key takes the signed one and tells of the other.
    let strict = text(&scene.path("strict")).to_owned();
    scene.goldwire(["store", "init", &strict, "--require", text(&scene.path("key.pub"))]).expect(0);
    let run = scene.goldwire(["image", "import", text(&folder), "--store", &strict]).expect(3);
    assert!(run.stderr.contains("takes only what") && run.stdout.starts_with("win11: version"), "{run}");
    for store in [&store, &strict] {
        scene.goldwire(["store", "check", store]).expect(0);
    }
}
