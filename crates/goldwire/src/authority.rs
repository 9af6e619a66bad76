//! A certificate authority of one's own for HTTPS boot, for sites that have none: firmware is given the authority's
//! certificate once, and servers get theirs from it.
//!
//! **Which keys.** RSA with 2048 bits unless told otherwise. iPXE before 2.0 takes no ECDSA certificate
//! (<https://github.com/ipxe/ipxe/issues/1179>), and UEFI firmware has long been built without elliptic curves in its
//! TLS library, whereas every firmware that speaks TLS takes RSA.
//!
//! **How long.** An authority lives for 20 years and a server's certificate for 10, beginning with the year 2020.
//! What is trusted is written into firmware, by hand or by a management controller, machine by machine; renewing it
//! each year would only teach people to turn the check off. Firmware's clock may stand at the factory's date after an
//! empty battery, hence the early beginning. Revoking means replacing the authority: no firmware asks for revocation
//! lists. A stolen server key is as bad in each of the years, so keep it on the server (mode 0600).

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize, SanType, date_time_ymd,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// 20 years of 365.25 days.
const AUTHORITY_LIFE: Duration = Duration::from_secs(20 * 31_557_600);
/// 10 years.
const SERVER_LIFE: Duration = Duration::from_secs(10 * 31_557_600);

/// Longest name of the DNS (RFC 1035, 3.1) in text.
const NAME_MAX: usize = 253;

/// Whose a certificate is, which decides what it is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It signs others, and serves nothing.
    Authority,
    /// It serves, and signs nothing.
    Server,
}

/// What keys are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyKind {
    /// RSA with 2048 bits: for all firmware.
    Rsa2048,
    /// ECDSA on P-256: handshakes ten times as cheap for the server, for iPXE ≥ 2.0 and recent UEFI only.
    EcdsaP256,
}

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// A key could not be made.
    #[error("make a key")]
    MakeKey(#[source] rcgen::Error),
    /// The certificate could not be signed; the names are wrong if nothing else is.
    #[error("sign the certificate")]
    Sign(#[source] rcgen::Error),
    /// A server's certificate without a name is of no use.
    #[error("a server's certificate needs at least one name or address")]
    NoName,
    /// Neither a name of the DNS nor an address: a path, for one.
    #[error("{0:?} is neither a name nor an address of a server")]
    BadName(String),
    /// The authority's key is none.
    #[error("read the authority's key")]
    ReadKey(#[source] rcgen::Error),
    /// The authority's certificate is none, or not one that goldwire made for the key.
    #[error("the certificate is not one that goldwire made for this key")]
    NotOurs,
}

/// An authority: its certificate for the firmware, and its key, which signs.
pub(crate) struct Authority {
    certificate_pem: String,
    key: KeyPair,
    kind: KeyKind,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// A server's certificate with its key.
pub(crate) struct Issued {
    /// PEM of the certificate and, behind it, of the authority.
    pub(crate) chain_pem: String,
    /// PEM of the private key.
    pub(crate) key_pem: String,
}

impl Authority {
    /// A new authority.
    pub(crate) fn new(kind: KeyKind) -> Result<Self, CertificateError> {
        let key = make_key(kind)?;
        let certificate_pem = authority_params(&key).self_signed(&key).map_err(CertificateError::Sign)?.pem();
        Ok(Self { certificate_pem, key, kind })
    }

    /// The authority whose certificate and key were written before.
    pub(crate) fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, CertificateError> {
        let key = KeyPair::from_pem(key_pem).map_err(CertificateError::ReadKey)?;
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| CertificateError::NotOurs)?;
        // The name holds a digest of the key, so a certificate with both is one that `new` made for this key.
        let name = authority_name(&key);
        let has = |part: &[u8]| der.windows(part.len()).any(|window| window == part);
        if !has(name.as_bytes()) || !has(key.public_key_raw()) {
            return Err(CertificateError::NotOurs);
        }
        let kind = if key.is_compatible(&PKCS_RSA_SHA256) { KeyKind::Rsa2048 } else { KeyKind::EcdsaP256 };
        Ok(Self { certificate_pem: certificate_pem.to_owned(), key, kind })
    }

    /// PEM of the certificate: what firmware is given to trust.
    pub(crate) fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// PEM of the key.
    pub(crate) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// A certificate for a server that is reached by these names and addresses, with a new key.
    pub(crate) fn issue(&self, names: &[String]) -> Result<Issued, CertificateError> {
        let first = names.first().ok_or(CertificateError::NoName)?;
        let key = make_key(self.kind)?;
        let issuer = Issuer::new(authority_params(&self.key), &self.key);
        let mut params = params(first, Role::Server);
        for name in names {
            if name.parse::<IpAddr>().is_err() && !is_host_name(name) {
                return Err(CertificateError::BadName(name.clone()));
            }
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into().map_err(CertificateError::Sign)?),
            });
        }
        let certificate = params.signed_by(&key, &issuer).map_err(CertificateError::Sign)?;
        Ok(Issued {
            chain_pem: format!("{}{}", certificate.pem(), self.certificate_pem),
            key_pem: key.serialize_pem(),
        })
    }
}

