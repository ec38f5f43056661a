//! `engine test`: runs the tests that stand in graph files.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use operators::clock::{Clock, SystemClock};
use operators::item::Record;
use serde::Serialize;
use serde_json::{Value, json};

use super::input::{self, Format, GraphFile, Settings};
use super::live::Terminal;
use super::logging::{self, LogFormat};
use super::plan::Threads;
use super::results::summarise;
use super::run::failed;
use super::{FAILURE, SUCCESS, USAGE};
use crate::graph::cases::Case;
use crate::graph::check;
use crate::graph::diagnostics::{Diagnostic, listed_json, told_json};
use crate::testing::compare::Difference;
use crate::testing::run::{self, Bench, Tested, Verdict};

/// Runs the tests of graph files: the tables `[[test]]`
///
/// A test runs its graph with inputs of its own in the place of the sources, and without the graph's sinks. It compares
/// the records of one node with what is expected of them, and shows what differs.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  engine test graphs/quickstart.toml
  engine test graphs --filter person
  engine test door.toml --format json

Exit status: 0 when no test failed; 1 when one did, when a graph or a test has mistakes,
or when no test ran; 2 for a file that cannot be read.")]
pub struct Arguments {
    /// Graph files, and folders whose graph files are tested
    #[arg(required = true, value_name = "FILE|FOLDER")]
    paths: Vec<PathBuf>,
    /// Runs only tests that have this text in `FILE: NAME`
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Fails tests that cannot run here because a variable is not set or a model's file is missing
    #[arg(long, env = "ENGINE_REQUIRE_MATERIAL", hide_env_values = true, value_parser = clap::builder::FalseyValueParser::new())]
    no_skip: bool,
    /// How to print the results
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Writes a log of this level, or of levels by module, to the standard error
    #[arg(long, value_name = "LEVEL")]
    log: Option<String>,
    #[command(flatten)]
    threads: Threads,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Default)]
struct Totals {
    passed: usize,
    failed: usize,
    skipped: usize,
    /// Files whose tests cannot be told.
    mistaken: usize,
    unreadable: usize,
}

impl Totals {
    fn exit_code(&self) -> u8 {
        match self {
            Totals { unreadable: 1.., .. } => USAGE,
            Totals { failed: 0, mistaken: 0, passed: 1.., .. } => SUCCESS,
            // Nothing failed, but what could run here was left out for a reason that is told.
            Totals { failed: 0, mistaken: 0, skipped: 1.., .. } => SUCCESS,
            _ => FAILURE,
        }
    }

    fn summary(&self) -> String {
        let count = self.passed + self.failed + self.skipped;
        let mut text = match count {
            0 => "no test ran".to_owned(),
            1 => "1 test".to_owned(),
            _ => format!("{count} tests"),
        };
        if count > 0 {
            // Writing to a string does not fail.
            let _ = write!(text, ": {} passed", self.passed);
        }
        let files = |number: usize| if number == 1 { "1 file".to_owned() } else { format!("{number} files") };
        for (number, what) in [
            (self.failed, format!("{} failed", self.failed)),
            (self.skipped, format!("{} skipped", self.skipped)),
            (self.mistaken, format!("{} with mistakes", files(self.mistaken))),
            (self.unreadable, format!("{} that cannot be read", files(self.unreadable))),
        ] {
            if number > 0 {
                let _ = write!(text, ", {what}");
            }
        }
        text.push('\n');
        text
    }
}

/// A test of `--format json`.
#[derive(Serialize)]
struct JsonTest<'a> {
    name: &'a str,
    node: &'a str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    seconds: f64,
    records: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    differences: Vec<Value>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    diagnostics: Vec<Value>,
}

/// Does it, and returns the exit code.
pub fn run(arguments: &Arguments) -> u8 {
    let terminal = Terminal::new(arguments.format == Format::Text);
    if let Some(level) = &arguments.log
        && let Err(error) = logging::start(LogFormat::Text, Some(level), &terminal)
    {
        return failed(&error);
    }
    let mut session = Session {
        arguments,
        clock: Arc::new(SystemClock),
        progress: Progress::new(&terminal),
        totals: Totals::default(),
        listed: Vec::new(),
    };
    for path in graph_files(&arguments.paths) {
        match path {
            Ok(path) => session.file(&path),
            Err(why) => session.unreadable(&why),
        }
    }
    session.finish()
}

