use std::fs;

use super::*;
use crate::receive::work::WorkPlace;

const THERE: &str = "there.vhd";

/// Images that are there and gone with all that is kept of them, work, a killed run's lock, and a sync that runs.
fn scene() -> (tempfile::TempDir, WorkPlace) {
    let scene = tempfile::tempdir().unwrap();
    let running = WorkPlace::claim(&scene.path().join("running.vhd")).unwrap();
    fs::write(running.shown("disk"), "d").unwrap();
    let unfinished = WorkPlace::claim(&scene.path().join("unfinished.vhd")).unwrap();
    fs::write(unfinished.shown("disk"), vec![1; 8192]).unwrap();
    let around = Folder::open(scene.path()).unwrap();
    for (kept, ending) in [(Kept::Trees, "tree"), (Kept::Versions, "gwv")] {
        let own = goldwire_store::make_own(&around, kept).unwrap();
        for image in [THERE, "gone.vhd", "running.vhd"] {
            own.create_new(format!("{image}.{ending}"), 0o600).unwrap();
        }
    }
    fs::write(scene.path().join(THERE), "").unwrap();
    // What a killed run had: its lock, its work, and what it had tried with.
    let killed = WorkPlace::claim(&scene.path().join("killed.vhd")).unwrap();
    fs::write(killed.shown("state"), "").unwrap();
    drop(killed);
    for left in [LOCK, ".killed.vhd.goldwire-probe"] {
        fs::write(scene.path().join(left), "").unwrap();
    }
    for scratch in SCRATCH {
        match scratch.starts_with(".goldwire-") {
            true => fs::create_dir(scene.path().join(scratch)).unwrap(),
            false => fs::write(scene.path().join(scratch), "").unwrap(),
        }
    }
    (scene, running)
}

fn names(scene: &Path, left: &[Left]) -> Vec<String> {
    let mut names: Vec<_> =
        left.iter().map(|left| left.path.strip_prefix(scene).unwrap().display().to_string()).collect();
    names.sort();
    names
}

const LOCK: &str = ".killed.vhd.goldwire-lock";

const LEFTOVERS: [&str; 6] = [
    ".goldwire/trees/gone.vhd.tree",
    ".goldwire/versions/gone.vhd.gwv",
    ".goldwire/work/killed.vhd",
    ".goldwire/work/unfinished.vhd",
    LOCK,
    ".killed.vhd.goldwire-probe",
];

/// What was in the making when a process was killed, or is.
const SCRATCH: [&str; 3] =
    [".goldwire/trees/7-0.tmp", ".goldwire/versions/.goldwire-new-7-0.tmp", ".goldwire-probe-7-0.tmp"];

/// Tidies, and nothing may fail.
fn tidied(folder: &Path, extent: Extent, tidying: Tidying) -> Vec<Left> {
    let Tidied { left, failure, .. } = tidy(folder, extent, tidying);
    assert_eq!(failure, None);
    left
}

#[test]
fn what_nobody_needs_goes_and_what_is_in_use_stays() {
    let (scene, running) = scene();
    let looked = tidied(scene.path(), Extent::Leftovers, Tidying::Look);
    assert_eq!(names(scene.path(), &looked), LEFTOVERS);
    let work = looked.iter().find(|left| left.what == Leftover::Work).unwrap();
    assert!(work.bytes >= 8192);
    let removed = tidied(scene.path(), Extent::Leftovers, Tidying::Remove);
    assert_eq!(removed, looked);
    assert_eq!(tidied(scene.path(), Extent::Leftovers, Tidying::Look), []);
    assert!(LEFTOVERS.iter().all(|name| !scene.path().join(name).exists()));
    assert!(scene.path().join(".goldwire/trees/there.vhd.tree").is_file());
    assert!(running.has("disk"));
}

#[test]
fn everything_goes_but_what_a_sync_holds_and_then_nothing_is_left() {
    let (scene, running) = scene();
    for tidying in [Tidying::Look, Tidying::Remove] {
        let spared = tidy(scene.path(), Extent::Everything, tidying).spared;
        assert!(spared.iter().all(|spared| spared.reason == Reason::Held), "{spared:?}");
        let spared: Vec<_> =
            spared.iter().map(|spared| spared.path.strip_prefix(scene.path()).unwrap()).collect();
        let held = [
            ".running.vhd.goldwire-lock",
            ".goldwire/work/running.vhd",
            ".goldwire/trees/running.vhd.tree",
            ".goldwire/versions/running.vhd.gwv",
        ];
        assert_eq!(spared, held.map(Path::new), "{tidying:?}");
    }
    assert!(running.has("disk") && scene.path().join(".goldwire/trees/running.vhd.tree").is_file());
    drop(running);
    tidied(scene.path(), Extent::Everything, Tidying::Remove);
    let left: Vec<_> = fs::read_dir(scene.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [THERE]);
}

