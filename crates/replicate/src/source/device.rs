//! Block devices as sources. A file says by its time that it was written to; a device says nothing. So one that is
//! mounted for writing is refused, and what is written to any other while it is read is seen in the kernel's counters.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::failure::Result;
use crate::wire::{Failure, FailureKind};

/// Devices that stand on one device: partitions, and mappings over them.
const ABOVE_MAX: usize = 4096;

/// A device that is watched from now on.
#[derive(Debug)]
pub(crate) struct DeviceWatch {
    path: PathBuf,
    device: File,
    counters: PathBuf,
    at_first: Written,
}

/// What was written to a device since the machine started: sectors written and sectors discarded
/// (`Documentation/block/stat.rst`, fields 7 and 14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Written {
    sectors: u64,
    discarded: u64,
}

impl DeviceWatch {
    /// Watches `path`, if it is a block device.
    ///
    /// # Errors
    /// It can change in a way that would not be seen: it is mounted for writing, or the kernel shows no counters.
    pub(crate) fn start(path: &Path) -> Result<Option<Self>> {
        let failed = |error| Failure::io(format!("look at {}", path.display()), &error);
        let data = fs::metadata(path).map_err(failed)?;
        if !data.file_type().is_block_device() {
            return Ok(None);
        }
        let node = Node::of(data.rdev());
        let all = above(node, Path::new("/sys/dev/block"));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        if let Some((device, place)) = mounted(&all, &mounts) {
            let what = if device == node { String::new() } else { format!(" holds device {device}, which") };
            return Err(Failure::new(
                FailureKind::SourceChanged,
                format!("{}{what} is mounted for writing at {place}", path.display()),
            )
            .hint("sync from a snapshot of it (lvcreate --snapshot), or from the device unmounted"));
        }
        let counters = PathBuf::from(format!("/sys/dev/block/{node}/stat"));
        let device = File::open(path).map_err(failed)?;
        let at_first = written(&device, &counters).map_err(|error| {
            let text = format!("see whether {} changes while it is read", path.display());
            Failure::io(text, &error).hint("sync from a file, or where /sys is mounted")
        })?;
        Ok(Some(Self { path: path.to_owned(), device, counters, at_first }))
    }

    /// Whether something was written since.
    ///
    /// # Errors
    /// The device is gone.
    pub(crate) fn has_changed(&self) -> Result<bool> {
        let now = written(&self.device, &self.counters)
            .map_err(|error| Failure::io(format!("look at {}", self.path.display()), &error))?;
        Ok(now != self.at_first)
    }

    /// The device.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The numbers of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Node {
    major: u32,
    minor: u32,
}

impl Node {
    fn of(device: u64) -> Self {
        Self { major: rustix::fs::major(device), minor: rustix::fs::minor(device) }
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.trim().split_once(':')?;
        Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl std::fmt::Display for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// The device, its partitions, and whatever stands on any of them (`holders` in sysfs: device mapper, RAID, loop).
fn above(node: Node, sysfs: &Path) -> BTreeSet<Node> {
    let mut all = BTreeSet::new();
    let mut left = vec![node];
    while let Some(node) = left.pop() {
        if all.len() >= ABOVE_MAX || !all.insert(node) {
            continue;
        }
        let folder = sysfs.join(node.to_string());
        // A partition is a folder of the disk with a file `partition` in it; a holder is a link.
        for inside in [folder.clone(), folder.join("holders")] {
            for entry in fs::read_dir(&inside).into_iter().flatten().flatten() {
                let is_above = inside != folder || entry.path().join("partition").exists();
                let number = fs::read_to_string(entry.path().join("dev")).ok();
                left.extend(number.filter(|_| is_above).as_deref().and_then(Node::parse));
            }
        }
    }
    all
}

/// The first of these devices that `mountinfo` (proc_pid_mountinfo(5)) says is mounted for writing, and where.
fn mounted(devices: &BTreeSet<Node>, mountinfo: &str) -> Option<(Node, String)> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let node = Node::parse(fields.nth(2)?)?;
        let place = fields.nth(1)?;
        // The file system's own word: a mount that is read-only may be one of several.
        let is_writable = file_system.split(' ').nth(2)?.split(',').any(|option| option == "rw");
        (is_writable && devices.contains(&node)).then(|| (node, goldwire_stdx::printable(place).into_owned()))
    })
}