/// The files to test: those that were named, and those of the folders that were named, sorted.
fn graph_files(paths: &[PathBuf]) -> Vec<Result<PathBuf, String>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(Ok(path.clone()));
            continue;
        }
        let mut found = Vec::new();
        match walk(path, &mut found) {
            Ok(()) if found.is_empty() => {
                files.push(Err(format!("there is no graph file (*.toml) in the folder `{}`", path.display())));
            }
            Ok(()) => {
                found.sort();
                files.extend(found.into_iter().map(Ok));
            }
            Err(error) => files.push(Err(format!("cannot read the folder `{}`: {error}", path.display()))),
        }
    }
    files
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        // A link to a folder may lead back to where it lies.
        if entry.file_type()?.is_dir() {
            walk(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
    Ok(())
}

/// One call of `engine test`.
struct Session<'a> {
    arguments: &'a Arguments,
    clock: Arc<dyn Clock>,
    progress: Progress,
    totals: Totals,
    /// The files of `--format json`.
    listed: Vec<Value>,
}

impl Session<'_> {
    fn unreadable(&mut self, why: &str) {
        self.totals.unreadable += 1;
        match self.arguments.format {
            Format::Text => self.progress.print_error(&format!("error: {why}\n")),
            Format::Json => self.listed.push(json!({ "unreadable": why })),
        }
    }

    fn file(&mut self, path: &Path) {
        let file = match GraphFile::read(path) {
            Ok(file) => file,
            Err(unreadable) => return self.unreadable(&unreadable.to_string()),
        };
        let surroundings = check::Surroundings { file: Some(path.to_owned()), ..input::surroundings() };
        let cases = match check::tests(&file.bytes, &surroundings) {
            Ok(cases) => cases,
            Err(mistakes) => return self.mistaken(&file, &mistakes),
        };
        let bench = Bench {
            settings: &self.arguments.settings.settings,
            surroundings: &surroundings,
            options: self.arguments.threads.options(),
            clock: self.clock.clone(),
        };
        let mut tests = Vec::new();
        for case in cases {
            let title = format!("{}: {}", path.display(), case.name);
            if self.arguments.filter.as_ref().is_some_and(|filter| !title.contains(filter.as_str())) {
                continue;
            }
            self.progress.start(&title);
            let start = self.clock.now();
            let mut tested = run::run(&file.graph_name(), &file.bytes, &case, &bench);
            let time = self.clock.now().saturating_duration_since(start);
            if self.arguments.no_skip
                && let Verdict::Skipped(why) = tested.verdict
            {
                tested.verdict = Verdict::Failed(vec![Difference::new("skipped", "the test runs", why)]);
            }
            self.count(&tested.verdict);
            match self.arguments.format {
                Format::Text => self.tell(&file, &title, &tested, time),
                Format::Json => tests.push(json_test(&file, &case, &tested, time)),
            }
        }
        if self.arguments.format == Format::Json {
            self.listed.push(json!({ "file": path, "tests": tests }));
        }
    }

    fn mistaken(&mut self, file: &GraphFile, mistakes: &[Diagnostic]) {
        self.totals.mistaken += 1;
        match self.arguments.format {
            Format::Text => {
                let colour = input::colour(&std::io::stderr());
                self.progress.print_error(&format!("{}\n", file.render(mistakes, colour)));
            }
            Format::Json => {
                let text = file.text();
                self.listed.push(listed_json(&file.path.to_string_lossy(), &text, mistakes));
            }
        }
    }

    fn count(&mut self, verdict: &Verdict) {
        *match verdict {
            Verdict::Passed => &mut self.totals.passed,
            Verdict::Skipped(_) => &mut self.totals.skipped,
            Verdict::Failed(_) | Verdict::Mistaken(_) => &mut self.totals.failed,
        } += 1;
    }

    fn tell(&self, file: &GraphFile, title: &str, tested: &Tested, time: Duration) {
        match &tested.verdict {
            // In a pipe, only what somebody must look at.
            Verdict::Passed if !self.progress.is_live() => {}
            Verdict::Passed => {
                let records = tested.records;
                self.progress.print(&format!("ok       {title} ({records} records, {:.1} s)\n", time.as_secs_f64()));
            }
            Verdict::Skipped(why) => self.progress.print(&format!("skipped  {title}: {why}\n")),
            Verdict::Failed(differences) => {
                let mut text = format!("FAILED   {title}\n");
                differences.iter().for_each(|difference| write_difference(&mut text, difference));
                self.progress.print(&text);
            }
            Verdict::Mistaken(mistakes) => {
                let colour = input::colour(&std::io::stdout());
                self.progress.print(&format!("FAILED   {title}\n{}\n", file.render(mistakes, colour)));
            }
        }
    }

    /// What to do where there was nothing to run.
    fn hint(&self) -> Option<String> {
        let Totals { passed: 0, failed: 0, skipped: 0, mistaken: 0, unreadable: 0 } = self.totals else {
            return None;
        };
        Some(match &self.arguments.filter {
            Some(filter) => format!("hint: no test has `{}` in `FILE: NAME`\n", filter.escape_debug()),
            None => "hint: add a table `[[test]]` with `name`, `input`, `node` and what is expected\n".to_owned(),
        })
    }

    fn finish(self) -> u8 {
        self.progress.end();
        match self.arguments.format {
            Format::Text => {
                input::print(&self.totals.summary());
                if let Some(hint) = self.hint() {
                    input::print_error(&hint);
                }
            }
            Format::Json => {
                let all = json!({
                    "files": self.listed,
                    "passed": self.totals.passed,
                    "failed": self.totals.failed,
                    "skipped": self.totals.skipped,
                    "mistaken": self.totals.mistaken,
                    "unreadable": self.totals.unreadable,
                });
                input::print(&format!("{all:#}\n"));
            }
        }
        self.totals.exit_code()
    }
}

