//! What the target's file system can do, found out before the first byte is asked for: all that publishing needs at the
//! end is tried at the beginning, with files that are gone afterwards. File systems without POSIX manners (network
//! shares, FUSE) otherwise fail when everything has been received, and every time again.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

use goldwire_stdx::{ByteSize, Existing};
use goldwire_store::{CHUNK_SIZE, Version};

use super::publish::rename;
use super::resolve::how_to_ask_for;
use super::work::{WorkPlace, hidden, shown};
use crate::failure::Result;
use crate::wire::{Failure, FailureKind, WireFormat};

/// The file that is tried with.
const NAME: &str = "probe";

/// What it is called while it lies beside the target.
const ENDING: &str = ".goldwire-probe";

/// The target beside which a file of this name was tried with.
pub(super) fn target_of(tried: &OsStr) -> Option<OsString> {
    shown(tried, ENDING)
}

/// The hole that is tried.
const HOLE: u64 = 8 << 20;

/// What becomes of parts of a file that were never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holes {
    /// They take no space.
    Kept,
    /// They are filled with zeros (FAT, exFAT): a file takes its whole length.
    Filled,
}

/// Tries in `place` what the container for `version` will need.
///
/// # Errors
/// The step that does not work here, and what can be done.
pub(super) fn probe(place: &WorkPlace, version: &Version, format: WireFormat) -> Result<Holes> {
    let length = shortest(version, format);
    // Left by a run that was killed here.
    let _ = place.folder().remove_file(NAME);
    let tried = try_all(place, length);
    let _ = place.folder().remove_file(NAME);
    tried
}

fn try_all(place: &WorkPlace, length: u64) -> Result<Holes> {
    let (around, name) = place.target();
    let failed = |step: &'static str| {
        let folder = around.path().display().to_string();
        move |error: io::Error| unfit(&folder, step, &error)
    };
    let mut file = place.folder().create_new(NAME, 0o600).map_err(failed("make a file"))?;
    file.write_all(&[1; 4096]).map_err(failed("write"))?;
    file.sync_all().map_err(failed("make a file durable (fsync)"))?;
    around.sync().map_err(failed("make the folder durable (fsync)"))?;
    // A file system's own limit shows in where a file can be read and written at all, before anything is allocated.
    if file.seek(SeekFrom::Start(length)).is_err() {
        return Err(too_long(length, "the file system takes no file of that length"));
    }
    let holes = try_hole(&file, around).map_err(failed("lengthen a file"))?;
    if holes == Holes::Kept {
        file.set_len(length).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput => {
                too_long(length, "the file system takes no file of that length")
            }
            _ => failed("lengthen a file")(error),
        })?;
        file.set_len(0).map_err(failed("shorten a file"))?;
    }
    drop(file);
    let shown = hidden(name, ENDING);
    around.remove_file(&shown).map_err(failed("remove a file"))?;
    let renamed = rename(place, OsStr::new(NAME), &shown, Existing::Keep);
    let removed = around.remove_file(&shown);
    renamed.map_err(failed("rename a file from the work folder to the folder"))?;
    removed.map_err(failed("remove a file"))?;
    Ok(holes)
}

/// Lengthens `file` by a hole. Both the file and the file system must say that it was filled: one that only computes what a
/// file occupies from its length (`sshfs`) may well keep holes.
fn try_hole(file: &File, around: &goldwire_stdx::Folder) -> io::Result<Holes> {
    let free = || rustix::fs::fstatvfs(around).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    let before = free()?;
    file.set_len(HOLE)?;
    file.sync_all()?;
    Ok(judge_hole(file.metadata()?.blocks() * 512, before.saturating_sub(free()?)))
}

/// What a hole of [`HOLE`] bytes became in a file that now occupies so many bytes, on a file system with so many fewer.
fn judge_hole(occupied: u64, gone: u64) -> Holes {
    if occupied >= HOLE && gone >= HOLE / 4 * 3 { Holes::Filled } else { Holes::Kept }
}

