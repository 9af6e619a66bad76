//! A small reader of iPXE scripts: enough to say whether a script can run to its end.

use std::collections::BTreeSet;

/// Commands that fetch and can wait for ever without `--timeout`.
#[cfg(test)]
const FETCHING: [&str; 6] = ["imgfetch", "chain", "kernel", "initrd", "module", "imgselect"];

/// What is wrong with a script, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the rendered script: {reason}")]
pub(crate) struct SyntaxError {
    /// Counted from 1.
    pub line: usize,
    /// As a sentence.
    pub reason: String,
}

/// Whether iPXE can take this as a script: it begins with `#!ipxe`, each label occurs once, each `goto` has a target
/// that exists, and no command is empty.
pub(crate) fn check(script: &str) -> Result<(), SyntaxError> {
    let wrong = |line: usize, reason: String| Err(SyntaxError { line: line + 1, reason });
    if script.lines().next().map(str::trim_end) != Some("#!ipxe") {
        return wrong(0, "it has to be #!ipxe".into());
    }
    let mut labels = BTreeSet::new();
    for (at, line) in script.lines().enumerate() {
        if let Some(label) = line.strip_prefix(':')
            && !labels.insert(label.trim())
        {
            return wrong(
                at,
                format!("the label {label:?} occurs twice; in a menu, write :{{{{ prefix }}}}label"),
            );
        }
    }
    for (at, line) in script.lines().enumerate() {
        for (position, command) in commands(line).into_iter().enumerate() {
            match command.as_slice() {
                // An empty command behind `||` only clears the error.
                [] if position == 0 && !is_blank(line) => return wrong(at, "a command is empty".into()),
                ["goto"] => return wrong(at, "goto without a label".into()),
                ["goto", target, ..] if !target.contains("${") && !labels.contains(target) => {
                    return wrong(at, format!("goto {target}, and no such label"));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Commands that could hang or end the script: fetches without a time limit, and fetches and boots without a fallback.
/// For the tests of templates.
#[cfg(test)]
pub(super) fn unguarded(script: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in script.lines() {
        let commands = commands(line);
        for (position, command) in commands.iter().enumerate() {
            let Some(name) = command.first() else { continue };
            let is_fetch = FETCHING.contains(name);
            let is_boot =
                matches!(*name, "boot" | "imgexec" | "sanboot" | "sanhook" | "imgargs" | "choose" | "dhcp");
            let has_timeout = command.contains(&"--timeout");
            if (is_fetch && !has_timeout) || ((is_fetch || is_boot) && position + 1 == commands.len()) {
                found.push(command.join(" "));
            }
        }
    }
    found
}

fn is_blank(line: &str) -> bool {
    line.trim().is_empty() || line.trim_start().starts_with('#') || line.starts_with(':')
}

/// The commands of a line, split as `exec.c` does it.
fn commands(line: &str) -> Vec<Vec<&str>> {
    if is_blank(line) {
        return Vec::new();
    }
    let mut commands = vec![Vec::new()];
    for token in line.split_whitespace() {
        match token {
            "||" | "&&" | ";" => commands.push(Vec::new()),
            _ if token.starts_with('#') => break,
            _ => {
                if let Some(last) = commands.last_mut() {
                    last.push(token);
                }
            }
        }
    }
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_found_with_their_line() {
        assert_eq!(check("#!ipxe\n:a\nshell ||\ngoto a # again\n"), Ok(()));
        assert_eq!(check("#!ipxe\ngoto ${target}\n"), Ok(()));
        for (script, line) in [
            ("", 1),
            ("echo\n", 1),
            ("#!ipxe\necho\ngoto b\n", 3),
            ("#!ipxe\n:a\n:a\n", 3),
            ("#!ipxe\nisset x || goto\n", 2),
            ("#!ipxe\n|| shell\n", 2),
        ] {
            assert_eq!(check(script).unwrap_err().line, line, "{script:?}");
        }
    }

    #[test]
    fn fetches_without_guard_are_found() {
        assert_eq!(unguarded("imgfetch http://a || goto x"), ["imgfetch http://a"]);
        assert_eq!(unguarded("boot kernel"), ["boot kernel"]);
        assert!(unguarded("imgfetch --timeout 8000 http://a || goto x\nboot kernel || goto x").is_empty());
    }
}
