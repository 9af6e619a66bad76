//! ed25519 keys for version descriptors. Key files are one line of text: `goldwire-secret-key-1 <hex>` or
//! `goldwire-public-key-1 <hex>`.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use goldwire_stdx::{from_hex, to_hex};

const SECRET_PREFIX: &str = "goldwire-secret-key-1 ";
const PUBLIC_PREFIX: &str = "goldwire-public-key-1 ";

/// A signing key. It does not print itself.
pub struct SecretKey(SigningKey);

/// The key by which a signature is checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl SecretKey {
    /// A key from 32 random bytes.
    pub fn from_random(bytes: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&bytes))
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The line of a secret key file. The only way to get the secret out.
    pub fn to_file_text(&self) -> String {
        format!("{SECRET_PREFIX}{}\n", to_hex(self.0.as_bytes()))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

impl FromStr for SecretKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim().strip_prefix(SECRET_PREFIX).ok_or("not a goldwire secret key file")?;
        from_hex(digits.trim()).map(Self::from_random).ok_or("the secret key is not 64 hexadecimal digits")
    }
}

impl PublicKey {
    /// The key of 32 bytes; `None` if they are no point of the curve, or a weak one.
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<Self> {
        VerifyingKey::from_bytes(bytes).ok().filter(|key| !key.is_weak()).map(Self)
    }

    /// The key's 32 bytes (RFC 8032, section 5.1.5).
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// Checks a signature strictly (RFC 8032 with the small-order points refused).
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &ed25519_dalek::Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC_PREFIX}{}", to_hex(self.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim().strip_prefix(PUBLIC_PREFIX).unwrap_or(text.trim());
        let bytes = from_hex(digits.trim()).ok_or("not a goldwire public key (64 hexadecimal digits)")?;
        Self::from_bytes(&bytes).ok_or("not a point of the curve, or a weak one")
    }
}
