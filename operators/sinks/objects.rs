//! Objects out of what flows into a sink, under names of a template: a file for each segment, a JPEG for each frame, JSON
//! lines for records. Where they are stored is the sink's choice: a bucket of S3, or a folder. Where pictures are annotated,
//! records become no objects: what they say is drawn into the pictures.
//!
//! An item counts as delivered when the storage has said yes, and not before. While that is down, busy, slow or full, what
//! it did not take is tried again, and sources that may wait do; the rest is bounded by leases. What fails for good is
//! lost alone: nothing else of its batch is touched.
//!
//! Records of a stream are gathered into objects of so many records. An object that is not full yet is stored from time
//! to time, and again under the same key when it has grown: so the keys, and at the end what lies under them, depend on
//! the records alone and not on how fast they came.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;

use crate::clock::Clock;
use crate::error::{SinkError, StartError};
use crate::item::{EndReason, Event, Item, Kind, Origin, Payload, Played, Record, RecordBody, StreamId};
use crate::lease::Verdict;
use crate::operator::{SinkInput, SinkWriter, Trouble};
use crate::picture::Picture;
use crate::progress::{Output, Progress};
use crate::sinks::joined::{Found, Joiner, Ways, annotate};
use crate::sinks::records::Records;
use crate::storage::retry::{BACKOFF, Retry};
use crate::storage::uploads::{Claim, Finished, Put, Upload, Uploads, Work};
use crate::storage::{Body, IfExists, Storage};
use crate::template::{Placeholder, Template, Values};

/// When an object of records is full, and how long one that is not is kept back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batching {
    pub items: usize,
    pub bytes: usize,
    pub every: Duration,
}

/// Streams of which it is known what lies there.
const MOST_NUMBERED: usize = 10_000;

/// How objects are made and stored.
pub(super) struct Objects {
    pub storage: Arc<dyn Storage>,
    pub key: Template,
    pub origin: Origin,
    pub clock: Arc<dyn Clock>,
    pub retry_for: Duration,
    /// How many are stored at once.
    pub uploads: usize,
    /// Of JPEGs, from 1 to 100.
    pub quality: u8,
    /// How records become objects, those of failures too. `None`: those of failures end here, and no others come.
    pub batching: Option<Batching>,
    /// Frames are annotated with what their records say; so many bytes of each stream may wait for those.
    pub annotate: Option<u64>,
    pub if_exists: IfExists,
    pub progress: Option<Progress>,
}

impl Objects {
    /// # Errors
    /// Where frames are to be annotated and nobody could tell with what.
    pub fn writer(&self, inputs: &[SinkInput]) -> Result<Box<dyn SinkWriter>, StartError> {
        let joiner = self.annotate.map(|window| self.joiner(inputs, window)).transpose()?;
        let has_records = inputs.iter().any(|input| input.kind == Kind::Record);
        let retry = Retry {
            retry_for: self.retry_for,
            clock: self.clock.clone(),
            trouble: Trouble::default(),
            node: self.origin.node.clone(),
            backoff: BACKOFF,
        };
        Ok(Box::new(ObjectWriter {
            trouble: retry.trouble.clone(),
            uploads: Uploads::new(self.storage.clone(), retry, self.uploads),
            key: self.key.clone(),
            origin: self.origin.clone(),
            records: Records::new(self.origin.clone(), self.clock.clone()),
            clock: self.clock.clone(),
            quality: self.quality,
            batching: self.batching,
            batches: BTreeMap::new(),
            free: BTreeMap::new(),
            next_id: 0,
            tells_signals: has_records && self.batching.is_some() && joiner.is_none(),
            joiner,
            if_exists: self.if_exists,
            progress: self.progress.clone(),
            played: BTreeMap::new(),
        }))
    }

    fn joiner(&self, inputs: &[SinkInput], window: u64) -> Result<Joiner, StartError> {
        let ways = Ways::of(inputs)?;
        let missing = match ways {
            Ways { frames: 0, .. } => "no pictures flow into it",
            Ways { records: 0, .. } => "no records flow into it",
            _ => return Ok(Joiner::new(self.origin.node.clone(), ways, window)),
        };
        let hint = "name both in its `inputs`: the node that makes the pictures and the one that says what is in them";
        Err(StartError::new(format!("`annotate` draws what records say into pictures, and {missing}")).hint(hint))
    }

