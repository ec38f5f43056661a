//! The tables `[[test]]` of a graph file: what a test says, and the graph that it runs. Owns how sources are replaced by
//! a test's inputs; running and comparing are [`crate::testing`].
//!
//! A test's graph is a document like the file's own, made before references are resolved: only what the looked-at node
//! depends on is left of it, its sources are the test's inputs, nothing may be dropped, and its only sink takes the
//! node's records. So it is checked, planned and run as every graph, and what is wrong with an input is underlined
//! where the test wrote it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use operators::config::{Field, FieldType, Presence, parse_duration};
use operators::operator::{Produces, Registration, Role};

use super::diagnostics::{Code, Diagnostic, suggestion};
use super::fields::FieldChecker;
use super::parse::{Data, Key, Table, Value};

/// The type of an input that does not name one.
pub const DEFAULT_INPUT: &str = "file";

/// The type of the sink that takes a test's records: it hands them to the publisher.
const COLLECTOR: &str = "sse";

const COUNT: FieldType = FieldType::Integer { minimum: 0, maximum: i64::MAX };
const SECONDS: FieldType = FieldType::Number { minimum: 0.0, maximum: 1e9 };

static COUNTS: [Field; 2] = [
    optional("at_least", COUNT, "The smallest count that is right."),
    optional("at_most", COUNT, "The largest count that is right."),
];

static TIMES: [Field; 2] = [
    optional("at_least", SECONDS, "Seconds since the stream's first picture."),
    optional("at_most", SECONDS, "Seconds since the stream's first picture."),
];

const A_COUNT: FieldType = FieldType::Either(&[COUNT, FieldType::Table(&COUNTS)]);

/// The fields of a `[[test]]`.
pub static FIELDS: [Field; 14] = [
    Field {
        name: "name",
        value: FieldType::String,
        presence: Presence::Required,
        summary: "What the test shows; each once in a file.",
    },
    Field {
        name: "input",
        value: FieldType::Map(&FieldType::InputPath),
        presence: Presence::Required,
        summary: "For each source that the node depends on: a file, or a table as a source has it, such as \
                  `{ type = \"synthetic\", seed = 3, frames = 60 }`. It must end by itself, and is never paced.",
    },
    Field {
        name: "node",
        value: FieldType::String,
        presence: Presence::Required,
        summary: "The operator whose records are looked at.",
    },
    optional("params", FieldType::Map(&FieldType::String), "Parameters of the graph that are others in this test."),
    optional("stream", FieldType::String, "Looks at the records of this stream only."),
    optional("between", FieldType::Table(&TIMES), "Looks at the records of this range of time only, in seconds."),
    optional("count", A_COUNT, "How many records there are."),
    optional(
        "labels",
        FieldType::OneOrList(&FieldType::String),
        "Each of these labels is found in some record, as a box or among the predictions.",
    ),
    optional("only", FieldType::OneOrList(&FieldType::String), "No label but these is found in any record."),
    optional("none", FieldType::Boolean, "With true, nothing is found in any record."),
    optional(
        "has",
        FieldType::Map(&FieldType::Either(&[FieldType::Boolean, COUNT, FieldType::Table(&COUNTS)])),
        "For each label of the records' `has`: true, it is true in some record; false, in none; or a count of the \
         records in which it is true.",
    ),
    optional("times", FieldType::Table(&TIMES), "Every record's `pts` lies in this range, in seconds."),
    Field {
        name: "errors",
        value: A_COUNT,
        presence: Presence::Default("0"),
        summary: "How many error records there are.",
    },
    Field {
        name: "timeout",
        value: FieldType::Duration,
        presence: Presence::Default("\"60s\""),
        summary: "The test fails when it takes longer, loading of models included.",
    },
];

/// A test that says everything that can be expected, for the reference.
pub const EXAMPLE: &str = r#"[[test]]
name = "somebody is at the door"
input.cameras = "videos/door.mp4"
node = "people"
count = { at_least = 10, at_most = 12 }
labels = ["person"]
has = { person = { at_least = 8 } }
times = { at_most = 6.0 }

[[test]]
name = "nobody is in a scene of shapes"
input.cameras = { type = "synthetic", seed = 3, frames = 30 }
node = "people"
count = 2
none = true
"#;

