//! A store that takes only what one key signed. Every way in ends where a version gets its name, and that is where it is
//! looked at, under the writers' lock and by the bytes that stay; before that only so that nobody works for nothing.

use std::path::Path;

use goldwire_stdx::Folder;

use super::{DESCRIPTOR, FORMAT, REQUIRE, Store, StoreError, StoreResult, format_of, read_format};
use crate::pack::Reader;
use crate::tree::Root;
use crate::version::{PublicKey, Requirement, Version, wrong_signer};

const MAGIC: &[u8; 8] = b"GWREQ\r\n\0";
const LENGTH: usize = 80;

impl Store {
    /// The key that must have signed what comes here; `None` if anything may come.
    ///
    /// # Errors
    /// `Corrupt`, `File`: nobody knows, and nothing may come.
    pub fn required(&self) -> StoreResult<Option<PublicKey>> {
        // Both may have been changed since the store was opened.
        let (_, must_require) = read_format(&self.folder)?;
        let path = self.path().join(REQUIRE);
        let bytes = self.folder.read_bounded(REQUIRE, LENGTH as u64);
        match bytes.map_err(StoreError::file("read", &path))? {
            Some(bytes) => decode(&bytes, &path).map(Some),
            None if must_require => {
                Err(StoreError::corrupt(&path, "file", 0, "it is missing, and `format` says that it is here"))
            }
            None => Ok(None),
        }
    }

    /// From now on takes only what `key` signed, or anything. What is here stays.
    ///
    /// # Errors
    /// `Owner`, `File`; the requirement then is one of the two, or nothing comes in.
    pub fn require(&self, key: Option<&PublicKey>) -> StoreResult<()> {
        let _lock = self.lock()?;
        let (uuid, _) = read_format(&self.folder)?;
        let (path, format) = (self.path().join(REQUIRE), self.path().join(FORMAT));
        // In this order a requirement that is being set or lifted holds until the last step.
        if let Some(key) = key {
            write(&self.folder, key)?;
        }
        let written = self.folder.replace(FORMAT, &format_of(uuid, key.is_some()), 0o644);
        written.map_err(StoreError::file("write", &format))?;
        if key.is_none() {
            let gone = self.folder.remove_file(REQUIRE).and_then(|()| self.folder.sync());
            gone.map_err(StoreError::file("remove", &path))?;
        }
        Ok(())
    }

    /// Refuses a version that was not signed as `requirement` says, or is older than what `image` has by the same key.
    ///
    /// # Errors
    /// `NotSigned`, `SignedByAnother`, `Older`; `Corrupt`, `File` if a version here cannot be looked at.
    pub fn check_required(
        &self,
        image: &str,
        version: &Version,
        requirement: &Requirement,
    ) -> StoreResult<()> {
        self.check_kept(image, version, requirement, false)
    }

    /// As [`check_required`](Self::check_required), by what the store itself requires.
    pub(super) fn check_own(&self, image: &str, version: &Version) -> StoreResult<()> {
        match self.required()? {
            Some(signer) => {
                self.check_kept(image, version, &Requirement { signer, may_be_older: false }, true)
            }
            None => Ok(()),
        }
    }

    /// Refuses what this store will not take, whoever has signed it by then, before it is read.
    ///
    /// # Errors
    /// `NotSigned`; as [`required`](Self::required).
    pub fn check_signer(&self, by: Option<PublicKey>) -> StoreResult<()> {
        match self.required()? {
            Some(signer) if by != Some(signer) => {
                let why = by.map_or("it is signed by nobody".into(), |key| format!("{key} is another key"));
                Err(StoreError::NotSigned { path: self.path().to_owned(), signer: Box::new(signer), why })
            }
            _ => Ok(()),
        }
    }

    /// What is about to get its name: its descriptor is of version `root`, and the store may take it.
    pub(super) fn admit(&self, image: &str, root: &Root, descriptor: &[u8]) -> StoreResult<()> {
        let path = self.path().join("work").join(root.to_string()).join(DESCRIPTOR);
        let version = Version::decode(descriptor)
            .map_err(|source| StoreError::Descriptor { path: path.clone(), source })?;
        if version.root != *root {
            return Err(StoreError::corrupt(&path, "root", 40, "it describes another version"));
        }
        self.check_own(image, &version)
    }

    fn check_kept(
        &self,
        image: &str,
        version: &Version,
        requirement: &Requirement,
        is_own: bool,
    ) -> StoreResult<()> {
        let place = || self.path().join(image);
        if !requirement.is_signed(version) {
            let why = wrong_signer(&version.root, version.signer, None);
            return Err(StoreError::NotSigned {
                path: self.path().to_owned(),
                signer: Box::new(requirement.signer),
                why,
            });
        }
        // A descriptor that is here and signed stays, so that it is what the name will lead to.
        let kept = if self.has(&version.root)? { Some(self.describe(&version.root)?.0) } else { None };
        let kept = kept.filter(|kept| kept.signer.is_some());
        if kept.as_ref().is_some_and(|kept| !requirement.is_signed(kept)) {
            return Err(StoreError::SignedByAnother { path: place() });
        }
        for known in self.image(image)?.unwrap_or_default().versions {
            let (known, _) = self.describe(&known.root)?;
            let is_older = |version: &Version| requirement.is_step_back(version, &known);
            if is_older(version) || kept.as_ref().is_some_and(is_older) {
                return Err(StoreError::Older { path: place(), newer: known.root, is_own });
            }
        }
        Ok(())
    }
}

/// Writes the file of a requirement, durably.
pub(super) fn write(folder: &Folder, key: &PublicKey) -> StoreResult<()> {
    let path = folder.path().join(REQUIRE);
    folder.replace(REQUIRE, &encode(key), 0o644).map_err(StoreError::file("write", &path))
}

fn encode(key: &PublicKey) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
    bytes[16..48].copy_from_slice(key.as_bytes());
    let digest = *blake3::hash(&bytes[..48]).as_bytes();
    bytes[48..].copy_from_slice(&digest);
    bytes
}

/// Reads the file of a requirement.
pub(crate) fn decode(bytes: &[u8], path: &Path) -> StoreResult<PublicKey> {
    let mut reader = Reader::new(bytes, path);
    reader.begins(MAGIC)?;
    if reader.u32("zero")? != 0 {
        return Err(StoreError::corrupt(path, "zero", 12, "it is not zero"));
    }
    let key = reader.array::<32>("key")?;
    if reader.array::<32>("digest")? != *blake3::hash(&bytes[..48]).as_bytes() {
        return Err(StoreError::corrupt(path, "digest", 48, "it does not fit the rest"));
    }
    if bytes.len() != LENGTH {
        return Err(reader.bad("end", "the file goes on"));
    }
    PublicKey::from_bytes(&key).ok_or_else(|| StoreError::corrupt(path, "key", 16, "it is no public key"))
}
