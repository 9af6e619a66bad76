//! Numbers out of a few bytes, each named for the error that says it is missing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::store::{StoreError, StoreResult};

/// The first bytes of a file, at most `length` of them, and how long it is.
pub(crate) fn header(file: &File, path: &Path, length: usize) -> StoreResult<(Vec<u8>, u64)> {
    let whole = file.metadata().map_err(StoreError::file("stat", path))?.len();
    let mut header = vec![0; whole.min(length as u64) as usize];
    file.read_exact_at(&mut header, 0).map_err(StoreError::file("read", path))?;
    Ok((header, whole))
}

/// Reads fields one after another.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    path: &'a Path,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], path: &'a Path) -> Self {
        Self { bytes, at: 0, path }
    }

    pub(crate) fn array<const N: usize>(&mut self, field: &'static str) -> StoreResult<[u8; N]> {
        let array = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let array = *array.ok_or_else(|| self.bad(field, "the file ends before it"))?;
        self.at += N;
        Ok(array)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> StoreResult<u32> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> StoreResult<u64> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// Takes a magic and the layout version 1.
    pub(crate) fn begins(&mut self, magic: &[u8; 8]) -> StoreResult<()> {
        self.begins_up_to(magic, 1).map(drop)
    }

    /// Takes a magic and a layout version from 1 to `newest`.
    pub(crate) fn begins_up_to(&mut self, magic: &[u8; 8], newest: u32) -> StoreResult<u32> {
        if self.array::<8>("magic")? != *magic {
            self.at = 0;
            return Err(self.bad("magic", "it is another kind of file"));
        }
        let version = self.u32("layout version")?;
        if !(1..=newest).contains(&version) {
            self.at -= 4;
            return Err(self.bad("layout version", "made by a newer goldwire"));
        }
        Ok(version)
    }

    /// What is wrong with the field that comes next.
    pub(crate) fn bad(&self, field: &'static str, why: impl Into<String>) -> StoreError {
        StoreError::corrupt(self.path, field, self.at as u64, why)
    }
}
