//! A store on a medium that loses power: what was not synced is there, is not, or is torn. Whatever command it hits, the
//! store opens, nothing that was published is lost, what was told as done is done, and the same command goes on.

use std::fs;

use goldwire_stdx::testing::cases;

use crate::disks::{Guest, Random};
use crate::store::{Site, json};
use crate::strange::{Manners, Strange};
use crate::sync::text;

/// Cuts of each story.
const CUTS: u32 = 16;

/// A command that changes a store with version 1 in `production`, and what it brings.
struct Story<'a> {
    site: &'a Site,
    words: Vec<String>,
    /// What the version that `brings` names holds in the end.
    brings: Option<(&'a str, &'a Guest)>,
    first: &'a Guest,
}

impl Story<'_> {
    /// Tells it again and again, cut at another place each time. `place` holds what it begins with.
    fn tell(&self, place: Strange, seed: u64) {
        let begin = place.state();
        let before = place.changes();
        self.site.scene.goldwire(&self.words).expect(0);
        self.is_done(&place, "uncut");
        let changes = place.changes() - before;
        let folder = place.folder.clone();
        drop(place);
        let mut random = Random(seed);
        for round in 0..cases(CUTS) as usize {
            // Over all of it, and at the very end, where it says that it is done.
            let after = if round == 0 { changes } else { random.below(changes as usize) as u64 };
            let what = format!("seed {seed}, round {round}, cut after {after} of {changes} changes");
            let place = Strange::again(folder.clone(), begin.clone());
            place.cut_after(after);
            let run = self.site.scene.goldwire(&self.words).finish();
            let was_told = run.status.success();
            let place = place.power_fails(&mut random);
            let what = format!("{what}\n{run}");
            self.nothing_is_lost(&place, &what);
            if was_told {
                self.is_done(&place, &what);
            }
            let again = self.site.scene.goldwire(&self.words).finish();
            assert!(again.status.success(), "{what}\nand again: {again}");
            self.is_done(&place, &what);
        }
    }

    fn goldwire(&self, place: &Strange, words: &[&str], what: &str) {
        let store = text(&place.folder.join("store")).to_owned();
        let words = words.iter().map(|word| if *word == "STORE" { &store } else { *word });
        let run = self.site.scene.goldwire(words.collect::<Vec<_>>()).finish();
        assert!(run.status.success(), "{what}\nand then: {run}");
    }

    fn nothing_is_lost(&self, place: &Strange, what: &str) {
        self.goldwire(place, &["store", "check", "STORE"], what);
        self.holds(place, "win11:production", self.first, what);
    }

    fn is_done(&self, place: &Strange, what: &str) {
        self.nothing_is_lost(place, what);
        if let Some((name, guest)) = self.brings {
            self.holds(place, name, guest, what);
        }
    }

    /// What `name` names is the version of this disk: the check has read all of it.
    fn holds(&self, place: &Strange, name: &str, guest: &Guest, what: &str) {
        let file = self.site.scene.path("expected.raw");
        guest.write_raw(&file);
        let version = json(&self.site.scene.goldwire(["disk", "tree", text(&file), "--json"]).expect(0));
        let store = text(&place.folder.join("store")).to_owned();
        let shown = self.site.scene.goldwire(["image", "show", name, "--store", &store, "--json"]).finish();
        assert!(shown.status.success(), "{name}: {what}\n{shown}");
        assert_eq!(json(&shown)["root"], version["root"], "{name}: {what}");
    }
}

/// A store on such a medium with version 1 in `production`, and a usual one that has version 2, whose file is `next.raw`.
fn stage(first: &Guest, second: &Guest) -> Option<(Site, Strange, String)> {
    let site = Site::new();
    let place = Strange::mount(site.scene.folder("medium"), Manners { punches: true, ..Manners::good() })?;
    let store = text(&place.folder.join("store")).to_owned();
    site.scene.goldwire(["store", "init", &store]).expect(0);
    let [file, next] = ["first.raw", "next.raw"].map(|name| site.scene.path(name));
    fs::write(&file, &first.0).unwrap();
    fs::write(&next, &second.0).unwrap();
    let publish = ["image", "publish", "win11", text(&file), "--channel", "production", "--store", &store];
    site.scene.goldwire(publish).expect(0);
    Some((site, place, store))
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

#[test]
fn a_publish_that_loses_power_loses_nothing() {
    let first = Guest::random(1, 6, 3);
    let second = first.rewritten(2, 12);
    let Some((site, place, store)) = stage(&first, &second) else { return };
    let next = site.scene.path("next.raw");
    let words = words(&["image", "publish", "win11", text(&next), "--channel", "test", "--store", &store]);
    Story { site: &site, words, brings: Some(("win11:test", &second)), first: &first }.tell(place, 0x0ff);
}

#[test]
fn a_push_that_loses_power_loses_nothing() {
    let first = Guest::random(1, 6, 3);
    let second = first.rewritten(2, 12);
    let Some((site, place, store)) = stage(&first, &second) else { return };
    site.publish(&site.scene.path("next.raw"), &[]);
    let words = words(&["image", "push", "win11", &store, "--channel", "test", "--store", &site.store]);
    Story { site: &site, words, brings: Some(("win11:test", &second)), first: &first }.tell(place, 0xb5);
}

/// Versions go and holes are punched; what stays shares chunks with what goes.
#[test]
fn a_prune_that_loses_power_loses_nothing() {
    let first = Guest::random(1, 6, 3);
    let second = first.rewritten(2, 12);
    let third = second.rewritten(3, 12);
    let Some((site, place, store)) = stage(&first, &second) else { return };
    let next = site.scene.path("next.raw");
    let publish = ["image", "publish", "win11", text(&next), "--store", &store];
    site.scene.goldwire(publish).expect(0);
    fs::write(&next, &third.0).unwrap();
    site.scene.goldwire(publish).expect(0);
    let words = words(&["image", "prune", "--keep", "1", "--store", &store]);
    Story { site: &site, words, brings: Some(("win11", &third)), first: &first }.tell(place, 0x9e);
}
