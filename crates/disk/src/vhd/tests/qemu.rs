//! `qemu-img` as a judge. It is not always right (see `docs/formats.md`), so nothing here leans on it where it is
//! known to be wrong: differencing disks, and sizes of disks by Virtual PC.

use std::process::{Command, Output};

use goldwire_stdx::testing::cases;
use proptest::prelude::*;

use super::*;
use crate::journal::without_holes;
use crate::testing::{conformance_read, discard, pattern};

/// Runs `qemu-img`; `None`, with a word about it, where there is none.
fn qemu_img(arguments: &[&str]) -> Option<Output> {
    let program = goldwire_stdx::testing::program("qemu-img")?;
    Some(Command::new(program).args(arguments).output().unwrap())
}

fn succeed(arguments: &[&str]) -> Option<String> {
    let output = qemu_img(arguments)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {errors}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn reads_what_qemu_wrote() {
    let folder = Folder::new();
    // Sparse, with data at both ends and a length that fits no geometry.
    let mut data = vec![0; 13 * MIB as usize + 512];
    data[5 << 20..(5 << 20) + 100_000].copy_from_slice(&pattern(1, 0, 100_000));
    data[..3000].copy_from_slice(&pattern(2, 0, 3000));
    let last = data.len() - 700;
    data[last..].copy_from_slice(&pattern(3, 0, 700));
    let raw = folder.file("a.raw", &data);
    for how in [
        "subformat=dynamic",
        "subformat=fixed",
        "subformat=dynamic,force_size=on",
        "subformat=fixed,force_size=on",
    ] {
        let path = folder.path("a.vhd");
        let arguments =
            ["convert", "-f", "raw", "-O", "vpc", "-o", how, raw.to_str().unwrap(), path.to_str().unwrap()];
        if succeed(&arguments).is_none() {
            return;
        }
        let is_fixed = how.contains("fixed");
        assert_eq!(
            crate::detect(&path).unwrap(),
            if is_fixed { Format::VhdFixed } else { Format::VhdDynamic }
        );
        let image = open(&path).unwrap();
        // Without force_size QEMU rounds the disk up to a geometry.
        let mut expected = data.clone();
        expected.resize(image.device.size() as usize, 0);
        assert!(how.contains("force") == (expected.len() == data.len()), "{how}");
        conformance_read(&*image.device, &expected);
        drop(image);
        // And goes on writing where QEMU stopped.
        let image = open_writable(&path).unwrap();
        image.device.write_at(&pattern(4, 0, 5000), (9 << 20) + 3).unwrap();
        expected[(9 << 20) + 3..(9 << 20) + 5003].copy_from_slice(&pattern(4, 0, 5000));
        image.device.flush().unwrap();
        let raw = folder.file("b.raw", &expected);
        succeed(&["compare", "-f", "raw", "-F", "vpc", raw.to_str().unwrap(), path.to_str().unwrap()]);
    }
}

#[test]
fn qemu_sees_our_size_and_data() {
    let sizes = [512, 2 * MIB + 512, 64 * MIB, (127 << 30) + 512, 127 << 30, 137_438_952_960, 2040 << 30];
    for (format, sizes) in [(Format::VhdDynamic, &sizes[..]), (Format::VhdFixed, &sizes[..3])] {
        for &size in sizes {
            let folder = Folder::new();
            let disk = folder.create("a.vhd", format, size);
            let raw = folder.create("a.raw", Format::Raw, size);
            for offset in [0, size / 3 / 512 * 512, size - 512] {
                for device in [&disk, &raw] {
                    device.write_at(&pattern(9, offset, 512), offset).unwrap();
                    device.flush().unwrap();
                }
            }
            let (path, raw) = (folder.path("a.vhd"), folder.path("a.raw"));
            let Some(info) = succeed(&["info", "--output=json", "-f", "vpc", path.to_str().unwrap()]) else {
                return;
            };
            let line = info.lines().find(|line| line.starts_with("    \"virtual-size\"")).unwrap();
            assert_eq!(line.trim(), format!("\"virtual-size\": {size},"), "{format:?}");
            succeed(&["compare", "-f", "raw", "-F", "vpc", raw.to_str().unwrap(), path.to_str().unwrap()]);
            if format == Format::VhdDynamic {
                // Without a named format.
                let info = succeed(&["info", path.to_str().unwrap()]).unwrap();
                assert!(info.contains("file format: vpc"), "{info}");
            }
        }
    }
}

/// What a test does to a disk.
#[derive(Clone, Debug)]
enum Step {
    Write { offset: u64, length: usize, seed: u64 },
    Allocate { offset: u64, length: u64 },
    WriteZeroes { offset: u64, length: u64 },
    Discard { offset: u64, length: u64 },
    Flush,
    Reopen,
}

const SIZE: u64 = 11 * MIB + 1536;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = (0..SIZE, 0..600_000_u64).prop_map(|(offset, length)| (offset, length.min(SIZE - offset)));
    let step = prop_oneof![
        6 => (range.clone(), any::<u64>())
            .prop_map(|((offset, length), seed)| Step::Write { offset, length: length as usize, seed }),
        1 => range.clone().prop_map(|(offset, length)| Step::Allocate { offset, length }),
        2 => range.clone().prop_map(|(offset, length)| Step::WriteZeroes { offset, length }),
        2 => range.prop_map(|(offset, length)| Step::Discard { offset, length }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases(12)))]

    #[test]
    fn behaves_like_a_vector(steps in steps(), has_holes in any::<bool>()) {
        match has_holes {
            true => run(&steps)?,
            false => without_holes(|| run(&steps))?,
        }
    }
}

fn run(steps: &[Step]) -> std::result::Result<(), TestCaseError> {
    for format in [Format::VhdDynamic, Format::VhdFixed, Format::Raw] {
        let folder = Folder::new();
        let path = folder.path("a.vhd");
        let mut disk = folder.create("a.vhd", format, SIZE);
        let mut model = vec![0; SIZE as usize];
        for step in steps {
            match *step {
                Step::Write { offset, length, seed } => {
                    let bytes = pattern(seed, offset, length);
                    disk.write_at(&bytes, offset).unwrap();
                    model[offset as usize..offset as usize + length].copy_from_slice(&bytes);
                }
                Step::Allocate { offset, length } => disk.allocate(offset, length).unwrap(),
                Step::WriteZeroes { offset, length } => {
                    disk.write_zeroes(offset, length).unwrap();
                    model[offset as usize..(offset + length) as usize].fill(0);
                }
                Step::Discard { offset, length } => {
                    discard(&*disk, offset, &mut model[offset as usize..(offset + length) as usize]);
                }
                Step::Flush => disk.flush().unwrap(),
                Step::Reopen => {
                    disk.flush().unwrap();
                    let access = Access::Write;
                    let options = OpenOptions { access, format: Some(format), ..OpenOptions::default() };
                    disk = crate::open(&path, &options).unwrap().device;
                }
            }
        }
        disk.flush().unwrap();
        conformance_read(&*disk, &model);
        if format == Format::Raw {
            continue;
        }
        let ignored = ["current size"];
        let findings = crate::check(&path, &OpenOptions::default()).unwrap();
        prop_assert!(
            findings.iter().all(|finding| ignored.contains(&finding.field.as_str())),
            "{:?}",
            findings
        );
        let raw = folder.path("a.raw");
        let arguments = ["convert", "-f", "vpc", "-O", "raw", path.to_str().unwrap(), raw.to_str().unwrap()];
        if succeed(&arguments).is_some() {
            prop_assert!(std::fs::read(raw).unwrap() == model, "QEMU reads something else");
        }
    }
    Ok(())
}
