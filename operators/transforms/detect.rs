//! `detect`: finds objects in a picture, with one record for each picture, also when nothing was found.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::clock::Clock;
use crate::config::{self, Field, FieldType, OneOrMany, Presence};
use crate::error::{FieldError, ItemError, StartError};
use crate::inference::decode::{Candidate, WrongLength, boxes_labels_scores, nms, yolox};
use crate::inference::manifest::{InputSize, OutputSpec};
use crate::inference::model::{Model, closest};
use crate::inference::session::{Outputs, Sessions};
use crate::item::{Detection, Item, Kind, Origin, Payload, Placement, RecordBody};
use crate::operator::{BuildContext, Built, Execution, PoolOperator, Produces, Registration, Role, Runner};
use crate::transforms::model_runner::ModelRunner;

/// What stands in where neither the graph nor the manifest says.
const THRESHOLD: f32 = 0.3;
const NMS: f32 = 0.45;

#[derive(Deserialize)]
struct Config {
    model: String,
    labels: Option<OneOrMany<String>>,
    threshold: Option<f32>,
    nms: Option<f32>,
    #[serde(default)]
    has: BTreeMap<String, f32>,
}

#[derive(Clone)]
struct Detect {
    origin: Origin,
    clock: Arc<dyn Clock>,
    model: Arc<Model>,
    rules: Rules,
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

impl PoolOperator for Detect {
    fn runner(&self, sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
        let runner = ModelRunner::new(&self.model, sessions, &self.clock)?;
        Ok(Box::new(DetectRunner { detect: self.clone(), runner }))
    }

    fn memory(&self) -> u64 {
        ModelRunner::memory(&self.model)
    }

    fn model(&self) -> Option<Arc<str>> {
        Some(self.model.name.name.clone())
    }
}

struct DetectRunner {
    detect: Detect,
    runner: ModelRunner,
}

impl Runner for DetectRunner {
    fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
        let Detect { origin, model, rules, .. } = &self.detect;
        let (body, timing) = self.runner.run(item, |outputs, placement| {
            let mut candidates = candidates(model, outputs, rules.lowest())?;
            if let Some(overlap) = rules.nms {
                nms::suppress(&mut candidates, overlap);
            }
            Ok(rules.body(model, &candidates, placement))
        })?;
        let mut record = origin.record(item, body);
        record.timing_ms = timing;
        Ok(Payload::Record(Arc::new(record)))
    }
}

/// What the model proposes, with a score of `threshold` or more.
fn candidates(model: &Model, outputs: &Outputs<'_>, threshold: f32) -> Result<Vec<Candidate>, ItemError> {
    let wrong = |error: WrongLength| ItemError::Failed(format!("model `{}`: {error}", model.name.name));
    match (&model.output, model.input.size) {
        (OutputSpec::Yolox { name, strides }, InputSize::Fixed { width, height }) => {
            let values = outputs.f32(name)?;
            yolox::decode(values, [width, height], strides, model.labels.len(), threshold).map_err(wrong)
        }
        (OutputSpec::BoxesLabelsScores { boxes, labels, scores }, _) => {
            let (boxes, ids, scores) = (outputs.f32(boxes)?, outputs.i64(labels)?, outputs.f32(scores)?);
            boxes_labels_scores::decode(boxes, ids, scores, &model.labels, threshold).map_err(wrong)
        }
        _ => Err(ItemError::Failed(format!("model `{}` is no detector", model.name.name))),
    }
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    let model = context.models.get(&config.model).map_err(|error| vec![error.at("model")])?;
    let rules = rules(&model, config)?;
    Ok(Built::Pool(Arc::new(Detect { origin: context.origin.clone(), clock: context.clock.clone(), model, rules })))
}

fn rules(model: &Model, config: Config) -> Result<Rules, Vec<FieldError>> {
    if model.output.is_classifier() {
        let error = FieldError::new("model", format!("`{}` is a classifier: it finds no boxes", config.model));
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
    for label in config.labels.map(OneOrMany::into_vec).unwrap_or_default() {
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
        None => format!("`engine models {}` lists its {} labels", model.name.name, model.labels.len()),
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
        Field {
            name: "model",
            value: FieldType::Model,
            presence: Presence::Required,
            summary: "The detector; `engine models` lists those that are there.",
        },
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
    ],
    example: "[operators.people]\ntype = \"detect\"\ninputs = [\"cameras\"]\nmodel = \"yolox_nano\"\n\
              labels = [\"person\"]\nhas = { person = 0.6 }\n",
    build,
};
