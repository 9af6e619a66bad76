//! What a check finds: the words for it.

use crate::Error;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The format is broken: bytes may be wrong.
    Error,
    /// Odd, wasteful, or refused or shown otherwise by one reader, which the message names.
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
