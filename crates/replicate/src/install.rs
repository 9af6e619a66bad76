//! What is started as an agent, here and elsewhere: the programs at hand, and the `sh` script that finds or installs the
//! right one in the remote user's cache.

use std::path::PathBuf;
use std::sync::Arc;

use goldwire_stdx::to_hex;

/// The agent's program for one kind of machine.
#[derive(Clone)]
pub struct Program {
    /// As `uname -m` says it, such as `x86_64`.
    pub machine: String,
    /// The executable.
    pub bytes: Arc<Vec<u8>>,
}

impl Program {
    /// The program in `bytes`, if they are an ELF executable for a machine that we can name (ELF header:
    /// `e_machine` at byte 18).
    pub fn from_elf(bytes: Vec<u8>) -> Option<Self> {
        let machine = match (bytes.get(..6)?, bytes.get(18..20)?) {
            (b"\x7fELF\x02\x01", [62, 0]) => "x86_64",
            (b"\x7fELF\x02\x01", [183, 0]) => "aarch64",
            _ => return None,
        };
        Some(Self { machine: machine.to_owned(), bytes: Arc::new(bytes) })
    }
}

/// How to start an agent on this machine, and what to install on others.
#[derive(Clone)]
pub struct Agents {
    /// The command of a local agent.
    pub local: Vec<PathBuf>,
    /// The programs at hand.
    pub programs: Vec<Program>,
    /// Prefix lines from `ssh`'s standard error with the host and pass them on to ours.
    pub echo_stderr: bool,
}

/// The command that starts an agent on this machine from this very program.
pub fn own_agent(arguments: &[&str]) -> Vec<PathBuf> {
    let program = std::env::current_exe().unwrap_or_else(|_| "goldwire".into());
    std::iter::once(program).chain(arguments.iter().map(PathBuf::from)).collect()
}

pub(crate) const HAS_AGENT: &str = "GOLDWIRE-HAS-AGENT";
pub(crate) const NEEDS_AGENT: &[u8] = b"GOLDWIRE-NEEDS-AGENT ";
pub(crate) const GOT_PIECE: &[u8] = b"GOLDWIRE-GOT\n";
pub(crate) const INSTALL_FAILED: &[u8] = b"GOLDWIRE-INSTALL-FAILED";

/// Bytes of a program that are sent before the host has to say that they have arrived: few enough for a line of 1 KiB a
/// second.
pub(crate) const PIECE: usize = 128 << 10;

/// Days after which an agent of another build is taken away.
const OLD_DAYS: u32 = 30;

/// When the program is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Install {
    /// If the cache does not have it.
    IfMissing,
    /// In any case: what the cache has is damaged.
    Anew,
}

/// What the remote login shell is given. One line without single quotes, so that any shell passes it on whole.
///
/// A program is run from the cache only if the folder and the file are the user's own and no links, since where others
/// may write beside it somebody could have put both there first. Otherwise the program goes to a fresh private folder,
/// which is gone when it ends. `read` takes its line byte by byte, and a piece is sent only when the one before has been
/// written, so the program's bytes go nowhere else even if `head -c` reads ahead (busybox).
///
/// What does not work is told with the name of the step; the shell's own words are on standard error. What killed runs and
/// other builds left is swept when something is installed.
pub(crate) fn remote_script(digest: &str, install: Install) -> String {
    let remove = match install {
        Install::IfMissing => "",
        Install::Anew => "rm -f \"$a\"; ",
    };
    format!(
        "exec sh -c 'umask 077; d=\"${{XDG_CACHE_HOME:-$HOME/.cache}}/goldwire\"; p=; \
         f() {{ [ -z \"$t\" ] || rm -f \"$t\"; [ -z \"$p\" ] || rm -rf \"$p\"; \
         echo; echo GOLDWIRE-INSTALL-FAILED $1; exit 4; }}; t=; \
         o() {{ [ -O \"$1\" ] && [ ! -h \"$1\" ]; }}; mkdir -p \"$d\" 2>/dev/null; \
         o \"$d\" || {{ d=$(mktemp -d) && p=$d || f folder; }}; a=\"$d/agent-{digest}\"; {remove}\
         r() {{ [ -z \"$p\" ] && exec \"$a\" --stdio; \"$a\" --stdio; s=$?; rm -rf \"$p\"; exit $s; }}; \
         if o \"$a\" && [ -f \"$a\" ] && [ -x \"$a\" ]; then echo; echo {HAS_AGENT}; r; fi; \
         echo; echo GOLDWIRE-NEEDS-AGENT $(uname -s) $(uname -m); read -r n || exit 3; \
         t=$(mktemp \"$d/.agent.XXXXXXXX\") || f file; \
         while [ \"$n\" -gt 0 ]; do c={PIECE}; [ \"$n\" -ge \"$c\" ] || c=$n; \
         head -c \"$c\" >>\"$t\" || f write; n=$((n - c)); echo GOLDWIRE-GOT; done; \
         chmod 700 \"$t\" && \"$t\" --self-check {digest} || f run; mv -f \"$t\" \"$a\" || f file; t=; \
         [ -n \"$p\" ] || find \"$d\" -type f \\( -name \".agent.*\" -mmin +60 -o -name \"agent-*\" -mtime +{OLD_DAYS} \\) \
         -exec rm -f {{}} + 2>/dev/null; r'"
    )
}

