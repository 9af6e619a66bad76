//! Where a sync's source and targets are, as the user writes them: `PATH`, `HOST:PATH`, `USER@HOST:PATH`.

/// A path on this machine or behind `ssh`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// What `ssh` calls the host, such as `root@master`; none is this machine.
    pub host: Option<String>,
    /// The path there.
    pub path: String,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Some(host) => write!(f, "{host}:{}", self.path),
            None => f.write_str(&self.path),
        }
    }
}

impl std::str::FromStr for Endpoint {
    type Err = std::convert::Infallible;

    /// As `scp` and `rsync` read it: a colon before any slash ends the host.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let host_end = text.find(':').filter(|colon| *colon > 0 && !text[..*colon].contains('/'));
        // An IPv6 literal stands in brackets.
        let host_end = match text.find("]:") {
            Some(bracket) if text[..bracket].contains('[') && !text[..bracket].contains('/') => {
                Some(bracket + 1)
            }
            _ => host_end,
        };
        Ok(match host_end {
            Some(colon) => {
                let host = text[..colon].replace(['[', ']'], "");
                let path = &text[colon + 1..];
                Self { host: Some(host), path: if path.is_empty() { "." } else { path }.to_owned() }
            }
            None => Self { host: None, path: text.to_owned() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_read_as_scp_reads_them() {
        for (text, host, path) in [
            ("/a/b", None, "/a/b"),
            ("a.vhd", None, "a.vhd"),
            ("./a:b", None, "./a:b"),
            ("h:/a", Some("h"), "/a"),
            ("root@h:a b", Some("root@h"), "a b"),
            ("h:", Some("h"), "."),
            ("[::1]:/a", Some("::1"), "/a"),
            ("root@[fe80::1]:/a", Some("root@fe80::1"), "/a"),
            ("/a:b", None, "/a:b"),
        ] {
            let place: Endpoint = text.parse().unwrap();
            assert_eq!((place.host.as_deref(), place.path.as_str()), (host, path), "{text}");
        }
    }
}
