//! Which relays are believed. A relay says where its client is (option 82, RFC 3046), and by that a device may get a
//! profile and its tokens: so it counts who says it.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddrV4};

use super::wire::{Message, code};
use crate::network::Network;

/// The relays that are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relays(Vec<Network>);

impl Relays {
    /// These and no others; every relay if there is none.
    pub fn new(networks: Vec<Network>) -> Self {
        Self(networks)
    }

    /// The message as it may be believed. Option 82 is a relay's word, and a message without `giaddr` came through no
    /// relay (RFC 3046 §2.1): then the option is the client's invention and is left out.
    ///
    /// # Errors
    /// A message of a relay that is not among them, or that comes from somebody else than who it names.
    pub(crate) fn admit<'a>(
        &self,
        message: &'a Message,
        from: SocketAddrV4,
    ) -> Result<Cow<'a, Message>, &'static str> {
        if message.giaddr.is_unspecified() {
            if !message.options.has(code::RELAY_AGENT) {
                return Ok(Cow::Borrowed(message));
            }
            let mut direct = message.clone();
            direct.options.remove(code::RELAY_AGENT);
            return Ok(Cow::Owned(direct));
        }
        let is_known = |address| self.0.iter().any(|network| network.contains(IpAddr::V4(address)));
        if self.0.is_empty() || is_known(message.giaddr) && is_known(*from.ip()) {
            Ok(Cow::Borrowed(message))
        } else {
            Err("it comes through a relay that dhcp.relays does not name")
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::device::Mac;
    use crate::dhcp::wire::MessageType;

    proptest! {
        /// The rule: what a message says of a relay's port is believed only if a relay says it that is known.
        #[test]
        fn only_relays_that_are_known_are_believed(
            giaddr in prop_oneof![Just(0_u32), any::<u32>(), 0x0a00_0000..0x0a00_0100_u32],
            from in prop_oneof![any::<u32>(), 0x0a00_0000..0x0a00_0100_u32],
            has_option in any::<bool>(),
            has_list in any::<bool>(),
        ) {
            let mut message = Message::request(MessageType::DISCOVER, Mac([2; 6]), 1);
            message.giaddr = giaddr.into();
            if has_option {
                message.options.set(code::RELAY_AGENT, b"\x01\x04port");
            }
            let networks = if has_list { vec!["10.0.0.0/24".parse().unwrap()] } else { Vec::new() };
            let admitted = Relays::new(networks).admit(&message, SocketAddrV4::new(from.into(), 67));
            let is_known = |address: u32| Ipv4Addr::from(address).octets()[..3] == [10, 0, 0];
            match admitted {
                Err(_) => prop_assert!(has_list && giaddr != 0 && !(is_known(giaddr) && is_known(from))),
                Ok(message) => {
                    let is_believed = giaddr != 0 && (!has_list || is_known(giaddr) && is_known(from));
                    prop_assert!(giaddr == 0 || is_believed);
                    prop_assert_eq!(message.options.has(code::RELAY_AGENT), has_option && is_believed);
                }
            }
        }
    }
}
