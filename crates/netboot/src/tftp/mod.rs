//! TFTP (RFC 1350 with options by RFC 2347, 2348, 2349 and 7440), read-only: the last resort of firmware that knows no
//! HTTP, and still quick and at home behind NAT.
//!
//! [`wire`] knows packets, [`transfer`] one transfer over time, [`server`] all transfers with the limits of `admission`,
//! `driver` waits at what `socket` opens.

pub(crate) mod admission;
mod driver;
pub(crate) mod receive;
mod send;
pub(crate) mod server;
mod session;
mod settings;
mod socket;
mod transfer;
pub(crate) mod wire;

#[cfg(test)]
mod tests;

pub use driver::{Bound, Running, bind};
#[cfg(test)]
pub(crate) use send::SendMethod;
pub use server::Context;
pub(crate) use settings::NOT_ALLOWED;
pub use settings::{BlockSizeCap, Clients, Mode, Settings};
