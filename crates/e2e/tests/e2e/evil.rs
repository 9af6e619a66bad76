//! A source host whose agent lies, over a real `ssh`: whatever it says, the target publishes only what was asked for, or
//! nothing, and the person hears why.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use goldwire_stdx::testing;

use crate::disks::Guest;
use crate::hosts::{Hosts, Wish};
use crate::machine;
use crate::sync::text;
use crate::tool::{Scene, build_example, programs};

/// The agent that lies, and what it lies with.
struct Evil {
    scene: Scene,
    hosts: Hosts,
    program: PathBuf,
    key: PathBuf,
}

impl Evil {
    /// Two versions of one disk, signed by one key, the newer one with its descriptor.
    fn new() -> Option<Self> {
        testing::program("sshd")?;
        let scene = Scene::new();
        let script = scene.path("liar.sh");
        let force = format!("#!/bin/sh\nexec sh {}\n", script.display());
        let wishes =
            [Wish { name: "master", force_command: Some(force), ..Wish::default() }, "target".into()];
        let hosts = Hosts::start(&scene, &wishes)?;
        let key = scene.path("key");
        scene.goldwire(["key", "new", text(&key)]).expect(0);
        let program = build_example("goldwire-replicate", "evil_agent");
        let evil = Self { scene, hosts, program, key };
        for (name, seed) in [("old.raw", 1), ("golden.raw", 2)] {
            let image = evil.file(name);
            Guest::random(seed, 16, 4).write_raw(&image);
            // A version was created when its image was last written.
            let written = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seed);
            File::options().write(true).open(&image).unwrap().set_modified(written).unwrap();
            let sign = ["disk", "tree", "--sign", text(&evil.key), text(&image)];
            evil.scene.goldwire(sign).expect(0);
        }
        Some(evil)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.hosts.all[0].file(name)
    }

    fn descriptor(&self, name: &str) -> PathBuf {
        self.hosts.all[0].file(&format!(".goldwire/versions/{name}.gwv"))
    }

    /// The source host's agent tells this lie from now on.
    fn tell(&self, lie: &str) {
        let honest = text(&programs().agent);
        let line = format!("exec {} {honest} {lie}\n", self.program.display());
        fs::write(self.scene.path("liar.sh"), line).unwrap();
    }
}

#[test]
fn whatever_a_source_says_nothing_wrong_is_published() {
    let Some(evil) = Evil::new() else { return };
    let (old, golden) = (evil.file("old.raw"), evil.descriptor("golden.raw"));
    let content = format!("content {} {}", old.display(), golden.display());
    let older = format!("content {}", old.display());
    let job = format!("{} {}", content.replace("content", "job"), evil.descriptor("old.raw").display());
    let key = format!("{}.pub", evil.key.display());
    let signed = ["--require-signature", &key];
    let plain: [&str; 0] = [];
    let honest = text(&programs().agent);
    let (direct, relay) = ("direct", "relay");
    // The lie, by which route, what is asked of the source, and words of the refusal.
    let lies: &[(&str, &str, &[&str], &str)] = &[
        ("name", direct, &plain, "not what it was asked for"),
        ("name", relay, &plain, "not what it was asked for"),
        ("name", relay, &signed, "not what it was asked for"),
        (&content, direct, &plain, "have the digest"),
        (&content, relay, &plain, "have the digest"),
        (&content, relay, &signed, "have the digest"),
        ("root", direct, &plain, "have the digest"),
        ("root", relay, &plain, "have the digest"),
        ("root", relay, &signed, "signed by nobody"),
        ("done-root", direct, &plain, "says that it holds the root 0707"),
        (&job, direct, &plain, "says that it holds the root"),
        ("never-done", direct, &plain, "has come no further"),
        ("never-done", relay, &plain, "has come no further"),
        ("never-done", relay, &signed, "has come no further"),
        ("flood", direct, &plain, "has come no further"),
        ("flood", relay, &plain, "has come no further"),
    ];
    let from = evil.hosts.place(0, "golden.raw");
    for (number, (lie, route, asked, words)) in lies.iter().enumerate() {
        evil.tell(lie);
        let name = format!("{number}.raw");
        let to = evil.hosts.place(1, &name);
        let run = evil
            .hosts
            .sync(
                &evil.scene,
                ["--agent-program", honest, "--stall-time", "3s", "--no-seed", "--route", route],
            )
            .arguments(*asked)
            .arguments([&from, &to])
            .expect(1);
        assert!(run.event("failed").to_string().contains(words), "{lie} by {route} {asked:?}: {run}");
        // What the target published it has read back; it may be there only where the lie is about how it ended.
        let is_true = ["done-root", "never-done", "flood"].contains(lie) && *route == direct;
        let file = evil.hosts.all[1].file(&name);
        if file.exists() {
            let is_golden = machine::digest(&file) == machine::digest(&evil.file("golden.raw"));
            let is_told = *lie == job;
            assert!(is_told || (is_true && is_golden), "{lie} by {route} {asked:?}: {run}");
        }
        goldwire_stdx::testing::until("the agents end", || evil.hosts.all[1].agents().is_empty());
    }

    // The direct route is not for who trusts nobody but the signer.
    evil.tell(&job);
    let to = evil.hosts.place(1, "signed.raw");
    let refused = evil
        .hosts
        .sync(
            &evil.scene,
            ["--agent-program", honest, "--route", direct, "--require-signature", &key, &from, &to],
        )
        .expect(1);
    assert!(refused.event("failed").to_string().contains("must not pass on"), "{refused}");

    // An older version of the right signer takes the place of no newer one, unless somebody goes back on purpose.
    evil.tell("nothing");
    let replace = ["--agent-program", honest, "--replace", "--require-signature", &key, &from, &to];
    evil.hosts.sync(&evil.scene, replace).expect(0);
    evil.tell(&older);
    let refused = evil.hosts.sync(&evil.scene, replace).expect(1);
    assert!(refused.event("failed").to_string().contains("created later"), "{refused}");
    let file = evil.hosts.all[1].file("signed.raw");
    assert_eq!(machine::digest(&file), machine::digest(&evil.file("golden.raw")));
    evil.hosts.sync(&evil.scene, ["--allow-older"]).arguments(replace).expect(0);
    assert_eq!(machine::digest(&file), machine::digest(&old));
}
