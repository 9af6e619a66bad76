//! A site's store by its commands: what goes in comes out, here and on other hosts, and whoever kills it finds it whole.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::disks::{Guest, Random, assert_same_guest, has_qemu_img};
use crate::hosts::Hosts;
use crate::sync::text;
use crate::tool::{Finished, Scene};

/// A store with `image` in it, once as version 1.
struct Site {
    scene: Scene,
    store: String,
}

impl Site {
    fn new() -> Self {
        let scene = Scene::new();
        let store = text(&scene.path("store")).to_owned();
        scene.goldwire(["store", "init", &store]).expect(0);
        Self { scene, store }
    }

    fn image<const N: usize>(&self, words: [&str; N]) -> Finished {
        self.scene.goldwire([&["image", "--store", &self.store], &words[..]].concat()).finish()
    }

    fn publish(&self, file: &Path, more: &[&str]) -> Value {
        let words = ["image", "--store", &self.store, "publish", "win11", text(file), "--json"];
        json(&self.scene.goldwire([&words[..], more].concat()).expect(0))
    }

    fn is_well(&self) {
        let checked = json(&self.scene.goldwire(["store", "check", &self.store, "--json"]).expect(0));
        assert_eq!(checked["problems"].as_array().map(Vec::len), Some(0), "{checked}");
    }
}

fn json(run: &Finished) -> Value {
    serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap()
}

#[test]
fn versions_are_published_named_written_out_and_pruned() {
    let site = Site::new();
    let Some(hosts) = Hosts::start(&site.scene, &["host1".into()]) else { return };
    if !has_qemu_img() {
        return;
    }
    let guest = Guest::random(1, 64, 20);
    let [vhd, qcow2, newer] = ["a.vhd", "a.qcow2", "newer.raw"].map(|name| site.scene.path(name));
    guest.write_vhd(&vhd, 1);
    let first = site.publish(&vhd, &["--channel", "test"]);
    assert_eq!(first["bytes_stored"], first["bytes_used"]);
    // From another container: the same version, and nothing is stored.
    site.scene.goldwire(["disk", "convert", text(&vhd), text(&qcow2)]).expect(0);
    let again = site.publish(&qcow2, &[]);
    assert_eq!((&again["root"], &again["was_here"]), (&first["root"], &true.into()));
    let rewritten = guest.rewritten(2, 12);
    fs::write(&newer, &rewritten.0).unwrap();
    let second = site.publish(&newer, &["--note", "November"]);
    let stored = second["bytes_stored"].as_u64().unwrap();
    assert!((1..4 << 20).contains(&stored), "{second}");

    site.image(["promote", "win11", "test", "production"]).expect(0);
    site.image(["channel", "win11", "test", "win11"]).expect(0);
    let out = site.scene.path("out.vhd");
    site.image(["export", "win11:production", text(&out)]).expect(0);
    assert_same_guest((&out, "vpc"), (&vhd, "vpc"));
    // A folder is told what the image is called, and what it becomes.
    site.image(["export", "win11:production", text(&site.scene.folder("sr")), "--format", "vhd"]).expect(0);
    assert_same_guest((&site.scene.path("sr/win11.vhd"), "vpc"), (&vhd, "vpc"));
    // From the store to another host, over ssh, as a delta against what is there.
    let ssh = format!("ssh -F {}", hosts.config.display());
    let place = hosts.place(0, "win11.qcow2");
    site.image(["export", "win11:production", &place, "--ssh-command", &ssh]).expect(0);
    let moved =
        site.image(["export", "win11:test", &place, "--replace", "--ssh-command", &ssh, "--json"]).expect(0);
    assert!(moved.event("done")["wire_in"].as_u64().unwrap() < 4 << 20, "{moved}");
    assert_same_guest((&hosts.all[0].file("win11.qcow2"), "qcow2"), (&newer, "raw"));

    site.image(["rollback", "win11", "test"]).expect(0);
    let shown = json(&site.image(["show", "win11:test", "--json"]).expect(0));
    assert_eq!(shown["root"], first["root"]);
    let differ = json(&site.image(["diff", "win11:test", "win11", "--json"]).expect(5));
    assert_eq!(differ["bytes_differing"], second["bytes_stored"]);
    site.image(["channel", "win11", "test", "win11"]).expect(0);
    // What a channel names stays, and what it would name after a rollback.
    let kept = json(&site.image(["prune", "--keep", "1", "--json"]).expect(0));
    assert_eq!(kept["bytes"], 0, "{kept}");
    site.is_well();
}

