//! Tables with the places of what stands in them. They are read one by one, so that a mistake in one does not hide those
//! in the others.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Error, ValueDeserializer};

use super::problem::{Collector, PROBLEMS_MAX, did_you_mean};

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

/// What a value says; `None`, with all reasons, if it cannot be read. A table's keys have to be optional for serde: which
/// are needed is for who reads the values.
pub(crate) fn table_of<T: DeserializeOwned>(
    value: Spanned<DeValue<'_>>,
    problems: &mut Collector<'_>,
) -> Option<T> {
    let read = |value| T::deserialize(ValueDeserializer::from(value));
    if let Ok(table) = read(value.clone()) {
        return Some(table);
    }
    let mut faults = Vec::new();
    find_faults(value, &|part| part, &|part| read(part).err(), &mut faults);
    faults.iter().for_each(|(span, error)| report(span.clone(), error, problems));
    None
}

/// Finds each part of a value that cannot be read, with its place: serde stops at the first, so every part is read as if
/// it were alone. `alone` puts a part into what it stood in, without its neighbours.
fn find_faults<'v>(
    value: Spanned<DeValue<'v>>,
    alone: &dyn Fn(Spanned<DeValue<'v>>) -> Spanned<DeValue<'v>>,
    fault_of: &dyn Fn(Spanned<DeValue<'v>>) -> Option<Error>,
    faults: &mut Vec<(Range<usize>, Error)>,
) {
    let span = value.span();
    let known = faults.len();
    let error = match fault_of(alone(value.clone())) {
        Some(error) if known < PROBLEMS_MAX => error,
        _ => return,
    };
    let with = |parts| alone(Spanned::new(span.clone(), parts));
    // What is wrong without any part is one mistake: an unknown key, a list where none belongs.
    let is_wrong_if = |empty| fault_of(with(empty)).is_some();
    match value.into_inner() {
        DeValue::Table(table) if !is_wrong_if(DeValue::Table(DeTable::new())) => {
            for (key, part) in table {
                let alone = |part| with(DeValue::Table(DeTable::from_iter([(key.clone(), part)])));
                find_faults(part, &alone, fault_of, faults);
            }
        }
        DeValue::Array(array) if !is_wrong_if(DeValue::Array(DeArray::new())) => {
            for part in array {
                let alone = |part| with(DeValue::Array(DeArray::from_iter([part])));
                find_faults(part, &alone, fault_of, faults);
            }
        }
        _ => {}
    }
    if faults.len() == known {
        // serde gives the place of what the value stands in where it knows no better one; an unknown key's is its own.
        let told = error.span().filter(|told| told.start > span.start || told.end < span.end);
        faults.push((told.unwrap_or(span), error));
    }
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

fn report(span: Range<usize>, error: &Error, problems: &mut Collector<'_>) {
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
    problems.error_with_hint(span, message, hint);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use std::path::Path;

    use serde::Deserialize;

    use super::*;
    use crate::config::{Parsed, Several};

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Written {
        name: Option<Spanned<String>>,
        count: Option<Spanned<u16>>,
        addresses: Option<Spanned<Several<IpAddr>>>,
        texts: BTreeMap<Spanned<String>, Spanned<String>>,
        inner: Vec<Spanned<Inner>>,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        address: Option<Spanned<Parsed<IpAddr>>>,
        flag: Option<bool>,
    }

    /// Line, column and what stands there, of each fault of the table `[t]`.
    fn places(table: &str) -> Vec<(usize, String)> {
        let source = format!("[t]\n{table}");
        let mut problems = Collector::new(Path::new("boot.toml"), &source);
        for (_, value) in document(&source, &mut problems).unwrap() {
            assert_eq!(table_of::<Written>(value, &mut problems).is_some(), !problems.has_error());
        }
        let marked = |place: &crate::config::Place| {
            place.text.chars().skip(place.column - 1).take(place.width).collect::<String>()
        };
        let told = problems.finish().list;
        told.iter().filter_map(|told| told.place.as_ref()).map(|place| (place.line, marked(place))).collect()
    }

    /// serde stops at the first: who had five wrong values ran `check` five times.
    #[test]
    fn every_wrong_value_of_a_table_is_told() {
        let told = places(
            "name = 5\ncount = \"7\"\naddresses = [\"10.0.0.1\", \"10.0.0.256\", 9]\ntexts = { a = 1, b = \"x\", c = 2 }\n\
             inner = [{ address = \"x\", flag = 3 }, { flag = true }, { flga = true }]\nnmae = [1, 2]\n",
        );
        let expected = [
            (2, "5"),
            (3, "\"7\""),
            (4, "\"10.0.0.256\""),
            (4, "9"),
            (5, "1"),
            (5, "2"),
            (6, "\"x\""),
            (6, "3"),
            (6, "flga"),
            (7, "nmae"),
        ];
        assert_eq!(told, expected.map(|(line, text)| (line, text.to_owned())));
        assert_eq!(places("name = \"x\"\ninner = [{ flag = true }]\n"), []);
    }

    /// A list where a text belongs is one mistake, and a thousand of them end somewhere.
    #[test]
    fn one_mistake_is_told_once() {
        assert_eq!(places("name = [\"a\", \"b\"]\n").len(), 1);
        assert_eq!(places("inner = 5\n").len(), 1);
        assert_eq!(places("count = { a = 1, b = [2, 3] }\n").len(), 1);
        let many = vec!["\"x\""; 10 * PROBLEMS_MAX].join(", ");
        assert_eq!(places(&format!("addresses = [{many}]\n")).len(), PROBLEMS_MAX);
    }
}
