//! `detect`: finds objects in a picture, with one record for each picture, also when nothing was found.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::config::{self, Field, FieldType, OneOrMany, Presence};
use crate::error::{FieldError, ItemError};
use crate::inference::decode::{Candidate, WrongLength, boxes_labels_scores, fastestdet, nms, ssd, yolo, yolox};
use crate::inference::manifest::{InputSize, OutputSpec};
use crate::inference::model::{Model, closest};
use crate::inference::session::Outputs;
use crate::item::{Detection, Kind, Placement, RecordBody};
use crate::operator::{BuildContext, Built, Execution, Produces, Registration, Role};
use crate::transforms::model_runner::{
    BATCH_FIELD, BATCH_WAIT_FIELD, DEVICE_FIELD, ModelConfig, ModelNode, Reading, model_field,
};

/// What stands in where neither the graph nor the manifest says.
const THRESHOLD: f32 = 0.3;
const NMS: f32 = 0.45;

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    model: ModelConfig,
    #[serde(flatten)]
    rules: RulesConfig,
}

#[derive(Deserialize)]
struct RulesConfig {
    labels: Option<OneOrMany<String>>,
    threshold: Option<f32>,
    nms: Option<f32>,
    #[serde(default)]
    has: BTreeMap<String, f32>,
}

/// Which boxes become detections, and what `has` says.
#[derive(Clone, Debug, PartialEq)]
struct Rules {
    /// For each class, whether its boxes are reported.
    wanted: Vec<bool>,
    threshold: f32,
    /// IoU; `None` where the graph of the model has suppressed overlaps itself.
    nms: Option<f32>,
    /// Class and score of each question.
    has: Vec<(usize, f32)>,
}

impl Rules {
    /// Nothing below this score matters to anybody.
    fn lowest(&self) -> f32 {
        self.has.iter().map(|(_, score)| *score).fold(self.threshold, f32::min)
    }

    /// The record of `candidates`, in which the best come first.
    fn body(&self, model: &Model, candidates: &[Candidate], placement: &Placement) -> RecordBody {
        let labels = model.labels.names();
        let mut counts: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        let mut detections = Vec::new();
        let mut seen = Vec::new();
        for Candidate { class, score, bounds } in candidates {
            let bounds = placement.to_source(*bounds);
            // What lies in the padding alone is no object of the picture.
            if bounds[0] >= bounds[2] || bounds[1] >= bounds[3] {
                continue;
            }
            seen.push((*class, *score));
            if self.wanted[*class] && *score >= self.threshold {
                let label = labels[*class].clone();
                *counts.entry(label.clone()).or_default() += 1;
                detections.push(Detection { label, index: *class, score: *score, bounds });
            }
        }
        let answer = |(class, threshold): &(usize, f32)| {
            (labels[*class].clone(), seen.iter().any(|(other, score)| other == class && score >= threshold))
        };
        let has = self.has.iter().map(answer).collect();
        RecordBody::Detection { model: model.name.clone(), detections, counts, has }
    }
}

impl Reading for Rules {
    fn read(&self, model: &Model, outputs: &Outputs<'_>, placement: &Placement) -> Result<RecordBody, ItemError> {
        let mut candidates = candidates(model, outputs, self.lowest())?;
        if let Some(overlap) = self.nms {
            nms::suppress(&mut candidates, overlap);
        }
        Ok(self.body(model, &candidates, placement))
    }
}

