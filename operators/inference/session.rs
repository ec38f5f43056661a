//! ONNX Runtime sessions, one for each model and thread.
//!
//! A session runs on the thread that calls it (intra-op 1, inter-op 1): the pool's threads are the parallelism. It takes
//! one picture, or several at once where the model leaves its batch dimension open or fixes it; then what is missing is
//! filled up with empty pictures. When it is made, its inputs and outputs are compared with the manifest and it is
//! warmed up.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{DynValue, Outlet, PrimitiveTensorElementType, TensorElementType, TensorRef};

use crate::error::{ItemError, StartError};
use crate::inference::decode::{fastestdet, ssd, yolo, yolox};
use crate::inference::device::Device;
use crate::inference::manifest::{ElementType, InputSize, OutputSpec, takes_one_at_a_time};
use crate::inference::model::Model;
use crate::inference::runtime;

/// Name and hash of a model, and where it runs.
type Key = (Arc<str>, Arc<str>, Device);

/// The sessions of one pool thread, shared between the nodes that run the same model. A session goes when the last
/// node that uses it goes.
#[derive(Default)]
pub struct Sessions {
    open: BTreeMap<Key, Weak<RefCell<ModelSession>>>,
}

impl Sessions {
    /// The session of `model` on this thread and the processor: made, checked and warmed up by the first caller.
    pub fn get(&mut self, model: &Arc<Model>) -> Result<Rc<RefCell<ModelSession>>, StartError> {
        self.get_on(model, Device::Cpu, model.batch)
    }

    /// As [`Sessions::get`], on `device`, for up to `batch` pictures at once.
    pub fn get_on(
        &mut self,
        model: &Arc<Model>,
        device: Device,
        batch: usize,
    ) -> Result<Rc<RefCell<ModelSession>>, StartError> {
        let key = (model.name.name.clone(), model.name.sha256.clone(), device);
        if let Some(session) = self.open.get(&key).and_then(Weak::upgrade) {
            session.borrow_mut().make_ready(batch)?;
            return Ok(session);
        }
        let session = Rc::new(RefCell::new(ModelSession::open_on(model.clone(), device, 1, batch)?));
        self.open.retain(|_, session| session.strong_count() > 0);
        self.open.insert(key, Rc::downgrade(&session));
        Ok(session)
    }
}

