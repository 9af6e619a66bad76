//! What a boot file names outside of the boot tree: URLs (RFC 3986) and disks over iSCSI (RFC 4173). A wrong one would be
//! found out by a machine that does not boot.

use std::net::{Ipv4Addr, Ipv6Addr};

use goldwire_netboot::Place;
use goldwire_stdx::is_host_name;

/// What iPXE and firmware fetch by (ipxe.org/appnote; UEFI 2.10, 24.7).
const SCHEMES: [&str; 6] = ["http", "https", "tftp", "ftp", "nfs", "file"];
/// An option's length is one byte, and clients do not join two of them for a boot file.
const HANDED_OUT_MAX: usize = 255;

/// What is wrong with a text, and what would be right.
pub(super) type Wrong = (String, String);

/// A URL that DHCP hands out as it is. iPXE expands `${…}` in it; nobody fills `{{ … }}`.
pub(super) fn check_handed_out(url: &str) -> Result<(), Wrong> {
    if url.contains("{{") {
        return wrong(
            url,
            "has an expression, and a URL is handed out as it is",
            "iPXE knows ${net0/mac} and others",
        );
    }
    if !matches!(Place::of(url), Place::Url(_)) {
        let hint =
            "write for example http://10.0.0.1/boot.ipxe; file names a file of the boot tree, san a disk";
        return wrong(url, "is no URL", hint);
    }
    if url.len() > HANDED_OUT_MAX {
        return wrong(
            url,
            "is longer than the 255 bytes that DHCP carries",
            "a script can load from a longer one",
        );
    }
    check_url(url)
}

/// A place that a script names, where it is none of the boot tree. What an expression fills in is known later.
pub(super) fn check_outside(place: &str) -> Result<(), Wrong> {
    if place.contains("{{") {
        return Ok(());
    }
    match Place::of(place) {
        Place::Tree(_) => Ok(()),
        Place::Url(url) => check_url(url),
        Place::Iscsi(uri) => check_iscsi(uri),
    }
}

fn check_url(url: &str) -> Result<(), Wrong> {
    let Some((scheme, rest)) = url.split_once("://") else { return wrong(url, "is no URL", USUAL) };
    if !SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        let hint = format!("known are {}", SCHEMES.join(", "));
        return wrong(url, &format!("has the unknown scheme {scheme:?}"), &hint);
    }
    // iPXE's `${…}` aside, what is not in RFC 3986 has to be percent-encoded.
    let is_of_urls = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '<' | '>' | '\\' | '^' | '`' | '|');
    if let Some(strange) = url.chars().find(|c| !is_of_urls(*c)) {
        let hint = format!("write it as {}", percent(strange));
        return wrong(url, &format!("has {strange:?} in it"), &hint);
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // file:///x has no host, and `${…}` is known to iPXE alone.
    if host.contains("${") || host.is_empty() && scheme.eq_ignore_ascii_case("file") {
        return Ok(());
    }
    if is_host_with_port(host) { Ok(()) } else { wrong(url, &format!("has no host in {host:?}"), USUAL) }
}

const USUAL: &str = "write for example http://10.0.0.1/boot.ipxe or http://[fd00::1]:8080/boot.ipxe";

/// `iscsi:SERVER:PROTOCOL:PORT:LUN:NAME`, the middle three perhaps empty.
fn check_iscsi(uri: &str) -> Result<(), Wrong> {
    let hint = "write for example iscsi:10.0.0.31::::iqn.2024-01.example:disk";
    if uri.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return wrong(uri, "has white space in it", hint);
    }
    let rest = &uri["iscsi:".len()..];
    let in_brackets = rest.strip_prefix('[').and_then(|rest| rest.split_once("]:"));
    let server = in_brackets.or_else(|| rest.split_once(':'));
    let is_server =
        |name: &str| if in_brackets.is_some() { name.parse::<Ipv6Addr>().is_ok() } else { is_host(name) };
    let Some((_, rest)) = server.filter(|(name, _)| is_server(name)) else {
        return wrong(uri, "names no server", hint);
    };
    let fields: Vec<&str> = rest.splitn(4, ':').collect();
    match fields[..] {
        [_, port, _, name] if !name.is_empty() => {
            if port.is_empty() || is_port(port) {
                Ok(())
            } else {
                wrong(uri, &format!("has no port in {port:?}"), hint)
            }
        }
        _ => wrong(uri, "has not SERVER:PROTOCOL:PORT:LUN:NAME behind iscsi:", hint),
    }
}

