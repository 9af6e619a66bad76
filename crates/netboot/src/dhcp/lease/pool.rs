//! A range of addresses with one bit for each: a free one is found at once among four million.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Addresses from the first to the last, both included; written as `10.0.0.100-10.0.0.199`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    /// The first one.
    pub first: Ipv4Addr,
    /// The last one.
    pub last: Ipv4Addr,
}

impl AddressRange {
    /// Whether the address is in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// How many addresses it has; none if its end is before its start.
    pub fn size(&self) -> u64 {
        (u64::from(u32::from(self.last)) + 1).saturating_sub(u32::from(self.first).into())
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

/// Which addresses of a range are in use. One bit for each: 512 KiB for four million.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    range: AddressRange,
    /// A set bit is an address in use, or one behind the end.
    words: Vec<u64>,
    used: u64,
    /// No address before this word is free.
    first_free: usize,
}

impl Pool {
    /// All of the range is free.
    pub(crate) fn new(range: AddressRange) -> Self {
        let size = range.size();
        let mut words = vec![0; size.div_ceil(64) as usize];
        if let (Some(last), behind @ 1..) = (words.last_mut(), size % 64) {
            *last = !0 << behind;
        }
        Self { range, words, used: 0, first_free: 0 }
    }

    /// The range.
    pub(crate) fn range(&self) -> AddressRange {
        self.range
    }

    /// How many addresses are free.
    pub(crate) fn free(&self) -> u64 {
        self.range.size() - self.used
    }

    /// Whether an address of the range is free.
    #[cfg(test)]
    pub(crate) fn is_free(&self, address: Ipv4Addr) -> bool {
        self.place(address).is_some_and(|(word, bit)| self.words[word] & bit == 0)
    }

    /// Takes an address of the range.
    pub(crate) fn take(&mut self, address: Ipv4Addr) {
        if let Some((word, bit)) = self.place(address)
            && self.words[word] & bit == 0
        {
            self.words[word] |= bit;
            self.used += 1;
        }
    }

    /// Gives an address of the range back.
    pub(crate) fn refund(&mut self, address: Ipv4Addr) {
        if let Some((word, bit)) = self.place(address)
            && self.words[word] & bit != 0
        {
            self.words[word] &= !bit;
            self.used -= 1;
            self.first_free = self.first_free.min(word);
        }
    }

    /// The lowest free address. Every word is passed once until one is given back.
    pub(crate) fn lowest_free(&mut self) -> Option<Ipv4Addr> {
        while let Some(word) = self.words.get(self.first_free) {
            if *word != !0 {
                let index = self.first_free as u32 * 64 + word.trailing_ones();
                return Some(Ipv4Addr::from(u32::from(self.range.first) + index));
            }
            self.first_free += 1;
        }
        None
    }

    fn place(&self, address: Ipv4Addr) -> Option<(usize, u64)> {
        let index = u32::from(address).checked_sub(self.range.first.into())?;
        self.range.contains(address).then_some((index as usize / 64, 1 << (index % 64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range(first: u32, size: u32) -> AddressRange {
        AddressRange { first: Ipv4Addr::from(first), last: Ipv4Addr::from(first + size - 1) }
    }

    #[test]
    fn a_range_is_read_as_it_is_written() {
        let range: AddressRange = "10.0.0.9 - 10.0.0.10".parse().unwrap();
        assert_eq!((range.to_string().as_str(), range.size()), ("10.0.0.9-10.0.0.10", 2));
        assert_eq!(range.to_string().parse(), Ok(range));
        for text in
            ["", "10.0.0.9", "10.0.0.9-", "10.0.0.9-10.0.0.8", "10.0.0.9-10.0.0.10-10.0.0.11", "::1-::2"]
        {
            assert!(text.parse::<AddressRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_range_that_ends_before_it_starts_is_empty() {
        let mut pool = Pool::new(AddressRange { first: Ipv4Addr::from(9), last: Ipv4Addr::from(8) });
        assert_eq!((pool.free(), pool.lowest_free()), (0, None));
        assert_eq!(Pool::new(AddressRange { first: 0.into(), last: 63.into() }).free(), 64);
    }

    proptest! {
        #[test]
        fn it_is_a_set_of_addresses(size in 1_u32..200, steps in prop::collection::vec((any::<bool>(), 0_u32..220), 0..300)) {
            let mut pool = Pool::new(range(1000, size));
            let mut model: BTreeSet<u32> = (1000..1000 + size).collect();
            for (is_take, offset) in steps {
                let address = Ipv4Addr::from(995 + offset);
                if is_take {
                    pool.take(address);
                    model.remove(&address.into());
                } else {
                    pool.refund(address);
                    if pool.range().contains(address) {
                        model.insert(address.into());
                    }
                }
                prop_assert_eq!(pool.free(), model.len() as u64);
                prop_assert_eq!(pool.lowest_free().map(u32::from), model.first().copied());
                prop_assert_eq!(pool.is_free(address), model.contains(&address.into()));
            }
        }
    }
}
