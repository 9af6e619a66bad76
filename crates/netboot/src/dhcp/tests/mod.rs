//! The DHCP server as clients see it: message by message, over a simulated network, and with real clients.

mod behaviour;
mod clients;
mod conflict;
mod driver;
mod lan;
mod network;
mod ports;
mod query;
mod setup;
mod shared;
mod trust;
