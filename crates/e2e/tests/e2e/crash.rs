//! `kill -9` of any of the three processes at any moment: the same command goes on, nothing verified is sent twice,
//! the old version stays as it was, and nothing half-made is ever seen.
//!
//! A *story* begins with the old version at the target and runs one command until it succeeds, killing one process
//! of most of its runs at a moment that a seed decides. `GOLDWIRE_CRASH_POINTS` kills are spread over the stories.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::disks::{self, Guest, Random};
use crate::hosts::Hosts;
use crate::machine;
use crate::sync::text;
use crate::tool::{Finished, Run, Running, Scene};

/// Kills in all, unless the environment says otherwise.
const POINTS: usize = 200;

/// This many per cent of the kills.
fn share(percent: usize) -> usize {
    let all =
        std::env::var("GOLDWIRE_CRASH_POINTS").ok().and_then(|text| text.parse().ok()).unwrap_or(POINTS);
    (all * percent).div_ceil(100)
}

#[test]
fn a_delta_beside_the_old_version() {
    let scene = Scene::new();
    let story = Story::local(&scene, "new.vhd", &["--bwlimit", "10M"]);
    story.tell(share(35), 0xde17a);
}

#[test]
fn a_delta_in_the_place_of_the_old_version() {
    let scene = Scene::new();
    let story = Story::local(&scene, "old.vhd", &["--replace", "--bwlimit", "10M"]);
    story.tell(share(25), 0x7e91ace);
}

#[test]
fn a_whole_copy() {
    let scene = Scene::new();
    let story =
        Story::local(&scene, "new.qcow2", &["--no-seed", "--bwlimit", "30M", "--compress-level", "0"]);
    story.tell(share(25), 0xc0b1);
}

#[test]
fn a_delta_from_host_to_host() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["master".into(), "slave".into()]) else { return };
    let story = Story::remote(&scene, &hosts, &["--route", "direct", "--bwlimit", "10M"]);
    story.tell(share(8), 0xd14ec7);
}

#[test]
fn a_delta_through_the_control_machine() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["master".into(), "slave".into()]) else { return };
    let story = Story::remote(&scene, &hosts, &["--route", "relay", "--bwlimit", "10M"]);
    story.tell(share(7), 0x4e1a9);
}

/// What is synced, and what it must come to.
struct Story<'a> {
    scene: &'a Scene,
    hosts: Option<&'a Hosts>,
    options: Vec<String>,
    /// The old version at the target, and a copy to begin again with.
    old: PathBuf,
    kept_old: PathBuf,
    /// The new version, and what its file must hold.
    new: PathBuf,
    expected: blake3::Hash,
}

/// What may be killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Control,
    Source,
    Target,
}

impl<'a> Story<'a> {
    fn local(scene: &'a Scene, name: &str, options: &[&str]) -> Self {
        let (source, target) = (scene.folder("source"), scene.folder("target"));
        let (from, to) = (source.join("golden.vhd"), target.join(name));
        let places = [text(&from), text(&to)].map(ToOwned::to_owned);
        Self::new(scene, None, from, to, places, options)
    }

    fn remote(scene: &'a Scene, hosts: &'a Hosts, options: &[&str]) -> Self {
        let (from, to) = (hosts.all[0].file("golden.vhd"), hosts.all[1].file("new.vhd"));
        let places = [hosts.place(0, "golden.vhd"), hosts.place(1, "new.vhd")];
        Self::new(scene, Some(hosts), from, to, places, options)
    }

    fn new(
        scene: &'a Scene,
        hosts: Option<&'a Hosts>,
        source: PathBuf,
        new: PathBuf,
        places: [String; 2],
        options: &[&str],
    ) -> Self {
        let first = Guest::random(1, 32, 20);
        let (old, kept_old) = (new.with_file_name("old.vhd"), scene.path("kept-old.vhd"));
        first.write_vhd(&kept_old, 1);
        first.rewritten(2, 200).write_vhd(&source, 2);
        // One version is one file, whatever way it came and however often it was interrupted.
        let reference = scene.folder("reference").join(new.file_name().unwrap());
        scene.sync(["--no-seed", text(&source), text(&reference)]).expect(0);
        if disks::has_qemu_img() {
            let format = if new.extension().unwrap() == "vhd" { "vpc" } else { "qcow2" };
            disks::assert_same_guest((&source, "vpc"), (&reference, format));
        }
        let expected = machine::digest(&reference);
        let options = options.iter().map(ToString::to_string).chain(places).collect();
        Self { scene, hosts, options, old, kept_old, new, expected }
    }

    /// Tells the story again and again until `points` kills have hit.
    fn tell(&self, points: usize, seed: u64) {
        let mut random = Random(seed);
        let mut hits = 0;
        let mut stories = 0;
        while hits < points {
            self.begin();
            let mut ledger = Ledger::default();
            loop {
                let mut run = self.command().start();
                let hit = if hits < points { self.strike(&mut run, &mut random) } else { None };
                let run = run.finish();
                self.until_quiet();
                let what = format!("seed {seed:#x}, kill {hits}: {hit:?}\n{run}");
                ledger.enter(&run, &what);
                self.assert_nothing_half_made(&what);
                hits += usize::from(hit.is_some());
                if run.status.success() {
                    self.assert_finished(&run, &what);
                    break;
                }
                assert!(hit.is_some(), "it failed all by itself: {what}");
            }
            stories += 1;
        }
        eprintln!("{hits} kills in {stories} stories");
    }

