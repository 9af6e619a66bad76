//! Finding the parent of a differencing disk: by its locators, by the name in the header, and by uuid among the
//! `*.vhd` and `*.avhd` files of the child's folder, because a renamed parent is still the parent.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use goldwire_stdx::Uuid;

use super::header::Header;
use super::locator::{PLATFORMS_READ, header_name};
use crate::gate::folder_of;
use crate::host::HostFile;
use crate::image::{Allowed, ParentReference};
use crate::parents::Parents;
use crate::{BlockDevice, Error, ErrorKind, Result};

/// The most files of a folder that are looked into for a uuid. A storage repository has a few thousand.
const FOLDER_FILES_MAX: usize = 8192;

/// What `header` says about the parent. Locators that cannot be read are skipped: there are others.
pub(crate) fn reference(host: &HostFile, header: &Header, file_length: u64) -> Result<ParentReference> {
    let mut paths = Vec::new();
    // Relative paths survive a move of the folder, so they go first; MacX is what XenServer reads first.
    for code in PLATFORMS_READ {
        for locator in header.locators().filter(|locator| locator.code == *code) {
            paths.extend(locator.paths(host, file_length)?.unwrap_or_default());
        }
    }
    if let Some(name) = header_name(header.parent_name()).ok().filter(|name| !name.is_empty()) {
        let name = name.replace('\\', "/");
        paths.extend(Path::new(&name).file_name().map(|name| Path::new(".").join(name)));
    }
    let mut unique: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !unique.contains(&path) {
            unique.push(path);
        }
    }
    // libvhd records a raw parent by a nil uuid.
    let uuid = Some(header.parent_uuid()).filter(|uuid| *uuid != Uuid([0; 16]));
    let format = if uuid.is_some() { "vpc" } else { "raw" };
    Ok(ParentReference { paths: unique, uuid, format: Some(format.to_owned()) })
}

/// Opens the parent that `reference` names.
pub(crate) fn open(
    host: &HostFile,
    reference: &ParentReference,
    parents: &mut dyn Parents,
) -> Result<Arc<dyn BlockDevice>> {
    let child = host.path();
    let missing = match parents.open_parent(child, reference) {
        Ok(Some(device)) => return Ok(device),
        Ok(None) => Error::new(ErrorKind::Corrupt, child, "is a differencing disk that names no parent"),
        // An error about another file is about a parent of the parent, which was found.
        Err(error) if error.path() != child => return Err(error),
        Err(error) if [ErrorKind::NotFound, ErrorKind::Denied].contains(&error.kind()) => error,
        Err(error) => return Err(error),
    };
    let Some(uuid) = reference.uuid else { return Err(missing) };
    let path = match find_by_uuid(child, uuid, parents)? {
        Search::Found(path) => path,
        Search::Nowhere => return Err(missing),
        Search::Stopped => {
            let hint = format!(
                "only {FOLDER_FILES_MAX} of the VHDs beside it were looked into; a parent that was renamed may be another one"
            );
            return Err(missing.with_hint(hint));
        }
    };
    let found = ParentReference { paths: vec![path], ..reference.clone() };
    parents.open_parent(child, &found)?.ok_or(missing)
}

/// What a search for a uuid came to.
enum Search {
    Found(PathBuf),
    Nowhere,
    /// It looked into as many files as it may, and there are more.
    Stopped,
}

/// The VHD beside `child` that carries `uuid`, among those that the gate lets us look into.
fn find_by_uuid(child: &Path, uuid: Uuid, parents: &dyn Parents) -> Result<Search> {
    let folder = folder_of(child)?;
    let entries = std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, "list the folder", e))?;
    let mut files = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| {
        // Hyper-V calls the parents of its checkpoints `avhd`.
        let is_vhd =
            |extension: &OsStr| ["vhd", "avhd"].iter().any(|vhd| extension.eq_ignore_ascii_case(vhd));
        path.extension().is_some_and(is_vhd)
    });
    let mut paths: Vec<PathBuf> = files.by_ref().take(FOLDER_FILES_MAX).collect();
    let otherwise = if files.next().is_some() { Search::Stopped } else { Search::Nowhere };
    paths.sort_unstable();
    let reference = ParentReference { paths, uuid: None, format: None };
    // If a gate allows nothing here, the first error stands.
    let Ok(allowed) = parents.resolve(child, &reference) else { return Ok(otherwise) };
    let found = allowed.iter().map(Allowed::path).find(|path| uuid_of(path) == Some(uuid));
    Ok(found.map_or(otherwise, |path| Search::Found(path.to_owned())))
}

/// The uuid of the VHD at `path`. Whatever keeps us from reading it keeps it from being the parent.
fn uuid_of(path: &Path) -> Option<Uuid> {
    if !path.symlink_metadata().ok()?.file_type().is_file() {
        return None;
    }
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path).ok()?;
    super::uuid(&file, path).ok()?
}
