//! A container file keeps the promise of a destination, in every format and over several runs.

use goldwire_store::Progress;

use super::*;
use crate::receive::resolve::resolve;
use crate::testing::{Disk, content};

fn job(disk: &Disk, folder: &Path, format: WireFormat) -> TargetJob {
    TargetJob {
        path: folder.join("a").to_str().unwrap().to_owned(),
        name: String::new(),
        is_name_given: false,
        must_be_store: false,
        version: disk.version.encode(None).unwrap(),
        required: None,
        format: Some(format),
        source_format: format,
        seeds: Vec::new(),
        find_seeds: false,
        replace: false,
        dry_run: false,
        mode: None,
        source_mode: 0o600,
        owner: None,
        wait_seconds: 0,
        window_bytes: 0,
        threads: None,
    }
}

fn claimed(disk: &Disk, job: &TargetJob) -> ContainerFile {
    let target = resolve(job, &disk.version.root).unwrap();
    let shape = TreeGeometry::new(disk.version.size).unwrap();
    let mut container = ContainerFile::claim(target, shape, &disk.version, job).unwrap();
    container.begin().unwrap();
    container
}

/// What a layout found, and how many bytes it told of.
fn lay_out(container: &ContainerFile, tree: &TreeFile, done: &Bitmap) -> (LaidOut, u64) {
    let (stop, progress) = (false.into(), Progress::default());
    let options = BuildOptions { threads: None, stop: &stop, progress: &progress };
    let laid_out = container.lay_out(tree, done, &options).unwrap();
    (laid_out, progress.bytes_done.into_inner())
}

/// The promise of a [`Destination`]: what is written at a place is there, what is written over it too, the journal
/// names it in the next run, and reading back finds each chunk that is not what it should be.
#[test]
fn chunks_are_where_they_were_put_in_every_container_and_every_run() {
    // The last chunk is cut short.
    let disk = Disk::new(content(21, 300, 1024));
    let tree = disk.tree();
    let chunk = |index: u64| {
        let mut bytes = vec![0; CHUNK_SIZE];
        let start = index as usize * CHUNK_SIZE;
        let end = (start + CHUNK_SIZE).min(disk.content.len());
        bytes[..end - start].copy_from_slice(&disk.content[start..end]);
        bytes
    };
    let used: Vec<u64> = (0..300).filter(|index| !tree.id(0, *index).unwrap().is_zero()).collect();
    for format in [WireFormat::Raw, WireFormat::VhdDynamic, WireFormat::VhdFixed, WireFormat::Qcow2] {
        let folder = tempfile::tempdir().unwrap();
        let job = job(&disk, folder.path(), format);
        let first = claimed(&disk, &job);
        assert!(first.write(0, &chunk(0)).is_err(), "before the layout");
        let done = Bitmap::new(300);
        let (laid_out, told) = lay_out(&first, &tree, &done);
        assert_eq!(laid_out, LaidOut::default());
        // Each chunk's bytes are told as they get their place; the last is short.
        let bytes = |index: u64| (disk.content.len() - index as usize * CHUNK_SIZE).min(CHUNK_SIZE) as u64;
        assert_eq!(told, used.iter().map(|index| bytes(*index)).sum::<u64>(), "{format:?}");
        let layout = first.allocated_bytes();
        let (half, rest) = used.split_at(used.len() / 2);
        for index in half {
            first.write(*index, &chunk(*index)).unwrap();
        }
        let runs: Vec<_> = half.iter().map(|index| (*index, 1)).collect();
        first.journal(&runs).unwrap();
        assert!(first.allocated_bytes() >= layout);
        drop(first);

        let second = claimed(&disk, &job);
        let done = Bitmap::new(300);
        let (laid_out, told) = lay_out(&second, &tree, &done);
        assert_eq!(told, 0, "it has its place");
        assert_eq!(laid_out.resumed, half.len() as u64, "{format:?}");
        assert!(laid_out.is_continued && laid_out.notice.is_none());
        assert!(half.iter().all(|index| done.get(*index)) && !rest.iter().any(|index| done.get(*index)));
        let mut found = vec![7; CHUNK_SIZE];
        for index in half {
            second.read(*index, &mut found).unwrap();
            assert!(found == chunk(*index), "{format:?} {index}");
        }
        for index in rest {
            second.write(*index, &chunk(*index)).unwrap();
        }
        let (stop, progress) = (false.into(), Progress::default());
        let options = BuildOptions { threads: None, stop: &stop, progress: &progress };
        let wrong = |container: &ContainerFile| {
            let read = container.read_back(&options).unwrap();
            let mut wrong = Vec::new();
            goldwire_store::for_each_difference(&tree, &read.tree, |index| wrong.push(index)).unwrap();
            assert_eq!(wrong.is_empty(), read.root == disk.version.root);
            wrong
        };
        assert_eq!(wrong(&second), [0; 0], "{format:?}");
        let bad = [used[1], *used.last().unwrap()];
        for index in bad {
            second.overwrite(index, &[0; CHUNK_SIZE]).unwrap();
        }
        assert_eq!(wrong(&second), bad, "{format:?}");
        for index in bad {
            second.overwrite(index, &chunk(index)).unwrap();
        }
        assert_eq!(wrong(&second), [0; 0], "{format:?}");
        second.publish().unwrap();
        drop(second);
        assert!(!folder.path().join(".goldwire/work").exists());
        assert!(folder.path().join("a").is_file());
    }
}

