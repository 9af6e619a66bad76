//! Whole receptions into real folders: the driver with its threads, over a connection in memory to a real source.

mod stores;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use goldwire_disk::{Format, OpenOptions};
use goldwire_stdx::Stop;
use goldwire_store::{SecretKey, Store, Version, keep_beside};
use rustix::fs::IFlags;

use super::{Input, receive};
use crate::connection::Connection;
use crate::failure::Result;
use crate::source::{LocalServer, Pace, Serving, SharedServer};
use crate::testing::{Disk, Random, change, content, pipe};
use crate::wire::{
    Event, FailureKind, Kind, Outcome, Phase, Plan, Request, RequiredSignature, TargetJob, WireFormat,
};

/// What a reception came to.
struct Run {
    outcome: Result<Outcome>,
    events: Vec<Event>,
}

impl Run {
    fn plan(&self) -> &Plan {
        let plan = self.events.iter().find_map(|event| match event {
            Event::Planned(plan) => Some(plan),
            _ => None,
        });
        plan.unwrap()
    }

    #[track_caller]
    fn refused(&self) -> (FailureKind, String) {
        let failure = self.outcome.as_ref().unwrap_err();
        (failure.kind, failure.to_string())
    }
}

/// A source of `disk` at the other end of a connection that is cut after so many bytes from it.
fn run_cut(disk: &Disk, job: &TargetJob, cut: u64) -> Run {
    run_told(disk, job, cut, |_, _| ())
}

/// [`run_cut`], with a source that first does something of its own with each request and what the target has told since.
fn run_told(
    disk: &Disk,
    job: &TargetJob,
    cut: u64,
    before: impl Fn(Request, &Receiver<Event>) + Send + 'static,
) -> Run {
    let (told, tells) = unbounded::<Event>();
    let (from_target, at_source) = pipe(1, 1 << 16, u64::MAX);
    let (from_source, at_target) = pipe(2, 1 << 16, cut);
    let local = LocalServer::start(disk.image(), disk.tree(), Some(1), Arc::new(Pace::default()), Vec::new());
    let server = Arc::new(SharedServer::new(Arc::new(local.unwrap()), 0));
    let (connection_in, connection_out) = unbounded::<Connection>();
    let mut serving = None;
    let source = Connection::start(at_source, from_source, Arc::default(), move |frame| {
        if let Ok(Some(frame)) = frame {
            let serving = serving.get_or_insert_with(|| {
                Serving::new(Arc::clone(&server) as Arc<_>, connection_out.recv().unwrap())
            });
            if frame.kind == Kind::Request {
                before(frame.message("request").unwrap(), &tells);
            }
            serving.take(&frame).unwrap();
        }
    });
    connection_in.send(source.unwrap()).unwrap();
    let (inputs_in, inputs) = unbounded();
    let heard = inputs_in.clone();
    let target = Connection::start(at_target, from_target, Arc::default(), move |frame| {
        let _ = heard.send(match frame {
            Ok(Some(frame)) if matches!(frame.kind, Kind::Answer | Kind::Refusal) => Input::Frame(frame),
            Ok(_) => Input::Ended(None),
            Err(error) => Input::Ended(Some(error)),
        });
    });
    let events: Mutex<Vec<Event>> = Mutex::default();
    let emit = |event: Event| {
        let _ = told.send(event.clone());
        events.lock().unwrap().push(event);
    };
    let outcome = receive(job, target.unwrap(), &inputs, &inputs_in, &emit, &Stop::new());
    Run { outcome, events: events.into_inner().unwrap() }
}

fn run(disk: &Disk, job: &TargetJob) -> Run {
    run_cut(disk, job, u64::MAX)
}

fn job(disk: &Disk, path: &Path) -> TargetJob {
    TargetJob {
        path: path.to_str().unwrap().to_owned(),
        name: "win11.raw".into(),
        is_name_given: false,
        must_be_store: false,
        version: disk.version.encode(None).unwrap(),
        required: None,
        format: None,
        source_format: WireFormat::Raw,
        seeds: Vec::new(),
        find_seeds: true,
        replace: false,
        dry_run: false,
        mode: None,
        source_mode: 0o640,
        owner: None,
        wait_seconds: 0,
        window_bytes: 4 << 20,
        threads: Some(2),
    }
}

