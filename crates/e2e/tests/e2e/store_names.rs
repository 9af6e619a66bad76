//! The names of a store's versions, by its commands: they go, and what nothing names goes with the next prune.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;

use crate::disks::Guest;
use crate::hosts::Hosts;
use crate::machine::{self, Tmpfs};
use crate::sync::text;
use crate::tool::Scene;

fn json(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

/// A version whose map is damaged keeps every prune from freeing anything while a tag and a channel name it.
#[test]
fn names_go_and_with_the_last_one_a_damaged_version() {
    let scene = Scene::new();
    let store = text(&scene.path("store")).to_owned();
    scene.goldwire(["store", "init", &store]).expect(0);
    let image =
        |words: &[&str], code| scene.goldwire([&["image", "--store", &store], words].concat()).expect(code);
    let file = scene.path("a.raw");
    let mut roots = Vec::new();
    for seed in 0..2 {
        fs::write(&file, Guest::random(seed, 4, 2).0).unwrap();
        let published = image(&["publish", "a", text(&file), "--json"], 0);
        roots.push(json(published.stdout.trim())["root"].as_str().unwrap().to_owned());
    }
    let [old, new] = [&roots[0], &roots[1]];
    let tagged = json(image(&["tag", "a", "first", old, "--json"], 0).stdout.trim());
    assert_eq!(
        (&tagged["image"], &tagged["name"], &tagged["root"]),
        (&"a".into(), &"first".into(), &old.as_str().into())
    );
    let moved = json(image(&["channel", "a", "test", new, "--json"], 0).stdout.trim());
    assert_eq!(moved["root"], new.as_str());
    image(&["channel", "a", "test", old], 0);
    let back = json(image(&["rollback", "a", "test", "--json"], 0).stdout.trim());
    assert_eq!(back["root"], new.as_str());
    let promoted = json(image(&["promote", "a", "first", "test", "--json"], 0).stdout.trim());
    assert_eq!(promoted["root"], old.as_str());
    let map = scene.path("store/versions").join(old).join("map");
    fs::write(&map, "GWMAP").unwrap();
    let prune = |code| image(&["prune", "--keep", "1", "--no-rollback", "--json"], code);
    prune(1);
    let gone = json(image(&["tag", "a", "first", "--delete", "--json"], 0).stdout.trim());
    assert_eq!((&gone["named"], &gone["deleted"]), (&old.as_str().into(), &true.into()));
    prune(1);
    let said = image(&["channel", "a", "test", "--delete"], 0).stdout;
    assert_eq!(said, format!("channel test of a is gone; it named version {}\n", &old[..12]));
    let pruned = json(prune(0).stdout.trim());
    assert_eq!((&pruned["versions"][0]["root"], &pruned["packs"]), (&old.as_str().into(), &1.into()));
    scene.goldwire(["store", "check", &store]).expect(0);
    image(&["verify", "a"], 0);
    for (words, says) in [
        (&["tag", "a", "first", "--delete"][..], "tag first"),
        (&["channel", "a", "test", "--delete"], "channel test"),
        (&["channel", "a", "latest", "--delete"], "channel latest"),
        (&["tag", "b", "x", "--delete"], "tag x"),
    ] {
        assert!(image(words, 1).stderr.contains(says), "{words:?}");
    }
    for words in [
        &["tag", "a", "x"][..],
        &["tag", "a", "x", "a", "--delete"],
        &["channel", "a", "x"],
        &["channel", "a", "x", "--delete", "--at", "2026-12-01T05:00:00Z"],
    ] {
        image(words, 2);
    }
    let images = fs::read_dir(scene.path("store/images")).unwrap().count();
    assert_eq!(images, 1, "a name that is no image's makes none");
}

/// Whoever has to wait for another writer says so, is stopped in order, and else goes on when that one has ended.
#[test]
fn who_waits_for_another_writer_says_so_and_can_be_stopped() {
    let scene = Scene::new();
    let [store, other] = ["store", "other"].map(|name| text(&scene.path(name)).to_owned());
    let file = scene.path("a.raw");
    fs::write(&file, Guest::random(1, 4, 2).0).unwrap();
    for place in [&store, &other] {
        scene.goldwire(["store", "init", place]).expect(0);
    }
    scene.goldwire(["image", "publish", "a", text(&file), "--store", &other]).expect(0);
    scene.goldwire(["image", "publish", "b", text(&file), "--store", &store]).expect(0);
    let from = format!("{other}/a");
    let target = format!("{store}/a");
    fs::write(&file, Guest::random(2, 4, 2).0).unwrap();
    let says = format!("waiting for another goldwire that writes to {store}");
    let hold = || {
        let held = fs::File::open(scene.path("store/lock")).unwrap();
        held.lock().unwrap();
        held
    };
    for words in [
        &["image", "--store", &store, "tag", "b", "t", "b"][..],
        &["image", "--store", &store, "channel", "b", "c", "b"],
        &["image", "--store", &store, "prune"],
        &["sync", text(&file), &target],
        &["image", "--store", &store, "publish", "b", text(&file)],
        &["sync", &from, &target],
    ] {
        let held = hold();
        let run = scene.goldwire(words).start();
        run.wait_to_say(&says);
        run.signal(Signal::INT);
        let stopped = run.finish().expect(4);
        assert_eq!(stopped.stderr.matches(&says).count(), 1, "{stopped}");
        let run = scene.goldwire(words).start();
        run.wait_to_say(&says);
        drop(held);
        run.finish().expect(0);
    }
    scene.goldwire(["store", "check", &store]).expect(0);
}

/// From another host, over ssh: what the store has not is sent, signed here if so asked, and named as if it lay here.
#[test]
fn an_image_of_another_host_is_published() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["master".into()]) else { return };
    let ssh = format!("ssh -F {}", hosts.config.display());
    let store = text(&scene.path("store")).to_owned();
    scene.goldwire(["store", "init", &store]).expect(0);
    let key = scene.path("key");
    scene.goldwire(["key", "new", text(&key)]).expect(0);
    let guest = Guest::random(1, 32, 10);
    guest.write_vhd(&hosts.all[0].file("a.vhd"), 7);
    let publish = |file: &str, more: &[&str], code| {
        let place = hosts.place(0, file);
        let words = ["image", "publish", "win11", &place, "--store", &store, "--ssh-command", &ssh, "--json"];
        scene.goldwire([&words, more].concat()).expect(code)
    };
    let dry = publish("a.vhd", &["--dry-run"], 0);
    assert_eq!(dry.events_of("planned").len(), 1, "{dry}");
    assert_eq!(fs::read_dir(scene.path("store/images")).unwrap().count(), 0);
    let signed = ["--sign", text(&key), "--note", "November", "--channel", "test"];
    let done = publish("a.vhd", &signed, 0).event("done");
    let shown = scene.goldwire(["image", "show", "win11:test", "--json", "--store", &store]).expect(0);
    let shown = json(shown.stdout.trim());
    assert_eq!((&shown["root"], &shown["note"]), (&done["root"], &"November".into()));
    assert_eq!(shown["signer"], fs::read_to_string(scene.path("key.pub")).unwrap().trim());
    // The next one is a delta, and the same from a file here is there already.
    let newer = guest.rewritten(2, 6);
    fs::write(hosts.all[0].file("b.raw"), &newer.0).unwrap();
    let done = publish("b.raw", &[], 0).event("done");
    assert!(done["wire_in"].as_u64().unwrap() < 2 << 20, "{done}");
    let file = scene.path("b.raw");
    fs::write(&file, &newer.0).unwrap();
    let words = ["image", "publish", "win11", text(&file), "--store", &store, "--json"];
    let again = json(scene.goldwire(words).expect(0).stdout.trim());
    assert_eq!((&again["was_here"], &again["root"]), (&true.into(), &done["root"]));
    // Who requires a key gets no other by this way, before anything is read.
    let other = scene.path("other");
    scene.goldwire(["key", "new", text(&other)]).expect(0);
    scene.goldwire(["store", "require", &store, text(&scene.path("key.pub"))]).expect(0);
    let refused = publish("a.vhd", &["--sign", text(&other)], 1);
    assert!(
        refused.stderr.contains("is another key") && refused.events_of("reached").is_empty(),
        "{refused}"
    );
    let refused = publish("b.raw", &[], 1);
    assert!(refused.stdout.contains("takes only what"), "{refused}");
    for (name, says) in [("a b", "cannot name an image"), ("packs", "cannot name an image")] {
        let place = hosts.place(0, "a.vhd");
        let words = ["image", "publish", name, &place, "--store", &store, "--ssh-command", &ssh];
        assert!(scene.goldwire(words).expect(1).stderr.contains(says));
    }
    let missing = publish("nothing.vhd", &[], 1);
    assert!(missing.stdout.contains("nothing.vhd"), "{missing}");
    scene.goldwire(["store", "check", &store]).expect(0);
}

