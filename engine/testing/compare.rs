//! Compares records with what a test expects of them. Owns what is right; knows nothing of how they were made.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use operators::item::{Record, RecordBody};

use crate::graph::cases::{Expectations, Occurrence};

/// Records that a difference shows at most.
const SHOWN: usize = 5;

/// Something that is not as expected.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The field of the test, such as `count` or `has.person`; or what else went wrong.
    pub what: String,
    pub expected: String,
    pub got: String,
    /// The records that show it: the first few.
    pub records: Vec<Arc<Record>>,
}

impl Difference {
    pub fn new(what: impl Into<String>, expected: impl Into<String>, got: impl Into<String>) -> Difference {
        Difference { what: what.into(), expected: expected.into(), got: got.into(), records: Vec::new() }
    }

    fn shown<'a>(mut self, records: impl IntoIterator<Item = &'a Arc<Record>>) -> Difference {
        self.records = records.into_iter().take(SHOWN).cloned().collect();
        self
    }
}

/// The records that a test looks at: the results of `node`.
pub fn results<'a>(node: &str, expected: &Expectations, records: &'a [Arc<Record>]) -> Vec<&'a Arc<Record>> {
    let is_result = |record: &Record| {
        matches!(
            record.body,
            RecordBody::Classification { .. }
                | RecordBody::Detection { .. }
                | RecordBody::Checksum { .. }
                | RecordBody::Segment(_)
        )
    };
    let wanted = |record: &Record| {
        let of_stream = expected.stream.as_ref().is_none_or(|stream| **stream == *record.stream);
        let in_time = expected.between.is_none_or(|range| record.pts.is_some_and(|pts| range.contain(pts)));
        of_stream && in_time
    };
    records.iter().filter(|record| &*record.node == node && is_result(record) && wanted(record)).collect()
}

/// Everything about `records` that is not as expected.
pub fn compare(node: &str, expected: &Expectations, records: &[Arc<Record>]) -> Vec<Difference> {
    let mut differences: Vec<Difference> = errors(expected, records).into_iter().collect();
    let results = results(node, expected, records);
    if let Some(count) = expected.count.filter(|count| !count.contain(results.len() as u64)) {
        let difference = Difference::new("count", count.to_string(), results.len().to_string());
        differences.push(difference.shown(results.iter().copied()));
    }
    differences.extend(nothing_to_look_at(node, expected, &results, records));
    differences.extend(found(expected, &results));
    for (label, occurrence) in &expected.has {
        differences.extend(has(label, *occurrence, &results));
    }
    if let Some(range) = expected.times {
        let outside: Vec<_> =
            results.iter().filter(|record| record.pts.is_none_or(|pts| !range.contain(pts))).copied().collect();
        if !outside.is_empty() {
            let got = format!("{} of {} records outside", outside.len(), results.len());
            differences.push(Difference::new("times", format!("every `pts` in seconds: {range}"), got).shown(outside));
        }
    }
    differences
}

/// What is true of every record is true of none at all: only a `count` may expect that there is none.
fn nothing_to_look_at(
    node: &str,
    expected: &Expectations,
    results: &[&Arc<Record>],
    all: &[Arc<Record>],
) -> Option<Difference> {
    if !results.is_empty() || expected.count.is_some() {
        return None;
    }
    let mut wanted = format!("at least one of `{node}`");
    if let Some(stream) = &expected.stream {
        wanted.push_str(&format!(" of the stream `{stream}`"));
    }
    if let Some(range) = expected.between {
        wanted.push_str(&format!(" at seconds: {range}"));
    }
    wanted.push_str("; where none is right, write `count = 0`");
    let elsewhere = Expectations::default();
    let got = match self::results(node, &elsewhere, all).len() {
        0 => "none".to_owned(),
        count => format!("none, but {} of other streams or times", records(count as u64)),
    };
    Some(Difference::new("records", wanted, got))
}

fn errors(expected: &Expectations, records: &[Arc<Record>]) -> Option<Difference> {
    let errors: Vec<_> = records.iter().filter(|record| matches!(record.body, RecordBody::Error { .. })).collect();
    if expected.errors.contain(errors.len() as u64) {
        return None;
    }
    let difference = Difference::new("errors", expected.errors.to_string(), errors.len().to_string());
    Some(difference.shown(errors))
}

