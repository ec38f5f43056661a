//! `dataset`: pictures and what was found in them, as files for training: `2026/03/02/TIME_UUID.jpg` and `.json`.
//!
//! Frames alone make a plain capture, records alone JSON files. Where both flow in, each picture waits for its records:
//! [`super::joined`].
//!
//! The JSON file is stored behind its picture: where it is, the pair is whole. Names tell when the picture was read. Where
//! it is read again after a restart, as the graph's `[state]` knows, it keeps the names and the time of the first reading: a
//! pair that is whole is not stored again, and one that is not overwrites itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::choice::Choice;
use crate::clock::Clock;
use crate::config::{self, Field, FieldType, OneOrMany, Presence};
use crate::error::{FieldError, ItemError, SinkError, StartError};
use crate::inference::manifest::InputSpec;
use crate::item::{EndReason, Event, Item, Kind, Origin, Payload, Played, Record, StreamId, time_text};
use crate::lease::Verdict;
use crate::operator::{
    BuildContext, Built, Execution, Produces, Registration, Role, Sink, SinkInput, SinkWriter, Trouble,
};
use crate::picture::Picture;
use crate::progress::Progress;
use crate::sinks::joined::{Found, Joiner, WINDOW, WINDOW_FIELD, Ways, annotate};
use crate::sinks::s3::{QUALITY, QUALITY_FIELD, UPLOADS_FIELD};
use crate::storage::IfExists;
use crate::storage::folder::Folder;
use crate::storage::location::{S3Location, is_s3};
use crate::storage::retry::{BACKOFF, DEFAULT_RETRY_FOR, RETRY_FOR, Retry};
use crate::storage::s3::{ANONYMOUS, Access, ENDPOINT, PATH_STYLE, PROFILE, REGION, S3, TIMEOUT};
use crate::storage::uploads::{Claim, Finished, Put, Upload, Uploads, Work};
use crate::storage::{Body, Storage, runtime};
use crate::template::{date_name, time_name};

#[derive(Deserialize)]
struct Config {
    output: String,
    picture: Option<String>,
    model: Option<String>,
    every: Option<u64>,
    max: Option<u64>,
    labels: Option<OneOrMany<String>>,
    above: Option<f64>,
    below: Option<f64>,
    #[serde(default)]
    annotate: bool,
    window: Option<config::Size>,
    quality: Option<u8>,
    uploads: Option<usize>,
    retry_for: Option<config::Duration>,
    #[serde(flatten)]
    access: Access,
}

const UPLOADS: usize = 4;

/// Where files go.
#[derive(Clone)]
enum Place {
    Folder(Arc<Folder>),
    S3 { bucket: Arc<S3>, prefix: String },
}

struct Dataset {
    place: Place,
    origin: Origin,
    clock: Arc<dyn Clock>,
    /// What the model sees, where that is the picture.
    seen: Option<InputSpec>,
    every: u64,
    max: Option<u64>,
    choice: Choice,
    annotate: bool,
    window: u64,
    quality: u8,
    uploads: usize,
    retry_for: Duration,
    progress: Option<Progress>,
}

impl Sink for Dataset {
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        self.start_with(&[])
    }

    fn start_with(&self, inputs: &[SinkInput]) -> Result<Box<dyn SinkWriter>, StartError> {
        let ways = Ways::of(inputs)?;
        if ways.records == 0 && !self.choice.is_open() {
            let message = "it chooses by label or score, and no records flow into it";
            return Err(StartError::new(message)
                .hint("add the node that makes them to its `inputs`, beside the one that makes the pictures"));
        }
        let (storage, prefix): (Arc<dyn Storage>, String) = match &self.place {
            Place::Folder(folder) => {
                folder.prepare().map_err(|error| error.at_start("files cannot be stored:"))?;
                (folder.clone(), String::new())
            }
            Place::S3 { bucket, prefix } => {
                let checked = bucket.clone();
                runtime::wait_for(async move { checked.check().await })
                    .map_err(|error| error.at_start("objects cannot be stored:"))?;
                (bucket.clone(), prefix.clone())
            }
        };
        let retry = Retry {
            retry_for: self.retry_for,
            clock: self.clock.clone(),
            trouble: Trouble::default(),
            node: self.origin.node.clone(),
            backoff: BACKOFF,
        };
        Ok(Box::new(DatasetWriter {
            trouble: retry.trouble.clone(),
            uploads: Uploads::new(storage, retry, self.uploads),
            prefix,
            origin: self.origin.clone(),
            seen: self.seen.clone().map(Arc::new),
            every: self.every,
            max: self.max.unwrap_or(u64::MAX),
            choice: self.choice.clone(),
            annotate: self.annotate,
            quality: self.quality,
            joiner: Joiner::new(self.origin.node.clone(), ways, self.window),
            progress: self.progress.clone(),
            played: BTreeMap::new(),
            results: BTreeMap::new(),
            next_id: 0,
            chosen: 0,
            stored: 0,
        }))
    }

    fn depends_on_inputs(&self) -> bool {
        true
    }

    fn stream_memory(&self) -> u64 {
        self.window
    }
}