/// What has reached the device, once everything that waits in the page cache has.
fn written(device: &File, counters: &Path) -> std::io::Result<Written> {
    device.sync_all()?;
    let text = fs::read_to_string(counters)?;
    let fields: Vec<u64> = text.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let sectors = fields.get(6).copied().ok_or(std::io::ErrorKind::InvalidData)?;
    // Kernels before 4.18 do not count discards.
    Ok(Written { sectors, discarded: fields.get(13).copied().unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> Node {
        Node::parse(text).unwrap()
    }

    #[test]
    fn a_file_is_no_device() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(DeviceWatch::start(file.path()).unwrap().is_none());
        assert!(DeviceWatch::start(&file.path().join("no")).is_err());
    }

    #[test]
    fn what_stands_on_a_device_is_found_through_partitions_and_holders() {
        let sysfs = tempfile::tempdir().unwrap();
        let folder = |path: &str| {
            let path = sysfs.path().join(path);
            fs::create_dir_all(&path).unwrap();
            path
        };
        for (path, number) in [("8:0/sda1", "8:1"), ("8:0/sda2", "8:2"), ("8:2/holders/dm-0", "253:0")] {
            fs::write(folder(path).join("dev"), format!("{number}\n")).unwrap();
        }
        fs::write(folder("8:0/sda1").join("partition"), "1").unwrap();
        fs::write(folder("8:0/sda2").join("partition"), "2").unwrap();
        // Not a partition: the queue, a device that is somewhere else.
        fs::write(folder("8:0/queue").join("dev"), "9:9").unwrap();
        // A circle, as no kernel makes one, ends too.
        fs::write(folder("253:0/holders/back").join("dev"), "8:0").unwrap();
        let all: Vec<String> = above(node("8:0"), sysfs.path()).iter().map(ToString::to_string).collect();
        assert_eq!(all, ["8:0", "8:1", "8:2", "253:0"]);
    }

    #[test]
    fn only_a_mount_for_writing_of_one_of_the_devices_counts() {
        let devices = BTreeSet::from([node("8:0"), node("8:1")]);
        let line = |device: &str, options: &str| {
            format!("36 35 {device} / /mnt/a rw,noatime master:1 - ext4 /dev/x {options}\n")
        };
        for (text, expected) in [
            (line("8:1", "rw,errors=continue"), Some(("8:1", "/mnt/a"))),
            (line("8:1", "ro"), None),
            (line("8:16", "rw"), None),
            (line("8:16", "rw") + &line("8:0", "ro") + &line("8:0", "rw"), Some(("8:0", "/mnt/a"))),
            ("nonsense - \n36\n\n".into(), None),
        ] {
            let expected = expected.map(|(number, place)| (node(number), place.to_owned()));
            assert_eq!(mounted(&devices, &text), expected, "{text}");
        }
    }

    #[test]
    fn the_counters_are_the_kernels_fields() {
        let counters = tempfile::NamedTempFile::new().unwrap();
        let device = tempfile::NamedTempFile::new().unwrap();
        let text = "     446        0    10000       25        7        3      880       11        0       36       36       1        2        64        5\n";
        fs::write(counters.path(), text).unwrap();
        let of = || written(device.as_file(), counters.path());
        assert_eq!(of().unwrap(), Written { sectors: 880, discarded: 64 });
        fs::write(counters.path(), "1 2 3 4 5 6 7 8 9 10 11").unwrap();
        assert_eq!(of().unwrap(), Written { sectors: 7, discarded: 0 });
        fs::write(counters.path(), "1 2 3").unwrap();
        assert!(of().is_err());
    }
}
