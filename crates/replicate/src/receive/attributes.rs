//! Extended attributes of a file that is replaced: access lists, labels, and what the user put there. The new file takes
//! them over as it takes owner and mode; what it cannot take is said.

use std::fs::File;

use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr};

/// The longest list of names, and the longest value, that Linux gives (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const LONGEST: usize = 64 << 10;

/// Gives `new` the attributes of `old`. The names of those that it could not be given.
pub(super) fn keep(old: &File, new: &File) -> Vec<String> {
    let names = list(old);
    let is_kept = |name: &&String| {
        let Some(value) = value(old, name) else { return true };
        self::value(new, name).as_ref() == Some(&value)
            || fsetxattr(new, name.as_str(), &value, XattrFlags::empty()).is_ok()
    };
    names.iter().filter(|name| is_the_users(name) && !is_kept(name)).cloned().collect()
}

/// `system.` has the access lists. Of `security.` only the label is about the file and not about what it holds, and
/// `trusted.` belongs to whoever runs the file system.
fn is_the_users(name: &str) -> bool {
    name.starts_with("user.") || name.starts_with("system.") || name == "security.selinux"
}

fn list(file: &File) -> Vec<String> {
    let mut names = vec![0; LONGEST];
    // A file system without attributes has none.
    let length = flistxattr(file, &mut names[..]).unwrap_or(0);
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.filter_map(|name| String::from_utf8(name.to_vec()).ok()).collect()
}

fn value(file: &File, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; LONGEST];
    let length = fgetxattr(file, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
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
        let put = |name: &str, value: &[u8]| fsetxattr(&old, name, value, XattrFlags::empty()).is_ok();
        let all =
            [("user.note", b"golden".as_slice()), ("user.empty", b""), ("system.posix_acl_access", &LIST)];
        let there: Vec<_> = all.iter().filter(|(name, value)| put(name, value)).collect();
        assert_eq!(keep(&old, &new), [""; 0]);
        for (name, value) in there {
            assert_eq!(self::value(&new, name).as_deref(), Some(*value), "{name}");
        }
        assert_eq!(keep(&old, &new), [""; 0], "twice");
    }

    /// A file that is open for reading only, on a file system that is, or has no such attributes.
    #[test]
    fn what_cannot_be_kept_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let old = File::create_new(folder.path().join("old")).unwrap();
        if fsetxattr(&old, "user.note", b"golden", XattrFlags::empty()).is_err() {
            return;
        }
        let foreign = File::open("/proc/self/status").unwrap();
        assert_eq!(keep(&old, &foreign), ["user.note"]);
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
            assert_eq!(is_the_users(name), is_kept, "{name}");
        }
    }
}
