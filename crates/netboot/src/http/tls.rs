//! Certificates for HTTPS: read from PEM files, read again when they change, without a restart.
//!
//! rustls speaks TLS 1.2 and 1.3 with ECDHE only. That is what iPXE since January 2024 and UEFI with elliptic curves
//! can do; older iPXE knows the RSA key exchange alone and has to be given plain HTTP.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use goldwire_stdx::{Hints, Report, shell_path};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, crypto};

mod dates;

/// How often the files are looked at, at most; only when somebody connects, or the administrator asks for it.
const LOOK: Duration = Duration::from_secs(5);
/// How often the log is told that a certificate has ended, or soon will.
const TELL_DATES: Duration = Duration::from_hours(24);
/// Largest PEM file; a chain of ten certificates has 20 KiB.
const PEM_MAX: u64 = 1 << 20;

/// Where the certificate is.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// PEM with the server's certificate first and those that lead to the CA behind it. The CA itself may stand last:
    /// firmware that was given only its fingerprint wants it.
    pub certificate: PathBuf,
    /// PEM with its private key. To be read again after privileges were dropped, it must be readable then.
    pub key: PathBuf,
}

impl TlsSettings {
    /// Whether a server can use them.
    ///
    /// # Errors
    /// Why not, as the server would say it.
    pub fn check(&self) -> Result<(), TlsError> {
        load(self).map(drop)
    }

    /// What is wrong with the dates of the certificates at a time: one has ended, ends soon or has not begun. A server
    /// serves with them nevertheless, because what goes over HTTP and TFTP does not depend on them.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn dates(&self, now: SystemTime) -> Result<Option<String>, TlsError> {
        let fault = dates::fault(&load(self)?.cert, now);
        Ok(fault.map(|fault| format!("{}: {fault}", self.certificate.display())))
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is no PEM of what it should be.
    #[error("{path} holds no {wanted} in PEM form")]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// The certificate and the key do not work together.
    #[error("use the certificate {path}")]
    Use {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rustls::Error,
    },
}

impl Hints for TlsError {
    fn hints(&self) -> Vec<String> {
        match self {
            Self::Read { path, source } if source.kind() == io::ErrorKind::PermissionDenied => vec![format!(
                "let the group of the server's user read it and enter its folder: chgrp GROUP {0} && chmod g+r {0}",
                shell_path(path)
            )],
            Self::Read { .. } => Vec::new(),
            Self::Pem { wanted, .. } => {
                vec![format!("name the PEM file of the {wanted}; `goldwire boot certificate` makes both")]
            }
            Self::Use { .. } => vec![
                "the key has to be the one that the certificate was made for; `goldwire boot certificate` makes both"
                    .into(),
            ],
        }
    }
}

/// The server's side of TLS from these files, and the hand that reads them again.
pub(super) fn config(settings: &TlsSettings) -> Result<(Arc<ServerConfig>, Arc<Reloading>), TlsError> {
    let resolver = Arc::new(Reloading::new(settings.clone())?);
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Use { path: settings.certificate.clone(), source })?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(resolver.clone());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), resolver))
}

/// The certificate in use, with the files that it came from.
#[derive(Debug)]
pub(super) struct Reloading {
    settings: TlsSettings,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    key: Arc<CertifiedKey>,
    /// What the files looked like when they were read, or could not be.
    stamp: Stamp,
    looked_at: Instant,
    dates_told: Instant,
}

/// What tells another content, or another right to read it, of both files: times of change of the inode, its number.
type Stamp = [Option<(i64, i64, u64)>; 2];

impl Reloading {
    fn new(settings: TlsSettings) -> Result<Self, TlsError> {
        let stamp = stamp(&settings);
        let key = Arc::new(load(&settings)?);
        let now = Instant::now();
        // Whoever starts a server says what `TlsSettings::dates` tells.
        Ok(Self { settings, state: Mutex::new(State { key, stamp, looked_at: now, dates_told: now }) })
    }

