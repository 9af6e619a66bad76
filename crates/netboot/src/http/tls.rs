//! Certificates for HTTPS: read from PEM files, read again when they change, without a restart.
//!
//! rustls speaks TLS 1.2 and 1.3 with ECDHE only. That is what iPXE since January 2024 and UEFI with elliptic curves
//! can do; older iPXE knows the RSA key exchange alone and has to be given plain HTTP.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ServerConfig, crypto};

/// How often the files are looked at, at most; only when somebody connects.
const LOOK: Duration = Duration::from_secs(5);
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

/// The server's side of TLS from these files.
pub(super) fn config(settings: &TlsSettings) -> Result<Arc<ServerConfig>, TlsError> {
    let resolver = Arc::new(Reloading::new(settings.clone())?);
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Use { path: settings.certificate.clone(), source })?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Reloading {
    settings: TlsSettings,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    key: Arc<CertifiedKey>,
    /// What the files looked like when they were read, or could not be.
    stamp: Stamp,
    looked_at: Instant,
}

/// Size and time of change of both files.
type Stamp = [Option<(u64, SystemTime)>; 2];

impl Reloading {
    fn new(settings: TlsSettings) -> Result<Self, TlsError> {
        let stamp = stamp(&settings);
        let key = Arc::new(load(&settings)?);
        Ok(Self { settings, state: Mutex::new(State { key, stamp, looked_at: Instant::now() }) })
    }

    fn current(&self, now: Instant) -> Arc<CertifiedKey> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(state.looked_at) >= LOOK {
            state.looked_at = now;
            let stamp = stamp(&self.settings);
            if stamp != state.stamp {
                state.stamp = stamp;
                match load(&self.settings) {
                    Ok(key) => state.key = Arc::new(key),
                    // Half of a pair may be written just now; the second half changes the stamp again.
                    Err(error) => {
                        let report = goldwire_stdx::Report::of(&error);
                        tracing::warn!(%report, "cannot use the new certificate, the old one stays");
                    }
                }
            }
        }
        Arc::clone(&state.key)
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
        Some((metadata.len(), metadata.modified().ok()?))
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

fn read(path: &PathBuf) -> Result<Vec<u8>, TlsError> {
    let read = || {
        if std::fs::metadata(path)?.len() > PEM_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
        }
        std::fs::read(path)
    };
    read().map_err(|source| TlsError::Read { path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::certificate::{Authority, KeyKind};

    fn write(settings: &TlsSettings, authority: &Authority) {
        let issued = authority.issue(&["boot.example".into()]).unwrap();
        fs::write(&settings.certificate, &issued.chain_pem).unwrap();
        fs::write(&settings.key, &issued.key_pem).unwrap();
    }

    #[test]
    fn changed_files_are_used_and_broken_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let settings =
            TlsSettings { certificate: folder.path().join("c.pem"), key: folder.path().join("k.pem") };
        let authority = Authority::new(KeyKind::EcdsaP256).unwrap();
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

        fs::write(&settings.key, authority.issue(&["x".into()]).unwrap().key_pem).unwrap();
        assert_eq!(reloading.current(now + LOOK * 3).cert[0], second, "a key of another certificate");
    }
}
