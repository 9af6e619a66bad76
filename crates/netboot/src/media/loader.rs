//! iPXE on a BIOS, without a foreign boot loader: our loader reads the pieces of iPXE's Linux-style image
//! (`ipxe.lkrn`) and the script, and enters iPXE as a Linux boot loader would (Linux boot protocol 2.07). The script is
//! the initial RAM disk, which iPXE of every age runs.
//!
//! ```text
//! payload: [setup code][iPXE proper][script], each padded to whole chunks of 32 KiB
//! memory:  0x10000      0x100000     0xe00000
//! ```
//!
//! The same 278 bytes serve as a disk's master boot record and as El Torito boot image: a BIOS reads both with INT 13h,
//! in sectors of 512 or 2048 bytes.

use super::MediaError;

/// What the loader reads at once.
const CHUNK: usize = 32 * 1024;
/// Where the loader puts the three pieces. The script lies below 16 MiB for BIOSes that move no further; iPXE itself
/// moves to just below it.
const ADDRESSES: [u32; 3] = [0x1_0000, 0x10_0000, 0xe0_0000];
/// Between iPXE and the script there must be room for iPXE unpacked, which is about four times its size.
const PROGRAM_MAX: usize = 2 << 20;
/// Between the script and the old hole at 15 MiB.
const SCRIPT_MAX: usize = 256 * 1024;
/// The setup code ends where the loader's buffer begins.
const SETUP_MAX: usize = 0x1_0000;
/// A Linux image without this field has four sectors of setup.
const SETUP_SECTORS_USUAL: usize = 4;
/// Where a partition table begins in a boot record, behind four bytes of disk signature and two of nothing.
pub(super) const CODE_MAX: usize = 440;

/// `loader.S`, assembled for address 0x7c00.
const CODE: [u8; 278] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb, 0xfc, 0xea, 0x13, 0x7c,
    0x00, 0x00, 0x88, 0x16, 0xcf, 0x7c, 0xbb, 0x16, 0x7d, 0x66, 0x8b, 0x07, 0x66, 0x85, 0xc0, 0x74, 0x61,
    0x66, 0xa3, 0xdc, 0x7c, 0x66, 0x8b, 0x47, 0x04, 0x66, 0xa3, 0xd0, 0x7c, 0x8b, 0x4f, 0x08, 0x53, 0x51,
    0xa1, 0x14, 0x7d, 0xa3, 0xd6, 0x7c, 0xbe, 0xd4, 0x7c, 0x8a, 0x16, 0xcf, 0x7c, 0xb4, 0x42, 0xcd, 0x13,
    0x72, 0x4d, 0x66, 0xa1, 0xd0, 0x7c, 0xa3, 0xfe, 0x7c, 0x66, 0xc1, 0xe8, 0x10, 0xa2, 0x00, 0x7d, 0x88,
    0x26, 0x03, 0x7d, 0x1e, 0x07, 0xbe, 0xe4, 0x7c, 0xb9, 0x00, 0x40, 0xb4, 0x87, 0xcd, 0x15, 0x72, 0x2d,
    0x66, 0x81, 0x06, 0xd0, 0x7c, 0x00, 0x80, 0x00, 0x00, 0x66, 0x0f, 0xb7, 0x06, 0x14, 0x7d, 0x66, 0x01,
    0x06, 0xdc, 0x7c, 0x59, 0x5b, 0xe2, 0xb3, 0x83, 0xc3, 0x0a, 0xeb, 0x97, 0xb8, 0x00, 0x10, 0x8e, 0xd8,
    0x8e, 0xc0, 0x8e, 0xe0, 0x8e, 0xe8, 0xea, 0x00, 0x00, 0x20, 0x10, 0xbe, 0xa7, 0x7c, 0xac, 0x84, 0xc0,
    0x74, 0x09, 0xbb, 0x07, 0x00, 0xb4, 0x0e, 0xcd, 0x10, 0xeb, 0xf2, 0xf4, 0xeb, 0xfd, 0x67, 0x6f, 0x6c,
    0x64, 0x77, 0x69, 0x72, 0x65, 0x3a, 0x20, 0x63, 0x61, 0x6e, 0x6e, 0x6f, 0x74, 0x20, 0x72, 0x65, 0x61,
    0x64, 0x20, 0x74, 0x68, 0x65, 0x20, 0x62, 0x6f, 0x6f, 0x74, 0x20, 0x6d, 0x65, 0x64, 0x69, 0x75, 0x6d,
    0x0d, 0x0a, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x20, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0x00, 0x00, 0x02, 0x93, 0x00, 0x00, 0xff, 0xff, 0x00,
    0x00, 0x00, 0x93, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];
