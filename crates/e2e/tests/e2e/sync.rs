//! `goldwire sync` as a user runs it: ways, choices, deltas, containers, signatures.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use goldwire_stdx::testing;
use serde_json::Value;

use crate::disks::{self, Guest, Parent, Vhd};
use crate::hosts::{Hosts, Wish};
use crate::machine::{self, must};
use crate::tool::{Finished, Scene};

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a copy of `guest` at `place` must have said about itself.
#[track_caller]
fn assert_copied(run: &Finished, place: &str, guest: &Guest) -> Value {
    let done = run.event_at("done", place);
    assert_eq!(done["root"], run.event("source")["root"], "{run}");
    assert_eq!(done["chunks_total"], guest.chunks_used(), "{run}");
    assert_eq!(done["chunks_done"], guest.chunks_used(), "{run}");
    done
}

#[test]
fn one_host_to_two_hosts_directly_and_both_files_are_the_same() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["master".into(), "one".into(), "two".into()]) else { return };
    let guest = Guest::random(1, 32, 6);
    let source = hosts.all[0].file("golden.vhd");
    guest.write_vhd(&source, 7);
    let (from, one, two) = (hosts.place(0, "golden.vhd"), hosts.place(1, ""), hosts.place(2, ""));
    let run = hosts.sync(&scene, ["--route", "direct", &from, &one, &two]).expect(0);

    for (number, place) in [(1, &one), (2, &two)] {
        assert_eq!(run.event_at("reached", place)["route"], "direct");
        assert_eq!(assert_copied(&run, place, &guest)["chunks_received"], guest.chunks_used());
        assert_eq!(machine::visible(&hosts.all[number].sr), ["golden.vhd"]);
        assert_eq!(hosts.all[number].installed().len(), 1, "the agent installs itself");
    }
    let [a, b] = [1, 2].map(|number| hosts.all[number].file("golden.vhd"));
    assert_eq!(machine::digest(&a), machine::digest(&b));
    if disks::has_qemu_img() {
        disks::assert_same_guest((&source, "vpc"), (&a, "vpc"));
    }
}

#[test]
fn through_the_control_machine_when_asked() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["master".into(), "one".into(), "two".into()]) else { return };
    let guest = Guest::random(2, 16, 4);
    guest.write_vhd(&hosts.all[0].file("golden.vhd"), 7);
    let (from, one, two) = (hosts.place(0, "golden.vhd"), hosts.place(1, ""), hosts.place(2, ""));
    let run = hosts.sync(&scene, ["--route", "relay", &from, &one, &two]).expect(0);
    for place in [&one, &two] {
        assert_eq!(run.event_at("reached", place)["route"], "relay");
        assert_copied(&run, place, &guest);
    }
    let [a, b] = [1, 2].map(|number| machine::digest(&hosts.all[number].file("golden.vhd")));
    assert_eq!(a, b);
}

/// One target is reached by the source, the other only from the control machine.
fn falls_back(scene: &Scene, hosts: &Hosts) {
    let guest = Guest::random(3, 16, 4);
    guest.write_vhd(&hosts.all[0].file("golden.vhd"), 7);
    let (from, one, two) = (hosts.place(0, "golden.vhd"), hosts.place(1, ""), hosts.place(2, ""));
    let run = hosts.sync(scene, [&*from, &one, &two]).expect(0);
    assert_eq!(run.event_at("reached", &one)["route"], "direct");
    assert_eq!(run.event_at("reached", &two)["route"], "relay");
    let notice = run.event_at("notice", &two)["text"].to_string();
    assert!(notice.contains("cannot reach") && notice.contains("relaying"), "{notice}");
    assert_copied(&run, &one, &guest);
    assert_copied(&run, &two, &guest);

    let fresh = hosts.place(2, "other.vhd");
    let run = hosts.sync(scene, ["--route", "direct", &from, &fresh]).expect(1);
    assert_eq!(run.event_at("failed", &fresh)["kind"], "disconnected");
    assert!(!hosts.all[2].file("other.vhd").exists());
}

