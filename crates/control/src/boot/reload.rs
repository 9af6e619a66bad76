//! A changed boot file takes effect without a restart, if it is good.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use goldwire_stdx::{Stop, spawn};

use super::load::{Loaded, load_again};
use super::{LoadError, Policy, Problems, Settings};

/// Between two looks at the file.
const INTERVAL: Duration = Duration::from_secs(1);

/// What came of a new boot file.
#[derive(Debug)]
pub enum Reload {
    /// It is in force.
    Done {
        /// What is odd about it.
        warnings: Problems,
        /// Tables of which the old content stays in force until a restart.
        needs_restart: Vec<&'static str>,
    },
    /// The old one stays in force.
    Kept(LoadError),
}

/// Reads the boot file again, when told to and when it has changed.
pub struct Reloader {
    path: PathBuf,
    policy: Arc<Policy>,
    /// Takes from new settings what can change while servers run: the members.
    apply: Box<dyn Fn(&Settings) + Send + Sync>,
    state: Mutex<State>,
}

struct State {
    /// As the process was started: what a restart would change is measured against it.
    started: Settings,
    /// The folder of the templates in force.
    templates: Option<PathBuf>,
    seen: Vec<Option<Stamp>>,
}

/// Tells one content of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    seconds: i64,
    nanoseconds: i64,
    size: u64,
    inode: u64,
}

impl Reloader {
    /// For the file at `path`, from which `started` and the rules of `policy` were read.
    pub fn new(
        path: &Path,
        started: Settings,
        policy: Arc<Policy>,
        apply: impl Fn(&Settings) + Send + Sync + 'static,
    ) -> Self {
        let templates = started.server.templates.clone();
        let seen = stamps(path, templates.as_deref());
        let state = Mutex::new(State { started, templates, seen });
        Self { path: path.to_owned(), policy, apply: Box::new(apply), state }
    }

    /// Reads the file now (SIGHUP).
    pub fn reload(&self) -> Reload {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the file is read: what changes while it is read is seen the next time.
        state.seen = stamps(&self.path, state.templates.as_deref());
        let outcome = match load_again(&self.path, state.started.server.secret.as_ref()) {
            Ok(Loaded { settings, rules, warnings }) => {
                self.policy.replace(rules);
                (self.apply)(&settings);
                if state.templates != settings.server.templates {
                    state.templates.clone_from(&settings.server.templates);
                    state.seen = stamps(&self.path, state.templates.as_deref());
                }
                Reload::Done { warnings, needs_restart: state.started.needs_restart(&settings) }
            }
            Err(error) => Reload::Kept(error),
        };
        match &outcome {
            Reload::Done { warnings, needs_restart } => {
                tracing::info!(path = %self.path.display(), "the boot file is in force");
                if !warnings.is_empty() {
                    tracing::warn!("{warnings}");
                }
                if !needs_restart.is_empty() {
                    tracing::warn!(tables = needs_restart.join(", "), "these changed and need a restart");
                }
            }
            Reload::Kept(error) => {
                let report = goldwire_stdx::Report::of(error);
                tracing::error!("the old boot file stays in force: {}", report.line());
            }
        }
        outcome
    }

    /// Reads the file if it or a template is another than before.
    pub fn poll(&self) -> Option<Reload> {
        let is_changed = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.seen != stamps(&self.path, state.templates.as_deref())
        };
        is_changed.then(|| self.reload())
    }

    /// Looks at the file each second, on a thread of its own, until the watch is dropped.
    pub fn watch(self: &Arc<Self>) -> io::Result<Watch> {
        let stop = Stop::new();
        let (reloader, stopping) = (Arc::clone(self), stop.clone());
        let thread = spawn("boot-file", move || {
            while !stopping.wait(INTERVAL) {
                reloader.poll();
            }
        })?;
        Ok(Watch { stop, thread: Some(thread) })
    }
}

/// A thread that watches the boot file.
pub struct Watch {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            // It only fails if the thread panicked, which has been said already.
            let _ = thread.join();
        }
    }
}