    fn current(&self, now: Instant) -> Arc<CertifiedKey> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(state.looked_at) >= LOOK {
            state.looked_at = now;
            if stamp(&self.settings) != state.stamp {
                // Half of a pair may be written just now; the second half changes the stamp again.
                match self.take(&mut state) {
                    Ok(true) => tracing::info!("the new certificate is in use"),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!("the old certificate stays in use: {}", Report::from(error).log_line())
                    }
                }
            }
        }
        if now.saturating_duration_since(state.dates_told) >= TELL_DATES {
            state.dates_told = now;
            if let Some(fault) = dates::fault(&state.key.cert, SystemTime::now()) {
                tracing::warn!("{}: {fault}", self.settings.certificate.display());
            }
        }
        Arc::clone(&state.key)
    }

    /// Reads the files now; whether they hold another certificate. The old one stays where they cannot be used.
    pub(super) fn reload(&self) -> Result<bool, TlsError> {
        self.take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn take(&self, state: &mut State) -> Result<bool, TlsError> {
        // Before they are read: what changes meanwhile is seen the next time.
        state.stamp = stamp(&self.settings);
        let key = load(&self.settings)?;
        let is_new = key.cert != state.key.cert;
        state.key = Arc::new(key);
        Ok(is_new)
    }
}

impl ResolvesServerCert for Reloading {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current(Instant::now()))
    }
}

fn stamp(settings: &TlsSettings) -> Stamp {
    [&settings.certificate, &settings.key].map(|path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.ctime(), metadata.ctime_nsec(), metadata.ino()))
    })
}

fn load(settings: &TlsSettings) -> Result<CertifiedKey, TlsError> {
    let pem = |wanted, path: &PathBuf| TlsError::Pem { path: path.clone(), wanted };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read(&settings.certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|_| pem("certificate", &settings.certificate))?;
    if chain.is_empty() {
        return Err(pem("certificate", &settings.certificate));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(&settings.key)?)
        .map_err(|_| pem("private key", &settings.key))?;
    CertifiedKey::from_der(chain, key, &crypto::aws_lc_rs::default_provider())
        .map_err(|source| TlsError::Use { path: settings.certificate.clone(), source })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    goldwire_stdx::read_bounded(path, PEM_MAX)
        .map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::http::testing::TestAuthority;

    fn write(settings: &TlsSettings, authority: &TestAuthority) {
        let issued = authority.issue("boot.example");
        fs::write(&settings.certificate, &issued.chain_pem).unwrap();
        fs::write(&settings.key, &issued.key_pem).unwrap();
    }

    #[test]
    fn changed_files_are_used_and_broken_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            TlsSettings { certificate: folder.path().join("c.pem"), key: folder.path().join("k.pem") };
        let authority = TestAuthority::new(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert!(matches!(config(&settings), Err(TlsError::Read { .. })));
        write(&settings, &authority);
        let reloading = Reloading::new(settings.clone()).unwrap();
        let now = Instant::now();
        let first = reloading.current(now).cert[0].clone();

        fs::write(&settings.certificate, "not PEM").unwrap();
        assert_eq!(reloading.current(now + LOOK).cert[0], first, "the old one stays");
        write(&settings, &authority);
        assert_eq!(reloading.current(now + LOOK).cert[0], first, "not looked at so soon");
        let second = reloading.current(now + LOOK * 2).cert[0].clone();
        assert_ne!(second, first);

        fs::write(&settings.key, authority.issue("x").key_pem).unwrap();
        assert_eq!(reloading.current(now + LOOK * 3).cert[0], second, "a key of another certificate");
        assert!(matches!(reloading.reload(), Err(TlsError::Use { .. })));
        write(&settings, &authority);
        assert!(reloading.reload().unwrap() && !reloading.reload().unwrap());
        let third = reloading.current(now + LOOK * 3).cert[0].clone();
        assert_ne!(third, second, "asked for, it is read at once");
    }

    #[test]
    fn who_may_not_read_a_key_is_told_what_to_do() {
        let denied =
            TlsError::Read { path: "/a/k.pem".into(), source: io::ErrorKind::PermissionDenied.into() };
        let line = Report::from(denied).log_line();
        assert!(line.starts_with("read /a/k.pem: ") && line.contains("; hint: "), "{line}");
        assert!(line.ends_with("chgrp GROUP /a/k.pem && chmod g+r /a/k.pem"), "{line}");
        let gone = TlsError::Read { path: "/a/k.pem".into(), source: io::ErrorKind::NotFound.into() };
        assert!(gone.hints().is_empty() && !Report::from(gone).log_line().contains("hint"));
    }
}
