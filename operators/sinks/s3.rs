//! `s3`: objects in a bucket: a file for each segment, a JPEG for each frame, JSON lines for records.
//!
//! An item counts as delivered when the server has said yes, and not before. While the server is down, busy or slow,
//! what it did not take is tried again, and sources that may wait do; the rest is bounded by leases.
//!
//! Records of a stream are gathered into objects of `batch.items` records. An object that is not full yet is stored
//! every `batch.every`, and again under the same key when it has grown: so the keys, and at the end what lies under
//! them, depend on the records alone and not on how fast they came.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use serde::Deserialize;

use crate::clock::Clock;
use crate::config::{self, Field, FieldType, Presence};
use crate::error::{FieldError, SinkError, StartError};
use crate::item::{EndReason, Event, Frame, Item, Kind, Origin, Payload, Record, StreamId};
use crate::operator::{
    BuildContext, Built, Execution, Produces, Registration, Resource, Role, Sink, SinkInput, SinkWriter, Trouble,
};
use crate::picture::Picture;
use crate::progress::{Output, Progress};
use crate::sinks::records::Records;
use crate::storage::retry::{BACKOFF, DEFAULT_RETRY_FOR, RETRY_FOR, Retry};
use crate::storage::s3::{ANONYMOUS, Access, ENDPOINT, PATH_STYLE, PROFILE, REGION, S3, TIMEOUT};
use crate::storage::uploads::{Claim, Finished, Put, Upload, Uploads, Work};
use crate::storage::{Body, IfExists, Storage, runtime};
use crate::template::{Placeholder, Template, Values};

#[derive(Deserialize)]
struct Config {
    bucket: String,
    key: String,
    #[serde(flatten)]
    access: Access,
    retry_for: Option<config::Duration>,
    uploads: Option<usize>,
    quality: Option<u8>,
    if_exists: Option<IfExists>,
    #[serde(default)]
    batch: BatchConfig,
}

#[derive(Default, Deserialize)]
struct BatchConfig {
    items: Option<usize>,
    bytes: Option<config::Size>,
    every: Option<config::Duration>,
}

/// When an object of records is full, and how long one that is not is kept back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Batching {
    items: usize,
    bytes: usize,
    every: Duration,
}

const KEY_HINT: &str = "write it like \"{stream}/{date:%Y/%m/%d}/{seq:09}.jpg\"";
const UPLOADS: usize = 4;
const QUALITY: u8 = 90;
const BATCH_ITEMS: usize = 1000;
const BATCH_BYTES: u64 = 1 << 20;
const BATCH_EVERY: Duration = Duration::from_secs(10);

struct S3Sink {
    storage: Arc<S3>,
    key: Template,
    origin: Origin,
    clock: Arc<dyn Clock>,
    retry_for: Duration,
    uploads: usize,
    quality: u8,
    batching: Batching,
    if_exists: IfExists,
    progress: Option<Progress>,
}

impl S3Sink {
    fn writer(&self, tells_signals: bool) -> S3Writer {
        let retry = Retry {
            retry_for: self.retry_for,
            clock: self.clock.clone(),
            trouble: Trouble::default(),
            node: self.origin.node.clone(),
            backoff: BACKOFF,
        };
        let storage: Arc<dyn Storage> = self.storage.clone();
        S3Writer {
            trouble: retry.trouble.clone(),
            uploads: Uploads::new(storage, retry, self.uploads),
            key: self.key.clone(),
            origin: self.origin.clone(),
            records: Records::new(self.origin.clone(), self.clock.clone()),
            clock: self.clock.clone(),
            quality: self.quality,
            batching: self.batching,
            batches: BTreeMap::new(),
            next_id: 0,
            tells_signals,
            if_exists: self.if_exists,
            progress: self.progress.clone(),
        }
    }
}

impl Sink for S3Sink {
    fn start(&self) -> Result<Box<dyn SinkWriter>, StartError> {
        self.start_with(&[])
    }

    fn start_with(&self, inputs: &[SinkInput]) -> Result<Box<dyn SinkWriter>, StartError> {
        let storage = self.storage.clone();
        runtime::wait_for(async move { storage.check().await })
            .map_err(|error| error.at_start("objects cannot be stored:"))?;
        let has_records = inputs.iter().any(|input| input.kind == Kind::Record);
        Ok(Box::new(self.writer(has_records)))
    }

