//! What is secret in the text of a graph file itself, for showing it: credentials in URLs, and strings whose names say
//! that they are secret. Texts of the environment and of files are not in it: there it has references.

use std::ops::Range;

use operators::address::{covered, masked_in_place};

use super::parse::{self, Data, Table};

/// A string under a name that has one of these in it is secret.
const SECRET_NAMES: [&str; 4] = ["pass", "pwd", "secret", "token"];

/// The text with stars where secrets are; every place in it stays where it is.
pub fn shown(text: &str) -> String {
    let mut shown = masked_in_place(text);
    for range in named(text) {
        shown.replace_range(range.clone(), &"*".repeat(range.len()));
    }
    shown
}

/// Where a secret stands that somebody has covered with stars: the text was shown, and not what was written.
pub fn stars(text: &str) -> Option<Range<usize>> {
    let is_covered = |range: &Range<usize>| text[range.clone()].bytes().all(|byte| byte == b'*');
    covered(text).or_else(|| named(text).into_iter().find(is_covered))
}

/// Strings that are secret by their names, without their quotes; those that are references are not.
fn named(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    if let Ok(document) = parse::parse(text) {
        collect(&document, text, &mut found);
    }
    found
}

fn collect(table: &Table, text: &str, found: &mut Vec<Range<usize>>) {
    for (key, value) in &table.entries {
        match &value.data {
            Data::Table(inner) => collect(inner, text, found),
            Data::String(_) => {
                let name = key.name.to_ascii_lowercase();
                let written = text.get(value.span.clone()).unwrap_or_default();
                let quotes = if written.starts_with("\"\"\"") || written.starts_with("'''") { 3 } else { 1 };
                let inner = value.span.start + quotes..value.span.end.saturating_sub(quotes);
                let is_secret = SECRET_NAMES.iter().any(|word| name.contains(word)) && !written.contains("${");
                if is_secret && inner.start < inner.end && text.is_char_boundary(inner.end) {
                    found.push(inner);
                }
            }
            _ => {}
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
}
