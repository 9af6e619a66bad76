//! Whether a file is a CA certificate: what else is on a medium as `ca.crt` is refused by the firmware, or tells a secret.

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{PemObject, SectionKind};

use super::MediaError;

/// Looks at a certificate in PEM or DER form, or at several in PEM form.
pub(super) fn check(bytes: &[u8]) -> Result<(), MediaError> {
    let refused = |why, hint| Err(MediaError::Ca { why, hint });
    if bytes.trim_ascii().is_empty() {
        return refused("it is empty", USUAL);
    }
    let mut certificates = Vec::new();
    if bytes.windows(PEM_BEGIN.len()).any(|part| part == PEM_BEGIN) {
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes) {
            match section {
                Ok((SectionKind::Certificate, certificate)) => certificates.push(certificate),
                Ok((SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey, _)) => {
                    return refused(
                        "it holds a private key, which everybody who has the medium could read",
                        "name the file that holds the certificate alone, such as ca.pem",
                    );
                }
                Ok(_) => {}
                Err(_) => return refused("its PEM is damaged", USUAL),
            }
        }
    } else {
        certificates.push(bytes.to_vec());
    }
    if certificates.is_empty() {
        return refused("it holds no certificate", USUAL);
    }
    for certificate in certificates {
        if RootCertStore::empty().add(CertificateDer::from(certificate)).is_err() {
            return refused("it is no certificate in PEM or DER form", USUAL);
        }
    }
    Ok(())
}

const PEM_BEGIN: &[u8] = b"-----BEGIN ";
const USUAL: &str = "name the certificate of the authority that signed the boot servers', such as the ca.pem that \
                     `goldwire boot certificate` makes";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_certificate_is_one() {
        let made = rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap();
        let (pem, der) = (made.cert.pem(), made.cert.der().to_vec());
        let key = made.signing_key.serialize_pem();
        let chain = format!("# two of them\n{pem}\n{pem}");
        for good in [pem.as_bytes(), &der, chain.as_bytes()] {
            check(good).unwrap();
        }
        let cut = &pem[..pem.len() / 2];
        let hollow = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
        let request = pem.replace("CERTIFICATE", "CERTIFICATE REQUEST");
        for (bad, reason) in [
            (&b""[..], "empty"),
            (b" \n", "empty"),
            (b"not a certificate", "no certificate in PEM or DER"),
            (&der[..der.len() - 1], "no certificate in PEM or DER"),
            (cut.as_bytes(), "damaged"),
            (hollow.as_bytes(), "no certificate in PEM or DER"),
            (request.as_bytes(), "holds no certificate"),
            (key.as_bytes(), "private key"),
            (format!("{pem}{key}").as_bytes(), "private key"),
        ] {
            let Err(MediaError::Ca { why, hint }) = check(bad) else { panic!("{reason}") };
            assert!(why.contains(reason) && !hint.is_empty(), "{why}: {reason}");
        }
    }
}