/// The values of an input tensor, in the order of its shape; of several pictures one after the other.
#[derive(Clone, Copy, Debug)]
pub enum InputValues<'a> {
    F32(&'a [f32]),
    F16(&'a [half::f16]),
    U8(&'a [u8]),
}

/// A loaded model on one thread.
pub struct ModelSession {
    model: Arc<Model>,
    session: Session,
    /// How many pictures a run always takes, where the model says so.
    fixed: Option<usize>,
}

impl ModelSession {
    /// Loads `model`, checks it against its manifest and runs it once on an empty picture; on the processor, with one
    /// thread.
    pub fn open(model: Arc<Model>) -> Result<ModelSession, StartError> {
        let batch = model.batch;
        ModelSession::open_on(model, Device::Cpu, 1, batch)
    }

    /// As [`ModelSession::open`], on `device`, with `threads` threads of ONNX Runtime's own, for up to `batch` pictures
    /// at once.
    pub fn open_on(
        model: Arc<Model>,
        device: Device,
        threads: usize,
        batch: usize,
    ) -> Result<ModelSession, StartError> {
        device.check()?;
        let session = load(&model, device, threads, GraphOptimizationLevel::All)?;
        let fixed = batch_dimension(&model, &session).filter(|length| *length > 1);
        let mut session = ModelSession { model, session, fixed };
        session.make_ready(batch)?;
        Ok(session)
    }

    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Checks the model against its manifest for `batch` pictures at once, and runs it once on as many empty ones.
    fn make_ready(&mut self, batch: usize) -> Result<(), StartError> {
        let model = &self.model;
        let differences = differences(model, batch, self.session.inputs(), self.session.outputs());
        if !differences.is_empty() {
            let message = format!(
                "model `{}` has another shape than its manifest says: {}",
                model.name.name,
                differences.join("; ")
            );
            return Err(StartError::new(message).hint(format!(
                "correct [input] and [output] of the manifest of `{}`, or use the file that belongs to it",
                model.name.name
            )));
        }
        self.run_empty(batch).map_err(|error| {
            StartError::new(format!("model `{}` fails on an empty picture: {error}", self.model.name.name))
                .hint("the file is damaged, or its manifest does not describe what goes in and what comes out")
        })
    }

    /// Runs the model on `count` empty pictures; of at most 640 x 360 pixels where it takes any size.
    pub fn run_empty(&mut self, count: usize) -> Result<(), ItemError> {
        let (width, height) = match self.model.input.size {
            InputSize::Fixed { width, height } => (width, height),
            InputSize::Source { width, height } => (width.min(640), height.min(360)),
        };
        let shape = self.model.input.shape(width, height);
        let length = count * shape.iter().product::<usize>();
        match self.model.input.dtype {
            ElementType::F32 => self.run_batch(shape, count, InputValues::F32(&vec![0.0; length]), |_| Ok(())),
            ElementType::F16 => {
                self.run_batch(shape, count, InputValues::F16(&vec![half::f16::ZERO; length]), |_| Ok(()))
            }
            ElementType::U8 => self.run_batch(shape, count, InputValues::U8(&vec![0; length]), |_| Ok(())),
        }
    }

    /// Runs the model on one picture of `shape` (without the batch dimension) and hands its outputs to `read`. The
    /// input is not copied.
    pub fn run<R>(
        &mut self,
        shape: [usize; 3],
        values: InputValues<'_>,
        read: impl FnOnce(&Outputs<'_>) -> Result<R, ItemError>,
    ) -> Result<R, ItemError> {
        self.run_batch(shape, 1, values, |answers| read(&answers.of(0)))
    }

    /// Runs the model on `count` pictures of `shape` at once and hands what it answers to `read`. The input is copied
    /// only where the model always takes more of them.
    pub fn run_batch<R>(
        &mut self,
        shape: [usize; 3],
        count: usize,
        values: InputValues<'_>,
        read: impl FnOnce(&Answers<'_>) -> Result<R, ItemError>,
    ) -> Result<R, ItemError> {
        let name = &self.model.name.name;
        let failed = |error: ort::Error| ItemError::Failed(format!("model `{name}` failed: {error}"));
        let slots = self.fixed.unwrap_or(count);
        if count > slots {
            return Err(ItemError::Failed(format!("model `{name}` takes {slots} pictures at once, not {count}")));
        }
        let batch = [slots, shape[0], shape[1], shape[2]];
        let length = batch.iter().product();
        let outputs = match values {
            InputValues::F32(values) => {
                let values = filled(values, length);
                let input = TensorRef::from_array_view((batch, &*values)).map_err(failed)?;
                self.session.run(ort::inputs![input])
            }
            InputValues::F16(values) => {
                let values = filled(values, length);
                let input = TensorRef::from_array_view((batch, &*values)).map_err(failed)?;
                self.session.run(ort::inputs![input])
            }
            InputValues::U8(values) => {
                let values = filled(values, length);
                let input = TensorRef::from_array_view((batch, &*values)).map_err(failed)?;
                self.session.run(ort::inputs![input])
            }
        };
        let outputs: Vec<(&str, DynValue)> = outputs.map_err(failed)?.into_iter().collect();
        let shape = |wanted: &str| {
            let (_, value) = outputs.iter().find(|(name, _)| *name == wanted)?;
            Some(value.dtype().tensor_shape()?.to_vec())
        };
        check_answer(&expected_outputs(&self.model, slots), name, shape)?;
        read(&Answers { model: &self.model, slots, outputs })
    }
}

/// `values`, with zeros behind them up to `length`.
fn filled<T: Clone + Default>(values: &[T], length: usize) -> Cow<'_, [T]> {
    if values.len() >= length {
        return Cow::Borrowed(values);
    }
    let mut filled = Vec::with_capacity(length);
    filled.extend_from_slice(values);
    filled.resize(length, T::default());
    Cow::Owned(filled)
}

fn load(
    model: &Model,
    device: Device,
    threads: usize,
    optimization: GraphOptimizationLevel,
) -> Result<Session, StartError> {
    let environment = runtime::environment()?;
    let build = || -> ort::Result<Session> {
        Session::builder(environment)?
            .with_log_level(LogLevel::Warning)?
            .with_optimization_level(optimization)?
            .with_intra_threads(threads)?
            .with_inter_threads(1)?
            .with_execution_providers(device.providers())?
            .commit_from_file(&model.path)
    };
    build().map_err(|error| {
        StartError::new(format!("model `{}`, {}, cannot be loaded: {error}", model.name.name, model.path.display()))
            .hint("the file must be an ONNX model that this version of ONNX Runtime knows")
    })
}

/// How many pictures the file of `model` takes at once; `None` where it leaves that open.
fn batch_dimension(model: &Model, session: &Session) -> Option<usize> {
    let input = session.inputs().iter().find(|outlet| outlet.name() == model.input_name)?;
    input.dtype().tensor_shape()?.first().and_then(|length| usize::try_from(*length).ok())
}

/// Whether `batch` pictures, more than one, can go into `model` at once, as its manifest and its file say.
///
/// # Errors
/// Where they cannot, or the file is no model.
pub fn check_batch(model: &Model, batch: usize) -> Result<(), StartError> {
    let name = &model.name.name;
    if let Some(why) = takes_one_at_a_time(&model.input, &model.output) {
        return Err(
            StartError::new(format!("model `{name}` takes one picture at a time: {why}")).hint("leave `batch` out")
        );
    }
    let session = load(model, Device::Cpu, 1, GraphOptimizationLevel::Disable)?;
    match batch_dimension(model, &session) {
        Some(1) => {
            let message =
                format!("model `{name}` takes one picture at a time: its file fixes the batch dimension to 1");
            Err(StartError::new(message).hint("export it with an open batch dimension, or leave `batch` out"))
        }
        Some(fixed) if fixed != batch => {
            let message = format!("model `{name}` takes {fixed} pictures at once, not {batch}");
            Err(StartError::new(message)
                .hint(format!("write `batch = {fixed}`, and that into [input] of its manifest")))
        }
        _ => {
            let differences = differences(model, batch, session.inputs(), session.outputs());
            if differences.is_empty() {
                return Ok(());
            }
            let message = format!("model `{name}` cannot take {batch} pictures at once: {}", differences.join("; "));
            Err(StartError::new(message).hint("export it with an open batch dimension in all inputs and outputs"))
        }
    }
}

/// What a model answered to the pictures of one run.
pub struct Answers<'a> {
    model: &'a Model,
    /// How many pictures went in, empty ones included.
    slots: usize,
    outputs: Vec<(&'a str, DynValue)>,
}

impl Answers<'_> {
    /// What it answered to the picture `index` of the run.
    pub fn of(&self, index: usize) -> Outputs<'_> {
        Outputs { model: self.model, outputs: &self.outputs, index, slots: self.slots }
    }
}

/// What a model answered to one picture.
pub struct Outputs<'a> {
    model: &'a Model,
    outputs: &'a [(&'a str, DynValue)],
    index: usize,
    slots: usize,
}

