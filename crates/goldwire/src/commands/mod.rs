//! One file per command; each takes what was typed and returns an exit code.

pub(crate) mod boot;
pub(crate) mod disk;
pub(crate) mod generate;
pub(crate) mod key;
pub(crate) mod sync;
pub(crate) mod tidy;

/// A path in JSON, whose strings are Unicode (RFC 8259, 8.1): bytes of a name that are none stand as U+FFFD.
fn json_path(path: &std::path::Path) -> serde_json::Value {
    path.to_string_lossy().into()
}
