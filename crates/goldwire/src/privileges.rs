//! Root is needed to bind low ports and to answer machines that have no address yet, and for nothing after that.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use nix::unistd::{Gid, Uid, User, chown, geteuid, setgid, setgroups, setuid};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::exit::Hinted;

/// Becomes `user`, with that user's group alone, for good. Each of `folders` is handed over first, with what lies
/// directly in it. Does nothing for who is not root.
pub(crate) fn drop_to(user: &str, folders: &[&Path]) -> anyhow::Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let found = User::from_name(user).with_context(|| format!("look up the user {user}"))?;
    let Some(found) = found else {
        bail!(Hinted {
            message: format!("there is no user {user}, whom the boot file names"),
            hint: format!("make one: useradd --system --no-create-home --shell /usr/sbin/nologin {user}"),
        });
    };
    for folder in folders {
        hand_over(folder, found.uid, found.gid)
            .with_context(|| format!("give {} to {user}", folder.display()))?;
    }
    setgroups(&[found.gid])
        .and_then(|()| setgid(found.gid))
        .and_then(|()| setuid(found.uid))
        .with_context(|| format!("become {user}"))?;
    // Belt and braces: a program that could become root again has dropped nothing.
    if setuid(Uid::from_raw(0)).is_ok() {
        bail!("root could not be dropped");
    }
    Ok(())
}

/// Raises the limit of open files to what the system lets this process have: each transfer holds two, and the usual limit
/// of 1024 would be met by a room full of devices. A refusal changes nothing.
pub(crate) fn open_many_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}

fn hand_over(folder: &Path, user: Uid, group: Gid) -> anyhow::Result<()> {
    chown(folder, Some(user), Some(group))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Links are left alone: following one would hand over what lies elsewhere.
        if entry.file_type()?.is_file() {
            chown(&entry.path(), Some(user), Some(group))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_of_open_files_is_raised_to_what_there_is() {
        let maximum = getrlimit(Resource::Nofile).maximum;
        open_many_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!((limit.current, limit.maximum), (maximum, maximum));
    }
}
