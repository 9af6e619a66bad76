//! The folder in which a boot server keeps what must outlive it: leases, the timeline.
//!
//! It belongs to the user that serves. Root may make it, by a descriptor and without following a link, and gives away only
//! what it has just made; it never opens, follows or hands over what lies inside, because the user could have put links
//! there (CVE-2017-16933 and CVE-2017-18925 are of this kind). Everything in it is opened after root was dropped.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use goldwire_stdx::{Context, Folder, Report, shell_path};

use crate::boot::Settings;

/// A user and a group by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// User id.
    pub user: u32,
    /// Group id.
    pub group: u32,
}

/// The locked folder.
#[derive(Debug)]
pub struct StateFolder {
    path: PathBuf,
    _lock: File,
}

impl StateFolder {
    /// Makes the folder that the settings name if it is missing. With `owner`, whom root will become, it is his.
    ///
    /// # Errors
    /// It cannot be made; it is a link; as root: it belongs to somebody else than who will serve, or others may write
    /// to it.
    pub fn prepare(settings: &Settings, owner: Option<Ids>) -> Result<(), Report> {
        let path = &settings.server.state;
        let failed = |error| cannot_make(path, error);
        // The folders above are the administrator's word, as they stand in the boot file.
        fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        let (around, name) = Folder::around(path).map_err(failed)?;
        match around.make_new_child(name, 0o750) {
            Ok(folder) => match owner {
                Some(owner) => folder.give_to(owner.user, owner.group).map_err(failed),
                None => Ok(()),
            },
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::look(&around, path, owner),
            Err(error) => Err(failed(error)),
        }
    }

    /// What [`prepare`](Self::prepare) would say of what is there; nothing is made.
    pub(crate) fn check(settings: &Settings, owner: Option<Ids>) -> Result<(), Report> {
        let path = &settings.server.state;
        match (Folder::around(path), path.symlink_metadata()) {
            (Ok((around, _)), Ok(_)) => Self::look(&around, path, owner),
            (Err(error), _) if error.kind() != io::ErrorKind::NotFound => Err(cannot_make(path, error)),
            _ => Ok(()),
        }
    }

    /// Whether an existing folder is fit for who will serve.
    fn look(around: &Folder, path: &Path, owner: Option<Ids>) -> Result<(), Report> {
        let name = path.file_name().unwrap_or_default();
        let folder = around.child(name).map_err(|error| {
            Report::from(error)
                .context(format!("open the state folder {}", path.display()))
                .hint("name the folder itself as server.state, not a link to it or a file")
        })?;
        let me = rustix::process::geteuid().as_raw();
        if me != 0 {
            // Whoever is not root can do no more harm through links than he could without us.
            return Ok(());
        }
        let owner_now = folder.owner().with_context(|| format!("look at {}", path.display()))?;
        let wanted = owner.map_or(0, |owner| owner.user);
        if owner_now.is_only(wanted) {
            return Ok(());
        }
        let text = match owner_now.user == wanted {
            true => {
                format!("others may write to the state folder {} (mode {:o})", path.display(), owner_now.mode)
            }
            false => {
                format!(
                    "the state folder {} belongs to user {} and not to {wanted}",
                    path.display(),
                    owner_now.user
                )
            }
        };
        let hint = match owner_now.user == wanted {
            true => format!("chmod go-w {}", shell_path(path)),
            false => format!(
                "look at what lies in it, then give it to who serves: chown -hR {wanted} {}; or name another server.state",
                shell_path(path)
            ),
        };
        Err(Report::new(text).hint(hint))
    }

    /// Opens the folder, makes the one for leases, and keeps other servers out, whatever they serve.
    ///
    /// # Errors
    /// Another server has it; it cannot be opened or written to.
    pub(super) fn lock(settings: &Settings) -> Result<Self, Report> {
        let path = settings.server.state.clone();
        fs::create_dir_all(path.join("leases")).map_err(|error| {
            Report::from(error)
                .context(format!("make the folder for leases in {}", path.display()))
                .hint("server.state has to be a folder that this user can write in")
        })?;
        let folder =
            File::open(&path).with_context(|| format!("open the state folder {}", path.display()))?;
        match folder.try_lock() {
            Ok(()) => Ok(Self { path, _lock: folder }),
            Err(TryLockError::WouldBlock) => {
                Err(Report::new(format!("another server uses the state folder {}", path.display()))
                    .hint("stop it, or give this one a server.state of its own"))
            }
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("lock the state folder {}", path.display()))
            }
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the lease log is: a folder of its own, which it locks.
    pub(super) fn leases(&self) -> PathBuf {
        self.path.join("leases")
    }
}

