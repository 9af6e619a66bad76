//! What a medium answers: that it is full, that it is away, or the bytes without being waited for.

use std::fs::File;
use std::io::{self, IoSliceMut};

use rustix::io::{Errno, ReadWriteFlags, preadv2};

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

/// Fills `buf` from byte `offset` of `file` if all of it is in memory: no medium and no network is waited for. If it is not,
/// or if the file system cannot tell, the answer is false and nothing is known about `buf`; whatever else is wrong is told
/// by the read that waits.
pub fn read_at_once(file: &File, buf: &mut [u8], offset: u64) -> bool {
    let mut filled = 0;
    while filled < buf.len() {
        let at = match offset.checked_add(filled as u64) {
            // The system would take it for "where the file's own position is".
            None | Some(u64::MAX) => return false,
            Some(at) => at,
        };
        let mut rest = [IoSliceMut::new(&mut buf[filled..])];
        match preadv2(file, &mut rest, at, ReadWriteFlags::NOWAIT) {
            Ok(0) => return false,
            // The rest may be here too: a read ends at a page that is not, and at a signal.
            Ok(length) => filled += length,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::io::Write;

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

    #[test]
    fn only_whole_answers_count() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 5000]).unwrap();
        let mut buf = [0; 5000];
        if read_at_once(&file, &mut buf, 0) {
            assert_eq!(buf, [7; 5000]);
        }
        // Past the end, wholly and in part.
        assert!(!read_at_once(&file, &mut buf, 1));
        for offset in [5000, u64::MAX - 4999, u64::MAX] {
            assert!(!read_at_once(&file, &mut buf, offset), "{offset}");
        }
        assert!(read_at_once(&file, &mut [], u64::MAX));
        // What was not opened for reading, and what has no place.
        let unread = File::options().write(true).open("/dev/null").unwrap();
        assert!(!read_at_once(&unread, &mut buf, 0));
    }
}
