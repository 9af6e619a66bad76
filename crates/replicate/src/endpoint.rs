//! Where a sync's source and targets are, as the user writes them: `PATH`, `HOST:PATH`, `USER@HOST:PATH`,
//! `[ADDRESS]:PATH`, `ssh://USER@HOST:PORT/PATH`.

use crate::receive::written_promise;

/// A path on this machine or behind `ssh`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// What `ssh` is given as the host, such as `root@master` or `ssh://root@master:2222`; `None` is this machine.
    pub host: Option<String>,
    /// The path there; a relative one begins in the user's home there.
    pub path: String,
}

impl std::fmt::Display for Endpoint {
    /// As it may be written again.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(host) = &self.host else { return f.write_str(&self.path) };
        if host.starts_with(SCHEME) {
            return write!(f, "{host}{}{}", if self.path.starts_with('/') { "" } else { "/~/" }, self.path);
        }
        let start = host.rfind('@').map_or(0, |at| at + 1);
        let (user, address) = host.split_at(start);
        // An IPv6 address stands in brackets.
        match address.contains(':') {
            true => write!(f, "{user}[{address}]:{}", self.path),
            false => write!(f, "{host}:{}", self.path),
        }
    }
}

impl Endpoint {
    /// What was probably meant, if this names something on this machine that is not there and looks like a host whose
    /// colon was forgotten: `backup` and `backup/images/`, but not `./backup`, `/images` or `new.raw`.
    pub(crate) fn with_forgotten_colon(&self) -> Option<Self> {
        if self.host.is_some() || self.path.starts_with(['/', '.', '~']) {
            return None;
        }
        let (host, path) = self.path.split_once('/').unwrap_or((&self.path, ""));
        let is_name = |name: &str| {
            !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@".contains(&byte))
        };
        // A last part behind a dot may be a domain's or a file's; disks have three letters or more, and are files.
        let is_file = path.is_empty() && !self.path.ends_with('/') && written_promise(host).is_some();
        let is_there = std::fs::symlink_metadata(host).is_ok();
        let meant = || Self {
            host: Some(host.to_owned()),
            path: if path.is_empty() { String::new() } else { format!("/{path}") },
        };
        (is_name(host) && !is_file && !is_there).then(meant)
    }
}

const SCHEME: &str = "ssh://";
/// How it is written.
const URL: &str = "ssh://[USER@]HOST[:PORT]/PATH";

impl std::str::FromStr for Endpoint {
    type Err = String;

    /// As `scp` and `rsync` read it: a colon before any slash ends the host.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(format!("a place has a path: write PATH, HOST:PATH or {URL}"));
        }
        if let Some(rest) = text.strip_prefix(SCHEME) {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            check_authority(authority)?;
            if authority.len() == rest.len() {
                return Err(format!("no path follows the host: write {URL}"));
            }
            // After the host comes an absolute path; `/~/` begins in the home, as git writes it.
            let path = if path.starts_with("~/") { from_home(path) } else { format!("/{path}") };
            return Ok(Self { host: Some(format!("{SCHEME}{authority}")), path });
        }
        let colon = || text.find(':').filter(|colon| *colon > 0 && !text[..*colon].contains('/'));
        let split = bracketed(text).or_else(|| colon().map(|at| (text[..at].to_owned(), &text[at + 1..])));
        let Some((host, path)) = split else { return Ok(Self { host: None, path: text.to_owned() }) };
        Ok(Self { host: Some(host), path: from_home(path) })
    }
}

/// Refuses a host that is missing and a port that is none, to which `ssh` would only print its usage.
fn check_authority(authority: &str) -> Result<(), String> {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.is_empty() || host.starts_with(':') {
        return Err(format!("no host is named: write {URL}"));
    }
    // The colons in brackets are an address's.
    let behind = host.rsplit_once(']').map_or(host, |(_, behind)| behind);
    let is_port = |port: &str| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    match behind.rsplit_once(':') {
        Some((_, port)) if !is_port(port) => {
            Err(format!("{port:?} is no port: write a number from 1 to 65535"))
        }
        _ => Ok(()),
    }
}

/// `path` without a `~` for the home: the shell over there, which would know it, never sees the path, and a relative one
/// begins there anyway.
fn from_home(path: &str) -> String {
    let inside = match path.strip_prefix('~') {
        Some("") => "",
        Some(rest) if rest.starts_with('/') => rest.trim_start_matches('/'),
        _ => path,
    };
    match inside {
        "" => ".".into(),
        // A second one is a name.
        inside if inside.len() < path.len() && inside.starts_with('~') => format!("./{inside}"),
        inside => inside.to_owned(),
    }
}

