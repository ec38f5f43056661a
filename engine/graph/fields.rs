//! Checks the values of a table against the fields that its type declares. Owns what is wrong with a single value;
//! what several nodes have to do with each other is checked elsewhere.

use std::ops::Range;
use std::path::{Path, PathBuf};

use operators::config::{self, Field, FieldType, Presence};

use super::diagnostics::{Code, Diagnostic, listed, nearest, suggestion};
use super::parse::{Data, Key, Table, Value};

/// Checks tables, and collects what is wrong.
pub struct FieldChecker<'a> {
    /// The graph file, as written.
    pub text: &'a str,
    /// Relative paths are relative to this folder.
    pub folder: &'a Path,
    pub diagnostics: Vec<Diagnostic>,
}

impl FieldChecker<'_> {
    /// Checks every field of `table`. `owner` names it in messages ("`detect`"); what is missing is reported at `at`.
    /// `others` are further fields that stand in the table and are checked elsewhere.
    pub fn table(&mut self, owner: &str, at: &Range<usize>, table: &mut Table, fields: &[Field], others: &[&str]) {
        for (key, value) in &mut table.entries {
            match fields.iter().find(|field| field.name == key.name) {
                Some(field) => self.value(field.name, &field.value, value),
                None => self.unknown_field(owner, key, fields, others),
            }
        }
        for field in fields {
            if field.presence == Presence::Required && table.get(field.name).is_none() {
                let message = format!("{owner} needs the field `{}`", field.name);
                let summary = field.summary.trim_end_matches('.');
                let hint = format!("add `{} = {}`: {summary}", field.name, example(&field.value));
                self.diagnostics.push(Diagnostic::new(Code::MissingField, at.clone(), message).hint(hint));
            }
        }
    }

    fn unknown_field(&mut self, owner: &str, key: &Key, fields: &[Field], others: &[&str]) {
        let known = fields.iter().map(|field| field.name).chain(others.iter().copied());
        let message = format!("unknown field `{}`: {owner} has no such field", key.name.escape_debug());
        let hint = suggestion(&key.name, known, "its fields are");
        self.diagnostics.push(Diagnostic::new(Code::UnknownField, key.span.clone(), message).maybe_hint(hint));
    }

    /// Checks one value. Text that has no type of its own (of the environment) becomes what is expected here.
    pub fn value(&mut self, name: &str, expected: &FieldType, value: &mut Value) {
        coerce(expected, value);
        if !has_shape(expected, &value.data) {
            let message = format!("`{name}` takes {}, not {}", described(expected), value.data.described());
            let hint = format!("write it like `{name} = {}`", example(expected));
            self.report(Code::WrongValueType, value, message, Some(hint));
            return;
        }
        match (expected, &mut value.data) {
            (FieldType::Integer { minimum, maximum }, Data::Integer(number))
                if !(minimum..=maximum).contains(&&*number) =>
            {
                self.out_of_range(name, expected, value);
            }
            (FieldType::Number { minimum, maximum }, Data::Integer(_) | Data::Float(_)) => {
                let number = match value.data {
                    Data::Integer(number) => number as f64,
                    Data::Float(number) => number,
                    _ => return,
                };
                if !(*minimum..=*maximum).contains(&number) {
                    self.out_of_range(name, expected, value);
                }
            }
            (FieldType::Duration, Data::String(text)) if config::parse_duration(text).is_err() => {
                let message = format!("`{name}` is not a length of time: {}", self.shown(value));
                let hint = "write it like \"6s\", \"100ms\" or \"1h 30m\"";
                self.report(Code::BadDuration, value, message, Some(hint.to_owned()));
            }
            (FieldType::Size, _) => {
                let good = match &value.data {
                    Data::Integer(number) => *number >= 0,
                    Data::String(text) => config::parse_size(text).is_ok(),
                    _ => false,
                };
                if !good {
                    let message = format!("`{name}` is not a size: {}", self.shown(value));
                    let hint = "write it like \"64MiB\", \"1.5GB\" or 65536 (bytes)";
                    self.report(Code::BadSize, value, message, Some(hint.to_owned()));
                }
            }
            (FieldType::Rate, _) => {
                let text = match &value.data {
                    Data::Integer(number) => number.to_string(),
                    Data::Float(number) => number.to_string(),
                    Data::String(text) => text.clone(),
                    _ => return,
                };
                if config::parse_rate(&text).is_err() {
                    let message = format!("`{name}` is not a rate: {}", self.shown(value));
                    let hint = "write a positive number, at most 1000, such as 2, 0.5 or \"30000/1001\"";
                    self.report(Code::BadRate, value, message, Some(hint.to_owned()));
                }
            }
            (FieldType::Choice(words), Data::String(text)) if !words.contains(&text.as_str()) => {
                let hint = match nearest(text, words.iter().copied()) {
                    Some(near) if !value.secret => format!("did you mean \"{near}\"?"),
                    _ => format!("it is one of {}", listed(words)),
                };
                let message = format!("`{name}` cannot be {}", self.shown(value));
                self.report(Code::BadChoice, value, message, Some(hint));
            }
            (FieldType::InputPath, Data::String(path)) => {
                let path = path.clone();
                self.input_path(name, &path, value);
            }
            (FieldType::OutputPath, Data::String(path)) if path.is_empty() => {
                self.report(Code::WrongValueType, value, format!("`{name}` is empty"), None);
            }
            (FieldType::List(inner) | FieldType::OneOrList(inner), Data::Array(values)) => {
                values.iter_mut().for_each(|value| self.value(name, inner, value));
            }
            (FieldType::OneOrList(inner), _) => self.value(name, inner, value),
            (FieldType::Map(inner), Data::Table(table)) => {
                for (key, value) in &mut table.entries {
                    self.value(&format!("{name}.{}", key.name.escape_debug()), inner, value);
                }
            }
            (FieldType::Table(fields), Data::Table(table)) => {
                let at = table.entries.first().map_or(value.span.clone(), |(key, _)| key.span.clone());
                self.table(&format!("`{name}`"), &at, table, fields, &[]);
            }
            (FieldType::Either(forms), _) => self.either(name, forms, value),
            _ => {}
        }
    }

    /// One of the forms must fit; where none does, the closest one says why.
    fn either(&mut self, name: &str, forms: &[FieldType], value: &mut Value) {
        let mut fewest: Option<(Vec<Diagnostic>, Value)> = None;
        for form in forms.iter().filter(|form| has_shape(form, &value.data)) {
            let mut trial = FieldChecker { text: self.text, folder: self.folder, diagnostics: Vec::new() };
            let mut candidate = value.clone();
            trial.value(name, form, &mut candidate);
            if fewest.as_ref().is_none_or(|(found, _)| trial.diagnostics.len() < found.len()) {
                fewest = Some((trial.diagnostics, candidate));
            }
        }
        if let Some((found, candidate)) = fewest {
            self.diagnostics.extend(found);
            *value = candidate;
        }
    }

    fn out_of_range(&mut self, name: &str, expected: &FieldType, value: &Value) {
        let message = format!("`{name}` is out of range: {}", self.shown(value));
        self.report(Code::OutOfRange, value, message, Some(format!("it takes {}", described(expected))));
    }

    fn input_path(&mut self, name: &str, path: &str, value: &Value) {
        let full = self.folder.join(path);
        let is_glob = path.contains(['*', '?', '[']);
        let why = if path.is_empty() {
            format!("`{name}` is empty")
        } else if full.is_dir() {
            format!("{} is a folder, not a file", self.shown(value))
        } else if full.exists() {
            return;
        } else if is_glob {
            self.passed_over(path, value);
            let found = glob::glob(&full.to_string_lossy()).map(|mut paths| paths.any(|path| path.is_ok()));
            match found {
                Ok(true) => return,
                Ok(false) => format!("no file matches {}", self.shown(value)),
                Err(error) => format!("{} is not a pattern for files: {}", self.shown(value), error.msg),
            }
        } else {
            format!("there is no file {}", self.shown(value))
        };
        let missing = !value.secret && !is_glob && !full.is_dir() && !path.is_empty();
        let hint = match neighbour(path, &full).filter(|_| missing) {
            _ if path.is_empty() => format!("write it like `{name} = {}`", example(&FieldType::InputPath)),
            Some(near) => format!("did you mean `{near}`?"),
            None => "a relative path is relative to the folder in which the engine runs".to_owned(),
        };
        self.report(Code::MissingFile, value, why, Some(hint));
    }

    /// What a glob leaves out without a word: folders that cannot be read, and files whose names are not UTF-8.
    fn passed_over(&mut self, path: &str, value: &Value) {
        let full = self.folder.join(path);
        let Ok(found) = glob::glob(&full.to_string_lossy()) else { return };
        let unreadable = found
            .filter_map(Result::err)
            .map(|error| format!("the folder `{}` cannot be read: {}", error.path().display(), error.error()));
        let unnamed = unnamed(&full).into_iter().map(|file| format!("the name of `{}` is not UTF-8", file.display()));
        let all: Vec<String> = unreadable.chain(unnamed).collect();
        let Some(first) = all.first() else { return };
        let more = if all.len() > 1 { format!(", and {} more", all.len() - 1) } else { String::new() };
        let message = format!("{} leaves out something: {first}{more}", self.shown(value));
        let hint = "rename the file or make the folder readable, or write a glob that does not match it";
        self.report(Code::LeftOut, value, message, Some(hint.to_owned()));
    }

    fn report(&mut self, code: Code, value: &Value, message: String, hint: Option<String>) {
        self.diagnostics.push(Diagnostic::new(code, value.span.clone(), message).maybe_hint(hint));
    }

    /// The value for messages: as it is, or as written where it is secret.
    fn shown(&self, value: &Value) -> String {
        if value.secret {
            return format!("`{}`", self.text.get(value.span.clone()).unwrap_or("${…}").trim_matches(['"', '\'']));
        }
        let text = match &value.data {
            Data::String(text) => text.escape_debug().to_string(),
            // TOML's own way writes out every zero.
            Data::Float(number) if number.is_finite() => format!("{number:?}"),
            other => Value { data: other.clone(), span: 0..0, secret: false, untyped: false }.to_toml().to_string(),
        };
        const MOST: usize = 80;
        match text.char_indices().nth(MOST) {
            Some((at, _)) => format!("`{}…`", &text[..at]),
            None => format!("`{text}`"),
        }
    }
}