#[test]
fn a_target_that_the_source_cannot_reach_is_relayed_with_a_notice() {
    let scene = Scene::new();
    let far = Wish { name: "two", inner_settings: Some("  ProxyCommand false\n"), ..Wish::default() };
    if let Some(hosts) = Hosts::start(&scene, &["master".into(), "one".into(), far]) {
        falls_back(&scene, &hosts);
    }
}

#[test]
fn a_target_in_a_network_of_its_own_is_relayed_with_a_notice() {
    let scene = Scene::new();
    // Its address, to which the source has no cable and no route.
    let settings = Some("  HostName 10.77.2.2\n  Port 2222\n");
    let far = Wish { name: "two", inner_settings: settings, ..Wish::default() };
    if let Some(hosts) = Hosts::start_apart(&scene, &["master".into(), "one".into(), far]) {
        falls_back(&scene, &hosts);
    }
}

#[test]
fn from_here_to_a_host_and_back() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["one".into()]) else { return };
    let guest = Guest::random(4, 16, 4);
    let (here, back) = (scene.path("golden.vhd"), scene.path("back.vhd"));
    guest.write_vhd(&here, 7);
    let there = hosts.place(0, "there.vhd");
    let run = hosts.sync(&scene, [text(&here), &there]).expect(0);
    assert_copied(&run, &there, &guest);
    let run = hosts.sync(&scene, [&*there, text(&back)]).expect(0);
    assert_eq!(run.event_at("reached", text(&back))["route"], "relay");
    assert_copied(&run, text(&back), &guest);
    assert_eq!(machine::digest(&back), machine::digest(&hosts.all[0].file("there.vhd")));
    scene.goldwire(["disk", "compare", text(&here), text(&back)]).expect(0);
}

#[test]
fn between_two_folders_of_one_remote_host_nothing_leaves_it() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["one".into()]) else { return };
    let guest = Guest::random(5, 16, 4);
    guest.write_vhd(&hosts.all[0].file("golden.vhd"), 7);
    let (from, to) = (hosts.place(0, "golden.vhd"), hosts.place(0, "copy.vhd"));
    let run = hosts.sync(&scene, ["--no-seed", &from, &to]).expect(0);
    assert_eq!(run.event_at("reached", &to)["route"], "direct");
    assert_copied(&run, &to, &guest);
}

#[test]
fn several_candidates_are_listed_and_a_rule_chooses() {
    let scene = Scene::new();
    let sr = scene.folder("sr");
    let day = |day: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + day * 86_400);
    for (number, name) in ["Win10-baseDisk-1.vhd", "Win10-baseDisk-2.vhd", "other.vhd"].iter().enumerate() {
        let path = sr.join(name);
        Guest::random(10 + number as u64, 8, 1).write_vhd(&path, 0x11 * (number as u8 + 1));
        // The second is the youngest of those that fit; the one that does not fit is younger still.
        fs::File::open(&path).unwrap().set_modified(day(number as u64)).unwrap();
    }
    let target = scene.folder("target");
    let choose = ["--match", "Win10-baseDisk*.vhd", text(&sr), text(&target)];
    let refused = scene.sync(choose).expect(1);
    let failed = refused.event("failed");
    let message = failed["message"].as_str().unwrap().to_owned() + &failed["causes"].to_string();
    for part in
        ["Win10-baseDisk-1.vhd", "11111111-1111", "22222222-2222", "8.0 MiB", "2023-11-14", "2023-11-15"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(!message.contains("other.vhd"), "{message}");
    assert!(failed["hints"].to_string().contains("--youngest"), "{failed}");
    assert!(fs::read_dir(&target).unwrap().next().is_none(), "nothing was begun");

    let run = scene.sync(choose).arguments(["--youngest"]).expect(0);
    assert!(run.event("source")["path"].as_str().unwrap().ends_with("baseDisk-2.vhd"));
    let uuid = ["--uuid", "11111111-1111-1111-1111-111111111111"];
    let run = scene.sync(choose).arguments(uuid).expect(0);
    assert!(run.event("source")["path"].as_str().unwrap().ends_with("baseDisk-1.vhd"));
    let none = scene.sync(["--match", "Win11*", text(&sr), text(&target)]).expect(1);
    assert!(none.event("failed")["message"].as_str().unwrap().contains("no image fits"), "{none}");
}

