//! What can go wrong with a store.

use std::io;
use std::path::{Path, PathBuf};

use goldwire_stdx::{Hints, is_out_of_space, shell_path};

use crate::tree::Root;
use crate::version::{PublicKey, VersionError};

/// The result of what touches a store.
pub type StoreResult<T, E = StoreError> = std::result::Result<T, E>;

/// What we were doing, and why it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file of the store could not be read, written or replaced.
    #[error("{doing} {path}")]
    File {
        /// What was being done to it.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the store contradicts the format, itself or another.
    #[error("{path}: {field} at byte {offset}: {why}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The field that is wrong.
        field: &'static str,
        /// Where it lies in the file.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// There is no store.
    #[error("{path} is no store: {why}")]
    NoStore {
        /// The folder.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A folder that cannot become a store.
    #[error("{path} cannot become a store: {why}")]
    NotInitialized {
        /// The folder.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Somebody else could change the store under our hands, or it is not ours to change.
    #[error("{path}: {why}")]
    Owner {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process puts the same version in.
    #[error("another process is putting version {root} into this store")]
    Busy {
        /// The version.
        root: Root,
    },
    /// A version that is not signed as it has to be.
    #[error("{path} takes only what {signer} signed: {why}")]
    NotSigned {
        /// The store.
        path: PathBuf,
        /// Who has to have signed it.
        signer: Box<PublicKey>,
        /// Who did.
        why: String,
    },
    /// The content is here under a signature that is not the required one.
    #[error("{path} has this content already, signed by another key")]
    SignedByAnother {
        /// The image.
        path: PathBuf,
    },
    /// An old version, whose signature still holds, would be the newest.
    #[error("{path} has a version of the same signer that was created later: {newer}")]
    Older {
        /// The image.
        path: PathBuf,
        /// The version that was created later.
        newer: Root,
        /// Whether the store itself requires the signature, and not only who brings the version.
        is_own: bool,
    },
    /// Another process puts versions in order.
    #[error("another process is putting this store in order")]
    Repacking,
    /// No version, channel or tag has this name here.
    #[error("nothing here is named {name}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What is like it.
        candidates: Vec<String>,
    },
    /// The name cannot be one.
    #[error("{name:?} cannot name {what}: {why}")]
    Name {
        /// What was asked for.
        name: String,
        /// An image, a channel, a tag.
        what: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// A limit of the format.
    #[error("{what}")]
    TooMuch {
        /// Which.
        what: String,
    },
    /// The image gave other bytes than when it was hashed.
    #[error("the image changed while it was published: its chunk {chunk}")]
    Changed {
        /// The chunk's index.
        chunk: u64,
    },
    /// What was written is not what is read back.
    #[error("the medium does not keep what is written to it: pack {pack:08x}")]
    Medium {
        /// The pack's number.
        pack: u32,
    },
    /// A tree, or the disk that is read.
    #[error(transparent)]
    Tree(#[from] crate::Error),
    /// A descriptor.
    #[error("{path}")]
    Descriptor {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: VersionError,
    },
}

impl StoreError {
    pub(crate) fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { doing, path, source }
    }

    pub(crate) fn corrupt(path: &Path, field: &'static str, offset: u64, why: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_owned(), field, offset, why: why.into() }
    }
}

impl Hints for StoreError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::NoStore { path, .. } => vec![format!("make one: goldwire store init {}", shell_path(path))],
            Self::NotInitialized { .. } => vec!["name an empty folder, or one that does not exist".into()],
            Self::Corrupt { .. } | Self::Medium { .. } => {
                vec!["see what else is wrong: goldwire store check".into()]
            }
            Self::Unknown { candidates, .. } if !candidates.is_empty() => {
                vec![format!("here are: {}", candidates.join(", "))]
            }
            Self::NotSigned { .. } => vec![
                "sign it with that key: --sign KEY; or sign it where it was made: goldwire disk tree --sign KEY IMAGE"
                    .into(),
            ],
            Self::SignedByAnother { .. } => {
                vec!["take it away there first (goldwire image prune), or require that key".into()]
            }
            Self::Older { is_own: true, .. } => vec![
                "an old version may have been put in the place of the new one; a channel goes back there by goldwire \
                 image rollback IMAGE CHANNEL"
                    .into(),
            ],
            Self::Older { .. } => vec![
                "an old version may have been put in the place of the new one; --allow-older takes it".into(),
            ],
            Self::Changed { .. } => vec!["publish a snapshot, or an image that nobody writes to".into()],
            Self::Owner { .. } => vec!["work as the store's owner: sudo -u USER goldwire …".into()],
            Self::Busy { .. } => vec![
                "give the command again when it has ended: the content is here then, and is only named"
                    .into(),
            ],
            Self::Repacking => vec!["give the command again when it has ended".into()],
            Self::File { source, .. } if is_out_of_space(source.kind()) => {
                vec!["what is here already stays: make room and give the same command again".into()]
            }
            Self::Tree(error) => error.hints(),
            _ => Vec::new(),
        }
    }
}
