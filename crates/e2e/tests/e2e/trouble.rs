//! `goldwire sync` when something goes wrong or somebody wants it to stop: hosts, agents, disks, sources, signals.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use goldwire_stdx::testing;
use rustix::process::Signal;
use serde_json::Value;

use crate::disks::Guest;
use crate::hosts::{Hosts, Wish};
use crate::machine::{self, Tmpfs};
use crate::sync::text;
use crate::tool::{Finished, Run, Running, Scene, programs};

/// Whether something has been received and something has not.
fn is_underway(event: &Value) -> bool {
    let count = |field: &str| event[field].as_u64().unwrap_or(0);
    event["event"] == "progress"
        && count("chunks_received") > 0
        && count("chunks_done") < count("chunks_total")
}

/// What a stopped run must leave behind: it said so, nothing is published, and the same command goes on.
#[track_caller]
fn assert_continues(scene: &Scene, stopped: &Finished, arguments: &[&str], guest: &Guest) {
    let last = stopped.events_of("progress").pop().unwrap();
    let failed = stopped.event("failed");
    assert!(failed["hints"].to_string().contains("same command"), "{stopped}");
    let rest = scene.sync(["--no-seed"]).arguments(arguments).expect(0);
    let planned = rest.event("planned");
    let resumed = planned["chunks_resumed"].as_u64().unwrap();
    assert!(resumed > 0 && resumed >= last["chunks_done"].as_u64().unwrap(), "{last}\n{rest}");
    assert_eq!(resumed + planned["chunks_missing"].as_u64().unwrap(), guest.chunks_used() as u64, "{rest}");
    assert_eq!(rest.event("done")["chunks_received"], planned["chunks_missing"], "{rest}");
}

#[test]
fn a_damaged_agent_is_installed_anew() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["one".into()]) else { return };
    let source = scene.path("golden.vhd");
    Guest::random(1, 8, 1).write_vhd(&source, 7);
    hosts.sync(&scene, [text(&source), &hosts.place(0, "first.vhd")]).expect(0);
    let [agent] = hosts.all[0].installed().try_into().unwrap();
    let whole = fs::read(&agent).unwrap();
    let mut other = whole.clone();
    // The padding at the very end: the program still runs, and is not the one that it says it is.
    *other.last_mut().unwrap() ^= 1;
    let script = |text: &str| text.as_bytes().to_vec();
    let damages = [
        ("empty", Vec::new()),
        ("torn", whole[..whole.len() / 2].to_vec()),
        ("of another build", other),
        ("not a program", script("nonsense\n")),
        ("one that fails", script("#!/bin/sh\nexit 1\n")),
        ("one that says nothing", script("#!/bin/sh\nexit 0\n")),
        ("one that talks", script("#!/bin/sh\necho hello\n")),
    ];
    for (number, (what, bytes)) in damages.into_iter().enumerate() {
        machine::put_program(&agent, &bytes);
        let run = hosts.sync(&scene, [text(&source), &hosts.place(0, &format!("{number}.vhd"))]).finish();
        assert_eq!(run.status.code(), Some(0), "{what}: {run}");
        assert!(fs::read(&agent).unwrap() == whole, "{what}: the agent is whole again");
        assert_eq!(hosts.all[0].installed().len(), 1, "{what}: and nothing else was left");
    }
}

#[test]
fn a_login_shell_that_talks_is_heard_out_up_to_a_limit() {
    let scene = Scene::new();
    let talk = |lines: usize| {
        Some(format!(
            "#!/bin/sh\ni=0\nwhile [ $i -lt {lines} ]; do\n\
             echo 'Welcome to this machine. Unauthorised use is prohibited. GOLDWIRE'; i=$((i+1))\ndone\n\
             echo on stderr too >&2\nexec sh -c \"$SSH_ORIGINAL_COMMAND\"\n"
        ))
    };
    let noisy = |name, lines| Wish { name, force_command: talk(lines), ..Wish::default() };
    let Some(hosts) = Hosts::start(&scene, &[noisy("one", 900), noisy("two", 2000)]) else { return };
    let source = scene.path("golden.vhd");
    Guest::random(2, 8, 1).write_vhd(&source, 7);
    hosts.sync(&scene, [text(&source), &hosts.place(0, "a.vhd")]).expect(0);
    hosts.sync(&scene, [&*hosts.place(0, "a.vhd"), text(&scene.path("back.vhd"))]).expect(0);
    let two = hosts.place(1, "a.vhd");
    let refused = hosts.sync(&scene, [text(&source), &two]).expect(1);
    assert!(refused.event("failed").to_string().contains("prints so much"), "{refused}");
}