#[test]
fn a_dry_run_says_what_would_move_and_moves_nothing() {
    let scene = Scene::new();
    let (source, target) = (scene.path("golden.vhd"), scene.folder("target"));
    let guest = Guest::random(20, 16, 4);
    guest.write_vhd(&source, 7);
    guest.rewritten(21, 20).write_vhd(&target.join("old.vhd"), 8);
    let without_trees = || {
        let mut found = machine::listing(&target);
        found.retain(|(path, _)| !path.starts_with(target.join(".goldwire/trees")));
        found
    };
    let before = without_trees();
    let run = scene.sync(["--dry-run", text(&source), text(&target)]).expect(0);
    let planned = run.event("planned");
    let [seeded, missing] = ["chunks_seeded", "chunks_missing"].map(|field| planned[field].as_u64().unwrap());
    assert_eq!(seeded + missing, guest.chunks_used() as u64, "{run}");
    assert!(seeded > 0 && missing > 0, "{run}");
    assert!(planned["bytes_free"].as_u64().unwrap() > 0 && planned["link_rate"].is_u64(), "{run}");
    assert_eq!(before, without_trees());

    let said = scene.goldwire(["sync", "--dry-run", text(&source), text(&target)]).expect(0);
    for word in ["would write", "chunks", "wire", "space   about", "free", "old.vhd"] {
        assert!(said.stdout.contains(word), "{word}: {said}");
    }
    assert_eq!(before, without_trees());
}

#[test]
fn the_second_version_is_a_delta_against_what_is_found_or_named() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["one".into()]) else { return };
    let first = Guest::random(30, 64, 16);
    let second = first.rewritten(31, 12);
    let [v1, v2] = ["v1.vhd", "v2.vhd"].map(|name| scene.path(name));
    first.write_vhd(&v1, 1);
    second.write_vhd(&v2, 2);
    let [to1, to2, to3, to4] =
        ["v1.vhd", "v2.vhd", "sub/v2.vhd", "sub/whole.vhd"].map(|name| hosts.place(0, name));
    fs::create_dir(hosts.all[0].file("sub")).unwrap();
    let whole = hosts.sync(&scene, [text(&v1), &to1]).expect(0).event("done");
    assert_eq!(whole["bytes_verified"], first.0.len(), "the end says what was read back");
    let old = machine::digest(&hosts.all[0].file("v1.vhd"));

    let found = hosts.sync(&scene, [text(&v2), &to2]).expect(0);
    assert!(found.event("planned")["seeds"].to_string().contains("v1.vhd"), "{found}");
    let seed = hosts.all[0].file("v1.vhd");
    let named = hosts.sync(&scene, ["--seed", text(&seed), text(&v2), &to3]).expect(0);
    for (run, place) in [(&found, &to2), (&named, &to3)] {
        let done = assert_copied(run, place, &second);
        assert!(done["chunks_seeded"].as_u64().unwrap() > 200, "{done}");
        assert!(
            done["blocks_found"].as_u64().unwrap() > 0,
            "inside a changed chunk only what changed: {done}"
        );
        assert!(
            done["wire_in"].as_u64().unwrap() * 10 < whole["wire_in"].as_u64().unwrap(),
            "{done} {whole}"
        );
    }
    let run = hosts.sync(&scene, ["--no-seed", text(&v2), &to4]).expect(0);
    assert_eq!(run.event("done")["chunks_received"], second.chunks_used());

    assert_eq!(machine::digest(&seed), old, "the previous version stays as it is");
    let copies =
        ["v2.vhd", "sub/v2.vhd", "sub/whole.vhd"].map(|name| machine::digest(&hosts.all[0].file(name)));
    assert!(copies.iter().all(|copy| *copy == copies[0]), "one version is one file, whatever way it came");

    let no_seed =
        hosts.sync(&scene, ["--seed", "/nowhere.vhd", text(&v2), &hosts.place(0, "x.vhd")]).expect(1);
    assert!(no_seed.event("failed")["message"].as_str().unwrap().contains("/nowhere.vhd"), "{no_seed}");
}

