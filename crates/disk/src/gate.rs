//! Gates: which files an image may make us open.
//!
//! An image names its parent by any path that its author liked, so the caller says what is allowed. A gate answers
//! with canonical paths: symbolic links are resolved before the decision, and the opening that follows refuses to
//! follow another one.
//!
//! A block device is somebody's whole disk, so that lying in the child's folder is no leave to read it: the user names
//! the device, or a folder in which only root makes names and through which the image reaches it (`/dev/VOLUME-GROUP`). It
//! keeps that name, because what the links there lead to (`/dev/dm-5`) has other neighbours.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::shown;
use crate::image::{Allowed, ParentReference};
use crate::{Error, ErrorKind, Result};

/// Decides which files an image may make us open. A hostile image names any path it likes.
pub trait Gate: Send + Sync {
    /// What to try, in order, for the parent that `child` names. An empty list means that nothing fits.
    ///
    /// # Errors
    /// `Denied` when the reference points outside of what the caller allows.
    fn resolve(&self, child: &Path, reference: &ParentReference) -> Result<Vec<Allowed>>;
}

/// No image may name another file.
#[derive(Clone, Copy, Debug, Default)]
pub struct DenyAll;

/// A parent must lie in the same folder as its child, which is where every XenServer file SR keeps its chains.
/// Symbolic links that leave the folder are refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct SameFolder;

/// A parent must lie in the same folder as its child (not in one below it), or in or below one of these folders, which
/// the user named. Block devices may be named themselves.
#[derive(Clone, Debug, Default)]
pub struct SameFolderOr(pub Vec<PathBuf>);

impl Gate for DenyAll {
    fn resolve(&self, child: &Path, reference: &ParentReference) -> Result<Vec<Allowed>> {
        match reference.paths.first() {
            Some(path) => Err(denied(child, path)),
            None => Ok(Vec::new()),
        }
    }
}

impl Gate for SameFolder {
    fn resolve(&self, child: &Path, reference: &ParentReference) -> Result<Vec<Allowed>> {
        filter(child, &[], reference)
    }
}

impl Gate for SameFolderOr {
    fn resolve(&self, child: &Path, reference: &ParentReference) -> Result<Vec<Allowed>> {
        let mut named = Vec::with_capacity(self.0.len());
        for folder in &self.0 {
            named.push(folder.canonicalize().map_err(|e| Error::io(folder, "resolve an allowed folder", e))?);
        }
        filter(child, &named, reference)
    }
}

/// The folder that holds `child` itself, where relative references start: of a link to a file the folder that the link
/// leads to, of a link to a block device the link's own.
pub(crate) fn folder_of(child: &Path) -> Result<PathBuf> {
    let failed = |e| Error::io(child, "resolve the path", e);
    let real = child.canonicalize().map_err(failed)?;
    if is_block_device(&real)
        && let (Some(folder), Some(_)) = (child.parent(), child.file_name())
    {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        return folder.canonicalize().map_err(failed);
    }
    match real.parent() {
        Some(folder) => Ok(folder.to_owned()),
        None => Err(Error::new(ErrorKind::Invalid, child, "the root folder is no image")),
    }
}

