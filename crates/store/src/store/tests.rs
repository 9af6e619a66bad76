//! A store against a model of plain bytes.

mod many;
mod require;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use goldwire_disk::BlockDevice;
use goldwire_disk::testing::{MemDevice, conformance_read_only, is_told_at_once, random};
use goldwire_stdx::testing::cases;
use proptest::prelude::*;

use super::*;
use crate::chunk::CHUNK_SIZE;
use crate::tree::{BuildOptions, Progress, TreeFile, TreeGeometry, build_tree};

pub(super) static RUN: AtomicBool = AtomicBool::new(false);

pub(super) fn options(progress: &Progress) -> BuildOptions<'_> {
    BuildOptions { threads: None, stop: &RUN, progress }
}

pub(super) struct Scene {
    pub(super) folder: tempfile::TempDir,
    pub(super) store: Arc<Store>,
}

impl Scene {
    /// The file of a pack; of the only one, where there is one.
    pub(super) fn pack(&self) -> PathBuf {
        self.files("packs").into_iter().find(|path| path.extension().unwrap() == "pack").unwrap()
    }

    /// Flips a bit of a chunk of that pack.
    fn damage(&self, slot: usize) {
        let pack = self.pack();
        let mut bytes = std::fs::read(&pack).unwrap();
        bytes[slot * CHUNK_SIZE + 100] ^= 4;
        std::fs::write(&pack, &bytes).unwrap();
    }

    pub(super) fn new() -> Self {
        let folder = scratch();
        let store = Arc::new(Store::init(&folder.path().join("store")).unwrap());
        Self { folder, store }
    }

    pub(super) fn tree(&self, content: &[u8]) -> (TreeFile, Version) {
        let device = MemDevice::with_content(content.to_vec());
        let shape = TreeGeometry::new(device.size()).unwrap();
        let tree = TreeFile::create(&Folder::open(self.folder.path()).unwrap(), "scratch", shape).unwrap();
        std::fs::remove_file(self.folder.path().join("scratch")).unwrap();
        let progress = Progress::default();
        let (root, chunks_used) = build_tree(&device, &tree, &options(&progress)).unwrap();
        let version = Version {
            root,
            size: device.size(),
            chunks_used,
            created: 0,
            parent: None,
            name: "image".into(),
            note: String::new(),
            signer: None,
        };
        (tree, version)
    }

    pub(super) fn publish(&self, image: &str, content: &[u8]) -> StoreResult<(Root, Put)> {
        self.publish_from(image, content, &MemDevice::with_content(content.to_vec()))
    }

    /// Publishes `content` as a command does: the latest version looks on while it is hashed.
    fn publish_beside(&self, image: &str, content: &[u8]) -> StoreResult<(Root, Put)> {
        let twin = self.store.twin(image)?;
        let (tree, version) = self.tree(content);
        let chunks = content.chunks(CHUNK_SIZE).enumerate();
        for (index, chunk) in chunks.filter(|_| twin.is_some()) {
            let mut whole = chunk.to_vec();
            whole.resize(CHUNK_SIZE, 0);
            twin.as_ref().unwrap().look(index as u64, &whole);
        }
        let descriptor = version.encode(None).unwrap();
        let device = MemDevice::with_content(content.to_vec());
        let (device, twin): (&dyn BlockDevice, _) = (&device, twin.as_ref());
        let incoming = Incoming { device, tree: &tree, version: &version, descriptor: &descriptor, twin };
        let progress = Progress::default();
        let put = self.store.publish(image, None, &incoming, &options(&progress))?;
        Ok((version.root, put))
    }

    /// Publishes `content`, whose bytes the device may give or not.
    pub(super) fn publish_from(
        &self,
        image: &str,
        content: &[u8],
        device: &dyn BlockDevice,
    ) -> StoreResult<(Root, Put)> {
        let (tree, version) = self.tree(content);
        let descriptor = version.encode(None).unwrap();
        let incoming =
            Incoming { device, tree: &tree, version: &version, descriptor: &descriptor, twin: None };
        let progress = Progress::default();
        let put = self.store.publish(image, None, &incoming, &options(&progress))?;
        Ok((version.root, put))
    }

