//! From what the user wrote to the file that will be there, and the container it will have.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use goldwire_disk::Promise;
use goldwire_stdx::{Uuid, printable, shell_path};
use goldwire_store::{Root, own_place};

use super::container::{disk_format, uuid_of};
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
pub(crate) fn resolve(job: &TargetJob, root: &Root) -> Result<TargetFile> {
    let written = Path::new(&job.path);
    let invalid = |why: String| Failure::new(FailureKind::Invalid, format!("{}: {why}", written.display()));
    if fs::metadata(written).is_ok_and(|data| data.is_dir()) {
        let folder =
            fs::canonicalize(written).map_err(|error| Failure::io(format!("find {}", job.path), &error))?;
        let name = plain_name(&job.name.replace("{uuid}", &uuid_in(&folder, root).to_string()))?;
        let (name, format) = match job.is_name_given {
            true => {
                let format = format_for(&name, job)?;
                (name, format)
            }
            // The source's name has the ending of the source's container.
            false => {
                let format = job.format.unwrap_or(job.source_format);
                (with_ending(&name, format), format)
            }
        };
        let path = folder.join(name);
        refuse_unless_disks_lie_in(&folder)?;
        refuse_unless_file(&path)?;
        return Ok(TargetFile { path, format });
    }
    if job.is_name_given {
        let why = "--name is the name in a folder, and this is none".to_owned();
        return Err(invalid(why).hint("leave --name away, or make the folder first"));
    }
    if job.path.ends_with('/') {
        find_folder(Path::new(job.path.trim_end_matches('/')))?;
        return Err(invalid("names no file".into()));
    }
    let name = written.file_name().ok_or_else(|| invalid("names no file".into()))?;
    let name = plain_name(name.to_str().ok_or_else(|| invalid("the file name is not UTF-8".into()))?)?;
    let folder = match written.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = find_folder(folder)?;
    let path = folder.join(&name);
    refuse_unless_disks_lie_in(&folder)?;
    refuse_unless_file(&path)?;
    let format = format_for(&name, job)?;
    Ok(TargetFile { path, format })
}

/// A uuid for this content in this folder: the same in every run, and another one in every other folder, because the
/// storage repositories of a pool must not hold two VDIs of one uuid. Version 8 of RFC 9562 (custom), section 5.8.
fn uuid_in(folder: &Path, root: &Root) -> Uuid {
    let mut hasher = blake3::Hasher::new_derive_key("goldwire 2026-11 uuid of a version in a folder");
    hasher.update(&root.0);
    hasher.update(folder.as_os_str().as_encoded_bytes());
    uuid_of(&Root(*hasher.finalize().as_bytes()))
}

/// A folder, or nothing yet, may be around a disk.
fn refuse_unless_folder(path: &Path) -> Result<()> {
    let is_file = |around: &&Path| fs::metadata(around).is_ok_and(|data| !data.is_dir());
    let Some(file) = path.ancestors().find(is_file) else { return Ok(()) };
    let text = format!("{} is a file and no folder", file.display());
    Err(Failure::new(FailureKind::Invalid, text)
        .hint("a target is a folder, or a file in one; give another target"))
}

/// The folder around a target without its links; it has to be there.
fn find_folder(folder: &Path) -> Result<PathBuf> {
    refuse_unless_folder(folder)?;
    fs::canonicalize(folder).map_err(|error| {
        // Before somebody is told to make it.
        if let Err(refused) = refuse_unless_disks_lie_in(folder) {
            return refused;
        }
        let failure = Failure::io(format!("find the folder {}", folder.display()), &error);
        let dangling = folder.ancestors().find(|around| around.is_symlink() && !around.exists());
        match (dangling, error.kind()) {
            (Some(link), io::ErrorKind::NotFound) => {
                let link = link.display();
                failure.hint(format!("{link} is a link to something that is not there; give another target"))
            }
            (None, io::ErrorKind::NotFound) => {
                failure.hint(format!("make it first: mkdir -p {}", shell_path(folder)))
            }
            _ => failure,
        }
    })
}

