//! What the openings of one chain share: the gate, the files opened so far, the limits.

use std::fs::{File, Metadata};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::detect::NamedBy;
use crate::error::shown;
use crate::gate::Gate;
use crate::image::{Access, Allowed, ChainFile, FileIdentity, Format, ImageInfo, ParentReference};
use crate::parents::Parents;
use crate::{BlockDevice, Error, ErrorKind, Result, detect, qcow2, raw, vhd};

/// The deepest chain that is opened. XenServer stops at 30; what is deeper than this is a mistake or an attack.
pub(crate) const CHAIN_DEPTH_MAX: usize = 64;

/// Passed down from an image to its parents.
pub(crate) struct Chain {
    gate: Arc<dyn Gate>,
    files: Vec<ChainFile>,
    notices: Vec<String>,
}

impl Chain {
    /// A chain that is still empty.
    pub(crate) fn new(gate: Arc<dyn Gate>) -> Self {
        Self { gate, files: Vec::new(), notices: Vec::new() }
    }

    /// The files opened, the head first, and what the user should hear of them.
    pub(crate) fn into_parts(self) -> (Vec<ChainFile>, Vec<String>) {
        (self.files, self.notices)
    }

    /// Opens one image of the chain whose file and format are known.
    pub(crate) fn open_file(
        &mut self,
        file: File,
        path: &Path,
        format: Format,
        access: Access,
    ) -> Result<(Arc<dyn BlockDevice>, ImageInfo)> {
        let place = self.enter(&file, path, format)?;
        let (device, info) = match format {
            Format::Raw => raw::open(file, path, access),
            Format::VhdFixed | Format::VhdDynamic | Format::VhdDifferencing => {
                vhd::open(file, path, access, self)
            }
            Format::Qcow2 => qcow2::open(file, path, access, self),
        }?;
        // Whoever named the format said only that it is a VHD.
        self.files[place].format = info.format;
        Ok((device, info))
    }

    /// Counts `file` as the next one of the chain; which one it is.
    fn enter(&mut self, file: &File, path: &Path, format: Format) -> Result<usize> {
        let identity = FileIdentity::of(file).map_err(|e| Error::io(path, "stat the image", e))?;
        let is_same = |file: &ChainFile| {
            (file.identity.device, file.identity.inode) == (identity.device, identity.inode)
        };
        if self.files.iter().any(is_same) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                path,
                "is its own parent through a loop of references",
            ));
        }
        if self.files.len() >= CHAIN_DEPTH_MAX {
            let message = format!("its chain has more than {CHAIN_DEPTH_MAX} files");
            return Err(Error::new(ErrorKind::Corrupt, path, message).with_hint("coalesce the chain first"));
        }
        self.files.push(ChainFile { path: path.to_owned(), format, identity });
        Ok(self.files.len() - 1)
    }
}

impl Parents for Chain {
    fn open_parent(
        &mut self,
        child: &Path,
        reference: &ParentReference,
    ) -> Result<Option<Arc<dyn BlockDevice>>> {
        if reference.paths.is_empty() {
            return Ok(None);
        }
        let format = match reference.format.as_deref() {
            Some(name) => Some(ParentFormat::by_name(child, name)?),
            None => None,
        };
        let mut wrong_uuid = None;
        for allowed in self.gate.resolve(child, reference)? {
            let Some(file) = open_parent(&allowed)? else { continue };
            let path = allowed.path().to_owned();
            let format = match format {
                Some(ParentFormat::Exactly(format)) => format,
                Some(ParentFormat::AnyVhd) => match vhd::format(&file, &path)? {
                    Some(format) => format,
                    // Another of the named files may be the one.
                    None if reference.uuid.is_some() => {
                        wrong_uuid.get_or_insert(path);
                        continue;
                    }
                    None => {
                        let message = "is recorded as a VHD by the image that names it, and is none";
                        return Err(Error::new(ErrorKind::Corrupt, path, message));
                    }
                },
                None => detect::detect_file(&file, &path, NamedBy::Child)?.format,
            };
            // Looked at before the file's own parents are opened: a level that could try several files, each with
            // several parents, would take ages to say no.
            if reference.uuid.is_some() && reference.uuid != vhd::uuid(&file, &path)? {
                wrong_uuid.get_or_insert(path);
                continue;
            }
            let (device, _) = self.open_file(file, &path, format, Access::Read)?;
            return Ok(Some(device));
        }
        Err(match wrong_uuid {
            Some(path) => Error::new(
                ErrorKind::Corrupt,
                child,
                format!("its parent {} carries another uuid than the one that it names", shown(&path)),
            )
            .with_hint("the parent was replaced after this image was made; find the original"),
            None => Error::new(ErrorKind::NotFound, child, "the parent that it names does not exist")
                .with_hint(format!(
                    "it names {}: bring it back there, or say in the image where it is now",
                    names(reference)
                )),
        })
    }

    fn notice(&mut self, text: String) {
        self.notices.push(text);
    }

    fn resolve(&self, child: &Path, reference: &ParentReference) -> Result<Vec<Allowed>> {
        self.gate.resolve(child, reference)
    }
}

/// What a child says about its parent's format.
#[derive(Clone, Copy)]
enum ParentFormat {
    Exactly(Format),
    AnyVhd,
}

impl ParentFormat {
    fn by_name(child: &Path, name: &str) -> Result<Self> {
        match name {
            "raw" | "file" | "host_device" => Ok(Self::Exactly(Format::Raw)),
            "qcow2" => Ok(Self::Exactly(Format::Qcow2)),
            "vpc" => Ok(Self::AnyVhd),
            _ => {
                Err(Error::new(ErrorKind::Unsupported, child, format!("its parent has the format {name:?}")))
            }
        }
    }
}

fn names(reference: &ParentReference) -> String {
    let names: Vec<String> = reference.paths.iter().map(|path| shown(path)).collect();
    names.join(", ")
}

/// Opens what an image named and a gate allowed: a file only if it is a regular one, and not through a link that was put
/// there after the gate looked. Looking before opening keeps us from touching devices that nobody allowed.
fn open_parent(allowed: &Allowed) -> Result<Option<File>> {
    let path = allowed.path();
    let (looked, follow, refuse) = match allowed {
        Allowed::File(_) => {
            (path.symlink_metadata(), OFlags::NOFOLLOW, "is named as a parent but is no regular file")
        }
        Allowed::Device(_) => {
            (path.metadata(), OFlags::empty(), "is named as a parent but is no block device")
        }
    };
    let is_right = |data: &Metadata| match allowed {
        Allowed::File(_) => data.file_type().is_file(),
        Allowed::Device(_) => data.file_type().is_block_device(),
    };
    let refuse = || Error::new(ErrorKind::Denied, path, refuse);
    match looked {
        Ok(data) if is_right(&data) => {}
        Ok(_) => return Err(refuse()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, "stat the parent", error)),
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | follow;
    let fd = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| Error::io(path, "open the parent", e.into()))?;
    let file = File::from(fd);
    let data = file.metadata().map_err(|e| Error::io(path, "stat the parent", e))?;
    if is_right(&data) { Ok(Some(file)) } else { Err(refuse()) }
}
