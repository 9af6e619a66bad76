//! Commands that are proposed to people, who copy them into a shell.

use std::path::Path;

use crate::printable_bytes;

/// `word` as a shell reads it as one word.
pub fn shell_word(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&byte);
    match !word.is_empty() && word.bytes().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// `path` as a shell reads it as one word, and every program as no option of its own.
pub fn shell_path(path: &Path) -> String {
    let shown = printable_bytes(path.as_os_str().as_encoded_bytes());
    match shown.starts_with('-') {
        true => shell_word(&format!("./{shown}")),
        false => shell_word(&shown),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_reads_words_and_paths_back() {
        for word in ["a.vhd", "it's $x", "-o", "", "a b;c|d", "[::1]", "*", "~", "ä", "\\"] {
            let output =
                Command::new("/bin/sh").args(["-c", &format!("printf %s {}", shell_word(word))]).output();
            assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap(), word);
        }
        assert_eq!(shell_path(Path::new("/sr/a-1.vhd")), "/sr/a-1.vhd");
        assert_eq!(shell_path(Path::new("/sr/base disk.vhd")), "'/sr/base disk.vhd'");
        assert_eq!(shell_path(Path::new("-rf")), "./-rf");
    }
}