    /// Why segments cannot come where pictures are annotated: nobody could tell when a stream has ended.
    pub fn refuses(&self, kind: Kind) -> Option<(String, String)> {
        let refused = self.annotate.is_some() && kind == Kind::Segment;
        refused.then(|| {
            let message = "a sink that annotates pictures takes no segments".to_owned();
            (message, "write another sink for them".to_owned())
        })
    }

    /// The template of its keys: two sinks for which it is the same write the same objects.
    pub fn name(&self) -> String {
        self.key.of_node(&self.origin.graph, &self.origin.node)
    }

    /// Bytes that it keeps of each stream beside what leases pay for: what grows, and the copy that is on its way.
    pub fn stream_memory(&self) -> u64 {
        match self.annotate {
            Some(window) => window,
            None => self.batching.map_or(0, |batching| 2 * batching.bytes as u64),
        }
    }
}

/// Records of one stream on their way into one object.
struct Batch {
    /// Where it is stored; `None` as long as it holds nothing that has a number.
    key: Option<String>,
    /// That of its first record.
    time: SystemTime,
    lines: Vec<u8>,
    /// Records in it that have a number: what tells of a gap or a failure stands beside them.
    count: usize,
    /// Items that are in `lines`, and not in what was stored of them.
    waiting: Vec<Claim>,
    /// When the oldest of them came.
    since: Option<Instant>,
    /// The upload that carries it just now.
    carried_by: Option<u64>,
}

struct ObjectWriter {
    uploads: Uploads,
    key: Template,
    origin: Origin,
    records: Records,
    clock: Arc<dyn Clock>,
    trouble: Trouble,
    quality: u8,
    batching: Option<Batching>,
    batches: BTreeMap<StreamId, Batch>,
    /// By stream, the first number under which no object of records lies. At most [`MOST_NUMBERED`].
    free: BTreeMap<StreamId, u64>,
    next_id: u64,
    /// Gaps and failures of streams become records: where records are what comes.
    tells_signals: bool,
    /// Where pictures are annotated.
    joiner: Option<Joiner>,
    if_exists: IfExists,
    progress: Option<Progress>,
    /// What each stream that is open plays.
    played: BTreeMap<StreamId, Played>,
}

impl ObjectWriter {
    /// The key of something, by its time.
    fn name(
        &self,
        stream: &StreamId,
        seq: u64,
        index: u64,
        name: &str,
    ) -> impl Fn(SystemTime) -> String + Send + use<> {
        let (key, Origin { graph, node }) = (self.key.clone(), self.origin.clone());
        let (stream, name) = (stream.clone(), name.to_owned());
        move |time| key.render(&Values { graph: &graph, node: &node, stream: &stream, name: &name, index, seq, time })
    }

    /// Whether an output that is made again has another time, and would have another key.
    fn may_be_renamed(&self, output: Option<&Output>) -> bool {
        self.key.has(Placeholder::Time) && output.is_some_and(|output| !output.is_live())
    }

    fn submit(&mut self, work: Work, items: Vec<Claim>, output: Option<Output>) {
        let id = self.next_id;
        self.next_id += 1;
        self.uploads.submit(Upload { id, work, items, output, if_exists: self.if_exists });
    }

