//! The images of a folder, for choosing one.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use goldwire_disk::{DenyAll, ErrorKind, Format, OpenOptions};
use goldwire_store::refuse_own;

use crate::failure::Result;
use crate::source::Stored;
use crate::wire::{Candidate, Failure, FailureKind};

/// Entries looked at in a folder.
const ENTRIES_MAX: usize = 100_000;

/// Whether `path` is a folder, and its images whose file names match `pattern` (all files that are images
/// without one), or the image at `path`.
///
/// `format` is what they are; `None` goes by their content.
pub(crate) fn list(
    path: &Path,
    pattern: Option<&str>,
    format: Option<Format>,
) -> Result<(bool, Vec<Candidate>)> {
    let failed = |error: io::Error| {
        let failure = Failure::io(format!("look at {}", path.display()), &error);
        match error.kind() {
            io::ErrorKind::NotFound => {
                failure.hint("a source is PATH or HOST:PATH; with --match, its folder")
            }
            _ => failure,
        }
    };
    if let Some(stored) = Stored::find(path)? {
        return Ok((false, vec![stored.candidate(path)]));
    }
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok((false, vec![candidate(path, format)?]));
    }
    refuse_own(&fs::canonicalize(path).map_err(failed)?)?;
    let mut images = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)?.flatten().take(ENTRIES_MAX) {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
        let is_wanted = pattern.is_none_or(|pattern| matches(pattern, name));
        if !is_wanted || !is_file_of(path, &entry.path()) {
            continue;
        }
        // What is no disk at all (text, an archive) is passed over. A disk that is damaged or not read is too, unless it
        // was asked for by a pattern: then it may be the one that is meant.
        match candidate(&entry.path(), format) {
            Ok(image) => images.push(image),
            Err(failure) if pattern.is_some() && failure.kind != FailureKind::Invalid => return Err(failure),
            Err(_) => {}
        }
    }
    images.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((true, images))
}

/// Whether `entry` is a file of `folder`: one in it, or a link to one in it. A link out of it is not what a pattern over
/// the folder asks for.
fn is_file_of(folder: &Path, entry: &Path) -> bool {
    match fs::symlink_metadata(entry) {
        Ok(data) if data.is_symlink() => {
            let (Ok(folder), Ok(target)) = (fs::canonicalize(folder), fs::canonicalize(entry)) else {
                return false;
            };
            target.is_file() && target.parent() == Some(&folder)
        }
        Ok(data) => data.is_file(),
        Err(_) => false,
    }
}

fn candidate(path: &Path, format: Option<Format>) -> Result<Candidate> {
    let data =
        fs::metadata(path).map_err(|error| Failure::io(format!("look at {}", path.display()), &error))?;
    let named = format;
    let format = match named {
        Some(format) => format,
        None => goldwire_disk::detect(path).map_err(|error| {
            let is_no_disk = error.kind() == ErrorKind::Invalid;
            let failure = Failure::from(error);
            if is_no_disk { Failure { kind: FailureKind::Invalid, ..failure } } else { failure }
        })?,
    };
    // The parents are not needed to describe an image; an image with one cannot be opened without it.
    let options = OpenOptions { format: named, gate: std::sync::Arc::new(DenyAll), ..OpenOptions::default() };
    let image = goldwire_disk::open(path, &options).ok();
    let info = image.as_ref().map(|image| &image.info);
    Ok(Candidate {
        path: path.display().to_string(),
        format: format.name().to_owned(),
        size: info.map_or(0, |info| info.size),
        file_length: data.len(),
        uuid: info.and_then(|info| info.uuid),
        hidden: info.and_then(|info| info.hidden).unwrap_or(false),
        has_parent: format == Format::VhdDifferencing,
        modified: data.mtime(),
        created: info.and_then(|info| info.created),
    })
}

