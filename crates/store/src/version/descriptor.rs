//! The version descriptor: what a version is, where it came from, and optionally who vouches for it.
//! Byte layout in `docs/tree-and-version.md`.

use super::signature::{PublicKey, SecretKey};
use goldwire_stdx::Hints;

use crate::chunk::CHUNK_SIZE;
use crate::tree::{DISK_SIZE_MAX, Root};

const MAGIC: &[u8; 8] = b"GWVERS\r\n";
const FORMAT_VERSION: u16 = 1;
const SIGNATURE_CONTEXT: &[u8] = b"goldwire 2026-11 version descriptor\0";
const FIXED_LENGTH: usize = 8 + 2 + 2 + 4 + 8 + 8 + 8 + 32 + 32;
/// Longest name and note, so that a descriptor stays small.
const TEXT_MAX: usize = 4096;
const FLAG_PARENT: u16 = 1;
const FLAG_SIGNED: u16 = 2;

/// One immutable state of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The digest of the content.
    pub root: Root,
    /// Guest size in bytes.
    pub size: u64,
    /// Chunks that are not zero.
    pub chunks_used: u64,
    /// When the content was made, seconds since 1970 (the image file's modification time).
    pub created: i64,
    /// The version that this one was made from, if known.
    pub parent: Option<Root>,
    /// The image's name, as a person knows it.
    pub name: String,
    /// Free text.
    pub note: String,
    /// Who signed it. Only a checked signature is ever here.
    pub signer: Option<PublicKey>,
}

/// Why bytes are not a descriptor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VersionError {
    /// The bytes end inside a field, or go on after the last.
    #[error("version descriptor: {field} does not fit the length of {length} bytes")]
    Length {
        /// The field.
        field: &'static str,
        /// Bytes in all.
        length: usize,
    },
    /// A field has a value that cannot be.
    #[error("version descriptor: {field}: {why}")]
    Field {
        /// The field.
        field: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// The signature does not fit.
    #[error("version descriptor: the signature does not fit the content")]
    Signature,
}

impl Hints for VersionError {}

