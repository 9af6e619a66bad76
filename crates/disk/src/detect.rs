//! Which format a file has: by its content, and never against its name. What is not known to be a disk is not read as
//! one; whoever knows better names the format.

use std::fs::File;
use std::path::Path;

use goldwire_stdx::shell_path;

use crate::content::{Content, Foreign, Remedy};
use crate::error::shown;
use crate::host::{HostFile, open_named_file};
use crate::image::{Access, Format};
use crate::promise::Promise;
use crate::{Error, ErrorKind, Result};

/// A format, and what its reader should hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Detected {
    pub(crate) format: Format,
    /// Why the format may be another one than the user thinks, in a sentence.
    pub(crate) notice: Option<String>,
}

/// Who named the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NamedBy {
    /// The user, who can name its format too.
    User,
    /// An image, whose record of its parent's format can be mended.
    Child,
}

/// The format of the file at `path`: the one that its content shows. A plain disk is what nobody claims and whose name
/// promises nothing else.
///
/// # Errors
/// `NotFound`, `Denied`, `Io`; `Unsupported` for a container that is known and not read; `Invalid` for what is no disk:
/// neither a file nor a block device, an empty file, an archive, text; `Corrupt` for a name that promises a
/// disk which the content is not.
pub fn detect(path: impl AsRef<Path>) -> Result<Format> {
    let path = path.as_ref();
    let file = open_named_file(path, Access::Read)?;
    detect_file(&file, path, NamedBy::User).map(|detected| detected.format)
}

/// [`detect`] for an opened file.
///
/// Every block device is raw: a guest that owns a device could otherwise write a header into it and choose how we read
/// it. One that begins like a container brings a notice.
///
/// A VHD is claimed by its cookie even when its checksum is wrong, so that opening says what is broken instead of
/// taking the container's bytes for a disk.
pub(crate) fn detect_file(file: &File, path: &Path, named_by: NamedBy) -> Result<Detected> {
    let file = file.try_clone().map_err(|e| Error::io(path, "duplicate the file handle", e))?;
    let host = HostFile::new(file, path);
    if host.is_block_device()? {
        // The name of a device is its place and promises nothing.
        let notice = device_notice(path, Content::of(&host, None)?);
        // Nobody would hear the notice, and QEMU would read what is inside.
        if let (Some(notice), NamedBy::Child) = (&notice, named_by) {
            return Err(Error::new(ErrorKind::Unsupported, path, notice.clone()).with_hint(HINT_RECORD));
        }
        return Ok(Detected { format: Format::Raw, notice });
    }
    let judge = Judge { path, named_by };
    // The name that was written; of a link that promises nothing, the name that it leads to.
    let promise = Promise::of(path).or_else(|| Promise::of(path.canonicalize().ok()?));
    let format = match (Content::of(&host, promise)?, promise) {
        (Content::Foreign(foreign), _) => return Err(judge.foreign(foreign, promise)),
        (Content::Empty, _) => {
            let empty = Error::new(no_disk(promise), path, "is empty, and no disk is");
            return Err(
                empty.with_hint("look where it comes from: a copy or a download that failed looks so")
            );
        }
        (Content::Both, _) => return Err(judge.both()),
        (Content::Container(format), None) => format,
        (Content::Container(format), Some(promise)) if promise.is_kept_by(format) => format,
        (Content::Container(format), Some(promise)) => return Err(judge.misnamed(format, promise)),
        (Content::Plain, None | Some(Promise::Raw)) => Format::Raw,
        (Content::Plain, Some(promise)) => return Err(judge.broken(promise)),
    };
    Ok(Detected { format, notice: None })
}

/// What to say about a block device that is read as it is.
fn device_notice(path: &Path, content: Content) -> Option<String> {
    let what = match content {
        Content::Container(Format::Qcow2) => "a QCOW2 image",
        Content::Both => "a QCOW2 image and ends like a VHD",
        Content::Container(_) => "a VHD",
        Content::Foreign(foreign) => foreign.what,
        Content::Empty | Content::Plain => return None,
    };
    let option = match content {
        Content::Container(Format::Qcow2) => "; --source-format qcow2 reads the disk inside",
        Content::Container(_) => "; --source-format vhd reads the disk inside",
        _ => "",
    };
    Some(format!("{} begins like {what} and is read as it is, byte by byte{option}", shown(path)))
}

