//! A tree file: once as the bytes are, and once as long as the disk that its header claims.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use goldwire_fuzz::scratch;
use goldwire_stdx::Folder;
use goldwire_store::{FANOUT, TreeFile, TreeGeometry};
use libfuzzer_sys::fuzz_target;

/// Above this the file is looked at but not verified: a walk over the level of 4 million nodes of the largest disk
/// takes seconds, in which a fuzzer learns nothing new.
const VERIFIED_MAX: u64 = 1 << 40;

const NAME: &str = "image.tree";

fuzz_target!(|input: &[u8]| {
    let path = scratch(NAME);
    std::fs::write(&path, input).expect("room for an input");
    let folder = Folder::open(path.parent().expect("the scratch folder")).expect("the scratch folder");
    let Ok(size) = TreeFile::claimed_size(&folder, NAME) else { return };
    look(&folder, size);

    // A real tree's length follows from the disk's size and is mostly hole.
    let shape = TreeGeometry::new(size).expect("a claimed size is within the limit");
    drop(TreeFile::create(&folder, NAME, shape).expect("a tree of any size fits as a hole"));
    let file = File::options().write(true).open(&path).expect("the file just made");
    let room = file.metadata().expect("the file just made").len().min(input.len() as u64) as usize;
    file.write_all_at(&input[..room], 0).expect("room for an input");
    look(&folder, size);
    assert!(TreeFile::open(&folder, NAME, size).is_ok(), "a tree of the right length opens");
    let _ = TreeFile::open(&folder, NAME, size.wrapping_add(1));
});

fn look(folder: &Folder, size: u64) {
    let Ok(tree) = TreeFile::open(folder, NAME, size) else { return };
    let seal = tree.read_seal();
    let shape = tree.shape();
    for level in 0..=shape.levels() {
        let count = shape.count(level);
        let first = tree.ids(level, 0..count.min(FANOUT));
        assert!(first.is_ok(), "level {level}");
        let _ = tree.ids(level, count.saturating_sub(FANOUT)..count);
        assert!(tree.ids(level, count..count + 1).is_err(), "an id past the end of level {level}");
        assert!(tree.id(level, u64::MAX).is_err());
    }
    let chunks = shape.chunks();
    let _ = tree.fingerprints(0..chunks.min(FANOUT));
    let _ = tree.fingerprints(chunks.saturating_sub(FANOUT)..chunks);
    assert!(tree.fingerprints(chunks..chunks + 1).is_err(), "fingerprints past the end");
    if size > VERIFIED_MAX {
        return;
    }
    // Nobody guesses the root of random ids, so the nodes are looked at under whatever root the top gives.
    if let Ok(top) = tree.top() {
        let _ = tree.verify(&shape.root(&top));
    }
    if let Ok(seal) = seal {
        let _ = tree.verify(&seal.root);
    }
}
