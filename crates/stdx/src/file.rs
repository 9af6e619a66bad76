//! Reading files that somebody else may have put there: never more of one than it can have.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use crate::ByteSize;

/// The content of a file of at most `max` bytes. Of a larger one, or a device without an end, no more is read: what the
/// file system says of its size beforehand decides nothing.
///
/// # Errors
/// `FileTooLarge`; why it cannot be read.
pub fn read_bounded(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    read_open_bounded(&File::open(path)?, max)
}

/// The same of an open file, whose owner or mode was looked at.
///
/// # Errors
/// As [`read_bounded`].
pub fn read_open_bounded(file: &File, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        let reason = format!("it has more than {}", ByteSize(max));
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

/// The same for a text.
///
/// # Errors
/// As [`read_bounded`]; `InvalidData` where it is not UTF-8.
pub fn read_text_bounded(path: &Path, max: u64) -> io::Result<String> {
    text(read_bounded(path, max)?)
}

/// The same for the text of an open file.
///
/// # Errors
/// As [`read_text_bounded`].
pub fn read_open_text_bounded(file: &File, max: u64) -> io::Result<String> {
    text(read_open_bounded(file, max)?)
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_as_is_allowed_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        let error = read_bounded(&path, 4).unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (io::ErrorKind::FileTooLarge, "it has more than 4 B")
        );
        assert!(read_bounded(Path::new("/dev/zero"), 1 << 10).is_err());
        assert_eq!(read_text_bounded(&path, 5).unwrap(), "12345");
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_text_bounded(&path, 5).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