/// What the model proposes, with a score of `threshold` or more.
fn candidates(model: &Model, outputs: &Outputs<'_>, threshold: f32) -> Result<Vec<Candidate>, ItemError> {
    let wrong = |error: WrongLength| ItemError::Failed(format!("model `{}`: {error}", model.name.name));
    let classes = model.labels.len();
    let found = match (&model.output, model.input.size) {
        (OutputSpec::Yolox { name, strides }, InputSize::Fixed { width, height }) => {
            yolox::decode(&outputs.f32(name)?, [width, height], strides, classes, threshold)
        }
        (OutputSpec::Fastestdet { name }, InputSize::Fixed { width, height }) => {
            fastestdet::decode(&outputs.f32(name)?, [width, height], classes, threshold)
        }
        (OutputSpec::Yolov5 { name }, _) => yolo::decode_v5(&outputs.f32(name)?, classes, threshold),
        (OutputSpec::Yolov8 { name }, _) => yolo::decode_v8(&outputs.f32(name)?, classes, threshold),
        (
            OutputSpec::Ssd { boxes, scores, layers, offsets, variances, activation, background },
            InputSize::Fixed { width, height },
        ) => {
            let heads = ssd::Heads {
                layers,
                offsets: *offsets,
                variances: *variances,
                activation: *activation,
                background: *background,
            };
            let (boxes, scores) = (outputs.f32(boxes)?, outputs.f32(scores)?);
            ssd::decode(&boxes, &scores, [width, height], &heads, classes, threshold)
        }
        (OutputSpec::BoxesLabelsScores { boxes, labels, scores }, _) => {
            let (boxes, ids, scores) = (outputs.f32(boxes)?, outputs.i64(labels)?, outputs.f32(scores)?);
            boxes_labels_scores::decode(&boxes, ids, &scores, &model.labels, threshold)
        }
        _ => return Err(ItemError::Failed(format!("model `{}` is no detector", model.name.name))),
    };
    found.map_err(wrong)
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    ModelNode::build(context, config.model, |model| rules(model, config.rules)).map(Built::Pool)
}

