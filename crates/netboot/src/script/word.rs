//! Words of iPXE's command line.
//!
//! iPXE splits a line at white space, takes `||`, `&&` and `;` alone as the end of a command and `#` as the begin of a
//! comment, and expands `${…}`; it has no quotes and no escapes (ipxe `src/core/exec.c`, `src/image/script.c`). So a
//! value that is to be one word must not hold any of this.

/// The text, if iPXE takes it as one word and as nothing but a word.
pub(super) fn checked(text: &str) -> Result<&str, String> {
    let reason = if text.chars().any(char::is_whitespace) {
        "has white space, which would begin another word; use `|words` where several are meant"
    } else if text.chars().any(char::is_control) {
        "has control characters"
    } else if text.contains("${") || text.ends_with('$') || text.starts_with('{') {
        "would be taken for a setting `${…}`"
    } else if !text.is_empty() && text.chars().all(|c| matches!(c, '|' | '&' | ';')) {
        "would end the command"
    } else if text.starts_with('#') {
        "would begin a comment"
    } else if text.ends_with('\\') {
        "would join the next line to this one"
    } else {
        return Ok(text);
    };
    Err(format!("the value {text:?} {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_one_word_or_refused() {
        for good in
            ["", "a", "root=/dev/sda1", "a||b", "x#1", "ü", "--keep", "$5", "iscsi:10.0.0.1::::iqn.a:b"]
        {
            assert_eq!(checked(good), Ok(good));
        }
        for bad in [
            "a b",
            "a\nshell",
            "a\tb",
            "a\u{a0}b",
            "\0",
            "${net0/mac}",
            "a$",
            "{net0/mac}",
            "||",
            "&&",
            ";",
            "|",
            "#x",
            "a\\",
        ] {
            assert!(checked(bad).is_err(), "{bad:?}");
        }
    }
}
