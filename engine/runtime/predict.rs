//! Answers about single pictures, through the same pool as the graphs and in turn with them.
//!
//! Each model has an operator of its own in the pool, which shares its sessions with the graphs that run the same model.
//! So many pictures are in memory or in the pool at once as the pool has use for; whoever comes later waits outside. A
//! caller that goes away gives its place back when its job is done, not before: places count what the pool holds.
//!
//! Graphs come and go: their models are replaced as a set, and those that somebody named for good stay. A model that goes
//! leaves the pool when the last picture that was promised an answer has one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use operators::clock::Clock;
use operators::error::{FieldError, ItemError, StartError};
use operators::inference::model::{Catalog, Model, closest};
use operators::inference::pool::{Completion, Installed, Job, Lane, Pool};
use operators::item::{Detection, Frame, Item, Origin, Payload, Prediction, Record, RecordBody, StreamId};
use operators::lease::{Account, Ack, Budget, Counts, Lease, Limits, Verdict};
use operators::lock::lock;
use operators::operator::{BuildContext, Built, NoPublisher, PoolOperator};
use operators::time::MediaTime;
use operators::transforms::preprocess::kernel::Preprocessor;
use operators::transforms::{classify, detect};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::graph::plan::{Plan, Work};

/// Boxes below this score are not looked at. Above it, the best of each label counts.
const LOWEST_SCORE: &str = "0.05";
/// What stands in where neither the caller nor the manifest says from which score on a box counts.
const THRESHOLD: f32 = 0.3;
/// From this score on a box of a person is one, where the manifest says nothing else.
const PERSON_THRESHOLD: f32 = 0.6;
const PERSON: &str = "person";

/// Between two looks whether sessions are still being made, at the end.
const CLOSING: Duration = Duration::from_millis(5);

/// Models that answer about single pictures.
pub struct Predictor {
    pool: Arc<Pool>,
    clock: Arc<dyn Clock>,
    catalog: Arc<Catalog>,
    lane: Lane,
    /// Places for pictures: never more than the lane takes.
    places: Arc<Semaphore>,
    /// Models that are served whatever graphs run.
    named: BTreeSet<Arc<str>>,
    models: Mutex<BTreeMap<Arc<str>, Served>>,
    /// Held by whoever makes sessions, so that none is made twice.
    warming: Mutex<()>,
    /// No more sessions are made.
    is_closing: AtomicBool,
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
    Ready(Arc<InPool>),
    Failed(String),
}

/// An operator in the pool; leaves it when nobody needs it any more.
struct InPool {
    pool: Arc<Pool>,
    operator: Installed,
}

impl Drop for InPool {
    fn drop(&mut self) {
        self.pool.remove(self.operator);
    }
}

