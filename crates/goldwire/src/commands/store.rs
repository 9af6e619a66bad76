//! `goldwire store …`: a site's store as a whole; and which store a command means.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use goldwire_stdx::{ByteSize, Report, printable};
use goldwire_store::Store;
use serde_json::json;

use super::progress::reading;
use super::{json_line, json_path, shown};
use crate::args::{StoreCommand, StoreLookArgs};
use crate::exit::Code;

/// Names the store where no option does.
const VARIABLE: &str = "GOLDWIRE_STORE";

pub(crate) fn run(command: &StoreCommand) -> Result<Code, Report> {
    match command {
        StoreCommand::Init(args) => init(&args.folder),
        StoreCommand::Check(args) => check(args),
        StoreCommand::Stat(args) => stat(args),
    }
}

/// Where the store is that the user named, in a command or its environment.
pub(crate) fn place(named: Option<&Path>) -> Result<PathBuf, Report> {
    let place = named.map(Path::to_owned).or_else(|| std::env::var_os(VARIABLE).map(PathBuf::from));
    let place = place.filter(|place| !place.as_os_str().is_empty());
    let place = place.ok_or_else(|| {
        Report::new("no store is named")
            .hint(format!("say --store FOLDER, or set {VARIABLE}; goldwire store init FOLDER makes one"))
    })?;
    let text = place.to_string_lossy();
    // As everywhere else a colon before the first slash names a host.
    if text.split('/').next().is_some_and(|first| first.contains(':')) {
        return Err(Report::new(format!("{} is on another host", shown(&place))).hint(
            "run goldwire there: ssh HOST goldwire image …; image export writes to other hosts from here",
        ));
    }
    Ok(place)
}

/// Opens the store that the user named.
pub(crate) fn open(named: Option<&Path>) -> Result<Store, Report> {
    Ok(Store::open(&place(named)?)?)
}

fn init(folder: &Path) -> Result<Code, Report> {
    place(Some(folder))?;
    let store = Store::init(folder)?;
    writeln!(io::stdout(), "made the store {} in {}", store.uuid(), shown(folder))?;
    Ok(Code::Success)
}

fn check(args: &StoreLookArgs) -> Result<Code, Report> {
    let store = open(args.store.as_deref())?;
    let checked = reading("checking", |options| store.check(options))?;
    let mut stdout = io::stdout().lock();
    if args.json {
        let problems: Vec<_> = checked
            .problems
            .iter()
            .map(|problem| json!({"path": json_path(&problem.path), "problem": problem.what}))
            .collect();
        let line = json!({
            "versions": checked.versions, "packs": checked.packs, "chunks": checked.chunks, "problems": problems,
        });
        writeln!(stdout, "{}", json_line(&line))?;
    } else {
        for problem in &checked.problems {
            writeln!(stdout, "{}: {}", shown(&problem.path), printable(&problem.what))?;
        }
        writeln!(
            stdout,
            "{} versions in {} packs, {} chunks read: {}",
            checked.versions,
            checked.packs,
            checked.chunks,
            match checked.problems.len() {
                0 => "all is well".to_owned(),
                1 => "1 problem".to_owned(),
                several => format!("{several} problems"),
            }
        )?;
    }
    Ok(if checked.problems.is_empty() { Code::Success } else { Code::Findings })
}

fn stat(args: &StoreLookArgs) -> Result<Code, Report> {
    let store = open(args.store.as_deref())?;
    let size = store.size()?;
    let mut stdout = io::stdout().lock();
    if args.json {
        let line = json!({
            "path": json_path(store.path()), "uuid": store.uuid().to_string(), "images": size.images,
            "versions": size.versions, "packs": size.packs, "chunks": size.chunks,
            "bytes_stored": size.bytes_stored, "bytes_named": size.bytes_named,
        });
        writeln!(stdout, "{}", json_line(&line))?;
    } else {
        writeln!(stdout, "{}  {}", shown(store.path()), store.uuid())?;
        writeln!(stdout, "{} images, {} versions, {} packs", size.images, size.versions, size.packs)?;
        writeln!(
            stdout,
            "{} on the medium for versions that hold {}",
            ByteSize(size.bytes_stored),
            ByteSize(size.bytes_named)
        )?;
    }
    Ok(Code::Success)
}
