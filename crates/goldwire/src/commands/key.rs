//! Making keys, and reading them from where the user keeps them.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use goldwire_stdx::{Context, Report, read_open_text_bounded};
use goldwire_store::{PublicKey, SecretKey};

use crate::args::KeyNewArgs;
use crate::exit::Code;

pub(crate) fn new(args: &KeyNewArgs) -> Result<Code, Report> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| Report::new(format!("get random bytes: {error}")))?;
    let key = SecretKey::from_random(random);
    let public_path = args.file.with_added_extension("pub");
    if public_path.exists() {
        return Err(cannot_create(&public_path, io::ErrorKind::AlreadyExists.into()));
    }
    write_new(&args.file, 0o600, &key.to_file_text())?;
    write_new(&public_path, 0o644, &format!("{}\n", key.public()))?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", key.public())?;
    Ok(Code::Success)
}

/// Writes a file that must not exist, and syncs it: keys and secrets are never overwritten.
pub(crate) fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), Report> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|error| cannot_create(path, error))?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .with_context(|| format!("write {}", path.display()))
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
            path.display()
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