#[test]
fn hosts_that_fail_are_reported_and_the_others_are_served() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["good".into(), "impostor".into(), "gone".into()]) else {
        return;
    };
    let source = scene.path("golden.vhd");
    Guest::random(3, 8, 2).write_vhd(&source, 7);
    // The impostor's key is not the one that is known for it; where `gone` was, nobody listens.
    let known = fs::read_to_string(scene.path("keys/known")).unwrap();
    let key_of = |name: &str| {
        let line = known.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_once(' ').unwrap().1.to_owned()
    };
    let swapped = known.replace(&key_of("impostor"), &key_of("gone"));
    fs::write(scene.path("keys/known"), swapped).unwrap();
    let config = fs::read_to_string(&hosts.config).unwrap();
    let (before, after) = config.split_once("Host gone\n").unwrap();
    fs::write(&hosts.config, format!("{before}Host gone\n  ProxyCommand false\n{after}")).unwrap();

    let [good, impostor, gone] = [0, 1, 2].map(|number| hosts.place(number, ""));
    let absent = hosts.place(0, "no/such/folder/");
    let run = hosts.sync(&scene, [text(&source), &gone, &impostor, &good, &absent]).expect(3);
    assert_eq!(run.event_at("done", &good)["already_there"], false);
    assert!(run.event_at("failed", &impostor).to_string().contains("ost key"), "{run}");
    assert_eq!(run.event_at("failed", &gone)["kind"], "disconnected", "{run}");
    assert!(run.event_at("failed", &absent)["hints"].to_string().contains("mkdir -p"), "{run}");
    let summary = run.event("summary");
    assert_eq!(
        (&summary["done"], &summary["failed"], &summary["exit_code"]),
        (&1.into(), &3.into(), &3.into())
    );
    assert!(machine::visible(&hosts.all[1].sr).is_empty());

    let nothing = hosts.sync(&scene, [text(&source), &gone, &impostor]).expect(1);
    assert_eq!(nothing.event("summary")["exit_code"], 1);
    let no_source = hosts.sync(&scene, [&*hosts.place(2, "x.vhd"), &good]).expect(1);
    assert!(no_source.event("failed")["message"].to_string().contains("source"), "{no_source}");
    let summary = no_source.event("summary");
    assert_eq!((&summary["done"], &summary["failed"]), (&0.into(), &1.into()), "{no_source}");
    assert!(summary["seconds"].is_f64(), "{no_source}");
}

#[test]
fn a_target_that_stands_still_holds_up_nobody() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["master".into(), "slow".into(), "quick".into()]) else { return };
    let guest = Guest::random(4, 32, 24);
    guest.write_vhd(&hosts.all[0].file("golden.vhd"), 7);
    let [from, slow, quick] =
        [(0, "golden.vhd"), (1, ""), (2, "")].map(|(host, file)| hosts.place(host, file));
    for route in ["direct", "relay"] {
        let limits = ["--route", route, "--bwlimit", "16M", &from, &slow, &quick];
        let mut run = hosts.sync(&scene, limits).start();
        run.wait_for(|event| event["target"] == slow && event["event"] == "progress");
        let [agent] = hosts.all[1].agents().try_into().unwrap();
        machine::signal(agent, Signal::STOP);
        run.wait_for(|event| event["target"] == quick && event["event"] == "done");
        assert!(!hosts.all[1].file("golden.vhd").exists());
        machine::signal(agent, Signal::CONT);
        let run = run.finish().expect(0);
        assert_eq!(run.event_at("done", &slow)["root"], run.event_at("done", &quick)["root"]);
        for number in [1, 2] {
            fs::remove_file(hosts.all[number].file("golden.vhd")).unwrap();
        }
    }
}

