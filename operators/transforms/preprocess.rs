//! `preprocess`: turns a picture into the tensor that a model eats.
//!
//! `classify` and `detect` do this by themselves, as their model's manifest says. A node of its own is for another way
//! than the manifest's, or for one tensor that several models share.

pub mod geometry;
pub mod kernel;
#[cfg(test)]
pub(crate) mod pictures;

use std::sync::Arc;

use crate::config::{self, Field, FieldType, Presence};
use crate::error::{FieldError, ItemError, StartError};
use crate::inference::manifest::{InputFields, InputSpec, LARGEST_SIDE};
use crate::inference::session::Sessions;
use crate::item::{Item, Kind, Payload};
use crate::operator::{BuildContext, Built, Execution, PoolOperator, Produces, Registration, Role, Runner};
use crate::transforms::preprocess::kernel::Preprocessor;

struct Preprocess {
    spec: InputSpec,
}

impl PoolOperator for Preprocess {
    fn runner(&self, _sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
        Ok(Box::new(PreprocessRunner { preprocessor: Preprocessor::new(self.spec.clone()) }))
    }

    fn makes(&self) -> Option<&InputSpec> {
        Some(&self.spec)
    }

    fn memory(&self) -> u64 {
        Preprocessor::memory(&self.spec)
    }
}

struct PreprocessRunner {
    preprocessor: Preprocessor,
}

impl Runner for PreprocessRunner {
    fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
        let Payload::Frame(frame) = &item.payload else {
            return Err(ItemError::Failed(format!("`preprocess` takes frames, not {}", item.payload.kind().plural())));
        };
        Ok(Payload::Tensor(Arc::new(self.preprocessor.tensor(frame)?)))
    }
}

fn build(context: &BuildContext, mut table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let model = match table.remove("model") {
        Some(toml::Value::String(name)) => Some(context.models.get(&name).map_err(|error| vec![error.at("model")])?),
        Some(_) => return Err(vec![FieldError::new("model", "`model` is the name of a model")]),
        None => None,
    };
    lengths(&table)?;
    let own: InputFields = config::read(table)?;
    let fields = match &model {
        Some(model) => own.over(&model.input_fields),
        None => own,
    };
    let as_error = |mistake: crate::inference::manifest::InputMistake| {
        let error = FieldError::new(mistake.field, mistake.message);
        match REGISTRATION.fields.iter().find(|field| field.name == mistake.field) {
            Some(field) => error.hint(format!("`{}`: {}", field.name, field.summary.trim_end_matches('.'))),
            None => error,
        }
    };
    let spec = fields.resolve().map_err(|mistakes| mistakes.into_iter().map(as_error).collect::<Vec<_>>())?;
    Ok(Built::Pool(Arc::new(Preprocess { spec })))
}

/// Lists of a fixed length, which a field's type cannot say.
fn lengths(table: &toml::Table) -> Result<(), Vec<FieldError>> {
    const LENGTHS: [(&str, usize, &str); 3] = [
        ("mean", 3, "three numbers, one for each channel, such as `mean = [0.485, 0.456, 0.406]`"),
        ("std", 3, "three numbers, one for each channel, such as `std = [0.229, 0.224, 0.225]`"),
        ("largest", 2, "a width and a height, such as `largest = [1920, 1080]`"),
    ];
    let mut mistakes = Vec::new();
    for (field, length, meant) in LENGTHS {
        let given = table.get(field).and_then(toml::Value::as_array).map_or(length, Vec::len);
        if given != length {
            let message = format!("`{field}` is a list of {length}, not of {given}");
            mistakes.push(FieldError::new(field, message).hint(format!("write {meant}")));
        }
    }
    if mistakes.is_empty() { Ok(()) } else { Err(mistakes) }
}

const SIDE: FieldType = FieldType::Integer { minimum: 1, maximum: LARGEST_SIDE as i64 };
const NUMBER: FieldType = FieldType::Number { minimum: f64::MIN, maximum: f64::MAX };

const fn optional(name: &'static str, value: FieldType, summary: &'static str) -> Field {
    Field { name, value, presence: Presence::Optional, summary }
}