/// `labels`, `only` and `none`.
fn found(expected: &Expectations, results: &[&Arc<Record>]) -> Vec<Difference> {
    let mut all: BTreeMap<Arc<str>, u64> = BTreeMap::new();
    for label in results.iter().flat_map(|record| labels(record)) {
        *all.entry(label).or_default() += 1;
    }
    let counted = || match all.is_empty() {
        true => "nothing".to_owned(),
        false => {
            let all: Vec<String> = all.iter().map(|(label, count)| format!("{label} in {}", records(*count))).collect();
            all.join(", ")
        }
    };
    let holding = |unwanted: &dyn Fn(&str) -> bool| -> Vec<&Arc<Record>> {
        results.iter().filter(|record| labels(record).iter().any(|label| unwanted(label))).copied().collect()
    };
    let mut differences = Vec::new();
    let missing: Vec<&str> =
        expected.labels.iter().map(String::as_str).filter(|label| !all.contains_key(*label)).collect();
    if !missing.is_empty() {
        let difference = Difference::new("labels", format!("{} found", missing.join(", ")), counted());
        differences.push(difference.shown(results.iter().copied()));
    }
    if let Some(only) = &expected.only {
        let unwanted = |label: &str| !only.iter().any(|known| known == label);
        if all.keys().any(|label| unwanted(label)) {
            let difference = Difference::new("only", format!("nothing but {}", only.join(", ")), counted());
            differences.push(difference.shown(holding(&unwanted)));
        }
    }
    if expected.none && !all.is_empty() {
        let difference = Difference::new("none", "nothing found", counted());
        differences.push(difference.shown(holding(&|_| true)));
    }
    differences
}

fn has(label: &str, occurrence: Occurrence, results: &[&Arc<Record>]) -> Option<Difference> {
    let answer = |record: &Record| match &record.body {
        RecordBody::Detection { has, .. } => has.get(label).copied(),
        _ => None,
    };
    let what = format!("has.{label}");
    if !results.is_empty() && results.iter().all(|record| answer(record).is_none()) {
        let got = "no record says so: the node has no such `has`";
        return Some(Difference::new(what, "an answer", got).shown(results.iter().copied()));
    }
    let (yes, no): (Vec<_>, Vec<_>) = results.iter().copied().partition(|record| answer(record) == Some(true));
    let count = yes.len() as u64;
    let (wanted, right, too_many) = match occurrence {
        Occurrence::Sometimes => ("true in some record".to_owned(), count > 0, false),
        Occurrence::Never => ("true in no record".to_owned(), count == 0, true),
        Occurrence::Counted(bounds) => {
            let too_many = bounds.at_most.is_some_and(|most| count > most);
            (format!("true in {bounds} records"), bounds.contain(count), too_many)
        }
    };
    let got = format!("true in {count} of {}", records(results.len() as u64));
    (!right).then(|| Difference::new(what, wanted, got).shown(if too_many { yes } else { no }))
}

/// The labels of a record, each once.
fn labels(record: &Record) -> BTreeSet<Arc<str>> {
    match &record.body {
        RecordBody::Detection { detections, .. } => detections.iter().map(|found| found.label.clone()).collect(),
        RecordBody::Classification { predictions, .. } => predictions.iter().map(|guess| guess.label.clone()).collect(),
        _ => BTreeSet::new(),
    }
}