struct DatasetWriter {
    uploads: Uploads,
    trouble: Trouble,
    prefix: String,
    origin: Origin,
    seen: Option<Arc<InputSpec>>,
    every: u64,
    max: u64,
    choice: Choice,
    annotate: bool,
    quality: u8,
    joiner: Joiner,
    progress: Option<Progress>,
    /// What each stream that is open plays.
    played: BTreeMap<StreamId, Played>,
    /// Results that were chosen of each stream, for every Nth.
    results: BTreeMap<StreamId, u64>,
    next_id: u64,
    /// Results that were handed over, less those that came to nothing.
    chosen: u64,
    stored: u64,
}

impl DatasetWriter {
    fn item(&mut self, item: &Item) -> Result<(), SinkError> {
        if self.chosen >= self.max {
            item.lease.ack.clone().settle(Verdict::Filtered);
            return Ok(());
        }
        let ways = self.joiner.ways();
        let found = match &item.payload {
            Payload::Frame(frame) if ways.records == 0 => {
                vec![Found { frame: Some(frame.clone()), claims: vec![Claim::whole(item)], ..Found::of(item) }]
            }
            Payload::Frame(frame) => self.joiner.frame(item, frame),
            Payload::Record(record) if ways.frames == 0 => {
                vec![Found { records: vec![record.clone()], claims: vec![Claim::whole(item)], ..Found::of(item) }]
            }
            Payload::Record(record) => self.joiner.record(item, record),
            Payload::Packet(_) | Payload::Tensor(_) | Payload::Segment(_) => {
                let kind = item.payload.kind().plural();
                return Err(SinkError { message: format!("`dataset` does not take {kind}"), hint: None });
            }
        };
        found.into_iter().for_each(|found| self.offer(found));
        Ok(())
    }

    fn chooses(&self, records: &[Arc<Record>]) -> bool {
        self.choice.is_open() || records.iter().any(|record| self.choice.finds(record))
    }

    /// Stores a result, where it is one of those that are wanted.
    fn offer(&mut self, mut found: Found) {
        if found.has_failed() || self.chosen >= self.max || !self.chooses(&found.records) {
            return found.settle(Verdict::Filtered);
        }
        let results = self.results.entry(found.stream.clone()).or_default();
        let nth = *results;
        *results += 1;
        if !nth.is_multiple_of(self.every) {
            return found.settle(Verdict::Filtered);
        }
        self.chosen += 1;
        let id = self.next_id;
        self.next_id += 1;
        let claims = std::mem::take(&mut found.claims);
        let played = self.progress.as_ref().zip(self.played.get(&found.stream));
        let output = played.and_then(|(progress, played)| progress.picture_output(&found.stream, played, found.seq));
        let time = found.time;
        let files = Files {
            prefix: self.prefix.clone(),
            origin: self.origin.clone(),
            found,
            seen: self.seen.clone(),
            annotate: self.annotate,
            quality: self.quality,
        };
        self.uploads.submit(Upload {
            id,
            work: Work::Named { time, make: Box::new(move |time| files.make(time)) },
            items: claims,
            output,
            if_exists: IfExists::Overwrite,
        });
    }

    fn finished(&mut self, finished: Finished) -> Result<(), SinkError> {
        match (&finished.result, finished.id) {
            (Ok(()), _) => self.stored += 1,
            // Another one may take its place.
            (Err(_), Some(_)) => self.chosen = self.chosen.saturating_sub(1),
            (Err(_), None) => {}
        }
        finished.result
    }
}

/// A picture and its records, before they are files.
struct Files {
    prefix: String,
    origin: Origin,
    found: Found,
    seen: Option<Arc<InputSpec>>,
    annotate: bool,
    quality: u8,
}

