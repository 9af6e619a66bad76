//! Targets on file systems that lack something: a sync or a conversion onto them is right, or is refused in words before
//! the first byte of data, with nothing left behind.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use crate::disks::{Guest, Random};
use crate::machine;
use crate::strange::foreign::{Foreign, Kind};
use crate::strange::{Lies, Manners, Strange};
use crate::sync::text;
use crate::tool::{Finished, Scene};

/// A disk of `size` bytes of which little is used.
fn sparse_disk(path: &Path, size: u64) {
    let file = fs::File::create(path).unwrap();
    let Guest(bytes) = Guest::random(3, 2, 1);
    file.write_all_at(&bytes, 0).unwrap();
    file.write_all_at(b"the end", size - 512).unwrap();
    file.set_len(size).unwrap();
}

/// Refused before anything was sent, with these words, and nothing is left.
fn assert_refused(run: &Finished, place: &Strange, words: &str) {
    let failed = run.event("failed");
    assert!(failed.to_string().contains(words), "{run}");
    assert!(failed["hints"].to_string().contains("nothing was sent"), "{run}");
    assert!(run.events_of("progress").is_empty(), "{run}");
    assert!(machine::visible(&place.folder).is_empty(), "{run}");
    assert_eq!(files(&place.folder), [] as [PathBuf; 0], "{run}");
}

/// Names of files with the formats that they promise.
const CONTAINERS: [(&str, &str); 4] =
    [("a.raw", "raw"), ("f.vhd", "vhd-fixed"), ("d.vhd", "vhd"), ("q.qcow2", "qcow2")];

/// A golden disk, and the one that follows it.
fn two_versions(scene: &Scene) -> [PathBuf; 2] {
    let [source, next] = ["golden.raw", "next.raw"].map(|name| scene.path(name));
    Guest::random(1, 24, 6).write_raw(&source);
    Guest::random(1, 24, 6).rewritten(2, 40).write_raw(&next);
    [source, next]
}

#[test]
fn every_container_is_right_on_every_sound_file_system() {
    let scene = Scene::new();
    let [source, next] = two_versions(&scene);
    let slow = Manners { write_takes: Duration::from_millis(2), ..Manners::good() };
    for (name, manners, formats) in
        [("good", Manners::good(), 4), ("poor", Manners::poor(), 4), ("slow", slow, 1)]
    {
        let Some(place) = Strange::mount(scene.folder(name), manners) else { return };
        for (file, format) in CONTAINERS.into_iter().take(formats) {
            let target = place.folder.join(file);
            scene.goldwire(["disk", "convert", "--format", format, text(&source), text(&target)]).expect(0);
            scene.goldwire(["disk", "compare", "--read", text(&source), text(&target)]).expect(0);
            scene.sync(["--replace", "--format", format, text(&next), text(&target)]).expect(0);
            scene.goldwire(["disk", "compare", "--read", text(&next), text(&target)]).expect(0);
            scene.goldwire(["disk", "check", text(&target)]).expect(0);
            // And as a source.
            let back = scene.path(&format!("{name}-{file}"));
            scene.goldwire(["disk", "convert", text(&target), text(&back)]).expect(0);
            scene.goldwire(["disk", "compare", "--read", text(&next), text(&back)]).expect(0);
        }
        // What is there is not replaced where it is not asked for, whatever the rename can be told.
        let run = scene.sync([text(&source), text(&place.folder.join("a.raw"))]).expect(1);
        assert_eq!(run.event("failed")["kind"], "exists", "{run}");
    }
}

/// The programs that bring NTFS and exFAT to Linux are no imitations of ours: disks on USB sticks, and appliances.
#[test]
fn every_container_is_right_on_ntfs_and_exfat() {
    let scene = Scene::new();
    let [source, next] = two_versions(&scene);
    let sparse = scene.path("sparse.raw");
    sparse_disk(&sparse, 1 << 30);
    for (name, kind) in [("ntfs", Kind::Ntfs), ("exfat", Kind::Exfat)] {
        let Some(place) = Foreign::mount(kind, scene.folder(name), 96 << 20) else { return };
        for (file, format) in CONTAINERS {
            let target = place.folder.join(file);
            scene.sync(["--format", format, text(&source), text(&target)]).expect(0);
            scene.sync(["--replace", "--format", format, text(&next), text(&target)]).expect(0);
            scene.goldwire(["disk", "compare", "--read", text(&next), text(&target)]).expect(0);
            scene.goldwire(["disk", "check", text(&target)]).expect(0);
            let back = scene.path(&format!("{name}-{file}"));
            scene.sync([text(&target), text(&back)]).expect(0);
            scene.goldwire(["disk", "compare", "--read", text(&next), text(&back)]).expect(0);
            let run = scene.sync([text(&source), text(&target)]).expect(1);
            assert_eq!(run.event("failed")["kind"], "exists", "{run}");
            scene.goldwire(["disk", "tidy", "--all", text(&place.folder)]).expect(0);
            assert_eq!(files(&place.folder), std::slice::from_ref(&target), "{name}");
            fs::remove_file(&target).unwrap();
        }
        // A disk of 1 GiB on 96 MiB: with holes it has room.
        let target = place.folder.join("sparse.raw");
        let run = scene.sync([text(&sparse), text(&target)]).finish();
        match kind {
            Kind::Ntfs => assert!(run.status.success(), "{run}"),
            Kind::Exfat => {
                assert_eq!(run.event("failed")["kind"], "space", "{run}");
                assert!(run.events_of("progress").is_empty(), "{run}");
                assert_eq!(files(&place.folder), [] as [PathBuf; 0], "{run}");
            }
        }
    }
}

