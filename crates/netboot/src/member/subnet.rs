//! A range of addresses: `10.1.0.0/16`, `2001:db8::/32`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// The addresses that share a prefix. An IPv4 address that came in IPv6's clothes (`::ffff:10.0.0.1`) counts as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    address: IpAddr,
    prefix: u8,
}

impl Subnet {
    /// The subnet of `prefix` bits that `address` is in; none when an address of that family has fewer bits.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= width(address)).then_some(Self { address, prefix })
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (ours, theirs) = (self.address.to_canonical(), address.to_canonical());
        // A canonical IPv4 subnet that was written as IPv6 has 96 bits of prefix in front of it.
        let prefix = self.prefix.saturating_sub(width(self.address) - width(ours));
        ours.is_ipv4() == theirs.is_ipv4() && network(ours, prefix) == network(theirs, prefix)
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = &'static str;

    /// Takes `10.1.0.0/16`, and a single address for itself.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "a subnet is an address and the length of its prefix, such as 10.1.0.0/16";
        let (address, prefix) = text.split_once('/').unzip();
        let address: IpAddr = address.unwrap_or(text).parse().map_err(|_| WRONG)?;
        let prefix = match prefix {
            Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                digits.parse().map_err(|_| WRONG)?
            }
            Some(_) => return Err(WRONG),
            None => width(address),
        };
        Self::new(address, prefix).ok_or(WRONG)
    }
}

/// Bits in an address.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The first `prefix` bits.
fn network(address: IpAddr, prefix: u8) -> u128 {
    let bits = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    bits.checked_shr(128 - u32::from(prefix)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contains_what_shares_the_prefix() {
        for (subnet, inside, outside) in [
            ("10.1.0.0/16", "10.1.255.255", "10.2.0.0"),
            ("10.1.2.3/16", "10.1.0.0", "11.1.2.3"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("10.0.0.0/8", "::ffff:10.9.9.9", "::ffff:11.9.9.9"),
            ("::ffff:10.0.0.0/104", "10.9.9.9", "11.9.9.9"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
        ] {
            let subnet: Subnet = subnet.parse().unwrap();
            assert!(subnet.contains(inside.parse().unwrap()), "{subnet} {inside}");
            assert!(!subnet.contains(outside.parse().unwrap()), "{subnet} {outside}");
        }
    }

    #[test]
    fn refuses_what_is_none() {
        for text in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "a"]
        {
            assert!(text.parse::<Subnet>().is_err(), "{text}");
        }
    }
}