    fn begin(&self) {
        let folder = self.new.parent().unwrap();
        fs::remove_dir_all(folder).unwrap();
        fs::create_dir(folder).unwrap();
        fs::copy(&self.kept_old, &self.old).unwrap();
    }

    fn command(&self) -> Run {
        match self.hosts {
            Some(hosts) => hosts.sync(self.scene, []).arguments(&self.options),
            None => self.scene.sync(&self.options),
        }
    }

    /// Kills one of the processes at some moment, unless the run is over before.
    fn strike(&self, run: &mut Running, random: &mut Random) -> Option<(Victim, &'static str, Duration)> {
        let victim = random.pick(&[Victim::Control, Victim::Source, Victim::Target]);
        // Most of the time is spent on the transfer; what is short is aimed at.
        let (moment, within_ms) = random.pick(&[
            ("start", 300),
            ("reached", 100),
            ("transferring", 700),
            ("transferring", 700),
            ("transferring", 700),
            ("transferring", 200),
            ("reading back", 80),
            ("publishing", 20),
        ]);
        let delay = Duration::from_micros(random.below(within_ms * 1000) as u64);
        if moment != "start" {
            let is_moment = |event: &Value| event["event"] == moment || event["phase"] == moment;
            run.wait_or_end(Duration::from_secs(60), is_moment)?;
        }
        run.wait_or_end(delay, |_| false);
        let pid = match (victim, self.hosts) {
            (Victim::Control, _) => Some(run.pid()).filter(|pid| !machine::arguments(*pid)[0].is_empty()),
            (Victim::Source, Some(hosts)) => hosts.all[0].agents().first().copied(),
            (Victim::Target, Some(hosts)) => hosts.all[1].agents().first().copied(),
            (Victim::Source, None) => machine::local_agents(run.pid()).first().copied(),
            (Victim::Target, None) => machine::local_agents(run.pid()).get(1).copied(),
        };
        machine::kill(pid?);
        Some((victim, moment, delay))
    }

    /// Waits until every process of the run has noticed: the next run is to find what was left, not who is leaving.
    fn until_quiet(&self) {
        goldwire_stdx::testing::until("all processes end", || {
            machine::living_in(&self.scene.path("")).is_empty()
                && self.hosts.is_none_or(|hosts| hosts.all.iter().all(|host| host.agents().is_empty()))
        });
    }

    #[track_caller]
    fn assert_nothing_half_made(&self, what: &str) {
        let old = machine::digest(&self.kept_old);
        let folder = self.new.parent().unwrap();
        for name in machine::visible(folder) {
            let path = folder.join(&name);
            let digest = machine::digest(&path);
            let is_old = path == self.old && digest == old;
            let is_new = path == self.new && digest == self.expected;
            assert!(is_old || is_new, "{name} is neither the old nor the new version: {what}");
        }
        assert!(self.old.exists(), "the old version is gone: {what}");
    }

    #[track_caller]
    fn assert_finished(&self, run: &Finished, what: &str) {
        assert_eq!(run.event("done")["root"], run.event("source")["root"], "{what}");
        assert_eq!(machine::digest(&self.new), self.expected, "{what}");
        let work = self.new.parent().unwrap().join(".goldwire/work");
        let left: Vec<_> = fs::read_dir(work).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?} left over: {what}");
    }
}

/// What the runs of one story said that they did.
#[derive(Default)]
struct Ledger {
    /// Missing when the first run made its plan.
    missing: Option<u64>,
    /// The most chunks that any run said were in place.
    done: u64,
    /// Chunks that runs said they received, summed.
    received: u64,
}

impl Ledger {
    #[track_caller]
    fn enter(&mut self, run: &Finished, what: &str) {
        // The last line of a killed process may be torn.
        let lines = run.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let events: Vec<Value> = lines.collect();
        let count = |event: &Value, field: &str| event[field].as_u64().unwrap_or(0);
        let Some(plan) = events.iter().find(|event| event["event"] == "planned") else { return };
        let [used, resumed, seeded, missing] =
            ["chunks_used", "chunks_resumed", "chunks_seeded", "chunks_missing"]
                .map(|field| count(plan, field));
        assert_eq!(used, resumed + seeded + missing, "{what}");
        assert!(resumed >= self.done, "{} were in place, {resumed} were found: {what}", self.done);
        let first = *self.missing.get_or_insert(missing);
        let last = events.iter().rev().find(|event| event["event"] == "progress" || event["event"] == "done");
        let Some(last) = last else { return };
        let received = count(last, "chunks_received");
        assert!(received <= missing, "{received} received of {missing} missing: {what}");
        self.received += received;
        assert!(self.received <= first, "{} received in all, {first} were missing: {what}", self.received);
        self.done = self.done.max(count(last, "chunks_done"));
    }
}
