//! DHCP for IPv4: the wire, the server with its leases, the proxy, and what each firmware family wants to hear.

pub(crate) mod client;
pub(crate) mod destination;
pub(crate) mod dialect;
pub(crate) mod driver;
pub(crate) mod lease;
pub(crate) mod proxy;
mod relay;
pub(crate) mod server;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

pub use client::classify;
pub use dialect::{BootReply, Reason, Role, add_boot};
pub use driver::{Counters, DriverSettings, Ports, Running, Service, Sockets, bind};
pub use lease::{AddressRange, LogError, Plan, Reservation, Time};
pub use proxy::ProxyResponder;
pub use relay::Relays;
pub use server::{Server, Settings, Subnet};
pub use wire::{Message, MessageType, Options, code};
