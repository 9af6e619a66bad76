//! Gates: which files an image may make us open.
//!
//! An image names its parent by any path that its author liked, so the caller says what is allowed. A gate answers
//! with canonical paths: symbolic links are resolved before the decision, and the opening that follows refuses to
//! follow another one.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::shown;
use crate::image::ParentReference;
use crate::{Error, ErrorKind, Result};

/// Decides which files an image may make us open. A hostile image names any path it likes.
pub trait Gate: Send + Sync {
    /// The files to try, in order, for the parent that `child` names: canonical paths, since the last component
    /// is opened without following links. An empty list means that nothing fits.
    ///
    /// # Errors
    /// `Denied` when the reference points outside of what the caller allows.
    fn resolve(&self, child: &Path, reference: &ParentReference) -> Result<Vec<PathBuf>>;
}

/// No image may name another file.
#[derive(Clone, Copy, Debug, Default)]
pub struct DenyAll;

/// A parent must lie in the same folder as its child, which is where every XenServer file SR keeps its chains.
/// Symbolic links that leave the folder are refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct SameFolder;

/// A parent must lie in the same folder as its child (not in one below it), or in or below one of these folders, which
/// the user named.
#[derive(Clone, Debug, Default)]
pub struct SameFolderOr(pub Vec<PathBuf>);

impl Gate for DenyAll {
    fn resolve(&self, child: &Path, reference: &ParentReference) -> Result<Vec<PathBuf>> {
        match reference.paths.first() {
            Some(path) => Err(denied(child, path)),
            None => Ok(Vec::new()),
        }
    }
}

impl Gate for SameFolder {
    fn resolve(&self, child: &Path, reference: &ParentReference) -> Result<Vec<PathBuf>> {
        let folder = folder_of(child)?;
        filter(child, &folder, reference, |path| path.parent() == Some(&folder))
    }
}

impl Gate for SameFolderOr {
    fn resolve(&self, child: &Path, reference: &ParentReference) -> Result<Vec<PathBuf>> {
        let mut allowed = Vec::with_capacity(self.0.len());
        for folder in &self.0 {
            allowed
                .push(folder.canonicalize().map_err(|e| Error::io(folder, "resolve an allowed folder", e))?);
        }
        let folder = folder_of(child)?;
        filter(child, &folder, reference, |path| {
            path.parent() == Some(&folder) || allowed.iter().any(|folder| path.starts_with(folder))
        })
    }
}

/// The folder that holds `child` itself; relative references start here.
pub(crate) fn folder_of(child: &Path) -> Result<PathBuf> {
    let real = child.canonicalize().map_err(|e| Error::io(child, "resolve the path", e))?;
    match real.parent() {
        Some(folder) => Ok(folder.to_owned()),
        None => Err(Error::new(ErrorKind::Invalid, child, "the root folder is no image")),
    }
}

/// The named files that exist and are `allowed`. Only when none is, one that exists elsewhere is an error.
fn filter(
    child: &Path,
    folder: &Path,
    reference: &ParentReference,
    allowed: impl Fn(&Path) -> bool,
) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut refused = None;
    for path in &reference.paths {
        match folder.join(path).canonicalize() {
            Ok(real) if allowed(&real) => {
                if !found.contains(&real) {
                    found.push(real);
                }
            }
            Ok(_) => refused = refused.or(Some(path)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => refused = refused.or(Some(path)),
            // Absent, too long, a loop of links: nothing that could be opened.
            Err(_) => {}
        }
    }
    match refused {
        Some(path) if found.is_empty() => Err(denied(child, path)),
        _ => Ok(found),
    }
}

fn denied(child: &Path, parent: &Path) -> Error {
    Error::new(
        ErrorKind::Denied,
        child,
        format!("names the parent {}, which may not be opened", shown(parent)),
    )
    .with_hint("if you trust this image, allow the folder that holds its parent: --parents FOLDER")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn reference(paths: &[&str]) -> ParentReference {
        ParentReference { paths: paths.iter().map(PathBuf::from).collect(), uuid: None, format: None }
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
        assert_eq!(SameFolder.resolve(&sr.join("child"), &reference(&paths)).unwrap(), [absolute]);
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
            [out.join("secret")],
            "the link is judged by where it leads",
        );
        assert_eq!(gate.resolve(&sr.join("child"), &reference(&["parent"])).unwrap(), [sr.join("parent")]);
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
        assert_eq!(below, [out.join("below/base")], "what was named is allowed as a whole");
    }
}