    pub(super) fn check(&self) -> Checked {
        self.store.check(&options(&Progress::default())).unwrap()
    }

    pub(super) fn prune(&self, count: usize) -> Pruned {
        self.store.prune(&[], &Keep { count, seconds: 0, rollbacks: true }, false, &RUN).unwrap()
    }

    pub(super) fn files(&self, folder: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.store.path().join(folder)).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }

    pub(super) fn assert_content(&self, root: &Root, content: &[u8]) {
        let version = self.store.version(root).unwrap();
        let mut read = vec![0x5a; content.len()];
        version.read_at(&mut read, 0).unwrap();
        assert!(read == content, "version {root} is not what was published");
        version.verify(&options(&Progress::default())).unwrap();
    }
}

/// A folder in memory, where there is much of it: a store syncs at every step, and most of a test's time would go there.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let has_room = rustix::fs::statvfs(memory).is_ok_and(|data| data.f_bavail * data.f_frsize > 2 << 30);
    if has_room { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// A disk of chunks, each of which is one of a few, so that disks share some.
fn disk(seed: u64, chunks: usize, kinds: u64) -> Vec<u8> {
    let mut content = Vec::new();
    for chunk in 0..chunks {
        let kind = random(seed ^ (chunk as u64) << 8) % kinds;
        match kind {
            0 => content.resize(content.len() + CHUNK_SIZE, 0),
            kind => content
                .extend((0..CHUNK_SIZE / 8).flat_map(|word| random(kind << 32 | word as u64).to_le_bytes())),
        }
    }
    content.truncate(content.len() - (random(seed) % 40_000) as usize);
    content
}

#[test]
fn a_version_is_a_disk() {
    let scene = Scene::new();
    let content = disk(1, 40, 20);
    let (root, put) = scene.publish("win11", &content).unwrap();
    assert!(!put.was_here);
    conformance_read_only(&scene.store.version(&root).unwrap(), &content);
    // The same from elsewhere under another name: one version, and nothing is read.
    let unreadable = MemDevice::with_content(content.clone());
    unreadable.fail_reads_after(Some(0));
    let (again, put) = scene.publish_from("copy", &content, &unreadable).unwrap();
    assert_eq!((again, put.was_here, put.chunks_new), (root, true, 0));
    assert_eq!(scene.store.find("copy").unwrap(), root);
    assert_eq!(scene.store.find(&root.to_string()[..8]).unwrap(), root);
    assert_eq!(scene.files("packs").len(), 2);
    assert_eq!(scene.check().problems, []);
    for unknown in ["win", "win11:test", "abcdef", "", ":", "../images/win11", "win11:latest:x"] {
        assert!(matches!(scene.store.find(unknown), Err(StoreError::Unknown { .. })), "{unknown}");
    }
}

#[test]
fn what_is_shared_is_stored_once_and_goes_with_its_last_version() {
    let scene = Scene::new();
    let first = disk(1, 60, 1 << 40);
    let mut second = first.clone();
    second[20 * CHUNK_SIZE..25 * CHUNK_SIZE].copy_from_slice(&disk(2, 6, 1 << 40)[..5 * CHUNK_SIZE]);
    // Everything of it is here, at other places.
    let moved: Vec<u8> =
        second.chunks_exact(CHUNK_SIZE).rev().flatten().copied().chain(vec![0; 3 * CHUNK_SIZE]).collect();
    let (one, _) = scene.publish("a", &first).unwrap();
    let (two, put) = scene.publish("a", &second).unwrap();
    assert_eq!(put.chunks_new, 5);
    let (three, put) = scene.publish("b", &moved).unwrap();
    assert_eq!(put.chunks_new, 0);
    assert_eq!(scene.prune(9), Pruned::default());
    // A reader keeps its version whole.
    let reader = scene.store.version(&one).unwrap();
    let pruned = scene.prune(1);
    assert_eq!((pruned.versions, pruned.in_use, pruned.chunks), (vec![("a".into(), one)], vec![one], 0));
    scene.assert_content(&one, &first);
    drop(reader);
    let dry = scene.store.prune(&[], &Keep { count: 1, seconds: 0, rollbacks: true }, true, &RUN).unwrap();
    let pruned = scene.prune(1);
    assert_eq!(
        (pruned.chunks, dry.chunks),
        (5, 5),
        "the last chunk of `first` is short and in no other version: {pruned:?}"
    );
    assert!(pruned.bytes >= 4 * CHUNK_SIZE as u64 || pruned.bytes_stuck > 0, "{pruned:?}");
    scene.assert_content(&two, &second);
    scene.assert_content(&three, &moved);
    assert!(scene.store.version(&one).is_err());
    assert_eq!(scene.check().problems, []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(48)))]

    /// Publish, prune, damage and kill in any order: what is named is read as it was published, and every check is good.
    #[test]
    fn a_store_behaves_like_plain_bytes(steps in proptest::collection::vec((0_u8..6, 0_u64..12, 0_u64..60), 1..14)) {
        let scene = Scene::new();
        let mut model: BTreeMap<String, Vec<(Root, Vec<u8>)>> = BTreeMap::new();
        for (step, seed, fault) in steps {
            let image = format!("image{}", seed % 3);
            let content = disk(seed, 10 + seed as usize, 30);
            match step {
                0..3 => {
                    let published = match fault % 2 {
                        0 => scene.publish(&image, &content),
                        _ => scene.publish_beside(&image, &content),
                    };
                    let (root, _) = published.unwrap();
                    let versions = model.entry(image).or_default();
                    if versions.iter().all(|(other, _)| *other != root) {
                        versions.push((root, content));
                    }
                }
                // Cut while it reads; the same call goes on.
                3 => {
                    let device = MemDevice::with_content(content.clone());
                    device.fail_reads_after(Some(fault / 10));
                    let _ = scene.publish_from(&image, &content, &device).map(|(root, _)| {
                        let versions = model.entry(image).or_default();
                        if versions.iter().all(|(other, _)| *other != root) {
                            versions.push((root, content));
                        }
                    });
                }
                _ => {
                    let count = 1 + seed as usize % 3;
                    scene.prune(count);
                    for versions in model.values_mut() {
                        let surplus = versions.len().saturating_sub(count);
                        versions.drain(..surplus);
                    }
                }
            }
            prop_assert_eq!(scene.check().problems, vec![]);
        }
        for (image, versions) in &model {
            let names = scene.store.image(image).unwrap().unwrap();
            let roots: Vec<Root> = names.versions.iter().map(|version| version.root).collect();
            prop_assert_eq!(roots, versions.iter().map(|(root, _)| *root).collect::<Vec<_>>());
            for (root, content) in versions {
                scene.assert_content(root, content);
            }
        }
    }
}

