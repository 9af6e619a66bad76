//! The PROXY protocol, versions 1 and 2 (HAProxy's `doc/proxy-protocol.txt`): who it is that a balancer speaks for.
//! Believed only from addresses that the settings name, because anybody can say it.
//!
//! ```text
//! v1   PROXY TCP4 192.0.2.7 10.0.0.1 40000 80\r\n            at most 107 bytes
//! v2   \r\n\r\n\0\r\nQUIT\n  version+command  family  length (u16 big endian)  addresses, more
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest header that is taken: version 1 has at most 107 bytes, and version 2 is as long as its extensions, of which
/// we need none.
pub const HEADER_MAX: usize = 2048;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 1, with its line end (section 2.1).
const LINE_MAX: usize = 107;

/// Whom a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The balancer itself, as in its health checks, or somebody for whom it has no address of ours.
    Local,
    /// A client.
    Client {
        /// Its address.
        source: SocketAddr,
        /// The address that it spoke to.
        destination: SocketAddr,
    },
}

/// Why bytes are no PROXY header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyHeaderError {
    /// They start otherwise.
    #[error("the connection does not start with a PROXY header")]
    Missing,
    /// Longer than [`HEADER_MAX`], or than version 1 allows.
    #[error("the PROXY header is too long")]
    TooLong,
    /// A field has a value that it cannot have.
    #[error("wrong {field} in the PROXY header at byte {offset}")]
    Field {
        /// Which one.
        field: &'static str,
        /// Where it starts.
        offset: usize,
    },
}

/// Reads the header at the start of `bytes`, with its length; nothing while it is not complete.
///
/// # Errors
/// When more bytes would not make it a header.
pub fn decode(bytes: &[u8]) -> Result<Option<(Origin, usize)>, ProxyHeaderError> {
    let starts = |with: &[u8]| {
        let length = bytes.len().min(with.len());
        bytes[..length] == with[..length]
    };
    if starts(&SIGNATURE) {
        decode_binary(bytes)
    } else if starts(b"PROXY ") {
        decode_line(bytes)
    } else {
        Err(ProxyHeaderError::Missing)
    }
}

