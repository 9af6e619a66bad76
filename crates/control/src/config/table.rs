//! Tables with the places of what stands in them. They are read one by one, so that a mistake in one does not hide those
//! in the others.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use super::problem::{Collector, did_you_mean};

/// The top of a document; `None`, with what is wrong, if the text is no TOML.
pub(crate) fn document<'s>(source: &'s str, problems: &mut Collector<'_>) -> Option<DeTable<'s>> {
    let (table, errors) = DeTable::parse_recoverable(source);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        let hint = is_bare_text(source, span.start).then(|| {
            "texts stand in quotation marks, addresses and durations too: \"10.0.0.1\", \"12h\"".into()
        });
        problems.error_with_hint(span, error.message(), hint);
    }
    errors.is_empty().then(|| table.into_inner())
}

/// A key at `span` that is none of `known`.
pub(crate) fn unknown_key(span: Range<usize>, key: &str, known: &[&str], problems: &mut Collector<'_>) {
    let hint =
        did_you_mean(key, known.iter().copied()).unwrap_or_else(|| format!("known are {}", known.join(", ")));
    problems.error_with_hint(span, format!("unknown key {key:?}"), Some(hint));
}

/// Whether a value begins before this place that has no quotation mark, bracket or brace: `router = 10.0.0.1`.
fn is_bare_text(source: &str, at: usize) -> bool {
    let at = source.floor_char_boundary(at.min(source.len()));
    let line_start = source[..at].rfind('\n').map_or(0, |found| found + 1);
    let line = source[line_start..].lines().next().unwrap_or_default();
    let Some((_, value)) = line.split_once('=') else { return false };
    !value.trim().is_empty() && !value.contains(['"', '\'', '[', '{'])
}

/// What a value says; `None`, with the reason, if it cannot be read.
pub(crate) fn table_of<T: DeserializeOwned>(
    value: Spanned<DeValue<'_>>,
    problems: &mut Collector<'_>,
) -> Option<T> {
    let span = value.span();
    T::deserialize(ValueDeserializer::from(value)).map_err(|error| report(&error, span, problems)).ok()
}

/// The tables that can be read, and whether there are others.
pub(crate) fn tables_of<T: DeserializeOwned>(
    name: &str,
    value: Spanned<DeValue<'_>>,
    problems: &mut Collector<'_>,
) -> (Vec<Spanned<T>>, bool) {
    let span = value.span();
    let DeValue::Array(array) = value.into_inner() else {
        problems.error(span, format!("{name} has to be written [[{name}]]"));
        return (Vec::new(), true);
    };
    let count = array.len();
    let read: Vec<_> = array.into_iter().filter_map(|item| table_of(item, problems)).collect();
    let has_others = read.len() < count;
    (read, has_others)
}

/// A table that was read, with its name.
pub(crate) type Named<T> = (Spanned<String>, T);

/// The tables `[kind.NAME]` that can be read, in the order of the file, and the names of the others.
pub(crate) fn named_tables<T: DeserializeOwned>(
    kind: &str,
    value: Spanned<DeValue<'_>>,
    problems: &mut Collector<'_>,
) -> (Vec<Named<T>>, BTreeSet<String>) {
    let span = value.span();
    let DeValue::Table(table) = value.into_inner() else {
        problems.error(span, format!("tables of this kind have to be written [{kind}.NAME]"));
        return (Vec::new(), BTreeSet::new());
    };
    let (mut named, mut others) = (Vec::new(), BTreeSet::new());
    for (key, value) in table {
        let name = Spanned::new(key.span(), key.get_ref().to_string());
        match table_of(value, problems) {
            Some(table) => named.push((name, table)),
            None => drop(others.insert(name.into_inner())),
        }
    }
    named.sort_by_key(|(name, _): &Named<T>| name.span().start);
    (named, others)
}

fn report(error: &toml::de::Error, around: std::ops::Range<usize>, problems: &mut Collector<'_>) {
    let message = error.message();
    // serde says: unknown field `x`, expected one of `a`, `b`.
    let words: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let hint = match words.split_first() {
        Some((unknown, known)) if message.starts_with("unknown field") => {
            did_you_mean(unknown, known.iter().copied())
                .or_else(|| Some(format!("known are {}", known.join(", "))))
        }
        _ => None,
    };
    let message = match (message.starts_with("unknown field"), words.first()) {
        (true, Some(unknown)) => format!("unknown key {unknown:?}"),
        _ => message.to_owned(),
    };
    problems.error_with_hint(error.span().unwrap_or(around), message, hint);
}
