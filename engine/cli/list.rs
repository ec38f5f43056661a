//! `engine list`: what can be written in a graph file.

use operators::operator::{Registration, Role};
use serde_json::json;

use super::input;
use super::{SUCCESS, USAGE};
use crate::graph::diagnostics::suggestion;
use crate::reference::catalogue::{Catalogue, FieldEntry, TypeEntry};
use crate::reference::{page, schema, text};

/// The format of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum ListFormat {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
    /// The page `docs/reference.md`.
    Markdown,
    /// The schema `docs/graph.schema.json`, for editors.
    JsonSchema,
}

/// Lists every source, operator and sink with its fields, their defaults and an example
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine list
  engine list detect
  engine list file --format json
  engine list --format json-schema > graph.schema.json

Exit status: 0, or 2 where nothing has that name.")]
pub struct Arguments {
    /// Shows one type with everything about it
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: ListFormat,
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> u8 {
    match write(arguments, operators::OPERATORS) {
        Ok(written) => {
            input::print(&written);
            SUCCESS
        }
        Err(why) => {
            input::print_error(&why);
            USAGE
        }
    }
}

fn write(arguments: &Arguments, registry: &[&'static Registration]) -> Result<String, String> {
    let catalogue = Catalogue::new(registry);
    let Some(name) = &arguments.name else {
        return Ok(match arguments.format {
            ListFormat::Text => text::list(&catalogue),
            ListFormat::Json => format!("{:#}\n", json!(catalogue)),
            ListFormat::Markdown => page::page(&catalogue),
            ListFormat::JsonSchema => format!("{:#}\n", schema::schema(registry)),
        });
    };
    let found = text::named(&catalogue, name);
    if found.is_empty() {
        let hint = suggestion(name, text::names(&catalogue), "there are");
        let hint = hint.map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
        let name = name.escape_debug();
        return Err(format!("error: there is no source, operator or sink of type `{name}`\n{hint}"));
    }
    let common = |role: Role| -> &[FieldEntry] {
        match role {
            Role::Source => &catalogue.common.source,
            Role::Operator => &catalogue.common.operator,
            Role::Sink => &catalogue.common.sink,
        }
    };
    let join = |one: &dyn Fn(Role, &TypeEntry) -> String| {
        let all: Vec<String> = found.iter().map(|(role, entry)| one(*role, entry)).collect();
        all.join("\n")
    };
    match arguments.format {
        ListFormat::Text => Ok(join(&|role, entry| text::one(entry, common(role)))),
        ListFormat::Markdown => Ok(join(&|_, entry| page::section(entry))),
        ListFormat::Json => {
            let entries: Vec<&TypeEntry> = found.iter().map(|(_, entry)| *entry).collect();
            Ok(format!("{:#}\n", json!(entries)))
        }
        ListFormat::JsonSchema => {
            let hint = "hint: leave the name out, or use `--format json`\n";
            Err(format!("error: the JSON Schema is that of whole graph files, not of one type\n{hint}"))
        }
    }
}