impl Outputs<'_> {
    /// The values of the output `name`; those of half precision are widened.
    pub fn f32(&self, name: &str) -> Result<Cow<'_, [f32]>, ItemError> {
        let element = self.get(name).and_then(|value| value.dtype().tensor_type());
        if element == Some(TensorElementType::Float16) {
            return Ok(Cow::Owned(self.values::<half::f16>(name)?.to_f32_vec()));
        }
        self.values(name).map(Cow::Borrowed)
    }

    /// The values of the output `name`.
    pub fn i64(&self, name: &str) -> Result<&[i64], ItemError> {
        self.values(name)
    }

    fn get(&self, name: &str) -> Option<&DynValue> {
        self.outputs.iter().find(|(output, _)| *output == name).map(|(_, value)| value)
    }

    fn values<T: PrimitiveTensorElementType>(&self, name: &str) -> Result<&[T], ItemError> {
        let failed = |why: &dyn std::fmt::Display| {
            ItemError::Failed(format!("output `{name}` of model `{}` cannot be read: {why}", self.model.name.name))
        };
        let value = self.get(name).ok_or_else(|| failed(&"there is none"))?;
        let (shape, values) = value.try_extract_tensor::<T>().map_err(|error| failed(&error))?;
        if self.slots == 1 {
            return Ok(values);
        }
        if shape.first().is_none_or(|length| usize::try_from(*length) != Ok(self.slots)) {
            return Err(failed(&format!("its shape is {shape:?}, but {} pictures went in", self.slots)));
        }
        let length = values.len() / self.slots;
        values.get(self.index * length..(self.index + 1) * length).ok_or_else(|| failed(&"it is too short"))
    }
}

/// What a tensor of a model should be; `None` stands for any length.
struct Expected<'a> {
    what: &'static str,
    name: &'a str,
    element: TensorElementType,
    shape: Vec<Option<usize>>,
}

