//! `classify`: names what a picture shows, with one record for each picture.

use serde::Deserialize;

use crate::config::{self, Field, FieldType, Presence};
use crate::error::{FieldError, ItemError};
use crate::inference::decode::softmax;
use crate::inference::manifest::OutputSpec;
use crate::inference::model::Model;
use crate::inference::session::Outputs;
use crate::item::{Kind, Placement, Prediction, RecordBody};
use crate::operator::{BuildContext, Built, Execution, Produces, Registration, Role};
use crate::transforms::model_runner::{
    BATCH_FIELD, BATCH_WAIT_FIELD, DEVICE_FIELD, ModelConfig, ModelNode, Reading, model_field,
};

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    model: ModelConfig,
    #[serde(default = "five")]
    top_k: usize,
    softmax: Option<bool>,
}

const fn five() -> usize {
    5
}

/// Scores become the best predictions.
#[derive(Clone)]
struct Scores {
    /// Name of the output that holds them.
    output: String,
    softmax: bool,
    top_k: usize,
}

impl Reading for Scores {
    fn read(&self, model: &Model, outputs: &Outputs<'_>, _placement: &Placement) -> Result<RecordBody, ItemError> {
        let labels = model.labels.names();
        let values = outputs.f32(&self.output)?;
        if values.len() != labels.len() {
            return Err(ItemError::Failed(format!(
                "model `{}` gave {} scores for its {} classes",
                model.name.name,
                values.len(),
                labels.len()
            )));
        }
        let best = if self.softmax {
            softmax::top(&softmax::softmax(&values), self.top_k)
        } else {
            softmax::top(&values, self.top_k)
        };
        let prediction = |(index, score): (usize, f32)| Prediction { label: labels[index].clone(), index, score };
        let predictions = best.into_iter().map(prediction).collect();
        Ok(RecordBody::Classification { model: model.name.clone(), predictions })
    }
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let Config { model, top_k, softmax } = config::read(table)?;
    let scores = |model: &Model| {
        let (output, implied) = match &model.output {
            OutputSpec::Softmax { name } => (name.clone(), true),
            OutputSpec::None { name } => (name.clone(), false),
            _ => {
                let message = format!("`{}` is a detector: it finds boxes", model.name.name);
                let error = FieldError::new("model", message);
                return Err(vec![error.hint("write `type = \"detect\"`, or choose a classifier")]);
            }
        };
        Ok(Scores { output, softmax: softmax.unwrap_or(implied), top_k })
    };
    ModelNode::build(context, model, scores).map(Built::Pool)
}

