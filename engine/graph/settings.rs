//! What is wrong with the settings of one stream that do not come out of a graph file: the same that `check` says of a
//! file, each mistake by the path of its field.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use operators::config::Field;
use operators::error::FieldError;

use super::diagnostics::{Code, Diagnostic, Severity};
use super::fields::FieldChecker;
use super::parse::{Data, Table, parse};

/// Everything that is wrong with the value of a field, as far as the field's type tells.
pub fn mistakes(field: &Field, value: &toml::Value, folder: &Path) -> Vec<(Code, FieldError)> {
    let text = toml::Table::from_iter([(field.name.to_owned(), value.clone())]).to_string();
    // What was written as TOML just now is TOML.
    let Ok(mut table) = parse(&text) else { return Vec::new() };
    let written = table.clone();
    let mut checker = FieldChecker { text: &text, folder, diagnostics: Vec::new() };
    for (_, value) in &mut table.entries {
        checker.value(field.name, &field.value, value);
    }
    let found = checker.diagnostics.into_iter().filter(|found| found.severity() == Severity::Error);
    found.map(|found| (found.code, of_field(&written, found))).collect()
}

fn of_field(written: &Table, found: Diagnostic) -> FieldError {
    let mut place = found.span.as_ref().and_then(|span| place(written, span)).unwrap_or_default();
    if found.code == Code::MissingField || place.last().is_some_and(String::is_empty) {
        // Something beside what is missing, or nothing in an empty table.
        place.pop();
    }
    FieldError { field: place.join("."), message: found.message, hint: found.hint }
}

/// The names on the way to what stands at `span`.
fn place(table: &Table, span: &Range<usize>) -> Option<Vec<String>> {
    for (key, value) in &table.entries {
        if key.span == *span {
            return Some(vec![key.name.clone()]);
        }
        let rest = match &value.data {
            Data::Table(inner) => place(inner, span).or_else(|| (value.span == *span).then(|| vec![String::new()])),
            // Of a list the whole field is meant.
            _ => (value.span.start <= span.start && span.end <= value.span.end).then(Vec::new),
        };
        if let Some(mut rest) = rest {
            rest.insert(0, key.name.clone());
            return Some(rest);
        }
    }
    None
}

/// The settings without those that are wrong, so that what is left can be judged; `None` where nothing tells any more
/// which input is meant.
pub fn without(own: &toml::Value, wrong: &BTreeSet<&str>, inputs: &[&str]) -> Option<toml::Value> {
    let mut own = own.as_table()?.clone();
    own.retain(|name, _| !wrong.contains(name));
    inputs.iter().any(|input| own.contains_key(*input)).then_some(toml::Value::Table(own))
}

#[cfg(test)]
mod tests {
    use operators::config::{FieldType, Presence};

    use super::*;

    const fn field(name: &'static str, value: FieldType, presence: Presence) -> Field {
        Field { name, value, presence, summary: "Something." }
    }

    const ONE: FieldType = FieldType::Table(&[
        field("url", FieldType::Url, Presence::Required),
        field("timeout", FieldType::Duration, Presence::Optional),
        field("skip", FieldType::Boolean, Presence::Optional),
        field(
            "deep",
            FieldType::Table(&[field("most", FieldType::Integer { minimum: 1, maximum: 9 }, Presence::Optional)]),
            Presence::Optional,
        ),
    ]);
    const STREAMS: Field =
        field("streams", FieldType::Map(&FieldType::Either(&[FieldType::Url, ONE])), Presence::Optional);

    fn found(own: &str) -> Vec<(Code, String)> {
        let table: toml::Table = own.parse().unwrap();
        let found = mistakes(&STREAMS, &toml::Value::Table(table), Path::new("."));
        found.into_iter().map(|(code, error)| (code, error.field)).collect()
    }

    #[test]
    fn every_mistake_is_found_with_the_path_of_its_field() {
        let text = "[yard]\nurl = 7\ntimeout = 'soon'\nskip = 'no'\ncolour = 'red'\ndeep = { most = 12 }";
        let mut found = found(text);
        found.sort_by(|(_, a), (_, b)| a.cmp(b));
        let expected = [
            (Code::UnknownField, "streams.yard.colour"),
            (Code::OutOfRange, "streams.yard.deep.most"),
            (Code::WrongValueType, "streams.yard.skip"),
            (Code::BadDuration, "streams.yard.timeout"),
            (Code::WrongValueType, "streams.yard.url"),
        ];
        assert_eq!(found, expected.map(|(code, place)| (code, place.to_owned())));
    }

    #[test]
    fn what_is_missing_is_missing_in_the_stream() {
        assert_eq!(found("[yard]\nskip = true"), [(Code::MissingField, "streams.yard".to_owned())]);
        assert_eq!(found("yard = 7"), [(Code::WrongValueType, "streams.yard".to_owned())]);
        assert_eq!(found("[yard]"), [(Code::MissingField, "streams.yard".to_owned())]);
        assert_eq!(found("yard = 'rtsp://h/x'"), []);
    }

    #[test]
    fn what_is_right_is_kept() {
        let own = toml::Value::Table("url = 'rtsp://h/x'\ncolour = 'red'".parse().unwrap());
        let kept = without(&own, &BTreeSet::from(["colour"]), &["url"]).unwrap();
        assert_eq!(kept, toml::Value::Table("url = 'rtsp://h/x'".parse().unwrap()));
        assert_eq!(without(&own, &BTreeSet::from(["url"]), &["url"]), None);
        assert_eq!(without(&"rtsp://h/x".into(), &BTreeSet::new(), &["url"]), None);
    }
}
