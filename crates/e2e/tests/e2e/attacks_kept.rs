//! Attempts by what lies in a folder when a program comes back: links, programs, trees, descriptors and keys that somebody
//! else put there; and a boot server that needs no root at all.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use goldwire_stdx::testing;
use rustix::process::Signal;

use crate::attacks::{NOBODY, forged_tree};
use crate::disks::Guest;
use crate::hosts::Hosts;
use crate::lab::{Lab, address_by_udhcpc};
use crate::machine::put_program;
use crate::servers::{SCRIPT, Servers};
use crate::site::Site;
use crate::sync::text;
use crate::tool::{Scene, programs};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// After the first start the service's user owns the state folder: what he makes of it leads root nowhere.
#[test]
fn a_service_user_who_moves_his_folders_gains_nothing() {
    if !testing::root() {
        return;
    }
    let site = Site::new();
    let with_user = site.file().replacen("[server]\n", "[server]\nuser = 'nobody'\n", 1);
    fs::write(&site.config, &with_user).unwrap();
    set_mode(&site.scene.path(""), 0o755);
    set_mode(&site.scene.path("secret"), 0o640);
    // Debian's group of the same number.
    chown(site.scene.path("secret"), None, Some(NOBODY)).unwrap();
    let Some(mut server) = site.serve() else { return };
    server.signal(Signal::TERM);
    server.wait();
    let victims = site.scene.folder("victims");
    set_mode(&victims, 0o700);
    let state = site.scene.path("state");
    assert_eq!(fs::metadata(&state).unwrap().uid(), NOBODY);
    for (number, name) in ["leases", "timeline.jsonl", "timeline.1.jsonl", "lock"].into_iter().enumerate() {
        for kind in ["file", "folder", "missing"] {
            let victim = victims.join(format!("{number}-{kind}"));
            match kind {
                "file" => fs::write(&victim, "precious").unwrap(),
                "folder" => fs::create_dir(&victim).unwrap(),
                _ => {}
            }
            let link = state.join(name);
            let _ = fs::rename(&link, state.join(format!("moved-{number}-{kind}")));
            symlink(&victim, &link).unwrap();
            lchown(&link, Some(NOBODY), Some(NOBODY)).unwrap();
            let mut command = std::process::Command::new(&programs().goldwire);
            command.args(["boot", "serve", "--config", text(&site.config)]);
            let mut started = site.scene.run(command).start();
            // It serves, or it refuses; either way it has looked at the folder by then.
            let _ = started.wait_or_end(std::time::Duration::from_secs(3), |_| false);
            started.signal(Signal::TERM);
            let run = started.finish();
            let what = format!("{name} to a {kind}: {run}");
            match kind {
                "file" => assert_eq!(fs::read(&victim).unwrap(), b"precious", "{what}"),
                "folder" => assert_eq!(fs::read_dir(&victim).unwrap().count(), 0, "{what}"),
                _ => assert!(!victim.exists(), "{what}"),
            }
            if victim.exists() {
                assert_eq!(fs::metadata(&victim).unwrap().uid(), 0, "{what}");
            }
            fs::remove_file(&link).unwrap();
        }
    }
}

/// The cache folder's parent is everybody's, and somebody was there first.
#[test]
fn an_agent_that_somebody_planted_is_not_run() {
    if !testing::root() {
        return;
    }
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["one".into()]) else { return };
    let source = scene.path("golden.raw");
    Guest::random(21, 8, 1).write_raw(&source);
    hosts.sync(&scene, [text(&source), &hosts.place(0, "first.raw")]).expect(0);
    let [agent] = hosts.all[0].installed().try_into().unwrap();
    let (folder, around) = (agent.parent().unwrap(), agent.parent().unwrap().parent().unwrap());
    let victim = scene.path("victim");
    put_program(&agent, format!("#!/bin/sh\ntouch {}\nexit 1\n", victim.display()).as_bytes());
    set_mode(around, 0o1777);
    let give = |path: &Path| lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    give(&agent);
    for (number, what) in
        ["the program is another's", "so is the folder", "the folder is a link"].iter().enumerate()
    {
        match number {
            0 => {}
            1 => give(folder),
            _ => {
                let real = around.join("moved");
                fs::rename(folder, &real).unwrap();
                symlink(&real, folder).unwrap();
                give(folder);
            }
        }
        let target = format!("{number}.raw");
        let run = hosts.sync(&scene, [text(&source), &hosts.place(0, &target)]).finish();
        assert!(!victim.exists(), "{what}: {run}");
        if run.status.success() {
            assert_eq!(fs::read(hosts.all[0].file(&target)).unwrap(), fs::read(&source).unwrap(), "{what}");
        }
        testing::until("the agent ends", || hosts.all[0].agents().is_empty());
    }
}

/// Whoever signs has read what he signs, whatever was kept of it before.
#[test]
fn a_signature_is_for_the_bytes_and_not_for_what_was_kept_of_them() {
    let scene = Scene::new();
    let folder = scene.folder("images");
    let (image, other) = (folder.join("a.raw"), folder.join("b.raw"));
    Guest::random(22, 4, 1).write_raw(&image);
    Guest::random(23, 4, 1).write_raw(&other);
    let key = scene.path("key");
    scene.goldwire(["key", "new", text(&key)]).expect(0);
    let trees = folder.join(".goldwire/trees");
    testing::until("the trees are kept", || {
        scene.goldwire(["disk", "tree", text(&image), text(&other)]).expect(0);
        ["a.raw.tree", "b.raw.tree"].iter().all(|name| trees.join(name).exists())
    });
    let forged = forged_tree(&trees, "a.raw", "b.raw");
    fs::write(trees.join("a.raw.tree"), &forged).unwrap();
    scene.goldwire(["disk", "compare", text(&image), text(&other)]).expect(0);
    let required = format!("{}.pub", key.display());
    let signed = scene.path("signed.raw");
    let signing = [
        vec!["disk", "tree", "--sign", text(&key), text(&image)],
        vec!["sync", "--sign", text(&key), text(&image), text(&signed)],
    ];
    for sign in signing {
        scene.goldwire(&sign).expect(0);
        // Bytes and signature belong together, or the target refuses them.
        let copy = scene.path(&format!("copy-{}.raw", sign[0]));
        scene.goldwire(["sync", "--require-signature", &required, text(&image), text(&copy)]).expect(0);
        assert_eq!(fs::read(&copy).unwrap(), fs::read(&image).unwrap());
        fs::write(trees.join("a.raw.tree"), &forged).unwrap();
    }
}

