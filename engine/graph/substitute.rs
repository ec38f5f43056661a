//! `[params]`, `--set`, and the references `${param}`, `${env.X}`, `${env.X:-default}` and `${file.PATH}`. Owns what is
//! secret: every text that came from the environment or from a file.
//!
//! References stand in values, never in keys. A value that is just one reference takes the type of what it refers to;
//! beside other text, it is written out. `$${` stands for `${` itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::diagnostics::{Code, Diagnostic, nearest, suggestion};
use super::parse::{self, Data, Table, Value};
use super::references::References;

/// A file that a value is taken from holds a key or a name, not more bytes than this.
const LARGEST_VALUE: u64 = 64 << 10;

/// All references of a graph together stand for at most so many bytes: a long parameter, named ten thousand times,
/// must not fill the memory.
const LARGEST_EXPANSION: usize = 16 << 20;

/// What `--set name=value` gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub name: String,
    pub value: String,
}

/// Where references look.
pub struct Environment<'a> {
    /// The value of an environment variable.
    pub variable: &'a (dyn Fn(&str) -> Option<String> + 'a),
    /// Relative paths are relative to this folder.
    pub folder: PathBuf,
    /// Which of these may be named.
    pub references: References,
}

/// Texts that must never be shown.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    /// The longest first: a part must not be covered before the whole is found.
    texts: BTreeSet<(Reverse<usize>, String)>,
    files: Vec<PathBuf>,
}

impl Secrets {
    /// The files that values were taken from.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// From here on `text` is secret as well: what a secret value was expanded to, say.
    pub fn add(&mut self, text: &str) {
        // As it is, and as `{:?}` and JSON would write it.
        for form in [text.to_owned(), text.trim().to_owned(), text.escape_debug().to_string()] {
            if !form.is_empty() {
                self.texts.insert((Reverse(form.len()), form));
            }
        }
    }

    /// Whether `text` is a part of a secret, or a secret a part of it.
    pub fn overlap(&self, text: &str) -> bool {
        self.texts.iter().any(|(_, secret)| secret.contains(text) || text.contains(secret.as_str()))
    }

    /// `text` with every secret in it covered. A very short secret counts only where it stands alone: it would be
    /// found by accident everywhere else.
    pub fn redact(&self, text: &str) -> String {
        const COVER: &str = "[secret]";
        const SHORT: usize = 4;
        let mut covered = text.to_owned();
        for (_, secret) in &self.texts {
            let mut from = 0;
            while let Some(at) = covered[from..].find(secret.as_str()).map(|at| from + at) {
                let end = at + secret.len();
                let joined = |neighbour: Option<char>| neighbour.is_some_and(char::is_alphanumeric);
                let alone = !joined(covered[..at].chars().next_back()) && !joined(covered[end..].chars().next());
                if secret.len() >= SHORT || alone {
                    covered.replace_range(at..end, COVER);
                    from = at + COVER.len();
                } else {
                    from = end;
                }
            }
        }
        covered
    }
}

struct Parameter {
    value: Value,
    key: Range<usize>,
    used: bool,
}

