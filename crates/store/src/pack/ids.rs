//! Which chunk is in which slot of a pack, and where an id is.
//!
//! Nothing is held in memory but the table, which leads to the few entries among which an id can be.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use goldwire_stdx::Folder;
use xxhash_rust::xxh3::Xxh3;

use super::{PackNumber, Reader, SLOTS_MAX, header};
use crate::chunk::ChunkId;
use crate::store::{StoreError, StoreResult};
use crate::tree::Root;

const MAGIC: &[u8; 8] = b"GWIDS\r\n\0";
const HEADER: usize = 64;
/// Where the checksum of everything else lies.
const CHECKSUM_AT: usize = 56;
const ENTRY: usize = 12;
/// About how many entries one step of the table covers.
const STEP: u32 = 64;
const BITS_MAX: u32 = 14;

/// The ids of a pack.
#[derive(Debug)]
pub(crate) struct Ids {
    file: File,
    path: PathBuf,
    slots: u32,
    entries: u32,
    bits: u32,
    /// The header before the checksum.
    covered: Vec<u8>,
    checksum: u64,
    root: Root,
    table: Vec<u32>,
}

impl Ids {
    /// Writes the ids of a pack for version `root`; a zero id is a slot that was freed.
    pub(crate) fn write(packs: &Folder, number: PackNumber, root: &Root, ids: &[ChunkId]) -> StoreResult<()> {
        let name = number.file("ids");
        let done = packs.replace(&name, &encode(root, ids), 0o644);
        done.map_err(StoreError::file("write", &packs.path().join(&name)))
    }

    /// Opens the ids of a pack.
    pub(crate) fn open(packs: &Folder, number: PackNumber) -> StoreResult<Self> {
        let name = number.file("ids");
        let path = packs.path().join(&name);
        let file = packs.read_file(&name).map_err(StoreError::file("open", &path))?;
        Self::over(file, path)
    }

    pub(crate) fn over(file: File, path: PathBuf) -> StoreResult<Self> {
        let (mut header, length) = header(&file, &path, HEADER)?;
        let mut reader = Reader::new(&header, &path);
        reader.begins(MAGIC)?;
        let slots = reader.u32("slots")?;
        if !(1..=SLOTS_MAX).contains(&slots) {
            return Err(StoreError::corrupt(&path, "slots", 12, format!("{slots} is not 1 to {SLOTS_MAX}")));
        }
        let entries = reader.u32("entries")?;
        if entries > slots {
            return Err(StoreError::corrupt(&path, "entries", 16, format!("{entries} of {slots} slots")));
        }
        let bits = reader.u32("bits")?;
        if bits > BITS_MAX {
            return Err(StoreError::corrupt(&path, "bits", 20, format!("{bits} is more than {BITS_MAX}")));
        }
        let root = Root(reader.array("root")?);
        let checksum = reader.u64("checksum")?;
        let table_length = 4 * ((1 << bits) + 1);
        let expected = HEADER as u64 + 32 * u64::from(slots) + table_length + 12 * u64::from(entries);
        if length != expected {
            let why = format!("the file has {length} bytes instead of {expected}");
            return Err(StoreError::corrupt(&path, "length", length, why));
        }
        let mut table = vec![0; table_length as usize];
        let at = HEADER as u64 + 32 * u64::from(slots);
        file.read_exact_at(&mut table, at).map_err(StoreError::file("read", &path))?;
        let table: Vec<u32> = table.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let is_sorted = table.is_sorted() && table[0] == 0 && table.last() == Some(&entries);
        if !is_sorted {
            return Err(StoreError::corrupt(&path, "table", at, "its counts do not rise to the entries"));
        }
        header.truncate(CHECKSUM_AT);
        Ok(Self { file, path, slots, entries, bits, covered: header, checksum, root, table })
    }

    /// The number of slots.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    /// Slots that are in use.
    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// The version that the pack was made for.
    pub(crate) fn root(&self) -> &Root {
        &self.root
    }