/// A flipped bit in a pack: whoever reads the chunk gets an error that names it, everybody else gets his bytes, and the
/// check says which version has lost what.
#[test]
fn a_damaged_chunk_is_never_given_out() {
    let scene = Scene::new();
    let content = disk(1, 20, 1 << 40);
    let (root, _) = scene.publish("a", &content).unwrap();
    scene.damage(7);
    let version = scene.store.version(&root).unwrap();
    let mut buffer = vec![0; CHUNK_SIZE];
    version.read_at(&mut buffer, 6 * CHUNK_SIZE as u64).unwrap();
    for (offset, length) in [(7 * CHUNK_SIZE, 1), (8 * CHUNK_SIZE - 1, 1), (6 * CHUNK_SIZE, 3 * CHUNK_SIZE)] {
        let error = version.read_at(&mut vec![0; length], offset as u64).unwrap_err().to_string();
        assert!(error.contains("not chunk 7 of version"), "{error}");
    }
    let problems = scene.check().problems;
    assert!(problems.iter().any(|problem| problem.what.contains("chunk 7 is damaged")), "{problems:?}");
    // It is not taken for what is here either.
    let fresh = Scene::new();
    let (_, put) = fresh.publish("a", &content).unwrap();
    let other: Vec<u8> = [&content[CHUNK_SIZE..10 * CHUNK_SIZE], &content[..CHUNK_SIZE]].concat();
    let (again, second) = scene.publish("b", &other).unwrap();
    assert_eq!((put.chunks_new, second.chunks_new), (20, 1));
    scene.assert_content(&again, &other);
    let pack = std::fs::OpenOptions::new().write(true).open(scene.pack()).unwrap();
    pack.set_len(5 * CHUNK_SIZE as u64).unwrap();
    assert!(scene.store.version(&root).unwrap().read_at(&mut buffer, 6 * CHUNK_SIZE as u64).is_err());
}