fn rules(model: &Model, config: RulesConfig) -> Result<Rules, Vec<FieldError>> {
    if model.output.is_classifier() {
        let error = FieldError::new("model", format!("`{}` is a classifier: it finds no boxes", model.name.name));
        return Err(vec![error.hint("write `type = \"classify\"`, or choose a detector")]);
    }
    let mut errors = Vec::new();
    let mut position = |field: String, label: &str| {
        let found = model.labels.position(label);
        if found.is_none() {
            errors.push(unknown_label(model, field, label));
        }
        found
    };
    let mut wanted = vec![config.labels.is_none(); model.labels.len()];
    let labels = config.labels.map(OneOrMany::into_vec);
    // With `has`, an empty list asks for its answers alone.
    if labels.as_ref().is_some_and(Vec::is_empty) && config.has.is_empty() {
        let error = FieldError::new("labels", "no label is asked for, so nothing would ever be found");
        return Err(vec![error.hint("name at least one label, or leave `labels` out to find all")]);
    }
    for label in labels.unwrap_or_default() {
        if let Some(class) = position("labels".into(), &label) {
            wanted[class] = true;
        }
    }
    let mut has = Vec::new();
    for (label, score) in config.has {
        if let Some(class) = position(format!("has.{label}"), &label) {
            has.push((class, score));
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let nms = match model.output {
        // Suppressed already; a second time only where the graph file asks for it.
        OutputSpec::BoxesLabelsScores { .. } => config.nms.or(model.defaults.nms),
        _ => Some(config.nms.or(model.defaults.nms).unwrap_or(NMS)),
    };
    let threshold = config.threshold.or(model.defaults.threshold).unwrap_or(THRESHOLD);
    Ok(Rules { wanted, threshold, nms, has })
}

fn unknown_label(model: &Model, field: String, label: &str) -> FieldError {
    let names = || model.labels.names().iter().map(|name| &**name);
    let hint = match closest(label, names()) {
        Some(closest) => format!("did you mean `{closest}`?"),
        None if model.labels.len() <= 20 => format!("it knows {}", names().collect::<Vec<_>>().join(", ")),
        None => {
            let first = names().take(5).collect::<Vec<_>>().join(", ");
            let (name, count) = (&model.name.name, model.labels.len());
            format!("it knows {count} labels, such as {first}; its manifest, `{name}.toml`, says where all of them are")
        }
    };
    FieldError::new(field, format!("model `{}` has no label `{label}`", model.name.name)).hint(hint)
}

const SCORE: FieldType = FieldType::Number { minimum: 0.0, maximum: 1.0 };

pub static REGISTRATION: Registration = Registration {
    name: "detect",
    role: Role::Operator,
    summary: "Finds objects in a picture.",
    execution: Execution::Pool,
    accepts: &[Kind::Frame, Kind::Tensor],
    produces: Produces::Kinds(&[Kind::Record]),
    fields: &[
        model_field("The detector: its manifest is `NAME.toml` in a folder of models."),
        Field {
            name: "labels",
            value: FieldType::OneOrList(&FieldType::String),
            presence: Presence::Optional,
            summary: "Boxes of these labels only. Left out: of all.",
        },
        Field {
            name: "threshold",
            value: SCORE,
            presence: Presence::Optional,
            summary: "Boxes of this score or more. Left out: the model's own, else 0.3.",
        },
        Field {
            name: "nms",
            value: SCORE,
            presence: Presence::Optional,
            summary: "Boxes that overlap a better one of their label by more than this IoU are left out. Left out: the \
                      model's own, else 0.45; nothing for models that do this themselves.",
        },
        Field {
            name: "has",
            value: FieldType::Map(&SCORE),
            presence: Presence::Optional,
            summary: "For each label a score: the record's `has` says whether there is a box of that score or more, \
                      whatever `threshold` and `labels` leave out.",
        },
        DEVICE_FIELD,
        BATCH_FIELD,
        BATCH_WAIT_FIELD,
    ],
    example: "[operators.people]\ntype = \"detect\"\ninputs = [\"cameras\"]\nmodel = \"yolox_nano\"\n\
              labels = [\"person\"]\nhas = { person = 0.6 }\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::session::{InputValues, Sessions};
    use crate::transforms::preprocess::pictures::rgb;
    use crate::transforms::reference::{GOLDEN, context, golden, material, picture, pictures, record, runner};
    use serde_json::Value;
    use std::path::Path;

    fn bounds(value: &Value) -> [f32; 4] {
        let sides: Vec<f32> =
            value["box"].as_array().unwrap().iter().map(|side| side.as_f64().unwrap() as f32).collect();
        sides.try_into().unwrap()
    }

    /// Whether every sure detection of one side has its like on the other.
    fn covered(name: &str, these: &[Value], those: &[Value], slack: f64) {
        for this in these.iter().filter(|this| this["score"].as_f64().unwrap() >= 0.3 + slack) {
            let like = |that: &&Value| {
                that["label"] == this["label"]
                    && (that["score"].as_f64().unwrap() - this["score"].as_f64().unwrap()).abs() <= slack
                    // Of two boxes with scores of a thousandth apart, suppression may keep the other one.
                    && nms::intersection_over_union(bounds(that), bounds(this)) >= 0.75
            };
            assert!(those.iter().any(|that| like(&that)), "{name}: nothing like {this} in {those:?}");
        }
    }

    fn agrees(model: &str, reference: &str) {
        let Some(material) = material() else { return };
        let table = format!("model = \"{model}\"\nthreshold = 0.3\nhas = {{ person = 0.6 }}");
        let mut runner = runner(&context(&material), &REGISTRATION, &table);
        let person = format!("{reference}_person");
        for (name, frame, expected) in pictures(&material) {
            let (width, height) = (frame.width as f32, frame.height as f32);
            let (_, json) = record(&mut *runner, frame);
            let found = json["detections"].as_array().unwrap();
            let wanted = expected[reference].as_array().unwrap();
            covered(&name, wanted, found, 0.1);
            covered(&name, found, wanted, 0.1);
            for detection in found {
                let [x1, y1, x2, y2] = bounds(detection);
                assert!(0.0 <= x1 && x1 < x2 && x2 <= width && 0.0 <= y1 && y1 < y2 && y2 <= height, "{name}");
                assert!(detection["score"].as_f64().unwrap() >= 0.3);
            }
            let counted =
                json["counts"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum::<u64>();
            assert_eq!(counted, found.len() as u64);
            let best = expected[&person]["max_score"].as_f64().unwrap();
            if !(0.5..0.7).contains(&best) {
                assert_eq!(json["has"]["person"], expected[&person]["has_person_at_0.6"], "{name}");
            }
        }
    }

    #[test]
    fn yolox_nano_agrees_with_the_reference() {
        agrees("yolox_nano", "yolox_nano");
    }

    #[test]
    fn person_agrees_with_the_reference() {
        agrees("person", "person_detector_e2e");
    }

    /// A picture of 352 x 352 pixels in planes of B, G, R: each sample is the mean of the area that it covers, as OpenCV
    /// has it when it makes pictures smaller by area.
    fn smaller_by_area(frame: &crate::item::Frame) -> Vec<f32> {
        const SIDE: usize = 352;
        let weights = |length: u32| -> Vec<Vec<(usize, f64)>> {
            let step = f64::from(length) / SIDE as f64;
            let covered = |index: usize| {
                let (from, to) = (index as f64 * step, (index + 1) as f64 * step);
                let share = move |pixel: usize| (to.min(pixel as f64 + 1.0) - from.max(pixel as f64)) / step;
                (from as usize..length as usize)
                    .take_while(|pixel| (*pixel as f64) < to)
                    .map(|pixel| (pixel, share(pixel)))
                    .collect()
            };
            (0..SIDE).map(covered).collect()
        };
        let (across, down) = (weights(frame.width), weights(frame.height));
        let rows: Vec<&[u8]> = frame.rows(0).collect();
        let mut planes = Vec::with_capacity(3 * SIDE * SIDE);
        for channel in [2, 1, 0] {
            for down in &down {
                for across in &across {
                    let sum = |(y, share): &(usize, f64)| {
                        let row = rows[*y];
                        across.iter().map(|(x, weight)| f64::from(row[x * 3 + channel]) * weight * share).sum::<f64>()
                    };
                    let mean: f64 = down.iter().map(sum).sum();
                    planes.push((mean.round() / 255.0) as f32);
                }
            }
        }
        planes
    }

    /// On the input that the reference had, the head is read as the reference reads it.
    #[test]
    fn fastestdet_is_decoded_as_by_the_reference() {
        let Some(material) = material() else { return };
        let model = context(&material).models.get("fastestdet").unwrap();
        let session = Sessions::default().get(&model).unwrap();
        let mut compared = 0;
        // Smaller ones are made larger, which is another way.
        for (name, frame, expected) in pictures(&material).into_iter().filter(|(_, f, _)| f.width.min(f.height) >= 352)
        {
            let mut found = session
                .borrow_mut()
                .run([3, 352, 352], InputValues::F32(&smaller_by_area(&frame)), |outputs| {
                    candidates(&model, outputs, 0.5)
                })
                .unwrap();
            nms::suppress(&mut found, 0.45);
            let scale = [frame.width as f32 / 352.0, frame.height as f32 / 352.0];
            let limits = [frame.width as f32, frame.height as f32];
            let side = bounds;
            for wanted in expected["fastestdet"].as_array().unwrap() {
                let score = wanted["score"].as_f64().unwrap();
                let like = |candidate: &&Candidate| {
                    let bounds =
                        std::array::from_fn(|i| (candidate.bounds[i] * scale[i % 2]).clamp(0.0, limits[i % 2]));
                    candidate.class as u64 == wanted["class_id"].as_u64().unwrap()
                        && (f64::from(candidate.score) - score).abs() < 0.02
                        && nms::intersection_over_union(bounds, side(wanted)) > 0.95
                };
                if score >= 0.52 {
                    compared += 1;
                    assert!(found.iter().any(|candidate| like(&candidate)), "{name}: {wanted} in {found:?}");
                }
            }
        }
        assert!(compared > 20, "the reference holds only {compared} detections");
    }

    /// Another way to make pictures smaller moves boxes and scores of this model, but not by much.
    #[test]
    fn fastestdet_finds_what_the_reference_is_sure_of() {
        let Some(material) = material() else { return };
        let mut runner = runner(&context(&material), &REGISTRATION, "model = \"fastestdet\"\nthreshold = 0.3");
        let (mut found, mut wanted) = (0, 0);
        for (_, frame, expected) in pictures(&material) {
            let (_, json) = record(&mut *runner, frame);
            let detections = json["detections"].as_array().unwrap();
            for sure in expected["fastestdet"].as_array().unwrap() {
                let score = sure["score"].as_f64().unwrap();
                let like = |detection: &Value| {
                    detection["label"] == sure["label"]
                        && (detection["score"].as_f64().unwrap() - score).abs() < 0.15
                        && nms::intersection_over_union(bounds(detection), bounds(sure)) > 0.6
                };
                if score >= 0.65 {
                    wanted += 1;
                    found += usize::from(detections.iter().any(like));
                }
            }
        }
        assert!(wanted > 20 && found * 10 >= wanted * 9, "{found} of {wanted}");
    }

    #[test]
    fn a_device_that_is_missing_is_pointed_at() {
        let errors = |device: &str| {
            let table = toml::from_str(&format!("model = \"shapes\"\ndevice = \"{device}\"")).unwrap();
            build(&context(Path::new("")), table).err().unwrap()
        };
        assert_eq!(errors("gpu")[0].field, "device");
        let missing = &errors("cuda:1")[0];
        assert!(missing.field == "device" && missing.message.contains("device `cuda:1`"), "{missing}");
        assert!(missing.hint.as_deref().unwrap().contains("ORT_DYLIB_PATH"));
        let table = toml::from_str("model = \"shapes\"\ndevice = \"cpu\"").unwrap();
        assert!(build(&context(Path::new("")), table).is_ok());
    }

    /// From the golden input to the golden output, and from that to the reference's detections.
    #[test]
    fn golden_tensors_give_the_reference_detections() {
        let Some(material) = material() else { return };
        let model = context(&material).models.get("yolox_nano").unwrap();
        let session = Sessions::default().get(&model).unwrap();
        let text = std::fs::read_to_string(material.join("reference/images.json")).unwrap();
        let references: Value = serde_json::from_str(&text).unwrap();
        for (name, file) in GOLDEN {
            let input: Vec<u8> = golden(&material, &format!("{name}_yolox_input_bgr_u8_chw"));
            let raw: Vec<f32> = golden(&material, &format!("{name}_yolox_raw"));
            let input: Vec<f32> = input.into_iter().map(f32::from).collect();
            let found = session
                .borrow_mut()
                .run([3, 416, 416], InputValues::F32(&input), |outputs| Ok(outputs.f32("output")?.to_vec()))
                .unwrap();
            assert_eq!(found.len(), raw.len());
            for (found, expected) in found.iter().zip(&raw) {
                assert!((found - expected).abs() < 1e-3, "{name}: {found} for {expected}");
            }

            let mut candidates = yolox::decode(&raw, [416, 416], &[8, 16, 32], 80, 0.3).unwrap();
            nms::suppress(&mut candidates, 0.45);
            let expected = references[file]["yolox_nano"].as_array().unwrap();
            assert_eq!(candidates.len(), expected.len(), "{name}");
            let (width, height) =
                (references[file]["width"].as_f64().unwrap(), references[file]["height"].as_f64().unwrap());
            let ratio = (416.0 / width).min(416.0 / height) as f32;
            for (candidate, expected) in candidates.iter().zip(expected) {
                assert_eq!(candidate.class as u64, expected["class_id"].as_u64().unwrap());
                assert!((f64::from(candidate.score) - expected["score"].as_f64().unwrap()).abs() < 1e-3);
                for (side, expected) in candidate.bounds.iter().zip(bounds(expected)) {
                    assert!((side / ratio - expected).abs() < 0.1, "{name}: {candidate:?} for {expected:?}");
                }
            }
        }
    }

    #[test]
    fn an_empty_list_of_labels_finds_nothing_and_is_refused() {
        let context = context(Path::new(""));
        let built = |table: &str| build(&context, toml::from_str(table).unwrap());
        let errors = built("model = \"shapes\"\nlabels = []").err().unwrap();
        assert_eq!((errors.len(), errors[0].field.as_str()), (1, "labels"));
        assert!(errors[0].hint.as_deref().unwrap().contains("leave `labels` out"));
        assert!(built("model = \"shapes\"\nlabels = []\nhas = { circle = 0.5 }").is_ok());
    }

    #[test]
    fn only_asked_labels_are_reported_and_has_looks_at_all() {
        let Some(material) = material() else { return };
        let table = "model = \"yolox_nano\"\nlabels = [\"dog\"]\nthreshold = 0.87\nhas = { person = 0.8, cat = 0.1, horse = 0.95 }";
        let mut runner = runner(&context(&material), &REGISTRATION, table);
        let (_, json) = record(&mut *runner, picture(&material, "darknet_person.jpg"));
        assert_eq!(json["counts"], serde_json::json!({ "dog": 1 }));
        assert_eq!(json["detections"][0]["index"], 16);
        assert_eq!(json["has"], serde_json::json!({ "cat": false, "horse": false, "person": true }));
    }

    #[test]
    fn nothing_found_is_a_record_too() {
        let Some(material) = material() else { return };
        for (model, width, height) in
            [("yolox_nano", 1, 1), ("yolox_nano", 64, 48), ("person", 1, 1), ("person", 33, 17)]
        {
            let mut runner = runner(&context(&material), &REGISTRATION, &format!("model = \"{model}\""));
            let (record, json) = record(&mut *runner, rgb(width, height, &vec![90; (width * height * 3) as usize]));
            assert_eq!(record.body.kind(), "detection");
            assert_eq!((&json["detections"], &json["counts"]), (&serde_json::json!([]), &serde_json::json!({})));
            assert!(json.get("has").is_none());
        }
    }

    #[test]
    fn a_label_that_the_model_does_not_know_is_pointed_at() {
        let Some(material) = material() else { return };
        let table = "model = \"yolox_nano\"\nlabels = [\"persn\", \"cat\"]\nhas = { dgo = 0.5, zyxwv = 0.5 }";
        let errors = build(&context(&material), toml::from_str(table).unwrap()).err().unwrap();
        let found: Vec<(&str, &str)> =
            errors.iter().map(|error| (error.field.as_str(), error.hint.as_deref().unwrap())).collect();
        assert_eq!(found[0], ("labels", "did you mean `person`?"));
        assert_eq!(found[1], ("has.dgo", "did you mean `dog`?"));
        assert_eq!(found[2].0, "has.zyxwv");
        assert!(found[2].1.contains("80 labels"));
    }

    #[test]
    fn a_classifier_is_refused() {
        let Some(material) = material() else { return };
        let errors = build(&context(&material), toml::from_str("model = \"mobilenet_v2\"").unwrap()).err().unwrap();
        assert!(errors[0].field == "model" && errors[0].hint.as_deref().unwrap().contains("classify"));
    }

    /// The material's YOLOX with an open batch dimension says of pictures that run together what it says of each alone.
    #[test]
    fn pictures_that_run_together_are_found_the_same_in() {
        let Some(material) = material() else { return };
        let folder = tempfile::tempdir().unwrap();
        let file = material.join("models/yolox_nano_dynbatch.onnx");
        let hashes = crate::inference::hashes::HashCache::default();
        let sha256 = hashes.sha256(&file).unwrap();
        let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
        let manifest = std::fs::read_to_string(manifests.join("yolox_nano.toml")).unwrap();
        let changed = |line: &str| match line.split(" = ").next() {
            Some("file") if line.contains(".onnx") => "file = \"yolox_nano_dynbatch.onnx\"".to_owned(),
            Some("sha256") => format!("sha256 = \"{sha256}\""),
            _ => line.to_owned(),
        };
        let manifest: Vec<String> = manifest.lines().map(changed).collect();
        std::fs::write(folder.path().join("open.toml"), manifest.join("\n")).unwrap();
        let mut context = context(&material);
        let folders = [folder.path().to_owned(), material.join("models")];
        context.models = Arc::new(crate::inference::model::Catalog::with_hashes(folders, hashes));

        let mut alone = runner(&context, &REGISTRATION, "model = \"open\"");
        let mut together = runner(&context, &REGISTRATION, "model = \"open\"\nbatch = 4");
        let items: Vec<_> = pictures(&material)
            .into_iter()
            .zip(0..)
            .map(|((_, frame, _), seq)| {
                let payload = crate::item::Payload::Frame(Arc::new(frame));
                crate::testing::item(seq, crate::time::MediaTime::ZERO, payload).0
            })
            .collect();
        let body = |result: Result<crate::item::Payload, ItemError>| match result.unwrap() {
            crate::item::Payload::Record(record) => (record.seq, record.body.clone()),
            _ => panic!("no record"),
        };
        let mut found = 0;
        for four in items.chunks(4) {
            let results = together.run_batch(&four.iter().collect::<Vec<_>>());
            for (item, result) in four.iter().zip(results) {
                let ((seq, expected), (own, body)) = (body(alone.run(item)), body(result));
                assert_eq!(seq, own);
                let (
                    RecordBody::Detection { detections: expected, .. },
                    RecordBody::Detection { detections: body, .. },
                ) = (expected, body)
                else {
                    panic!("no detections")
                };
                assert_eq!(expected.len(), body.len());
                for (one, other) in expected.iter().zip(&body) {
                    assert_eq!(one.label, other.label);
                    assert!((one.score - other.score).abs() < 1e-3, "{one:?} {other:?}");
                    assert!(nms::intersection_over_union(one.bounds, other.bounds) > 0.98, "{one:?} {other:?}");
                }
                found += body.len();
            }
        }
        assert!(found > 20, "{found} objects");
    }

    /// The interface of torchvision's Faster R-CNN, behind a manifest as `script/export-models` writes it: pictures of any
    /// size, the numbers of COCO, boxes in pixels of the picture, suppressed already.
    #[test]
    fn the_interface_of_faster_rcnn_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let corners = [[1.0, 2.0, 11.0, 12.0], [2.0, 2.0, 11.0, 12.0], [0.0, 0.0, 40.0, 10.0]];
        let file = folder.path().join("boxes.onnx");
        std::fs::write(&file, crate::transforms::onnx::three_boxes(corners, [1, 1, 90])).unwrap();
        let hashes = crate::inference::hashes::HashCache::default();
        let manifest = format!(
            "file = \"boxes.onnx\"\nsha256 = \"{}\"\nlicence = \"BSD-3-Clause\"\n[input]\nname = \"image\"\n\
             largest = [1333, 1333]\ncolor = \"rgb\"\nrange = \"unit\"\n[output]\ndecode = \"boxes_labels_scores\"\n\
             boxes = \"boxes\"\nlabels = \"labels\"\nscores = \"scores\"\n[labels]\n\
             names = [\"person\", \"bicycle\", \"toothbrush\"]\nids = [1, 2, 90]\n",
            hashes.sha256(&file).unwrap()
        );
        std::fs::write(folder.path().join("boxes.toml"), manifest).unwrap();
        let mut context = context(folder.path());
        context.models = Arc::new(crate::inference::model::Catalog::with_hashes([folder.path().to_owned()], hashes));
        let mut runner = runner(&context, &REGISTRATION, "model = \"boxes\"\nthreshold = 0.3");
        for (width, height) in [(40, 30), (31, 17)] {
            let pixels = [255, 204, 51].repeat((width * height) as usize);
            let (_, json) = record(&mut *runner, rgb(width, height, &pixels));
            let found = json["detections"].as_array().unwrap();
            // The boxes of persons overlap, and both stay; the toothbrush has too low a score.
            let labels: Vec<&str> = found.iter().map(|one| one["label"].as_str().unwrap()).collect();
            assert_eq!(labels, ["person", "person"], "{json}");
            for (one, (corners, score)) in found.iter().zip([(corners[0], 1.0), (corners[1], 0.8)]) {
                assert_eq!(bounds(one), corners);
                assert!((one["score"].as_f64().unwrap() - score).abs() < 1e-4, "{one}");
            }
        }
    }
}
