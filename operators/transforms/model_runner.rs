//! What `classify` and `detect` share: the fields that choose a model, and the way of a picture or a tensor through it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::clock::Clock;
use crate::config::{self, Field, FieldType, Presence};
use crate::error::{FieldError, ItemError, StartError};
use crate::inference::device::Device;
use crate::inference::manifest::{ElementType, InputSize, InputSpec, LARGEST_BATCH};
use crate::inference::model::Model;
use crate::inference::session::{InputValues, ModelSession, Outputs, Sessions, check_batch};
use crate::item::{Item, Origin, Payload, Placement, RecordBody, Tensor, TensorData};
use crate::operator::{Batching, BuildContext, PoolOperator, Runner};
use crate::transforms::preprocess::kernel::Preprocessor;

/// The fields that say which model runs, where, and on how many pictures at once.
#[derive(Deserialize)]
pub(super) struct ModelConfig {
    pub model: String,
    device: Option<String>,
    batch: Option<usize>,
    batch_wait: Option<config::Duration>,
}

/// How long a picture waits for others where the graph does not say.
const BATCH_WAIT: Duration = Duration::from_millis(5);
/// The longest that a graph may say: far below the deadline of a job.
const LONGEST_BATCH_WAIT: Duration = Duration::from_secs(5);

/// The field `model`.
pub(super) const fn model_field(summary: &'static str) -> Field {
    Field { name: "model", value: FieldType::Model, presence: Presence::Required, summary }
}

/// The field `device`.
pub(super) const DEVICE_FIELD: Field = Field {
    name: "device",
    value: FieldType::String,
    presence: Presence::Default("\"cpu\""),
    summary: "Where the model runs: cpu, cuda:N, tensorrt:N or openvino. All but cpu need a build of ONNX Runtime that \
              has them.",
};

/// The field `batch`.
pub(super) const BATCH_FIELD: Field = Field {
    name: "batch",
    value: FieldType::Integer { minimum: 1, maximum: LARGEST_BATCH as i64 },
    presence: Presence::Optional,
    summary: "How many pictures, of whatever streams, run at once at most. The model must leave its batch dimension open \
              or fix it to this. Left out: 1, or what the model is fixed to.",
};

/// The field `batch_wait`.
pub(super) const BATCH_WAIT_FIELD: Field = Field {
    name: "batch_wait",
    value: FieldType::Duration,
    presence: Presence::Optional,
    summary: "How long a picture waits for others to fill the batch, at most 5s. Left out: 5ms.",
};

/// How the outputs of a model become what a record says. The configuration of a node beside its model.
pub(super) trait Reading: Clone + Send + Sync + 'static {
    /// Reads what `model` answered to a picture that lies in its input as `placement` says.
    fn read(&self, model: &Model, outputs: &Outputs<'_>, placement: &Placement) -> Result<RecordBody, ItemError>;
}

/// A node that runs a model.
#[derive(Clone)]
pub(super) struct ModelNode<R> {
    origin: Origin,
    clock: Arc<dyn Clock>,
    model: Arc<Model>,
    device: Device,
    batching: Batching,
    reading: R,
}

impl<R: Reading> ModelNode<R> {
    /// The node of `config`; `reading` is made of the model, once that is found.
    pub fn build(
        context: &BuildContext,
        config: ModelConfig,
        reading: impl FnOnce(&Model) -> Result<R, Vec<FieldError>>,
    ) -> Result<Arc<dyn PoolOperator>, Vec<FieldError>> {
        let model = context.models.get(&config.model).map_err(|error| vec![error.at("model")])?;
        let reading = reading(&model)?;
        let device = config.device.map_or(Ok(Device::Cpu), |text| text.parse());
        let device = device.map_err(|message: String| vec![FieldError::new("device", message)])?;
        device
            .check()
            .map_err(|error| vec![FieldError { hint: error.hint, ..FieldError::new("device", error.message) }])?;
        let batching = batching(&model, config.batch, config.batch_wait)?;
        let (origin, clock) = (context.origin.clone(), context.clock.clone());
        Ok(Arc::new(ModelNode { origin, clock, model, device, batching, reading }))
    }
}

