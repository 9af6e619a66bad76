//! A script for iPXE programs of UEFI that read none. From 1.21 on (2021) iPXE runs `autoexec.ipxe` from where it was
//! loaded; the program that Debian 12 has is of 2019 and starts only what DHCP names. It does have a prompt and reads
//! `file:`, so a few bytes of ours, put in front of it in the copy on the medium, press Ctrl-B and type the one line
//! that runs the script. The keyboard is the firmware's again after the line's last character.
//!
//! A signed program cannot be changed and is not: those are 2.0 or later and read `autoexec.ipxe`.

/// Ctrl-B at "Press Ctrl-B for the iPXE command line", then the command.
const LINE: &[u8] = b"\x02chain file:/autoexec.ipxe\r\0";

/// `keystroke_stub.S`, assembled.
const CODE: [u8; 252] = [
    0x51, 0x52, 0x53, 0x48, 0x83, 0xec, 0x40, 0x48, 0x89, 0xd3, 0x48, 0x89, 0x15, 0xbf, 0x00, 0x00, 0x00,
    0x48, 0x8b, 0x42, 0x30, 0x48, 0x89, 0x05, 0xbc, 0x00, 0x00, 0x00, 0x48, 0x8d, 0x05, 0xa7, 0x00, 0x00,
    0x00, 0x48, 0x89, 0x05, 0xb6, 0x00, 0x00, 0x00, 0x48, 0x8d, 0x05, 0x61, 0x00, 0x00, 0x00, 0x48, 0x89,
    0x05, 0xb0, 0x00, 0x00, 0x00, 0x48, 0x8b, 0x43, 0x60, 0xb9, 0x00, 0x01, 0x00, 0x00, 0xba, 0x10, 0x00,
    0x00, 0x00, 0x4c, 0x8d, 0x05, 0x2e, 0x00, 0x00, 0x00, 0x45, 0x31, 0xc9, 0x4c, 0x8d, 0x15, 0x99, 0x00,
    0x00, 0x00, 0x4c, 0x89, 0x54, 0x24, 0x20, 0xff, 0x50, 0x50, 0x48, 0x85, 0xc0, 0x75, 0x0b, 0x48, 0x8d,
    0x05, 0x75, 0x00, 0x00, 0x00, 0x48, 0x89, 0x43, 0x30, 0x48, 0x83, 0xc4, 0x40, 0x5b, 0x5a, 0x59, 0xe9,
    0x00, 0x00, 0x00, 0x00, 0x48, 0x83, 0xec, 0x28, 0x48, 0x8b, 0x05, 0x4a, 0x00, 0x00, 0x00, 0x48, 0x8b,
    0x40, 0x60, 0xff, 0x50, 0x68, 0x48, 0x83, 0xc4, 0x28, 0xc3, 0x8b, 0x05, 0x60, 0x00, 0x00, 0x00, 0x4c,
    0x8d, 0x05, 0x5d, 0x00, 0x00, 0x00, 0x41, 0x0f, 0xb6, 0x0c, 0x00, 0xc1, 0xe1, 0x10, 0x89, 0x0a, 0xff,
    0xc0, 0x89, 0x05, 0x47, 0x00, 0x00, 0x00, 0x41, 0x80, 0x3c, 0x00, 0x00, 0x75, 0x12, 0x48, 0x8b, 0x05,
    0x19, 0x00, 0x00, 0x00, 0x48, 0x8b, 0x0d, 0x0a, 0x00, 0x00, 0x00, 0x48, 0x89, 0x41, 0x30, 0x31, 0xc0,
    0xc3, 0x0f, 0x1f, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];
/// Behind the displacement of the jump to the program's own entry.
const JUMP_END: usize = 0x7b;

/// Whether the program reads `autoexec.ipxe` itself: the name is in it, in one character set or the other.
pub(super) fn reads_script(program: &[u8]) -> bool {
    let wide: Vec<u8> = "autoexec.ipxe".encode_utf16().flat_map(u16::to_le_bytes).collect();
    contains(program, b"autoexec.ipxe") || contains(program, &wide)
}

pub(super) fn contains(program: &[u8], text: &[u8]) -> bool {
    program.windows(text.len()).any(|window| window == text)
}

/// The program with the keystroke_stub in front of it: appended to its last section (PE/COFF specification, §3–4), which
/// becomes executable. None if the program is not laid out so that something can be appended.
pub(super) fn with_keystrokes(program: &[u8]) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u32::from_le_bytes(program.get(at..at + 4)?.try_into().ok()?));
    let half = |at: usize| Some(u16::from_le_bytes(program.get(at..at + 2)?.try_into().ok()?));
    let header = usize::try_from(word(0x3c)?).ok().filter(|at| *at < program.len())?;
    let optional = header + 24;
    if program.get(header..header + 4)? != b"PE\0\0" || half(optional)? != 0x20b {
        return None;
    }
    let sections = usize::from(half(header + 6)?);
    let last = optional + usize::from(half(header + 20)?) + 40 * sections.checked_sub(1)?;
    let (address, raw_size, raw_start) = (word(last + 12)?, word(last + 16)?, word(last + 20)?);
    let is_at_end = raw_start.checked_add(raw_size)? as usize == program.len() && raw_size >= word(last + 8)?;
    if !is_at_end {
        return None;
    }
    let mut bytes = program.to_vec();
    // Its data are quadwords; where the section begins is aligned for them in the file and in memory.
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    let place = address + (bytes.len() as u32 - raw_start);
    let entry = word(optional + 16)?;
    let start = bytes.len();
    bytes.extend_from_slice(&CODE);
    let jump = entry.wrapping_sub(place + JUMP_END as u32);
    bytes[start + JUMP_END - 4..start + JUMP_END].copy_from_slice(&jump.to_le_bytes());
    bytes.extend_from_slice(LINE);
    let alignment = (word(optional + 36)? as usize).clamp(1, 4096);
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
    let size = bytes.len() as u32 - raw_start;
    let page = word(optional + 32)?.max(1);
    let mut set = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    set(optional + 16, place);
    set(optional + 56, (address + size).next_multiple_of(page));
    set(last + 8, size);
    set(last + 16, size);
    // Code and initialised data, which may be executed, read and written.
    set(last + 36, 0xe000_0060);
    Some(bytes)
}

#[cfg(test)]
pub(super) const ASSEMBLED: &[u8] = &CODE;