/// A site's channel is moved before the version is there: users of the channel keep the old one until it has come whole.
#[test]
fn a_channel_waits_for_a_version_that_is_on_its_way() {
    let scene = Scene::new();
    let [store, site] = ["store", "site"].map(|name| text(&scene.path(name)).to_owned());
    let file = scene.path("a.raw");
    for place in [&store, &site] {
        scene.goldwire(["store", "init", place]).expect(0);
    }
    let mut roots = Vec::new();
    for seed in 0..2 {
        fs::write(&file, Guest::random(seed, 4, 2).0).unwrap();
        let words = ["image", "publish", "a", text(&file), "--store", &store, "--json"];
        roots.push(json(scene.goldwire(words).expect(0).stdout.trim())["root"].as_str().unwrap().to_owned());
    }
    let image =
        |words: &[&str], code| scene.goldwire([&["image", "--store", &site], words].concat()).expect(code);
    image(&["pull", &store, &roots[0], "--name", "a", "--channel", "production"], 0);
    let said = image(&["channel", "a", "production", &roots[1]], 0).stdout;
    assert!(said.contains("once it is here whole"), "{said}");
    let serves = || json(image(&["show", "a:production", "--json"], 0).stdout.trim())["root"].clone();
    assert_eq!(serves(), roots[0].as_str());
    let listed = image(&["list"], 0).stdout;
    assert!(
        listed.contains(&format!("{}  production (pending: not here whole)", &roots[1][..12])),
        "{listed}"
    );
    let listed = image(&["list", "--json"], 0).stdout;
    let listed: Vec<Value> = listed.lines().map(json).collect();
    assert_eq!((&listed[0]["is_here"], &listed[0]["root"]), (&false.into(), &roots[1].as_str().into()));
    assert_eq!((listed.len(), &listed[1]["labels"][1]), (2, &"production".into()));
    // What it serves stays, and the store is well.
    image(&["prune", "--keep", "0", "--no-rollback"], 0);
    scene.goldwire(["store", "check", &site]).expect(0);
    assert_eq!(serves(), roots[0].as_str());
    image(&["pull", &store, "a"], 0);
    assert_eq!(serves(), roots[1].as_str());
    image(&["rollback", "a", "production"], 0);
    assert_eq!(serves(), roots[0].as_str());
    // Only a whole root, and only of an image that is here.
    let unknown = "0".repeat(64);
    image(&["channel", "a", "production", &unknown[..12]], 1);
    image(&["channel", "b", "production", &unknown], 1);
    image(&["tag", "a", "x", &unknown], 1);
}

