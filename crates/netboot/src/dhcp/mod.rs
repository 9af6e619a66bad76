//! DHCP for IPv4: the wire, the server with its leases, the proxy, and what each firmware family wants to hear.

pub mod wire;
