//! Repacking: what is read stays what it was, in few pieces and without much that is stored twice, whoever is killed when.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use goldwire_disk::BlockDevice;
use goldwire_disk::testing::random;
use goldwire_stdx::testing::cases;
use proptest::prelude::*;

use super::repack::cut;
use super::tests::{RUN, Scene, options};
use super::*;
use crate::chunk::CHUNK_SIZE;
use crate::error::Error;
use crate::map::Map;
use crate::pack::{CANNOT_PUNCH, Ids};
use crate::tree::{BuildOptions, Progress};

const ANY_SPACE: RepackBounds<'_> = RepackBounds { space: u64::MAX, pace: &|_| () };

/// A disk, as the number that its chunk is made of; 0 is a chunk of zeros.
type Kinds = Vec<u64>;

fn content(kinds: &[u64]) -> Vec<u8> {
    let chunk = |kind: &u64| {
        let kind = *kind;
        (1..=CHUNK_SIZE as u64 / 8).flat_map(move |word| kind.wrapping_mul(word).to_le_bytes())
    };
    kinds.iter().flat_map(chunk).collect()
}

/// The first generation: some of it is zero.
fn first(seed: u64, chunks: u64) -> Kinds {
    (0..chunks)
        .map(|chunk| if random(seed ^ chunk).is_multiple_of(10) { 0 } else { random(seed << 20 | chunk) | 1 })
        .collect()
}

/// Another generation: about `per_mille` of the chunks are new, one here and one there, or many together.
fn next(kinds: &Kinds, seed: u64, per_mille: u64, together: u64) -> Kinds {
    let mut kinds = kinds.clone();
    let mut changed = 0;
    let mut step = seed << 32;
    while changed < kinds.len() as u64 * per_mille / 1000 {
        step += 1;
        let start = random(step) as usize % kinds.len();
        for at in start..kinds.len().min(start + 1 + random(!step) as usize % together as usize) {
            kinds[at] = random(step << 8 ^ at as u64) | 1;
            changed += 1;
        }
    }
    kinds
}

impl Scene {
    fn put(&self, image: &str, kinds: &[u64]) -> Root {
        self.publish(image, &content(kinds)).unwrap().0
    }

    fn try_repack(&self, bounds: &RepackBounds<'_>) -> StoreResult<Repacked> {
        self.store.repack(&[], bounds, false, &options(&Progress::default()))
    }

    fn repack(&self) -> Repacked {
        self.try_repack(&ANY_SPACE).unwrap()
    }

    fn pieces(&self, root: &Root) -> Pieces {
        super::pieces::pieces(&Map::open(&self.store.version_folder(root).unwrap(), MAP).unwrap()).unwrap()
    }

    fn stored(&self) -> u64 {
        self.store.size().unwrap().bytes_stored
    }

    /// Generations of a disk that lie in many pieces.
    fn scattered(&self, image: &str, chunks: u64, generations: u64) -> Vec<(Root, Kinds)> {
        let mut kinds = first(1, chunks);
        let mut all = vec![(self.put(image, &kinds), kinds.clone())];
        for generation in 1..generations {
            kinds = next(&kinds, generation, 90, 1);
            all.push((self.put(image, &kinds), kinds.clone()));
        }
        all
    }

    fn assert_all(&self, versions: &[(Root, Kinds)]) {
        assert_eq!(self.check().problems, []);
        for (root, kinds) in versions {
            self.assert_content(root, &content(kinds));
        }
    }
}

fn distinct<'a>(disks: impl IntoIterator<Item = &'a Kinds>) -> u64 {
    disks.into_iter().flatten().filter(|kind| **kind != 0).collect::<HashSet<_>>().len() as u64
}