fn is_host_with_port(text: &str) -> bool {
    if let Some((address, rest)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        let port = rest.strip_prefix(':');
        return address.parse::<Ipv6Addr>().is_ok() && (rest.is_empty() || port.is_some_and(is_port));
    }
    match text.split_once(':') {
        Some((host, port)) => is_host(host) && is_port(port),
        None => is_host(text),
    }
}

/// A name or an address; what has digits and dots alone would be an address.
pub(super) fn is_host(text: &str) -> bool {
    let is_numeric = text.chars().all(|c| c.is_ascii_digit() || c == '.');
    if is_numeric { text.parse::<Ipv4Addr>().is_ok() } else { is_host_name(text) }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

fn percent(character: char) -> String {
    let mut bytes = [0; 4];
    character.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn wrong(text: &str, what: &str, hint: &str) -> Result<(), Wrong> {
    Err((format!("{text:?} {what}"), hint.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for good in [
            "http://10.9.9.9/boot.ipxe",
            "HTTPS://boot.example:8443/a%20b?x=1&y=2",
            "tftp://[2001:db8::5]/pxelinux.0",
            "http://10.0.0.1/${net0/mac:hexhyp}.ipxe",
            "http://${next-server}/x",
            "ftp://user:word@host/x",
            "file:///x",
        ] {
            assert_eq!(check_handed_out(good), Ok(()), "{good}");
        }
        let long = format!("http://h/{}", "x".repeat(250));
        for (bad, reason) in [
            ("", "is no URL"),
            ("not a url", "is no URL"),
            ("pxelinux.0", "is no URL"),
            ("http:/10.0.0.1/x", "is no URL"),
            ("iscsi:10.0.0.1::::iqn.a:b", "is no URL"),
            ("htp://10.0.0.1/x", "the unknown scheme \"htp\""),
            ("http://10.0.0.256/x", "no host"),
            ("http:///x", "no host"),
            ("http://h:0/x", "no host"),
            ("http://h:65536/x", "no host"),
            ("http://[::g]/x", "no host"),
            ("http://h/a b", "' ' in it"),
            ("http://h/\u{1b}", "in it"),
            ("http://h/ü", "in it"),
            ("http://h/{{ mac }}", "expression"),
            (&long, "255 bytes"),
        ] {
            let (message, hint) = check_handed_out(bad).unwrap_err();
            assert!(message.contains(reason) && !hint.is_empty(), "{bad}: {message}");
        }
    }

    #[test]
    fn disks_over_iscsi() {
        for good in [
            "iscsi:10.0.0.31::::iqn.2024-01.example:win",
            "ISCSI:[fd00::1]:6:3260:0:iqn.a:b",
            "iscsi:san.example::::iqn.a",
            "linux/disk.img",
            "http://h/disk.img",
            "iscsi:{{ vars.server }}::::iqn.a:b",
        ] {
            assert_eq!(check_outside(good), Ok(()), "{good}");
        }
        for bad in [
            "iscsi:",
            "iscsi:10.0.0.31",
            "iscsi:10.0.0.31:iqn.a:b",
            "iscsi:10.0.0.31::::",
            "iscsi:10.0.0.999::::iqn.a",
            "iscsi:h::70000::iqn.a",
            "iscsi:h::::iqn a",
            "http://",
        ] {
            let (message, hint) = check_outside(bad).unwrap_err();
            assert!(message.contains(bad.split(' ').next().unwrap()) && !hint.is_empty(), "{bad}: {message}");
        }
    }
}
