//! The command line beside `sync`: help, completions, manual, mistakes, and looking at disks.

use std::fs;

use crate::disks::{Guest, Parent, Vhd};
use crate::sync::text;
use crate::tool::Scene;

#[test]
fn help_completions_and_manual_are_there() {
    let scene = Scene::new();
    for words in [
        &["--help"][..],
        &["sync", "--help"],
        &["disk", "--help"],
        &["disk", "info", "--help"],
        &["disk", "check", "--help"],
        &["disk", "convert", "--help"],
        &["disk", "compare", "--help"],
        &["disk", "tree", "--help"],
        &["key", "new", "--help"],
    ] {
        let help = scene.goldwire(words).expect(0);
        assert!(help.stdout.contains("Usage: goldwire"), "{help}");
    }
    let help = scene.goldwire(["sync", "--help"]).expect(0);
    for part in ["Exit codes: 0", "4 stopped", "--bwlimit", "--require-signature", "USR1", "Examples:"] {
        assert!(help.stdout.contains(part), "{part}: {help}");
    }
    let all = scene.goldwire(["--help"]).expect(0);
    assert!(!all.stdout.contains("agent"), "what only goldwire itself starts is hidden: {all}");
    for shell in ["bash", "zsh", "fish"] {
        let script = scene.goldwire(["completions", shell]).expect(0);
        assert!(script.stdout.contains("goldwire") && script.stdout.contains("require-signature"), "{shell}");
    }
    let folder = scene.folder("man");
    scene.goldwire(["man", text(&folder)]).expect(0);
    for page in ["goldwire.1", "goldwire-sync.1", "goldwire-disk-convert.1", "goldwire-key-new.1"] {
        let source = fs::read_to_string(folder.join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(source.contains(".TH "), "{page}");
    }
    assert!(scene.goldwire(["--version"]).expect(0).stdout.starts_with("goldwire 0."));
}

/// Whoever makes files may name them as he likes; every command that tells paths tells these, too.
#[test]
fn a_name_that_is_no_text_is_told_by_every_command() {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    let scene = Scene::new();
    for (number, name) in
        [&b"a\xff.raw"[..], b"\xc3(.raw", b"\xed\xa0\x80.raw", b"a\nb\x1b[31m.raw"].iter().enumerate()
    {
        let folder = scene.folder(&number.to_string());
        let image = folder.join(OsString::from_vec(name.to_vec()));
        crate::disks::Guest::random(3, 1, 1).write_raw(&image);
        let lock = folder.join(OsString::from_vec([b".", &name[..], b".goldwire-lock"].concat()));
        std::fs::write(lock, "").unwrap();
        let commands: [&[&str]; 5] = [
            &["disk", "info"],
            &["disk", "check"],
            &["disk", "tree"],
            &["disk", "compare"],
            &["disk", "convert"],
        ];
        for words in commands {
            for json in [&[][..], &["--json"]] {
                let mut words: Vec<OsString> = words.iter().chain(json).map(OsString::from).collect();
                words.push(image.clone().into());
                match words[1].to_str() {
                    Some("compare") => words.push(image.clone().into()),
                    Some("convert") => words.push(folder.join(format!("copy{}.raw", json.len())).into()),
                    _ => {}
                }
                let run = scene.goldwire(&words).finish();
                // What keeps something under the name, or names it to a host, refuses one that is no text, in words.
                let is_refused = match run.status.code() {
                    Some(1) => {
                        run.stderr.contains("it has no name in UTF-8")
                            || run.stderr.contains("rename the image")
                    }
                    Some(2) => run.stderr.contains("invalid UTF-8"),
                    _ => false,
                };
                assert!(run.status.success() || is_refused, "{words:?}: {run}");
                assert!(!run.stdout.contains('\x1b') && !run.stderr.contains('\x1b'), "{words:?}: {run}");
            }
        }
        for words in [
            &["disk", "tidy", "--dry-run", "--json"][..],
            &["disk", "tidy", "--json"],
            &["disk", "tidy", "--all"],
        ] {
            let run = scene.goldwire([words, &[folder.to_str().unwrap()]].concat()).expect(0);
            assert!(!run.stdout.contains('\x1b') && !run.stderr.contains('\x1b'), "{words:?}: {run}");
        }
    }
}

/// Programs that read lines of JSON found none, and had to read the sentences on standard error.
#[test]
fn with_json_an_error_is_an_object_as_a_sync_prints_it() {
    let scene = Scene::new();
    for words in [
        &["disk", "info", "--json", "absent"][..],
        &["disk", "check", "--json", "absent"],
        &["disk", "compare", "--json", "absent", "absent"],
        &["disk", "tidy", "--json", "absent"],
        &["disk", "convert", "--json", "absent", "b.raw"],
        &["image", "list", "--json", "--store", "absent"],
        &["store", "stat", "--json", "absent"],
        &["boot", "explain", "--json", "--config", "absent", "00:11:22:33:44:55"],
    ] {
        let run = scene.goldwire(words).expect(1);
        let first = run.stdout.lines().next().unwrap_or_default();
        let event: serde_json::Value = serde_json::from_str(first).unwrap();
        assert_eq!(
            (&event["event"], &event["kind"]),
            (&"failed".into(), &"other".into()),
            "{words:?}: {run}"
        );
        assert!(event["message"].as_str().is_some_and(|message| message.contains("absent")), "{run}");
        assert!(event["causes"].is_array() && event["hints"].is_array(), "{run}");
        assert!(run.stderr.starts_with("error: "), "{run}");
    }
}

#[test]
fn wrong_usage_is_exit_code_2_and_touches_nothing() {
    let scene = Scene::new();
    for words in [
        &[][..],
        &["sink"],
        &["sync"],
        &["sync", "a.vhd"],
        &["sync", "--nonsense", "a", "b"],
        &["sync", "--youngest", "--uuid", "11111111-1111-1111-1111-111111111111", "a", "b"],
        &["sync", "--uuid", "123", "a", "b"],
        &["sync", "--seed", "x", "--no-seed", "a", "b"],
        &["sync", "--json", "--quiet", "a", "b"],
        &["sync", "--mode", "9", "a", "b"],
        &["sync", "--owner", "root", "a", "b"],
        &["sync", "--bwlimit", "0", "a", "b"],
        &["sync", "--bwlimit", "25:00,1M", "a", "b"],
        &["sync", "--max-time", "soon", "a", "b"],
        &["sync", "--nice", "20", "a", "b"],
        &["sync", "--ionice", "realtime", "a", "b"],
        &["sync", "--compress-level", "99", "a", "b"],
        &["sync", "--threads", "0", "a", "b"],
        &["sync", "--format", "floppy", "a", "b"],
        &["sync", "--route", "scenic", "a", "b"],
        &["disk", "info"],
        &["disk", "tree", "--parent", "xyz", "--sign", "k", "a"],
        &["completions", "tcl"],
        &["agent"],
    ] {
        let run = scene.goldwire(words).expect(2);
        assert!(run.stderr.contains("Usage") || run.stderr.contains("error:"), "{run}");
    }
    for words in [
        &["sync", "--json"][..],
        &["sync", "--json", "--mode", "9", "a", "b"],
        &["sync", "--json", "a", "b", "b"],
        &["boot", "explain", "--json", "--config", "x"],
        &["image", "--json", "nonsense"],
    ] {
        let run = scene.goldwire(words).expect(2);
        let event: serde_json::Value = serde_json::from_str(run.stdout.trim_end()).unwrap();
        assert_eq!((&event["event"], &event["kind"]), (&"failed".into(), &"usage".into()), "{run}");
        let message = event["message"].as_str().unwrap_or_default();
        let told = run.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(!message.is_empty() && told.contains(message), "{run}");
    }
    assert_eq!(scene.goldwire(["sync", "a", "b", "b"]).expect(2).stdout, "");
    assert!(scene.goldwire(["sync", "--json", "--help"]).expect(0).stdout.starts_with("Bring"));
    let left: Vec<_> =
        fs::read_dir(scene.path("")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left, ["home"]);
}

#[test]
fn errors_name_the_thing_its_causes_and_a_hint() {
    let scene = Scene::new();
    let image = scene.path("a.vhd");
    Guest::random(1, 4, 1).write_vhd(&image, 1);
    let whole = fs::read(&image).unwrap();
    fs::write(scene.path("torn.vhd"), &whole[..whole.len() / 2]).unwrap();
    scene.goldwire(["key", "new", "k"]).expect(0);
    let twice = scene.goldwire(["sync", "a.vhd", "a.vhd"]).expect(2);
    assert!(twice.stderr.contains("same place"), "{twice}");
    for (words, parts) in [
        (&["sync", "no.vhd", "b.vhd"][..], &["no.vhd", "No such file", "hint: ", "HOST:PATH"][..]),
        (&["sync", "a.vhd", "no/b.vhd"], &["no", "No such file", "hint: ", "mkdir -p no"]),
        (&["sync", "a.vhd", "no/"], &["folder no", "No such file", "hint: ", "mkdir -p no"]),
        (&["sync", "a.vhd", ".hidden"], &[".hidden", "hint: "]),
        (&["sync", "--match", "*.vhd", "a.vhd", "b"], &["a.vhd is a file"]),
        (&["sync", "--match", "x*", ".", "b"], &["no image fits", "hint: "]),
        (&["sync", "--ssh-command", "'", "a.vhd", "b.vhd"], &["--ssh-command"]),
        (
            &["sync", "--ssh-command", "false", "a.vhd", "host:/b"],
            &["reach host", "exit code 1", "hint: ", "false host true"],
        ),
        (&["sync", "--ssh-command", "/no/ssh", "a.vhd", "host:/b"], &["start /no/ssh"]),
        (&["sync", "--sign", "no.key", "a.vhd", "b.vhd"], &["no.key"]),
        // The two files of a key, each in the place of the other.
        (&["sync", "--sign", "k.pub", "a.vhd", "b.vhd"], &["k.pub: not a", "hint: ", "FILE signs"]),
        (&["sync", "--require-signature", "k", "a.vhd", "b.vhd"], &["k: not a", "hint: ", "FILE.pub"]),
        (&["sync", "--agent-program", "a.vhd", "a.vhd", "b.vhd"], &["a.vhd is no Linux program"]),
        (&["sync", "torn.vhd", "b.vhd"], &["torn.vhd"]),
        (&["disk", "info", "no.vhd"], &["no.vhd"]),
        (&["disk", "convert", "host:/a", "b"], &["use goldwire sync"]),
        (&["disk", "convert", ".", "b.vhd"], &["images fit", "modified 20"]),
        (&["key", "new", "a.vhd"], &["a.vhd", "exists"]),
    ] {
        let run = scene.goldwire(words).expect(1);
        for part in parts {
            assert!(run.stderr.to_lowercase().contains(&part.to_lowercase()), "{part}: {run}");
        }
        assert!(!run.stderr.contains("panicked"), "{run}");
    }
    // Nothing but a sync writes to other hosts.
    for (command, is_told) in [(&["sync"][..], true), (&["disk", "convert"], false)] {
        let run = scene.goldwire([command, &["a.vhd", "no/b.vhd"]].concat()).expect(1);
        assert_eq!(run.stderr.contains("with a colon it is one on a host"), is_told, "{run}");
    }
    assert_eq!(fs::read(&image).unwrap(), whole);
}

#[test]
fn disks_are_described_checked_and_compared_for_programs_and_people() {
    let scene = Scene::new();
    let (base, top, other) = (scene.path("base.vhd"), scene.path("top.vhd"), scene.path("other.raw"));
    let guest = Guest::random(1, 8, 2);
    let changed = guest.rewritten(2, 1);
    guest.write(&base, &Vhd { uuid: 0x11, hidden: true, ..Vhd::default() });
    let parent = Some(Parent { name: "base.vhd", uuid: 0x11, guest: &guest });
    changed.write(&top, &Vhd { uuid: 0x22, parent, ..Vhd::default() });
    guest.write_raw(&other);

    let info = scene.goldwire(["disk", "info", "--json", text(&base), text(&top)]).expect(0).events();
    assert_eq!(info[0]["uuid"], "11111111-1111-1111-1111-111111111111");
    assert_eq!((&info[0]["hidden"], &info[0]["size"]), (&true.into(), &(8 << 20).into()));
    assert_eq!(info[1]["format"], "vhd-differencing");
    assert_eq!(info[1]["chain"].as_array().unwrap().len(), 2);
    let said = scene.goldwire(["disk", "info", text(&top)]).expect(0);
    assert!(said.stdout.contains("8.0 MiB") && said.stdout.contains("base.vhd"), "{said}");

    let trees =
        scene.goldwire(["disk", "tree", "--json", text(&base), text(&other), text(&top)]).expect(0).events();
    assert_eq!(trees[0]["root"], trees[1]["root"], "one content, one root, whatever the container");
    assert_ne!(trees[0]["root"], trees[2]["root"]);
    let same = scene.goldwire(["disk", "compare", "--json", text(&base), text(&other)]).expect(0).events();
    assert_eq!((&same[0]["identical"], &same[0]["left_root"]), (&true.into(), &trees[0]["root"]));
    let differ = scene.goldwire(["disk", "compare", "--json", text(&top), text(&other)]).expect(5).events();
    assert_eq!(differ[0]["identical"], false);
    let chunk = 64 * 1024;
    let differing = guest.0.chunks(chunk).zip(changed.0.chunks(chunk)).filter(|(a, b)| a != b).count();
    assert_eq!(differ[0]["chunks_differing"], differing);

    let checked = scene.goldwire(["disk", "check", "--json", text(&base), text(&top)]).expect(0).events();
    assert!(checked.iter().all(|check| check["errors"] == 0), "{checked:?}");
    let mut bytes = fs::read(&base).unwrap();
    let footer = bytes.len() - 512;
    bytes[footer + 100] ^= 1;
    fs::write(&base, bytes).unwrap();
    let checked = scene.goldwire(["disk", "check", "--json", text(&base)]).expect(5);
    assert!(checked.events()[0]["errors"].as_u64() > Some(0), "{checked}");
    // Programs hear, too, that what was read is not what a whole file would be.
    for words in [&["info", "--json"][..], &["tree", "--json"], &["compare", "--json", text(&other)]] {
        let run = scene.goldwire([&["disk"], words, &[text(&base)]].concat()).expect(0);
        assert!(run.events()[0]["notices"][0].as_str().unwrap().contains("no good footer"), "{run}");
    }

    scene.goldwire(["disk", "convert", text(&other), text(&scene.path("copy.qcow2"))]).expect(0);
    scene.goldwire(["disk", "compare", text(&other), text(&scene.path("copy.qcow2"))]).expect(0);
    scene.goldwire(["disk", "convert", text(&top), text(&scene.path("copy.qcow2"))]).expect(1);
}