/// Fifty nights: a publish, a prune that keeps three, a repack.
fn fifty_generations(together: u64) {
    let scene = Scene::new();
    let mut kinds = first(together, 192);
    let mut kept: Vec<(Root, Kinds)> = Vec::new();
    let (mut worst, mut copied, mut published) = (0.0_f64, 0, 0);
    for generation in 0..50 {
        if generation > 0 {
            kinds = next(&kinds, generation, 40, together);
        }
        let (root, put) = scene.publish("win11", &content(&kinds)).unwrap();
        published += put.chunks_new;
        kept.push((root, kinds.clone()));
        kept.drain(..kept.len().saturating_sub(3));
        scene.prune(3);
        worst = worst.max(scene.pieces(&root).mean());
        let done = scene.repack();
        copied += done.chunks;
        assert!(done.versions.iter().all(|version| version.left.is_none()), "{generation}: {done:?}");
        let pieces = scene.pieces(&root);
        assert!(!pieces.is_out_of_order(), "{generation}: {pieces:?}");
        let (stored, needed) =
            (scene.stored(), distinct(kept.iter().map(|(_, kinds)| kinds)) * CHUNK_SIZE as u64);
        assert!(stored * 4 <= needed * 5, "{generation}: {stored} bytes for {needed}");
    }
    assert!(together > 1 || worst > 4.0, "it would have been in order anyway: {worst}");
    // Order has its price, but is not written anew every night.
    assert!(copied <= 8 * published, "{copied} chunks copied for {published} published");
    scene.assert_all(&kept);
}

#[test]
fn fifty_generations_of_scattered_changes() {
    fifty_generations(1);
}

#[test]
fn fifty_generations_of_changes_in_clusters() {
    fifty_generations(40);
}

#[test]
fn a_version_in_pieces_is_put_in_order_once() {
    let scene = Scene::new();
    let versions = scene.scattered("a", 200, 6);
    let newest = versions[5].0;
    let before = scene.pieces(&newest);
    assert!(before.is_out_of_order(), "{before:?}");
    let (store, progress) = (&scene.store, Progress::default());
    let dry = store.repack(&[], &ANY_SPACE, true, &options(&progress)).unwrap();
    assert_eq!((dry.versions.len(), dry.chunks), (1, 0));
    assert_eq!(scene.pieces(&newest), before);
    let done = scene.repack();
    assert_eq!((done.versions[0].before.root, done.versions[0].before.label.as_str()), (newest, LATEST));
    assert_eq!(done.versions[0].after, scene.pieces(&newest));
    assert!(!done.versions[0].after.is_out_of_order() && done.chunks > 0, "{done:?}");
    scene.assert_all(&versions);
    // Nothing is here twice, and nothing is left to do.
    assert_eq!(
        store.distinct(&RUN).unwrap(),
        (
            distinct(versions.iter().map(|(_, kinds)| kinds)),
            distinct(versions.iter().map(|(_, kinds)| kinds))
        )
    );
    assert_eq!(scene.repack(), Repacked::default());
    assert!(matches!(
        store.repack(&["b".into()], &ANY_SPACE, false, &options(&progress)),
        Err(StoreError::Unknown { .. })
    ));
}

/// A version that a channel waits for is not here to be put in order, and is in the way of no other.
#[test]
fn what_a_channel_waits_for_stops_no_repack() {
    let scene = Scene::new();
    let versions = scene.scattered("a", 200, 6);
    let waits = |names: &mut ImageNames, now| {
        names.move_channel("test", versions[4].0, now, now)?;
        names.await_version("test", Root([9; 32]), now, now)
    };
    scene.store.rename("a", waits).unwrap();
    let done = scene.repack();
    let mut roots: Vec<Root> = done.versions.iter().map(|version| version.before.root).collect();
    roots.sort_unstable_by_key(|root| versions.iter().position(|(other, _)| other == root));
    assert_eq!(roots, [versions[4].0, versions[5].0]);
    scene.assert_all(&versions);
}

/// Channels name older versions, now or soon: they are put in order too, and none breaks a newer one.
#[test]
fn what_channels_name_is_in_order_together() {
    let scene = Scene::new();
    let versions = scene.scattered("a", 240, 12);
    let store = &scene.store;
    store.rename("a", |names, now| names.move_channel("production", versions[8].0, now, now)).unwrap();
    store.rename("a", |names, now| names.move_channel("production", versions[9].0, now + 1000, now)).unwrap();
    store.rename("a", |names, now| names.move_channel("new", versions[10].0, now + 1000, now)).unwrap();
    let lying = store.lying(&[]).unwrap();
    let labels: Vec<(&str, &Root)> = lying.iter().map(|lying| (lying.label.as_str(), &lying.root)).collect();
    let named = [("production", 8), ("production", 9), ("new", 10), (LATEST, 11)];
    assert_eq!(labels, named.map(|(label, at)| (label, &versions[at].0)));
    scene.prune(1);
    let mut copied = 0;
    for run in 0..4 {
        let done = scene.repack();
        copied += done.chunks;
        if run > 1 {
            assert_eq!(done.chunks, 0, "run {run} does again what another run did: {done:?}");
        }
    }
    assert!(copied > 0);
    // The newest always, the others as far as there may be copies.
    let left = scene.repack().versions;
    assert!(left.iter().all(|version| version.left == Some(OutOfOrder::Shared)), "{left:?}");
    let lying = store.lying(&[]).unwrap();
    assert!(lying.iter().filter(|lying| lying.pieces.is_out_of_order()).count() <= 1, "{lying:?}");
    assert!(!lying[3].pieces.is_out_of_order(), "{lying:?}");
    let (chunks, distinct) = store.distinct(&RUN).unwrap();
    assert!(chunks * 5 <= distinct * 6, "{chunks} chunks, {distinct} distinct");
    scene.assert_all(&[8, 9, 10, 11].map(|at| versions[at].clone()));
}

