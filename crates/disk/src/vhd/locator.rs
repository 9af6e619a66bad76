//! Parent locators: up to eight places in the file, each with a path to the parent in one platform's spelling.
//!
//! ```text
//!   0 platform code   4 space   8 length   12 reserved   16 offset
//! ```
//!
//! The space is in sectors by the specification; Microsoft and libvhd write bytes. The path is `length` bytes at
//! `offset` either way, so reading never needs the space.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::bat::Region;
use super::footer::{u32_at, u64_at};
use crate::Result;
use crate::host::HostFile;

/// The longest path that is read: `PATH_MAX` characters, each percent-encoded or in UTF-16.
const LENGTH_MAX: u32 = 4096 * 3;

/// The platforms whose paths are read: a file URL, a relative and an absolute path in UTF-16LE. `Wi2r`, `Wi2k` and
/// `Mac ` are deprecated and not even described well enough to be written.
pub(crate) const PLATFORMS_READ: [&[u8; 4]; 3] = [b"MacX", b"W2ru", b"W2ku"];

/// One slot of the header's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Locator {
    pub(crate) index: usize,
    pub(crate) code: [u8; 4],
    pub(crate) space: u32,
    pub(crate) length: u32,
    pub(crate) reserved: u32,
    pub(crate) offset: u64,
}

impl Locator {
    pub(crate) fn parse(header: &[u8; 1024], index: usize) -> Self {
        let at = Self::header_offset(index) as usize;
        Self {
            index,
            code: u32_at(header, at).to_be_bytes(),
            space: u32_at(header, at + 4),
            length: u32_at(header, at + 8),
            reserved: u32_at(header, at + 12),
            offset: u64_at(header, at + 16),
        }
    }

    /// Where slot `index` lies in the header.
    pub(crate) fn header_offset(index: usize) -> u64 {
        576 + 24 * index as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.code == [0; 4]
    }

    /// Whether all 24 bytes are zero.
    pub(crate) fn is_blank(&self) -> bool {
        self.is_empty() && (self.space, self.length, self.reserved, self.offset) == (0, 0, 0, 0)
    }

    /// What is wrong with the slot, beside the path itself.
    pub(crate) fn contradiction(&self, data_end: u64) -> Option<&'static str> {
        let platform: &[u8; 4] = &self.code;
        if self.is_empty() {
            return (!self.is_blank()).then_some("is empty but not zero");
        }
        if !PLATFORMS_READ.contains(&platform) && ![b"Wi2r", b"Wi2k", b"Mac "].contains(&platform) {
            return Some("has an unknown platform code");
        }
        let Some(space) = self.space_bytes() else { return Some("has a data space of no whole sectors") };
        if self.reserved != 0 {
            return Some("has reserved bytes that are not zero");
        }
        if self.offset == 0 || self.length == 0 || u64::from(self.length) > space {
            return Some("has no room for its path");
        }
        let is_inside = self.offset.checked_add(space).is_some_and(|end| end <= data_end);
        (!is_inside).then_some("passes the end of the data")
    }

    /// Bytes that the path may take in the file: sectors when the number is too small for bytes, as libvhd tells
    /// them apart. `None` when it is neither.
    pub(crate) fn space_bytes(&self) -> Option<u64> {
        match self.space {
            0 => None,
            sectors @ 1..512 => Some(u64::from(sectors) * 512),
            bytes if bytes.is_multiple_of(512) => Some(u64::from(bytes)),
            _ => None,
        }
    }

    /// The bytes of the file that the path takes, where it lies inside the file at all.
    pub(crate) fn region(&self, file_length: u64) -> Option<Region> {
        let end = self.offset.checked_add(u64::from(self.length))?.checked_next_multiple_of(512)?;
        let is_used = PLATFORMS_READ.contains(&&self.code) && self.length > 0 && end <= file_length;
        is_used.then_some(Region { name: "a parent locator", start: self.offset, end })
    }

    /// The paths that the locator may mean, best first; an empty list for a platform that nobody writes any more.
    /// The inner error says what is wrong with the text.
    pub(crate) fn paths(&self, host: &HostFile, file_length: u64) -> Result<Result<Vec<PathBuf>, String>> {
        if !PLATFORMS_READ.contains(&&self.code) {
            return Ok(Ok(Vec::new()));
        }
        if self.length == 0 || self.length > LENGTH_MAX {
            return Ok(Err(format!("a path of {} bytes", self.length)));
        }
        if self.offset.checked_add(u64::from(self.length)).is_none_or(|end| end > file_length) {
            return Ok(Err(format!("{} bytes at {} pass the end of the file", self.length, self.offset)));
        }
        let mut bytes = vec![0; self.length as usize];
        host.read(&mut bytes, self.offset, "a parent locator")?;
        let paths = match &self.code {
            b"MacX" => mac_paths(&bytes),
            _ => utf16_text(&bytes, u16::from_le_bytes).and_then(|text| windows_paths(&text)),
        };
        Ok(paths.map_err(str::to_owned))
    }
}

