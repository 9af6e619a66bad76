//! Virtual disks: VHD, QCOW2 and raw behind one block-device trait.
//!
//! This crate knows containers and extents. It deliberately does not know chunks, digests, sockets, sites or JSON.
//!
//! - [`open`] takes an image by its content and follows its parents through a [`Gate`]; [`create`] makes a new
//!   one; [`check`] says everything that is wrong with one.
//! - [`BlockDevice`] is what all of them become: the guest's view, with [`BlockDevice::extent_at`] to skip what is
//!   unallocated.
//! - Formats live in `raw`, `vhd` and `qcow2`. Each has the same three doors: `open`, `create` and `check`.
//!
//! Every byte of an image is taken for hostile: parsers are total, limits have names, memory is bounded.

mod chain;
mod check;
mod children;
mod content;
mod detect;
mod device;
mod error;
mod finding;
mod gate;
mod host;
mod image;
#[cfg(test)]
mod journal;
mod open;
mod parents;
mod promise;
mod qcow2;
mod raw;
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod units;
mod vhd;

pub use check::check;
pub use children::{Children, children};
pub use detect::detect;
pub use device::{BlockDevice, Extent, ExtentKind, FilePlace};
pub use error::{Error, ErrorKind, Result};
pub use finding::{Finding, Severity};
pub use gate::{DenyAll, Gate, SameFolder, SameFolderOr};
pub use image::{
    Access, Allowed, ChainFile, CreateOptions, FileIdentity, Format, Image, ImageInfo, ParentReference,
};
pub use open::{OpenOptions, create, create_in, open, open_file};
pub use promise::Promise;
pub use vhd::set_hidden;
