//! Exit codes, and how an error becomes its report.

use std::fmt;
use std::process::ExitCode;

use goldwire_control::boot::LoadError;
use goldwire_netboot::content::LibraryError;
use goldwire_replicate::wire::Failure;
use goldwire_stdx::Report;

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

/// What failed, with what to do about it.
#[derive(Debug)]
pub(crate) struct Hinted {
    /// What failed on what.
    pub(crate) message: String,
    /// What the reader can do.
    pub(crate) hint: String,
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

/// An error that is a report already, on its way through `anyhow`.
#[derive(Debug)]
pub(crate) struct Reported(pub(crate) Report);

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.line())
    }
}

impl std::error::Error for Reported {}

/// Takes a report to where `anyhow` errors are printed.
pub(crate) fn reported(report: Report) -> anyhow::Error {
    Reported(report).into()
}

/// The error's sentence, causes and hints, whichever room it comes from.
pub(crate) fn report(error: &anyhow::Error) -> Report {
    let mut chain = Vec::new();
    for cause in error.chain() {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            chain.extend(failure.chain.iter().cloned());
            return Report { chain, hints: failure.hints.clone() };
        }
        if let Some(Reported(below)) = cause.downcast_ref() {
            chain.extend(below.chain.iter().cloned());
            return Report { chain, hints: below.hints.clone() };
        }
        chain.push(cause.to_string());
        if let Some(LoadError::Read { source, .. }) = cause.downcast_ref() {
            chain.push(source.to_string());
            return Report { chain, hints: vec!["--config FILE names another boot file".into()] };
        }
        if let Some(LibraryError::Open { source, .. }) = cause.downcast_ref() {
            chain.push(source.to_string());
            let hint = "make the boot tree's folder, or name another one as server.root in the boot file";
            return Report { chain, hints: vec![hint.into()] };
        }
        if let Some(hinted) = cause.downcast_ref::<Hinted>() {
            return Report { chain, hints: vec![hinted.hint.clone()] };
        }
    }
    Report { chain, hints: Vec::new() }
}
