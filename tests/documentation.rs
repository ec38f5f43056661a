//! The documentation agrees with the repository: every dependency has its reason, every link leads somewhere, and every
//! graph that a reader may copy passes `engine check`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use support::{command, material, repository};

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of all direct dependencies of a manifest, the workspace's own crates left out.
fn direct_dependencies(manifest: &str) -> BTreeSet<String> {
    let manifest: toml::Table = read(&repository().join(manifest)).parse().expect("TOML");
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|section| manifest.get(*section)?.as_table())
        .flatten()
        .filter(|(_, dependency)| dependency.get("path").is_none())
        .map(|(name, _)| name.clone())
        .collect()
}

/// The crates in the first column of the tables of a page.
fn named_in_tables(page: &str) -> BTreeSet<String> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

/// The markdown pages of the repository.
fn pages() -> Vec<PathBuf> {
    let folders = ["", "docs", "benches/peers", "models"];
    let mut pages: Vec<PathBuf> = folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(repository().join(folder)).ok())
        .flatten()
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.sort();
    pages
}

/// The targets of `[text](target)` in a page.
fn links(page: &str) -> impl Iterator<Item = &str> {
    page.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target)
}

#[test]
fn every_direct_dependency_has_its_reason_and_every_reason_its_dependency() {
    let mut dependencies = direct_dependencies("Cargo.toml");
    assert!(dependencies.contains("timely"), "the manifest was read: {dependencies:?}");
    dependencies.extend(direct_dependencies("operators/Cargo.toml"));
    dependencies.extend(direct_dependencies("tests/support/Cargo.toml"));
    let documented = named_in_tables(&read(&repository().join("docs/dependencies.md")));

    let undocumented: Vec<_> = dependencies.difference(&documented).collect();
    assert!(undocumented.is_empty(), "add to docs/dependencies.md: {undocumented:?}");
    let stale: Vec<_> = documented.difference(&dependencies).collect();
    assert!(stale.is_empty(), "docs/dependencies.md names what is no dependency: {stale:?}");
}

#[test]
fn every_relative_link_leads_to_a_file() {
    let pages = pages();
    assert!(pages.iter().any(|page| page.ends_with("README.md")), "found pages: {pages:?}");
    let mut broken = Vec::new();
    for page in &pages {
        let text = read(page);
        for target in links(&text) {
            let path = target.split('#').next().unwrap_or_default();
            let elsewhere = target.contains("://") || path.is_empty();
            if !elsewhere && !page.parent().is_some_and(|folder| folder.join(path).exists()) {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere: {broken:#?}");
}

/// `script/reference` writes both; other formats of the registry need no file.
#[test]
fn the_reference_and_the_schema_are_current() {
    for (format, path) in [("markdown", "docs/reference.md"), ("json-schema", "docs/graph.schema.json")] {
        let output = command(&["list", "--format", format]).output().expect("the engine's binary runs");
        assert!(output.status.success());
        let current = String::from_utf8(output.stdout).expect("text");
        assert!(current == read(&repository().join(path)), "{path} is not current: run script/reference");
    }
}

/// The graph files in a folder and its folders.
fn graph_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            graph_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "toml") {
            found.push(path);
        }
    }
}

#[test]
fn every_graph_of_the_repository_fits_the_schema() {
    let schema = serde_json::from_str(&read(&repository().join("docs/graph.schema.json"))).expect("JSON");
    jsonschema::meta::validate(&schema).expect("a JSON Schema");
    let validator = jsonschema::validator_for(&schema).expect("a JSON Schema");
    let mistakes = |text: &str| -> Vec<String> {
        let document: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error}: {text}"));
        let document = serde_json::to_value(document).expect("JSON");
        validator.iter_errors(&document).map(|error| format!("{}: {error}", error.instance_path())).collect()
    };
    let mut graphs = Vec::new();
    for folder in ["graphs", "benches/graphs", "tests/graphs/tested/folder"] {
        graph_files(&repository().join(folder), &mut graphs);
    }
    graphs.extend(["plain", "branches"].map(|name| repository().join(format!("tests/graphs/{name}.toml"))));
    assert!(graphs.len() > 8, "{graphs:?}");
    for graph in graphs {
        assert_eq!(mistakes(&read(&graph)), [""; 0], "{}", graph.display());
    }
    // It is no schema that takes anything: what `engine check` calls mistakes of a single table, it does too.
    for mistake in ["unknown-field", "missing-field", "unknown-type", "unknown-table", "out-of-range", "bad-choice"] {
        let graph = repository().join(format!("tests/graphs/mistakes/{mistake}/a.toml"));
        assert!(!mistakes(&read(&graph)).is_empty(), "{mistake} is accepted");
    }
}

/// The whole graphs among the fenced `toml` blocks of a page.
fn graphs(page: &str) -> impl Iterator<Item = &str> {
    page.split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .filter(|block| block.contains("[sources.") && block.contains("[sinks."))
}

/// Runs `engine check` on a graph, with every parameter that names a video set to one that exists.
fn check(graph: &Path, material: &Path) -> Result<(), String> {
    let text = read(graph);
    let table: toml::Table = text.parse().map_err(|error| format!("{}: {error}", graph.display()))?;
    let video = material.join("videos/car-detection.mp4");
    let parameters = table.get("params").and_then(toml::Value::as_table).into_iter().flatten();
    let settings = parameters
        .filter(|(_, value)| value.as_str().is_some_and(|value| value.ends_with(".mp4")))
        .flat_map(|(name, _)| ["--set".to_owned(), format!("{name}={}", video.display())]);
    let output = command(&["check"]).arg(graph).args(settings).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if output.status.success() { Ok(()) } else { Err(format!("{}: {said}", graph.display())) }
}

#[test]
fn graphs_that_readers_copy_pass_the_check() {
    let Some(material) = material() else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut candidates = Vec::new();
    for page in pages() {
        for (number, graph) in graphs(&read(&page)).enumerate() {
            let stem = page.file_stem().unwrap().to_string_lossy().into_owned();
            let path = folder.path().join(format!("{stem}-{number}.toml"));
            std::fs::write(&path, graph).unwrap();
            candidates.push(path);
        }
    }
    assert!(!candidates.is_empty(), "the README shows a graph");
    let benchmarks = std::fs::read_dir(repository().join("benches/graphs")).unwrap();
    candidates.extend(benchmarks.map(|entry| entry.expect("an entry").path()));

    let failures: Vec<_> = candidates.iter().filter_map(|graph| check(graph, &material).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
