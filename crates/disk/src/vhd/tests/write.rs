use super::super::dynamic::{Dynamic, Parts};
use super::super::footer::Footers;
use super::build::Vhd;
use super::*;
use crate::host::HostFile;
use crate::journal::without_holes;
use crate::testing::{
    conformance, conformance_read, conformance_read_only, discard, is_told_at_once, pattern,
};
use crate::{ErrorKind, ExtentKind};

#[test]
fn keeps_the_promises() {
    for format in [Format::VhdDynamic, Format::VhdFixed, Format::Raw] {
        let folder = Folder::new();
        let number = std::cell::Cell::new(0);
        conformance(|size| {
            number.set(number.get() + 1);
            folder.create(&number.get().to_string(), format, size)
        });
        // The same after the file was closed and opened again, which takes another way to the same state.
        conformance(|size| {
            number.set(number.get() + 1);
            let name = number.get().to_string();
            folder.create(&name, format, size).flush().unwrap();
            open_writable(&folder.path(&name)).unwrap().device
        });
    }
}

/// Where nothing can be punched, zeros are written, and a discard does nothing.
#[test]
fn keeps_the_promises_without_holes() {
    for format in [Format::VhdDynamic, Format::Raw] {
        let folder = Folder::new();
        let number = std::cell::Cell::new(0);
        without_holes(|| {
            conformance(|size| {
                number.set(number.get() + 1);
                folder.create(&number.get().to_string(), format, size)
            });
        });
    }
}

fn stored(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(path).unwrap()) * 512
}

/// Both give the space back where the file system can, take none for what has no place, and leave what lies beside them.
#[test]
fn what_is_given_up_takes_no_space() {
    for format in [Format::VhdDynamic, Format::VhdFixed, Format::Raw] {
        for is_discard in [false, true] {
            let folder = Folder::new();
            let path = folder.path("a");
            let disk = folder.create("a", format, 20 * MIB);
            let empty = stored(&path);
            let give_up = |offset, length| match is_discard {
                true => disk.discard(offset, length).unwrap(),
                false => disk.write_zeroes(offset, length).unwrap(),
            };
            give_up(0, 20 * MIB);
            disk.flush().unwrap();
            assert!(stored(&path) <= empty + 8192, "{format:?} takes space for nothing");
            disk.write_at(&vec![7; 8 << 20], 3 * MIB).unwrap();
            disk.flush().unwrap();
            let full = stored(&path);
            give_up(4 * MIB - 100, 6 * MIB + 200);
            disk.flush().unwrap();
            let mut model = vec![0; 20 << 20];
            model[3 << 20..11 << 20].fill(7);
            let given_up = (4 << 20) - 100..(10 << 20) + 100;
            if is_discard {
                disk.read_at(&mut model[given_up.clone()], given_up.start as u64).unwrap();
                // Pages that it covers in part are as they were.
                assert!(model[given_up.start..4 << 20].iter().all(|byte| *byte == 7));
            } else {
                model[given_up].fill(0);
            }
            conformance_read(&*disk, &model);
            if stored(&path) > full - 6 * MIB + 65_536 {
                goldwire_stdx::testing::excuse(goldwire_stdx::testing::Excuse::NoHoles);
                continue;
            }
            assert!(disk.extent_at(4 * MIB).unwrap().kind.is_zero(), "{format:?}");
            assert!(model[4 << 20..10 << 20].iter().all(|byte| *byte == 0));
        }
    }
}

/// A parent is never seen through, and never changed: nobody may give anything up in a disk that is read.
#[test]
fn a_child_and_its_parent_are_left_alone() {
    let folder = Folder::new();
    folder.file("parent.vhd", &Vhd::dynamic(4 * MIB).block(0, &[0xff; 512], 0x11).bytes());
    let child = folder.file("child.vhd", &Vhd::differencing(4 * MIB).block(0, &[0xf0], 0x22).bytes());
    let image = open(&child).unwrap();
    let before = content(&*image.device);
    assert!(before.contains(&0x11) && before.contains(&0x22));
    conformance_read_only(&*image.device, &before);
    if goldwire_stdx::testing::tells_at_once(folder.0.path()) {
        assert!(is_told_at_once(&*image.device, &before, 70_001));
    }
}

