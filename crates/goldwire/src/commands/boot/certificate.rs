//! `goldwire boot certificate`: an authority of one's own, and servers' certificates from it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use goldwire_stdx::{Context, Report, shell_path};

use crate::args::boot::CertificateArgs;
use crate::authority::{Authority, CertificateError, KeyKind};
use crate::commands::key::write_new;
use crate::exit::Code;

/// What the authority's files are called, before their endings.
const AUTHORITY: &str = "ca";

pub(crate) fn run(args: &CertificateArgs) -> Result<Code, Report> {
    let mut out = std::io::stdout().lock();
    let authority = authority_in(&args.folder, args.ecdsa, &mut out)?;
    if let Some(first) = args.server.first() {
        // A name that would lead out of the folder is none of a server and is refused here.
        let issued = authority.issue(&args.server).map_err(Report::plain)?;
        let (certificate, key) = files_of(&args.folder, Owner::Server(first))?;
        write_new(&[(&key, 0o600, &issued.key_pem), (&certificate, 0o644, &issued.chain_pem)])?;
        writeln!(out, "{}\n{}", certificate.display(), key.display())?;
    }
    Ok(Code::Success)
}

/// Whose certificate and key two files hold.
#[derive(Clone, Copy)]
enum Owner<'a> {
    Authority,
    /// By its first name.
    Server(&'a str),
}

/// Where the certificate and the key are.
fn files_of(folder: &Path, owner: Owner<'_>) -> Result<(PathBuf, PathBuf), Report> {
    let stem = match owner {
        Owner::Authority => AUTHORITY.to_owned(),
        Owner::Server(name) if name.eq_ignore_ascii_case(AUTHORITY) => {
            let hint = "give its full name, or an address, first";
            return Err(
                Report::new(format!("{name}.pem is the authority's certificate, not a server's")).hint(hint)
            );
        }
        // An address of IPv6 has colons, which some file systems do not take.
        Owner::Server(name) => name.replace(':', "-"),
    };
    Ok((folder.join(format!("{stem}.pem")), folder.join(format!("{stem}.key"))))
}

/// Which of the authority's files cannot be used, and what to do.
fn unusable(error: CertificateError, certificate: &Path, key: &Path) -> Report {
    let (text, hint) = match error {
        CertificateError::ReadKey(_) => (
            format!("{} holds no private key in PEM: it is empty, cut or something else", key.display()),
            format!(
                "bring the key back from a backup; without it this authority signs nothing more: for a new one, which \
                 machines must be told to trust, rm {} {}",
                shell_path(key),
                shell_path(certificate)
            ),
        ),
        CertificateError::NotOurs => (
            format!(
                "{} is no certificate that goldwire made for the key {}",
                certificate.display(),
                key.display()
            ),
            "bring back the certificate and the key that belong together, from a backup".to_owned(),
        ),
        other => return Report::plain(other),
    };
    Report::new(text).hint(hint)
}

/// The authority of a folder; a new one where there is none.
fn authority_in(folder: &Path, is_ecdsa: bool, out: &mut impl Write) -> Result<Authority, Report> {
    let (certificate, key) = files_of(folder, Owner::Authority)?;
    if key.exists() {
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        let read = Authority::from_pem(&read(&certificate)?, &read(&key)?);
        return read.map_err(|error| unusable(error, &certificate, &key));
    }
    if certificate.exists() {
        let text = format!("{} is there, and its key {} is not", certificate.display(), key.display());
        let hint =
            "bring the key back; without it this authority signs nothing more, and its certificate can go";
        return Err(Report::new(text).hint(hint));
    }
    fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
    let kind = if is_ecdsa { KeyKind::EcdsaP256 } else { KeyKind::Rsa2048 };
    let authority = Authority::new(kind).map_err(Report::plain)?;
    write_new(&[(&key, 0o600, &authority.key_pem()), (&certificate, 0o644, authority.certificate_pem())])?;
    writeln!(out, "{}\n{}", certificate.display(), key.display())?;
    Ok(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_that_cannot_be_used_says_which_file_and_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        authority_in(folder.path(), true, &mut Vec::new()).unwrap();
        let [key, certificate] = ["ca.key", "ca.pem"].map(|name| folder.path().join(name));
        let whole = fs::read_to_string(&key).unwrap();
        for garbled in ["", "nonsense", &whole[..40]] {
            fs::write(&key, garbled).unwrap();
            let refused = authority_in(folder.path(), true, &mut Vec::new()).unwrap_err();
            assert!(refused.line().starts_with(&key.display().to_string()), "{refused}");
            assert!(refused.hints[0].contains("backup"), "{refused}");
        }
        fs::write(&key, whole).unwrap();
        fs::write(&certificate, "").unwrap();
        let refused = authority_in(folder.path(), true, &mut Vec::new()).unwrap_err();
        assert!(refused.line().starts_with(&certificate.display().to_string()), "{refused}");
        assert!(!refused.hints.is_empty());
    }
}
