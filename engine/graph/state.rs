//! The table `state` of a graph: where it keeps its progress, and what each node is configured as with everything before
//! it, so that another configuration does not take over what this one has stored.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use operators::item::Origin;
use operators::operator::Role;
use operators::progress::{Configuration, FIELDS, Progress, State};

use super::diagnostics::{Code, Diagnostic};
use super::fields::FieldChecker;
use super::identity::Identity;
use super::nodes::Declaration;
use super::parse::{Data, Table};
use super::permission;
use super::references::References;
use super::wiring::Wiring;

/// The name of the table.
const STATE: &str = "state";

/// Fields that say how a node does its work, and not what comes of it, whatever its role.
const MANNERS: [&str; 12] = [
    "retry_for",
    "timeout",
    "uploads",
    "concurrency",
    "token",
    "profile",
    "anonymous",
    "state",
    "if_exists",
    "resume",
    "poll",
    "at_once",
];

/// A graph's `state`, as its file has it.
pub struct Kept {
    /// As it is written.
    dir: String,
    span: Range<usize>,
}

/// Takes the table `state` out of a document, and checks it.
pub fn take(document: &mut Table, checker: &mut FieldChecker<'_>) -> Option<Kept> {
    let position = document.entries.iter().position(|(key, _)| key.name == STATE)?;
    let (key, value) = document.entries.remove(position);
    let Data::Table(mut table) = value.data else {
        let message = format!("`state` is a table, not {}", value.data.described());
        let hint = "write `[state]`, and below it `dir = \"state\"`";
        checker.diagnostics.push(Diagnostic::new(Code::NotATable, key.span, message).hint(hint));
        return None;
    };
    checker.table("`state`", &key.span, &mut table, &FIELDS, &[]);
    let dir = table.get("dir")?;
    match &dir.data {
        // That is said already.
        Data::String(text) if text.is_empty() => None,
        Data::String(text) if text.contains('\0') => {
            let message = "`dir` names no folder";
            let hint = "write it like `dir = \"state\"`";
            checker.diagnostics.push(Diagnostic::new(Code::UnusableValue, dir.span.clone(), message).hint(hint));
            None
        }
        Data::String(text) => Some(Kept { dir: text.clone(), span: dir.span.clone() }),
        _ => None,
    }
}

impl Kept {
    /// What is wrong with naming this folder, for a text that comes over HTTP.
    pub fn forbidden(&self, folder: &Path, references: &References) -> Vec<Diagnostic> {
        let table = toml::Table::from_iter([("dir".to_owned(), self.dir.clone().into())]);
        let mistakes = permission::forbidden(&FIELDS, &table, folder, references).into_iter();
        let told = mistakes.map(|error| {
            Diagnostic::new(Code::ForbiddenReference, self.span.clone(), error.message).maybe_hint(error.hint)
        });
        told.collect()
    }

    /// The folder; relative to `folder` where it is relative.
    pub fn path(&self, folder: &Path) -> PathBuf {
        folder.join(&self.dir)
    }
}

/// What each node may know of the graph's progress, in the order of `declared`.
pub fn progress(
    kept: Option<&Kept>,
    graph: &Arc<str>,
    declared: &[Declaration],
    wiring: &Wiring,
    folder: &Path,
) -> Vec<Option<Progress>> {
    let Some(kept) = kept else { return vec![None; declared.len()] };
    let state = Arc::new(State::new(kept.path(folder)));
    let configurations = configurations(declared, wiring);
    let of_node = |(node, configuration): (&Declaration, Configuration)| {
        let origin = Origin { graph: graph.clone(), node: node.name.as_str().into() };
        Some(Progress::new(state.clone(), origin, configuration))
    };
    declared.iter().zip(configurations).map(of_node).collect()
}

fn configurations(declared: &[Declaration], wiring: &Wiring) -> Vec<Configuration> {
    let mut all = vec![Configuration::default(); declared.len()];
    // What stands behind each source: its sinks, in the order of the file.
    let mut behind: BTreeMap<Arc<str>, Vec<String>> = BTreeMap::new();
    for &index in &wiring.order {
        let node = &declared[index];
        let own = of_node(node);
        let mut from: BTreeMap<Arc<str>, Vec<Arc<str>>> = BTreeMap::new();
        if node.role == Role::Source {
            from.insert(node.name.as_str().into(), Vec::new());
        }
        for link in &wiring.links[index] {
            for (source, before) in &all[link.from].from {
                from.entry(source.clone()).or_default().push(before.clone());
            }
        }
        let chained = |(source, before): (Arc<str>, Vec<Arc<str>>)| {
            let parts = std::iter::once(&*own).chain(before.iter().map(|before| &**before));
            (source, Identity::of_texts(parts).to_string().into())
        };
        let from: BTreeMap<Arc<str>, Arc<str>> = from.into_iter().map(chained).collect();
        if node.role == Role::Sink {
            for (source, configuration) in &from {
                behind.entry(source.clone()).or_default().push(format!("{} {configuration}", node.name));
            }
        }
        all[index] = Configuration { own, from, downstream: String::new() };
    }
    for (node, configuration) in declared.iter().zip(&mut all) {
        let mut sinks = behind.remove(node.name.as_str()).unwrap_or_default();
        // Their order in the file does not count.
        sinks.sort_unstable();
        configuration.downstream = Identity::of_texts(sinks.iter().map(String::as_str)).to_string();
    }
    all
}