impl Files {
    /// The name of the files without its ending. Microseconds are all of a time that is remembered.
    fn base(&self, time: SystemTime) -> String {
        let mut hash = Sha256::new();
        let micros = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros());
        let Found { stream, seq, .. } = &self.found;
        for part in [&*self.origin.graph, &*self.origin.node, &**stream, &seq.to_string()] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        hash.update(micros.to_le_bytes());
        let digest: [u8; 32] = hash.finalize().into();
        let bytes: [u8; 16] = std::array::from_fn(|index| digest[index]);
        let id = uuid::Builder::from_custom_bytes(bytes).into_uuid();
        let (day, time) = (date_name("%Y/%m/%d", time), time_name(time));
        format!("{}{day}/{time}_{id}", self.prefix)
    }

    /// The files of what was read at `time`.
    fn make(self, time: SystemTime) -> Result<Vec<Put>, ItemError> {
        let (found, base) = (&self.found, self.base(time));
        let mut puts = Vec::new();
        let mut description = json!({
            "graph": self.origin.graph,
            "node": self.origin.node,
            "stream": found.stream,
            "seq": found.seq,
            "pts": found.pts,
            "time": time_text(time),
        });
        if found.fallback {
            description["fallback"] = true.into();
        }
        if let Some(frame) = &found.frame {
            let mut picture = match &self.seen {
                Some(input) => Picture::as_seen(frame, input)?,
                None => Picture::of(frame)?,
            };
            if self.annotate {
                annotate(&mut picture, &found.records);
            }
            let key = format!("{base}.jpg");
            let name = key.rsplit('/').next().unwrap_or(&key);
            description["picture"] = json!({
                "file": name,
                "of": if self.seen.is_some() { "model_input" } else { "source" },
                "width": picture.width,
                "height": picture.height,
                "scale": picture.placement.scale,
                "offset": picture.placement.offset,
            });
            description["width"] = frame.width.into();
            description["height"] = frame.height.into();
            if let Some(index) = frame.index {
                description["frame"] = index.into();
            }
            let body = Body::Bytes(picture.jpeg(self.quality)?.into());
            puts.push(Put { key, body, media_type: "image/jpeg" });
        }
        let written = |error: serde_json::Error| ItemError::Failed(format!("a record is no JSON: {error}"));
        let records: Result<Vec<serde_json::Value>, _> =
            found.records.iter().map(|record| serde_json::to_value(&**record)).collect();
        description["records"] = records.map_err(written)?.into();
        let mut text = serde_json::to_vec_pretty(&description).map_err(written)?;
        text.push(b'\n');
        let body = Body::Bytes(text.into());
        puts.push(Put { key: format!("{base}.json"), body, media_type: "application/json" });
        Ok(puts)
    }
}

#[async_trait::async_trait]
impl SinkWriter for DatasetWriter {
    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
        let mut errors = Vec::new();
        // Before the batch and not within it: an item has its fate when nobody holds it any more, and whoever gave the batch
        // does until all of it is taken over.
        while self.uploads.are_full() {
            let finished = self.uploads.next().await;
            errors.extend(self.finished(finished).err());
        }
        for event in batch {
            match event {
                Event::Item(item) => errors.extend(self.item(item).err()),
                // The stream itself goes on.
                Event::End { reason: EndReason::Reload, .. } => {}
                Event::End { stream, .. } => {
                    if let Some(left) = self.joiner.ended(stream) {
                        left.into_iter().for_each(|found| self.offer(found));
                        self.results.remove(stream);
                        self.played.remove(stream);
                    }
                }
                Event::Open { stream, info } => {
                    self.played.insert(stream.clone(), info.played.clone());
                }
                Event::Gap { .. } => {}
            }
        }
        SinkError::joined(errors)
    }

    fn settles(&self) -> bool {
        true
    }

    /// What is chosen of a batch waits in memory until it is stored.
    fn most_at_once(&self) -> usize {
        self.uploads.most()
    }

    async fn work(&mut self) -> Result<(), SinkError> {
        let finished = self.uploads.next().await;
        self.finished(finished)
    }

    async fn close(&mut self) -> Result<(), SinkError> {
        let left = self.joiner.finish();
        left.into_iter().for_each(|found| self.offer(found));
        let finished = self.uploads.finish().await;
        SinkError::joined(finished.into_iter().filter_map(|finished| self.finished(finished).err()))
    }

    fn deadline(&self) -> Option<Duration> {
        // Each upload has an end of its own.
        None
    }

    fn trouble(&self) -> Option<Trouble> {
        Some(self.trouble.clone())
    }

    fn is_complete(&self) -> bool {
        self.stored >= self.max
    }
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    let mut mistakes = Vec::new();
    let place = place(context, &config).map_err(|errors| mistakes.extend(errors)).ok();
    let seen = match (config.picture.as_deref().unwrap_or("source"), &config.model) {
        ("model_input", Some(name)) => match context.models.get(name) {
            Ok(model) => Some(model.input.clone()),
            Err(error) => {
                mistakes.push(error.at("model"));
                None
            }
        },
        ("model_input", None) => {
            let error = FieldError::new("picture", "`model_input` is what a model sees, and no model is named");
            mistakes.push(error.hint("add `model = \"NAME\"`"));
            None
        }
        (_, Some(_)) => {
            let error = FieldError::new("model", "`model` has a meaning with `picture = \"model_input\"` alone");
            mistakes.push(error.hint("add that, or remove `model`"));
            None
        }
        (_, None) => None,
    };
    if let (Some(above), Some(below)) = (config.above, config.below)
        && above >= below
    {
        let error = FieldError::new("below", format!("no score is {above} or more and less than {below}"));
        mistakes.push(error.hint("write a larger `below`"));
    }
    let labels = config.labels.map(OneOrMany::into_vec).unwrap_or_default();
    match place {
        Some(place) if mistakes.is_empty() => Ok(Built::Sink(Arc::new(Dataset {
            place,
            origin: context.origin.clone(),
            clock: context.clock.clone(),
            seen,
            every: config.every.unwrap_or(1).max(1),
            max: config.max,
            choice: Choice { labels, above: config.above, below: config.below },
            annotate: config.annotate,
            window: config.window.map_or(WINDOW, |size| size.0),
            quality: config.quality.unwrap_or(QUALITY),
            uploads: config.uploads.unwrap_or(UPLOADS),
            retry_for: config.retry_for.map_or(DEFAULT_RETRY_FOR, |time| time.0),
            progress: context.progress.clone(),
        }))),
        _ => Err(mistakes),
    }
}