    fn resources(&self) -> Vec<Resource> {
        let key = self.key.of_node(&self.origin.graph, &self.origin.node);
        vec![Resource::Path(PathBuf::from(format!("{}/{key}", self.storage.identity())))]
    }

    fn stream_memory(&self) -> u64 {
        // What grows, and the copy that is on its way.
        2 * self.batching.bytes as u64
    }
}

/// Records of one stream on their way into one object.
struct Batch {
    key: String,
    lines: Vec<u8>,
    count: usize,
    /// Items that are in `lines`, and not in what was stored of them.
    waiting: Vec<Claim>,
    /// When the oldest of them came.
    since: Option<Instant>,
    /// The upload that carries it just now.
    carried_by: Option<u64>,
}

struct S3Writer {
    uploads: Uploads,
    key: Template,
    origin: Origin,
    records: Records,
    clock: Arc<dyn Clock>,
    trouble: Trouble,
    quality: u8,
    batching: Batching,
    batches: BTreeMap<StreamId, Batch>,
    next_id: u64,
    /// Gaps and failures of streams become records: where records are what comes.
    tells_signals: bool,
    if_exists: IfExists,
    progress: Option<Progress>,
}

impl S3Writer {
    fn name(&self, stream: &StreamId, seq: u64, index: u64, name: &str, time: SystemTime) -> String {
        let (graph, node) = (&*self.origin.graph, &*self.origin.node);
        self.key.render(&Values { graph, node, stream, name, index, seq, time })
    }

    fn submit(&mut self, work: Work, items: Vec<Claim>, output: Option<Output>) {
        let id = self.next_id;
        self.next_id += 1;
        self.uploads.submit(Upload { id, work, items, output, if_exists: self.if_exists });
    }

    fn event(&mut self, event: &Event) -> Result<(), SinkError> {
        match event {
            Event::Item(item) => match &item.payload {
                Payload::Segment(segment) => {
                    let key = self.name(&item.stream, item.seq, segment.index, &segment.name, item.time);
                    let put = Put { key, body: Body::Segment(segment.clone()), media_type: segment.media_type };
                    let output = self.progress.as_ref().and_then(|progress| progress.output(&item.stream, segment));
                    self.submit(Work::Ready(vec![put]), vec![Claim::whole(item)], output);
                    Ok(())
                }
                Payload::Frame(frame) => {
                    self.frame(item, frame);
                    Ok(())
                }
                Payload::Record(record) => self.record(&record.clone(), Some(item)),
                Payload::Packet(_) | Payload::Tensor(_) => {
                    let kind = item.payload.kind().plural();
                    Err(SinkError { message: format!("`s3` does not take {kind}"), hint: None })
                }
            },
            Event::Gap { .. } | Event::End { reason: EndReason::Failed(_), .. } if self.tells_signals => {
                match self.records.of(event) {
                    Some(record) => self.record(&record, None),
                    None => Ok(()),
                }
            }
            Event::Open { .. } | Event::Gap { .. } | Event::End { .. } => Ok(()),
        }
    }

    fn frame(&mut self, item: &Item, frame: &Arc<Frame>) {
        let name = format!("{}-{:09}.jpg", item.stream, item.seq);
        let key = self.name(&item.stream, item.seq, item.seq, &name, item.time);
        let (frame, quality) = (frame.clone(), self.quality);
        let make = move || {
            let file = Picture::of(&frame)?.jpeg(quality)?;
            Ok(vec![Put { key, body: Body::Bytes(file.into()), media_type: "image/jpeg" }])
        };
        self.submit(Work::Make(Box::new(make)), vec![Claim::whole(item)], None);
    }

    fn record(&mut self, record: &Record, item: Option<&Item>) -> Result<(), SinkError> {
        let mut line = serde_json::to_vec(record).map_err(|error| SinkError {
            message: format!("cannot write record `{}` as JSON: {error}", record.id),
            hint: None,
        })?;
        line.push(b'\n');
        let stream = &record.stream;
        // One that would grow too large is stored as it is.
        if let Some(batch) = self.batches.get(stream)
            && batch.count > 0
            && batch.lines.len() + line.len() > self.batching.bytes
        {
            self.close_batch(&stream.clone());
        }
        let now = self.clock.now();
        if !self.batches.contains_key(stream) {
            let seq = record.seq.unwrap_or(0);
            let name = format!("{stream}-{seq:09}.jsonl");
            let key = self.name(stream, seq, seq, &name, record.time);
            let (lines, waiting) = (Vec::new(), Vec::new());
            let batch = Batch { key, lines, count: 0, waiting, since: None, carried_by: None };
            self.batches.insert(stream.clone(), batch);
        }
        let Some(batch) = self.batches.get_mut(stream) else { return Ok(()) };
        batch.lines.extend_from_slice(&line);
        batch.count += 1;
        batch.since.get_or_insert(now);
        batch.waiting.extend(item.map(Claim::without_credit));
        if batch.count >= self.batching.items {
            self.close_batch(&stream.clone());
        }
        Ok(())
    }