fn records(count: u64) -> String {
    if count == 1 { "1 record".to_owned() } else { format!("{count} records") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::results::tests::{detections, record};
    use crate::graph::cases::Bounds;

    /// Records `person`, nothing, `person` + `dog`, each a picture later (0.04 s), of the node `people`.
    fn looked_at() -> Vec<Arc<Record>> {
        let bodies = [detections(&["person"]), detections(&[]), detections(&["person", "dog"])];
        let mut records: Vec<Record> =
            bodies.into_iter().enumerate().map(|(seq, body)| record(seq as u64, body)).collect();
        for (seq, record) in records.iter_mut().enumerate() {
            if let RecordBody::Detection { has, .. } = &mut record.body {
                has.insert("person".into(), seq != 1);
            }
        }
        records.into_iter().map(Arc::new).collect()
    }

    fn differences(expected: Expectations) -> Vec<String> {
        let expected = Expectations { errors: Bounds::exactly(0), ..expected };
        compare("people", &expected, &looked_at())
            .into_iter()
            .map(|found| format!("{}: {} / {} ({})", found.what, found.expected, found.got, found.records.len()))
            .collect()
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn has(occurrence: Occurrence) -> Expectations {
        Expectations { has: vec![("person".to_owned(), occurrence)], ..Expectations::default() }
    }

    #[test]
    fn what_is_as_expected_is_no_difference() {
        let expected = Expectations {
            count: Some(Bounds::exactly(3)),
            labels: words(&["dog", "person"]),
            only: Some(words(&["dog", "person", "cat"])),
            times: Some(Bounds { at_least: Some(0.0), at_most: Some(0.08) }),
            ..has(Occurrence::Counted(Bounds { at_least: Some(2), at_most: None }))
        };
        assert_eq!(differences(expected), [""; 0]);
        assert_eq!(differences(has(Occurrence::Sometimes)), [""; 0]);
        let second = Some(Bounds { at_least: Some(0.03), at_most: Some(0.05) });
        let nothing =
            Expectations { between: second, none: true, count: Some(Bounds::exactly(1)), ..Expectations::default() };
        assert_eq!(differences(nothing.clone()), [""; 0], "the second record alone is empty");
        assert_eq!(differences(Expectations { between: second, ..has(Occurrence::Never) }), [""; 0]);
    }

    #[test]
    fn each_difference_says_what_was_expected_and_what_came() {
        let expect = |expected, difference: &str| assert_eq!(differences(expected), [difference]);
        let default = Expectations::default;
        expect(
            Expectations { count: Some(Bounds { at_least: Some(4), at_most: None }), ..default() },
            "count: at least 4 / 3 (3)",
        );
        expect(
            Expectations { labels: words(&["dog", "cat"]), ..default() },
            "labels: cat found / dog in 1 record, person in 2 records (3)",
        );
        expect(
            Expectations { only: Some(words(&["person"])), ..default() },
            "only: nothing but person / dog in 1 record, person in 2 records (1)",
        );
        expect(
            Expectations { none: true, ..default() },
            "none: nothing found / dog in 1 record, person in 2 records (2)",
        );
        expect(has(Occurrence::Never), "has.person: true in no record / true in 2 of 3 records (2)");
        expect(
            has(Occurrence::Counted(Bounds::exactly(3))),
            "has.person: true in 3 records / true in 2 of 3 records (1)",
        );
        expect(
            Expectations { has: vec![("dog".to_owned(), Occurrence::Never)], ..default() },
            "has.dog: an answer / no record says so: the node has no such `has` (3)",
        );
        expect(
            Expectations { times: Some(Bounds { at_least: None, at_most: Some(0.05) }), ..default() },
            "times: every `pts` in seconds: at most 0.05 / 1 of 3 records outside (1)",
        );
        expect(
            Expectations { stream: Some("other".to_owned()), count: Some(Bounds::exactly(1)), ..default() },
            "count: 1 / 0 (0)",
        );
    }

    #[test]
    fn where_there_is_no_record_nothing_is_as_expected() {
        let stream = Some("other".to_owned());
        assert_eq!(
            differences(Expectations { stream: stream.clone(), none: true, ..Expectations::default() }),
            ["records: at least one of `people` of the stream `other`; where none is right, write `count = 0` / \
              none, but 3 records of other streams or times (0)"]
        );
        let late = Some(Bounds { at_least: Some(100.0), at_most: None });
        let range = Some(Bounds { at_least: None, at_most: Some(1.0) });
        let vacuous = Expectations { between: late, none: true, times: range, ..has(Occurrence::Never) };
        assert_eq!(differences(vacuous).len(), 1);
        let none = Expectations { stream, none: true, count: Some(Bounds::exactly(0)), ..Expectations::default() };
        assert_eq!(differences(none), [""; 0]);
        let missing = compare("people", &Expectations { none: true, ..Expectations::default() }, &[]);
        assert_eq!((missing[0].what.as_str(), missing[0].got.as_str()), ("records", "none"));
    }

    #[test]
    fn error_records_are_differences_unless_they_are_expected() {
        let error = Arc::new(record(0, RecordBody::Error { message: "gone".to_owned() }));
        let expected = Expectations { errors: Bounds::exactly(0), ..Expectations::default() };
        let found = compare("sums", &expected, std::slice::from_ref(&error));
        assert_eq!((found[0].what.as_str(), found[0].got.as_str()), ("errors", "1"), "of whatever node");
        let expected = Expectations { errors: Bounds::exactly(1), count: Some(Bounds::exactly(0)), ..expected };
        assert!(compare("sums", &expected, &[error]).is_empty());
    }
}
