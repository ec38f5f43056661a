//! `engine check`: says everything that is wrong with graph files.

use std::path::PathBuf;

use serde_json::json;

use super::input::{self, Format, GraphFile, Settings};
use super::{FAILURE, SUCCESS, USAGE};
use crate::graph::check::Surroundings;
use crate::graph::diagnostics::{Severity, listed_json};

/// Checks graph files and says everything that is wrong with them, without running anything
///
/// Exits with 0 where no file has mistakes (warnings and notes are none), with 1 where some has, and with 2 where a
/// file cannot be read.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine check graphs/quickstart.toml
  engine check graphs/*.toml --format json
  engine check door.toml --set threshold=0.7 --set camera=\"front door\"")]
pub struct Arguments {
    /// The graph files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Take a [chaos] as `engine run --chaos` does
    #[arg(long)]
    chaos: bool,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Default)]
struct Totals {
    files: usize,
    errors: usize,
    warnings: usize,
    notes: usize,
    unreadable: usize,
}

impl Totals {
    fn exit_code(&self) -> u8 {
        match (self.unreadable, self.errors) {
            (0, 0) => SUCCESS,
            (0, _) => FAILURE,
            _ => USAGE,
        }
    }

    fn summary(&self) -> String {
        let plural = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let mut parts = vec![plural(self.errors, "error"), plural(self.warnings, "warning")];
        if self.notes > 0 {
            parts.push(plural(self.notes, "note"));
        }
        if self.unreadable > 0 {
            parts.push(format!("{} could not be read", self.unreadable));
        }
        format!("checked {}: {}\n", plural(self.files, "file"), parts.join(", "))
    }
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> u8 {
    let surroundings = Surroundings { chaos: arguments.chaos, ..input::surroundings() };
    let colour = input::colour(&std::io::stderr());
    let mut totals = Totals::default();
    let mut listed = Vec::new();
    for path in &arguments.files {
        let file = match GraphFile::read(path) {
            Ok(file) => file,
            Err(unreadable) => {
                totals.unreadable += 1;
                match arguments.format {
                    Format::Text => input::print_error(&format!("error: {unreadable}\n\n")),
                    Format::Json => listed.push(json!({ "file": path, "unreadable": unreadable.to_string() })),
                }
                continue;
            }
        };
        let checked = file.check(&arguments.settings.settings, &surroundings);
        totals.files += 1;
        totals.errors += checked.count(Severity::Error);
        totals.warnings += checked.count(Severity::Warning);
        totals.notes += checked.count(Severity::Note);
        match arguments.format {
            Format::Text if checked.diagnostics.is_empty() => {}
            Format::Text => input::print_error(&format!("{}\n", file.render(&checked.diagnostics, colour))),
            Format::Json => {
                let text = file.text();
                listed.push(listed_json(&path.to_string_lossy(), &text, &checked.diagnostics));
            }
        }
    }
    match arguments.format {
        Format::Text => input::print_error(&totals.summary()),
        Format::Json => {
            let all = json!({
                "files": listed,
                "errors": totals.errors,
                "warnings": totals.warnings,
                "notes": totals.notes,
            });
            input::print(&format!("{all:#}\n"));
        }
    }
    totals.exit_code()
}