const fn optional(name: &'static str, value: FieldType, summary: &'static str) -> Field {
    Field { name, value, presence: Presence::Optional, summary }
}

/// What a test says.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    /// Where the name stands.
    pub span: Range<usize>,
    /// The operator whose records are looked at.
    pub node: Key,
    /// For each source a table as a node has it.
    inputs: Vec<(Key, Table)>,
    parameters: Vec<(Key, Value)>,
    pub expected: Expectations,
    pub timeout: Duration,
}

/// What a test expects of the records that it looks at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Expectations {
    /// Only records of this stream.
    pub stream: Option<String>,
    /// Only records of these seconds.
    pub between: Option<Bounds<f64>>,
    pub count: Option<Bounds<u64>>,
    pub labels: Vec<String>,
    pub only: Option<Vec<String>>,
    pub none: bool,
    pub has: Vec<(String, Occurrence)>,
    pub times: Option<Bounds<f64>>,
    pub errors: Bounds<u64>,
}

/// An inclusive range; an end that is missing is open.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bounds<T> {
    pub at_least: Option<T>,
    pub at_most: Option<T>,
}

impl<T: PartialOrd + Copy> Bounds<T> {
    pub fn exactly(number: T) -> Bounds<T> {
        Bounds { at_least: Some(number), at_most: Some(number) }
    }

    pub fn contain(&self, number: T) -> bool {
        self.at_least.is_none_or(|least| least <= number) && self.at_most.is_none_or(|most| number <= most)
    }
}

impl<T: PartialEq + std::fmt::Display> std::fmt::Display for Bounds<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.at_least, &self.at_most) {
            (Some(least), Some(most)) if least == most => write!(formatter, "{least}"),
            (Some(least), Some(most)) => write!(formatter, "{least} to {most}"),
            (Some(least), None) => write!(formatter, "at least {least}"),
            (None, Some(most)) => write!(formatter, "at most {most}"),
            (None, None) => formatter.write_str("any"),
        }
    }
}

/// In how many records something is true.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Occurrence {
    Sometimes,
    Never,
    Counted(Bounds<u64>),
}

/// Reads the tests of a document whose references are not resolved, and says what is wrong with them.
pub fn read(
    document: &Table,
    text: &str,
    registry: &[&'static Registration],
    found: &mut Vec<Diagnostic>,
) -> Vec<Case> {
    let Some((key, value)) = document.entries.iter().find(|(key, _)| key.name == "test") else {
        return Vec::new();
    };
    let not_tables = |span: Range<usize>, data: &Data| {
        let message = format!("`test` is a list of tables, not {}", data.described());
        Diagnostic::new(Code::NotATable, span, message).hint("write `[[test]]`, and below it the test's fields")
    };
    let Data::Array(values) = &value.data else {
        found.push(not_tables(key.span.clone(), &value.data));
        return Vec::new();
    };
    let mut cases: Vec<Case> = Vec::new();
    for value in values {
        let Data::Table(table) = &value.data else {
            found.push(not_tables(value.span.clone(), &value.data));
            continue;
        };
        let reader = Reader { document, text, registry, at: value.span.clone(), found: Vec::new() };
        match reader.case(table) {
            Ok(case) => {
                if let Some(other) = cases.iter().find(|other| other.name == case.name) {
                    let message = format!("two tests are called `{}`", case.name.escape_debug());
                    let diagnostic = Diagnostic::new(Code::DuplicateName, case.span.clone(), message);
                    found.push(diagnostic.related(other.span.clone(), "the other").hint("rename one of them"));
                }
                cases.push(case);
            }
            Err(mistakes) => found.extend(mistakes),
        }
    }
    cases
}

struct Reader<'a> {
    document: &'a Table,
    text: &'a str,
    registry: &'a [&'static Registration],
    /// The test's table.
    at: Range<usize>,
    found: Vec<Diagnostic>,
}