    /// The object is full, or nothing more comes: it is stored for the last time.
    fn close_batch(&mut self, stream: &StreamId) {
        let Some(batch) = self.batches.remove(stream) else { return };
        if batch.since.is_some() {
            let put = Put { key: batch.key, body: Body::Bytes(batch.lines.into()), media_type: "application/x-ndjson" };
            self.submit_behind(batch.carried_by, put, batch.waiting);
        }
    }

    /// Objects that have waited long enough are stored as they are, and grow on.
    fn store_due(&mut self) {
        let now = self.clock.now();
        let every = self.batching.every;
        let is_due = |batch: &Batch| {
            batch.carried_by.is_none() && batch.since.is_some_and(|since| now.saturating_duration_since(since) >= every)
        };
        let due: Vec<StreamId> =
            self.batches.iter().filter(|(_, batch)| is_due(batch)).map(|(stream, _)| stream.clone()).collect();
        for stream in due {
            let Some(batch) = self.batches.get_mut(&stream) else { continue };
            let body = Body::Bytes(Bytes::copy_from_slice(&batch.lines));
            let put = Put { key: batch.key.clone(), body, media_type: "application/x-ndjson" };
            let items = std::mem::take(&mut batch.waiting);
            batch.since = None;
            let id = self.submit_behind(None, put, items);
            if let Some(batch) = self.batches.get_mut(&stream) {
                batch.carried_by = Some(id);
            }
        }
    }

    /// Stores an object; behind the upload that carries an earlier state of it, which must not come later.
    fn submit_behind(&mut self, earlier: Option<u64>, put: Put, items: Vec<Claim>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        // It grows under its key, so it has to write over itself.
        let (work, if_exists) = (Work::Ready(vec![put]), IfExists::Overwrite);
        self.uploads.submit_behind(earlier, Upload { id, work, items, output: None, if_exists });
        id
    }

    /// How long until an object has waited long enough.
    fn until_due(&self) -> Option<Duration> {
        let now = self.clock.now();
        let batches = self.batches.values().filter(|batch| batch.carried_by.is_none());
        let oldest = batches.filter_map(|batch| batch.since).min()?;
        Some((oldest + self.batching.every).saturating_duration_since(now))
    }

    fn finished(&mut self, finished: Finished) -> Result<(), SinkError> {
        for batch in self.batches.values_mut().filter(|batch| finished.id.is_some() && batch.carried_by == finished.id)
        {
            batch.carried_by = None;
        }
        finished.result
    }
}

#[async_trait::async_trait]
impl SinkWriter for S3Writer {
    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
        let mut failed = Ok(());
        for event in batch {
            while self.uploads.are_full() {
                let finished = self.uploads.next().await;
                failed = failed.and(self.finished(finished));
            }
            failed = failed.and(self.event(event));
            if let Event::End { stream, .. } = event {
                self.close_batch(stream);
            }
        }
        self.store_due();
        // What failed was settled already, and the rest of the batch did not fail: it is told, and not given up.
        if let Err(error) = failed {
            self.uploads.report(error);
        }
        Ok(())
    }

    fn settles(&self) -> bool {
        true
    }

    async fn work(&mut self) -> Result<(), SinkError> {
        let due = self.until_due();
        let wait = async {
            match due {
                Some(due) => tokio::time::sleep(due).await,
                None => std::future::pending().await,
            }
        };
        let finished = tokio::select! {
            finished = self.uploads.next() => Some(finished),
            () = wait => None,
        };
        match finished {
            Some(finished) => self.finished(finished),
            None => {
                self.store_due();
                Ok(())
            }
        }
    }

    async fn close(&mut self) -> Result<(), SinkError> {
        let streams: Vec<StreamId> = self.batches.keys().cloned().collect();
        streams.iter().for_each(|stream| self.close_batch(stream));
        let mut failed = Ok(());
        while !self.uploads.are_idle() {
            let finished = self.uploads.next().await;
            failed = failed.and(self.finished(finished));
        }
        failed
    }

    fn deadline(&self) -> Option<Duration> {
        // Each upload has an end of its own.
        None
    }

    fn trouble(&self) -> Option<Trouble> {
        Some(self.trouble.clone())
    }
}

