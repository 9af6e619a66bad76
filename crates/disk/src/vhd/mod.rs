//! VHD, the format of XenServer, Hyper-V and Azure: fixed, dynamic and differencing.
//!
//! It follows the *Virtual Hard Disk Image Format Specification* 1.0 (Microsoft, 2006) and, where XenServer went
//! its own way, libvhd of the blktap project. `docs/formats.md` says what we decided where readers differ.

mod bat;
mod batmap;
mod bitmap;
mod check;
mod create;
mod dynamic;
mod footer;
mod geometry;
mod header;
mod locator;
mod parent;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use goldwire_stdx::Uuid;

use crate::error::shown;
use crate::host::{HostFile, open_named_file};
use crate::image::{Access, Format, ImageInfo, ParentReference};
use crate::parents::Parents;
use crate::raw::Flat;
use crate::{BlockDevice, Error, ErrorKind, Result};

pub(crate) use check::check;
pub(crate) use create::create;
use dynamic::{Dynamic, Parts};
pub(crate) use footer::DiskKind;
use footer::{EPOCH, Footer, Footers};
use header::Header;

/// Opens a VHD of any kind.
pub(crate) fn open(
    file: File,
    path: &Path,
    access: Access,
    parents: &mut dyn Parents,
) -> Result<(Arc<dyn BlockDevice>, ImageInfo)> {
    open_host(HostFile::new(file, path), access, parents)
}

fn open_host(
    host: HostFile,
    access: Access,
    parents: &mut dyn Parents,
) -> Result<(Arc<dyn BlockDevice>, ImageInfo)> {
    let footers = Footers::read(&host)?;
    let footer = footers.effective_or_error(&host)?;
    if footer.is_disabled() {
        return Err(Error::new(ErrorKind::Unsupported, host.path(), "was disabled by XenServer"));
    }
    let Some(kind) = footer.kind() else {
        let why = format!("{} is unknown", footer.kind_code());
        return Err(Error::corrupt(
            host.path(),
            "disk type",
            footers.trailing_offset.saturating_add(60),
            why,
        ));
    };
    let mut info = info(&footers, footer, kind);
    if let Err(fault) = &footers.trailing {
        parents.notice(format!(
            "{} has no good footer at its end ({fault}), as if it had been cut; it is read by the copy at its start, and \
             goldwire disk check tells more",
            shown(host.path())
        ));
    }
    if kind == DiskKind::Fixed {
        check_fixed_length(&host, &footers, footer)?;
        return Ok((Arc::new(Flat::new(host, footer.size(), access)), info));
    }
    let parts = Parts::read(&host, &footers, footer)?;
    info.details.push(("block size", parts.layout.block_size.to_string()));
    info.details.push(("blocks", format!("{} of {}", parts.bat.allocated().count(), parts.layout.blocks)));
    info.details.push(("batmap", if parts.batmap.is_some() { "yes" } else { "no" }.to_owned()));
    if kind == DiskKind::Differencing {
        info.details.push(("parent uuid", parts.header.parent_uuid().to_string()));
    }
    let disk = Dynamic::open(host, &footers, footer, parts, access, parents)?;
    Ok((Arc::new(disk), info))
}

fn check_fixed_length(host: &HostFile, footers: &Footers, footer: &Footer) -> Result<()> {
    if footer.size() <= footers.data_end() {
        return Ok(());
    }
    let at = footers.trailing_offset + 48;
    let why = format!("{} bytes, but only {} lie before the footer", footer.size(), footers.data_end());
    Err(Error::corrupt(host.path(), "footer current size", at, why))
}

fn info(footers: &Footers, footer: &Footer, kind: DiskKind) -> ImageInfo {
    let creator: String = footer.creator().iter().map(|&byte| char::from(byte)).collect();
    let (major, minor) = (footer.creator_version() >> 16, footer.creator_version() & 0xffff);
    let geometry = footer.geometry();
    let mut details = vec![
        ("creator", format!("{} {major}.{minor}", creator.trim_end_matches(['\0', ' ']).escape_default())),
        (
            "geometry",
            format!("{}/{}/{}", geometry.cylinders(), geometry.heads(), geometry.sectors_per_track()),
        ),
    ];
    if footers.trailing.is_err() {
        details.push(("footer", "lost; read from its copy at the start".to_owned()));
    }
    ImageInfo {
        format: kind.format(),
        size: footer.size(),
        uuid: Some(footer.uuid()),
        created: Some(EPOCH + i64::from(footer.timestamp())),
        hidden: Some(footers.hidden(footer)),
        details,
    }
}

/// The kind that a file claims to be; `None` when it holds no VHD cookie where one belongs.
pub(crate) fn detect(host: &HostFile) -> Result<Option<DiskKind>> {
    Ok(Footers::read(host)?.claimed_kind())
}

/// [`detect`] for a file.
pub(crate) fn format(file: &File, path: &Path) -> Result<Option<Format>> {
    let file = file.try_clone().map_err(|e| Error::io(path, "duplicate the file handle", e))?;
    Ok(detect(&HostFile::new(file, path))?.map(DiskKind::format))
}

/// What the differencing disk in `host` names as its parent.
pub(crate) fn parent_reference(host: &HostFile) -> Result<Option<ParentReference>> {
    let footers = Footers::read(host)?;
    let Some(footer) = footers.effective().filter(|footer| footer.kind() == Some(DiskKind::Differencing))
    else {
        return Ok(None);
    };
    let header = Header::read(host, footer, &footers)?;
    parent::reference(host, &header, footers.file_length).map(Some)
}

/// The uuid in the footer of `file`, if it is a VHD.
pub(crate) fn uuid(file: &File, path: &Path) -> Result<Option<Uuid>> {
    let file = file.try_clone().map_err(|e| Error::io(path, "duplicate the file handle", e))?;
    Ok(Footers::read(&HostFile::new(file, path))?.effective().map(Footer::uuid))
}

/// Sets or clears XenServer's `hidden` byte in every footer of the VHD at `path`, durably. A hidden leaf is
/// deleted by the next garbage collection of its storage repository, a shown one becomes a managed VDI.
///
/// # Errors
/// `Corrupt` when the footer at the end of the file is damaged: a disk that XenServer would not scan must not be
/// shown to it.
pub fn set_hidden(path: impl AsRef<Path>, hidden: bool) -> Result<()> {
    let path = path.as_ref();
    let host = HostFile::new(open_named_file(path, Access::Write)?, path);
    let footers = Footers::read(&host)?;
    let mut footer = match &footers.trailing {
        Ok(footer) => footer.clone(),
        Err(fault) => {
            let at = footers.trailing_offset.saturating_add(fault.offset());
            return Err(Error::corrupt(path, fault.field(), at, fault)
                .with_hint("copy the image again, or repair it with vhd-util"));
        }
    };
    footer.set_hidden(hidden);
    if footer.kind() != Some(DiskKind::Fixed) {
        host.write(footer.bytes(), 0, "the footer's copy")?;
        // One footer is always whole.
        host.sync()?;
    }
    let length = (footers.file_length - footers.trailing_offset) as usize;
    host.write(&footer.bytes()[..length], footers.trailing_offset, "the footer")?;
    host.sync()
}