/// The files that a glob would match if their names were UTF-8, as far as its folders have names that are.
fn unnamed(glob: &Path) -> Vec<PathBuf> {
    let (Some(folder), Some(name)) = (glob.parent(), glob.file_name().and_then(|name| name.to_str())) else {
        return Vec::new();
    };
    let Ok(pattern) = glob::Pattern::new(name) else { return Vec::new() };
    let folders: Vec<PathBuf> = match folder.to_str() {
        Some(text) if text.contains(['*', '?', '[']) => {
            glob::glob(text).map(|found| found.filter_map(Result::ok).collect()).unwrap_or_default()
        }
        _ => vec![folder.to_owned()],
    };
    let mut files: Vec<PathBuf> = folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.filter_map(Result::ok))
        .filter(|entry| entry.file_name().to_str().is_none() && entry.path().is_file())
        .filter(|entry| pattern.matches(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

/// The file beside `missing` whose name is nearest, written as `written` is.
fn neighbour(written: &str, missing: &Path) -> Option<String> {
    const MOST: usize = 1000;
    let wanted = missing.file_name()?.to_str()?;
    let names: Vec<String> = std::fs::read_dir(missing.parent()?)
        .ok()?
        .take(MOST)
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let near = nearest(wanted, names.iter().map(String::as_str))?;
    Some(Path::new(written).with_file_name(near).display().to_string())
}

/// Text of the environment becomes a number or a truth value where one is expected.
fn coerce(expected: &FieldType, value: &mut Value) {
    let Data::String(text) = &value.data else { return };
    if !value.untyped || has_shape(expected, &value.data) {
        return;
    }
    let parsed = super::parse::parse_setting(text.trim(), value.span.clone()).data;
    if has_shape(expected, &parsed) {
        value.data = parsed;
    }
}

/// Whether a value is of the type that is expected, whatever its content.
fn has_shape(expected: &FieldType, data: &Data) -> bool {
    match expected {
        FieldType::String
        | FieldType::Duration
        | FieldType::Choice(_)
        | FieldType::InputPath
        | FieldType::OutputPath
        | FieldType::Url
        | FieldType::Model => matches!(data, Data::String(_)),
        FieldType::Boolean => matches!(data, Data::Boolean(_)),
        FieldType::Integer { .. } => matches!(data, Data::Integer(_)),
        FieldType::Number { .. } => matches!(data, Data::Integer(_) | Data::Float(_)),
        FieldType::Size => matches!(data, Data::String(_) | Data::Integer(_)),
        FieldType::Rate => matches!(data, Data::String(_) | Data::Integer(_) | Data::Float(_)),
        FieldType::List(_) => matches!(data, Data::Array(_)),
        FieldType::OneOrList(inner) => matches!(data, Data::Array(_)) || has_shape(inner, data),
        FieldType::Map(_) | FieldType::Table(_) => matches!(data, Data::Table(_)),
        FieldType::Either(forms) => forms.iter().any(|form| has_shape(form, data)),
    }
}

/// "a whole number from 1 to 9", for messages.
pub fn described(expected: &FieldType) -> String {
    match expected {
        FieldType::String => "text".to_owned(),
        FieldType::Boolean => "true or false".to_owned(),
        FieldType::Integer { minimum, maximum } => {
            let lower = (*minimum != i64::MIN).then(|| minimum.to_string());
            let upper = (*maximum != i64::MAX).then(|| maximum.to_string());
            format!("a whole number{}", bounds(lower, upper))
        }
        FieldType::Number { minimum, maximum } => {
            let lower = (*minimum > f64::MIN).then(|| minimum.to_string());
            let upper = (*maximum < f64::MAX).then(|| maximum.to_string());
            format!("a number{}", bounds(lower, upper))
        }
        FieldType::Duration => "a length of time such as \"6s\"".to_owned(),
        FieldType::Size => "a size such as \"64MiB\"".to_owned(),
        FieldType::Rate => "a rate such as 2 or \"30000/1001\"".to_owned(),
        FieldType::Choice(words) => {
            let quoted: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
            quoted.join(" or ")
        }
        FieldType::InputPath => "the path of a file".to_owned(),
        FieldType::OutputPath => "the path of a file to write".to_owned(),
        FieldType::Url => "a URL".to_owned(),
        FieldType::Model => "the name of a model".to_owned(),
        FieldType::List(inner) => format!("a list ({} each)", described(inner)),
        FieldType::OneOrList(inner) => format!("{}, or a list", described(inner)),
        FieldType::Map(inner) => format!("a table ({} each)", described(inner)),
        FieldType::Table(fields) => {
            let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
            if names.is_empty() { "a table".to_owned() } else { format!("a table of {}", listed(&names)) }
        }
        FieldType::Either(forms) => {
            let all: Vec<String> = forms.iter().map(described).collect();
            all.join(", or ")
        }
    }
}

fn bounds(lower: Option<String>, upper: Option<String>) -> String {
    match (lower, upper) {
        (Some(lower), Some(upper)) => format!(" from {lower} to {upper}"),
        (Some(lower), None) => format!(" of at least {lower}"),
        (None, Some(upper)) => format!(" of at most {upper}"),
        (None, None) => String::new(),
    }
}

/// A value as somebody could write it.
fn example(expected: &FieldType) -> String {
    match expected {
        FieldType::String => "\"text\"".to_owned(),
        FieldType::Boolean => "true".to_owned(),
        FieldType::Integer { minimum, maximum } => 1.clamp(*minimum, (*maximum).max(*minimum)).to_string(),
        FieldType::Number { minimum, maximum } => {
            let number = if (*minimum..=*maximum).contains(&0.5) { 0.5 } else { *minimum };
            number.to_string()
        }
        FieldType::Duration => "\"6s\"".to_owned(),
        FieldType::Size => "\"64MiB\"".to_owned(),
        FieldType::Rate => "2".to_owned(),
        FieldType::Choice(words) => format!("\"{}\"", words.first().unwrap_or(&"")),
        FieldType::InputPath => "\"video.mp4\"".to_owned(),
        FieldType::OutputPath => "\"results.jsonl\"".to_owned(),
        FieldType::Url => "\"rtsp://10.0.0.7/main\"".to_owned(),
        FieldType::Model => "\"name\"".to_owned(),
        FieldType::List(inner) => format!("[{}]", example(inner)),
        FieldType::OneOrList(inner) => example(inner),
        FieldType::Map(inner) => format!("{{ name = {} }}", example(inner)),
        FieldType::Table(fields) => {
            let all: Vec<String> =
                fields.iter().map(|field| format!("{} = {}", field.name, example(&field.value))).collect();
            format!("{{ {} }}", all.join(", "))
        }
        FieldType::Either(forms) => forms.first().map(example).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;
    use proptest::prelude::*;

    const fn field(name: &'static str, value: FieldType) -> Field {
        Field { name, value, presence: Presence::Optional, summary: "A field." }
    }

    #[test]
    fn a_missing_file_has_a_neighbour_that_is_another_file_under_its_whole_path() {
        let folder = tempfile::tempdir().unwrap();
        let videos = folder.path().join("videos");
        std::fs::create_dir_all(videos.join("dior.mp4")).unwrap();
        std::fs::write(videos.join("doors.mp4"), "").unwrap();
        std::os::unix::fs::symlink("gone.mp4", videos.join("gate.mp4")).unwrap();
        let hint = |path: &str| {
            let text = format!("path = \"{path}\"\n");
            let mut table = parse(&text).unwrap();
            let mut checker = FieldChecker { text: &text, folder: folder.path(), diagnostics: Vec::new() };
            checker.value("path", &FieldType::InputPath, &mut table.entries[0].1);
            checker.diagnostics.remove(0).hint.unwrap()
        };
        assert_eq!(hint("videos/door.mp4"), "did you mean `videos/doors.mp4`?", "a folder is no file");
        let nothing_near = "a relative path is relative to the folder in which the engine runs";
        assert_eq!(hint("videos/gate.mp4"), nothing_near, "the link itself is what is missing");
        assert_eq!(hint("videos/doors.mkv*"), nothing_near);
        assert_eq!(hint("videos/dior.mp4"), nothing_near);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_glob_tells_which_files_it_leaves_out() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let deeper = folder.path().join("night");
        std::fs::create_dir(&deeper).unwrap();
        let unnamed = std::ffi::OsStr::from_bytes(b"caf\xe9.mp4");
        for place in [folder.path(), &deeper] {
            std::fs::write(place.join("door.mp4"), "").unwrap();
            std::fs::write(place.join(unnamed), "").unwrap();
        }
        let told = |path: &str| {
            let text = format!("path = \"{path}\"\n");
            let mut table = parse(&text).unwrap();
            let mut checker = FieldChecker { text: &text, folder: folder.path(), diagnostics: Vec::new() };
            checker.value("path", &FieldType::OneOrList(&FieldType::InputPath), &mut table.entries[0].1);
            let all = checker.diagnostics.iter().map(|told| (told.code, told.message.contains("is not UTF-8")));
            all.collect::<Vec<_>>()
        };
        assert_eq!(told("*.mp4"), [(Code::LeftOut, true)]);
        assert_eq!(told("n*/*.mp4"), [(Code::LeftOut, true)]);
        assert_eq!(told("d*.mp4"), [], "it is not meant");
        assert_eq!(told("door.mp4"), []);
    }

    #[test]
    fn an_empty_path_and_a_tiny_number_are_shown_as_they_are() {
        let said = |text: &str, expected: FieldType| {
            let mut table = parse(text).unwrap();
            let mut checker = FieldChecker { text, folder: Path::new("."), diagnostics: Vec::new() };
            checker.value("x", &expected, &mut table.entries[0].1);
            let found = checker.diagnostics.remove(0);
            (found.message, found.hint.unwrap())
        };
        let (message, hint) = said("x = \"\"", FieldType::InputPath);
        assert_eq!((message.as_str(), hint.as_str()), ("`x` is empty", "write it like `x = \"video.mp4\"`"));
        assert_eq!(said("x = 1e-300", FieldType::Rate).0, "`x` is not a rate: `1e-300`");
    }

    const PATH_OR_PATHS: FieldType = FieldType::OneOrList(&FieldType::InputPath);

    static FIELDS: &[Field] = &[
        field("count", FieldType::Integer { minimum: 1, maximum: 9 }),
        field("score", FieldType::Number { minimum: 0.0, maximum: 1.0 }),
        field("wait", FieldType::Duration),
        field("bytes", FieldType::Size),
        field("fps", FieldType::Rate),
        field("mode", FieldType::Choice(&["fast", "exact"])),
        field("path", PATH_OR_PATHS),
        field("on", FieldType::Boolean),
        field("has", FieldType::Map(&FieldType::Number { minimum: 0.0, maximum: 1.0 })),
        field("either", FieldType::Either(&[FieldType::Boolean, FieldType::Integer { minimum: 0, maximum: 2 }])),
        Field { name: "must", value: FieldType::String, presence: Presence::Required, summary: "It must be there." },
    ];

    fn found(text: &str) -> Vec<(Code, String)> {
        let mut table = parse(text).unwrap();
        let mut checker = FieldChecker { text, folder: Path::new(env!("CARGO_MANIFEST_DIR")), diagnostics: Vec::new() };
        checker.table("`fake`", &(0..0), &mut table, FIELDS, &["type"]);
        let underlined = |d: &Diagnostic| d.span.clone().map_or(String::new(), |span| text[span].to_owned());
        checker.diagnostics.iter().map(|d| (d.code, underlined(d))).collect()
    }

    #[test]
    fn good_values_pass() {
        let text = "must = \"\"\ncount = 9\nscore = 1\nwait = \"6s\"\nbytes = \"1MiB\"\nfps = \"30000/1001\"\nmode = \"fast\"\npath = [\"Cargo.toml\", \"Cargo.*\"]\non = true\nhas = { a = 0.5 }\neither = 2\n";
        assert_eq!(found(text), []);
    }

    #[test]
    fn each_wrong_value_is_underlined() {
        for (line, code) in [
            ("count = 10", Code::OutOfRange),
            ("count = \"1\"", Code::WrongValueType),
            ("score = nan", Code::OutOfRange),
            ("wait = \"soon\"", Code::BadDuration),
            ("wait = 6", Code::WrongValueType),
            ("bytes = -1", Code::BadSize),
            ("bytes = \"12 parsecs\"", Code::BadSize),
            ("fps = 0", Code::BadRate),
            ("mode = \"fsat\"", Code::BadChoice),
            ("path = \"no/such.mp4\"", Code::MissingFile),
            ("path = \"no-such-*.mp4\"", Code::MissingFile),
            ("path = \"engine\"", Code::MissingFile),
            ("has = 1", Code::WrongValueType),
            ("either = 3", Code::OutOfRange),
            ("either = \"x\"", Code::WrongValueType),
        ] {
            let value = line.split_once(" = ").unwrap().1.to_owned();
            assert_eq!(found(&format!("must = \"\"\n{line}\n")), [(code, value)], "{line}");
        }
        assert_eq!(found("must = \"\"\nhas.person = 2\n"), [(Code::OutOfRange, "2".to_owned())]);
        assert_eq!(found("must = \"\"\nscroe = 1\n"), [(Code::UnknownField, "scroe".to_owned())]);
        assert_eq!(found(""), [(Code::MissingField, String::new())]);
    }

    #[test]
    fn text_of_the_environment_becomes_what_is_expected() {
        let mut value = Value { data: Data::String(" 7".to_owned()), span: 0..0, secret: true, untyped: true };
        let mut checker = FieldChecker { text: "", folder: Path::new("."), diagnostics: Vec::new() };
        checker.value("count", &FieldType::Integer { minimum: 1, maximum: 9 }, &mut value);
        assert!(checker.diagnostics.is_empty());
        assert_eq!(value.data, Data::Integer(7));
    }

    #[test]
    fn a_secret_value_is_shown_as_written() {
        let text = "wait = \"${env.WAIT}\"";
        let mut value = Value { data: Data::String("hunter2".to_owned()), span: 7..20, secret: true, untyped: true };
        let mut checker = FieldChecker { text, folder: Path::new("."), diagnostics: Vec::new() };
        checker.value("wait", &FieldType::Duration, &mut value);
        assert_eq!(checker.diagnostics[0].message, "`wait` is not a length of time: `${env.WAIT}`");
    }

    proptest! {
        #[test]
        fn no_value_panics(name in prop::sample::select(FIELDS.iter().map(|f| f.name).collect::<Vec<_>>()), text: String, number: f64) {
            for value in [format!("{text:?}"), format!("{number:?}"), format!("[{number:?}]")] {
                if let Ok(mut table) = parse(&format!("{name} = {value}\n")) {
                    let mut checker = FieldChecker { text: "", folder: Path::new("."), diagnostics: Vec::new() };
                    checker.table("`fake`", &(0..0), &mut table, FIELDS, &[]);
                }
            }
        }
    }
}