/// Shell-style matching of a whole name: `*`, `?`, `[abc]`, `[a-z]`, `[!…]`; a backslash takes the next
/// character as it is. Linear in name times pattern, whatever the pattern.
pub fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        if p < pattern.len() && pattern[p] == '*' {
            star = Some((p, n));
            p += 1;
        } else if let Some(next) = match_one(&pattern[p.min(pattern.len())..], name[n]) {
            p += next;
            n += 1;
        } else if let Some((star_p, star_n)) = star {
            // Let the last star take one more character.
            star = Some((star_p, star_n + 1));
            (p, n) = (star_p + 1, star_n + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// The length of the pattern's first element if it matches `c`.
fn match_one(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', escaped, ..] => (*escaped == c).then_some(2),
        ['[', rest @ ..] => match_class(rest, c).map(|length| length + 1),
        [literal, ..] => (*literal == c).then_some(1),
        [] => None,
    }
}

/// Matches the inside of a class; the length up to and including its bracket.
fn match_class(class: &[char], c: char) -> Option<usize> {
    let (negated, start) = match class.first() {
        Some('!' | '^') => (true, 1),
        _ => (false, 0),
    };
    // A bracket right at the start stands for itself.
    let end = start + 1 + class.get(start + 1..)?.iter().position(|c| *c == ']')?;
    let members = &class[start..end];
    let mut found = false;
    let mut at = 0;
    while at < members.len() {
        if let [low, '-', high, ..] = members[at..] {
            found |= (low..=high).contains(&c);
            at += 3;
        } else {
            found |= members[at] == c;
            at += 1;
        }
    }
    (found != negated).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_out_of_the_folder_are_no_images_of_it() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let here = folder.path();
        for path in [here.join("a.raw"), outside.path().join("secret.raw")] {
            fs::write(path, vec![1; 4096]).unwrap();
        }
        for (target, link) in [
            (outside.path().join("secret.raw"), "out.raw"),
            ("a.raw".into(), "latest.raw"),
            ("missing".into(), "dangling.raw"),
            (outside.path().to_owned(), "folder.raw"),
        ] {
            std::os::unix::fs::symlink(target, here.join(link)).unwrap();
        }
        let (is_folder, images) = list(here, Some("*.raw"), None).unwrap();
        let names: Vec<_> = images.iter().map(|image| image.path.rsplit('/').next().unwrap()).collect();
        assert!(is_folder);
        assert_eq!(names, ["a.raw", "latest.raw"]);
    }

    /// A store's own files were listed as raw disks.
    #[test]
    fn a_folder_of_goldwires_own_has_no_images() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        goldwire_store::Store::init(&store).unwrap();
        for pattern in [None, Some("*")] {
            let refused = list(&store, pattern, None).unwrap_err().to_string();
            assert!(refused.contains("is a goldwire store") && refused.contains("STORE/IMAGE"), "{refused}");
        }
    }

    /// A checksum beside a disk is passed over; a disk that was cut short is not, since an older one would be taken.
    #[test]
    fn what_is_no_disk_is_passed_over_and_a_damaged_one_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path();
        let write = |name: &str, bytes: &[u8]| fs::write(here.join(name), bytes).unwrap();
        write("Win1.raw", &[1; 4096]);
        write("Win1.raw.sha256", b"0123456789abcdef  Win1.raw\n");
        write("Win1.raw.gz", b"\x1f\x8b\x08\0 and so on");
        write("Win0.log", b"");
        let names = |pattern| -> Result<Vec<String>> {
            let (_, images) = list(here, pattern, None)?;
            Ok(images.into_iter().map(|image| image.path.rsplit('/').next().unwrap().to_owned()).collect())
        };
        for pattern in [None, Some("Win*")] {
            assert_eq!(names(pattern).unwrap(), ["Win1.raw"]);
        }
        for (name, bytes) in [
            ("Win2.vhd", &[2; 4096][..]),
            ("Win2.vdi", &[2; 4096]),
            ("Win2", b"vhdxfile\0"),
            ("Win2.raw", b""),
            ("Win2.vhd", b"<html>404</html>"),
        ] {
            write(name, bytes);
            assert_eq!(names(None).unwrap(), ["Win1.raw"], "{name}");
            let failure = names(Some("Win*")).unwrap_err();
            assert!(failure.to_string().contains(name), "{failure}");
            fs::remove_file(here.join(name)).unwrap();
        }
        // Named as raw, everything is one.
        let (_, images) = list(&here.join("Win1.raw.gz"), None, Some(Format::Raw)).unwrap();
        assert_eq!((images.len(), images[0].size), (1, images[0].file_length));
    }

    #[test]
    fn patterns_match_as_a_shell_does() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*.vhd", "a.vhd", true),
            ("*.vhd", "a.vhdx", false),
            ("Win10-baseDisk*.vhd", "Win10-baseDisk-2.vhd", true),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]x", "]x", true),
            ("a*b*c", "a-b-b-c", true),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("[", "[", false),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        assert!(!matches(&"*a".repeat(40), &"a".repeat(39)), "no explosion");
    }
}