    /// The ids of `slots`.
    pub(crate) fn ids(&self, slots: std::ops::Range<u32>) -> StoreResult<Vec<ChunkId>> {
        if slots.start > slots.end || slots.end > self.slots {
            let why = format!("slots {slots:?} of {} do not exist", self.slots);
            return Err(StoreError::corrupt(&self.path, "ids", HEADER as u64, why));
        }
        let mut bytes = vec![0; (slots.end - slots.start) as usize * 32];
        let at = HEADER as u64 + 32 * u64::from(slots.start);
        self.file.read_exact_at(&mut bytes, at).map_err(StoreError::file("read", &self.path))?;
        Ok(bytes.as_chunks::<32>().0.iter().map(|id| ChunkId(*id)).collect())
    }

    /// A slot in which the chunk `id` is said to be.
    pub(crate) fn find(&self, id: &ChunkId) -> StoreResult<Option<u32>> {
        let prefix = prefix(id);
        let step = if self.bits == 0 { 0 } else { (u64::from_be_bytes(prefix) >> (64 - self.bits)) as usize };
        let among = self.table[step]..self.table[step + 1];
        let mut bytes = vec![0; among.len() * ENTRY];
        let index = HEADER as u64 + 32 * u64::from(self.slots) + 4 * self.table.len() as u64;
        let at = index + u64::from(among.start) * ENTRY as u64;
        self.file.read_exact_at(&mut bytes, at).map_err(StoreError::file("read", &self.path))?;
        for entry in bytes.as_chunks::<ENTRY>().0 {
            let [.., a, b, c, d] = *entry;
            let slot = u32::from_le_bytes([a, b, c, d]);
            if entry[..8] == prefix && slot < self.slots && self.ids(slot..slot + 1)?[0] == *id {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    /// The beginnings of all ids in use whose first `bits` bits are `part`, in order. `bits` is at most 32.
    pub(crate) fn beginnings(&self, part: u64, bits: u32) -> StoreResult<Vec<u64>> {
        // The smallest range of the table around it.
        let (first, last) = match self.bits.checked_sub(bits) {
            Some(more) => (part << more, (part + 1) << more),
            None => (part >> (bits - self.bits), (part >> (bits - self.bits)) + 1),
        };
        let among = self.table[first as usize]..self.table[last as usize];
        let mut bytes = vec![0; among.len() * ENTRY];
        let index = HEADER as u64 + 32 * u64::from(self.slots) + 4 * self.table.len() as u64;
        let at = index + u64::from(among.start) * ENTRY as u64;
        self.file.read_exact_at(&mut bytes, at).map_err(StoreError::file("read", &self.path))?;
        let all = bytes
            .as_chunks::<ENTRY>()
            .0
            .iter()
            .map(|[a, b, c, d, e, f, g, h, ..]| u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]));
        Ok(all.filter(|id| id.checked_shr(64 - bits).unwrap_or_default() == part).collect())
    }

    /// Whether the file is as it was written.
    pub(crate) fn check(&self) -> StoreResult<()> {
        let mut hasher = Xxh3::new();
        hasher.update(&self.covered);
        let mut buffer = vec![0; 1 << 20];
        let mut at = HEADER as u64;
        loop {
            let read = self.file.read_at(&mut buffer, at).map_err(StoreError::file("read", &self.path))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            at += read as u64;
        }
        if hasher.digest() == self.checksum {
            return Ok(());
        }
        Err(StoreError::corrupt(&self.path, "checksum", CHECKSUM_AT as u64, "it does not fit the rest"))
    }
}

fn prefix(id: &ChunkId) -> [u8; 8] {
    let [a, b, c, d, e, f, g, h, ..] = id.0;
    [a, b, c, d, e, f, g, h]
}

fn encode(root: &Root, ids: &[ChunkId]) -> Vec<u8> {
    let mut used: Vec<([u8; 8], u32)> =
        (0..).zip(ids).filter(|(_, id)| !id.is_zero()).map(|(slot, id)| (prefix(id), slot)).collect();
    used.sort_unstable();
    let bits = (used.len() as u32 / STEP).checked_ilog2().map_or(0, |log| log.min(BITS_MAX));
    let mut table = vec![0_u32; (1 << bits) + 1];
    for (prefix, _) in &used {
        let step = if bits == 0 { 0 } else { (u64::from_be_bytes(*prefix) >> (64 - bits)) as usize };
        table[step + 1] += 1;
    }
    for step in 1..table.len() {
        table[step] += table[step - 1];
    }
    let mut bytes = Vec::with_capacity(HEADER + ids.len() * 32 + table.len() * 4 + used.len() * ENTRY);
    bytes.extend_from_slice(MAGIC);
    for number in [1, ids.len() as u32, used.len() as u32, bits] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&root.0);
    bytes.extend_from_slice(&[0; 8]);
    ids.iter().for_each(|id| bytes.extend_from_slice(&id.0));
    table.iter().for_each(|count| bytes.extend_from_slice(&count.to_le_bytes()));
    for (prefix, slot) in &used {
        bytes.extend_from_slice(prefix);
        bytes.extend_from_slice(&slot.to_le_bytes());
    }
    let mut hasher = Xxh3::new();
    hasher.update(&bytes[..CHECKSUM_AT]);
    hasher.update(&bytes[HEADER..]);
    bytes[CHECKSUM_AT..HEADER].copy_from_slice(&hasher.digest().to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids_of(count: u32) -> Vec<ChunkId> {
        (0..count).map(|slot| ChunkId(*blake3::hash(&slot.to_le_bytes()).as_bytes())).collect()
    }

    #[test]
    fn what_was_written_is_found_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Folder::open(folder.path()).unwrap();
        let number = PackNumber(3);
        for count in [1, 63, 64, 129, 10_000] {
            let mut ids = ids_of(count);
            if count > 20 {
                ids[17] = ChunkId::ZERO;
            }
            Ids::write(&folder, number, &Root([5; 32]), &ids).unwrap();
            let read = Ids::open(&folder, number).unwrap();
            read.check().unwrap();
            assert_eq!((read.slots(), *read.root()), (count, Root([5; 32])));
            assert_eq!(read.ids(0..count).unwrap(), ids);
            for (slot, id) in (0..).zip(&ids).filter(|(_, id)| !id.is_zero()) {
                assert_eq!(read.find(id).unwrap(), Some(slot));
            }
            assert_eq!(read.find(&ChunkId::ZERO).unwrap(), None);
            let mut beginnings: Vec<u64> =
                ids.iter().filter(|id| !id.is_zero()).map(|id| u64::from_be_bytes(prefix(id))).collect();
            beginnings.sort_unstable();
            for bits in [0, 3, 9] {
                let parts = (0..1 << bits).flat_map(|part| read.beginnings(part, bits).unwrap());
                assert_eq!(parts.collect::<Vec<_>>(), beginnings, "{bits} bits");
            }
            // An id that begins as another does.
            let mut like = ids[0];
            like.0[31] ^= 1;
            assert_eq!(read.find(&like).unwrap(), None);
        }
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let scene = tempfile::tempdir().unwrap();
        let folder = Folder::open(scene.path()).unwrap();
        let number = PackNumber(1);
        Ids::write(&folder, number, &Root([5; 32]), &ids_of(200)).unwrap();
        let path = scene.path().join(number.file("ids"));
        let bytes = std::fs::read(&path).unwrap();
        for at in (0..64).chain((64..bytes.len()).step_by(7)) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&path, &damaged).unwrap();
            let is_good = Ids::open(&folder, number).is_ok_and(|ids| {
                let _ = ids.find(&ids_of(1)[0]);
                ids.check().is_ok()
            });
            assert!(!is_good, "byte {at}");
        }
        for length in (0..bytes.len()).step_by(97) {
            std::fs::write(&path, &bytes[..length]).unwrap();
            assert!(Ids::open(&folder, number).is_err(), "{length} bytes");
        }
    }
}
