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
pub(crate) struct Site {
    pub(crate) scene: Scene,
    pub(crate) store: String,
}

impl Site {
    pub(crate) fn new() -> Self {
        let scene = Scene::new();
        let store = text(&scene.path("store")).to_owned();
        scene.goldwire(["store", "init", &store]).expect(0);
        Self { scene, store }
    }

    pub(crate) fn image<const N: usize>(&self, words: [&str; N]) -> Finished {
        self.scene.goldwire([&["image", "--store", &self.store], &words[..]].concat()).finish()
    }

    pub(crate) fn publish(&self, file: &Path, more: &[&str]) -> Value {
        let words = ["image", "--store", &self.store, "publish", "win11", text(file), "--json"];
        json(&self.scene.goldwire([&words[..], more].concat()).expect(0))
    }

    pub(crate) fn is_well(&self) {
        let checked = json(&self.scene.goldwire(["store", "check", &self.store, "--json"]).expect(0));
        assert_eq!(checked["problems"].as_array().map(Vec::len), Some(0), "{checked}");
    }
}

pub(crate) fn json(run: &Finished) -> Value {
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
    site.image(["channel", "win11", "production", "win11"]).expect(0);
    assert_eq!(
        json(&site.image(["prune", "--keep", "1", "--json"]).expect(0))["versions"].as_array().unwrap().len(),
        0
    );
    let gone = json(&site.image(["prune", "--keep", "1", "--no-rollback", "--json"]).expect(0));
    assert_eq!(gone["versions"][0]["root"], first["root"]);
    site.image(["rollback", "win11", "production"]).expect(1);
    site.is_well();
}

/// From the master's store to two sites' stores over real ssh: the second version is a delta, what another image has is not
/// sent again, and a required key is asked for at every site.
#[test]
fn versions_go_from_store_to_stores() {
    let site = Site::new();
    let Some(hosts) = Hosts::start(&site.scene, &["site1".into(), "site2".into()]) else { return };
    let ssh = format!("ssh -F {}", hosts.config.display());
    let stores: Vec<String> = hosts.all.iter().map(|host| text(&host.file("store")).to_owned()).collect();
    stores.iter().for_each(|store| drop(site.scene.goldwire(["store", "init", store]).expect(0)));
    let places = [hosts.place(0, "store"), hosts.place(1, "store")];
    let push = |which: &str, more: &[&str]| {
        let words = ["image", "--store", &site.store, "push", which, &places[0], &places[1], "--json"];
        site.scene.goldwire([&words, more, &["--ssh-command", &ssh]].concat()).finish()
    };
    let key = site.scene.path("key");
    site.scene.goldwire(["key", "new", text(&key)]).expect(0);
    let public = site.scene.path("key.pub");
    let guest = Guest::random(1, 64, 20);
    let file = site.scene.path("a.raw");
    fs::write(&file, &guest.0).unwrap();
    site.publish(&file, &[]);
    let refused = push("win11", &["--require-signature", text(&public)]).expect(1);
    assert!(refused.stdout.contains("signed by nobody"), "{refused}");
    let dry = push("win11", &["--dry-run"]).expect(0);
    assert_eq!(dry.events_of("planned").len(), 2, "{dry}");
    assert!(stores.iter().all(|store| fs::read_dir(Path::new(store).join("work")).unwrap().next().is_none()));
    push("win11", &["--channel", "production"]).expect(0);

    fs::write(&file, &guest.rewritten(2, 12).0).unwrap();
    let second = site.publish(&file, &["--sign", text(&key), "--channel", "test"]);
    let pushed = push("win11:test", &["--require-signature", text(&public)]).expect(0);
    for done in pushed.events_of("done") {
        assert!(done["wire_in"].as_u64().unwrap() < 4 << 20, "{done}");
        assert_eq!(done["root"], second["root"]);
    }
    for (store, host) in stores.iter().zip(&hosts.all) {
        let list = site.scene.goldwire(["image", "list", "--store", store, "--json"]).expect(0);
        let [newest, oldest] =
            [0, 1].map(|at| -> Value { serde_json::from_str(list.stdout.lines().nth(at).unwrap()).unwrap() });
        assert_eq!((&newest["root"], &newest["labels"][0]), (&second["root"], &"latest".into()));
        assert_eq!(oldest["labels"][0], "production");
        assert!(newest["signer"].is_string() && oldest["signer"].is_null());
        let out = host.file("out.raw");
        site.scene.goldwire(["image", "export", "win11", text(&out), "--store", store]).expect(0);
        assert!(fs::read(&out).unwrap() == fs::read(&file).unwrap());
        site.scene.goldwire(["store", "check", store]).expect(0);
    }
    // By the names of a file, which is read with all its mistakes.
    let config = site.scene.path("goldwire.toml");
    let named = format!("[store.home]\nplace = {:?}\n[store.one]\nplace = {:?}\n", site.store, places[0]);
    fs::write(&config, &named).unwrap();
    let words = ["image", "push", "win11", "one", "--store", "home", "--ssh-command", &ssh];
    site.scene.goldwire(words).expect(0);
    let unknown = site.scene.goldwire(["image", "list", "--store", "hom"]).expect(1);
    assert!(unknown.stderr.contains("it names: home, one"), "{unknown}");
    fs::write(&config, named.replace("place = ", "plase = ")).unwrap();
    let wrong = site.scene.goldwire(["image", "list", "--store", "home"]).expect(1);
    assert_eq!(wrong.stderr.matches("unknown key").count(), 2, "{wrong}");
    fs::remove_file(&config).unwrap();
    // The same content under another name is named and not sent; and back it comes.
    let again = push("win11", &["--name", "office"]).expect(0);
    assert!(again.events_of("done").iter().all(|done| done["already_there"] == true), "{again}");
    let back = site.scene.folder("back").join("store");
    site.scene.goldwire(["store", "init", text(&back)]).expect(0);
    let words = ["image", "pull", &places[0], "office", "--store", text(&back), "--ssh-command", &ssh];
    site.scene.goldwire(words).expect(0);
    site.scene.goldwire(["image", "verify", "office", "--store", text(&back)]).expect(0);
}

