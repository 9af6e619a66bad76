//! The descriptor beside an image: `.goldwire/versions/NAME.gwv`. It says what a version is while the image's bytes say
//! only what its content is, so it is found by the content: one that describes other content is that of an older image.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use goldwire_stdx::{Folder, Hints, shell_path};

use super::PublicKey;
use super::descriptor::{Version, VersionError};
use crate::own::{Kept, find_own, with_own};
use crate::tree::Root;

/// Bytes that a descriptor may have: its texts are bounded.
const LENGTH_MAX: u64 = 16 << 10;

/// Why what is beside an image is not its descriptor.
#[derive(Debug, thiserror::Error)]
pub enum BesideError {
    /// The image has no folder or no name, or they cannot be read.
    #[error("look beside {image}")]
    Image {
        /// The image.
        image: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The descriptor could not be written.
    #[error("keep the descriptor of {image} beside it")]
    Keep {
        /// The image.
        image: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The descriptor could not be read.
    #[error("read {path}")]
    File {
        /// The descriptor.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The descriptor is damaged, or its signature does not fit. It is refused as a whole.
    #[error("{path}")]
    Broken {
        /// The descriptor.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: VersionError,
    },
}

impl Hints for BesideError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Broken { path, .. } => vec![
                "sign the image anew: goldwire disk tree --sign KEY IMAGE".into(),
                format!("or forget what was said about it: rm {}", shell_path(path)),
            ],
            Self::Keep { .. } => {
                vec!["a signature lies beside its image: sign a copy where you may write".into()]
            }
            Self::Image { .. } | Self::File { .. } => Vec::new(),
        }
    }
}

/// The descriptor of the content `root` beside `image`, with its bytes; `None` if nothing there describes that content.
/// Only descriptors that we, root or the image's owner kept are looked at.
///
/// # Errors
/// `Image`, `File`; `Broken` if there is one that is damaged or whose signature does not fit, and no good one.
pub fn beside(image: &Path, root: &Root) -> Result<Option<(Version, Vec<u8>)>, BesideError> {
    let mut broken = None;
    for found in all_beside(image)? {
        let (path, bytes) = found?;
        match Version::decode(&bytes) {
            Ok(version) if version.root == *root => return Ok(Some((version, bytes))),
            Ok(_) => {}
            Err(source) => broken = broken.or(Some(BesideError::Broken { path, source })),
        }
    }
    broken.map_or(Ok(None), Err)
}

/// A signed descriptor beside `image` that is of other content than `root`: the image was changed since, or put in another's
/// place. Only for what is said where [`beside`] found none that fits.
///
/// # Errors
/// `Image`, `File`.
pub fn signed_for_other(image: &Path, root: &Root) -> Result<Option<PathBuf>, BesideError> {
    let is_it =
        |bytes: &[u8]| Version::decode(bytes).is_ok_and(|kept| kept.signer.is_some() && kept.root != *root);
    let found: Vec<_> = all_beside(image)?.collect::<Result<_, _>>()?;
    Ok(found.into_iter().find(|(_, bytes)| is_it(bytes)).map(|(path, _)| path))
}

/// What is wrong with the content `root` that `signer` signed, where another key had to: said of the image. `other` is a signed
/// descriptor of other content, from [`signed_for_other`].
pub fn wrong_signer(root: &Root, signer: Option<PublicKey>, other: Option<&str>) -> String {
    match (signer, other) {
        (Some(signer), _) => format!("the content is signed by {signer}, not by the required key"),
        (None, Some(other)) => format!(
            "the content, root {root}, is not what {other} describes, which is signed: the image was changed since"
        ),
        (None, None) => "the content is signed by nobody, not by the required key".into(),
    }
}

/// The bytes of every descriptor beside `image` that we, root or the image's owner kept, and where they lie.
fn all_beside(
    image: &Path,
) -> Result<impl Iterator<Item = Result<(PathBuf, Vec<u8>), BesideError>>, BesideError> {
    let failed = |source| BesideError::Image { image: image.to_owned(), source };
    let (around, name) = place(image)?;
    let owner = std::fs::metadata(image).map_err(failed)?.uid();
    Ok(find_own(&around, Kept::Versions, &[owner]).into_iter().filter_map(move |folder| {
        let path = folder.path().join(&name);
        match folder.read_bounded(&name, LENGTH_MAX) {
            Ok(bytes) => bytes.map(|bytes| Ok((path, bytes))),
            Err(source) => Some(Err(BesideError::File { path, source })),
        }
    }))
}

