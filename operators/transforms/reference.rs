//! The reference results, for unit tests: pictures, what other tools say of them, and the models.
//!
//! They lie outside the repository, where `ENGINE_MATERIAL` says (default: `../shared/material` beside it). Tests that
//! need them are skipped with a word where they are missing, and fail where `ENGINE_REQUIRE_MATERIAL` is 1.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use crate::clock::SystemClock;
use crate::inference::hashes::HashCache;
use crate::inference::model::Catalog;
use crate::inference::session::Sessions;
use crate::item::{Frame, Origin, Payload, Record};
use crate::operator::{BuildContext, Built, NoPublisher, PoolOperator, Registration, Runner};
use crate::testing::item;
use crate::time::MediaTime;
use crate::transforms::preprocess::pictures::rgb;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of the material, or `None` after a word that the test is skipped.
pub(crate) fn material() -> Option<PathBuf> {
    let folder = std::env::var_os("ENGINE_MATERIAL").map_or_else(|| root().join("../shared/material"), PathBuf::from);
    if folder.join("reference/images.json").is_file() {
        return Some(folder);
    }
    let required = std::env::var("ENGINE_REQUIRE_MATERIAL").is_ok_and(|value| value == "1");
    assert!(!required, "the reference material is required, but {} has none", folder.display());
    eprintln!("skipped: there is no reference material in {}", folder.display());
    None
}

/// The surroundings of a node `graph/node`, with the shipped manifests and the material's models.
pub(crate) fn context(material: &Path) -> BuildContext {
    BuildContext {
        origin: Origin { graph: "graph".into(), node: "node".into() },
        folder: root(),
        models: Arc::new(Catalog::with_hashes([root().join("models"), material.join("models")], HashCache::default())),
        clock: Arc::new(SystemClock),
        publisher: Arc::new(NoPublisher),
        progress: None,
        playlists: Arc::default(),
    }
}

/// Builds a node of the pool from its table.
pub(crate) fn operator(context: &BuildContext, registration: &Registration, table: &str) -> Arc<dyn PoolOperator> {
    match (registration.build)(context, toml::from_str(table).unwrap()) {
        Ok(Built::Pool(operator)) => operator,
        Ok(_) => panic!("`{}` does not run in the pool", registration.name),
        Err(errors) => panic!("{errors:?}"),
    }
}

/// The node's part on this thread.
pub(crate) fn runner(context: &BuildContext, registration: &Registration, table: &str) -> Box<dyn Runner> {
    operator(context, registration, table).runner(&mut Sessions::default()).unwrap()
}

/// What `runner` makes of `payload`.
pub(crate) fn run(runner: &mut dyn Runner, payload: Payload) -> Payload {
    let (item, _account) = item(7, MediaTime::from_micros(1_500_000), payload);
    runner.run(&item).unwrap()
}

/// The record that `runner` makes of `frame`, as people read it.
pub(crate) fn record(runner: &mut dyn Runner, frame: Frame) -> (Arc<Record>, Value) {
    let Payload::Record(record) = run(runner, Payload::Frame(Arc::new(frame))) else { panic!("no record") };
    let json = serde_json::to_value(&*record).unwrap();
    (record, json)
}

/// Every reference picture with what other tools say of it.
pub(crate) fn pictures(material: &Path) -> Vec<(String, Frame, Value)> {
    let text = std::fs::read_to_string(material.join("reference/images.json")).unwrap();
    let all: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    assert!(all.len() >= 20);
    all.into_iter()
        .map(|(name, reference)| {
            let frame = picture(material, &name);
            assert_eq!(
                (u64::from(frame.width), u64::from(frame.height)),
                (reference["width"].as_u64().unwrap(), reference["height"].as_u64().unwrap())
            );
            (name, frame, reference)
        })
        .collect()
}

/// One picture of the material.
pub(crate) fn picture(material: &Path, name: &str) -> Frame {
    let decoded = image::open(material.join("images").join(name)).unwrap().into_rgb8();
    rgb(decoded.width(), decoded.height(), decoded.as_raw())
}

/// A golden tensor.
pub(crate) fn golden<T: ndarray_npy::ReadableElement>(material: &Path, name: &str) -> Vec<T> {
    let array: ndarray::ArrayD<T> =
        ndarray_npy::read_npy(material.join("reference/golden").join(format!("{name}.npy"))).unwrap();
    array.into_iter().collect()
}

/// The pictures that golden tensors were made of.
pub(crate) const GOLDEN: [(&str, &str); 3] = [
    ("coral_cat_720p", "coral_cat_720p.jpg"),
    ("coral_parrot", "coral_parrot.jpg"),
    ("darknet_person", "darknet_person.jpg"),
];
