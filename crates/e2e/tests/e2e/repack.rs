//! A store in which versions come to lie in many pieces: it says so, and is put in order whoever stops or kills that.

use std::fs;
use std::path::Path;

use goldwire_stdx::testing::until;
use rustix::process::Signal;
use serde_json::Value;

use crate::disks::Random;
use crate::sync::text;
use crate::tool::{Finished, Scene};

const CHUNK: usize = 64 * 1024;
const CHUNKS: usize = 160;

struct Site {
    scene: Scene,
    store: String,
    /// The newest version.
    disk: Vec<u8>,
}

impl Site {
    /// A store with seven versions of an image, each of which changed chunks all over the disk.
    fn new() -> Self {
        let scene = Scene::new();
        let store = text(&scene.path("store")).to_owned();
        scene.goldwire(["store", "init", &store]).expect(0);
        let mut random = Random(11);
        let mut disk: Vec<u8> = (0..CHUNKS * CHUNK).map(|at| (at / CHUNK + at % 251) as u8).collect();
        let file = scene.path("win11.raw");
        for version in 0..7 {
            for _ in 0..CHUNKS / 10 {
                let at = random.below(CHUNKS) * CHUNK;
                disk[at..at + 2].copy_from_slice(&[version, random.below(256) as u8]);
            }
            fs::write(&file, &disk).unwrap();
            let words = ["image", "publish", "win11", text(&file), "--store", &store, "--channel", "test"];
            scene.goldwire(words).expect(0);
        }
        Self { scene, store, disk }
    }

    fn repack(&self, more: &[&str]) -> Vec<String> {
        let words = ["store", "repack", "--store", &self.store];
        words.iter().chain(more).map(|word| (*word).to_owned()).collect()
    }

    fn is_well(&self) {
        let checked = json(&self.scene.goldwire(["store", "check", &self.store, "--json"]).expect(0));
        assert_eq!(checked["problems"].as_array().map(Vec::len), Some(0), "{checked}");
    }

    /// Pieces in which a MiB of what the channel names is read.
    fn pieces(&self) -> f64 {
        let stat = json(&self.scene.goldwire(["store", "stat", &self.store, "--json"]).expect(0));
        let reading = stat["reading"].as_array().unwrap();
        let named: Vec<_> = reading.iter().map(|lying| lying["label"].as_str().unwrap()).collect();
        assert_eq!(named, ["test", "latest"]);
        reading[0]["pieces_per_mib"].as_f64().unwrap()
    }

    fn is_in_order(&self) {
        let done = json(&self.scene.goldwire(self.repack(&["--json"])).expect(0));
        assert!(
            done["versions"].as_array().unwrap().iter().all(|version| version["left"].is_null()),
            "{done}"
        );
        assert!(self.pieces() <= 4.0);
        self.is_well();
        let again = self.scene.goldwire(self.repack(&[])).expect(0);
        assert_eq!(again.stdout, "everything that channels name is in order\n");
        let out = self.scene.path("out.raw");
        let export = ["image", "export", "win11:test", text(&out), "--store", &self.store, "--replace"];
        self.scene.goldwire(export).expect(0);
        assert!(fs::read(&out).unwrap() == self.disk);
    }

    fn work(&self) -> std::path::PathBuf {
        Path::new(&self.store).join("work/repack")
    }
}

fn json(run: &Finished) -> Value {
    serde_json::from_str(run.stdout.lines().last().unwrap()).unwrap()
}

#[test]
fn a_store_is_put_in_order() {
    let site = Site::new();
    let before = site.pieces();
    assert!(before > 4.0, "{before}");
    let pruned = site.scene.goldwire(["image", "prune", "--keep", "3", "--store", &site.store]).expect(0);
    let told = "win11:test is read in";
    assert!(pruned.stdout.contains(told) && pruned.stdout.contains("goldwire store repack puts"), "{pruned}");
    let dry = site.scene.goldwire(site.repack(&["--dry-run"])).expect(0);
    assert!(dry.stdout.contains(told) && dry.stdout.contains("would be put in order"), "{dry}");
    assert!((site.pieces() - before).abs() < 1e-9);
    let little = site.scene.goldwire(site.repack(&["--max-space", "64KiB"])).expect(0);
    assert!(little.stdout.contains("takes more space than --max-space"), "{little}");
    site.is_in_order();
    let pruned = site.scene.goldwire(["image", "prune", "--keep", "3", "--store", &site.store]).expect(0);
    assert!(!pruned.stdout.contains(told), "{pruned}");
    let unknown = site.scene.goldwire(site.repack(&["win10"])).expect(1);
    assert!(unknown.stderr.contains("here are: win11"), "{unknown}");
}

/// Stopped in order it says so and goes on; a second one beside it is refused.
#[test]
fn a_repack_that_is_stopped_goes_on() {
    let site = Site::new();
    let run = site.scene.goldwire(site.repack(&["--bwlimit", "200KB"])).start();
    until("it copies", || site.work().join("map").exists());
    let second = site.scene.goldwire(site.repack(&[])).expect(1);
    assert!(second.stderr.contains("another process is putting this store in order"), "{second}");
    run.signal(Signal::TERM);
    let stopped = run.finish().expect(4);
    assert!(stopped.stderr.contains("goes on"), "{stopped}");
    site.is_well();
    site.is_in_order();
}

#[test]
fn whoever_kills_a_repack_finds_the_store_whole() {
    let site = Site::new();
    let mut random = Random(5);
    for round in 0..6 {
        let run = site.scene.goldwire(site.repack(&["--bwlimit", "2MB"])).start();
        until("it copies or has ended", || site.work().exists() || round > 0);
        std::thread::sleep(std::time::Duration::from_millis(random.below(600) as u64));
        run.signal(Signal::KILL);
        run.finish();
        site.is_well();
        if round == 3 {
            site.scene.goldwire(["image", "prune", "--keep", "2", "--store", &site.store]).expect(0);
            site.is_well();
        }
    }
    site.is_in_order();
}