/// FAT takes files of 4 GiB.
#[test]
fn a_disk_that_is_too_large_for_a_file_is_refused_before_the_first_byte() {
    let scene = Scene::new();
    let manners = Manners { file_max: (4 << 30) - 1, ..Manners::good() };
    let Some(place) = Strange::mount(scene.folder("fat"), manners) else { return };
    let source = scene.path("large.raw");
    sparse_disk(&source, 5 << 30);
    let run = scene.sync([text(&source), text(&place.folder)]).expect(1);
    assert_refused(&run, &place, "--format qcow2");
    let target = place.folder.join("large.qcow2");
    scene.goldwire(["disk", "convert", text(&source), text(&target)]).expect(0);
    scene.goldwire(["disk", "compare", "--read", text(&source), text(&target)]).expect(0);
}

/// Where there are no holes, a raw disk takes its whole size, and only trying tells.
#[test]
fn a_disk_that_only_fits_with_holes_is_refused_where_there_are_none() {
    let scene = Scene::new();
    let manners = Manners { capacity: 64 << 20, ..Manners::poor() };
    let Some(place) = Strange::mount(scene.folder("exfat"), manners) else { return };
    let source = scene.path("large.raw");
    sparse_disk(&source, 256 << 20);
    let run = scene.sync([text(&source), text(&place.folder)]).expect(1);
    assert_eq!(run.event("failed")["kind"], "space", "{run}");
    assert_refused(&run, &place, "keeps no holes");
    assert!(place.occupied() < 64 << 10, "{} bytes left", place.occupied());
    let target = place.folder.join("large.qcow2");
    scene.sync([text(&source), text(&target)]).expect(0);
    scene.goldwire(["disk", "compare", "--read", text(&source), text(&target)]).expect(0);
}

#[test]
fn what_the_end_of_a_sync_needs_is_tried_before_its_beginning() {
    let scene = Scene::new();
    let source = scene.path("golden.raw");
    Guest::random(5, 8, 4).write_raw(&source);
    for (name, manners, words) in [
        ("across", Manners { renames_across: false, ..Manners::good() }, "cannot take a disk"),
        ("fsync", Manners { fsync: Err(Errno::IO), ..Manners::good() }, "durable"),
    ] {
        let Some(place) = Strange::mount(scene.folder(name), manners) else { return };
        let run = scene.sync([text(&source), text(&place.folder)]).expect(1);
        assert!(run.event("failed").to_string().contains(words), "{run}");
        assert!(run.events_of("progress").is_empty() && run.events_of("planned").is_empty(), "{run}");
        assert_eq!(files(&place.folder), [] as [PathBuf; 0], "{run}");
        // And as soon as it can, it does.
        place.behave(Manners::good());
        scene.sync([text(&source), text(&place.folder)]).expect(0);
        scene.goldwire(["disk", "compare", text(&source), text(&place.folder.join("golden.raw"))]).expect(0);
    }
}

/// Half a key was left behind, and stood in the way of the next try.
#[test]
fn a_full_disk_leaves_no_half_of_a_secret() {
    let scene = Scene::new();
    // Nothing, and one page for the first file of two.
    for (name, room) in [("full", 0), ("page", 4096)] {
        let Some(place) = Strange::mount(scene.folder(name), Manners { capacity: room, ..Manners::good() })
        else {
            return;
        };
        let [key, secret, folder] = ["key", "secret", "tls"].map(|name| place.folder.join(name));
        let commands: [&[&str]; 3] = [
            &["key", "new", text(&key)],
            &["boot", "secret", text(&secret)],
            &["boot", "certificate", text(&folder)],
        ];
        for command in commands {
            let run = scene.goldwire(command).finish();
            let is_one_file = command[1] == "secret";
            assert_eq!(run.status.success(), is_one_file && room > 0, "{run}");
            if run.status.success() {
                fs::remove_file(&secret).unwrap();
            } else {
                assert!(run.stderr.contains("No space left"), "{run}");
            }
            assert_eq!(files(&place.folder), [] as [PathBuf; 0], "{run}");
        }
        place.behave(Manners::good());
        for command in commands {
            scene.goldwire(command).expect(0);
        }
        assert_eq!(files(&place.folder).len(), 5);
    }
}