    fn event(&mut self, event: &Event) -> Result<(), SinkError> {
        match event {
            Event::Item(item) => match (&item.payload, &mut self.joiner) {
                (Payload::Frame(frame), Some(joiner)) => {
                    let found = joiner.frame(item, frame);
                    self.annotated(found);
                    Ok(())
                }
                (Payload::Record(record), Some(joiner)) => {
                    let found = joiner.record(item, record);
                    self.annotated(found);
                    Ok(())
                }
                (Payload::Segment(segment), _) => {
                    let output = self.progress.as_ref().and_then(|progress| progress.output(&item.stream, segment));
                    let key = self.name(&item.stream, item.seq, segment.index, &segment.name);
                    let (segment, time) = (segment.clone(), item.time);
                    let make = move |time| {
                        let (key, media_type) = (key(time), segment.media_type);
                        Put { key, body: Body::Segment(segment), media_type }
                    };
                    let work = if self.may_be_renamed(output.as_ref()) {
                        Work::Named { time, make: Box::new(move |time| Ok(vec![make(time)])) }
                    } else {
                        Work::Ready(vec![make(time)])
                    };
                    self.submit(work, vec![Claim::whole(item)], output);
                    Ok(())
                }
                (Payload::Frame(frame), None) => {
                    let claims = vec![Claim::whole(item)];
                    self.picture(Found { frame: Some(frame.clone()), claims, ..Found::of(item) });
                    Ok(())
                }
                (Payload::Record(record), None) => match self.batching {
                    Some(batching) => self.record(&record.clone(), Some(item), batching),
                    // The error of an item that became no segment, which has its verdict.
                    None if matches!(record.body, RecordBody::Error { .. }) => Ok(()),
                    None => Err(SinkError { message: "records become no objects".to_owned(), hint: None }),
                },
                (Payload::Packet(_) | Payload::Tensor(_), _) => {
                    let kind = item.payload.kind().plural();
                    Err(SinkError { message: format!("{kind} become no objects"), hint: None })
                }
            },
            Event::Gap { .. } | Event::End { reason: EndReason::Failed(_), .. } if self.tells_signals => {
                match self.records.of(event).zip(self.batching) {
                    Some((record, batching)) => self.record(&record, None, batching),
                    None => Ok(()),
                }
            }
            Event::Open { stream, info } => {
                self.played.insert(stream.clone(), info.played.clone());
                Ok(())
            }
            Event::Gap { .. } | Event::End { .. } => Ok(()),
        }
    }

    /// Pictures whose records are all there; those at which nobody could look show nothing.
    fn annotated(&mut self, found: Vec<Found>) {
        for found in found {
            match found.has_failed() {
                true => found.settle(Verdict::Filtered),
                false => self.picture(found),
            }
        }
    }

    /// Stores a picture, with what its records say drawn into it.
    fn picture(&mut self, found: Found) {
        let Found { stream, seq, time, frame: Some(frame), records, claims, .. } = found else { return };
        let name = format!("{stream}-{seq:09}.jpg");
        let key = self.name(&stream, seq, seq, &name);
        let quality = self.quality;
        let make = move |time| {
            let mut picture = Picture::of(&frame)?;
            annotate(&mut picture, &records);
            let file = picture.jpeg(quality)?;
            Ok(vec![Put { key: key(time), body: Body::Bytes(file.into()), media_type: "image/jpeg" }])
        };
        let played = self.played.get(&stream);
        let output = self
            .progress
            .as_ref()
            .zip(played)
            .and_then(|(progress, played)| progress.picture_output(&stream, played, seq));
        let work = if self.may_be_renamed(output.as_ref()) {
            Work::Named { time, make: Box::new(make) }
        } else {
            Work::Make(Box::new(move || make(time)))
        };
        self.submit(work, claims, output);
    }

    /// A stream has ended along one of the inputs.
    fn end(&mut self, stream: &StreamId, reason: &EndReason) {
        self.close_batch(stream);
        let is_over = match &mut self.joiner {
            None => true,
            // The stream itself goes on.
            Some(_) if *reason == EndReason::Reload => false,
            Some(joiner) => {
                let left = joiner.ended(stream);
                let is_over = left.is_some();
                self.annotated(left.unwrap_or_default());
                is_over
            }
        };
        if is_over {
            self.played.remove(stream);
        }
    }

    fn record(&mut self, record: &Record, item: Option<&Item>, batching: Batching) -> Result<(), SinkError> {
        let mut line = serde_json::to_vec(record).map_err(|error| SinkError {
            message: format!("cannot write record `{}` as JSON: {error}", record.id),
            hint: None,
        })?;
        line.push(b'\n');
        let stream = &record.stream;
        // One that would grow too large is stored as it is.
        if let Some(batch) = self.batches.get(stream)
            && !batch.lines.is_empty()
            && batch.lines.len() + line.len() > batching.bytes
        {
            self.close_batch(&stream.clone());
        }
        let now = self.clock.now();
        let open = self.batches.get(stream);
        let (has_key, time) = open.map_or((false, record.time), |batch| (batch.key.is_some(), batch.time));
        let key = if has_key || record.seq.is_none() { None } else { self.free_key(stream, record.seq, time) };
        let batch = self.batches.entry(stream.clone()).or_insert_with(|| Batch {
            key: None,
            time,
            lines: Vec::new(),
            count: 0,
            waiting: Vec::new(),
            since: None,
            carried_by: None,
        });
        batch.key = batch.key.take().or(key);
        batch.lines.extend_from_slice(&line);
        batch.count += usize::from(record.seq.is_some());
        batch.since.get_or_insert(now);
        batch.waiting.extend(item.map(Claim::without_credit));
        if batch.count >= batching.items {
            self.close_batch(&stream.clone());
        }
        Ok(())
    }