/// What is wrong with a file that is no disk at all: that it was asked for or, if its name promises a disk, that it became
/// something else.
fn no_disk(promise: Option<Promise>) -> ErrorKind {
    match promise {
        Some(Promise::Raw | Promise::Vhd | Promise::Qcow2) => ErrorKind::Corrupt,
        Some(Promise::Foreign(_)) | None => ErrorKind::Invalid,
    }
}

const HINT_RECORD: &str =
    "record its format in the image that names it: qemu-img rebase -u -F FORMAT -b PARENT IMAGE";

struct Judge<'a> {
    path: &'a Path,
    named_by: NamedBy,
}

impl Judge<'_> {
    /// Something that is known by name and not read.
    fn foreign(&self, foreign: &Foreign, promise: Option<Promise>) -> Error {
        let kind = match foreign.remedy {
            Remedy::Convert => ErrorKind::Unsupported,
            Remedy::Unpack(_) | Remedy::Other(_) => no_disk(promise),
        };
        let file = shell_path(self.path);
        let hint = match foreign.remedy {
            Remedy::Convert => {
                let converted = shell_path(&self.path.with_extension("qcow2"));
                format!("convert it first: qemu-img convert -O qcow2 {file} {converted}")
            }
            Remedy::Unpack(command) => format!("unpack it first: {command} {file}"),
            Remedy::Other(sentence) => sentence.to_owned(),
        };
        let message = format!("is {}, which goldwire does not read", foreign.what);
        let error = Error::new(kind, self.path, message).with_hint(hint);
        error.with_hint(self.way_out("a disk that only begins like this is read", "raw"))
    }

    /// Two claims of which one was written by the guest.
    fn both(&self) -> Error {
        let message = "begins like a QCOW2 image and ends like a VHD, and its name does not say which it is";
        Error::new(ErrorKind::Corrupt, self.path, message)
            .with_hint(self.way_out("the QCOW2 image is read", "qcow2"))
            .with_hint(self.way_out("the VHD is read", "vhd"))
            .with_hint(self.way_out("a raw disk that holds both is read", "raw"))
    }

    /// A container under the name of another one.
    fn misnamed(&self, format: Format, promise: Promise) -> Error {
        let (is, name) = match format {
            Format::Raw => ("a raw disk", "raw"),
            Format::Qcow2 => ("a QCOW2 image", "qcow2"),
            Format::VhdFixed | Format::VhdDynamic | Format::VhdDifferencing => ("a VHD", "vhd"),
        };
        let message = format!("looks like {is}, but its name promises {}", promise.what());
        let error = Error::new(ErrorKind::Corrupt, self.path, message)
            .with_hint(self.way_out(&format!("{is} is read"), name));
        match promise {
            // Whoever owns the disk inside can write a header to it.
            Promise::Raw => {
                error.with_hint(self.way_out("a raw disk whose guest wrote such a header is read", "raw"))
            }
            _ => error,
        }
    }

    /// A name that promises a container over bytes that are none.
    fn broken(&self, promise: Promise) -> Error {
        let message = match promise {
            Promise::Vhd => "holds no VHD: the footer at its end is missing, as when a copy was cut short",
            Promise::Qcow2 => "holds no QCOW2 image: its first bytes are not those of one",
            _ => "holds something else than its name promises",
        };
        let error = match promise {
            Promise::Foreign(what) => {
                let message = format!("is named like {what}, and is none");
                Error::new(ErrorKind::Corrupt, self.path, message)
            }
            _ => Error::new(ErrorKind::Corrupt, self.path, message)
                .with_hint("copy it again from where it is whole, and compare the lengths"),
        };
        error.with_hint(self.way_out("a raw disk of this name is read", "raw"))
    }

    fn way_out(&self, who: &str, format: &str) -> String {
        match self.named_by {
            NamedBy::User => format!("{who} by --source-format {format}"),
            NamedBy::Child => {
                format!(
                    "{who} if the image that names it records its format: qemu-img rebase -u -F {format} -b PARENT IMAGE"
                )
            }
        }
    }
}
