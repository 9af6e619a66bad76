//! `goldwire boot secret`: the key that the members of a boot group share.

use crate::args::boot::SecretArgs;
use crate::commands::key::write_new;
use crate::exit::Code;
use goldwire_stdx::Report;

/// As many bytes as the keyed hash takes.
const LENGTH: usize = 32;

pub(crate) fn run(args: &SecretArgs) -> Result<Code, Report> {
    let mut random = [0; LENGTH];
    getrandom::fill(&mut random).map_err(|error| Report::new(format!("get random bytes: {error}")))?;
    write_new(&[(&args.file, 0o600, &format!("{}\n", goldwire_stdx::to_hex(&random)))])?;
    Ok(Code::Success)
}
