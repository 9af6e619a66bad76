//! What a medium answers instead of doing what it should: that it is full, or away.

use std::io;

use rustix::io::Errno;

/// Whether a write failed for want of room: the file system is full, a quota is used up, or the file is as long as a limit
/// lets it be.
pub fn is_out_of_space(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Whether what holds the bytes does not answer now, and the same call may succeed later: a server or a line is away.
///
/// `EIO` is none of these. A sector that cannot be read gives it too, and giving that one up for "later" would hide a
/// broken medium behind a wait that never ends. Neither is `ESTALE`, which means that the server has another file in the
/// place of this one: waiting brings no byte of it back.
pub fn is_unavailable(error: &io::Error) -> bool {
    let is_away = matches!(
        error.kind(),
        io::ErrorKind::TimedOut
            | io::ErrorKind::NotConnected
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
    );
    // A CIFS mount without its server, and a block device whose last path is gone; std has no word for them.
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    is_away || matches!(errno, Some(Errno::HOSTDOWN | Errno::NOLINK))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.raw_os_error())
    }

    #[test]
    fn full_and_away_are_told_apart() {
        for errno in [Errno::NOSPC, Errno::DQUOT, Errno::FBIG] {
            assert!(is_out_of_space(error(errno).kind()) && !is_unavailable(&error(errno)), "{errno}");
        }
        for errno in [
            Errno::TIMEDOUT,
            Errno::NOTCONN,
            Errno::HOSTDOWN,
            Errno::HOSTUNREACH,
            Errno::NETDOWN,
            Errno::NETUNREACH,
            Errno::CONNREFUSED,
            Errno::CONNRESET,
            Errno::CONNABORTED,
            Errno::NOLINK,
        ] {
            assert!(is_unavailable(&error(errno)) && !is_out_of_space(error(errno).kind()), "{errno}");
        }
        for errno in [Errno::IO, Errno::STALE, Errno::ACCESS, Errno::ROFS, Errno::NOENT, Errno::NXIO] {
            assert!(!is_unavailable(&error(errno)) && !is_out_of_space(error(errno).kind()), "{errno}");
        }
    }
}
