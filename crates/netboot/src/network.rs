//! A range of addresses: `10.1.0.0/16`, `2001:db8::/32`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The addresses that share a prefix. An IPv4 address that came in IPv6's clothes (`::ffff:10.0.0.1`) counts as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network {
    /// The first address; its bits behind the prefix are zero.
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// The network of `prefix` bits that `address` is in; none when an address of that family has fewer bits.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        if prefix > width(address) {
            return None;
        }
        // An IPv4 network that is written as IPv6 has 96 bits of prefix in front of it.
        match address.to_canonical() {
            canonical if canonical.is_ipv4() && address.is_ipv6() && prefix < 96 => None,
            canonical => {
                let prefix = prefix - (width(address) - width(canonical));
                Some(Self { address: first(canonical, prefix), prefix })
            }
        }
    }

    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The length of its prefix in bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && first(address, self.prefix) == self.address
    }

    /// Whether any address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Network {
    type Err = String;

    /// Takes `10.1.0.0/16`, and a single address for itself. Bits behind the prefix are a mistake: nobody can tell which
    /// of the two was meant.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is not a network; write for example 10.0.0.0/24");
        let (address, prefix) = text.split_once('/').unzip();
        let address: IpAddr = address.unwrap_or(text).parse().map_err(|_| wrong())?;
        let prefix = match prefix {
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                digits.parse().map_err(|_| wrong())?
            }
            Some(_) => return Err(wrong()),
            None => width(address),
        };
        let network = Self::new(address, prefix).ok_or_else(wrong)?;
        if network.address != address.to_canonical() {
            return Err(format!("{text:?} has bits behind its prefix; the network is {network}"));
        }
        Ok(network)
    }
}

/// Bits in an address.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The first address that shares the first `prefix` bits; all of them if the address has no more.
fn first(address: IpAddr, prefix: u8) -> IpAddr {
    let behind = u32::from(width(address).saturating_sub(prefix));
    match address {
        IpAddr::V4(own) => IpAddr::V4((own.to_bits() & u32::MAX.checked_shl(behind).unwrap_or(0)).into()),
        IpAddr::V6(own) => IpAddr::V6((own.to_bits() & u128::MAX.checked_shl(behind).unwrap_or(0)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contains_what_shares_the_prefix() {
        for (network, inside, outside) in [
            ("10.1.0.0/16", "10.1.255.255", "10.2.0.0"),
            ("10.0.4.0/22", "10.0.7.255", "10.0.8.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("10.0.0.0/8", "::ffff:10.9.9.9", "::ffff:11.9.9.9"),
            ("::ffff:10.0.0.0/104", "10.9.9.9", "11.9.9.9"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
        ] {
            let network: Network = network.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!network.contains(outside.parse().unwrap()), "{network} {outside}");
        }
        let network = Network::new("10.1.2.3".parse().unwrap(), 16).unwrap();
        assert_eq!(network.to_string(), "10.1.0.0/16");
    }

    #[test]
    fn overlaps_what_is_inside_or_around() {
        for (one, other, expected) in [
            ("10.0.0.0/8", "10.9.0.0/16", true),
            ("10.9.0.0/16", "10.0.0.0/8", true),
            ("10.8.0.0/16", "10.9.0.0/16", false),
            ("0.0.0.0/0", "::/0", false),
        ] {
            let overlaps = one.parse::<Network>().unwrap().overlaps(&other.parse().unwrap());
            assert_eq!(overlaps, expected, "{one} {other}");
        }
    }

    #[test]
    fn refuses_what_is_none() {
        for text in
            ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "x/8", "a"]
        {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
        assert_eq!(Network::new("::ffff:10.0.0.0".parse().unwrap(), 95), None);
        assert_eq!(
            "10.0.0.1/24".parse::<Network>().unwrap_err(),
            "\"10.0.0.1/24\" has bits behind its prefix; the network is 10.0.0.0/24"
        );
    }
}
