//! What `classify` and `detect` share: a picture or a tensor through a model, with the time of each stage.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::error::{ItemError, StartError};
use crate::inference::manifest::{ElementType, InputSize};
use crate::inference::model::Model;
use crate::inference::session::{InputValues, ModelSession, Outputs, Sessions};
use crate::item::{Item, Payload, Placement, Tensor, TensorData};
use crate::transforms::preprocess::kernel::Preprocessor;

/// A model on one pool thread, with the memory of its input.
pub struct ModelRunner {
    model: Arc<Model>,
    session: Rc<RefCell<ModelSession>>,
    preprocessor: Preprocessor,
    tensor: TensorData,
    clock: Arc<dyn Clock>,
}

/// Milliseconds by stage: `preprocess` (pictures only), `infer`, `decode`.
pub type Timing = BTreeMap<&'static str, f64>;

impl ModelRunner {
    pub fn new(model: &Arc<Model>, sessions: &mut Sessions, clock: &Arc<dyn Clock>) -> Result<ModelRunner, StartError> {
        let preprocessor = Preprocessor::new(model.input.clone());
        Ok(ModelRunner {
            session: sessions.get(model)?,
            tensor: preprocessor.buffer(),
            preprocessor,
            model: model.clone(),
            clock: clock.clone(),
        })
    }

    /// Upper bound, in bytes, of what one pool thread allocates for `model`.
    pub fn memory(model: &Model) -> u64 {
        model.memory() + Preprocessor::memory(&model.input)
    }

    /// Runs the model on `item`, a frame or a tensor, and hands what it answers to `read`, with the way back to the
    /// source's pixels.
    pub fn run<R>(
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