/// Two images have the same chunks, each in its own order: one cannot be in order without a second copy, which may not be.
#[test]
fn what_cannot_be_in_order_is_left_and_said() {
    let scene = Scene::new();
    let kinds = first(3, 400);
    let mut shuffled = kinds.clone();
    shuffled.sort_by_key(|kind| random(*kind));
    // And one chunk again and again.
    let repeated: Kinds = (0..400).map(|at| if at % 2 == 0 { 77 } else { random(at) | 1 }).collect();
    let versions = [("a", kinds), ("b", shuffled), ("c", repeated)]
        .map(|(image, kinds)| (scene.put(image, &kinds), kinds));
    let mut copied = Vec::new();
    for _ in 0..4 {
        let done = scene.repack();
        copied.push(done.chunks);
        let (chunks, distinct) = scene.store.distinct(&RUN).unwrap();
        assert!(chunks * 4 <= distinct * 5, "{chunks} chunks, {distinct} distinct");
    }
    assert_eq!(copied[2..], [0, 0], "{copied:?}");
    let left: Vec<_> =
        scene.repack().versions.into_iter().map(|version| (version.before.image, version.left)).collect();
    assert!(left.contains(&("b".into(), Some(OutOfOrder::Shared))), "{left:?}");
    assert!(!scene.pieces(&versions[0].0).is_out_of_order());
    scene.assert_all(&versions);
}

/// Who reads by the map of before reads on, whatever is pruned, and even if his version loses its name meanwhile.
#[test]
fn readers_of_before_read_on() {
    let scene = Scene::new();
    let versions = scene.scattered("a", 200, 6);
    let (newest, kinds) = versions[5].clone();
    let (last, last_kinds) = versions[4].clone();
    let readers = [scene.store.version(&newest).unwrap(), scene.store.version(&last).unwrap()];
    let read = |reader: &StoredVersion, kinds: &Kinds| {
        let mut bytes = vec![0; kinds.len() * CHUNK_SIZE];
        reader.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == content(kinds));
    };
    assert!(scene.repack().chunks > 0);
    let both = scene.stored();
    read(&readers[0], &kinds);
    let pruned = scene.prune(1);
    assert!(pruned.in_use.contains(&last), "{pruned:?}");
    read(&readers[0], &kinds);
    read(&readers[1], &last_kinds);
    assert_eq!(scene.check().problems, []);
    assert!(scene.store.version(&newest).unwrap().runs() < readers[0].runs());
    drop(readers);
    scene.prune(1);
    assert!(scene.stored() < both);
    let folder = scene.store.version_folder(&newest).unwrap();
    assert_eq!(folder.entries().unwrap().len(), 3, "map, tree and descriptor");
    scene.assert_all(&versions[5..]);
    assert!(scene.store.version(&last).is_err());
}

struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Readers, a publisher, prunes and repacks beside each other: everybody sees what he should.
#[test]
fn it_may_run_beside_everything() {
    let scene = Scene::new();
    let versions = scene.scattered("a", 160, 6);
    let end = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for reader in 0..2 {
            let (scene, versions, end, reads) = (&scene, &versions, &end, &reads);
            goldwire_stdx::spawn_scoped(scope, "reader", move || {
                let (root, kinds) = &versions[4 + reader];
                while !end.load(Ordering::Relaxed) {
                    scene.assert_content(root, &content(kinds));
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            })
            .unwrap();
        }
        let (other, done) = (&scene, &end);
        goldwire_stdx::spawn_scoped(scope, "publisher", move || {
            // Also if it fails: the others wait for it.
            let _done = AtEnd(done);
            let mut kinds = first(9, 160);
            for generation in 0..8 {
                kinds = next(&kinds, 100 + generation, 150, 1);
                other.put("b", &kinds);
                other
                    .store
                    .prune(&["b".into()], &Keep { count: 2, seconds: 0, rollbacks: true }, false, &RUN)
                    .unwrap();
                assert_eq!(other.check().problems, []);
            }
        })
        .unwrap();
        let _end = AtEnd(&end);
        for _ in 0..12 {
            scene.repack();
        }
    });
    assert!(reads.load(Ordering::Relaxed) > 0);
    scene.repack();
    scene.prune(2);
    scene.assert_all(&versions[4..]);
}

