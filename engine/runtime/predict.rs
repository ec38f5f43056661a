//! Answers about single pictures, through the same pool as the graphs and in turn with them.
//!
//! Each model has an operator of its own in the pool, which shares its sessions with the graphs that run the same model.
//! So many pictures are in memory or in the pool at once as the pool has use for; whoever comes later waits outside. A
//! caller that goes away gives its place back when its job is done, not before: places count what the pool holds.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use operators::clock::Clock;
use operators::error::{FieldError, ItemError, StartError};
use operators::inference::model::{Catalog, Model, closest};
use operators::inference::pool::{Completion, Installed, Job, Lane, Pool};
use operators::item::{Detection, Frame, Item, Origin, Payload, Prediction, Record, RecordBody, StreamId};
use operators::lease::{Account, Ack, Budget, Counts, Lease, Limits, Verdict};
use operators::operator::{BuildContext, Built, NoPublisher, PoolOperator};
use operators::time::MediaTime;
use operators::transforms::{classify, detect};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::counters::lock;
use crate::graph::plan::{Plan, Work};

/// Boxes below this score are not looked at. Above it, the best of each label counts.
const LOWEST_SCORE: &str = "0.05";
/// What stands in where neither the caller nor the manifest says from which score on a box counts.
const THRESHOLD: f32 = 0.3;
/// From this score on a box of a person is one, where the manifest says nothing else.
const PERSON_THRESHOLD: f32 = 0.6;
const PERSON: &str = "person";

/// Models that answer about single pictures.
pub struct Predictor {
    pool: Arc<Pool>,
    clock: Arc<dyn Clock>,
    catalog: Arc<Catalog>,
    /// Held while sessions are made: one that finds a model cold makes its sessions, and nobody else.
    warming: Mutex<()>,
    lane: Lane,
    /// Places for pictures: never more than the lane takes.
    places: Arc<Semaphore>,
    models: Mutex<BTreeMap<Arc<str>, Served>>,
    account: Arc<Account>,
    next: AtomicU64,
}

#[derive(Clone)]
struct Served {
    model: Arc<Model>,
    work: Arc<dyn PoolOperator>,
    state: State,
}

#[derive(Clone)]
enum State {
    /// Its sessions are not made yet.
    Warming,
    Ready(Installed),
    Failed(String),
}

/// What a caller may choose.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wishes {
    /// How many of a classifier's best predictions; by default 5.
    pub top_k: Option<usize>,
    /// From which score on a box counts, 0..1; by default as the manifest says.
    pub threshold: Option<f32>,
}

/// What `/predict` answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Answer {
    /// The best first.
    pub predictions: Vec<Score>,
    /// `None` where the model knows no persons.
    pub has_person: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    pub label: String,
    pub score: f32,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PredictError {
    /// No model is served at all.
    NoModel,
    Unknown {
        name: String,
        known: Vec<String>,
    },
    /// Several are served, and none was named.
    Unnamed {
        known: Vec<String>,
    },
    /// Its sessions are not made yet.
    Warming {
        name: String,
    },
    /// Its sessions could not be made.
    Broken {
        name: String,
        why: String,
    },
    /// The model failed on this picture.
    Failed(String),
    Late(Duration),
    /// The engine is being taken down.
    Stopping,
}

/// A model that was chosen and is ready.
pub struct Chosen {
    model: Arc<Model>,
    operator: Installed,
    deadline: Duration,
}

