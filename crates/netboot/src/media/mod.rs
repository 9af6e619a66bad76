//! Boot media: an ISO, a disk image or an EFI tree with iPXE and the list of boot servers, for machines that cannot
//! boot from the network by themselves, or in networks whose DHCP cannot be changed.
//!
//! The same settings and programs give the same bytes: there are no clocks and no random numbers on a medium. Nothing
//! foreign is needed but iPXE's own programs (`programs.rs`); the loader for BIOS is ours (`loader.rs`).

mod address;
mod ca;
mod fat;
mod iso;
mod keystroke_stub;
mod loader;
mod programs;
mod script;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use goldwire_stdx::Hints;

use crate::member::Member;
use loader::Payload;
use programs::Programs;

/// Where Debian's and Ubuntu's package `ipxe` has the programs.
pub const PROGRAMS: &str = "/usr/lib/ipxe";
/// iPXE gives up on a fetch that stands still this long, unless told otherwise.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);
/// Where the partition of a disk image begins, in sectors of 512 bytes: 1 MiB, as every partitioning program does.
const PARTITION_START: u32 = 2048;

/// What a medium shall do.
#[derive(Clone, Debug)]
pub struct MediaSettings {
    /// The folder with iPXE's programs: [`PROGRAMS`], or one with signed programs.
    pub programs: PathBuf,
    /// The boot servers, in the order in which they are asked. At least one.
    pub members: Vec<Member>,
    /// Whether they are asked by `https`.
    pub is_secure: bool,
    /// How the machine gets its address.
    pub address: Address,
    /// Which network card, in iPXE's names (`net0`). None means each that gets an address by DHCP, or `net0` where the
    /// address is fixed or a VLAN is set.
    pub interface: Option<String>,
    /// The VLAN's tag, 1 to 4094.
    pub vlan: Option<u16>,
    /// A CA certificate (PEM or DER), put on the medium as `ca.crt` for enrolling in the firmware. iPXE takes no CA
    /// from a script; from 2.0 on it trusts what the firmware trusts.
    pub ca: Option<Vec<u8>>,
    /// How long a fetch may stand still.
    pub timeout: Duration,
    /// Whether a file that is there already is replaced.
    pub replaces: bool,
}

impl MediaSettings {
    /// DHCP, plain HTTP, the system's iPXE.
    pub fn new(members: Vec<Member>) -> Self {
        Self {
            programs: PROGRAMS.into(),
            members,
            is_secure: false,
            address: Address::Dhcp,
            interface: None,
            vlan: None,
            ca: None,
            timeout: TIMEOUT,
            replaces: false,
        }
    }
}

/// How the machine gets its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// By DHCP.
    Dhcp,
    /// It is always the same; such a medium is for one machine.
    Fixed {
        /// Its address.
        address: Ipv4Addr,
        /// Length of the network's prefix, 1 to 32.
        prefix: u8,
        /// The router.
        gateway: Option<Ipv4Addr>,
        /// The name server.
        dns: Option<Ipv4Addr>,
    },
}

/// How a program comes by its script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScriptDelivery {
    /// Our loader hands it over as initial RAM disk (BIOS).
    Loader,
    /// iPXE reads `autoexec.ipxe` itself.
    Autoexec,
    /// The same, behind a signed shim, for Secure Boot.
    Shim,
    /// Old iPXE: the command is typed at its prompt.
    Keystrokes,
}

/// What a medium has become.
#[derive(Clone, Debug)]
pub struct MediaReport {
    /// The programs on it and how each comes by its script.
    pub programs: Vec<(String, ScriptDelivery)>,
    /// Bytes.
    pub size: u64,
    /// BLAKE3 of an image; of a tree, of its files in order.
    pub digest: blake3::Hash,
    /// What the reader should know, a sentence each.
    pub notes: Vec<String>,
}

/// An image in memory, for serving: behind [`crate::content::Body::Memory`] it has Range, ETag and all.
#[derive(Clone, Debug)]
pub struct Medium {
    /// The image.
    pub bytes: Vec<u8>,
    /// Its `Content-Type`, by which UEFI HTTP Boot knows a RAM disk.
    pub media_type: &'static str,
    /// What it has become.
    pub report: MediaReport,
}

/// The media that machines can fetch from a boot server.
#[derive(Clone, Debug)]
pub struct Media {
    /// As [`iso`] makes it.
    pub iso: Medium,
    /// As [`disk`] makes it.
    pub disk: Medium,
}

impl Media {
    /// Makes both.
    pub fn make(settings: &MediaSettings) -> Result<Self, MediaError> {
        Ok(Self { iso: iso(settings)?, disk: disk(settings)? })
    }
}

/// Most bytes of a CA certificate for a medium: one has 1 to 4 KiB, a chain of them a few times that.
pub const CA_MAX: u64 = 64 << 10;