/// What a node is, whatever it is called and however it goes about it.
fn of_node(node: &Declaration) -> String {
    let type_name = node.registration.map_or("", |registration| registration.name);
    let mut table = node.table.to_toml();
    table.retain(|name, _| !MANNERS.contains(&name));
    let identity = match node.role {
        Role::Source => {
            table.remove("prefix");
            table.remove("presets");
            Identity::of_source(type_name, &table)
        }
        Role::Operator | Role::Sink => Identity::of_node(type_name, &table),
    };
    identity.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::check::{Surroundings, check};
    use super::super::testing::surroundings;

    fn graph(source: &str, chunk: &str, sink: &str) -> String {
        format!(
            "[state]\ndir = \"state\"\n[sources.clips]\ntype = \"s3\"\nbucket = \"clips\"\n{source}\n\
             [operators.chunks]\ntype = \"chunk\"\ninputs = [\"clips\"]\n{chunk}\n\
             [sinks.archive]\ntype = \"s3\"\ninputs = [\"chunks\"]\nbucket = \"archive\"\nkey = \"{{name}}\"\n{sink}\n"
        )
    }

    /// What the sources's streams run through, as the source is told.
    fn downstream(text: &str) -> String {
        let surroundings = Surroundings { registry: operators::OPERATORS, ..surroundings() };
        let checked = check("test", text.as_bytes(), &[], &surroundings);
        let told: Vec<_> = checked.diagnostics.iter().map(|found| found.message.clone()).collect();
        let graph = checked.graph.unwrap_or_else(|| panic!("{told:?}"));
        let node = graph.nodes.iter().find(|node| &*node.name == "clips").expect("the source");
        format!("{:?}", node.template.context.progress.as_ref().expect("progress"))
    }

    #[test]
    fn what_changes_the_outputs_is_another_configuration_and_what_does_not_is_the_same() {
        let one = downstream(&graph("key = \"a.mp4\"", "every = \"2s\"", ""));
        for same in [
            graph("key = \"b.mp4\"", "every = \"2s\"", ""),
            graph("prefix = \"in/\"\npoll = \"10s\"", "every = \"2s\"", "retry_for = \"3h\"\nuploads = 9"),
            graph("key = \"a.mp4\"\ntimeout = \"9s\"", "every = \"2s\"\non_error = \"stop\"", "if_exists = \"skip\""),
        ] {
            assert_eq!(downstream(&same), one, "{same}");
        }
        for other in [
            graph("key = \"a.mp4\"", "every = \"3s\"", ""),
            graph("key = \"a.mp4\"\ntracks = [0]", "every = \"2s\"", ""),
            graph("key = \"a.mp4\"", "every = \"2s\"", "endpoint = \"http://minio:9000\""),
            graph("key = \"a.mp4\"", "every = \"2s\"", "[sinks.more]\ntype = \"blackhole\"\ninputs = [\"chunks\"]"),
        ] {
            assert_ne!(downstream(&other), one, "{other}");
        }
    }

    #[test]
    fn a_table_that_names_no_folder_is_refused() {
        let surroundings = Surroundings { registry: operators::OPERATORS, ..surroundings() };
        let rest = "[sources.s]\ntype = \"synthetic\"\n[sinks.x]\ntype = \"blackhole\"\ninputs = [\"s\"]\n";
        for (state, code) in [
            ("state = 3\n", "not-a-table"),
            ("[state]\n", "missing-field"),
            ("[state]\ndir = \"\"\n", "wrong-value-type"),
            ("[state]\ndir = \"\\u0000\"\n", "unusable-value"),
            ("[state]\ndir = 3\n", "wrong-value-type"),
            ("[state]\ndir = \"a\"\npath = \"b\"\n", "unknown-field"),
        ] {
            let checked = check("test", format!("{state}{rest}").as_bytes(), &[], &surroundings);
            let codes: Vec<_> = checked.diagnostics.iter().map(|found| found.code.text()).collect();
            assert_eq!(codes, [code], "{state}");
        }
    }
}