/// A slow sync that has begun to receive; without a seed, because the source may lie beside the target.
fn underway(scene: &Scene, arguments: &[&str]) -> Running {
    let slowly = ["--no-seed", "--bwlimit", "3M", "--compress-level", "0"];
    let mut run = scene.sync(slowly).arguments(arguments).start();
    run.wait_for(is_underway);
    run
}

#[test]
fn two_syncs_to_one_target_exclude_each_other() {
    let scene = Scene::new();
    let [source, target] = ["golden.vhd", "target.vhd"].map(|name| scene.path(name));
    Guest::random(5, 16, 8).write_vhd(&source, 7);
    let first = underway(&scene, &[text(&source), text(&target)]);
    let second = scene.sync([text(&source), text(&target)]).expect(1);
    assert_eq!(second.event("failed")["kind"], "busy");
    // Another name in the same folder is another target.
    scene.sync([text(&source), text(&scene.path("other.vhd"))]).expect(0);
    first.finish().expect(0);
    assert_eq!(machine::digest(&target), machine::digest(&scene.path("other.vhd")));
}

#[test]
fn a_disk_that_is_too_small_is_refused_before_the_first_byte() {
    let scene = Scene::new();
    let Some(small) = Tmpfs::mount(scene.folder("small"), 6) else { return };
    let source = scene.path("golden.vhd");
    Guest::random(6, 16, 10).write_vhd(&source, 7);
    let run = scene.sync([text(&source), text(&small.folder)]).expect(1);
    assert_eq!(run.event("failed")["kind"], "space");
    assert!(run.event("failed")["message"].to_string().contains("needs"), "{run}");
    assert!(run.events_of("planned").is_empty() && run.events_of("progress").is_empty(), "{run}");
    assert!(machine::visible(&small.folder).is_empty());
    let left: u64 = machine::listing(&small.folder).iter().map(|(path, _)| machine::occupied(path)).sum();
    assert!(left < 64 * 1024, "{left} bytes left");
}

#[test]
fn a_disk_that_fills_up_midway_leaves_what_the_next_run_continues() {
    let scene = Scene::new();
    let Some(small) = Tmpfs::mount(scene.folder("small"), 24) else { return };
    let (source, filler) = (scene.path("golden.vhd"), small.folder.join("filler"));
    let guest = Guest::random(7, 32, 14);
    guest.write_vhd(&source, 7);
    let target = small.folder.join("golden.vhd");
    let arguments = [text(&source), text(&target)];
    let run = underway(&scene, &arguments);
    let mut size = 0_u64;
    let file = File::create(&filler).unwrap();
    while file.write_all_at(&[1; 4096], size).is_ok() {
        size += 4096;
    }
    let run = run.finish().expect(1);
    let failed = run.event("failed");
    assert_eq!(failed["kind"], "space", "{run}");
    assert!(failed["hints"].to_string().contains("free some space"), "{run}");
    assert!(!target.exists());

    drop(file);
    fs::remove_file(&filler).unwrap();
    let last = run.events_of("progress").pop().unwrap();
    let rest = scene.sync(arguments).expect(0);
    let resumed = rest.event("planned")["chunks_resumed"].as_u64().unwrap();
    assert!(resumed > 0 && resumed >= last["chunks_done"].as_u64().unwrap(), "{last}\n{rest}");
    scene.goldwire(["disk", "compare", text(&source), text(&target)]).expect(0);
}