#[test]
fn another_users_is_left_alone() {
    let (scene, running) = scene();
    drop(running);
    if std::os::unix::fs::chown(scene.path().join(".goldwire"), Some(4711), None).is_err() {
        return goldwire_stdx::testing::excuse(goldwire_stdx::testing::Excuse::NotRoot);
    }
    let Tidied { left: removed, spared, failure } = tidy(scene.path(), Extent::Everything, Tidying::Remove);
    assert_eq!(failure, None);
    let (path, reason) = (scene.path().join(".goldwire"), Reason::OtherUser(4711));
    assert_eq!(spared, [Spared { path, what: Leftover::Folder, reason }]);
    let beside = [".goldwire-probe-7-0.tmp", LOCK, ".killed.vhd.goldwire-probe"];
    assert_eq!(names(scene.path(), &removed), beside);
    assert!(scene.path().join(".goldwire/work/unfinished.vhd/disk").is_file());
}

/// Under a lock's name may lie what can be no lock, and under a kept image's too. Tidying ended there, and what had been
/// taken away until then was not said.
#[test]
fn what_cannot_be_taken_away_is_said_and_keeps_nothing_else_from_it() {
    let (scene, running) = scene();
    drop(running);
    fs::create_dir(scene.path().join(".unfinished.vhd.goldwire-lock")).unwrap();
    std::os::unix::fs::symlink("nowhere", scene.path().join(".linked.vhd.goldwire-lock")).unwrap();
    for tidying in [Tidying::Look, Tidying::Remove] {
        let Tidied { left, failure, .. } = tidy(scene.path(), Extent::Leftovers, tidying);
        let failure = failure.unwrap().to_string();
        assert!(failure.contains(".unfinished.vhd.goldwire-lock"), "{failure}");
        let names = names(scene.path(), &left);
        let is_said = |name: &&str| names.iter().any(|said| said == name);
        let kept: Vec<_> = LEFTOVERS.into_iter().filter(|name| !is_said(name)).collect();
        assert_eq!(kept, [".goldwire/work/unfinished.vhd"], "{tidying:?}");
        assert!(
            !names.iter().any(|name| name.contains("linked") || name.contains(".unfinished")),
            "{names:?}"
        );
    }
    assert!(scene.path().join(".goldwire/work/unfinished.vhd/disk").is_file());
    assert!(!scene.path().join(LOCK).exists());
    let absent = tidy(&scene.path().join("absent"), Extent::Leftovers, Tidying::Look);
    assert!(absent.left.is_empty() && absent.failure.is_some());
}

/// The image was asked for before it was held. A sync that published in between lost its descriptor and its digests.
#[test]
fn what_is_published_while_its_image_is_waited_for_stays() {
    let (scene, _running) = scene();
    let around = Folder::open(scene.path()).unwrap();
    let publish_first = |image: &OsStr| {
        if image == "gone.vhd" {
            fs::write(scene.path().join(image), "").unwrap();
        }
        hold(scene.path(), image, Tidying::Remove)
    };
    let Tidied { left, failure, .. } = tidy_by(&around, Extent::Leftovers, Tidying::Remove, &publish_first);
    assert_eq!(failure, None);
    assert!(!names(scene.path(), &left).iter().any(|name| name.contains("gone.vhd")), "{left:?}");
    for kept in ["trees/gone.vhd.tree", "versions/gone.vhd.gwv"] {
        assert!(scene.path().join(".goldwire").join(kept).is_file(), "{kept}");
    }
}

/// In a folder where nobody removes what is another's, his lock is held and let go, and stays.
#[test]
fn another_users_lock_that_stays_is_not_said_to_be_gone() {
    let scene = tempfile::tempdir().unwrap();
    fs::write(scene.path().join(LOCK), "").unwrap();
    let around = Folder::open(scene.path()).unwrap();
    let removes_nothing = |_: &OsStr| Ok(Some(None));
    let Tidied { left, .. } = tidy_by(&around, Extent::Leftovers, Tidying::Remove, &removes_nothing);
    assert_eq!(left, []);
}

/// It said nothing and succeeded, as if nothing had been left.
#[test]
fn goldwires_own_folder_is_not_tidied_itself() {
    let (scene, _running) = scene();
    for name in [".goldwire", ".goldwire/work"] {
        let Tidied { left, failure, .. } =
            tidy(&scene.path().join(name), Extent::Everything, Tidying::Remove);
        assert_eq!(left, []);
        let failure = failure.unwrap().to_string();
        assert!(failure.contains("goldwire's own folder") && failure.contains("hint: name"), "{failure}");
    }
    assert!(scene.path().join(".goldwire/work/unfinished.vhd/disk").is_file());
}