impl Reader<'_> {
    fn case(mut self, table: &Table) -> Result<Case, Vec<Diagnostic>> {
        let at = table.get("name").map_or(self.at.clone(), |name| name.span.clone());
        let mut checked =
            Table { entries: table.entries.iter().filter(|(key, _)| !is_unresolved(&key.name)).cloned().collect() };
        let fields: Vec<Field> = FIELDS.iter().filter(|field| !is_unresolved(field.name)).copied().collect();
        let mut checker = FieldChecker { text: self.text, folder: Path::new("."), diagnostics: Vec::new() };
        checker.table("a test", &at, &mut checked, &fields, &["input", "params"]);
        self.found = checker.diagnostics;
        for (key, value) in &checked.entries {
            self.report_references(&key.name, value);
        }
        let node = match checked.get("node") {
            Some(Value { data: Data::String(name), span, .. }) => {
                Some(Key { name: name.clone(), span: span.clone() }).filter(|node| self.is_an_operator(node))
            }
            _ => None,
        };
        let inputs = self.inputs(table, &at);
        let parameters = self.parameters(table);
        if let Some(node) = &node {
            self.report_sources_without_input(node, &inputs, table, &at);
        }
        let expected = self.expectations(&checked, &at);
        let name = match checked.get("name").map(|name| &name.data) {
            Some(Data::String(name)) => name.clone(),
            _ => String::new(),
        };
        let timeout = match checked.get("timeout").map(|timeout| &timeout.data) {
            Some(Data::String(text)) => parse_duration(text).unwrap_or(DEFAULT_TIMEOUT),
            _ => DEFAULT_TIMEOUT,
        };
        match node {
            Some(node) if self.found.is_empty() => {
                Ok(Case { name, span: at, node, inputs, parameters, expected, timeout })
            }
            _ => Err(self.found),
        }
    }

    /// What is expected is compared as it is written.
    fn report_references(&mut self, name: &str, value: &Value) {
        match &value.data {
            Data::String(text) if text.contains("${") => {
                let message = format!("`{name}` of a test cannot have a reference");
                let hint = "references are replaced in `input` and in `params`; write the value itself here";
                self.found.push(Diagnostic::new(Code::BadSubstitution, value.span.clone(), message).hint(hint));
            }
            Data::Array(values) => values.iter().for_each(|value| self.report_references(name, value)),
            Data::Table(table) => table.entries.iter().for_each(|(_, value)| self.report_references(name, value)),
            _ => {}
        }
    }

    fn is_an_operator(&mut self, node: &Key) -> bool {
        let shown = node.name.escape_debug();
        if let Some((_, operator)) = nodes(self.document, Role::Operator).find(|(key, _)| key.name == node.name) {
            let registration = type_name(operator)
                .and_then(|name| self.registry.iter().find(|known| known.role == Role::Operator && known.name == name));
            let silent = registration.filter(|known| match known.produces {
                Produces::Kinds(kinds) => !kinds
                    .iter()
                    .any(|kind| matches!(kind, operators::item::Kind::Record | operators::item::Kind::Segment)),
                Produces::Nothing => true,
                Produces::SameAsInput => false,
            });
            if let Some(registration) = silent {
                let message = format!("`{shown}` makes no records: it is of type `{}`", registration.name);
                let hint = "name an operator behind it that makes records";
                self.found.push(Diagnostic::new(Code::WrongKind, node.span.clone(), message).hint(hint));
            }
            return silent.is_none();
        }
        let operators: Vec<&str> = nodes(self.document, Role::Operator).map(|(key, _)| key.name.as_str()).collect();
        let elsewhere = [Role::Source, Role::Sink]
            .into_iter()
            .find(|role| nodes(self.document, *role).any(|(key, _)| key.name == node.name));
        let message = match elsewhere {
            Some(role) => format!("`{shown}` is a {}: a test looks at the records of an operator", role.name()),
            None => format!("there is no operator `{shown}`"),
        };
        let hint = suggestion(&node.name, operators, "operators are");
        self.found.push(Diagnostic::new(Code::UnknownInput, node.span.clone(), message).maybe_hint(hint));
        false
    }

    fn inputs(&mut self, table: &Table, at: &Range<usize>) -> Vec<(Key, Table)> {
        let Some(value) = table.get("input") else {
            let message = "a test needs the field `input`";
            let source = nodes(self.document, Role::Source).next().map_or("SOURCE", |(key, _)| key.name.as_str());
            let hint = format!("add `input.{source} = \"video.mp4\"`");
            self.found.push(Diagnostic::new(Code::MissingField, at.clone(), message).hint(hint));
            return Vec::new();
        };
        let Data::Table(given) = &value.data else {
            let message = format!("`input` takes a table, not {}", value.data.described());
            let hint = "write it like `input.SOURCE = \"video.mp4\"`";
            self.found.push(Diagnostic::new(Code::WrongValueType, value.span.clone(), message).hint(hint));
            return Vec::new();
        };
        let mut inputs = Vec::new();
        for (key, value) in &given.entries {
            let known: Vec<&str> = nodes(self.document, Role::Source).map(|(key, _)| key.name.as_str()).collect();
            if !known.contains(&key.name.as_str()) {
                let message = format!("there is no source `{}`", key.name.escape_debug());
                let hint = suggestion(&key.name, known, "sources are");
                self.found.push(Diagnostic::new(Code::UnknownInput, key.span.clone(), message).maybe_hint(hint));
                continue;
            }
            let table = match &value.data {
                Data::String(_) => Table { entries: vec![(at_key("path", &key.span), value.clone())] },
                Data::Table(table) => table.clone(),
                other => {
                    let message = format!("an input is a path or a table, not {}", other.described());
                    let hint = "write a path, or `{ type = \"synthetic\", frames = 60 }`";
                    self.found.push(Diagnostic::new(Code::WrongValueType, value.span.clone(), message).hint(hint));
                    continue;
                }
            };
            inputs.push((key.clone(), table));
        }
        inputs
    }

    fn parameters(&mut self, table: &Table) -> Vec<(Key, Value)> {
        let Some(value) = table.get("params") else { return Vec::new() };
        let Data::Table(given) = &value.data else {
            let message = format!("`params` takes a table, not {}", value.data.described());
            let hint = "write it like `params.NAME = VALUE`";
            self.found.push(Diagnostic::new(Code::WrongValueType, value.span.clone(), message).hint(hint));
            return Vec::new();
        };
        let known: Vec<&str> = match self.document.get("params").map(|params| &params.data) {
            Some(Data::Table(params)) => params.entries.iter().map(|(key, _)| key.name.as_str()).collect(),
            _ => Vec::new(),
        };
        for (key, _) in given.entries.iter().filter(|(key, _)| !known.contains(&key.name.as_str())) {
            let message = format!("the graph has no parameter `{}`", key.name.escape_debug());
            let hint = suggestion(&key.name, known.clone(), "its parameters are")
                .unwrap_or_else(|| "the graph has no `[params]`".to_owned());
            self.found.push(Diagnostic::new(Code::UnknownVariable, key.span.clone(), message).hint(hint));
        }
        given.entries.clone()
    }

    fn report_sources_without_input(&mut self, node: &Key, inputs: &[(Key, Table)], table: &Table, at: &Range<usize>) {
        // Where an input has another name, or is none, that is said already.
        let given = match table.get("input").map(|value| &value.data) {
            Some(Data::Table(given)) if given.entries.len() == inputs.len() => given,
            _ => return,
        };
        let upstream = upstream(self.document, &node.name);
        for (source, _) in nodes(self.document, Role::Source).filter(|(source, _)| upstream.contains(&source.name)) {
            if given.get(&source.name).is_none() {
                let shown = source.name.escape_debug();
                let message = format!("the test gives no input to `{shown}`, on which `{}` depends", node.name);
                let hint = format!("add `input.{shown} = \"video.mp4\"`");
                self.found.push(Diagnostic::new(Code::MissingField, at.clone(), message).hint(hint));
            }
        }
    }

    fn expectations(&mut self, table: &Table, at: &Range<usize>) -> Expectations {
        const SOME: [&str; 6] = ["count", "labels", "only", "none", "has", "times"];
        // A misspelt field is said already.
        let misspelt = self.found.iter().any(|mistake| mistake.code == Code::UnknownField);
        if !misspelt && !SOME.iter().any(|name| table.get(name).is_some()) {
            let message = "the test expects nothing of the records, so it could hardly fail";
            let hint = "add one of `count`, `labels`, `only`, `none`, `has` and `times`";
            self.found.push(Diagnostic::new(Code::MissingField, at.clone(), message).hint(hint));
        }
        for (name, hint) in [
            ("none", "write `none = true`, or leave it out"),
            ("labels", "name a label, or write `none = true` where nothing is found"),
            ("has", "name a label, as in `has.person = true`"),
        ] {
            let empty = table.get(name).filter(|value| match &value.data {
                Data::Boolean(expected) => !expected,
                Data::Array(values) => values.is_empty(),
                Data::Table(table) => table.entries.is_empty(),
                _ => false,
            });
            if let Some(empty) = empty {
                let message = format!("this `{name}` expects nothing, so it says nothing");
                self.found.push(Diagnostic::new(Code::OutOfRange, empty.span.clone(), message).hint(hint));
            }
        }
        let words = |name: &str| match table.get(name).map(|value| &value.data) {
            Some(Data::String(word)) => Some(vec![word.clone()]),
            Some(Data::Array(values)) => Some(
                values
                    .iter()
                    .filter_map(|value| match &value.data {
                        Data::String(word) => Some(word.clone()),
                        _ => None,
                    })
                    .collect(),
            ),
            _ => None,
        };
        let mut expected = Expectations {
            labels: words("labels").unwrap_or_default(),
            only: words("only"),
            none: matches!(table.get("none").map(|none| &none.data), Some(Data::Boolean(true))),
            stream: words("stream").and_then(|mut words| words.pop()),
            ..Expectations::default()
        };
        expected.count = table.get("count").and_then(|value| self.count("count", value));
        expected.errors =
            table.get("errors").map_or(Some(Bounds::exactly(0)), |v| self.count("errors", v)).unwrap_or_default();
        expected.times = table.get("times").and_then(|value| self.seconds("times", value));
        expected.between = table.get("between").and_then(|value| self.seconds("between", value));
        if let Some(Value { data: Data::Table(has), .. }) = table.get("has") {
            for (key, value) in &has.entries {
                let occurrence = match &value.data {
                    Data::Boolean(true) => Some(Occurrence::Sometimes),
                    Data::Boolean(false) => Some(Occurrence::Never),
                    _ => self.count(&format!("has.{}", key.name), value).map(Occurrence::Counted),
                };
                expected.has.extend(occurrence.map(|occurrence| (key.name.clone(), occurrence)));
            }
        }
        expected
    }

    fn count(&mut self, name: &str, value: &Value) -> Option<Bounds<u64>> {
        let number = |value: &Value| match value.data {
            Data::Integer(number) => u64::try_from(number).ok(),
            _ => None,
        };
        let bounds = match &value.data {
            Data::Table(table) => self.bounds(name, table, value, number),
            _ => number(value).map(Bounds::exactly),
        };
        // Any number of errors is more than the none that are right where nothing is written.
        if bounds == Some(Bounds { at_least: Some(0), at_most: None }) && name != "errors" {
            let message = format!("every count is at least 0, so this `{name}` says nothing");
            let hint = "write the count itself, or at least 1";
            self.found.push(Diagnostic::new(Code::OutOfRange, value.span.clone(), message).hint(hint));
        }
        bounds
    }

    fn seconds(&mut self, name: &str, value: &Value) -> Option<Bounds<f64>> {
        let number = |value: &Value| match value.data {
            Data::Integer(number) => Some(number as f64),
            Data::Float(number) => Some(number),
            _ => None,
        };
        match &value.data {
            Data::Table(table) => self.bounds(name, table, value, number),
            _ => None,
        }
    }

    fn bounds<T: PartialOrd + Copy>(
        &mut self,
        name: &str,
        table: &Table,
        value: &Value,
        number: impl Fn(&Value) -> Option<T>,
    ) -> Option<Bounds<T>> {
        let end = |name: &str| table.get(name).and_then(&number);
        let bounds = Bounds { at_least: end("at_least"), at_most: end("at_most") };
        let at = table.entries.first().map_or(value.span.clone(), |(_, value)| value.span.clone());
        let mistake = match (bounds.at_least, bounds.at_most) {
            (None, None) if table.entries.is_empty() => "neither a smallest nor a largest value",
            (Some(least), Some(most)) if least > most => "a smallest value that is larger than the largest",
            _ => return Some(bounds),
        };
        let message = format!("`{name}` has {mistake}, so it says nothing");
        let hint = "write it like `{ at_least = 1, at_most = 9 }`";
        self.found.push(Diagnostic::new(Code::OutOfRange, at, message).hint(hint));
        None
    }
}

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// Fields whose references are resolved when the test runs.
fn is_unresolved(field: &str) -> bool {
    field == "input" || field == "params"
}