/// How many pictures go into `model` at once, and how long they wait for each other.
fn batching(model: &Model, batch: Option<usize>, wait: Option<config::Duration>) -> Result<Batching, Vec<FieldError>> {
    let items = batch.unwrap_or(model.batch);
    if model.batch > 1 && items != model.batch {
        let message = format!("model `{}` takes {} pictures at once, not {items}", model.name.name, model.batch);
        return Err(vec![FieldError::new("batch", message).hint(format!("write `batch = {}`", model.batch))]);
    }
    if items > 1 {
        let at_batch =
            |error: StartError| vec![FieldError { hint: error.hint, ..FieldError::new("batch", error.message) }];
        check_batch(model, items).map_err(at_batch)?;
    } else if wait.is_some() {
        let error = FieldError::new("batch_wait", "no picture waits for others where only one runs at a time");
        return Err(vec![error.hint("write `batch` as well, or leave `batch_wait` out")]);
    }
    let wait = wait.map_or(BATCH_WAIT, |wait| wait.0);
    if wait > LONGEST_BATCH_WAIT {
        let message = format!("`batch_wait` is {wait:?}, but a picture waits at most {LONGEST_BATCH_WAIT:?}");
        return Err(vec![FieldError::new("batch_wait", message).hint("write it like \"5ms\"")]);
    }
    Ok(Batching { items, wait })
}

impl<R: Reading> PoolOperator for ModelNode<R> {
    fn runner(&self, sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
        let runner = ModelRunner::new(&self.model, self.device, self.batching.items, sessions, &self.clock)?;
        Ok(Box::new(NodeRunner { node: self.clone(), runner }))
    }

    fn batching(&self) -> Option<Batching> {
        Some(self.batching).filter(|batching| batching.items > 1)
    }

    fn memory(&self) -> u64 {
        let Batching { items, .. } = self.batching;
        // Several pictures go in as one tensor beside that of the picture in hand.
        let together = if items > 1 { items as u64 * self.model.input.bytes() } else { 0 };
        self.model.memory(items) + Preprocessor::memory(&self.model.input) + together
    }

    fn takes(&self) -> Option<&InputSpec> {
        Some(&self.model.input)
    }

    fn model(&self) -> Option<Arc<str>> {
        Some(self.model.name.name.clone())
    }
}

/// A [`ModelNode`] on one pool thread.
struct NodeRunner<R> {
    node: ModelNode<R>,
    runner: ModelRunner,
}

impl<R: Reading> NodeRunner<R> {
    fn record(node: &ModelNode<R>, item: &Item, (body, timing): (RecordBody, Timing)) -> Payload {
        let mut record = node.origin.record(item, body);
        record.timing_ms = timing;
        Payload::Record(Arc::new(record))
    }
}

impl<R: Reading> Runner for NodeRunner<R> {
    fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
        let ModelNode { model, reading, .. } = &self.node;
        let answer = self.runner.run(item, &|outputs, placement| reading.read(model, outputs, placement))?;
        Ok(Self::record(&self.node, item, answer))
    }

    fn run_batch(&mut self, items: &[&Item]) -> Vec<Result<Payload, ItemError>> {
        let ModelNode { model, reading, .. } = &self.node;
        let answers = self.runner.run_batch(items, &|outputs, placement| reading.read(model, outputs, placement));
        let record =
            |(item, answer): (&&Item, Result<_, _>)| answer.map(|answer| Self::record(&self.node, item, answer));
        items.iter().zip(answers).map(record).collect()
    }
}

/// A model on one pool thread, with the memory of its input.
struct ModelRunner {
    model: Arc<Model>,
    session: Rc<RefCell<ModelSession>>,
    preprocessor: Preprocessor,
    /// The picture in hand.
    tensor: TensorData,
    /// Pictures that go in together, one after the other.
    together: TensorData,
    clock: Arc<dyn Clock>,
}