/// Resolves all references of `document`, which was parsed from `text`, and removes its `params` table.
pub fn substitute(
    document: &mut Table,
    text: &str,
    settings: &[Setting],
    environment: &Environment<'_>,
    diagnostics: &mut Vec<Diagnostic>,
) -> Secrets {
    let mut resolver = Resolver {
        text,
        environment,
        parameters: None,
        secrets: Secrets::default(),
        expanded: 0,
        diagnostics: Vec::new(),
    };
    let mut parameters = BTreeMap::new();
    if let Some(at) = document.entries.iter().position(|(key, _)| key.name == "params") {
        let (key, value) = document.entries.remove(at);
        if let Data::Table(table) = value.data {
            for (key, mut value) in table.entries {
                if !operators::item::is_name(&key.name) || key.name.starts_with("env.") || key.name.starts_with("file.")
                {
                    let message = format!("`{}` cannot name a parameter", key.name.escape_debug());
                    let hint = "use 1 to 128 of `A-Z a-z 0-9 _ . -`, not starting with `env.` or `file.`";
                    resolver.diagnostics.push(Diagnostic::new(Code::BadName, key.span, message).hint(hint));
                    continue;
                }
                resolver.value(&mut value);
                parameters.insert(key.name, Parameter { value, key: key.span, used: false });
            }
        } else {
            let message = format!("`params` is a table, not {}", value.data.described());
            let hint = "write `[params]`, and below it a line `name = value` for each parameter";
            resolver.diagnostics.push(Diagnostic::new(Code::NotATable, key.span, message).hint(hint));
        }
    }
    for setting in settings {
        match parameters.get_mut(&setting.name) {
            Some(parameter) => set(parameter, setting),
            None => {
                let message = format!("`--set {}=…` sets a parameter that the graph does not have", setting.name);
                let known = parameters.keys().map(String::as_str);
                let hint = suggestion(&setting.name, known, "its parameters are")
                    .unwrap_or_else(|| "the graph has no `[params]`".to_owned());
                resolver.diagnostics.push(Diagnostic::of_file(Code::UnknownSetting, message).hint(hint));
            }
        }
    }
    resolver.parameters = Some(parameters);
    for (key, value) in &mut document.entries {
        // The cases of `test` are for another command, which resolves what is in them.
        if key.name != "test" {
            resolver.value(value);
        }
    }
    for (name, parameter) in resolver.parameters.iter().flatten() {
        if !parameter.used {
            let message = format!("nothing uses the parameter `{name}`");
            let hint = format!("write `${{{name}}}` where it belongs, or remove it");
            let diagnostic = Diagnostic::new(Code::UnusedParameter, parameter.key.clone(), message).hint(hint);
            resolver.diagnostics.push(diagnostic);
        }
    }
    diagnostics.append(&mut resolver.diagnostics);
    resolver.secrets
}

fn set(parameter: &mut Parameter, setting: &Setting) {
    let span = parameter.value.span.clone();
    let value = parse::parse_setting(&setting.value, span.clone());
    // A parameter that is text stays text: `--set door=12` names a door.
    let stays_text = matches!(parameter.value.data, Data::String(_)) && !matches!(value.data, Data::String(_));
    parameter.value = if stays_text {
        Value { data: Data::String(setting.value.clone()), span, secret: false, untyped: true }
    } else {
        value
    };
}

struct Resolver<'a> {
    text: &'a str,
    environment: &'a Environment<'a>,
    /// `None` while the parameters themselves are resolved.
    parameters: Option<BTreeMap<String, Parameter>>,
    secrets: Secrets,
    /// Bytes that references have stood for so far.
    expanded: usize,
    diagnostics: Vec<Diagnostic>,
}

