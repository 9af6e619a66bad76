//! Turning every room's errors into the one kind that crosses processes.

use std::error::Error;
use std::fmt;
use std::io;

use goldwire_stdx::{Hints, Report, is_out_of_space};

use crate::wire::{Failure, FailureKind, WireError};

/// The result of everything that can fail towards a peer or a user.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

/// What is true of every run that ended in between, wherever it was: only chunks outlive it, a tree that was fetched in part
/// does not.
pub(crate) const AGAIN: &str =
    "run the same command again: it continues behind the chunks that arrived, and begins anew if none had";

impl Failure {
    /// A failure of one sentence.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, chain: vec![message.into()], hints: Vec::new() }
    }

    /// A failure with the chain of `error`.
    pub fn of(kind: FailureKind, error: &(dyn Error + 'static)) -> Self {
        let report = Report::of(error);
        let kind = if kind == FailureKind::Other && is_full(error) { FailureKind::Space } else { kind };
        let failure = Self { kind, chain: report.chain, hints: report.hints };
        if kind == FailureKind::Space {
            failure.hint("free some space and run the same command again; what was received is kept")
        } else {
            failure
        }
    }

    /// An operating-system error while `doing` something.
    pub fn io(doing: impl Into<String>, error: &io::Error) -> Self {
        Self::of(FailureKind::Other, &CloneOfIo(error.kind(), error.to_string())).context(doing)
    }

    /// Puts a sentence before the chain.
    #[must_use]
    pub fn context(mut self, message: impl Into<String>) -> Self {
        self.chain.insert(0, message.into());
        self
    }

    /// Adds what the reader can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Stopped on request.
    pub fn stopped() -> Self {
        Self::new(FailureKind::Stopped, "stopped before the end").hint(AGAIN)
    }

    /// As a report for printing.
    pub fn report(&self) -> Report {
        let (chain, hints) = (self.chain.clone(), self.hints.clone());
        Report { chain, hints, kind: Some(self.kind.name()), ..Report::default() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.report().fmt(f)
    }
}

impl Error for Failure {}

impl From<Failure> for Report {
    fn from(failure: Failure) -> Self {
        failure.report()
    }
}

impl From<goldwire_disk::Error> for Failure {
    fn from(error: goldwire_disk::Error) -> Self {
        let hints = error.hints();
        let failure = Self::of(FailureKind::Other, &error);
        hints.into_iter().fold(failure, Self::hint)
    }
}

impl From<goldwire_store::Error> for Failure {
    fn from(error: goldwire_store::Error) -> Self {
        match error {
            goldwire_store::Error::Stopped => Self::stopped(),
            goldwire_store::Error::Changed { .. } => Self::of(FailureKind::SourceChanged, &error)
                .hint("sync from a snapshot or export that nobody writes to"),
            other => {
                let hints = other.hints();
                hints.into_iter().fold(Self::of(FailureKind::Other, &other), Self::hint)
            }
        }
    }
}

impl From<goldwire_store::StoreError> for Failure {
    fn from(error: goldwire_store::StoreError) -> Self {
        match error {
            goldwire_store::StoreError::Tree(error) => error.into(),
            other => {
                let kind = match other {
                    goldwire_store::StoreError::Busy { .. } => FailureKind::Busy,
                    goldwire_store::StoreError::SignedByAnother { .. }
                    | goldwire_store::StoreError::Older { .. } => FailureKind::Exists,
                    goldwire_store::StoreError::File { .. } => FailureKind::Other,
                    _ => FailureKind::Invalid,
                };
                let hints = other.hints();
                hints.into_iter().fold(Self::of(kind, &other), Self::hint)
            }
        }
    }
}

impl From<goldwire_store::BesideError> for Failure {
    fn from(error: goldwire_store::BesideError) -> Self {
        let hints = error.hints();
        let failure = Self::of(FailureKind::Invalid, &error);
        hints.into_iter().fold(failure, Self::hint)
    }
}

impl From<goldwire_store::NoImage> for Failure {
    fn from(error: goldwire_store::NoImage) -> Self {
        let hints = error.hints();
        hints.into_iter().fold(Self::of(FailureKind::Invalid, &error), Self::hint)
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self::of(FailureKind::Disconnected, &error)
    }
}

/// An `io::Error` cannot be cloned; its kind and text are what matters.
#[derive(Debug)]
struct CloneOfIo(io::ErrorKind, String);

impl fmt::Display for CloneOfIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.1)
    }
}

impl Error for CloneOfIo {}

fn is_full(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let of_disk = error.downcast_ref().map(goldwire_disk::Error::kind);
        let of_system = error
            .downcast_ref()
            .map(io::Error::kind)
            .or_else(|| error.downcast_ref::<CloneOfIo>().map(|error| error.0));
        if of_disk == Some(goldwire_disk::ErrorKind::NoSpace) || of_system.is_some_and(is_out_of_space) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_wherever_it_shows() {
        use rustix::io::Errno;
        let error = |errno: Errno| io::Error::from_raw_os_error(errno.raw_os_error());
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            let failure = Failure::io("write a", &error(errno));
            assert_eq!(failure.kind, FailureKind::Space, "{errno}");
            assert!(failure.to_string().contains("what was received is kept"), "{failure}");
            let disk = goldwire_disk::Error::io("a", "write", error(errno));
            assert_eq!(disk.kind(), goldwire_disk::ErrorKind::NoSpace, "{errno}");
            assert_eq!(Failure::from(disk).kind, FailureKind::Space, "{errno}");
        }
        // A device that ran full without asking the system.
        let disk = goldwire_disk::Error::new(goldwire_disk::ErrorKind::NoSpace, "a", "is full");
        assert_eq!(Failure::from(disk).kind, FailureKind::Space);
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(Failure::io("write a", &full).kind, FailureKind::Space);
        for errno in [Errno::IO, Errno::ACCESS, Errno::ROFS] {
            assert_eq!(Failure::io("write a", &error(errno)).kind, FailureKind::Other, "{errno}");
        }
        // What is known to be something else stays that.
        assert_eq!(Failure::of(FailureKind::Busy, &error(Errno::NOSPC)).kind, FailureKind::Busy);
        let other = io::Error::other("x");
        assert_eq!(Failure::io("write a", &other).kind, FailureKind::Other);
    }
}