/// Whoever waits to change the table keeps nobody waiting who asks for what is at hand.
#[test]
fn a_held_table_keeps_nobody_waiting_who_asks_at_once() {
    let folder = Folder::new();
    let path = folder.file("a.vhd", &Vhd::dynamic(4 * MIB).block(0, &[0xff; 512], 0x11).bytes());
    let host = HostFile::new(std::fs::File::open(&path).unwrap(), &path);
    let footers = Footers::read(&host).unwrap();
    let footer = footers.effective().unwrap();
    let parts = Parts::read(&host, &footers, footer).unwrap();
    let mut parents = crate::chain::Chain::new(Arc::new(crate::DenyAll));
    let disk = Dynamic::open(host, &footers, footer, parts, Access::Read, &mut parents).unwrap();
    disk.read_at(&mut [0; 4096], 0).unwrap();
    let held = disk.bat.write().unwrap();
    assert!(!disk.read_at_once(&mut [0; 4096], 0).unwrap());
    drop(held);
    if goldwire_stdx::testing::tells_at_once(folder.0.path()) {
        assert!(disk.read_at_once(&mut [0; 4096], 0).unwrap());
    }
}

/// What is absent of a foreign block reads as zero, whatever the file holds there, and goes on doing so.
#[test]
fn a_foreign_block_shows_nothing_old() {
    for has_holes in [true, false] {
        let folder = Folder::new();
        let path = folder.file("a.vhd", &Vhd::dynamic(4 * MIB).block(0, &[0xf0], 0x99).bytes());
        let mut model = vec![0; 4 << 20];
        model[..2048].fill(0x99);
        let mut work = || {
            let disk = open_writable(&path).unwrap().device;
            disk.write_zeroes(100, 200).unwrap();
            model[100..300].fill(0);
            disk.write_zeroes(2000, 100_000).unwrap();
            model[2000..2048].fill(0);
            discard(&*disk, 0, &mut model[..3 << 20]);
            conformance_read(&*disk, &model);
            disk.write_at(&[5], 5000).unwrap();
            model[5000] = 5;
            disk.flush().unwrap();
        };
        if has_holes {
            work()
        } else {
            without_holes(work)
        }
        conformance_read(&*open(&path).unwrap().device, &model);
    }
}

#[test]
fn a_foreign_dynamic_disk_is_written_to() {
    // Its block is partial: what is absent must read as zero although the file holds 0x99 there.
    for footer_length in [512, 511, 0] {
        let folder = Folder::new();
        let vhd = Vhd { footer_length, ..Vhd::dynamic(9 * MIB) }.block(1, &[0xf0], 0x99);
        let path = folder.file("a.vhd", &vhd.bytes());
        let mut model = vec![0; 9 << 20];
        model[2 << 20..(2 << 20) + 2048].fill(0x99);
        let image = open_writable(&path).unwrap();
        conformance_read(&*image.device, &model);
        for (offset, length) in [((2 << 20) + 5000, 100), ((6 << 20) - 7, 20), (0, 1)] {
            let bytes = pattern(1, offset, length);
            image.device.write_at(&bytes, offset).unwrap();
            model[offset as usize..offset as usize + length].copy_from_slice(&bytes);
        }
        image.device.flush().unwrap();
        drop(image);
        conformance_read(&*open(&path).unwrap().device, &model);
    }
}

#[test]
fn the_same_allocation_gives_the_same_file() {
    let blocks = [0, 1, 4, 5, 9];
    let at_once = Folder::new();
    let disk = at_once.create("a", Format::VhdDynamic, 20 * MIB);
    for block in blocks {
        disk.allocate(block * 2 * MIB, 1).unwrap();
    }
    for block in blocks.into_iter().rev() {
        disk.write_at(&pattern(block, 0, 5000), block * 2 * MIB + 300).unwrap();
    }
    disk.flush().unwrap();

    // Written as it comes, flushed often, killed and continued.
    let in_steps = Folder::new();
    let mut disk = in_steps.create("a", Format::VhdDynamic, 20 * MIB);
    for block in blocks {
        disk.write_at(&pattern(block, 0, 5000), block * 2 * MIB + 300).unwrap();
        disk.flush().unwrap();
        // These never reach the table: the process dies here.
        disk.write_at(&[0xee; 4096], 16 * MIB).unwrap();
        disk.write_at(&[0xee; 4096], 14 * MIB).unwrap();
        drop(disk);
        disk = open_writable(&in_steps.path("a")).unwrap().device;
    }
    drop(disk);
    let (a, b) = (at_once.path("a"), in_steps.path("a"));
    assert!(std::fs::read(&a).unwrap() == std::fs::read(&b).unwrap());
    assert!(crate::check(&a, &OpenOptions::default()).unwrap().is_empty());
}

#[test]
fn block_data_is_aligned_and_sparse() {
    let folder = Folder::new();
    let disk = folder.create("a.vhd", Format::VhdDynamic, 64 * MIB);
    disk.allocate(0, 64 * MIB).unwrap();
    disk.write_at(&[1], 33 * MIB).unwrap();
    disk.flush().unwrap();
    let bytes = std::fs::read(folder.path("a.vhd")).unwrap();
    for entry in bytes[1536..1536 + 128].chunks(4) {
        let sector = u32::from_be_bytes(entry.try_into().unwrap());
        assert_eq!((u64::from(sector) * 512 + 512) % 4096, 0);
    }
    let used =
        std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(folder.path("a.vhd")).unwrap()) * 512;
    assert!(used < 2 * MIB, "{used} bytes for one");
    assert_eq!(disk.extent_at(0).unwrap().kind, ExtentKind::Zero);
    assert_eq!(disk.extent_at(33 * MIB).unwrap().kind, ExtentKind::Data);
}