#[test]
fn what_is_there_is_replaced_only_when_asked_and_not_moved_again() {
    let scene = Scene::new();
    let first = Guest::random(40, 16, 4);
    let second = first.rewritten(41, 5);
    let [v1, v2, target] = ["v1.vhd", "v2.vhd", "target.vhd"].map(|name| scene.path(name));
    first.write_vhd(&v1, 1);
    second.write_vhd(&v2, 2);
    scene.sync([text(&v1), text(&target)]).expect(0);
    let old = machine::digest(&target);

    let refused = scene.sync([text(&v2), text(&target)]).expect(1);
    assert_eq!(refused.event("failed")["kind"], "exists");
    assert!(refused.event("failed")["hints"].to_string().contains("--replace"), "{refused}");
    assert_eq!(machine::digest(&target), old);

    let again = scene.sync([text(&v1), text(&target)]).expect(0);
    assert_eq!(again.event("done")["already_there"], true);
    assert_eq!(machine::digest(&target), old);
    assert!(again.event("done")["wire_in"].as_u64().unwrap() < 10_000, "{again}");

    let run = scene.sync(["--replace", text(&v2), text(&target)]).expect(0);
    let done = assert_copied(&run, text(&target), &second);
    assert!(done["chunks_seeded"].as_u64().unwrap() > 0, "the file to replace is a seed: {done}");
    scene.goldwire(["disk", "compare", text(&v2), text(&target)]).expect(0);
    assert_eq!(machine::visible(target.parent().unwrap()), ["home", "target.vhd", "v1.vhd", "v2.vhd"]);
}

#[test]
fn a_signature_is_asked_for_and_neither_missing_nor_forged_nor_foreign() {
    let scene = Scene::new();
    let (source, target) = (scene.path("golden.vhd"), scene.folder("target"));
    let guest = Guest::random(50, 8, 1);
    guest.write_vhd(&source, 7);
    for name in ["ours", "theirs"] {
        scene.goldwire(["key", "new", name]).expect(0);
    }
    let required = ["--require-signature", "ours.pub", text(&source), text(&target)];
    let refuse_with = |why: &str, words: &str| {
        let run = scene.sync(required).expect(1);
        assert!(run.event("failed").to_string().contains(words), "{why}: {run}");
        assert!(machine::visible(&target).is_empty(), "{why}");
    };
    let refuse = |why: &str| refuse_with(why, "signed by");
    refuse("nobody signed");
    let check_says = |words: &str| {
        let words = format!("error: signature: the content{words}");
        let run =
            scene.goldwire(["disk", "check", "--require-signature", "ours.pub", text(&source)]).expect(5);
        assert!(run.stdout.contains(&words), "{run}");
    };
    check_says(" is signed by nobody");
    scene.goldwire(["disk", "tree", "--sign", "theirs", text(&source)]).expect(0);
    refuse("another key signed");
    check_says(" is signed by goldwire-public-key-1");
    scene.goldwire(["disk", "tree", "--sign", "ours", "--note", "patch day", text(&source)]).expect(0);
    let descriptor = scene.path(".goldwire/versions/golden.vhd.gwv");
    let signed = fs::read(&descriptor).unwrap();
    for at in [40, signed.len() / 2, signed.len() - 1] {
        let mut forged = signed.clone();
        forged[at] ^= 1;
        fs::write(&descriptor, &forged).unwrap();
        refuse_with("the descriptor was changed", "the signature does not fit");
        // Nor does it go without it where no signature is asked for: what somebody vouched for would silently be lost.
        let run = scene.sync([text(&source), text(&target)]).expect(1);
        assert!(run.event("failed").to_string().contains("the signature does not fit"), "{run}");
    }
    fs::write(&descriptor, &signed).unwrap();
    let run = scene.sync(required).expect(0);
    assert_eq!(run.event("source")["note"], "patch day");

    // It travels along: the copy can be asked for the same signature.
    let copy = target.join("golden.vhd");
    scene.goldwire(["disk", "check", "--require-signature", "ours.pub", text(&copy)]).expect(0);
    scene.sync(["--require-signature", "ours.pub", text(&copy), text(&scene.path("third.vhd"))]).expect(0);
    // Other content under the same descriptor is not what was signed.
    guest.rewritten(51, 2).write_vhd(&source, 7);
    fs::remove_file(&copy).unwrap();
    refuse_with("the content was changed", "the image was changed since");
    check_says(", root ");
}