/// Milliseconds by stage: `preprocess` (pictures only), `infer` (of pictures that ran together, that of all), `decode`.
type Timing = BTreeMap<&'static str, f64>;

/// What came of one item.
type Answered<R> = Result<(R, Timing), ItemError>;

/// Reads what the model answered to one picture.
type Read<'a, R> = dyn Fn(&Outputs<'_>, &Placement) -> Result<R, ItemError> + 'a;

impl ModelRunner {
    fn new(
        model: &Arc<Model>,
        device: Device,
        batch: usize,
        sessions: &mut Sessions,
        clock: &Arc<dyn Clock>,
    ) -> Result<ModelRunner, StartError> {
        let preprocessor = Preprocessor::new(model.input.clone());
        let mut together = preprocessor.buffer();
        if batch > 1 {
            reserve(&mut together, batch * (model.input.bytes() / model.input.dtype.bytes()) as usize);
        }
        Ok(ModelRunner {
            session: sessions.get_on(model, device, batch)?,
            tensor: preprocessor.buffer(),
            together,
            preprocessor,
            model: model.clone(),
            clock: clock.clone(),
        })
    }

    /// Makes the tensor of `item`, a frame or a tensor: its shape, its values and the way back to the source's pixels.
    fn input<'a>(
        &'a mut self,
        item: &'a Item,
        timing: &mut Timing,
    ) -> Result<([usize; 3], &'a TensorData, Placement), ItemError> {
        match &item.payload {
            Payload::Frame(frame) => {
                let start = self.clock.now();
                let geometry = self.preprocessor.run(frame, &mut self.tensor)?;
                timing.insert("preprocess", milliseconds(self.clock.now() - start));
                let [width, height] = geometry.tensor;
                Ok((self.model.input.shape(width, height), &self.tensor, geometry.placement))
            }
            Payload::Tensor(tensor) => {
                check_tensor(&self.model, tensor)?;
                Ok((tensor.shape, &tensor.data, tensor.placement))
            }
            other @ (Payload::Packet(_) | Payload::Segment(_) | Payload::Record(_)) => {
                let message = format!("a model takes frames and tensors, not {}", other.kind().plural());
                Err(ItemError::Failed(message))
            }
        }
    }

    /// Runs the model on `item` and hands what it answers to `read`.
    fn run<R>(&mut self, item: &Item, read: &Read<'_, R>) -> Answered<R> {
        let (session, clock) = (self.session.clone(), self.clock.clone());
        let mut timing = Timing::new();
        let (shape, data, placement) = self.input(item, &mut timing)?;
        let ready = clock.now();
        session.borrow_mut().run(shape, values(data), |outputs| {
            let inferred = clock.now();
            let answer = read(outputs, &placement)?;
            timing.insert("infer", milliseconds(inferred - ready));
            timing.insert("decode", milliseconds(clock.now() - inferred));
            Ok((answer, timing))
        })
    }

    /// Runs the model on several items at once. What is wrong with one of them is that one's error alone.
    fn run_batch<R>(&mut self, items: &[&Item], read: &Read<'_, R>) -> Vec<Answered<R>> {
        let mut together = std::mem::replace(&mut self.together, self.preprocessor.buffer());
        clear(&mut together);
        let mut errors = Vec::new();
        let mut sound = Vec::new();
        let mut picture = [0; 3];
        for (index, item) in items.iter().enumerate() {
            let mut timing = Timing::new();
            match self.input(item, &mut timing).and_then(|(shape, data, placement)| {
                append(&mut together, data)?;
                Ok((shape, placement))
            }) {
                Ok((shape, placement)) => {
                    picture = shape;
                    sound.push((index, placement, timing));
                }
                Err(error) => errors.push((index, Err(error))),
            }
        }
        let count = sound.len();
        let ready = self.clock.now();
        let ran = if sound.is_empty() {
            Ok(Vec::new())
        } else {
            self.session.borrow_mut().run_batch(picture, count, values(&together), |answers| {
                let inferred = self.clock.now();
                let answer = |(place, (index, placement, mut timing)): (usize, (usize, Placement, Timing))| {
                    let start = self.clock.now();
                    let answer = read(&answers.of(place), &placement).map(|answer| {
                        timing.insert("infer", milliseconds(inferred - ready));
                        timing.insert("decode", milliseconds(self.clock.now() - start));
                        (answer, timing)
                    });
                    (index, answer)
                };
                Ok(sound.into_iter().enumerate().map(answer).collect())
            })
        };
        self.together = together;
        let mut results: Vec<(usize, Answered<R>)> = match ran {
            Ok(answers) => answers,
            // Which of them the model failed on is not known: each one by itself tells.
            Err(_) => {
                let failed = |index: &usize| errors.iter().all(|(wrong, _)| wrong != index);
                let alone: Vec<usize> = (0..items.len()).filter(failed).collect();
                alone.into_iter().map(|index| (index, self.run(items[index], read))).collect()
            }
        };
        results.extend(errors);
        results.sort_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, result)| result).collect()
    }
}

