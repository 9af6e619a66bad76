//! Root is needed to bind low ports and to answer machines that have no address yet, and for nothing after that.

use goldwire_control::boot::serve::Ids;
use goldwire_stdx::{Context, Report};
use nix::unistd::{Gid, Uid, User, geteuid, setgid, setgroups, setuid};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, capability_is_in_bounding_set, remove_capability_from_bounding_set, set_no_new_privs,
};

/// Whom root becomes.
pub(crate) struct Account {
    pub(crate) name: String,
    uid: Uid,
    gid: Gid,
}

impl Account {
    pub(crate) fn ids(&self) -> Ids {
        Ids { user: self.uid.as_raw(), group: self.gid.as_raw() }
    }
}

/// The account `user`, if there is root to drop.
pub(crate) fn account(user: &str) -> Result<Option<Account>, Report> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let found =
        User::from_name(user).map_err(Report::plain).with_context(|| format!("look up the user {user}"))?;
    let Some(found) = found else {
        return Err(Report::new(format!("there is no user {user}, whom the boot file names"))
            .hint(format!("make one: useradd --system --no-create-home --shell /usr/sbin/nologin {user}")));
    };
    Ok(Some(Account { name: user.to_owned(), uid: found.uid, gid: found.gid }))
}

/// Becomes `account`, with that user's group alone, for good: without a capability, and without a way to a new one, by
/// whatever program.
pub(crate) fn drop_to(account: &Account) -> Result<(), Report> {
    let user = &account.name;
    for capability in CapabilitySet::all().iter() {
        // One that this kernel does not know is in no set.
        if capability_is_in_bounding_set(capability).unwrap_or(false) {
            remove_capability_from_bounding_set(capability)
                .map_err(Report::plain)
                .with_context(|| "empty the bounding set".to_owned())?;
        }
    }
    setgroups(&[account.gid])
        .and_then(|()| setgid(account.gid))
        .and_then(|()| setuid(account.uid))
        .map_err(Report::plain)
        .with_context(|| format!("become {user}"))?;
    set_no_new_privs(true)
        .map_err(Report::plain)
        .with_context(|| format!("give {user} no new privileges"))?;
    // Belt and braces: a program that could become root again has dropped nothing.
    if setuid(Uid::from_raw(0)).is_ok() {
        return Err(Report::new("root could not be dropped"));
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
