//! Signed short-lived tokens: who was told a path by DHCP or a script may fetch it, and nobody else, without a session
//! on any member.
//!
//! ```text
//! 0        4            10                26 bytes, in hexadecimal
//! +--------+------------+-----------------+
//! | end    | MAC        | tag             |   end: seconds since 1970, big endian; MAC: zeros when bound to none
//! +--------+------------+-----------------+
//! tag = first 16 bytes of keyed BLAKE3(end, MAC, path below the token)
//! ```

use std::fmt;
use std::str::FromStr;

use crate::device::Mac;

/// BLAKE3's key derivation context: another use of the same secret gets another key.
const CONTEXT: &str = "goldwire netboot link token 2026-01";
const TAG: usize = 16;
/// Digits of a token.
pub(super) const TEXT_LENGTH: usize = 2 * (4 + 6 + TAG);

/// The secret that the members of a boot group share for their tokens.
pub struct TokenKey([u8; 32]);

impl TokenKey {
    /// A key from a shared secret of any length. It is only as hard to guess as the secret.
    pub fn from_secret(secret: &[u8]) -> Self {
        Self(blake3::derive_key(CONTEXT, secret))
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(redacted)")
    }
}

impl Drop for TokenKey {
    fn drop(&mut self) {
        self.0.fill(0);
        // Keeps the compiler from leaving out a write that nobody reads.
        std::hint::black_box(&mut self.0);
    }
}

/// A token as it stands in a path; made good by [`Token::is_signed_by`] only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Token {
    end: u32,
    mac: [u8; 6],
    tag: [u8; TAG],
}

impl Token {
    pub(super) fn sign(key: &TokenKey, end: u32, mac: Option<Mac>, path: &str) -> Self {
        let mac = mac.map_or([0; 6], |mac| mac.0);
        Self { end, mac, tag: tag(key, end, mac, path) }
    }

    /// When it ends, in seconds since 1970.
    pub(super) fn end(&self) -> u32 {
        self.end
    }

    /// The device that it was made for.
    pub(super) fn mac(&self) -> Option<Mac> {
        (self.mac != [0; 6]).then_some(Mac(self.mac))
    }

    /// Whether it was made with this key for this path. Takes the same time for any wrong tag.
    pub(super) fn is_signed_by(&self, key: &TokenKey, path: &str) -> bool {
        // blake3::Hash compares in constant time.
        let padded = |tag: &[u8; TAG]| {
            let mut bytes = [0; 32];
            bytes[..TAG].copy_from_slice(tag);
            blake3::Hash::from_bytes(bytes)
        };
        padded(&tag(key, self.end, self.mac, path)) == padded(&self.tag)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [&self.end.to_be_bytes()[..], &self.mac, &self.tag] {
            f.write_str(&goldwire_stdx::to_hex(part))?;
        }
        Ok(())
    }
}

impl FromStr for Token {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let bytes: [u8; 4 + 6 + TAG] = goldwire_stdx::from_hex(text).ok_or(())?;
        let mut token = Self { end: 0, mac: [0; 6], tag: [0; TAG] };
        let [a, b, c, d, rest @ ..] = bytes;
        token.end = u32::from_be_bytes([a, b, c, d]);
        token.mac.copy_from_slice(&rest[..6]);
        token.tag.copy_from_slice(&rest[6..]);
        Ok(token)
    }
}

fn tag(key: &TokenKey, end: u32, mac: [u8; 6], path: &str) -> [u8; TAG] {
    let mut hasher = blake3::Hasher::new_keyed(&key.0);
    hasher.update(&end.to_be_bytes()).update(&mac).update(path.as_bytes());
    let mut tag = [0; TAG];
    tag.copy_from_slice(&hasher.finalize().as_bytes()[..TAG]);
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_a_token_counts() {
        let key = TokenKey::from_secret(b"secret");
        let token = Token::sign(&key, 1_800_000_000, Some(Mac([1, 2, 3, 4, 5, 6])), "a/b");
        let text = token.to_string();
        assert_eq!((text.len(), text.parse()), (52, Ok(token)));
        assert!(token.is_signed_by(&key, "a/b"));
        let bytes: [u8; 26] = goldwire_stdx::from_hex(&text).unwrap();
        for bit in 0..26 * 8 {
            let mut changed = bytes;
            changed[bit / 8] ^= 1 << (bit % 8);
            let forged: Token = goldwire_stdx::to_hex(&changed).parse().unwrap();
            assert!(!forged.is_signed_by(&key, "a/b"), "bit {bit}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "00", &"0".repeat(51), &"0".repeat(53), &"g".repeat(52), &"é".repeat(26)] {
            assert!(text.parse::<Token>().is_err(), "{text}");
        }
    }
}