fn values(data: &TensorData) -> InputValues<'_> {
    match data {
        TensorData::F32(values) => InputValues::F32(values),
        TensorData::F16(values) => InputValues::F16(values),
        TensorData::U8(values) => InputValues::U8(values),
    }
}

/// Takes memory for so many values, and no more.
fn reserve(tensor: &mut TensorData, length: usize) {
    match tensor {
        TensorData::F32(values) => values.reserve_exact(length),
        TensorData::F16(values) => values.reserve_exact(length),
        TensorData::U8(values) => values.reserve_exact(length),
    }
}

/// Empties a tensor and keeps its memory.
fn clear(tensor: &mut TensorData) {
    match tensor {
        TensorData::F32(values) => values.clear(),
        TensorData::F16(values) => values.clear(),
        TensorData::U8(values) => values.clear(),
    }
}

/// Puts one tensor behind others of its type.
fn append(together: &mut TensorData, one: &TensorData) -> Result<(), ItemError> {
    match (together, one) {
        (TensorData::F32(all), TensorData::F32(one)) => all.extend_from_slice(one),
        (TensorData::F16(all), TensorData::F16(one)) => all.extend_from_slice(one),
        (TensorData::U8(all), TensorData::U8(one)) => all.extend_from_slice(one),
        _ => return Err(ItemError::Failed("tensors of different types cannot run together".into())),
    }
    Ok(())
}

/// To the microsecond.
fn milliseconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e3
}

/// Whether `tensor` is what `model` eats.
fn check_tensor(model: &Model, tensor: &Tensor) -> Result<(), ItemError> {
    let (element, length) = match &tensor.data {
        TensorData::F32(values) => (ElementType::F32, values.len()),
        TensorData::F16(values) => (ElementType::F16, values.len()),
        TensorData::U8(values) => (ElementType::U8, values.len()),
    };
    let input = &model.input;
    let fits = match input.size {
        InputSize::Fixed { width, height } => tensor.shape == input.shape(width, height),
        // Only the channels' place is known.
        InputSize::Source { .. } => {
            let open = input.shape(0, 0);
            open.iter()
                .zip(tensor.shape)
                .all(|(expected, real)| if *expected == 0 { real > 0 } else { real == *expected })
        }
    };
    if fits && element == input.dtype && length == tensor.shape.iter().product::<usize>() {
        return Ok(());
    }
    let expected = match input.size {
        InputSize::Fixed { width, height } => format!("{:?}", input.shape(width, height)),
        InputSize::Source { .. } => format!("{:?} of any size", input.layout),
    };
    Err(ItemError::Failed(format!(
        "model `{}` takes {expected} of {}, but the tensor is {:?} of {}; give `preprocess` the field `model = \"{}\"`",
        model.name.name,
        input.dtype.name(),
        tensor.shape,
        element.name(),
        model.name.name
    )))
}
