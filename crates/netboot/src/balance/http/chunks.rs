//! A chunked body, taken apart (RFC 9112, 7.1).

/// Longest line of a chunk's size with its extensions, or of a trailer.
const LINE_MAX: usize = 4096;

/// Where in a chunked body we are.
#[derive(Clone, Debug)]
pub struct Chunks {
    place: Place,
    line: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In a chunk's size, of which so many digits were read.
    Size(u64, u32),
    /// Behind the digits, up to the end of the line.
    Extension(u64),
    /// In a chunk's data.
    Data(u64),
    /// Behind the data: CR, then LF.
    DataEnd,
    /// In a trailer line; whether anything stands in it.
    Trailer(bool),
    End,
}

impl Default for Chunks {
    /// Before the first byte.
    fn default() -> Self {
        Self { place: Place::Size(0, 0), line: 0 }
    }
}

impl Chunks {
    /// Whether the last chunk and the trailers are read.
    pub fn is_end(&self) -> bool {
        self.place == Place::End
    }

    /// Takes bytes of the body and calls `data` for those that are content. How many were taken: all of them, but at
    /// the end.
    ///
    /// # Errors
    /// A sentence, where these are no chunks.
    pub fn take(&mut self, bytes: &[u8], mut data: impl FnMut(&[u8])) -> Result<usize, &'static str> {
        const WRONG: &str = "its answer's chunks are malformed";
        let mut at = 0;
        while at < bytes.len() && self.place != Place::End {
            if let Place::Data(left) = self.place {
                let count = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                data(&bytes[at..at + count]);
                at += count;
                let left = left - count as u64;
                self.place = if left == 0 { Place::DataEnd } else { Place::Data(left) };
                continue;
            }
            let byte = bytes[at];
            at += 1;
            self.line += 1;
            if self.line > LINE_MAX {
                return Err(WRONG);
            }
            let digit = char::from(byte).to_digit(16).map(u64::from);
            self.place = match (self.place, byte) {
                (Place::Size(size, digits @ ..15), _) if digit.is_some() => {
                    Place::Size(size << 4 | digit.unwrap_or(0), digits + 1)
                }
                (Place::Size(_, 0), _) => return Err(WRONG),
                (Place::Size(size, _), b'\n') | (Place::Extension(size), b'\n') => {
                    self.line = 0;
                    if size == 0 { Place::Trailer(false) } else { Place::Data(size) }
                }
                (Place::Size(size, _), b'\r' | b';' | b' ' | b'\t') => Place::Extension(size),
                (Place::Extension(size), _) => Place::Extension(size),
                (Place::DataEnd, b'\r') => Place::DataEnd,
                (Place::DataEnd, b'\n') => {
                    self.line = 0;
                    Place::Size(0, 0)
                }
                (Place::Trailer(false), b'\n') => Place::End,
                (Place::Trailer(true), b'\n') => Place::Trailer(false),
                (Place::Trailer(is_filled), b'\r') => Place::Trailer(is_filled),
                // All trailers together have to fit in the limit: the line's count goes on.
                (Place::Trailer(_), _) => Place::Trailer(true),
                _ => return Err(WRONG),
            };
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], step: usize) -> Result<(Vec<u8>, usize, bool), &'static str> {
        let (mut chunks, mut content, mut taken) = (Chunks::default(), Vec::new(), 0);
        for part in bytes.chunks(step) {
            taken += chunks.take(part, |data| content.extend_from_slice(data))?;
        }
        Ok((content, taken, chunks.is_end()))
    }

    #[test]
    fn content_comes_out_however_it_arrives() {
        let body = b"5\r\nhello\r\n00006;name=\"v\"\r\n world\r\n0\r\nX-Sum: 1\r\n\r\nHTTP/1.1";
        for step in 1..body.len() {
            let (content, taken, is_end) = read(body, step).unwrap();
            assert_eq!(content, b"hello world", "{step}");
            assert!(is_end && taken == body.len() - 8, "{step}");
        }
        assert!(!read(b"5\r\nhello\r\n", 3).unwrap().2);
    }

    #[test]
    fn nonsense_is_refused() {
        for body in [&b"x\r\n"[..], b"\r\n", b"5\r\nhelloX", b"5x\r\n", b"1234567890123456\r\n"] {
            assert!(read(body, 100).is_err(), "{body:?}");
        }
        assert!(read(&[b"1;".as_slice(), &[b'x'; 5000]].concat(), 100).is_err());
        assert!(read(&[b"0\r\n".as_slice(), &b"a: b\r\n".repeat(1000)].concat(), 100).is_err());
    }
}
