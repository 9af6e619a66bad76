//! Reading a boot file.

use std::path::Path;

use super::agreement::Agreement;
use super::{DhcpMode, Rules, Secret, Settings, check, file, profiles, serve};
use crate::config::{self, Collector, LoadError, Problems};

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

/// Reads a boot file and the templates and the secret that it names.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    load_again(path, None)
}

/// The same while servers run with `known` as their secret: who was root when it was read may not read it again.
pub(super) fn load_again(path: &Path, known: Option<&Secret>) -> Result<Loaded, LoadError> {
    let source = config::read("boot file", path, LENGTH_MAX)?;
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
