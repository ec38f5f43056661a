//! The graph files of `engine run`: one file, or all of a folder. Reads them, loads what has changed since it looked
//! last, and ends graphs whose files are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use operators::error::StartError;

use super::input::GraphFile;
use crate::graph::diagnostics::{Diagnostic, Severity, position, told};
use crate::runtime::amounts::were;
use crate::runtime::graphs::{Expected, GraphText, Graphs, Home, LoadError, Loaded, LoadedText};
use crate::runtime::reload::Reloaded;

/// Where graph files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    File(PathBuf),
    Folder(PathBuf),
}

/// What was seen of a file.
#[derive(PartialEq, Eq)]
enum Seen {
    Text(Vec<u8>),
    /// It is there and cannot be read: why.
    Unreadable(String),
}

/// Graph files, and what was seen of them last.
pub struct Files {
    place: Place,
    seen: BTreeMap<PathBuf, Seen>,
    /// Files that something else was in the way of, and what: they are tried again until that is gone.
    waiting: BTreeMap<PathBuf, String>,
}

impl Files {
    pub fn new(place: Place) -> Files {
        Files { place, seen: BTreeMap::new(), waiting: BTreeMap::new() }
    }

    /// One file, whose text has been loaded already.
    pub fn of_loaded(path: PathBuf, text: Vec<u8>) -> Files {
        let seen = BTreeMap::from([(path.clone(), Seen::Text(text))]);
        Files { place: Place::File(path), seen, waiting: BTreeMap::new() }
    }

    /// The folder in which they are.
    pub fn folder(&self) -> PathBuf {
        match &self.place {
            Place::Folder(path) => path.clone(),
            Place::File(path) => match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
                _ => PathBuf::from("."),
            },
        }
    }

    /// Whether something is in the way of a file, so that it is to be tried again though it does not change.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Loads each file that is new or has changed, and ends the graphs of those that are gone. Stops early where `stop`
    /// says so. Everything that fails is said in the log, and by `/health`.
    pub fn follow(&mut self, graphs: &Graphs, stop: impl Fn() -> bool) {
        let paths = match self.list() {
            Ok(paths) => paths,
            Err(error) => {
                tracing::error!(hint = error.hint, "{error}");
                return;
            }
        };
        let gone: Vec<PathBuf> = self.seen.keys().filter(|path| !paths.contains(*path)).cloned().collect();
        for path in gone {
            self.seen.remove(&path);
            self.waiting.remove(&path);
            let name = graph_name(&path);
            if graphs.remove(&name, &path).is_some() {
                tracing::info!(graph = %name, "graph `{name}` has ended: `{}` is gone", path.display());
            }
        }
        for path in paths {
            if stop() {
                return;
            }
            self.follow_file(path, graphs);
        }
    }

    fn follow_file(&mut self, path: PathBuf, graphs: &Graphs) {
        let name = graph_name(&path);
        let seen = match GraphFile::read(&path) {
            Ok(file) => Seen::Text(file.bytes),
            Err(error) => Seen::Unreadable(error.to_string()),
        };
        let before = self.waiting.remove(&path);
        let is_the_same = self.seen.get(&path) == Some(&seen);
        // Somebody else may have loaded it since.
        let is_left_out = || match &seen {
            Seen::Text(text) => graphs.is_left_out(&name, &path, text),
            Seen::Unreadable(_) => false,
        };
        if is_the_same && (before.is_none() || !is_left_out()) {
            return;
        }
        match &seen {
            Seen::Text(bytes) => {
                let text = GraphText { name: name.clone(), bytes: bytes.clone(), home: Home::File(path.clone()) };
                let loaded = graphs.load(text, &Expected::Anything);
                let in_its_way = loaded.as_ref().err().filter(|error| error.may_pass()).map(ToString::to_string);
                // Said once, and not at every try.
                if !is_the_same || in_its_way.is_none() || in_its_way != before {
                    log_loaded(&name, &path, bytes, &loaded);
                }
                if let Some(why) = in_its_way {
                    self.waiting.insert(path.clone(), why);
                }
            }
            Seen::Unreadable(why) => {
                graphs.note_unreadable(&name, &path, why);
                tracing::error!(graph = %name, "{why}");
            }
        }
        self.seen.insert(path, seen);
    }

    /// The files that are there.
    fn list(&self) -> Result<BTreeSet<PathBuf>, StartError> {
        match &self.place {
            Place::File(path) if path.exists() => Ok(BTreeSet::from([path.clone()])),
            Place::File(_) => Ok(BTreeSet::new()),
            Place::Folder(folder) => graph_files(folder).map_err(|error| {
                StartError::new(format!("the folder `{}` cannot be read: {error}", folder.display()))
                    .hint("see that it is there, and that this user may read it")
            }),
        }
    }
}

