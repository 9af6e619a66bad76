//! Completions and manual pages, made from the arguments themselves.

use std::path::Path;

use clap::CommandFactory;
use goldwire_stdx::{Context, Report};

use crate::args::Args;
use crate::exit::Code;

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<Code, Report> {
    clap_complete::generate(shell, &mut Args::command(), "goldwire", &mut std::io::stdout());
    Ok(Code::Success)
}

pub(crate) fn man(folder: &Path) -> Result<Code, Report> {
    clap_mangen::generate_to(Args::command(), folder)
        .with_context(|| format!("write the manual pages into {}", folder.display()))?;
    Ok(Code::Success)
}