#[test]
fn what_cannot_be_continued_begins_anew_with_a_word_and_another_version_becomes_a_seed() {
    let disk = Disk::new(content(22, 40, 0));
    let folder = tempfile::tempdir().unwrap();
    let job = job(&disk, folder.path(), WireFormat::VhdDynamic);
    let first = claimed(&disk, &job);
    let (tree, is_whole) = first.tree().unwrap();
    assert!(!is_whole && first.previous().is_none());
    let whole = disk.tree();
    for level in 0..whole.shape().levels() {
        let ids = whole.ids(level, 0..whole.shape().count(level)).unwrap();
        tree.set_ids(level, 0, &ids).unwrap();
    }
    tree.sync().unwrap();
    lay_out(&first, &tree, &Bitmap::new(40));
    first.journal(&[(3, 2)]).unwrap();
    let work = folder.path().join(".goldwire/work/a");
    drop(first);

    let second = claimed(&disk, &job);
    assert!(second.tree().unwrap().1, "the tree is whole");
    std::fs::write(work.join("disk"), "damaged").unwrap();
    let done = Bitmap::new(40);
    let (laid_out, _) = lay_out(&second, &tree, &done);
    assert!(laid_out.notice.unwrap().contains("begins anew"));
    assert_eq!((laid_out.resumed, done.get(3)), (0, false), "nothing of it counts");
    second.journal(&[(5, 1)]).unwrap();
    drop(second);

    let other = Disk::new(content(23, 40, 0));
    let third = claimed(&other, &TargetJob { version: other.version.encode(None).unwrap(), ..job });
    let previous = third.previous().unwrap();
    assert_eq!(previous.chunk_id(5), Some(disk.tree().id(0, 5).unwrap()));
    assert!(previous.chunk_id(6).is_none(), "only what is durable");
}

/// A raw file that was cut opens as a smaller disk: every run ended at its first write past that, for ever.
#[test]
fn work_that_was_cut_begins_anew_in_every_format() {
    let disk = Disk::new(content(25, 40, 0));
    for format in [WireFormat::Raw, WireFormat::VhdDynamic, WireFormat::VhdFixed, WireFormat::Qcow2] {
        for length in [0, 100, 1 << 20] {
            let folder = tempfile::tempdir().unwrap();
            let job = job(&disk, folder.path(), format);
            lay_out(&claimed(&disk, &job), &disk.tree(), &Bitmap::new(40));
            let work = folder.path().join(".goldwire/work/a/disk");
            let file = std::fs::OpenOptions::new().write(true).open(&work).unwrap();
            file.set_len(length).unwrap();
            let next = claimed(&disk, &job);
            let (laid_out, _) = lay_out(&next, &disk.tree(), &Bitmap::new(40));
            assert!(laid_out.notice.unwrap().contains("begins anew"), "{format:?} of {length}");
            next.write(39, &[1; CHUNK_SIZE]).unwrap();
        }
    }
}