/// The template that `key` has.
///
/// # Errors
/// Where it is no template, or the names of two items could be the same.
fn key_template(key: &str) -> Result<Template, FieldError> {
    let template = Template::parse(key, Placeholder::ALL).map_err(|why| FieldError::new("key", why).hint(KEY_HINT))?;
    if key.starts_with('/') || key.contains('\0') {
        let message =
            format!("`{}` is no name for objects: it begins with a slash, or a zero byte is in it", key.escape_debug());
        return Err(FieldError::new("key", message).hint(KEY_HINT));
    }
    let has = |placeholder: Placeholder| template.has(placeholder);
    if !has(Placeholder::Seq) && !has(Placeholder::Index) && !has(Placeholder::Name) {
        let message = format!("`{key}` gives all items of a stream one name: each would overwrite the one before");
        return Err(FieldError::new("key", message).hint("add `{seq}`, or `{name}` for the file name of a segment"));
    }
    if !has(Placeholder::Stream) && !has(Placeholder::Name) {
        let message = format!("`{key}` gives the items of two streams one name: they would overwrite each other");
        return Err(FieldError::new("key", message).hint("add `{stream}`"));
    }
    Ok(template)
}

fn build(context: &BuildContext, table: toml::Table) -> Result<Built, Vec<FieldError>> {
    let config: Config = config::read(table)?;
    let mut mistakes = Vec::new();
    let mut keep = |error: FieldError| mistakes.push(error);
    let key = key_template(&config.key).map_err(&mut keep).ok();
    let storage = match S3::new(&config.bucket, "bucket", config.access) {
        Ok(storage) => Some(Arc::new(storage)),
        Err(errors) => {
            errors.into_iter().for_each(&mut keep);
            None
        }
    };
    let BatchConfig { items, bytes, every } = config.batch;
    let bytes = bytes.map_or(BATCH_BYTES, |bytes| bytes.0);
    if bytes == 0 || bytes > 1 << 30 {
        keep(
            FieldError::new("batch.bytes", "an object of records has from 1 B to 1 GiB").hint("write it like \"1MiB\""),
        );
    }
    match (key, storage) {
        (Some(key), Some(storage)) if mistakes.is_empty() => Ok(Built::Sink(Arc::new(S3Sink {
            storage,
            key,
            origin: context.origin.clone(),
            clock: context.clock.clone(),
            retry_for: config.retry_for.map_or(DEFAULT_RETRY_FOR, |time| time.0),
            uploads: config.uploads.unwrap_or(UPLOADS),
            quality: config.quality.unwrap_or(QUALITY),
            if_exists: config.if_exists.unwrap_or_default(),
            progress: context.progress.clone(),
            batching: Batching {
                items: items.unwrap_or(BATCH_ITEMS),
                bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
                every: every.map_or(BATCH_EVERY, |time| time.0),
            },
        }))),
        _ => Err(mistakes),
    }
}

static BATCH: [Field; 3] = [
    Field {
        name: "items",
        value: FieldType::Integer { minimum: 1, maximum: 1_000_000 },
        presence: Presence::Default("1000"),
        summary: "Records of one stream in one object.",
    },
    Field {
        name: "bytes",
        value: FieldType::Size,
        presence: Presence::Default("\"1MiB\""),
        summary: "Bytes at which an object is full whatever its number of records; so much is kept of each stream.",
    },
    Field {
        name: "every",
        value: FieldType::Duration,
        presence: Presence::Default("\"10s\""),
        summary: "How long a record waits at most until the object that it is in is stored, full or not.",
    },
];

/// How many puts run at once; the `dataset` sink has the same field.
pub(crate) const UPLOADS_FIELD: Field = Field {
    name: "uploads",
    value: FieldType::Integer { minimum: 1, maximum: 64 },
    presence: Presence::Default("4"),
    summary: "How many objects are stored at once.",
};

/// How good JPEGs are; the `dataset` sink has the same field.
pub(crate) const QUALITY_FIELD: Field = Field {
    name: "quality",
    value: FieldType::Integer { minimum: 1, maximum: 100 },
    presence: Presence::Default("90"),
    summary: "Of pictures as JPEG: 1 is the smallest file, 100 the best picture.",
};

