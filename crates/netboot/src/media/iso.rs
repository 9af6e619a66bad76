//! ISO 9660 images with El Torito boot entries for BIOS and UEFI, which boot from a USB stick too (ECMA-119; El Torito
//! 1.0; UEFI 2.10 §13.3.2).
//!
//! ```text
//! sector 0   master boot record: our loader, one partition of type EFI over the EFI image
//! 16         primary volume descriptor
//! 17         boot record, names the catalog
//! 18         end of descriptors
//! 19, 20     path tables
//! 21         root directory
//! 22         boot catalog: BIOS (our loader), UEFI (the EFI image)
//! 23         boot image for BIOS: our loader
//! 24 …       files, the EFI image last
//! ```
//!
//! Our own rather than a crate's: the same files have to give the same bytes, and the loader's sector needs the place
//! of its payload.

use super::loader::{self, Payload};

const SECTOR: usize = 2048;
const ROOT: u32 = 21;
const CATALOG: u32 = 22;
const LOADER: u32 = 23;
/// Some drives read ahead past the end; every writer leaves as much.
const RUN_OUT_SECTORS: usize = 150;
/// 2026-01-01 00:00:00 UTC, ECMA-119 §9.1.5 and §8.4.26.1.
const DATE: [u8; 7] = [126, 1, 1, 0, 0, 0, 0];
const LONG_DATE: &[u8; 17] = b"2026010100000000\0";

/// What is on the image.
pub(super) struct Content<'a> {
    /// For BIOS, if it is to boot there.
    pub(super) payload: Option<&'a Payload>,
    /// A FAT file system for UEFI, if it is to boot there.
    pub(super) efi: Option<&'a [u8]>,
    /// The script, for people to read.
    pub(super) script: &'a [u8],
    /// The disk's signature.
    pub(super) signature: u32,
}

