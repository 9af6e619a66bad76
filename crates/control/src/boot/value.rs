//! Values of a boot file as they are written: patterns, makers.

use std::str::FromStr;

/// What a rule compares bytes with: the whole text, its begin (`eth0/*`), or bytes in hexadecimal (`0x0004001e`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    bytes: Vec<u8>,
    is_prefix: bool,
}

impl Pattern {
    /// Whether it matches.
    pub(super) fn matches(&self, value: &[u8]) -> bool {
        if self.is_prefix { value.starts_with(&self.bytes) } else { value == self.bytes }
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (body, is_prefix) = text.strip_suffix('*').map_or((text, false), |body| (body, true));
        let Bytes(bytes) = body.parse()?;
        Ok(Self { bytes, is_prefix })
    }
}

/// Bytes, as text or in hexadecimal behind `0x`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(digits) = text.strip_prefix("0x") else { return Ok(Self(text.as_bytes().to_vec())) };
        (0..digits.len())
            .step_by(2)
            .map(|at| digits.get(at..at + 2).and_then(|byte| u8::from_str_radix(byte, 16).ok()))
            .collect::<Option<Vec<u8>>>()
            .map(Self)
            .ok_or_else(|| format!("{text:?} is not an even number of hexadecimal digits behind 0x"))
    }
}

/// The first three bytes of a MAC address, which tell its maker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Oui(pub(super) [u8; 3]);

impl FromStr for Oui {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits: String = text.chars().filter(|c| !matches!(c, ':' | '-')).collect();
        let bytes = goldwire_stdx::from_hex(&digits).map(Self);
        bytes.ok_or_else(|| format!("{text:?} is not the begin of a MAC address; write for example 52:54:00"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        assert!("eth0/*".parse::<Pattern>().unwrap().matches(b"eth0/7"));
        assert!("0x0004ff".parse::<Pattern>().unwrap().matches(&[0, 4, 255]));
        assert!(
            !"eth0".parse::<Pattern>().unwrap().matches(b"eth0/7") && "0x004".parse::<Pattern>().is_err()
        );
    }
}
