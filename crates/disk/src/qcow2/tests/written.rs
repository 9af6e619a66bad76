//! Images that we write, judged by QEMU and by a vector of bytes.

use goldwire_stdx::Hints as _;
use goldwire_stdx::testing::cases;
use proptest::prelude::*;

use super::*;
use crate::ErrorKind;
use crate::journal::without_holes;
use crate::testing::{conformance, conformance_read, conformance_read_only, discard, pattern};

fn assert_checks(path: &Path) {
    assert_eq!(check_image(path).unwrap(), []);
}

#[test]
fn keeps_the_promises_of_a_device() {
    let folder = tempfile::tempdir().unwrap();
    let count = std::cell::Cell::new(0);
    let path = |count: i32| folder.path().join(format!("{count}.qcow2"));
    conformance(|size| {
        count.set(count.get() + 1);
        create_image(&path(count.get()), size)
    });
    let expected = pattern(1, 0, 5 * MIB as usize);
    let device = create_image(&path(0), expected.len() as u64);
    device.write_at(&expected[..3 << 20], 0).unwrap();
    device.write_at(&expected[4 << 20..], 4 << 20).unwrap();
    let mut expected = expected;
    expected[3 << 20..4 << 20].fill(0);
    conformance_read(&*device, &expected);
    device.flush().unwrap();
    conformance_read_only(&*open_image(&path(0), Access::Read).unwrap().0, &expected);
    // Where nothing can be punched, tables say what reads as zero.
    without_holes(|| {
        conformance(|size| {
            count.set(count.get() + 1);
            create_image(&path(count.get()), size)
        });
    });
}

/// Whoever flushes holds the tables and waits for the medium; whoever asks for what is at hand does not wait for him.
#[test]
fn a_flush_keeps_nobody_waiting_who_asks_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let device = crate::qcow2::write::Writer::create(crate::host::HostFile::new(file, &path), MIB).unwrap();
    device.write_at(&[1; 4096], 0).unwrap();
    let held = device.state();
    assert!(!device.read_at_once(&mut [0; 4096], 0).unwrap());
    drop(held);
    if goldwire_stdx::testing::tells_at_once(folder.path()) {
        assert!(device.read_at_once(&mut [0; 4096], 0).unwrap());
    }
}

/// Between the allocation of a write and its data another thread made the clusters zero. The write is the later one then.
#[test]
fn a_write_goes_on_over_what_was_made_zero_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    let host = without_holes(|| crate::host::HostFile::new(file, &path));
    let device = crate::qcow2::write::Writer::create(host, MIB).unwrap();
    device.write_at(&noise(1, MIB as usize), 0).unwrap();
    device.write_zeroes(CLUSTER, 4 * CLUSTER).unwrap();
    device.write_allocated(&[7; 70_000], 2 * CLUSTER + 100).unwrap();
    let mut model = noise(1, MIB as usize);
    model[CLUSTER as usize..5 * CLUSTER as usize].fill(0);
    let start = 2 * CLUSTER as usize + 100;
    model[start..start + 70_000].fill(7);
    assert_holds(&device, &model);
    device.flush().unwrap();
    assert_holds(&*open_image(&path, Access::Read).unwrap().0, &model);
}