/// A place for one picture.
pub struct Place(#[expect(dead_code, reason = "gives the place back when dropped")] OwnedSemaphorePermit);

/// What `/stats` says of predictions.
#[derive(Clone, Debug, Serialize)]
pub struct PredictReport {
    /// State of each model: `warming`, `ready` or `failed`.
    pub models: BTreeMap<String, &'static str>,
    /// Pictures by what became of them; those whose caller went away are `lost`.
    pub pictures: Counts,
}

impl Predictor {
    /// Will serve the models called `names`, once [`Predictor::warm_up`] has made their sessions.
    ///
    /// # Errors
    /// Where a model is not there or not usable.
    pub fn new(
        pool: Arc<Pool>,
        clock: Arc<dyn Clock>,
        catalog: &Arc<Catalog>,
        names: impl IntoIterator<Item = Arc<str>>,
    ) -> Result<Predictor, StartError> {
        let mut models = BTreeMap::new();
        for name in names {
            if let Entry::Vacant(vacant) = models.entry(name) {
                let (model, work) = operator(catalog, &clock, vacant.key())?;
                vacant.insert(Served { model, work, state: State::Warming });
            }
        }
        Ok(Predictor {
            lane: pool.lane(),
            // As many as run and as many again, so that a thread that is done finds the next one.
            places: Arc::new(Semaphore::new(pool.threads() * 2)),
            pool,
            clock,
            catalog: catalog.clone(),
            warming: Mutex::default(),
            models: Mutex::new(models),
            account: Arc::default(),
            next: AtomicU64::new(0),
        })
    }

    /// Will serve further models: those of a graph that has been started.
    pub fn serve(&self, names: Vec<Arc<str>>) {
        for name in names {
            if lock(&self.models).contains_key(&name) {
                continue;
            }
            match operator(&self.catalog, &self.clock, &name) {
                Ok((model, work)) => {
                    lock(&self.models).entry(name).or_insert(Served { model, work, state: State::Warming });
                }
                Err(error) => tracing::error!(model = %name, "model `{name}` cannot answer `/predict`: {error}"),
            }
        }
        self.warm_up();
    }

    /// Makes the sessions of all models, one after the other; returns when all are ready or have failed.
    pub fn warm_up(&self) {
        let _one_at_a_time = lock(&self.warming);
        let cold: Vec<_> = lock(&self.models)
            .iter()
            .filter(|(_, served)| matches!(served.state, State::Warming))
            .map(|(name, served)| (name.clone(), served.work.clone()))
            .collect();
        for (name, work) in cold {
            let state = match self.pool.install(&work) {
                Ok(operator) => State::Ready(operator),
                Err(error) => {
                    tracing::error!(model = %name, "model `{name}` cannot answer `/predict`: {error}");
                    State::Failed(error.message)
                }
            };
            if let Some(served) = lock(&self.models).get_mut(&name) {
                served.state = state;
            }
        }
    }

    /// The model called `name`, or the only one.
    ///
    /// # Errors
    /// Where there is none, or it is not ready.
    pub fn choose(&self, name: Option<&str>) -> Result<Chosen, PredictError> {
        let models = lock(&self.models);
        let known = || models.keys().map(|name| name.to_string()).collect();
        let (name, served) = match (name, models.len()) {
            (_, 0) => return Err(PredictError::NoModel),
            (Some(name), _) => models
                .get_key_value(name)
                .ok_or_else(|| PredictError::Unknown { name: name.to_owned(), known: known() })?,
            (None, 1) => models.first_key_value().ok_or(PredictError::NoModel)?,
            (None, _) => return Err(PredictError::Unnamed { known: known() }),
        };
        match &served.state {
            State::Warming => Err(PredictError::Warming { name: name.to_string() }),
            State::Failed(why) => Err(PredictError::Broken { name: name.to_string(), why: why.clone() }),
            State::Ready(operator) => {
                Ok(Chosen { model: served.model.clone(), operator: *operator, deadline: served.work.deadline() })
            }
        }
    }

    /// Waits for a place; take it before a picture is decoded.
    ///
    /// # Errors
    /// Where the engine is being taken down.
    pub async fn place(&self) -> Result<Place, PredictError> {
        self.places.clone().acquire_owned().await.map(Place).map_err(|_| PredictError::Stopping)
    }

    /// What `chosen` says of `picture`.
    ///
    /// # Errors
    /// Where the model fails on it, or takes too long.
    pub async fn predict(
        &self,
        chosen: &Chosen,
        picture: Frame,
        place: Place,
        wishes: Wishes,
    ) -> Result<Answer, PredictError> {
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        self.account.read(1);
        let ack = Ack::new(&self.account, self.clock.now());
        // A budget of its own, just for this picture: places bound how many there are.
        let bytes = picture.bytes();
        let credit = Budget::new(Limits { items: 1, bytes }).try_acquire(bytes).map_err(|_| PredictError::Stopping)?;
        let item = Item {
            stream: StreamId::sanitised("predict"),
            seq,
            pts: MediaTime::from_micros(0),
            time: self.clock.wall(),
            fallback: false,
            payload: Payload::Frame(Arc::new(picture)),
            lease: Lease::new(credit, ack.clone()),
        };
        let (sender, answer) = oneshot::channel();
        let completion = Arc::new(Asked(Mutex::new(Some((sender, place)))));
        let job = Job { operator: chosen.operator, lane: self.lane, ticket: seq, item, completion };
        // There are no more places than the lane takes.
        self.pool.submit(job).map_err(|_| PredictError::Stopping)?;
        let answer = match tokio::time::timeout(chosen.deadline, answer).await {
            Err(_) => Err(PredictError::Late(chosen.deadline)),
            Ok(Err(_)) => Err(PredictError::Stopping),
            Ok(Ok(Err(error))) => Err(PredictError::Failed(error.to_string())),
            Ok(Ok(Ok(Payload::Record(record)))) => read(&chosen.model, &record, wishes)
                .ok_or_else(|| PredictError::Failed("the model answered with something else than was asked".into())),
            Ok(Ok(Ok(_))) => Err(PredictError::Failed("the model answered with something else than was asked".into())),
        };
        match &answer {
            Ok(_) => ack.deliver(self.clock.now()),
            Err(_) => ack.settle(Verdict::Rejected),
        }
        answer
    }

    pub fn report(&self) -> PredictReport {
        let state = |served: &Served| match served.state {
            State::Warming => "warming",
            State::Ready(_) => "ready",
            State::Failed(_) => "failed",
        };
        let models = lock(&self.models).iter().map(|(name, served)| (name.to_string(), state(served))).collect();
        PredictReport { models, pictures: self.account.snapshot() }
    }
}

impl PredictError {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            PredictError::NoModel => {
                "run a graph with `classify` or `detect`, or name a model with `--predict-model`".to_owned()
            }
            PredictError::Unknown { name, known } => match closest(name, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("served are {}; `--predict-model` adds others", known.join(", ")),
            },
            PredictError::Unnamed { known } => format!("add `?model=` with one of {}", known.join(", ")),
            PredictError::Warming { .. } => "try again in a second".to_owned(),
            PredictError::Broken { .. } => "look into the log, and start the engine again".to_owned(),
            PredictError::Failed(_) => "try another picture; if that fails too, check the model's manifest".to_owned(),
            PredictError::Late(_) | PredictError::Stopping => "try again later".to_owned(),
        }
    }
}