impl Expected<'_> {
    /// How the real tensor differs, in words.
    fn difference(&self, real: &[Outlet]) -> Option<String> {
        let Expected { what, name, element, .. } = self;
        let Some(outlet) = real.iter().find(|outlet| outlet.name() == *name) else {
            let names: Vec<String> = real.iter().map(|outlet| format!("`{}`", outlet.name())).collect();
            return Some(format!("there is no {what} `{name}`, only {}", names.join(", ")));
        };
        let (Some(real_element), Some(real_shape)) = (outlet.dtype().tensor_type(), outlet.dtype().tensor_shape())
        else {
            return Some(format!("{what} `{name}` is no tensor"));
        };
        // An output of half precision is widened when it is read.
        let widened =
            *what == "output" && (real_element, *element) == (TensorElementType::Float16, TensorElementType::Float32);
        if real_element != *element && !widened {
            return Some(format!("{what} `{name}` has elements of {real_element}, not {element}"));
        }
        self.misshapen(real_shape)
    }

    /// How the shape of the real tensor differs, in words.
    fn misshapen(&self, real: &[i64]) -> Option<String> {
        let Expected { what, name, shape, .. } = self;
        // A negative length of the model is one that it leaves open.
        let fits = real.len() == shape.len()
            && real.iter().zip(shape).all(|(real, expected)| {
                expected.is_none_or(|expected| *real < 0 || usize::try_from(*real) == Ok(expected))
            });
        let written = |length: &Option<usize>| length.map_or_else(|| "?".to_owned(), |length| length.to_string());
        (!fits).then(|| {
            let real: Vec<String> = real.iter().map(|length| written(&usize::try_from(*length).ok())).collect();
            let expected: Vec<String> = shape.iter().map(written).collect();
            format!("{what} `{name}` is [{}], not [{}]", real.join(", "), expected.join(", "))
        })
    }
}