/// A header of version 2 for a client.
pub fn encode(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    // Version 2, command PROXY.
    bytes.push(0x21);
    match (source.ip().to_canonical(), destination.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([0x11, 0, 12]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        (from, to) => {
            let wide = |address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            bytes.extend([0x21, 0, 36]);
            bytes.extend(wide(from));
            bytes.extend(wide(to));
        }
    }
    bytes.extend(source.port().to_be_bytes());
    bytes.extend(destination.port().to_be_bytes());
    bytes
}

fn decode_binary(bytes: &[u8]) -> Result<Option<(Origin, usize)>, ProxyHeaderError> {
    let Some(&[command, family, high, low]) = bytes.get(12..16) else { return Ok(None) };
    let wrong = |field, offset| ProxyHeaderError::Field { field, offset };
    let length = 16 + usize::from(u16::from_be_bytes([high, low]));
    if length > HEADER_MAX {
        return Err(ProxyHeaderError::TooLong);
    }
    let Some(header) = bytes.get(..length) else { return Ok(None) };
    let rest = &header[16..];
    let origin = match (command, family) {
        // LOCAL: whatever it says about addresses is to be ignored (section 2.2).
        (0x20, _) => Origin::Local,
        (0x21, 0x11) => {
            let [a, b, c, d, e, f, g, h, ports @ ..] = rest else { return Err(wrong("length", 14)) };
            client(Ipv4Addr::new(*a, *b, *c, *d).into(), Ipv4Addr::new(*e, *f, *g, *h).into(), ports)?
        }
        (0x21, 0x21) => {
            let wide = |at: usize| rest.get(at..at + 16).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
            let (Some(from), Some(to)) = (wide(0), wide(16)) else { return Err(wrong("length", 14)) };
            let address = |octets| Ipv6Addr::from_octets(octets).to_canonical();
            client(address(from), address(to), &rest[32..])?
        }
        // Unspecified, a Unix socket, datagrams: nothing to be used, and a receiver may go on (section 2.2).
        (0x21, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => Origin::Local,
        (0x21, _) => return Err(wrong("family", 13)),
        _ => return Err(wrong("version and command", 12)),
    };
    Ok(Some((origin, length)))
}

fn client(source: IpAddr, destination: IpAddr, ports: &[u8]) -> Result<Origin, ProxyHeaderError> {
    let [a, b, c, d, ..] = ports else {
        return Err(ProxyHeaderError::Field { field: "length", offset: 14 });
    };
    Ok(Origin::Client {
        source: (source, u16::from_be_bytes([*a, *b])).into(),
        destination: (destination, u16::from_be_bytes([*c, *d])).into(),
    })
}

fn decode_line(bytes: &[u8]) -> Result<Option<(Origin, usize)>, ProxyHeaderError> {
    let window = &bytes[..bytes.len().min(LINE_MAX)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() >= LINE_MAX { Err(ProxyHeaderError::TooLong) } else { Ok(None) };
    };
    let wrong = |field, offset| ProxyHeaderError::Field { field, offset };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| wrong("line", 0))?;
    let mut words = line.split(' ').skip(1);
    let family = words.next().unwrap_or("");
    if family == "UNKNOWN" {
        return Ok(Some((Origin::Local, end + 2)));
    }
    let mut address = || words.next().and_then(|word| word.parse::<IpAddr>().ok());
    let (Some(from), Some(to)) = (address(), address()) else { return Err(wrong("address", 11)) };
    let is_family = match family {
        "TCP4" => from.is_ipv4() && to.is_ipv4(),
        "TCP6" => from.is_ipv6() && to.is_ipv6(),
        _ => false,
    };
    if !is_family {
        return Err(wrong("family", 6));
    }
    let mut port = || words.next().filter(|word| !word.starts_with('+')).and_then(|word| word.parse().ok());
    let (Some(from_port), Some(to_port)) = (port(), port()) else { return Err(wrong("port", 11)) };
    if words.next().is_some() {
        return Err(wrong("end", end));
    }
    let source = (from.to_canonical(), from_port).into();
    Ok(Some((Origin::Client { source, destination: (to.to_canonical(), to_port).into() }, end + 2)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn from(source: &str, destination: &str) -> Origin {
        Origin::Client { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn lines_of_version_1() {
        // The examples of section 2.1.
        for (line, expected) in [
            (
                "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
                from("192.168.0.1:56324", "192.168.0.11:443"),
            ),
            (
                "PROXY TCP6 2001:db8::1 2001:db8::2 1 65535\r\n",
                from("[2001:db8::1]:1", "[2001:db8::2]:65535"),
            ),
            ("PROXY UNKNOWN\r\n", Origin::Local),
            ("PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", Origin::Local),
        ] {
            let bytes = [line.as_bytes(), b"GET /"].concat();
            assert_eq!(decode(&bytes), Ok(Some((expected, line.len()))), "{line}");
            for length in 0..line.len() {
                assert_eq!(decode(&bytes[..length]), Ok(None), "{line}");
            }
        }
        for line in [
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324\r\n",
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443 1\r\n",
            "PROXY TCP4 ::1 ::1 1 1\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 1\r\n",
            "PROXY TCP5 1.2.3.4 1.2.3.4 1 1\r\n",
            "GET / HTTP/1.1\r\n",
        ] {
            assert!(decode(line.as_bytes()).is_err(), "{line}");
        }
        assert_eq!(decode(&[&b"PROXY "[..], &[b'x'; 120]].concat()), Err(ProxyHeaderError::TooLong));
    }

    #[test]
    fn version_2_round_trip_and_golden_bytes() {
        let (source, destination) = ("10.1.2.3:1000".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
        let bytes = encode(source, destination);
        assert_eq!(goldwire_stdx::to_hex(&bytes), "0d0a0d0a000d0a515549540a2111000c0a0102030a00000103e80050");
        assert_eq!(decode(&bytes), Ok(Some((Origin::Client { source, destination }, 28))));
        let source = "[2001:db8::1]:9".parse().unwrap();
        let mut bytes = encode(source, "[2001:db8::2]:80".parse().unwrap());
        assert_eq!(decode(&bytes).unwrap().unwrap().0, from("[2001:db8::1]:9", "[2001:db8::2]:80"));
        // A health check of the balancer.
        bytes[12] = 0x20;
        assert_eq!(decode(&bytes), Ok(Some((Origin::Local, 52))));
        // It has no address for its client.
        (bytes[12], bytes[13]) = (0x21, 0);
        assert_eq!(decode(&bytes), Ok(Some((Origin::Local, 52))));
        for (command, family, length) in
            [(0x22, 0x11, 12), (0x21, 0x11, 11), (0x21, 0x21, 35), (0x21, 0x44, 36)]
        {
            (bytes[12], bytes[13], bytes[15]) = (command, family, length);
            let decoded = decode(&bytes);
            assert!(matches!(decoded, Err(ProxyHeaderError::Field { .. })), "{command} {family} {length}");
        }
        (bytes[14], bytes[15]) = (8, 0);
        assert_eq!(decode(&bytes), Err(ProxyHeaderError::TooLong));
    }

    proptest! {
        #[test]
        fn nonsense_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..80), which in 0_usize..3) {
            let start: &[u8] = [&b"PROXY TCP4 "[..], b"\r\n\r\n\0\r\nQUIT\n!", b""][which];
            let all = [start, &bytes].concat();
            if let Ok(Some((_, length))) = decode(&all) {
                prop_assert!(length <= all.len());
            }
        }
    }
}
