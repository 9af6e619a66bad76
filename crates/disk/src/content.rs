//! What a file is, by its bytes: the containers that we read, those and other files that we know by name and do not
//! read, and what nobody claims.
//!
//! A disk image that is taken for a plain disk is copied, verified and signed as what it is not. So everything that
//! people are known to bring where a disk is asked for has a line in [`FOREIGN`], and the judgement looks at a few
//! kilobytes at either end, whatever the file's size.

use crate::Result;
use crate::host::HostFile;
use crate::image::Format;
use crate::promise::Promise;
use crate::vhd;

/// Bytes at the start that are looked at.
const HEAD_LENGTH: usize = 4096;
/// The trailer of an Apple disk image, in bytes.
const KOLY_LENGTH: u64 = 512;

/// What a file's bytes say that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A container that we read, or one that claims to be.
    Container(Format),
    /// Something that has a name and is not read.
    Foreign(&'static Foreign),
    /// It begins like a QCOW2 image and ends like a VHD, and its name does not decide.
    Both,
    /// No bytes at all.
    Empty,
    /// Nothing that is known: what a plain disk looks like.
    Plain,
}

/// A kind of file that is known by name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Foreign {
    /// With its article: "a VirtualBox disk image (VDI)".
    pub(crate) what: &'static str,
    /// What turns it into something that we read.
    pub(crate) remedy: Remedy,
}

