//! How a TFTP server behaves.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::transfer::Limits;
use super::wire::BLOCK_SIZE_DEFAULT;
use crate::network::Network;

/// An IPv6 header is so much longer than one of IPv4.
const IPV6_HEADER_EXTRA: u16 = 20;

/// From which port the data comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// From the port that was asked: goes through NAT, firewalls and UDP load balancers. Whoever can send in a client's
    /// name knows all that its ACKs hold.
    SinglePort,
    /// From a new port for each transfer, as RFC 1350 §4 has it. The kernel draws it at random, so that ACKs can be sent
    /// only by who has heard an answer.
    #[default]
    PortPerTransfer,
}

/// Which clients are answered, and how: by a server, and by a balancing front.
#[derive(Clone, Debug, Default)]
pub struct Clients {
    /// From which port.
    pub mode: Mode,
    /// Networks whose clients are answered; empty: all. Whoever asks can name somebody else as who asks.
    pub allow_from: Vec<Network>,
}

impl Clients {
    /// Whether a client at this address is answered.
    pub(crate) fn answers(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.allow_from.is_empty() || self.allow_from.iter().any(|network| network.contains(address))
    }
}

/// Why a client is not answered, for the log.
pub(crate) const NOT_ALLOWED: &str = "it asks from a network that tftp.allow-from does not name";

/// A smaller block for some clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizeCap {
    /// Where the clients are.
    pub network: Network,
    /// Most bytes in a block, in this network.
    pub block_size_max: u16,
}

/// How the server behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens. A wildcard address is answered from the address that was asked.
    pub listen: Vec<SocketAddr>,
    /// Whom it answers, and from which port.
    pub clients: Clients,
    /// Most bytes in a block; 1468 fills an Ethernet frame. More is split into IP fragments, which some ROMs cannot
    /// join. Clients with an IPv6 address get 20 bytes less, the difference of the headers.
    pub block_size_max: u16,
    /// Most blocks in a window (RFC 7440). More than a client's network card has buffers for is lost and sent again.
    pub window_size_max: u16,
    /// Networks with smaller blocks, where a tunnel or an overlay leaves less room. The longest prefix counts.
    pub block_size_caps: Vec<BlockSizeCap>,
    /// Most transfers at a time. Each holds an open file.
    pub transfers_max: usize,
    /// Most transfers at a time to one address. Behind NAT, one address may be a whole site.
    pub transfers_per_address_max: usize,
    /// How long an answer is waited for before something is sent again, at first; it doubles three times.
    pub timeout: Duration,
    /// How often something is sent again without an answer before the transfer is given up.
    pub retries: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([0; 4], 69)), SocketAddr::from(([0_u16; 8], 69))],
            clients: Clients::default(),
            block_size_max: 1468,
            window_size_max: 64,
            block_size_caps: Vec::new(),
            transfers_max: 4096,
            transfers_per_address_max: 256,
            timeout: Duration::from_secs(1),
            retries: 6,
        }
    }
}

impl Settings {
    /// What is agreed to with a client at this address. Never less than 512 bytes, which need no agreement.
    pub(super) fn limits(&self, client: IpAddr) -> Limits {
        let cap = self
            .block_size_caps
            .iter()
            .filter(|cap| cap.network.contains(client))
            .max_by_key(|cap| cap.network.prefix());
        let header_extra = if client.is_ipv6() { IPV6_HEADER_EXTRA } else { 0 };
        let usual = self.block_size_max.saturating_sub(header_extra);
        let block_size_max = cap.map_or(usual, |cap| cap.block_size_max.min(usual)).max(BLOCK_SIZE_DEFAULT);
        Limits {
            block_size_max,
            window_size_max: self.window_size_max,
            timeout: self.timeout,
            retries: self.retries,
        }
    }
}