/// What is in memory is told without waiting, and only once it is proven.
#[test]
fn a_version_tells_at_once_what_is_proven() {
    let scene = Scene::new();
    let mut content = disk(1, 60, 1 << 40);
    content[20 * CHUNK_SIZE..30 * CHUNK_SIZE].fill(0);
    let (root, _) = scene.publish("a", &content).unwrap();
    let version = scene.store.version(&root).unwrap();
    // No pack is open yet, and opening one may wait.
    assert!(!version.read_at_once(&mut [0; 512], 0).unwrap());
    version.read_at(&mut vec![0; content.len()], 0).unwrap();
    if !goldwire_stdx::testing::tells_at_once(scene.folder.path()) {
        return;
    }
    for piece in [1000, CHUNK_SIZE, 3 * CHUNK_SIZE + 5, content.len()] {
        assert!(is_told_at_once(&version, &content, piece), "in pieces of {piece}");
    }
    // One bit, in memory as on the medium.
    scene.damage(7);
    for (offset, length) in [(7 * CHUNK_SIZE, 1), (8 * CHUNK_SIZE - 1, 1), (6 * CHUNK_SIZE, 3 * CHUNK_SIZE)] {
        let told = version.read_at_once(&mut vec![0; length], offset as u64);
        assert!(!told.is_ok_and(|is_told| is_told), "{length} bytes at {offset} were given out");
    }
}

/// The place of a chunk is told once it is proven, and holds it for as long as the version is open, whatever is pruned.
#[test]
fn a_place_holds_what_was_proven() {
    let scene = Scene::new();
    let mut content = disk(1, 30, 1 << 40);
    content[10 * CHUNK_SIZE..12 * CHUNK_SIZE].fill(0);
    let (root, _) = scene.publish("a", &content).unwrap();
    scene.publish("a", &disk(2, 30, 1 << 40)).unwrap();
    let version = scene.store.version(&root).unwrap();
    let places: Vec<_> =
        (0..content.len()).step_by(20_000).map(|at| (at, version.place_of(at as u64).unwrap())).collect();
    scene.prune(1);
    for (at, place) in &places {
        let is_zero = (10..12).contains(&(at / CHUNK_SIZE));
        assert_eq!(place.is_none(), is_zero, "byte {at}");
        if let Some(place) = place {
            let end = ((at / CHUNK_SIZE + 1) * CHUNK_SIZE).min(content.len());
            assert_eq!(place.length, (end - at) as u64);
            let mut bytes = vec![0; end - at];
            std::os::unix::fs::FileExt::read_exact_at(&*place.file, &mut bytes, place.offset).unwrap();
            assert!(bytes == content[*at..end], "byte {at}");
        }
    }
    // Nobody gets the place of a chunk that is not what it should be.
    scene.damage(7);
    let error = version.place_of(8 * CHUNK_SIZE as u64 - 1).unwrap_err().to_string();
    assert!(error.contains("not chunk 7 of version"), "{error}");
    assert!(version.place_of(8 * CHUNK_SIZE as u64).unwrap().is_some());
}