/// The graph files right in a folder. Hidden ones are drafts of editors.
fn graph_files(folder: &Path) -> std::io::Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") && !path.is_dir() {
            files.insert(path);
        }
    }
    Ok(files)
}

/// What the graph of a file is called: the file's stem.
fn graph_name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn log_loaded(name: &str, path: &Path, bytes: &[u8], loaded: &Result<LoadedText, LoadError>) {
    match loaded {
        Ok(LoadedText { loaded, diagnostics, .. }) => {
            log_diagnostics(name, path, bytes, diagnostics);
            log_success(name, loaded);
        }
        Err(LoadError::Mistakes(diagnostics)) => {
            log_diagnostics(name, path, bytes, diagnostics);
            let errors = diagnostics.iter().filter(|found| found.severity() == Severity::Error).count();
            let mistakes = if errors == 1 { "1 mistake".to_owned() } else { format!("{errors} mistakes") };
            let path = path.display();
            tracing::error!(graph = name, "`{path}` has {mistakes}, and is left out; what runs, runs on");
        }
        Err(LoadError::Closing) => {}
        Err(error) => {
            let (path, hint) = (path.display(), error.hint());
            tracing::error!(graph = name, hint, "`{path}` is left out; what runs, runs on: {error}");
        }
    }
}

fn log_success(name: &str, loaded: &Loaded) {
    match loaded {
        Loaded::Started { .. } => tracing::info!(graph = name, "graph `{name}` runs"),
        Loaded::Reloaded(reloaded) => {
            let generation = reloaded.generation;
            let [kept, rebuilt, added, removed] =
                [&reloaded.nodes.kept, &reloaded.nodes.rebuilt, &reloaded.nodes.added, &reloaded.nodes.removed]
                    .map(Vec::len);
            tracing::info!(
                graph = name,
                generation,
                "graph `{name}` is reloaded; nodes: {kept} kept, {rebuilt} rebuilt, {added} added, {removed} removed"
            );
            if reloaded.lost > 0 || !reloaded.stuck.is_empty() {
                tracing::warn!(graph = name, "{}", told_lost(reloaded));
            }
            for refused in &reloaded.refused {
                tracing::warn!(graph = name, "a stream that was added has no place any more: {refused}");
            }
        }
    }
}

/// What a reload cost.
fn told_lost(reloaded: &Reloaded) -> String {
    let lost = were(reloaded.lost, "lost");
    if reloaded.stuck.is_empty() {
        lost
    } else {
        format!("{lost}; this did not finish in time: {}", reloaded.stuck.join(", "))
    }
}

fn log_diagnostics(name: &str, path: &Path, bytes: &[u8], diagnostics: &[Diagnostic]) {
    let text = String::from_utf8_lossy(bytes);
    let (told, left_out) = told(diagnostics);
    for found in told {
        let mut line = path.display().to_string();
        if let Some(span) = &found.span {
            let (row, column) = position(&text, span.start);
            line.push_str(&format!(":{row}:{column}"));
        }
        line.push_str(&format!(": {} [{}]", found.message, found.code.text()));
        let hint = found.hint.as_deref();
        match found.severity() {
            Severity::Error => tracing::error!(graph = name, hint, "{line}"),
            Severity::Warning => tracing::warn!(graph = name, hint, "{line}"),
            Severity::Note => tracing::info!(graph = name, hint, "{line}"),
        }
    }
    if left_out > 0 {
        tracing::error!(graph = name, "and {left_out} more in `{}`", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graph_files_are_those_that_are_meant() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["door.toml", "yard.toml", ".door.toml", "notes.md", "door.toml~"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        std::fs::create_dir(folder.path().join("old.toml")).unwrap();
        let found = graph_files(folder.path()).unwrap();
        let names: Vec<String> = found.iter().map(|path| graph_name(path)).collect();
        assert_eq!(names, ["door", "yard"]);
    }

    #[test]
    fn what_a_reload_cost_is_told() {
        let one = Reloaded { lost: 1, ..Reloaded::default() };
        assert_eq!(told_lost(&one), "1 item was lost");
        let two = Reloaded { lost: 2, stuck: vec!["sink `out`".to_owned()], ..Reloaded::default() };
        assert_eq!(told_lost(&two), "2 items were lost; this did not finish in time: sink `out`");
    }

    #[test]
    fn a_file_lies_in_a_folder() {
        let folder = |path: &str| Files::new(Place::File(path.into())).folder();
        assert_eq!(folder("door.toml"), Path::new("."));
        assert_eq!(folder("graphs/door.toml"), Path::new("graphs"));
        assert_eq!(Files::new(Place::Folder("graphs".into())).folder(), Path::new("graphs"));
    }
}
