//! What other tools say of the videos and pictures of the material, as its own README describes it.
//!
//! It lies outside the repository, where `ENGINE_MATERIAL` says (default: `../shared/material` beside it). Tests that
//! need it are skipped with a word where it is missing, and fail where `ENGINE_REQUIRE_MATERIAL` is 1.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

pub struct Material {
    pub folder: PathBuf,
    /// By file name.
    pub videos: BTreeMap<String, Video>,
    pub pictures: BTreeMap<String, Picture>,
    pub truth: Truth,
}

/// One video, decoded and sampled twice a second by the reference tools.
#[derive(Deserialize)]
pub struct Video {
    pub width: u64,
    pub height: u64,
    pub has_b_frames: bool,
    pub frames_decoded: u64,
    pub last_pts_s: f64,
    pub samples: Vec<Sample>,
}

#[derive(Deserialize)]
pub struct Sample {
    pub frame_index: u64,
    pub pts_s: f64,
    pub md5_yuv420p: String,
    /// Of `mobilenet_v3_small`.
    pub top5: Vec<Prediction>,
    pub yolox_nano: Vec<Detection>,
    pub yolox_nano_person: Person,
    pub person_detector_e2e_person: Person,
}

#[derive(Deserialize)]
pub struct Picture {
    pub width: u64,
    pub height: u64,
    pub mobilenet_v3_small: Vec<Prediction>,
    pub mobilenet_v2: Vec<Prediction>,
    pub yolox_nano: Vec<Detection>,
    pub yolox_nano_person: Person,
    pub person_detector_e2e: Vec<Detection>,
    pub person_detector_e2e_person: Person,
}

#[derive(Deserialize)]
pub struct Prediction {
    pub index: u64,
    /// All names of the class, with commas.
    pub label: String,
    pub score: f64,
}

#[derive(Deserialize)]
pub struct Detection {
    pub label: String,
    pub score: f64,
    #[serde(rename = "box")]
    pub bounds: [f64; 4],
}

#[derive(Deserialize)]
pub struct Person {
    /// Of the likeliest person; 0 without any.
    pub max_score: f64,
    /// Whether a person scores 0.5 or more.
    pub has_person: bool,
}

impl Person {
    /// Whether the score is so far from the threshold that every correct implementation gives the same answer.
    pub fn is_clear(&self) -> bool {
        !(0.4..=0.6).contains(&self.max_score)
    }
}

/// What people see in the pictures.
#[derive(Deserialize)]
pub struct Truth {
    /// Labels of which any is right.
    pub class_evident: BTreeMap<String, Vec<String>>,
    pub person_count_min: BTreeMap<String, u64>,
    pub no_person: Vec<String>,
}

impl Material {
    /// The material, or `None` after a word that the test is skipped.
    pub fn find() -> Option<Material> {
        let folder = std::env::var_os("ENGINE_MATERIAL")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/material"), PathBuf::from);
        if !folder.join("reference/videos.json").is_file() {
            let required = std::env::var("ENGINE_REQUIRE_MATERIAL").is_ok_and(|value| value == "1");
            assert!(!required, "the reference material is required, but {} has none", folder.display());
            eprintln!("skipped: there is no reference material in {}", folder.display());
            return None;
        }
        // The engine runs in a folder of its own.
        let folder = folder.canonicalize().expect("the folder of the material");
        let material = Material {
            videos: read(&folder, "videos.json"),
            pictures: read(&folder, "images.json"),
            truth: read(&folder, "truth.json"),
            folder,
        };
        // A reference without content would agree with everything.
        assert!(material.videos.len() >= 5 && material.pictures.len() >= 20);
        assert!(material.videos.values().all(|video| video.samples.len() >= 5));
        Some(material)
    }

    /// The lines `streams.STEM = "path"` of these videos.
    pub fn video_streams<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> String {
        self.streams("videos", names)
    }

    pub fn picture_streams<'a>(&self, names: impl IntoIterator<Item = &'a String>) -> String {
        self.streams("images", names)
    }

    fn streams<'a>(&self, kind: &str, names: impl IntoIterator<Item = &'a String>) -> String {
        let line = |name: &String| {
            let path = self.folder.join(kind).join(name);
            format!("streams.{} = {}\n", stream(name), toml::Value::String(path.display().to_string()))
        };
        names.into_iter().map(line).collect()
    }

    pub fn video(&self, name: &str) -> &Video {
        self.videos.get(name).unwrap_or_else(|| panic!("the material has no {name}"))
    }
}

/// The stream of the file `name`: its stem.
pub fn stream(name: &str) -> &str {
    Path::new(name).file_stem().and_then(OsStr::to_str).unwrap_or(name)
}

fn read<T: DeserializeOwned>(folder: &Path, name: &str) -> T {
    let path = folder.join("reference").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