/// Ids that a lost sector made zero free nothing: the prune says what is wrong and the chunks stay.
#[test]
fn damaged_ids_free_nothing() {
    let scene = Scene::new();
    let content = disk(1, 300, 1 << 40);
    let (root, _) = scene.publish("a", &content).unwrap();
    let ids = scene.files("packs").into_iter().find(|path| path.extension().unwrap() == "ids").unwrap();
    let mut bytes = std::fs::read(&ids).unwrap();
    bytes[4096..8192].fill(0);
    std::fs::write(&ids, &bytes).unwrap();
    let refused = scene.store.prune(&[], &Keep { count: 1, seconds: 0, rollbacks: true }, false, &RUN);
    assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
    scene.assert_content(&root, &content);
}

/// A damaged version that a tag or a channel names keeps every prune from freeing anything; without its names it goes,
/// whatever of it is damaged or missing.
#[test]
fn a_damaged_version_goes_once_nothing_names_it() {
    type Damage = fn(&Scene, &Root);
    fn version_file(scene: &Scene, root: &Root, name: &str) -> PathBuf {
        scene.store.path().join("versions").join(root.to_string()).join(name)
    }
    fn ids(scene: &Scene) -> PathBuf {
        let files = scene.files("packs");
        files.into_iter().find(|path| path.extension().unwrap() == "ids").unwrap()
    }
    let damages: [Damage; 6] = [
        |scene, root| std::fs::write(version_file(scene, root, "map"), "GWMAP").unwrap(),
        |scene, root| {
            let path = version_file(scene, root, "map");
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[4100] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        },
        |scene, root| std::fs::remove_file(version_file(scene, root, "map")).unwrap(),
        |scene, _| std::fs::remove_file(ids(scene).with_extension("pack")).unwrap(),
        |scene, _| std::fs::write(ids(scene), "GWIDS").unwrap(),
        |scene, _| {
            let mut bytes = std::fs::read(ids(scene)).unwrap();
            bytes[100] ^= 1;
            std::fs::write(ids(scene), bytes).unwrap();
        },
    ];
    for (number, damage) in damages.iter().enumerate() {
        let scene = Scene::new();
        let (bad, _) = scene.publish("a", &disk(1, 20, 1 << 40)).unwrap();
        let content = disk(2, 20, 1 << 40);
        let (good, _) = scene.publish("a", &content).unwrap();
        scene
            .store
            .rename("a", |names, now| {
                names.tag("old", bad)?;
                names.move_channel("test", bad, now, now)
            })
            .unwrap();
        damage(&scene, &bad);
        let keep = Keep { count: 1, seconds: 0, rollbacks: true };
        let prune = || scene.store.prune(&[], &keep, false, &RUN);
        assert!(prune().is_err(), "{number}");
        scene.store.rename("a", |names, _| names.remove_tag("old")).unwrap();
        assert!(prune().is_err(), "{number}");
        scene.store.rename("a", |names, _| names.remove_channel("test")).unwrap();
        assert_eq!(prune().unwrap().versions, [("a".into(), bad)], "{number}");
        assert_eq!((scene.check().problems, scene.files("packs").len()), (vec![], 2), "{number}");
        scene.assert_content(&good, &content);
    }
}