impl Resolver<'_> {
    fn value(&mut self, value: &mut Value) {
        match &mut value.data {
            Data::Array(values) => values.iter_mut().for_each(|value| self.value(value)),
            Data::Table(table) => table.entries.iter_mut().for_each(|(_, value)| self.value(value)),
            Data::String(text) if text.contains("${") => {
                let text = std::mem::take(text);
                *value = self.string(text, value.span.clone());
            }
            _ => {}
        }
    }

    /// What stands in the place of `text`, a string that has references.
    fn string(&mut self, text: String, span: Range<usize>) -> Value {
        if let Some(name) = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'))
            && !name.contains('}')
        {
            let resolved = self.reference(name, &span);
            let mut value = resolved.unwrap_or(Value {
                data: Data::String(text),
                span: span.clone(),
                secret: false,
                untyped: true,
            });
            parse::point_at(&mut value, &span);
            return value;
        }
        let (mut written, mut secret) = (String::new(), false);
        let mut rest = text.as_str();
        while let Some(at) = rest.find("${") {
            let (before, reference) = rest.split_at(at);
            if let Some(before) = before.strip_suffix('$') {
                written.push_str(before);
                written.push_str("${");
                rest = &reference[2..];
                continue;
            }
            written.push_str(before);
            let Some(end) = reference.find('}') else {
                let at = self.place(reference, &span);
                let diagnostic = Diagnostic::new(Code::BadSubstitution, at, "`${` has no `}`");
                self.diagnostics.push(diagnostic.hint("close it, or write `$${` for the characters themselves"));
                written.push_str(reference);
                rest = "";
                break;
            };
            let name = &reference[2..end];
            if let Some(value) = self.reference(name, &span) {
                secret |= value.secret;
                match value.data {
                    Data::String(text) => written.push_str(&text),
                    Data::Integer(number) => written.push_str(&number.to_string()),
                    Data::Float(number) => written.push_str(&number.to_string()),
                    Data::Boolean(truth) => written.push_str(&truth.to_string()),
                    Data::Datetime(datetime) => written.push_str(&datetime.to_string()),
                    Data::Array(_) | Data::Table(_) => {
                        let message = format!("`{name}` is {}, which cannot stand inside text", value.data.described());
                        let at = self.place(&reference[..=end], &span);
                        let hint = "let the reference be the whole value, or give each part a parameter of its own";
                        self.diagnostics.push(Diagnostic::new(Code::BadSubstitution, at, message).hint(hint));
                    }
                }
            }
            rest = &reference[end + 1..];
        }
        written.push_str(rest);
        Value { data: Data::String(written), span, secret, untyped: false }
    }

    /// The place of a reference inside its string, which may have escapes: the whole string where it is not found.
    fn place(&self, reference: &str, span: &Range<usize>) -> Range<usize> {
        let written = self.text.get(span.clone()).unwrap_or_default();
        written.find(reference).map_or(span.clone(), |at| span.start + at..span.start + at + reference.len())
    }

    fn reference(&mut self, name: &str, span: &Range<usize>) -> Option<Value> {
        let at = self.place(&format!("${{{name}}}"), span);
        let found = if let Some(variable) = name.strip_prefix("env.") {
            self.variable(variable, at.clone())
        } else if let Some(path) = name.strip_prefix("file.") {
            self.file(path, at.clone())
        } else {
            self.parameter(name, at.clone())
        };
        let found = found.map(|value| {
            let before = self.expanded;
            self.expanded = before.saturating_add(size(&value));
            if self.expanded <= LARGEST_EXPANSION {
                return value;
            }
            let message = "the references of this graph stand for too much text";
            let hint =
                format!("together they may stand for {}", operators::config::format_size(LARGEST_EXPANSION as u64));
            // Said once, at the reference that went too far.
            if before <= LARGEST_EXPANSION {
                self.diagnostics.push(Diagnostic::new(Code::BadSubstitution, at.clone(), message).hint(hint));
            }
            Value { data: Data::String(String::new()), span: at.clone(), secret: false, untyped: true }
        });
        found.map_err(|diagnostic| self.diagnostics.push(diagnostic)).ok()
    }

    fn variable(&mut self, name: &str, at: Range<usize>) -> Result<Value, Diagnostic> {
        let (name, default) = match name.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (name, None),
        };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            let message = format!("`{}` cannot name an environment variable", name.escape_debug());
            return Err(Diagnostic::new(Code::BadSubstitution, at, message)
                .hint("write `${env.NAME}` or `${env.NAME:-default}`"));
        }
        if !self.environment.references.allow_variable(name) {
            let message = format!("a graph that comes over HTTP may not name the environment variable `{name}`");
            let hint = format!("start the engine with `--allow-env {name}`, or write the value itself");
            return Err(Diagnostic::new(Code::ForbiddenReference, at, message).hint(hint));
        }
        match ((self.environment.variable)(name), default) {
            (Some(value), _) if !(value.is_empty() && default.is_some()) => {
                self.secrets.add(&value);
                Ok(Value { data: Data::String(value), span: at, secret: true, untyped: true })
            }
            (_, Some(default)) => {
                Ok(Value { data: Data::String(default.to_owned()), span: at, secret: false, untyped: true })
            }
            (_, None) => {
                let message = format!("the environment variable `{name}` is not set");
                let hint = format!("set it, or give a default: `${{env.{name}:-default}}`");
                Err(Diagnostic::new(Code::UnsetEnvironment, at, message).hint(hint))
            }
        }
    }

    fn file(&mut self, path: &str, at: Range<usize>) -> Result<Value, Diagnostic> {
        let wrong = |why: String| {
            let message = format!("the value of the file `{}` cannot be taken: {why}", path.escape_debug());
            let hint = "the path is relative to the folder in which the engine runs";
            Err(Diagnostic::new(Code::UnreadableValue, at.clone(), message).hint(hint))
        };
        let written = path;
        let path = self.environment.folder.join(path);
        if !self.environment.references.allow_file(&path) {
            let written = written.escape_debug();
            let message = format!("a graph that comes over HTTP may not take a value from the file `{written}`");
            let hint = format!("start the engine with `--allow-path {written}`; it allows a file, or all in a folder");
            return Err(Diagnostic::new(Code::ForbiddenReference, at, message).hint(hint));
        }
        match read_value(&path) {
            Ok(text) => {
                self.secrets.files.push(path);
                let value = text.strip_suffix('\n').map_or(text.as_str(), |text| text.trim_end_matches('\r'));
                self.secrets.add(value);
                Ok(Value { data: Data::String(value.to_owned()), span: at, secret: true, untyped: true })
            }
            Err(why) => wrong(why),
        }
    }

    fn parameter(&mut self, name: &str, at: Range<usize>) -> Result<Value, Diagnostic> {
        let Some(parameters) = &mut self.parameters else {
            let message = "a parameter cannot refer to another parameter";
            let hint = "only `${env.NAME}` and `${file.PATH}` can stand in `[params]`";
            return Err(Diagnostic::new(Code::BadSubstitution, at, message).hint(hint));
        };
        if let Some(parameter) = parameters.get_mut(name) {
            parameter.used = true;
            return Ok(parameter.value.clone());
        }
        let message = format!("there is no parameter `{}`", name.escape_debug());
        let hint = match nearest(name, parameters.keys().map(String::as_str)) {
            Some(near) => format!("did you mean `${{{near}}}`?"),
            None if nearest(name, ["env", "file"]).is_some() => "write `${env.NAME}` or `${file.PATH}`".to_owned(),
            None => format!("add `{}` below `[params]`, or write `${{env.NAME}}`", name.escape_debug()),
        };
        Err(Diagnostic::new(Code::UnknownVariable, at, message).hint(hint))
    }
}