/// Host and path of `[ADDRESS]:PATH` and `USER@[ADDRESS]:PATH`.
fn bracketed(text: &str) -> Option<(String, &str)> {
    let (user, rest) = text.split_once('[')?;
    let (address, path) = rest.split_once("]:")?;
    let is_user = user.is_empty() || (user.ends_with('@') && !user.contains(['/', ':']));
    (is_user && !address.is_empty() && !address.contains(['/', '[']))
        .then(|| (format!("{user}{address}"), path))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_read_as_scp_reads_them() {
        for (text, host, path) in [
            ("/a/b", None, "/a/b"),
            ("a.vhd", None, "a.vhd"),
            ("./a:b", None, "./a:b"),
            ("~/a", None, "~/a"),
            ("h:/a", Some("h"), "/a"),
            ("root@h:a b", Some("root@h"), "a b"),
            ("h:", Some("h"), "."),
            ("h:~", Some("h"), "."),
            ("h:~/a/b", Some("h"), "a/b"),
            ("h:~other/a", Some("h"), "~other/a"),
            ("h:~//a", Some("h"), "a"),
            ("h:~/~/a", Some("h"), "./~/a"),
            ("ssh://h/~/", Some("ssh://h"), "."),
            ("[::1]:/a", Some("::1"), "/a"),
            ("root@[fe80::1]:/a", Some("root@fe80::1"), "/a"),
            ("/a:b", None, "/a:b"),
            ("ssh://root@h:2222/a/b", Some("ssh://root@h:2222"), "/a/b"),
            ("ssh://h/a", Some("ssh://h"), "/a"),
            ("ssh://[fe80::1]:22/a", Some("ssh://[fe80::1]:22"), "/a"),
            ("ssh://h/~/a", Some("ssh://h"), "a"),
            ("ssh:a", Some("ssh"), "a"),
        ] {
            let place: Endpoint = text.parse().unwrap();
            assert_eq!((place.host.as_deref(), place.path.as_str()), (host, path), "{text}");
        }
    }

    #[test]
    fn a_forgotten_colon_is_noticed_and_a_file_is_none() {
        for (text, meant) in [
            ("backup-7", Some("backup-7:")),
            ("root@backup-7", Some("root@backup-7:")),
            ("backup-7.example.org", Some("backup-7.example.org:")),
            ("backup-7/images/", Some("backup-7:/images/")),
            ("backup-7/images/new.raw", Some("backup-7:/images/new.raw")),
            ("new-7.raw", None),
            ("new-7.VHD", None),
            ("new-7.img", None),
            ("./backup-7", None),
            ("/backup-7", None),
            ("~/backup-7", None),
            ("backup-7:", None),
            ("a b", None),
            // The tests run in the folder of the crate.
            ("src", None),
            ("src/new", None),
        ] {
            let place: Endpoint = text.parse().unwrap();
            let found = place.with_forgotten_colon().map(|place| place.to_string());
            assert_eq!(found.as_deref(), meant, "{text}");
        }
    }

    #[test]
    fn places_are_shown_as_they_may_be_written() {
        for text in ["/a", "a:b", "u@h:/a", "[::1]:/a", "root@[fe80::1]:/a", "ssh://u@h:22/a", "ssh://h/~/a"]
        {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_port_is_one_or_refused() {
        for good in ["ssh://h:1/a", "ssh://u:x@h/a", "ssh://[::99999]/a", "ssh://[::1]:65535/a", "h:99999/a"]
        {
            assert!(good.parse::<Endpoint>().is_ok(), "{good}");
        }
        for bad in [
            "ssh://h:0/a",
            "ssh://h:65536/a",
            "ssh://h:+22/a",
            "ssh://h:x",
            "ssh://h:/a",
            "ssh://u@h:x/a",
            "ssh://[::1]:99999/a",
        ] {
            assert!(bad.parse::<Endpoint>().unwrap_err().contains("1 to 65535"), "{bad}");
        }
    }

    /// They were read as paths on a host called `ssh`.
    #[test]
    fn a_place_without_a_host_or_a_path_is_refused() {
        for (bad, says) in [
            ("", "PATH, HOST:PATH"),
            ("ssh://", "no host"),
            ("ssh:///a", "no host"),
            ("ssh://u@/a", "no host"),
            ("ssh://:22/a", "no host"),
            ("ssh://h", "no path"),
            ("ssh://u@h:22", "no path"),
        ] {
            assert!(bad.parse::<Endpoint>().unwrap_err().contains(says), "{bad}");
        }
        assert_eq!("ssh://h/".parse::<Endpoint>().unwrap().path, "/");
    }

    proptest! {
        /// What is shown reads as the same place.
        #[test]
        fn what_is_shown_reads_as_the_same(text in "(ssh://)?[a-z]{0,2}@?\\[?[a-z:]{0,4}\\]?:?[~/a-z.]{0,5}") {
            // Letters are no port.
            let Ok(place) = text.parse::<Endpoint>() else {
                prop_assert!(text.starts_with(SCHEME) || text.is_empty());
                return Ok(());
            };
            // A host like `a:b` without brackets cannot be written in any way.
            prop_assert_eq!(place.to_string().parse::<Endpoint>().unwrap(), place);
        }
    }
}
