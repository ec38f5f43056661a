//! `engine models list`: every model, its file, and whether that is the one that its manifest means.

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use operators::config::format_size;
use operators::inference::model::{Catalog, ModelError};
use serde::Serialize;

use super::super::input::{self, Format};
use super::{code, print_error};

/// Lists every model: its file, its size, and whether the file is the one that its manifest means
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine models list
  engine models list --format json")]
pub struct Arguments {
    /// How to print the list
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Serialize)]
struct Row {
    name: String,
    /// `ok`, `wrong hash`, `missing`, `not pulled` or `broken`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    decode: Option<&'static str>,
    /// Where the ONNX file is.
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<String>,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

pub fn run(arguments: &Arguments) -> u8 {
    let catalog = input::models();
    let rows: Vec<Row> = catalog.names().map(|name| row(&catalog, name)).collect();
    match arguments.format {
        Format::Text if rows.is_empty() => {
            let searched: Vec<String> = catalog.folders().iter().map(|folder| folder.display().to_string()).collect();
            let message = match searched.join(", ") {
                searched if searched.is_empty() => "there is no folder of models".to_owned(),
                searched => format!("there are no models in {searched}"),
            };
            print_error(&message, Some("set ENGINE_MODELS to the folders of your models"));
            return code(true);
        }
        Format::Text => input::print(&table(&rows)),
        Format::Json => match serde_json::to_string_pretty(&rows) {
            Ok(json) => input::print(&format!("{json}\n")),
            Err(error) => {
                print_error(&format!("the list cannot be written as JSON: {error}"), None);
                return code(true);
            }
        },
    }
    code(false)
}

fn row(catalog: &Catalog, name: &str) -> Row {
    let mut row = Row {
        name: name.to_owned(),
        state: "broken",
        decode: None,
        path: None,
        bytes: None,
        summary: None,
        problem: None,
    };
    let found = match catalog.look_up(name) {
        Ok(found) => found,
        Err(error) => return Row { problem: Some(error.to_string()), ..row },
    };
    row.decode = Some(found.manifest.output.name());
    row.summary = found.manifest.summary;
    match found.file {
        Ok(path) => {
            let expected = found.manifest.sha256.to_ascii_lowercase();
            row.bytes = std::fs::metadata(&path).ok().map(|data| data.len());
            row.path = Some(path.display().to_string());
            match catalog.sha256(&path) {
                Ok(actual) if actual == expected => row.state = "ok",
                Ok(actual) => {
                    row.state = "wrong hash";
                    row.problem = Some(format!("its SHA-256 is {actual}, its manifest expects {expected}"));
                }
                Err(error) => row.problem = Some(format!("it cannot be read: {error}")),
            }
        }
        Err(error) => {
            row.state = if matches!(error, ModelError::NotPulled { .. }) { "not pulled" } else { "missing" };
            row.problem = Some(format!("{error}; {}", error.hint()));
        }
    }
    row
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["model", "state", "decode", "size", "file"]);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for row in rows {
        let size = row.bytes.map(format_size).unwrap_or_default();
        let place = row.path.clone().or_else(|| row.problem.clone()).unwrap_or_default();
        table.add_row([&row.name, row.state, row.decode.unwrap_or_default(), &size, &place]);
    }
    format!("{}\n", table.trim_fmt())
}