/// Compares the shapes of an answer of `model` with what its manifest says: a model may leave lengths open until it runs.
fn check_answer(
    expected: &[Expected<'_>],
    model: &str,
    shape: impl Fn(&str) -> Option<Vec<i64>>,
) -> Result<(), ItemError> {
    match expected.iter().find_map(|output| output.misshapen(&shape(output.name)?)) {
        Some(difference) => Err(ItemError::Failed(format!(
            "model `{model}` answers another shape than its manifest says: {difference}"
        ))),
        None => Ok(()),
    }
}

/// Everything in which a model differs from its manifest when it gets `batch` pictures at once.
fn differences(model: &Model, batch: usize, inputs: &[Outlet], outputs: &[Outlet]) -> Vec<String> {
    let mut differences = Vec::new();
    if inputs.len() != 1 {
        let names: Vec<String> = inputs.iter().map(|outlet| format!("`{}`", outlet.name())).collect();
        differences.push(format!("it has {} inputs ({}), not one", inputs.len(), names.join(", ")));
    }
    let element = match model.input.dtype {
        ElementType::F32 => TensorElementType::Float32,
        ElementType::F16 => TensorElementType::Float16,
        ElementType::U8 => TensorElementType::Uint8,
    };
    let side = match model.input.size {
        InputSize::Fixed { width, height } => model.input.shape(width, height).map(Some),
        // The sides stay open: 3 is the only length that is known.
        InputSize::Source { .. } => model.input.shape(0, 0).map(|length| (length > 0).then_some(length)),
    };
    let shape = std::iter::once(Some(batch)).chain(side).collect();
    differences.extend(Expected { what: "input", name: &model.input_name, element, shape }.difference(inputs));
    differences.extend(expected_outputs(model, batch).into_iter().filter_map(|expected| expected.difference(outputs)));
    differences
}

fn expected_outputs(model: &Model, batch: usize) -> Vec<Expected<'_>> {
    let classes = model.labels.len();
    let output = |name, element, shape| Expected { what: "output", name, element, shape };
    let floats = |name, shape| output(name, TensorElementType::Float32, shape);
    let batch = Some(batch);
    match &model.output {
        OutputSpec::Softmax { name } | OutputSpec::None { name } => vec![floats(name, vec![batch, Some(classes)])],
        OutputSpec::Yolox { name, strides } => {
            let rows = match model.input.size {
                InputSize::Fixed { width, height } => Some(yolox::rows(width, height, strides)),
                InputSize::Source { .. } => None,
            };
            vec![floats(name, vec![batch, rows, Some(classes + yolox::BOX_COLUMNS)])]
        }
        OutputSpec::Fastestdet { name } => {
            let side = |pixels: u32| Some((pixels / fastestdet::STRIDE) as usize);
            let [columns, rows] = match model.input.size {
                InputSize::Fixed { width, height } => [side(width), side(height)],
                InputSize::Source { .. } => [None; 2],
            };
            vec![floats(name, vec![batch, Some(classes + fastestdet::BOX_PLANES), rows, columns])]
        }
        OutputSpec::Yolov5 { name } => vec![floats(name, vec![batch, None, Some(classes + yolo::V5_COLUMNS)])],
        OutputSpec::Yolov8 { name } => vec![floats(name, vec![batch, Some(classes + yolo::V8_PLANES), None])],
        OutputSpec::Ssd { boxes, scores, layers, background, .. } => {
            let anchors = Some(ssd::anchors(layers));
            vec![
                floats(boxes, vec![batch, anchors, Some(4)]),
                floats(scores, vec![batch, anchors, Some(classes + usize::from(*background))]),
            ]
        }
        OutputSpec::BoxesLabelsScores { boxes, labels, scores } => vec![
            floats(boxes, vec![None, Some(4)]),
            output(labels, TensorElementType::Int64, vec![None]),
            floats(scores, vec![None]),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::manifest::Layout;
    use crate::transforms::reference::{context, material};

    /// The message for a model whose manifest was changed by `change`.
    fn refusal(name: &str, change: impl FnOnce(&mut Model)) -> Option<String> {
        let material = material()?;
        let mut model = Model::clone(&*context(&material).models.get(name).unwrap());
        change(&mut model);
        let error = ModelSession::open(Arc::new(model)).err().expect("the model is refused");
        assert!(error.hint.is_some());
        Some(error.message)
    }

    fn refused(name: &str, says: &[&str], change: impl FnOnce(&mut Model)) {
        if let Some(message) = refusal(name, change) {
            for part in says {
                assert!(message.contains(part), "{message}");
            }
        }
    }

    #[test]
    fn a_model_of_another_shape_is_refused_with_every_difference() {
        refused("mobilenet_v3_small", &["no input `pixels`, only `input`"], |model| model.input_name = "pixels".into());
        refused("mobilenet_v3_small", &["elements of", "input `input`"], |model| model.input.dtype = ElementType::U8);
        refused("mobilenet_v3_small", &["[1, 224, 224, 3]"], |model| model.input.layout = Layout::Nhwc);
        refused("yolox_nano", &["[1, 3, 416, 416], not [1, 3, 320, 416]", "3549", "2730"], |model| {
            model.input.size = InputSize::Fixed { width: 416, height: 320 };
        });
        refused("yolox_nano", &["no output `rows`"], |model| {
            model.output = OutputSpec::Yolox { name: "rows".into(), strides: vec![8, 16, 32] };
        });
        refused("mobilenet_v2", &["1000], not [1, 1]"], |model| {
            model.labels = crate::inference::model::Labels::new(["cat"]);
        });
    }

    #[test]
    fn an_answer_of_another_shape_is_an_error() {
        let expected = [Expected {
            what: "output",
            name: "rows",
            element: TensorElementType::Float32,
            shape: vec![Some(1), Some(6), None],
        }];
        let answer = |shape: &[i64]| check_answer(&expected, "m", |name| (name == "rows").then(|| shape.to_vec()));
        assert!(answer(&[1, 6, 100]).is_ok());
        let error = answer(&[1, 100, 6]).unwrap_err().to_string();
        assert!(error.contains("model `m`") && error.contains("`rows` is [1, 100, 6], not [1, 6, ?]"), "{error}");
        assert!(answer(&[2, 6, 100]).is_err() && answer(&[6, 100]).is_err());
    }

    /// An ONNX model that takes [1, 3, 64, 64] and answers values of `shape`, which its file leaves open.
    fn with_open_shape(shape: [u8; 3]) -> Vec<u8> {
        fn field(number: u8, content: &[u8]) -> Vec<u8> {
            let length = content.len();
            let length = if length < 128 { vec![length as u8] } else { vec![length as u8 | 128, (length >> 7) as u8] };
            [&[number << 3 | 2], &length[..], content].concat()
        }
        let number = |field: u8, value: u8| [field << 3, value];
        let node = |kind: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]| {
            let inputs: Vec<u8> = inputs.iter().flat_map(|input| field(1, input.as_bytes())).collect();
            let rest = [field(2, output.as_bytes()), field(4, kind.as_bytes()), attributes.concat()].concat();
            field(1, &[inputs, rest].concat())
        };
        const INTEGER: [u8; 3] = [0xa0, 1, 2];
        const TENSOR: [u8; 3] = [0xa0, 1, 4];
        let integer =
            |name: &str, value| field(5, &[&field(1, name.as_bytes())[..], &number(3, value), &INTEGER].concat());
        let tensor = |content: &[u8]| field(5, &[&field(1, b"value")[..], &field(5, content), &TENSOR].concat());
        let value = |number: u8, name: &str, lengths: &[Vec<u8>]| {
            let lengths: Vec<u8> = lengths.iter().flat_map(|length| field(1, length)).collect();
            let kind = field(1, &[vec![8, 1], field(2, &lengths)].concat());
            field(number, &[field(1, name.as_bytes()), field(2, &kind)].concat())
        };
        const INT64: u8 = 7;
        let graph = [
            // The shape depends on the picture, so that nobody can tell it beforehand: 0 times its largest sample.
            node("Cast", &["images"], "whole", &[integer("to", INT64)]),
            node("ReduceMax", &["whole"], "most", &[integer("keepdims", 0)]),
            node("Constant", &[], "zero", &[tensor(&[8, 1, 16, INT64, 0x38, 0])]),
            node("Mul", &["most", "zero"], "nothing", &[]),
            node(
                "Constant",
                &[],
                "lengths",
                &[tensor(&[8, 3, 16, INT64, 0x38, shape[0], 0x38, shape[1], 0x38, shape[2]])],
            ),
            node("Add", &["lengths", "nothing"], "shape", &[]),
            node("ConstantOfShape", &["shape"], "rows", &[tensor(&[8, 1, 16, 1, 0x22, 4, 0, 0, 0, 0x3f])]),
            field(2, b"g"),
            value(11, "images", &[1, 3, 64, 64].map(|length| number(1, length).to_vec())),
            value(12, "rows", &["a", "b", "c"].map(|length| field(2, length.as_bytes()))),
        ];
        [&number(1, 8)[..], &field(7, &graph.concat()), &field(8, &number(2, 13))].concat()
    }

    #[test]
    fn a_model_that_answers_another_shape_than_its_manifest_says_is_refused_when_it_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("open.onnx");
        let open = |shape| {
            std::fs::write(&path, with_open_shape(shape)).unwrap();
            let sha256 = crate::inference::hashes::HashCache::default().sha256(&path).unwrap();
            let manifest = format!(
                "summary = 'x'\nfile = 'open.onnx'\nsha256 = '{sha256}'\nlicence = 'MIT'\n\
                 [input]\nname = 'images'\nlayout = 'nchw'\ndtype = 'f32'\nwidth = 64\nheight = 64\n\
                 color = 'rgb'\nrange = 'unit'\nresize = 'stretch'\n\
                 [output]\ndecode = 'yolov8'\nname = 'rows'\n[labels]\nnames = ['a', 'b']\ncount = 2\n"
            );
            std::fs::write(folder.path().join("open.toml"), manifest).unwrap();
            let catalog = crate::inference::model::Catalog::open(vec![folder.path().to_owned()]);
            ModelSession::open(catalog.get("open").unwrap()).map(|_| ())
        };
        open([1, 6, 100]).unwrap();
        let error = open([1, 100, 6]).unwrap_err();
        assert!(error.message.contains("`rows` is [1, 100, 6], not [1, 6, ?]"), "{error}");
        assert!(error.hint.is_some());
    }

    #[test]
    fn a_file_that_is_no_model_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let garbage = folder.path().join("garbage.onnx");
        std::fs::write(&garbage, b"not a model").unwrap();
        refused("mobilenet_v2", &["garbage.onnx", "cannot be loaded"], |model| model.path = garbage);
    }

    #[test]
    fn nodes_of_one_thread_share_a_session_as_long_as_one_lives() {
        let Some(material) = material() else { return };
        let model = context(&material).models.get("mobilenet_v3_small").unwrap();
        let mut sessions = Sessions::default();
        let first = sessions.get(&model).unwrap();
        assert!(Rc::ptr_eq(&first, &sessions.get(&model).unwrap()));
        let gone = Rc::downgrade(&first);
        drop(first);
        assert_eq!(gone.strong_count(), 0);
        assert!(sessions.get(&model).is_ok());
    }
}
