//! DHCP for IPv4: the wire, the server with its leases, the proxy, and what each firmware family wants to hear.

pub mod client;
pub mod destination;
pub mod dialect;
pub mod driver;
pub mod lease;
pub mod proxy;
pub mod relay;
pub mod server;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod wire;
