//! From what the user wrote to the file that will be there, and the container it will have.

use std::fs;
use std::path::{Path, PathBuf};

use crate::failure::Result;
use crate::wire::{Failure, FailureKind, TargetJob, WireFormat};

/// Where a version goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetFile {
    /// The file, in an existing folder, absolute.
    pub(crate) path: PathBuf,
    pub(crate) format: WireFormat,
}

/// Finds the file that `job` is about.
pub(crate) fn resolve(job: &TargetJob) -> Result<TargetFile> {
    let written = Path::new(&job.path);
    let invalid = |why: String| Failure::new(FailureKind::Invalid, format!("{}: {why}", written.display()));
    if fs::metadata(written).is_ok_and(|data| data.is_dir()) {
        let format = job.format.unwrap_or(job.source_format);
        let name = with_ending(&plain_name(&job.name)?, format);
        let folder =
            fs::canonicalize(written).map_err(|error| Failure::io(format!("find {}", job.path), &error))?;
        let path = folder.join(name);
        refuse_unless_file(&path)?;
        return Ok(TargetFile { path, format });
    }
    if job.path.ends_with('/') {
        return Err(invalid("no such folder".into()).hint(format!("make it first: mkdir -p {}", job.path)));
    }
    let name = written.file_name().ok_or_else(|| invalid("names no file".into()))?;
    let name = plain_name(name.to_str().ok_or_else(|| invalid("the file name is not UTF-8".into()))?)?;
    let folder = match written.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = fs::canonicalize(folder).map_err(|error| {
        Failure::io(format!("find the folder {}", folder.display()), &error)
            .hint(format!("make it first: mkdir -p {}", folder.display()))
    })?;
    let path = folder.join(&name);
    refuse_unless_file(&path)?;
    let format = job.format.unwrap_or_else(|| by_ending(&name, job.source_format));
    Ok(TargetFile { path, format })
}

/// Nothing, or a regular file, may be where the disk goes: not a folder, a device, or a link.
fn refuse_unless_file(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(data) if !data.is_file() => Err(Failure::new(
            FailureKind::Invalid,
            format!("{} exists and is no regular file", path.display()),
        )
        .hint("a sync publishes by renaming; it replaces nothing but a regular file")),
        _ => Ok(()),
    }
}

/// A name that is one component and not one of ours.
fn plain_name(name: &str) -> Result<String> {
    let is_plain = !name.is_empty() && !name.contains('/') && !name.contains('\0') && !name.starts_with('.');
    if is_plain && name.len() <= 200 {
        Ok(name.to_owned())
    } else {
        Err(Failure::new(FailureKind::Invalid, format!("{name:?} cannot be the name of a disk"))
            .hint("a name is one path component of at most 200 bytes that does not start with a dot"))
    }
}

const ENDINGS: [(&str, WireFormat); 4] = [
    ("vhd", WireFormat::VhdDynamic),
    ("qcow2", WireFormat::Qcow2),
    ("raw", WireFormat::Raw),
    ("img", WireFormat::Raw),
];

fn ending(name: &str) -> Option<WireFormat> {
    let (_, ending) = name.rsplit_once('.')?;
    ENDINGS.iter().find(|(known, _)| known.eq_ignore_ascii_case(ending)).map(|(_, format)| *format)
}

/// The format that a file name asks for; `fallback` where it asks for none, or for the same family.
fn by_ending(name: &str, fallback: WireFormat) -> WireFormat {
    match (ending(name), fallback) {
        (Some(WireFormat::VhdDynamic), WireFormat::VhdFixed) | (None, _) => fallback,
        (Some(format), _) => format,
    }
}

/// The name with the ending of `format`, where it has the ending of another one.
fn with_ending(name: &str, format: WireFormat) -> String {
    let wanted = match format {
        WireFormat::Raw => "raw",
        WireFormat::VhdFixed | WireFormat::VhdDynamic => "vhd",
        WireFormat::Qcow2 => "qcow2",
    };
    match (ending(name), name.rsplit_once('.')) {
        (Some(named), Some((stem, _))) if by_ending(name, format) != format && named != format => {
            format!("{stem}.{wanted}")
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_follow_the_format_and_formats_the_ending() {
        assert_eq!(with_ending("a.vhd", WireFormat::Qcow2), "a.qcow2");
        assert_eq!(with_ending("a.vhd", WireFormat::VhdFixed), "a.vhd");
        assert_eq!(with_ending("a.img", WireFormat::Raw), "a.img");
        assert_eq!(with_ending("a.b", WireFormat::Raw), "a.b");
        assert_eq!(by_ending("a.VHD", WireFormat::Qcow2), WireFormat::VhdDynamic);
        assert_eq!(by_ending("a.vhd", WireFormat::VhdFixed), WireFormat::VhdFixed);
        assert_eq!(by_ending("a", WireFormat::Qcow2), WireFormat::Qcow2);
    }

    #[test]
    fn names_cannot_leave_the_folder_or_hide() {
        for name in ["", ".", "..", "../a", "a/b", ".goldwire", "a\0b"] {
            assert!(plain_name(name).is_err(), "{name:?}");
        }
        assert!(plain_name("Win10-baseDisk.vhd").is_ok());
    }
}