/// The shortest that the container's file will be.
pub(super) fn shortest(version: &Version, format: WireFormat) -> u64 {
    match format {
        WireFormat::Raw | WireFormat::VhdFixed => version.size,
        WireFormat::VhdDynamic | WireFormat::Qcow2 => version.chunks_used.saturating_mul(CHUNK_SIZE as u64),
    }
}

/// A process that writes past its limit is ended by a signal, without a word.
pub(super) fn check_limit_of_process(limit: Option<u64>, length: u64) -> Result<()> {
    match limit {
        Some(limit) if limit < length => {
            let why = format!("processes of this user may write files of at most {}", ByteSize(limit));
            Err(too_long(length, &why).hint("raise the limit there: ulimit -f, or fsize in limits.conf"))
        }
        _ => Ok(()),
    }
}

fn too_long(length: u64, why: &str) -> Failure {
    let text = format!("the file will have {} at least, and {why}", ByteSize(length));
    Failure::new(FailureKind::Space, text).hint(format!(
        "choose another target; nothing was sent; QCOW2 holds no holes: {}",
        how_to_ask_for(WireFormat::Qcow2)
    ))
}

fn unfit(folder: &str, step: &str, error: &io::Error) -> Failure {
    let failure = Failure::io(format!("{folder} cannot take a disk: {step}"), error);
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::XDEV) => failure
            .hint("the work folder .goldwire lies on another file system; a sync publishes by renaming"),
        _ => failure.hint("choose another target, or another way to mount it; nothing was sent"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Disk, content};

    #[test]
    fn a_fit_file_system_passes_and_nothing_stays() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::new(content(31, 4, 0));
        let place = WorkPlace::claim(&folder.path().join("a.raw")).unwrap();
        // What killed runs left is in nobody's way.
        std::fs::write(place.shown(NAME), "").unwrap();
        std::fs::write(folder.path().join(".a.raw.goldwire-probe"), "").unwrap();
        for format in [WireFormat::Raw, WireFormat::VhdDynamic] {
            assert_eq!(probe(&place, &disk.version, format), Ok(Holes::Kept));
        }
        assert_eq!(place.folder().entries().unwrap().len(), 0);
        drop(place);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    /// No file system takes a file of 2^63 bytes.
    #[test]
    fn a_file_that_is_too_long_for_the_file_system_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let place = WorkPlace::claim(&folder.path().join("a.raw")).unwrap();
        for length in [(1 << 63) - 1, 1 << 63, u64::MAX] {
            let refused = try_all(&place, length).unwrap_err();
            place.folder().remove_file(NAME).unwrap();
            assert_eq!(refused.kind, FailureKind::Space);
            assert!(refused.to_string().contains("takes no file of that length"), "{refused}");
        }
    }

    #[test]
    fn a_limit_of_the_process_is_said_before_it_kills() {
        for (limit, length, fits) in
            [(None, u64::MAX, true), (Some(9), 9, true), (Some(8), 9, false), (Some(0), 1, false)]
        {
            let checked = check_limit_of_process(limit, length);
            assert_eq!(checked.is_ok(), fits, "{limit:?} {length}");
            assert!(checked.err().is_none_or(|failure| failure.to_string().contains("ulimit -f")));
        }
    }

    #[test]
    fn a_hole_is_filled_only_if_file_and_file_system_say_so() {
        assert_eq!(judge_hole(HOLE, HOLE), Holes::Filled);
        assert_eq!(judge_hole(HOLE + 4096, HOLE - 4096), Holes::Filled);
        for (occupied, gone) in [(4096, 0), (HOLE, 0), (4096, HOLE), (0, 2 * HOLE)] {
            assert_eq!(judge_hole(occupied, gone), Holes::Kept, "{occupied} {gone}");
        }
    }

    #[test]
    fn the_shortest_file_follows_from_container_and_content() {
        let version = Version { chunks_used: 3, size: 1 << 30, ..Disk::new(content(32, 1, 0)).version };
        for format in [WireFormat::Raw, WireFormat::VhdFixed] {
            assert_eq!(shortest(&version, format), 1 << 30);
        }
        for format in [WireFormat::VhdDynamic, WireFormat::Qcow2] {
            assert_eq!(shortest(&version, format), 3 << 16);
        }
    }
}