#[test]
fn a_source_that_changes_while_it_is_read_is_never_published() {
    let scene = Scene::new();
    let source = scene.path("golden.raw");
    let target = scene.path("target.vhd");
    let guest = Guest::random(8, 32, 8);
    guest.write_raw(&source);
    let file = File::options().write(true).open(&source).unwrap();

    // Somebody writes all the time, from before the first byte is read.
    let is_over = AtomicBool::new(false);
    let run = thread::scope(|scope| {
        goldwire_stdx::spawn_scoped(scope, "trouble", || {
            for count in 0_u64.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                file.write_all_at(&count.to_le_bytes(), (count * 4096) % (32 << 20)).unwrap();
            }
        })
        .unwrap();
        let run = scene.sync([text(&source), text(&target)]).finish();
        is_over.store(true, Ordering::Relaxed);
        run
    });
    let run = run.expect(1);
    assert_eq!(run.event("failed")["kind"], "source-changed");
    assert!(!target.exists());

    // A single write, when most has been sent already.
    guest.write_raw(&source);
    let run = underway(&scene, &[text(&source), text(&target)]);
    file.write_all_at(b"one write is enough", 5000).unwrap();
    let run = run.finish().expect(1);
    assert_eq!(run.event("failed")["kind"], "source-changed");
    assert!(run.event("failed")["hints"].to_string().contains("snapshot"), "{run}");
    assert!(!target.exists());

    // Left alone, it is published, with what it holds now.
    scene.sync([text(&source), text(&target)]).expect(0);
    scene.goldwire(["disk", "compare", text(&source), text(&target)]).expect(0);
}

#[test]
fn the_bandwidth_limit_holds() {
    let scene = Scene::new();
    let source = scene.path("golden.vhd");
    Guest::random(9, 16, 6).write_vhd(&source, 7);
    let target = scene.path("target.vhd");
    let run = scene.sync(["--no-seed", "--bwlimit", "4M", text(&source), text(&target)]).expect(0);
    let phase = |name: &str| {
        let events = run.events_of("phase");
        events.iter().find(|event| event["phase"] == name).unwrap()["seconds"].as_f64().unwrap()
    };
    let seconds = phase("reading back") - phase("transferring");
    let bytes = run.event("done")["wire_in"].as_f64().unwrap();
    let rate = bytes / seconds / f64::from(4 << 20);
    assert!((0.3..1.3).contains(&rate), "{rate} of what was allowed: {run}");
}

#[test]
fn stopping_leaves_work_that_the_same_command_continues() {
    let scene = Scene::new();
    let source = scene.path("golden.vhd");
    let guest = Guest::random(10, 16, 8);
    guest.write_vhd(&source, 7);
    for signal in [Signal::INT, Signal::TERM] {
        let target = scene.path(&format!("{}.vhd", signal.as_raw()));
        let arguments = [text(&source), text(&target)];
        let run = underway(&scene, &arguments);
        run.signal(signal);
        let stopped = run.finish().expect(4);
        assert_eq!(stopped.event("failed")["kind"], "stopped");
        assert_eq!(stopped.event("summary")["exit_code"], 4);
        assert!(!target.exists());
        assert_continues(&scene, &stopped, &arguments, &guest);
    }
    let target = scene.path("timed.vhd");
    let arguments = [text(&source), text(&target)];
    // Eight seconds of sending, stopped in their middle however slowly a busy machine starts.
    let limits = ["--no-seed", "--max-time", "4s", "--bwlimit", "1M", "--compress-level", "0"];
    let stopped = scene.sync(limits).arguments(arguments).expect(4);
    assert_continues(&scene, &stopped, &arguments, &guest);
}

