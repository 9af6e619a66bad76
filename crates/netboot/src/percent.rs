//! Percent-encoding (RFC 3986 §2.1): paths on their way into URLs, and back.

/// Bytes that stand in a URL as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plain(&'static [u8]);

impl Plain {
    /// In URLs of scripts, and in the spelling of a path that is compared: letters, digits, RFC 3986's other unreserved
    /// characters, and the slash.
    pub(crate) const UNRESERVED: Self = Self(b"-._~/");
    /// In boot file URLs of DHCP, which have few bytes: also most of what RFC 3986 §3.3 allows in a path. Not all of it:
    /// iPXE expands `${…}` in a boot file, and management controllers stumble over `&`.
    pub(crate) const BOOT_FILE: Self = Self(b"-._~/:@,+=");
}

/// A path as it stands in a URL.
pub(crate) fn percent_encode(path: &str, plain: Plain) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || plain.0.contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// What a text of a URL means; nothing if it has a broken percent sign or a NUL, or is no UTF-8.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    if !text.contains(['%', '\0']) {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first == b'%' {
            let (digits, behind) = rest.split_at_checked(2)?;
            let [byte] = goldwire_stdx::from_hex::<1>(std::str::from_utf8(digits).ok()?)?;
            bytes.push(byte);
            rest = behind;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_set_says_what_is_escaped() {
        for (path, unreserved, boot_file) in [
            ("a b/\u{fc}?&.efi", "a%20b/%C3%BC%3F%26.efi", "a%20b/%C3%BC%3F%26.efi"),
            ("c++/x:y@1,2=3", "c%2B%2B/x%3Ay%401%2C2%3D3", "c++/x:y@1,2=3"),
            ("${mac}%", "%24%7Bmac%7D%25", "%24%7Bmac%7D%25"),
        ] {
            assert_eq!(percent_encode(path, Plain::UNRESERVED), unreserved);
            assert_eq!(percent_encode(path, Plain::BOOT_FILE), boot_file);
        }
    }

    #[test]
    fn broken_texts_mean_nothing() {
        for text in ["%", "a%2", "%zz", "%+1", "%00", "a\0", "%ff"] {
            assert_eq!(percent_decode(text), None, "{text:?}");
        }
    }

    proptest! {
        /// Whatever the set, a URL means the path that it was made from, and is made of what a URL may have.
        #[test]
        fn what_is_encoded_means_the_same(path in "[^\\x00]*") {
            for plain in [Plain::UNRESERVED, Plain::BOOT_FILE] {
                let text = percent_encode(&path, plain);
                let is_fit = text.bytes().all(|byte| byte.is_ascii_graphic() && !b"$&?#\"<>\\^`{|}".contains(&byte));
                prop_assert!(is_fit, "{}", text);
                prop_assert_eq!(percent_decode(&text), Some(path.clone()));
            }
        }
    }
}
