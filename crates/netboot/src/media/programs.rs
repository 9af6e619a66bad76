//! iPXE's programs, found in a folder: the system's `ipxe` package, or one with signed programs, as iPXE 2.0's releases
//! are laid out.

use std::io;
use std::path::Path;

use super::fat::File;
use super::keystroke_stub;
use super::{MediaError, ScriptDelivery};

/// Larger than any iPXE or shim (2.0's largest has about 1.2 MiB).
const PROGRAM_MAX: u64 = 16 << 20;
/// Where to look, signed programs first.
const FOLDERS: [&str; 6] = ["", "x86_64-sb", "x86_64", "arm64-sb", "arm64", "i386"];
/// Which programs to take, the one with all drivers first.
const LOADERS: [&str; 2] = ["ipxe.efi", "snponly.efi"];
/// Names by which a shim comes.
const SHIMS: [&str; 6] = [
    "shimx64.efi",
    "ipxe-shimx64.efi",
    "ipxe-shim.efi",
    "shimaa64.efi",
    "ipxe-shimaa64.efi",
    "snponly-shimx64.efi",
];

/// What was found.
pub(super) struct Programs {
    /// iPXE as a Linux-style image, for BIOS.
    pub(super) bios: Option<Vec<u8>>,
    /// Programs for UEFI, one per processor.
    pub(super) efi: Vec<Efi>,
}

/// A program for UEFI.
pub(super) struct Efi {
    /// Its name in the folder.
    pub(super) name: String,
    bytes: Vec<u8>,
    machine: Machine,
    shim: Option<(String, Vec<u8>)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Machine {
    X64,
    Ia32,
    Arm64,
}

impl Programs {
    /// Looks into a folder.
    pub(super) fn find(folder: &Path) -> Result<Self, MediaError> {
        let bios = read(&folder.join("ipxe.lkrn"))?;
        let mut efi: Vec<Efi> = Vec::new();
        for below in FOLDERS {
            for name in LOADERS {
                let Some(bytes) = read(&folder.join(below).join(name))? else { continue };
                let name = Path::new(below).join(name).display().to_string();
                let Some(machine) = machine(&bytes) else {
                    return Err(MediaError::Program { name, why: "it is no program for UEFI that we know" });
                };
                if efi.iter().any(|known| known.machine == machine) {
                    continue;
                }
                let mut shim = None;
                for name in SHIMS {
                    let found = read(&folder.join(below).join(name))?;
                    shim = shim.or(found
                        .filter(|bytes| self::machine(bytes) == Some(machine))
                        .map(|b| (name.into(), b)));
                }
                efi.push(Efi { name, bytes, machine, shim });
            }
        }
        if bios.is_none() && efi.is_empty() {
            return Err(MediaError::NoPrograms { folder: folder.to_owned() });
        }
        Ok(Self { bios, efi })
    }
}

impl Efi {
    /// Whether some text is in it; iPXE's programs for UEFI are not compressed.
    pub(super) fn has(&self, text: &str) -> bool {
        keystroke_stub::contains(&self.bytes, &[b"\0", text.as_bytes(), b"\0"].concat())
    }

    /// Its files on a medium, and how it comes by its script.
    pub(super) fn files(&self) -> Result<(Vec<File>, ScriptDelivery), MediaError> {
        let first = match self.machine {
            Machine::X64 => "EFI/BOOT/BOOTX64.EFI",
            Machine::Ia32 => "EFI/BOOT/BOOTIA32.EFI",
            Machine::Arm64 => "EFI/BOOT/BOOTAA64.EFI",
        };
        let file = |path: &str, bytes: &[u8]| File { path: path.into(), bytes: bytes.to_vec() };
        if let Some((_, shim)) = &self.shim {
            if !keystroke_stub::reads_script(&self.bytes) {
                return Err(self
                    .wrong("it stands beside a shim and reads no autoexec.ipxe: it has to be 2.0 or later"));
            }
            // iPXE's shim takes the name of what it loads from its own name and falls back to ipxe.efi; the stock shim
            // has the name grubx64.efi built in (grubaa64.efi on ARM).
            let stock =
                if self.machine == Machine::Arm64 { "EFI/BOOT/grubaa64.efi" } else { "EFI/BOOT/grubx64.efi" };
            let files =
                vec![file(first, shim), file("EFI/BOOT/ipxe.efi", &self.bytes), file(stock, &self.bytes)];
            return Ok((files, ScriptDelivery::Shim));
        }
        if keystroke_stub::reads_script(&self.bytes) {
            return Ok((vec![file(first, &self.bytes)], ScriptDelivery::Autoexec));
        }
        if self.machine != Machine::X64 || !self.has("file") {
            return Err(self.wrong("it reads no autoexec.ipxe: take iPXE 1.21 or later"));
        }
        match keystroke_stub::with_keystrokes(&self.bytes) {
            Some(bytes) => Ok((vec![File { path: first.into(), bytes }], ScriptDelivery::Keystrokes)),
            None => {
                Err(self.wrong("it reads no autoexec.ipxe and cannot be extended: take iPXE 1.21 or later"))
            }
        }
    }

    fn wrong(&self, why: &'static str) -> MediaError {
        MediaError::Program { name: self.name.clone(), why }
    }
}

/// PE/COFF specification, §3.3.1.
fn machine(bytes: &[u8]) -> Option<Machine> {
    let start = u32::from_le_bytes(bytes.get(0x3c..0x40)?.try_into().ok()?) as usize;
    let header = bytes.get(start..start.checked_add(6)?)?;
    match header {
        [b'P', b'E', 0, 0, 0x64, 0x86] => Some(Machine::X64),
        [b'P', b'E', 0, 0, 0x4c, 0x01] => Some(Machine::Ia32),
        [b'P', b'E', 0, 0, 0x64, 0xaa] => Some(Machine::Arm64),
        _ => None,
    }
}

/// A file, if it is there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, MediaError> {
    goldwire_stdx::read_bounded(path, PROGRAM_MAX).map(Some).or_else(|source| match source.kind() {
        io::ErrorKind::NotFound => Ok(None),
        io::ErrorKind::FileTooLarge => {
            Err(MediaError::Program { name: path.display().to_string(), why: "it is larger than any iPXE" })
        }
        _ => Err(MediaError::Read { path: path.to_owned(), source }),
    })
}
