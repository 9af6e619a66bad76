//! FAT16 file systems, written at once from a list of files (Microsoft's "FAT: General Overview", 1.03).
//!
//! ```text
//! boot sector | FAT | FAT | root directory (512 entries) | clusters
//! ```
//!
//! Our own rather than a crate's: the same files have to give the same bytes, with no clock and no random serial
//! number, and this is all that a medium needs. FAT16 because every firmware reads it and its size fits the content.

use super::MediaError;

const SECTOR: usize = 512;
const ROOT_ENTRIES: usize = 512;
const RESERVED_SECTORS: usize = 8;
/// A FAT with fewer clusters is FAT12, one with more FAT32: readers tell them apart by nothing else.
const CLUSTERS: std::ops::RangeInclusive<usize> = 4096..=65_500;
/// 2026-01-01 00:00: the same bytes for the same content, so no clock.
const DATE: u16 = ((2026 - 1980) << 9) | (1 << 5) | 1;
const DIRECTORY: u8 = 0x10;
const ARCHIVE: u8 = 0x20;
const VOLUME: u8 = 0x08;
const LONG_NAME: u8 = 0x0f;

/// A file with its path, `/` between its parts.
pub(super) struct File {
    /// Where it lies: `EFI/BOOT/BOOTX64.EFI`.
    pub(super) path: String,
    /// Its content.
    pub(super) bytes: Vec<u8>,
}

/// A directory or a file while the image is being laid out.
enum Node<'a> {
    Directory(Vec<(String, Node<'a>)>),
    File(&'a [u8]),
}

/// The image, a whole number of MiB long. `serial` is the volume's number.
pub(super) fn image(files: &[File], serial: u32) -> Result<Vec<u8>, MediaError> {
    let mut root = Vec::new();
    for file in files {
        insert(&mut root, &file.path, &file.bytes);
    }
    let content: usize = files.iter().map(|file| file.bytes.len()).sum();
    let Some(cluster) =
        (0..7).map(|power| SECTOR << power).find(|size| needed(&root, *size) <= *CLUSTERS.end())
    else {
        return Err(MediaError::Content(content));
    };
    let count = (needed(&root, cluster) + (1 << 20) / cluster).clamp(*CLUSTERS.start(), *CLUSTERS.end());
    let fat_sectors = (2 * (count + 2)).div_ceil(SECTOR);
    let first = RESERVED_SECTORS + 2 * fat_sectors + ROOT_ENTRIES * 32 / SECTOR;
    let size = (first * SECTOR + count * cluster).next_multiple_of(1 << 20);
    let sectors = size / SECTOR;
    // What the rounding added is used where the limit allows.
    let count = ((sectors - first) * SECTOR / cluster).min(fat_sectors * SECTOR / 2 - 2).min(*CLUSTERS.end());
    let sectors = first + count * cluster / SECTOR;

    let mut writer =
        Writer { bytes: vec![0; size], fat: vec![0; fat_sectors * SECTOR / 2], first, cluster, next: 2 };
    writer.fat[..2].copy_from_slice(&[0xfff8, 0xffff]);
    let mut entries = entry(*b"GOLDWIRE   ", VOLUME, 0, 0).to_vec();
    entries.extend(writer.children(&root, 0));
    if entries.len() > ROOT_ENTRIES * 32 {
        return Err(MediaError::Content(content));
    }
    let root_at = (RESERVED_SECTORS + 2 * fat_sectors) * SECTOR;
    writer.bytes[root_at..root_at + entries.len()].copy_from_slice(&entries);
    let table: Vec<u8> = writer.fat.iter().flat_map(|value| value.to_le_bytes()).collect();
    for copy in 0..2 {
        let at = (RESERVED_SECTORS + copy * fat_sectors) * SECTOR;
        writer.bytes[at..at + table.len()].copy_from_slice(&table);
    }
    let boot = boot_sector(sectors, cluster / SECTOR, fat_sectors, serial);
    writer.bytes[..SECTOR].copy_from_slice(&boot);
    Ok(writer.bytes)
}

/// Sets `hidden sectors`: where the file system begins on its disk.
pub(super) fn set_start(image: &mut [u8], start: u32) {
    image[28..32].copy_from_slice(&start.to_le_bytes());
}

fn boot_sector(sectors: usize, per_cluster: usize, fat_sectors: usize, serial: u32) -> [u8; SECTOR] {
    let mut boot = [0; SECTOR];
    let mut put = |at: usize, value: &[u8]| boot[at..at + value.len()].copy_from_slice(value);
    put(0, &[0xeb, 0x3c, 0x90]);
    put(3, b"GOLDWIRE");
    put(11, &(SECTOR as u16).to_le_bytes());
    put(13, &[per_cluster as u8]);
    put(14, &(RESERVED_SECTORS as u16).to_le_bytes());
    put(16, &[2]);
    put(17, &(ROOT_ENTRIES as u16).to_le_bytes());
    match u16::try_from(sectors) {
        Ok(sectors) => put(19, &sectors.to_le_bytes()),
        Err(_) => put(32, &(sectors as u32).to_le_bytes()),
    }
    put(21, &[0xf8]); // a fixed disk
    put(22, &(fat_sectors as u16).to_le_bytes());
    put(24, &32_u16.to_le_bytes()); // sectors per track, heads: any will do with LBA
    put(26, &64_u16.to_le_bytes());
    put(36, &[0x80, 0, 0x29]);
    put(39, &serial.to_le_bytes());
    put(43, b"GOLDWIRE   FAT16   ");
    put(62, &[0xf4, 0xeb, 0xfd]); // hlt: nobody boots from here
    put(510, &[0x55, 0xaa]);
    boot
}

fn insert<'a>(children: &mut Vec<(String, Node<'a>)>, path: &str, bytes: &'a [u8]) {
    let Some((directory, rest)) = path.split_once('/') else {
        children.push((path.into(), Node::File(bytes)));
        return;
    };
    let at = children.iter().position(|(name, _)| name == directory).unwrap_or_else(|| {
        children.push((directory.into(), Node::Directory(Vec::new())));
        children.len() - 1
    });
    if let Node::Directory(inner) = &mut children[at].1 {
        insert(inner, rest, bytes);
    }
}

