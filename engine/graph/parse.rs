//! From the bytes of a graph file to a tree of values that know where they stand. Owns the limits on what is read; it
//! knows TOML, not graphs.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::diagnostics::{Code, Diagnostic};
use super::places::Places;

/// Graph files are written by people: one that is larger, in bytes, is something else.
pub const LARGEST_FILE: usize = 1 << 20;

/// Of a file that is no TOML at all, the first mistakes say enough.
const MOST_SYNTAX_ERRORS: usize = 100;

/// A value, and where it stands in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    pub data: Data,
    pub span: Range<usize>,
    /// It holds text of the environment or of a file: show `span`'s text, never `data`.
    pub secret: bool,
    /// It is text only because the environment and files know nothing else: where a number is expected, read it as one.
    pub untyped: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime(toml::value::Datetime),
    Array(Vec<Value>),
    Table(Table),
}

impl Data {
    /// "a whole number", for messages.
    pub const fn described(&self) -> &'static str {
        match self {
            Data::String(_) => "text",
            Data::Integer(_) => "a whole number",
            Data::Float(_) => "a number",
            Data::Boolean(_) => "true or false",
            Data::Datetime(_) => "a date",
            Data::Array(_) => "a list",
            Data::Table(_) => "a table",
        }
    }
}

impl Value {
    /// Whether one of these places lies in this value or in a key of it. Of a table only what is in it counts: its own span may be
    /// as long as the file.
    pub fn encloses_any(&self, places: &Places) -> bool {
        match &self.data {
            Data::Table(table) => {
                let mut entries = table.entries.iter();
                entries.any(|(key, value)| places.any_within(&key.span) || value.encloses_any(places))
            }
            _ => places.any_within(&self.span),
        }
    }

    /// The value as plain TOML.
    pub fn to_toml(&self) -> toml::Value {
        match &self.data {
            Data::String(text) => toml::Value::String(text.clone()),
            Data::Integer(number) => toml::Value::Integer(*number),
            Data::Float(number) => toml::Value::Float(*number),
            Data::Boolean(truth) => toml::Value::Boolean(*truth),
            Data::Datetime(datetime) => toml::Value::Datetime(*datetime),
            Data::Array(values) => toml::Value::Array(values.iter().map(Value::to_toml).collect()),
            Data::Table(table) => toml::Value::Table(table.to_toml()),
        }
    }
}

/// A key, and where it stands in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    pub name: String,
    pub span: Range<usize>,
}

/// A table, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    pub entries: Vec<(Key, Value)>,
}

impl Table {
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.entries.iter().find(|(key, _)| key.name == name).map(|(_, value)| value)
    }

    pub fn key(&self, name: &str) -> Option<&Key> {
        self.entries.iter().find(|(key, _)| key.name == name).map(|(key, _)| key)
    }

    pub fn to_toml(&self) -> toml::Table {
        self.entries.iter().map(|(key, value)| (key.name.clone(), value.to_toml())).collect()
    }
}

/// The text of a graph file, if it can be one.
pub fn decode(bytes: &[u8]) -> Result<&str, Diagnostic> {
    if bytes.len() > LARGEST_FILE {
        let limit = operators::config::format_size(LARGEST_FILE as u64);
        let message = format!("the file is larger than {limit}, the most that a graph file may have");
        return Err(Diagnostic::of_file(Code::FileTooLarge, message).hint("check that this is the file that you meant"));
    }
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let line = bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
        let message = format!("the file is not UTF-8 text: byte {at}, in line {line}, starts no character");
        Diagnostic::of_file(Code::NotUtf8, message).hint("save it as UTF-8")
    })
}

/// Parses TOML. All syntax errors come at once.
pub fn parse(text: &str) -> Result<Table, Vec<Diagnostic>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut diagnostics: Vec<Diagnostic> = errors
        .iter()
        .take(MOST_SYNTAX_ERRORS)
        .map(|error| {
            let message = error.message().trim().replace('\n', "; ");
            let hint = syntax_hint(&message);
            Diagnostic::new(Code::Syntax, error.span().unwrap_or(0..0), message).hint(hint)
        })
        .collect();
    if !diagnostics.is_empty() {
        if let Some(at) = lone_carriage_return(text) {
            let message = "a line ends with CR alone, as old Macs wrote it; TOML takes LF, or CR and LF";
            let hint = "save the file with the line ends LF, as Linux and macOS write them";
            return Err(vec![Diagnostic::new(Code::Syntax, at..at, message).hint(hint)]);
        }
        diagnostics.sort_by_key(|diagnostic| diagnostic.span.as_ref().map(|span| span.start));
        return Err(diagnostics);
    }
    let table = table(document.into_inner(), &mut diagnostics);
    if diagnostics.is_empty() { Ok(table) } else { Err(diagnostics) }
}

/// The first CR that no LF follows.
fn lone_carriage_return(text: &str) -> Option<usize> {
    let mut all = text.match_indices('\r').map(|(at, _)| at);
    all.find(|at| text.as_bytes().get(at + 1) != Some(&b'\n'))
}

/// What to do about a syntax error, by what the parser says.
fn syntax_hint(message: &str) -> &'static str {
    if message.contains("duplicate key") {
        "remove or rename one of them"
    } else if message.contains("must be quoted") {
        "write text in quotes, such as \"text\"; numbers, true and false without"
    } else if message.contains("basic string") || message.contains("literal string") {
        "close the text with the quote that it began with"
    } else if message.contains("unclosed") {
        "close it on the same line"
    } else {
        "a graph file is TOML: lines `name = value` below headers such as `[sources.NAME]`"
    }
}

