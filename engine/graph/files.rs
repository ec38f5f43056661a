//! What sinks must leave alone: each other's files, the files that the graph reads, and those that it is made of. A sink
//! truncates its file at start, so a mistaken path would destroy somebody's only copy.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use operators::operator::{Built, Resource};

use super::check::Surroundings;
use super::diagnostics::{Code, Diagnostic};
use super::nodes::Declaration;
use super::substitute::Secrets;

/// Files under every name that they may have.
#[derive(Default)]
struct Files {
    paths: HashSet<PathBuf>,
    /// Device and number: the same for each hard link to a file.
    inodes: HashSet<(u64, u64)>,
}

impl Files {
    fn of(paths: impl IntoIterator<Item = PathBuf>) -> Files {
        let mut files = Files::default();
        for path in paths {
            files.inodes.extend(inode(&path));
            files.paths.insert(path.canonicalize().unwrap_or(path));
        }
        files
    }

    fn contain(&self, path: &Path) -> bool {
        self.paths.contains(path) || inode(path).is_some_and(|inode| self.inodes.contains(&inode))
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Refuses sinks that would write what a source reads, the graph's own file, a model's, or one that a value is of.
pub fn report_overwrites(
    declared: &[Declaration],
    built: &[Option<Built>],
    surroundings: &Surroundings,
    secrets: &Secrets,
    state: Option<PathBuf>,
    found: &mut Vec<Diagnostic>,
) {
    let of_sources: Vec<(usize, Files)> = built
        .iter()
        .enumerate()
        .filter_map(|(index, built)| match built {
            Some(Built::Source(source)) => Some((index, Files::of(source.reads()))),
            _ => None,
        })
        .collect();
    let others = [
        (Files::of(surroundings.file.clone()), "this graph file itself"),
        (Files::of(state), "the progress that this graph keeps"),
        (Files::of(surroundings.models.files()), "a file of a model"),
        (Files::of(secrets.files().iter().cloned()), "a file that a value of this graph is taken from"),
    ];
    for (index, built) in built.iter().enumerate() {
        let written = built.iter().flat_map(Built::resources).filter_map(|resource| match resource {
            Resource::Path(path) => Some(path),
            Resource::Object(_) => None,
        });
        for path in written {
            let node = &declared[index];
            let at = node.place("path");
            let hint = "a sink empties its file at start: give it a path of its own, such as \"results.jsonl\"";
            let refuse = |what: &str| {
                let message = format!("`{}` would overwrite {what}", node.path());
                Diagnostic::new(Code::OverwritesInput, at.clone(), message).hint(hint)
            };
            if let Some((source, _)) = of_sources.iter().find(|(_, files)| files.contain(&path)) {
                let source = &declared[*source];
                let place = if source.table.get("path").is_some() { "path" } else { "streams" };
                let diagnostic = refuse(&format!("a file that `{}` reads", source.path()));
                found.push(diagnostic.related(source.place(place), "what is read"));
            }
            for (_, what) in others.iter().filter(|(files, _)| files.contain(&path)) {
                found.push(refuse(what));
            }
        }
    }
}

/// Refuses two sinks that would write one file.
pub fn report_shared(declared: &[Declaration], built: &[Option<Built>], found: &mut Vec<Diagnostic>) {
    let mut owners: HashMap<Resource, usize> = HashMap::new();
    // A second hard link is another path to the same file.
    let mut owners_of_inodes: HashMap<(u64, u64), usize> = HashMap::new();
    for (index, built) in built.iter().enumerate() {
        for resource in built.iter().flat_map(Built::resources) {
            let file = match &resource {
                Resource::Path(path) => inode(path),
                Resource::Object(_) => None,
            };
            let linked = file.and_then(|inode| owners_of_inodes.insert(inode, index));
            let Some(other) = owners.insert(resource, index).or(linked) else { continue };
            let (first, second) = (declared[other].path(), declared[index].path());
            let message = format!("`{first}` and `{second}` would both write the same file");
            let place = |node: &Declaration| if node.table.get("path").is_some() { "path" } else { "" };
            let (at, elsewhere) =
                (declared[index].place(place(&declared[index])), declared[other].place(place(&declared[other])));
            let hint = "give each a path of its own, or give one sink both inputs";
            let diagnostic = Diagnostic::new(Code::SharedResource, at, message).hint(hint);
            found.push(diagnostic.related(elsewhere, "the other owner"));
        }
    }
}