/// How somebody gets a disk that we read out of a foreign file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// `qemu-img convert` reads it.
    Convert,
    /// This command unpacks it, with the file's name behind it.
    Unpack(&'static str),
    /// What this sentence says.
    Other(&'static str),
}

impl Content {
    /// Looks at the file in `host`, whose name makes `promise`.
    ///
    /// What a fixed VHD begins with, and what a QCOW2 image ends in, is written by its guest. So where both ends claim
    /// something, the name decides, and a name that promises neither leaves it open.
    pub(crate) fn of(host: &HostFile, promise: Option<Promise>) -> Result<Self> {
        let length = host.length()?;
        if length == 0 {
            return Ok(Self::Empty);
        }
        let mut head = vec![0; HEAD_LENGTH.min(usize::try_from(length).unwrap_or(HEAD_LENGTH))];
        host.read(&mut head, 0, "the first bytes")?;
        let front = match foreign_head(&head) {
            Some(foreign) => Some(Self::Foreign(foreign)),
            None => head.starts_with(b"QFI\xfb").then_some(Self::Container(Format::Qcow2)),
        };
        let vhd = vhd::detect(host)?.map(|kind| Self::Container(kind.format()));
        match (front, vhd) {
            (Some(_), Some(vhd)) if promise == Some(Promise::Vhd) => return Ok(vhd),
            (Some(Self::Container(_)), Some(_)) if promise != Some(Promise::Qcow2) => {
                return Ok(Self::Both);
            }
            (Some(front), _) => return Ok(front),
            (None, Some(vhd)) => return Ok(vhd),
            (None, None) => {}
        }
        if length >= KOLY_LENGTH {
            let mut trailer = [0; KOLY_LENGTH as usize];
            host.read(&mut trailer, length - KOLY_LENGTH, "the last bytes")?;
            if is_apple_trailer(&trailer) {
                return Ok(Self::Foreign(&APPLE));
            }
        }
        Ok(if is_text(&head) { Self::Foreign(&TEXT) } else { Self::Plain })
    }
}

const APPLE: Foreign = Foreign { what: "an Apple disk image (DMG)", remedy: Remedy::Convert };
const TEXT: Foreign = Foreign {
    what: "a text file",
    remedy: Remedy::Other("look into it: what a server says instead of a file is often a page of text"),
};
const HTML: Foreign = Foreign {
    what: "a page of HTML",
    remedy: Remedy::Other("look into it: a server answered with a page where a disk was asked for"),
};
const QCOW1: Foreign = Foreign { what: "a QEMU image of the first version (QCOW)", remedy: Remedy::Convert };
const VMDK_DESCRIPTOR: Foreign =
    Foreign { what: "the descriptor of a VMware disk image (VMDK)", remedy: Remedy::Convert };
const XVA: Foreign = Foreign {
    what: "a virtual machine exported by XenServer (XVA)",
    remedy: Remedy::Other("import it, and export its disk as a VHD: xe vdi-export uuid=UUID format=vhd"),
};
const OVA: Foreign = Foreign {
    what: "a virtual appliance (OVA)",
    remedy: Remedy::Other("take the disk out of it (tar -xf FILE) and convert that with qemu-img"),
};
const TAR: Foreign = Foreign { what: "a tar archive", remedy: Remedy::Unpack("tar -xf") };
const LZMA: Foreign = Foreign { what: "a file compressed by lzma", remedy: Remedy::Unpack("xz -dk") };

/// Magic bytes at an offset, and what they say.
pub(crate) type Magic = (usize, &'static [u8], Foreign);

const fn magic(at: usize, bytes: &'static [u8], what: &'static str, remedy: Remedy) -> Magic {
    (at, bytes, Foreign { what, remedy })
}

const NOTHING_READS: Remedy = Remedy::Other("have the program that made it write a raw, VHD or QCOW2 image");

/// What is known by the bytes at one place. Longer magic goes before shorter.
pub(crate) static FOREIGN: &[Magic] = &[
    magic(0, b"vhdxfile", "a Hyper-V disk image of the second kind (VHDX)", Remedy::Convert),
    magic(0, b"KDMV", "a VMware disk image (VMDK)", Remedy::Convert),
    magic(0, b"COWD", "a VMware ESX disk image (VMDK, COWD)", Remedy::Convert),
    magic(
        0,
        b"\xbe\xba\xfe\xca\0\0\0\0",
        "a VMware disk image (VMDK, space-efficient sparse)",
        Remedy::Convert,
    ),
    magic(64, b"\x7f\x10\xda\xbe", "a VirtualBox disk image (VDI)", Remedy::Convert),
    magic(0, b"QED\0", "a QEMU disk image of the kind QED", Remedy::Convert),
    magic(0, b"WithoutFreeSpace", "a Parallels disk image", Remedy::Convert),
    magic(0, b"WithouFreSpacExt", "a Parallels disk image", Remedy::Convert),
    magic(0, b"Bochs Virtual HD Image", "a Bochs disk image", Remedy::Convert),
    magic(0, b"#!/bin/sh\n#V2.0 Format", "a compressed loop image (cloop)", Remedy::Convert),
    magic(0, b"encrcdsa", "an encrypted Apple disk image", NOTHING_READS),
    magic(0, b"sprs", "an Apple sparse image", NOTHING_READS),
    magic(
        0,
        b"LUKS\xba\xbe",
        "a disk encrypted by LUKS",
        Remedy::Other("open it with cryptsetup, and give the opened device"),
    ),
    magic(0, b"VMA\0", "a virtual machine backed up by Proxmox (VMA)", Remedy::Unpack("vma extract")),
    magic(0, b"MSWIM\0\0\0", "a Windows image file (WIM)", NOTHING_READS),
    magic(0, b"partclone-image", "an image made by partclone", NOTHING_READS),
    magic(0, b"EVF\x09\x0d\x0a\xff\0", "an EnCase image (E01)", NOTHING_READS),
    magic(0, b"EVF2\x0d\x0a\x81\0", "an EnCase image (Ex01)", NOTHING_READS),
    magic(0, b"AFF10\x0d\x0a\0", "a forensic image (AFF)", NOTHING_READS),
    magic(0, b"\x3a\xff\x26\xed", "an Android sparse image", Remedy::Unpack("simg2img")),
    magic(0, b"\x1f\x8b\x08", "a file compressed by gzip", Remedy::Unpack("gzip -dk")),
    magic(0, b"\xfd7zXZ\0", "a file compressed by xz", Remedy::Unpack("xz -dk")),
    magic(0, b"\x28\xb5\x2f\xfd", "a file compressed by zstd", Remedy::Unpack("zstd -dk")),
    magic(0, b"\x04\x22\x4d\x18", "a file compressed by lz4", Remedy::Unpack("lz4 -dk")),
    magic(0, b"\x02\x21\x4c\x18", "a file compressed by lz4", Remedy::Unpack("lz4 -dk")),
    magic(0, b"LZIP", "a file compressed by lzip", Remedy::Unpack("lzip -dk")),
    magic(0, b"\x89LZO\0\x0d\x0a\x1a\x0a", "a file compressed by lzop", Remedy::Unpack("lzop -d")),
    magic(4, b"1AY&SY", "a file compressed by bzip2", Remedy::Unpack("bzip2 -dk")),
    magic(4, b"\x17\x72\x45\x38\x50\x90", "a file compressed by bzip2", Remedy::Unpack("bzip2 -dk")),
    magic(0, b"PK\x03\x04", "a zip archive", Remedy::Unpack("unzip")),
    magic(0, b"PK\x05\x06", "an empty zip archive", NOTHING_READS),
    magic(0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", Remedy::Unpack("7z x")),
    magic(0, b"Rar!\x1a\x07", "a RAR archive", Remedy::Unpack("unrar x")),
    magic(0, b"MSCF\0\0\0\0", "a Windows cabinet", Remedy::Unpack("cabextract")),
    magic(0, b"070701", "a cpio archive", Remedy::Unpack("cpio -idF")),
    magic(0, b"!<arch>\n", "an ar archive or Debian package", Remedy::Unpack("ar x")),
    magic(0, b"\xed\xab\xee\xdb", "an RPM package", NOTHING_READS),
    magic(0, b"%PDF-", "a PDF document", NOTHING_READS),
    magic(0, b"\x7fELF", "a Linux program", NOTHING_READS),
];

fn foreign_head(head: &[u8]) -> Option<&'static Foreign> {
    let has = |at: usize, bytes: &[u8]| head.get(at..).is_some_and(|rest| rest.starts_with(bytes));
    let by_magic = FOREIGN.iter().find(|(at, bytes, _)| has(*at, bytes));
    if let Some((_, _, foreign)) = by_magic {
        // Six bytes in the middle are bzip2's only behind its head.
        let is_bzip2 = head.starts_with(b"BZh") && head.get(3).is_some_and(u8::is_ascii_digit);
        if !foreign.what.contains("bzip2") || is_bzip2 {
            return Some(foreign);
        }
    }
    // Any of sixteen numbers begins a frame that zstd and lz4 skip; a compressed file may begin with one.
    if head.get(1..4) == Some(b"\x2a\x4d\x18") && head[0] & 0xf0 == 0x50 {
        return FOREIGN.iter().map(|(_, _, foreign)| foreign).find(|foreign| foreign.what.contains("zstd"));
    }
    if head.starts_with(b"QFI\xfb\0\0\0\x01") {
        return Some(&QCOW1);
    }
    if is_lzma(head) {
        return Some(&LZMA);
    }
    if let Some(first) = tar_member(head) {
        return Some(match () {
            () if first == b"ova.xml" => &XVA,
            () if first.ends_with(b".ovf") => &OVA,
            () => &TAR,
        });
    }
    let text = skip_space(head);
    let begins = |word: &[u8]| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    if begins(b"# disk descriptorfile") {
        return Some(&VMDK_DESCRIPTOR);
    }
    (begins(b"<!doctype html") || begins(b"<html") || begins(b"<head")).then_some(&HTML)
}

/// Behind a byte order mark and white space.
fn skip_space(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start()
}

/// The name of the first member, if `head` begins with a tar header: its checksum proves it, also of archives from
/// before the magic `ustar`.
fn tar_member(head: &[u8]) -> Option<&[u8]> {
    let header = head.get(..512)?;
    let stored = &header[148..156];
    let digits: Vec<u8> = stored.iter().copied().filter(u8::is_ascii_digit).collect();
    let is_number = stored.iter().all(|byte| matches!(byte, b'0'..=b'7' | b' ' | 0));
    let stored = u32::from_str_radix(str::from_utf8(&digits).ok()?, 8).ok().filter(|_| is_number)?;
    let sum: u32 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum();
    let name = header[..100].split(|byte| *byte == 0).next()?;
    (stored == sum && !name.is_empty()).then_some(name)
}

/// The header of lzma alone: the usual properties byte, a dictionary size that the tools make, a size that is unknown
/// or small, and the first byte of the code, which is always zero.
fn is_lzma(head: &[u8]) -> bool {
    let Some(&[0x5d, a, b, c, d, ref size @ .., 0]) = head.first_chunk::<14>() else { return false };
    let dictionary = u32::from_le_bytes([a, b, c, d]);
    let mut bytes = [0; 8];
    bytes.copy_from_slice(size);
    let size = u64::from_le_bytes(bytes);
    dictionary >= 4096
        && (dictionary.is_power_of_two()
            || (dictionary / 3).is_power_of_two() && dictionary.is_multiple_of(3))
        && (size == u64::MAX || size < 1 << 40)
}

/// `koly`, version 4, 512 bytes.
fn is_apple_trailer(trailer: &[u8]) -> bool {
    trailer.starts_with(b"koly\0\0\0\x04\0\0\x02\0") || trailer.ends_with(b"cdsaencr")
}

/// Whether the beginning is nothing but text: no disk begins so, whereas error messages, checksums, descriptors and
/// pointers to large files do. One character over and over is a pattern and no text.
fn is_text(head: &[u8]) -> bool {
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        let is_be = head.starts_with(b"\xfe\xff");
        let units = head[2..].chunks_exact(2).map(|pair| match is_be {
            true => u16::from_be_bytes([pair[0], pair[1]]),
            false => u16::from_le_bytes([pair[0], pair[1]]),
        });
        return head.len() >= 4
            && char::decode_utf16(units).all(|unit| unit.map_or(head.len() == HEAD_LENGTH, is_printed));
    }
    let text = match str::from_utf8(head) {
        Ok(text) => text,
        // A character may be cut by the end of what was read.
        Err(error) if error.error_len().is_none() && head.len() == HEAD_LENGTH => {
            str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    let mut characters = text.chars();
    let first = characters.next();
    text.chars().all(is_printed) && (characters.any(|other| Some(other) != first) || text.len() < 16)
}

fn is_printed(character: char) -> bool {
    !character.is_control() || matches!(character, '\n' | '\r' | '\t' | '\x0c' | '\x1b')
}
