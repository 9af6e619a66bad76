//! What the tests of several files share.

use std::fs::File;
use std::io::{IoSliceMut, Write};
use std::os::unix::fs::FileExt;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SignatureAlgorithm,
};
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// A file with this content of which the page cache has nothing; none, and a word on stderr, where it cannot be evicted.
pub(super) fn evicted(content: &[u8]) -> Option<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    evict(&file).then_some(file)
}

/// Takes a file out of the page cache; whether its file system can do that.
pub(super) fn evict(file: &File) -> bool {
    let drop_pages = || fadvise(file, 0, None, Advice::DontNeed).unwrap();
    file.sync_all().unwrap();
    drop_pages();
    let probe = preadv2(file, &mut [IoSliceMut::new(&mut [0])], 0, ReadWriteFlags::NOWAIT);
    if probe != Err(Errno::AGAIN) {
        goldwire_stdx::testing::excuse(goldwire_stdx::testing::Excuse::NoMedium);
        return false;
    }
    // The probe made the kernel begin to read, and pages that are being read stay: wait for them.
    let mut offset = 0;
    let mut buffer = vec![0; 1 << 20];
    while let Ok(count @ 1..) = file.read_at(&mut buffer, offset) {
        offset += count as u64;
    }
    drop_pages();
    true
}

/// An authority that a TLS client can be told to trust.
pub(super) struct TestAuthority {
    algorithm: &'static SignatureAlgorithm,
    issuer: Issuer<'static, KeyPair>,
    pub(super) certificate_pem: String,
}

/// A server's certificate with its key, in PEM.
pub(super) struct Issued {
    pub(super) chain_pem: String,
    pub(super) key_pem: String,
}

impl TestAuthority {
    pub(super) fn new(algorithm: &'static SignatureAlgorithm) -> Self {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let mut params = CertificateParams::default();
        // The name of a certificate that has none is the same as that of a server's, which then looks self-signed.
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate_pem = params.self_signed(&key).unwrap().pem();
        Self { algorithm, issuer: Issuer::new(params, key), certificate_pem }
    }

    /// A certificate for a server that is reached by this name or address, with a new key.
    pub(super) fn issue(&self, name: &str) -> Issued {
        let key = KeyPair::generate_for(self.algorithm).unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let chain_pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { chain_pem, key_pem: key.serialize_pem() }
    }
}