#[test]
fn two_at_a_time_are_refused_and_a_stop_is_heeded() {
    let scene = Scene::new();
    let versions = scene.scattered("a", 200, 6);
    let held = std::fs::File::create(scene.store.path().join("work/repack.lock")).unwrap();
    held.lock().unwrap();
    assert!(matches!(scene.try_repack(&ANY_SPACE), Err(StoreError::Repacking)));
    drop(held);
    let stop = AtomicBool::new(false);
    let calls = AtomicU64::new(0);
    let pace = |_| {
        if calls.fetch_add(1, Ordering::Relaxed) == 5 {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let progress = Progress::default();
    let options = BuildOptions { threads: None, stop: &stop, progress: &progress };
    let stopped = scene.store.repack(&[], &RepackBounds { space: u64::MAX, pace: &pace }, false, &options);
    assert!(matches!(stopped, Err(StoreError::Tree(Error::Stopped))), "{stopped:?}");
    scene.assert_all(&versions);
    let done = scene.repack();
    assert!(done.chunks_resumed > 0, "{done:?}");
    assert!(!scene.pieces(&versions[5].0).is_out_of_order());
    scene.assert_all(&versions);
}

/// With little room it is done bit by bit, and never takes more; with none it says so.
#[test]
fn space_is_bounded() {
    let scene = Scene::new();
    let versions = scene.scattered("a", 400, 8);
    let before = scene.stored();
    let none = scene.try_repack(&RepackBounds { space: 3 * CHUNK_SIZE as u64, pace: &|_| () }).unwrap();
    assert_eq!((none.versions[0].left, none.chunks), (Some(OutOfOrder::Space), 0));
    let space = 40 * CHUNK_SIZE as u64;
    let most = AtomicU64::new(0);
    let pace = |_| {
        most.fetch_max(scene.stored(), Ordering::Relaxed);
    };
    let done = scene.try_repack(&RepackBounds { space, pace: &pace }).unwrap();
    assert!(done.chunks > 80 && done.versions[0].left.is_none(), "{done:?}");
    assert!(most.load(Ordering::Relaxed) <= before + space, "{most:?} after {before}");
    scene.assert_all(&versions);
}

/// What is damaged is not copied: the error says whose it is, and everything stays as it was.
#[test]
fn a_damaged_chunk_is_refused() {
    let scene = Scene::new();
    let versions = scene.scattered("a", 200, 6);
    let newest = versions[5].0;
    let map = Map::open(&scene.store.version_folder(&newest).unwrap(), MAP).unwrap();
    let mut runs = Vec::new();
    map.for_each(|run| {
        runs.push(run);
        Ok(())
    })
    .unwrap();
    // One in each run, so that one of them is copied.
    for run in &runs {
        let path = scene.store.path().join("packs").join(run.pack.file("pack"));
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", u64::from(run.slot) * CHUNK_SIZE as u64 + 9)
            .unwrap();
    }
    let files = scene.files("packs");
    let before = scene.pieces(&newest);
    let Err(StoreError::Corrupt { path, field: "chunk", why, .. }) = scene.try_repack(&ANY_SPACE) else {
        panic!("a damaged chunk was copied");
    };
    assert!(why.starts_with("it is not chunk ") && why.contains(" of version "), "{why}");
    assert!(files.contains(&path), "{path:?}");
    assert_eq!((scene.files("packs"), scene.pieces(&newest)), (files, before));
}

/// What versions come to rely on is what lies in the store, not the file that was filled: somebody took it away meanwhile.
#[test]
fn copies_that_went_while_they_were_made_are_relied_on_by_nobody() {
    for gone in [&["ids"][..], &["pack"], &["have", "ids", "pack"]] {
        let scene = Scene::new();
        let versions = scene.scattered("a", 200, 6);
        let packs = scene.store.path().join("packs");
        let take = |_| {
            for entry in std::fs::read_dir(&packs).unwrap().flatten() {
                let name = entry.path();
                if name.extension().is_some_and(|ending| ending == "have") {
                    gone.iter().for_each(|ending| drop(std::fs::remove_file(name.with_extension(ending))));
                }
            }
        };
        let bounds = RepackBounds { space: u64::MAX, pace: &take };
        assert!(
            matches!(scene.try_repack(&bounds), Err(StoreError::Corrupt { field: "pack", .. })),
            "{gone:?}"
        );
        for (root, kinds) in &versions {
            scene.assert_content(root, &content(kinds));
        }
        scene.prune(3);
        scene.repack();
        scene.assert_all(&versions[3..]);
    }
}

/// A disk that is full when versions are to name the copies stops no prune, which makes room.
#[test]
fn a_prune_goes_on_where_copies_cannot_be_named() {
    let scene = Scene::new();
    let versions = scene.scattered("a", 200, 6);
    let newest = scene.store.version_folder(&versions[5].0).unwrap().path().join("map.new");
    // In the way of the new map: it can neither be written nor taken away.
    std::fs::create_dir(&newest).unwrap();
    assert!(matches!(scene.try_repack(&ANY_SPACE), Err(StoreError::File { .. })));
    scene.prune(3);
    assert_eq!(scene.store.versions().unwrap().len(), 3);
    scene.assert_all(&versions[3..]);
    std::fs::remove_dir(&newest).unwrap();
    scene.prune(3);
    assert!(!scene.pieces(&versions[5].0).is_out_of_order());
    scene.assert_all(&versions[3..]);
}

/// The power went after the map had got its second name and before another one took its place.
#[test]
fn a_second_name_of_a_map_keeps_no_version() {
    let scene = Scene::new();
    let (old, new) = (scene.put("a", &first(1, 40)), scene.put("a", &first(2, 40)));
    let folder = scene.store.version_folder(&old).unwrap().path().to_owned();
    std::fs::hard_link(folder.join(MAP), folder.join("map.1")).unwrap();
    let reader = scene.store.version(&old).unwrap();
    scene.prune(1);
    assert_eq!(scene.store.versions().unwrap().len(), 2);
    drop(reader);
    scene.prune(1);
    assert_eq!(scene.store.versions().unwrap(), [new]);
    assert_eq!(scene.check().problems, []);
}

/// A file system without holes: a pack of which most is free is brought into a new one, and goes.
#[test]
fn packs_of_holes_that_stay_are_emptied() {
    CANNOT_PUNCH.set(true);
    let scene = Scene::new();
    let mut kinds = first(5, 300);
    scene.put("a", &kinds);
    kinds[..220].iter_mut().for_each(|kind| *kind = random(*kind) | 1);
    let second = (scene.put("a", &kinds), kinds.clone());
    let pruned = scene.prune(1);
    assert!(pruned.bytes_stuck > 150 * CHUNK_SIZE as u64, "{pruned:?}");
    let little = scene.try_repack(&RepackBounds { space: 10 * CHUNK_SIZE as u64, pace: &|_| () }).unwrap();
    assert_eq!((little.packs_emptied, little.packs_left), (0, 1));
    let reader = scene.store.version(&second.0).unwrap();
    assert_eq!(scene.repack().packs_emptied, 0, "somebody reads it");
    drop(reader);
    let done = scene.repack();
    assert!(done.bytes > 150 * CHUNK_SIZE as u64, "{done:?}");
    assert_eq!(scene.stored(), distinct([&kinds]) * CHUNK_SIZE as u64);
    assert_eq!(scene.repack(), Repacked::default());
    scene.assert_all(&[second]);
    CANNOT_PUNCH.set(false);
}

/// Kills at every moment: the store is whole, and who comes next, whatever he does, goes on.
#[test]
fn whoever_is_killed_leaves_a_whole_store() {
    let template = Scene::new();
    let versions = template.scattered("a", 48, 6);
    let (newest, kinds) = versions[5].clone();
    let mut moments = 0;
    for after in 0.. {
        let scene = template.copy();
        cut::AFTER.set(Some(after));
        let cut = scene.try_repack(&ANY_SPACE);
        let was_cut = cut::AFTER.take() == Some(0);
        if !was_cut {
            cut.unwrap();
            break;
        }
        moments += 1;
        scene.assert_all(&versions);
        let mut kept = versions.clone();
        let mut newest = newest;
        match after % 3 {
            0 => {}
            1 => {
                scene.prune(2);
                kept.drain(..4);
            }
            _ => {
                let more = next(&kinds, 99, 90, 1);
                newest = scene.put("a", &more);
                kept.push((newest, more));
                scene.prune(3);
                kept.drain(..4);
            }
        }
        scene.assert_all(&kept);
        scene.repack();
        assert!(!scene.pieces(&newest).is_out_of_order(), "after {after}");
        assert_eq!(scene.repack(), Repacked::default(), "after {after}");
        let all = distinct(kept.iter().map(|(_, kinds)| kinds));
        assert_eq!(scene.store.distinct(&RUN).unwrap(), (all, all), "after {after}");
        let work: Vec<_> =
            scene.files("work").iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(work, ["repack.lock"]);
        scene.assert_all(&kept);
    }
    assert!(moments > 20, "{moments} moments");
}

impl Scene {
    /// The same store elsewhere.
    fn copy(&self) -> Self {
        fn copy(from: &Path, to: &Path) {
            for entry in std::fs::read_dir(from).unwrap() {
                let entry = entry.unwrap();
                let to = to.join(entry.file_name());
                if entry.file_type().unwrap().is_dir() {
                    std::fs::create_dir_all(&to).unwrap();
                    copy(&entry.path(), &to);
                } else {
                    std::fs::copy(entry.path(), to).unwrap();
                }
            }
        }
        let scene = Self::new();
        copy(self.store.path(), scene.store.path());
        let store = Arc::new(Store::open(scene.store.path()).unwrap());
        Self { store, ..scene }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(16)))]

    /// Publish, prune, move channels, repack and be killed meanwhile, in any order: what is named is what was published, and
    /// nothing is kept that nothing needs.
    #[test]
    fn a_store_that_is_repacked_behaves_like_plain_bytes(
        steps in proptest::collection::vec((0_u8..8, 0_u64..40, 1_u64..30), 4..20),
    ) {
        let scene = Scene::new();
        let mut model: BTreeMap<&str, Vec<(Root, Kinds)>> = BTreeMap::new();
        for (step, seed, amount) in steps {
            let image = ["a", "b"][seed as usize % 2];
            let versions = model.entry(image).or_default();
            match step {
                0..4 => {
                    let last = versions.last().map(|(_, kinds)| kinds.clone());
                    let kinds = last.map_or_else(|| first(seed % 4, 60), |last| next(&last, seed, amount * 10, 1 + seed % 3));
                    let root = scene.put(image, &kinds);
                    if versions.iter().all(|(other, _)| *other != root) {
                        versions.push((root, kinds));
                    }
                }
                4 => {
                    let count = 1 + amount as usize % 4;
                    scene.prune(count);
                    for versions in model.values_mut() {
                        let surplus = versions.len().saturating_sub(count);
                        versions.drain(..surplus);
                    }
                }
                5 => {
                    cut::AFTER.set(Some(amount as u32));
                    let _ = scene.try_repack(&ANY_SPACE);
                    cut::AFTER.set(None);
                }
                6 => {
                    let space = amount * 2 * CHUNK_SIZE as u64;
                    scene.try_repack(&RepackBounds { space, pace: &|_| () }).unwrap();
                }
                _ => {
                    scene.repack();
                }
            }
            prop_assert_eq!(scene.check().problems, vec![]);
        }
        scene.repack();
        scene.prune(100);
        let versions: Vec<(Root, Kinds)> = model.into_values().flatten().collect();
        scene.assert_all(&versions);
        let (chunks, here) = scene.store.distinct(&RUN).unwrap();
        prop_assert_eq!(here, distinct(versions.iter().map(|(_, kinds)| kinds)));
        prop_assert!(chunks * 5 <= here * 6 + 5, "{} chunks, {} distinct", chunks, here);
        for number in scene.store.packs_with("ids").unwrap() {
            Ids::open(&scene.store.packs, number).unwrap().check().unwrap();
        }
    }
}
