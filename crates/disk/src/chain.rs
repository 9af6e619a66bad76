//! What the openings of one chain share: the gate, the files opened so far, the limits.

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::gate::Gate;
use crate::open::{FileIdentity, Format, ImageInfo, Link, ParentReference};
use crate::{BlockDevice, Error, ErrorKind, Result, detect, qcow2, raw, vhd};

/// The deepest chain that is opened. XenServer stops at 30; what is deeper than this is a mistake or an attack.
pub(crate) const CHAIN_DEPTH_MAX: usize = 64;

/// Passed down from an image to its parents.
pub(crate) struct ChainContext {
    gate: Arc<dyn Gate>,
    links: Vec<Link>,
}

impl ChainContext {
    /// A chain that is still empty.
    pub(crate) fn new(gate: Arc<dyn Gate>) -> Self {
        Self { gate, links: Vec::new() }
    }

    /// The files opened, the head first.
    pub(crate) fn into_links(self) -> Vec<Link> {
        self.links
    }

    /// Opens the parent that the image at `child` names, through the gate and for reading only.
    ///
    /// `Ok(None)` when `reference` names no path. The parent's format is the one that `reference.format` claims in
    /// QEMU's words (`raw`, `qcow2`, `vpc`), and is detected from its content when nothing is claimed. Where
    /// `reference.uuid` is given, the parent must carry it.
    ///
    /// # Errors
    /// `NotFound` when no named file exists, `Denied` by the gate, `Corrupt` for a loop, a chain that is too deep
    /// or the wrong uuid, and whatever opening the parent answers.
    pub(crate) fn open_parent(
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
        for path in self.gate.resolve(child, reference)? {
            let Some(file) = open_parent_file(&path)? else { continue };
            let format = match format {
                Some(ParentFormat::Exactly(format)) => format,
                Some(ParentFormat::AnyVhd) | None => detect::detect_file(&file, &path)?,
            };
            // Looked at before the file's own parents are opened: a level that could try several files, each with
            // several parents, would take ages to say no.
            if reference.uuid.is_some() && reference.uuid != vhd::uuid(&file, &path)? {
                wrong_uuid.get_or_insert(path);
                continue;
            }
            let (device, _) = self.open_file(file, &path, format, false)?;
            return Ok(Some(device));
        }
        Err(match wrong_uuid {
            Some(path) => Error::new(
                ErrorKind::Corrupt,
                child,
                format!("its parent {} carries another uuid than the one that it names", path.display()),
            )
            .with_hint("the parent was replaced after this image was made; find the original"),
            None => Error::new(ErrorKind::NotFound, child, "the parent that it names does not exist")
                .with_hint(format!("it names {}", names(reference))),
        })
    }

    /// The files that the gate lets us open among those that `reference` names.
    ///
    /// # Errors
    /// `Denied` by the gate.
    pub(crate) fn resolve(&self, child: &Path, reference: &ParentReference) -> Result<Vec<PathBuf>> {
        self.gate.resolve(child, reference)
    }

    /// Opens one image of the chain whose file and format are known.
    pub(crate) fn open_file(
        &mut self,
        file: File,
        path: &Path,
        format: Format,
        writable: bool,
    ) -> Result<(Arc<dyn BlockDevice>, ImageInfo)> {
        self.enter(&file, path, format)?;
        match format {
            Format::Raw => raw::open(file, path, writable, self),
            Format::VhdFixed | Format::VhdDynamic | Format::VhdDifferencing => {
                vhd::open(file, path, writable, self)
            }
            Format::Qcow2 => qcow2::open(file, path, writable, self),
        }
    }

    /// Counts `file` as the next link of the chain.
    fn enter(&mut self, file: &File, path: &Path, format: Format) -> Result<()> {
        let identity = FileIdentity::of(file).map_err(|e| Error::io(path, "stat the image", e))?;
        let is_same =
            |link: &Link| (link.identity.device, link.identity.inode) == (identity.device, identity.inode);
        if self.links.iter().any(is_same) {
            return Err(Error::new(
                ErrorKind::Corrupt,
                path,
                "is its own parent through a loop of references",
            ));
        }
        if self.links.len() >= CHAIN_DEPTH_MAX {
            let message = format!("its chain has more than {CHAIN_DEPTH_MAX} files");
            return Err(Error::new(ErrorKind::Corrupt, path, message).with_hint("coalesce the chain first"));
        }
        self.links.push(Link { path: path.to_owned(), format, identity });
        Ok(())
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
    let names: Vec<String> = reference.paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}

/// Opens what the user named: a regular file or a block device. `O_NONBLOCK` keeps a FIFO from holding us.
pub(crate) fn open_named_file(path: &Path, writable: bool) -> Result<File> {
    let access = if writable { OFlags::RDWR } else { OFlags::RDONLY };
    let fd = rustix::fs::open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io(path, "open the image", e.into()))?;
    let file = File::from(fd);
    let kind = file.metadata().map_err(|e| Error::io(path, "stat the image", e))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(file);
    }
    Err(Error::new(ErrorKind::Invalid, path, "is neither a regular file nor a block device"))
}

/// Opens what an image named: only a regular file, and not through a link that was put there after the gate
/// looked. Looking before opening keeps us from touching devices at all.
fn open_parent_file(path: &Path) -> Result<Option<File>> {
    let refuse = || Error::new(ErrorKind::Denied, path, "is named as a parent but is no regular file");
    match path.symlink_metadata() {
        Ok(metadata) if metadata.file_type().is_file() => {}
        Ok(_) => return Err(refuse()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, "stat the parent", error)),
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())
        .map_err(|e| Error::io(path, "open the parent", e.into()))?;
    let file = File::from(fd);
    let metadata = file.metadata().map_err(|e| Error::io(path, "stat the parent", e))?;
    if metadata.file_type().is_file() { Ok(Some(file)) } else { Err(refuse()) }
}
