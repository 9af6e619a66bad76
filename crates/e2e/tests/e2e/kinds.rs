//! What a file is, is known before it is used as a disk; what the user wrote is done or refused; nothing is replaced
//! without a word.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use goldwire_stdx::testing;

use crate::disks::{self, Guest};
use crate::machine;
use crate::sync::text;
use crate::tool::Scene;

fn qemu_img(folder: &Path, words: &str) -> bool {
    let Some(program) = testing::program("qemu-img") else { return false };
    let output = Command::new(program).current_dir(folder).args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

/// A VHDX was copied as a raw disk, "verified", found healthy and signed.
#[test]
fn no_command_takes_a_foreign_container_for_a_disk() {
    let scene = Scene::new();
    Guest::random(1, 4, 1).write_raw(&scene.path("g.raw"));
    if !qemu_img(&scene.path(""), "convert -f raw -O vhdx g.raw win.vhdx") {
        return;
    }
    // Under a name that says nothing, too.
    fs::copy(scene.path("win.vhdx"), scene.path("win")).unwrap();
    fs::write(scene.path("page.img"), "<html><body>404 Not Found</body></html>\n").unwrap();
    fs::write(scene.path("empty.img"), "").unwrap();
    scene.goldwire(["key", "new", "k"]).expect(0);
    let before = machine::visible(&scene.path(""));
    for (image, word) in
        [("win.vhdx", "VHDX"), ("win", "VHDX"), ("page.img", "HTML"), ("empty.img", "is empty")]
    {
        for words in [
            &["disk", "info", image][..],
            &["disk", "check", image],
            &["disk", "convert", image, "new.vhd"],
            &["disk", "compare", image, "g.raw"],
            &["disk", "compare", "g.raw", image],
            &["disk", "tree", image],
            &["disk", "tree", "--sign", "k", image],
            &["sync", image, "new.raw"],
            &["sync", "--seed", image, "g.raw", "new.raw"],
        ] {
            let run = scene.goldwire(words).expect(1);
            assert!(run.stderr.contains(word) && run.stderr.contains("hint: "), "{words:?}: {run}");
        }
        if word == "VHDX" {
            let run = scene.goldwire(["disk", "info", image]).expect(1);
            assert!(run.stderr.contains("qemu-img convert -O qcow2"), "{run}");
        }
    }
    assert_eq!(machine::visible(&scene.path("")), before, "nothing was written");
    // Whoever says so gets its bytes.
    scene.goldwire(["disk", "convert", "--source-format", "raw", "win.vhdx", "bytes.raw"]).expect(0);
    assert_eq!(fs::read(scene.path("bytes.raw")).unwrap(), fs::read(scene.path("win.vhdx")).unwrap());
    scene.goldwire(["disk", "tree", "--source-format", "raw", "win.vhdx"]).expect(0);
}

/// A fixed VHD that was cut short replaced the golden disk by a smaller one, "verified".
#[test]
fn a_truncated_disk_replaces_nothing() {
    let scene = Scene::new();
    Guest::random(2, 8, 3).write_raw(&scene.path("g.raw"));
    scene.goldwire(["disk", "convert", "--format", "vhd-fixed", "g.raw", "golden.vhd"]).expect(0);
    let golden = fs::read(scene.path("golden.vhd")).unwrap();
    for (name, bytes) in [
        ("cut.vhd", golden[..5 << 20].to_vec()),
        ("less.vhd", golden[..golden.len() - 512].to_vec()),
        ("more.vhd", [&golden[..], &[0; 4096]].concat()),
    ] {
        fs::write(scene.path(name), bytes).unwrap();
        let run = scene.goldwire(["sync", "--replace", name, "golden.vhd"]).expect(1);
        assert!(run.stderr.contains("footer") && run.stderr.contains("hint: "), "{run}");
        // A link that says nothing leads to a name that does.
        let link = scene.path("latest");
        std::os::unix::fs::symlink(name, &link).unwrap();
        scene.goldwire(["sync", "--replace", "latest", "golden.vhd"]).expect(1);
        fs::remove_file(link).unwrap();
        assert_eq!(fs::read(scene.path("golden.vhd")).unwrap(), golden);
    }
}

#[test]
fn a_replacement_is_told_and_a_base_is_kept() {
    let scene = Scene::new();
    let (small, large) = (scene.path("small.raw"), scene.path("large.raw"));
    Guest::random(3, 4, 1).write_raw(&small);
    Guest::random(4, 8, 4).write_raw(&large);
    scene.goldwire(["disk", "convert", text(&large), "golden.qcow2"]).expect(0);
    let run = scene.goldwire(["sync", "--replace", "--dry-run", text(&small), "golden.qcow2"]).expect(0);
    let all = format!("{}{}", run.stdout, run.stderr);
    assert!(all.contains("8388608 bytes") && all.contains("4194304"), "{run}");
    if !qemu_img(&scene.path(""), "create -f qcow2 -b golden.qcow2 -F qcow2 overlay.qcow2") {
        return;
    }
    let before = machine::digest(&scene.path("golden.qcow2"));
    let run = scene.goldwire(["sync", "--replace", text(&small), "golden.qcow2"]).expect(1);
    assert!(run.stderr.contains("overlay.qcow2") && run.stderr.contains("hint: "), "{run}");
    assert_eq!(machine::digest(&scene.path("golden.qcow2")), before);
    fs::remove_file(scene.path("overlay.qcow2")).unwrap();
    scene.goldwire(["sync", "--replace", text(&small), "golden.qcow2"]).expect(0);
    scene.goldwire(["disk", "compare", text(&small), "golden.qcow2"]).expect(0);
}

#[test]
fn what_was_written_is_done_or_refused() {
    let scene = Scene::new();
    Guest::random(5, 4, 1).write_raw(&scene.path("g.raw"));
    scene.goldwire(["disk", "convert", "g.raw", "base.qcow2"]).expect(0);
    let folder = scene.folder("sr");
    for (words, code, part) in [
        (&["disk", "convert", "base.qcow2", "y.vhdx"][..], 1, "VHDX"),
        (&["disk", "convert", "base.qcow2", "y.vmdk"], 1, "VMDK"),
        (&["disk", "convert", "base.qcow2", "y.vdi"], 1, "VDI"),
        (&["disk", "convert", "--format", "qcow2", "base.qcow2", "y.vhd"], 1, "--format"),
        (&["disk", "convert", "--format", "vhd", "base.qcow2", "y.raw"], 1, "--format"),
        (&["sync", "--name", "x.vhd", "g.raw", "y.vhd"], 1, "--name"),
        (&["sync", "--name", "{date}.vhd", "g.raw", "sr"], 2, "{uuid}"),
        (&["sync", "--name", "x.vhdx", "g.raw", "sr"], 1, "VHDX"),
    ] {
        let run = scene.goldwire(words).expect(code);
        assert!(run.stderr.contains(part), "{words:?}: {run}");
    }
    assert_eq!(machine::visible(&folder), [] as [&str; 0]);
    scene.goldwire(["sync", "--name", "{uuid}.vhd", "g.raw", "sr"]).expect(0);
    let [name] = &machine::visible(&folder)[..] else { panic!() };
    assert!(name.ends_with(".vhd"), "{name}");
    let info = scene.goldwire(["disk", "info", "--json", text(&folder.join(name))]).expect(0);
    assert!(info.stdout.contains("\"format\":\"vhd-dynamic\""), "{info}");
    scene.goldwire(["disk", "convert", "base.qcow2", "y.avhd"]).expect(0);
    let info = scene.goldwire(["disk", "info", "--json", "y.avhd"]).expect(0);
    assert!(info.stdout.contains("\"format\":\"vhd-dynamic\""), "{info}");
}

/// A QCOW2 over a base in another folder: every command takes `--parents`, and without it says so. A base in a folder
/// *below* the image's own is not read either: it may be somebody's key.
#[test]
fn parents_elsewhere_are_read_by_whoever_names_their_folder() {
    let scene = Scene::new();
    for base in ["elsewhere", "sub"] {
        let folder = scene.folder(base);
        Guest::random(6, 4, 1).write_raw(&folder.join("base.raw"));
    }
    let names = ["../elsewhere/base.raw", "sub/base.raw"];
    scene.folder("here");
    fs::rename(scene.path("sub"), scene.path("here/sub")).unwrap();
    for (number, base) in names.iter().enumerate() {
        let image = format!("here/{number}.qcow2");
        if !qemu_img(&scene.path("here"), &format!("create -f qcow2 -b {base} -F raw {number}.qcow2")) {
            return;
        }
        let folder = ["elsewhere", "here/sub"][number];
        let copy = format!("{number}.raw");
        for words in [
            &["disk", "info", &image][..],
            &["disk", "tree", &image],
            &["disk", "compare", &image, "elsewhere/base.raw"],
            &["disk", "convert", &image, &copy],
        ] {
            let run = scene.goldwire(words).expect(1);
            assert!(run.stderr.contains("may not be opened") && run.stderr.contains("--parents"), "{run}");
            scene.goldwire(words.iter().copied().chain(["--parents", folder])).expect(0);
        }
        scene.goldwire(["disk", "check", &image]).expect(5);
        scene.goldwire(["disk", "check", "--parents", folder, &image]).expect(0);
    }
}

/// A loop device over a file, taken down with it.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Option<Self> {
        let output =
            Command::new("losetup").args(["--find", "--show", "--read-only"]).arg(file).output().ok()?;
        let path = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| Self(path.trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

/// XenServer keeps VHDs on logical volumes. Their bytes were copied as a disk without a word.
#[test]
fn a_block_device_with_a_container_is_told_and_read_if_asked() {
    if !testing::root() || !testing::programs(&["losetup"]) {
        return;
    }
    let scene = Scene::new();
    let guest = Guest::random(7, 4, 2);
    guest.write_raw(&scene.path("g.raw"));
    guest.write_vhd(&scene.path("g.vhd"), 1);
    let Some(device) = Loop::over(&scene.path("g.vhd")) else {
        testing::excuse(testing::Excuse::NoLoopDevices);
        return;
    };
    let path = text(&device.0);
    let run = scene.goldwire(["disk", "info", path]).expect(0);
    assert!(run.stderr.contains("VHD") && run.stderr.contains("--source-format vhd"), "{run}");
    let run = scene.goldwire(["sync", path, "bytes.raw"]).expect(0);
    let all = format!("{}{}", run.stdout, run.stderr);
    assert!(all.contains("--source-format vhd"), "{run}");
    scene.goldwire(["sync", "--source-format", "vhd", path, "disk.raw"]).expect(0);
    scene.goldwire(["disk", "compare", "g.raw", "disk.raw"]).expect(0);
    disks::assert_same_guest((&scene.path("g.vhd"), "vpc"), (&scene.path("disk.raw"), "raw"));
}

/// oVirt and Incus put an overlay's base on a logical volume, XenServer whole chains.
#[test]
fn a_parent_on_a_block_device_is_read_where_the_user_allows_it() {
    if !testing::root() || !testing::programs(&["losetup", "qemu-img"]) {
        return;
    }
    let scene = Scene::new();
    let guest = Guest::random(9, 4, 2);
    guest.write_raw(&scene.path("base.raw"));
    guest.write_vhd(&scene.path("base.vhd"), 1);
    let (Some(raw), Some(vhd)) = (Loop::over(&scene.path("base.raw")), Loop::over(&scene.path("base.vhd")))
    else {
        testing::excuse(testing::Excuse::NoLoopDevices);
        return;
    };
    let overlay = |name: &str, format: &[&str], base: &Path| {
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-u", "-f", "qcow2", "-b", text(base)]).args(format);
        scene.run(create).arguments([name, "4M"]).expect(0);
    };
    overlay("plain.qcow2", &["-F", "raw"], &raw.0);
    overlay("inside.qcow2", &["-F", "vpc"], &vhd.0);
    // A name in a folder in which only root makes names, as udev makes them for logical volumes.
    let group = scene.folder("group");
    std::os::unix::fs::symlink(&raw.0, group.join("base")).unwrap();
    overlay("named.qcow2", &["-F", "raw"], Path::new("group/base"));
    for (image, allowed) in [
        ("plain.qcow2", &*raw.0),
        ("inside.qcow2", &*vhd.0),
        ("named.qcow2", &*group),
        ("named.qcow2", &*raw.0),
    ] {
        let run = scene.goldwire(["disk", "compare", image, "base.raw"]).expect(1);
        assert!(run.stderr.contains("block device") && run.stderr.contains("--parents DEVICE"), "{run}");
        scene.goldwire(["disk", "compare", "--parents", text(allowed), image, "base.raw"]).expect(0);
        let copy = format!("{image}.raw");
        scene.goldwire(["sync", "--replace", "--parents", text(allowed), image, &copy]).expect(0);
        scene.goldwire(["disk", "compare", &copy, "base.raw"]).expect(0);
    }
    // Others could lead a name in their folder to any device.
    fs::set_permissions(&group, fs::Permissions::from_mode(0o777)).unwrap();
    scene.goldwire(["disk", "info", "--parents", text(&group), "named.qcow2"]).expect(1);
    // What lies inside is not guessed: QEMU would, and the owner of a raw device could write any header.
    overlay("guess.qcow2", &["-F", "raw"], &vhd.0);
    let mut bytes = fs::read(scene.path("guess.qcow2")).unwrap();
    let recorded = bytes.windows(4).position(|four| four == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    bytes[recorded..recorded + 4].copy_from_slice(b"gone");
    fs::write(scene.path("guess.qcow2"), bytes).unwrap();
    let run = scene.goldwire(["disk", "info", "--parents", text(&vhd.0), "guess.qcow2"]).expect(1);
    assert!(run.stderr.contains("record its format"), "{run}");
}

/// A QCOW2 image of some hundred kilobytes whose entries all name one cluster was hundreds of gigabytes of work.
#[test]
fn a_small_file_never_stands_for_a_large_amount_of_work() {
    if !testing::programs(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scene = Scene::new();
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "bomb.qcow2", "64G"]);
    scene.run(create).expect(0);
    let mut write = Command::new("qemu-io");
    write.args(["-f", "qcow2", "-c", "write -P 7 0 64k", "bomb.qcow2"]);
    scene.run(write).expect(0);
    let mut bytes = fs::read(scene.path("bomb.qcow2")).unwrap();
    let number = |bytes: &[u8], at: usize| u64::from_be_bytes(*bytes[at..].first_chunk().unwrap());
    let l1 = number(&bytes, 40) as usize;
    let l2 = (number(&bytes, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    let data = bytes[l2..l2 + 8].to_vec();
    let full: Vec<u8> = data.iter().copied().cycle().take(64 << 10).collect();
    bytes[l2..l2 + (64 << 10)].copy_from_slice(&full);
    // One table for each of 128 spans, at the end of the file: 8 MiB that claim 64 GiB.
    for span in 1..128 {
        let at = (bytes.len() as u64).next_multiple_of(64 << 10);
        bytes.resize(at as usize, 0);
        bytes.extend(&full);
        bytes[l1 + span * 8..l1 + span * 8 + 8].copy_from_slice(&(at | 1 << 63).to_be_bytes());
    }
    fs::write(scene.path("bomb.qcow2"), &bytes).unwrap();
    for command in [
        &["disk", "convert", "bomb.qcow2", "out.raw"][..],
        &["disk", "tree", "bomb.qcow2"],
        &["sync", "bomb.qcow2", "out.vhd"],
    ] {
        let run = scene.goldwire(command).expect(1);
        assert!(run.stderr.contains("several places of the disk"), "{run}");
    }
    let run = scene.goldwire(["disk", "check", "bomb.qcow2"]).expect(5);
    assert!(format!("{run}").contains("several places of the disk"), "{run}");
    assert!(!scene.path("out.raw").exists() && !scene.path("out.vhd").exists());
}
