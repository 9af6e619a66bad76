//! From when until when certificates are good. rustls judges them as its own clients would, so that nobody here has to
//! read X.509.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, Error, RootCertStore, crypto};

use crate::http::date::format as http_date;

/// So long before its end an administrator hears of a certificate.
const SOON: Duration = Duration::from_hours(14 * 24);

/// What is wrong with the dates of a chain at `now`.
pub(super) fn fault(chain: &[CertificateDer<'_>], now: SystemTime) -> Option<String> {
    chain.iter().enumerate().find_map(|(place, certificate)| {
        let which = if place == 0 { "the certificate" } else { "a certificate of the chain" };
        let fault = match judge(certificate, now)? {
            Dates::Ended(Some(end)) => format!("ended at {}", http_date(end)),
            Dates::Ended(None) => "has ended".into(),
            Dates::NotBegun(Some(begin)) => format!("is good from {} on", http_date(begin)),
            Dates::NotBegun(None) => "is not good yet".into(),
            Dates::Good => match judge(certificate, now + SOON)? {
                Dates::Ended(Some(end)) => return Some(format!("{which} ends soon, at {}", http_date(end))),
                _ => return None,
            },
        };
        Some(format!("{which} {fault}; iPXE refuses it"))
    })
}

enum Dates {
    Good,
    Ended(Option<SystemTime>),
    NotBegun(Option<SystemTime>),
}

/// None for a certificate that cannot be an anchor, of which rustls says nothing.
fn judge(certificate: &CertificateDer<'_>, at: SystemTime) -> Option<Dates> {
    let mut anchors = RootCertStore::empty();
    anchors.add(certificate.clone().into_owned()).ok()?;
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(anchors), provider).build().ok()?;
    let name = ServerName::try_from("any").ok()?;
    let at = UnixTime::since_unix_epoch(at.duration_since(UNIX_EPOCH).unwrap_or_default());
    let time = |time: UnixTime| UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs()));
    // Dates come before everything else that it judges: a name, a purpose, who signed.
    Some(match verifier.verify_server_cert(certificate, &[], &name, &[], at) {
        Err(Error::InvalidCertificate(error)) => match error {
            CertificateError::Expired => Dates::Ended(None),
            CertificateError::ExpiredContext { not_after, .. } => Dates::Ended(time(not_after)),
            CertificateError::NotValidYet => Dates::NotBegun(None),
            CertificateError::NotValidYetContext { not_before, .. } => Dates::NotBegun(time(not_before)),
            _ => Dates::Good,
        },
        _ => Dates::Good,
    })
}

#[cfg(test)]
mod tests {
    use goldwire_stdx::testing::cases;
    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};

    use super::*;

    const DAY: u64 = 24 * 3600;

    fn certificate(begin: u64, end: u64, is_authority: bool) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(["boot.example".to_owned()]).unwrap();
        params.not_before = (UNIX_EPOCH + Duration::from_secs(begin)).into();
        params.not_after = (UNIX_EPOCH + Duration::from_secs(end)).into();
        if is_authority {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(cases(48)))]

        #[test]
        fn a_certificate_is_good_between_its_dates(
            begin in DAY..9000 * DAY, days in 1_u64..9000, at in 0..20_000 * DAY,
            is_authority: bool, is_second: bool,
        ) {
            let end = begin + days * DAY;
            let one = certificate(begin, end, is_authority);
            let ages = certificate(0, 25_000 * DAY, true);
            let chain = if is_second { vec![ages, one] } else { vec![one] };
            let told = fault(&chain, UNIX_EPOCH + Duration::from_secs(at));
            let which = if is_second { "a certificate of the chain" } else { "the certificate" };
            let date = |seconds| http_date(UNIX_EPOCH + Duration::from_secs(seconds));
            let expected = if at < begin {
                Some(format!("{which} is good from {} on; iPXE refuses it", date(begin)))
            } else if at > end {
                Some(format!("{which} ended at {}; iPXE refuses it", date(end)))
            } else if at + SOON.as_secs() > end {
                Some(format!("{which} ends soon, at {}", date(end)))
            } else {
                None
            };
            prop_assert_eq!(told, expected);
        }
    }
}