fn write_difference(text: &mut String, difference: &Difference) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "  {}", difference.what);
    let _ = writeln!(text, "    expected  {}", difference.expected);
    let _ = writeln!(text, "    got       {}", difference.got);
    for record in &difference.records {
        let _ = writeln!(text, "    record    {}", numbered(record));
    }
}

/// A record in a line, with its number in its stream.
fn numbered(record: &Record) -> String {
    match record.seq {
        Some(seq) => format!("#{seq} at {}", summarise(record)),
        None => summarise(record),
    }
}

fn json_test(file: &GraphFile, case: &Case, tested: &Tested, time: Duration) -> Value {
    let (outcome, reason) = match &tested.verdict {
        Verdict::Passed => ("passed", None),
        Verdict::Skipped(why) => ("skipped", Some(why.as_str())),
        Verdict::Failed(_) | Verdict::Mistaken(_) => ("failed", None),
    };
    let difference = |found: &Difference| json!({ "what": found.what, "expected": found.expected, "got": found.got, "records": found.records });
    let text = file.text();
    let test = JsonTest {
        name: &case.name,
        node: &case.node.name,
        outcome,
        reason,
        seconds: time.as_secs_f64(),
        records: tested.records,
        differences: match &tested.verdict {
            Verdict::Failed(differences) => differences.iter().map(difference).collect(),
            _ => Vec::new(),
        },
        diagnostics: match &tested.verdict {
            Verdict::Mistaken(mistakes) => told_json(&text, mistakes).0,
            _ => Vec::new(),
        },
    };
    json!(test)
}

/// What runs now, on a terminal.
struct Progress {
    terminal: Terminal,
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new(terminal: &Terminal) -> Progress {
        let bar = terminal.is_live().then(|| {
            let bar = terminal.line();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Progress { terminal: terminal.clone(), bar }
    }

    fn is_live(&self) -> bool {
        self.bar.is_some()
    }

    fn start(&self, title: &str) {
        if let Some(bar) = &self.bar {
            bar.reset_elapsed();
            bar.set_message(title.to_owned());
        }
    }

    fn print(&self, text: &str) {
        self.terminal.beside(|| input::print(text));
    }

    fn print_error(&self, text: &str) {
        self.terminal.beside(|| input::print_error(text));
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