/// What is cut, missing or unreadable is told with the versions that it harms, and with no other; once for a pack.
#[test]
fn a_check_names_the_versions_that_a_damaged_pack_harms() {
    type Damage = fn(&Path);
    let damages: [Damage; 5] = [
        |pack| std::fs::remove_file(pack).unwrap(),
        |pack| {
            let file = std::fs::File::options().write(true).open(pack).unwrap();
            file.set_len(18 * CHUNK_SIZE as u64 + 5).unwrap();
        },
        |pack| std::fs::write(pack, "").unwrap(),
        |pack| std::fs::remove_file(pack.with_extension("ids")).unwrap(),
        |pack| std::fs::write(pack.with_extension("ids"), "GWIDS").unwrap(),
    ];
    for (number, damage) in damages.iter().enumerate() {
        let scene = Scene::new();
        let content = disk(1, 20, 1 << 40);
        let (one, _) = scene.publish("a", &content).unwrap();
        let pack = scene.pack();
        let mut newer = content.clone();
        newer[..CHUNK_SIZE].fill(7);
        let (two, _) = scene.publish("a", &newer).unwrap();
        let (three, _) = scene.publish("b", &disk(2, 20, 1 << 40)).unwrap();
        // Only the first fifteen chunks of the pack.
        let (four, _) = scene.publish("c", &content[..15 * CHUNK_SIZE]).unwrap();
        damage(&pack);
        let problems = scene.check().problems;
        let is_told = |root: &Root| {
            let of = scene.store.path().join("versions").join(root.to_string());
            problems.iter().filter(|problem| problem.path.starts_with(&of)).count()
        };
        let harms_all = number != 1;
        assert_eq!(
            [&one, &two, &three, &four].map(is_told),
            [1, 1, 0, harms_all.into()],
            "{number}: {problems:?}"
        );
        let of_pack =
            problems.iter().filter(|problem| problem.path.starts_with(scene.store.path().join("packs")));
        assert_eq!(of_pack.count(), usize::from(number != 3), "{number}: {problems:?}");
    }
}

/// The lock of a reception whose folder is gone goes with a prune; one that somebody holds stays.
#[test]
fn a_lock_without_its_folder_goes() {
    let scene = Scene::new();
    let (root, _) = scene.publish("a", &disk(1, 5, 1 << 40)).unwrap();
    let lock = |root: &Root| scene.store.path().join("work").join(format!("{root}.lock"));
    std::fs::write(lock(&root), "").unwrap();
    let held = std::fs::File::create(lock(&Root([9; 32]))).unwrap();
    held.lock().unwrap();
    scene.store.prune(&[], &Keep { count: 9, seconds: 0, rollbacks: true }, true, &RUN).unwrap();
    assert_eq!(scene.files("work").len(), 2, "a dry run");
    scene.prune(9);
    assert_eq!(scene.files("work"), [lock(&Root([9; 32]))]);
    drop(held);
    scene.prune(9);
    assert_eq!(scene.files("work"), Vec::<PathBuf>::new());
}

/// A version takes no damaged chunk over from the one before: it brings its own.
#[test]
fn damage_is_not_passed_on() {
    let scene = Scene::new();
    let content = disk(1, 40, 1 << 40);
    scene.publish("a", &content).unwrap();
    scene.damage(7);
    let mut newer = content.clone();
    newer[20 * CHUNK_SIZE] ^= 1;
    let (root, put) = scene.publish("a", &newer).unwrap();
    assert_eq!(put.chunks_new, 2);
    scene.assert_content(&root, &newer);
}

/// Nor from one that looked on while the image was read: what is damaged there is not the image's, and an image that has
/// the very damage has another chunk.
#[test]
fn a_twin_passes_no_damage_on() {
    let scene = Scene::new();
    let content = disk(1, 40, 1 << 40);
    scene.publish("a", &content).unwrap();
    scene.damage(7);
    let mut newer = content.clone();
    newer[20 * CHUNK_SIZE] ^= 1;
    let (root, put) = scene.publish_beside("a", &newer).unwrap();
    assert_eq!(put.chunks_new, 2);
    scene.assert_content(&root, &newer);
    newer[7 * CHUNK_SIZE + 100] ^= 4;
    let (root, put) = scene.publish_beside("a", &newer).unwrap();
    assert_eq!(put.chunks_new, 1);
    scene.assert_content(&root, &newer);
    // Bytes that somebody showed it are no proof for a chunk of another id.
    let twin = scene.store.twin("a").unwrap().unwrap();
    for (index, chunk) in newer.chunks_exact(CHUNK_SIZE).enumerate() {
        twin.look(index as u64, chunk);
    }
    let mut ids = twin.version().tree().ids(0, 0..30).unwrap();
    ids[3] = crate::chunk::ChunkId([9; 32]);
    let mut places = vec![None; 30];
    twin.note_places(0, &ids, &mut places).unwrap();
    let found: Vec<bool> = places.iter().map(Option::is_some).collect();
    assert_eq!(found, (0..30).map(|index| index != 3).collect::<Vec<_>>());
}

