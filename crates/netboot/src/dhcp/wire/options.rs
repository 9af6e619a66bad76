//! The options of a message, in their order.

use std::net::Ipv4Addr;

/// Options in the order in which they came or are to be sent, each code once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(Vec<(u8, Vec<u8>)>);

impl Options {
    /// The value of an option.
    pub fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.iter().find(|(known, _)| *known == code).map(|(_, value)| value.as_slice())
    }

    /// Whether the option is there.
    pub fn has(&self, code: u8) -> bool {
        self.get(code).is_some()
    }

    /// An option's value, if it has exactly this length.
    pub(crate) fn array<const N: usize>(&self, code: u8) -> Option<[u8; N]> {
        self.get(code)?.try_into().ok()
    }

    /// An option that holds one address.
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        self.array::<4>(code).map(Ipv4Addr::from)
    }

    /// Sets an option; it goes to the end unless it was there.
    pub fn set(&mut self, code: u8, value: impl Into<Vec<u8>>) {
        match self.0.iter_mut().find(|(known, _)| *known == code) {
            Some((_, old)) => *old = value.into(),
            None => self.0.push((code, value.into())),
        }
    }

    /// Takes an option out.
    pub fn remove(&mut self, code: u8) -> Option<Vec<u8>> {
        let at = self.0.iter().position(|(known, _)| *known == code)?;
        Some(self.0.remove(at).1)
    }

    /// Each option, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &[u8])> {
        self.0.iter().map(|(code, value)| (*code, value.as_slice()))
    }

    /// Joins what belongs to one option (RFC 3396 §7).
    pub(super) fn append(&mut self, code: u8, part: &[u8]) {
        match self.0.iter_mut().find(|(known, _)| *known == code) {
            Some((_, value)) => value.extend_from_slice(part),
            None => self.0.push((code, part.to_vec())),
        }
    }
}
