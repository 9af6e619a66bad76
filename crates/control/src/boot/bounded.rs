//! Reading files that somebody else may have put there: never more of one than it can have.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use goldwire_stdx::ByteSize;

/// The content of a file of at most `max` bytes. Of a larger one, or a device without an end, no more is read.
pub(super) fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("it has more than {}", ByteSize(max))));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_much_as_is_allowed_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        let error = read(&path, 4).unwrap_err();
        assert_eq!(error.to_string(), "it has more than 4 B");
        assert!(read(Path::new("/dev/zero"), 1 << 10).is_err());
    }
}
