//! What the administrator decided, and how it answers the questions of the rooms below.
//!
//! So far that is network boot, where [`boot`] reads the boot file, decides what each device boots, and keeps what happened;
//! and [`Sites`], which says where stores are.

pub mod boot;
mod config;
mod sites;

pub use sites::Sites;
