//! Values as they are written in any of our files: durations, secrets, texts with a meaning, lists of one.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

/// A duration: `500ms`, `30s`, `5m`, `12h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait(pub(crate) Duration);

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

/// A value that is read from its text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parsed<T>(pub(crate) T);

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
pub(crate) struct Several<T>(pub(crate) Vec<T>);

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
    fn durations_have_a_unit() {
        assert_eq!("12h".parse(), Ok(Wait(Duration::from_secs(43200))));
        assert_eq!("500ms".parse(), Ok(Wait(Duration::from_millis(500))));
        for bad in ["", "12", "h", "1.5h", "-1s", "99999999999999999999d", "12 parsecs"] {
            assert!(bad.parse::<Wait>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_does_not_print_itself() {
        assert_eq!(format!("{:?}", Some(Secret::new(b"key".to_vec()))), "Some([secret])");
    }
}
