//! The PROXY protocol, versions 1 and 2 (HAProxy's `doc/proxy-protocol.txt`): a balancer's word for who its client is.
//! Believed only from addresses that the settings name, because anybody can say it.
//!
//! ```text
//! v1   PROXY TCP4 192.0.2.7 10.0.0.1 40000 80\r\n            at most 107 bytes
//! v2   \r\n\r\n\0\r\nQUIT\n  version+command  family  length (u16 big endian)  addresses, more
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest version 1 header, with its end of line.
const LINE_MAX: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Longest part behind version 2's 16 bytes. Addresses need 36; the rest is extensions, certificates' names at most.
const EXTRA_MAX: usize = 2048;

/// Not a PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection does not begin with a PROXY header")]
pub struct BadProxy;

/// Reads a header from the beginning of what came: the client's address (none if the balancer speaks for itself, as in
/// its health checks) and the header's length; or nothing while it is not whole.
pub fn parse(bytes: &[u8]) -> Result<Option<(Option<IpAddr>, usize)>, BadProxy> {
    let start = bytes.len().min(SIGNATURE.len());
    if bytes[..start] == SIGNATURE[..start] {
        return version_2(bytes);
    }
    let word = b"PROXY ";
    let start = bytes.len().min(word.len());
    if bytes[..start] != word[..start] {
        return Err(BadProxy);
    }
    let window = &bytes[..bytes.len().min(LINE_MAX)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() >= LINE_MAX { Err(BadProxy) } else { Ok(None) };
    };
    let line = std::str::from_utf8(&window[word.len()..end]).map_err(|_| BadProxy)?;
    let words: Vec<&str> = line.split(' ').collect();
    let address = match words.as_slice() {
        ["UNKNOWN", ..] => None,
        ["TCP4", source, target, _, _] => {
            let _: Ipv4Addr = target.parse().map_err(|_| BadProxy)?;
            Some(IpAddr::V4(source.parse().map_err(|_| BadProxy)?))
        }
        ["TCP6", source, target, _, _] => {
            let _: Ipv6Addr = target.parse().map_err(|_| BadProxy)?;
            Some(IpAddr::V6(source.parse().map_err(|_| BadProxy)?))
        }
        _ => return Err(BadProxy),
    };
    Ok(Some((address, end + 2)))
}

fn version_2(bytes: &[u8]) -> Result<Option<(Option<IpAddr>, usize)>, BadProxy> {
    let Some((head, behind)) = bytes.split_at_checked(16) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
    if length > EXTRA_MAX {
        return Err(BadProxy);
    }
    let Some(extra) = behind.get(..length) else { return Ok(None) };
    let address = match (head[12], head[13]) {
        (0x20, _) => None, // LOCAL
        (0x21, 0x11) => {
            let source: [u8; 4] =
                extra.get(..12).and_then(|part| part[..4].try_into().ok()).ok_or(BadProxy)?;
            Some(IpAddr::from(source))
        }
        (0x21, 0x21) => {
            let source: [u8; 16] =
                extra.get(..36).and_then(|part| part[..16].try_into().ok()).ok_or(BadProxy)?;
            Some(IpAddr::from(source))
        }
        (0x21, _) => None, // A family without addresses that we could use.
        _ => return Err(BadProxy),
    };
    Ok(Some((address, 16 + length)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, extra: &[u8]) -> Vec<u8> {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend((extra.len() as u16).to_be_bytes());
        bytes.extend(extra);
        bytes
    }

    #[test]
    fn both_versions() {
        let line = b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 80\r\nGET";
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        assert_eq!(parse(line), Ok(Some((Some(address), line.len() - 3))));
        let line = b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 80\r\n";
        assert_eq!(parse(line), Ok(Some(("2001:db8::7".parse().ok(), line.len()))));
        assert_eq!(parse(b"PROXY UNKNOWN\r\n"), Ok(Some((None, 15))));
        let bytes = v2(0x21, 0x11, &[192, 0, 2, 7, 10, 0, 0, 1, 0, 1, 0, 80, 3, 0, 1, 0]);
        assert_eq!(parse(&bytes), Ok(Some((Some(address), bytes.len()))));
        assert_eq!(parse(&v2(0x20, 0, &[])), Ok(Some((None, 16))));
    }

    #[test]
    fn anything_else_is_refused() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY TCP4 x 10.0.0.1 1 2\r\n",
            b"PROXY TCP4 1.2.3.4 10.0.0.1 1\r\n",
            b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            &[b"PROXY TCP4 ".as_slice(), &[b'1'; 100]].concat(),
            &v2(0x22, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 11]),
            &v2(0x21, 0x21, &[0; 12]),
            &v2(0x21, 0, &[0; EXTRA_MAX + 1]),
        ] {
            assert_eq!(parse(bytes), Err(BadProxy), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn every_beginning_is_not_whole_yet(cut in 0_usize..44) {
            let line = b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 80\r\n";
            prop_assert_eq!(parse(&line[..cut]), Ok(None));
            let bytes = v2(0x21, 0x21, &[1; 36]);
            prop_assert_eq!(parse(&bytes[..cut]), Ok(None));
        }
    }
}