#[test]
fn json_lines_tell_the_documented_events() {
    let scene = Scene::new();
    let (source, target) = (scene.path("golden.vhd"), scene.path("copy.vhd"));
    Guest::random(60, 8, 2).write_vhd(&source, 7);
    let run = scene.sync(["--note", "for the test", text(&source), text(&target)]).expect(0);
    let kinds: Vec<_> =
        run.events().iter().map(|event| event["event"].as_str().unwrap().to_owned()).collect();
    let first = |kind: &str| {
        kinds.iter().position(|found| found == kind).unwrap_or_else(|| panic!("no {kind}: {run}"))
    };
    let order = ["reached", "source", "planned", "progress", "done", "summary"].map(first);
    assert!(order.is_sorted(), "{run}");
    let phases: Vec<_> = run.events_of("phase").iter().map(|event| event["phase"].clone()).collect();
    let last: Vec<_> = phases.iter().rev().take(3).rev().cloned().collect();
    assert_eq!(last, ["transferring", "reading back", "publishing"], "{run}");
    let summary = run.event("summary");
    assert_eq!(
        (&summary["done"], &summary["failed"], &summary["exit_code"]),
        (&1.into(), &0.into(), &0.into())
    );
    assert_eq!(summary["root"].as_str().unwrap().len(), 64);
    let source_event = run.event("source");
    assert_eq!((&source_event["size"], &source_event["note"]), (&(8 << 20).into(), &"for the test".into()));
    for event in run.events() {
        assert!(event["seconds"].is_number(), "{event}");
        let about_target = ["reached", "planned", "phase", "progress", "done"];
        if about_target.contains(&event["event"].as_str().unwrap()) {
            assert_eq!(event["target"], text(&target), "{event}");
        }
    }

    // For people: the summary on standard output, talk on standard error.
    let said = scene.goldwire(["sync", "--replace", text(&source), text(&scene.path("b.vhd"))]).expect(0);
    assert!(said.stdout.contains("verified") && said.stdout.contains("root "), "{said}");
    assert!(said.stderr.contains("transferring"), "{said}");
    let quiet = scene.goldwire(["sync", "-q", text(&source), text(&scene.path("c.vhd"))]).expect(0);
    assert!(quiet.stderr.is_empty() && quiet.stdout.contains("verified"), "{quiet}");
}