#[test]
fn a_version_that_does_not_fit_is_refused_before_the_first_byte() {
    let disk = Disk::new(content(24, 4, 0));
    let folder = tempfile::tempdir().unwrap();
    let job = job(&disk, folder.path(), WireFormat::Raw);
    let target = resolve(&job, &disk.version.root).unwrap();
    let free = free_bytes(&target.path).unwrap();
    let version = |chunks_used: u64| Version { chunks_used, size: 1 << 45, ..disk.version.clone() };
    let too_many = free / CHUNK_SIZE as u64 + 1;
    let refused = check_space(&target, &version(too_many), 0, Holes::Kept).unwrap_err();
    assert_eq!(refused.kind, FailureKind::Space);
    // What is there already does not count again.
    check_space(&target, &version(too_many), too_many * 2 * CHUNK_SIZE as u64, Holes::Kept).unwrap();
    check_space(&target, &version(1), 0, Holes::Kept).unwrap();
    // Where holes are filled a raw file takes its whole length, and a container that has none does not.
    let refused = check_space(&target, &version(1), 0, Holes::Filled).unwrap_err();
    assert!(refused.to_string().contains("keeps no holes"), "{refused}");
    let qcow2 = TargetFile { format: WireFormat::Qcow2, ..target.clone() };
    check_space(&qcow2, &version(1), 0, Holes::Filled).unwrap();
    // 64 KiB a chunk, its share of the tree, and the tables of a container with any.
    let needed = |format, chunks| bytes_needed(&version(chunks), format, Holes::Kept);
    assert!((1000 << 16..1010 << 16).contains(&needed(WireFormat::Raw, 1000)));
    let tables = needed(WireFormat::Qcow2, 1000) - needed(WireFormat::Raw, 1000);
    assert_eq!(tables, 1000 * 4096 + (1 << 20));
    assert_eq!(needed(WireFormat::Raw, u64::MAX), u64::MAX);
}

/// On a file system so full that not even the lock could be made.
#[test]
fn where_nothing_can_be_made_it_is_said_what_the_version_needs() {
    let disk = Disk::new(content(25, 4, 0));
    let folder = tempfile::tempdir().unwrap();
    let job = job(&disk, folder.path(), WireFormat::Raw);
    let target = resolve(&job, &disk.version.root).unwrap();
    let many = free_bytes(&target.path).unwrap() / CHUNK_SIZE as u64 + 1;
    let version = |chunks_used: u64| Version { chunks_used, size: 1 << 45, ..disk.version.clone() };
    let full = Failure::io("lock a", &rustix::io::Errno::NOSPC.into());
    let said = or_what_it_needs(full.clone(), &target, &version(many));
    assert!(said.kind == FailureKind::Space && said.to_string().contains("free there"), "{said}");
    // It is full of something else than bytes, or the failure is another one.
    assert_eq!(or_what_it_needs(full.clone(), &target, &version(1)), full);
    let busy = Failure::new(FailureKind::Busy, "busy");
    assert_eq!(or_what_it_needs(busy.clone(), &target, &version(many)), busy);
    // What an unfinished attempt occupies does not count again, and only that of this version.
    let place = WorkPlace::claim(&target.path).unwrap();
    std::fs::write(place.shown("disk"), vec![1; 1 << 20]).unwrap();
    let state = state_of(&version(many), target.format);
    assert_eq!(WorkPlace::occupied(&target.path, &state), 0);
    place.record(&state).unwrap();
    assert!(WorkPlace::occupied(&target.path, &state) >= 1 << 20);
    assert_eq!(WorkPlace::occupied(&target.path, &State { size: 1, ..state }), 0);
}