/// Why there is no medium.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MediaError {
    /// No program of iPXE is where it should be.
    #[error("no iPXE in {folder}: neither ipxe.lkrn (BIOS) nor ipxe.efi (UEFI)")]
    NoPrograms {
        /// Where we looked.
        folder: PathBuf,
    },
    /// A program that cannot do what is asked.
    #[error("{name}: {why}")]
    Program {
        /// Its name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A setting that makes no sense.
    #[error("{wrong}")]
    Setting {
        /// What is wrong.
        wrong: String,
        /// What would be right.
        hint: String,
    },
    /// What is to be the CA certificate is none.
    #[error("use the CA certificate for the medium: {why}")]
    Ca {
        /// What is wrong.
        why: &'static str,
        /// What would be right.
        hint: &'static str,
    },
    /// The script is longer than the loader takes.
    #[error("a script of {0} bytes is too long for a boot medium")]
    ScriptSize(usize),
    /// More than a medium holds.
    #[error("{0} bytes of programs are too much for a boot medium")]
    Content(usize),
    /// A file could not be read.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The output is there already.
    #[error("{path} exists; say --replace to replace it")]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// The output is a device or something else that is no plain file.
    #[error("{path} is no plain file; write an image and copy it to a stick yourself")]
    NoFile {
        /// Which.
        path: PathBuf,
    },
    /// The output could not be written.
    #[error("write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Hints for MediaError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::NoPrograms { .. } => {
                vec!["install the package ipxe, or name the folder with its programs as --programs".into()]
            }
            Self::Setting { hint, .. } => vec![hint.clone()],
            Self::Ca { hint, .. } => vec![(*hint).to_owned()],
            _ => Vec::new(),
        }
    }
}

/// Whether media can be made, without making one: the programs that would be on them, and how each would come by its
/// script.
pub fn check(settings: &MediaSettings) -> Result<Vec<(String, ScriptDelivery)>, MediaError> {
    Parts::gather(settings).map(|parts| parts.programs)
}

/// Makes an ISO image: BIOS and UEFI, from a drive or from a stick.
pub(crate) fn iso(settings: &MediaSettings) -> Result<Medium, MediaError> {
    let parts = Parts::gather(settings)?;
    let efi = parts.file_system()?;
    let content = iso::Content {
        payload: parts.payload.as_ref(),
        efi: efi.as_deref(),
        script: parts.script.as_bytes(),
        signature: parts.signature,
    };
    let bytes = iso::image(&content);
    Ok(parts.finish(bytes, "application/vnd.efi-iso"))
}

/// Makes a disk image: a partition table with an EFI system partition, and our loader for BIOS before it.
pub(crate) fn disk(settings: &MediaSettings) -> Result<Medium, MediaError> {
    let parts = Parts::gather(settings)?;
    let mut bytes = vec![0; PARTITION_START as usize * 512];
    let mut code = Vec::new();
    if let Some(payload) = &parts.payload {
        if 512 + payload.bytes.len() > bytes.len() {
            return Err(MediaError::Program {
                name: "ipxe.lkrn".into(),
                why: "it is too large for the gap before the partition",
            });
        }
        code = payload.loader(1, 512);
        bytes[512..512 + payload.bytes.len()].copy_from_slice(&payload.bytes);
    }
    // A disk for BIOS alone has a partition too: some BIOSes start no other.
    let mut partition = match parts.file_system()? {
        Some(partition) => partition,
        None => fat::image(&parts.files, parts.signature)?,
    };
    fat::set_start(&mut partition, PARTITION_START);
    let record = loader::boot_record(&code, parts.signature, PARTITION_START, (partition.len() / 512) as u32);
    bytes[..512].copy_from_slice(&record);
    bytes.extend_from_slice(&partition);
    Ok(parts.finish(bytes, "application/vnd.efi-img"))
}

/// Writes an ISO image to a file: whole or not at all.
pub fn write_iso(settings: &MediaSettings, path: &Path) -> Result<MediaReport, MediaError> {
    let medium = iso(settings)?;
    write_file(path, &medium.bytes, settings.replaces)?;
    Ok(medium.report)
}

/// Writes a disk image to a file: whole or not at all, and never to a device.
pub fn write_usb(settings: &MediaSettings, path: &Path) -> Result<MediaReport, MediaError> {
    let medium = disk(settings)?;
    write_file(path, &medium.bytes, settings.replaces)?;
    Ok(medium.report)
}

/// Writes the EFI tree into a folder, which is made if it is not there: for the EFI system partition of a disk. The
/// script comes last, so that an unfinished tree boots nothing new.
pub fn write_esp(settings: &MediaSettings, folder: &Path) -> Result<MediaReport, MediaError> {
    let mut parts = Parts::gather(settings)?;
    if parts.is_bios_only() {
        return Err(MediaError::Program {
            name: "ipxe.efi".into(),
            why: "an EFI tree needs it, and it is not there",
        });
    }
    // A BIOS finds nothing in a folder.
    parts.programs.retain(|(_, delivery)| *delivery != ScriptDelivery::Loader);
    let taken = parts.files.iter().map(|file| folder.join(&file.path)).find(|path| path.exists());
    if let Some(path) = taken.filter(|_| !settings.replaces) {
        return Err(MediaError::Exists { path });
    }
    let mut all = Vec::new();
    for file in &parts.files {
        let path = folder.join(&file.path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .map_err(|source| MediaError::Write { path: parent.to_owned(), source })?;
        }
        write_file(&path, &file.bytes, settings.replaces)?;
        all.extend_from_slice(&file.bytes);
    }
    Ok(parts.finish(all, "").report)
}