/// How many pictures are decoded or in a pool of so many threads at once: as many as run and as many again, so that a
/// thread that is done finds the next one. A lane takes no fewer.
pub fn places(pool_threads: usize) -> usize {
    pool_threads * 2
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
    operator: Arc<InPool>,
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
    /// Will serve the models called `names`, whatever graphs come and go, once [`Predictor::warm_up`] has made their
    /// sessions.
    ///
    /// # Errors
    /// Where a model is not there or not usable.
    pub fn new(
        pool: Arc<Pool>,
        clock: Arc<dyn Clock>,
        catalog: &Arc<Catalog>,
        names: impl IntoIterator<Item = Arc<str>>,
    ) -> Result<Predictor, StartError> {
        let predictor = Predictor {
            lane: pool.lane(),
            places: Arc::new(Semaphore::new(places(pool.threads()))),
            pool,
            clock,
            catalog: catalog.clone(),
            named: names.into_iter().collect(),
            models: Mutex::default(),
            warming: Mutex::default(),
            is_closing: AtomicBool::new(false),
            account: Arc::default(),
            next: AtomicU64::new(0),
        };
        predictor.replace_graph_models([])?;
        Ok(predictor)
    }

    /// As [`Predictor::replace_graph_models`], but one that cannot be used is named in the log, and the others are served.
    pub fn serve(&self, of_graphs: BTreeSet<Arc<str>>) {
        let catalog = &self.catalog;
        let usable = of_graphs.into_iter().filter(|name| {
            let tried = model(catalog, name).and_then(|model| operator(catalog, &self.clock, &model));
            tried
                .inspect_err(|error| {
                    tracing::error!(model = %name, "model `{name}` cannot answer `/predict`: {error}");
                })
                .is_ok()
        });
        if let Err(error) = self.replace_graph_models(usable) {
            tracing::error!("`/predict` goes on with the models of before: {error}");
        }
    }

    /// From here on serves `of_graphs`, the models of all graphs that run, and those that were named at the start. Those
    /// that are new, were changed or could not be loaded answer once [`Predictor::warm_up`] was called again; those
    /// that go still answer the pictures that they were chosen for.
    ///
    /// # Errors
    /// Where a model is not there or not usable; then nothing changes.
    pub fn replace_graph_models(&self, of_graphs: impl IntoIterator<Item = Arc<str>>) -> Result<(), StartError> {
        let catalog = &self.catalog;
        let wanted: BTreeSet<Arc<str>> = of_graphs.into_iter().chain(self.named.iter().cloned()).collect();
        let present = lock(&self.models).clone();
        let mut served = BTreeMap::new();
        for name in wanted {
            let model = model(catalog, &name)?;
            let unchanged = present.get(&name).filter(|old| old.model.name.sha256 == model.name.sha256);
            let entry = match unchanged {
                Some(Served { model, work, state: State::Failed(_) }) => {
                    Served { model: model.clone(), work: work.clone(), state: State::Warming }
                }
                Some(old) => old.clone(),
                None => Served { work: operator(catalog, &self.clock, &model)?, model, state: State::Warming },
            };
            served.insert(name, entry);
        }
        let mut models = lock(&self.models);
        // Sessions that were made meanwhile are not forgotten.
        for (name, entry) in &mut served {
            if let Some(now) = models.get(name).filter(|now| Arc::ptr_eq(&now.work, &entry.work))
                && matches!(now.state, State::Ready(_))
            {
                entry.state = now.state.clone();
            }
        }
        let gone = std::mem::replace(&mut *models, served);
        drop(models);
        // Without the lock: what nobody needs leaves the pool here.
        drop((gone, present));
        Ok(())
    }

    /// Makes the sessions of all models that have none, one after the other; returns when all are ready or have failed.
    pub fn warm_up(&self) {
        let _alone = lock(&self.warming);
        let cold: Vec<_> = lock(&self.models)
            .iter()
            .filter(|(_, served)| matches!(served.state, State::Warming))
            .map(|(name, served)| (name.clone(), served.work.clone()))
            .collect();
        for (name, work) in cold {
            if self.is_closing.load(Ordering::Acquire) {
                return;
            }
            // It may have gone while others were made.
            let is_wanted = |served: &&mut Served| Arc::ptr_eq(&served.work, &work);
            if lock(&self.models).get_mut(&name).filter(is_wanted).is_none() {
                continue;
            }
            let state = match self.pool.install(&work) {
                Ok(operator) => State::Ready(Arc::new(InPool { pool: self.pool.clone(), operator })),
                // The end has broken it off: nobody will ask any more.
                Err(_) if self.is_closing.load(Ordering::Acquire) => return,
                Err(error) => {
                    tracing::error!(model = %name, "model `{name}` cannot answer `/predict`: {error}");
                    State::Failed(error.message)
                }
            };
            if let Some(served) = lock(&self.models).get_mut(&name).filter(is_wanted) {
                served.state = state;
            }
        }
    }

    /// Makes no more sessions, and waits for the one that is being made, though not for ever: it must not be in the middle
    /// of that when the process ends.
    pub fn close(&self) {
        self.is_closing.store(true, Ordering::Release);
        let deadline = self.clock.now() + Pool::PATIENCE;
        while matches!(self.warming.try_lock(), Err(TryLockError::WouldBlock)) && self.clock.now() < deadline {
            self.clock.wait(deadline, CLOSING);
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
                let deadline = served.work.deadline();
                Ok(Chosen { model: served.model.clone(), operator: operator.clone(), deadline })
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
        let job = Job { operator: chosen.operator.operator, lane: self.lane, ticket: seq, item, completion };
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
    fn name(&self) -> String {
        "`/predict`".to_owned()
    }

    fn complete(&self, _ticket: u64, result: Result<Payload, ItemError>, _busy: Duration) {
        if let Some((sender, place)) = lock(&self.0).take() {
            drop(place);
            // Whoever asked may have gone away.
            let _ = sender.send(result);
        }
    }
}

/// The model `name`, verified.
fn model(catalog: &Catalog, name: &str) -> Result<Arc<Model>, StartError> {
    catalog.get(name).map_err(|error| StartError { message: error.to_string(), hint: Some(error.hint()) })
}

/// Upper bound, in bytes, of what a pool thread takes for answers of the model `name`; where a graph runs the same model
/// they share its session.
///
/// # Errors
/// Where the model is not there or not usable.
pub fn model_memory(catalog: &Catalog, name: &str, shared: bool) -> Result<u64, StartError> {
    let model = model(catalog, name)?;
    let session = if shared { 0 } else { model.memory(model.batch) };
    let together = if model.batch > 1 { model.batch as u64 * model.input.bytes() } else { 0 };
    Ok(session + together + Preprocessor::memory(&model.input))
}

/// What runs `model` in the pool: the operator that a graph would use, asked for everything that it sees.
fn operator(
    catalog: &Arc<Catalog>,
    clock: &Arc<dyn Clock>,
    model: &Arc<Model>,
) -> Result<Arc<dyn PoolOperator>, StartError> {
    let name = &model.name.name;
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
        progress: None,
        playlists: Arc::default(),
    };
    match (registration.build)(&context, table) {
        Ok(Built::Pool(work)) => Ok(work),
        Ok(_) => Err(StartError::new(format!("model `{name}` cannot answer `/predict`"))),
        Err(errors) => Err(errors.into_iter().next().map_or_else(
            || StartError::new(format!("model `{name}` cannot answer `/predict`")),
            |FieldError { message, hint, .. }| StartError { message, hint },
        )),
    }
}

/// The models that a graph runs, one for each node that has one.
pub fn models(plan: &Plan) -> Vec<Arc<str>> {
    let models = plan.operators.iter().filter_map(|operator| match &operator.work {
        Work::Pool(work) => work.model(),
        Work::Inline(_) | Work::Io(_) => None,
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

#[cfg(test)]
mod tests {
    use super::*;

    use std::path::Path;

    use operators::clock::SystemClock;
    use operators::inference::hashes::HashCache;
    use operators::item::{ColorMatrix, ColorRange, PictureBuffer, PixelFormat};

    struct Grey(Vec<u8>);

    impl PictureBuffer for Grey {
        fn plane(&self, _index: usize) -> &[u8] {
            &self.0
        }

        fn stride(&self, _index: usize) -> usize {
            64 * 3
        }
    }

    fn picture() -> Frame {
        Frame {
            width: 64,
            height: 48,
            format: PixelFormat::Rgb24,
            matrix: ColorMatrix::Bt601,
            range: ColorRange::Full,
            buffer: Box::new(Grey(vec![90; 64 * 48 * 3])),
            index: None,
            truth: None,
        }
    }

    /// A catalog with the small model of the repository under three names.
    fn catalog() -> (tempfile::TempDir, Arc<Catalog>) {
        let folder = tempfile::tempdir().unwrap();
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        std::fs::copy(models.join("shapes.onnx"), folder.path().join("shapes.onnx")).unwrap();
        for name in ["door", "yard", "named"] {
            std::fs::copy(models.join("shapes.toml"), folder.path().join(format!("{name}.toml"))).unwrap();
        }
        let catalog = Arc::new(Catalog::with_hashes([folder.path().to_owned()], HashCache::default()));
        (folder, catalog)
    }

    fn predictor(catalog: &Arc<Catalog>) -> Predictor {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let pool = Arc::new(Pool::start(2, &clock).unwrap());
        Predictor::new(pool, clock, catalog, ["named".into()]).unwrap()
    }

    fn states(predictor: &Predictor) -> Vec<(String, &'static str)> {
        predictor.report().models.into_iter().collect()
    }

    async fn ask(predictor: &Predictor, chosen: &Chosen) -> Result<Answer, PredictError> {
        let place = predictor.place().await?;
        predictor.predict(chosen, picture(), place, Wishes::default()).await
    }

    #[test]
    fn who_closes_waits_for_the_session_that_is_being_made_and_no_other_begins() {
        let (_folder, catalog) = catalog();
        let predictor = Arc::new(predictor(&catalog));
        predictor.replace_graph_models(["door".into(), "yard".into()]).unwrap();
        let warming = {
            let predictor = predictor.clone();
            std::thread::spawn(move || predictor.warm_up())
        };
        predictor.close();
        let before = states(&predictor);
        warming.join().unwrap();
        predictor.warm_up();
        assert_eq!(states(&predictor), before, "none was made behind it");
        assert!(before.iter().all(|(_, state)| *state != "failed"), "{before:?}");
    }

    #[tokio::test]
    async fn models_come_and_go_with_their_graphs_and_named_ones_stay() {
        let (_folder, catalog) = catalog();
        let predictor = predictor(&catalog);
        assert_eq!(states(&predictor), [("named".into(), "warming")]);
        predictor.warm_up();
        predictor.replace_graph_models(["door".into(), "yard".into(), "door".into()]).unwrap();
        let expected = [("door".into(), "warming"), ("named".into(), "ready"), ("yard".into(), "warming")];
        assert_eq!(states(&predictor), expected, "what was ready stays so");
        assert!(matches!(predictor.choose(Some("door")), Err(PredictError::Warming { .. })));
        predictor.warm_up();
        let door = predictor.choose(Some("door")).unwrap();
        assert_eq!(ask(&predictor, &door).await.unwrap().predictions, []);

        predictor.replace_graph_models(["yard".into()]).unwrap();
        assert_eq!(states(&predictor), [("named".into(), "ready"), ("yard".into(), "ready")]);
        assert!(matches!(predictor.choose(Some("door")), Err(PredictError::Unknown { .. })));
        // Who chose it before it went still gets an answer.
        assert!(ask(&predictor, &door).await.is_ok());
        let operator = Arc::downgrade(&door.operator);
        drop(door);
        assert!(operator.upgrade().is_none(), "it has left the pool");
        predictor.serve(["door".into(), "unknown".into(), "yard".into()].into());
        predictor.warm_up();
        let expected = [("door".into(), "ready"), ("named".into(), "ready"), ("yard".into(), "ready")];
        assert_eq!(states(&predictor), expected, "one that is not there keeps none of the others away");
        predictor.serve([].into());
        assert_eq!(states(&predictor), [("named".into(), "ready")]);
        let counts = predictor.report().pictures;
        assert!(counts.conserved() && counts.delivered == 2, "{counts:?}");
    }

    #[test]
    fn a_set_with_an_unknown_model_changes_nothing() {
        let (_folder, catalog) = catalog();
        let predictor = predictor(&catalog);
        predictor.replace_graph_models(["door".into()]).unwrap();
        let error = predictor.replace_graph_models(["yard".into(), "dor".into()]).unwrap_err();
        assert!(error.message.contains("`dor`") && error.hint.unwrap().contains("`door`"), "{}", error.message);
        assert_eq!(states(&predictor), [("door".into(), "warming"), ("named".into(), "warming")]);
    }

    #[test]
    fn a_model_that_failed_or_was_changed_is_made_anew() {
        let (folder, catalog) = catalog();
        // Its head has another shape than its manifest says, which shows only when a session is made.
        let manifest = std::fs::read_to_string(folder.path().join("yard.toml")).unwrap();
        let wrong = manifest.replace("name = \"images\"", "name = \"pictures\"");
        assert_ne!(wrong, manifest);
        std::fs::write(folder.path().join("yard.toml"), &wrong).unwrap();
        let predictor = predictor(&catalog);
        predictor.replace_graph_models(["yard".into()]).unwrap();
        predictor.warm_up();
        assert_eq!(states(&predictor), [("named".into(), "ready"), ("yard".into(), "failed")]);
        assert!(matches!(predictor.choose(Some("yard")), Err(PredictError::Broken { .. })));
        predictor.replace_graph_models(["yard".into()]).unwrap();
        assert_eq!(states(&predictor), [("named".into(), "ready"), ("yard".into(), "warming")]);
    }
}
