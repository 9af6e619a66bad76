//! Random pairs of disks in random containers and chains: after a sync the guest sees the same, whoever is asked.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disks::{self, Guest, MIB, Parent, Random, Vhd};
use crate::machine::{self, must};
use crate::sync::text;
use crate::tool::Scene;

/// Pairs per test, unless the environment says otherwise.
const CASES: u64 = 12;

fn cases() -> u64 {
    std::env::var("GOLDWIRE_PROPERTY_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES)
}

#[test]
fn any_pair_of_disks() {
    (0..cases()).for_each(|seed| pair(seed, false));
}

#[test]
fn any_pair_of_disks_with_a_kill_on_the_way() {
    (1000..1000 + cases()).for_each(|seed| pair(seed, true));
}

fn pair(seed: u64, with_kill: bool) {
    if !disks::has_qemu_img() {
        return;
    }
    let mut random = Random(seed);
    let scene = Scene::new();
    let mib = 4 + random.below(12);
    let used = 1 + random.below(mib);
    let first = Guest::random(random.next(), mib, used);
    let second = mutated(&first, &mut random);
    let (v1, how1) = write(&scene, "v1", &first, &mut random);
    let (v2, how2) = write(&scene, "v2", &second, &mut random);
    let target = scene.folder("target");
    let (old, old_format) = destination(&target, "old", &mut random);
    let (new, new_format) = destination(&target, "new", &mut random);
    let what = format!("seed {seed}: {how1} to {old_format}, then {how2} to {new_format}");
    eprintln!("{what}");

    scene.sync(["--format", old_format, text(&v1), text(&old)]).expect(0);
    assert_holds(&scene, &first, &v1, &old, old_format, &what);
    let before = machine::digest(&old);
    let sync = ["--format", new_format, text(&v2), text(&new)];
    if with_kill {
        let mut run = scene.sync(["--bwlimit", "4M"]).arguments(sync).start();
        run.wait_or_end(Duration::from_micros(random.below(1_000_000) as u64), |_| false);
        let victims = machine::local_agents(run.pid());
        machine::kill(random.pick(&[vec![run.pid()], victims].concat()));
        let _ = run.finish();
        goldwire_stdx::testing::until("all processes end", || machine::living_in(&scene.path("")).is_empty());
    }
    let run = scene.sync(sync).expect(0);
    assert_holds(&scene, &second, &v2, &new, new_format, &what);
    assert_eq!(machine::digest(&old), before, "{what}");
    let done = run.event("done");
    assert_eq!(done["chunks_total"], second.chunks_used(), "{what}");
    if done["already_there"] == false {
        let received = done["chunks_received"].as_u64().unwrap();
        let changed = changed_chunks(&first, &second);
        assert!(received <= changed, "{received} chunks received, {changed} changed: {what}");
    }
}

/// Chunks of the second disk that are neither zero nor what the first has at that place.
fn changed_chunks(first: &Guest, second: &Guest) -> u64 {
    const CHUNK: usize = 64 * 1024;
    let has_changed = |number: &usize| {
        let padded = |guest: &Guest| {
            let mut chunk = guest.0.chunks(CHUNK).nth(*number).unwrap_or(&[]).to_vec();
            chunk.resize(CHUNK, 0);
            chunk
        };
        let new = padded(second);
        new != padded(first) && new.iter().any(|byte| *byte != 0)
    };
    (0..second.0.len().div_ceil(CHUNK)).filter(has_changed).count() as u64
}

/// The next version: some writes, zeroed and moved areas, sometimes another size.
fn mutated(guest: &Guest, random: &mut Random) -> Guest {
    let mut next = guest.rewritten(random.next(), 1 + random.below(20));
    if random.below(3) == 0 {
        // Not always a whole number of blocks or chunks.
        let size = MIB * (4 + random.below(14)) + 512 * random.below(300);
        next.0.resize(size, 0);
    }
    let disk = &mut next.0;
    for _ in 0..random.below(5) {
        let length = 512 * (1 + random.below(1000));
        let at = 512 * random.below((disk.len() - length) / 512);
        match random.below(3) {
            0 => disk[at..at + length].fill(0),
            1 => disk[at..at + length].fill(random.next() as u8),
            _ => {
                // A file that moved: by blocks that the target can find elsewhere, or by sectors that it cannot.
                let step = random.pick(&[512, 4096]);
                let to = step * random.below((disk.len() - length) / step);
                disk.copy_within(at..at + length, to);
            }
        }
    }
    next
}

/// Writes the disk in some container or chain; what that was, for the report.
fn write(scene: &Scene, name: &str, guest: &Guest, random: &mut Random) -> (PathBuf, &'static str) {
    let folder = scene.folder(name);
    let raw = folder.join("disk.raw");
    guest.write_raw(&raw);
    let convert = |options: &[&str], to: &Path| {
        let words = ["convert", "-f", "raw"].iter().chain(options).copied();
        must("qemu-img", words.chain([text(&raw), text(to)]));
    };
    let (vhd, qcow2, base) = (folder.join("disk.vhd"), folder.join("disk.qcow2"), folder.join("base.qcow2"));
    match random.below(9) {
        0 => (raw, "raw"),
        1 => {
            guest.write_vhd(&vhd, 1);
            (vhd, "vhd")
        }
        2 => {
            let parent = guest.rewritten(random.next(), 10);
            parent.write_vhd(&folder.join("parent.vhd"), 2);
            let parent = Some(Parent { name: "parent.vhd", uuid: 2, guest: &parent });
            guest.write(&vhd, &Vhd { uuid: 1, parent, ..Vhd::default() });
            (vhd, "differencing vhd")
        }
        3 => {
            convert(&["-O", "vpc", "-o", "subformat=dynamic,force_size=on"], &vhd);
            (vhd, "qemu's vhd")
        }
        4 => {
            convert(&["-O", "vpc", "-o", "subformat=fixed,force_size=on"], &vhd);
            (vhd, "qemu's fixed vhd")
        }
        5 => {
            let size = random.pick(&["512", "4096", "65536", "2097152"]);
            convert(&["-O", "qcow2", "-o", &format!("cluster_size={size}")], &qcow2);
            (qcow2, "qcow2")
        }
        6 => {
            convert(&["-O", "qcow2", "-c", "-o", "compat=0.10"], &qcow2);
            (qcow2, "compressed qcow2 version 2")
        }
        7 => {
            convert(&["-O", "qcow2", "-c", "-o", "compression_type=zstd"], &qcow2);
            (qcow2, "qcow2 with zstd")
        }
        _ => {
            // The chain's base is another disk, of another size too.
            let mut below = guest.rewritten(random.next(), 10);
            below.0.resize(MIB * (1 + random.below(20)), 0x5a);
            let below_raw = folder.join("base.raw");
            below.write_raw(&below_raw);
            must("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", text(&below_raw), text(&base)]);
            convert(&["-O", "qcow2", "-B", text(&base), "-F", "qcow2"], &qcow2);
            (qcow2, "qcow2 with a backing file")
        }
    }
}

fn destination(folder: &Path, stem: &str, random: &mut Random) -> (PathBuf, &'static str) {
    let (format, ending) = random.pick(&[
        ("raw", "raw"),
        ("vhd", "vhd"),
        ("vhd", "vhd"),
        ("vhd-fixed", "vhd"),
        ("qcow2", "qcow2"),
    ]);
    (folder.join(format!("{stem}.{ending}")), format)
}

/// The copy holds what the guest wrote, as qemu sees it and as goldwire does.
#[track_caller]
fn assert_holds(scene: &Scene, guest: &Guest, source: &Path, copy: &Path, format: &str, what: &str) {
    let raw = scene.path("judge.raw");
    guest.write_raw(&raw);
    let format = if format.starts_with("vhd") { "vpc" } else { format };
    disks::assert_same_guest((&raw, "raw"), (copy, format));
    let compared = scene.goldwire(["disk", "compare", "--json", text(source), text(copy)]).finish();
    assert_eq!(compared.status.code(), Some(0), "{what}: {compared}");
    let checked = scene.goldwire(["disk", "check", text(copy)]).finish();
    assert_eq!(checked.status.code(), Some(0), "{what}: {checked}");
}