/// What is given up, as QEMU reads it: zeros, a clean image, and no more space than before.
#[test]
fn qemu_reads_what_we_give_up() {
    if !has_qemu() {
        return;
    }
    for has_holes in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.qcow2");
        let mut model = noise(1, 9 << 20);
        let mut work = || {
            let device = create_image(&path, model.len() as u64);
            device.write_at(&model[..8 << 20], 0).unwrap();
            model[8 << 20..].fill(0);
            device.flush().unwrap();
            let length = path.metadata().unwrap().len();
            for (at, length) in
                [(0, 10), (CLUSTER - 5, 2 * CLUSTER), (2 * MIB, MIB), (7 * MIB + 9, 2 * MIB - 9)]
            {
                device.write_zeroes(at, length).unwrap();
                model[at as usize..(at + length) as usize].fill(0);
            }
            discard(&*device, 4 * MIB + 77, &mut model[(4 << 20) + 77..5 << 20]);
            device.write_at(&[9; 300], 2 * MIB + 5).unwrap();
            model[(2 << 20) + 5..(2 << 20) + 305].fill(9);
            device.flush().unwrap();
            assert_eq!(path.metadata().unwrap().len(), length, "zeros took a place");
            assert_holds(&*device, &model);
        };
        if has_holes {
            work()
        } else {
            without_holes(work)
        }
        assert_clean(&path);
        assert_checks(&path);
        std::fs::write(folder.path().join("model.raw"), &model).unwrap();
        qemu_img(folder.path(), "compare -f raw -F qcow2 model.raw a.qcow2");
        if !has_holes {
            // Not written, but told: whoever reads the image knows it without looking.
            let (device, _) = open_image(&path, Access::Read).unwrap();
            assert!(extents(&*device).contains(&(2 * MIB + CLUSTER, MIB - CLUSTER, ExtentKind::Zero)));
        }
        // QEMU writes into it, and we go on.
        qemu_io(folder.path(), "a.qcow2", &["write -P 0x21 2200000 100", "write -z 3M 1M", "discard 5M 64k"]);
        assert_clean(&path);
        model[2_200_000..2_200_100].fill(0x21);
        model[3 << 20..4 << 20].fill(0);
        let (device, _) = open_image(&path, Access::Write).unwrap();
        device.read_at(&mut model[5 << 20..(5 << 20) + 65536], 5 * MIB).unwrap();
        assert!(model[5 << 20..(5 << 20) + 65536].iter().all(|byte| *byte == 0));
        device.write_at(&[0x22; 70_000], 3 * MIB + 100).unwrap();
        model[(3 << 20) + 100..(3 << 20) + 70_100].fill(0x22);
        device.flush().unwrap();
        assert_holds(&*device, &model);
        drop(device);
        assert_clean(&path);
        std::fs::write(folder.path().join("model.raw"), &model).unwrap();
        qemu_img(folder.path(), "compare -f raw -F qcow2 model.raw a.qcow2");
    }
}

/// Clusters that QEMU made zero are written to: those that kept their place show nothing of what lies there, and those that
/// have none get one.
#[test]
fn zero_clusters_of_others_are_written_to() {
    if !has_qemu() {
        return;
    }
    for has_holes in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.qcow2");
        qemu_img(folder.path(), "create -f qcow2 a.qcow2 4M");
        let commands = ["write -P 0x11 0 2M", "write -z 64k 128k", "write -z -u 1M 128k", "write -z 3M 64k"];
        qemu_io(folder.path(), "a.qcow2", &commands);
        let mut model = vec![0; 4 << 20];
        model[..2 << 20].fill(0x11);
        model[64 << 10..192 << 10].fill(0);
        model[1 << 20..(1 << 20) + (128 << 10)].fill(0);
        let mut work = || {
            let (device, _) = open_image(&path, Access::Write).unwrap();
            assert_holds(&*device, &model);
            for at in [(64 << 10) + 100, (1 << 20) + 100, (3 << 20) + 100] {
                device.write_at(&[0x12; 10], at as u64).unwrap();
                model[at..at + 10].fill(0x12);
            }
            device.allocate(0, 4 * MIB).unwrap();
            device.flush().unwrap();
            assert_holds(&*device, &model);
        };
        if has_holes {
            work()
        } else {
            without_holes(work)
        }
        assert_clean(&path);
        assert_checks(&path);
        std::fs::write(folder.path().join("model.raw"), &model).unwrap();
        qemu_img(folder.path(), "compare -f raw -F qcow2 model.raw a.qcow2");
    }
}

/// What lies below an overlay neither shows through nor is touched: an overlay is not written, and says so.
#[test]
fn an_overlay_and_what_is_below_it_are_left_alone() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    qemu_img(folder.path(), "create -f qcow2 base.qcow2 4M");
    qemu_io(folder.path(), "base.qcow2", &["write -P 0x11 0 4M"]);
    qemu_img(folder.path(), "create -f qcow2 -F qcow2 -b base.qcow2 a.qcow2 4M");
    qemu_io(folder.path(), "a.qcow2", &["write -P 0x12 0 1M", "write -z 1M 1M"]);
    let mut model = vec![0x11; 4 << 20];
    model[..1 << 20].fill(0x12);
    model[1 << 20..2 << 20].fill(0);
    let (device, _) = open_image(&folder.path().join("a.qcow2"), Access::Read).unwrap();
    conformance_read_only(&*device, &model);
    let below = open_image(&folder.path().join("base.qcow2"), Access::Read).unwrap().0;
    assert_holds(&*below, &vec![0x11; 4 << 20]);
}

