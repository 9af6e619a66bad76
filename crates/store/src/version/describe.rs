//! The descriptor of an image as it lies: the one that is kept beside it, or a new one that says what can be seen.

use std::path::Path;

use goldwire_disk::Image;

use super::beside::{BesideError, beside};
use super::descriptor::Version;
use crate::tree::TreeCache;

/// The most characters of a file's name that become a version's name.
const NAME_CHARACTERS_MAX: usize = 200;

/// The descriptor, with its bytes, of the image at `path`, whose content has the tree `tree`.
///
/// # Errors
/// As [`beside`]: a descriptor that is there and broken is not replaced by a new one.
pub fn describe(path: &Path, image: &Image, tree: &TreeCache) -> Result<(Version, Vec<u8>), BesideError> {
    if let Some(kept) = beside(path, &tree.root)? {
        return Ok(kept);
    }
    let modified_ns = image.chain.first().map_or(0, |file| file.identity.modified_ns);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let version = Version {
        root: tree.root,
        size: image.device.size(),
        chunks_used: tree.chunks_used,
        created: modified_ns.div_euclid(1_000_000_000) as i64,
        parent: None,
        name: name.chars().take(NAME_CHARACTERS_MAX).collect(),
        note: String::new(),
        signer: None,
    };
    let bytes =
        version.encode(None).map_err(|source| BesideError::Broken { path: path.to_owned(), source })?;
    Ok((version, bytes))
}
