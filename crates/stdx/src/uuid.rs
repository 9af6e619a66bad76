//! UUIDs (RFC 9562): 16 bytes in the order in which they are written.

use std::fmt;
use std::str::FromStr;

/// A UUID. Containers, firmware and hypervisors that store its first fields little-endian convert where they read it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid(pub [u8; 16]);

/// A text is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseUuidError;

impl fmt::Display for ParseUuidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a UUID has 32 hexadecimal digits, as in 01234567-89ab-cdef-0123-456789abcdef")
    }
}

impl std::error::Error for ParseUuidError {}

impl Uuid {
    /// The same UUID with its first three fields in the other byte order: SMBIOS 2.6 and later (DSP0134 §7.2.1) and
    /// Microsoft's formats store them little-endian.
    #[must_use]
    pub fn swapped(self) -> Self {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.0;
        let mut bytes = [d, c, b, a, f, e, h, g, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[8..].copy_from_slice(&rest);
        Self(bytes)
    }

    /// Whether it stands for "no UUID": all bits clear (RFC 9562 §5.9) or all set (§5.10).
    pub fn is_nil_or_max(self) -> bool {
        self.0 == [0; 16] || self.0 == [0xff; 16]
    }
}

impl fmt::Display for Uuid {
    /// Small letters, grouped 8-4-4-4-12.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = crate::to_hex(&self.0);
        let (a, b, c, d, e) = (&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]);
        f.pad(&format!("{a}-{b}-{c}-{d}-{e}"))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = ParseUuidError;

    /// 32 digits in either case, with the four hyphens at their places or without any, in braces or not.
    fn from_str(text: &str) -> Result<Self, ParseUuidError> {
        let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
        let plain = match inner.len() {
            32 => inner.to_owned(),
            36 if [8, 13, 18, 23].into_iter().all(|at| inner.as_bytes()[at] == b'-') => {
                inner.replace('-', "")
            }
            _ => return Err(ParseUuidError),
        };
        crate::from_hex(&plain).map(Self).ok_or(ParseUuidError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_read_as_people_write_it() {
        let uuid = Uuid(*b"\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef");
        let written = "01234567-89ab-cdef-0123-456789abcdef";
        assert_eq!(uuid.to_string(), written);
        for text in [written, &written.to_uppercase(), &written.replace('-', ""), &format!("{{{written}}}")] {
            assert_eq!(text.parse(), Ok(uuid), "{text}");
        }
        for text in [
            "",
            "-",
            "0123456789ab",
            "01234567-89ab-cdef-0123-456789abcdeg",
            "0123456-789ab-cdef-0123-456789abcdef",
        ] {
            assert_eq!(text.parse::<Uuid>(), Err(ParseUuidError), "{text}");
        }
        assert_eq!("é".repeat(18).parse::<Uuid>(), Err(ParseUuidError), "36 bytes that are no digits");
    }

    #[test]
    fn the_other_byte_order_swaps_the_first_three_fields() {
        let uuid: Uuid = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        assert_eq!(uuid.swapped().to_string(), "33221100-5544-7766-8899-aabbccddeeff");
        assert_eq!(uuid.swapped().swapped(), uuid);
    }
}
