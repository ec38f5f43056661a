//! What `classify` and `detect` share: the fields that choose a model, and the way of a picture or a tensor through it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::clock::Clock;
use crate::config::{Field, FieldType, Presence};
use crate::error::{FieldError, ItemError, StartError};
use crate::inference::device::Device;
use crate::inference::manifest::{ElementType, InputSize, InputSpec};
use crate::inference::model::Model;
use crate::inference::session::{InputValues, ModelSession, Outputs, Sessions};
use crate::item::{Item, Origin, Payload, Placement, RecordBody, Tensor, TensorData};
use crate::operator::{BuildContext, PoolOperator, Runner};
use crate::transforms::preprocess::kernel::Preprocessor;

/// The fields that say which model runs, and where.
#[derive(Deserialize)]
pub(super) struct ModelConfig {
    pub model: String,
    device: Option<String>,
}

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
        let (origin, clock) = (context.origin.clone(), context.clock.clone());
        Ok(Arc::new(ModelNode { origin, clock, model, device, reading }))
    }
}

impl<R: Reading> PoolOperator for ModelNode<R> {
    fn runner(&self, sessions: &mut Sessions) -> Result<Box<dyn Runner>, StartError> {
        let runner = ModelRunner::new(&self.model, self.device, sessions, &self.clock)?;
        Ok(Box::new(NodeRunner { node: self.clone(), runner }))
    }

    fn memory(&self) -> u64 {
        self.model.memory() + Preprocessor::memory(&self.model.input)
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

impl<R: Reading> Runner for NodeRunner<R> {
    fn run(&mut self, item: &Item) -> Result<Payload, ItemError> {
        let ModelNode { origin, model, reading, .. } = &self.node;
        let (body, timing) = self.runner.run(item, |outputs, placement| reading.read(model, outputs, placement))?;
        let mut record = origin.record(item, body);
        record.timing_ms = timing;
        Ok(Payload::Record(Arc::new(record)))
    }
}

/// A model on one pool thread, with the memory of its input.
struct ModelRunner {
    model: Arc<Model>,
    session: Rc<RefCell<ModelSession>>,
    preprocessor: Preprocessor,
    tensor: TensorData,
    clock: Arc<dyn Clock>,
}

/// Milliseconds by stage: `preprocess` (pictures only), `infer`, `decode`.
type Timing = BTreeMap<&'static str, f64>;

impl ModelRunner {
    fn new(
        model: &Arc<Model>,
        device: Device,
        sessions: &mut Sessions,
        clock: &Arc<dyn Clock>,
    ) -> Result<ModelRunner, StartError> {
        let preprocessor = Preprocessor::new(model.input.clone());
        Ok(ModelRunner {
            session: sessions.get_on(model, device)?,
            tensor: preprocessor.buffer(),
            preprocessor,
            model: model.clone(),
            clock: clock.clone(),
        })
    }

    /// Runs the model on `item`, a frame or a tensor, and hands what it answers to `read`, with the way back to the
    /// source's pixels.
    fn run<R>(
        &mut self,
        item: &Item,
        read: impl FnOnce(&Outputs<'_>, &Placement) -> Result<R, ItemError>,
    ) -> Result<(R, Timing), ItemError> {
        let mut timing = Timing::new();
        let start = self.clock.now();
        let (shape, data, placement) = match &item.payload {
            Payload::Frame(frame) => {
                let geometry = self.preprocessor.run(frame, &mut self.tensor)?;
                timing.insert("preprocess", milliseconds(self.clock.now() - start));
                let [width, height] = geometry.tensor;
                (self.model.input.shape(width, height), &self.tensor, geometry.placement)
            }
            Payload::Tensor(tensor) => {
                check_tensor(&self.model, tensor)?;
                (tensor.shape, &tensor.data, tensor.placement)
            }
            Payload::Record(_) => {
                return Err(ItemError::Failed("a model takes frames and tensors, not records".into()));
            }
        };
        let values = match data {
            TensorData::F32(values) => InputValues::F32(values),
            TensorData::F16(values) => InputValues::F16(values),
            TensorData::U8(values) => InputValues::U8(values),
        };
        let ready = self.clock.now();
        let mut inferred = ready;
        let clock = &self.clock;
        let result = self.session.borrow_mut().run(shape, values, |outputs| {
            inferred = clock.now();
            read(outputs, &placement)
        })?;
        timing.insert("infer", milliseconds(inferred - ready));
        timing.insert("decode", milliseconds(self.clock.now() - inferred));
        Ok((result, timing))
    }
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
