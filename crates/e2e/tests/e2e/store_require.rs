//! A store that requires a key, by its commands: no way leads in for what the key did not sign.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::disks::Guest;
use crate::hosts::Hosts;
use crate::sync::text;
use crate::tool::Scene;

/// What comes: who signs it, and how long before the version that is there it was created.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Coming {
    Unsigned,
    Foreign,
    Older,
    Right,
}

const COMING: [Coming; 4] = [Coming::Unsigned, Coming::Foreign, Coming::Older, Coming::Right];
const WAYS: [&str; 10] = [
    "publish",
    "publish-signed-file",
    "publish-from-host",
    "push",
    "pull",
    "sync",
    "sync-from-host",
    "sync-version",
    "import",
    "import-file",
];

/// Writes an image that was made so many seconds ago.
fn image(path: &Path, seed: u64, age: u64) {
    fs::write(path, Guest::random(seed, 4, 2).0).unwrap();
    let made = SystemTime::now() - Duration::from_secs(age);
    File::options().write(true).open(path).unwrap().set_modified(made).unwrap();
}

fn key_of(scene: &Scene, coming: Coming) -> Option<PathBuf> {
    match coming {
        Coming::Unsigned => None,
        Coming::Foreign => Some(scene.path("theirs")),
        Coming::Older | Coming::Right => Some(scene.path("ours")),
    }
}

/// Over every way in and everything that may come: a store on another host, which agents reach over ssh, and one here.
#[test]
fn every_way_into_a_store_asks_for_its_key() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["master".into()]) else { return };
    let ssh = format!("ssh -F {}", hosts.config.display());
    for key in ["ours", "theirs"] {
        scene.goldwire(["key", "new", text(&scene.path(key))]).expect(0);
    }
    let public = text(&scene.path("ours.pub")).to_owned();
    let mut seed = 0;
    for (number, way) in WAYS.iter().enumerate() {
        // The stores that are pushed and synced to lie on the host.
        let (store, place) = match *way {
            "push" | "sync" => {
                (hosts.all[0].file(&format!("store{number}")), hosts.place(0, &format!("store{number}")))
            }
            _ => (
                scene.path(&format!("store{number}")),
                text(&scene.path(&format!("store{number}"))).to_owned(),
            ),
        };
        let store = text(&store);
        scene.goldwire(["store", "init", store, "--require", &public]).expect(0);
        let first = scene.path("first.raw");
        image(&first, 1000 + number as u64, 500);
        let ours = scene.path("ours");
        scene
            .goldwire(["image", "publish", "a", text(&first), "--sign", text(&ours), "--store", store])
            .expect(0);
        for coming in COMING {
            seed += 1;
            let age = if coming == Coming::Older { 5000 } else { 100 };
            let key = key_of(&scene, coming);
            let sign: Vec<&str> = key.iter().flat_map(|key| ["--sign", text(key)]).collect();
            let file = match *way {
                "sync-from-host" | "publish-from-host" => hosts.all[0].file("a.raw"),
                "import-file" => scene.folder("carried").join("a.raw"),
                _ => scene.path("a.raw"),
            };
            image(&file, seed, age);
            // Where it comes from if that is a store: one that takes anything.
            let from = scene.path(&format!("from{seed}"));
            let from = text(&from);
            if matches!(*way, "push" | "pull" | "sync-version" | "import") {
                scene.goldwire(["store", "init", from]).expect(0);
                let words = ["image", "publish", "a", text(&file), "--store", from];
                scene.goldwire([&words, &sign[..]].concat()).expect(0);
            }
            let version = format!("{from}/a");
            let target = format!("{place}/a:test");
            let by_ssh = ["--ssh-command", &ssh];
            let words: Vec<&str> = match *way {
                "publish" => [&["image", "publish", "a", text(&file), "--store", store], &sign[..]].concat(),
                "publish-signed-file" => {
                    let _ = fs::remove_dir_all(scene.path(".goldwire"));
                    if !sign.is_empty() {
                        scene.goldwire([&["disk", "tree", text(&file)], &sign[..]].concat()).expect(0);
                    }
                    vec!["image", "publish", "a", text(&file), "--store", store]
                }
                "push" => [&["image", "push", "a", &place, "--store", from], &by_ssh[..]].concat(),
                "pull" => [&["image", "pull", from, "a", "--store", store], &by_ssh[..]].concat(),
                "sync" => [&["sync"], &sign[..], &by_ssh, &[text(&file), &target]].concat(),
                "sync-from-host" => {
                    let _ = fs::remove_dir_all(hosts.all[0].file(".goldwire"));
                    if !sign.is_empty() {
                        scene.goldwire([&["disk", "tree", text(&file)], &sign[..]].concat()).expect(0);
                    }
                    vec!["sync", "--ssh-command", &ssh, "master", &target]
                }
                "import" => vec!["image", "import", from, "--store", store],
                "import-file" => {
                    let carried = file.parent().unwrap();
                    let _ = fs::remove_dir_all(carried.join(".goldwire"));
                    if !sign.is_empty() {
                        scene.goldwire([&["disk", "tree", text(&file)], &sign[..]].concat()).expect(0);
                    }
                    vec!["image", "import", text(carried), "--store", store]
                }
                "publish-from-host" => {
                    [&["image", "publish", "a", "master", "--store", store], &sign[..], &by_ssh].concat()
                }
                _ => vec!["sync", &version, &target],
            };
            let from_host = hosts.place(0, "a.raw");
            let words: Vec<&str> =
                words.iter().map(|word| if *word == "master" { from_host.as_str() } else { word }).collect();
            let expected = if coming == Coming::Right { 0 } else { 1 };
            let run = scene.goldwire(&words).expect(expected);
            let says = match coming {
                Coming::Unsigned | Coming::Foreign => "takes only what goldwire-public-key-1",
                Coming::Older => "created later",
                Coming::Right => "",
            };
            assert!(run.stderr.contains(says), "{way} {coming:?}: {run}");
            let listed = scene.goldwire(["image", "list", "--json", "--store", store]).expect(0);
            let count = if coming == Coming::Right { 2 } else { 1 };
            assert_eq!(listed.stdout.lines().count(), count, "{way} {coming:?}: {listed}");
            scene.goldwire(["store", "check", store]).expect(0);
        }
    }
}