/// The name of a program in the cache: enough of its BLAKE3 to be unique and unforgeable.
pub fn digest_of(program: &[u8]) -> String {
    to_hex(&blake3::hash(program).as_bytes()[..16])
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::path::Path;
    use std::process::{Command, Stdio};

    use super::*;

    /// ELF-64: `e_machine` is 62 (EM_X86_64) or 183 (EM_AARCH64), little endian at byte 18.
    #[test]
    fn a_program_is_for_the_machine_that_its_header_names() {
        let elf = |machine: u16, class: u8, order: u8| {
            let mut bytes = vec![0; 64];
            bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, order]);
            bytes[18..20].copy_from_slice(&machine.to_le_bytes());
            bytes
        };
        let machine = |bytes: Vec<u8>| Program::from_elf(bytes).map(|program| program.machine);
        assert_eq!(machine(elf(62, 2, 1)).as_deref(), Some("x86_64"));
        assert_eq!(machine(elf(183, 2, 1)).as_deref(), Some("aarch64"));
        for other in [elf(3, 1, 1), elf(62, 2, 2), elf(62, 1, 1), elf(243, 2, 1), b"#!/bin/sh\n".to_vec()] {
            assert_eq!(machine(other), None);
        }
        assert_eq!(machine(elf(62, 2, 1)[..19].to_vec()), None);
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(machine(own).as_deref(), Some(std::env::consts::ARCH));
    }

    #[test]
    fn an_agent_of_this_machine_is_this_very_program() {
        let command = own_agent(&["agent", "--stdio"]);
        assert_eq!(command[0], std::env::current_exe().unwrap());
        assert_eq!(command[1..], ["agent", "--stdio"].map(std::path::PathBuf::from));
        // The first half of the digest's 32 bytes (BLAKE3's test vector for no input).
        assert_eq!(digest_of(b""), "af1349b9f5f9a1a6a0404dea36dcc949");
    }

    /// An agent for tests: it says that it runs, and that it is itself.
    const AGENT: &str = "#!/bin/sh\n[ \"$1\" = --self-check ] && exit 0\necho RUNS\n";

    /// Runs the script as a login shell would, offering `AGENT`; what it printed.
    fn run(shell: &str, cache: &Path, install: Install) -> String {
        offer(AGENT, shell, cache, cache.parent().unwrap(), install)
    }

    /// Offers a program in pieces, each when the one before has arrived; what was printed.
    fn offer(agent: &str, shell: &str, cache: &Path, temporary: &Path, install: Install) -> String {
        let script = remote_script("d", install);
        let mut child = Command::new(shell)
            .args(["-c", &script])
            .env("XDG_CACHE_HOME", cache)
            .env("TMPDIR", temporary)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut pieces = agent.as_bytes().chunks(PIECE);
        let mut said = String::new();
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap() + "\n";
            if line.starts_with("GOLDWIRE-NEEDS-AGENT") {
                let _ = writeln!(input, "{}", agent.len());
            }
            if (line.starts_with("GOLDWIRE-NEEDS-AGENT") || line.as_bytes() == GOT_PIECE)
                && let Some(piece) = pieces.next()
            {
                let _ = input.write_all(piece);
            }
            said += &line;
        }
        child.wait().unwrap();
        said
    }

    #[test]
    fn a_program_of_several_pieces_arrives_whole() {
        let scene = tempfile::tempdir().unwrap();
        let cache = scene.path().join("cache");
        let large = format!("{AGENT}exit\n#{}\n", "x".repeat(2 * PIECE));
        let said = offer(&large, "sh", &cache, scene.path(), Install::IfMissing);
        assert!(said.ends_with("RUNS\n") && said.matches("GOLDWIRE-GOT").count() == 3, "{said}");
        assert_eq!(fs::read_to_string(cache.join("goldwire/agent-d")).unwrap(), large);
    }

    /// Whatever does not work is told by its step, and nothing stays.
    #[test]
    fn a_step_that_fails_is_named() {
        let scene = tempfile::tempdir().unwrap();
        let failing = "#!/bin/sh\nexit 1\n";
        let (cache, nowhere) = (scene.path().join("cache"), Path::new("/proc/none"));
        for (step, agent, cache, temporary) in [
            ("folder", AGENT, nowhere, nowhere),
            ("run", failing, cache.as_path(), scene.path()),
            ("run", failing, nowhere, scene.path()),
            ("run", "no program\n", cache.as_path(), scene.path()),
        ] {
            let said = offer(agent, "sh", cache, temporary, Install::IfMissing);
            assert!(said.ends_with(&format!("GOLDWIRE-INSTALL-FAILED {step}\n")), "{step}: {said}");
            let left = fs::read_dir(scene.path()).unwrap().count();
            assert!(left <= 1, "{step}: the private folder is gone");
        }
        assert_eq!(fs::read_dir(cache.join("goldwire")).unwrap().count(), 0);
    }

    #[test]
    fn what_killed_runs_and_other_builds_left_is_swept() {
        let scene = tempfile::tempdir().unwrap();
        let own = scene.path().join("cache/goldwire");
        fs::create_dir_all(&own).unwrap();
        let day = std::time::Duration::from_secs(86_400);
        for (name, age) in [
            (".agent.old", day),
            (".agent.new", day / 1440),
            ("agent-old", day * (OLD_DAYS + 2)),
            ("agent-new", day),
            ("notes", day * 1000),
        ] {
            let file = fs::File::create(own.join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - age).unwrap();
        }
        run("sh", &scene.path().join("cache"), Install::IfMissing);
        let mut left: Vec<_> = fs::read_dir(&own).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".agent.new", "agent-d", "agent-new", "notes"]);
    }

    #[test]
    fn an_agent_is_installed_once_and_found_again() {
        for shell in ["sh", "bash"] {
            let scene = tempfile::tempdir().unwrap();
            let cache = scene.path().join("cache");
            let first = run(shell, &cache, Install::IfMissing);
            assert!(first.contains("NEEDS-AGENT") && first.ends_with("RUNS\n"), "{shell}: {first}");
            let second = run(shell, &cache, Install::IfMissing);
            assert!(second.contains(HAS_AGENT) && second.ends_with("RUNS\n"), "{shell}: {second}");
            assert!(
                run(shell, &cache, Install::Anew).contains("NEEDS-AGENT"),
                "{shell}: force installs anew"
            );
            assert_eq!(
                fs::read_dir(cache.join("goldwire")).unwrap().count(),
                1,
                "{shell}: nothing else stays"
            );
        }
    }

    /// Somebody else was there first: the folder, a link in its place, the file, a link in its place.
    #[test]
    fn a_planted_agent_is_not_run() {
        const PLANTED: &str = "#!/bin/sh\necho PLANTED\n";
        let program = |path: &Path| {
            fs::write(path, PLANTED).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        };
        let is_root = chown(tempfile::tempdir().unwrap().path(), Some(4711), None).is_ok();
        for plant in ["folder", "link to a folder", "file", "link to a file"] {
            if !is_root && !plant.starts_with("link") {
                continue;
            }
            let scene = tempfile::tempdir().unwrap();
            let (cache, theirs) = (scene.path().join("cache"), scene.path().join("theirs"));
            let own = cache.join("goldwire");
            fs::create_dir_all(&theirs).unwrap();
            program(&theirs.join("agent-d"));
            match plant {
                "folder" => {
                    fs::create_dir_all(&own).unwrap();
                    program(&own.join("agent-d"));
                    for path in [&own.join("agent-d"), &own] {
                        chown(path, Some(4711), None).unwrap();
                    }
                }
                "link to a folder" => {
                    fs::create_dir_all(&cache).unwrap();
                    symlink(&theirs, &own).unwrap();
                }
                "file" => {
                    fs::create_dir_all(&own).unwrap();
                    program(&own.join("agent-d"));
                    chown(own.join("agent-d"), Some(4711), None).unwrap();
                }
                _ => {
                    fs::create_dir_all(&own).unwrap();
                    symlink(theirs.join("agent-d"), own.join("agent-d")).unwrap();
                }
            }
            let said = run("sh", &cache, Install::IfMissing);
            assert!(!said.contains("PLANTED") && said.ends_with("RUNS\n"), "{plant}: {said}");
            assert_eq!(fs::read_to_string(theirs.join("agent-d")).unwrap(), PLANTED, "{plant}");
            let left = fs::read_dir(scene.path()).unwrap().count();
            assert_eq!(left, 2, "{plant}: the private folder is gone");
        }
    }
}
