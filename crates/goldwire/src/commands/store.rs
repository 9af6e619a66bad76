//! `goldwire store …`: a site's store as a whole; and which store a command means.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use goldwire_control::Sites;
use goldwire_replicate::Endpoint;
use goldwire_stdx::{ByteSize, Report, printable};
use goldwire_store::Store;
use serde_json::json;

use super::reading::{reading, tell_waits};
use super::{json_line, json_path, key, shown};
use crate::args::{StoreCommand, StoreInitArgs, StoreLookArgs, StoreRequireArgs};
use crate::exit::Code;

/// Names the store where no option does.
const VARIABLE: &str = "GOLDWIRE_STORE";

pub(crate) fn run(command: &StoreCommand) -> Result<Code, Report> {
    match command {
        StoreCommand::Init(args) => init(args),
        StoreCommand::Check(args) => check(args),
        StoreCommand::Require(args) => require(args),
        StoreCommand::Stat(args) => stat(args),
        StoreCommand::Repack(args) => super::repack::run(args),
    }
}

/// What a command says of its store.
#[derive(Clone, Copy)]
pub(crate) struct Named<'a> {
    /// The store.
    pub(crate) store: Option<&'a str>,
    /// The file that names stores.
    pub(crate) config: Option<&'a Path>,
}

impl Named<'_> {
    /// Where a store is: a place as it is written, or the place of a name.
    pub(crate) fn endpoint(self, text: &str) -> Result<Endpoint, Report> {
        let is_place = text.contains(['/', ':']) || Store::is_one(Path::new(text));
        let place = if is_place { text.to_owned() } else { self.of_name(text)? };
        place.parse().map_err(|why: String| Report::new(why))
    }

    fn of_name(self, name: &str) -> Result<String, Report> {
        let file = self.config.map(Path::to_owned).or_else(Sites::usual_place);
        let Some(file) = file else {
            return Err(Report::new(format!(
                "there is no folder {name}, and no goldwire.toml that names a store so"
            ))
            .hint("goldwire store init FOLDER makes a store; [store.NAME] in goldwire.toml names one"));
        };
        let sites = Sites::load(&file)?;
        let place = sites.store(name).map(str::to_owned);
        place.ok_or_else(|| {
            let known: Vec<&str> = sites.stores().collect();
            Report::new(format!(
                "{} names no store {name}, and there is no folder of that name",
                shown(&file)
            ))
            .hint(format!("it names: {}", known.join(", ")))
        })
    }

    /// The folder of the store that the user named, in a command or its environment.
    pub(crate) fn folder(self) -> Result<PathBuf, Report> {
        let environment = std::env::var(VARIABLE).ok();
        let named = self.store.map(str::to_owned).or(environment).filter(|named| !named.is_empty());
        let named = named.ok_or_else(|| {
            Report::new("no store is named")
                .hint(format!("set {VARIABLE}; or say --store FOLDER; goldwire store init FOLDER makes one"))
        })?;
        let place = self.endpoint(&named)?;
        match place.host {
            None => Ok(place.path.into()),
            Some(_) => Err(Report::new(format!("{place} is on another host")).hint(
                "run the same command there: ssh HOST goldwire …; push, pull and export go to and from other hosts",
            )),
        }
    }

    /// Opens the store that the user named, and says where it is for who writes into it by a sync.
    pub(crate) fn here(self) -> Result<(Store, Endpoint), Report> {
        let place = std::path::absolute(self.folder()?)?;
        let store = Store::open(&place)?;
        let path = place.to_str().ok_or_else(|| Report::new("the store's path is not UTF-8"))?;
        Ok((store, Endpoint { host: None, path: path.to_owned() }))
    }

    /// Opens the store that the user named.
    pub(crate) fn open(self) -> Result<Store, Report> {
        let store = Store::open(&self.folder()?)?;
        tell_waits(&store);
        Ok(store)
    }
}

fn init(args: &StoreInitArgs) -> Result<Code, Report> {
    let folder = args.folder.as_path();
    if let Some(text) = folder.to_str()
        && text.parse::<Endpoint>().is_ok_and(|place| place.host.is_some())
    {
        return Err(Report::new(format!("{} is on another host", shown(folder)))
            .hint("run it there: ssh HOST goldwire store init FOLDER"));
    }
    let key = args.require.as_deref().map(key::public).transpose()?;
    let store = match &key {
        Some(key) => Store::init_requiring(folder, key)?,
        None => Store::init(folder)?,
    };
    writeln!(io::stdout(), "made the store {} in {}", store.uuid(), shown(folder))?;
    Ok(Code::Success)
}

fn require(args: &StoreRequireArgs) -> Result<Code, Report> {
    let key = args.key.as_deref().map(key::public).transpose()?;
    let store = Named { store: Some(&args.store), config: args.config.as_deref() }.open()?;
    reading("waiting", |_| store.require(key.as_ref()))?;
    let takes = key.map_or("anything".to_owned(), |key| format!("only what {key} signed"));
    writeln!(io::stdout(), "{} takes {takes} from now on", shown(store.path()))?;
    Ok(Code::Success)
}

fn check(args: &StoreLookArgs) -> Result<Code, Report> {
    let store = named(args).open()?;
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

fn named(args: &StoreLookArgs) -> Named<'_> {
    Named { store: args.store.as_deref(), config: args.config.as_deref() }
}

fn stat(args: &StoreLookArgs) -> Result<Code, Report> {
    let store = named(args).open()?;
    let size = store.size()?;
    let required = store.required()?;
    let lying = store.lying(&[])?;
    let mut stdout = io::stdout().lock();
    if args.json {
        let line = json!({
            "path": json_path(store.path()), "uuid": store.uuid().to_string(), "images": size.images,
            "versions": size.versions, "packs": size.packs, "chunks": size.chunks,
            "bytes_stored": size.bytes_stored, "bytes_named": size.bytes_named,
            "required_signer": required.map(|key| key.to_string()),
            "reading": lying.iter().map(super::repack::lying_json).collect::<Vec<_>>(),
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
        if let Some(key) = required {
            writeln!(stdout, "it takes only what {key} signed")?;
        }
        for lying in &lying {
            writeln!(stdout, "{}", super::repack::lying_text(lying))?;
        }
    }
    Ok(Code::Success)
}