/// A disk that was carried here is often protected against writing.
#[test]
fn a_store_on_a_medium_that_cannot_be_written_is_read() {
    let scene = Scene::new();
    let Some(medium) = Tmpfs::mount(scene.folder("medium"), 64) else { return };
    let (carried, own) = (medium.folder.join("store"), scene.path("own"));
    let guest = Guest::random(5, 4, 2);
    guest.write_raw(&scene.path("a.raw"));
    for store in [&carried, &own] {
        scene.goldwire(["store", "init", text(store)]).expect(0);
    }
    scene
        .goldwire(["image", "publish", "a", text(&scene.path("a.raw")), "--store", text(&carried)])
        .expect(0);
    // Commands for files say what a version is.
    for command in ["info", "check", "tree"] {
        let run = scene.goldwire(["disk", command, text(&carried.join("a"))]).expect(1);
        assert!(run.stderr.contains("a version of a store is no file"), "{run}");
    }
    machine::must("mount", ["-o", "remount,ro", text(&medium.folder)]);
    scene.goldwire(["image", "verify", "a", "--store", text(&carried)]).expect(0);
    scene.goldwire(["store", "check", text(&carried)]).expect(0);
    let out = scene.path("out.raw");
    scene.goldwire(["image", "export", "a", text(&out), "--store", text(&carried)]).expect(0);
    assert!(fs::read(&out).unwrap() == guest.0);
    scene.goldwire(["image", "import", text(&carried), "--store", text(&own)]).expect(0);
    scene.goldwire(["image", "verify", "a", "--store", text(&own)]).expect(0);
}
