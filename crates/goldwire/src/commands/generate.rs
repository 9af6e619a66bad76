//! Completions and manual pages, made from the arguments themselves.

use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;

use crate::args::Args;
use crate::exit::Code;

pub(crate) fn completions(shell: clap_complete::Shell) -> anyhow::Result<Code> {
    clap_complete::generate(shell, &mut Args::command(), "goldwire", &mut std::io::stdout());
    Ok(Code::Success)
}

pub(crate) fn man(folder: &Path) -> anyhow::Result<Code> {
    clap_mangen::generate_to(Args::command(), folder)
        .with_context(|| format!("write the manual pages into {}", folder.display()))?;
    Ok(Code::Success)
}