/// Killed at any moment a push goes on, without sending again what was durable, and the store is whole in between.
#[test]
fn whoever_kills_a_push_finds_the_store_whole() {
    let site = Site::new();
    let there = text(&site.scene.folder("there").join("store")).to_owned();
    site.scene.goldwire(["store", "init", &there]).expect(0);
    let file = site.scene.path("a.raw");
    let mut random = Random(9);
    for round in 0..6 {
        fs::write(&file, &Guest::random(round, 96, 60).0).unwrap();
        site.publish(&file, &[]);
        let source = format!("{}/win11", site.store);
        let target = format!("{there}/win11");
        let words = ["--bwlimit", "60M", &source, &target];
        for _ in 0..3 {
            let run = site.scene.sync(words).start();
            std::thread::sleep(std::time::Duration::from_millis(random.below(1200) as u64));
            run.signal(Signal::KILL);
            run.finish();
            let checked = json(&site.scene.goldwire(["store", "check", &there, "--json"]).expect(0));
            assert_eq!(checked["problems"].as_array().map(Vec::len), Some(0), "{checked}");
        }
        site.scene.sync(words).expect(0);
        let out = site.scene.path("out.raw");
        let export = ["image", "export", "win11", text(&out), "--replace", "--store", &there];
        site.scene.goldwire(export).expect(0);
        assert!(fs::read(&out).unwrap() == fs::read(&file).unwrap(), "round {round}");
        site.scene.goldwire(["store", "check", &there]).expect(0);
    }
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

/// Stopped in order, it says so by its exit code and goes on.
#[test]
fn a_publish_that_is_stopped_goes_on() {
    let site = Site::new();
    let file = site.scene.path("a.raw");
    fs::write(&file, Guest::random(1, 256, 220).0).unwrap();
    let words = ["image", "--store", &site.store, "publish", "win11", text(&file)];
    let run = site.scene.goldwire(words).start();
    let work = Path::new(&site.store).join("work");
    goldwire_stdx::testing::until("it puts the version in", || {
        fs::read_dir(&work).is_ok_and(|mut entries| entries.next().is_some())
    });
    run.signal(Signal::TERM);
    let stopped = run.finish().expect(4);
    assert!(stopped.stderr.contains("goes on"), "{stopped}");
    site.is_well();
    site.publish(&file, &[]);
    site.scene.goldwire(["image", "verify", "win11", "--store", &site.store]).expect(0);
}

#[test]
fn mistakes_are_told_and_change_nothing() {
    let site = Site::new();
    let file = site.scene.path("a.raw");
    fs::write(&file, Guest::random(1, 8, 2).0).unwrap();
    site.publish(&file, &["--channel", "test"]);
    let plain = text(&site.scene.path(".")).to_owned();
    let in_packs = format!("{}/packs/x.raw", site.store);
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
        (&["image", "push", "win11", &plain, "--store", &site.store], "leads into no store"),
        (&["image", "pull", &site.store, "0123456789ab", "--store", &site.store], "--name"),
        (&["sync", text(&file), &in_packs], "is a goldwire store, and no place for a disk"),
        (&["sync", "--dry-run", text(&file), &in_packs], "is a goldwire store, and no place for a disk"),
        (&["sync", text(&file), &format!("{}/win11:latest", site.store)], "came last"),
        (&["sync", "--format", "vhd", text(&file), &format!("{}/win11", site.store)], "--format"),
    ] {
        let run = site.scene.goldwire(words).expect(1);
        assert!(run.stderr.contains(why), "{words:?}: {run}");
    }
    let names = site.image(["list"]).expect(0);
    assert_eq!(names.stdout.lines().filter(|line| !line.starts_with(' ')).count(), 1, "{names}");
    site.is_well();
}
