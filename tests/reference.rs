//! `engine run` on real videos and pictures with real models gives the answers of the reference tools.

#[path = "reference/material.rs"]
mod material;
#[path = "reference/run.rs"]
mod run;

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use material::{Detection, Material, Picture, Prediction, Sample, Video, stream};
use run::{Run, Stream};
use support::soak;

/// A source of these videos, each a stream, and below it a node `sampled` that passes two pictures a second.
fn sampled_twice_a_second<'a>(material: &Material, names: impl IntoIterator<Item = &'a String>) -> String {
    format!("[sources.videos]\ntype = \"file\"\n{}\n{SAMPLED}", material.video_streams(names))
}

fn all_sampled_twice_a_second(material: &Material) -> String {
    sampled_twice_a_second(material, material.videos.keys())
}

const SAMPLED: &str = r#"
[operators.sampled]
type = "sample"
inputs = ["videos"]
fps = 2
"#;

const SUMS: &str = r#"
[operators.sums]
type = "checksum"
inputs = ["sampled"]
"#;

fn operator(name: &str, type_name: &str, input: &str, more: &str) -> String {
    format!("\n[operators.{name}]\ntype = {type_name:?}\ninputs = [{input:?}]\n{more}\n")
}

fn number(record: &Value, field: &str) -> u64 {
    record[field].as_u64().unwrap_or_else(|| panic!("no `{field}`: {record:#}"))
}

fn decimal(record: &Value, field: &str) -> f64 {
    record[field].as_f64().unwrap_or_else(|| panic!("no `{field}`: {record:#}"))
}

/// The records are those of the sampled pictures: each once, with its place in the video and its size.
fn of_the_samples<'a>(records: &'a [Value], video: &'a Video) -> impl Iterator<Item = (&'a Value, &'a Sample)> {
    let frames: Vec<u64> = records.iter().map(|record| number(record, "frame")).collect();
    let expected: Vec<u64> = video.samples.iter().map(|sample| sample.frame_index).collect();
    assert_eq!(frames, expected);
    records.iter().zip(&video.samples).inspect(|(record, sample)| {
        // The reference rounds to microseconds, as records do.
        assert!((decimal(record, "pts") - sample.pts_s).abs() < 1.5e-6, "{} s: {record:#}", sample.pts_s);
        assert_eq!((number(record, "width"), number(record, "height")), (video.width, video.height));
    })
}

/// The checksums of every video's samples are those of the reference, and `counted` holds for its counters.
fn exact_samples(material: &Material, nodes: &str, workers: usize, counted: impl Fn(&Stream, &Video)) {
    let run = Run::of(material, nodes, &["sums"], workers);
    assert_eq!(run.streams.len(), material.videos.len());
    are_exact(&run, &material.videos, counted);
}

fn are_exact<'a>(
    run: &Run,
    videos: impl IntoIterator<Item = (&'a String, &'a Video)>,
    counted: impl Fn(&Stream, &Video),
) {
    for (name, video) in videos {
        let id = stream(name);
        for (record, sample) in of_the_samples(run.records("sums", id), video) {
            assert_eq!(record["md5"], sample.md5_yuv420p, "{name}: {record:#}");
        }
        let stream = &run.streams[id];
        assert_eq!((stream.read, stream.delivered), (video.frames_decoded, video.samples.len() as u64), "{name}");
        counted(stream, video);
    }
}

/// The numbers of workers to look at: of a soak `all`, elsewhere `some`, such that all ways to sample together have each.
fn default_or_all<'a>(some: &'a [usize], all: &'a [usize]) -> &'a [usize] {
    if soak() { all } else { some }
}

/// By default the source's thread samples: what nobody wants is not converted, and not decoded where possible.
#[test]
fn sampled_pictures_are_exact_by_default() {
    let Some(material) = Material::find() else { return };
    let nodes = all_sampled_twice_a_second(&material) + SUMS;
    for &workers in default_or_all(&[1, 4], &[1, 2, 4]) {
        exact_samples(&material, &nodes, workers, sparing);
    }
}

/// Nothing was converted in vain, nor decoded where no other picture needs it.
fn sparing(stream: &Stream, video: &Video) {
    assert_eq!(stream.converted, stream.delivered, "{stream:#?}");
    assert!(stream.converted < stream.decoded, "{stream:#?}");
    assert_eq!(stream.skipped > 0, video.has_b_frames, "{stream:#?}");
}

