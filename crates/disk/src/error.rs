//! One error type: what failed, in which file, at which field and offset, and a small stable kind for callers
//! that branch.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use goldwire_stdx::{Hints, is_out_of_space, is_unavailable, printable_bytes};

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller may want to branch on. New details never add a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A file, or a parent in a chain, does not exist.
    NotFound,
    /// The bytes contradict the format or each other.
    Corrupt,
    /// A well-formed feature that we do not read or write.
    Unsupported,
    /// A write to a device that was opened for reading.
    ReadOnly,
    /// A range outside the disk.
    OutOfRange,
    /// The caller's gate refused to open a file that the image names.
    Denied,
    /// A request that makes no sense, such as a size that the format cannot hold.
    Invalid,
    /// There is no room for what is written: the medium is full, a quota is used up, or the file is as long as a limit
    /// lets it be.
    NoSpace,
    /// What holds the bytes does not answer now, and may later: a server or a line is away. The same call on the same
    /// device may succeed then. A sector that cannot be read is `Io`, and so is a file that its server has no more.
    Unavailable,
    /// The operating system failed us.
    Io,
}

/// What we were doing, on which file, and why it failed.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    path: PathBuf,
    /// The field that is wrong and its offset in the file.
    place: Option<(String, u64)>,
    message: String,
    hints: Vec<String>,
    source: Option<io::Error>,
}

impl Error {
    /// An error of `kind` about the file `path`; `message` says what failed without the path.
    pub fn new(kind: ErrorKind, path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self {
            kind,
            path: path.into(),
            place: None,
            message: message.into(),
            hints: Vec::new(),
            source: None,
        }
    }

    /// The bytes at `offset` of the file (in `field`) are wrong: `why`.
    pub fn corrupt(path: impl Into<PathBuf>, field: &str, offset: u64, why: impl fmt::Display) -> Self {
        let mut error = Self::new(ErrorKind::Corrupt, path, why.to_string());
        error.place = Some((field.to_owned(), offset));
        error
    }

    /// An operating-system failure while `doing` something to `path`.
    pub fn io(path: impl Into<PathBuf>, doing: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            kind if is_out_of_space(kind) => ErrorKind::NoSpace,
            _ if is_unavailable(&source) => ErrorKind::Unavailable,
            _ => ErrorKind::Io,
        };
        Self {
            kind,
            path: path.into(),
            place: None,
            message: doing.into(),
            hints: Vec::new(),
            source: Some(source),
        }
    }

    /// Adds what the reader can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// What to branch on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The file that the error is about.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The field that is wrong and its offset in the file, where the error is about one.
    pub fn place(&self) -> Option<(&str, u64)> {
        self.place.as_ref().map(|(field, offset)| (field.as_str(), *offset))
    }

    /// What failed, without the path and the place.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl Hints for Error {
    fn hints(&self) -> Vec<String> {
        self.hints.clone()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", shown(&self.path))?;
        if let Some((field, offset)) = &self.place {
            write!(f, "{field} at byte {offset}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// A path as it may be shown: images name files as they like.
pub(crate) fn shown(path: &Path) -> String {
    printable_bytes(path.as_os_str().as_encoded_bytes())
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn what_the_system_says_becomes_a_kind() {
        for (errno, kind) in [
            (Errno::NOENT, ErrorKind::NotFound),
            (Errno::ACCESS, ErrorKind::Denied),
            (Errno::NOSPC, ErrorKind::NoSpace),
            (Errno::DQUOT, ErrorKind::NoSpace),
            (Errno::FBIG, ErrorKind::NoSpace),
            (Errno::TIMEDOUT, ErrorKind::Unavailable),
            (Errno::HOSTDOWN, ErrorKind::Unavailable),
            (Errno::IO, ErrorKind::Io),
            (Errno::STALE, ErrorKind::Io),
        ] {
            assert_eq!(Error::io("a", "write data", errno.into()).kind(), kind, "{errno}");
        }
    }

    /// `/dev/full` is the one file of every machine that is always full.
    #[test]
    fn a_full_medium_is_told_by_its_kind() {
        let file = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let host = crate::host::HostFile::new(file, Path::new("/dev/full"));
        assert_eq!(host.write(&[1; 512], 0, "data").unwrap_err().kind(), ErrorKind::NoSpace);
    }
}