#[test]
fn qemu_reads_what_we_write() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let mut model = vec![0; 9 * MIB as usize];
    let device = create_image(&path, model.len() as u64);
    assert_clean(&path);
    for (at, length) in [(3 << 20, 100), (65_000, 2000), (8 << 20, 1 << 20), (5, 1), (3 << 20, 70_000)] {
        let bytes = noise(at as u64, length);
        model[at..at + length].copy_from_slice(&bytes);
        device.write_at(&bytes, at as u64).unwrap();
        assert_holds(&*device, &model);
    }
    device.allocate(6 * MIB + 5, 100).unwrap();
    device.flush().unwrap();
    assert_clean(&path);
    assert_checks(&path);
    std::fs::write(folder.path().join("model.raw"), &model).unwrap();
    qemu_img(folder.path(), "compare -f raw -F qcow2 model.raw a.qcow2");
    let map = qemu_img(folder.path(), "map --output=json a.qcow2");
    let ours: Vec<_> = extents(&*device)
        .into_iter()
        .map(|(at, length, kind)| (at, length, kind == ExtentKind::Data))
        .collect();
    let data =
        [(0, 2), (48, 2), (96, 1), (128, 16)].map(|(at, length)| (at * CLUSTER, length * CLUSTER, true));
    assert_eq!(ours.iter().filter(|run| run.2).copied().collect::<Vec<_>>(), data);
    assert_eq!(ours, present(&map));
}

/// The runs of `qemu-img map --output=json` that are in the file, or are not. It also tells holes of the file
/// apart, which are joined here.
fn present(map: &str) -> Vec<(u64, u64, bool)> {
    let mut runs: Vec<(u64, u64, bool)> = Vec::new();
    for line in map.lines() {
        let number = |name: &str| -> u64 {
            let (_, value) = line.split_once(&format!("\"{name}\": ")).unwrap();
            value.split(',').next().unwrap().parse().unwrap()
        };
        let is_present = line.contains("\"present\": true");
        match runs.last_mut() {
            Some(last) if last.2 == is_present => last.1 += number("length"),
            _ => runs.push((number("start"), number("length"), is_present)),
        }
    }
    runs
}

#[test]
fn allocation_fixes_the_layout() {
    let folder = tempfile::tempdir().unwrap();
    let ranges = [(0, 3 * MIB), (5 * MIB + 7, 100), (40 * MIB, 9 * MIB), (600 * MIB, MIB), (1300 * MIB, 1)];
    let written = |name: &str, order: &[usize], flushes: bool| {
        let path = folder.path().join(name);
        let device = create_image(&path, 1400 * MIB);
        for (offset, length) in ranges {
            device.allocate(offset, length).unwrap();
            if flushes {
                device.flush().unwrap();
            }
        }
        for index in order {
            let (offset, length) = ranges[*index];
            device.write_at(&noise(*index as u64, length as usize), offset).unwrap();
        }
        device.flush().unwrap();
        drop(device);
        if has_qemu() {
            assert_clean(&path);
        }
        assert_checks(&path);
        std::fs::read(path).unwrap()
    };
    let first = written("a.qcow2", &[0, 1, 2, 3, 4], false);
    assert!(first == written("b.qcow2", &[4, 2, 0, 3, 1], false));
    assert!(first == written("c.qcow2", &[2, 0, 1, 4, 3], true));
}

#[test]
fn allocated_clusters_have_a_place_and_are_no_data() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let device = create_image(&path, 4 * MIB);
    device.allocate(MIB, 2 * CLUSTER).unwrap();
    assert_holds(&*device, &vec![0; 4 * MIB as usize]);
    device.flush().unwrap();
    let (reopened, _) = open_image(&path, Access::Read).unwrap();
    assert_holds(&*reopened, &vec![0; 4 * MIB as usize]);
    assert_eq!(extents(&*device)[1], (MIB, 2 * CLUSTER, ExtentKind::Data));
    // Who only reads is spared what was never written, where the file system tells.
    let (start, length, kind) = extents(&*reopened)[1];
    assert_eq!((start, length), (MIB, 2 * CLUSTER));
    if kind == ExtentKind::Data {
        return goldwire_stdx::testing::excuse(goldwire_stdx::testing::Excuse::NoHoles);
    }
    assert_eq!(kind, ExtentKind::Zero);
}

