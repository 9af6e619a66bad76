//! The folder beside images that is goldwire's own, made so that nobody else can lead us astray through it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The folder beside images in which goldwire keeps everything of its own: cached trees, descriptors, unfinished
/// work. No XenServer SR scan looks into folders.
pub const WORK_FOLDER: &str = ".goldwire";

/// Makes `<folder>/.goldwire/<inner>` and returns it.
///
/// Image folders can be writable for many. Whoever owns what lies in `.goldwire` could replace files by links and
/// have us write through them, so the folder must be a real one, not writable for everybody, and belong to us, to
/// root, or to the owner of the folder around it (who can do anything there anyway; on NFS with squashed root it is
/// how our own folder looks).
///
/// # Errors
/// `PermissionDenied` for a folder that is not safe, or whatever the system says.
pub fn make_own_folder(folder: &Path, inner: &str) -> io::Result<PathBuf> {
    let own = folder.join(WORK_FOLDER);
    match fs::DirBuilder::new().mode(0o700).create(&own) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let data = fs::symlink_metadata(&own)?;
    let around = fs::metadata(folder)?.uid();
    let me = rustix::process::geteuid().as_raw();
    let is_trusted = data.uid() == me || data.uid() == 0 || data.uid() == around;
    if !data.is_dir() || data.mode() & 0o002 != 0 || !is_trusted {
        let text = format!("{} is not a folder of our own that others cannot write to", own.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let inner = own.join(inner);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&inner)?;
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_or_a_folder_open_to_all_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join(WORK_FOLDER)).unwrap();
        assert!(make_own_folder(folder.path(), "work").is_err());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
        fs::remove_file(folder.path().join(WORK_FOLDER)).unwrap();
        let own = make_own_folder(folder.path(), "work").unwrap();
        assert!(own.is_dir());
        fs::set_permissions(folder.path().join(WORK_FOLDER), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(make_own_folder(folder.path(), "work").is_err());
    }
}
