//! Reading one of our files, and why there is nothing that it says.

use std::io;
use std::path::{Path, PathBuf};

use goldwire_stdx::{Hints, read_text_bounded};

use super::Problems;

/// Why a file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("read the {what} {path}")]
    Read {
        /// Which kind of file.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is wrong.
    #[error("{0}")]
    Wrong(Problems),
}

impl Hints for LoadError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Read { what, .. } => vec![format!("--config FILE names another {what}")],
            Self::Wrong(_) => Vec::new(),
        }
    }

    fn is_diagnostics(&self) -> bool {
        matches!(self, Self::Wrong(_))
    }
}

/// The text of a file of this kind, which has at most `length_max` bytes.
pub(crate) fn read(what: &'static str, path: &Path, length_max: u64) -> Result<String, LoadError> {
    read_text_bounded(path, length_max).map_err(|source| LoadError::Read {
        what,
        path: path.to_owned(),
        source,
    })
}