#[test]
fn a_stop_over_ssh_is_as_orderly() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["master".into(), "one".into(), "two".into()]) else { return };
    let guest = Guest::random(11, 32, 16);
    guest.write_vhd(&hosts.all[0].file("golden.vhd"), 7);
    let [from, one, two] = [(0, "golden.vhd"), (1, ""), (2, "")].map(|(host, file)| hosts.place(host, file));
    for route in ["direct", "relay"] {
        let limits = ["--route", route, "--bwlimit", "3M", "--compress-level", "0", &from, &one, &two];
        let mut run = hosts.sync(&scene, limits).start();
        let mut underway = BTreeSet::new();
        while underway.len() < 2 {
            underway.insert(run.wait_for(is_underway)["target"].to_string());
        }
        run.signal(Signal::INT);
        let stopped = run.finish().expect(4);
        assert_eq!(stopped.events_of("failed").len(), 2);
        for host in &hosts.all {
            goldwire_stdx::testing::until("the agents end", || host.agents().is_empty());
        }
        let rest = hosts.sync(&scene, ["--route", route, &from, &one, &two]).expect(0);
        for place in [&one, &two] {
            assert!(rest.event_at("planned", place)["chunks_resumed"].as_u64() > Some(0), "{rest}");
        }
        for number in [1, 2] {
            fs::remove_file(hosts.all[number].file("golden.vhd")).unwrap();
        }
    }
}

#[test]
fn a_pause_stops_the_data_and_a_resume_lets_it_go_on() {
    let scene = Scene::new();
    let [source, target] = ["golden.vhd", "target.vhd"].map(|name| scene.path(name));
    Guest::random(12, 16, 8).write_vhd(&source, 7);
    let mut run = underway(&scene, &[text(&source), text(&target)]);
    run.signal(Signal::USR1);
    // Progress is still told, five times a second; soon it is always the same.
    let mut last = Value::Null;
    let mut same = 0;
    let begun = Instant::now();
    while same < 5 {
        let progress = run.wait_for(|event| event["event"] == "progress");
        same = if progress["chunks_done"] == last { same + 1 } else { 0 };
        last = progress["chunks_done"].clone();
        assert!(
            progress["chunks_done"].as_u64() < progress["chunks_total"].as_u64(),
            "it went on: {progress}"
        );
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
    run.signal(Signal::USR2);
    run.wait_for(|event| event["event"] == "progress" && event["chunks_done"].as_u64() > last.as_u64());
    run.finish().expect(0);
}

#[test]
fn a_lost_connection_leaves_work_that_the_same_command_continues() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["one".into()]) else { return };
    let source = scene.path("golden.vhd");
    Guest::random(13, 16, 8).write_vhd(&source, 7);
    let there = hosts.place(0, "");
    let limits = ["--bwlimit", "3M", "--compress-level", "0", text(&source), &there];
    let mut run = hosts.sync(&scene, limits).start();
    run.wait_for(is_underway);
    let ssh = machine::descendants(run.pid()).into_iter().find(|pid| machine::arguments(*pid)[0] == "ssh");
    machine::kill(ssh.unwrap());
    let lost = run.finish().expect(1);
    assert_eq!(lost.event("failed")["kind"], "disconnected");
    goldwire_stdx::testing::until("the agent notices", || hosts.all[0].agents().is_empty());
    let last = lost.events_of("progress").pop().unwrap();
    let rest = hosts.sync(&scene, [text(&source), &there]).expect(0);
    assert!(
        rest.event("planned")["chunks_resumed"].as_u64() >= last["chunks_done"].as_u64(),
        "{last}\n{rest}"
    );
}