pub static REGISTRATION: Registration = Registration {
    name: "classify",
    role: Role::Operator,
    summary: "Names what a picture shows.",
    execution: Execution::Pool,
    accepts: &[Kind::Frame, Kind::Tensor],
    produces: Produces::Kinds(&[Kind::Record]),
    fields: &[
        model_field("The classifier: its manifest is `NAME.toml` in a folder of models."),
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
        DEVICE_FIELD,
        BATCH_FIELD,
        BATCH_WAIT_FIELD,
    ],
    example: "[operators.what]\ntype = \"classify\"\ninputs = [\"cameras\"]\nmodel = \"mobilenet_v3_small\"\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;

    use crate::inference::session::{InputValues, Sessions};
    use crate::item::Payload;
    use crate::transforms::onnx::{FLOAT, FLOAT16, means};
    use crate::transforms::reference::{GOLDEN, context, golden, material, operator, pictures, record, run, runner};

    /// The tolerances that the reference gives: the same first label where it is sure (0.5 or more), else its label
    /// among the first five or a score within 0.2. Ours resizes as the reference does, so scores are close as well.
    fn agrees(model: &str, reference: &str) {
        let Some(material) = material() else { return };
        let mut runner = runner(&context(&material), &REGISTRATION, &format!("model = \"{model}\""));
        for (name, frame, expected) in pictures(&material) {
            let (_, json) = record(&mut *runner, frame);
            let predictions = json["predictions"].as_array().unwrap();
            assert_eq!(predictions.len(), 5);
            let best = &expected[reference][0];
            let (label, score) = (best["index"].as_u64().unwrap(), best["score"].as_f64().unwrap());
            let found = predictions.iter().find(|prediction| prediction["index"] == label);
            let found = found.unwrap_or_else(|| panic!("{name}: {best} is not in {predictions:?}"));
            assert!((found["score"].as_f64().unwrap() - score).abs() < 0.1, "{name}: {found} for {best}");
            if score >= 0.5 {
                assert_eq!(predictions[0]["index"], label, "{name}");
            }
            let full = best["label"].as_str().unwrap();
            assert_eq!(found["label"], full.split(',').next().unwrap(), "a label is the part before the first comma");
        }
    }

    #[test]
    fn mobilenet_v3_small_agrees_with_the_reference() {
        agrees("mobilenet_v3_small", "mobilenet_v3_small");
    }

    #[test]
    fn the_same_weights_behind_another_interface_agree_with_the_reference() {
        agrees("mobilenet_v3_small_nhwc_probs", "mobilenet_v3_small");
    }

    #[test]
    fn mobilenet_v2_agrees_with_the_reference() {
        agrees("mobilenet_v2", "mobilenet_v2");
    }

    #[test]
    fn golden_crops_give_the_golden_logits() {
        let Some(material) = material() else { return };
        let model = context(&material).models.get("mobilenet_v3_small").unwrap();
        let session = Sessions::default().get(&model).unwrap();
        for (name, _) in GOLDEN {
            let crop: Vec<u8> = golden(&material, &format!("{name}_crop224_rgb_u8"));
            let logits: Vec<f32> = golden(&material, &format!("{name}_v3_logits"));
            let pixels = crop.as_chunks::<3>().0;
            let normalised = |channel: usize| {
                let (scale, bias) = (model.input.scale[channel], model.input.bias[channel]);
                pixels.iter().map(move |pixel| f32::from(pixel[channel]) * scale + bias)
            };
            let input: Vec<f32> = (0..3).flat_map(normalised).collect();
            let found = session
                .borrow_mut()
                .run([3, 224, 224], InputValues::F32(&input), |outputs| Ok(outputs.f32("logits")?.to_vec()))
                .unwrap();
            assert_eq!(found.len(), logits.len());
            for (found, expected) in found.iter().zip(&logits) {
                assert!((found - expected).abs() < 1e-3, "{name}: {found} for {expected}");
            }
        }
    }

    /// The record as documented, and a tensor of a `preprocess` node in the place of the frame.
    #[test]
    fn a_tensor_gives_the_same_record_as_its_frame() {
        let Some(material) = material() else { return };
        let context = context(&material);
        let mut classify = runner(&context, &REGISTRATION, "model = \"mobilenet_v3_small\"\ntop_k = 2");
        let mut preprocess =
            runner(&context, &crate::transforms::preprocess::REGISTRATION, "model = \"mobilenet_v3_small\"");
        let frame = crate::transforms::reference::picture(&material, "coral_parrot.jpg");
        let (_, json) = record(&mut *classify, frame);
        assert_eq!((&json["id"], &json["kind"]), (&"graph/node/test/7".into(), &"classification".into()));
        assert_eq!((&json["width"], &json["height"], &json["frame"]), (&512.into(), &929.into(), &0.into()));
        assert_eq!((&json["model"]["name"], &json["pts"]), (&"mobilenet_v3_small".into(), &1.5.into()));
        assert_eq!(json["predictions"].as_array().unwrap().len(), 2);
        assert_eq!(json["predictions"][0]["label"], "macaw");
        let stages =
            |json: &serde_json::Value| json["timing_ms"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(stages(&json), ["decode", "infer", "preprocess"]);

        let frame = crate::transforms::reference::picture(&material, "coral_parrot.jpg");
        let tensor = run(&mut *preprocess, Payload::Frame(Arc::new(frame)));
        assert_eq!(tensor.kind(), Kind::Tensor);
        let Payload::Record(from_tensor) = run(&mut *classify, tensor) else { panic!("no record") };
        let from_tensor = serde_json::to_value(&*from_tensor).unwrap();
        assert_eq!(stages(&from_tensor), ["decode", "infer"]);
        for field in ["predictions", "width", "height", "frame", "id"] {
            assert_eq!(from_tensor[field], json[field], "{field}");
        }
    }

    #[test]
    fn a_tensor_of_another_shape_is_refused() {
        let Some(material) = material() else { return };
        let context = context(&material);
        let mut classify = runner(&context, &REGISTRATION, "model = \"mobilenet_v3_small\"");
        let preprocess = &crate::transforms::preprocess::REGISTRATION;
        for table in ["model = \"mobilenet_v3_small_nhwc_probs\"", "width = 224\nheight = 224\ndtype = \"u8\""] {
            let mut preprocess = runner(&context, preprocess, table);
            let frame = crate::transforms::reference::picture(&material, "coral_parrot.jpg");
            let tensor = run(&mut *preprocess, Payload::Frame(Arc::new(frame)));
            let (item, _account) = crate::testing::item(0, crate::time::MediaTime::ZERO, tensor);
            let error = classify.run(&item).unwrap_err().to_string();
            assert!(
                error.contains("[3, 224, 224] of f32") && error.contains("model = \"mobilenet_v3_small\""),
                "{error}"
            );
        }
    }

    #[test]
    fn softmax_may_be_left_out() {
        let Some(material) = material() else { return };
        let context = context(&material);
        let mut raw = runner(&context, &REGISTRATION, "model = \"mobilenet_v3_small\"\nsoftmax = false");
        let (_, json) = record(&mut *raw, crate::transforms::reference::picture(&material, "coral_parrot.jpg"));
        assert_eq!(json["predictions"][0]["score"], 1.0, "a logit above 1 is clamped");
        assert_eq!(
            operator(&context, &REGISTRATION, "model = \"mobilenet_v2\"").model().as_deref(),
            Some("mobilenet_v2")
        );
    }

    #[test]
    fn a_detector_is_refused() {
        let Some(material) = material() else { return };
        let table = toml::from_str("model = \"yolox_nano\"").unwrap();
        let errors = build(&context(&material), table).err().unwrap();
        assert!(errors[0].field == "model" && errors[0].hint.as_deref().unwrap().contains("detect"));
    }

    /// The surroundings of a node, with a model `means` in a folder; `input` are further fields of its input.
    fn means_context(model: &[u8], input: &str) -> (tempfile::TempDir, crate::operator::BuildContext) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("means.onnx");
        std::fs::write(&file, model).unwrap();
        let sha256 = crate::inference::hashes::HashCache::default().sha256(&file).unwrap();
        let manifest = format!(
            "file = \"means.onnx\"\nsha256 = \"{sha256}\"\nlicence = \"MIT\"\n[input]\nname = \"pixels\"\nwidth = 8\n\
             height = 8\n{input}\n[output]\ndecode = \"none\"\nname = \"scores\"\n[labels]\n\
             names = [\"red\", \"green\", \"blue\"]\n"
        );
        std::fs::write(folder.path().join("means.toml"), manifest).unwrap();
        let mut context = context(folder.path());
        let hashes = crate::inference::hashes::HashCache::default();
        context.models = Arc::new(crate::inference::model::Catalog::with_hashes([folder.path().to_owned()], hashes));
        (folder, context)
    }

    /// The score of each label.
    fn scores(json: &serde_json::Value) -> std::collections::BTreeMap<String, f64> {
        let predictions = json["predictions"].as_array().unwrap().iter();
        let score = |one: &serde_json::Value| (one["label"].as_str().unwrap().into(), one["score"].as_f64().unwrap());
        predictions.map(score).collect()
    }

    #[test]
    fn half_precision_goes_in_and_out() {
        let (_folder, context) = means_context(&means(FLOAT16, Some(1)), "dtype = \"f16\"");
        let mut classify = runner(&context, &REGISTRATION, "model = \"means\"");
        let frame = crate::transforms::preprocess::pictures::rgb(8, 8, &[255, 51, 102].repeat(64));
        let (_, json) = record(&mut *classify, frame);
        let found: Vec<(&str, f64)> = json["predictions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|prediction| (prediction["label"].as_str().unwrap(), prediction["score"].as_f64().unwrap()))
            .collect();
        for ((label, score), (wanted, expected)) in found.iter().zip([("red", 1.0), ("blue", 0.4), ("green", 0.2)]) {
            assert!(*label == wanted && (score - expected).abs() < 2e-3, "{found:?}");
        }
        let model = context.models.get("means").unwrap();
        let mut wrong = Model::clone(&model);
        wrong.input.dtype = crate::inference::manifest::ElementType::F32;
        let error = crate::inference::session::ModelSession::open(Arc::new(wrong)).err().unwrap();
        assert!(error.message.contains("elements of"), "{error}");
    }

    /// Runs pictures of one colour each, and where there is none a tensor that does not fit, as one batch.
    fn batch(runner: &mut dyn crate::operator::Runner, colours: &[Option<[u8; 3]>]) -> Vec<Result<f64, String>> {
        let payload = |colour: &Option<[u8; 3]>| match colour {
            Some(colour) => {
                Payload::Frame(Arc::new(crate::transforms::preprocess::pictures::rgb(8, 8, &colour.repeat(64))))
            }
            None => {
                let placement = Placement { source_width: 1, source_height: 1, scale: [1.0; 2], offset: [0.0; 2] };
                let data = crate::item::TensorData::F32(vec![0.0; 3]);
                Payload::Tensor(Arc::new(crate::item::Tensor { shape: [3, 1, 1], data, placement, index: None }))
            }
        };
        let items: Vec<_> = colours
            .iter()
            .zip(0..)
            .map(|(colour, seq)| crate::testing::item(seq, crate::time::MediaTime::ZERO, payload(colour)).0)
            .collect();
        let results = runner.run_batch(&items.iter().collect::<Vec<_>>());
        assert_eq!(results.len(), items.len());
        let read = |(index, result): (usize, Result<Payload, ItemError>)| match result {
            Ok(Payload::Record(record)) => {
                let json = serde_json::to_value(&*record).unwrap();
                assert_eq!(json["seq"], serde_json::json!(index), "the record is its own item's");
                let stages: Vec<&str> = record.timing_ms.keys().copied().collect();
                assert_eq!(stages, ["decode", "infer", "preprocess"]);
                Ok(scores(&json)["red"])
            }
            Ok(_) => panic!("no record"),
            Err(error) => Err(error.to_string()),
        };
        results.into_iter().enumerate().map(read).collect()
    }

    fn close(found: &[Result<f64, String>], expected: &[Option<f64>]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            match (found, expected) {
                (Ok(found), Some(expected)) => assert!((found - expected).abs() < 1e-5, "{found} for {expected}"),
                (Err(error), None) => assert!(error.contains("[3, 8, 8] of f32"), "{error}"),
                _ => panic!("{found:?} for {expected:?}"),
            }
        }
    }

    /// An open batch dimension takes as many as there are, one that is fixed is filled up; what is wrong with one picture
    /// is that one's error alone.
    #[test]
    fn pictures_that_run_together_keep_their_own_results() {
        for (dimension, input) in [(None, ""), (Some(4), "batch = 4")] {
            let (_folder, context) = means_context(&means(FLOAT, dimension), input);
            let table = "model = \"means\"\nbatch = 4\nbatch_wait = \"7ms\"";
            let node = operator(&context, &REGISTRATION, table);
            let wait = std::time::Duration::from_millis(7);
            assert_eq!(node.batching(), Some(crate::operator::Batching { items: 4, wait }));
            let mut runner = node.runner(&mut Sessions::default()).unwrap();
            let (red, grey, black) = (Some([255, 0, 0]), Some([51, 51, 51]), Some([0, 0, 0]));
            close(&batch(&mut *runner, &[red, grey, black, red]), &[Some(1.0), Some(0.2), Some(0.0), Some(1.0)]);
            close(&batch(&mut *runner, &[grey, None, red]), &[Some(0.2), None, Some(1.0)]);
            close(&batch(&mut *runner, &[None, None]), &[None, None]);
            close(&batch(&mut *runner, &[red]), &[Some(1.0)]);
            let frame = crate::transforms::preprocess::pictures::rgb(8, 8, &[51; 192]);
            let (_, json) = record(&mut *runner, frame);
            assert!((scores(&json)["red"] - 0.2).abs() < 1e-5, "one by itself");
        }
    }

    /// Where the file fixes the number, nothing needs to be said, and nothing else may be.
    #[test]
    fn a_fixed_batch_is_the_default_and_the_only_choice() {
        let (_folder, context) = means_context(&means(FLOAT, Some(4)), "batch = 4");
        let node = operator(&context, &REGISTRATION, "model = \"means\"");
        assert_eq!(node.batching().map(|batching| batching.items), Some(4));
        let refused = |context: &crate::operator::BuildContext, table: &str| {
            let error = build(context, toml::from_str(table).unwrap()).err().unwrap().remove(0);
            (error.field, error.message, error.hint.unwrap())
        };
        for other in [1, 2, 8] {
            let (field, message, hint) = refused(&context, &format!("model = \"means\"\nbatch = {other}"));
            assert_eq!((&*field, &*hint), ("batch", "write `batch = 4`"));
            assert!(message.contains(&format!("takes 4 pictures at once, not {other}")), "{message}");
        }
        // Its manifest does not say so.
        let (_folder, context) = means_context(&means(FLOAT, Some(4)), "");
        let (field, message, hint) = refused(&context, "model = \"means\"\nbatch = 3");
        assert!(field == "batch" && message.contains("takes 4 pictures at once, not 3"), "{message}");
        assert!(hint.contains("`batch = 4`") && hint.contains("[input]"), "{hint}");
        assert!(operator(&context, &REGISTRATION, "model = \"means\"\nbatch = 4").batching().is_some());

        let (_folder, context) = means_context(&means(FLOAT, Some(1)), "");
        let (field, message, _) = refused(&context, "model = \"means\"\nbatch = 2");
        assert!(field == "batch" && message.contains("takes one picture at a time"), "{message}");
        assert_eq!(operator(&context, &REGISTRATION, "model = \"means\"").batching(), None);
    }
}