#[test]
fn what_nothing_names_gives_its_space_back() {
    let site = Site::new();
    let file = site.scene.path("a.raw");
    let guest = Guest::random(1, 64, 20);
    fs::write(&file, &guest.0).unwrap();
    let first = site.publish(&file, &[]);
    fs::write(&file, Guest::random(2, 64, 5).0).unwrap();
    site.publish(&file, &[]);
    let before = json(&site.scene.goldwire(["store", "stat", &site.store, "--json"]).expect(0));
    let dry = json(&site.image(["prune", "--keep", "1", "--dry-run", "--json"]).expect(0));
    let pruned = json(&site.image(["prune", "--keep", "1", "--json"]).expect(0));
    assert_eq!((&dry["chunks"], &dry["versions"]), (&pruned["chunks"], &pruned["versions"]));
    let after = json(&site.scene.goldwire(["store", "stat", &site.store, "--json"]).expect(0));
    let stored = |stat: &Value| stat["bytes_stored"].as_u64().unwrap();
    assert!(stored(&before) - stored(&after) >= first["bytes_used"].as_u64().unwrap(), "{before} {after}");
    let root = first["root"].as_str().unwrap();
    assert!(site.image(["show", root]).expect(1).stderr.contains("nothing here is named"));
    site.is_well();
}

/// Killed at any moment, the same command goes on, and what is there is whole.
#[test]
fn whoever_kills_a_publish_finds_the_store_whole() {
    let site = Site::new();
    let file = site.scene.path("a.raw");
    let mut random = Random(7);
    for round in 0..12 {
        let guest = Guest::random(round, 96, 60);
        fs::write(&file, &guest.0).unwrap();
        let words = ["image", "--store", &site.store, "publish", "win11", text(&file)];
        let run = site.scene.goldwire(words).start();
        std::thread::sleep(std::time::Duration::from_millis(random.below(1500) as u64));
        run.signal(Signal::KILL);
        run.finish();
        site.is_well();
        let published = site.publish(&file, &[]);
        site.is_well();
        let out = site.scene.path("out.raw");
        site.image(["export", published["root"].as_str().unwrap(), text(&out), "--replace"]).expect(0);
        assert!(fs::read(&out).unwrap() == guest.0, "round {round}");
        site.image(["prune", "--keep", "1"]).expect(0);
    }
}

#[test]
fn mistakes_are_told_and_change_nothing() {
    let site = Site::new();
    let file = site.scene.path("a.raw");
    fs::write(&file, Guest::random(1, 8, 2).0).unwrap();
    site.publish(&file, &["--channel", "test"]);
    let plain = text(&site.scene.path(".")).to_owned();
    for (words, why) in [
        (&["image", "list"][..], "no store is named"),
        (&["image", "list", "--store", &plain], "is no store"),
        (&["image", "list", "--store", "host:/srv"], "is on another host"),
        (&["store", "init", &site.store], "it is not empty"),
        (&["image", "list", "win10", "--store", &site.store], "there is no image win10"),
        (&["image", "publish", "a b", text(&file), "--store", &site.store], "cannot name an image"),
        (&["image", "publish", "packs", text(&file), "--store", &site.store], "cannot name an image"),
        (&["image", "publish", "a", text(&file), "--store", &site.store, "--channel", "latest"], "came last"),
        (&["image", "publish", "a", text(&file), "--store", &site.store, "--channel", "../x"], "cannot name"),
        (&["image", "tag", "win11", "test", "win11", "--store", &site.store], "a channel has it"),
        (&["image", "channel", "win10", "test", "win11", "--store", &site.store], "version"),
        (&["image", "rollback", "win11", "test", "--store", &site.store], "an older version"),
        (&["image", "prune", "win10", "--store", &site.store], "image win10"),
        (&["image", "export", "win11:nope", "out.raw", "--store", &site.store], "win11:nope"),
    ] {
        let run = site.scene.goldwire(words).expect(1);
        assert!(run.stderr.contains(why), "{words:?}: {run}");
    }
    let names = site.image(["list"]).expect(0);
    assert_eq!(names.stdout.lines().filter(|line| !line.starts_with(' ')).count(), 1, "{names}");
    site.is_well();
}
