//! `engine models inspect`: what goes in and out of an ONNX file, and a manifest to start from.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use operators::config::format_size;
use operators::error::StartError;
use operators::inference::inspect::{self, Inspection, Port};
use operators::inference::model::Catalog;

use super::super::input::{self, Format};
use super::{code, print_error};

/// Shows what goes in and out of an ONNX file, and a manifest to start from
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine models inspect yolov8n.onnx
  engine models inspect yolov8n.onnx --manifest > models/yolov8n.toml
  engine models inspect yolox_nano --format json")]
pub struct Arguments {
    /// An ONNX file, or the name of a model that has a manifest
    #[arg(value_name = "FILE")]
    file: String,
    /// Print the manifest alone
    #[arg(long, conflicts_with = "format")]
    manifest: bool,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub fn run(arguments: &Arguments) -> u8 {
    match inspected(arguments) {
        Ok(text) => {
            input::print(&text);
            code(false)
        }
        Err(error) => {
            print_error(&error.message, error.hint.as_deref());
            code(true)
        }
    }
}

fn inspected(arguments: &Arguments) -> Result<String, StartError> {
    let catalog = input::models();
    let path = find(&catalog, &arguments.file)?;
    let unreadable = |error: std::io::Error| StartError::new(format!("cannot read {}: {error}", path.display()));
    let bytes = std::fs::metadata(&path).map_err(unreadable)?.len();
    let sha256 = catalog.sha256(&path).map_err(unreadable)?;
    let inspection = inspect::inspect(&path)?;
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let manifest = inspect::manifest(&inspection, &file, &sha256);
    if arguments.manifest {
        return manifest.ok_or_else(|| {
            StartError::new(format!("no manifest can be made for {}: it takes no pictures", path.display())).hint(
                "`classify` and `detect` need one input with three channels; leave `--manifest` out to see what it takes",
            )
        });
    }
    match arguments.format {
        Format::Text => Ok(text(&path, bytes, &sha256, &inspection, manifest.as_deref())),
        Format::Json => {
            let json = serde_json::json!({
                "path": path,
                "bytes": bytes,
                "sha256": sha256,
                "model": inspection,
                "manifest": manifest,
            });
            Ok(format!("{json:#}\n"))
        }
    }
}

/// A file, or the file of a model.
fn find(catalog: &Catalog, text: &str) -> Result<PathBuf, StartError> {
    let path = Path::new(text);
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let hinted = |message: String, hint: String| StartError { message, hint: Some(hint) };
    if text.contains(['/', '.']) {
        return Err(hinted(format!("there is no file {text}"), "name an ONNX file, or a model".to_owned()));
    }
    catalog.look_up(text).and_then(|found| found.file).map_err(|error| hinted(error.to_string(), error.hint()))
}

fn text(path: &Path, bytes: u64, sha256: &str, inspection: &Inspection, manifest: Option<&str>) -> String {
    let mut text = format!("{}: {}\nsha256 {sha256}\n", path.display(), format_size(bytes));
    if let Some(producer) = &inspection.producer {
        let _ = writeln!(text, "made by {producer}");
    }
    if let Some(opset) = inspection.opset {
        let _ = writeln!(text, "opset {opset}");
    }
    let mut ports = |what: &str, ports: &[Port]| {
        for port in ports {
            let _ = writeln!(text, "{what} `{}`: {}", port.name, port.described());
        }
    };
    ports("input", &inspection.inputs);
    ports("output", &inspection.outputs);
    match manifest {
        Some(manifest) => {
            let _ = write!(text, "\nA manifest to start from:\n\n{manifest}");
        }
        None => text.push_str("\n`classify` and `detect` cannot use it: they need one input with three channels.\n"),
    }
    text
}
