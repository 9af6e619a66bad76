//! What can go wrong with trees and their files.

use std::io;
use std::path::PathBuf;

use goldwire_stdx::{Hints, shell_path};

/// The result of everything in this crate that touches files or devices.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What we were doing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading the disk failed.
    #[error("read the disk at guest byte {offset}")]
    ReadDisk {
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        source: Box<goldwire_disk::Error>,
    },
    /// A tree file could not be read, written or replaced.
    #[error("{doing} {path}")]
    TreeFile {
        /// What was being done to it.
        doing: &'static str,
        /// The tree file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A tree file contradicts itself.
    #[error("tree file {path} is damaged: {why}")]
    DamagedTree {
        /// The tree file.
        path: PathBuf,
        /// What does not fit.
        why: String,
    },
    /// A file of the image changed while it was read.
    #[error("{path} changed while it was read")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The disk is larger than a tree can be.
    #[error("the disk has {size} bytes; 64 TiB is the most")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
}

impl Hints for Error {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::ReadDisk { source, .. } => source.hints(),
            Self::DamagedTree { path, .. } => {
                vec![format!("remove it, and it is made anew from the image: rm {}", shell_path(path))]
            }
            Self::Changed { .. } => vec!["read a snapshot or export that nobody writes to".into()],
            Self::TreeFile { .. } | Self::TooLarge { .. } | Self::Stopped => Vec::new(),
        }
    }
}

impl Error {
    /// Reading the disk failed at this guest byte.
    pub(crate) fn read_disk(offset: u64, source: goldwire_disk::Error) -> Self {
        // Boxed, because it is much larger than every other variant.
        Self::ReadDisk { offset, source: Box::new(source) }
    }
}