/// `stat` says the key, `require` changes and lifts it, and mistakes are told.
#[test]
fn a_requirement_is_shown_changed_and_lifted() {
    let scene = Scene::new();
    for key in ["ours", "theirs"] {
        scene.goldwire(["key", "new", text(&scene.path(key))]).expect(0);
    }
    let store = text(&scene.path("store")).to_owned();
    let wrong = scene.goldwire(["store", "init", &store, "--require", "nokey"]).expect(1);
    assert!(wrong.stderr.contains("nokey: not a") && !scene.path("store").exists(), "{wrong}");
    scene.goldwire(["store", "init", &store]).expect(0);
    let required = || {
        let shown = scene.goldwire(["store", "stat", &store, "--json"]).expect(0);
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout).unwrap();
        shown["required_signer"].as_str().map(str::to_owned)
    };
    assert_eq!(required(), None);
    for key in ["ours.pub", "theirs.pub"] {
        scene.goldwire(["store", "require", &store, text(&scene.path(key))]).expect(0);
        assert_eq!(required(), Some(fs::read_to_string(scene.path(key)).unwrap().trim().to_owned()));
    }
    let file = scene.path("a.raw");
    image(&file, 1, 0);
    let publish = ["image", "publish", "a", text(&file), "--store", &store];
    let refused = scene.goldwire([&publish[..], &["--sign", text(&scene.path("ours"))]].concat()).expect(1);
    assert!(refused.stderr.contains("is another key"), "{refused}");
    let refused = scene.goldwire(publish).expect(1);
    assert!(
        refused.stderr.contains("signed by nobody") && refused.stderr.contains("--sign KEY"),
        "{refused}"
    );
    scene.goldwire(["store", "require", &store]).expect(2);
    scene.goldwire(["store", "require", &store, "--none"]).expect(0);
    assert_eq!(required(), None);
    scene.goldwire(publish).expect(0);
}
