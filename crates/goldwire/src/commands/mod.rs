//! One file per command; each takes what was typed and returns an exit code.

pub(crate) mod boot;
pub(crate) mod disk;
pub(crate) mod generate;
pub(crate) mod image;
mod import;
pub(crate) mod key;
pub(crate) mod reading;
pub(crate) mod repack;
pub(crate) mod store;
pub(crate) mod sync;
pub(crate) mod tidy;

/// A path as it may be shown.
pub(crate) fn shown(path: &std::path::Path) -> String {
    goldwire_stdx::printable_bytes(path.as_os_str().as_encoded_bytes())
}

/// A path in JSON, whose strings are Unicode (RFC 8259, 8.1): bytes of a name that are none stand as U+FFFD.
fn json_path(path: &std::path::Path) -> serde_json::Value {
    path.to_string_lossy().into()
}

/// JSON on one line, fit to be shown: in its strings what a terminal would obey or hide stands escaped (RFC 8259, 7), and
/// means the same to who parses it.
pub(crate) fn json_line(json: &impl std::fmt::Display) -> String {
    let json = json.to_string();
    let mut line = String::with_capacity(json.len());
    for character in json.chars() {
        let mut buffer = [0; 4];
        match goldwire_stdx::printable(character.encode_utf8(&mut buffer)) {
            std::borrow::Cow::Borrowed(plain) => line.push_str(plain),
            std::borrow::Cow::Owned(_) => {
                line.extend(character.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")));
            }
        }
    }
    line
}
