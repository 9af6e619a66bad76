//! Paths that devices are given. All of a path's meaning is in the path: firmware and management controllers stumble
//! over `?` and `&`.
//!
//! ```text
//! NAME                        a file of the boot tree
//! c/DIGEST/NAME               the same, only with this content (first half of its BLAKE3 in hexadecimal)
//! s/MAC/ARCH/UUID/boot.ipxe   the script of a device; `-` stands for what is not known
//! t/TOKEN/…                   any of these, with a signed short-lived token
//! ```

use std::fmt;

use crate::device::Device;
use crate::policy::{Boot, What};

/// The digest of a content: the first 16 bytes of its BLAKE3.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 16]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&goldwire_stdx::to_hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Makes the paths.
#[derive(Clone, Debug, Default)]
pub struct Links {}

impl Links {
    /// The path, without a leading slash, of what a device boots; none for what lies elsewhere.
    pub fn path_of(&self, boot: &Boot, device: &Device) -> Option<String> {
        match &boot.what {
            What::File(path) => Some(path.clone()),
            What::Script(_) => Some(script_path(device)),
            What::Elsewhere(_) => None,
        }
    }
}

/// Where a device's script is.
fn script_path(device: &Device) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    format!(
        "s/{}/{}/{}/boot.ipxe",
        or_dash(device.mac.map(|mac| mac.hyphenated())),
        or_dash(device.arch.and_then(|arch| arch.name()).map(str::to_owned)),
        or_dash(device.uuid.map(|uuid| uuid.to_string())),
    )
}
