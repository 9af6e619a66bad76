//! File systems of others, as their own programs bring them over FUSE: NTFS and exFAT.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use goldwire_stdx::testing;

/// Which one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// ntfs-3g: keeps holes and, by default, no modes.
    Ntfs,
    /// exfat-fuse: no holes, no links, no modes.
    Exfat,
}

/// A mounted file system in a file. It goes with this value.
pub(crate) struct Foreign {
    pub(crate) folder: PathBuf,
    device: String,
}

impl Foreign {
    /// A new one of `size` bytes; none, and a word about it, without root, FUSE or a loop device.
    pub(crate) fn mount(kind: Kind, folder: PathBuf, size: u64) -> Option<Self> {
        let (make, mount): (&[&str], &str) = match kind {
            Kind::Ntfs => (&["mkntfs", "--quiet", "--fast"], "ntfs-3g"),
            Kind::Exfat => (&["mkfs.exfat"], "mount.exfat-fuse"),
        };
        if !testing::root() || !testing::programs(&[make[0], mount, "losetup"]) {
            return None;
        }
        if !Path::new("/dev/fuse").exists() {
            testing::excuse(testing::Excuse::NoFuse);
            return None;
        }
        let image = folder.with_extension("img");
        File::create(&image).unwrap().set_len(size).unwrap();
        let attached = Command::new("losetup").args(["--find", "--show"]).arg(&image).output().unwrap();
        if !attached.status.success() {
            testing::excuse(testing::Excuse::NoLoopDevices);
            return None;
        }
        let device = String::from_utf8(attached.stdout).unwrap().trim().to_owned();
        let place = Self { folder, device };
        for words in [make, &[mount]] {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).arg(&place.device);
            if words[0] == mount {
                command.arg(&place.folder);
            }
            let output = command.output().unwrap();
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Some(place)
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.folder).status();
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}
