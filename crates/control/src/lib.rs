//! What the administrator decided, and how it answers the questions of the rooms below.
//!
//! So far that is network boot: [`boot`] reads the boot file, decides what each device boots, and keeps what happened.

pub mod boot;
mod config;