impl std::fmt::Display for PredictError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PredictError::NoModel => formatter.write_str("no model is served"),
            PredictError::Unknown { name, .. } => write!(formatter, "no model `{name}` is served"),
            PredictError::Unnamed { .. } => formatter.write_str("several models are served, and none was named"),
            PredictError::Warming { name } => write!(formatter, "model `{name}` is being loaded"),
            PredictError::Broken { name, why } => write!(formatter, "model `{name}` could not be loaded: {why}"),
            PredictError::Failed(why) => write!(formatter, "the model failed on this picture: {why}"),
            PredictError::Late(time) => write!(formatter, "the model gave no answer within {time:?}"),
            PredictError::Stopping => formatter.write_str("the engine is stopping"),
        }
    }
}

type Reply = oneshot::Sender<Result<Payload, ItemError>>;

/// Who asked, and the place that its picture takes until its job is done.
struct Asked(Mutex<Option<(Reply, Place)>>);

impl Completion for Asked {
    fn complete(&self, _ticket: u64, result: Result<Payload, ItemError>, _busy: Duration) {
        if let Some((sender, place)) = lock(&self.0).take() {
            drop(place);
            // Whoever asked may have gone away.
            let _ = sender.send(result);
        }
    }
}

/// What runs the model `name` in the pool: the operator that a graph would use, asked for everything that it sees.
fn operator(
    catalog: &Arc<Catalog>,
    clock: &Arc<dyn Clock>,
    name: &Arc<str>,
) -> Result<(Arc<Model>, Arc<dyn PoolOperator>), StartError> {
    let failed = |message: String, hint: String| StartError { message, hint: Some(hint) };
    let model = catalog.get(name).map_err(|error| failed(error.to_string(), error.hint()))?;
    let (registration, settings) = if model.output.is_classifier() {
        (&classify::REGISTRATION, format!("top_k = {}", model.labels.len()))
    } else {
        (&detect::REGISTRATION, format!("threshold = {LOWEST_SCORE}"))
    };
    let mut table: toml::Table =
        settings.parse().map_err(|error: toml::de::Error| StartError::new(error.to_string()))?;
    table.insert("model".to_owned(), toml::Value::String(name.to_string()));
    let context = BuildContext {
        origin: Origin { graph: "predict".into(), node: name.clone() },
        folder: PathBuf::from("."),
        models: catalog.clone(),
        clock: clock.clone(),
        publisher: Arc::new(NoPublisher),
    };
    match (registration.build)(&context, table) {
        Ok(Built::Pool(work)) => Ok((model, work)),
        Ok(_) => Err(StartError::new(format!("model `{name}` cannot answer `/predict`"))),
        Err(errors) => Err(errors.into_iter().next().map_or_else(
            || StartError::new(format!("model `{name}` cannot answer `/predict`")),
            |FieldError { message, hint, .. }| StartError { message, hint },
        )),
    }
}