/// Each of two users has a work folder that is closed to the other; they still see each other's lock.
#[test]
fn two_users_who_sync_to_one_target_exclude_each_other() {
    if !testing::root() || testing::program("setpriv").is_none() {
        return;
    }
    let scene = Scene::new();
    let mode = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&scene.path(""), 0o755);
    // Where others may run it.
    let goldwire = scene.path("goldwire");
    fs::copy(&programs().goldwire, &goldwire).unwrap();
    let source = scene.path("golden.vhd");
    Guest::random(14, 16, 8).write_vhd(&source, 7);
    mode(&source, 0o644);
    let run_as = |user: u32, arguments: &[&str]| {
        let mut command = Command::new("setpriv");
        let who = ["reuid", "regid"].map(|what| format!("--{what}={user}"));
        command.args(who).arg("--clear-groups").arg(&goldwire).args(["sync", "--json"]).args(arguments);
        scene.run(command)
    };
    for (number, (first, second)) in [(4711, 0), (0, 4711), (4711, 4712)].into_iter().enumerate() {
        let folder = scene.folder(&format!("shared-{number}"));
        mode(&folder, 0o1777);
        let arguments = [text(&source), text(&folder)];
        let slowly = ["--no-seed", "--bwlimit", "3M", "--compress-level", "0", arguments[0], arguments[1]];
        let mut running = run_as(first, &slowly).start();
        running.wait_for(is_underway);
        let busy = run_as(second, &arguments).expect(1);
        assert_eq!(busy.event("failed")["kind"], "busy", "{busy}");
        assert!(busy.stdout.contains(&format!("of user {first} on")), "{busy}");
        let mut waiting = run_as(second, &["--wait", "100s", arguments[0], arguments[1]]).start();
        waiting.wait_for(|event| event["event"] == "notice" && event["text"].to_string().contains("waiting"));
        running.finish().expect(0);
        let waited = waiting.finish().expect(0);
        assert_eq!(waited.event("done")["already_there"], true, "{waited}");
        let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("lock")), "{left:?}");
    }
    // Who may not write there is told all the same that nothing is to be done, and who cannot give the disk away is told
    // before anything was sent.
    let folder = scene.folder("closed");
    scene.sync([text(&source), text(&folder)]).expect(0);
    mode(&folder, 0o555);
    for words in [&["--dry-run"][..], &[]] {
        let run = run_as(4711, &[words, &[text(&source), text(&folder)]].concat()).expect(0);
        assert_eq!(run.event("done")["already_there"], true, "{run}");
        let other = text(&folder.join("other.vhd")).to_owned();
        let refused = run_as(4711, &[words, &[text(&source), &other]].concat()).expect(1);
        assert!(refused.event("failed").to_string().contains("Permission denied"), "{refused}");
    }
    let open = scene.folder("open");
    mode(&open, 0o1777);
    for words in [&["--dry-run"][..], &[]] {
        let run = run_as(4711, &[words, &["--owner", "0:0", text(&source), text(&open)]].concat()).expect(1);
        assert!(run.event("failed").to_string().contains("set the owner"), "{run}");
        assert!(run.events_of("progress").is_empty(), "{run}");
        assert!(machine::visible(&open).is_empty(), "{run}");
    }
}

/// What would fail when everything has come is refused before the first byte, and leaves nothing.
#[test]
fn a_place_where_nothing_can_be_published_is_refused_before_the_first_byte() {
    let scene = Scene::new();
    let source = scene.path("golden.raw");
    Guest::random(15, 16, 2).write_raw(&source);
    let refuse = |run: Run, words: &str, folder: &Path| {
        let run = run.expect(1);
        let failed = run.event("failed");
        assert!(failed.to_string().contains(words) && failed["hints"][0].is_string(), "{run}");
        assert!(run.events_of("planned").is_empty(), "{run}");
        assert!(machine::visible(folder).is_empty());
        run
    };
    let folder = scene.folder("limited");
    let run_limited = |is_dry: bool| {
        let mut command = Command::new("sh");
        let limited = "ulimit -f 2048; exec \"$@\"";
        command.args(["-c", limited, "sh"]).arg(&programs().goldwire).args(["sync", "--json"]);
        command.args(is_dry.then_some("--dry-run")).args([&source, &folder]);
        scene.run(command)
    };
    for is_dry in [true, false] {
        refuse(run_limited(is_dry), "ulimit -f", &folder);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing is left");
    }
    // What is there already needs no leave to be written.
    scene.sync([text(&source), text(&folder)]).expect(0);
    for is_dry in [true, false] {
        let run = run_limited(is_dry).expect(0);
        assert_eq!(run.event("done")["already_there"], true, "{run}");
    }
    let apart = scene.folder("apart");
    if let Some(other) = Tmpfs::mount(scene.folder("apart/.goldwire"), 64) {
        fs::set_permissions(&other.folder, fs::Permissions::from_mode(0o700)).unwrap();
        refuse(scene.sync([text(&source), text(&apart)]), "another file system", &apart);
        assert_eq!(machine::listing(&apart), []);
    }
}