/// Where `step` is in it; `pieces` follows.
const STEP: usize = CODE.len() - 2;

/// What the loader reads: iPXE and the script, laid out in chunks.
pub(super) struct Payload {
    /// The bytes; a multiple of 32 KiB.
    pub(super) bytes: Vec<u8>,
    chunks: [usize; 3],
}

impl Payload {
    /// From an `ipxe.lkrn` and the script that it shall run.
    pub(super) fn new(program: &[u8], script: &[u8]) -> Result<Self, MediaError> {
        let wrong = |why| MediaError::Program { name: "ipxe.lkrn".into(), why };
        // Linux boot protocol: 0x1f1 setup_sects, 0x1fe boot flag, 0x202 "HdrS", 0x206 version.
        if program.get(0x202..0x206) != Some(b"HdrS") || program.len() < 0x260 {
            return Err(wrong("it has no Linux boot header"));
        }
        let sectors = match usize::from(program[0x1f1]) {
            0 => SETUP_SECTORS_USUAL,
            sectors => sectors,
        };
        let setup_length = 512 * (sectors + 1);
        if setup_length > SETUP_MAX || setup_length >= program.len() {
            return Err(wrong("its setup code is larger than the file or than 64 KiB"));
        }
        if program.len() > PROGRAM_MAX {
            return Err(wrong("it is larger than 2 MiB"));
        }
        if script.len() > SCRIPT_MAX {
            return Err(MediaError::ScriptSize(script.len()));
        }
        let mut setup = program[..setup_length].to_vec();
        setup[0x210] = 0xff; // type_of_loader: one without a number
        setup[0x218..0x21c].copy_from_slice(&ADDRESSES[2].to_le_bytes()); // ramdisk_image
        setup[0x21c..0x220].copy_from_slice(&(script.len() as u32).to_le_bytes()); // ramdisk_size
        let mut bytes = Vec::new();
        let chunks = [&setup, &program[setup_length..], script].map(|piece| {
            bytes.extend_from_slice(piece);
            bytes.resize(bytes.len().next_multiple_of(CHUNK), 0);
            piece.len().div_ceil(CHUNK)
        });
        Ok(Self { bytes, chunks })
    }

    /// The loader for this payload when it begins at sector `start` of a medium with sectors of `sector_size` bytes.
    pub(super) fn loader(&self, start: u32, sector_size: usize) -> Vec<u8> {
        let step = CHUNK / sector_size;
        let mut code = CODE.to_vec();
        code[STEP..].copy_from_slice(&(step as u16).to_le_bytes());
        let mut sector = start;
        for (count, address) in self.chunks.into_iter().zip(ADDRESSES) {
            code.extend_from_slice(&sector.to_le_bytes());
            code.extend_from_slice(&address.to_le_bytes());
            code.extend_from_slice(&(count as u16).to_le_bytes());
            sector += (count * step) as u32;
        }
        code.extend_from_slice(&[0; 4]);
        debug_assert!(code.len() <= CODE_MAX);
        code
    }
}

/// A master boot record: code, a signature for the disk and one partition of type EFI (0xef), marked active because
/// some BIOSes boot no other disk. Places are in sectors of 512 bytes.
pub(super) fn boot_record(code: &[u8], signature: u32, start: u32, count: u32) -> [u8; 512] {
    let mut record = [0; 512];
    record[..code.len()].copy_from_slice(code);
    record[440..444].copy_from_slice(&signature.to_le_bytes());
    let entry = &mut record[446..462];
    entry[0] = 0x80;
    // Cylinders, heads and sectors cannot say where it is, and all ones says so.
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = 0xef;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&start.to_le_bytes());
    entry[12..].copy_from_slice(&count.to_le_bytes());
    record[510..].copy_from_slice(&[0x55, 0xaa]);
    record
}

#[cfg(test)]
pub(super) const ASSEMBLED: &[u8] = &CODE;
