//! 100 versions of 20 images in one store: what is named is found, what is shared is stored once, and what goes takes with
//! it what nobody else has.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const IMAGES: usize = 20;
const VERSIONS: usize = 5;

/// A disk of an image: chunks that all images have, chunks that all its versions have, and one of each version's own.
fn content(image: usize, version: usize) -> Vec<u8> {
    let kinds = (0..6)
        .map(|chunk| 1 + chunk)
        .chain((0..4).map(|chunk| 1000 + image * 10 + chunk))
        .chain([0, 100_000 + image * 100 + version]);
    let mut content = Vec::new();
    for kind in kinds {
        let word = |word: usize| random((kind as u64) << 20 | word as u64).to_le_bytes();
        match kind {
            0 => content.resize(content.len() + CHUNK_SIZE, 0),
            _ => content.extend((0..CHUNK_SIZE / 8).flat_map(word)),
        }
    }
    content
}

fn name(image: usize) -> String {
    format!("image{image:02}")
}

/// The distinct chunks of disks that are not zero.
fn distinct(disks: impl Iterator<Item = Vec<u8>>) -> u64 {
    let ids: BTreeSet<_> = disks
        .flat_map(|disk| disk.chunks(CHUNK_SIZE).map(crate::chunk::ChunkId::of).collect::<Vec<_>>())
        .filter(|id| !id.is_zero())
        .map(|id| id.0)
        .collect();
    ids.len() as u64
}

fn all() -> impl Iterator<Item = (usize, usize)> {
    // As at a site: one update of all images after the other.
    (0..VERSIONS).flat_map(|version| (0..IMAGES).map(move |image| (image, version)))
}

fn assert_size(scene: &Scene, versions: &[(usize, usize)]) {
    let size = scene.store.size().unwrap();
    let used = versions.len() as u64 * 11 * CHUNK_SIZE as u64;
    let chunks = distinct(versions.iter().map(|(image, version)| content(*image, *version)));
    assert_eq!((size.images, size.versions), (IMAGES, versions.len()));
    assert_eq!((size.chunks, size.bytes_named), (chunks, used));
    if scene.prune(VERSIONS).bytes_stuck == 0 {
        assert_eq!(size.bytes_stored, chunks * CHUNK_SIZE as u64, "a hole was not given back");
    }
}

#[test]
fn a_hundred_versions_of_twenty_images_are_kept_found_and_pruned() {
    let scene = Scene::new();
    let mut roots: BTreeMap<(usize, usize), Root> = BTreeMap::new();
    for (image, version) in all() {
        let content = content(image, version);
        let (root, put) = scene.publish_beside(&name(image), &content).unwrap();
        let new = match (image, version) {
            (0, 0) => 11,
            (_, 0) => 5,
            _ => 1,
        };
        assert_eq!(put.chunks_new, new, "version {version} of {}", name(image));
        roots.insert((image, version), root);
        if version == 1 {
            scene
                .store
                .rename(&name(image), |names, now| names.move_channel("test", root, now, now))
                .unwrap();
        }
        if version == 2 && image == 7 {
            scene.store.rename(&name(image), |names, _| names.tag("gold", root)).unwrap();
        }
    }
    assert_size(&scene, &all().collect::<Vec<_>>());

    // Every name leads to its version: latest, channel, tag, the root and any beginning of it that is nobody else's.
    assert_eq!(scene.store.images().unwrap(), (0..IMAGES).map(name).collect::<Vec<_>>());
    let find = |name: &str| scene.store.find(name).unwrap();
    for image in 0..IMAGES {
        let (first, last) = (name(image), roots[&(image, VERSIONS - 1)]);
        assert_eq!([find(&first), find(&format!("{first}:latest"))], [last; 2]);
        assert_eq!(find(&format!("{first}:test")), roots[&(image, 1)]);
        let names = scene.store.image(&first).unwrap().unwrap();
        let listed: Vec<Root> = names.versions.iter().map(|version| version.root).collect();
        assert_eq!(listed, (0..VERSIONS).map(|version| roots[&(image, version)]).collect::<Vec<_>>());
    }
    assert_eq!(find("image07:gold"), roots[&(7, 2)]);
    for root in roots.values() {
        let text = root.to_string();
        for digits in [6, 12, 64] {
            let beginning = &text[..digits];
            let is_one = roots.values().filter(|other| other.to_string().starts_with(beginning)).count() == 1;
            assert_eq!(scene.store.find(beginning).ok(), is_one.then_some(*root), "{beginning}");
        }
    }

    // What stays is the newest of each and what a name holds.
    let pruned = scene.prune(1);
    let stays = |(image, version): &(usize, usize)| {
        *version == VERSIONS - 1 || *version == 1 || (*image, *version) == (7, 2)
    };
    let (kept, gone): (Vec<_>, Vec<_>) = all().partition(stays);
    assert_eq!((pruned.versions.len(), pruned.chunks), (gone.len(), gone.len() as u64), "{pruned:?}");
    for at in &gone {
        assert!(scene.store.find(&roots[at].to_string()).is_err());
    }
    for at in &kept {
        scene.assert_content(&roots[at], &content(at.0, at.1));
    }
    assert_size(&scene, &kept);
    assert_eq!(scene.check().problems, []);
}