/// The models that a graph runs.
pub fn models(plan: &Plan) -> Vec<Arc<str>> {
    let models = plan.operators.iter().filter_map(|operator| match &operator.work {
        Work::Pool(work) => work.model(),
        Work::Inline(_) => None,
    });
    models.collect()
}

/// A record as an answer.
fn read(model: &Model, record: &Record, wishes: Wishes) -> Option<Answer> {
    match &record.body {
        RecordBody::Classification { predictions, .. } => Some(classified(model, predictions, wishes)),
        RecordBody::Detection { detections, .. } => Some(detected(model, detections, wishes)),
        _ => None,
    }
}

/// The best predictions. A classifier that knows persons says whether there is one.
fn classified(model: &Model, predictions: &[Prediction], wishes: Wishes) -> Answer {
    let person = model.labels.position(PERSON);
    let threshold = wishes.threshold.unwrap_or(PERSON_THRESHOLD);
    let is_person = |prediction: &Prediction| Some(prediction.index) == person && prediction.score >= threshold;
    let best = predictions.iter().take(wishes.top_k.unwrap_or(5));
    Answer {
        predictions: best.map(|best| Score { label: best.label.to_string(), score: best.score }).collect(),
        has_person: person.map(|_| predictions.iter().any(is_person)),
    }
}

/// A detector that is there for one question answers it, as `LABEL` with its best score and `no_LABEL` with 0 or 1. Any
/// other one answers with each label that it found, and its best score.
fn detected(model: &Model, detections: &[Detection], wishes: Wishes) -> Answer {
    let mut best: BTreeMap<usize, f32> = BTreeMap::new();
    for Detection { index, score, .. } in detections {
        let known = best.entry(*index).or_default();
        *known = known.max(*score);
    }
    let score = |label: &str| model.labels.position(label).map(|index| best.get(&index).copied().unwrap_or(0.0));
    if let Some(question) = &model.predict {
        let threshold = wishes.threshold.unwrap_or(question.threshold);
        let found = score(&question.label).unwrap_or(0.0);
        let none = if found >= threshold { 0.0 } else { 1.0 };
        let predictions = vec![
            Score { label: question.label.clone(), score: found },
            Score { label: format!("no_{}", question.label), score: none },
        ];
        let has_person = (question.label == PERSON).then_some(found >= threshold);
        return Answer { predictions, has_person };
    }
    let threshold = wishes.threshold.or(model.defaults.threshold).unwrap_or(THRESHOLD);
    let names = model.labels.names();
    let mut predictions: Vec<Score> = best
        .iter()
        .filter(|(_, score)| **score >= threshold)
        .map(|(index, score)| Score { label: names[*index].to_string(), score: *score })
        .collect();
    predictions.sort_by(|left, right| right.score.total_cmp(&left.score));
    predictions.truncate(wishes.top_k.unwrap_or(usize::MAX));
    let has_person = score(PERSON).map(|score| score >= wishes.threshold.unwrap_or(PERSON_THRESHOLD));
    Answer { predictions, has_person }
}