#[test]
fn sixteen_tebibytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let size = 16u64 << 40;
    let offsets = [0, size / 3, size - 1000];
    let device = create_image(&path, size);
    for offset in offsets.into_iter().rev() {
        device.write_at(&noise(offset, 1000), offset).unwrap();
    }
    device.flush().unwrap();
    drop(device);
    if has_qemu() {
        assert_clean(&path);
    }
    let (device, info) = open_image(&path, Access::Write).unwrap();
    assert_eq!(info.size, size);
    for offset in offsets {
        let mut bytes = vec![0; 1000];
        device.read_at(&mut bytes, offset).unwrap();
        assert!(bytes == noise(offset, 1000));
    }
    let stored: u64 =
        extents(&*device).iter().filter(|extent| extent.2 == ExtentKind::Data).map(|extent| extent.1).sum();
    assert_eq!(stored, 3 * CLUSTER);
}

/// More than 128 tables wait, so that some are published on the way; more than 32768 clusters need a second
/// refcount block.
#[test]
fn many_tables() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let device = create_image(&path, 300 * 512 * MIB);
    for table in 0..300 {
        device.allocate(table * 512 * MIB, 150 * CLUSTER).unwrap();
    }
    device.write_at(b"first", 0).unwrap();
    device.flush().unwrap();
    if has_qemu() {
        assert_clean(&path);
    }
    assert_checks(&path);
    assert_eq!(extents(&*device).len(), 600);
    drop(device);
    let (device, _) = open_image(&path, Access::Write).unwrap();
    assert_eq!(extents(&*device).len(), 600);
}

#[test]
fn sizes_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    for size in [1000, (16 << 40) + 512, u64::MAX] {
        let path = folder.path().join("a.qcow2");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        assert_eq!(create(file, &path, size).err().map(|e| e.kind()), Some(ErrorKind::Invalid));
    }
    let device = create_image(&folder.path().join("b.qcow2"), 0);
    assert!(device.read_at(&mut [], 0).is_ok());
    assert_eq!(device.read_at(&mut [0], 0).unwrap_err().kind(), ErrorKind::OutOfRange);
    assert_eq!(device.extent_at(0).unwrap_err().kind(), ErrorKind::OutOfRange);
    drop(device);
    if has_qemu() {
        assert_clean(&folder.path().join("b.qcow2"));
    }
}

#[test]
fn ranges_and_rights() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let device = create_image(&path, MIB);
    for (offset, length) in [(MIB, 1), (MIB - 1, 2), (u64::MAX, 2)] {
        assert_eq!(device.write_at(&vec![1; length], offset).unwrap_err().kind(), ErrorKind::OutOfRange);
        assert_eq!(device.allocate(offset, length as u64).unwrap_err().kind(), ErrorKind::OutOfRange);
        assert_eq!(device.read_at(&mut vec![0; length], offset).unwrap_err().kind(), ErrorKind::OutOfRange);
    }
    assert_eq!(extents(&*device), [(0, MIB, ExtentKind::Hole)]);
    let (reader, _) = open_image(&path, Access::Read).unwrap();
    assert_eq!(reader.write_at(&[1], 0).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(reader.allocate(0, 1).unwrap_err().kind(), ErrorKind::ReadOnly);
    reader.flush().unwrap();
}

/// QEMU's own images are written too when they are simple, and refused with a reason when they are not.
#[test]
fn images_of_others() {
    if !has_qemu() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    qemu_img(folder.path(), "create -f qcow2 a.qcow2 700M");
    qemu_io(folder.path(), "a.qcow2", &["write -P 0x11 1M 1000", "write -P 0x12 600M 300k"]);
    let (device, _) = open_image(&path, Access::Write).unwrap();
    device.write_at(&[0x13; 100_000], 600 * MIB + 5).unwrap();
    device.write_at(&[0x14; 100_000], 0).unwrap();
    device.flush().unwrap();
    drop(device);
    assert_clean(&path);
    let commands = [
        "read -P 0x14 0 100000",
        "read -P 0 100000 948576",
        "read -P 0x11 1M 1000",
        "read -P 0x12 600M 5",
        "read -P 0x13 629145605 100000",
        "read -P 0x12 629245605 206000",
    ];
    qemu_io(folder.path(), "a.qcow2", &commands);
    let refused = [
        "create -f qcow2 -o cluster_size=4096 b.qcow2 1M",
        "create -f qcow2 -o compat=0.10 b.qcow2 1M",
        "create -f qcow2 -o extended_l2=on b.qcow2 1M",
        "create -f qcow2 -o refcount_bits=8 b.qcow2 1M",
        "create -f qcow2 -F qcow2 -b a.qcow2 b.qcow2 700M",
        "convert -c -f qcow2 -O qcow2 a.qcow2 b.qcow2",
    ];
    for arguments in refused {
        qemu_img(folder.path(), arguments);
        let error = open_image(&folder.path().join("b.qcow2"), Access::Write).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{arguments}");
        assert!(!error.hints().is_empty());
        std::fs::remove_file(folder.path().join("b.qcow2")).unwrap();
    }
}