/// Clusters of everything below.
fn needed(children: &[(String, Node<'_>)], cluster: usize) -> usize {
    let of = |node: &Node<'_>| match node {
        Node::File(bytes) => bytes.len().div_ceil(cluster),
        Node::Directory(inner) => table_length(inner).div_ceil(cluster) + needed(inner, cluster),
    };
    children.iter().map(|(_, node)| of(node)).sum()
}

/// Bytes of a directory other than the root.
fn table_length(children: &[(String, Node<'_>)]) -> usize {
    let entries: usize = children.iter().map(|(name, _)| 1 + name.len().div_ceil(13)).sum();
    32 * (2 + entries)
}

struct Writer {
    bytes: Vec<u8>,
    fat: Vec<u16>,
    first: usize,
    cluster: usize,
    next: usize,
}

impl Writer {
    /// Writes what is in a directory, and gives the directory's entries. `own` is the directory's first cluster.
    fn children(&mut self, children: &[(String, Node<'_>)], own: u16) -> Vec<u8> {
        let mut entries = Vec::new();
        for (index, (name, node)) in children.iter().enumerate() {
            let (short, is_exact) = short_name(name, index);
            if !is_exact {
                entries.extend(long_name(name, &short));
            }
            let (attribute, length, cluster) = match node {
                Node::File(bytes) => (ARCHIVE, bytes.len() as u32, self.store(bytes)),
                Node::Directory(inner) => {
                    let cluster = self.allocate(table_length(inner));
                    let mut table = entry(*b".          ", DIRECTORY, cluster, 0).to_vec();
                    table.extend(entry(*b"..         ", DIRECTORY, own, 0));
                    table.extend(self.children(inner, cluster));
                    self.fill(cluster, &table);
                    (DIRECTORY, 0, cluster)
                }
            };
            entries.extend(entry(short, attribute, cluster, length));
        }
        entries
    }

    fn store(&mut self, bytes: &[u8]) -> u16 {
        if bytes.is_empty() {
            return 0;
        }
        let cluster = self.allocate(bytes.len());
        self.fill(cluster, bytes);
        cluster
    }

    /// A chain of clusters in a row; gives the first.
    fn allocate(&mut self, length: usize) -> u16 {
        let (start, count) = (self.next, length.div_ceil(self.cluster));
        for at in start..start + count {
            self.fat[at] = if at + 1 == start + count { 0xffff } else { at as u16 + 1 };
        }
        self.next += count;
        start as u16
    }

    fn fill(&mut self, cluster: u16, bytes: &[u8]) {
        let at = self.first * SECTOR + (usize::from(cluster) - 2) * self.cluster;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

fn entry(name: [u8; 11], attribute: u8, cluster: u16, length: u32) -> [u8; 32] {
    let mut entry = [0; 32];
    entry[..11].copy_from_slice(&name);
    entry[11] = attribute;
    for at in [16, 18, 24] {
        entry[at..at + 2].copy_from_slice(&DATE.to_le_bytes());
    }
    entry[26..28].copy_from_slice(&cluster.to_le_bytes());
    entry[28..].copy_from_slice(&length.to_le_bytes());
    entry
}

/// The name in eight and three characters, and whether that is the whole name. Others get their place in the directory
/// as a number, which makes them unique there.
fn short_name(name: &str, index: usize) -> ([u8; 11], bool) {
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let is_plain = |part: &str| part.bytes().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
    let is_exact = stem.len() <= 8 && extension.len() <= 3 && is_plain(stem) && is_plain(extension);
    let keep = |part: &str| -> Vec<u8> {
        part.bytes().filter(u8::is_ascii_alphanumeric).map(|c| c.to_ascii_uppercase()).collect()
    };
    let (mut stem, extension) = (keep(stem), keep(extension));
    if !is_exact {
        let tail = format!("~{}", index + 1);
        stem.truncate(8 - tail.len());
        stem.extend(tail.bytes());
    }
    let mut short = [b' '; 11];
    short[..stem.len()].copy_from_slice(&stem);
    let length = extension.len().min(3);
    short[8..8 + length].copy_from_slice(&extension[..length]);
    (short, is_exact)
}

/// The entries of a long name, which come before the short one, last part first.
fn long_name(name: &str, short: &[u8; 11]) -> Vec<u8> {
    let sum = short.iter().fold(0_u8, |sum, byte| sum.rotate_right(1).wrapping_add(*byte));
    let mut units: Vec<u16> = name.encode_utf16().collect();
    if !units.len().is_multiple_of(13) {
        units.push(0);
        units.resize(units.len().next_multiple_of(13), 0xffff);
    }
    let count = units.len() / 13;
    let mut entries = Vec::new();
    for (index, part) in units.chunks(13).enumerate().rev() {
        let mut entry = [0; 32];
        entry[0] = index as u8 + 1 + if index + 1 == count { 0x40 } else { 0 };
        entry[11] = LONG_NAME;
        entry[13] = sum;
        let places = (1..11).step_by(2).chain((14..26).step_by(2)).chain((28..32).step_by(2));
        for (at, unit) in places.zip(part) {
            entry[at..at + 2].copy_from_slice(&unit.to_le_bytes());
        }
        entries.extend(entry);
    }
    entries
}
