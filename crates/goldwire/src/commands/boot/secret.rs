//! `goldwire boot secret`: the key that the members of a boot group share.

use anyhow::anyhow;

use crate::args::boot::SecretArgs;
use crate::commands::key::write_new;
use crate::exit::Code;

/// As many bytes as the keyed hash takes.
const LENGTH: usize = 32;

pub(crate) fn run(args: &SecretArgs) -> anyhow::Result<Code> {
    let mut random = [0; LENGTH];
    getrandom::fill(&mut random).map_err(|error| anyhow!("get random bytes: {error}"))?;
    write_new(&args.file, 0o600, &format!("{}\n", goldwire_stdx::to_hex(&random)))?;
    Ok(Code::Success)
}