/// What a guest sees in the image at `path`, and its container.
fn guest(path: &Path) -> (Vec<u8>, Format) {
    let image = goldwire_disk::open(path, &OpenOptions::default()).unwrap();
    let mut bytes = vec![0; image.device.size() as usize];
    image.device.read_at(&mut bytes, 0).unwrap();
    (bytes, image.info.format)
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| !name.starts_with(".goldwire"));
    names.sort();
    names
}

#[test]
fn a_disk_arrives_in_every_container_with_its_mode_and_time_and_nothing_else() {
    let disk = Disk::new(content(1, 40, 0));
    for (name, format, expected) in [
        ("a.raw", None, Format::Raw),
        ("b.vhd", None, Format::VhdDynamic),
        ("c.vhd", Some(WireFormat::VhdFixed), Format::VhdFixed),
        ("d.qcow2", None, Format::Qcow2),
        ("e", Some(WireFormat::Qcow2), Format::Qcow2),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let run = run(&disk, &TargetJob { format, ..job(&disk, &path) });
        let outcome = run.outcome.unwrap();
        assert_eq!((outcome.root, outcome.already_there), (disk.version.root.0, false), "{name}");
        assert_eq!(outcome.path, path.display().to_string());
        assert!(guest(&path) == (disk.content.clone(), expected), "{name}");
        assert_eq!(files(folder.path()), [name]);
        let data = fs::metadata(&path).unwrap();
        assert_eq!((data.mode() & 0o777, data.mtime()), (0o640, disk.version.created), "{name}");
        let counters = outcome.counters;
        let used = disk.version.chunks_used;
        assert_eq!(
            (counters.chunks_total, counters.chunks_done, counters.chunks_received),
            (used, used, used)
        );
        assert_eq!(
            (counters.blocks_received, counters.blocks_found, counters.chunks_seeded),
            (used * 16, 0, 0)
        );
        assert!(counters.wire_in > used * 60_000 && counters.wire_out > 0);
        let phases: Vec<Phase> = run
            .events
            .iter()
            .filter_map(|event| match event {
                Event::Phase(phase) => Some(*phase),
                _ => None,
            })
            .collect();
        assert_eq!(phases, [Phase::Comparing, Phase::Transferring, Phase::Verifying, Phase::Publishing]);
        // The same again: nothing to do.
        let again = super::tests::run(&disk, &TargetJob { format, ..job(&disk, &path) }).outcome.unwrap();
        assert!(again.already_there, "{name}");
    }
}

#[test]
fn a_folder_keeps_the_name_and_a_uuid_is_of_content_and_folder() {
    let disk = Disk::new(content(2, 4, 0));
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    run(&disk, &job(&disk, here.path())).outcome.unwrap();
    assert_eq!(files(here.path()), ["win11.raw"]);
    let named =
        |folder: &Path| TargetJob { name: "{uuid}.raw".into(), is_name_given: true, ..job(&disk, folder) };
    let path = |folder: &Path| PathBuf::from(run(&disk, &named(folder)).outcome.unwrap().path);
    assert_ne!(path(here.path()).file_name(), path(there.path()).file_name());
    assert_eq!(files(there.path()).len(), 1);
    path(there.path());
    assert_eq!(files(there.path()).len(), 1, "the same in every run");
}

#[test]
fn a_cut_after_any_byte_loses_nothing_that_was_durable() {
    let disk = Disk::new(content(3, 300, 1024));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhd");
    let (mut kept, mut planned, mut most_planned) = (0, 0, 0);
    let mut cut = 100;
    let last = loop {
        let run = run_cut(&disk, &TargetJob { find_seeds: false, ..job(&disk, &path) }, cut);
        if run.outcome.is_ok() {
            break run;
        }
        assert_eq!(run.refused().0, FailureKind::Disconnected);
        assert!(!path.exists());
        if run.events.iter().any(|event| matches!(event, Event::Planned(_))) {
            let plan = run.plan();
            assert!(plan.chunks_resumed >= kept.max(planned), "{cut}");
            assert_eq!(plan.chunks_resumed + plan.chunks_missing, disk.version.chunks_used);
            kept = plan.chunks_resumed;
        }
        // As if it had been killed before it could write the journal: what is there is found by its digests.
        let journal = folder.path().join(".goldwire/work/a.vhd/journal");
        if cut % 2 == 0 && journal.exists() {
            fs::write(journal, "").unwrap();
        }
        // A plan tells what the journal names, and changes nothing of it.
        let dry_job = TargetJob { find_seeds: false, dry_run: true, ..job(&disk, &path) };
        let dry = run_cut(&disk, &dry_job, u64::MAX);
        let plan = dry.plan();
        assert_eq!(plan.chunks_resumed + plan.chunks_missing, disk.version.chunks_used);
        planned = plan.chunks_resumed;
        most_planned = most_planned.max(planned);
        // Smaller steps in the beginning, where the tree is walked.
        cut = cut * 3 / 2;
    };
    assert!(most_planned > 0 && kept > 0 && last.plan().chunks_resumed >= kept);
    assert!(guest(&path).0 == disk.content);
}