pub static REGISTRATION: Registration = Registration {
    name: "s3",
    role: Role::Sink,
    summary: "Stores segments, frames (as JPEG) and records (as JSON lines) as objects in a bucket of S3.",
    execution: Execution::Io,
    accepts: &[Kind::Segment, Kind::Record, Kind::Frame],
    produces: Produces::Nothing,
    fields: &[
        Field {
            name: "bucket",
            value: FieldType::String,
            presence: Presence::Required,
            summary: "The bucket, which must be there.",
        },
        Field {
            name: "key",
            value: FieldType::String,
            presence: Presence::Required,
            summary: "The objects' keys, with `{stream}`, `{name}`, `{seq:09}`, `{index:04}`, `{graph}`, `{node}`, \
                      `{time}`, `{date:%Y/%m/%d}`, `{year}`, … in them.",
        },
        Field {
            name: "if_exists",
            value: FieldType::Choice(&["error", "overwrite", "skip"]),
            presence: Presence::Default("\"overwrite\""),
            summary: "What happens where an object of the same key is there already, of segments and frames: the new one is \
                      lost and the error told, it takes the other's place, or the other one stays and counts. With \
                      `[state]`, what the graph itself has stored is written over in any case.",
        },
        ENDPOINT,
        REGION,
        PATH_STYLE,
        ANONYMOUS,
        PROFILE,
        TIMEOUT,
        RETRY_FOR,
        UPLOADS_FIELD,
        Field {
            name: "batch",
            value: FieldType::Table(&BATCH),
            presence: Presence::Optional,
            summary: "How records are put together into objects.",
        },
        QUALITY_FIELD,
    ],
    example: "[sinks.archive]\ntype = \"s3\"\ninputs = [\"people\"]\nbucket = \"archive\"\n\
              key = \"{stream}/{date:%Y/%m/%d}/{time}_{seq}.jsonl\"\n",
    build,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::records::tests::context;
    use std::path::Path;

    fn mistakes(table: &str) -> Vec<FieldError> {
        build(&context(Path::new(".")), toml::from_str(table).unwrap()).err().unwrap()
    }

    #[test]
    fn every_mistake_is_named_at_once() {
        let errors = mistakes("bucket = \"a/b\"\nkey = \"x.jpg\"\nendpoint = \"minio\"\nbatch = { bytes = 0 }");
        let fields: Vec<&str> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["key", "bucket", "endpoint", "batch.bytes"]);
        assert!(errors.iter().all(|error| error.hint.is_some()));
    }

    #[test]
    fn keys_that_would_overwrite_each_other_are_refused() {
        for (key, said) in [
            ("{stream}/{time}.jpg", "overwrite the one before"),
            ("{seq}.jpg", "overwrite each other"),
            ("{sequence}", "nothing is known for `{sequence}`"),
            ("{stream", "has no partner"),
            ("/{stream}/{seq}", "begins with a slash"),
        ] {
            let error = key_template(key).unwrap_err();
            assert!(error.message.contains(said) && error.hint.is_some(), "{key}: {}", error.message);
        }
        assert!(key_template("{stream}/{seq:09}.jpg").is_ok() && key_template("{name}").is_ok());
    }

    #[test]
    fn two_sinks_that_would_write_the_same_objects_share_a_resource() {
        let resources = |table: &str| {
            let Ok(Built::Sink(sink)) = build(&context(Path::new(".")), toml::from_str(table).unwrap()) else {
                panic!("not a sink")
            };
            sink.resources()
        };
        let one = resources("bucket = \"a\"\nkey = \"{stream}/{seq}\"");
        assert_eq!(one, resources("bucket = \"a\"\nkey = \"{stream}/{seq}\"\nuploads = 2"));
        assert_ne!(one, resources("bucket = \"b\"\nkey = \"{stream}/{seq}\""));
        assert_ne!(one, resources("bucket = \"a\"\nkey = \"{stream}/{seq}\"\nendpoint = \"http://minio:9000\""));
    }

    #[test]
    fn the_example_builds() {
        let example: toml::Table = toml::from_str(REGISTRATION.example).unwrap();
        let mut table = example["sinks"]["archive"].as_table().unwrap().clone();
        table.retain(|key, _| !["type", "inputs"].contains(&key));
        assert!(build(&context(Path::new(".")), table).is_ok());
    }
}
