//! What README, guide and manual say: their commands are ones that the program takes, their paths lead somewhere, and
//! the example commands of README and guide run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::disks::Guest;
use crate::hosts::Hosts;
use crate::sync::text;
use crate::tool::{Scene, workspace};

/// Folders of ours whose paths documents name.
const OURS: [&str; 6] = ["crates/", "docs/", "examples/", "tools/", "bench/", "fuzz/"];

fn documents() -> Vec<PathBuf> {
    let root = workspace();
    let mut all: Vec<PathBuf> =
        fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.extend(
        ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "bench/README.md"].map(|name| root.join(name)),
    );
    all.retain(|path| path.extension().is_some_and(|ending| ending == "md"));
    all.sort();
    all
}

/// Words before a command that do not change what it is.
const BEFORE_A_COMMAND: [&str; 12] =
    ["$", "!", "if", "while", "do", "then", "sudo", "env", "exec", "nice", "time", "ip"];

/// The commands of ours in what is set as code: fenced, or indented below an empty line; `\` joined.
fn commands(document: &str) -> Vec<String> {
    let mut found = Vec::new();
    let joined = document.replace("\\\n", " ");
    let (mut is_fenced, mut is_indented, mut is_after_empty) = (false, false, true);
    for line in joined.lines() {
        if line.trim_start().starts_with("```") {
            is_fenced = !is_fenced;
        } else {
            is_indented = line.starts_with("    ") && (is_indented || is_after_empty);
            if (is_fenced || is_indented) && !line.contains('─') {
                found.extend(commands_of_line(line));
            }
        }
        is_after_empty = line.trim().is_empty();
    }
    found
}

/// The commands of ours in a line of shell: after a prompt, under `sudo` and its like, on either side of a pipe, by
/// whatever path.
fn commands_of_line(line: &str) -> Vec<String> {
    // Not everything is shell. In what is not, quotes need not close.
    let words = shlex::split(line).unwrap_or_else(|| line.split_whitespace().map(str::to_owned).collect());
    let is_end =
        |word: &String| matches!(word.as_str(), "|" | "||" | "&&" | ";" | "&") || word.ends_with(';');
    let mut found = Vec::new();
    for part in words.split_inclusive(is_end) {
        let is_redirection =
            |word: &&String| word.trim_start_matches(['1', '2', '&']).starts_with(['<', '>']);
        let part: Vec<&str> = part
            .iter()
            .take_while(|word| {
                !is_redirection(word) && (!is_end(word) || word.len() > 1 && word.ends_with(';'))
            })
            .map(|word| word.trim_end_matches(';'))
            .collect();
        let is_ours = |word: &&str| word.rsplit(['/', '=']).next() == Some("goldwire");
        let Some(first) = part.first() else { continue };
        let is_wrapped = BEFORE_A_COMMAND.contains(first) || first.contains('=');
        let Some(at) = part.iter().position(is_ours).filter(|at| *at == 0 || is_wrapped) else { continue };
        // `goldwire 2026-11 …` are contexts of digests, and `goldwire` alone is a name.
        if part.get(at + 1).is_some_and(|word| word.starts_with(|c: char| c.is_ascii_lowercase())) {
            let words = ["goldwire"].iter().chain(&part[at + 1..]).copied();
            found.push(shlex::try_join(words).unwrap());
        }
    }
    found
}

#[test]
fn commands_are_found_wherever_code_has_them() {
    for (line, expected) in [
        ("goldwire boot check", &["goldwire boot check"][..]),
        ("$ goldwire boot check   # whether it holds", &["goldwire boot check"]),
        ("# goldwire boot check", &[]),
        ("  sudo goldwire boot check", &["goldwire boot check"]),
        ("sudo -u boot LANG=C /usr/bin/goldwire boot check", &["goldwire boot check"]),
        ("LANG=C goldwire boot check > said 2>&1", &["goldwire boot check"]),
        ("ExecStart=/usr/bin/goldwire boot check", &["goldwire boot check"]),
        ("ip netns exec a goldwire boot check", &["goldwire boot check"]),
        ("if ! target/release/goldwire boot check; then", &["goldwire boot check"]),
        ("cat a | goldwire disk info 'b c' | head", &["goldwire disk info 'b c'"]),
        (
            "goldwire boot check && sudo goldwire boot serve &",
            &["goldwire boot check", "goldwire boot serve"],
        ),
        ("goldwire boot check || exit", &["goldwire boot check"]),
        ("it's goldwire boot check", &[]),
        ("goldwire 2026-11 tree", &[]),
        ("systemctl status goldwire boot", &[]),
    ] {
        assert_eq!(commands_of_line(line), expected, "{line}");
    }
    let check = ["goldwire boot check"];
    for document in [
        "```\ngoldwire boot check\n```",
        "- so:\n\n  ```sh\n  $ goldwire boot check\n  ```",
        "So:\n\n    goldwire boot check\n\nand",
        "```\ngoldwire boot \\\n   check\n```",
    ] {
        assert_eq!(commands(document), check, "{document}");
    }
    assert_eq!(commands("a\ngoldwire boot check\n    goldwire boot check\n"), [""; 0]);
}