/// What keeps itself in order is no place for disks: they would be taken for its own files, or removed with them.
fn refuse_unless_disks_lie_in(folder: &Path) -> Result<()> {
    let Some(own) = own_place(folder) else { return Ok(()) };
    let text = format!("{own}, and no place for a disk");
    Err(Failure::new(FailureKind::Invalid, text)
        .hint("give a target outside of it; a version goes into a store as STORE/IMAGE"))
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
    let is_plain = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
    // As a source it would be refused.
    let is_plain = is_plain && printable(name) == name;
    if is_plain && name.len() <= 200 {
        Ok(name.to_owned())
    } else {
        Err(Failure::new(FailureKind::Invalid, format!("{name:?} cannot be the name of a disk")).hint(
            "a name is one path component of at most 200 bytes that does not start with a dot and has nothing that a \
             terminal obeys",
        ))
    }
}

/// The container for the name that the user wrote. What was written is done or refused: a name never stands over
/// another container than the one that it promises.
fn format_for(name: &str, job: &TargetJob) -> Result<WireFormat> {
    let refuse = |why: String| Failure::new(FailureKind::Invalid, format!("{name}: {why}"));
    let Some(promise) = written_promise(name) else { return Ok(job.format.unwrap_or(job.source_format)) };
    let named = match promise {
        Promise::Raw => WireFormat::Raw,
        Promise::Vhd => WireFormat::VhdDynamic,
        Promise::Qcow2 => WireFormat::Qcow2,
        Promise::Foreign(what) => {
            return Err(refuse(format!("the name promises {what}, which goldwire does not write"))
                .hint("write a raw disk (.raw), a VHD (.vhd) or a QCOW2 image (.qcow2)"));
        }
    };
    match job.format {
        Some(format) if promise.is_kept_by(disk_format(format)) => Ok(format),
        Some(format) => Err(refuse(format!(
            "the name promises {}, but --format asks for {}",
            promise.what(),
            disk_format(format).name()
        ))
        .hint("give the file the ending of its format, or leave --format away")),
        // A fixed VHD stays fixed.
        None if promise.is_kept_by(disk_format(job.source_format)) => Ok(job.source_format),
        None => Ok(named),
    }
}

/// What a name for a file to be written promises. `img` is read as anything and written as raw.
pub(crate) fn written_promise(name: &str) -> Option<Promise> {
    Promise::of(name).or_else(|| {
        let (_, ending) = name.rsplit_once('.')?;
        ending.eq_ignore_ascii_case("img").then_some(Promise::Raw)
    })
}

/// How a user gets another container: a file's name has to promise it, in a folder it is asked for.
pub(super) fn how_to_ask_for(format: WireFormat) -> String {
    let ending = ending_of(format);
    format!("a target's name with .{ending}, or --format {ending} for one in a folder")
}

fn ending_of(format: WireFormat) -> &'static str {
    match format {
        WireFormat::Raw => "raw",
        WireFormat::VhdFixed | WireFormat::VhdDynamic => "vhd",
        WireFormat::Qcow2 => "qcow2",
    }
}

