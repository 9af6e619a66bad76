//! Making keys, and reading them from where the user keeps them.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use goldwire_stdx::{Context, Folder, Report, read_open_text_bounded, shell_path};
use goldwire_store::{PublicKey, SecretKey};

use crate::args::KeyNewArgs;
use crate::exit::Code;

pub(crate) fn new(args: &KeyNewArgs) -> Result<Code, Report> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| Report::new(format!("get random bytes: {error}")))?;
    let key = SecretKey::from_random(random);
    let public_path = args.file.with_added_extension("pub");
    let public = format!("{}\n", key.public());
    write_new(&[(&args.file, 0o600, &key.to_file_text()), (&public_path, 0o644, &public)])?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", key.public())?;
    Ok(Code::Success)
}

/// Writes files that must not exist, with their modes, and syncs them: keys and secrets are never overwritten. All of them,
/// or none: half a key is none, and would be in the way of the next try.
pub(crate) fn write_new(files: &[(&Path, u32, &str)]) -> Result<(), Report> {
    let mut made: Vec<(Folder, &OsStr)> = Vec::new();
    for (path, mode, text) in files {
        let done = Folder::around(path).and_then(|(folder, name)| {
            folder.create_whole(name, text.as_bytes(), *mode)?;
            Ok((folder, name))
        });
        match done {
            Ok(file) => made.push(file),
            Err(error) => {
                for (folder, name) in &made {
                    let _ = folder.remove_file(name);
                }
                return Err(cannot_create(path, error));
            }
        }
    }
    Ok(())
}

fn cannot_create(path: &Path, error: io::Error) -> Report {
    if error.kind() != io::ErrorKind::AlreadyExists {
        return Report::from(error).context(format!("create {}", path.display()));
    }
    Report::new(format!("create {}: {error}", path.display())).hint(
        "what is there is not overwritten: name another file, or remove that one if nothing uses it any more",
    )
}

/// Longest key file.
const KEY_FILE_MAX: u64 = 4096;

/// Reads a secret key file, which nobody else may read, as ssh asks of its keys.
pub(crate) fn secret(path: &Path) -> Result<SecretKey, Report> {
    let doing = || format!("read the key {}", path.display());
    let file = fs::File::open(path).with_context(doing)?;
    let mode = file.metadata().with_context(doing)?.mode();
    let text = read_open_text_bounded(&file, KEY_FILE_MAX).with_context(doing)?;
    let key = text.parse().map_err(|why| {
        let hint = "`goldwire key new FILE` makes one: FILE signs, FILE.pub is what others check with";
        Report::new(format!("{}: {why}", path.display())).hint(hint)
    })?;
    if mode & 0o077 != 0 {
        return Err(Report::new(format!(
            "{}: others may read this secret key (mode {:o})",
            path.display(),
            mode & 0o777
        ))
        .hint(format!(
            "chmod 600 {}; if somebody may have read it, make a new one: goldwire key new FILE",
            shell_path(path)
        )));
    }
    Ok(key)
}

/// A public key: a file that holds one, or the key itself.
pub(crate) fn public(text: &str) -> Result<PublicKey, Report> {
    let written = fs::read_to_string(text).unwrap_or_else(|_| text.to_owned());
    written.parse().map_err(|why| {
        let hint = "`goldwire key new FILE` makes one as FILE.pub; give that file, or what is written in it";
        Report::new(format!("{text}: {why}")).hint(hint)
    })
}