#[test]
fn what_a_vhd_cannot_hold_is_refused_and_leaves_no_file() {
    let folder = Folder::new();
    let path = folder.path("a.vhd");
    for format in [Format::VhdDynamic, Format::VhdFixed] {
        let nil = CreateOptions { uuid: Uuid([0; 16]), ..options(format, 512) };
        for options in [options(format, 513), options(format, (2040 << 30) + 512), nil] {
            assert_eq!(crate::create(&path, &options).err().unwrap().kind(), ErrorKind::Invalid);
            assert!(!path.exists());
        }
    }
    let differencing = options(Format::VhdDifferencing, 512);
    assert_eq!(crate::create(&path, &differencing).err().unwrap().kind(), ErrorKind::Unsupported);
    folder.create("a.vhd", Format::VhdDynamic, 512);
    let again = crate::create(&path, &options(Format::Raw, 512)).err().unwrap();
    assert_eq!(again.kind(), ErrorKind::Io);
    assert_eq!(crate::detect(&path).unwrap(), Format::VhdDynamic, "the file that was there is still there");
}

#[test]
fn the_largest_disk() {
    let folder = Folder::new();
    let disk = folder.create("a.vhd", Format::VhdDynamic, 2040 << 30);
    let end = (2040 << 30) - 3;
    disk.write_at(&[7; 3], end).unwrap();
    disk.flush().unwrap();
    let image = open(&folder.path("a.vhd")).unwrap();
    assert_eq!(image.device.extent_at(0).unwrap().length, (2040 << 30) - 2 * MIB);
    let mut bytes = [0; 3];
    image.device.read_at(&mut bytes, end).unwrap();
    assert_eq!(bytes, [7; 3]);
    assert!(crate::check(folder.path("a.vhd"), &OpenOptions::default()).unwrap().is_empty());
}

#[test]
fn a_file_that_was_opened_for_reading_is_not_written() {
    let folder = Folder::new();
    for format in [Format::VhdDynamic, Format::VhdFixed, Format::Raw] {
        let name = format!("{format:?}");
        folder.create(&name, format, 4096).flush().unwrap();
        let image = open(&folder.path(&name)).unwrap();
        conformance_read_only(&*image.device, &[0; 4096]);
    }
    folder.file("parent.vhd", &Vhd::dynamic(2 * MIB).bytes());
    let child = folder.file("child.vhd", &Vhd::differencing(2 * MIB).bytes());
    assert_eq!(open_writable(&child).err().unwrap().kind(), ErrorKind::Unsupported);
}

#[test]
fn hidden_is_set_in_both_footers() {
    let folder = Folder::new();
    for format in [Format::VhdDynamic, Format::VhdFixed] {
        let name = format!("{format:?}");
        folder.create(&name, format, 2 * MIB).flush().unwrap();
        let path = folder.path(&name);
        for hidden in [true, false] {
            crate::set_hidden(&path, hidden).unwrap();
            assert_eq!(open(&path).unwrap().info.hidden, Some(hidden));
            assert!(crate::check(&path, &OpenOptions::default()).unwrap().is_empty());
        }
    }
    let short = folder.file("short.vhd", &Vhd { footer_length: 511, ..Vhd::dynamic(2 * MIB) }.bytes());
    crate::set_hidden(&short, true).unwrap();
    assert_eq!(open(&short).unwrap().info.hidden, Some(true));
    let lost = folder.file("lost.vhd", &Vhd { footer_length: 0, ..Vhd::dynamic(2 * MIB) }.bytes());
    assert_eq!(crate::set_hidden(&lost, true).err().unwrap().kind(), ErrorKind::Corrupt);
}

#[test]
fn the_time_is_never_in_the_future() {
    let folder = Folder::new();
    for (created, expected) in
        [(1_700_000_000, Some(1_700_000_000)), (0, Some(946_684_800)), (i64::MAX, None)]
    {
        let path = folder.path(&created.to_string());
        let options = CreateOptions { created, ..options(Format::VhdFixed, 512) };
        crate::create(&path, &options).unwrap();
        let got = open(&path).unwrap().info.created.unwrap();
        match expected {
            Some(expected) => assert_eq!(got, expected),
            None => assert!(
                crate::check(&path, &OpenOptions::default()).unwrap().is_empty() && got > 1_700_000_000
            ),
        }
    }
}