/// What a killed writer left counted is free again after the next flush.
#[test]
fn leaks_are_put_right() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let device = create_image(&path, MIB);
    device.write_at(&noise(1, 300_000), 0).unwrap();
    device.flush().unwrap();
    drop(device);
    // The second and the last L2 entry: a leak inside the file and one at its end.
    let mut bytes = std::fs::read(&path).unwrap();
    for entry in [1, 4] {
        let at = 4 * CLUSTER as usize + entry * 8;
        bytes[at..at + 8].fill(0);
    }
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(check_image(&path).unwrap().len(), 2);
    let (device, _) = open_image(&path, Access::Write).unwrap();
    device.flush().unwrap();
    assert_checks(&path);
    device.write_at(&[1; 10], 2 * CLUSTER - 5).unwrap();
    let mut cluster = vec![0; CLUSTER as usize];
    device.read_at(&mut cluster, CLUSTER).unwrap();
    assert!(cluster[..CLUSTER as usize - 5].iter().all(|byte| *byte == 0));
    device.flush().unwrap();
    assert_checks(&path);
    assert!(std::fs::metadata(&path).unwrap().len() < bytes.len() as u64);
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize, u64),
    Allocate(usize, usize),
    WriteZeroes(usize, usize),
    Discard(usize, usize),
    Flush,
    Reopen,
    /// The process dies: what was not flushed may be gone.
    Kill,
}

fn step(size: usize) -> impl Strategy<Value = Step> {
    let range = (0..size).prop_flat_map(move |at| (Just(at), 1..=200_000.min(size - at)));
    prop_oneof![
        5 => (range.clone(), any::<u64>()).prop_map(|((at, length), seed)| Step::Write(at, length, seed)),
        2 => range.clone().prop_map(|(at, length)| Step::Allocate(at, length)),
        3 => range.clone().prop_map(|(at, length)| Step::WriteZeroes(at, length)),
        2 => range.prop_map(|(at, length)| Step::Discard(at, length)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(24)))]
    #[test]
    fn behaves_like_a_vector(
        steps in prop::collection::vec(step(3 << 20), 1..30),
        has_holes in any::<bool>(),
    ) {
        match has_holes {
            true => run_steps(steps)?,
            false => without_holes(|| run_steps(steps))?,
        }
    }
}

fn run_steps(steps: Vec<Step>) -> std::result::Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let mut model = vec![0; 3 << 20];
    let mut device = create_image(&path, model.len() as u64);
    // What the disk held since the last flush. A kill may leave each byte as in any of them.
    let mut states = vec![model.clone()];
    for step in steps {
        match step {
            Step::Write(at, length, seed) => {
                let bytes = noise(seed, length);
                device.write_at(&bytes, at as u64).unwrap();
                model[at..at + length].copy_from_slice(&bytes);
            }
            Step::Allocate(at, length) => device.allocate(at as u64, length as u64).unwrap(),
            Step::WriteZeroes(at, length) => {
                device.write_zeroes(at as u64, length as u64).unwrap();
                model[at..at + length].fill(0);
            }
            Step::Discard(at, length) => discard(&*device, at as u64, &mut model[at..at + length]),
            Step::Flush => device.flush().unwrap(),
            Step::Reopen => {
                device.flush().unwrap();
                drop(device);
                assert_checks(&path);
                device = open_image(&path, Access::Write).unwrap().0;
            }
            Step::Kill => {
                drop(device);
                device = open_image(&path, Access::Write).unwrap().0;
                let now = read_all(&*device);
                for (at, byte) in now.iter().enumerate().filter(|(at, byte)| **byte != model[*at]) {
                    prop_assert!(states.iter().any(|state| state[at] == *byte), "byte {}", at);
                }
                model = now;
            }
        }
        if matches!(step, Step::Flush | Step::Reopen | Step::Kill) {
            states.clear();
        }
        states.push(model.clone());
    }
    assert_holds(&*device, &model);
    device.flush().unwrap();
    drop(device);
    assert_checks(&path);
    if has_qemu() {
        assert_clean(&path);
    }
    assert_holds(&*open_image(&path, Access::Read).unwrap().0, &model);
    Ok(())
}
