//! What subcommands that read graph files share: the files, `--set`, and how mistakes are shown.

use std::fmt;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use operators::address::masked_in_place;
use operators::inference::model::Catalog;

use super::{FAILURE, SUCCESS, USAGE};
use crate::graph::check::{Checked, Graph, Surroundings};
use crate::graph::diagnostics::{Diagnostic, Severity, position, told};
use crate::graph::parse::LARGEST_FILE;
use crate::graph::substitute::Setting;

/// The format of what a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// `--set name=value`, for every command that reads a graph file.
#[derive(clap::Args)]
pub struct Settings {
    /// Sets a parameter of the graph; the value is TOML, or else text. May be given several times
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = setting)]
    pub settings: Vec<Setting>,
}

fn setting(text: &str) -> Result<Setting, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => {
            Ok(Setting { name: name.trim().to_owned(), value: value.to_owned() })
        }
        _ => Err("write it like name=value".to_owned()),
    }
}

/// A file that was read.
pub struct GraphFile {
    /// As the user wrote it, for messages.
    pub path: PathBuf,
    /// At most one byte more than a graph file may have.
    pub bytes: Vec<u8>,
}

/// A file that could not be read.
#[derive(Debug)]
pub struct Unreadable {
    path: PathBuf,
    why: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "cannot read `{}`: {}", self.path.display().to_string().escape_debug(), self.why)
    }
}

impl GraphFile {
    /// Reads a file, but never more than a graph file may have: it could be endless.
    pub fn read(path: &Path) -> Result<GraphFile, Unreadable> {
        let described = |error: std::io::Error| {
            let why = match error.kind() {
                std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
                std::io::ErrorKind::PermissionDenied => "it may not be read".to_owned(),
                std::io::ErrorKind::IsADirectory => "it is a folder; name the graph files in it".to_owned(),
                _ => error.to_string(),
            };
            Unreadable { path: path.to_owned(), why }
        };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(described)?;
        file.take(LARGEST_FILE as u64 + 1).read_to_end(&mut bytes).map_err(described)?;
        Ok(GraphFile { path: path.to_owned(), bytes })
    }

    /// The name of the graph in it: the file's stem.
    pub fn graph_name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The file's text, as far as it is text, with the credentials of URLs covered; for rendering diagnostics, whose
    /// places lie in valid text.
    pub fn text(&self) -> String {
        masked_in_place(&String::from_utf8_lossy(&self.bytes))
    }

    /// Checks the graph in it.
    pub fn check(&self, settings: &[Setting], surroundings: &Surroundings) -> Checked {
        let surroundings = Surroundings { file: Some(self.path.clone()), ..surroundings.clone() };
        crate::graph::check::check(&self.graph_name(), &self.bytes, settings, &surroundings)
    }

    /// Every diagnostic as text, with an empty line between them.
    pub fn render(&self, diagnostics: &[Diagnostic], colour: bool) -> String {
        let (file, text) = (self.path.display().to_string(), self.text());
        let (told, left_out) = told(diagnostics);
        let mut all: Vec<String> = told.iter().map(|d| d.render(&file, &text, colour)).collect();
        if left_out > 0 {
            all.push(format!("and {left_out} more\n"));
        }
        all.join("\n")
    }
}

impl GraphFile {
    /// Every diagnostic as a line of the log.
    fn log(&self, diagnostics: &[Diagnostic]) {
        let (file, text) = (self.path.display().to_string(), self.text());
        let (told, left_out) = told(diagnostics);
        for diagnostic in told {
            let place = diagnostic.span.as_ref().map(|span| position(&text, span.start));
            let (line, column) = (place.map(|(line, _)| line), place.map(|(_, column)| column));
            let (code, hint, message) = (diagnostic.code.text(), diagnostic.hint.as_deref(), &diagnostic.message);
            match diagnostic.severity() {
                Severity::Error => tracing::error!(code, file, line, column, hint, "{message}"),
                Severity::Warning => tracing::warn!(code, file, line, column, hint, "{message}"),
                Severity::Note => tracing::info!(code, file, line, column, hint, "{message}"),
            }
        }
        if left_out > 0 {
            tracing::error!(file, "and {left_out} more");
        }
    }
}

/// What to print of a graph file that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tell {
    /// Warnings and notes too, also where the graph is sound.
    Everything,
    /// The same, as lines of the log, which has begun.
    Log,
    /// Only why there is no graph.
    Mistakes,
}

/// Reads and checks the graph file of a command that needs a sound one.
///
/// # Errors
/// The exit code, after what is wrong was printed.
pub fn graph(path: &Path, settings: &Settings, surroundings: &Surroundings, tell: Tell) -> Result<Graph, u8> {
    graph_of_file(path, settings, surroundings, tell).map(|(_, graph)| graph)
}

/// As [`graph`], with the file.
///
/// # Errors
/// The exit code, after what is wrong was printed.
pub fn graph_of_file(
    path: &Path,
    settings: &Settings,
    surroundings: &Surroundings,
    tell: Tell,
) -> Result<(GraphFile, Graph), u8> {
    let file = GraphFile::read(path).map_err(|unreadable| {
        match tell {
            Tell::Log => tracing::error!("{unreadable}"),
            Tell::Everything | Tell::Mistakes => print_error(&format!("error: {unreadable}\n")),
        }
        USAGE
    })?;
    let checked = file.check(&settings.settings, surroundings);
    if tell == Tell::Log {
        file.log(&checked.diagnostics);
    } else if checked.graph.is_none() || (tell == Tell::Everything && !checked.diagnostics.is_empty()) {
        print_error(&file.render(&checked.diagnostics, colour(&std::io::stderr())));
    }
    checked.graph.map(|graph| (file, graph)).ok_or(FAILURE)
}

/// The models that the process finds.
pub fn models() -> Catalog {
    Catalog::open(Catalog::search_path())
}

/// Where the process stands: its environment, its folder, the models that it finds.
pub fn surroundings() -> Surroundings {
    Surroundings::of_process(Arc::new(models()))
}

/// As [`surroundings`]; models that are not here yet are fetched.
pub fn fetching_surroundings() -> Surroundings {
    Surroundings::of_process(Arc::new(models().fetching(Box::new(super::fetch::download()))))
}

/// Whether to colour what goes to a stream: on a terminal, unless `NO_COLOR` says otherwise.
pub fn colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether something for standard output could not be written.
static UNWRITTEN: AtomicBool = AtomicBool::new(false);

/// Writes to standard output. A reader that went away (`| head`) is no mistake; what else goes wrong is said once, and
/// [`exit_code`] knows of it.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Err(error) = written
        && error.kind() != std::io::ErrorKind::BrokenPipe
        && !UNWRITTEN.swap(true, Ordering::Relaxed)
    {
        print_error(&format!("error: cannot write to the standard output: {error}\n"));
    }
}

/// The exit code of a command that would exit with `code`: what nobody could write is a failure too.
pub fn exit_code(code: u8) -> u8 {
    if code == SUCCESS && UNWRITTEN.load(Ordering::Relaxed) { FAILURE } else { code }
}

/// Writes to standard error.
pub fn print_error(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
