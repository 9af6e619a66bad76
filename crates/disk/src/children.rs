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

/// The images in the folder of `parent` that name it as their parent, by path or by uuid, in the order of their names.
/// What cannot be read names nobody.
///
/// # Errors
/// `Io` or `Denied` when the folder cannot be listed or `parent` not be looked at.
pub fn children(parent: impl AsRef<Path>) -> Result<Vec<PathBuf>> {
    let parent = parent.as_ref();
    let folder = folder_of(parent)?;
    let identity =
        |path: &Path| FileIdentity::of_path(path).map(|identity| (identity.device, identity.inode));
    let own = identity(parent).map_err(|e| Error::io(parent, "stat the image", e))?;
    let uuid = open_named_file(parent, Access::Read).and_then(|file| vhd::uuid(&file, parent))?;
    let entries = std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, "list the folder", e))?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .take(FOLDER_FILES_MAX)
        .filter(|path| path.symlink_metadata().is_ok_and(|data| data.is_file()))
        .filter(|path| identity(path).is_ok_and(|other| other != own))
        .filter(|path| {
            let Some(reference) = parent_of(path) else { return false };
            let by_path = SameFolder.resolve(path, &reference).unwrap_or_default();
            let is_named = by_path.iter().any(|named| identity(named).is_ok_and(|named| named == own));
            is_named || (reference.uuid.is_some() && reference.uuid == uuid)
        })
        .collect();
    found.sort_unstable();
    Ok(found)
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