/// The nodes of a role in a document as it is written.
fn nodes(document: &Table, role: Role) -> impl Iterator<Item = (&Key, &Value)> {
    let table = match document.get(role.table()).map(|nodes| &nodes.data) {
        Some(Data::Table(nodes)) => Some(nodes),
        _ => None,
    };
    table.into_iter().flat_map(|nodes| nodes.entries.iter().map(|(key, value)| (key, value)))
}

fn type_name(node: &Value) -> Option<&str> {
    let Data::Table(node) = &node.data else { return None };
    match node.get("type").map(|name| &name.data) {
        Some(Data::String(name)) => Some(name),
        _ => None,
    }
}

/// The names of everything that `node` depends on, and its own. Where an input's name is a reference, everything may be.
fn upstream(document: &Table, node: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut waiting = vec![node.to_owned()];
    while let Some(name) = waiting.pop() {
        if !reached.insert(name.clone()) {
            continue;
        }
        let Some((_, Value { data: Data::Table(table), .. })) =
            nodes(document, Role::Operator).find(|(key, _)| key.name == name)
        else {
            continue;
        };
        let listed = match table.get("inputs").map(|inputs| &inputs.data) {
            Some(Data::Array(inputs)) => inputs.as_slice(),
            Some(Data::String(_)) => return everything(document),
            _ => continue,
        };
        for input in listed {
            match &input.data {
                Data::String(name) if name.contains("${") => return everything(document),
                Data::String(name) => waiting.push(name.clone()),
                _ => {}
            }
        }
    }
    reached
}