fn cannot_make(path: &Path, error: io::Error) -> Report {
    Report::from(error)
        .context(format!("make the state folder {}", path.display()))
        .hint("server.state has to be a folder that this user can write in")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use goldwire_stdx::testing;

    use super::*;

    const SERVICE: Ids = Ids { user: 4711, group: 4712 };

    fn settings(state: &Path) -> Settings {
        let text = format!(
            "[server]\nstate = \"{}\"\n[[member]]\nname = \"m\"\naddress = \"10.0.0.1\"\n",
            state.display()
        );
        crate::boot::parse(&text, Path::new("boot.toml")).unwrap().settings
    }

    #[test]
    fn root_gives_away_only_what_it_has_just_made() {
        if !testing::root() {
            return;
        }
        let scene = tempfile::tempdir().unwrap();
        let state = scene.path().join("deep/state");
        StateFolder::prepare(&settings(&state), Some(SERVICE)).unwrap();
        let made = fs::metadata(&state).unwrap();
        assert_eq!((made.uid(), made.gid(), made.mode() & 0o777), (4711, 4712, 0o750));
        assert_eq!(fs::metadata(scene.path().join("deep")).unwrap().uid(), 0);
        StateFolder::prepare(&settings(&state), Some(SERVICE)).unwrap();
    }

    /// Whatever the service user does to his folder between two starts, root hands over, makes and opens nothing through
    /// it.
    #[test]
    fn what_the_user_plants_leads_root_nowhere() {
        if !testing::root() {
            return;
        }
        let scene = tempfile::tempdir().unwrap();
        let victim = scene.path().join("victim");
        fs::create_dir(&victim).unwrap();
        fs::write(victim.join("file"), "precious").unwrap();
        let untouched = || {
            assert_eq!(fs::metadata(&victim).unwrap().uid(), 0);
            assert_eq!(fs::metadata(victim.join("file")).unwrap().uid(), 0);
            assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
        };
        for name in ["leases", "timeline.jsonl", "server.state", "timeline.1.jsonl"] {
            let state = scene.path().join(format!("state-{name}"));
            StateFolder::prepare(&settings(&state), Some(SERVICE)).unwrap();
            symlink(&victim, state.join(name)).unwrap();
            StateFolder::prepare(&settings(&state), Some(SERVICE)).unwrap();
            untouched();
        }
        // The folder itself as a link, somebody else's, or open to others.
        let link = scene.path().join("link");
        symlink(&victim, &link).unwrap();
        let refused = StateFolder::prepare(&settings(&link), Some(SERVICE)).unwrap_err();
        assert!(refused.to_string().contains("not a link to it"), "{refused}");
        for (user, mode, words) in [(0, 0o755, "belongs to user 0"), (4711, 0o777, "others may write")] {
            let state = scene.path().join(format!("foreign-{user}"));
            fs::create_dir(&state).unwrap();
            fs::set_permissions(&state, fs::Permissions::from_mode(mode)).unwrap();
            chown(&state, Some(user), None).unwrap();
            let refused = StateFolder::prepare(&settings(&state), Some(SERVICE)).unwrap_err();
            assert!(refused.to_string().contains(words), "{refused}");
            assert_eq!(fs::metadata(&state).unwrap().uid(), user);
        }
        // Root that serves as root does not work in a folder of the user that served before.
        let state = scene.path().join("state-leases");
        assert!(StateFolder::prepare(&settings(&state), None).unwrap_err().to_string().contains("4711"));
        untouched();
    }

    #[test]
    fn one_server_at_a_time() {
        let scene = tempfile::tempdir().unwrap();
        let settings = settings(&scene.path().join("state"));
        StateFolder::prepare(&settings, None).unwrap();
        let first = StateFolder::lock(&settings).unwrap();
        assert!(StateFolder::lock(&settings).unwrap_err().to_string().contains("another server"));
        drop(first);
        StateFolder::lock(&settings).unwrap();
    }
}
