//! Boot programs that say their words on the serial console, made when a test needs them.

use std::fs;
use std::path::Path;

use crate::machine::must;

/// A network boot program for BIOS (PXE 2.1 §4.4.5): loaded at 0:7C00, it writes `words` to the first serial port and
/// stops. Like a Citrix PVS bootstrap it is plain machine code, without any mark of its kind.
pub(crate) fn bios_program(words: &str) -> Vec<u8> {
    let mut program = vec![
        0xfa, // cli
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xfc, // cld
        0xbe, 0x22, 0x7c, // mov si, words
        // next:
        0xba, 0xfd, 0x03, // mov dx, 3fdh: the line's status
        0xec, // in al, dx
        0xa8, 0x20, // test al, 20h: may it take a byte?
        0x74, 0xf8, // jz next
        0xac, // lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x06, // jz stop
        0xba, 0xf8, 0x03, // mov dx, 3f8h
        0xee, // out dx, al
        0xeb, 0xed, // jmp next
        // stop:
        0xf4, // hlt
        0xeb, 0xfd, // jmp stop
    ];
    program.resize(0x22, 0x90);
    program.extend_from_slice(format!("\r\n{words}\r\n\0").as_bytes());
    // What is shorter than a sector is no program to some loaders.
    program.resize(program.len().max(1024), 0);
    program
}

/// An EFI application that says `words` on the serial console, and stays.
pub(crate) fn efi_program(scene: &Path, path: &Path, words: &str) {
    let script = scene.join("marker.cfg");
    fs::write(&script, format!("echo \"{words} cmdpath=$cmdpath\"\nsleep 3600\n")).unwrap();
    let (script, path) = (script.to_str().unwrap(), path.to_str().unwrap());
    must(
        "grub-mkimage",
        ["-O", "x86_64-efi", "-o", path, "-p", "/", "-c", script, "echo", "sleep", "normal", "net", "efinet"],
    );
}