/// The parent's name in the header: UTF-16BE up to the first NUL.
pub(crate) fn header_name(bytes: &[u8]) -> Result<String, &'static str> {
    utf16_text(bytes, u16::from_be_bytes)
}

/// `file:///folder/disk.vhd`, or `file://./disk.vhd` as libvhd writes relative paths. libvhd does not
/// percent-encode, Microsoft does: a name with a percent sign may mean either.
fn mac_paths(bytes: &[u8]) -> Result<Vec<PathBuf>, &'static str> {
    let bytes = until_nul(bytes);
    let plain = bytes.strip_prefix(b"file://").ok_or("is no file URL")?;
    let plain = match plain.strip_prefix(b"localhost") {
        Some(rest) if rest.starts_with(b"/") => rest,
        _ => plain,
    };
    let mut paths = Vec::new();
    for candidate in [percent_decoded(plain), Some(plain.to_vec())].into_iter().flatten() {
        if candidate.is_empty() || candidate.contains(&0) {
            return Err("has an empty path or one with a NUL");
        }
        let path = PathBuf::from(OsString::from_vec(candidate));
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// `.\disk.vhd`, `..\folder\disk.vhd`, `C:\folder\disk.vhd`, `\\server\share\disk.vhd`. What is absolute on
/// somebody's Windows is looked for beside the child too; libvhd drops the drive letter, so do we.
fn windows_paths(text: &str) -> Result<Vec<PathBuf>, &'static str> {
    let text = text.replace('\\', "/");
    let without_drive = match text.as_bytes() {
        [letter, b':', ..] if letter.is_ascii_alphabetic() => &text[2..],
        _ => text.as_str(),
    };
    if without_drive.is_empty() {
        return Err("is empty");
    }
    let path = PathBuf::from(without_drive);
    let mut paths = Vec::new();
    if let (true, Some(name)) = (without_drive.len() < text.len() || path.is_absolute(), path.file_name()) {
        paths.push(Path::new(".").join(name));
    }
    paths.push(path);
    Ok(paths)
}

fn utf16_text(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, &'static str> {
    let units = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).take_while(|&unit| unit != 0);
    char::decode_utf16(units).collect::<Result<String, _>>().map_err(|_| "is no UTF-16")
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// `%41` becomes `A`; `None` when a percent sign is followed by something else.
fn percent_decoded(bytes: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter();
    while let Some(&byte) = rest.next() {
        if byte == b'%' {
            let value = digit(rest.next())? * 16 + digit(rest.next())?;
            decoded.push(value as u8);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(text: &str) -> Vec<String> {
        let paths = mac_paths(text.as_bytes()).unwrap();
        paths.iter().map(|path| path.display().to_string()).collect()
    }

    fn windows(text: &str) -> Vec<String> {
        let paths = windows_paths(text).unwrap();
        paths.iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn file_urls() {
        assert_eq!(mac("file://./a.vhd"), ["./a.vhd"]);
        assert_eq!(mac("file:///sr/a.vhd\0\0"), ["/sr/a.vhd"]);
        assert_eq!(mac("file://localhost/sr/a.vhd"), ["/sr/a.vhd"]);
        assert_eq!(mac("file://./my%20disk.vhd"), ["./my disk.vhd", "./my%20disk.vhd"]);
        assert_eq!(mac("file://./100%.vhd"), ["./100%.vhd"]);
        for bad in ["http://x", "file://", "file://a%00b"] {
            assert!(mac_paths(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn windows_spellings() {
        assert_eq!(windows(".\\a.vhd"), ["./a.vhd"]);
        assert_eq!(windows("..\\b\\a.vhd"), ["../b/a.vhd"]);
        assert_eq!(windows("C:\\vms\\a.vhd"), ["./a.vhd", "/vms/a.vhd"]);
        assert_eq!(windows("\\\\server\\share\\a.vhd"), ["./a.vhd", "//server/share/a.vhd"]);
        assert!(windows_paths("C:").is_err());
    }

    #[test]
    fn text_must_be_utf16() {
        assert_eq!(header_name(&[0, b'a', 0, b'b', 0, 0, 0, b'c']).unwrap(), "ab");
        assert!(header_name(&[0xd8, 0, 0, b'b']).is_err());
    }
}