/// Parses a value as `--set` takes it: TOML, or else text.
pub fn parse_setting(text: &str, span: Range<usize>) -> Value {
    let mut ignored = Vec::new();
    let parsed = DeValue::parse(text).ok().map(|parsed| value(parsed.into_inner(), span.clone(), &mut ignored));
    match parsed {
        Some(mut value) if ignored.is_empty() => {
            point_at(&mut value, &span);
            value
        }
        _ => Value { data: Data::String(text.to_owned()), span, secret: false, untyped: false },
    }
}

/// Gives a value, with all that is in it, another place.
pub fn point_at(value: &mut Value, span: &Range<usize>) {
    value.span = span.clone();
    match &mut value.data {
        Data::Array(values) => values.iter_mut().for_each(|value| point_at(value, span)),
        Data::Table(table) => {
            for (key, value) in &mut table.entries {
                key.span = span.clone();
                point_at(value, span);
            }
        }
        _ => {}
    }
}

fn table(parsed: DeTable<'_>, diagnostics: &mut Vec<Diagnostic>) -> Table {
    let mut entries: Vec<(Key, Value)> = parsed
        .into_iter()
        .map(|(key, inner)| {
            let span = inner.span();
            let key = Key { span: key.span(), name: key.into_inner().into_owned() };
            (key, value(inner.into_inner(), span, diagnostics))
        })
        .collect();
    entries.sort_by_key(|(key, _)| key.span.start);
    Table { entries }
}

fn value(parsed: DeValue<'_>, span: Range<usize>, diagnostics: &mut Vec<Diagnostic>) -> Value {
    let mut unusable = |message: String| {
        diagnostics.push(Diagnostic::new(Code::UnusableValue, span.clone(), message));
    };
    let data = match parsed {
        DeValue::String(text) => Data::String(text.into_owned()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Data::Integer(number),
            Err(_) => {
                unusable(format!("`{number}` does not fit 64 bits"));
                Data::Integer(0)
            }
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => Data::Float(number),
            Err(_) => {
                unusable(format!("`{number}` is not a number"));
                Data::Float(0.0)
            }
        },
        DeValue::Boolean(truth) => Data::Boolean(truth),
        DeValue::Datetime(datetime) => Data::Datetime(datetime),
        DeValue::Array(values) => Data::Array(
            values
                .into_iter()
                .map(|inner| {
                    let span = inner.span();
                    value(inner.into_inner(), span, diagnostics)
                })
                .collect(),
        ),
        DeValue::Table(inner) => Data::Table(table(inner, diagnostics)),
    };
    Value { data, span, secret: false, untyped: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn line_ends_of_another_age_are_one_mistake() {
        let old = "[sources.a]\rtype = \"x\"\r[sinks.b]\rtype = \"y\"\r";
        let found = parse(old).unwrap_err();
        let [mistake] = &found[..] else { panic!("{found:?}") };
        assert!(mistake.message.contains("CR alone"), "{}", mistake.message);
        assert!(parse(&old.replace('\r', "\r\n")).is_ok());
    }

    #[test]
    fn values_know_where_they_stand() {
        let text = "[sources.cam]\nstreams.door = \"rtsp://x\"\nfps = 2\n";
        let document = parse(text).unwrap();
        let Data::Table(sources) = &document.get("sources").unwrap().data else { panic!("a table") };
        let Data::Table(cam) = &sources.get("cam").unwrap().data else { panic!("a table") };
        assert_eq!(&text[cam.get("fps").unwrap().span.clone()], "2");
        let Data::Table(streams) = &cam.get("streams").unwrap().data else { panic!("a table") };
        assert_eq!(&text[streams.key("door").unwrap().span.clone()], "door");
        assert_eq!(&text[streams.get("door").unwrap().span.clone()], "\"rtsp://x\"");
        let names: Vec<&str> = cam.entries.iter().map(|(key, _)| key.name.as_str()).collect();
        assert_eq!(names, ["streams", "fps"], "in the order of the file");
    }

    #[test]
    fn all_syntax_errors_come_at_once() {
        let errors = parse("a = \nb = 1\nc = [1, \nd = \"x\n").unwrap_err();
        assert!(errors.len() >= 2, "{errors:?}");
        assert!(errors.iter().all(|error| error.code == Code::Syntax));
    }

    #[test]
    fn numbers_that_do_not_fit_are_named() {
        let errors = parse("a = 99999999999999999999\n").unwrap_err();
        assert_eq!(errors[0].code, Code::UnusableValue);
    }

    #[test]
    fn what_is_no_graph_file_is_refused() {
        assert_eq!(decode(&vec![b'#'; LARGEST_FILE + 1]).unwrap_err().code, Code::FileTooLarge);
        let error = decode(b"a = 1\nb = \"\xff\"\n").unwrap_err();
        assert_eq!(error.code, Code::NotUtf8);
        assert!(error.message.contains("byte 11, in line 2"), "{}", error.message);
    }

    #[test]
    fn settings_are_toml_or_text() {
        assert_eq!(parse_setting("0.5", 0..0).data, Data::Float(0.5));
        assert_eq!(parse_setting("\"5\"", 0..0).data, Data::String("5".to_owned()));
        assert_eq!(parse_setting("front door", 0..0).data, Data::String("front door".to_owned()));
        assert_eq!(parse_setting("", 0..0).data, Data::String(String::new()));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[\\[\\]a-c.=\"'{}0-9\n\\$ ,#\\\\]{0,80}") {
            let _ = (parse(&text), parse_setting(&text, 0..0));
        }
    }
}