/// Of the same version the chunks count as kept; another version's attempt is a seed, as it will be for the run.
#[test]
fn a_plan_finds_what_an_unfinished_attempt_kept() {
    let (disk, other) = (Disk::new(content(41, 8, 0)), Disk::new(content(42, 8, 0)));
    let folder = tempfile::tempdir().unwrap();
    let wanted = job(&disk, folder.path(), WireFormat::Raw);
    let target = resolve(&wanted, &disk.version.root).unwrap();
    let find = |disk: &Disk| {
        let (done, kept, seed) = find_unfinished(&target, &disk.version);
        ((0..8).filter(|index| done.get(*index)).count() as u64, kept, seed.is_some())
    };
    assert_eq!(find(&disk), (0, 0, false));
    let container = claimed(&disk, &wanted);
    let (tree, is_known) = container.tree().unwrap();
    assert!(!is_known);
    for level in 0..tree.shape().levels() {
        let all = 0..tree.shape().count(level);
        tree.set_ids(level, 0, &disk.tree().ids(level, all).unwrap()).unwrap();
    }
    tree.sync().unwrap();
    lay_out(&container, &tree, &Bitmap::new(8));
    assert_eq!(find(&disk), (0, 0, false), "nothing has arrived");
    container.write(0, &disk.content[..CHUNK_SIZE]).unwrap();
    container.journal(&[(0, 1)]).unwrap();
    drop(container);
    assert_eq!(find(&disk), (1, 1, false));
    assert_eq!(find(&other), (0, 0, true));
    // A container that was cut is begun anew, and so nothing is kept.
    let file = std::fs::File::options().write(true).open(folder.path().join(".goldwire/work/a/disk"));
    file.unwrap().set_len(4096).unwrap();
    assert_eq!(find(&disk), (0, 0, false));
}

#[test]
fn what_keeps_a_file_from_being_replaced_is_said_with_what_ends_it() {
    let path = Path::new("/images/a.vhd");
    for (attribute, hint) in [
        (StatxAttributes::IMMUTABLE, "chattr -i /images/a.vhd"),
        (StatxAttributes::APPEND, "chattr -a /images/a.vhd"),
        (StatxAttributes::MOUNT_ROOT, "umount /images/a.vhd"),
    ] {
        let refused = check_replaceable(path, attribute).unwrap_err();
        assert!(refused.hints[0].contains(hint), "{refused}");
    }
    check_replaceable(path, StatxAttributes::COMPRESSED | StatxAttributes::VERITY).unwrap();
    assert!(attributes_of(Path::new("/")).contains(StatxAttributes::MOUNT_ROOT));
    assert!(attributes_of(Path::new("/no such file")).is_empty());
}

#[test]
fn the_sticky_bit_keeps_a_file_for_its_owner_and_the_folders() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.raw");
    let owner = fs::metadata(folder.path()).unwrap().uid();
    let mode = |mode| fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o1777);
    check_sticky(&path, owner + 1, false).unwrap();
    fs::write(&path, "a").unwrap();
    let refused = check_sticky(&path, owner + 1, false).unwrap_err();
    assert!(refused.to_string().contains("has the sticky bit"), "{refused}");
    assert!(!refused.hints.is_empty());
    check_sticky(&path, owner, false).unwrap();
    check_sticky(&path, owner + 1, true).unwrap();
    mode(0o777);
    check_sticky(&path, owner + 1, false).unwrap();
}

/// Nobody may write to what is mounted read-only or immutable, root included.
#[test]
fn who_may_not_write_is_told_what_helps() {
    let none = StatxAttributes::empty();
    for (error, attributes, says) in [
        (Errno::ROFS, none, "mount the file system"),
        (Errno::PERM, StatxAttributes::IMMUTABLE, "chattr -i '/a b'"),
        (Errno::ACCESS, none, "as somebody who may write"),
    ] {
        let hint = how_to_write(Path::new("/a b"), error, attributes);
        assert!(hint.contains(says), "{hint}");
    }
}