/// About how many bytes a value takes.
fn size(value: &Value) -> usize {
    let inner = match &value.data {
        Data::String(text) => text.len(),
        Data::Array(values) => values.iter().map(size).sum(),
        Data::Table(table) => table.entries.iter().map(|(key, value)| key.name.len() + size(value)).sum(),
        _ => 0,
    };
    inner + size_of::<Value>()
}

/// The text of a small regular file. Anything else (a device, a pipe) could be endless.
fn read_value(path: &Path) -> Result<String, String> {
    let described = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "it may not be read".to_owned(),
        _ => error.to_string(),
    };
    let metadata = std::fs::metadata(path).map_err(described)?;
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(described)?;
    file.take(LARGEST_VALUE + 1).read_to_end(&mut bytes).map_err(described)?;
    if bytes.len() as u64 > LARGEST_VALUE {
        return Err(format!("it is larger than {}", operators::config::format_size(LARGEST_VALUE)));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Resolved {
        document: Table,
        secrets: Secrets,
        diagnostics: Vec<Diagnostic>,
    }

    fn resolve(text: &str, settings: &[(&str, &str)], folder: &Path) -> Resolved {
        let variable = |name: &str| match name {
            "USER" => Some("admin".to_owned()),
            "PASSWORD" => Some("hunter2".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        let references = References::default();
        let environment = Environment { variable: &variable, folder: folder.to_owned(), references };
        let settings: Vec<Setting> =
            settings.iter().map(|(name, value)| Setting { name: (*name).into(), value: (*value).into() }).collect();
        let mut document = parse::parse(text).unwrap();
        let mut diagnostics = Vec::new();
        let secrets = substitute(&mut document, text, &settings, &environment, &mut diagnostics);
        Resolved { document, secrets, diagnostics }
    }

    fn codes(text: &str, settings: &[(&str, &str)]) -> Vec<(Code, String)> {
        let resolved = resolve(text, settings, Path::new("."));
        let underlined = |d: &Diagnostic| d.span.clone().map_or(String::new(), |span| text[span].to_owned());
        resolved.diagnostics.iter().map(|d| (d.code, underlined(d))).collect()
    }

    #[test]
    fn a_lone_reference_takes_the_type_and_text_is_written_out() {
        let text = "[params]\nt = 0.5\nlabels = [\"a\"]\n[x]\na = \"${t}\"\nb = \"at ${t}!\"\nc = \"${labels}\"\nd = \"$${t}\"\n";
        let resolved = resolve(text, &[], Path::new("."));
        assert!(resolved.diagnostics.is_empty(), "{:?}", resolved.diagnostics);
        let expected: toml::Table =
            toml::from_str("[x]\na = 0.5\nb = \"at 0.5!\"\nc = [\"a\"]\nd = \"${t}\"\n").unwrap();
        assert_eq!(resolved.document.to_toml(), expected);
    }

    #[test]
    fn settings_replace_parameters_and_keep_text_text() {
        let text = "[params]\nt = 0.5\ndoor = \"front\"\n[x]\na = \"${t}\"\nb = \"${door}\"\n";
        let resolved = resolve(text, &[("t", "0.9"), ("door", "12")], Path::new("."));
        let expected: toml::Table = toml::from_str("[x]\na = 0.9\nb = \"12\"\n").unwrap();
        assert_eq!(resolved.document.to_toml(), expected);
        assert_eq!(codes(text, &[("dor", "1")]), [(Code::UnknownSetting, String::new())]);
    }

    #[test]
    fn the_environment_and_files_are_secret_and_defaults_are_not() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "s3cret-key\n").unwrap();
        let text = "[x]\nurl = \"rtsp://${env.USER}:${env.PASSWORD}@h\"\nkey = \"${file.key}\"\nplain = \"${env.NONE:-public}\"\nempty = \"${env.EMPTY:-public}\"\n";
        let resolved = resolve(text, &[], folder.path());
        assert!(resolved.diagnostics.is_empty(), "{:?}", resolved.diagnostics);
        let Data::Table(x) = &resolved.document.get("x").unwrap().data else { panic!("a table") };
        assert_eq!(x.get("url").unwrap().data, Data::String("rtsp://admin:hunter2@h".to_owned()));
        assert_eq!(x.get("key").unwrap().data, Data::String("s3cret-key".to_owned()));
        assert!(x.get("url").unwrap().secret && x.get("key").unwrap().secret);
        assert!(!x.get("plain").unwrap().secret);
        assert_eq!(x.get("empty").unwrap().data, Data::String("public".to_owned()));
        let covered = resolved.secrets.redact("cannot open rtsp://admin:hunter2@h with s3cret-key, a public host");
        assert_eq!(covered, "cannot open rtsp://[secret]:[secret]@h with [secret], a public host");
    }

    #[test]
    fn short_secrets_are_covered_where_they_stand_alone() {
        let mut secrets = Secrets::default();
        secrets.add("7");
        assert_eq!(secrets.redact("`7` of 17 in 7s: 7"), "`[secret]` of 17 in 7s: [secret]");
    }

    #[test]
    fn mistakes_underline_their_own_reference() {
        let text = "[params]\nthreshold = 1\nlist = [1]\nother = \"${threshold}\"\n[x]\na = \"b ${treshold} ${env.NONE}\"\nc = \"${threshold} ${list}\"\nd = \"${threshold\"\ne = \"${file.no/such}\"\nf = \"${env.a b}\"\ng = \"${other}\"\n";
        assert_eq!(
            codes(text, &[]),
            [
                (Code::BadSubstitution, "\"${threshold}\"".to_owned().trim_matches('"').to_owned()),
                (Code::UnknownVariable, "${treshold}".to_owned()),
                (Code::UnsetEnvironment, "${env.NONE}".to_owned()),
                (Code::BadSubstitution, "${list}".to_owned()),
                (Code::BadSubstitution, "${threshold".to_owned()),
                (Code::UnreadableValue, "${file.no/such}".to_owned()),
                (Code::BadSubstitution, "${env.a b}".to_owned()),
            ]
        );
    }

    #[test]
    fn references_cannot_fill_the_memory() {
        let text = format!("[params]\na = \"{}\"\n[x]\nb = \"{}\"\n", "x".repeat(500_000), "${a}".repeat(1000));
        let found: Vec<Code> = resolve(&text, &[], Path::new(".")).diagnostics.iter().map(|d| d.code).collect();
        assert_eq!(found, [Code::BadSubstitution]);
    }

    #[test]
    fn an_unused_parameter_is_a_warning() {
        assert_eq!(codes("[params]\na = 1\n", &[]), [(Code::UnusedParameter, "a".to_owned())]);
        assert_eq!(Code::UnusedParameter.severity(), super::super::diagnostics::Severity::Warning);
    }
}