#[test]
fn the_copy_is_visible_to_xenserver_and_has_owner_mode_time_and_holes() {
    let scene = Scene::new();
    let (source, target) = (scene.path("golden.vhd"), scene.folder("target"));
    let guest = Guest::random(70, 64, 3);
    guest.write(&source, &Vhd { uuid: 7, hidden: true, ..Vhd::default() });
    fs::set_permissions(&source, fs::Permissions::from_mode(0o640)).unwrap();
    let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_650_000_000);
    fs::File::open(&source).unwrap().set_modified(modified).unwrap();
    scene.sync([text(&source), text(&target)]).expect(0);
    let copy = target.join("golden.vhd");
    let data = fs::metadata(&copy).unwrap();
    assert_eq!((data.mode() & 0o7777, data.mtime()), (0o640, 1_650_000_000));
    let used = (guest.chunks_used() * 64 * 1024) as u64;
    assert!(machine::occupied(&copy) <= used + (1 << 20), "{} for {used}", machine::occupied(&copy));
    let info = scene.goldwire(["disk", "info", "--json", text(&source), text(&copy)]).expect(0).events();
    assert_eq!((&info[0]["hidden"], &info[1]["hidden"]), (&true.into(), &false.into()));
    scene.goldwire(["disk", "check", text(&copy)]).expect(0);

    let raw = target.join("copy.raw");
    scene.sync(["--mode", "600", text(&source), text(&raw)]).expect(0);
    assert_eq!(fs::metadata(&raw).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::metadata(&raw).unwrap().len(), 64 << 20);
    assert!(machine::occupied(&raw) <= used + (1 << 20), "holes stay holes");
    assert!(fs::read(&raw).unwrap() == guest.0);

    if !testing::root() {
        return;
    }
    // A replaced file's owner and mode stay; asked for, they change.
    let v2 = scene.path("v2.vhd");
    guest.rewritten(71, 3).write_vhd(&v2, 8);
    std::os::unix::fs::chown(&copy, Some(1234), Some(2345)).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o604)).unwrap();
    scene.sync(["--replace", text(&v2), text(&copy)]).expect(0);
    let data = fs::metadata(&copy).unwrap();
    assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (1234, 2345, 0o604));
    let args = ["--replace", "--owner", "12:34", "--mode", "644", text(&source), text(&copy)];
    scene.sync(args).expect(0);
    let data = fs::metadata(&copy).unwrap();
    assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (12, 34, 0o644));
}

#[test]
fn a_differencing_vhd_arrives_as_one_flat_disk() {
    let scene = Scene::new();
    let sr = scene.folder("sr");
    let base = Guest::random(80, 32, 6);
    let middle = base.rewritten(81, 10);
    let mut top = middle.rewritten(82, 10);
    // A sector of zeros in the child hides the parent's: the case that a reader of plain blocks gets wrong.
    top.0[512..1024].fill(0);
    base.write_vhd(&sr.join("base.vhd"), 1);
    let parent = Some(Parent { name: "base.vhd", uuid: 1, guest: &base });
    middle.write(&sr.join("middle.vhd"), &Vhd { uuid: 2, parent, ..Vhd::default() });
    let parent = Some(Parent { name: "middle.vhd", uuid: 2, guest: &middle });
    top.write(&sr.join("top.vhd"), &Vhd { uuid: 3, parent, ..Vhd::default() });
    let target = scene.folder("target");
    let run = scene.sync([text(&sr.join("top.vhd")), text(&target)]).expect(0);
    assert_copied(&run, text(&target), &top);
    let copy = target.join("top.vhd");
    let info = scene.goldwire(["disk", "info", "--json", text(&copy)]).expect(0).events();
    assert_eq!(
        (&info[0]["format"], info[0]["chain"].as_array().unwrap().len()),
        (&"vhd-dynamic".into(), 1),
        "{info:?}"
    );
    let raw = scene.path("top.raw");
    top.write_raw(&raw);
    scene.goldwire(["disk", "compare", text(&copy), text(&raw)]).expect(0);
    if disks::has_qemu_img() {
        disks::assert_same_guest((&copy, "vpc"), (&raw, "raw"));
    }

    fs::remove_file(sr.join("base.vhd")).unwrap();
    let lost = scene.sync([text(&sr.join("top.vhd")), text(&scene.path("x.vhd"))]).expect(1);
    assert!(lost.event("failed").to_string().contains("base.vhd"), "{lost}");
}

