//! `tools/test` says at its end what a run was worth, however the run went. A cargo that only plays its part stands in
//! for compilers and tests.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use crate::machine::put_program;
use crate::tool::{Scene, workspace};

/// How a command of cargo goes.
#[derive(Clone, Copy, Debug)]
enum Played {
    /// Its tests ran, and so many passed and failed.
    Ran { passed: u32, failed: u32 },
    /// A crate does not compile.
    DoesNotCompile,
    /// It ended before anything was run or said.
    Died,
}

impl Played {
    const ALL: [Self; 5] = [
        Self::Ran { passed: 7, failed: 0 },
        Self::Ran { passed: 5, failed: 2 },
        Self::Ran { passed: 0, failed: 0 },
        Self::DoesNotCompile,
        Self::Died,
    ];

    fn counts(self) -> (u32, u32) {
        match self {
            Self::Ran { passed, failed } => (passed, failed),
            Self::DoesNotCompile | Self::Died => (0, 0),
        }
    }

    /// What the command prints and how it ends, as shell.
    fn as_nextest(self) -> String {
        match self {
            Self::Ran { passed, failed: 0 } => {
                format!("echo '     Summary [ 1.2s] {passed} tests run: {passed} passed, 4 skipped'; exit 0")
            }
            // One of those that fail hangs.
            Self::Ran { passed, failed } => format!(
                "echo '     Summary [ 1.2s] {} tests run: {passed} passed, {} failed, 1 timed out, 4 skipped'; exit 100",
                passed + failed,
                failed - 1
            ),
            Self::DoesNotCompile => Self::compiler(),
            Self::Died => "exit 137".to_owned(),
        }
    }

    fn as_libtest(self) -> String {
        let result = |word: &str, passed: u32, failed: u32| {
            format!("echo 'test result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured'; ")
        };
        match self {
            Self::Ran { passed, failed: 0 } => result("ok", passed, 0) + "exit 0",
            // Two crates, of which one fails.
            Self::Ran { passed, failed } => {
                result("ok", passed - 1, 0) + &result("FAILED", 1, failed) + "exit 101"
            }
            Self::DoesNotCompile => Self::compiler(),
            Self::Died => "exit 137".to_owned(),
        }
    }

    fn compiler() -> String {
        "echo 'error: could not compile `goldwire-disk` (lib test) due to 1 previous error'; exit 101"
            .to_owned()
    }
}

/// The last lines and the exit code of `tools/test` with such a cargo.
fn run(scene: &Scene, has_nextest: bool, parts: &[(&str, String)]) -> (i32, String) {
    let folder = scene.folder("sources/tools");
    fs::copy(workspace().join("tools/test"), folder.join("test")).unwrap();
    put_program(&folder.join("build-agent"), b"#!/bin/sh\nexec cargo build-agent\n");
    let nextest = if has_nextest { "exit 0" } else { "exit 101" };
    let mut cargo = format!("#!/bin/sh\ncase \"$*\" in\n  'nextest --version'*) {nextest} ;;\n");
    for (pattern, does) in parts {
        writeln!(cargo, "  {pattern}) {does} ;;").unwrap();
    }
    cargo.push_str("esac\nexit 0\n");
    let stub = scene.folder("bin").join("cargo");
    put_program(&stub, cargo.as_bytes());
    let path = std::env::join_paths(
        [scene.path("bin")].into_iter().chain(std::env::split_paths(&std::env::var_os("PATH").unwrap())),
    );
    let mut command = Command::new(folder.join("test"));
    command.env("PATH", path.unwrap());
    let finished = scene.run(command).finish();
    (finished.status.code().unwrap(), finished.stdout)
}

/// A run whose tests did not compile ended without its last line, and a documentation test that failed was counted
/// nowhere: `663 passed, 0 failed` stood above an exit code of 1.
#[test]
fn the_last_line_counts_what_ran_and_a_bad_run_says_why() {
    for has_nextest in [true, false] {
        for tests in Played::ALL {
            for documentation in Played::ALL {
                let scene = Scene::new();
                let all = if has_nextest { tests.as_nextest() } else { tests.as_libtest() };
                let parts = [
                    ("'nextest run'*", all.clone()),
                    ("'test '*' --doc '*", documentation.as_libtest()),
                    ("'test '*", all),
                ];
                let (code, said) = run(&scene, has_nextest, &parts);
                // Without nextest one command runs both.
                let played: &[Played] = if has_nextest { &[tests, documentation] } else { &[tests] };
                let counts = played.iter().map(|played| played.counts());
                let (passed, failed) = counts.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
                let case =
                    format!("nextest {has_nextest}, {tests:?}, documentation {documentation:?}:\n{said}");
                let last = said.lines().last().unwrap_or_default();
                assert_eq!(last, format!("{passed} passed, {failed} failed, 0 skipped"), "{case}");
                let is_good =
                    passed > 0 && played.iter().all(|one| matches!(one, Played::Ran { failed: 0, .. }));
                assert_eq!(code == 0, is_good, "{case}");
                let reason = said.lines().find(|line| line.starts_with("NOT GOOD: "));
                assert_eq!(reason.is_none(), is_good, "{case}");
                let names_crate = reason.is_some_and(|line| line.contains("does not compile: goldwire-disk"));
                let is_broken = played.iter().any(|one| matches!(one, Played::DoesNotCompile));
                assert_eq!(names_crate, is_broken, "{case}");
            }
        }
    }
}

#[test]
fn a_run_that_never_began_has_a_last_line_too() {
    for (pattern, reason) in
        [("'fetch '*", "fetch"), ("build-agent", "agent"), ("'build '*", "do not compile")]
    {
        let (code, said) = run(&Scene::new(), true, &[(pattern, "exit 101".to_owned())]);
        assert_eq!(code, 1, "{said}");
        assert!(said.ends_with("\n0 passed, 0 failed, 0 skipped\n"), "{said}");
        let line = said.lines().find(|line| line.starts_with("NOT GOOD: ")).unwrap();
        assert!(line.contains(reason), "{line}");
    }
}

/// One test may skip for one reason more than once; it counts once.
#[test]
fn what_was_skipped_is_counted_and_flaky_tests_are_named() {
    let skips =
        "printf 'not root\\ta\\nnot root\\tb\\nnot root\\tb\\nno IPv6\\tc\\n' >>\"$GOLDWIRE_SKIPS\"; ";
    for flaky in [0, 2, 3] {
        let mut does = skips.to_owned();
        for number in 0..flaky {
            write!(does, "echo '   FLAKY 2/2 [   1.0s] goldwire-e2e::e2e test{number}'; ").unwrap();
        }
        does += &Played::Ran { passed: 7, failed: 0 }.as_nextest();
        let (code, said) = run(&Scene::new(), true, &[("'nextest run'*", does)]);
        assert!(said.ends_with("\n7 passed, 0 failed, 3 skipped\n"), "{said}");
        assert!(said.contains("\nskipped, wholly or in part: 1 × no IPv6; 2 × not root\n"), "{said}");
        assert_eq!(said.matches("\nflaky: ").count(), flaky, "{said}");
        assert_eq!(code, i32::from(flaky > 2), "{said}");
    }
}
