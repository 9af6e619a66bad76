//! Which files an iPXE script needs: its fetches, and whether the machine has another choice when one fails.
//!
//! A fetch is one line. Its URLs are places of the same file, tried in turn: as commands between `||`, or as the paths of
//! one `sanboot`.

use std::collections::HashSet;

/// Lines that are looked at; scripts of the built-in templates have a few hundred.
const LINES_MAX: usize = 10_000;

/// A line that fetches something.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FetchLine<'a> {
    /// The plain URLs in it, in their order. Those with variables are only known to the machine.
    pub(super) urls: Vec<&'a str>,
    /// Whether the machine, left alone, comes here and has no other choice when all its URLs fail.
    pub(super) is_needed: bool,
}

/// The lines of a script that fetch something by plain `http`: those on the way of a machine that is left alone first.
pub(super) fn fetches(script: &str) -> Vec<FetchLine<'_>> {
    let lines: Vec<&str> = script.lines().take(LINES_MAX).map(str::trim).collect();
    let way = way(&lines);
    let on_way: HashSet<usize> = way.iter().copied().collect();
    let elsewhere = (0..lines.len()).filter(|at| !on_way.contains(at));
    let all = way.iter().copied().map(|at| (at, true)).chain(elsewhere.map(|at| (at, false)));
    let fetch = |(at, is_on_way): (usize, bool)| {
        let line = lines[at];
        let urls: Vec<&str> = line.split_whitespace().filter(|word| is_link(word)).collect();
        let is_known = !line.split_whitespace().any(|word| word.contains("://") && !is_link(word));
        let is_fetch = !line.starts_with('#') && !urls.is_empty();
        is_fetch.then(|| FetchLine { urls, is_needed: is_on_way && is_known && !has_choice(line) })
    };
    all.filter_map(fetch).collect()
}

fn is_link(word: &str) -> bool {
    word.starts_with("http://") && !word.contains("${")
}

/// Whether a script goes on to something else when the line fails: by a `goto` that is not to where it gives up, or by
/// nothing behind the last `||`, which has iPXE go on with the next line.
fn has_choice(line: &str) -> bool {
    let Some((_, last)) = line.rsplit_once("||") else { return false };
    match last.split_whitespace().collect::<Vec<_>>()[..] {
        [] => true,
        ["goto", label] => !label.ends_with("failed"),
        _ => false,
    }
}

/// The lines that run, in their order, if every command succeeds, no condition holds and nobody touches a key.
fn way(lines: &[&str]) -> Vec<usize> {
    let mut way = Vec::new();
    let mut seen = HashSet::new();
    let (mut at, mut chosen) = (0, None);
    while let Some(line) = lines.get(at).filter(|_| seen.insert(at)) {
        way.push(at);
        at += 1;
        let is_conditional = line.contains("&&");
        let command: Vec<&str> = line.split("||").next().unwrap_or_default().split_whitespace().collect();
        match command[..] {
            ["goto", label] => {
                let label = if label.contains("${") { chosen.unwrap_or(label) } else { label };
                let found =
                    lines.iter().position(|line| line.strip_prefix(':').map(str::trim) == Some(label));
                let Some(target) = found else { break };
                at = target;
            }
            ["choose", ..] => chosen = option(&command, "--default").or_else(|| first_item(&lines[..at])),
            // The machine is somewhere else then.
            ["boot" | "sanboot" | "chain" | "exit" | "autoboot" | "reboot" | "poweroff", ..]
                if !is_conditional =>
            {
                break;
            }
            _ => {}
        }
    }
    way
}

fn option<'a>(command: &[&'a str], name: &str) -> Option<&'a str> {
    command.iter().position(|word| *word == name).and_then(|at| command.get(at + 1)).copied()
}

/// The first `item` of the latest menu, which is selected if the script selects none.
fn first_item<'a>(before: &[&'a str]) -> Option<&'a str> {
    let menu = before.iter().rposition(|line| line.split_whitespace().next() == Some("menu"))?;
    let item = before[menu..].iter().find(|line| line.starts_with("item "))?;
    item.split_whitespace().nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The links of the lines, each with whether it is needed.
    fn urls(script: &str) -> Vec<(String, bool)> {
        fetches(script).into_iter().map(|line| (line.urls.join(" "), line.is_needed)).collect()
    }

    fn line(urls: &str, is_needed: bool) -> (String, bool) {
        (urls.to_owned(), is_needed)
    }

    #[test]
    fn the_urls_of_a_line_are_one_file() {
        let script = "#!ipxe\n# http://a/comment\n\
            imgfetch --name kernel --timeout 8000 http://a/k || imgfetch --name kernel http://b/k || goto failed\n\
            boot kernel || goto failed\n:failed\nchain --replace http://a/s || goto failed\n";
        assert_eq!(urls(script), [line("http://a/k http://b/k", true), line("http://a/s", false)]);
        let san =
            "#!ipxe\nsanboot --no-describe http://a/disk http://b/disk || goto failed\n:failed\nshell\n";
        assert_eq!(urls(san), [line("http://a/disk http://b/disk", true)]);
        assert_eq!(urls("#!ipxe\nkernel http://a/k\nboot\n"), [line("http://a/k", true)]);
    }

    #[test]
    fn a_line_with_another_choice_is_not_needed() {
        let script = "#!ipxe\nkernel http://a/k || goto second\nboot\n:second\nkernel http://b/k\nboot\n";
        assert_eq!(urls(script), [line("http://a/k", false), line("http://b/k", false)]);
        assert_eq!(urls("#!ipxe\nimgfetch http://a/logo ||\n"), [line("http://a/logo", false)]);
        let known_to_the_machine = "#!ipxe\nkernel http://a/k || kernel http://${next-server}/k\n";
        assert_eq!(urls(known_to_the_machine), [line("http://a/k", false)]);
    }

    #[test]
    fn of_a_menu_what_is_taken_when_nobody_chooses() {
        let menu = |choose: &str| {
            let script = format!(
                "#!ipxe\nmenu Boot\nitem 1 One\nitem 2 Two\n{choose} choice || goto closed\ngoto ${{choice}}\n\
                 :1\nkernel http://a/1 || goto 1-failed\nboot\n:2\nkernel http://a/2 || goto 2-failed\nboot\n"
            );
            urls(&script)
        };
        assert_eq!(menu("choose --default 2"), [line("http://a/2", true), line("http://a/1", false)]);
        assert_eq!(menu("choose"), [line("http://a/1", true), line("http://a/2", false)]);
    }

    #[test]
    fn a_script_without_an_end_ends() {
        assert_eq!(
            urls("#!ipxe\n:a\nkernel http://a/k || goto failed\ngoto a\n"),
            [line("http://a/k", true)]
        );
        assert_eq!(urls("goto nowhere\n"), []);
        assert_eq!(urls(":\ngoto \nchoose\ngoto ${x}\n||\n"), []);
    }
}
