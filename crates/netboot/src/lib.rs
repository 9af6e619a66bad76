//! Network boot: any firmware boots over the network from whichever server is alive.
//!
//! One question, many dialects. DHCP, proxyDHCP, TFTP, HTTP and the scripts all ask one [`BootPolicy`] what a
//! [`Device`] boots and from which [`Member`]s of a boot group, in which order. Each firmware family has one encoder
//! for the answer. This room knows protocols; it does not know databases, images or chunks, and not where the policy
//! comes from.
//!
//! What others may use is what this file and the public modules' `mod.rs` name, and nothing else.
#![deny(unnameable_types)]

mod balance;
mod bind;
pub mod content;
mod device;
pub mod dhcp;
pub mod dhcp6;
pub mod doctor;
mod event;
pub mod fuzzing;
pub mod http;
mod http1;
pub mod media;
pub mod member;
mod neighbours;
mod network;
mod percent;
mod place;
mod policy;
mod proxy_header;
mod room;
pub mod script;
pub mod tftp;

pub use balance::{Balance, BalanceSettings, RunningBalance};
pub use bind::BindError;
pub use device::{Architecture, Device, Firmware, Mac};
pub use event::{Event, EventKind, NoopObserver, Observer, Protocol, Stage};
pub use member::one::{LiveMembers, Member, MemberState};
pub use neighbours::Neighbours;
pub use network::{Network, NetworkV4};
pub use place::Place;
pub use policy::{
    Action, Boot, BootPolicy, Decision, MenuEntry, Proof, ProtectedFiles, Script, Template, What,
};