/// The image.
pub(super) fn image(content: &Content<'_>) -> Vec<u8> {
    let mut files: Vec<(&str, &[u8])> = vec![("AUTOEXEC.IPXE;1", content.script)];
    files.extend(content.payload.map(|payload| ("BIOS.IMG;1", payload.bytes.as_slice())));
    files.extend(content.efi.map(|efi| ("EFI.IMG;1", efi)));
    let mut next = LOADER + 1;
    let places: Vec<u32> = files
        .iter()
        .map(|(_, bytes)| {
            let place = next;
            next += bytes.len().div_ceil(SECTOR) as u32;
            place
        })
        .collect();
    let place_of =
        |name: &str| files.iter().zip(&places).find(|((known, _), _)| *known == name).map(|(_, at)| *at);
    let sectors = next as usize + RUN_OUT_SECTORS;
    let mut image = vec![0; sectors * SECTOR];
    let mut put = |sector: u32, bytes: &[u8]| {
        let at = sector as usize * SECTOR;
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let efi = content.efi.zip(place_of("EFI.IMG;1"));
    let loader = content.payload.zip(place_of("BIOS.IMG;1"));

    let on_disk = loader.map_or(Vec::new(), |(payload, at)| payload.loader(at * 4, 512));
    let (start, count) = efi.map_or((0, 0), |(bytes, at)| (at * 4, bytes.len() as u32 / 512));
    put(0, &loader::boot_record(&on_disk, content.signature, start, count));
    put(16, &primary(sectors as u32));
    let mut boot = descriptor(0);
    boot[7..30].copy_from_slice(b"EL TORITO SPECIFICATION");
    boot[0x47..0x4b].copy_from_slice(&CATALOG.to_le_bytes());
    put(17, &boot);
    put(18, &descriptor(255));
    for (sector, bytes) in [(19, ROOT.to_le_bytes()), (20, ROOT.to_be_bytes())] {
        let number = if sector == 19 { 1_u16.to_le_bytes() } else { 1_u16.to_be_bytes() };
        put(sector, &[&[1, 0][..], &bytes, &number, &[0, 0]].concat());
    }
    let mut directory = [record(b"\0", ROOT, SECTOR, true), record(b"\x01", ROOT, SECTOR, true)].concat();
    // Records are sorted by name (ECMA-119 §9.3).
    let mut records: Vec<(&str, u32, usize)> =
        files.iter().zip(&places).map(|((name, bytes), at)| (*name, *at, bytes.len())).collect();
    records.push(("BOOT.CAT;1", CATALOG, SECTOR));
    records.sort_unstable();
    for (name, at, length) in records {
        directory.extend(record(name.as_bytes(), at, length, false));
    }
    put(ROOT, &directory);
    put(CATALOG, &catalog(loader.is_some(), efi.map(|(bytes, at)| (at, bytes.len()))));
    if let Some((payload, at)) = loader {
        put(LOADER, &payload.loader(at, SECTOR));
    }
    for ((_, bytes), at) in files.iter().zip(&places) {
        put(*at, bytes);
    }
    image
}

/// El Torito 1.0 §2: validation entry, default entry, and a section for another platform (§2.3, §2.4).
fn catalog(is_bios: bool, efi: Option<(u32, usize)>) -> Vec<u8> {
    const BIOS: u8 = 0;
    const EFI: u8 = 0xef;
    let platform = if is_bios { BIOS } else { EFI };
    let mut validation = [0; 32];
    validation[..2].copy_from_slice(&[1, platform]);
    validation[4..12].copy_from_slice(b"GOLDWIRE");
    validation[30..].copy_from_slice(&[0x55, 0xaa]);
    let sum = validation
        .chunks(2)
        .fold(0_u16, |sum, pair| sum.wrapping_add(u16::from_le_bytes([pair[0], pair[1]])));
    validation[28..30].copy_from_slice(&0_u16.wrapping_sub(sum).to_le_bytes());
    let entry = |at: u32, sectors: u16| {
        let mut entry = [0; 32];
        entry[0] = 0x88; // bootable, without emulation of a disk
        entry[6..8].copy_from_slice(&sectors.to_le_bytes());
        entry[8..12].copy_from_slice(&at.to_le_bytes());
        entry
    };
    // Counted in 512 bytes; 0 means to the medium's end (UEFI 2.10 §13.3.2.1), for what is larger than 32 MiB.
    let efi = efi.map(|(at, length)| entry(at, u16::try_from(length / 512).unwrap_or(0)));
    let mut catalog = validation.to_vec();
    if is_bios {
        // Four sectors of 512 bytes, as every boot disc has: BIOSes are reliable with no other number.
        catalog.extend(entry(LOADER, 4));
        if let Some(efi) = efi {
            let mut header = [0; 32];
            header[..4].copy_from_slice(&[0x91, EFI, 1, 0]);
            catalog.extend(header);
            catalog.extend(efi);
        }
    } else if let Some(efi) = efi {
        catalog.extend(efi);
    }
    catalog
}

fn descriptor(kind: u8) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR];
    bytes[0] = kind;
    bytes[1..7].copy_from_slice(b"CD001\x01");
    bytes
}

/// ECMA-119 §8.4.
fn primary(sectors: u32) -> Vec<u8> {
    let mut bytes = descriptor(1);
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(8, &[b' '; 64]);
    put(40, b"GOLDWIRE");
    put(80, &both(sectors));
    put(120, &[1, 0, 0, 1, 1, 0, 0, 1]); // one volume, the first
    put(128, &[0, 8, 8, 0]); // 2048
    put(132, &both(10)); // the path table's length
    put(140, &19_u32.to_le_bytes());
    put(148, &20_u32.to_be_bytes());
    put(156, &record(b"\0", ROOT, SECTOR, true));
    put(190, &[b' '; 623]);
    put(574, b"GOLDWIRE");
    for at in [813, 830] {
        put(at, LONG_DATE);
    }
    for at in [847, 864] {
        put(at, b"0000000000000000\0"); // no end of validity, none of its beginning
    }
    put(881, &[1]);
    bytes
}

/// ECMA-119 §9.1.
fn record(name: &[u8], at: u32, length: usize, is_directory: bool) -> Vec<u8> {
    let mut bytes = vec![0, 0];
    bytes.extend(both(at));
    bytes.extend(both(length as u32));
    bytes.extend(DATE);
    bytes.extend([if is_directory { 2 } else { 0 }, 0, 0, 1, 0, 0, 1, name.len() as u8]);
    bytes.extend(name);
    if !bytes.len().is_multiple_of(2) {
        bytes.push(0);
    }
    bytes[0] = bytes.len() as u8;
    bytes
}

/// A number in both byte orders (ECMA-119 §7.3.3).
fn both(value: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&value.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_be_bytes());
    bytes
}
