//! Whether a text may name what its nodes name: paths of files, and hosts.
//!
//! Which values are paths, the fields of a node's type say, or their names. A host may stand in any text that is a URL,
//! whatever its field is for; the name of a bucket counts as one.

use std::path::{Component, Path, PathBuf};

use operators::address::Address;
use operators::config::{Field, FieldType};
use operators::error::FieldError;
use operators::operator::{Built, Resource};

use super::diagnostics::{Code, Diagnostic};
use super::nodes::Declaration;
use super::references::References;

/// Every value of the nodes' tables that names what it may not.
pub fn check(declared: &[Declaration], folder: &Path, references: &References) -> Vec<Diagnostic> {
    if *references == References::Anything {
        return Vec::new();
    }
    let mut found = Vec::new();
    for node in declared {
        let Some(registration) = node.registration else { continue };
        for FieldError { field, message, hint } in
            forbidden(registration.fields, &node.table.to_toml(), folder, references)
        {
            found.push(Diagnostic::new(Code::ForbiddenReference, node.place(&field), message).maybe_hint(hint));
        }
    }
    found
}

/// What a node reads and writes in fact, where its fields did not tell: the files that a pattern matches, say.
pub fn check_built(declared: &[Declaration], built: &[Option<Built>], references: &References) -> Vec<Diagnostic> {
    if *references == References::Anything {
        return Vec::new();
    }
    let mut found = Vec::new();
    for (node, built) in declared.iter().zip(built) {
        let paths: Vec<PathBuf> = match built {
            Some(Built::Source(source)) => source.reads(),
            Some(Built::Sink(sink)) => {
                let files = sink.resources().into_iter().filter_map(|resource| match resource {
                    Resource::Path(path) => Some(path),
                    // Its fields tell whose it is: the bucket and the endpoint.
                    Resource::Object(_) => None,
                });
                files.collect()
            }
            _ => Vec::new(),
        };
        if let Some(path) = paths.iter().find(|path| !references.allow_path(path)) {
            let place = if node.table.get("path").is_some() { node.place("path") } else { node.span.clone() };
            let (message, hint) = forbidden_path(&path.to_string_lossy());
            found.push(Diagnostic::new(Code::ForbiddenReference, place, message).hint(hint));
        }
    }
    found
}

/// Every value of a table with these fields that names what it may not, by its field.
pub fn forbidden(fields: &[Field], table: &toml::Table, folder: &Path, references: &References) -> Vec<FieldError> {
    let mut visit = Visit { folder, references, found: Vec::new() };
    if *references != References::Anything {
        visit.table(fields, table, "");
    }
    visit.found
}

struct Visit<'a> {
    folder: &'a Path,
    references: &'a References,
    found: Vec<FieldError>,
}

impl Visit<'_> {
    fn table(&mut self, fields: &[Field], table: &toml::Table, above: &str) {
        for (name, value) in table {
            // Of a field that nobody knows, a URL is a URL all the same.
            let field = fields.iter().find(|field| field.name == name);
            let expected = field.map_or(FieldType::String, |field| field.value);
            let place = format!("{above}{name}");
            if name == TUNNEL && !self.references.allow_tunnel() {
                let program = value.as_str().unwrap_or_default().escape_debug();
                let message = format!("what comes over HTTP may not start the program `{program}`");
                let hint =
                    "start the engine with `--allow-tunnel`: then whoever may send graphs may open it to the internet";
                self.found.push(FieldError::new(&place, message).hint(hint));
            }
            match (expected, value) {
                (FieldType::String, toml::Value::String(text)) => self.named(name, text, &place),
                _ => self.value(&expected, value, &place),
            }
        }
    }

    fn value(&mut self, expected: &FieldType, value: &toml::Value, place: &str) {
        match value {
            toml::Value::String(text) => self.text(path_kind(expected), text, place),
            toml::Value::Array(values) => {
                let inner = inner_of_list(expected).unwrap_or(&FieldType::String);
                values.iter().for_each(|value| self.value(inner, value, place));
            }
            toml::Value::Table(table) => match of_table(expected) {
                OfTable::Fields(fields) => self.table(fields, table, &format!("{place}.")),
                OfTable::Each(inner) => {
                    table.iter().for_each(|(name, value)| self.value(inner, value, &format!("{place}.{name}")));
                }
            },
            _ => {}
        }
    }

    /// A text of a field that says by its name what it is.
    fn named(&mut self, name: &str, text: &str, place: &str) {
        let is_host = HOSTS.contains(&name) && !text.contains("://");
        if is_host && !self.references.allow_host(text) {
            let (message, hint) = forbidden_host(text);
            self.found.push(FieldError::new(place, message).hint(hint));
        } else if !is_host {
            self.text(PLACES.contains(&name).then_some(PathKind::Output), text, place);
        }
    }

    fn text(&mut self, kind: Option<PathKind>, text: &str, place: &str) {
        let refuse = match Address::parse(text) {
            Some(address) if !address.scheme.eq_ignore_ascii_case("file") => {
                forbidden_address(&address, text, self.references)
            }
            _ => {
                let local = text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("file:"));
                let path = if local { Some(text[5..].trim_start_matches("//")) } else { kind.map(|_| text) };
                let is_standard_output = kind == Some(PathKind::Output) && text == "-";
                let path = path.filter(|path| !path.is_empty() && !is_standard_output);
                path.filter(|path| !self.allow_path(path, kind)).map(forbidden_path)
            }
        };
        if let Some((message, hint)) = refuse {
            self.found.push(FieldError::new(place, message).hint(hint));
        }
    }

    fn allow_path(&self, text: &str, kind: Option<PathKind>) -> bool {
        let is_pattern = |part: &str| part.contains(['*', '?', '[']);
        let path = self.folder.join(text);
        if kind != Some(PathKind::Input) || !is_pattern(text) || path.exists() {
            return self.references.allow_path(&path);
        }
        // What it matches is looked at when it is known; nobody learns what lies beside it.
        let parts: Vec<Component<'_>> = Path::new(text).components().collect();
        let plain =
            parts.iter().position(|part| is_pattern(&part.as_os_str().to_string_lossy())).unwrap_or(parts.len());
        let beginning: PathBuf = parts[..plain].iter().collect();
        !parts[plain..].contains(&Component::ParentDir) && self.references.allow_path(&self.folder.join(beginning))
    }
}

