//! Chains of VHDs as versions of a store, written out in every container, with QEMU as the judge; and what is written out of
//! a store that is damaged.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use goldwire_stdx::testing;

use crate::disks::{Guest, Parent, Vhd, assert_same_guest, has_qemu_img};
use crate::store::Site;
use crate::sync::text;

/// Containers that QEMU reads, by the names that it and we give them.
const CONTAINERS: [(&str, &str); 4] =
    [("out.raw", "raw"), ("out.vhd", "vpc"), ("fixed.vhd", "vpc"), ("out.qcow2", "qcow2")];

/// Exports the latest version in every container; each is the disk of `flat`, a raw file.
fn assert_exports(site: &Site, flat: &Path) {
    for (name, format) in CONTAINERS {
        let out = site.scene.path(name);
        let container = if name == "fixed.vhd" { "vhd-fixed" } else { format };
        let container = if container == "vpc" { "vhd" } else { container };
        site.image(["export", "win11", text(&out), "--format", container]).expect(0);
        assert_same_guest((flat, "raw"), (&out, format));
    }
}

/// A grandparent, a parent and a child by a writer that shares no line with ours: the version is what the child shows.
#[test]
fn a_chain_of_vhds_is_one_version() {
    if !has_qemu_img() {
        return;
    }
    let site = Site::new();
    let base = Guest::random(1, 32, 8);
    let (middle, top) = (base.rewritten(2, 40), base.rewritten(2, 40).rewritten(3, 40));
    let folder = site.scene.folder("chain");
    let parent = |name, uuid, guest| Some(Parent { name, uuid, guest });
    base.write(&folder.join("base.vhd"), &Vhd { uuid: 1, hidden: true, parent: None });
    let vhd = Vhd { uuid: 2, hidden: true, parent: parent("base.vhd", 1, &base) };
    middle.write(&folder.join("middle.vhd"), &vhd);
    let vhd = Vhd { uuid: 3, hidden: false, parent: parent("middle.vhd", 2, &middle) };
    top.write(&folder.join("top.vhd"), &vhd);
    let flat = site.scene.path("flat.raw");
    top.write_raw(&flat);
    let published = site.publish(&folder.join("top.vhd"), &[]);
    assert_exports(&site, &flat);
    // The flat disk is the very version, and that of its parent shares what it has.
    assert_eq!(site.publish(&flat, &[])["was_here"], true);
    let below = site.publish(&folder.join("middle.vhd"), &[]);
    assert!(below["bytes_stored"].as_u64() < published["bytes_stored"].as_u64(), "{below}");
    middle.write_raw(&flat);
    assert_exports_anew(&site, &flat);
    site.is_well();
}

fn assert_exports_anew(site: &Site, flat: &Path) {
    CONTAINERS.iter().for_each(|(name, _)| fs::remove_file(site.scene.path(name)).unwrap());
    assert_exports(site, flat);
}

/// A chain that `vhd-util` wrote, in a folder that the environment names with the digest of what its child shows:
/// `GOLDWIRE_VHD_CHAIN=FOLDER/CHILD.vhd:SHA256`. QEMU ignores its parents, so the digest judges the raw export, and QEMU
/// the others by that.
#[test]
fn a_chain_from_outside_is_one_version() {
    let Ok(named) = std::env::var("GOLDWIRE_VHD_CHAIN") else {
        return testing::excuse(testing::Excuse::NoForeignChain);
    };
    if !has_qemu_img() {
        return;
    }
    let (path, digest) = named.rsplit_once(':').unwrap();
    let site = Site::new();
    site.publish(Path::new(path), &[]);
    let flat = site.scene.path("flat.raw");
    site.image(["export", "win11", text(&flat)]).expect(0);
    let output = Command::new("sha256sum").arg(&flat).output().unwrap();
    let found = String::from_utf8(output.stdout).unwrap();
    assert!(!digest.is_empty() && found.starts_with(digest), "{path}: {found}");
    assert_exports(&site, &flat);
    site.is_well();
}

/// What is written out here is copied without being hashed, and hashed when it is read back: a damaged chunk is found then,
/// and told by its name. Nothing is left where it was to go.
#[test]
fn an_export_of_a_damaged_version_is_refused_by_name() {
    let site = Site::new();
    let file = site.scene.path("a.raw");
    let guest = Guest::random(1, 32, 12);
    fs::write(&file, &guest.0).unwrap();
    site.publish(&file, &[]);
    let pack = Path::new(&site.store).join("packs/00000001.pack");
    let damaged = File::options().read(true).write(true).open(pack).unwrap();
    let mut byte = [0];
    damaged.read_exact_at(&mut byte, 5 * 65_536 + 77).unwrap();
    damaged.write_all_at(&[byte[0] ^ 8], 5 * 65_536 + 77).unwrap();
    let folder = site.scene.folder("out");
    for name in ["out.raw", "out.qcow2", "out.vhd"] {
        let run = site.image(["export", "win11", text(&folder.join(name))]).expect(1);
        let said = format!("{}{}", run.stdout, run.stderr);
        assert!(said.contains("is not chunk") && said.contains("00000001.pack"), "{run}");
        assert!(!folder.join(name).exists(), "{run}");
    }
    // Once it is whole again the same command goes on.
    damaged.write_all_at(&byte, 5 * 65_536 + 77).unwrap();
    site.image(["export", "win11", text(&folder.join("out.raw"))]).expect(0);
    assert!(fs::read(folder.join("out.raw")).unwrap() == guest.0);
}

/// What both are on this machine goes through no connection.
#[test]
fn an_export_to_this_machine_moves_no_content() {
    let site = Site::new();
    let file = site.scene.path("a.raw");
    fs::write(&file, Guest::random(1, 64, 20).0).unwrap();
    site.publish(&file, &[]);
    let run = site.image(["export", "win11", text(&site.scene.path("out.raw")), "--json"]).expect(0);
    let done = run.event("done");
    assert_eq!(
        (&done["chunks_seeded"], &done["chunks_received"]),
        (&done["chunks_total"], &0.into()),
        "{run}"
    );
    assert!(done["wire_in"].as_u64().unwrap() < 64 << 10, "{run}");
}
