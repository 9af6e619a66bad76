//! Parsers and machines that fuzz targets and load generators drive directly. No program uses this module.

pub use crate::http1::HEAD_MAX;

/// Heads of requests and answers, chunks, and sessions of the balancing front.
pub mod balance {
    pub use crate::balance::http::chunks::Chunks;
    pub use crate::balance::http::head::{
        Framing, Method, Part, Persistence, Refusal, RequestHead, ResponseHead, Sender,
    };
    pub use crate::balance::tftp::session::{Action, Session};
}

/// What a DHCP server is made of below its sockets.
pub mod dhcp {
    pub use crate::dhcp::destination::Destination;
    pub use crate::dhcp::lease::{
        ClientId, Damage, Hardware, Header, Key, Lease, MemberId, Record, RecordState, Scan, State, Table,
        Terms, scan,
    };
    pub use crate::dhcp::server::{Arrival, Outputs, Probe, Reply};
    pub use crate::dhcp::wire::{DecodeError, SIZE_MAX};
}

/// Packets of DHCPv6 and the answers to them.
pub mod dhcp6 {
    pub use crate::dhcp6::responder::{Responder, classify, server_id};
    pub use crate::dhcp6::wire::{
        DecodeError, Message, MessageType, Options, Packet, RELAYS_MAX, Relay, code,
    };
}

/// Heartbeats and the machine that hears them.
pub mod heartbeat {
    pub use crate::member::heartbeat::machine::{Change, Machine, Note, Refusal, Transmit};
    pub use crate::member::heartbeat::wire::{Beat, DATAGRAM_MAX, DecodeError};
}

/// Heads of HTTP requests and the ranges that they want.
pub mod http {
    pub use crate::http::range::{Part, Wanted, parse as parse_range};
    pub use crate::http::request::{BadHead, Request, parse as parse_request};
}

/// The line that a balancer sends before a connection.
pub mod proxy_header {
    pub use crate::proxy_header::{HEADER_MAX, Origin, ProxyHeaderError, decode, encode};
}

/// Packets of TFTP and both ends of a transfer.
pub mod tftp {
    pub use crate::tftp::admission::Admission;
    pub use crate::tftp::receive::{Receiver, Step};
    pub use crate::tftp::server::{Key, Payload, Server, Transmit};
    pub use crate::tftp::wire::{DecodeError, ErrorCode, Mode, OptionName, Options, Packet, Request};
}
