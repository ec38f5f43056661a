//! The reference as a page of Markdown: `docs/reference.md`.

use std::fmt::Write as _;

use operators::chaos::fields as disturbances;
use operators::operator::Role;
use operators::progress;

use super::catalogue::{Catalogue, FieldEntry, ROLES, TypeEntry, fields};
use crate::graph::{cases, chaos};

/// What stands above the generated parts. The rules in it are checked by `engine check`, not by this page.
const INTRODUCTION: &str = r#"# Graph file reference

A graph file is TOML with the tables `sources`, `operators` and `sinks`, and beside them `params`, `state`, `test` and `chaos`. Each node is a table
`[sources.NAME]`, `[operators.NAME]` or `[sinks.NAME]`; names are 1 to 128 of `A-Z a-z 0-9 _ . -`, each once in a graph. The graph is called
like its file. [The README](../README.md#a-graph-file) shows a whole one.

This page and the JSON Schema [graph.schema.json](graph.schema.json) are written from the registry of types:

```sh
script/reference                             # writes both anew
engine list detect                           # the same for one type, on the terminal
```

Editors that know TOML schemas (Even Better TOML, Taplo) complete and check graph files with this first line:

```toml
#:schema docs/graph.schema.json
```

## Values

| written as | such as | meaning |
|---|---|---|
| a length of time | `"6s"`, `"100ms"`, `"1h 30m"` | |
| a size | `"64MiB"`, `"1.5GB"`, `65536` | bytes; KiB, MiB, GiB are powers of 1024, kB, MB, GB of 1000 |
| a rate | `2`, `29.97`, `"30000/1001"` | pictures a second, at most 1000 |
| the path of a file | `"videos/*.mp4"` | relative to the folder in which the engine runs; a pattern must match something |
| a URL | `"rtsp://user:password@10.0.0.7/main"` | for `url` also the path of a session description, `"door.sdp"` |

`[params]` has values with names of the user's choice; `--set NAME=VALUE` replaces one. In every value, `${NAME}` stands for a parameter, `${env.NAME}` for an
environment variable, `${env.NAME:-default}` for one that may be missing or empty, and `${file.PATH}` for the text of a file. A value that is only one such
reference takes the type of what it stands for. `$${` is `${` itself. What comes from the environment or a file is secret: no message shows it.
"#;

/// The whole page.
pub fn page(catalogue: &Catalogue) -> String {
    let mut out = INTRODUCTION.to_owned();
    out.push_str("\n## Fields of every node\n\nSources take those that say so.\n\n");
    common_table(&mut out, catalogue);
    for role in ROLES {
        let _ = writeln!(out, "\n## {}", capitalised(role.table()));
        for entry in catalogue.of(role) {
            out.push('\n');
            out.push_str(&section(entry));
        }
    }
    out.push('\n');
    out.push_str(&state());
    out.push('\n');
    out.push_str(&tests());
    out.push('\n');
    out.push_str(&faults());
    out
}

fn state() -> String {
    let mut out = "## State\n\nThe table `[state]` lets a graph remember over a restart what it has stored \
                   ([storage](storage.md#after-a-restart)).\n\n"
        .to_owned();
    field_table(&mut out, &fields(&progress::FIELDS));
    out.push_str("\n```toml\n[state]\ndir = \"state\"\n```\n");
    out
}

/// One type, as a section of the page.
pub fn section(entry: &TypeEntry) -> String {
    let mut out = format!("### `{}` ({})\n\n{}", entry.name, entry.role, entry.summary);
    // Writing to a string does not fail.
    let _ = writeln!(out, " It {}, and runs {}.\n", entry.flow(), entry.runs);
    if entry.fields.is_empty() {
        let _ = writeln!(out, "It has no fields of its own.\n");
    } else {
        field_table(&mut out, &entry.fields);
        out.push('\n');
    }
    let _ = writeln!(out, "```toml\n{}```", entry.example);
    out
}

fn common_table(out: &mut String, catalogue: &Catalogue) {
    out.push_str("| field | sources | takes | default | |\n|---|---|---|---|---|\n");
    let of = |fields: &[FieldEntry], name: &str| fields.iter().any(|field| field.name == name);
    let common = &catalogue.common;
    let of_sources_only = common.source.iter().filter(|field| !of(&common.operator, field.name));
    for field in common.operator.iter().chain(of_sources_only) {
        let answer = match (of(&common.source, field.name), of(&common.operator, field.name)) {
            (true, true) => "yes",
            (true, false) => "only they",
            (false, _) => "no",
        };
        let _ = writeln!(
            out,
            "| `{}` | {answer} | {} | {} | {} |",
            field.name,
            cell(&field.takes),
            default(field),
            cell(field.summary)
        );
    }
}

fn field_table(out: &mut String, fields: &[FieldEntry]) {
    out.push_str("| field | takes | default | |\n|---|---|---|---|\n");
    for field in fields {
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} |",
            field.name,
            cell(&field.takes),
            default(field),
            cell(field.summary)
        );
    }
}

fn tests() -> String {
    let mut out = "## Tests\n\n`engine test FILE` runs the tables `[[test]]` of a graph file. A test gives each source that its node depends on an input, runs \
                   the graph with these, with nothing dropped and without its sinks, and compares the records of one node with what is \
                   expected of them. It fails as well where a stream fails or a picture is lost. \
                   It is skipped where an environment variable that an input names is not set, or the file of a model is missing.\n\n"
        .to_owned();
    field_table(&mut out, &fields(&cases::FIELDS));
    out.push_str(&format!("\n```toml\n{}```\n", cases::EXAMPLE));
    out
}

fn faults() -> String {
    let mut out = "## Chaos\n\nThe table `[chaos]` lets nodes of a graph fail on purpose, for trying what depends on them. Only `engine run`, \
                   `engine check` and `engine plan` take a graph that has one, and only with `--chaos`; `engine test` takes it without the table, and \
                   `engine bench` does not. [chaos.md](chaos.md) says what becomes of items then.\n\n"
        .to_owned();
    field_table(&mut out, &fields(&chaos::FIELDS));
    for role in ROLES {
        let article = if role == Role::Operator { "an" } else { "a" };
        let _ = writeln!(out, "\n`[chaos.nodes.NAME]` of {article} {}:\n", role.name());
        field_table(&mut out, &fields(disturbances(role)));
    }
    let _ = write!(out, "\n```toml\n{}```\n", chaos::EXAMPLE);
    out
}

fn default(field: &FieldEntry) -> String {
    match (field.required, field.default) {
        (true, _) => "required".to_owned(),
        (false, Some(default)) => format!("`{default}`"),
        (false, None) => String::new(),
    }
}

/// Text that a cell of a table can hold.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + letters.as_str())
}
