//! Where secret values go on from the values themselves: into the paths that a secret glob matches, and into the ids of
//! streams.

use std::path::{Component, Path, PathBuf};

use operators::address::Address;
use operators::config::FieldType;
use operators::operator::{Built, Role};

use super::diagnostics::{Code, Diagnostic};
use super::nodes::Declaration;
use super::parse::{Data, Value};
use super::substitute::Secrets;

/// What a secret glob matches does not contain its text, but tells as much: every path that it expands to is secret as
/// well, and the folder that it lies in.
pub fn cover_expansions(declared: &[Declaration], folder: &Path, secrets: &mut Secrets) {
    /// Far more files than one process can play; a glob over a whole disk must not fill the memory.
    const MOST: usize = 100_000;
    for node in declared.iter().filter(|node| node.role == Role::Source) {
        for value in secret_paths(node) {
            let Data::String(text) = &value.data else { continue };
            if !text.contains(['*', '?', '[']) {
                continue;
            }
            let pattern = match Path::new(text).is_absolute() || folder.as_os_str().is_empty() {
                true => text.clone(),
                false => format!("{}/{text}", glob::Pattern::escape(&folder.to_string_lossy())),
            };
            let Ok(matches) = glob::glob(&pattern) else { continue };
            for path in matches.filter_map(Result::ok).take(MOST) {
                let plain: PathBuf = path.components().filter(|part| *part != Component::CurDir).collect();
                let whole = path.canonicalize().unwrap_or_default();
                for path in [&plain, &whole] {
                    secrets.add(&path.to_string_lossy());
                    // One name alone (`videos`, `/`) is too common a word to cover everywhere.
                    if let Some(parent) = path.parent().filter(|parent| parent.components().count() > 2) {
                        secrets.add(&parent.to_string_lossy());
                    }
                }
            }
        }
    }
}

/// Ids stand in every record, in addresses and in the log, where nothing can cover them.
pub fn report_names(declared: &[Declaration], built: &[Option<Built>], secrets: &Secrets, found: &mut Vec<Diagnostic>) {
    for (node, built) in declared.iter().zip(built) {
        let Some(Built::Source(source)) = built else { continue };
        let streams = source.streams();
        let mut values = Vec::new();
        node.table.entries.iter().for_each(|(_, value)| collect_secret(value, &mut values));
        // The name of a file, where that is (a part of) a secret, is what the stream is called.
        let from_path = secret_paths(node).into_iter().find(|value| match &value.data {
            Data::String(text) => {
                let named_otherwise = node.table.get("streams").is_some();
                let name = Path::new(text).file_name().unwrap_or_default().to_string_lossy();
                !named_otherwise && !name.is_empty() && secrets.overlap(&name)
            }
            _ => false,
        });
        // So is the host of a URL.
        let from_url = || {
            node.table.get("url").filter(|value| match &value.data {
                Data::String(url) => value.secret && Address::parse(url).is_some_and(|url| secrets.overlap(url.host)),
                _ => false,
            })
        };
        let itself = || values.first().copied().filter(|_| streams.iter().any(|s| secrets.redact(&s.id) != *s.id));
        let Some(value) = from_path.or_else(from_url).or_else(itself) else { continue };
        let message = format!("streams of `{}` are called after a secret value, and ids are not secret", node.path());
        let hint = "records, addresses and the log show ids: give each stream a name, `streams.NAME = …`";
        found.push(Diagnostic::new(Code::SecretName, value.span.clone(), message).hint(hint));
    }
}

/// The secret values of a node that are paths of files which it reads.
fn secret_paths(node: &Declaration) -> Vec<&Value> {
    let fields = node.registration.map_or(&[][..], |registration| registration.fields);
    let mut values = Vec::new();
    for field in fields.iter().filter(|field| takes_path(&field.value)) {
        if let Some(value) = node.table.get(field.name) {
            collect_secret(value, &mut values);
        }
    }
    values
}

fn takes_path(field: &FieldType) -> bool {
    match field {
        FieldType::InputPath => true,
        FieldType::List(inner) | FieldType::OneOrList(inner) | FieldType::Map(inner) => takes_path(inner),
        FieldType::Either(forms) => forms.iter().any(takes_path),
        _ => false,
    }
}

fn collect_secret<'a>(value: &'a Value, into: &mut Vec<&'a Value>) {
    match &value.data {
        Data::Array(values) => values.iter().for_each(|value| collect_secret(value, into)),
        Data::Table(table) => table.entries.iter().for_each(|(_, value)| collect_secret(value, into)),
        _ if value.secret => into.push(value),
        _ => {}
    }
}