/// Keeps `bytes` as the descriptor beside `image`.
///
/// # Errors
/// `Image`, `Keep`.
pub fn keep_beside(image: &Path, bytes: &[u8]) -> Result<(), BesideError> {
    let (around, name) = place(image)?;
    let kept = with_own(&around, Kept::Versions, |folder| folder.replace(&name, bytes, 0o600));
    kept.map_err(|source| BesideError::Keep { image: image.to_owned(), source })
}

/// The image's folder and its descriptor's name. A link to an image has the descriptor of what it leads to.
fn place(image: &Path) -> Result<(Folder, String), BesideError> {
    let failed = |source| BesideError::Image { image: image.to_owned(), source };
    let image = std::fs::canonicalize(image).map_err(failed)?;
    let name = image.file_name().and_then(|name| name.to_str());
    let (Some(folder), Some(name)) = (image.parent(), name) else {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it has no name in UTF-8")));
    };
    Ok((Folder::open(folder).map_err(failed)?, format!("{name}.gwv")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::version::SecretKey;

    fn version(root: u8) -> Version {
        Version {
            root: Root([root; 32]),
            size: 1 << 20,
            chunks_used: 3,
            created: 1_780_000_000,
            parent: None,
            name: "win11".into(),
            note: "n".into(),
            signer: None,
        }
    }

    #[test]
    fn a_descriptor_is_found_by_the_content_that_it_describes() {
        let scene = tempfile::tempdir().unwrap();
        let image = scene.path().join("a.vhd");
        fs::write(&image, "x").unwrap();
        assert!(beside(&image, &Root([1; 32])).unwrap().is_none());
        let bytes = version(1).encode(None).unwrap();
        keep_beside(&image, &bytes).unwrap();
        assert_eq!(beside(&image, &Root([1; 32])).unwrap(), Some((version(1), bytes)));
        assert!(beside(&image, &Root([2; 32])).unwrap().is_none());
        keep_beside(&image, &version(2).encode(None).unwrap()).unwrap();
        assert!(beside(&image, &Root([1; 32])).unwrap().is_none());
        assert!(scene.path().join(".goldwire/versions/a.vhd.gwv").is_file());
        let link = scene.path().join("latest.vhd");
        std::os::unix::fs::symlink("a.vhd", &link).unwrap();
        assert!(beside(&link, &Root([2; 32])).unwrap().is_some());
    }

    #[test]
    fn a_descriptor_that_cannot_be_kept_says_of_which_image() {
        let scene = tempfile::tempdir().unwrap();
        let image = scene.path().join("a.vhd");
        fs::write(&image, "x").unwrap();
        // Even root makes nothing of that.
        fs::create_dir_all(scene.path().join(".goldwire/versions/a.vhd.gwv/x")).unwrap();
        let refused = goldwire_stdx::Report::from(keep_beside(&image, b"d").unwrap_err());
        assert!(
            refused.line().starts_with(&format!("keep the descriptor of {}", image.display())),
            "{refused}"
        );
        assert!(refused.hints[0].contains("sign a copy"), "{refused}");
    }

    #[test]
    fn a_signature_on_other_content_is_found_and_says_where() {
        let scene = tempfile::tempdir().unwrap();
        let image = scene.path().join("a.vhd");
        fs::write(&image, "x").unwrap();
        let other = |root| signed_for_other(&image, &Root([root; 32])).unwrap();
        assert_eq!(other(1), None);
        keep_beside(&image, &version(1).encode(None).unwrap()).unwrap();
        assert_eq!(other(2), None, "nobody signed it");
        keep_beside(&image, &version(1).encode(Some(&SecretKey::from_random([7; 32]))).unwrap()).unwrap();
        assert_eq!(other(1), None);
        assert!(other(2).unwrap().ends_with(".goldwire/versions/a.vhd.gwv"));
    }

    /// A flipped bit anywhere in a signed descriptor, and every cut, is refused in words and never taken for none.
    #[test]
    fn a_damaged_descriptor_is_an_error_and_not_absent() {
        let scene = tempfile::tempdir().unwrap();
        let image = scene.path().join("a.vhd");
        fs::write(&image, "x").unwrap();
        let bytes = version(1).encode(Some(&SecretKey::from_random([7; 32]))).unwrap();
        keep_beside(&image, &bytes).unwrap();
        let path = scene.path().join(".goldwire/versions/a.vhd.gwv");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            let refused = beside(&image, &Root([1; 32]));
            assert!(matches!(refused, Err(BesideError::Broken { .. })), "byte {at}: {refused:?}");
        }
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(
                matches!(beside(&image, &Root([1; 32])), Err(BesideError::Broken { .. })),
                "{length} bytes"
            );
        }
        fs::write(&path, vec![0; LENGTH_MAX as usize + 1]).unwrap();
        assert!(matches!(beside(&image, &Root([1; 32])), Err(BesideError::File { .. })));
    }
}