/// The source's name with the ending of `format`, if it has the ending of another one.
fn with_ending(name: &str, format: WireFormat) -> String {
    let wanted = ending_of(format);
    match (written_promise(name), name.rsplit_once('.')) {
        (Some(promise), Some((stem, _))) if !promise.is_kept_by(disk_format(format)) => {
            format!("{stem}.{wanted}")
        }
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use goldwire_store::Store;

    use super::*;

    fn job(source_format: WireFormat, format: Option<WireFormat>) -> TargetJob {
        TargetJob {
            path: String::new(),
            name: String::new(),
            is_name_given: false,
            must_be_store: false,
            required: None,
            version: Vec::new(),
            format,
            source_format,
            seeds: Vec::new(),
            find_seeds: false,
            replace: false,
            dry_run: false,
            mode: None,
            source_mode: 0o644,
            owner: None,
            wait_seconds: 0,
            window_bytes: 0,
            threads: None,
        }
    }

    const FORMATS: [WireFormat; 4] =
        [WireFormat::Raw, WireFormat::VhdFixed, WireFormat::VhdDynamic, WireFormat::Qcow2];

    #[test]
    fn a_source_s_name_follows_the_format() {
        assert_eq!(with_ending("a.vhd", WireFormat::Qcow2), "a.qcow2");
        assert_eq!(with_ending("a.vhd", WireFormat::VhdFixed), "a.vhd");
        assert_eq!(with_ending("a.img", WireFormat::Raw), "a.img");
        assert_eq!(with_ending("a.img", WireFormat::Qcow2), "a.qcow2");
        assert_eq!(with_ending("a.b", WireFormat::Raw), "a.b");
        // What only opens because its format was named gets a name that is true.
        assert_eq!(with_ending("a.vmdk", WireFormat::Raw), "a.raw");
    }

    #[test]
    fn a_written_name_is_done_or_refused() {
        use WireFormat::{Qcow2, Raw, VhdDynamic, VhdFixed};
        for (name, source, asked, expected) in [
            ("a.VHD", Qcow2, None, Some(VhdDynamic)),
            ("a.vhd", VhdFixed, None, Some(VhdFixed)),
            ("a.vhd", Raw, Some(VhdFixed), Some(VhdFixed)),
            ("a.avhd", Qcow2, None, Some(VhdDynamic)),
            ("a.vpc", Qcow2, None, Some(VhdDynamic)),
            ("a", Qcow2, None, Some(Qcow2)),
            ("a.backup", Qcow2, Some(Raw), Some(Raw)),
            ("a.img", Qcow2, None, Some(Raw)),
            ("a.img", Raw, Some(Qcow2), None),
            ("a.qcow2", Raw, Some(VhdDynamic), None),
            ("a.raw", VhdDynamic, Some(VhdDynamic), None),
            ("a.vhdx", Qcow2, None, None),
            ("a.vmdk", Raw, Some(Raw), None),
            ("a.vdi", VhdFixed, None, None),
            ("a.vhd.gz", VhdDynamic, None, None),
        ] {
            assert_eq!(format_for(name, &job(source, asked)).ok(), expected, "{name} {source:?} {asked:?}");
        }
    }

    /// Over every name, source and wish: what is written keeps what its name promises, in files and in folders.
    #[test]
    fn no_name_stands_over_another_container() {
        let folder = tempfile::tempdir().unwrap();
        for ending in ["", ".raw", ".vhd", ".avhd", ".qcow2", ".vhdx", ".vmdk", ".vdi", ".gz", ".img", ".bak"]
        {
            for source in FORMATS {
                for asked in [None, Some(FORMATS[0]), Some(FORMATS[1]), Some(FORMATS[2]), Some(FORMATS[3])] {
                    for (is_folder, is_name_given) in [(true, true), (true, false), (false, false)] {
                        let name = format!("disk{ending}");
                        let place =
                            if is_folder { folder.path().to_owned() } else { folder.path().join(&name) };
                        let path = place.to_str().unwrap().to_owned();
                        let job = TargetJob { path, name: name.clone(), is_name_given, ..job(source, asked) };
                        let Ok(file) = resolve(&job, &Root([1; 32])) else {
                            assert!(!ending.is_empty(), "{job:?}");
                            continue;
                        };
                        assert!(asked.is_none_or(|asked| asked == file.format), "{job:?}: {file:?}");
                        let promise = written_promise(file.path.to_str().unwrap());
                        assert!(
                            promise.is_none_or(|promise| promise.is_kept_by(disk_format(file.format))),
                            "{job:?}"
                        );
                        if is_name_given || !is_folder {
                            assert!(file.path.ends_with(&name), "{job:?}: {file:?}");
                        }
                    }
                }
            }
        }
        let file = folder.path().join("file.vhd");
        let path = file.to_str().unwrap().to_owned();
        let given = TargetJob { path, name: "x.vhd".into(), is_name_given: true, ..job(FORMATS[2], None) };
        assert!(resolve(&given, &Root([1; 32])).unwrap_err().to_string().contains("--name"));
    }

    #[test]
    fn a_target_lies_in_a_folder_and_in_none_that_is_goldwires_own() {
        let scene = tempfile::tempdir().unwrap();
        let folder = scene.path();
        Store::init(&folder.join("store")).unwrap();
        for name in ["k/.goldwire/work", "k/.goldwire-1001", "k/.goldwired"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        fs::write(folder.join("a.raw"), "a").unwrap();
        std::os::unix::fs::symlink("nowhere", folder.join("dangling")).unwrap();
        for (path, says) in [
            ("a.raw/b.raw", Some("is a file and no folder")),
            ("a.raw/", Some("is a file and no folder")),
            ("a.raw/x/y/b.raw", Some("a.raw is a file and no folder")),
            ("a.raw/x/", Some("a.raw is a file and no folder")),
            ("new/", Some("mkdir -p")),
            ("dangling/new/b.raw", Some("dangling is a link to something that is not there")),
            ("new/b.raw", Some("mkdir -p")),
            ("new disk's/b.raw", Some("new disk'\\''s'")),
            ("new/.goldwire/", Some("own folder")),
            ("new/.goldwire/work/b.raw", Some("own folder")),
            ("k/.goldwire/work/new/b.raw", Some("own folder")),
            ("store/new/b.raw", Some("a goldwire store")),
            ("k/.goldwire", Some("own folder")),
            ("k/.goldwire/b.raw", Some("own folder")),
            ("k/.goldwire/work", Some("own folder")),
            ("k/.goldwire-1001/b.raw", Some("own folder")),
            ("store", Some("a goldwire store")),
            ("store/b.raw", Some("a goldwire store")),
            ("store/packs/b.raw", Some("a goldwire store")),
            ("k/.goldwired/b.raw", None),
            ("k", None),
            ("a.raw", None),
        ] {
            let path = format!("{}/{path}", folder.display());
            let job = TargetJob { path: path.clone(), name: "b.raw".into(), ..job(WireFormat::Raw, None) };
            match (resolve(&job, &Root([1; 32])), says) {
                (Ok(_), None) => {}
                (Err(refused), Some(says)) => {
                    assert!(refused.to_string().contains(says), "{path}: {refused}")
                }
                (other, _) => panic!("{path}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_uuid_is_stable_in_a_folder_and_another_in_every_other_and_for_other_content() {
        let uuid = |folder: &str, root: u8| uuid_in(Path::new(folder), &Root([root; 32]));
        assert_eq!(uuid("/sr/a", 1), uuid("/sr/a", 1));
        assert_ne!(uuid("/sr/a", 1), uuid("/sr/b", 1));
        assert_ne!(uuid("/sr/a", 1), uuid("/sr/a", 2));
        let bytes = uuid("/sr/a", 1).0;
        assert_eq!((bytes[6] >> 4, bytes[8] >> 6), (8, 2), "version 8, variant of RFC 9562");
    }

    /// A hint that is followed to the letter is no refusal again.
    #[test]
    fn another_container_is_there_for_who_asks_as_told() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().to_str().unwrap();
        for format in FORMATS {
            let told = how_to_ask_for(format);
            let ending = ending_of(format);
            assert!(told.contains(&format!(".{ending},")) && told.contains(&format!("--format {ending} ")));
            let named = TargetJob { path: format!("{here}/a.{ending}"), ..job(WireFormat::Qcow2, None) };
            let asked = TargetJob {
                path: here.into(),
                name: "a.vhd".into(),
                ..job(WireFormat::VhdDynamic, Some(format))
            };
            for job in [named, asked] {
                let found = resolve(&job, &Root([1; 32])).unwrap();
                assert_eq!(ending_of(found.format), ending, "{job:?}");
            }
        }
    }

    #[test]
    fn names_cannot_leave_the_folder_or_hide() {
        for name in
            ["", ".", "..", "../a", "a/b", ".goldwire", "a\0b", "a\nb.raw", "\u{1b}[31m.raw", "a\u{202e}.raw"]
        {
            assert!(plain_name(name).is_err(), "{name:?}");
        }
        assert!(plain_name("Win10-baseDisk.vhd").is_ok());
    }
}