/// Why an address may not be named, and what to do about it; `None` where it may.
pub fn forbidden_address(address: &Address<'_>, url: &str, references: &References) -> Option<(String, String)> {
    if !references.allow_host(address.host) {
        return Some(forbidden_host(address.host));
    }
    // Whoever may talk to everybody may also be talked to by everybody.
    let option = listens(address.scheme, url).filter(|_| !references.allow_host(""))?;
    let message = format!("what comes over HTTP may not listen at a port of this machine: `{option}` in the address");
    Some((message, "leave it out, or declare it in a graph file; `--allow-host '*'` allows this too".to_owned()))
}

/// The parameter of an address that makes libav wait for others to connect, or that has it listen to senders that are
/// not its host.
fn listens<'u>(scheme: &str, url: &'u str) -> Option<&'u str> {
    // Of these the query goes to the server.
    const SERVED: [&str; 4] = ["http", "https", "rtsp", "rtsps"];
    const OPTIONS: [&str; 8] =
        ["listen", "mode", "localaddr", "local_addr", "localport", "local_port", "sources", "block"];
    let (_, query) =
        url.split_once('?').filter(|_| !SERVED.iter().any(|served| scheme.eq_ignore_ascii_case(served)))?;
    query.split(['&', '?']).map(|part| part.split('=').next().unwrap_or(part)).find(|name| OPTIONS.contains(name))
}

/// What is said of a host that may not be named, and what to do about it. An address without one is a port of this
/// machine.
fn forbidden_host(host: &str) -> (String, String) {
    if host.is_empty() {
        let message = "what comes over HTTP may not listen at a port of this machine: the address names no host";
        let hint = "name the host that sends, or declare it in a graph file; `--allow-host '*'` allows this too";
        return (message.to_owned(), hint.to_owned());
    }
    let host = host.escape_debug();
    let message = format!("what comes over HTTP may not name the host `{host}`");
    (message, format!("start the engine with `--allow-host {host}`"))
}

fn forbidden_path(path: &str) -> (String, String) {
    let path = path.escape_debug();
    let message = format!("what comes over HTTP may not name the path `{path}`");
    (message, format!("start the engine with `--allow-path {path}`; it allows a file, or all in a folder"))
}