#[test]
fn a_parent_elsewhere_is_opened_only_where_the_user_allows_it() {
    let scene = Scene::new();
    let (parents, children) = (scene.folder("parents"), scene.folder("children"));
    let base = Guest::random(85, 8, 2);
    let top = base.rewritten(86, 3);
    base.write_vhd(&parents.join("base.vhd"), 1);
    let parent = Some(Parent { name: "..\\parents\\base.vhd", uuid: 1, guest: &base });
    let child = children.join("top.vhd");
    top.write(&child, &Vhd { uuid: 2, parent, ..Vhd::default() });
    let target = scene.folder("target");
    scene.sync([text(&child), text(&target)]).expect(1);
    let run = scene.sync(["--parents", text(&parents), text(&child), text(&target)]).expect(0);
    assert_copied(&run, text(&target), &top);
    // Not through a link either: the folder that counts is the one where the file is.
    fs::remove_dir_all(&target).unwrap();
    fs::create_dir(&target).unwrap();
    fs::remove_file(&child).unwrap();
    let parent = Some(Parent { name: "link.vhd", uuid: 1, guest: &base });
    top.write(&child, &Vhd { uuid: 2, parent, ..Vhd::default() });
    symlink(parents.join("base.vhd"), children.join("link.vhd")).unwrap();
    scene.sync([text(&child), text(&target)]).expect(1);
}

#[test]
fn containers_change_on_the_way_and_the_guest_does_not() {
    if !disks::has_qemu_img() {
        return;
    }
    let scene = Scene::new();
    let guest = Guest::random(90, 16, 4);
    let [raw, vhd, fixed, qcow2, overlay] =
        ["a.raw", "a.vhd", "fixed.vhd", "a.qcow2", "overlay.qcow2"].map(|name| scene.path(name));
    guest.write_raw(&raw);
    guest.write_vhd(&vhd, 7);
    let convert = |format: &str, options: &[&str], to: &Path| {
        let words = ["convert", "-f", "raw", "-O", format].into_iter().chain(options.iter().copied());
        must("qemu-img", words.chain([text(&raw), text(to)]));
    };
    convert("vpc", &["-o", "subformat=fixed,force_size=on"], &fixed);
    convert("qcow2", &["-c"], &qcow2);
    must("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(&qcow2), text(&overlay)]);
    must(
        "qemu-io",
        ["-f", "qcow2", "-c", "write -q -P 7 1m 100k", "-c", "write -q -z 2m 64k", text(&overlay)],
    );
    let target = scene.folder("target");
    let formats = [
        ("raw", "raw", "raw"),
        ("vhd", "vhd", "vpc"),
        ("vhd-fixed", "vhd", "vpc"),
        ("qcow2", "qcow2", "qcow2"),
    ];
    for (source, read_as) in
        [(&raw, "raw"), (&vhd, "vpc"), (&fixed, "vpc"), (&qcow2, "qcow2"), (&overlay, "qcow2")]
    {
        for (format, ending, judged_as) in formats {
            let name = format!("{}-{format}.{ending}", source.file_stem().unwrap().display());
            let copy = target.join(read_as.to_owned() + &name);
            scene.sync(["--no-seed", "--format", format, text(source), text(&copy)]).expect(0);
            disks::assert_same_guest((source, read_as), (&copy, judged_as));
            scene.goldwire(["disk", "check", text(&copy)]).expect(0);
            if format == "qcow2" {
                let checked = Command::new("qemu-img").args(["check", "-q"]).arg(&copy).status().unwrap();
                assert!(checked.success(), "{}", copy.display());
            }
        }
    }
    // The name's ending asks for a container too.
    scene.sync([text(&vhd), text(&target.join("by-name.qcow2"))]).expect(0);
    disks::assert_same_guest((&vhd, "vpc"), (&target.join("by-name.qcow2"), "qcow2"));
}
