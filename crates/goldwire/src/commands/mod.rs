//! One file per command; each takes what was typed and returns an exit code.

pub(crate) mod boot;
pub(crate) mod disk;
pub(crate) mod generate;
pub(crate) mod key;
pub(crate) mod sync;
pub(crate) mod tidy;