/// The same content, now signed, is signed; nobody takes a signature away.
#[test]
fn a_signature_comes_to_content_that_is_here() {
    let scene = Scene::new();
    let content = disk(1, 5, 1 << 40);
    let (root, _) = scene.publish("a", &content).unwrap();
    let (tree, version) = scene.tree(&content);
    let key = crate::version::SecretKey::from_random([7; 32]);
    let signed = version.encode(Some(&key)).unwrap();
    let device = MemDevice::with_content(content.clone());
    let progress = Progress::default();
    let version = Version::decode(&signed).unwrap();
    let incoming =
        Incoming { device: &device, tree: &tree, version: &version, descriptor: &signed, twin: None };
    scene.store.publish("a", None, &incoming, &options(&progress)).unwrap();
    assert_eq!(scene.store.describe(&root).unwrap().0.signer, Some(key.public()));
    scene.publish("a", &content).unwrap();
    assert_eq!(scene.store.describe(&root).unwrap().0.signer, Some(key.public()));
}

/// What killed processes left of packs goes with the next prune, and stops nobody until then.
#[test]
fn leftovers_of_packs_go() {
    let scene = Scene::new();
    let content = disk(1, 20, 1 << 40);
    for name in ["000000fe.have", "000000ff.pack"] {
        std::fs::write(scene.store.path().join("packs").join(name), "").unwrap();
    }
    let (root, _) = scene.publish("a", &content).unwrap();
    scene.prune(1);
    assert_eq!(scene.files("packs").len(), 2);
    scene.assert_content(&root, &content);
}

/// What is cut is continued: durable chunks are not read again.
#[test]
fn a_publish_goes_on_where_it_was_cut() {
    let scene = Scene::new();
    let content = disk(3, 1300, 1 << 40);
    let device = MemDevice::with_content(content.clone());
    device.fail_reads_after(Some(70));
    assert!(scene.publish_from("a", &content, &device).is_err());
    assert_eq!(scene.store.versions().unwrap(), []);
    let (root, put) = scene.publish("a", &content).unwrap();
    assert!(put.chunks_resumed >= 1024 && put.chunks_new == 1300, "{put:?}");
    scene.assert_content(&root, &content);
    assert_eq!(scene.files("work"), Vec::<PathBuf>::new());
    assert_eq!(scene.files("packs").len(), 2);
}

#[test]
fn an_image_that_changes_is_noticed() {
    let scene = Scene::new();
    let content = disk(3, 20, 1 << 40);
    let mut other = content.clone();
    other[5 * CHUNK_SIZE] ^= 1;
    let refused = scene.publish_from("a", &content, &MemDevice::with_content(other));
    assert!(matches!(refused, Err(StoreError::Changed { chunk: 5 })), "{refused:?}");
    assert_eq!(scene.store.images().unwrap(), Vec::<String>::new());
}

#[test]
fn only_a_store_is_a_store() {
    let scene = Scene::new();
    let place = scene.folder.path();
    assert!(matches!(Store::open(place), Err(StoreError::NoStore { .. })));
    assert!(matches!(Store::init(place), Err(StoreError::NotInitialized { .. })));
    assert!(matches!(Store::init(scene.store.path()), Err(StoreError::NotInitialized { .. })));
    let path = scene.store.path().join("packs");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert!(matches!(Store::open(scene.store.path()), Err(StoreError::Owner { .. })));
    std::fs::remove_dir(&path).unwrap();
    std::os::unix::fs::symlink("/tmp", &path).unwrap();
    assert!(Store::open(scene.store.path()).is_err());
    let format = scene.store.path().join("format");
    let mut bytes = std::fs::read(&format).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&format, bytes).unwrap();
    assert!(matches!(Store::open(scene.store.path()), Err(StoreError::Corrupt { .. })));
}
