//! Errors as a person reads them: one line that says what failed on what, the causes, then what to do.

use std::error::Error;
use std::fmt;

use crate::printable;

/// An error type whose variants know what their reader can do.
pub trait Hints: Error {
    /// What the reader can do, most promising first. None by default: not every failure has a remedy.
    fn hints(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether the error's text says itself line by line what is an error and what to do, as a compiler's does.
    fn is_diagnostics(&self) -> bool {
        false
    }
}

/// An error as it is shown: its text, its chain of causes and its hints, detached from the error's type so that it can
/// cross a process boundary. Every room's error becomes one at the edge, through [`Hints`]; commands return it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Report {
    /// The outermost sentence, then each cause.
    pub chain: Vec<String>,
    /// What the reader can do.
    pub hints: Vec<String>,
    /// Whether the text is shown as it is: see [`Hints::is_diagnostics`].
    pub is_diagnostics: bool,
    /// The kind of failure, for programs, where one is known.
    pub kind: Option<&'static str>,
}

impl Report {
    /// A report of one sentence.
    pub fn new(message: impl Into<String>) -> Self {
        Self { chain: vec![message.into()], ..Self::default() }
    }

    /// The chain of `error`.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut chain = vec![error.to_string()];
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries repeat their cause in their own text; say it once.
            if chain.last().is_none_or(|last| !last.ends_with(&text)) {
                chain.push(text);
            }
            cause = error.source();
        }
        Self { chain, ..Self::default() }
    }

    /// The chain of a foreign error, which knows no hints: for `map_err`.
    pub fn plain(error: impl Error + 'static) -> Self {
        Self::of(&error)
    }

    /// Puts `message` before the chain.
    #[must_use]
    pub fn context(mut self, message: impl Into<String>) -> Self {
        self.chain.insert(0, message.into());
        self
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The chain on one line, fit to be shown: names that others chose are in it.
    pub fn line(&self) -> String {
        shown(&self.chain.join(": "))
    }

    /// The hints, fit to be shown.
    pub fn shown_hints(&self) -> impl Iterator<Item = String> {
        self.hints.iter().map(|hint| shown(hint))
    }

    /// The chain and the hints on one line, as a log wants it.
    pub fn log_line(&self) -> String {
        self.shown_hints().fold(self.line(), |line, hint| format!("{line}; hint: {hint}"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())?;
        for hint in self.shown_hints() {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

/// [`printable`] for each line: lists and diagnostics have several.
fn shown(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(printable).collect();
    lines.join("\n")
}

/// Not for [`Report`] itself, which is the end of the way.
impl<E: Hints + 'static> From<E> for Report {
    fn from(error: E) -> Self {
        let (hints, is_diagnostics) = (error.hints(), error.is_diagnostics());
        Self { hints, is_diagnostics, ..Self::of(&error) }
    }
}

impl Hints for std::io::Error {}

/// Adds to a failing result what was being done, as [`Report::context`].
pub trait Context<T> {
    /// Puts a sentence before the chain.
    ///
    /// # Errors
    /// The error it had, as a report.
    fn context(self, message: impl Into<String>) -> Result<T, Report>;

    /// [`Self::context`] with a sentence that is made only when it is needed.
    ///
    /// # Errors
    /// The error it had, as a report.
    fn with_context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T, Report>;
}

impl<T, E: Into<Report>> Context<T> for Result<T, E> {
    fn context(self, message: impl Into<String>) -> Result<T, Report> {
        self.map_err(|error| error.into().context(message))
    }

    fn with_context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T, Report> {
        self.map_err(|error| error.into().context(message()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Hints for Outer {
        fn hints(&self) -> Vec<String> {
            vec!["call the fire brigade".into()]
        }
    }

    #[test]
    fn a_typed_error_brings_its_hints_along() {
        let failed: Result<(), Outer> = Err(Outer(std::io::Error::other("disk on fire")));
        let report = failed.with_context(|| format!("sync {}", "host1")).unwrap_err();
        assert_eq!(report.to_string(), "sync host1: open a.vhd: disk on fire\nhint: call the fire brigade");
    }

    #[derive(Debug)]
    struct Outer(std::io::Error);
    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("open a.vhd")
        }
    }
    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn prints_the_chain_once_and_then_the_hints() {
        let report =
            Report::of(&Outer(std::io::Error::other("disk on fire"))).context("sync host1").hint("run");
        assert_eq!(report.to_string(), "sync host1: open a.vhd: disk on fire\nhint: run");
    }
}