    /// The key of an object whose first record has the number `seq`, under which no other object of the stream lies. Several
    /// nodes tell of the same pictures, and a gap has no number. `None` where none is known.
    fn free_key(&mut self, stream: &StreamId, seq: Option<u64>, time: SystemTime) -> Option<String> {
        let number = seq.max(self.free.get(stream).copied())?;
        if self.free.len() >= MOST_NUMBERED && !self.free.contains_key(stream) {
            self.free.pop_first();
        }
        self.free.insert(stream.clone(), number + 1);
        Some(self.name(stream, number, number, &format!("{stream}-{number:09}.jsonl"))(time))
    }

    /// The object is full, or nothing more comes: it is stored for the last time.
    fn close_batch(&mut self, stream: &StreamId) {
        let Some(batch) = self.batches.remove(stream) else { return };
        if batch.since.is_none() {
            return;
        }
        let key = batch.key.or_else(|| self.free_key(stream, None, batch.time));
        // A stream of which nothing but a failure ever came, as far as this writer knows: one before it may know more.
        let if_exists = if key.is_some() { IfExists::Overwrite } else { IfExists::Skip };
        if let Some(key) = key.or_else(|| self.free_key(stream, Some(0), batch.time)) {
            let put = Put { key, body: Body::Bytes(batch.lines.into()), media_type: "application/x-ndjson" };
            self.submit_behind(batch.carried_by, put, batch.waiting, if_exists);
        }
    }

    /// Objects that have waited long enough are stored as they are, and grow on.
    fn store_due(&mut self) {
        let Some(Batching { every, .. }) = self.batching else { return };
        let now = self.clock.now();
        let is_due = |since: Instant| now.saturating_duration_since(since) >= every;
        let due: Vec<StreamId> =
            self.waiting().filter(|(_, since)| is_due(*since)).map(|(stream, _)| stream.clone()).collect();
        for stream in due {
            let Some(mut batch) = self.batches.remove(&stream) else { continue };
            batch.key = batch.key.or_else(|| self.free_key(&stream, None, batch.time));
            if let Some(key) = &batch.key {
                let body = Body::Bytes(Bytes::copy_from_slice(&batch.lines));
                let put = Put { key: key.clone(), body, media_type: "application/x-ndjson" };
                let items = std::mem::take(&mut batch.waiting);
                batch.since = None;
                batch.carried_by = Some(self.submit_behind(None, put, items, IfExists::Overwrite));
            }
            self.batches.insert(stream, batch);
        }
    }

    /// Objects that have grown, have a key and are not on their way, and since when.
    fn waiting(&self) -> impl Iterator<Item = (&StreamId, Instant)> {
        let may_go = |(stream, batch): &(&StreamId, &Batch)| {
            batch.carried_by.is_none() && (batch.key.is_some() || self.free.contains_key(*stream))
        };
        self.batches.iter().filter(may_go).filter_map(|(stream, batch)| Some((stream, batch.since?)))
    }

