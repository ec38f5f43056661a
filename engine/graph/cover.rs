//! What is secret in the text of a graph file itself, for showing it: credentials in URLs, and values whose names say
//! that they are secret, in comments too. Texts of the environment and of files are not in it: there it has references.

use std::ops::Range;

use operators::address::{covered, masked, masked_in_place};

use super::parse::{self, Data, Table, Value};
use super::places::Places;

/// A value under a name that has one of these in it is secret.
const SECRET_NAMES: [&str; 5] = ["pass", "pwd", "secret", "token", "credential"];
/// A whole text of stars that is as long as this was a text with credentials, and no pattern for files.
const SHORTEST_COVERED: usize = 12;

/// The text with stars where secrets are; every place in it stays where it is, and what was TOML still is.
pub fn shown(text: &str) -> String {
    let mut shown = masked_in_place(text);
    for Secret { place, is_bare } in secrets(text) {
        let stars = match place.len() {
            length if !is_bare => "*".repeat(length),
            // A number becomes a text as long as it was.
            length => format!("\"{}\"", "*".repeat(length.saturating_sub(2))),
        };
        shown.replace_range(place, &stars);
    }
    shown
}

/// Where a secret stands that somebody has covered with stars: the text was shown, and not what was written.
pub fn stars(text: &str) -> Option<Range<usize>> {
    covered(text).or_else(|| {
        let document = parse::parse(text).ok()?;
        let mut strings = Vec::new();
        let is_covered = |place: &Range<usize>| text[place.clone()].bytes().all(|byte| byte == b'*');
        visit(&document, false, &mut |value, is_secret| {
            strings.extend(inner(value, text).filter(|place| is_secret || place.len() >= SHORTEST_COVERED));
        });
        strings.into_iter().find(is_covered)
    })
}

/// A place to be covered.
struct Secret {
    place: Range<usize>,
    /// It is no text in quotes.
    is_bare: bool,
}

fn secrets(text: &str) -> Vec<Secret> {
    let Ok(document) = parse::parse(text) else { return Vec::new() };
    let mut found = Vec::new();
    let mut strings = Vec::new();
    visit(&document, false, &mut |value, is_secret| {
        let written = text.get(value.span.clone()).unwrap_or_default();
        match &value.data {
            Data::String(content) => {
                strings.push(value.span.clone());
                // Only what is written plainly was seen to have credentials, and can be covered in its parts.
                let is_escaped = written.contains('\\') && masked(content) != *content;
                if is_escaped || (is_secret && !written.contains("${")) {
                    found.extend(inner(value, text).map(|place| Secret { place, is_bare: false }));
                }
            }
            // A date or a number; two digits are no secret.
            Data::Integer(_) | Data::Float(_) | Data::Datetime(_) if is_secret && value.span.len() > 2 => {
                found.push(Secret { place: value.span.clone(), is_bare: true });
            }
            _ => {}
        }
    });
    let mut keys = Vec::new();
    collect_keys(&document, &mut keys);
    comments(text, &Places::of(strings.iter().chain(&keys)), &mut found);
    found
}

/// Looks at every value that is neither a table nor a list; whether a name above it says that it is secret comes with it.
fn visit(table: &Table, is_secret: bool, look: &mut impl FnMut(&Value, bool)) {
    for (key, value) in &table.entries {
        let is_secret = is_secret || names_secret(&key.name);
        // As many as that are allowed, and not one that is secret.
        let is_count = key.name.to_ascii_lowercase().ends_with("tokens") && matches!(value.data, Data::Integer(_));
        visit_value(value, is_secret && !is_count, look);
    }
}

fn visit_value(value: &Value, is_secret: bool, look: &mut impl FnMut(&Value, bool)) {
    match &value.data {
        Data::Table(table) => visit(table, is_secret, look),
        Data::Array(values) => values.iter().for_each(|value| visit_value(value, is_secret, look)),
        _ => look(value, is_secret),
    }
}

fn collect_keys(table: &Table, keys: &mut Vec<Range<usize>>) {
    for (key, value) in &table.entries {
        keys.push(key.span.clone());
        collect_keys_of(value, keys);
    }
}

fn collect_keys_of(value: &Value, keys: &mut Vec<Range<usize>>) {
    match &value.data {
        Data::Table(table) => collect_keys(table, keys),
        Data::Array(values) => values.iter().for_each(|value| collect_keys_of(value, keys)),
        _ => {}
    }
}

fn names_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // The `key` of an object in a bucket is its name; an `api_key` is another thing. Nor is an author a secret.
    let is_key = ["key", "keys"].iter().any(|word| name.len() > word.len() && name.ends_with(word));
    let is_auth = name.contains("auth") && (!name.contains("author") || name.contains("authori"));
    is_key || is_auth || SECRET_NAMES.iter().any(|word| name.contains(word))
}

