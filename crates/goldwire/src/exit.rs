//! Exit codes.

use std::process::ExitCode;

/// What a script may branch on. 2 is also clap's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Everything was done.
    Success = 0,
    /// Nothing was done.
    Nothing = 1,
    /// The arguments make no sense together.
    Usage = 2,
    /// Some targets failed, others are done.
    Some = 3,
    /// Stopped on request or by `--max-time`; the same command continues.
    Stopped = 4,
    /// A check found errors, or a comparison found a difference.
    Findings = 5,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}
