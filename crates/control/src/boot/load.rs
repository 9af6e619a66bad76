//! Reading a boot file.

use std::io;
use std::path::{Path, PathBuf};

use goldwire_stdx::Hints;

use super::agreement::Agreement;
use super::{DhcpMode, Rules, Secret, Settings, check, file, profiles, serve};
use crate::config::{Collector, Problems};

/// A boot file of 100,000 devices has 10 MiB.
const LENGTH_MAX: u64 = 256 << 20;

/// A good boot file.
#[derive(Debug)]
pub struct Loaded {
    /// What the servers are told.
    pub settings: Settings,
    /// What devices boot.
    pub rules: Rules,
    /// What is odd about it.
    pub warnings: Problems,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("read the boot file {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is wrong.
    #[error("{0}")]
    Wrong(Problems),
}

impl Hints for LoadError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Read { .. } => vec!["--config FILE names another boot file".into()],
            Self::Wrong(_) => Vec::new(),
        }
    }

    fn is_diagnostics(&self) -> bool {
        matches!(self, Self::Wrong(_))
    }
}

/// Reads a boot file and the templates and the secret that it names.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    load_again(path, None)
}

/// The same while servers run with `known` as their secret: who was root when it was read may not read it again.
pub(super) fn load_again(path: &Path, known: Option<&Secret>) -> Result<Loaded, LoadError> {
    let failed = |source| LoadError::Read { path: path.to_owned(), source };
    let source = goldwire_stdx::read_text_bounded(path, LENGTH_MAX).map_err(failed)?;
    parse_again(&source, path, known).map_err(LoadError::Wrong)
}

/// Reads the text of a boot file. `path` is for messages, and relative paths begin at its folder.
pub fn parse(source: &str, path: &Path) -> Result<Loaded, Problems> {
    parse_again(source, path, None)
}

fn parse_again(source: &str, path: &Path, known: Option<&Secret>) -> Result<Loaded, Problems> {
    let mut problems = Collector::new(path, source);
    let Some(file) = file::read(source, &mut problems) else { return Err(problems.finish()) };
    let mut settings = check::settings(&file, path, known, &mut problems);
    settings.agreement = Agreement::of(source, settings.server.templates.as_deref());
    // What a server would refuse is wrong in the file, and said in the same words.
    if settings.dhcp.mode == DhcpMode::Server && !problems.has_error() {
        for problem in serve::dhcp_problems(&settings) {
            problems.error_of_file(problem, "change the pools or reservations of this subnet");
        }
    }
    let rules = profiles::rules(&file, path, &settings.server, &mut problems);
    let warnings = problems.finish();
    if warnings.has_error() { Err(warnings) } else { Ok(Loaded { settings, rules, warnings }) }
}