/// What stands between the quotes of a text, where that is something.
fn inner(value: &Value, text: &str) -> Option<Range<usize>> {
    let Data::String(_) = &value.data else { return None };
    let written = text.get(value.span.clone()).unwrap_or_default();
    let quotes = if written.starts_with("\"\"\"") || written.starts_with("'''") { 3 } else { 1 };
    let inner = value.span.start + quotes..value.span.end.saturating_sub(quotes);
    (inner.start < inner.end && text.get(inner.clone()).is_some()).then_some(inner)
}

/// Settings that somebody has commented out are read as easily as others.
fn comments(text: &str, strings: &Places, found: &mut Vec<Secret>) {
    let mut behind = 0;
    for (at, _) in text.match_indices('#') {
        if at < behind || strings.any_around(&(at..at + 1)) {
            continue;
        }
        let end = text[at..].find(['\n', '\r']).map_or(text.len(), |length| at + length);
        behind = end;
        let mut from = at + 1;
        while let Some(sign) = text[from..end].find(['=', ':']).map(|length| from + length) {
            let name = text[from..sign].trim_end().trim_end_matches(['"', '\'']);
            let name = name.rsplit(|c: char| !(c.is_alphanumeric() || "_-.".contains(c))).next().unwrap_or_default();
            from = sign + 1;
            let value = text[from..end].trim();
            let is_reference = value.trim_matches(['"', '\'']).starts_with("${") && value.matches("${").count() == 1;
            if name.split('.').any(names_secret) && !value.is_empty() && !is_reference {
                let start = from + text[from..end].len() - text[from..end].trim_start().len();
                found.push(Secret { place: start..start + value.len(), is_bare: false });
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "[params]\ncamera_password = \"hunter2\"\nAPI_TOKEN = 'abc'\nempty_secret = \"\"\n\
                        site_pass = \"${env.PASS}\"\nthreshold = 0.5\n[sources.a]\ntype = \"rtsp\"\n\
                        streams.door = { url = \"rtsp://admin:12345@h/x\" }\n";

    #[test]
    fn secrets_are_covered_in_their_places() {
        let shown = shown(TEXT);
        assert_eq!(shown.len(), TEXT.len());
        for secret in ["hunter2", "abc", "admin", "12345"] {
            assert!(!shown.contains(secret), "{secret} is in {shown}");
        }
        assert!(shown.contains("camera_password = \"*******\"\nAPI_TOKEN = '***'\nempty_secret = \"\"\n"), "{shown}");
        assert!(shown.contains("${env.PASS}") && shown.contains("threshold = 0.5"), "{shown}");
    }

    #[test]
    fn stars_are_found_where_secrets_were() {
        assert_eq!(stars(TEXT), None);
        assert!(stars(&shown(TEXT)).is_some());
        let text = "[params]\npassword = \"***\"\n";
        assert_eq!(stars(text).map(|range| &text[range]), Some("***"));
        assert_eq!(stars("[params]\nlabel = \"***\"\n"), None);
    }

    #[test]
    fn whatever_stands_below_a_secret_name_is_covered() {
        let text = "[params]\ntokens = [\"PLANT1\", 'PLANT2']\nnest.secret.x = \"PLANT3\"\nnum_password = 987654\n\
                    api_key = 'PLANT4'\nAuth = { header = \"\"\"PLANT5\"\"\", since = 1979-05-27 }\ncredentials = \"PLANT6\"\n\
                    [sources.a]\ntype = \"rtsp\"\nurl = \"rtsp\\u003a//admin:PLANT7@h/x\"\nauthor = \"Jules\"\n\
                    keyframes_only = true\nmax_tokens = 512\n[sinks.b]\nkey = \"{stream}/{seq}\"\n";
        let shown = shown(text);
        assert_eq!(shown.len(), text.len());
        assert!(!shown.contains("PLANT") && !shown.contains("987654") && !shown.contains("1979"), "{shown}");
        for plain in ["Jules", "keyframes_only = true", "max_tokens = 512", "key = \"{stream}/{seq}\""] {
            assert!(shown.contains(plain), "{shown}");
        }
        let table: toml::Table = shown.parse().unwrap();
        assert_eq!(table["params"]["num_password"].as_str(), Some("****"));
        assert!(stars(&shown).is_some());
        let escaped = "[sources.a]\nurl = \"rtsp\\u003a//admin:PLANT@h/x\"\n";
        assert!(stars(escaped).is_none() && stars(&super::shown(escaped)).is_some());
    }

    #[test]
    fn what_is_commented_out_is_covered_too() {
        let text = "[params] # site_password = \"PLANT1\"\n#password: PLANT2 PLANT3\n## a.token = ['PLANT4']\n\
                    label = \"# password = shown\" # the pass = PLANT5\n# pwd = \"${env.PWD}\"\n# fps = 5\n\
                    \"odd#secret\" = 7\n";
        let shown = shown(text);
        assert_eq!(shown.len(), text.len());
        assert!(!shown.contains("PLANT"), "{shown}");
        for plain in ["# password = shown", "${env.PWD}", "# fps = 5", "\"odd#secret\" = 7"] {
            assert!(shown.contains(plain), "{shown}");
        }
    }
}