fn place(context: &BuildContext, config: &Config) -> Result<Place, Vec<FieldError>> {
    let output = &config.output;
    if is_s3(output) {
        let S3Location { bucket, key } = S3Location::of_field("output", output).map_err(|error| vec![error])?;
        let prefix = if key.is_empty() || key.ends_with('/') { key } else { format!("{key}/") };
        let bucket = Arc::new(S3::new(&bucket, "output", config.access.clone())?);
        return Ok(Place::S3 { bucket, prefix });
    }
    let wrong = |message: String, hint: &str| Err(vec![FieldError::new("output", message).hint(hint)]);
    if output.is_empty() || output.contains('\0') {
        return wrong("`output` names no folder".to_owned(), "name a folder, or write \"s3://bucket/prefix\"");
    }
    if output.contains("://") {
        return wrong(format!("`{output}` is no place for files"), "name a folder, or write \"s3://bucket/prefix\"");
    }
    Ok(Place::Folder(Arc::new(Folder::new(output.clone(), PathBuf::from(&context.folder).join(output)))))
}

const SCORE: FieldType = FieldType::Number { minimum: 0.0, maximum: 1.0 };

const fn optional(name: &'static str, value: FieldType, summary: &'static str) -> Field {
    Field { name, value, presence: Presence::Optional, summary }
}

pub static REGISTRATION: Registration = Registration {
    name: "dataset",
    role: Role::Sink,
    summary: "Keeps pictures (JPEG) and what was found in them (JSON) as files for training, by date.",
    execution: Execution::Io,
    accepts: &[Kind::Frame, Kind::Record],
    produces: Produces::Nothing,
    fields: &[
        Field {
            name: "output",
            value: FieldType::OutputPath,
            presence: Presence::Required,
            summary: "A folder, or `s3://BUCKET/PREFIX`. Files are `YYYY/MM/DD/TIME_UUID.jpg` and `.json` in it, by the \
                      picture's time (UTC).",
        },
        Field {
            name: "every",
            value: FieldType::Integer { minimum: 1, maximum: 1_000_000_000 },
            presence: Presence::Default("1"),
            summary: "Keep every so-manieth result of each stream, of those that `labels`, `above` and `below` choose.",
        },
        optional(
            "max",
            FieldType::Integer { minimum: 1, maximum: 1_000_000_000_000 },
            "Keep so many results, of all streams together; when they are stored, the graph ends.",
        ),
        optional(
            "labels",
            FieldType::OneOrList(&FieldType::String),
            "Keep results in which one of these labels was found.",
        ),
        optional("above", SCORE, "Keep results in which something was found with this score or more."),
        optional(
            "below",
            SCORE,
            "Keep results in which something was found with less than this score; with `above`, what a model is not \
             sure of.",
        ),
        Field {
            name: "picture",
            value: FieldType::Choice(&["source", "model_input"]),
            presence: Presence::Default("\"source\""),
            summary: "source: the picture as it is; model_input: cut, scaled and padded as `model` sees it.",
        },
        optional("model", FieldType::Model, "For `model_input`: the model."),
        Field {
            name: "annotate",
            value: FieldType::Boolean,
            presence: Presence::Default("false"),
            summary: "Draw boxes and labels into the pictures, for people to look at.",
        },
        WINDOW_FIELD,
        QUALITY_FIELD,
        UPLOADS_FIELD,
        RETRY_FOR,
        ENDPOINT,
        REGION,
        PATH_STYLE,
        ANONYMOUS,
        PROFILE,
        TIMEOUT,
    ],
    example: "[sinks.training]\ntype = \"dataset\"\ninputs = [\"twice_a_second\", \"people\"]\noutput = \"dataset/\"\n\
              labels = [\"person\"]\nabove = 0.3\nbelow = 0.6\n",
    build,
};

#[cfg(test)]
mod tests;