/// What goes onto any medium.
struct Parts {
    script: String,
    payload: Option<Payload>,
    /// The EFI tree.
    files: Vec<fat::File>,
    signature: u32,
    programs: Vec<(String, ScriptDelivery)>,
    notes: Vec<String>,
}

impl Parts {
    fn gather(settings: &MediaSettings) -> Result<Self, MediaError> {
        let script = script::render(settings)?;
        settings.ca.as_deref().map(ca::check).transpose()?;
        let found = Programs::find(&settings.programs)?;
        let mut parts = Self {
            payload: found
                .bios
                .as_ref()
                .map(|program| Payload::new(program, script.as_bytes()))
                .transpose()?,
            script,
            files: Vec::new(),
            signature: 0,
            programs: Vec::new(),
            notes: Vec::new(),
        };
        match parts.payload {
            Some(_) => parts.programs.push(("ipxe.lkrn".into(), ScriptDelivery::Loader)),
            None => parts.notes.push("There is no ipxe.lkrn, so it does not boot on a BIOS.".into()),
        }
        if found.efi.is_empty() {
            parts.notes.push("There is no ipxe.efi, so it does not boot on UEFI.".into());
        }
        for program in found.efi {
            for (is_wanted, text, why) in [
                (settings.vlan.is_some(), "vcreate", "it cannot make VLANs (it has no command vcreate)"),
                (settings.is_secure, "https", "it cannot fetch by https"),
            ] {
                if is_wanted && !program.has(text) {
                    return Err(MediaError::Program { name: program.name, why });
                }
            }
            let (files, delivery) = program.files()?;
            parts.files.extend(files);
            parts.programs.push((program.name, delivery));
        }
        if parts.payload.is_some() && (settings.vlan.is_some() || settings.is_secure) {
            parts.notes.push(
                "ipxe.lkrn is compressed: whether it can make VLANs and fetch by https shows only when it boots.".into(),
            );
        }
        if let Some(ca) = &settings.ca {
            parts.files.push(fat::File { path: "ca.crt".into(), bytes: ca.clone() });
            parts.notes.push(
                "iPXE trusts the CA only if it was built with it, or (2.0 and later) if it is enrolled in the firmware \
                 for TLS; ca.crt on the medium is for that."
                    .into(),
            );
        }
        // Where iPXE looks, by its age: beside its program or in the root (1.21), beside its program (2.0).
        for path in ["EFI/BOOT/autoexec.ipxe", "autoexec.ipxe"] {
            parts.files.push(fat::File { path: path.into(), bytes: parts.script.clone().into_bytes() });
        }
        let mut hasher = blake3::Hasher::new();
        for file in &parts.files {
            hasher.update(file.path.as_bytes()).update(&file.bytes);
        }
        let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
        parts.signature = u32::from_le_bytes([a, b, c, d]);
        Ok(parts)
    }

    fn is_bios_only(&self) -> bool {
        self.programs.iter().all(|(_, delivery)| *delivery == ScriptDelivery::Loader)
    }

    /// The EFI tree as a file system, if there is a program in it.
    fn file_system(&self) -> Result<Option<Vec<u8>>, MediaError> {
        (!self.is_bios_only()).then(|| fat::image(&self.files, self.signature)).transpose()
    }

    fn finish(self, bytes: Vec<u8>, media_type: &'static str) -> Medium {
        let report = MediaReport {
            programs: self.programs,
            size: bytes.len() as u64,
            digest: blake3::hash(&bytes),
            notes: self.notes,
        };
        Medium { bytes, media_type, report }
    }
}

/// Writes beside the goal and renames, so that the goal is the old file or the whole new one.
fn write_file(path: &Path, bytes: &[u8], replaces: bool) -> Result<(), MediaError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => return Err(MediaError::NoFile { path: path.to_owned() }),
        Ok(_) if !replaces => return Err(MediaError::Exists { path: path.to_owned() }),
        _ => {}
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.partial", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || -> io::Result<()> {
        let mut file = fs::File::create_new(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        if replaces {
            return fs::rename(&temporary, path);
        }
        // A link, unlike a rename, does not take the place of what somebody put there meanwhile.
        match fs::hard_link(&temporary, path) {
            Ok(()) => fs::remove_file(&temporary),
            // FAT has no links.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => fs::rename(&temporary, path),
            Err(error) => Err(error),
        }
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&temporary);
        MediaError::Write { path: path.to_owned(), source }
    })
}
