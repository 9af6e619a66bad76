//! What is wrong with a configuration file, each with its place, as a compiler would say it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use goldwire_stdx::{printable, printable_bytes};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file is used as it is.
    Warning,
    /// The file is not used.
    Error,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether the file can be used all the same.
    pub severity: Severity,
    /// What is wrong, as a sentence.
    pub message: String,
    /// What the reader can do.
    pub hint: Option<String>,
    /// Where it is; none if it is about the file as a whole.
    pub place: Option<Place>,
}

/// A place in a file, with what stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// The whole line.
    pub text: String,
    /// How many characters of it are meant.
    pub width: usize,
}

/// All that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// The file.
    pub path: PathBuf,
    /// In the order of the file.
    pub list: Vec<Problem>,
}

impl Problems {
    /// Whether the file cannot be used.
    pub fn has_error(&self) -> bool {
        self.list.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.list.iter().enumerate() {
            if at > 0 {
                f.write_str("\n\n")?;
            }
            let severity = match problem.severity {
                Severity::Warning => "warning",
                Severity::Error => "error",
            };
            // Values of the file stand in messages, and the file may be anybody's.
            write!(f, "{severity}: {}", printable(&problem.message))?;
            let path = printable_bytes(self.path.as_os_str().as_encoded_bytes());
            match &problem.place {
                Some(Place { line, column, text, width }) => {
                    let number = line.to_string();
                    let margin = " ".repeat(number.len());
                    let before = " ".repeat(column - 1);
                    let carets = "^".repeat(*width);
                    let text = printable(text);
                    write!(f, "\n{margin}--> {path}:{line}:{column}\n{margin} |\n{number} | {text}")?;
                    write!(f, "\n{margin} | {before}{carets}")?;
                }
                None => write!(f, "\n --> {path}")?,
            }
            if let Some(hint) = &problem.hint {
                write!(f, "\nhint: {}", printable(hint))?;
            }
        }
        Ok(())
    }
}

/// Collects problems while a file is read.
#[derive(Debug)]
pub(crate) struct Collector<'a> {
    path: &'a Path,
    source: &'a str,
    /// Offsets at which lines begin: a file of 100,000 devices asks for as many line numbers.
    lines: Vec<usize>,
    list: Vec<(usize, Problem)>,
}

/// A file with a thousand mistakes is a wrong file; nobody reads on.
pub(super) const PROBLEMS_MAX: usize = 100;

impl<'a> Collector<'a> {
    pub(crate) fn new(path: &'a Path, source: &'a str) -> Self {
        let lines = std::iter::once(0).chain(source.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { path, source, lines, list: Vec::new() }
    }

    pub(crate) fn error(&mut self, span: Range<usize>, message: impl Into<String>) {
        self.push(Severity::Error, Some(span), message.into(), None);
    }

    pub(crate) fn error_with_hint(
        &mut self,
        span: Range<usize>,
        message: impl Into<String>,
        hint: Option<String>,
    ) {
        self.push(Severity::Error, Some(span), message.into(), hint);
    }

    pub(crate) fn warning(&mut self, span: Option<Range<usize>>, message: impl Into<String>) {
        self.push(Severity::Warning, span, message.into(), None);
    }

    pub(crate) fn warning_with_hint(
        &mut self,
        span: Option<Range<usize>>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.push(Severity::Warning, span, message.into(), Some(hint.into()));
    }

    pub(crate) fn error_of_file(&mut self, message: impl Into<String>, hint: impl Into<String>) {
        self.push(Severity::Error, None, message.into(), Some(hint.into()));
    }

    fn push(
        &mut self,
        severity: Severity,
        span: Option<Range<usize>>,
        message: String,
        hint: Option<String>,
    ) {
        if self.list.len() >= PROBLEMS_MAX {
            return;
        }
        let at = span.as_ref().map_or(usize::MAX, |span| span.start);
        let place = span.map(|span| place(self.source, span));
        self.list.push((at, Problem { severity, message, hint, place }));
    }

    /// Whether an error was told. What would only follow from it need not be told too.
    pub(crate) fn has_error(&self) -> bool {
        self.list.iter().any(|(_, problem)| problem.severity == Severity::Error)
    }

    /// The line of a byte offset, counted from 1.
    pub(crate) fn line_of(&self, offset: usize) -> usize {
        self.lines.partition_point(|start| *start <= offset)
    }

    pub(crate) fn finish(mut self) -> Problems {
        self.list.sort_by_key(|(at, _)| *at);
        Problems {
            path: self.path.to_owned(),
            list: self.list.into_iter().map(|(_, problem)| problem).collect(),
        }
    }
}

fn place(source: &str, span: Range<usize>) -> Place {
    let start = source.floor_char_boundary(span.start.min(source.len()));
    let line_start = source[..start].rfind('\n').map_or(0, |at| at + 1);
    let line_end = source[start..].find('\n').map_or(source.len(), |at| start + at);
    let end = source.floor_char_boundary(span.end.clamp(start, line_end));
    Place {
        line: source[..start].matches('\n').count() + 1,
        column: source[line_start..start].chars().count() + 1,
        text: source[line_start..line_end].trim_end().replace('\t', " "),
        width: source[start..end].chars().count().max(1),
    }
}

/// `did you mean …?`, if something known is near.
pub(crate) fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let nearest = known.into_iter().map(|name| (distance(written, name), name)).min()?;
    let (distance, name) = nearest;
    (distance <= (written.chars().count() / 3).max(1)).then(|| format!("did you mean {name:?}?"))
}

/// How many characters have to be changed, put in or taken out (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (at, to) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = (diagonal + usize::from(from != *to)).min(above + 1).min(row[at] + 1);
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_points_at_its_place() {
        let source = "a = 1\nbä = \"x\"\n";
        let mut collector = Collector::new(Path::new("boot.toml"), source);
        collector.error_with_hint(12..15, "no such x", did_you_mean("devcie", ["device", "group"]));
        collector.warning(Some(0..1), "odd");
        let problems = collector.finish();
        assert!(problems.has_error());
        let expected = "warning: odd\n --> boot.toml:1:1\n  |\n1 | a = 1\n  | ^\n\nerror: no such x\n --> \
                        boot.toml:2:6\n  |\n2 | bä = \"x\"\n  |      ^^^\nhint: did you mean \"device\"?";
        assert_eq!(problems.to_string(), expected);
    }

    #[test]
    fn only_what_is_near_is_suggested() {
        assert_eq!(did_you_mean("profle", ["profile", "name"]).as_deref(), Some("did you mean \"profile\"?"));
        assert_eq!(did_you_mean("kernel", ["address", "name"]), None);
    }
}
