//! What `ssh` asks reaches the person at the terminal, and nobody waits for an answer where there is none.

use std::fs;
use std::process::Command;
use std::time::Duration;

use goldwire_stdx::testing;

use crate::disks::Guest;
use crate::hosts::Hosts;
use crate::machine;
use crate::sync::text;
use crate::tool::{Scene, programs};

/// Runs a command on a terminal of its own, answers each question with `yes`, and says what was on the screen and how the
/// command ended.
const TERMINAL: &str = r#"
import os, pty, sys, select, time
pid, screen = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
said, answered, end = b"", 0, time.time() + 60
while time.time() < end:
    if select.select([screen], [], [], 0.2)[0]:
        try:
            chunk = os.read(screen, 65536)
        except OSError:
            break
        if not chunk:
            break
        said += chunk
    questions = said.count(b"continue connecting")
    if questions > answered:
        answered += 1
        os.write(screen, b"yes\n")
else:
    os.kill(pid, 9)
sys.stdout.buffer.write(said)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print("\nQUESTIONS", answered, "EXIT", code)
"#;

/// A host whose key nobody knows yet: the commonest first sync there is, from a local image to hosts.
#[test]
fn an_unknown_host_key_is_asked_about_on_every_route() {
    if testing::program("python3").is_none() {
        return;
    }
    for (route, from) in [("auto", None), ("relay", None), ("relay", Some(0)), ("auto", Some(0))] {
        let scene = Scene::new();
        let Some(hosts) = Hosts::start(&scene, &["master".into(), "one".into(), "two".into()]) else {
            return;
        };
        let known = scene.path("keys/known");
        // The source host asks nobody, so that from it only its own key is in question here.
        let all = fs::read_to_string(&known).unwrap();
        let config = fs::read_to_string(&hosts.config).unwrap();
        let asking = scene.path("asking");
        let empty = scene.path("empty");
        fs::write(&empty, "").unwrap();
        let config = config
            .replace("StrictHostKeyChecking yes", "StrictHostKeyChecking ask")
            .replace(text(&known), text(&empty));
        fs::write(&asking, config).unwrap();
        assert!(all.contains("ssh-ed25519"));
        let source = match from {
            None => scene.path("golden.vhd"),
            Some(number) => hosts.all[number].file("golden.vhd"),
        };
        Guest::random(3, 8, 2).write_vhd(&source, 7);
        let source = from.map_or(text(&source).to_owned(), |number| hosts.place(number, "golden.vhd"));
        let ssh = format!("ssh -F {}", asking.display());
        let inner = format!("ssh -F {} -o BatchMode=yes", hosts.inner_config.display());
        let output = Command::new("python3")
            .args(["-c", TERMINAL, text(&programs().goldwire), "sync", "--route", route])
            .args(["--ssh-command", &ssh, "--remote-ssh-command", &inner, &source])
            .args([hosts.place(1, ""), hosts.place(2, "")])
            .env("HOME", scene.path("home"))
            .env("XDG_CACHE_HOME", scene.path("home/cache"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let questions = match (route, from) {
            (_, None) => 2,
            ("relay", Some(_)) => 3,
            _ => 1,
        };
        assert!(said.contains(&format!("QUESTIONS {questions} EXIT 0")), "{route} {from:?}: {said}");
        for number in [1, 2] {
            assert_eq!(machine::visible(&hosts.all[number].sr), ["golden.vhd"], "{route}: {said}");
        }
        // Nothing is drawn before the last question was answered.
        let last = said.rfind("continue connecting").unwrap();
        assert!(
            !said[..last].contains("waiting for the source") && !said[..last].contains("reading"),
            "{said}"
        );
    }
}

/// From cron there is nobody to ask: ssh's own words come at once.
#[test]
fn without_a_terminal_the_question_is_an_error_at_once() {
    let scene = Scene::new();
    let Some(hosts) = Hosts::start(&scene, &["one".into()]) else { return };
    let config = fs::read_to_string(&hosts.config)
        .unwrap()
        .replace("StrictHostKeyChecking yes", "StrictHostKeyChecking ask");
    let asking = scene.path("asking");
    fs::write(&asking, config.replace(text(&scene.path("keys/known")), text(&scene.path("empty")))).unwrap();
    let source = scene.path("golden.vhd");
    Guest::random(3, 8, 2).write_vhd(&source, 7);
    let began = std::time::Instant::now();
    let output = Command::new("setsid")
        .arg("-w")
        .arg(&programs().goldwire)
        .args([
            "sync",
            "--ssh-command",
            &format!("ssh -F {}", asking.display()),
            text(&source),
            &hosts.place(0, ""),
        ])
        .env("HOME", scene.path("home"))
        .env("XDG_CACHE_HOME", scene.path("home/cache"))
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("Host key verification failed"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(60), "{said}");
}
