//! A tree and a descriptor that were kept beside an image, changed at some places, under a header whose checksum is
//! right: the input is the places (two bytes, modulo the length) and what stands there.
#![no_main]

use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use goldwire_disk::{Image, OpenOptions, open};
use goldwire_fuzz::scratch;
use goldwire_stdx::Folder;
use goldwire_store::{
    BuildOptions, FANOUT, Kept, Progress, TreeCache, TreeFile, TreeGeometry, beside, build_tree, describe,
    keep_beside, make_own,
};
use libfuzzer_sys::fuzz_target;

struct Scene {
    image: Image,
    trees: Folder,
    versions: Folder,
    tree: Vec<u8>,
    descriptor: Vec<u8>,
    kept: goldwire_store::Root,
}

/// A disk of more chunks than a node has, with what was kept of it.
static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let folder = scratch("kept");
    std::fs::create_dir(&folder).expect("a scratch folder");
    let path = folder.join("a.raw");
    let mut disk = vec![0; 70_000 + 300 * 65536];
    disk.iter_mut().step_by(4096).zip(0u32..).for_each(|(byte, place)| *byte = (place % 251) as u8 | 1);
    std::fs::write(&path, disk).expect("room for a disk");
    let image = open(&path, &OpenOptions::default()).expect("a raw disk");
    let (stop, progress) = (AtomicBool::new(false), Progress::default());
    let options = BuildOptions { threads: None, stop: &stop, progress: &progress };
    let around = Folder::open(&folder).expect("the scratch folder");
    let shape = TreeGeometry::new(image.device.size()).expect("a small disk");
    let tree = TreeFile::create(&around, "work", shape).expect("room for a tree");
    let (root, used) = build_tree(&*image.device, &tree, &options).expect("a tree");
    TreeCache::adopt(&image, &around, "work", root, used).expect("a tree of our own making");
    let built = TreeCache::load(&image).expect("what was kept is believed");
    let (_, descriptor) = describe(&path, &image, &built).expect("a descriptor");
    keep_beside(&path, &descriptor).expect("room for a descriptor");
    let own = |kept| make_own(&around, kept).expect("a folder of our own");
    let (trees, versions) = (own(Kept::Trees), own(Kept::Versions));
    let read = |folder: &Folder, name: &str| {
        folder.read_bounded(name, 1 << 20).expect("what was kept").expect("what was kept")
    };
    let (tree, descriptor) = (read(&trees, "a.raw.tree"), read(&versions, "a.raw.gwv"));
    Scene { image, trees, versions, tree, descriptor, kept: built.root }
});

/// The header's bytes that its checksum covers, and where it stands.
const COVERED: usize = 96;

fuzz_target!(|input: &[u8]| {
    let scene = &*SCENE;
    let mut tree = changed(&scene.tree, input);
    let checksum = *blake3::hash(&tree[..COVERED]).as_bytes();
    tree[COVERED..COVERED + 32].copy_from_slice(&checksum);
    scene.trees.replace("a.raw.tree", &tree, 0o600).expect("room for a tree");
    scene
        .versions
        .replace("a.raw.gwv", &changed(&scene.descriptor, input), 0o600)
        .expect("room for a descriptor");
    let path = &scene.image.chain[0].path;
    if let Some(found) = TreeCache::load(&scene.image) {
        // Whatever is believed holds together, and only what nothing is derived from may differ.
        let shape = found.tree.shape();
        assert_eq!(found.root, shape.root(&found.tree.top().expect("a verified tree")));
        assert_eq!(found.root, scene.kept, "nobody guesses a digest");
        for level in 0..=shape.levels() {
            let count = shape.count(level);
            found.tree.ids(level, 0..count.min(FANOUT)).expect("a verified tree");
        }
        found.tree.fingerprints(0..shape.chunks().min(FANOUT)).expect("a verified tree");
        assert!(found.chunks_used <= shape.chunks(), "more chunks are used than there are");
    }
    if let Ok(Some((version, _))) = beside(path, &scene.kept) {
        assert_eq!(version.root, scene.kept);
    }
});

fn changed(bytes: &[u8], patches: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for patch in patches.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([patch[0], patch[1]])) % bytes.len();
        bytes[at] = patch[2];
    }
    bytes
}
