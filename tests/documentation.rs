//! The documentation agrees with the repository: every dependency has its reason, every link leads somewhere.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names of all direct dependencies of a manifest, the workspace's own crates left out.
fn direct_dependencies(manifest: &str) -> BTreeSet<String> {
    let manifest: toml::Table = read(&repository().join(manifest)).parse().unwrap();
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
        .map(|entry| entry.unwrap().path())
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
