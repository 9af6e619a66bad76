//! What is wrong with a container, all of it, in words for its owner.

use std::fs::File;
use std::path::Path;

use crate::chain::open_named_file;
use crate::detect::detect_file;
use crate::open::{Format, OpenOptions};
use crate::{Error, Result, raw, vhd};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Somebody refuses the image, or reads wrong data from it.
    Error,
    /// Odd, wasteful, or only wrong for some readers.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The field, in the words of the format's specification.
    pub field: String,
    /// Where the field lies in the file, in bytes.
    pub offset: Option<u64>,
    /// What is wrong with it.
    pub message: String,
}

impl Finding {
    /// Something that somebody refuses.
    pub(crate) fn error(field: &str, offset: impl Into<Option<u64>>, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, field, offset, message)
    }

    /// What kept us from looking further.
    pub(crate) fn from_error(error: &Error) -> Self {
        let (field, offset) = error.place().map_or(("image", None), |(field, offset)| (field, Some(offset)));
        Self::error(field, offset, error.message())
    }

    /// Something that is only odd.
    pub(crate) fn warning(field: &str, offset: impl Into<Option<u64>>, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, field, offset, message)
    }

    fn new(
        severity: Severity,
        field: &str,
        offset: impl Into<Option<u64>>,
        message: impl Into<String>,
    ) -> Self {
        Self { severity, field: field.to_owned(), offset: offset.into(), message: message.into() }
    }
}

/// Everything that is wrong with the image at `path`; an empty list when nothing is. Of its parents only what
/// keeps the image from being read.
///
/// # Errors
/// When the file cannot be opened or read at all. Contradictions inside it are findings.
pub fn check(path: impl AsRef<Path>, options: &OpenOptions) -> Result<Vec<Finding>> {
    let path = path.as_ref();
    let file: File = open_named_file(path, false)?;
    let format = match options.format {
        Some(format) => format,
        None => detect_file(&file, path)?,
    };
    match format {
        Format::Raw => raw::check(&file, path),
        Format::VhdFixed | Format::VhdDynamic | Format::VhdDifferencing => vhd::check(file, path, options),
        Format::Qcow2 => crate::qcow2::check(&file, path),
    }
}