fn everything(document: &Table) -> BTreeSet<String> {
    let all = [Role::Source, Role::Operator].into_iter().flat_map(|role| nodes(document, role));
    all.map(|(key, _)| key.name.clone()).collect()
}

fn at_key(name: &str, span: &Range<usize>) -> Key {
    Key { name: name.to_owned(), span: span.clone() }
}

fn at_value(data: Data, span: &Range<usize>) -> Value {
    Value { data, span: span.clone(), secret: false, untyped: false }
}

fn at_text(text: &str, span: &Range<usize>) -> Value {
    at_value(Data::String(text.to_owned()), span)
}

impl Case {
    /// The document that this test runs, in the place of the file's own. References in it are not resolved.
    pub fn document(&self, document: &Table, registry: &[&'static Registration]) -> Table {
        let upstream = upstream(document, &self.node.name);
        let mut entries = Vec::new();
        if let Some((key, value)) = document.entries.iter().find(|(key, _)| key.name == "params") {
            let mut value = value.clone();
            if let Data::Table(params) = &mut value.data {
                for (name, given) in &self.parameters {
                    if let Some((_, replaced)) = params.entries.iter_mut().find(|(key, _)| key.name == name.name) {
                        *replaced = given.clone();
                    }
                }
            }
            entries.push((key.clone(), value));
        }
        let sources = self.inputs.iter().filter(|(key, _)| upstream.contains(&key.name));
        let sources = sources.map(|(key, table)| (key.clone(), source(key, table, registry))).collect();
        let operators = nodes(document, Role::Operator).filter(|(key, _)| upstream.contains(&key.name));
        let operators = operators.map(|(key, value)| (key.clone(), without_policies(value))).collect();
        let span = &self.node.span;
        let inputs = at_value(Data::Array(vec![at_text(&self.node.name, span)]), span);
        let sink =
            Table { entries: vec![(at_key("type", span), at_text(COLLECTOR, span)), (at_key("inputs", span), inputs)] };
        let sink_name = (0u64..)
            .map(|number| format!("records-{number}"))
            .find(|name| !upstream.contains(name))
            .unwrap_or_default();
        let sinks = vec![(at_key(&sink_name, span), at_value(Data::Table(sink), span))];
        for (role, nodes) in [(Role::Source, sources), (Role::Operator, operators), (Role::Sink, sinks)] {
            let table = at_value(Data::Table(Table { entries: nodes }), &self.span);
            entries.push((at_key(role.table(), &self.span), table));
        }
        Table { entries }
    }

    /// Where the input for a source stands; the test's name where there is none.
    pub fn input_span(&self, source: &str) -> Range<usize> {
        let found = self.inputs.iter().find(|(key, _)| key.name == source);
        found.map_or(self.span.clone(), |(key, _)| key.span.clone())
    }
}

/// A source as a test wants it: as fast as it is taken, and nothing of it is dropped.
fn source(key: &Key, table: &Table, registry: &[&'static Registration]) -> Value {
    let mut table = table.clone();
    let span = &key.span;
    if table.get("type").is_none() {
        table.entries.push((at_key("type", span), at_text(DEFAULT_INPUT, span)));
    }
    let written = at_value(Data::Table(table.clone()), span);
    let has_pace = type_name(&written)
        .and_then(|name| registry.iter().find(|known| known.role == Role::Source && known.name == name))
        .is_some_and(|known| known.fields.iter().any(|field| field.name == "realtime"));
    table.entries.retain(|(key, _)| !(key.name == "overflow" || has_pace && key.name == "realtime"));
    if has_pace {
        table.entries.push((at_key("realtime", span), at_value(Data::Boolean(false), span)));
    }
    table.entries.push((at_key("overflow", span), at_text("block", span)));
    at_value(Data::Table(table), span)
}

/// A node without what makes it drop: a test sees every record.
fn without_policies(node: &Value) -> Value {
    let mut node = node.clone();
    if let Data::Table(table) = &mut node.data {
        table.entries.retain(|(key, _)| key.name != "overflow" && key.name != "budget");
    }
    node
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;

    const GRAPH: &str = "[params]\nrate = 2\n[sources.a]\ntype = \"file\"\npath = \"${env.VIDEO}\"\n[sources.b]\n\
        type = \"file\"\npath = \"b.mp4\"\n[operators.few]\ntype = \"sample\"\ninputs = [\"a\"]\nfps = \"${rate}\"\n\
        overflow = \"drop_oldest\"\n[operators.sums]\ntype = \"checksum\"\ninputs = [\"few\"]\n\
        [operators.others]\ntype = \"checksum\"\ninputs = [\"b\"]\n[sinks.out]\ntype = \"blackhole\"\n\
        inputs = [\"sums\", \"others\"]\n";

    fn found(test: &str) -> (Vec<Case>, Vec<(Code, String)>) {
        let text = format!("{GRAPH}{test}");
        let document = parse(&text).unwrap();
        let mut found = Vec::new();
        let cases = read(&document, &text, operators::OPERATORS, &mut found);
        let underlined = |d: &Diagnostic| d.span.clone().map_or(String::new(), |span| text[span].to_owned());
        (cases, found.iter().map(|d| (d.code, underlined(d))).collect())
    }

    #[test]
    fn a_test_becomes_a_graph_of_what_its_node_depends_on() {
        let test = "[[test]]\nname = \"x\"\nnode = \"sums\"\ncount = 3\nparams.rate = 5\ninput.a = { type = \"synthetic\", \
                    frames = 9, realtime = true }\n";
        let (cases, mistakes) = found(test);
        assert_eq!(mistakes, []);
        let document = cases[0].document(&parse(&format!("{GRAPH}{test}")).unwrap(), operators::OPERATORS);
        let expected: toml::Table = toml::from_str(
            "[params]\nrate = 5\n[sources.a]\ntype = \"synthetic\"\nframes = 9\nrealtime = false\noverflow = \"block\"\n\
             [operators.few]\ntype = \"sample\"\ninputs = [\"a\"]\nfps = \"${rate}\"\n\
             [operators.sums]\ntype = \"checksum\"\ninputs = [\"few\"]\n[sinks.records-0]\ntype = \"sse\"\ninputs = [\"sums\"]\n",
        )
        .unwrap();
        assert_eq!(document.to_toml(), expected);
    }

    #[test]
    fn what_is_expected_is_read() {
        let (cases, mistakes) = found(
            "[[test]]\nname = \"x\"\nnode = \"sums\"\ninput.a = \"a.mp4\"\ncount = { at_least = 2 }\nlabels = \"dog\"\n\
             only = [\"dog\", \"cat\"]\nhas = { dog = true, cat = 0, cow = false }\ntimes = { at_most = 3 }\n\
             between.at_least = 1.5\nstream = \"a\"\nerrors = 1\ntimeout = \"5s\"\n",
        );
        assert_eq!(mistakes, []);
        let expected = Expectations {
            stream: Some("a".to_owned()),
            between: Some(Bounds { at_least: Some(1.5), at_most: None }),
            count: Some(Bounds { at_least: Some(2), at_most: None }),
            labels: vec!["dog".to_owned()],
            only: Some(vec!["dog".to_owned(), "cat".to_owned()]),
            none: false,
            has: vec![
                ("dog".to_owned(), Occurrence::Sometimes),
                ("cat".to_owned(), Occurrence::Counted(Bounds::exactly(0))),
                ("cow".to_owned(), Occurrence::Never),
            ],
            times: Some(Bounds { at_least: None, at_most: Some(3.0) }),
            errors: Bounds::exactly(1),
        };
        assert_eq!((&cases[0].expected, cases[0].timeout), (&expected, Duration::from_secs(5)));
    }

    #[test]
    fn each_mistake_is_underlined() {
        const GOOD: &str = "[[test]]\nname = \"x\"\nnode = \"sums\"\ncount = 3\ninput.a = \"a.mp4\"\n";
        for (good, bad, code, underlined) in [
            ("count = 3", "cuont = 3\ncount = 3", Code::UnknownField, "cuont"),
            ("count = 3", "timeout = \"1s\"", Code::MissingField, "\"x\""),
            ("count = 3", "count = -1", Code::OutOfRange, "-1"),
            ("count = 3", "count = { at_leest = 1 }", Code::UnknownField, "at_leest"),
            ("count = 3", "count = { at_least = 9, at_most = 1 }", Code::OutOfRange, "9"),
            ("count = 3", "labels = [\"${x}\"]", Code::BadSubstitution, "\"${x}\""),
            ("count = 3", "count = { at_least = 0 }", Code::OutOfRange, "{ at_least = 0 }"),
            ("count = 3", "has.dog = { at_least = 0 }", Code::OutOfRange, "{ at_least = 0 }"),
            ("count = 3", "none = false", Code::OutOfRange, "false"),
            ("count = 3", "labels = []", Code::OutOfRange, "[]"),
            ("count = 3", "has = {}", Code::OutOfRange, "{}"),
            ("count = 3", "count = 3\ntimeout = \"soon\"", Code::BadDuration, "\"soon\""),
            ("node = \"sums\"", "node = \"smus\"", Code::UnknownInput, "\"smus\""),
            ("node = \"sums\"", "node = \"a\"", Code::UnknownInput, "\"a\""),
            ("node = \"sums\"", "node = \"out\"", Code::UnknownInput, "\"out\""),
            ("input.a", "input.aa", Code::UnknownInput, "aa"),
            ("input.a = \"a.mp4\"", "input.b = \"b.mp4\"", Code::MissingField, "\"x\""),
            ("input.a = \"a.mp4\"\n", "", Code::MissingField, "\"x\""),
            ("input.a = \"a.mp4\"", "input.a = 3", Code::WrongValueType, "3"),
            ("input.a = \"a.mp4\"", "input = \"a.mp4\"", Code::WrongValueType, "\"a.mp4\""),
            ("count = 3", "count = 3\nparams.rat = 1", Code::UnknownVariable, "rat"),
        ] {
            assert!(GOOD.contains(good));
            let (_, mistakes) = found(&GOOD.replace(good, bad));
            assert!(mistakes.contains(&(code, underlined.to_owned())), "{bad}: {mistakes:?}");
        }
        let (_, mistakes) = found(&GOOD.repeat(2));
        assert_eq!(mistakes, [(Code::DuplicateName, "\"x\"".to_owned())]);
        assert_eq!(found("[test]\nname = \"x\"\n").1[0].0, Code::NotATable);
        assert_eq!(found(&GOOD.replace("sums", "few")).1, [], "what comes out of it is what flows in");
        assert_eq!(found(&GOOD.replace("count = 3", "only = []\nerrors.at_least = 0")).1, [], "both say something");
    }
}