/// A descriptor that was touched is refused as a whole, and stays as it is for who looks into it.
#[test]
fn a_broken_signature_is_not_silently_replaced() {
    let scene = Scene::new();
    let image = scene.path("a.raw");
    Guest::random(24, 4, 1).write_raw(&image);
    let key = scene.path("key");
    scene.goldwire(["key", "new", text(&key)]).expect(0);
    scene.goldwire(["disk", "tree", "--sign", text(&key), text(&image)]).expect(0);
    let descriptor = scene.path(".goldwire/versions/a.raw.gwv");
    let good = fs::read(&descriptor).unwrap();
    let required = format!("{}.pub", key.display());
    for at in [0, good.len() / 3, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&descriptor, &bad).unwrap();
        for required in [&[][..], &["--require-signature", &required]] {
            let copy = scene.path(&format!("copy-{at}-{}.raw", required.len()));
            let words = [&["sync"], required, &[text(&image), text(&copy)]].concat();
            let run = scene.goldwire(&words).finish();
            assert_eq!(run.status.code(), Some(1), "{at}: {run}");
            assert!(run.stderr.contains("a.raw.gwv"), "{at}: {run}");
            assert!(!copy.exists(), "{at}: {run}");
        }
        assert_eq!(fs::read(&descriptor).unwrap(), bad, "{at}");
    }
}

#[test]
fn a_secret_key_that_others_may_read_signs_nothing() {
    let scene = Scene::new();
    let image = scene.path("a.raw");
    Guest::random(25, 4, 1).write_raw(&image);
    let key = scene.path("key");
    scene.goldwire(["key", "new", text(&key)]).expect(0);
    for mode in [0o644, 0o640, 0o604, 0o660, 0o602] {
        set_mode(&key, mode);
        let copy = scene.path("copy.raw");
        let signing = [
            vec!["disk", "tree", "--sign", text(&key), text(&image)],
            vec!["sync", "--sign", text(&key), text(&image), text(&copy)],
        ];
        for words in signing {
            let run = scene.goldwire(&words).expect(1);
            assert!(run.stderr.contains("hint: ") && run.stderr.contains("chmod"), "{mode:o}: {run}");
            assert!(!copy.exists() && !scene.path(".goldwire/versions/a.raw.gwv").exists(), "{mode:o}");
        }
    }
    set_mode(&key, 0o600);
    scene.goldwire(["disk", "tree", "--sign", text(&key), text(&image)]).expect(0);
}

/// A pattern stays in its folder: what a link names lies elsewhere, and may be anything.
#[test]
fn a_pattern_finds_nothing_through_links() {
    let scene = Scene::new();
    let (images, elsewhere) = (scene.folder("images"), scene.folder("elsewhere"));
    Guest::random(26, 4, 1).write_raw(&elsewhere.join("secret.raw"));
    symlink(elsewhere.join("secret.raw"), images.join("win.raw")).unwrap();
    symlink(&elsewhere, images.join("more")).unwrap();
    let source = format!("{}/", images.display());
    let target = scene.folder("target");
    let run = scene.goldwire(["sync", "--match", "*.raw", &source, text(&target)]).finish();
    assert_ne!(run.status.code(), Some(0), "{run}");
    assert!(!target.join("win.raw").exists() && !target.join("secret.raw").exists(), "{run}");
}

/// Two capabilities are all that a boot server needs: for low ports, and to hear who has no address yet.
#[test]
fn a_boot_server_serves_as_an_ordinary_user_with_two_capabilities() {
    if testing::program("setpriv").is_none() || testing::program("udhcpc").is_none() {
        return;
    }
    let scene = Scene::new();
    let Some(lab) = Lab::up(&scene, 2) else { return };
    let servers = Servers::prepare(&scene, &SCRIPT);
    set_mode(&scene.path(""), 0o755);
    let goldwire = scene.path("goldwire");
    fs::copy(&programs().goldwire, &goldwire).unwrap();
    set_mode(&goldwire, 0o755);
    chown(scene.path("boot/state1"), Some(NOBODY), Some(NOBODY)).unwrap();
    for entry in fs::read_dir(servers.config(1).parent().unwrap()).unwrap().flatten() {
        chown(entry.path(), Some(NOBODY), None).unwrap();
    }
    let mut command = lab.command("srv1", "setpriv");
    let capabilities = "+net_bind_service,+net_raw";
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    command.args([format!("--inh-caps=-all,{capabilities}"), format!("--ambient-caps=-all,{capabilities}")]);
    command.arg(format!("--bounding-set=-all,{capabilities}"));
    command.arg(&goldwire).args(["boot", "serve", "--config", text(&servers.config(1))]);
    let service = lab.start("srv1", command);
    service.wait_for("ready");
    address_by_udhcpc(&lab, "srv2", "a");
}
