//! A range of addresses: `10.1.0.0/16`, `2001:db8::/32`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
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

    /// The same network where only IPv4 can be; none if it is one of IPv6.
    pub fn v4(&self) -> Option<NetworkV4> {
        match self.address {
            IpAddr::V4(address) => NetworkV4::new(address, self.prefix),
            IpAddr::V6(_) => None,
        }
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

/// An IPv4 network, for what knows no other: DHCPv4 gives addresses in no network of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkV4 {
    /// The first address; its bits behind the prefix are zero.
    address: Ipv4Addr,
    prefix: u8,
}

impl NetworkV4 {
    /// The network of `prefix` bits that `address` is in; none if the prefix is longer than 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (prefix <= 32).then(|| Self { address: first_v4(address, prefix), prefix })
    }

    /// Its first address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The length of its prefix in bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Its mask.
    pub(crate) fn mask(self) -> Ipv4Addr {
        first_v4(Ipv4Addr::BROADCAST, self.prefix)
    }

    /// Its last address, which is its broadcast address.
    pub fn broadcast(self) -> Ipv4Addr {
        self.address | !self.mask()
    }

    /// Whether an address is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        first_v4(address, self.prefix) == self.address
    }

    /// Whether any address is in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

impl fmt::Display for NetworkV4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Network::from(*self).fmt(f)
    }
}

impl From<NetworkV4> for Network {
    fn from(network: NetworkV4) -> Self {
        Self { address: network.address.into(), prefix: network.prefix }
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
        IpAddr::V4(own) => IpAddr::V4(first_v4(own, prefix)),
        IpAddr::V6(own) => IpAddr::V6((own.to_bits() & u128::MAX.checked_shl(behind).unwrap_or(0)).into()),
    }
}

fn first_v4(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    let behind = u32::from(32_u8.saturating_sub(prefix));
    (address.to_bits() & u32::MAX.checked_shl(behind).unwrap_or(0)).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Both say the same of every IPv4 network, and none of IPv6 passes for one.
        #[test]
        fn an_ipv4_network_is_the_same_in_both_types(
            own in any::<u32>(),
            prefix in 0..=33_u8,
            flipped in 0..32_u32,
            v6 in any::<u128>(),
        ) {
            let own = Ipv4Addr::from(own);
            let near = Ipv4Addr::from(own.to_bits() ^ 1 << flipped);
            let (general, v4) = (Network::new(own.into(), prefix), NetworkV4::new(own, prefix));
            prop_assert_eq!(general.and_then(|network| network.v4()), v4);
            prop_assert_eq!(v4.map(Network::from), general);
            if let Some((general, v4)) = general.zip(v4) {
                prop_assert_eq!(general.to_string(), v4.to_string());
                prop_assert_eq!(general.contains(near.into()), v4.contains(near));
                prop_assert_eq!(v4.contains(near), 31 - flipped >= u32::from(prefix));
                prop_assert_eq!(v4.mask().to_bits().count_ones(), u32::from(prefix));
                prop_assert!(v4.contains(v4.broadcast()) && v4.broadcast() >= own);
                let next = v4.broadcast().to_bits().checked_add(1).map(Ipv4Addr::from);
                prop_assert!(next.is_none_or(|next| !v4.contains(next)));
            }
            let v6 = Network::new(std::net::Ipv6Addr::from(v6).into(), 64);
            prop_assert_eq!(v6.and_then(|network| network.v4()), None);
        }
    }

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