pub static REGISTRATION: Registration = Registration {
    name: "preprocess",
    role: Role::Operator,
    summary: "Turns a picture into the tensor that a model eats.",
    execution: Execution::Pool,
    accepts: &[Kind::Frame],
    produces: Produces::Kinds(&[Kind::Tensor]),
    fields: &[
        optional("model", FieldType::Model, "Takes what is left out here from the manifest of this model."),
        optional("width", SIDE, "Width of the tensor in pixels. Left out with `height`: the picture's own size."),
        optional("height", SIDE, "Height of the tensor in pixels."),
        optional(
            "largest",
            FieldType::List(&SIDE),
            "Without `width` and `height`: pictures larger than this [width, height] are made smaller. Left out: \
             [1920, 1080].",
        ),
        optional(
            "layout",
            FieldType::Choice(&["nchw", "nhwc"]),
            "Order of the dimensions: channels first or last. Left out: nchw.",
        ),
        optional("dtype", FieldType::Choice(&["f32", "f16", "u8"]), "Type of the numbers. Left out: f32."),
        optional("color", FieldType::Choice(&["rgb", "bgr"]), "Order of the channels. Left out: rgb."),
        optional(
            "range",
            FieldType::Choice(&["unit", "byte"]),
            "What samples span before `mean` and `std`: unit is 0..1, byte is 0..255. Left out: unit for f32 and \
             f16, byte for u8.",
        ),
        optional(
            "mean",
            FieldType::List(&NUMBER),
            "Subtracted from the three channels, in the tensor's order and in the unit of `range`. Left out: 0.",
        ),
        optional("std", FieldType::List(&NUMBER), "What is left is divided by this. Left out: 1."),
        optional(
            "resize",
            FieldType::Choice(&["stretch", "letterbox", "crop"]),
            "stretch: both sides, whatever the aspect; letterbox: the whole picture, the rest padded; crop: the shorter \
             side to `shorter_side`, then the centre. Left out: stretch.",
        ),
        optional(
            "shorter_side",
            SIDE,
            "For `crop`: the picture's shorter side, in pixels, before the centre is cut out. Left out: the larger of \
             width and height.",
        ),
        optional(
            "anchor",
            FieldType::Choice(&["centre", "center", "top_left"]),
            "For `letterbox`: where the picture lies. Left out: centre.",
        ),
        optional(
            "pad",
            FieldType::Integer { minimum: 0, maximum: 255 },
            "For `letterbox`: the sample of the padding. Left out: 114.",
        ),
        optional(
            "antialias",
            FieldType::Boolean,
            "Whether every source pixel counts when a picture is made smaller, or only the four nearest. Left out: true.",
        ),
    ],
    example: "[operators.tensors]\ntype = \"preprocess\"\ninputs = [\"cameras\"]\nwidth = 224\nheight = 224\n\
              resize = \"crop\"\nshorter_side = 256\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item::{PixelFormat, TensorData};
    use crate::transforms::preprocess::pictures::picture;
    use crate::transforms::reference::{context, run, runner};
    use std::path::Path;

    fn mistakes(table: &str) -> Vec<FieldError> {
        build(&context(Path::new("")), toml::from_str(table).unwrap()).err().unwrap()
    }

    #[test]
    fn a_frame_becomes_a_tensor_that_knows_its_way_back() {
        let table = "width = 64\nheight = 64\nresize = \"letterbox\"\nlayout = \"nhwc\"\ndtype = \"u8\"";
        let mut runner = runner(&context(Path::new("")), &REGISTRATION, table);
        let frame = picture(PixelFormat::Yuv420p, 128, 64, 3, |plane, _, _| [235, 128, 128][plane]);
        let Payload::Tensor(tensor) = run(&mut *runner, Payload::Frame(Arc::new(frame))) else { panic!("no tensor") };
        assert_eq!((tensor.shape, tensor.index), ([64, 64, 3], Some(0)));
        assert_eq!(tensor.placement.to_source([0.0, 16.0, 64.0, 48.0]), [0.0, 0.0, 128.0, 64.0]);
        let TensorData::U8(samples) = &tensor.data else { panic!("asked for u8") };
        let at = |x: usize, y: usize| &samples[(y * 64 + x) * 3..][..3];
        assert_eq!(
            (at(0, 0), at(5, 16), at(63, 47), at(63, 48)),
            (&[114; 3][..], &[255; 3][..], &[255; 3][..], &[114; 3][..])
        );
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let errors = mistakes("width = 64\nheight = 64\npad = 3\nshorter_side = 100");
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["pad", "shorter_side"]);
        for error in &errors {
            let hint = error.hint.as_deref().unwrap();
            assert!(hint.contains("For `"), "it says what the field is for: {hint}");
        }
        let errors = mistakes("mean = [1, 2]\nstd = []\nlargest = [10, 10, 10]");
        let messages: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
        let expected =
            ["`mean` is a list of 3, not of 2", "`std` is a list of 3, not of 0", "`largest` is a list of 2, not of 3"];
        assert_eq!(messages, expected);
        assert_eq!(mistakes("model = \"yolox_nanu\"")[0].hint.as_deref(), Some("did you mean `yolox_nano`?"));
    }

    #[test]
    fn the_example_builds() {
        let example: toml::Table = toml::from_str(REGISTRATION.example).unwrap();
        let mut table = example["operators"]["tensors"].as_table().unwrap().clone();
        table.retain(|key, _| !["type", "inputs"].contains(&key));
        assert!(build(&context(Path::new("")), table).is_ok());
    }
}