    /// Stores an object; behind the upload that carries an earlier state of it, which must not come later.
    fn submit_behind(&mut self, earlier: Option<u64>, put: Put, items: Vec<Claim>, if_exists: IfExists) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        // What grows under its key has to write over itself.
        let work = Work::Ready(vec![put]);
        self.uploads.submit_behind(earlier, Upload { id, work, items, output: None, if_exists });
        id
    }

    /// How long until an object has waited long enough.
    fn until_due(&self) -> Option<Duration> {
        let now = self.clock.now();
        let oldest = self.waiting().map(|(_, since)| since).min()?;
        Some((oldest + self.batching?.every).saturating_duration_since(now))
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
impl SinkWriter for ObjectWriter {
    async fn write(&mut self, batch: &[Event]) -> Result<(), SinkError> {
        let mut errors = Vec::new();
        // Before the batch and not within it: an item has its fate when nobody holds it any more, and whoever gave the batch
        // does until all of it is taken over.
        while self.uploads.are_full() {
            let finished = self.uploads.next().await;
            errors.extend(self.finished(finished).err());
        }
        for event in batch {
            errors.extend(self.event(event).err());
            if let Event::End { stream, reason } = event {
                self.end(stream, reason);
            }
        }
        self.store_due();
        SinkError::joined(errors)
    }

    fn settles(&self) -> bool {
        true
    }

    /// Pictures that have waited for their records are in memory without the source's credit until they are stored.
    fn most_at_once(&self) -> usize {
        if self.joiner.is_some() { self.uploads.most() } else { usize::MAX }
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
        let left = self.joiner.as_mut().map(Joiner::finish).unwrap_or_default();
        self.annotated(left);
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
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::clock::SystemClock;
    use crate::item::Gap;
    use crate::sinks::records::tests::{result, stream};
    use crate::storage::folder::Folder;

    /// Objects of records in a folder, each as soon as it has one.
    fn writer(folder: &Path) -> Box<dyn SinkWriter> {
        let objects = Objects {
            storage: Arc::new(Folder::new("out", folder)),
            key: Template::parse("{name}", Placeholder::ALL).unwrap(),
            origin: Origin { graph: "door".into(), node: "out".into() },
            clock: Arc::new(SystemClock),
            retry_for: Duration::ZERO,
            uploads: 1,
            quality: 90,
            batching: Some(Batching { items: 1, bytes: 1 << 20, every: Duration::from_secs(3600) }),
            annotate: None,
            if_exists: IfExists::Overwrite,
            progress: None,
        };
        let node = |name: &str| SinkInput {
            node: name.into(),
            kind: Kind::Record,
            sources: vec!["cams".into()],
            is_live: true,
            repeats: false,
        };
        objects.writer(&[node("sums"), node("shapes")]).unwrap()
    }

    fn gap() -> Event {
        Event::Gap { stream: stream(), gap: Gap { reason: "the camera was away".to_owned(), seq: None } }
    }

    fn failure() -> Event {
        Event::End { stream: stream(), reason: EndReason::Failed("gone".to_owned()) }
    }

    /// The objects by name, each with the numbers of its records; `None` for what tells of a gap or a failure.
    async fn stored(events: &[Event], folder: &Path) -> Vec<(String, Vec<Option<u64>>)> {
        let mut writer = writer(folder);
        for event in events {
            writer.write(std::slice::from_ref(event)).await.unwrap();
        }
        writer.close().await.unwrap();
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut found: Vec<_> = entries
            .map(|path| {
                let text = std::fs::read_to_string(&path).unwrap();
                let seq = |line| serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64();
                (path.file_name().unwrap().to_str().unwrap().to_owned(), text.lines().map(seq).collect())
            })
            .collect();
        found.sort();
        found
    }

    fn objects(expected: &[(u64, &[Option<u64>])]) -> Vec<(String, Vec<Option<u64>>)> {
        expected.iter().map(|(number, seqs)| (format!("cam-{number:09}.jsonl"), seqs.to_vec())).collect()
    }

    #[tokio::test]
    async fn a_gap_stands_beside_the_next_record_and_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let events = [gap(), result(0), result(1), gap(), result(4), failure()];
        let expected: &[(u64, &[_])] = &[(0, &[None, Some(0)]), (1, &[Some(1)]), (4, &[None, Some(4)]), (5, &[None])];
        assert_eq!(stored(&events, folder.path()).await, objects(expected));
    }

    #[tokio::test]
    async fn a_failure_of_which_nothing_else_is_known_overwrites_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(stored(&[failure()], folder.path()).await, objects(&[(0, &[None])]));
        // By the writer that comes after a reload.
        let folder = tempfile::tempdir().unwrap();
        stored(&[result(0)], folder.path()).await;
        assert_eq!(stored(&[failure()], folder.path()).await, objects(&[(0, &[Some(0)])]));
    }

    /// Two nodes tell of the same pictures, the second one after the first.
    #[tokio::test]
    async fn what_two_nodes_tell_of_one_picture_are_two_objects() {
        let folder = tempfile::tempdir().unwrap();
        let events = [result(0), result(1), result(0), result(1)];
        let expected: &[(u64, &[_])] = &[(0, &[Some(0)]), (1, &[Some(1)]), (2, &[Some(0)]), (3, &[Some(1)])];
        assert_eq!(stored(&events, folder.path()).await, objects(expected));
    }
}