impl Version {
    /// The descriptor's bytes, signed if there is a key.
    ///
    /// # Errors
    /// `Field` when name or note are longer than 4,096 bytes.
    pub fn encode(&self, key: Option<&SecretKey>) -> Result<Vec<u8>, VersionError> {
        if self.name.len() > TEXT_MAX || self.note.len() > TEXT_MAX {
            return Err(VersionError::Field { field: "name or note", why: "longer than 4096 bytes" });
        }
        let flags =
            if self.parent.is_some() { FLAG_PARENT } else { 0 } | if key.is_some() { FLAG_SIGNED } else { 0 };
        let mut bytes = Vec::with_capacity(FIXED_LENGTH + 8 + self.name.len() + self.note.len() + 96);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&(CHUNK_SIZE as u32).to_le_bytes());
        bytes.extend_from_slice(&self.size.to_le_bytes());
        bytes.extend_from_slice(&self.chunks_used.to_le_bytes());
        bytes.extend_from_slice(&self.created.to_le_bytes());
        bytes.extend_from_slice(&self.root.0);
        bytes.extend_from_slice(&self.parent.map_or([0; 32], |parent| parent.0));
        for text in [&self.name, &self.note] {
            bytes.extend_from_slice(&(text.len() as u32).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        if let Some(key) = key {
            bytes.extend_from_slice(key.public().as_bytes());
            let signature = key.sign(&signed_message(&bytes));
            bytes.extend_from_slice(&signature);
        }
        Ok(bytes)
    }

    /// Reads a descriptor and checks its signature, if it has one.
    ///
    /// # Errors
    /// `Length`, `Field`, `Signature`.
    pub fn decode(bytes: &[u8]) -> Result<Self, VersionError> {
        let mut reader = Reader { rest: bytes, length: bytes.len() };
        if reader.array::<8>("magic")? != *MAGIC {
            return Err(VersionError::Field { field: "magic", why: "not a version descriptor" });
        }
        if u16::from_le_bytes(reader.array("version")?) != FORMAT_VERSION {
            return Err(VersionError::Field { field: "version", why: "made by a newer goldwire" });
        }
        let flags = u16::from_le_bytes(reader.array("flags")?);
        if flags & !(FLAG_PARENT | FLAG_SIGNED) != 0 {
            return Err(VersionError::Field { field: "flags", why: "made by a newer goldwire" });
        }
        if u32::from_le_bytes(reader.array("chunk size")?) != CHUNK_SIZE as u32 {
            return Err(VersionError::Field { field: "chunk size", why: "is not 64 KiB" });
        }
        let size = u64::from_le_bytes(reader.array("size")?);
        if size > DISK_SIZE_MAX {
            return Err(VersionError::Field { field: "size", why: "is larger than 64 TiB" });
        }
        let chunks_used = u64::from_le_bytes(reader.array("chunks used")?);
        let created = i64::from_le_bytes(reader.array("created")?);
        let root = Root(reader.array("root")?);
        let parent = Root(reader.array("parent")?);
        let name = reader.text("name")?;
        let note = reader.text("note")?;
        let signer = if flags & FLAG_SIGNED == 0 {
            None
        } else {
            let key = PublicKey::from_bytes(&reader.array("signer")?)
                .ok_or(VersionError::Field { field: "signer", why: "is not a public key" })?;
            let covered = bytes.len() - reader.rest.len();
            let signature = reader.array("signature")?;
            if !key.verifies(&signed_message(&bytes[..covered]), &signature) {
                return Err(VersionError::Signature);
            }
            Some(key)
        };
        if !reader.rest.is_empty() {
            return Err(VersionError::Length { field: "end", length: bytes.len() });
        }
        let parent = (flags & FLAG_PARENT != 0).then_some(parent);
        Ok(Self { root, size, chunks_used, created, parent, name, note, signer })
    }
}

fn signed_message(bytes: &[u8]) -> Vec<u8> {
    [SIGNATURE_CONTEXT, bytes].concat()
}

struct Reader<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], VersionError> {
        let (taken, rest) =
            self.rest.split_at_checked(length).ok_or(VersionError::Length { field, length: self.length })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], VersionError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    fn text(&mut self, field: &'static str) -> Result<String, VersionError> {
        let length = u32::from_le_bytes(self.array(field)?) as usize;
        if length > TEXT_MAX {
            return Err(VersionError::Field { field, why: "longer than 4096 bytes" });
        }
        let bytes = self.take(field, length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| VersionError::Field { field, why: "is not UTF-8" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version() -> Version {
        Version {
            root: Root([3; 32]),
            size: 3 << 30,
            chunks_used: 33_000,
            created: 1_780_000_000,
            parent: Some(Root([4; 32])),
            name: "win11-office".into(),
            note: "November updates ✓".into(),
            signer: None,
        }
    }

    #[test]
    fn round_trip_signed_and_not() {
        let plain = version();
        assert_eq!(Version::decode(&plain.encode(None).unwrap()), Ok(plain.clone()));
        let key = SecretKey::from_random([42; 32]);
        let bytes = plain.encode(Some(&key)).unwrap();
        assert_eq!(Version::decode(&bytes).unwrap().signer, Some(key.public()));
        for position in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[position] ^= 1;
            let accepted = Version::decode(&forged).is_ok_and(|version| version.signer.is_some());
            assert!(!accepted, "flipped byte {position} still counts as signed");
        }
    }

    #[test]
    fn key_files_round_trip() {
        let key = SecretKey::from_random([7; 32]);
        let again: SecretKey = key.to_file_text().parse().unwrap();
        assert_eq!(again.public(), key.public());
        assert_eq!(key.public().to_string().parse(), Ok(key.public()));
        assert!(!format!("{key:?}").contains(&to_hex_of(&[7; 32])));
        assert!(key.public().to_string().parse::<SecretKey>().is_err());
    }

    fn to_hex_of(bytes: &[u8]) -> String {
        goldwire_stdx::to_hex(bytes)
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Version::decode(&bytes);
            let mut headed = MAGIC.to_vec();
            headed.extend([1, 0]);
            headed.extend(bytes);
            let _ = Version::decode(&headed);
        }
    }
}
