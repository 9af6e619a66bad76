//! What lies beside an image as somebody left it: the input as its kept tree and as its descriptor.
#![no_main]

use std::sync::LazyLock;

use goldwire_disk::{Image, OpenOptions, open};
use goldwire_fuzz::scratch;
use goldwire_stdx::Folder;
use goldwire_store::{Kept, Root, TreeCache, Version, beside, make_own};
use libfuzzer_sys::fuzz_target;

/// A disk of three chunks, and the folders for what is kept beside it.
static SCENE: LazyLock<(Image, Folder, Folder)> = LazyLock::new(|| {
    let path = scratch("kept.raw");
    std::fs::write(&path, [[0xa5; 65536], [0; 65536], [0x5a; 65536]].concat()).expect("room for a disk");
    let image = open(&path, &OpenOptions::default()).expect("a raw disk");
    let around = Folder::open(path.parent().expect("the scratch folder")).expect("the scratch folder");
    let own = |kept| make_own(&around, kept).expect("a folder of our own");
    (image, own(Kept::Trees), own(Kept::Versions))
});

fuzz_target!(|input: &[u8]| {
    let (image, trees, versions) = &*SCENE;
    let path = &image.chain[0].path;
    trees.replace("kept.raw.tree", input, 0o600).expect("room for an input");
    // Nobody guesses a checksum over the identity of the file.
    assert!(TreeCache::load(image).is_none(), "an input is no tree of this disk");
    versions.replace("kept.raw.gwv", input, 0o600).expect("room for an input");
    match (Version::decode(input), beside(path, &Root([7; 32]))) {
        (Ok(version), found) if version.root != Root([7; 32]) => {
            assert!(matches!(found, Ok(None)), "a descriptor of other content is not ours");
        }
        (Ok(version), Ok(Some((found, bytes)))) => assert!(found == version && bytes == input),
        (Err(_), Err(_)) => {}
        (decoded, found) => panic!("{decoded:?}, but beside says {found:?}"),
    }
    if let Ok(version) = Version::decode(input) {
        let found = beside(path, &version.root).expect("it was decoded").expect("and is of this content");
        assert_eq!(found.0, version);
    }
});
