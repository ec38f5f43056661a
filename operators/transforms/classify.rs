//! `classify`: names what a picture shows, with one record for each picture.

use std::sync::Arc;

use serde::Deserialize;

use crate::clock::Clock;
use crate::config::{self, Field, FieldType, Presence};
use crate::error::{FieldError, ItemError, StartError};
use crate::inference::decode::softmax;
use crate::inference::manifest::OutputSpec;
use crate::inference::model::Model;
use crate::inference::session::Sessions;
use crate::item::{Item, Kind, Origin, Payload, Prediction, RecordBody};
use crate::operator::{BuildContext, Built, Execution, PoolOperator, Produces, Registration, Role, Runner};
use crate::transforms::model_runner::ModelRunner;

#[derive(Deserialize)]
struct Config {
    model: String,
    #[serde(default = "five")]
    top_k: usize,
    softmax: Option<bool>,
}

const fn five() -> usize {
    5
}

#[derive(Clone)]
struct Classify {
    origin: Origin,
    clock: Arc<dyn Clock>,
    model: Arc<Model>,
    /// Name of the output that holds the scores.
    output: String,
    softmax: bool,
    top_k: usize,
}

impl PoolOperator for Classify {
    fn runner(&self, sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
        let runner = ModelRunner::new(&self.model, sessions, &self.clock)?;
        Ok(Box::new(ClassifyRunner { classify: self.clone(), runner }))
    }

    fn memory(&self) -> u64 {
        ModelRunner::memory(&self.model)
    }

    fn model(&self) -> Option<Arc<str>> {
        Some(self.model.name.name.clone())
    }
}

struct ClassifyRunner {
    classify: Classify,
    runner: ModelRunner,
}

impl Runner for ClassifyRunner {
    fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
        let Classify { origin, model, output, softmax, top_k, .. } = &self.classify;
        let labels = model.labels.names();
        let (predictions, timing) = self.runner.run(item, |outputs, _| {
            let values = outputs.f32(output)?;
            if values.len() != labels.len() {
                return Err(ItemError::Failed(format!(
                    "model `{}` gave {} scores for its {} classes",
                    model.name.name,
                    values.len(),
                    labels.len()
                )));
            }
            let best =
                if *softmax { softmax::top(&softmax::softmax(values), *top_k) } else { softmax::top(values, *top_k) };
            let prediction = |(index, score): (usize, f32)| Prediction { label: labels[index].clone(), index, score };
            Ok(best.into_iter().map(prediction).collect())
        })?;
        let body = RecordBody::Classification { model: model.name.clone(), predictions };
        let mut record = origin.record(item, body);
        record.timing_ms = timing;
        Ok(Payload::Record(Arc::new(record)))
    }
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    let model = context.models.get(&config.model).map_err(|error| vec![error.at("model")])?;
    let (output, implied) = match &model.output {
        OutputSpec::Softmax { name } => (name.clone(), true),
        OutputSpec::None { name } => (name.clone(), false),
        OutputSpec::Yolox { .. } | OutputSpec::BoxesLabelsScores { .. } => {
            let error = FieldError::new("model", format!("`{}` is a detector: it finds boxes", config.model));
            return Err(vec![error.hint("write `type = \"detect\"`, or choose a classifier")]);
        }
    };
    Ok(Built::Pool(Arc::new(Classify {
        origin: context.origin.clone(),
        clock: context.clock.clone(),
        output,
        softmax: config.softmax.unwrap_or(implied),
        top_k: config.top_k,
        model,
    })))
}

pub static REGISTRATION: Registration = Registration {
    name: "classify",
    role: Role::Operator,
    summary: "Names what a picture shows.",
    execution: Execution::Pool,
    accepts: &[Kind::Frame, Kind::Tensor],
    produces: Produces::Kinds(&[Kind::Record]),
    fields: &[
        Field {
            name: "model",
            value: FieldType::Model,
            presence: Presence::Required,
            summary: "The classifier; `engine models` lists those that are there.",
        },
        Field {
            name: "top_k",
            value: FieldType::Integer { minimum: 1, maximum: 1000 },
            presence: Presence::Default("5"),
            summary: "How many of the best predictions a record holds.",
        },
        Field {
            name: "softmax",
            value: FieldType::Boolean,
            presence: Presence::Optional,
            summary: "Whether the model's output still has to be turned into scores. Left out: as its manifest says.",
        },
    ],
    example: "[operators.what]\ntype = \"classify\"\ninputs = [\"cameras\"]\nmodel = \"mobilenet_v3_small\"\n",
    build,
};