#[test]
fn another_version_is_replaced_only_on_request_and_is_the_seed() {
    let old = Disk::new(content(4, 300, 0));
    let mut bytes = old.content.clone();
    change(&mut bytes, &mut Random::new(4), 3);
    let new = Disk::new(bytes);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.raw");
    run(&old, &job(&old, &path)).outcome.unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
    let refused = run(&new, &job(&new, &path)).refused();
    assert_eq!(refused.0, FailureKind::Exists);
    assert!(refused.1.contains("--replace"), "{}", refused.1);
    assert!(guest(&path).0 == old.content);
    let run = run(&new, &TargetJob { replace: true, ..job(&new, &path) });
    let counters = run.outcome.unwrap().counters;
    assert!(guest(&path).0 == new.content);
    assert!(counters.chunks_seeded > 0 && counters.blocks_found > 0, "{counters:?}");
    assert!(counters.wire_in < 300_000, "{counters:?}");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o604, "as the replaced file had it");
    assert_eq!(files(folder.path()), ["a.raw"]);
}

/// Whoever replaces a disk hears what is lost with it.
#[test]
fn a_change_of_size_is_told_and_an_equal_disk_is_not() {
    let notices = |run: &Run| -> Vec<String> {
        let texts = run.events.iter().filter_map(|event| match event {
            Event::Notice(text) => Some(text.clone()),
            _ => None,
        });
        texts.collect()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.raw");
    let put = |disk: &Disk| run(disk, &TargetJob { replace: true, ..job(disk, &path) });
    let full = |chunks: usize, used: usize| {
        let mut bytes = vec![0; chunks << 16];
        bytes[..used << 16].fill(used as u8);
        Disk::new(bytes)
    };
    for (disk, expected) in [
        (full(40, 20), None),
        (full(40, 10), None),
        (full(40, 4), Some("it holds 640.0 KiB, and the new one only 256.0 KiB")),
        (full(41, 4), Some("a disk of 2621440 bytes, and the new one has 2686976")),
        (full(40, 30), Some("a disk of 2686976 bytes")),
    ] {
        let run = put(&disk);
        let said = notices(&run);
        run.outcome.unwrap();
        assert_eq!(said.len(), usize::from(expected.is_some()), "{said:?}");
        assert!(expected.is_none_or(|expected| said[0].contains(expected)), "{said:?}");
    }
    let full = full(40, 30);
    fs::write(&path, "").unwrap();
    let run = put(&full);
    assert!(notices(&run)[0].contains("not read as a disk"), "{:?}", notices(&run));
    run.outcome.unwrap();
}

/// "Already there" does not override what was asked for.
#[test]
fn what_was_asked_for_is_done_or_refused_even_if_the_content_is_there() {
    let disk = Disk::new(content(5, 40, 0));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.vhd");
    run(&disk, &job(&disk, &path)).outcome.unwrap();
    let fixed = TargetJob { format: Some(WireFormat::VhdFixed), ..job(&disk, &path) };
    let refused = run(&disk, &fixed).refused();
    assert_eq!(refused.0, FailureKind::Exists);
    assert!(refused.1.contains("--replace"), "{}", refused.1);
    assert_eq!(guest(&path).1, Format::VhdDynamic);
    let outcome = run(&disk, &TargetJob { replace: true, ..fixed }).outcome.unwrap();
    assert!(!outcome.already_there);
    assert_eq!(outcome.counters.chunks_received, 0, "everything is at hand");
    assert!(guest(&path) == (disk.content.clone(), Format::VhdFixed));
    let moded = TargetJob { mode: Some(0o600), ..job(&disk, &path) };
    assert!(run(&disk, &moded).outcome.unwrap().already_there);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    let me = rustix::process::geteuid().as_raw();
    let given = TargetJob { owner: Some((4711, 4712)), ..job(&disk, &path) };
    let outcome = run(&disk, &given).outcome;
    let data = fs::metadata(&path).unwrap();
    match me {
        0 => assert_eq!((outcome.is_ok(), data.uid(), data.gid()), (true, 4711, 4712)),
        _ => assert!(outcome.unwrap_err().to_string().contains("set the owner of")),
    }
}

#[test]
fn a_dry_run_changes_nothing_and_fails_where_the_run_would() {
    let disk = Disk::new(content(6, 40, 0));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.raw");
    let dry = |job: TargetJob| run(&disk, &TargetJob { dry_run: true, ..job });
    let planned = dry(job(&disk, &path));
    assert_eq!(planned.plan().chunks_missing, disk.version.chunks_used);
    assert!(planned.plan().link_rate.is_some());
    planned.outcome.unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

    // Somebody else holds the target.
    let held = super::work::WorkPlace::claim(&path).unwrap();
    let busy = run(&disk, &job(&disk, &path)).refused();
    assert_eq!(dry(job(&disk, &path)).refused(), busy);
    assert_eq!(busy.0, FailureKind::Busy);
    drop(held);
    // It holds another version.
    fs::write(&path, vec![1; 4096]).unwrap();
    let exists = run(&disk, &job(&disk, &path)).refused();
    assert_eq!(dry(job(&disk, &path)).refused(), exists);
    assert!(exists.1.contains("another version"), "{}", exists.1);
    // It holds what is no disk: which version that is, nobody can say.
    fs::write(&path, "PK").unwrap();
    let no_disk = run(&disk, &job(&disk, &path)).refused();
    assert_eq!(dry(job(&disk, &path)).refused(), no_disk);
    assert!(no_disk.0 == FailureKind::Exists && no_disk.1.contains("is not read as a disk"), "{}", no_disk.1);
    // The container cannot be as large, or there is not enough space: known before anything is asked of the source.
    fs::remove_file(&path).unwrap();
    let mut huge = disk.version.clone();
    huge.size = 3 << 40;
    for (chunks_used, name, kind) in
        [(1, "large.vhd", FailureKind::Invalid), (48 << 20, "large.qcow2", FailureKind::Space)]
    {
        huge.chunks_used = chunks_used;
        let large =
            TargetJob { version: huge.encode(None).unwrap(), ..job(&disk, &folder.path().join(name)) };
        assert_eq!(dry(large).refused().0, kind);
    }
    // A VHD has whole sectors. Nothing was made for it before it was refused.
    let (odd, folder) = (Disk::new(vec![7; 1000]), tempfile::tempdir().unwrap());
    let vhd = job(&odd, &folder.path().join("odd.vhd"));
    let refused = run(&odd, &vhd).refused();
    assert_eq!(run(&odd, &TargetJob { dry_run: true, ..vhd }).refused(), refused);
    assert!(refused.0 == FailureKind::Invalid && refused.1.contains("--format"), "{refused:?}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Before the first byte, in the dry run as well: the rename that publishes would fail after the last.
#[test]
fn a_target_that_cannot_be_replaced_is_refused_before_the_first_byte() {
    if !goldwire_stdx::testing::root() {
        return;
    }
    let disk = Disk::new(content(6, 40, 0));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.raw");
    fs::write(&path, vec![1; 4096]).unwrap();
    let set = |place: &Path, flags| rustix::fs::ioctl_setflags(fs::File::open(place).unwrap(), flags);
    for (place, flag, says) in [
        (&*path, IFlags::IMMUTABLE, "is immutable"),
        (&path, IFlags::APPEND, "is append-only"),
        (folder.path(), IFlags::IMMUTABLE, "make a work folder"),
        (folder.path(), IFlags::APPEND, "is append-only"),
    ] {
        // Not every file system has them (tmpfs, overlays of old kernels).
        if set(place, flag).is_err() {
            return;
        }
        let wanted = TargetJob { replace: true, ..job(&disk, &path) };
        let done = run(&disk, &wanted);
        let planned = run(&disk, &TargetJob { dry_run: true, ..wanted });
        set(place, IFlags::empty()).unwrap();
        let refused = done.refused();
        assert!(refused.1.contains(says) && refused.1.contains("attr"), "{place:?} {flag:?}: {refused:?}");
        assert_eq!(planned.refused(), refused);
        assert_eq!(files(folder.path()), ["a.raw"]);
        assert!(!folder.path().join(".goldwire/work").exists());
    }
}

/// The target itself makes sure of what a signature promises.
#[test]
fn a_required_signature_is_required_by_the_target_and_does_not_go_back_in_time() {
    let (key, other) = (SecretKey::from_random([1; 32]), SecretKey::from_random([2; 32]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.raw");
    let version = |disk: &Disk, created| Version { created, ..disk.version.clone() };
    let (old, new) = (Disk::new(content(7, 20, 0)), Disk::new(content(8, 20, 0)));
    let signed = |disk: &Disk, created, key: Option<&SecretKey>, may_be_older| TargetJob {
        version: version(disk, created).encode(key).unwrap(),
        required: Some(RequiredSignature {
            signer: *SecretKey::from_random([1; 32]).public().as_bytes(),
            may_be_older,
        }),
        replace: true,
        ..job(disk, &path)
    };
    for key in [None, Some(&other)] {
        let refused = run(&new, &signed(&new, 100, key, false)).refused();
        assert_eq!(refused.0, FailureKind::Invalid);
        assert!(refused.1.contains("not signed by the required key"), "{}", refused.1);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    run(&new, &signed(&new, 100, Some(&key), false)).outcome.unwrap();
    let refused = run(&old, &signed(&old, 99, Some(&key), false)).refused();
    assert_eq!(refused.0, FailureKind::Exists);
    assert!(refused.1.contains("--allow-older"), "{}", refused.1);
    assert!(guest(&path).0 == new.content);
    // The same content under an older descriptor changes nothing that is kept.
    run(&new, &signed(&new, 50, Some(&key), false)).outcome.unwrap();
    let kept = goldwire_store::beside(&path, &new.version.root).unwrap().unwrap().0;
    assert_eq!(kept.created, 100);
    run(&old, &signed(&old, 99, Some(&key), true)).outcome.unwrap();
    assert!(guest(&path).0 == old.content);
    run(&new, &signed(&new, 99, Some(&key), false)).outcome.unwrap();
    // What somebody else signed says nothing about time.
    keep_beside(&path, &version(&new, 500).encode(Some(&other)).unwrap()).unwrap();
    run(&old, &signed(&old, 99, Some(&key), false)).outcome.unwrap();
    // A descriptor that was damaged is no way back.
    fs::write(folder.path().join(".goldwire/versions/a.raw.gwv"), "x").unwrap();
    assert!(run(&new, &signed(&new, 98, Some(&key), false)).outcome.is_err());
}

/// A store that requires a key keeps out what it did not sign and what is older, whatever the job says of signatures; it
/// asks for no chunk of that, in a dry run too.
#[test]
fn a_store_requires_its_key_whoever_sends() {
    let folder = tempfile::tempdir().unwrap();
    let keys = [1, 2].map(|seed| SecretKey::from_random([seed; 32]));
    let path = folder.path().join("store");
    let store = Store::init_requiring(&path, &keys[0].public()).unwrap();
    let (old, new) = (Disk::new(content(7, 20, 0)), Disk::new(content(8, 20, 0)));
    let signed = |disk: &Disk, created, key: Option<&SecretKey>| TargetJob {
        version: Version { created, ..disk.version.clone() }.encode(key).unwrap(),
        ..job(disk, &path.join("win11:test"))
    };
    let required = |signer: &SecretKey, may_be_older| {
        Some(RequiredSignature { signer: *signer.public().as_bytes(), may_be_older })
    };
    let is_empty =
        || ["work", "versions", "packs", "images"].iter().all(|name| files(&path.join(name)).is_empty());
    for key in [None, Some(&keys[1])] {
        for (dry_run, required) in
            [(true, None), (false, None), (false, key.and_then(|key| required(key, true)))]
        {
            let refused = run(&new, &TargetJob { dry_run, required, ..signed(&new, 100, key) });
            assert_eq!(refused.refused().0, FailureKind::Invalid);
            assert!(refused.refused().1.contains("takes only what"), "{}", refused.refused().1);
            assert!(refused.events.is_empty() && is_empty(), "{:?}", refused.events);
        }
    }
    run(&new, &signed(&new, 100, Some(&keys[0]))).outcome.unwrap();
    for required in [None, required(&keys[0], true)] {
        let refused = run(&old, &TargetJob { required, ..signed(&old, 99, Some(&keys[0])) }).refused();
        assert_eq!(refused.0, FailureKind::Exists);
        assert!(refused.1.contains("created later"), "{}", refused.1);
    }
    // The content that is here does not come by another signature either.
    assert!(run(&new, &signed(&new, 100, Some(&keys[1]))).outcome.is_err());
    assert!(run(&new, &signed(&new, 100, None)).outcome.is_err());
    assert!(run(&new, &signed(&new, 100, Some(&keys[0]))).outcome.unwrap().already_there);
    run(&old, &signed(&old, 101, Some(&keys[0]))).outcome.unwrap();
    assert_eq!(store.image("win11").unwrap().unwrap().versions.len(), 2);
    assert_eq!(store.find("win11:test").unwrap(), old.version.root);
}

#[test]
fn a_named_seed_must_be_one_and_what_lies_beside_is_found() {
    let old = Disk::new(content(9, 40, 0));
    let mut bytes = old.content.clone();
    change(&mut bytes, &mut Random::new(9), 2);
    let new = Disk::new(bytes);
    let folder = tempfile::tempdir().unwrap();
    run(&old, &job(&old, &folder.path().join("old.vhd"))).outcome.unwrap();
    let found = run(&new, &job(&new, &folder.path().join("new.vhd"))).outcome.unwrap();
    assert!(found.counters.chunks_seeded > 0);
    let named = |seed: &Path, name: &str| TargetJob {
        seeds: vec![seed.to_str().unwrap().to_owned()],
        find_seeds: false,
        ..job(&new, &folder.path().join(name))
    };
    let seeded = run(&new, &named(&old.path, "named.vhd")).outcome.unwrap();
    assert!(seeded.counters.chunks_seeded > 0);
    let refused = run(&new, &named(&folder.path().join("no"), "none.vhd")).refused();
    assert!(refused.1.contains("open the seed"), "{}", refused.1);
    assert!(!folder.path().join("none.vhd").exists());
}

/// The tree of a large disk takes hours on a slow line, and a target that tells nothing meanwhile is given up. This source
/// sends the rest of the tree only to a target that has told how much of it came.
#[test]
fn every_answer_of_the_walk_is_told_before_the_next() {
    let disk = Disk::new(content(31, 600, 0));
    for dry_run in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let job = TargetJob { dry_run, ..job(&disk, &folder.path().join("a.raw")) };
        let asked = std::cell::Cell::new(0);
        let run = run_told(&disk, &job, u64::MAX, move |request, tells| {
            let Request::Nodes { indices, .. } = request else { return };
            let is_told = |event: Event| matches!(event, Event::Progress(counters) if counters.nodes_received >= asked.get());
            while !is_told(tells.recv_timeout(Duration::from_secs(60)).unwrap()) {}
            asked.set(asked.get() + indices.len() as u64);
        });
        run.outcome.unwrap();
    }
}

/// A target that somebody else holds says so again and again while it waits.
#[test]
fn a_target_that_waits_says_so_until_it_is_free_or_the_time_is_over() {
    let disk = Disk::new(content(32, 3, 0));
    let folder = tempfile::tempdir().unwrap();
    let job = TargetJob { wait_seconds: 1, ..job(&disk, &folder.path().join("a.raw")) };
    let count = |run: &Run, which: fn(&Event) -> bool| run.events.iter().filter(|event| which(event)).count();
    let held = super::work::WorkPlace::claim(Path::new(&job.path)).unwrap();
    let waited = run(&disk, &job);
    assert_eq!(waited.refused().0, FailureKind::Busy);
    assert!(count(&waited, |event| *event == Event::Waiting) > 1);
    assert_eq!(count(&waited, |event| matches!(event, Event::Notice(_))), 1, "{:?}", waited.events);
    drop(held);
    let free = run(&disk, &job);
    free.outcome.as_ref().unwrap();
    assert_eq!(count(&free, |event| *event == Event::Waiting), 0);
}