/// What is under this name opens the engine to the internet, by a program.
const TUNNEL: &str = "tunnel";
/// Texts under these names are folders or files where they are no URLs, and those under the others are hosts.
const PLACES: [&str; 5] = ["output", "folder", "dir", "directory", "root"];
const HOSTS: [&str; 3] = ["bucket", "endpoint", "host"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PathKind {
    Input,
    Output,
}

/// Whether a text is a path where it is no URL.
fn path_kind(expected: &FieldType) -> Option<PathKind> {
    match expected {
        FieldType::InputPath | FieldType::Url => Some(PathKind::Input),
        FieldType::OutputPath => Some(PathKind::Output),
        FieldType::OneOrList(inner) => path_kind(inner),
        FieldType::Either(forms) => forms.iter().find_map(path_kind),
        _ => None,
    }
}

fn inner_of_list(expected: &FieldType) -> Option<&FieldType> {
    match expected {
        FieldType::List(inner) | FieldType::OneOrList(inner) => Some(inner),
        FieldType::Either(forms) => forms.iter().find_map(inner_of_list),
        _ => None,
    }
}

enum OfTable<'a> {
    Fields(&'a [Field]),
    Each(&'a FieldType),
}

fn of_table(expected: &FieldType) -> OfTable<'_> {
    match expected {
        FieldType::Table(fields) => OfTable::Fields(fields),
        FieldType::Map(inner) => OfTable::Each(inner),
        FieldType::Either(forms) => {
            let table = forms.iter().find(|form| matches!(form, FieldType::Table(_) | FieldType::Map(_)));
            table.map_or(OfTable::Each(&FieldType::String), of_table)
        }
        _ => OfTable::Each(&FieldType::String),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use operators::config::Presence;
    use operators::reach::Hosts;

    const fn field(name: &'static str, value: FieldType) -> Field {
        Field { name, value, presence: Presence::Optional, summary: "" }
    }

    const STREAM: [Field; 2] = [field("url", FieldType::Url), field("fallback", FieldType::InputPath)];
    const FIELDS: [Field; 7] = [
        field("output", FieldType::String),
        field("bucket", FieldType::String),
        field("path", FieldType::OneOrList(&FieldType::InputPath)),
        field("out", FieldType::OutputPath),
        field("streams", FieldType::Map(&FieldType::Either(&[FieldType::Url, FieldType::Table(&STREAM)]))),
        field("endpoint", FieldType::String),
        field("word", FieldType::String),
    ];

    /// The fields that are refused, where only the folder `in` and the host `good` are allowed.
    fn refused(text: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        std::fs::write(folder.path().join("in/a.mp4"), "x").unwrap();
        let references = References::Only {
            variables: Vec::new(),
            paths: vec![folder.path().join("in")],
            except: Vec::new(),
            hosts: Hosts::Only(vec!["good".parse().unwrap()]),
            tunnel: false,
        };
        let found = forbidden(&FIELDS, &text.parse().unwrap(), folder.path(), &references);
        assert!(found.iter().all(|error| error.hint.as_ref().is_some_and(|hint| hint.contains("--allow-"))));
        assert!(forbidden(&FIELDS, &text.parse().unwrap(), folder.path(), &References::Anything).is_empty());
        found.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn what_is_allowed_passes() {
        for text in [
            "path = 'in/a.mp4'",
            "path = ['in/a.mp4', 'in/*.mp4', 'in/**/b?.mp4']",
            "out = 'in/new/x.jsonl'",
            "out = '-'",
            "streams.a = 'rtsp://good/x'",
            "streams.a = { url = 'RTSP://u:p@GOOD:554/x', fallback = 'in/a.mp4' }",
            "streams.a = 'in/a.sdp'",
            "streams.a = 'http://good/video?mode=mjpeg'",
            "streams.a = 'srt://good:5000?latency=9'",
            "endpoint = 'https://good/'",
            "bucket = 'good'",
            "output = 'in/frames'",
            "output = 's3://good/frames'",
            "word = 'any word, see /etc/passwd'",
        ] {
            assert_eq!(refused(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn an_address_without_a_host_has_a_hint_that_can_be_followed() {
        let (message, hint) = forbidden_host("");
        assert!(message.contains("names no host") && hint.contains("`--allow-host '*'`"), "{message} {hint}");
        assert_eq!(forbidden_host("h").1, "start the engine with `--allow-host h`");
    }

    #[test]
    fn what_is_not_allowed_is_named_by_its_field() {
        for (text, field) in [
            ("path = '/etc/passwd'", "path"),
            ("path = ['in/a.mp4', 'in/../b.mp4']", "path"),
            ("path = '*.mp4'", "path"),
            ("path = 'in/*/../../b.mp4'", "path"),
            ("path = '/etc/*'", "path"),
            ("path = 'http://evil/a.mp4'", "path"),
            ("path = 'FILE:///etc/passwd'", "path"),
            ("out = 'x.jsonl'", "out"),
            ("out = '/dev/stdout'", "out"),
            ("streams.a = 'rtsp://evil/x'", "streams.a"),
            ("streams.a = 'rtsp://good@evil/x'", "streams.a"),
            ("streams.a = 'udp://@:5000'", "streams.a"),
            ("streams.a = 'tcp://good:5000?listen=1'", "streams.a"),
            ("streams.a = 'srt://good:5000?latency=9&mode=listener'", "streams.a"),
            ("streams.a = 'udp://good:5000?localaddr=10.0.0.1'", "streams.a"),
            ("streams.a = 'x.sdp'", "streams.a"),
            ("streams.a = { url = 'rtsp://evil/x' }", "streams.a.url"),
            ("streams.a = { url = 'rtsp://good/x', fallback = 'x.mp4' }", "streams.a.fallback"),
            ("endpoint = 'https://evil/'", "endpoint"),
            ("bucket = 'other'", "bucket"),
            ("output = 'frames'", "output"),
            ("output = 's3://other/frames'", "output"),
            ("word = 'file:/etc/passwd'", "word"),
            ("unknown = { deep = ['http://169.254.169.254/latest'] }", "unknown.deep"),
        ] {
            assert_eq!(refused(text), [field], "{text}");
        }
    }
}