/// Those that exist and are allowed of what is named. Only when none is, one that exists elsewhere is an error.
fn filter(child: &Path, named: &[PathBuf], reference: &ParentReference) -> Result<Vec<Allowed>> {
    let folder = folder_of(child)?;
    let is_named = |path: &Path| named.iter().any(|named| path.starts_with(named));
    let mut found: Vec<Allowed> = Vec::new();
    let mut refused = None;
    for path in &reference.paths {
        let written = folder.join(path);
        let allowed = match written.canonicalize() {
            Ok(real) if is_block_device(&real) => device(&written, real, is_named).ok_or_else(|| {
                denied_as(child, path, "is a block device")
                    .with_hint("if you trust this image, name the device or its folder: --parents DEVICE")
            }),
            Ok(real) if real.parent() == Some(&folder) || is_named(&real) => Ok(Allowed::File(real)),
            Ok(_) => Err(denied(child, path)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(denied(child, path)),
            // Absent, too long, a loop of links: nothing that could be opened.
            Err(_) => continue,
        };
        match allowed {
            Ok(allowed) if !found.contains(&allowed) => found.push(allowed),
            Ok(_) => {}
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    match refused {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

fn is_block_device(path: &Path) -> bool {
    path.metadata().is_ok_and(|data| data.file_type().is_block_device())
}

/// The device `real` as `written` calls it, or by its own name where others than root could lead that name elsewhere;
/// nothing unless the user named it or a folder that stands for it.
fn device(written: &Path, real: PathBuf, is_named: impl Fn(&Path) -> bool) -> Option<Allowed> {
    let by_name = || {
        let folder = written.parent()?.canonicalize().ok()?;
        let data = folder.metadata().ok()?;
        let is_roots_alone = data.uid() == 0 && data.mode() & 0o022 == 0;
        is_roots_alone.then(|| folder.join(written.file_name().unwrap_or_default()))
    };
    match by_name() {
        Some(name) if is_named(&name) || is_named(&real) => Some(Allowed::Device(name)),
        _ => is_named(&real).then_some(Allowed::Device(real)),
    }
}

fn denied_as(child: &Path, parent: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Denied, child, format!("names the parent {}, which {what}", shown(parent)))
}

fn denied(child: &Path, parent: &Path) -> Error {
    denied_as(child, parent, "may not be opened")
        .with_hint("if you trust this image, allow the folder that holds its parent: --parents FOLDER")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn reference(paths: &[&str]) -> ParentReference {
        ParentReference { paths: paths.iter().map(PathBuf::from).collect(), uuid: None, format: None }
    }

    fn files<const N: usize>(paths: [PathBuf; N]) -> [Allowed; N] {
        paths.map(Allowed::File)
    }

    /// `sr/child`, `sr/parent`, `out/secret`, `sr/leaves -> ../out/secret`.
    fn tree() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let real = root.path().canonicalize().unwrap();
        for folder in ["sr", "out"] {
            std::fs::create_dir(real.join(folder)).unwrap();
        }
        for file in ["sr/child", "sr/parent", "out/secret"] {
            std::fs::write(real.join(file), b"x").unwrap();
        }
        symlink("../out/secret", real.join("sr/leaves")).unwrap();
        (root, real.join("sr"), real.join("out"))
    }

    #[test]
    fn deny_all_refuses_every_parent() {
        let error = DenyAll.resolve(Path::new("/x"), &reference(&["./y"])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied);
    }

    #[test]
    fn same_folder_takes_neighbours_by_any_spelling() {
        let (_root, sr, _) = tree();
        let absolute = sr.join("parent");
        let paths = ["./parent", "../sr/parent", absolute.to_str().unwrap(), "./gone"];
        assert_eq!(SameFolder.resolve(&sr.join("child"), &reference(&paths)).unwrap(), files([absolute]));
        assert!(SameFolder.resolve(&sr.join("child"), &reference(&["./gone"])).unwrap().is_empty());
    }

    #[test]
    fn same_folder_refuses_what_leaves() {
        let (_root, sr, _) = tree();
        for path in ["../out/secret", "./leaves", "/etc/passwd", "/dev/null"] {
            let error = SameFolder.resolve(&sr.join("child"), &reference(&[path])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Denied, "{path}");
        }
    }

    #[test]
    fn folders_allow_what_was_named_beside_the_childs_own() {
        let (_root, sr, out) = tree();
        let gate = SameFolderOr(vec![out.clone()]);
        assert_eq!(
            gate.resolve(&sr.join("child"), &reference(&["leaves"])).unwrap(),
            files([out.join("secret")]),
            "the link is judged by where it leads",
        );
        assert_eq!(
            gate.resolve(&sr.join("child"), &reference(&["parent"])).unwrap(),
            files([sr.join("parent")])
        );
        // `.ssh/id` beside an image of somebody else is no parent.
        std::fs::create_dir(sr.join("below")).unwrap();
        std::fs::write(sr.join("below/secret"), b"x").unwrap();
        std::fs::create_dir(out.join("below")).unwrap();
        std::fs::write(out.join("below/base"), b"x").unwrap();
        for gate in [SameFolderOr(Vec::new()), gate.clone()] {
            for path in ["below/secret", "/etc/passwd"] {
                let error = gate.resolve(&sr.join("child"), &reference(&[path])).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Denied, "{path}");
            }
        }
        let below = gate.resolve(&sr.join("child"), &reference(&["../out/below/base"])).unwrap();
        assert_eq!(below, files([out.join("below/base")]), "what was named is allowed as a whole");
    }
}
