//! One boot server of a group, and the question which of them live.

use std::net::IpAddr;

/// What a member is just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It answers and is given to no new device; those that it serves finish.
    Draining,
    /// It does not answer.
    Dead,
}

impl MemberState {
    /// The name in logs, metrics and configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Draining => "draining",
            Self::Dead => "dead",
        }
    }
}

/// One boot server of a group, as devices reach it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Its name, unique in the group.
    pub name: String,
    /// The address that answers name. IP literals need no DNS, which firmware often lacks.
    pub address: IpAddr,
    /// Port of its HTTP server.
    pub http_port: u16,
    /// Port of its HTTPS server, if it has one.
    pub https_port: Option<u16>,
    /// The name in its certificate, for `https` URLs; the address where there is none.
    pub https_name: Option<String>,
}

impl Member {
    /// `http://10.0.0.1` or `https://boot1.example:8443`: the start of a URL, without a default port.
    pub(crate) fn base_url(&self, is_secure: bool) -> String {
        let literal = match self.address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let (scheme, host, port, usual) = match (is_secure, self.https_port) {
            (true, Some(port)) => ("https", self.https_name.clone().unwrap_or(literal), port, 443),
            _ => ("http", literal, self.http_port, 80),
        };
        if port == usual { format!("{scheme}://{host}") } else { format!("{scheme}://{host}:{port}") }
    }
}

/// The members of the group as they are at this moment, in the order for one device. Asked on every request, so an
/// answer comes from memory.
pub trait LiveMembers: Send + Sync {
    /// The live members that take new devices, the best for `key` first (rendezvous hash over weights; those with an
    /// affinity to the subnet of the address before others). `key` is what stays the same through a device's boot: its
    /// MAC address, or its UUID. Empty when all are dead or drained.
    fn ordered_for(&self, key: &[u8], subnet: Option<IpAddr>) -> Vec<Member>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_port_only_where_it_is_unusual() {
        let mut member = Member {
            name: "a".into(),
            address: "10.0.0.1".parse().unwrap(),
            http_port: 80,
            https_port: Some(8443),
            https_name: Some("boot.example".into()),
        };
        assert_eq!(member.base_url(false), "http://10.0.0.1");
        assert_eq!(member.base_url(true), "https://boot.example:8443");
        member.address = "2001:db8::1".parse().unwrap();
        member.http_port = 8080;
        assert_eq!(member.base_url(false), "http://[2001:db8::1]:8080");
    }
}
