//! Receptions into stores: a source that is cut off anywhere, and one that sends other bytes.

use goldwire_disk::BlockDevice;
use goldwire_stdx::testing::cases;
use goldwire_store::{BuildOptions, Progress, Store};

use super::*;

/// A store that has the first version of an image, and the disks of both.
struct Scene {
    _folder: tempfile::TempDir,
    store: Arc<Store>,
    path: PathBuf,
    first: Disk,
    second: Disk,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let store = Arc::new(Store::init(&path).unwrap());
        let bytes = content(seed, 300, 700);
        let mut newer = bytes.clone();
        change(&mut newer, &mut Random::new(seed), 60);
        let scene = Self { _folder: folder, store, path, first: Disk::new(bytes), second: Disk::new(newer) };
        scene.receive(&scene.first, u64::MAX).outcome.unwrap();
        scene
    }

    fn receive(&self, disk: &Disk, cut: u64) -> Run {
        run_cut(disk, &job(disk, &self.path.join("win11:test")), cut)
    }

    fn assert_has(&self, disk: &Disk) {
        let version = self.store.version(&disk.version.root).unwrap();
        let mut bytes = vec![0; disk.content.len()];
        version.read_at(&mut bytes, 0).unwrap();
        assert!(bytes == disk.content);
    }

    /// The first version is there and nothing is wrong, whatever became of the second.
    fn is_well(&self, what: &str) {
        let (stop, progress) = (false.into(), Progress::default());
        let checked = self.store.check(&BuildOptions { threads: None, stop: &stop, progress: &progress });
        assert_eq!(checked.unwrap().problems, [], "{what}");
        self.assert_has(&self.first);
    }

    fn is_published(&self) -> bool {
        self.store.find("win11:test").unwrap() == self.second.version.root
    }
}

#[test]
fn a_source_that_is_cut_off_anywhere_costs_a_store_nothing() {
    for seed in 0..u64::from(cases(6)) {
        let scene = Scene::new(seed);
        let mut random = Random::new(seed);
        let mut cut = random.below(2000);
        let mut runs = 0;
        while !scene.is_published() {
            let run = scene.receive(&scene.second, cut);
            assert_eq!(run.outcome.is_ok(), scene.is_published(), "seed {seed}, cut after {cut}");
            scene.is_well(&format!("seed {seed}, cut after {cut}"));
            // Further each time, so that it comes to an end whatever it keeps.
            cut += random.below(200_000);
            runs += 1;
        }
        assert!(runs > 1, "it was never cut");
        scene.assert_has(&scene.second);
    }
}

/// What is durable when a source is cut off is not asked of the next one.
#[test]
fn what_a_store_has_of_a_version_is_not_asked_again() {
    let scene = Scene::new(3);
    let whole = Scene::new(3).receive(&scene.second, u64::MAX);
    let needed = whole.outcome.unwrap().counters.wire_in;
    scene.receive(&scene.second, needed * 3 / 4).outcome.unwrap_err();
    let rest = scene.receive(&scene.second, u64::MAX);
    assert!(rest.plan().chunks_resumed > 0, "{:?}", rest.plan());
    assert!(rest.outcome.unwrap().counters.wire_in < needed);
    scene.assert_has(&scene.second);
}

#[test]
fn a_source_that_sends_other_bytes_gets_nothing_into_a_store() {
    for seed in 0..u64::from(cases(6)) {
        let scene = Scene::new(seed);
        let mut random = Random::new(seed);
        let honest = scene.second.content.clone();
        // In a chunk that has to come: the old version does not have it.
        let differ = |at: &usize| honest[*at] != scene.first.content[*at];
        let places: Vec<usize> = (0..honest.len()).filter(differ).collect();
        let mut wrong = honest.clone();
        wrong[places[random.below(places.len() as u64) as usize]] ^= 1 << random.below(8);
        fs::write(&scene.second.path, &wrong).unwrap();
        let (kind, text) = scene.receive(&scene.second, u64::MAX).refused();
        assert_eq!(kind, FailureKind::SourceChanged, "{text}");
        assert!(!scene.is_published());
        scene.is_well(&text);
        // The same from a source that is right: what was proven stays, what was not comes anew.
        fs::write(&scene.second.path, &honest).unwrap();
        scene.receive(&scene.second, u64::MAX).outcome.unwrap();
        assert!(scene.is_published());
        scene.is_well("in the end");
        scene.assert_has(&scene.second);
    }
}

/// Bytes that have all been there, a few blocks further on: no chunk is the same, and next to nothing comes over the wire.
/// That holds for versions that came from elsewhere as for those that were published here.
#[test]
fn blocks_that_moved_are_found_in_a_store() {
    let scene = Scene::new(1);
    let mut bytes = vec![0; 4 << 20];
    let mut random = Random::new(9);
    bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&random.below(u64::MAX).to_le_bytes()));
    scene.receive(&Disk::new(bytes.clone()), u64::MAX).outcome.unwrap();
    for blocks in [5, 9, 3] {
        bytes.rotate_right(blocks * 4096);
        bytes[100_000] ^= 1;
        let disk = Disk::new(bytes.clone());
        let outcome = scene.receive(&disk, u64::MAX).outcome.unwrap();
        assert!(outcome.counters.wire_in < 200_000, "{:?}", outcome.counters);
        scene.assert_has(&disk);
    }
}
