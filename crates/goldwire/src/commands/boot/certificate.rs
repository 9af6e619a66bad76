//! `goldwire boot certificate`: an authority of one's own, and servers' certificates from it.

use std::fs;
use std::io::Write;
use std::path::Path;

use goldwire_netboot::certificate::{Authority, KeyKind};
use goldwire_stdx::{Context, Report};

use crate::args::boot::CertificateArgs;
use crate::commands::key::write_new;
use crate::exit::Code;

pub(crate) fn run(args: &CertificateArgs) -> Result<Code, Report> {
    let mut out = std::io::stdout().lock();
    let authority = authority_in(&args.folder, args.ecdsa, &mut out)?;
    if let Some(first) = args.server.first() {
        let issued = authority.issue(&args.server).map_err(Report::plain)?;
        // An address of IPv6 has colons, which some file systems do not take.
        let stem = first.replace(':', "-");
        let (certificate, key) =
            (args.folder.join(format!("{stem}.pem")), args.folder.join(format!("{stem}.key")));
        write_new(&key, 0o600, &issued.key_pem)?;
        write_new(&certificate, 0o644, &issued.chain_pem)?;
        writeln!(out, "{}\n{}", certificate.display(), key.display())?;
    }
    Ok(Code::Success)
}

/// The authority of a folder; a new one where there is none.
fn authority_in(folder: &Path, is_ecdsa: bool, out: &mut impl Write) -> Result<Authority, Report> {
    let (certificate, key) = (folder.join("ca.pem"), folder.join("ca.key"));
    if key.exists() {
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        return Authority::from_pem(&read(&certificate)?, &read(&key)?)
            .map_err(Report::plain)
            .with_context(|| format!("use the authority in {}", folder.display()));
    }
    fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
    let kind = if is_ecdsa { KeyKind::EcdsaP256 } else { KeyKind::Rsa2048 };
    let authority = Authority::new(kind).map_err(Report::plain)?;
    write_new(&key, 0o600, &authority.key_pem())?;
    write_new(&certificate, 0o644, authority.certificate_pem())?;
    writeln!(out, "{}\n{}", certificate.display(), key.display())?;
    Ok(authority)
}
