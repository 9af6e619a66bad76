//! What a file's name promises about its content. A name proves nothing, but one that promises a container over bytes
//! that are none is how a truncated disk, a failed download and a wrong argument look.

use std::ffi::OsStr;
use std::path::Path;

use crate::image::Format;

/// What an ending stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// A plain disk.
    Raw,
    /// A VHD of any kind.
    Vhd,
    /// A QCOW2 image.
    Qcow2,
    /// Something that goldwire neither reads nor writes, with its article: "a VirtualBox disk image (VDI)".
    Foreign(&'static str),
}

/// Endings without their dot, in small letters. `img`, `iso` and `bin` promise nothing: OpenStack and oVirt call QCOW2
/// images so.
const ENDINGS: &[(&str, Promise)] = &[
    ("raw", Promise::Raw),
    ("vhd", Promise::Vhd),
    ("avhd", Promise::Vhd),
    ("vpc", Promise::Vhd),
    ("qcow2", Promise::Qcow2),
    ("vhdx", Promise::Foreign("a Hyper-V disk image of the second kind (VHDX)")),
    ("avhdx", Promise::Foreign("a Hyper-V checkpoint of the second kind (AVHDX)")),
    ("vhds", Promise::Foreign("a Hyper-V disk set (VHDS)")),
    ("vmdk", Promise::Foreign("a VMware disk image (VMDK)")),
    ("vdi", Promise::Foreign("a VirtualBox disk image (VDI)")),
    ("qcow", Promise::Foreign("a QEMU image of the first version (QCOW)")),
    ("qed", Promise::Foreign("a QEMU disk image of the kind QED")),
    ("hds", Promise::Foreign("a Parallels disk image")),
    ("hdd", Promise::Foreign("a Parallels disk image")),
    ("ova", Promise::Foreign("a virtual appliance (OVA)")),
    ("ovf", Promise::Foreign("the description of a virtual appliance (OVF)")),
    ("xva", Promise::Foreign("a virtual machine exported by XenServer (XVA)")),
    ("vma", Promise::Foreign("a virtual machine backed up by Proxmox (VMA)")),
    ("dmg", Promise::Foreign("an Apple disk image (DMG)")),
    ("wim", Promise::Foreign("a Windows image file (WIM)")),
    ("esd", Promise::Foreign("a Windows image file (WIM)")),
    ("e01", Promise::Foreign("an EnCase image (E01)")),
    ("gz", Promise::Foreign("a file compressed by gzip")),
    ("tgz", Promise::Foreign("a tar archive compressed by gzip")),
    ("xz", Promise::Foreign("a file compressed by xz")),
    ("txz", Promise::Foreign("a tar archive compressed by xz")),
    ("lzma", Promise::Foreign("a file compressed by lzma")),
    ("zst", Promise::Foreign("a file compressed by zstd")),
    ("zstd", Promise::Foreign("a file compressed by zstd")),
    ("bz2", Promise::Foreign("a file compressed by bzip2")),
    ("lz4", Promise::Foreign("a file compressed by lz4")),
    ("lz", Promise::Foreign("a file compressed by lzip")),
    ("lzo", Promise::Foreign("a file compressed by lzop")),
    ("zip", Promise::Foreign("a zip archive")),
    ("7z", Promise::Foreign("a 7-Zip archive")),
    ("rar", Promise::Foreign("a RAR archive")),
    ("tar", Promise::Foreign("a tar archive")),
    ("html", Promise::Foreign("a page of HTML")),
    ("htm", Promise::Foreign("a page of HTML")),
    ("txt", Promise::Foreign("a text file")),
    ("json", Promise::Foreign("a text file")),
    ("xml", Promise::Foreign("a text file")),
];

impl Promise {
    /// What the name of `path` promises, if anything.
    pub fn of(path: impl AsRef<Path>) -> Option<Self> {
        let ending = path.as_ref().extension().and_then(OsStr::to_str)?;
        ENDINGS.iter().find(|(known, _)| known.eq_ignore_ascii_case(ending)).map(|(_, promise)| *promise)
    }

    /// Whether a file of `format` keeps it.
    pub fn is_kept_by(self, format: Format) -> bool {
        match self {
            Self::Raw => format == Format::Raw,
            Self::Vhd => {
                matches!(format, Format::VhdFixed | Format::VhdDynamic | Format::VhdDifferencing)
            }
            Self::Qcow2 => format == Format::Qcow2,
            Self::Foreign(_) => false,
        }
    }

    /// With its article, for a sentence.
    pub fn what(self) -> &'static str {
        match self {
            Self::Raw => "a raw disk",
            Self::Vhd => "a VHD",
            Self::Qcow2 => "a QCOW2 image",
            Self::Foreign(what) => what,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_ending_promises_in_either_case() {
        for (name, promise) in [
            ("a.vhd", Some(Promise::Vhd)),
            ("/x.vhd/A.VHD", Some(Promise::Vhd)),
            ("a.vhd.raw", Some(Promise::Raw)),
            ("a.vhd.bak", None),
            ("vhd", None),
            (".vhd", None),
            ("/x.vhd/a", None),
            ("a.img", None),
        ] {
            assert_eq!(Promise::of(name), promise, "{name}");
        }
        assert!(ENDINGS.iter().all(|(ending, _)| ending.to_ascii_lowercase() == *ending));
    }
}
