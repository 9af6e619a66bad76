//! Names of hosts and domains (RFC 1035, 2.3.1; RFC 1123, 2.1).

/// Whether `name` is one: labels of 1 to 63 letters, digits, `-` and, because networks have them, `_`, with dots between
/// and perhaps one at the end; at most 253 characters.
pub fn is_host_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_dots() {
        let long = vec!["x".repeat(63); 4].join(".");
        for good in ["a", "seat-17", "boot.lab.example.", "10.0.0.1", "_tcp", &long[2..]] {
            assert!(is_host_name(good), "{good}");
        }
        for bad in ["", ".", "a..b", "a b", "a/b", "ü", "a:80", "\u{1b}x", &"x".repeat(64), &long] {
            assert!(!is_host_name(bad), "{bad}");
        }
    }
}