/// Stamps of the boot file and the templates, in a fixed order.
fn stamps(path: &Path, templates: Option<&Path>) -> Vec<Option<Stamp>> {
    let mut paths: Vec<PathBuf> = templates
        .and_then(|folder| fs::read_dir(folder).ok())
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    paths.sort();
    paths.insert(0, path.to_owned());
    paths.iter().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let about = fs::metadata(path).ok()?;
    let (seconds, nanoseconds) = (about.mtime(), about.mtime_nsec());
    Some(Stamp { seconds, nanoseconds, size: about.len(), inode: about.ino() })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use goldwire_netboot::{BootPolicy, Device, Firmware, LiveMembers, Member};

    use super::*;
    use crate::boot::load;

    struct Nobody;

    impl LiveMembers for Nobody {
        fn ordered_for(&self, _key: &[u8], _subnet: Option<IpAddr>) -> Vec<Member> {
            Vec::new()
        }
    }

    const GOOD: &str = "default-profile = \"a\"\n[[member]]\nname = \"m\"\naddress = \"10.0.0.1\"\n[profile.a]\nlocal = true\n";

    fn setting(path: &Path, applied: &Arc<AtomicUsize>) -> (Arc<Policy>, Arc<Reloader>) {
        let loaded = load(path).unwrap();
        let policy = Arc::new(Policy::new(loaded.rules, Arc::new(Nobody)));
        let applied = applied.clone();
        let apply = move |_: &Settings| {
            applied.fetch_add(1, Ordering::Relaxed);
        };
        let reloader = Arc::new(Reloader::new(path, loaded.settings, policy.clone(), apply));
        (policy, reloader)
    }

    fn rule(policy: &Policy) -> String {
        policy.decide(&Device::new(None, Firmware::BiosPxe)).rule
    }

    #[test]
    fn a_good_file_takes_effect_and_a_broken_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot.toml");
        fs::write(&path, GOOD).unwrap();
        let applied = Arc::new(AtomicUsize::new(0));
        let (policy, reloader) = setting(&path, &applied);
        assert!(reloader.poll().is_none());
        assert_eq!(rule(&policy), "default-profile (boot.toml:1)");

        fs::write(&path, format!("# moved\n{GOOD}[tftp]\nlisten = \"0.0.0.0:6969\"\n")).unwrap();
        match reloader.poll() {
            Some(Reload::Done { needs_restart, .. }) => assert_eq!(needs_restart, ["tftp"]),
            other => panic!("{other:?}"),
        }
        assert_eq!(rule(&policy), "default-profile (boot.toml:2)");
        assert_eq!(applied.load(Ordering::Relaxed), 1);

        fs::write(&path, "default-profile = \"b\"\n").unwrap();
        assert!(matches!(reloader.poll(), Some(Reload::Kept(LoadError::Wrong(_)))));
        assert!(reloader.poll().is_none(), "a broken file is told once");
        fs::remove_file(&path).unwrap();
        assert!(matches!(reloader.poll(), Some(Reload::Kept(LoadError::Read { .. }))));
        assert_eq!(rule(&policy), "default-profile (boot.toml:2)");
        assert_eq!(applied.load(Ordering::Relaxed), 1);
    }

    /// The boot file names a user, and only root may read the secret.
    #[test]
    fn a_secret_that_cannot_be_read_any_more_is_kept() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (path, secret) = (folder.path().join("boot.toml"), folder.path().join("secret"));
        fs::write(&secret, "0123456789abcdef").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, format!("{GOOD}[server]\nsecret-file = \"secret\"\n")).unwrap();
        let (policy, reloader) = setting(&path, &Arc::default());
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
        if fs::read(&secret).is_ok() {
            return goldwire_stdx::testing::excuse(goldwire_stdx::testing::Excuse::Root);
        }
        assert!(load(&path).is_err(), "who has no secret yet needs it");
        fs::write(&path, format!("# moved\n{GOOD}[server]\nsecret-file = \"secret\"\n")).unwrap();
        match reloader.poll() {
            Some(Reload::Done { needs_restart, .. }) => assert_eq!(needs_restart, [""; 0]),
            other => panic!("{other:?}"),
        }
        assert_eq!(rule(&policy), "default-profile (boot.toml:2)");
    }

    #[test]
    fn a_changed_template_counts_as_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot.toml");
        let template = folder.path().join("own.ipxe");
        fs::write(&template, "#!ipxe\necho one\n").unwrap();
        let text = "[server]\ntemplates = \".\"\n[[member]]\nname = \"m\"\naddress = \"10.0.0.1\"\n[profile.a]\nscript = \"own\"\n";
        fs::write(&path, text).unwrap();
        let (_, reloader) = setting(&path, &Arc::default());
        fs::write(&template, "#!ipxe\ngoto nowhere\n").unwrap();
        match reloader.poll() {
            Some(Reload::Kept(LoadError::Wrong(problems))) => {
                assert!(problems.to_string().contains("goto nowhere, and no such label"), "{problems}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn another_folder_of_templates_is_in_force_and_watched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot.toml");
        for (name, text) in [("old", "#!ipxe\necho one\n"), ("new", "#!ipxe\necho two\n")] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("own.ipxe"), text).unwrap();
        }
        let text = |name: &str| {
            format!(
                "default-profile = \"a\"\n[server]\ntemplates = \"{name}\"\n[[member]]\nname = \"m\"\naddress = \"10.0.0.1\"\n\
                 [profile.a]\nscript = \"own\"\n"
            )
        };
        fs::write(&path, text("old")).unwrap();
        let (_, reloader) = setting(&path, &Arc::default());
        fs::write(&path, text("new")).unwrap();
        match reloader.poll() {
            Some(Reload::Done { needs_restart, .. }) => assert_eq!(needs_restart, [""; 0]),
            other => panic!("{other:?}"),
        }
        assert!(reloader.poll().is_none());
        fs::write(folder.path().join("new/own.ipxe"), "#!ipxe\ngoto nowhere\n").unwrap();
        assert!(matches!(reloader.poll(), Some(Reload::Kept(LoadError::Wrong(_)))));
        fs::write(&path, text("none")).unwrap();
        assert!(matches!(reloader.poll(), Some(Reload::Kept(LoadError::Wrong(_)))), "the old rules stay");
        fs::write(folder.path().join("old/own.ipxe"), "#!ipxe\ngoto nowhere\n").unwrap();
        assert!(reloader.poll().is_none(), "nobody looks at what is not in force");
    }

    #[test]
    fn the_watch_sees_a_file_that_is_renamed_into_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot.toml");
        fs::write(&path, GOOD).unwrap();
        let (policy, reloader) = setting(&path, &Arc::default());
        let watch = reloader.watch().unwrap();
        let new = folder.path().join("new");
        fs::write(&new, format!("\n\n{GOOD}")).unwrap();
        fs::rename(&new, &path).unwrap();
        goldwire_stdx::testing::until("the new file is in force", || {
            rule(&policy) == "default-profile (boot.toml:3)"
        });
        drop(watch);
    }
}