/// Unlike for each key, so that two authorities in one machine's list can be told apart.
fn authority_name(key: &KeyPair) -> String {
    let digest = blake3::hash(key.public_key_raw()).to_hex();
    format!("goldwire boot {}", &digest[..8])
}

fn authority_params(key: &KeyPair) -> CertificateParams {
    params(&authority_name(key), Role::Authority)
}

/// Labels of letters, digits, `-` and `_`, the first one `*` if it stands for many (RFC 1123, 2.1; RFC 6125, 6.4.3). Such a
/// name is good as a file's too.
fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= NAME_MAX && name.strip_prefix("*.").unwrap_or(name).split('.').all(is_label)
}

fn make_key(kind: KeyKind) -> Result<KeyPair, CertificateError> {
    match kind {
        KeyKind::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        KeyKind::EcdsaP256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
    }
    .map_err(CertificateError::MakeKey)
}

fn params(name: &str, role: Role) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    let life = match role {
        Role::Authority => {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            AUTHORITY_LIFE
        }
        Role::Server => {
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params.use_authority_key_identifier_extension = true;
            SERVER_LIFE
        }
    };
    // Added to a date as std's Duration, so that no calendar of ours is needed.
    let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_after = date_time_ymd(1970, 1, 1) + today + life;
    params
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// OpenSSL is the judge: the chain holds for the names, at a wrong clock too.
    #[test]
    fn openssl_trusts_what_the_authority_signed() {
        if goldwire_stdx::testing::program("openssl").is_none() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for kind in [KeyKind::Rsa2048, KeyKind::EcdsaP256] {
            let authority = Authority::new(kind).unwrap();
            let again = Authority::from_pem(authority.certificate_pem(), &authority.key_pem()).unwrap();
            let issued =
                again.issue(&["boot.example".into(), "10.0.0.1".into(), "2001:db8::1".into()]).unwrap();
            std::fs::write(path("ca"), authority.certificate_pem()).unwrap();
            std::fs::write(path("chain"), &issued.chain_pem).unwrap();
            for check in [
                &["-verify_hostname", "boot.example"][..],
                &["-verify_ip", "10.0.0.1", "-attime", "1600000000"],
                &["-verify_ip", "2001:db8::1", "-purpose", "sslserver"],
            ] {
                let output = Command::new("openssl")
                    .args(["verify", "-x509_strict", "-CAfile", &path("ca")])
                    .args(check)
                    .arg(path("chain"))
                    .output()
                    .unwrap();
                assert!(output.status.success(), "{kind:?} {check:?}: {output:?}");
            }
            let output = Command::new("openssl")
                .args(["verify", "-CAfile", &path("ca"), "-verify_hostname", "other.example", &path("chain")])
                .output()
                .unwrap();
            assert!(!output.status.success());
        }
    }

    #[test]
    fn what_cannot_be_certified_is_refused() {
        let authority = Authority::new(KeyKind::EcdsaP256).unwrap();
        assert!(matches!(authority.issue(&[]), Err(CertificateError::NoName)));
        let other = Authority::new(KeyKind::EcdsaP256).unwrap();
        let mixed = Authority::from_pem(authority.certificate_pem(), &other.key_pem());
        assert!(matches!(mixed, Err(CertificateError::NotOurs)));
        let long = "x.".repeat(NAME_MAX / 2) + "xx";
        let bad = [
            "ü x", "", ".", "..", "../../x", "/x", "a/b", ".x", "x.", "-x", "a..b", "a\n", "*", "x.*", &long,
        ];
        for name in bad {
            // At any place among the names.
            for names in [vec![name.to_owned()], vec!["boot.example".to_owned(), name.to_owned()]] {
                let issued = authority.issue(&names);
                assert!(matches!(&issued, Err(CertificateError::BadName(bad)) if bad == name), "{name:?}");
            }
        }
        for name in ["boot1", "boot_1.Example", "*.boot.example", "10.0.0.1", "fe80::1"] {
            assert!(authority.issue(&[name.to_owned()]).is_ok(), "{name}");
        }
    }
}