#[test]
fn a_name_that_is_too_long_is_refused_before_the_first_byte() {
    let scene = Scene::new();
    let manners = Manners { name_max: 60, ..Manners::good() };
    let Some(place) = Strange::mount(scene.folder("short"), manners) else { return };
    let source = scene.path("golden.raw");
    Guest::random(5, 4, 2).write_raw(&source);
    let name = format!("{}.raw", "x".repeat(60));
    let run = scene.sync(["--name", &name, text(&source), text(&place.folder)]).expect(1);
    assert!(run.event("failed").to_string().contains("name too long"), "{run}");
    assert!(run.events_of("progress").is_empty(), "{run}");
    assert_eq!(files(&place.folder), [] as [PathBuf; 0], "{run}");
}

/// However the file system shows our files, what is kept beside images is found and taken away again.
#[test]
fn tidying_leaves_nothing_on_any_file_system() {
    let scene = Scene::new();
    let source = scene.path("golden.raw");
    Guest::random(7, 4, 2).write_raw(&source);
    let squashing = Manners { squashes_to: Some(65534), ..Manners::good() };
    for (name, manners) in [("good", Manners::good()), ("poor", Manners::poor()), ("squashing", squashing)] {
        let Some(place) = Strange::mount(scene.folder(name), manners) else { return };
        scene.sync([text(&source), text(&place.folder)]).expect(0);
        assert!(files(&place.folder).len() > 1, "{name}: nothing is kept");
        scene.goldwire(["disk", "tidy", "--all", text(&place.folder)]).expect(0);
        assert_eq!(files(&place.folder), [place.folder.join("golden.raw")], "{name}");
        assert_eq!(fs::read_dir(&place.folder).unwrap().count(), 1, "{name}");
    }
}

/// Rounds with media that lie, unless the environment says otherwise (`GOLDWIRE_LYING_MEDIA`).
const ROUNDS: u64 = 6;

/// A medium that says that it has written and has not, has written half, or something else: what is published is right,
/// or nothing is. Few lies are found and sent again, many are told.
#[test]
fn a_medium_that_lies_is_never_believed() {
    let rounds =
        std::env::var("GOLDWIRE_LYING_MEDIA").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    let scene = Scene::new();
    let source = scene.path("golden.raw");
    Guest::random(6, 16, 12).write_raw(&source);
    let (mut mended, mut refused, mut lies) = (0, 0, 0);
    for round in 0..rounds {
        let mut random = Random(round);
        let lying = match round % 3 {
            0 => Lies { seed: round, one_in: 1 + random.below(60), most: 1 },
            1 => Lies { seed: round, one_in: 20 + random.below(200), most: u64::MAX },
            _ => Lies { seed: round, one_in: 1 + random.below(4), most: u64::MAX },
        };
        let manners = Manners { lies: Some(lying), ..Manners::good() };
        let Some(place) = Strange::mount(scene.folder("medium"), manners) else { return };
        let name = random.pick(&["a.raw", "a.vhd", "a.qcow2"]);
        let target = place.folder.join(name);
        let run = scene.sync([text(&source), text(&target)]).finish();
        place.behave(Manners::good());
        lies += place.lies();
        if run.status.success() {
            scene.goldwire(["disk", "compare", "--read", text(&source), text(&target)]).expect(0);
            mended += u64::from(place.lies() > 0);
        } else {
            assert!(place.lies() > 0, "{run}");
            assert!(!target.exists(), "{lying:?}\n{run}");
            refused += 1;
            // On a medium that has come to its senses the same command goes on.
            scene.sync([text(&source), text(&target)]).expect(0);
            scene.goldwire(["disk", "compare", "--read", text(&source), text(&target)]).expect(0);
        }
    }
    eprintln!("{rounds} lying media, {lies} lies: {mended} mended, {refused} refused, none believed");
    assert!(mended > 0 && refused > 0, "{mended} mended, {refused} refused");
}

/// Everything below `folder` that is no folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { left.push(path) } else { all.push(path) }
        }
    }
    all
}