/// What stands between single backquotes outside of fenced blocks.
fn code_spans(document: &str) -> Vec<&str> {
    document.split("```").step_by(2).flat_map(|text| text.split('`').skip(1).step_by(2)).collect()
}

/// The words of a command as a shell would split them. `a|b` in the place of a subcommand stands for several commands.
fn spelled_out(command: &str) -> Vec<Vec<String>> {
    let words = shlex::split(command).unwrap_or_else(|| panic!("{command}: quotes"));
    let (head, tail) = words.split_at(words.len().min(3));
    let mut all = vec![Vec::new()];
    for word in head {
        let ways: Vec<&str> = word.split('|').collect();
        all = all
            .iter()
            .flat_map(|before| {
                ways.iter().map(|way| [before.as_slice(), &[(*way).to_owned()]].concat()).collect::<Vec<_>>()
            })
            .collect();
    }
    // A synopsis goes on with words about its words.
    let tail: Vec<String> = tail.iter().take_while(|word| *word != "|").cloned().collect();
    all.into_iter().map(|command| [command, tail.clone()].concat()).collect()
}

/// With `--help` at its end a command does nothing but say whether everything before it is known.
#[test]
fn every_command_in_a_document_is_one_that_the_program_takes() {
    let scene = Scene::new();
    let mut count = 0;
    for path in documents() {
        let document = fs::read_to_string(&path).unwrap();
        let spans = code_spans(&document).into_iter().flat_map(commands_of_line);
        for command in commands(&document).into_iter().chain(spans) {
            for words in spelled_out(&command) {
                let words: Vec<_> =
                    words.iter().map(|word| word.replace("MAC", "52:54:00:12:34:56")).collect();
                let run = scene.goldwire(words[1..].iter().chain([&"--help".to_owned()])).finish();
                // A span may speak of an option without the value that it takes.
                let is_known = run.status.success() || run.stderr.contains("a value is required for");
                assert!(is_known, "{}: `{command}`: {run}", path.display());
                count += 1;
            }
        }
    }
    assert!(count > 50, "only {count} commands were found");
}

/// Options that README and guide speak of without a command.
#[test]
fn every_option_in_readme_and_guide_exists() {
    let scene = Scene::new();
    let folder = scene.folder("man");
    scene.goldwire(["man", text(&folder)]).expect(0);
    let pages: String = fs::read_dir(&folder)
        .unwrap()
        .map(|page| fs::read_to_string(page.unwrap().path()).unwrap())
        .collect();
    let pages = pages.replace("\\-", "-");
    for name in ["README.md", "docs/guide.md"] {
        let document = fs::read_to_string(workspace().join(name)).unwrap();
        for span in code_spans(&document) {
            // What begins with another program's name is that program's.
            let first = span.split(' ').next().unwrap_or_default();
            if !first.starts_with("--") && !["goldwire", "sync", "disk", "boot", "key"].contains(&first) {
                continue;
            }
            for word in span.split([' ', '=', '\'']).filter(|word| word.starts_with("--")) {
                assert!(pages.contains(word), "{name}: `{span}`: no command has {word}");
            }
        }
    }
}

#[test]
fn every_path_of_ours_that_a_document_names_is_there() {
    for path in documents() {
        let document = fs::read_to_string(&path).unwrap();
        for span in code_spans(&document) {
            if !OURS.iter().any(|folder| span.starts_with(folder)) || span.contains(['*', '<', ' ', '…']) {
                continue;
            }
            // `a/{b,c}/d` names two.
            let names = match (span.split_once('{'), span.split_once('}')) {
                (Some((before, _)), Some((inside, after))) => {
                    let inside = &inside[before.len() + 1..];
                    inside.split(',').map(|one| format!("{before}{one}{after}")).collect()
                }
                _ => vec![span.to_owned()],
            };
            for name in names {
                let place = workspace().join(&name);
                let is_there = place.exists() || place.with_extension("rs").exists();
                assert!(is_there, "{}: `{span}`: there is no {name}", path.display());
            }
        }
    }
}

