//! Extended attributes of a file that is replaced: access lists, labels, and what the user put there. The new file takes
//! them over as it takes owner and mode; what it cannot take, and that nobody knows what it had, is said.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;

use goldwire_stdx::printable_bytes;
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};
use rustix::io::Errno;

/// The longest list of names, and the longest value, that Linux gives (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const LONGEST: usize = 64 << 10;

/// Gives `new` the attributes of the file that it replaces, as far as that could be opened. What was lost, in words.
pub(super) fn keep(old: io::Result<&File>, new: &File) -> Option<String> {
    let lost = match old {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        opened => opened
            .map_err(|error| error.to_string())
            .and_then(|old| list(old).map(|names| lost(old, new, names)).map_err(|errno| errno.to_string())),
    };
    match lost {
        Ok(lost) if lost.is_empty() => None,
        Ok(lost) => {
            let names: Vec<_> = lost.iter().map(|name| printable_bytes(name.as_bytes())).collect();
            Some(format!("does not have these attributes of the file that it replaced: {}", names.join(", ")))
        }
        Err(why) => Some(format!(
            "has no attributes of what it replaced (access lists, labels): they cannot be read: {why}"
        )),
    }
}

/// Gives `new` those attributes of `old` that have these names. Those that it could not be given.
fn lost(old: &File, new: &File, mut names: Vec<OsString>) -> Vec<OsString> {
    let is_kept = |name: &OsStr| match value(old, name) {
        // It went in between.
        Err(Errno::NODATA) => true,
        Err(_) => false,
        Ok(value) => {
            self::value(new, name).as_ref() == Ok(&value)
                || fsetxattr(new, name, &value, XattrFlags::empty()).is_ok()
        }
    };
    names.retain(|name| is_the_users(name) && !is_kept(name));
    names
}

/// `system.` has the access lists. Of `security.` only the label is about the file and not about what it holds, and
/// `trusted.` belongs to whoever runs the file system.
fn is_the_users(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b"user.") || name.starts_with(b"system.") || name == b"security.selinux"
}

fn list(file: &File) -> rustix::io::Result<Vec<OsString>> {
    let mut names = vec![0; LONGEST];
    let length = match flistxattr(file, &mut names[..]) {
        // A file system without attributes has none.
        Err(Errno::NOTSUP | Errno::NOSYS) => 0,
        listed => listed?,
    };
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| OsStr::from_bytes(name).to_owned()).collect())
}

fn value(file: &File, name: &OsStr) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; LONGEST];
    let length = fgetxattr(file, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An access list as `setfacl -m u:4711:rw` makes it (version 2; tag, permissions, id): owner rw, user 4711 rw, group r,
    /// mask rw, others nothing.
    const LIST: [u8; 44] = [
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 6, 0, 0x67, 0x12, 0, 0, 4, 0, 4, 0, 255, 255, 255,
        255, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
    ];

    #[test]
    fn what_hangs_on_the_old_file_hangs_on_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| File::create_new(folder.path().join(name)).unwrap());
        let put = |name: &OsStr, value: &[u8]| fsetxattr(&old, name, value, XattrFlags::empty()).is_ok();
        let all: [(&[u8], &[u8]); 4] = [
            (b"user.note", b"golden"),
            (b"user.empty", b""),
            (b"user.\xff", b"a name in no UTF-8"),
            (b"system.posix_acl_access", &LIST),
        ];
        let there: Vec<_> = all.iter().filter(|(name, value)| put(OsStr::from_bytes(name), value)).collect();
        if there.len() < all.len() {
            goldwire_stdx::testing::excuse(goldwire_stdx::testing::Excuse::NoAttributes);
        }
        assert_eq!(keep(Ok(&old), &new), None);
        for (name, value) in there {
            let name = OsStr::from_bytes(name);
            assert_eq!(self::value(&new, name).as_deref(), Ok(*value), "{name:?}");
        }
        assert_eq!(keep(Ok(&old), &new), None, "twice");
    }

    /// A file that is open for reading only, on a file system that is, or has no such attributes.
    #[test]
    fn what_cannot_be_kept_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let old = File::create_new(folder.path().join("old")).unwrap();
        let names = [b"user.note".as_slice(), b"user.\xff"].map(OsStr::from_bytes);
        let foreign = File::open("/proc/self/status").unwrap();
        if names.iter().any(|name| fsetxattr(&old, *name, b"golden", XattrFlags::empty()).is_err()) {
            return goldwire_stdx::testing::excuse(goldwire_stdx::testing::Excuse::NoAttributes);
        }
        let said = keep(Ok(&old), &foreign).unwrap();
        assert!(said.contains("user.note") && said.contains(r"user.\xff"), "{said}");
    }

    /// Whoever cannot read the old file does not know what it had. That was lost in silence.
    #[test]
    fn an_old_file_that_cannot_be_read_is_said() {
        let new = tempfile::tempfile().unwrap();
        let said = keep(Err(io::ErrorKind::PermissionDenied.into()), &new).unwrap();
        assert!(said.contains("permission denied"), "{said}");
        assert_eq!(keep(Err(io::ErrorKind::NotFound.into()), &new), None, "there was none");
        // What can be opened, and whose attributes cannot be listed.
        let path = OsStr::new("/");
        let folder = rustix::fs::open(path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        assert!(keep(Ok(&File::from(folder)), &new).is_some());
    }

    #[test]
    fn only_what_is_about_the_file_is_taken_over() {
        for (name, is_kept) in [
            ("user.note", true),
            ("system.posix_acl_access", true),
            ("system.nfs4_acl", true),
            ("security.selinux", true),
            ("security.capability", false),
            ("security.ima", false),
            ("trusted.gfid", false),
        ] {
            assert_eq!(is_the_users(name.as_ref()), is_kept, "{name}");
        }
    }
}
