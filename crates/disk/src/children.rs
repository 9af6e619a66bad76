//! Which images would change if a disk were replaced: those in its folder that name it as their parent.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::content::Content;
use crate::gate::{Gate, SameFolder, folder_of};
use crate::host::{HostFile, open_named_file};
use crate::image::{Access, FileIdentity, ParentReference};
use crate::promise::Promise;
use crate::{Error, Format, Result, qcow2, vhd};

/// The most files of a folder that are looked into. A storage repository has a few thousand.
const FOLDER_FILES_MAX: usize = 8192;

/// What was found by [`children`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Children {
    /// Images that name the parent, in the order of their names.
    pub found: Vec<PathBuf>,
    /// How many files were looked into when there were more than that: then there may be other images.
    pub stopped_after: Option<usize>,
}

/// The images in the folder of `parent` that name it as their parent, by path or by uuid. Of those elsewhere nothing is
/// known. What cannot be read names nobody.
///
/// # Errors
/// `Io` or `Denied` when the folder cannot be listed or `parent` not be looked at.
pub fn children(parent: impl AsRef<Path>) -> Result<Children> {
    look(parent.as_ref(), FOLDER_FILES_MAX)
}

fn look(parent: &Path, files_max: usize) -> Result<Children> {
    let folder = folder_of(parent)?;
    let identity =
        |path: &Path| FileIdentity::of_path(path).map(|identity| (identity.device, identity.inode));
    let own = identity(parent).map_err(|e| Error::io(parent, "stat the image", e))?;
    let uuid = open_named_file(parent, Access::Read).and_then(|file| vhd::uuid(&file, parent))?;
    let entries = std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, "list the folder", e))?;
    let mut files = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.symlink_metadata().is_ok_and(|data| data.is_file()));
    let mut found: Vec<PathBuf> = files
        .by_ref()
        .take(files_max)
        .filter(|path| identity(path).is_ok_and(|other| other != own))
        .filter(|path| {
            let Some(reference) = parent_of(path) else { return false };
            let by_path = SameFolder.resolve(path, &reference).unwrap_or_default();
            let is_named = by_path.iter().any(|named| identity(named.path()).is_ok_and(|named| named == own));
            is_named || (reference.uuid.is_some() && reference.uuid == uuid)
        })
        .collect();
    found.sort_unstable();
    Ok(Children { found, stopped_after: files.next().map(|_| files_max) })
}

/// What the image at `path` says about its parent, if it is one that has a parent.
fn parent_of(path: &Path) -> Option<ParentReference> {
    let file: File = open_named_file(path, Access::Read).ok()?;
    let host = HostFile::new(file, path);
    match Content::of(&host, Promise::of(path)).ok()? {
        Content::Container(Format::Qcow2) => qcow2::parent_reference(&host).ok()?,
        Content::Container(Format::VhdDifferencing) => vhd::parent_reference(&host).ok()?,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_stops_looking_says_so() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["base.raw", "a", "b"] {
            std::fs::write(folder.path().join(name), [0; 512]).unwrap();
        }
        std::fs::create_dir(folder.path().join("no file")).unwrap();
        let base = folder.path().join("base.raw");
        for (files_max, stopped_after) in [(4, None), (3, None), (2, Some(2)), (0, Some(0))] {
            let children = look(&base, files_max).unwrap();
            assert_eq!(children, Children { found: Vec::new(), stopped_after }, "{files_max}");
        }
    }
}