/// Alone, a file is decoded by several threads, which hold pictures back while packets are skipped.
#[test]
fn sampled_pictures_are_exact_when_a_file_runs_alone() {
    let Some(material) = Material::find() else { return };
    let mut workers = [1, 2, 4].into_iter().cycle();
    for (name, video) in &material.videos {
        let nodes = sampled_twice_a_second(&material, [name]) + SUMS;
        let run = Run::of(&material, &nodes, &["sums"], workers.next().unwrap_or(1));
        assert_eq!(run.streams.len(), 1);
        are_exact(&run, [(name, video)], sparing);
    }
}

#[test]
fn sampled_pictures_are_exact_when_all_are_decoded() {
    let Some(material) = Material::find() else { return };
    let nodes =
        all_sampled_twice_a_second(&material).replace("type = \"file\"", "type = \"file\"\nskip = false") + SUMS;
    for &workers in default_or_all(&[2], &[1, 2, 4]) {
        exact_samples(&material, &nodes, workers, |stream, _| {
            assert_eq!(stream.skipped, 0, "{stream:#?}");
            assert_eq!(stream.converted, stream.delivered, "{stream:#?}");
        });
    }
}

/// Only the first sampler can be pushed into the source's thread, and this one passes everything.
#[test]
fn sampled_pictures_are_exact_when_the_dataflow_samples() {
    let Some(material) = Material::find() else { return };
    let everything = operator("everything", "sample", "videos", "fps = 1000");
    let nodes = all_sampled_twice_a_second(&material).replace("inputs = [\"videos\"]", "inputs = [\"everything\"]");
    let nodes = nodes + &everything + SUMS;
    for &workers in default_or_all(&[4], &[2, 4]) {
        exact_samples(&material, &nodes, workers, |stream, _| {
            assert_eq!(stream.skipped, 0, "{stream:#?}");
            assert_eq!(stream.converted, stream.read, "{stream:#?}");
        });
    }
}

/// Alone, a file is decoded by several threads; every picture comes once and in its place.
#[test]
fn every_picture_of_a_whole_file() {
    let Some(material) = Material::find() else { return };
    for (name, workers) in [("people_bframes_offset.ts", 1), ("people_hevc_vfr.mp4", 2)] {
        let video = material.video(name);
        let path = material.folder.join("videos").join(name).display().to_string();
        let path = toml::Value::String(path);
        let nodes =
            format!("[sources.videos]\ntype = \"file\"\npath = {path}\n") + &operator("sums", "checksum", "videos", "");
        let run = Run::of(&material, &nodes, &["sums"], workers);
        let id = stream(name);
        let counts = &run.streams[id];
        assert_eq!(
            (counts.read, counts.delivered, counts.converted),
            (video.frames_decoded, video.frames_decoded, video.frames_decoded)
        );
        let records = run.records("sums", id);
        let seqs: Vec<u64> = records.iter().map(|record| number(record, "seq")).collect();
        assert_eq!(seqs, (0..video.frames_decoded).collect::<Vec<_>>());
        let pts: Vec<f64> = records.iter().map(|record| decimal(record, "pts")).collect();
        assert!(pts.is_sorted_by(|earlier, later| earlier < later), "{pts:?}");
        assert_eq!(pts[0], 0.0);
        assert!((pts[pts.len() - 1] - video.last_pts_s).abs() < 1.5e-6, "{pts:?}");
        for sample in &video.samples {
            let record = &records[usize::try_from(sample.frame_index).expect("small")];
            assert_eq!(record["md5"], sample.md5_yuv420p, "{name}: {record:#}");
            assert!((decimal(record, "pts") - sample.pts_s).abs() < 1.5e-6, "{record:#}");
        }
    }
}

/// The IoU of two boxes `[x1, y1, x2, y2]`.
fn overlap(a: [f64; 4], b: [f64; 4]) -> f64 {
    let side = |low: usize, high: usize| (a[high].min(b[high]) - a[low].max(b[low])).max(0.0);
    let area = |[x1, y1, x2, y2]: [f64; 4]| (x2 - x1) * (y2 - y1);
    let common = side(0, 2) * side(1, 3);
    common / (area(a) + area(b) - common)
}

fn list<'a>(record: &'a Value, field: &str) -> &'a [Value] {
    record[field].as_array().unwrap_or_else(|| panic!("no `{field}`: {record:#}"))
}

