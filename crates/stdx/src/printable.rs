//! Strings of strangers on their way to a terminal, a log or a file name.

use std::borrow::Cow;
use std::fmt::Write;

/// The most characters of a stranger's string that are shown: no path of Linux is longer.
pub const PRINTABLE_MAX: usize = 4096;

/// `text` as it may be shown: control characters (escape sequences, line ends, C1) and characters that hide or change
/// the direction of others stand as escapes; what is longer than [`PRINTABLE_MAX`] characters is cut with `…`.
/// Everything that a peer, a packet or a foreign file said passes here before a person or a log reads it.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.len() <= PRINTABLE_MAX && text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len().min(PRINTABLE_MAX) + 16);
    for (at, character) in text.chars().enumerate() {
        if at == PRINTABLE_MAX {
            shown.push('…');
            break;
        }
        if is_plain(character) {
            shown.push(character);
        } else {
            shown.extend(character.escape_default());
        }
    }
    Cow::Owned(shown)
}

/// [`printable`] for bytes that should be UTF-8: what is not stands as `\x…`.
pub fn printable_bytes(bytes: &[u8]) -> String {
    let mut shown = String::new();
    for chunk in bytes.utf8_chunks() {
        shown.push_str(&printable(chunk.valid()));
        for byte in chunk.invalid() {
            let _ = write!(shown, "\\x{byte:02x}");
        }
        if shown.len() > 4 * PRINTABLE_MAX {
            shown.push('…');
            break;
        }
    }
    shown
}

fn is_plain(character: char) -> bool {
    !character.is_control()
        && !matches!(
            character,
            // Zero width and direction marks, line and paragraph separators, embeddings and isolates, byte order
            // marks, tags, unassigned specials.
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff0}'..='\u{fffd}' | '\u{e0000}'..='\u{e0fff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_a_terminal_that_it_obeys() {
        assert_eq!(printable("Büro-1 名.vhd"), "Büro-1 名.vhd");
        assert_eq!(printable("a\x1b[2Jb\r\n\u{9b}31m"), "a\\u{1b}[2Jb\\r\\n\\u{9b}31m");
        assert_eq!(printable("gpj\u{202e}exe"), "gpj\\u{202e}exe");
        assert_eq!(printable_bytes(b"a\xff\xfeb\x07"), "a\\xff\\xfeb\\u{7}");
        assert_eq!(printable(&"x".repeat(2 * PRINTABLE_MAX)).chars().count(), PRINTABLE_MAX + 1);
        assert!(printable_bytes(&[0x80; 1 << 20]).len() < 1 << 16);
        assert_eq!(printable(&printable("a\x1b")), printable("a\x1b"), "escapes are plain themselves");
        for character in (0..=0x10_ffff).filter_map(char::from_u32) {
            let text = character.to_string();
            let shown = printable(&text);
            assert!(!shown.chars().any(char::is_control), "{character:?}");
        }
    }
}
