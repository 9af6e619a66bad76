//! Values as they are written: networks, durations, secrets, lists of one.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

/// A run of IPv4 addresses: `10.0.0.100-10.0.0.199`, both ends in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddressRange {
    /// The first.
    pub first: std::net::Ipv4Addr,
    /// The last.
    pub last: std::net::Ipv4Addr,
}

impl AddressRange {
    /// Whether an address is in it.
    pub fn contains(&self, address: std::net::Ipv4Addr) -> bool {
        self.first <= address && address <= self.last
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for AddressRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ends = text.split_once('-').map(|(first, last)| (first.trim().parse(), last.trim().parse()));
        match ends {
            Some((Ok(first), Ok(last))) if first <= last => Ok(Self { first, last }),
            Some((Ok(_), Ok(_))) => Err(format!("{text:?} ends before it begins")),
            _ => Err(format!("{text:?} is not a range; write for example 10.0.0.100-10.0.0.199")),
        }
    }
}

/// A duration: `500ms`, `30s`, `5m`, `12h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait(pub(super) Duration);

impl FromStr for Wait {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let milliseconds: u64 = match unit.trim() {
            "ms" => 1,
            "s" => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => 0,
        };
        let total = number.parse::<u64>().ok().and_then(|number| number.checked_mul(milliseconds));
        total
            .filter(|_| milliseconds > 0)
            .map(|total| Self(Duration::from_millis(total)))
            .ok_or_else(|| format!("{text:?} is not a duration; write for example 500ms, 30s, 5m, 12h or 7d"))
    }
}

/// A key that does not print itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the key's bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The key itself, for who signs with it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

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

/// A value that is read from its text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parsed<T>(pub(super) T);

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|error| de::Error::custom(plain(&text, &error)))
    }
}

/// The standard library's errors do not say what was wrong with what, nor what would be right.
fn plain(text: &str, error: &impl fmt::Display) -> String {
    let reason = error.to_string();
    match reason.as_str() {
        "invalid socket address syntax" => {
            format!("{text:?} is not an address with a port; write for example 0.0.0.0:80 or [::]:80")
        }
        "invalid IP address syntax" => {
            format!("{text:?} is not an address; write for example 10.0.0.1 or fd00::1")
        }
        "invalid IPv4 address syntax" => {
            format!("{text:?} is not an IPv4 address; write for example 10.0.0.1")
        }
        _ if reason.contains(&format!("{text:?}")) => reason,
        _ => format!("{text:?}: {reason}"),
    }
}

/// One value or a list of them.
#[derive(Clone, Debug)]
pub(super) struct Several<T>(pub(super) Vec<T>);

impl<T> Default for Several<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Several<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany<T>(PhantomData<T>);
        impl<'de, T: FromStr<Err: fmt::Display>> Visitor<'de> for OneOrMany<T> {
            type Value = Several<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                text.parse().map(|one| Several(vec![one])).map_err(|error| E::custom(plain(text, &error)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut several = Vec::new();
                while let Some(Parsed(item)) = items.next_element()? {
                    several.push(item);
                }
                Ok(Several(several))
            }
        }
        deserializer.deserialize_any(OneOrMany(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_ranges_and_patterns() {
        assert_eq!("12h".parse(), Ok(Wait(Duration::from_secs(43200))));
        for bad in ["", "12", "h", "1.5h", "-1s", "99999999999999999999d", "12 parsecs"] {
            assert!(bad.parse::<Wait>().is_err(), "{bad}");
        }
        let range: AddressRange = "10.0.0.9 - 10.0.0.10".parse().unwrap();
        assert!(
            range.contains("10.0.0.10".parse().unwrap()) && !range.contains("10.0.0.11".parse().unwrap())
        );
        assert!("10.0.0.9-10.0.0.8".parse::<AddressRange>().is_err());
        assert!("eth0/*".parse::<Pattern>().unwrap().matches(b"eth0/7"));
        assert!("0x0004ff".parse::<Pattern>().unwrap().matches(&[0, 4, 255]));
        assert!(
            !"eth0".parse::<Pattern>().unwrap().matches(b"eth0/7") && "0x004".parse::<Pattern>().is_err()
        );
    }

    #[test]
    fn a_secret_does_not_print_itself() {
        assert_eq!(format!("{:?}", Some(Secret::new(b"key".to_vec()))), "Some([secret])");
    }
}