/// The record was made by this model, as its file is.
fn made_by(material: &Material, record: &Value, model: &str, file: &str) {
    assert_eq!(record["model"]["name"], model);
    // Coreutils know nothing of the manifests.
    let path = material.folder.join("models").join(file);
    let output = Command::new("sha256sum").arg(&path).output().expect("sha256sum runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let sum = text.split_whitespace().next().unwrap_or_else(|| panic!("no checksum of {}", path.display()));
    assert_eq!(record["model"]["sha256"], sum);
}

/// How far answers may be from the reference: other resizers move scores, and what scores low may change places.
struct Agreement {
    compared: usize,
    same_first: usize,
    /// The reference's first is among ours.
    first_among: usize,
}

impl Agreement {
    fn new() -> Agreement {
        Agreement { compared: 0, same_first: 0, first_among: 0 }
    }

    fn classified(&mut self, record: &Value, reference: &[Prediction]) {
        let predictions = list(record, "predictions");
        assert_eq!((record["kind"].as_str(), predictions.len()), (Some("classification"), 5), "{record:#}");
        let ours: Vec<(u64, f64)> = predictions.iter().map(|p| (number(p, "index"), decimal(p, "score"))).collect();
        assert!(ours.is_sorted_by(|(_, a), (_, b)| a >= b), "{record:#}");
        assert!(ours.iter().map(|(_, score)| score).sum::<f64>() < 1.0 + 1e-3, "{record:#}");
        let (first, top) = (&reference[0], ours[0]);
        self.compared += 1;
        self.same_first += usize::from(top.0 == first.index);
        if first.score >= 0.5 {
            assert_eq!(top.0, first.index, "{record:#}");
        } else {
            let among = ours.iter().any(|(index, _)| *index == first.index);
            assert!(among || (top.1 - first.score).abs() <= 0.2, "class {}: {record:#}", first.index);
        }
        self.first_among += usize::from(ours.iter().any(|(index, _)| *index == first.index));
        for known in reference {
            if let Some(prediction) = predictions.iter().find(|p| p["index"] == known.index) {
                let distance = (decimal(prediction, "score") - known.score).abs();
                assert!(distance <= 0.2, "class {}, {}: {record:#}", known.index, known.score);
                assert_eq!(prediction["label"], known.label.split(',').next().unwrap_or_default());
            }
        }
    }

    /// Over many pictures, other resizers agree in three of four at best; pictures that were stretched in 61 %.
    fn assert_close(&self) {
        let Agreement { compared, same_first, first_among } = *self;
        assert!(same_first * 100 >= compared * 85, "the same first in {same_first} of {compared}");
        assert!(first_among * 100 >= compared * 97, "the first among ours in {first_among} of {compared}");
    }
}

/// Whoever is clearly found by the reference is found here, in the same place of the source picture.
fn detected(record: &Value, reference: &[Detection]) {
    assert_eq!(record["kind"], "detection");
    let detections = list(record, "detections");
    for known in reference.iter().filter(|known| known.score >= 0.5) {
        let is_it = |detection: &&Value| {
            let bounds: Vec<f64> = list(detection, "box").iter().filter_map(Value::as_f64).collect();
            let bounds = <[f64; 4]>::try_from(bounds).unwrap_or_else(|_| panic!("{detection:#}"));
            detection["label"] == known.label.as_str()
                && overlap(bounds, known.bounds) >= 0.75
                && (decimal(detection, "score") - known.score).abs() <= 0.2
        };
        let found = detections.iter().find(is_it);
        assert!(found.is_some(), "{} {} at {:?}: {record:#}", known.label, known.score, known.bounds);
    }
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for detection in detections {
        *counts.entry(detection["label"].as_str().unwrap_or_default()).or_default() += 1;
    }
    assert_eq!(record["counts"], serde_json::json!(counts), "{record:#}");
}

fn has_person(record: &Value) -> bool {
    record["has"]["person"].as_bool().unwrap_or_else(|| panic!("no `has.person`: {record:#}"))
}

fn model(name: &str) -> String {
    format!("model = {name:?}")
}

fn persons_by(name: &str) -> String {
    model(name) + "\nhas = { person = 0.5 }"
}

#[test]
fn videos_are_classified_and_searched_for_persons_as_the_reference_does() {
    let Some(material) = Material::find() else { return };
    let nodes = all_sampled_twice_a_second(&material)
        + &operator("classes", "classify", "sampled", &model("mobilenet_v3_small"))
        + &operator("persons", "detect", "sampled", &persons_by("yolox_nano"));
    let run = Run::of(&material, &nodes, &["classes", "persons"], 2);
    let mut agreement = Agreement::new();
    let (mut with, mut without) = (0, 0);
    for (name, video) in &material.videos {
        for (record, sample) in of_the_samples(run.records("classes", stream(name)), video) {
            agreement.classified(record, &sample.top5);
        }
        for (record, sample) in of_the_samples(run.records("persons", stream(name)), video) {
            detected(record, &sample.yolox_nano);
            if sample.yolox_nano_person.is_clear() {
                assert_eq!(has_person(record), sample.yolox_nano_person.has_person, "{name}: {record:#}");
                *if has_person(record) { &mut with } else { &mut without } += 1;
            }
        }
    }
    agreement.assert_close();
    assert!(with > 100 && without > 100, "{with} with, {without} without");
    let first = stream(material.videos.keys().next().expect("a video"));
    made_by(&material, &run.records("classes", first)[0], "mobilenet_v3_small", "mobilenet_v3_small.onnx");
    made_by(&material, &run.records("persons", first)[0], "yolox_nano", "yolox_nano.onnx");
}

#[test]
fn further_models_agree_with_the_reference() {
    let Some(material) = Material::find() else { return };
    let name = "people_hevc_vfr.mp4".to_owned();
    let video = material.video(&name);
    let nodes = sampled_twice_a_second(&material, [&name])
        + &operator("inside", "classify", "sampled", &model("mobilenet_v3_small_nhwc_probs"))
        + &operator("outside", "classify", "sampled", &model("mobilenet_v3_small"))
        + &operator("larger", "classify", "sampled", &model("mobilenet_v2"))
        + &operator("persons", "detect", "sampled", &persons_by("person"));
    let run = Run::of(&material, &nodes, &["inside", "outside", "larger", "persons"], 1);
    let records = |node: &str| run.records(node, stream(&name));

    // The same weights behind two interfaces.
    let mut agreement = Agreement::new();
    for (record, sample) in of_the_samples(records("inside"), video) {
        agreement.classified(record, &sample.top5);
    }
    agreement.assert_close();
    same_predictions(records("inside"), records("outside"), 1e-3);

    for (record, sample) in of_the_samples(records("persons"), video) {
        if sample.person_detector_e2e_person.is_clear() {
            assert_eq!(has_person(record), sample.person_detector_e2e_person.has_person, "{record:#}");
        }
        // It is the same detector inside, and answers alike.
        detected(record, &sample.yolox_nano);
    }

    // The reference has no answers of this one for videos (see the pictures below); each picture gets one.
    for (record, _) in of_the_samples(records("larger"), video) {
        assert_eq!(list(record, "predictions").len(), 5, "{record:#}");
    }
    for (node, name, file) in [
        ("inside", "mobilenet_v3_small_nhwc_probs", "mobilenet_v3_small_nhwc_probs.onnx"),
        ("larger", "mobilenet_v2", "mobilenet_v2.onnx"),
        ("persons", "person", "person_detector_e2e.onnx"),
    ] {
        made_by(&material, &records(node)[0], name, file);
    }
}

/// Records of the same pictures with the same predictions, up to `tolerance` in their scores.
fn same_predictions(some: &[Value], others: &[Value], tolerance: f64) {
    assert_eq!(some.len(), others.len());
    for (one, other) in some.iter().zip(others) {
        assert_eq!(one["seq"], other["seq"]);
        let (predictions, expected) = (list(one, "predictions"), list(other, "predictions"));
        assert_eq!(predictions.len(), expected.len());
        for (place, prediction) in predictions.iter().enumerate() {
            let score = decimal(prediction, "score");
            assert!((score - decimal(&expected[place], "score")).abs() <= tolerance, "{one:#}\n{other:#}");
            // Classes that score alike may change places, and the last one may be another.
            if let Some(same) = expected.iter().find(|same| same["index"] == prediction["index"]) {
                assert!((score - decimal(same, "score")).abs() <= tolerance, "{one:#}\n{other:#}");
                assert_eq!(prediction["label"], same["label"]);
            } else {
                let last = &expected[expected.len() - 1];
                assert!((score - decimal(last, "score")).abs() <= tolerance, "{one:#}\n{other:#}");
            }
        }
    }
}

/// A node of its own that says what the manifest says, in its words or by its name, changes nothing.
#[test]
fn an_explicit_preprocess_gives_the_same_answers_as_the_implied_one() {
    let Some(material) = Material::find() else { return };
    let spelled_out = r#"
width = 224
height = 224
layout = "nchw"
dtype = "f32"
color = "rgb"
range = "unit"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
resize = "crop"
shorter_side = 256
antialias = true
"#;
    let names = ["asl-again.mkv".to_owned(), "nasa_13013.mp4".to_owned()];
    let nodes = sampled_twice_a_second(&material, &names)
        + &operator("implied", "classify", "sampled", &model("mobilenet_v3_small"))
        + &operator("tensors", "preprocess", "sampled", &model("mobilenet_v3_small"))
        + &operator("named", "classify", "tensors", &model("mobilenet_v3_small"))
        + &operator("other_tensors", "preprocess", "sampled", spelled_out)
        + &operator("spelled_out", "classify", "other_tensors", &model("mobilenet_v3_small"))
        + &operator("found", "detect", "sampled", &model("yolox_nano"))
        + &operator("letterboxed", "preprocess", "sampled", &model("yolox_nano"))
        + &operator("found_too", "detect", "letterboxed", &model("yolox_nano"));
    let run = Run::of(&material, &nodes, &["implied", "named", "spelled_out", "found", "found_too"], 4);
    for name in &names {
        let video = material.video(name);
        let implied = run.records("implied", stream(name));
        for node in ["named", "spelled_out"] {
            let records = run.records(node, stream(name));
            same_predictions(records, implied, 1e-4);
            // Place and size are those of the source picture, although a tensor came in.
            assert_eq!(of_the_samples(records, video).count(), implied.len());
        }
        let pairs = run.records("found_too", stream(name)).iter().zip(run.records("found", stream(name)));
        for (record, expected) in pairs {
            let (detections, expected) = (list(record, "detections"), list(expected, "detections"));
            assert_eq!(detections.len(), expected.len());
            for (detection, expected) in detections.iter().zip(expected) {
                assert_eq!(detection["label"], expected["label"]);
                let corners = list(detection, "box").iter().zip(list(expected, "box"));
                for (corner, expected) in corners {
                    let distance = corner.as_f64().zip(expected.as_f64()).map(|(a, b)| (a - b).abs());
                    assert!(distance.is_some_and(|pixels| pixels < 0.01), "{detection:#}\n{expected:#}");
                }
            }
        }
    }
}

/// Pictures are files of one frame, of other codecs and of RGB; of them people have said what they show.
#[test]
fn pictures_are_what_people_and_the_reference_say() {
    let Some(material) = Material::find() else { return };
    let streams = material.picture_streams(material.pictures.keys());
    let nodes = format!("[sources.pictures]\ntype = \"file\"\n{streams}\n")
        + &operator("small", "classify", "pictures", &model("mobilenet_v3_small"))
        + &operator("larger", "classify", "pictures", &model("mobilenet_v2"))
        + &operator("found", "detect", "pictures", &persons_by("yolox_nano"))
        + &operator("persons", "detect", "pictures", &persons_by("person"));
    let run = Run::of(&material, &nodes, &["small", "larger", "found", "persons"], 2);
    let (mut small, mut larger) = (Agreement::new(), Agreement::new());
    for (name, picture) in &material.pictures {
        let one = |node: &str| {
            let records = run.records(node, stream(name));
            assert_eq!(records.len(), 1, "{name}");
            assert_eq!((number(&records[0], "width"), number(&records[0], "height")), (picture.width, picture.height));
            &records[0]
        };
        let Picture { mobilenet_v3_small, mobilenet_v2, yolox_nano, person_detector_e2e, .. } = picture;
        small.classified(one("small"), mobilenet_v3_small);
        larger.classified(one("larger"), mobilenet_v2);
        detected(one("found"), yolox_nano);
        detected(one("persons"), person_detector_e2e);
        for (node, reference) in
            [("found", &picture.yolox_nano_person), ("persons", &picture.person_detector_e2e_person)]
        {
            if reference.is_clear() {
                assert_eq!(has_person(one(node)), reference.has_person, "{name}");
            }
            if let Some(&least) = material.truth.person_count_min.get(name) {
                assert!(has_person(one(node)), "{name}");
                assert!(one(node)["counts"]["person"].as_u64() >= Some(least), "{name}: {:#}", one(node));
            }
            if material.truth.no_person.contains(name) {
                assert!(!has_person(one(node)), "{name}: {:#}", one(node));
            }
        }
        if let Some(labels) = material.truth.class_evident.get(name) {
            for node in ["small", "larger"] {
                let label = &list(one(node), "predictions")[0]["label"];
                assert!(labels.iter().any(|right| label == right), "{name}: {label}, not {labels:?}");
            }
        }
    }
    small.assert_close();
    larger.assert_close();
}