#[test]
fn every_make_target_that_readme_names_exists() {
    let makefile = fs::read_to_string(workspace().join("Makefile")).unwrap();
    let readme = fs::read_to_string(workspace().join("README.md")).unwrap();
    let mut count = 0;
    for target in readme
        .split("make ")
        .skip(1)
        .filter_map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next())
    {
        if readme.contains(&format!("`make {target}`")) || readme.contains(&format!("\nmake {target}")) {
            assert!(makefile.contains(&format!("\n{target}:")), "make {target}");
            count += 1;
        }
    }
    assert!(count >= 3);
}

/// The sync commands of README and guide, and the guide's commands about keys, run on hosts of these names whose folders
/// hold an image of the name that the command gives.
#[test]
fn the_example_commands_of_readme_and_guide_run() {
    let scene = Scene::new();
    let names = ["master", "host1", "host2", "site2", "site3"];
    let Some(hosts) = Hosts::start(&scene, &names.map(Into::into)) else { return };
    let mut ran = Vec::new();
    for name in ["README.md", "docs/guide.md"] {
        let document = fs::read_to_string(workspace().join(name)).unwrap();
        for command in commands(&document) {
            let words = shlex::split(&command).unwrap();
            let is_synopsis = command.contains("TARGET") || command.contains('|');
            if is_synopsis || !matches!(words[1].as_str(), "sync" | "disk" | "key") {
                continue;
            }
            let words: Vec<String> = words[1..].iter().map(|word| placed(&scene, &hosts, word)).collect();
            let ssh = format!("ssh -F {}", hosts.config.display());
            let inner = format!("ssh -F {} -o BatchMode=yes", hosts.inner_config.display());
            let options = ["--ssh-command", &ssh, "--remote-ssh-command", &inner].map(str::to_owned);
            let run = match words[0].as_str() {
                "sync" => scene.goldwire(words[..1].iter().chain(&options).chain(&words[1..])),
                _ => scene.goldwire(&words),
            };
            // The guide goes on with one scene: what was signed here lies on the master there.
            if words.iter().any(|word| word == "--require-signature") && words[0] == "sync" {
                let master = hosts.all[0].sr.join("images");
                let signed = scene.path(".goldwire/versions/win11.vhd.gwv");
                fs::create_dir_all(master.join(".goldwire/versions")).unwrap();
                fs::copy(scene.path("win11.vhd"), master.join("win11.vhd")).unwrap();
                fs::copy(signed, master.join(".goldwire/versions/win11.vhd.gwv")).unwrap();
                fs::remove_file(hosts.all[3].sr.join("images/win11.vhd")).unwrap();
            }
            run.expect(0);
            ran.push(command);
        }
    }
    assert!(ran.len() >= 6, "{ran:?}");
}

/// A word of an example with its places made real: `HOST:/PATH` on a host, `/PATH` and image names in the scene.
fn placed(scene: &Scene, hosts: &Hosts, word: &str) -> String {
    let put = |path: &Path| {
        if path.extension().is_some_and(|ending| ending == "vhd") && !path.exists() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            Guest::random(77, 8, 2).write_vhd(path, 7);
        }
    };
    if let Some((host, path)) = word.split_once(":/") {
        let number =
            hosts.all.iter().position(|known| known.name == host).unwrap_or_else(|| panic!("{word}"));
        let place = hosts.all[number].sr.join(path);
        if number == 0 && !path.ends_with(".vhd") {
            put(&place.join("Win10-baseDisk-1.vhd"));
        } else if number == 0 {
            put(&place);
        } else {
            fs::create_dir_all(&place).unwrap();
        }
        let slash = if path.ends_with('/') { "/" } else { "" };
        return format!("{host}:{}{slash}", place.display().to_string().trim_end_matches('/'));
    }
    if let Some(path) = word.strip_prefix("/images/") {
        return scene.path(path).display().to_string();
    }
    if word.ends_with(".vhd") && !word.contains('*') {
        put(&scene.path(word));
    }
    word.to_owned()
}

/// Scripts are at least ones that their shell reads.
#[test]
fn scripts_are_read_by_their_shell() {
    let mut count = 0;
    for entry in fs::read_dir(workspace().join("tools")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && fs::read_to_string(&path).unwrap().starts_with("#!/usr/bin/env bash") {
            let checked = Command::new("bash").arg("-n").arg(&path).status().unwrap();
            assert!(checked.success(), "{}", path.display());
            count += 1;
        }
    }
    assert!(count >= 8, "only {count} scripts were found");
}
